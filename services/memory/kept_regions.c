/* What is this?      Which regions the service manager keeps for the next life, and under which name.
 * State owned:       none; descriptors belong to the mappings and to the service manager.
 * Must never:        decide whether a kept region is still right: its header and the loader do.
 * Read next:         common/daemon/fd_store.h. */
#include "services/memory/kept_regions.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/daemon/fd_store.h"
#include "common/watch/log.h"

#define PREFIX "region."
#define STORED_NAME_MAX QN_FD_NAME_MAX
#define START_WAIT_US 1000000u /* before there is a loop */
#define LOOP_WAIT_US 20000u    /* what a loop may stand still: a manager that is there answers within one */

/* ---- to the store ---- */

static bool is_stored(const qn_mapping_t *region)
{
    return qn_region_share(region) != QN_SHARE_CUDA_IPC && qn_fd_store_is_there();
}

static void stored_name(const qn_mapping_t *region, char ret_name[static STORED_NAME_MAX])
{
    if (qn_region_share(region) == QN_SHARE_MEMFD)
        snprintf(ret_name, STORED_NAME_MAX, PREFIX "%s", qn_region_name(region));
    else
        snprintf(ret_name, STORED_NAME_MAX, PREFIX "%s@%" PRIu64, qn_region_name(region), qn_region_bytes(region));
}

/* The bytes of a device may be needed at once. */
static void forget(const char *stored, uint64_t wait_us)
{
    if (strchr(stored, '@'))
        qn_fd_store_drop_and_wait(stored, wait_us);
    else
        qn_fd_store_drop(stored);
}

void kept_regions_drop(const qn_mapping_t *region)
{
    char stored[STORED_NAME_MAX];
    if (!is_stored(region)) return;
    stored_name(region, stored);
    forget(stored, LOOP_WAIT_US);
}

void kept_regions_put(const qn_mapping_t *region)
{
    char stored[STORED_NAME_MAX];
    if (!is_stored(region)) return;
    stored_name(region, stored);
    qn_fd_store_drop(stored);
    /* systemd lets go of a descriptor that polls as hung up, and what a driver's file says there means nothing. */
    int status = qn_fd_store_put(stored, qn_region_fd(region), qn_region_share(region) == QN_SHARE_MEMFD);
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

/* The workspace is host memory, whatever the others are in. */
static qn_err_t adopt(int fd, const char *name, uint64_t bytes, qn_share_t share, int32_t device, const char *fd_socket,
                      qn_mapping_t **ret_region)
{
    bool workspace = strcmp(name, KEPT_WORKSPACE) == 0 && !bytes;
    if (!workspace && share != (bytes ? QN_SHARE_CUDA_VMM : QN_SHARE_MEMFD))
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
                       ? adopt(fd, name, bytes, share, device, fd_socket, ret_region)
                       : qn_fail(QN_ERR_INVALID, "this is no name that memory gives");
    if (!err && strcmp(qn_region_name(*ret_region), name) == 0) return true;
    if (err) {
        qn_log_notice("the kept '%s' is dropped: %s", stored, qn_err_text());
        close(fd);
    } else {
        qn_log_notice("the kept '%s' is dropped: it calls itself '%s'", stored, qn_region_name(*ret_region));
        qn_region_close(ret_region);
    }
    forget(stored, START_WAIT_US);
    return false;
}

typedef struct {
    qn_share_t share;
    int32_t device;
    const char *fd_socket;
    qn_mapping_t **regions;
    size_t capacity, taken;
} adoption_t;

static void take_next(void *context, int fd, const char *stored)
{
    adoption_t *a = context;
    if (a->taken < a->capacity && take_one(fd, stored, a->share, a->device, a->fd_socket, &a->regions[a->taken]))
        a->taken++;
}

size_t kept_regions_take(qn_share_t share, int32_t device, const char *fd_socket, qn_mapping_t **ret_regions,
                         size_t capacity)
{
    adoption_t adoption = {share, device, fd_socket, ret_regions, capacity, 0};
    qn_fd_store_each(PREFIX, take_next, &adoption);
    return adoption.taken;
}
