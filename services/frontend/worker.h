/* One thread beside the loop, for work that would hold up running streams: parsing large bodies, writing large replies.
 * The loop gives work in and takes it back; nothing else is shared. */
#ifndef QN_FRONTEND_WORKER_H
#define QN_FRONTEND_WORKER_H

#include "common/err.h"

/* The head of the caller's own struct. */
typedef struct work {
    void (*run)(struct work *work); /* on the worker's thread; touches nothing but the work */
    struct work *next;
} work_t;

typedef struct worker worker_t;

/* Returns owned. */
qn_err_t worker_create(worker_t **ret_worker);
/* Waits for the work in hand and ends the thread; what was not done is to be taken back, too. Harmless when repeated. */
void worker_stop(worker_t *worker);
/* Stops it; all work has been taken back. Accepts NULL. */
void worker_destroy(worker_t **worker);
/* Readable when there is something to take. */
int worker_fd(const worker_t *worker);
void worker_give(worker_t *worker, work_t *work);
/* Work that is done, oldest first, or NULL. */
work_t *worker_take(worker_t *worker);

#endif
