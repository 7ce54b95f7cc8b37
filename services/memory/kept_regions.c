/* What is this?      The conversation with the service manager's descriptor store.
 * State owned:       none; descriptors belong to the mappings and to the service manager.
 * Must never:        decide whether a kept region is still right: its header and the loader do.
 * Read next:         sd_pid_notify_with_fds(3), sd_listen_fds_with_names(3). */
#include "services/memory/kept_regions.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "common/log.h"

#define PREFIX "region."

void kept_regions_drop(const char *name)
{
    char message[QN_NAME_MAX + 64];
    snprintf(message, sizeof message, "FDSTOREREMOVE=1\nFDNAME=" PREFIX "%s", name);
    sd_notify(0, message);
}

void kept_regions_put(const qn_mapping_t *region)
{
    char message[QN_NAME_MAX + 64];
    if (qn_region_share(region) != QN_SHARE_MEMFD || !getenv("NOTIFY_SOCKET")) return;
    kept_regions_drop(qn_region_name(region));
    int fd = qn_region_fd(region);
    snprintf(message, sizeof message, "FDSTORE=1\nFDNAME=" PREFIX "%s", qn_region_name(region));
    int status = sd_pid_notify_with_fds(0, 0, message, &fd, 1);
    if (status < 0)
        qn_log_warning("region '%s' could not be given to the service manager: %s", qn_region_name(region),
                       strerror(-status));
}

static bool take_one(int fd, const char *name, const char *fd_socket, qn_mapping_t **ret_region)
{
    qn_err_t err = qn_region_adopt(fd, fd_socket, ret_region);
    if (!err && strcmp(qn_region_name(*ret_region), name) == 0) return true;
    if (!err) {
        qn_log_notice("the kept region '%s' calls itself '%s': dropped", name, qn_region_name(*ret_region));
        qn_region_close(ret_region);
    } else {
        qn_log_notice("the kept region '%s' is dropped: %s", name, qn_err_text());
        close(fd);
    }
    kept_regions_drop(name);
    return false;
}

size_t kept_regions_take(const char *fd_socket, qn_mapping_t **ret_regions, size_t capacity)
{
    char **names = NULL;
    size_t taken = 0;
    int count = sd_listen_fds_with_names(0, &names);
    for (int i = 0; i < count; i++) {
        int fd = SD_LISTEN_FDS_START + i;
        if (strncmp(names[i], PREFIX, strlen(PREFIX)) == 0 && taken < capacity &&
            take_one(fd, names[i] + strlen(PREFIX), fd_socket, &ret_regions[taken]))
            taken++;
        free(names[i]);
    }
    free(names);
    return taken;
}
