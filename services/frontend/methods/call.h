/* Calling methods for HTTP requests: one way for the generic route and for every form.
 *
 * A form calls a method with frontend_call and a function of its own that gets the reply; that may call the next one, or
 * answer. Without such a function the reply is answered as it is: bare, or wrapped with metadata in research mode. */
#ifndef QN_FRONTEND_METHODS_CALL_H
#define QN_FRONTEND_METHODS_CALL_H

#include "services/frontend/frontend.h"

/* Asks the method's service. `message`: the generated request struct, borrowed for the call. `done` NULL: see above.
 * `request`: the HTTP request that waits; it must not be answered before `done` is called, which may be at once (a
 * service that is down) and happens exactly once: with call->request NULL when its client has left. */
void frontend_call(frontend_t *frontend, const qn_method_t *method, void *message, http_request_t *request,
                   route_t route, call_done_t done, void *context);
/* Answers call->request with the reply, or with call->error when `reply` is NULL: what `done` NULL does. */
void frontend_answer_call(void *state, call_t *call, const void *reply);
/* Answers with `data`, a JSON value (taken), and the metadata of this call where they are wanted; `reply` NULL: the call
 * failed, and there is an answer all the same. */
void frontend_answer_data(frontend_t *frontend, const call_t *call, const void *reply, reply_buffer_t *data);

/* POST /services/{service}/{method}. */
void frontend_method_route(frontend_t *frontend, http_request_t *request, const router_match_t *match);
/* Takes the body of a call of `method`: frontend_method_body follows. */
void frontend_take_method(frontend_t *frontend, http_request_t *request, route_t route, const qn_method_t *method);
/* It was parsed: the call goes out. */
void frontend_method_body(frontend_t *frontend, body_t *body);
/* The service that the path names; false: none, and 404 was answered. */
bool frontend_find_service(frontend_t *frontend, http_request_t *request, const router_match_t *match,
                           qn_service_t *ret_service);
/* False: a web page of another origin sent this, and it was answered with 403. For what changes something. */
bool frontend_is_from_here(frontend_t *frontend, http_request_t *request, route_t route);

/* The frontend's own methods (own.c). */
extern const qn_method_row_t frontend_methods[];

/* ---- events ---- */

/* A reply came. */
void frontend_take_reply(void *state, qn_peer_t from, qn_message_type_t type, const void *message);
/* A refusal came; false: it is for no call. */
bool frontend_refuse_call(frontend_t *frontend, const qn_refusal_t *refusal);
/* The service died: its calls are over. */
void frontend_end_calls(frontend_t *frontend, qn_service_t service);
/* Calls past their deadline are over. */
void frontend_scan_calls(frontend_t *frontend, uint64_t now_ns);

#endif
