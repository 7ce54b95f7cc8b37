/* The state of the tokenizer daemon, shared by what comes in (handlers.c) and what goes out (outgoing.c). */
#ifndef QUINTET_TOKENIZER_SERVICE_H
#define QUINTET_TOKENIZER_SERVICE_H

#include "common/daemon/daemon.h"
#include "common/daemon/in_hand.h"
#include "services/tokenizer/request.h"
#include "services/tokenizer/streams.h"
#include "services/tokenizer/text_worker.h"
#include "services/tokenizer/tokenizer.h"

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
} tokenizer_service_t;

#endif
