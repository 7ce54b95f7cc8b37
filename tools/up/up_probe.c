/* What is this?      One HTTP question over a non-blocking socket.
 * State owned:       the socket and the first bytes of the reply.
 * Must never:        wait: the supervisor has services to look after.
 * Read next:         up.c. */
#include "tools/up/up_probe.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "services/frontend/http/listen_address.h"

static const char question[] = "GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

void up_probe_close(up_probe_t *probe)
{
    if (probe->fd >= 0) close(probe->fd);
    probe->fd = -1;
}

static up_probe_outcome_t finish(up_probe_t *probe, up_probe_outcome_t outcome)
{
    up_probe_close(probe);
    return outcome;
}

static up_probe_outcome_t connect_to(up_probe_t *probe, int family, const struct sockaddr *name, socklen_t bytes)
{
    *probe = (up_probe_t){.fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    if (probe->fd < 0) return UP_PROBE_NOBODY;
    if (connect(probe->fd, name, bytes) != 0 && errno != EINPROGRESS) return finish(probe, UP_PROBE_NOBODY);
    return UP_PROBE_PENDING;
}

up_probe_outcome_t up_probe_begin(up_probe_t *probe, const char *listen)
{
    listen_address_t address;
    probe->fd = -1;
    if (listen_address_parse(listen, &address) != QN_OK) return UP_PROBE_NOBODY;
    if (address.is_unix) {
        struct sockaddr_un name = {.sun_family = AF_UNIX};
        memcpy(name.sun_path, address.path, sizeof name.sun_path);
        return connect_to(probe, AF_UNIX, (const struct sockaddr *)&name, sizeof name);
    }
    /* AI_PASSIVE as when it was bound; to connect to "all addresses" means to connect to this machine. */
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    if (getaddrinfo(address.host[0] ? address.host : NULL, address.port, &hints, &found) != 0) return UP_PROBE_NOBODY;
    up_probe_outcome_t outcome = connect_to(probe, found->ai_family, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return outcome;
}

short up_probe_events(const up_probe_t *probe) { return probe->sent ? POLLIN : POLLOUT; }

static up_probe_outcome_t send_question(up_probe_t *probe)
{
    int error = 0;
    socklen_t size = sizeof error;
    struct pollfd item = {.fd = probe->fd, .events = POLLOUT};
    if (poll(&item, 1, 0) <= 0) return UP_PROBE_PENDING; /* the connection is being made */
    getsockopt(probe->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) return finish(probe, UP_PROBE_NOBODY);
    /* A new connection's buffer takes so few bytes at once. */
    if (send(probe->fd, question, sizeof question - 1, MSG_NOSIGNAL) != (ssize_t)sizeof question - 1) {
        return finish(probe, UP_PROBE_NOT_YET);
    }
    probe->sent = true;
    return UP_PROBE_PENDING;
}

up_probe_outcome_t up_probe_step(up_probe_t *probe)
{
    int status;
    if (!probe->sent) return send_question(probe);
    ssize_t length = recv(probe->fd, probe->reply + probe->used, sizeof probe->reply - 1 - probe->used, 0);
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return UP_PROBE_PENDING;
    if (length <= 0) return finish(probe, UP_PROBE_NOT_YET);
    probe->used += (size_t)length;
    probe->reply[probe->used] = '\0';
    if (probe->used < strlen("HTTP/1.1 200")) return UP_PROBE_PENDING;
    return finish(probe, sscanf(probe->reply, "HTTP/%*d.%*d %d", &status) == 1 && status == 200 ? UP_PROBE_READY
                                                                                                : UP_PROBE_NOT_YET);
}
