/* The text of one turn of the loop, gathered per frontend, sent by the tick as one TextDelta each. */
#ifndef QUINTET_TOKENIZER_OUTGOING_H
#define QUINTET_TOKENIZER_OUTGOING_H

#include "services/tokenizer/handlers.h"

/* Deltas of one turn for one frontend. */
typedef struct {
    qn_peer_t frontend;                                          /* epoch 0: unused */
    text_buffer_t deltas, text, tokens, pieces, ends, timelines; /* qn_delta_t[], bytes, qn_text_token_t[], ... */
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

#endif
