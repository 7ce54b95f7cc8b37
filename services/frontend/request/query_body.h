/* The bodies of routes that generate nothing: /tokenize, /detokenize, /abort_request; typed and checked. */
#ifndef QN_FRONTEND_REQUEST_QUERY_BODY_H
#define QN_FRONTEND_REQUEST_QUERY_BODY_H

#include "services/frontend/http/router.h"
#include "services/frontend/request/generation.h"
#include "services/frontend/request/json_fields.h"

typedef struct {
    bool add_special, with_pieces, skip_special, abort_all;
    generation_text_t text; /* /tokenize */
    const uint32_t *ids;    /* /detokenize */
    uint32_t id_count;
    const char *abort_id; /* NULL: none given */
    unknown_fields_t unknown;
    qn_arena_t arena; /* owned; the pointers above are views of it */
} query_body_t;

/* True: *ret_query is filled in and owns its arena. False: *ret_error says why. An empty body is a body only for
 * /abort_request, which may say all in its query. */
bool query_body_parse(route_t route, const char *body, size_t bytes, const generation_limits_t *limits,
                      query_body_t *ret_query, http_error_t *ret_error);
/* The typed fields of a route's body, for its documentation. */
const json_field_t *query_body_fields(route_t route, size_t *ret_count);
/* Accepts a zeroed one. */
void query_body_fini(query_body_t *query);

#endif
