/* What each client has still to be told about its requests: tokens, prompt scores, ends.
 *
 * Nothing is queued: what is owed follows from the ledger and from how far each request was told. So a client that
 * takes nothing for a while loses nothing, and one that forgot everything is told again from position 0.
 *     delivery_begin; while (delivery_next) { send; delivery_sent or delivery_refused }
 * Per request: prompt scores first, then tokens in order, the end last. Allocates at creation only. */
#ifndef QN_SCHEDULER_DELIVERY_H
#define QN_SCHEDULER_DELIVERY_H

#include "common/err.h"
#include "services/scheduler/ledger/ledger.h"
#include "qn_limits.h"

typedef struct delivery delivery_t;

typedef struct {
    uint64_t request;
    uint32_t position; /* among the generated tokens */
    uint32_t id;
    float logprob;
    uint8_t top_count;
} delivery_token_t;

/* One message for one client. Views, valid until the next call. */
typedef struct {
    request_client_t client;
    const request_t *scores; /* not NULL: prompt scores [scores_begin, scores_end) of this request ... */
    uint32_t scores_begin, scores_end;
    uint8_t scores_top_count; /* ... with so many alternatives each; else: */
    const delivery_token_t *tokens;
    const request_alternative_t *top; /* of the tokens, in order */
    const request_t *const *ends;     /* finished requests */
    const request_t *const *firsts;   /* requests whose first token is in `tokens`: their timelines */
    uint32_t token_count, top_count, end_count, first_count;
} delivery_message_t;

qn_err_t delivery_create(const ledger_t *ledger, delivery_t **ret_delivery);
void delivery_destroy(delivery_t **delivery);

/* There may be something new to tell about the request. */
void delivery_note(delivery_t *delivery, uint32_t index);
/* Its client knows nothing of it (any more): tell from the start. For new entries too. */
void delivery_restart(delivery_t *delivery, uint32_t index);
/* While held, nothing is told about it: its client is gone. */
void delivery_hold(delivery_t *delivery, uint32_t index, bool held);
/* Nothing more is to be told about it. */
void delivery_drop(delivery_t *delivery, uint32_t index);
/* Everything was told, the end included. */
bool delivery_done(const delivery_t *delivery, uint32_t index);

void delivery_begin(delivery_t *delivery);
bool delivery_next(delivery_t *delivery, delivery_message_t *ret_message);
/* The message of the last delivery_next is on its way. */
void delivery_sent(delivery_t *delivery);
/* Its client takes nothing now: leave it out until the next delivery_begin. */
void delivery_refused(delivery_t *delivery);
/* Whether anything is left to be told to a client that is not gone. */
bool delivery_pending(const delivery_t *delivery);

#endif
