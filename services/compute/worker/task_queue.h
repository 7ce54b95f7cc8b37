/* The task queue: work of people (tensors, say) that the worker thread does between steps, a slice of about a millisecond at
 * a time, in order. The loop adds tasks and takes those that have finished. Bounded. */
#ifndef QN_COMPUTE_WORKER_TASK_QUEUE_H
#define QN_COMPUTE_WORKER_TASK_QUEUE_H

#include <stdbool.h>

#include "common/err.h"
#include "kernels/kernels.h"

#define TASKS_MAX 8

typedef struct task task_t;
typedef struct task_queue task_queue_t;

/* Embedded first in what the task is about, which lives until it is taken back. */
struct task {
    /* On the worker: does a slice; true: that was the last. */
    bool (*slice)(task_t *task, qn_stream_t *stream);
    task_t *next;
};

/* Returns owned. QN_ERR_NO_MEMORY. */
qn_err_t task_queue_create(task_queue_t **ret_queue);
/* No worker runs it, and nothing is in it. */
void task_queue_destroy(task_queue_t **queue);

/* ---- the loop's side ---- */

/* False: TASKS_MAX are there. The caller nudges the worker. */
bool task_queue_add(task_queue_t *queue, task_t *task);
/* The oldest that has finished, or NULL. */
task_t *task_queue_finished(task_queue_t *queue);
/* No worker runs: one that has not finished, or NULL. */
task_t *task_queue_withdraw(task_queue_t *queue);

/* ---- the worker's side ---- */

bool task_queue_pending(const task_queue_t *queue);
/* A slice of the oldest. True: it was its last, and the loop should look. */
bool task_queue_run(task_queue_t *queue, qn_stream_t *stream);

#endif
