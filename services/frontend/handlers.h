/* Between the frontend's messages and its nouns: the handler table, and one function per message it sends. */
#ifndef QN_FRONTEND_HANDLERS_H
#define QN_FRONTEND_HANDLERS_H

#include "services/frontend/frontend.h"

extern const qn_handler_t frontend_handlers[];

/* All: QN_SEND_GONE while the peer is down. */
qn_send_outcome_t frontend_send_encode(frontend_t *frontend, const choice_t *choice);
/* What must be known about a prompt (see prompt_facts_t). */
qn_send_outcome_t frontend_send_facts(frontend_t *frontend, const exchange_t *exchange, uint32_t prompt);
qn_send_outcome_t frontend_send_tokenize(frontend_t *frontend, uint64_t id, const char *text, size_t bytes,
                                         bool add_special, bool want_pieces);
qn_send_outcome_t frontend_send_detokenize(frontend_t *frontend, uint64_t id, const uint32_t *ids, uint32_t count,
                                           bool skip_special);
qn_send_outcome_t frontend_send_cache_query(frontend_t *frontend, uint64_t id);
qn_send_outcome_t frontend_send_flush(frontend_t *frontend, uint64_t id);
qn_send_outcome_t frontend_send_describe(frontend_t *frontend, qn_peer_t memory);
/* On a new link to a tokenizer: nothing it has to hear of is missing any more. */
qn_send_outcome_t frontend_send_replay_complete(frontend_t *frontend, qn_peer_t tokenizer);
qn_send_outcome_t frontend_send_cancel(frontend_t *frontend, uint64_t id, qn_cancel_reason_t reason);

#endif
