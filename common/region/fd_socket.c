/* What is this?      Passing descriptors between processes of one user.
 * State owned:       the listening socket, its file, an epoll descriptor, the connections.
 * Must never:        block (server); give a descriptor to another user.
 * Read next:         unix(7) on SCM_RIGHTS and SO_PEERCRED. */
#include "common/region/fd_socket.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/watch/log.h"

#define PACKET_MAGIC 0x44464e51u /* "QNFD" */
#define LISTENER UINT64_MAX      /* epoll data of the listening socket; connections have their index */

typedef struct {
    uint32_t magic;
    uint32_t epoch;
    uint64_t id;
} fd_request_packet_t;

typedef struct {
    uint32_t magic;
    int32_t status; /* qn_err_t */
    uint64_t id;
} fd_answer_packet_t;

struct qn_fd_server {
    int epoll_fd, listen_fd;
    struct {
        int fd;
        uint64_t since;
    } clients[QN_FD_CLIENTS_MAX]; /* fd -1: free; since: accept order */
    uint64_t accepted;
    qn_fd_find_t *find;
    void *state;
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
};

static qn_err_t set_address(struct sockaddr_un *address, const char *path)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address->sun_path)
        return qn_fail(QN_ERR_LIMIT, "%s: a Unix socket path has at most %zu bytes; choose a shorter run_dir", path,
                       sizeof address->sun_path - 1);
    strcpy(address->sun_path, path);
    return QN_OK;
}

static bool same_user(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

/* ---- server ---- */

static qn_err_t server_listen(qn_fd_server_t *server, const struct sockaddr_un *address)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = LISTENER};
    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    server->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (server->epoll_fd < 0 || server->listen_fd < 0) return qn_fail(QN_ERR_IO, "fd socket: %s", strerror(errno));
    unlink(address->sun_path);
    if (bind(server->listen_fd, (const struct sockaddr *)address, sizeof *address) < 0)
        return qn_fail(QN_ERR_IO, "%s: bind: %s", address->sun_path, strerror(errno));
    strcpy(server->path, address->sun_path);
    if (chmod(server->path, 0600) < 0 || listen(server->listen_fd, QN_FD_CLIENTS_MAX) < 0 ||
        epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->listen_fd, &event) < 0)
        return qn_fail(QN_ERR_IO, "%s: %s", server->path, strerror(errno));
    return QN_OK;
}

qn_err_t qn_fd_server_create(const char *path, qn_fd_find_t *find, void *state, qn_fd_server_t **ret_server)
{
    struct sockaddr_un address;
    qn_err_t err = set_address(&address, path);
    if (err) return err;
    qn_fd_server_t *server = calloc(1, sizeof *server);
    if (!server) return qn_fail(QN_ERR_NO_MEMORY, "%s: no memory", path);
    server->epoll_fd = server->listen_fd = -1;
    for (size_t i = 0; i < QN_FD_CLIENTS_MAX; i++)
        server->clients[i].fd = -1;
    server->find = find;
    server->state = state;
    err = server_listen(server, &address);
    if (err)
        qn_fd_server_destroy(&server);
    else
        *ret_server = server;
    return err;
}

int qn_fd_server_fd(const qn_fd_server_t *server) { return server->epoll_fd; }

static void drop_client(qn_fd_server_t *server, size_t index)
{
    close(server->clients[index].fd); /* leaves the epoll set by itself */
    server->clients[index].fd = -1;
}

/* A free place, or that of the client that has been silent longest. */
static size_t make_place(qn_fd_server_t *server)
{
    size_t oldest = 0;
    for (size_t i = 0; i < QN_FD_CLIENTS_MAX; i++) {
        if (server->clients[i].fd < 0) return i;
        if (server->clients[i].since < server->clients[oldest].since) oldest = i;
    }
    drop_client(server, oldest);
    return oldest;
}

static void accept_client(qn_fd_server_t *server)
{
    int fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return; /* it went away again, or no descriptor is left: the next turn tries again */
    if (!same_user(fd)) {
        qn_log_warning("fd socket: a process of another user was refused");
        close(fd);
        return;
    }
    size_t index = make_place(server);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = index};
    if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        close(fd);
        return;
    }
    server->clients[index].fd = fd;
    server->clients[index].since = ++server->accepted;
}

static void send_answer(int socket_fd, const fd_answer_packet_t *answer, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec data = {.iov_base = (void *)(uintptr_t)answer, .iov_len = sizeof *answer};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    if (sendmsg(socket_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        qn_log_debug("fd socket: the asker of region %" PRIu64 " went away", answer->id);
}

/* The one request of a connection; anything else ends it. */
static bool answer_client(qn_fd_server_t *server, size_t index)
{
    fd_request_packet_t request;
    ssize_t got = recv(server->clients[index].fd, &request, sizeof request, MSG_DONTWAIT | MSG_TRUNC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    bool valid = got == (ssize_t)sizeof request && request.magic == PACKET_MAGIC;
    if (valid) {
        int fd = server->find(server->state, request.id, request.epoch);
        fd_answer_packet_t answer = {.magic = PACKET_MAGIC,
                                     .id = request.id,
                                     .status = fd >= 0 ? QN_OK : QN_ERR_NOT_FOUND};
        send_answer(server->clients[index].fd, &answer, fd);
    }
    drop_client(server, index);
    return valid;
}

unsigned qn_fd_server_serve(qn_fd_server_t *server)
{
    struct epoll_event events[QN_FD_CLIENTS_MAX + 1];
    int count = epoll_wait(server->epoll_fd, events, QN_FD_CLIENTS_MAX + 1, 0);
    unsigned answered = 0;
    bool listening = false;
    for (int i = 0; i < count; i++) {
        if (events[i].data.u64 == LISTENER)
            listening = true;
        else if (answer_client(server, (size_t)events[i].data.u64))
            answered++;
    }
    if (listening) accept_client(server); /* last: it may reuse a place whose event is still in `events` */
    return answered;
}

void qn_fd_server_destroy(qn_fd_server_t **server_pointer)
{
    qn_fd_server_t *server = *server_pointer;
    if (!server) return;
    for (size_t i = 0; i < QN_FD_CLIENTS_MAX; i++) {
        if (server->clients[i].fd >= 0) drop_client(server, i);
    }
    if (server->path[0]) unlink(server->path);
    if (server->listen_fd >= 0) close(server->listen_fd);
    if (server->epoll_fd >= 0) close(server->epoll_fd);
    free(server);
    *server_pointer = NULL;
}

/* ---- client ---- */

/* Waits until `fd` is readable; false at the deadline. */
static bool wait_readable(int fd, uint64_t deadline_ns)
{
    for (;;) {
        uint64_t now = qn_clock_now_ns();
        int left_ms = now >= deadline_ns ? 0 : (int)((deadline_ns - now + 999999) / 1000000);
        int ready = poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, left_ms);
        if (ready > 0) return true;
        if (ready == 0 && left_ms == 0) return false;
        if (ready < 0 && errno != EINTR) return false;
    }
}

static qn_err_t receive_answer(int socket_fd, const char *path, uint64_t id, int *ret_fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    fd_answer_packet_t answer;
    struct iovec data = {.iov_base = &answer, .iov_len = sizeof answer};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t got = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC);
    int fd = -1;
    struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(header), sizeof fd);
    qn_err_t err = QN_OK;
    if (got != (ssize_t)sizeof answer || answer.magic != PACKET_MAGIC || answer.id != id)
        err = qn_fail(QN_ERR_PEER, "%s: the server hung up or does not speak this protocol", path);
    else if (answer.status == QN_ERR_NOT_FOUND)
        err = qn_fail(QN_ERR_NOT_FOUND, "%s: region %" PRIu64 " is not known there (any more)", path, id);
    else if (answer.status != QN_OK || fd < 0)
        err = qn_fail(QN_ERR_PEER, "%s: region %" PRIu64 " was refused", path, id);
    if (err && fd >= 0) close(fd);
    if (!err) *ret_fd = fd;
    return err;
}

static qn_err_t exchange(int socket_fd, const struct sockaddr_un *address, uint64_t id, uint32_t epoch,
                         uint64_t deadline_ns, int *ret_fd)
{
    const char *path = address->sun_path;
    fd_request_packet_t request = {.magic = PACKET_MAGIC, .epoch = epoch, .id = id};
    if (connect(socket_fd, (const struct sockaddr *)address, sizeof *address) < 0)
        return qn_fail(QN_ERR_PEER, "%s: cannot connect: %s", path, strerror(errno));
    if (!same_user(socket_fd)) return qn_fail(QN_ERR_PEER, "%s: the server belongs to another user", path);
    if (send(socket_fd, &request, sizeof request, MSG_NOSIGNAL) != (ssize_t)sizeof request)
        return qn_fail(QN_ERR_PEER, "%s: the server hung up: %s", path, strerror(errno));
    if (!wait_readable(socket_fd, deadline_ns))
        return qn_fail(QN_ERR_TIMEOUT, "%s: no answer about region %" PRIu64 " in time", path, id);
    return receive_answer(socket_fd, path, id, ret_fd);
}

qn_err_t qn_fd_request(const char *path, uint64_t id, uint32_t epoch, int timeout_ms, int *ret_fd)
{
    struct sockaddr_un address;
    qn_err_t err = set_address(&address, path);
    if (err) return err;
    uint64_t deadline_ns = qn_clock_now_ns() + (uint64_t)timeout_ms * 1000000u;
    int socket_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (socket_fd < 0) return qn_fail(QN_ERR_IO, "fd socket: %s", strerror(errno));
    /* A full backlog would make connect wait: SO_SNDTIMEO bounds it. */
    struct timeval timeout = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
    setsockopt(socket_fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    err = exchange(socket_fd, &address, id, epoch, deadline_ns, ret_fd);
    close(socket_fd);
    return err;
}
