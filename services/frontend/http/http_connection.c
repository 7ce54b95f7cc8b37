/* What is this?      One connection: bytes to requests, answers to bytes.
 * State owned:       the connection's buffers; its place in the server's lists is the server's.
 * Must never:        free itself, block, know a route, or call back after `gone` or a complete answer.
 * Read next:         http_internal.h for the phases, http_head.c and http_chunked.c for what is taken. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/assert.h"
#include "services/frontend/http/http_internal.h"

#define SECOND_NS 1000000000ull
#define HEAD_NS (30 * SECOND_NS)       /* from a head's first byte to its last */
#define BODY_NS (30 * SECOND_NS)       /* without a byte of the body */
#define BODY_GRACE_NS (60 * SECOND_NS) /* then a body must have come at */
#define BODY_BYTES_PER_S 1024          /* this rate */
#define WRITE_NS (75 * SECOND_NS)      /* while a client takes nothing of its answer */
#define LINGER_NS (5 * SECOND_NS)      /* for a client to read its last answer */
#define LINGER_BYTES_MAX (64ull << 20) /* of a body that nobody wants */
#define READS_MAX 2                    /* chunks of one connection per turn */
#define REQUESTS_MAX 8                 /* pipelined requests of one connection per turn */
#define KEEP_CAPACITY_MAX (256u << 10) /* a buffer larger than this is given back between requests */

/* ---- answers ---- */

/* What is read of bodies and not handed on yet is bounded over all connections. */
static void drop_body(http_request_t *connection)
{
    connection->server->body_bytes -= connection->body.bytes;
    reply_buffer_fini(&connection->body);
}

static const char *reason_phrase(int status)
{
    static const struct {
        int status;
        const char *phrase;
    } phrases[] = {
        {200, "OK"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {415, "Unsupported Media Type"},
        {417, "Expectation Failed"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
    };
    for (size_t i = 0; i < sizeof phrases / sizeof phrases[0]; i++) {
        if (phrases[i].status == status) return phrases[i].phrase;
    }
    return "Error";
}

static void put_date(reply_buffer_t *out)
{
    time_t now = time(NULL);
    struct tm utc;
    char text[40];
    gmtime_r(&now, &utc);
    strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &utc);
    reply_buffer_printf(out, "Date: %s\r\n", text);
}

static void put_head(http_request_t *request, int status, const char *content_type)
{
    reply_buffer_t *out = &request->out;
    reply_buffer_printf(out, "HTTP/1.1 %d %s\r\n", status, reason_phrase(status));
    put_date(out);
    if (content_type) reply_buffer_printf(out, "Content-Type: %s\r\n", content_type);
    if (request->id[0]) reply_buffer_printf(out, "x-request-id: %s\r\n", request->id);
    reply_buffer_append(out, request->headers.data, request->headers.bytes);
    if (!request->keep_alive)
        reply_buffer_text(out, "Connection: close\r\n");
    else if (request->head.is_http_1_0)
        reply_buffer_text(out, "Connection: keep-alive\r\n");
}

static bool is_head_request(const http_request_t *request)
{
    return request->head.method && strcmp(request->head.method, "HEAD") == 0;
}

void http_request_add_header(http_request_t *request, const char *name, const char *value)
{
    if (request->header_count == HTTP_HEADERS_MAX) return;
    request->header_count++;
    reply_buffer_printf(&request->headers, "%s: %s\r\n", name, value);
}

void http_request_reply(http_request_t *request, int status, const char *content_type, reply_buffer_t *body)
{
    QN_ASSERT(request->phase < HTTP_STREAM || request->phase == HTTP_CLOSED);
    request->done = true;
    if (request->server->draining) request->keep_alive = false;
    put_head(request, status, content_type);
    reply_buffer_printf(&request->out, "Content-Length: %zu\r\n\r\n", body->bytes);
    if (is_head_request(request)) {
        reply_buffer_fini(body);
    } else {
        request->server->callbacks.sent(request->server->callbacks.context, body->bytes);
        request->tail = *body;
        *body = (reply_buffer_t){0};
    }
    drop_body(request);
    if (request->phase == HTTP_CLOSED) return;
    request->phase = HTTP_FLUSH;
    http_server_pend(request);
}

void http_request_begin_stream(http_request_t *request, const char *content_type)
{
    QN_ASSERT(request->phase == HTTP_WAIT);
    request->chunked_reply = !request->head.is_http_1_0;
    if (!request->chunked_reply || request->server->draining) request->keep_alive = false; /* its end: the close */
    http_request_add_header(request, "Cache-Control", "no-cache");
    http_request_add_header(request, "X-Accel-Buffering", "no"); /* nginx would hold events back */
    put_head(request, 200, content_type);
    reply_buffer_text(&request->out, request->chunked_reply ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n");
    request->phase = HTTP_STREAM;
    drop_body(request);
    http_server_pend(request);
}

bool http_request_write(http_request_t *request, const void *data, size_t bytes)
{
    QN_ASSERT(request->phase == HTTP_STREAM);
    reply_buffer_t *out = &request->out;
    if (bytes == 0) return true; /* an empty chunk would be the last */
    if (out->bytes - request->out_sent + bytes > HTTP_STREAM_BYTES_MAX) return false;
    if (request->out_sent > 65536 && request->out_sent > out->bytes / 2) {
        reply_buffer_consume(out, request->out_sent);
        request->out_sent = 0;
    }
    if (request->chunked_reply) reply_buffer_printf(out, "%zx\r\n", bytes);
    reply_buffer_append(out, data, bytes);
    if (request->chunked_reply) reply_buffer_text(out, "\r\n");
    request->server->callbacks.sent(request->server->callbacks.context, bytes);
    http_server_pend(request);
    return true;
}

void http_request_end_stream(http_request_t *request)
{
    QN_ASSERT(request->phase == HTTP_STREAM);
    if (request->chunked_reply) reply_buffer_text(&request->out, "0\r\n\r\n");
    request->done = true;
    request->phase = HTTP_FLUSH;
    http_server_pend(request);
}

void http_request_drop(http_request_t *request)
{
    request->done = true;
    http_connection_close(request);
}

/* ---- the present request ---- */

const char *http_request_method(const http_request_t *request) { return request->head.method; }

const http_server_t *http_request_server(const http_request_t *request) { return request->server; }

bool http_request_is_local(const http_request_t *request)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_storage storage;
    } peer;
    socklen_t bytes = sizeof peer;
    if (getpeername(request->fd, &peer.any, &bytes) != 0) return false;
    if (peer.any.sa_family == AF_UNIX) return true;
    if (peer.any.sa_family == AF_INET) return (ntohl(peer.v4.sin_addr.s_addr) >> 24) == 127;
    if (peer.any.sa_family != AF_INET6) return false;
    const struct in6_addr *address = &peer.v6.sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(address) || (IN6_IS_ADDR_V4MAPPED(address) && address->s6_addr[12] == 127);
}

const char *http_request_path(const http_request_t *request) { return request->head.path; }

const char *http_request_id(const http_request_t *request) { return request->id; }

const char *http_request_header(const http_request_t *request, const char *name)
{
    return http_head_field(&request->head, name);
}

const char *http_request_query(const http_request_t *request, const char *name)
{
    for (uint32_t i = 0; i < request->head.query_count; i++) {
        if (strcmp(request->head.query[i].name, name) == 0) return request->head.query[i].value;
    }
    return NULL;
}

const char *http_request_body(const http_request_t *request, size_t *ret_bytes)
{
    *ret_bytes = request->body.bytes;
    return request->body.bytes ? request->body.data : "";
}

void http_request_take_body(http_request_t *request, reply_buffer_t *ret_body)
{
    *ret_body = request->body;
    request->server->body_bytes -= request->body.bytes;
    request->body = (reply_buffer_t){0};
}

void http_request_set_id(http_request_t *request, const char *id)
{
    QN_ASSERT(strlen(id) <= HTTP_REQUEST_ID_MAX);
    strcpy(request->id, id);
}

void http_request_set_user(http_request_t *request, void *user) { request->user = user; }

void *http_request_user(const http_request_t *request) { return request->user; }

/* ---- events ---- */

static void ask_for(http_request_t *connection, uint32_t events)
{
    if (events == connection->events || connection->phase == HTTP_CLOSED) return;
    struct epoll_event event = {.events = events, .data.ptr = connection};
    if (epoll_ctl(connection->server->epoll_fd, EPOLL_CTL_MOD, connection->fd, &event) == 0)
        connection->events = events;
}

void http_connection_close(http_request_t *connection)
{
    if (connection->phase == HTTP_CLOSED) return;
    bool waits = (connection->phase == HTTP_WAIT || connection->phase == HTTP_STREAM) && !connection->done;
    close(connection->fd); /* epoll forgets it */
    drop_body(connection);
    connection->phase = HTTP_CLOSED;
    if (waits) {
        connection->done = true;
        connection->server->callbacks.gone(connection->server->callbacks.context, connection);
    }
    http_server_bury(connection);
}

void http_connection_refuse(http_request_t *connection, int status, const char *param, const char *reason)
{
    reply_buffer_t body = {0};
    http_server_t *server = connection->server;
    connection->keep_alive = false;
    server->callbacks.refuse(server->callbacks.context, connection, status, param, reason, &body);
    http_request_reply(connection, status, "application/json", &body);
}

void http_connection_expire(http_request_t *connection)
{
    bool begun = connection->phase == HTTP_READ_BODY || (connection->phase == HTTP_READ_HEAD && connection->in.bytes);
    if (!begun) {
        http_connection_close(connection);
        return;
    }
    http_connection_refuse(connection, 408, NULL,
                           connection->phase == HTTP_READ_HEAD ? "The head of the request did not come within 30 s."
                                                               : "The body of the request came too slowly.");
}

/* ---- in ---- */

static bool is_printable(const char *text)
{
    for (; *text; text++) {
        if (*text < 0x21 || *text > 0x7E) return false;
    }
    return true;
}

static void hand_up(http_request_t *connection)
{
    http_server_t *server = connection->server;
    const char *id = http_request_header(connection, "x-request-id");
    connection->phase = HTTP_WAIT;
    connection->deadline_ns = UINT64_MAX;
    if (id && (id[0] == '\0' || strlen(id) > HTTP_REQUEST_ID_MAX || !is_printable(id))) {
        http_connection_refuse(connection, 400, "x-request-id",
                               "x-request-id must be 1 to 256 printable ASCII characters without spaces.");
        return;
    }
    if (id) http_request_set_id(connection, id);
    server->callbacks.request(server->callbacks.context, connection);
}

static void begin_body(http_request_t *connection)
{
    const http_head_t *head = &connection->head;
    connection->keep_alive = head->keep_alive;
    if (head->content_length > connection->server->limits.max_body_bytes) {
        http_connection_refuse(connection, 413, NULL, NULL);
        return;
    }
    connection->phase = HTTP_READ_BODY;
    connection->chunked = (http_chunked_t){0};
    connection->body_left = head->content_length;
    connection->begun_ns = connection->server->now_ns;
    connection->deadline_ns = connection->begun_ns + BODY_NS;
    bool has_body = head->chunked || head->content_length > 0;
    if (has_body && head->expects_continue && connection->in.bytes == 0)
        reply_buffer_text(&connection->out, "HTTP/1.1 100 Continue\r\n\r\n");
}

/* Takes a head from `in`; false: more bytes are needed. */
static bool take_head(http_request_t *connection)
{
    reply_buffer_t *in = &connection->in;
    size_t blank = 0;
    while (in->bytes >= blank + 2 && memcmp(in->data + blank, "\r\n", 2) == 0 && blank < 8)
        blank += 2; /* between requests, as RFC 9112 2.2 asks */
    reply_buffer_consume(in, blank);
    if (in->bytes == 0) return false;
    if (connection->begun_ns == 0) {
        connection->begun_ns = connection->server->now_ns;
        connection->deadline_ns = connection->begun_ns + HEAD_NS;
    }
    unsigned char first = (unsigned char)in->data[0];
    if ((first < 'A' || first > 'z') && !(first == '\r' && in->bytes == 1)) { /* TLS, say */
        http_connection_refuse(connection, 400, NULL, "This is no HTTP request; the server speaks plain HTTP/1.1.");
        return true;
    }
    size_t bytes = http_head_end(in->data, in->bytes, &connection->scanned);
    if (bytes > HTTP_HEAD_BYTES_MAX || (bytes == 0 && in->bytes >= HTTP_HEAD_BYTES_MAX)) {
        http_connection_refuse(connection, 431, NULL, "The head of the request is larger than 64 KiB.");
        return true;
    }
    if (bytes == 0) return false;
    connection->head_text.bytes = 0;
    reply_buffer_append(&connection->head_text, in->data, bytes);
    reply_buffer_consume(in, bytes);
    if (http_head_parse(connection->head_text.data, bytes, &connection->head) == HTTP_HEAD_BAD)
        http_connection_refuse(connection, connection->head.status, NULL, connection->head.reason);
    else
        begin_body(connection);
    return true;
}

static bool add_body(http_request_t *connection, const char *data, size_t bytes)
{
    reply_buffer_append(&connection->body, data, bytes);
    connection->server->body_bytes += bytes;
    if (connection->body.bytes > connection->server->limits.max_body_bytes)
        http_connection_refuse(connection, 413, NULL, NULL);
    else if (connection->server->body_bytes > HTTP_BODIES_BYTES_MAX)
        http_connection_refuse(connection, 503, NULL, "Too many large bodies are being read. Try again.");
    else
        return true;
    return false;
}

/* Takes what is there of a chunked body; false: more bytes are needed. */
static bool take_chunks(http_request_t *connection)
{
    reply_buffer_t *in = &connection->in;
    size_t at = 0, used = 0, piece = 0;
    http_chunked_outcome_t outcome;
    do {
        outcome = http_chunked_take(&connection->chunked, in->data + at, in->bytes - at, &used, &piece);
        at += used;
        if (outcome == HTTP_CHUNKED_DATA && !add_body(connection, in->data + at - piece, piece)) return true;
    } while (outcome == HTTP_CHUNKED_DATA);
    reply_buffer_consume(in, at);
    if (outcome == HTTP_CHUNKED_MORE) return false;
    if (outcome == HTTP_CHUNKED_END)
        hand_up(connection);
    else
        http_connection_refuse(connection, 400, NULL, "The chunks of the body are not well-formed (RFC 9112 7.1).");
    return true;
}

static bool take_body(http_request_t *connection)
{
    reply_buffer_t *in = &connection->in;
    if (connection->head.chunked) return take_chunks(connection);
    size_t bytes = in->bytes < connection->body_left ? in->bytes : (size_t)connection->body_left;
    connection->body_left -= bytes;
    if (!add_body(connection, in->data, bytes)) return true;
    reply_buffer_consume(in, bytes);
    if (connection->body_left > 0) return false;
    hand_up(connection);
    return true;
}

/* A body must go on, and must come at a bearable rate in all. */
static void move_body_deadline(http_request_t *connection)
{
    uint64_t received = connection->body.bytes, now_ns = connection->server->now_ns;
    uint64_t rate_ns = connection->begun_ns + BODY_GRACE_NS + received * (SECOND_NS / BODY_BYTES_PER_S);
    connection->deadline_ns = now_ns + BODY_NS < rate_ns ? now_ns + BODY_NS : rate_ns;
}

/* Receives what is there; false: the client has ended its side, or the connection is broken. */
static bool receive(http_request_t *connection)
{
    for (int i = 0; i < READS_MAX; i++) {
        char *chunk = connection->server->chunk;
        ssize_t bytes = recv(connection->fd, chunk, sizeof connection->server->chunk, MSG_DONTWAIT);
        if (bytes < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
        if (bytes == 0) return false;
        if (connection->phase == HTTP_LINGER) {
            connection->lingered += (uint64_t)bytes;
            if (connection->lingered > LINGER_BYTES_MAX) return false;
            continue;
        }
        reply_buffer_append(&connection->in, chunk, (size_t)bytes);
        if (connection->phase == HTTP_READ_HEAD) return true; /* one chunk holds any head */
        if (!take_body(connection)) move_body_deadline(connection);
        if (connection->phase != HTTP_READ_BODY) return true;
    }
    return true;
}

/* ---- out ---- */

/* Sends what can be sent; false: the connection is broken. */
static bool flush(http_request_t *connection)
{
    reply_buffer_t *out = &connection->out;
    while (connection->out_sent < out->bytes || connection->tail.bytes > 0) {
        if (connection->out_sent == out->bytes) {
            reply_buffer_fini(out);
            *out = connection->tail;
            connection->tail = (reply_buffer_t){0};
            connection->out_sent = 0;
        }
        ssize_t bytes = send(connection->fd, out->data + connection->out_sent, out->bytes - connection->out_sent,
                             MSG_DONTWAIT | MSG_NOSIGNAL | (connection->tail.bytes ? MSG_MORE : 0));
        if (bytes < 0 && errno == EINTR) continue;
        if (bytes < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
        connection->out_sent += (size_t)bytes;
        connection->deadline_ns = connection->server->now_ns + WRITE_NS;
    }
    out->bytes = connection->out_sent = 0;
    if (out->capacity > KEEP_CAPACITY_MAX) reply_buffer_fini(out);
    return true;
}

static bool has_unsent(const http_request_t *connection)
{
    return connection->out_sent < connection->out.bytes || connection->tail.bytes > 0;
}

/* The answer is with the kernel: the next request, or the end. */
static void after_answer(http_request_t *connection)
{
    http_server_t *server = connection->server;
    if (!connection->keep_alive) {
        shutdown(connection->fd, SHUT_WR);
        connection->phase = HTTP_LINGER;
        connection->deadline_ns = server->now_ns + LINGER_NS;
        reply_buffer_fini(&connection->in);
        return;
    }
    connection->phase = HTTP_READ_HEAD;
    connection->scanned = 0;
    connection->begun_ns = 0;
    connection->deadline_ns = server->now_ns + server->limits.idle_timeout_s * SECOND_NS;
    connection->head = (http_head_t){0};
    connection->id[0] = '\0';
    connection->user = NULL;
    connection->done = false;
    connection->headers.bytes = connection->header_count = 0;
    if (connection->in.capacity > KEEP_CAPACITY_MAX && connection->in.bytes == 0) reply_buffer_fini(&connection->in);
}

/* ---- entry ---- */

/* Takes requests from what was received until bytes or answers are missing. */
static void take_requests(http_request_t *connection)
{
    for (int i = 0; i < REQUESTS_MAX; i++) {
        if (connection->phase == HTTP_READ_HEAD && !take_head(connection)) return;
        if (connection->phase == HTTP_READ_BODY && !take_body(connection)) return;
        if (connection->phase != HTTP_FLUSH) return;
        if (!flush(connection)) http_connection_close(connection);
        if (connection->phase != HTTP_FLUSH || has_unsent(connection)) return;
        after_answer(connection);
        if (connection->phase != HTTP_READ_HEAD) return;
    }
    http_server_pend(connection); /* others first */
}

static uint32_t wanted_events(const http_request_t *connection)
{
    uint32_t out = has_unsent(connection) ? EPOLLOUT : 0;
    switch (connection->phase) {
    case HTTP_READ_HEAD:
    case HTTP_READ_BODY:
    case HTTP_LINGER: return EPOLLIN | out;
    case HTTP_WAIT:
    case HTTP_STREAM: return EPOLLRDHUP | out;
    case HTTP_FLUSH:
    case HTTP_CLOSED: break;
    }
    return out;
}

/* A client may wait for ever for us; it may not let us wait. */
static void watch_progress(http_request_t *connection)
{
    if (!has_unsent(connection))
        connection->deadline_ns = UINT64_MAX;
    else if (connection->deadline_ns == UINT64_MAX)
        connection->deadline_ns = connection->server->now_ns + WRITE_NS;
}

void http_connection_advance(http_request_t *connection, uint32_t events)
{
    if (connection->phase == HTTP_CLOSED) return;
    bool reads = connection->phase <= HTTP_READ_BODY || connection->phase == HTTP_LINGER;
    if (events & (EPOLLHUP | EPOLLERR) && !reads) {
        http_connection_close(connection);
        return;
    }
    if (events & EPOLLRDHUP && !reads && connection->phase != HTTP_FLUSH) {
        http_connection_close(connection);
        return;
    }
    bool open = !reads || !events || receive(connection);
    if (connection->phase <= HTTP_READ_BODY) take_requests(connection);
    if (connection->phase != HTTP_CLOSED && !flush(connection)) http_connection_close(connection);
    if (connection->phase == HTTP_FLUSH && !has_unsent(connection)) {
        after_answer(connection);
        if (connection->phase == HTTP_READ_HEAD && connection->in.bytes) http_server_pend(connection);
    }
    bool waits_for_bytes = connection->phase <= HTTP_READ_BODY || connection->phase == HTTP_LINGER;
    if (!open && waits_for_bytes) http_connection_close(connection);
    if (connection->phase >= HTTP_WAIT && connection->phase <= HTTP_FLUSH) watch_progress(connection);
    ask_for(connection, wanted_events(connection));
}
