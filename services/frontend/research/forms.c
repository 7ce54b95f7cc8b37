/* What is this?      Forms: routes that are methods under a friendlier name, or several methods in a row.
 * State owned:       the forms in flight; each lives in the context of its call.
 * Must never:        know what a form does; answer twice.
 * Read next:         forms.h, forms.def, services/frontend/methods/call.h. */
#include "services/frontend/research/forms.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/wire/wire.h"
#include "services/frontend/methods/call.h"
#include "services/frontend/request/json_fields.h"

#define FORM(methods, path, name, method, doc)
#define FORM_OWN(methods, path, name, method, doc)                   \
    void form_##name(form_t *form);                                  \
    extern const char form_##name##_request[] __attribute__((weak)); \
    extern const char form_##name##_reply[] __attribute__((weak));   \
    extern const char form_##name##_example[] __attribute__((weak)); \
    extern const char form_##name##_query[] __attribute__((weak));
#include "services/frontend/research/forms.def"
#undef FORM
#undef FORM_OWN

static const form_row_t rows[] = {
    {0},
#define FORM(methods, path, name, method, doc) {path, #name, doc, QN_METHOD_##method, NULL, NULL, NULL, NULL, NULL},
#define FORM_OWN(methods, path, name, method, doc) \
    {path,                                         \
     #name,                                        \
     doc,                                          \
     QN_METHOD_##method,                           \
     form_##name,                                  \
     form_##name##_request,                        \
     form_##name##_reply,                          \
     form_##name##_example,                        \
     form_##name##_query},
#include "services/frontend/research/forms.def"
#undef FORM
#undef FORM_OWN
};

const form_row_t *form_of(route_t route)
{
    return route > ROUTE_FORMS && route < ROUTE_COUNT ? &rows[route - ROUTE_FORMS] : NULL;
}

/* ---- ends ---- */

static void form_free(form_t *form)
{
    if (form->drop) form->drop(form->state);
    json_decref(form->body);
    qn_arena_fini(&form->arena);
    free(form);
}

static route_t route_of(const form_t *form) { return (route_t)(ROUTE_FORMS + (form->row - rows)); }

void form_answer(form_t *form, const call_t *call, const void *reply, reply_buffer_t *data)
{
    frontend_answer_data(form->frontend, call, reply, data);
    form_free(form);
}

static void fail(form_t *form, const http_error_t *error)
{
    frontend_reply_error(form->frontend, form->request, route_of(form), error);
    form_free(form);
}

void form_fail(form_t *form, int status, const char *param, const char *format, ...)
{
    char text[QN_ERR_TEXT_MAX];
    http_error_t error;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    http_error_set(&error, status, param, "%s", text);
    fail(form, &error);
}

void form_generate(form_t *form, const json_t *json, exchange_batch_t *batch)
{
    frontend_begin_batch(form->frontend, form->request, route_of(form), json, batch);
    form_free(form);
}

/* ---- calls ---- */

static void called(void *state, call_t *call, const void *reply)
{
    (void)state;
    form_t *form = call->context;
    if (!call->request)
        form_free(form);
    else if (!reply && !form->tries)
        fail(form, &call->error);
    else
        form->next(form, call, reply);
}

void form_call(form_t *form, qn_method_id_t method, void *message, form_next_t next)
{
    form->next = next;
    form->tries = false;
    frontend_call(form->frontend, &qn_methods[method], message, form->request, route_of(form), called, form);
}

void form_try(form_t *form, qn_method_id_t method, void *message, form_next_t next)
{
    form->next = next;
    form->tries = true;
    frontend_call(form->frontend, &qn_methods[method], message, form->request, route_of(form), called, form);
}

/* ---- reading ---- */

static bool knows(const json_field_t *fields, size_t count, const char *const *others, const char *name)
{
    if (json_fields_name(fields, count, name)) return true;
    for (; others && *others; others++)
        if (strcmp(*others, name) == 0) return true;
    return false;
}

bool form_read(form_t *form, const json_field_t *fields, size_t count, const char *const *others, void *target)
{
    http_error_t error;
    const char *name;
    json_t *value;
    json_object_foreach(form->body, name, value)
    {
        if (knows(fields, count, others, name)) continue;
        form_fail(form, 400, name, "%.64s is no field of %s.", name, form->row->path);
        return false;
    }
    if (json_fields_read(form->body, "", fields, count, target, &error)) return true;
    fail(form, &error);
    return false;
}

bool form_query_flag(form_t *form, const char *name, bool *ret_flag)
{
    const char *text = http_request_query(form->request, name);
    bool yes = text && (strcmp(text, "1") == 0 || strcmp(text, "true") == 0);
    if (text && !yes && strcmp(text, "0") != 0 && strcmp(text, "false") != 0) {
        form_fail(form, 400, name, "%s: \"%.64s\" is neither 1 nor 0.", name, text);
        return false;
    }
    if (text) *ret_flag = yes;
    return true;
}

/* ---- the route ---- */

/* A member of the query as JSON of the field's kind; what is no JSON stays text, and is refused as such. */
static json_t *query_value(const qn_wire_field_t *field, const char *text)
{
    bool is_text = !field->vector && (field->kind == QN_WIRE_STRING || field->kind == QN_WIRE_ENUM);
    json_t *value = is_text ? NULL : json_loads(text, JSON_DECODE_ANY, NULL);
    return value ? value : json_string(text);
}

/* ?limit=10 is {"limit": 10}. */
static json_t *query_json(const http_request_t *request, const qn_wire_type_t *type)
{
    json_t *object = json_object();
    for (size_t i = 1; i < type->field_count; i++) {
        const char *text = http_request_query(request, type->fields[i].name);
        if (text) json_object_set_new(object, type->fields[i].name, query_value(&type->fields[i], text));
    }
    return object;
}

static void call_with_query(frontend_t *frontend, http_request_t *request, route_t route, const qn_method_t *method)
{
    http_error_t error;
    method_body_t body = {.method = method};
    json_t *json = query_json(request, qn_wire_type(method->request));
    bool good = method_body_read(&body, json, &error);
    json_decref(json);
    if (good)
        frontend_call(frontend, method, body.request, request, route, NULL, NULL);
    else
        frontend_reply_error(frontend, request, route, &error);
    method_body_fini(&body);
}

void frontend_form_route(frontend_t *frontend, http_request_t *request, const router_match_t *match)
{
    const form_row_t *row = form_of(match->route);
    const qn_method_t *method = &qn_methods[row->method];
    http_error_t error;
    size_t bytes;
    bool is_get = strcmp(http_request_method(request), "GET") == 0 || strcmp(http_request_method(request), "HEAD") == 0;
    http_request_body(request, &bytes);
    if (!is_get && !frontend_is_from_here(frontend, request, match->route)) return;
    if (bytes > 0 && !frontend_check_content_type(request, &error))
        frontend_reply_error(frontend, request, match->route, &error);
    else if (row->run || bytes > 0)
        frontend_take_body(frontend, request, match->route, row->run ? NULL : method,
                           &(generation_limits_t){.model = ""});
    else
        call_with_query(frontend, request, match->route, method);
}

void frontend_form_body(frontend_t *frontend, body_t *body)
{
    form_t *form = calloc(1, sizeof *form);
    router_match_t match;
    QN_ASSERT(form != NULL);
    *form = (form_t){.frontend = frontend, .request = body->request, .row = form_of(body->route), .body = body->json};
    body->json = NULL;
    qn_arena_init(&form->arena, 4096);
    router_find(http_request_method(form->request), http_request_path(form->request), &match);
    for (size_t i = 0; i < ROUTER_SEGMENTS_MAX; i++)
        snprintf(form->segments[i], FORM_SEGMENT_MAX, "%.*s", (int)match.segments[i].bytes,
                 match.segments[i].text ? match.segments[i].text : "");
    form->row->run(form);
}
