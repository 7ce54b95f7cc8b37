/* What is this?      From the body of a method call to the request's struct.
 * State owned:       none; the body's arena.
 * Must never:        let a member through that the method does not know.
 * Read next:         common/wire/method.h, json_fields.h (the bounds of all bodies). */
#include "services/frontend/methods/method_body.h"

#include <stdio.h>
#include <string.h>

#include "common/wire/wire.h"
#include "services/frontend/request/json_fields.h"

bool method_body_read(method_body_t *body, const json_t *json, http_error_t *ret_error)
{
    qn_arena_init(&body->arena, 4096);
    if (qn_method_read(body->method, json, &body->arena, &body->request) == QN_OK) return true;
    char param[QN_NAME_MAX + 1];
    snprintf(param, sizeof param, "%s", qn_wire_error_place());
    http_error_set(ret_error, 400, param[0] ? param : NULL, "%s (GET /services/%s shows what %s takes.)", qn_err_text(),
                   qn_service_enum.names[body->method->service], body->method->name);
    return false;
}

bool method_body_parse(method_body_t *body, const char *text, size_t bytes, http_error_t *ret_error)
{
    json_t *root = bytes ? json_fields_parse(text, bytes, ret_error) : NULL;
    if (bytes && !root) return false;
    bool good = method_body_read(body, root, ret_error);
    json_decref(root);
    return good;
}

void method_body_fini(method_body_t *body)
{
    qn_arena_fini(&body->arena);
    *body = (method_body_t){0};
}
