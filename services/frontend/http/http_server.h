/* HTTP/1.1 over sockets, driven from outside: no thread, no blocking. The server collects whole requests and hands each
 * up once; it is answered at once or any time later, in one piece or as a stream. A client that leaves while it waits
 * is noticed at once (EPOLLRDHUP) and reported, so that its work can be cancelled; a client that only shuts down its
 * sending side counts as gone, as with most servers.
 *
 * Nothing is left unanswered: a connection beyond the limit, or one that came while the server drains, gets 503; a head
 * that does not come whole within 30 s gets 408; what is no well-formed HTTP/1.1 gets 400 and the reason. */
#ifndef QN_FRONTEND_HTTP_HTTP_SERVER_H
#define QN_FRONTEND_HTTP_HTTP_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "services/frontend/reply/reply_buffer.h"

#define HTTP_REQUEST_ID_MAX 256
#define HTTP_HEADERS_MAX 8                 /* of one reply, besides those that every reply has */
#define HTTP_BODIES_BYTES_MAX (256u << 20) /* of bodies being read, over all connections */
#define HTTP_STREAM_BYTES_MAX (16u << 20)  /* unsent stream data: a client that reads slower is dropped */

typedef struct http_server http_server_t;
typedef struct http_request http_request_t;

typedef struct {
    void *context;
    /* A whole request. Answer with http_request_reply or http_request_begin_stream, now or later. */
    void (*request)(void *context, http_request_t *request);
    /* The client left before the answer was complete. The request may not be used after the call. */
    void (*gone)(void *context, http_request_t *request);
    /* The server answers by itself: 413, 503, 408, or a request that is not well-formed. Writes the body of the answer;
     * `param` is the header at fault or NULL, `reason` a sentence or NULL. The request has no method and no path when
     * its head could not be read; it may be given an id, and is not handed up. */
    void (*refuse)(void *context, http_request_t *request, int status, const char *param, const char *reason,
                   reply_buffer_t *out);
    /* Bytes of reply bodies handed over since the last call; for statistics. */
    void (*sent)(void *context, size_t bytes);
} http_server_callbacks_t;

typedef struct {
    size_t max_body_bytes;
    unsigned max_connections;
    unsigned idle_timeout_s; /* of a connection that neither sends nor waits for an answer */
    bool inherited;          /* the listening socket belongs to a service manager: it stays open while draining */
} http_server_limits_t;

/* Serves `listen_fd` (taken: closed by the server). Returns owned. */
qn_err_t http_server_create(int listen_fd, const http_server_limits_t *limits, const http_server_callbacks_t *callbacks,
                            http_server_t **ret_server);
/* Ends all connections without telling anybody; accepts NULL. What was answered already and not read yet is offered for
 * `linger_ms` more: the only place that waits. */
void http_server_destroy(http_server_t **server, int linger_ms);
/* A descriptor that becomes readable when http_server_run has something to do. */
int http_server_fd(const http_server_t *server);
/* Does what can be done without waiting: accepts, reads, calls back, writes. Returns milliseconds until it must be
 * called again even if the descriptor did not become readable; UINT64_MAX: never. */
uint64_t http_server_run(http_server_t *server, uint64_t now_ns);
/* New connections are refused from now on: those that the kernel has accepted get 503, then the socket is closed (an
 * inherited one stays, and whoever comes gets 503). Connections that are open go on. */
void http_server_quiesce(http_server_t *server);

/* Views, valid until the answer is complete. */
const char *http_request_method(const http_request_t *request);
const char *http_request_path(const http_request_t *request);
const char *http_request_id(const http_request_t *request); /* x-request-id: the client's, or "" */
const char *http_request_header(const http_request_t *request, const char *name); /* NULL: none */
const char *http_request_query(const http_request_t *request, const char *name);  /* ?name=...; NULL: none */
const char *http_request_body(const http_request_t *request, size_t *ret_bytes);
/* Moves the body out: *ret_body is the caller's, the request has none any more. */
void http_request_take_body(http_request_t *request, reply_buffer_t *ret_body);
/* The id that the reply shows as x-request-id; copied. */
void http_request_set_id(http_request_t *request, const char *id);
/* Returns view of the server that it came to. */
const http_server_t *http_request_server(const http_request_t *request);
/* Whether its client is on this host: a loopback address or a Unix socket. */
bool http_request_is_local(const http_request_t *request);
/* The caller's own pointer. */
void http_request_set_user(http_request_t *request, void *user);
void *http_request_user(const http_request_t *request);
/* A header of the answer, however it will be given; before it begins. Copied; at most HTTP_HEADERS_MAX are kept. */
void http_request_add_header(http_request_t *request, const char *name, const char *value);

/* The whole answer; takes the content of `body`. The request may not be used afterwards. */
void http_request_reply(http_request_t *request, int status, const char *content_type, reply_buffer_t *body);
/* An answer whose body comes piece by piece, status 200. */
void http_request_begin_stream(http_request_t *request, const char *content_type);
/* Appends to the body. False: more than HTTP_STREAM_BYTES_MAX wait to be read; nothing was appended: drop it. */
bool http_request_write(http_request_t *request, const void *data, size_t bytes);
/* The body is complete. The request may not be used afterwards. */
void http_request_end_stream(http_request_t *request);
/* Closes the connection without a (complete) answer. The request may not be used afterwards; `gone` is not called. */
void http_request_drop(http_request_t *request);

#endif
