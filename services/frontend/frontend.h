/* The frontend's state and the functions its files share. Not a noun: nouns (router, generation, request_table,
 * reply_*, ...) know nothing of this. Who does what:
 *   service.c         life, tick, peers                     routes.c          a request came: check, admit, send
 *   handlers.c        messages <-> nouns                    routes_status.c   what is answered from what is known
 *   exchange_reply.c  something arrived: reply, stream, end bodies.c          large bodies and replies, on the worker */
#ifndef QN_FRONTEND_FRONTEND_H
#define QN_FRONTEND_FRONTEND_H

#include "common/daemon/daemon.h"
#include "common/daemon/in_hand.h"
#include "services/frontend/bodies.h"
#include "services/frontend/http/api_keys.h"
#include "services/frontend/http/http_server.h"
#include "services/frontend/latency.h"
#include "services/frontend/methods/calls.h"
#include "services/frontend/methods/profile.h"
#include "services/frontend/reply/reply_query.h"
#include "services/frontend/request/request_log.h"
#include "services/frontend/request/request_table.h"

#define FRONTEND_PING_NS 15000000000ull  /* of silence on a stream before a comment is sent */
#define FRONTEND_QUERY_NS 10000000000ull /* a query that nobody answers is given up */
#define FRONTEND_SCAN_NS 500000000ull    /* how exactly these two are kept */

/* The `code` label of a metric; what is in no row counts as "other". */
// clang-format off
#define FRONTEND_CODES(X) \
    X(200) X(400) X(401) X(403) X(404) X(405) X(408) X(411) X(413) X(414) X(415) X(417) X(422) X(429) X(431) X(499) \
    X(500) X(501) X(503) X(504) X(505) X(409) X(507)
// clang-format on
enum {
#define CODE(code) FRONTEND_CODE_##code,
    FRONTEND_CODES(CODE)
#undef CODE
        FRONTEND_CODE_OTHER,
    FRONTEND_CODE_COUNT,
};
/* The `route` label. */
enum {
    FRONTEND_GROUP_COMPLETIONS,
    FRONTEND_GROUP_GENERATE,
    FRONTEND_GROUP_TOKENIZE, /* and /detokenize */
    FRONTEND_GROUP_OTHER,
    FRONTEND_GROUP_COUNT,
};

enum {
    /* requests answered: a row per group of routes and status, as frontend_count_status puts them */
    FRONTEND_STAT_REQUESTS,
    FRONTEND_STAT_REQUESTS_LAST = FRONTEND_STAT_REQUESTS + FRONTEND_GROUP_COUNT * FRONTEND_CODE_COUNT - 1,
    FRONTEND_STAT_ACTIVE,
    FRONTEND_STAT_PROMPT_TOKENS,
    FRONTEND_STAT_GENERATED_TOKENS,
    FRONTEND_STAT_SENT_BYTES,
    FRONTEND_STAT_DISCONNECTS,
    FRONTEND_STAT_CANCELS,
    FRONTEND_STAT_REPEATED,
    FRONTEND_STAT_GAPS,
    FRONTEND_STAT_UNKNOWN,
    FRONTEND_STAT_UNKNOWN_FIELDS,
    FRONTEND_STAT_TTFT,
    FRONTEND_STAT_INTER_TOKEN,
    FRONTEND_STAT_LATENCY,
    FRONTEND_STAT_METHOD,
    FRONTEND_STAT_COUNT,
};

typedef struct {
    uint64_t request;
    qn_cancel_reason_t reason;
} frontend_cancel_t;

/* Waiting to be sent; more means that the peer takes nothing at all. */
#define FRONTEND_CANCELS_MAX (2u * QN_REQUESTS_MAX)

typedef struct {
    qn_daemon_t *daemon;
    const qn_config_values_t *config; /* in force */
    qn_config_t *changed;             /* owned; holds what `config` points to once something was set live, else NULL */
    qn_in_hand_t *hand;               /* the body that is being worked on, for the next life; NULL in unit tests */
    http_server_t *http;
    http_server_t *admin; /* frontend.admin_listen; NULL: administrators come to `http` */
    api_keys_t *keys;     /* NULL: none are asked for */
    int hangup_fd;        /* SIGHUP; 0 and less: not heard */
    worker_t *worker;
    body_t *bodies;         /* being parsed */
    uint64_t waiting_bytes; /* of those that the worker has */
    uint32_t unsent;        /* exchanges of which a part is sent in a later turn */
    request_table_t *table;
    calls_t calls;
    served_model_t model;
    frontend_cancel_t *cancels; /* owned; not sent yet */
    uint32_t cancel_count;
    uint64_t random;  /* state of the generator of ids and seeds */
    uint64_t scan_ns; /* next look at pings and deadlines */
    bool draining;
    uint64_t warned_ns;     /* when unknown fields were last logged */
    uint64_t warned_silent; /* requests with such since then */
    qn_arena_t scratch;     /* reset per message */
    reply_buffer_t text;    /* reused for stream events */
    latency_t latency;      /* of the last minute */
    request_log_t *log;     /* owned; NULL in unit tests */
    profile_t profile;      /* the recorder, and who waits for it */
} frontend_t;

/* ---- service.c ---- */
uint64_t frontend_random(frontend_t *frontend);
void frontend_count(frontend_t *frontend, unsigned row, uint64_t amount);

/* ---- routes.c ---- */
void frontend_request(void *context, http_request_t *request);
void frontend_refuse(void *context, http_request_t *request, int status, const char *param, const char *reason,
                     reply_buffer_t *out);
/* Ends all matching sequences; returns how many. `id` NULL: all. */
uint32_t frontend_abort(frontend_t *frontend, const char *id);
/* Sends more of what did not go in one turn. */
void frontend_send_rest(frontend_t *frontend);
/* Runs the body of /batch_generate that `json` is, in the order and window of `batch` (taken), and answers `request`. */
void frontend_begin_batch(frontend_t *frontend, http_request_t *request, route_t route, const json_t *json,
                          exchange_batch_t *batch);
/* One of its choices has ended. */
void frontend_choice_ended(frontend_t *frontend, const exchange_t *exchange);
/* A body was parsed, or could not be: admit, send or refuse. */
void frontend_body(frontend_t *frontend, body_t *body);

/* JSON by name, or nothing said. */
bool frontend_check_content_type(const http_request_t *request, http_error_t *ret_error);

/* ---- bodies.c ---- */
/* Parses the body of the request; frontend_body follows, now or later. `method`: of a method call, else NULL. */
void frontend_take_body(frontend_t *frontend, http_request_t *request, route_t route, const qn_method_t *method,
                        const generation_limits_t *limits);
/* The client left while its body was being parsed; false: it was not. */
bool frontend_forget_body(frontend_t *frontend, const http_request_t *request);
/* Refuses all that are being parsed and ends the worker. */
void frontend_end_bodies(frontend_t *frontend, const http_error_t *error);
/* Writes the answer of /tokenize on the worker's thread. */
void frontend_write_tokens(frontend_t *frontend, const qn_tokenized_t *message, bool with_pieces);
/* Takes back what the worker has done. */
void frontend_take_work(frontend_t *frontend);
/* Says in a header, in the statistics and now and then in the log which fields of a body were not known. */
void frontend_warn_unknown(frontend_t *frontend, http_request_t *request, route_t route,
                           const unknown_fields_t *unknown);

/* ---- routes_status.c: routes that ask nobody ---- */
void frontend_status_route(frontend_t *frontend, http_request_t *request, const router_match_t *match);
/* Members of an open object: a service's place among the five, and how it is, from its heartbeats. */
void frontend_put_service(const frontend_t *frontend, qn_service_t service, json_writer_t *writer);
void frontend_put_health(const frontend_t *frontend, qn_service_t service, json_writer_t *writer);

/* ---- exchange_reply.c ---- */
/* Looks at every exchange for which something arrived; false: there was none. */
bool frontend_look(frontend_t *frontend, uint64_t now_ns);
/* Pings and deadlines. */
void frontend_scan(frontend_t *frontend, uint64_t now_ns);
/* Fails an exchange; the reply follows at the next look. */
void frontend_fail(frontend_t *frontend, exchange_t *exchange, const http_error_t *error);
/* Cancels what runs for it and forgets it; nothing is sent to the client. */
void frontend_forget(frontend_t *frontend, exchange_t *exchange, qn_cancel_reason_t reason);
/* Replies: count the status, add Retry-After. Take the body; the request may not be used afterwards. */
void frontend_reply_error(frontend_t *frontend, http_request_t *request, route_t route, const http_error_t *error);
void frontend_reply_json(frontend_t *frontend, http_request_t *request, route_t route, int status,
                         reply_buffer_t *body);
/* The same, wrapped with metadata when `research`: {"data": body, "metadata": ...}. `exchange` may be NULL. */
void frontend_reply_data(frontend_t *frontend, http_request_t *request, route_t route, int status, bool research,
                         uint64_t received_ns, const exchange_t *exchange, const char *reason, reply_buffer_t *body);
void frontend_count_status(frontend_t *frontend, route_t route, int status);
/* ?mode=, x-quintet-mode or the configuration ask for metadata. */
bool frontend_wants_research(const frontend_t *frontend, const http_request_t *request);

#endif
