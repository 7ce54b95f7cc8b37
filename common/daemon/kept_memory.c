/* What is this?      Bytes that survive the process: memfd and the service manager's descriptor store.
 * State owned:       none; the mapping and its descriptor are the caller's.
 * Must never:        look at the content; the caller judges it.
 * Read next:         fd_store.h; the scheduler's ledger, memory's choice of policies (who uses it). */
#include "common/daemon/kept_memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/daemon/fd_store.h"
#include "common/watch/log.h"

static void store(const char *name, qn_kept_memory_t *memory)
{
    int status = qn_fd_store_put(name, memory->fd, true);
    memory->kept = status > 0;
    if (status < 0)
        qn_log_warning("the %s could not be given to the service manager: %s; it will not survive a restart", name,
                       strerror(-status));
}

static qn_err_t map(const char *name, qn_kept_memory_t *memory)
{
    memory->base = mmap(NULL, memory->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory->fd, 0);
    if (memory->base != MAP_FAILED) return QN_OK;
    memory->base = NULL;
    return qn_fail(QN_ERR_IO, "%s: cannot map %zu bytes: %s", name, memory->bytes, strerror(errno));
}

qn_err_t qn_kept_memory_open(const char *name, size_t bytes, qn_kept_memory_t *ret_memory)
{
    qn_kept_memory_t memory = {.fd = qn_fd_store_find(name), .bytes = bytes};
    struct stat status;
    memory.inherited = memory.fd >= 0 && fstat(memory.fd, &status) == 0 && status.st_size == (off_t)bytes;
    if (memory.fd >= 0 && !memory.inherited) {
        qn_log_warning("the inherited %s is not %zu bytes long: it is dropped", name, bytes);
        qn_fd_store_drop(name);
        close(memory.fd);
    }
    if (!memory.inherited) {
        memory.fd = memfd_create(name, MFD_CLOEXEC);
        if (memory.fd < 0 || ftruncate(memory.fd, (off_t)bytes) < 0) {
            qn_err_t err = qn_fail(QN_ERR_IO, "%s: cannot make a memfd of %zu bytes: %s", name, bytes, strerror(errno));
            if (memory.fd >= 0) close(memory.fd);
            return err;
        }
    }
    qn_err_t err = map(name, &memory);
    if (err < 0) {
        close(memory.fd);
        return err;
    }
    if (memory.inherited)
        memory.kept = qn_fd_store_is_there();
    else
        store(name, &memory);
    *ret_memory = memory;
    return QN_OK;
}

void qn_kept_memory_close(qn_kept_memory_t *memory)
{
    if (memory->base != NULL) {
        munmap(memory->base, memory->bytes);
        close(memory->fd);
    }
    *memory = (qn_kept_memory_t){.fd = -1};
}
