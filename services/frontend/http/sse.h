/* Server-sent events (WHATWG HTML §9.2) as the OpenAI clients read them: one JSON object per `data: ` line. */
#ifndef QN_FRONTEND_HTTP_SSE_H
#define QN_FRONTEND_HTTP_SSE_H

#include "services/frontend/reply/reply_buffer.h"

#define SSE_CONTENT_TYPE "text/event-stream; charset=utf-8"

/* Between these two, one JSON value without a newline is appended to `out`. */
void sse_begin(reply_buffer_t *out);
void sse_end(reply_buffer_t *out);
/* `data: [DONE]`: the last event. */
void sse_done(reply_buffer_t *out);
/* A comment that keeps proxies from closing an idle stream. */
void sse_ping(reply_buffer_t *out);

#endif
