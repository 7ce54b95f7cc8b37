/* The shared memory the ledger lies in: a memfd. The service manager (systemd, or `quintet up`) keeps its descriptor
 * while the scheduler is dead, so that the next one finds every request; without a service manager it dies with us. */
#ifndef QN_SCHEDULER_LEDGER_LEDGER_MEMORY_H
#define QN_SCHEDULER_LEDGER_LEDGER_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

typedef struct {
    void *base;
    size_t bytes;
    int fd;
    bool inherited; /* from the service manager: there may be requests in it */
    bool kept;      /* a service manager holds it: it outlives this process */
} ledger_memory_t;

/* Maps the descriptor named "ledger" that the service manager passed, or a new memfd of `bytes` (sparse: pages are
 * taken when written), which is then given to the service manager when there is one. QN_ERR_IO. */
qn_err_t ledger_memory_open(size_t bytes, ledger_memory_t *ret_memory);
/* Unmaps and closes; accepts a zeroed one. */
void ledger_memory_close(ledger_memory_t *memory);

#endif
