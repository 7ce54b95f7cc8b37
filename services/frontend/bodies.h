/* Request bodies on their way to being understood. A small one is parsed at once; a large one on the worker's thread,
 * while the loop goes on with running streams. Replies with very many tokens are written there too. */
#ifndef QN_FRONTEND_BODIES_H
#define QN_FRONTEND_BODIES_H

#include "common/daemon/in_hand.h"
#include "services/frontend/methods/method_body.h"
#include "services/frontend/request/query_body.h"
#include "services/frontend/worker.h"

#define BODY_INLINE_BYTES (32u << 10)     /* parsed within the turn: some 100 us */
#define BODIES_WAITING_BYTES (256u << 20) /* held for the worker; more is refused */
#define REPLY_INLINE_TOKENS 4096u         /* written within the turn */

/* A body with what was found in it. */
typedef struct body {
    work_t work;
    struct body *previous, *next; /* in frontend_t.bodies */
    void *request;                /* the http_request_t that waits; NULL: the client left */
    route_t route;
    uint64_t hand_key;    /* see in_hand.h */
    qn_in_hand_t *beside; /* told by the worker's thread; NULL: it is parsed within the turn. Borrowed */
    reply_buffer_t text;
    size_t waiting_bytes;       /* of `text`, as counted in frontend_t.waiting_bytes */
    generation_limits_t limits; /* with what it points to: */
    char model[QN_CLIENT_REQUEST_MAX + 1];
    uint32_t eos_ids[QN_STOP_IDS_MAX];
    bool good;
    http_error_t error;      /* when not good */
    generation_t generation; /* of a route that generates */
    method_body_t method;    /* of a method call */
    json_t *json;            /* of a form; owned */
    query_body_t query;      /* the others */
} body_t;

#endif
