/* GET /openapi.json: OpenAPI 3.1 of every route, made from the routes' table, the forms' and the methods'. */
#ifndef QN_FRONTEND_METHODS_OPENAPI_H
#define QN_FRONTEND_METHODS_OPENAPI_H

#include "services/frontend/http/router.h"
#include "services/frontend/reply/json_writer.h"
#include "services/frontend/reply/reply_query.h"

void openapi_write(const served_model_t *model, reply_buffer_t *out);

/* ---- openapi_bodies.c: what the tables of methods do not know ---- */

/* The JSON Schema of the body of a route that is no method, from the tables that parse it. False: it takes none. */
bool openapi_put_body(route_t route, json_writer_t *writer);
/* An example of it that the model can do. */
void openapi_put_example(route_t route, const served_model_t *model, json_writer_t *writer);

#endif
