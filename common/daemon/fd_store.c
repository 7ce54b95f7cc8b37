/* What is this?      The conversation with the service manager's descriptor store.
 * State owned:       none; the manager's.
 * Must never:        close a descriptor, or know what one is.
 * Read next:         kept_memory.c, services/memory/kept_regions.c (who keeps what);
 *                    tools/up/up_store.c (the other side in `quintet up`). */
#include "common/daemon/fd_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>

#define MESSAGE_MAX (QN_FD_NAME_MAX + 64)

bool qn_fd_store_is_there(void) { return getenv("NOTIFY_SOCKET") != NULL; }

int qn_fd_store_put(const char *name, int fd, bool polls)
{
    char message[MESSAGE_MAX];
    snprintf(message, sizeof message, "FDSTORE=1\nFDNAME=%.*s%s", QN_FD_NAME_MAX - 1, name, polls ? "" : "\nFDPOLL=0");
    int status = sd_pid_notify_with_fds(0, 0, message, &fd, 1);
    return status > 0 ? 1 : status;
}

void qn_fd_store_drop(const char *name)
{
    char message[MESSAGE_MAX];
    snprintf(message, sizeof message, "FDSTOREREMOVE=1\nFDNAME=%.*s", QN_FD_NAME_MAX - 1, name);
    sd_notify(0, message);
}

void qn_fd_store_drop_and_wait(const char *name, uint64_t wait_us)
{
    qn_fd_store_drop(name);
    sd_notify_barrier(0, wait_us);
}

void qn_fd_store_each(const char *prefix, void (*take)(void *context, int fd, const char *name), void *context)
{
    char **names = NULL;
    int count = sd_listen_fds_with_names(0, &names);
    for (int i = 0; i < count; i++) {
        if (strncmp(names[i], prefix, strlen(prefix)) == 0) take(context, SD_LISTEN_FDS_START + i, names[i]);
        free(names[i]);
    }
    free(names);
}

typedef struct {
    const char *name;
    int fd;
} search_t;

static void compare(void *context, int fd, const char *name)
{
    search_t *search = context;
    if (search->fd < 0 && strcmp(name, search->name) == 0) search->fd = fd;
}

int qn_fd_store_find(const char *name)
{
    search_t search = {.name = name, .fd = -1};
    qn_fd_store_each(name, compare, &search);
    return search.fd;
}
