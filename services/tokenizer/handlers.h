/* Between the tokenizer's messages and its nouns: the handler table, what a tick sends, and the state both share. */
#ifndef QUINTET_TOKENIZER_HANDLERS_H
#define QUINTET_TOKENIZER_HANDLERS_H

#include "common/daemon/daemon.h"
#include "services/tokenizer/streams.h"
#include "services/tokenizer/tokenizer.h"

enum {
    TOKENIZER_STAT_ENCODED_TOKENS,
    TOKENIZER_STAT_ENCODED_BYTES,
    TOKENIZER_STAT_DETOKENIZED_TOKENS,
    TOKENIZER_STAT_STREAMS,
    TOKENIZER_STAT_STOP_STRINGS,
    TOKENIZER_STAT_ENCODE_TIME,
    TOKENIZER_STAT_DETOKENIZE_TIME,
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
    tokenizer_t *tokenizer; /* NULL: token ids only */
    tokenizer_scratch_t *scratch;
    streams_t *streams;
    tokenizer_tokens_t tokens;      /* reused by every encode */
    text_buffer_t text;             /* reused by every reply */
    tokenizer_outgoing_t *outgoing; /* deltas per frontend, sent by the tick */
    tokenizer_cancel_t *cancels;    /* owned [TOKENIZER_CANCELS_MAX]; not sent yet */
    uint32_t cancel_count;
    qn_peer_t frontends[QN_PEERS_MAX]; /* connected, that have sent again all they hold */
    uint32_t frontend_count, replayed_count;
} tokenizer_service_t;

extern const qn_handler_t tokenizer_handlers[];

/* A frontend died: its requests are cancelled. */
void tokenizer_drop_frontend(tokenizer_service_t *service, qn_peer_t frontend);
/* A new scheduler life is up: it is told of every running request again, and of those that were cancelled meanwhile; it
 * drops those it knows. */
void tokenizer_submit_all(tokenizer_service_t *service, qn_peer_t scheduler);
/* A frontend is up: until it says ReplayComplete, requests of its are missing here. */
void tokenizer_meet_frontend(tokenizer_service_t *service);
/* Sends what waits to be cancelled; false: the scheduler had no room, call again soon. */
bool tokenizer_send_cancels(tokenizer_service_t *service);
/* Ends every stream without telling anybody (shutdown). */
void tokenizer_close_all(tokenizer_service_t *service);

#endif
