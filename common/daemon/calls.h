/* How a service answers methods (common/wire/method.h). It gives a row per method; the skeleton decodes the request,
 * calls the row's function in the loop and sends what it filled in, or its refusal. What takes long is answered later
 * with the call's token.
 *
 *     static qn_call_outcome_t method_usage(void *state, qn_call_t *call, const void *message, void *ret_reply)
 *     {
 *         const qn_memory_usage_t *request = message;
 *         qn_memory_usage_reply_t *reply = ret_reply;      // zeroed, its strings and vectors are absent
 *         if (...) return qn_call_fail(call, 400, "limit", "limit: %u is more than there are", request->limit);
 *         reply->free_blocks = ...;
 *         return QN_CALL_DONE;
 *     }
 *     const qn_method_row_t memory_methods[] = {{QN_METHOD_MEMORY_USAGE, method_usage}, {QN_METHOD_NONE, NULL}};
 */
#ifndef QN_COMMON_DAEMON_CALLS_H
#define QN_COMMON_DAEMON_CALLS_H

#include "common/arena.h"
#include "common/daemon/links/peer_types.h"
#include "common/err.h"
#include "qn_methods.h"

struct qn_daemon;

/* A call being answered. A plain value: a copy of it is the token to answer with later. */
typedef struct {
    struct qn_daemon *daemon;
    const qn_method_t *method;
    qn_peer_t from;    /* epoch 0: the daemon itself */
    uint64_t id;       /* the caller's */
    uint64_t began_ns; /* the request was taken in hand */
    qn_arena_t *arena; /* for what the reply points to; until the function returns, so never of a token */
} qn_call_t;

typedef enum {
    QN_CALL_DONE,   /* the reply is filled in */
    QN_CALL_FAILED, /* qn_call_fail was called */
    QN_CALL_LATER,  /* qn_call_finish or qn_call_fail follow with a copy of the call */
} qn_call_outcome_t;

/* Views of `message` are valid during the call. */
typedef qn_call_outcome_t (*qn_method_function_t)(void *state, qn_call_t *call, const void *message, void *ret_reply);

typedef struct {
    qn_method_id_t method;
    qn_method_function_t run;
} qn_method_row_t;

/* Refuses: `status` is an HTTP status, 4xx for what the caller did, 503 for what it may try again; `param` is the
 * request's member at fault or NULL; the text says what, why and what to do. Returns QN_CALL_FAILED. */
qn_call_outcome_t qn_call_fail(const qn_call_t *call, uint16_t status, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Answers a call that was put off; `reply` is the generated struct. A caller that is gone is no error. */
void qn_call_finish(const qn_call_t *call, void *reply);

/* ---- for the skeleton ---- */

/* Every method of `service` has exactly one row, and no other has: a bug otherwise. NULL: it answers none. */
void qn_calls_check(qn_service_t service, const qn_method_row_t *rows);
/* Runs the row of call->method. */
void qn_calls_run(const qn_method_row_t *rows, void *state, qn_call_t *call, const void *message);

#endif
