/* Replies of /v1/completions in OpenAI's shape, with vLLM's additions. One JSON object per call, without a newline. */
#ifndef QN_FRONTEND_REPLY_REPLY_OPENAI_H
#define QN_FRONTEND_REPLY_REPLY_OPENAI_H

#include "services/frontend/reply/json_writer.h"
#include "services/frontend/request/request_table.h"

/* The whole answer of a complete exchange. */
void reply_openai_write(const exchange_t *exchange, const char *model, reply_buffer_t *out);
/* What is new about a choice since the last call, as a stream chunk; false: nothing to show, nothing written. The
 * exchange must have its facts. */
bool reply_openai_chunk(choice_t *choice, const char *model, reply_buffer_t *out);
/* The chunk with `choices: []` that ends a stream with include_usage. */
void reply_openai_usage_chunk(const exchange_t *exchange, const char *model, reply_buffer_t *out);
/* Begins a chunk with `choices: []` and leaves the object open for one more member (research mode's metadata). */
json_writer_t reply_openai_open_chunk(const exchange_t *exchange, const char *model, reply_buffer_t *out);

#endif
