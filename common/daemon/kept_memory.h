/* Shared memory that outlives the process: a memfd that the service manager's descriptor store keeps (fd_store.h). The next
 * process gets the same bytes, whatever instruction the last one died at. Without a service manager it is new each time. */
#ifndef QN_COMMON_DAEMON_KEPT_MEMORY_H
#define QN_COMMON_DAEMON_KEPT_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

typedef struct {
    void *base; /* page-aligned, sparse, zeroed when new; NULL: not open */
    size_t bytes;
    int fd;
    bool inherited; /* from a process before this one */
    bool kept;      /* the service manager has it: it survives */
} qn_kept_memory_t;

/* The memory that an earlier life left under `name`, or new memory of `bytes`, given to the service manager. Inherited
 * memory of another size is dropped, with a warning. QN_ERR_IO: no memfd, or no mapping. */
qn_err_t qn_kept_memory_open(const char *name, size_t bytes, qn_kept_memory_t *ret_memory);
/* Unmaps and closes; what the service manager keeps stays. */
void qn_kept_memory_close(qn_kept_memory_t *memory);

#endif
