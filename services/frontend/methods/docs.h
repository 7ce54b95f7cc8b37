/* GET /docs: the description of /openapi.json as a page that needs nothing else, with a form per route to try it. */
#ifndef QN_FRONTEND_METHODS_DOCS_H
#define QN_FRONTEND_METHODS_DOCS_H

#include "services/frontend/reply/reply_buffer.h"

/* What the page may do in a browser: its own style and script, and requests to this server. */
#define DOCS_POLICY "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"

/* `openapi`: the JSON that the page shows. */
void docs_write(const reply_buffer_t *openapi, reply_buffer_t *out);

#endif
