/* What is this?      The HTTP side of the frontend: connections in, whole requests up, answers out.
 * State owned:       the libmicrohttpd daemon, one http_request_t per request in progress.
 * Must never:        block, start a thread, know a route, or call back after `gone` or a complete answer.
 * Read next:         service.c for the callbacks; libmicrohttpd's manual on suspended connections. */
#include "services/frontend/http/http_server.h"

#include <errno.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/watch/log.h"

#define CONNECTION_MEMORY_BYTES (64u * 1024) /* headers, and the pieces in which bodies are read and written */
#define DISCARD_BYTES_MAX (64ull << 20)      /* of a body that is too large: read on, so that the client sees the 413 */
#define RUNS_MAX 64                          /* of libmicrohttpd in one http_server_run, so that the loop goes on */
#define EVENTS_MAX 64

struct http_request {
    http_server_t *server;
    struct MHD_Connection *connection;
    int fd;
    char *method, *path;
    char id[HTTP_REQUEST_ID_MAX + 1];
    bool bad_id;
    reply_buffer_t body;
    uint64_t body_bytes; /* received, discarded ones included */
    bool dispatched;     /* handed up, or answered by the server itself */
    bool done;           /* the caller has no more to do with it */
    bool gone;           /* the client left: drop the connection at the next occasion */
    bool suspended, watched;
    struct MHD_Response *response; /* ready to be queued; owned */
    int status;
    bool streaming, stream_ended;
    reply_buffer_t stream; /* not read by libmicrohttpd yet, from stream_read on */
    size_t stream_read;
    void *user;
    http_request_t *previous, *next;
};

struct http_server {
    struct MHD_Daemon *daemon;
    int gone_epoll;  /* sockets of waiting requests, for EPOLLRDHUP */
    int quiesced_fd; /* the listening socket after http_server_quiesce, else -1 */
    bool resumed;    /* something was resumed since libmicrohttpd last ran */
    bool ending;
    http_server_limits_t limits;
    http_server_callbacks_t callbacks;
    http_request_t *requests; /* all in progress */
};

/* ---- waiting requests ---- */

static void watch_client(http_request_t *request)
{
    if (request->watched) return;
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLET, .data.ptr = request};
    request->watched = epoll_ctl(request->server->gone_epoll, EPOLL_CTL_ADD, request->fd, &event) == 0;
}

static void unwatch_client(http_request_t *request)
{
    if (request->watched) epoll_ctl(request->server->gone_epoll, EPOLL_CTL_DEL, request->fd, NULL);
    request->watched = false;
}

static void suspend(http_request_t *request)
{
    if (request->suspended) return;
    request->suspended = true;
    MHD_suspend_connection(request->connection);
    watch_client(request);
}

static void resume(http_request_t *request)
{
    if (!request->suspended) return;
    request->suspended = false;
    request->server->resumed = true;
    MHD_resume_connection(request->connection);
}

static void report_gone(http_request_t *request)
{
    request->gone = true;
    if (request->dispatched && !request->done) {
        request->done = true;
        request->server->callbacks.gone(request->server->callbacks.context, request);
    }
    resume(request);
}

static void take_gone(http_server_t *server)
{
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(server->gone_epoll, events, EVENTS_MAX, 0);
    for (int i = 0; i < count; i++) {
        http_request_t *request = events[i].data.ptr;
        if (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) report_gone(request);
    }
}

/* ---- libmicrohttpd's callbacks ---- */

static bool is_printable(const char *text)
{
    for (; *text; text++) {
        if (*text < 0x21 || *text > 0x7E) return false;
    }
    return true;
}

static http_request_t *open_request(http_server_t *server, struct MHD_Connection *connection, const char *method,
                                    const char *path)
{
    http_request_t *request = calloc(1, sizeof *request);
    QN_ASSERT(request != NULL);
    *request = (http_request_t){.server = server,
                                .connection = connection,
                                .method = strdup(method),
                                .path = strdup(path),
                                .next = server->requests};
    QN_ASSERT(request->method && request->path);
    if (server->requests) server->requests->previous = request;
    server->requests = request;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    request->fd = info ? info->connect_fd : -1;
    const char *id = http_request_header(request, "x-request-id");
    if (id && (id[0] == '\0' || strlen(id) > HTTP_REQUEST_ID_MAX || !is_printable(id)))
        request->bad_id = true;
    else if (id)
        http_request_set_id(request, id);
    return request;
}

static void refuse(http_request_t *request, int status)
{
    reply_buffer_t body = {0};
    request->server->callbacks.refuse(request->server->callbacks.context, request, status, &body);
    http_request_reply(request, status, "application/json", NULL, 0, &body);
}

/* True: so large that it is not even read to its end. */
static bool is_hopeless(const http_request_t *request)
{
    const char *length = http_request_header(request, "content-length");
    return length && strtoull(length, NULL, 10) > DISCARD_BYTES_MAX;
}

static void take_body(http_request_t *request, const char *data, size_t bytes)
{
    request->body_bytes += bytes;
    if (request->body_bytes <= request->server->limits.max_body_bytes) {
        reply_buffer_append(&request->body, data, bytes);
        return;
    }
    reply_buffer_fini(&request->body);
    if (request->body_bytes > DISCARD_BYTES_MAX) request->gone = true; /* a chunked flood */
}

static void dispatch(http_request_t *request)
{
    request->dispatched = true;
    if (request->bad_id)
        refuse(request, 400);
    else if (request->body_bytes > request->server->limits.max_body_bytes)
        refuse(request, 413);
    else
        request->server->callbacks.request(request->server->callbacks.context, request);
}

static enum MHD_Result queue_response(http_request_t *request)
{
    enum MHD_Result queued = MHD_queue_response(request->connection, (unsigned)request->status, request->response);
    MHD_destroy_response(request->response);
    request->response = NULL;
    return queued;
}

static enum MHD_Result on_access(void *context, struct MHD_Connection *connection, const char *path, const char *method,
                                 const char *version, const char *data, size_t *data_bytes, void **ret_request)
{
    (void)version;
    http_request_t *request = *ret_request;
    if (!request) {
        request = *ret_request = open_request(context, connection, method, path);
        if (!is_hopeless(request)) return MHD_YES;
        request->dispatched = true;
        refuse(request, 413);
        return queue_response(request);
    }
    if (request->gone) return MHD_NO;
    if (*data_bytes > 0) {
        take_body(request, data, *data_bytes);
        *data_bytes = 0;
        return request->gone ? MHD_NO : MHD_YES;
    }
    if (!request->dispatched) dispatch(request);
    if (request->gone) return MHD_NO;
    if (request->response) return queue_response(request);
    suspend(request);
    return MHD_YES;
}

static void on_completed(void *context, struct MHD_Connection *connection, void **ret_request,
                         enum MHD_RequestTerminationCode code)
{
    (void)connection;
    (void)code;
    http_server_t *server = context;
    http_request_t *request = *ret_request;
    if (!request) return;
    *ret_request = NULL;
    unwatch_client(request);
    if (request->dispatched && !request->done && !server->ending) {
        request->done = true;
        server->callbacks.gone(server->callbacks.context, request);
    }
    if (request->previous)
        request->previous->next = request->next;
    else
        server->requests = request->next;
    if (request->next) request->next->previous = request->previous;
    if (request->response) MHD_destroy_response(request->response);
    reply_buffer_fini(&request->body);
    reply_buffer_fini(&request->stream);
    free(request->method);
    free(request->path);
    free(request);
}

static ssize_t read_stream(void *context, uint64_t position, char *buffer, size_t room)
{
    (void)position;
    http_request_t *request = context;
    if (request->gone) {
        /* Not END_WITH_ERROR: after that libmicrohttpd 0.9.75 keeps the descriptor until the oldest idle connection
         * ends. A write that fails it sees at once. */
        shutdown(request->fd, SHUT_RDWR);
        return MHD_CONTENT_READER_END_OF_STREAM;
    }
    size_t waiting = request->stream.bytes - request->stream_read;
    if (waiting == 0) {
        if (request->stream_ended) return MHD_CONTENT_READER_END_OF_STREAM;
        suspend(request);
        return 0;
    }
    size_t bytes = waiting < room ? waiting : room;
    memcpy(buffer, request->stream.data + request->stream_read, bytes);
    request->stream_read += bytes;
    if (request->stream_read == request->stream.bytes) request->stream.bytes = request->stream_read = 0;
    request->server->callbacks.sent(request->server->callbacks.context, bytes);
    return (ssize_t)bytes;
}

static void on_log(void *context, const char *format, va_list arguments) __attribute__((format(printf, 2, 0)));
static void on_log(void *context, const char *format, va_list arguments)
{
    (void)context;
    char text[256];
    vsnprintf(text, sizeof text, format, arguments);
    text[strcspn(text, "\n")] = '\0';
    qn_log_debug("http: %s", text);
}

/* ---- life ---- */

qn_err_t http_server_create(int listen_fd, const http_server_limits_t *limits, const http_server_callbacks_t *callbacks,
                            http_server_t **ret_server)
{
    http_server_t *server = calloc(1, sizeof *server);
    QN_ASSERT(server != NULL);
    *server = (http_server_t){.limits = *limits, .callbacks = *callbacks, .quiesced_fd = -1};
    server->gone_epoll = epoll_create1(EPOLL_CLOEXEC);
    if (server->gone_epoll < 0) {
        close(listen_fd);
        free(server);
        return qn_fail(QN_ERR_IO, "epoll_create1: %s", strerror(errno));
    }
    server->daemon =
        MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_access, server,
                         MHD_OPTION_LISTEN_SOCKET, listen_fd, MHD_OPTION_CONNECTION_LIMIT, limits->max_connections,
                         MHD_OPTION_CONNECTION_TIMEOUT, limits->idle_timeout_s, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                         (size_t)CONNECTION_MEMORY_BYTES, MHD_OPTION_NOTIFY_COMPLETED, on_completed, server,
                         MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, MHD_OPTION_END);
    if (!server->daemon) {
        close(listen_fd);
        close(server->gone_epoll);
        free(server);
        return qn_fail(QN_ERR_IO, "libmicrohttpd did not start; lower frontend.max_connections if descriptors are few");
    }
    *ret_server = server;
    return QN_OK;
}

void http_server_destroy(http_server_t **server)
{
    if (!*server) return;
    http_server_t *leaving = *server;
    leaving->ending = true;
    for (http_request_t *request = leaving->requests; request; request = request->next) {
        request->gone = true; /* libmicrohttpd does not stop while a connection is suspended */
        resume(request);
    }
    MHD_run(leaving->daemon);
    MHD_stop_daemon(leaving->daemon);
    if (leaving->quiesced_fd >= 0) close(leaving->quiesced_fd);
    close(leaving->gone_epoll);
    free(leaving);
    *server = NULL;
}

void http_server_fds(const http_server_t *server, int ret_fds[2])
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    QN_ASSERT(info != NULL);
    ret_fds[0] = info->epoll_fd;
    ret_fds[1] = server->gone_epoll;
}

uint64_t http_server_run(http_server_t *server)
{
    take_gone(server);
    for (int i = 0; i < RUNS_MAX; i++) {
        server->resumed = false;
        MHD_run(server->daemon);
        MHD_UNSIGNED_LONG_LONG timeout_ms = 0;
        bool has_timeout = MHD_get_timeout(server->daemon, &timeout_ms) == MHD_YES;
        if (server->resumed || (has_timeout && timeout_ms == 0)) continue; /* more to do at once */
        return has_timeout ? timeout_ms : UINT64_MAX;
    }
    return 0;
}

void http_server_quiesce(http_server_t *server)
{
    if (server->quiesced_fd < 0) server->quiesced_fd = MHD_quiesce_daemon(server->daemon);
}

/* ---- requests ---- */

const char *http_request_method(const http_request_t *request) { return request->method; }

const char *http_request_path(const http_request_t *request) { return request->path; }

const char *http_request_id(const http_request_t *request) { return request->id; }

const char *http_request_header(const http_request_t *request, const char *name)
{
    return MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND, name);
}

const char *http_request_query(const http_request_t *request, const char *name)
{
    return MHD_lookup_connection_value(request->connection, MHD_GET_ARGUMENT_KIND, name);
}

const char *http_request_body(const http_request_t *request, size_t *ret_bytes)
{
    *ret_bytes = request->body.bytes;
    return request->body.bytes ? request->body.data : "";
}

void http_request_set_id(http_request_t *request, const char *id)
{
    QN_ASSERT(strlen(id) <= HTTP_REQUEST_ID_MAX);
    strcpy(request->id, id);
}

void http_request_set_user(http_request_t *request, void *user) { request->user = user; }

void *http_request_user(const http_request_t *request) { return request->user; }

static void add_common_headers(http_request_t *request, const char *content_type)
{
    if (content_type) MHD_add_response_header(request->response, "Content-Type", content_type);
    if (request->id[0]) MHD_add_response_header(request->response, "x-request-id", request->id);
}

void http_request_reply(http_request_t *request, int status, const char *content_type, const http_header_t *headers,
                        size_t header_count, reply_buffer_t *body)
{
    QN_ASSERT(!request->response && !request->streaming && header_count <= HTTP_HEADERS_MAX);
    size_t bytes;
    char *data = reply_buffer_take(body, &bytes);
    request->response = MHD_create_response_from_buffer(bytes, data, MHD_RESPMEM_MUST_FREE);
    QN_ASSERT(request->response != NULL);
    add_common_headers(request, content_type);
    for (size_t i = 0; i < header_count; i++)
        MHD_add_response_header(request->response, headers[i].name, headers[i].value);
    request->status = status;
    request->done = true;
    reply_buffer_fini(&request->body);
    request->server->callbacks.sent(request->server->callbacks.context, bytes);
    resume(request);
}

void http_request_begin_stream(http_request_t *request, const char *content_type)
{
    QN_ASSERT(!request->response && !request->streaming);
    request->response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16384, read_stream, request, NULL);
    QN_ASSERT(request->response != NULL);
    add_common_headers(request, content_type);
    MHD_add_response_header(request->response, "Cache-Control", "no-cache");
    MHD_add_response_header(request->response, "X-Accel-Buffering", "no"); /* nginx would hold events back */
    request->status = 200;
    request->streaming = true;
    reply_buffer_fini(&request->body);
    resume(request);
}

bool http_request_write(http_request_t *request, const void *data, size_t bytes)
{
    QN_ASSERT(request->streaming && !request->stream_ended);
    if (request->stream_read > request->stream.bytes / 2 && request->stream_read > 65536) {
        reply_buffer_consume(&request->stream, request->stream_read);
        request->stream_read = 0;
    }
    if (request->stream.bytes - request->stream_read + bytes > HTTP_STREAM_BYTES_MAX) return false;
    reply_buffer_append(&request->stream, data, bytes);
    resume(request);
    return true;
}

void http_request_end_stream(http_request_t *request)
{
    QN_ASSERT(request->streaming && !request->stream_ended);
    request->stream_ended = true;
    request->done = true;
    resume(request);
}

void http_request_drop(http_request_t *request)
{
    request->done = true;
    request->gone = true;
    resume(request);
}
