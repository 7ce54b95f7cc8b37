/* The state of the tokenizer daemon, shared by what comes in (handlers.c) and what goes out (outgoing.c). */
#ifndef QN_TOKENIZER_SERVICE_H
#define QN_TOKENIZER_SERVICE_H

#include "common/daemon/daemon.h"
#include "common/daemon/in_hand.h"
#include "services/tokenizer/request.h"
#include "services/tokenizer/streams.h"
#include "services/tokenizer/text_worker.h"
#include "services/tokenizer/tokenizer.h"
#include "common/watch/window.h"

enum {
    TOKENIZER_STAT_ENCODED_TOKENS,
    TOKENIZER_STAT_ENCODED_BYTES,
    TOKENIZER_STAT_DETOKENIZED_TOKENS,
    TOKENIZER_STAT_STREAMS,
    TOKENIZER_STAT_WAITING,
    TOKENIZER_STAT_STOP_STRINGS,
    TOKENIZER_STAT_ENCODE_TIME,
    TOKENIZER_STAT_DETOKENIZE_TIME,
    TOKENIZER_STAT_WAIT_TIME,
    TOKENIZER_STAT_COUNT,
};

typedef struct tokenizer_outgoing tokenizer_outgoing_t;

/* A Cancel on its way to the scheduler, or to the next one. */
typedef struct {
    uint64_t request;
    qn_cancel_reason_t reason;
} tokenizer_cancel_t;

/* More than a tokenizer holds streams: those that it holds no more wait here too while there is no scheduler. */
#define TOKENIZER_CANCELS_MAX (2u * QN_REQUESTS_MAX)

typedef struct {
    qn_daemon_t *daemon;
    qn_in_hand_t *hand;           /* what is being worked on, for the next life */
    tokenizer_t *tokenizer;       /* NULL: token ids only */
    tokenizer_scratch_t *scratch; /* of the loop; the worker has its own */
    text_worker_t *worker;        /* long texts */
    uint64_t turn_work_ns;        /* spent on texts in this turn of the loop */
    streams_t *streams;
    text_buffer_t text;             /* reused by every reply */
    tokenizer_outgoing_t *outgoing; /* deltas per frontend, sent by the tick */
    tokenizer_cancel_t *cancels;    /* owned [TOKENIZER_CANCELS_MAX]; not sent yet */
    uint32_t cancel_count;
    qn_peer_t frontends[QN_PEERS_MAX]; /* connected, that have sent again all they hold */
    uint32_t frontend_count, replayed_count;
    qn_window_t encodes, decodes, waits; /* times of the last minute; methods.c shows them */
} tokenizer_service_t;

#endif
