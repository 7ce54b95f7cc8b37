/* Errands: what takes long (files, copies) and must not hold up the loop, one after the other on a thread of their own.
 * Bounded. The loop adds and finishes; the thread runs. */
#ifndef QN_MEMORY_ERRANDS_H
#define QN_MEMORY_ERRANDS_H

#include <stdbool.h>

#include "common/err.h"

#define ERRANDS_MAX 8 /* waiting, running and finished together */

typedef struct errands errands_t;
typedef struct errand errand_t;

/* Embedded first in what the errand is about, which its owner keeps until `done`. */
struct errand {
    qn_err_t (*run)(errand_t *errand); /* on the thread; what it returns is kept in `failure` */
    void (*done)(errand_t *errand);    /* on the loop's thread; frees it, say */
    const errands_t *errands;          /* filled in by errands_add */
    qn_failure_t failure;
    errand_t *next;
};

/* Starts the thread. Failure: QN_ERR_NO_MEMORY, QN_ERR_IO. Returns owned. */
qn_err_t errands_create(errands_t **ret_errands);
/* Tells the errand that runs to give up, waits for it, and calls `done` of all: those that never ran failed. */
void errands_destroy(errands_t **errands);
/* Takes the errand until its `done`. False: ERRANDS_MAX are there, and it was not taken. */
bool errands_add(errands_t *errands, errand_t *errand);
/* Readable when one has finished; borrowed. */
int errands_fd(const errands_t *errands);
/* Calls `done` of those that have finished. */
void errands_finish(errands_t *errands);
/* For `run`: whether to give up. Any thread. */
bool errands_cancelled(const errand_t *errand);

#endif
