/* What is this?      The listening socket, the connections, their time.
 * State owned:       one epoll descriptor, the connections, a spare descriptor.
 * Must never:        leave a client without an answer, block (but in http_server_destroy), start a thread.
 * Read next:         http_connection.c, service.c for the callbacks; README.md on why there is no library here. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/watch/log.h"
#include "services/frontend/http/http_internal.h"

#define SECOND_NS 1000000000ull
#define SCAN_NS (SECOND_NS / 2)          /* how exactly deadlines are kept */
#define LISTEN_AGAIN_NS (SECOND_NS / 10) /* after accept found no descriptor and no memory */
#define EVENTS_MAX 64
#define ACCEPTS_MAX 64   /* per turn */
#define REFUSED_MAX 256  /* connections beyond the limit that are still told so; more are closed at once */
#define BACKLOG_MAX 4096 /* connections that the kernel holds for us at most */

/* ---- lists ---- */

void http_server_pend(http_request_t *connection)
{
    if (connection->pending || connection->phase == HTTP_CLOSED) return;
    connection->pending = true;
    connection->next_pending = connection->server->pending;
    connection->server->pending = connection;
}

/* Descriptors held back for the moment when there is no other. */
static void keep_spares(http_server_t *server)
{
    for (; server->spare_count < HTTP_SPARES; server->spare_count++) {
        int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (fd < 0) return;
        server->spares[server->spare_count] = fd;
    }
}

void http_server_bury(http_request_t *connection)
{
    http_server_t *server = connection->server;
    if (connection->previous)
        connection->previous->next = connection->next;
    else
        server->first = connection->next;
    if (connection->next) connection->next->previous = connection->previous;
    connection->previous = NULL;
    connection->next = server->closed;
    server->closed = connection;
    server->connections--;
    if (connection->refused) server->refused--;
    if (connection->spare) keep_spares(server);
}

/* Those that are still in the list of pending ones stay until they have left it. */
static void free_closed(http_server_t *server)
{
    http_request_t **at = &server->closed;
    while (*at) {
        http_request_t *connection = *at;
        if (connection->pending) {
            at = &connection->next;
            continue;
        }
        *at = connection->next;
        reply_buffer_t *buffers[] = {&connection->in,  &connection->head_text, &connection->body,
                                     &connection->out, &connection->tail,      &connection->headers};
        for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
            reply_buffer_fini(buffers[i]);
        free(connection);
    }
}

/* ---- accepting ---- */

static void set_options(int fd)
{
    int on = 1, idle_s = 60, probe_s = 15, probes = 4; /* a client that lost its power is noticed in two minutes */
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* these fail, and do no harm, on a Unix socket */
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &probe_s, sizeof probe_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

static http_request_t *open_connection(http_server_t *server, int fd)
{
    http_request_t *connection = calloc(1, sizeof *connection);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (!connection || epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        free(connection);
        close(fd);
        return NULL;
    }
    connection->server = server;
    connection->fd = fd;
    connection->events = EPOLLIN;
    connection->deadline_ns = server->now_ns + server->limits.idle_timeout_s * SECOND_NS;
    connection->next = server->first;
    if (server->first) server->first->previous = connection;
    server->first = connection;
    server->connections++;
    return connection;
}

static const char *refusal_of(const http_server_t *server, bool no_descriptors)
{
    if (server->draining) return "The server is stopping. Try again later.";
    if (no_descriptors) return "The server has no descriptor left for a connection (ulimit -n). Try again.";
    if (server->connections - server->refused < server->limits.max_connections) return NULL;
    return "As many connections are open as may be (frontend.max_connections). Try again.";
}

static void refuse_connection(http_server_t *server, http_request_t *connection, const char *reason)
{
    connection->refused = true;
    server->refused++;
    http_connection_refuse(connection, 503, NULL, reason);
    http_connection_advance(connection, 0);
    if (server->refused > REFUSED_MAX) http_connection_close(connection);
}

static void take_connection(http_server_t *server, int fd, bool spare)
{
    set_options(fd);
    const char *reason = refusal_of(server, spare);
    http_request_t *connection = open_connection(server, fd);
    if (!connection || !reason) return;
    connection->spare = spare;
    refuse_connection(server, connection, reason);
}

static void watch_listener(http_server_t *server, bool on)
{
    struct epoll_event event = {.events = on ? EPOLLIN : 0, .data.ptr = NULL};
    epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, server->listen_fd, &event);
    server->listening = on;
}

/* No descriptor is left: a spare one makes room for a client, who is told and leaves. False: errno says why not. */
static bool accept_with_spare(http_server_t *server)
{
    if (server->spare_count == 0) {
        errno = EMFILE;
        return false;
    }
    close(server->spares[--server->spare_count]);
    int fd = accept4(server->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    int reason = errno;
    if (fd >= 0)
        take_connection(server, fd, true);
    else
        keep_spares(server);
    errno = reason;
    return fd >= 0;
}

/* False: nobody waits, or nobody can be taken now. */
static bool accept_one(http_server_t *server)
{
    int fd = accept4(server->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        take_connection(server, fd, false);
        return true;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
    if (errno != EMFILE && errno != ENFILE) return errno == EINTR || errno == ECONNABORTED;
    if (accept_with_spare(server)) return true;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return false; /* EMFILE may come before "nobody waits" */
    qn_log_warning("http: no descriptor is left for clients (ulimit -n)");
    watch_listener(server, false);
    server->listen_again_ns = server->now_ns + LISTEN_AGAIN_NS;
    return false;
}

static void accept_clients(http_server_t *server)
{
    for (int i = 0; i < ACCEPTS_MAX && accept_one(server); i++) {
    }
}

/* Those for which something was written or that have more requests; what these make waits for the next turn. */
static void advance_pending(http_server_t *server)
{
    http_request_t *connection = server->pending;
    server->pending = NULL;
    for (http_request_t *next; connection; connection = next) {
        next = connection->next_pending;
        connection->pending = false;
        http_connection_advance(connection, 0);
    }
}

/* ---- life ---- */

qn_err_t http_server_create(int listen_fd, const http_server_limits_t *limits, const http_server_callbacks_t *callbacks,
                            http_server_t **ret_server)
{
    http_server_t *server = calloc(1, sizeof *server);
    QN_ASSERT(server != NULL);
    *server = (http_server_t){.limits = *limits, .callbacks = *callbacks, .listen_fd = listen_fd, .listening = true};
    server->now_ns = qn_clock_now_ns();
    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    keep_spares(server);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (server->epoll_fd < 0 || fcntl(listen_fd, F_SETFL, O_NONBLOCK) < 0 ||
        epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, listen_fd, &event) < 0) {
        qn_err_t err = qn_fail(QN_ERR_IO, "cannot serve HTTP: %s", strerror(errno));
        http_server_destroy(&server, 0);
        return err;
    }
    *ret_server = server;
    return QN_OK;
}

static bool all_sent(const http_server_t *server)
{
    for (const http_request_t *connection = server->first; connection; connection = connection->next) {
        if (connection->out_sent < connection->out.bytes || connection->tail.bytes) return false;
    }
    return true;
}

/* Answers that are complete get a moment to reach those who read. */
static void send_rest(http_server_t *server, int linger_ms)
{
    uint64_t end_ns = qn_clock_now_ns() + (uint64_t)linger_ms * 1000000;
    for (uint64_t now_ns; (now_ns = qn_clock_now_ns()) < end_ns;) {
        http_server_run(server, now_ns);
        if (all_sent(server)) return;
        struct pollfd item = {.fd = server->epoll_fd, .events = POLLIN};
        poll(&item, 1, 10);
    }
}

void http_server_destroy(http_server_t **server, int linger_ms)
{
    http_server_t *leaving = *server;
    if (!leaving) return;
    http_server_quiesce(leaving);
    if (linger_ms > 0) send_rest(leaving, linger_ms);
    while (leaving->first) {
        leaving->first->done = true;
        http_connection_close(leaving->first);
    }
    advance_pending(leaving);
    free_closed(leaving);
    if (leaving->listen_fd >= 0) close(leaving->listen_fd);
    if (leaving->epoll_fd >= 0) close(leaving->epoll_fd);
    while (leaving->spare_count > 0)
        close(leaving->spares[--leaving->spare_count]);
    free(leaving);
    *server = NULL;
}

int http_server_fd(const http_server_t *server) { return server->epoll_fd; }

void http_server_quiesce(http_server_t *server)
{
    if (server->draining) return;
    server->draining = true;
    for (int i = 0; i < BACKLOG_MAX && accept_one(server); i++) { /* those whom the kernel has accepted already */
    }
    if (server->limits.inherited) return;
    close(server->listen_fd);
    server->listen_fd = -1;
}

/* ---- turns ---- */

static void scan_deadlines(http_server_t *server)
{
    for (http_request_t *next, *connection = server->first; connection; connection = next) {
        next = connection->next;
        if (server->now_ns >= connection->deadline_ns) http_connection_expire(connection);
    }
    server->scan_ns = server->now_ns + SCAN_NS;
}

uint64_t http_server_run(http_server_t *server, uint64_t now_ns)
{
    struct epoll_event events[EVENTS_MAX];
    server->now_ns = now_ns;
    if (!server->listening && now_ns >= server->listen_again_ns && server->listen_fd >= 0) watch_listener(server, true);
    if (now_ns >= server->scan_ns) scan_deadlines(server);
    int count = epoll_wait(server->epoll_fd, events, EVENTS_MAX, 0);
    for (int i = 0; i < count; i++) {
        http_request_t *connection = events[i].data.ptr;
        if (!connection)
            accept_clients(server);
        else if (connection->phase != HTTP_CLOSED)
            http_connection_advance(connection, events[i].events);
    }
    advance_pending(server);
    free_closed(server);
    if (server->pending || count == EVENTS_MAX) return 0;
    bool timed = server->first || (!server->listening && server->listen_fd >= 0);
    return timed ? SCAN_NS / 1000000 : UINT64_MAX;
}
