/* What is this?      How the ledger's bytes survive the process: memfd and the service manager's descriptor store.
 * State owned:       the mapping and its descriptor.
 * Must never:        look at the content; ledger.c judges it.
 * Read next:         ledger.c; common/daemon/fd_store.h. */
#include "services/scheduler/ledger/ledger_memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/daemon/fd_store.h"
#include "common/watch/log.h"

#define NAME "ledger"

static void store(ledger_memory_t *memory)
{
    int status = qn_fd_store_put(NAME, memory->fd, true);
    memory->kept = status > 0;
    if (status < 0)
        qn_log_warning("the ledger could not be given to the service manager: %s; requests will not survive a restart",
                       strerror(-status));
}

static qn_err_t map(ledger_memory_t *memory)
{
    memory->base = mmap(NULL, memory->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory->fd, 0);
    if (memory->base != MAP_FAILED) return QN_OK;
    memory->base = NULL;
    return qn_fail(QN_ERR_IO, "ledger: cannot map %zu bytes: %s", memory->bytes, strerror(errno));
}

qn_err_t ledger_memory_open(size_t bytes, ledger_memory_t *ret_memory)
{
    ledger_memory_t memory = {.fd = qn_fd_store_find(NAME), .bytes = bytes};
    struct stat status;
    memory.inherited = memory.fd >= 0 && fstat(memory.fd, &status) == 0 && status.st_size == (off_t)bytes;
    if (memory.fd >= 0 && !memory.inherited) {
        qn_log_warning("the inherited ledger is not %zu bytes long: it is dropped", bytes);
        qn_fd_store_drop(NAME);
        close(memory.fd);
    }
    if (!memory.inherited) {
        memory.fd = memfd_create("quintet-ledger", MFD_CLOEXEC);
        if (memory.fd < 0 || ftruncate(memory.fd, (off_t)bytes) < 0) {
            qn_err_t err = qn_fail(QN_ERR_IO, "ledger: cannot make a memfd of %zu bytes: %s", bytes, strerror(errno));
            if (memory.fd >= 0) close(memory.fd);
            return err;
        }
    }
    qn_err_t err = map(&memory);
    if (err < 0) {
        close(memory.fd);
        return err;
    }
    if (memory.inherited)
        memory.kept = qn_fd_store_is_there();
    else
        store(&memory);
    *ret_memory = memory;
    return QN_OK;
}

void ledger_memory_close(ledger_memory_t *memory)
{
    if (memory->base != NULL) {
        munmap(memory->base, memory->bytes);
        close(memory->fd);
    }
    *memory = (ledger_memory_t){.fd = -1};
}
