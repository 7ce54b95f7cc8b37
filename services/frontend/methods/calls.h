/* The method calls that wait for an answer: a bounded table with deadlines. Pure: knows no socket and no clock; the ids it
 * gives out are never those of generation requests, so that a refusal finds whom it is for. */
#ifndef QN_FRONTEND_METHODS_CALLS_H
#define QN_FRONTEND_METHODS_CALLS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/wire/method.h"
#include "services/frontend/http/http_error.h"
#include "services/frontend/http/router.h"

#define CALLS_MAX 256

typedef struct call call_t;
/* What is done with the answer: `reply` is the method's generated struct, its views valid during the call. NULL: it
 * failed, and call->error says how. The call is forgotten afterwards. */
typedef void (*call_done_t)(void *state, call_t *call, const void *reply);

struct call {
    uint64_t id; /* 0: this place is free */
    const qn_method_t *method;
    void *request; /* the http_request_t that waits; NULL: the client left */
    route_t route; /* for statistics and metadata */
    bool research;
    uint64_t received_ns, sent_ns, deadline_ns;
    uint64_t hand_key; /* of its body, see in_hand.h */
    call_done_t done;
    void *context; /* of `done` */
    http_error_t error;
};

typedef struct {
    call_t calls[CALLS_MAX];
    uint64_t first_id; /* of this life */
    uint32_t made, count;
} calls_t;

/* `epoch`: of this life; ids of two lives never meet. */
void calls_init(calls_t *calls, uint32_t epoch);
/* Returns a place with an id, everything else zero; NULL: CALLS_MAX wait. */
call_t *calls_open(calls_t *calls);
void calls_close(calls_t *calls, call_t *call);
/* NULL: nobody waits for this id any more. */
call_t *calls_find(calls_t *calls, uint64_t id);
/* A call past its deadline, or NULL. Closing it lets the next one be found. */
call_t *calls_overdue(calls_t *calls, uint64_t now_ns);
/* A call that only this service can answer, or NULL. */
call_t *calls_of_service(calls_t *calls, qn_service_t service);
/* Calls for which a client waits. */
uint32_t calls_for_clients(const calls_t *calls);
/* The client of this HTTP request left. False: no call is for it. */
bool calls_forget(calls_t *calls, const void *request);

#endif
