/* What is this?      The conversation with the service manager's descriptor store.
 * State owned:       none; descriptors belong to the mappings and to the service manager.
 * Must never:        decide whether a kept region is still right: its header and the loader do.
 * Read next:         sd_pid_notify_with_fds(3), sd_listen_fds_with_names(3). */
#include "services/memory/kept_regions.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "common/watch/log.h"

#define PREFIX "region."
#define STORED_NAME_MAX (QN_NAME_MAX + 32)
#define START_WAIT_US 1000000u /* before there is a loop */
#define LOOP_WAIT_US 20000u    /* what a loop may stand still: a manager that is there answers within one */

/* ---- to the store ---- */

static bool is_stored(const qn_mapping_t *region)
{
    return qn_region_share(region) != QN_SHARE_CUDA_IPC && getenv("NOTIFY_SOCKET");
}

static void stored_name(const qn_mapping_t *region, char ret_name[static STORED_NAME_MAX])
{
    if (qn_region_share(region) == QN_SHARE_MEMFD)
        snprintf(ret_name, STORED_NAME_MAX, PREFIX "%s", qn_region_name(region));
    else
        snprintf(ret_name, STORED_NAME_MAX, PREFIX "%s@%" PRIu64, qn_region_name(region), qn_region_bytes(region));
}

static void forget(const char *stored)
{
    char message[STORED_NAME_MAX + 64];
    snprintf(message, sizeof message, "FDSTOREREMOVE=1\nFDNAME=%s", stored);
    sd_notify(0, message);
}

/* The bytes of a device may be needed at once. */
static void forget_and_wait(const char *stored, uint64_t wait_us)
{
    forget(stored);
    if (strchr(stored, '@')) sd_notify_barrier(0, wait_us);
}

void kept_regions_drop(const qn_mapping_t *region)
{
    char stored[STORED_NAME_MAX];
    if (!is_stored(region)) return;
    stored_name(region, stored);
    forget_and_wait(stored, LOOP_WAIT_US);
}

void kept_regions_put(const qn_mapping_t *region)
{
    char message[STORED_NAME_MAX + 64], stored[STORED_NAME_MAX];
    if (!is_stored(region)) return;
    stored_name(region, stored);
    forget(stored);
    int fd = qn_region_fd(region);
    /* systemd lets go of a descriptor that polls as hung up, and what a driver's file says there means nothing. */
    snprintf(message, sizeof message, "FDSTORE=1\nFDNAME=%s%s", stored,
             qn_region_share(region) == QN_SHARE_MEMFD ? "" : "\nFDPOLL=0");
    int status = sd_pid_notify_with_fds(0, 0, message, &fd, 1);
    if (status < 0)
        qn_log_warning("region '%s' could not be given to the service manager: %s", qn_region_name(region),
                       strerror(-status));
}

/* ---- from the store ---- */

/* "weights@123" -> "weights" and 123; "slots" -> "slots" and 0, which no region has. */
static bool parse_name(const char *text, char ret_name[static QN_NAME_MAX], uint64_t *ret_bytes)
{
    size_t length = strcspn(text, "@");
    if (length >= QN_NAME_MAX) return false;
    memcpy(ret_name, text, length);
    ret_name[length] = '\0';
    *ret_bytes = 0;
    if (!text[length]) return true;
    const char *digits = text + length + 1;
    if (strspn(digits, "0123456789") != strlen(digits) || strlen(digits) > 18) return false;
    *ret_bytes = strtoull(digits, NULL, 10);
    return *ret_bytes > 0;
}

static qn_err_t adopt(int fd, uint64_t bytes, qn_share_t share, int32_t device, const char *fd_socket,
                      qn_mapping_t **ret_region)
{
    if (share != (bytes ? QN_SHARE_CUDA_VMM : QN_SHARE_MEMFD))
        return qn_fail(QN_ERR_INVALID, "it is %s, and memory.share has changed", bytes ? "cuda_vmm" : "memfd");
    return bytes ? qn_region_adopt_device(fd, device, bytes, fd_socket, ret_region)
                 : qn_region_adopt(fd, fd_socket, ret_region);
}

static bool take_one(int fd, const char *stored, qn_share_t share, int32_t device, const char *fd_socket,
                     qn_mapping_t **ret_region)
{
    char name[QN_NAME_MAX] = "";
    uint64_t bytes;
    qn_err_t err = parse_name(stored + strlen(PREFIX), name, &bytes)
                       ? adopt(fd, bytes, share, device, fd_socket, ret_region)
                       : qn_fail(QN_ERR_INVALID, "this is no name that memory gives");
    if (!err && strcmp(qn_region_name(*ret_region), name) == 0) return true;
    if (err) {
        qn_log_notice("the kept '%s' is dropped: %s", stored, qn_err_text());
        close(fd);
    } else {
        qn_log_notice("the kept '%s' is dropped: it calls itself '%s'", stored, qn_region_name(*ret_region));
        qn_region_close(ret_region);
    }
    forget_and_wait(stored, START_WAIT_US);
    return false;
}

size_t kept_regions_take(qn_share_t share, int32_t device, const char *fd_socket, qn_mapping_t **ret_regions,
                         size_t capacity)
{
    char **names = NULL;
    size_t taken = 0;
    int count = sd_listen_fds_with_names(0, &names);
    for (int i = 0; i < count; i++) {
        if (strncmp(names[i], PREFIX, strlen(PREFIX)) == 0 && taken < capacity &&
            take_one(SD_LISTEN_FDS_START + i, names[i], share, device, fd_socket, &ret_regions[taken]))
            taken++;
        free(names[i]);
    }
    free(names);
    return taken;
}
