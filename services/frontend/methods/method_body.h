/* The body of POST /services/{service}/{method}: JSON by the method's schema. */
#ifndef QN_FRONTEND_METHODS_METHOD_BODY_H
#define QN_FRONTEND_METHODS_METHOD_BODY_H

#include "common/arena.h"
#include "common/wire/method.h"
#include "services/frontend/http/http_error.h"

typedef struct {
    const qn_method_t *method; /* NULL: the body is of no method */
    void *request;             /* the generated struct, a view of the arena */
    qn_arena_t arena;          /* owned */
} method_body_t;

/* Fills in request; an empty body is {}. False: *ret_error names the member. */
bool method_body_parse(method_body_t *body, const char *text, size_t bytes, http_error_t *ret_error);
/* The same from JSON that is read already; borrowed, NULL is {}. */
bool method_body_read(method_body_t *body, const json_t *json, http_error_t *ret_error);
/* Accepts a zeroed one. */
void method_body_fini(method_body_t *body);

#endif
