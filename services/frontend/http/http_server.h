/* HTTP/1.1 over libmicrohttpd, driven from outside: no thread, no blocking. The only file of the frontend that knows
 * libmicrohttpd. The server collects whole requests and hands each up once; it is answered at once or any time later,
 * in one piece or as a stream. A client that leaves while it waits is noticed at once (EPOLLRDHUP on its socket) and
 * reported, so that its work can be cancelled; a client that only shuts down its sending side counts as gone, as with
 * most servers. */
#ifndef QN_FRONTEND_HTTP_SERVER_H
#define QN_FRONTEND_HTTP_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "services/frontend/reply/reply_buffer.h"

#define HTTP_REQUEST_ID_MAX 256
#define HTTP_HEADERS_MAX 8                /* of one reply, content-type and x-request-id not counted */
#define HTTP_STREAM_BYTES_MAX (16u << 20) /* unsent stream data: a client that reads slower is dropped */

typedef struct http_server http_server_t;
typedef struct http_request http_request_t;

typedef struct {
    void *context;
    /* A whole request. Answer with http_request_reply or http_request_begin_stream, now or later. */
    void (*request)(void *context, http_request_t *request);
    /* The client left before the answer was complete. The request may not be used after the call. */
    void (*gone)(void *context, http_request_t *request);
    /* A body that is too large (413), or an x-request-id that cannot be echoed (400): the server answers itself with
     * what this writes. */
    void (*refuse)(void *context, http_request_t *request, int status, reply_buffer_t *out);
    /* Bytes of reply bodies written to clients since the last call; for statistics. */
    void (*sent)(void *context, size_t bytes);
} http_server_callbacks_t;

typedef struct {
    size_t max_body_bytes;
    unsigned max_connections;
    unsigned idle_timeout_s; /* of a connection that neither sends nor waits for an answer */
} http_server_limits_t;

/* Serves `listen_fd` (taken: closed by the server). Returns owned. */
qn_err_t http_server_create(int listen_fd, const http_server_limits_t *limits, const http_server_callbacks_t *callbacks,
                            http_server_t **ret_server);
/* Drops all connections without telling anybody; accepts NULL. */
void http_server_destroy(http_server_t **server);
/* Two descriptors that become readable when http_server_run has something to do. */
void http_server_fds(const http_server_t *server, int ret_fds[2]);
/* Does what can be done without waiting: accepts, reads, calls back, writes. Returns milliseconds until it must be
 * called again even if no descriptor became readable; UINT64_MAX: never. */
uint64_t http_server_run(http_server_t *server);
/* Accepts no more connections; those that are open go on. */
void http_server_quiesce(http_server_t *server);

/* Views, valid until the answer is complete. */
const char *http_request_method(const http_request_t *request);
const char *http_request_path(const http_request_t *request);
const char *http_request_id(const http_request_t *request); /* x-request-id: the client's, or "" */
const char *http_request_header(const http_request_t *request, const char *name); /* NULL: none */
const char *http_request_query(const http_request_t *request, const char *name);  /* ?name=...; NULL: none */
const char *http_request_body(const http_request_t *request, size_t *ret_bytes);
/* The id that the reply shows as x-request-id; copied. */
void http_request_set_id(http_request_t *request, const char *id);
/* The caller's own pointer. */
void http_request_set_user(http_request_t *request, void *user);
void *http_request_user(const http_request_t *request);

typedef struct {
    const char *name, *value;
} http_header_t;

/* The whole answer; takes the content of `body`. The request may not be used afterwards. */
void http_request_reply(http_request_t *request, int status, const char *content_type, const http_header_t *headers,
                        size_t header_count, reply_buffer_t *body);
/* An answer whose body comes piece by piece, status 200. */
void http_request_begin_stream(http_request_t *request, const char *content_type);
/* Appends to the body. False: more than HTTP_STREAM_BYTES_MAX wait to be read; nothing was appended: drop it. */
bool http_request_write(http_request_t *request, const void *data, size_t bytes);
/* The body is complete. The request may not be used afterwards. */
void http_request_end_stream(http_request_t *request);
/* Closes the connection without a (complete) answer. The request may not be used afterwards; `gone` is not called. */
void http_request_drop(http_request_t *request);

#endif
