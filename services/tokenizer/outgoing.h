/* What goes out. The text of one turn of the loop is gathered per frontend and sent by the tick as one TextDelta each; all
 * else is sent at once. */
#ifndef QN_TOKENIZER_OUTGOING_H
#define QN_TOKENIZER_OUTGOING_H

#include "services/tokenizer/service.h"

/* Deltas of one turn for one frontend. */
typedef struct {
    qn_peer_t frontend; /* epoch 0: unused */
    text_buffer_t deltas, text, tokens, pieces, ends, timelines,
        reads; /* qn_delta_t[], bytes, qn_text_token_t[], ... */
} outgoing_box_t;

/* Returns owned; never fails. */
tokenizer_outgoing_t *tokenizer_outgoing_create(void);
void tokenizer_outgoing_destroy(tokenizer_outgoing_t **outgoing);

/* The box of this frontend, with room for one token and its alternatives: what would exceed the bounds of a TextDelta
 * is sent first. Returns view. */
outgoing_box_t *tokenizer_outgoing_box(tokenizer_service_t *service, qn_peer_t frontend);
/* The frontend is gone: what waits for it is dropped. */
void tokenizer_outgoing_forget(tokenizer_outgoing_t *outgoing, qn_peer_t frontend);
/* Sends the gathered deltas; false: a peer had no room, call again soon. */
bool tokenizer_outgoing_flush(tokenizer_service_t *service);

/* Appends the bytes of one token; how many (the rest of a longer one is cut). */
uint16_t tokenizer_add_piece(const tokenizer_service_t *service, text_buffer_t *pieces, uint32_t id);
/* Answers a finished TOKENIZE or DETOKENIZE job. */
void tokenizer_send_reply(tokenizer_service_t *service, const text_job_t *job);
/* Passes scores on with the bytes of their tokens. */
void tokenizer_send_prompt_logprobs(tokenizer_service_t *service, const request_t *request,
                                    const qn_prompt_logprobs_t *scores);
/* QN_SEND_GONE while there is no scheduler: a new one is told of all requests. */
qn_send_outcome_t tokenizer_send_submit(tokenizer_service_t *service, const qn_submit_t *submit);
/* Asks the scheduler to end the request. It is sent by the tick, to the scheduler that lives then: none is lost for want
 * of room or of a scheduler, and saying it twice harms nothing. */
void tokenizer_send_cancel(tokenizer_service_t *service, uint64_t request, qn_cancel_reason_t reason);
/* Sends what waits to be cancelled; false: the scheduler had no room, call again soon. */
bool tokenizer_send_cancels(tokenizer_service_t *service);

#endif
