/* What is this?      The framing of server-sent events.
 * State owned:       none.
 * Must never:        put two values into one event.
 * Read next:         exchange_reply.c, which writes streams. */
#include "services/frontend/http/sse.h"

void sse_begin(reply_buffer_t *out) { reply_buffer_text(out, "data: "); }

void sse_end(reply_buffer_t *out) { reply_buffer_text(out, "\n\n"); }

void sse_done(reply_buffer_t *out) { reply_buffer_text(out, "data: [DONE]\n\n"); }

void sse_ping(reply_buffer_t *out) { reply_buffer_text(out, ": ping\n\n"); }
