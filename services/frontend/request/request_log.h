/* What is left to say of requests that have ended lately, and which services have died meanwhile: a ring of each. One
 * record serves requests in flight, too, so that who shows them need not tell them apart.
 *
 * Pure: time is an argument. */
#ifndef QN_FRONTEND_REQUEST_REQUEST_LOG_H
#define QN_FRONTEND_REQUEST_REQUEST_LOG_H

#include "services/frontend/request/request_table.h"

#define REQUEST_LOG_MAX 512
#define REQUEST_LOG_CHOICES_MAX 8 /* of one request; of more the first are kept */
#define REQUEST_LOG_RESTARTS_MAX 256

typedef struct {
    uint64_t request; /* id inside the engine */
    uint64_t stages[STAGE_COUNT];
    uint64_t last_ns; /* its last token was seen */
    uint32_t tokens;  /* generated */
    bool ended;
    choice_end_t end; /* when ended */
} logged_choice_t;

typedef struct {
    char client_id[QN_CLIENT_REQUEST_MAX + 1]; /* "": none */
    route_t route;
    bool stream, live;
    int64_t created_s;
    uint64_t received_ns, first_token_ns, ended_ns; /* 0: not yet */
    http_error_t error;                             /* status 0: none */
    uint32_t choice_count, kept_count;
    logged_choice_t choices[REQUEST_LOG_CHOICES_MAX];
} logged_request_t;

/* A life of a service began after another one. */
typedef struct {
    uint64_t time_ns;
    uint8_t service; /* qn_service_t */
    uint32_t epoch;
} logged_restart_t;

typedef struct request_log request_log_t;

/* Returns owned. */
request_log_t *request_log_create(void);
void request_log_destroy(request_log_t **log);

/* A generation ends, answered or not; questions are not kept. `log` NULL: nothing is kept. */
void request_log_end(request_log_t *log, const exchange_t *exchange, uint64_t now_ns);
/* A service greeted with this epoch: a restart, unless it is the first life that is seen. */
void request_log_meet(request_log_t *log, uint8_t service, uint32_t epoch, uint64_t now_ns);

/* The request of this id as clients know it: x-request-id, or an id that begins with cmpl- or chatcmpl-. In flight or
 * lately ended, the latest of that id. False: none. */
bool request_log_find(const request_log_t *log, const request_table_t *table, const char *id,
                      logged_request_t *ret_request);
/* The last restarts, oldest first: index 0, 1, ... NULL: no more. */
const logged_restart_t *request_log_restart(const request_log_t *log, uint32_t index);

#endif
