/* What is this?      From frontend.listen to a listening socket.
 * State owned:       none.
 * Must never:        take a socket from a server that lives.
 * Read next:         http_server.c, which serves it. */
#include "services/frontend/http/listen_address.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 1024 /* bursts of load generators; the kernel caps it at somaxconn */

static qn_err_t bad(const char *text)
{
    return qn_fail(QN_ERR_CONFIG,
                   "frontend.listen is \"%s\"; write host:port, [v6]:port, :port or unix:PATH "
                   "(at most 107 bytes)",
                   text);
}

qn_err_t listen_address_parse(const char *text, listen_address_t *ret_address)
{
    listen_address_t address = {0};
    if (strncmp(text, "unix:", 5) == 0) {
        size_t length = strlen(text + 5);
        if (length == 0 || length >= sizeof address.path) return bad(text);
        address.is_unix = true;
        memcpy(address.path, text + 5, length + 1);
        *ret_address = address;
        return QN_OK;
    }
    const char *colon = strrchr(text, ':');
    if (!colon) return bad(text);
    const char *host = text, *host_end = colon;
    if (text[0] == '[') {
        if (colon == text + 1 || colon[-1] != ']') return bad(text);
        host++;
        host_end--;
    } else if (memchr(text, ':', (size_t)(colon - text))) {
        return bad(text); /* a v6 address needs brackets */
    }
    size_t digits = strspn(colon + 1, "0123456789");
    if (digits == 0 || digits > 5 || colon[1 + digits] != '\0' || atoi(colon + 1) > 65535) return bad(text);
    if ((size_t)(host_end - host) >= sizeof address.host) return bad(text);
    memcpy(address.host, host, (size_t)(host_end - host));
    memcpy(address.port, colon + 1, digits);
    *ret_address = address;
    return QN_OK;
}

/* A path left by a server that died may be replaced: it is a socket and nobody answers there. */
static qn_err_t remove_stale(const struct sockaddr_un *name)
{
    struct stat status;
    if (lstat(name->sun_path, &status) < 0) return QN_OK; /* nothing there; bind will say what else is wrong */
    int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0) return qn_fail(QN_ERR_IO, "socket: %s", strerror(errno));
    bool stale = S_ISSOCK(status.st_mode) && connect(probe, (const struct sockaddr *)name, sizeof *name) < 0 &&
                 errno == ECONNREFUSED;
    close(probe);
    if (!stale)
        return qn_fail(QN_ERR_EXISTS,
                       "frontend.listen: unix:%s is served by another process, or is no socket; stop it "
                       "or choose another path",
                       name->sun_path);
    if (unlink(name->sun_path) < 0) return qn_fail(QN_ERR_IO, "unlink %s: %s", name->sun_path, strerror(errno));
    return QN_OK;
}

static qn_err_t bind_and_listen(int fd, const struct sockaddr *name, socklen_t bytes, const char *shown)
{
    if (bind(fd, name, bytes) < 0)
        return qn_fail(errno == EADDRINUSE ? QN_ERR_EXISTS : QN_ERR_IO,
                       "frontend.listen: cannot bind %s: %s; stop the other server or set frontend.listen", shown,
                       strerror(errno));
    if (listen(fd, BACKLOG) < 0) return qn_fail(QN_ERR_IO, "listen on %s: %s", shown, strerror(errno));
    return QN_OK;
}

static qn_err_t open_unix(const listen_address_t *address, int *ret_fd)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    memcpy(name.sun_path, address->path, sizeof name.sun_path);
    qn_err_t err = remove_stale(&name);
    if (err != QN_OK) return err;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return qn_fail(QN_ERR_IO, "socket: %s", strerror(errno));
    err = bind_and_listen(fd, (const struct sockaddr *)&name, sizeof name, address->path);
    if (err != QN_OK)
        close(fd);
    else
        *ret_fd = fd;
    return err;
}

static qn_err_t open_inet(const struct addrinfo *info, const char *shown, int *ret_fd)
{
    int fd = socket(info->ai_family, info->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, info->ai_protocol);
    if (fd < 0) return qn_fail(QN_ERR_IO, "socket for %s: %s", shown, strerror(errno));
    int on = 1, off = 0;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on); /* connections of the last life may linger */
    if (info->ai_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    qn_err_t err = bind_and_listen(fd, info->ai_addr, info->ai_addrlen, shown);
    if (err != QN_OK)
        close(fd);
    else
        *ret_fd = fd;
    return err;
}

qn_err_t listen_address_open(const listen_address_t *address, int *ret_fd)
{
    if (address->is_unix) return open_unix(address, ret_fd);
    char shown[QN_ENDPOINT_MAX + 16];
    snprintf(shown, sizeof shown, "%s:%s", address->host, address->port);
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    /* No host: the v6 wildcard, which takes v4 too; without v6 in the kernel the list's next entry is v4. */
    const char *host = address->host[0] ? address->host : NULL;
    int failed = getaddrinfo(host, address->port, &hints, &found);
    if (failed) return qn_fail(QN_ERR_CONFIG, "frontend.listen %s: %s", shown, gai_strerror(failed));
    qn_err_t err = QN_ERR_IO;
    for (int pass = 0; pass < 2 && err != QN_OK; pass++) { /* v6 first only for the wildcard */
        for (const struct addrinfo *at = found; at && err != QN_OK; at = at->ai_next) {
            bool first = host ? true : at->ai_family == AF_INET6;
            if (first == (pass == 0)) err = open_inet(at, shown, ret_fd);
        }
    }
    freeaddrinfo(found);
    return err;
}

void listen_address_of(int fd, char *ret_text, size_t room)
{
    union {
        struct sockaddr any;
        struct sockaddr_un local;
        struct sockaddr_storage storage;
    } name = {0};
    socklen_t bytes = sizeof name;
    char host[64] = "?", port[8] = "?";
    if (getsockname(fd, &name.any, &bytes) == 0 && name.any.sa_family == AF_UNIX) {
        snprintf(ret_text, room, "unix:%s", name.local.sun_path);
        return;
    }
    getnameinfo(&name.any, bytes, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(ret_text, room, name.any.sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}
