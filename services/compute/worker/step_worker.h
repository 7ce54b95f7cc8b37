/* The step worker: the thread that runs the jobs of a step queue, in order, so that the daemon's loop keeps
 * answering while a step computes. */
#ifndef QN_COMPUTE_WORKER_STEP_WORKER_H
#define QN_COMPUTE_WORKER_STEP_WORKER_H

#include "common/err.h"
#include "services/compute/executor/executor.h"
#include "services/compute/worker/step_queue.h"
#include "services/compute/worker/task_queue.h"

typedef struct step_worker step_worker_t;

typedef struct {
    int nice;                 /* below the loop's priority: control traffic goes first */
    unsigned steps_in_flight; /* the backend's: submitted to the device before the first of them is done */
    task_queue_t *tasks;      /* kept until stop: run a slice at a time between steps; NULL: none */
    qn_stream_t *task_stream; /* of the CPU, for them */
} step_worker_options_t;

/* Starts the thread. Keeps a reference to queue and executor until stop. Returns owned. Failure: QN_ERR_NO_MEMORY,
 * QN_ERR_IO. */
qn_err_t step_worker_start(step_queue_t *queue, executor_t *executor, const step_worker_options_t *options,
                           step_worker_t **ret_worker);
/* Closes the queue and waits for the steps that run. */
void step_worker_stop(step_worker_t **worker);

#endif
