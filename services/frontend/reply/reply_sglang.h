/* Replies of /generate in SGLang's shape: text, output_ids, meta_info. One JSON value per call, without a newline. */
#ifndef QN_FRONTEND_REPLY_REPLY_SGLANG_H
#define QN_FRONTEND_REPLY_REPLY_SGLANG_H

#include "services/frontend/request/request_table.h"

/* The whole answer of a complete exchange: an object, or a list when there are several prompts or choices or the prompt
 * was a list. `now_ns` ends e2e_latency. */
void reply_sglang_write(const exchange_t *exchange, uint64_t now_ns, reply_buffer_t *out);
/* The state of a choice as a stream event: text, ids and log-probabilities from the beginning, as SGLang streams them.
 * False: nothing new since the last call, nothing written. The exchange must have its facts. */
bool reply_sglang_event(choice_t *choice, uint64_t now_ns, reply_buffer_t *out);

#endif
