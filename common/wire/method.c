/* What is this?      Lookups in the table of methods, and requests from JSON.
 * State owned:       none.
 * Must never:        know a method by name.
 * Read next:         method.h; wire_json.c; build/gen/qn_methods.c, the table. */
#include "common/wire/method.h"

#include <string.h>

#include "common/config/suggest.h"
#include "common/wire/wire.h"
#include "qn_methods.h"

const qn_method_t *qn_method_find(qn_service_t service, const char *verb, size_t bytes)
{
    for (size_t i = 1; i < QN_METHOD_COUNT; i++) {
        const qn_method_t *method = &qn_methods[i];
        if (method->service == service && strlen(method->verb) == bytes && memcmp(method->verb, verb, bytes) == 0)
            return method;
    }
    return NULL;
}

const qn_method_t *qn_method_nearest(qn_service_t service, const char *verb)
{
    const qn_method_t *nearest = NULL;
    unsigned best = QN_SUGGEST_DISTANCE_MAX + 1;
    for (size_t i = 1; i < QN_METHOD_COUNT; i++) {
        if (qn_methods[i].service != service) continue;
        unsigned distance = qn_edit_distance(verb, qn_methods[i].verb);
        if (distance < best) best = distance, nearest = &qn_methods[i];
    }
    return nearest;
}

qn_err_t qn_method_read(const qn_method_t *method, const json_t *json, qn_arena_t *arena, void **ret_request)
{
    const qn_wire_type_t *type = qn_wire_type(method->request);
    void *request = qn_arena_alloc(arena, type->struct_bytes, 16);
    qn_err_t err = qn_wire_read_members(type, json, arena, request);
    if (err == QN_OK) *ret_request = request;
    return err;
}
