/* What is this?      WATCHDOG=1 to the notify socket, without ever waiting for it.
 * State owned:       a socket that is connected to the manager.
 * Must never:        block: sd_notify waits for a manager that reads nothing, and this is said again and again.
 * Read next:         daemon.c (who feeds it), tools/up/up.c (who watches), sd_watchdog_enabled(3). */
#include "common/daemon/watchdog.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

static int connect_manager(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = path ? strlen(path) : 0;
    if (length < 2 || length >= sizeof address.sun_path) return -1;
    memcpy(address.sun_path, path, length);
    if (path[0] == '@') address.sun_path[0] = '\0'; /* abstract */
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, bytes) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

void qn_watchdog_open(qn_watchdog_t *watchdog)
{
    uint64_t allowed_us = 0;
    *watchdog = (qn_watchdog_t){.fd = -1};
    if (sd_watchdog_enabled(0, &allowed_us) <= 0) return;
    watchdog->fd = connect_manager(getenv("NOTIFY_SOCKET"));
    watchdog->period_ns = allowed_us * 1000 / 4;
}

void qn_watchdog_close(qn_watchdog_t *watchdog)
{
    if (watchdog->fd >= 0) close(watchdog->fd);
    watchdog->fd = -1;
}

uint64_t qn_watchdog_feed(qn_watchdog_t *watchdog, uint64_t now_ns)
{
    static const char alive[] = "WATCHDOG=1";
    if (watchdog->fd < 0) return UINT64_MAX;
    if (now_ns < watchdog->due_ns) return watchdog->due_ns;
    watchdog->due_ns = now_ns + watchdog->period_ns;
    ssize_t sent = send(watchdog->fd, alive, sizeof alive - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)sent; /* a manager that has not read the last ones learns nothing from another */
    return watchdog->due_ns;
}
