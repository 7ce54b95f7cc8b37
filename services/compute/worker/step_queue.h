/* The step queue: a bounded ring of jobs between the daemon's loop, which submits plans and takes results, and the
 * worker thread, which runs them in order. One thread on each side. A job stays in its place from submission until the
 * loop has released it: plan and result are never copied. Each side wakes the other through an eventfd. */
#ifndef QN_COMPUTE_WORKER_STEP_QUEUE_H
#define QN_COMPUTE_WORKER_STEP_QUEUE_H

#include "common/arena.h"
#include "common/err.h"
#include "services/compute/worker/step.h"

/* Plans that may wait: a scheduler with lookahead 1 has two in flight; the rest is room for one that restarts. */
#define STEP_QUEUE_JOBS 4

typedef struct {
    qn_arena_t arena; /* holds the plan's arrays; reset when the place is filled again */
    step_plan_t plan;
    step_result_t result;
    uint64_t owner;       /* the submitter's, to know whether anybody still wants the result */
    bool skipped;         /* discarded before it began; result means nothing */
    qn_failure_t failure; /* of the run */
} step_job_t;

/* Work beside the steps, one at a time, run while none is in flight; the first member of whoever gives it. */
typedef struct step_task {
    bool (*run)(struct step_task *task, void *executor); /* on the worker's thread; false: it wants to go on after the
                                                            next step */
} step_task_t;

typedef struct step_queue step_queue_t;

/* Takes all memory that results will need. Returns owned. Failure: QN_ERR_NO_MEMORY, QN_ERR_IO. */
qn_err_t step_queue_create(const step_limits_t *limits, step_queue_t **ret_queue);
/* After the worker has ended. */
void step_queue_destroy(step_queue_t **queue);

/* ---- the loop's side; never blocks ---- */

/* Returns view of a free place with an empty arena, NULL when the queue is full. Nothing happens until submit. */
step_job_t *step_queue_vacant(step_queue_t *queue);
/* Hands the vacant job over. */
void step_queue_submit(step_queue_t *queue);
/* Returns view of the oldest finished job, NULL when there is none. */
step_job_t *step_queue_finished(step_queue_t *queue);
/* Frees the place of the oldest finished job. */
void step_queue_release(step_queue_t *queue);
/* Jobs that have not begun will come back skipped; the one that runs finishes. */
void step_queue_discard(step_queue_t *queue);
/* Whether this step of this owner waits or runs here, or its result waits to be released. */
bool step_queue_holds(const step_queue_t *queue, uint64_t owner, uint64_t step);
/* Submitted and not yet released. */
uint32_t step_queue_depth(const step_queue_t *queue);
/* Jobs submitted, and released, since the beginning: what was submitted before is over when so many are released. */
uint64_t step_queue_submitted(const step_queue_t *queue);
uint64_t step_queue_released(const step_queue_t *queue);
/* Hands a task over; the giver keeps it until it comes back. false: there is one already. */
bool step_queue_give_task(step_queue_t *queue, step_task_t *task);
/* Returns the task that has been run, once; NULL: none, or not yet. */
step_task_t *step_queue_done_task(step_queue_t *queue);
/* Readable when a job or a task has finished; step_queue_quiet makes it unreadable again. Borrowed. */
int step_queue_fd(const step_queue_t *queue);
void step_queue_quiet(step_queue_t *queue);
/* The worker looks for other work than jobs: one take that waits returns NULL. Any thread. */
void step_queue_nudge(step_queue_t *queue);
/* Makes step_queue_fd readable, as a job that finishes does. Any thread. */
void step_queue_tell(step_queue_t *queue);
/* The worker's take returns NULL from now on. Any thread. */
void step_queue_close(step_queue_t *queue);

/* ---- the worker's side ---- */

bool step_queue_closed(const step_queue_t *queue);
/* The next job; several may be taken before the first is finished. With `wait` blocks until there is one. NULL: there is
 * none, the queue is closed, or it was nudged. */
step_job_t *step_queue_take(step_queue_t *queue, bool wait);
/* The oldest job taken is done. */
void step_queue_finish(step_queue_t *queue);
/* Returns view of the task that waits to be run, or NULL; take() does not block while there is one. */
step_task_t *step_queue_task(const step_queue_t *queue);
void step_queue_finish_task(step_queue_t *queue);

#endif
