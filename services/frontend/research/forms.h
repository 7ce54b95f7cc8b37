/* The friendly routes over methods (forms.def). A row of FORM needs nothing here. One of FORM_OWN is a file of its own in
 * this folder with one function form_<name>(frontend, form): it reads form->body, calls methods one after the other, and
 * answers. An example:
 *
 *     static void show(form_t *form, call_t *call, const void *message)
 *     {
 *         const qn_memory_usage_reply_t *reply = message;
 *         reply_buffer_t data = {0};
 *         json_writer_t writer = json_writer_on(&data);
 *         json_put_open(&writer, '{');
 *         json_put_member_unsigned(&writer, "kv_cache_mb", reply->kv_bytes >> 20);
 *         json_put_close(&writer, '}');
 *         form_answer(form, call, message, &data);
 *     }
 *     void form_memory_usage(form_t *form)
 *     {
 *         qn_memory_usage_t message = {0};
 *         form_call(form, QN_METHOD_MEMORY_USAGE, &message, show);
 *     }
 *
 * A form ends with form_answer or form_fail, once; so does a call that fails: its error is the answer. A client that
 * leaves ends it, too: the next function is then not called. */
#ifndef QN_FRONTEND_RESEARCH_FORMS_H
#define QN_FRONTEND_RESEARCH_FORMS_H

#include "qn_methods.h"
#include "services/frontend/frontend.h"
#include "services/frontend/request/json_fields.h"
#include "services/frontend/research/form_row.h"

#define FORM_SEGMENT_MAX 264 /* an id of QN_CLIENT_REQUEST_MAX bytes, with a prefix */

typedef struct form form_t;
typedef void (*form_next_t)(form_t *form, call_t *call, const void *reply);

struct form {
    frontend_t *frontend;
    http_request_t *request;
    const form_row_t *row;
    json_t *body;                                         /* an object; {} when there was none. Owned */
    char segments[ROUTER_SEGMENTS_MAX][FORM_SEGMENT_MAX]; /* what stands for {names} of the path */
    qn_arena_t arena;                                     /* lives as long as the form */
    void *state;                                          /* the form's own; from the arena, say */
    form_next_t next;
    bool tries;                /* the call that is out may fail */
    void (*drop)(void *state); /* frees what `state` holds besides the arena; NULL: nothing */
};

/* Calls a method; `message` is the generated request, borrowed. `next` gets the reply. */
void form_call(form_t *form, qn_method_id_t method, void *message, form_next_t next);
/* The same for a call that may fail: `next` then gets NULL, and call->error says why. */
void form_try(form_t *form, qn_method_id_t method, void *message, form_next_t next);
/* Answers 200 with `data` (a JSON value, taken). `call` and `reply`: the call whose times the metadata of research mode
 * shows, as `next` got them. Frees the form. */
void form_answer(form_t *form, const call_t *call, const void *reply, reply_buffer_t *data);
/* Answers an error. Frees the form. */
void form_fail(form_t *form, int status, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Answers by running the body of /batch_generate that `json` is (borrowed), in the order and window of `batch` (taken). Frees
 * the form. */
void form_generate(form_t *form, const json_t *json, exchange_batch_t *batch);
/* Reads members of the body into `target` (json_fields.h) and refuses members that are neither in the table nor in
 * `others` (ends with NULL; read by hand with json_object_get). False: the form was answered. */
bool form_read(form_t *form, const json_field_t *fields, size_t count, const char *const *others, void *target);

/* ?name=1 (true) or 0 (false); absent leaves *ret_flag as it is. False: the form was answered. */
bool form_query_flag(form_t *form, const char *name, bool *ret_flag);

/* ---- for routes.c ---- */

/* NULL: the route is no form. */
const form_row_t *form_of(route_t route);
void frontend_form_route(frontend_t *frontend, http_request_t *request, const router_match_t *match);
/* The body of one of FORM_OWN was parsed. */
void frontend_form_body(frontend_t *frontend, body_t *body);

#endif
