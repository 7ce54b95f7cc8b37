/* What is this?      The ring between loop and worker.
 * State owned:       the jobs, two eventfds, and four counters that only grow.
 * Must never:        block the loop; let both threads hold one job.
 * Read next:         step_worker.c (the other side), handlers.c (this side).
 *
 * released <= finished <= submitted <= released + STEP_QUEUE_JOBS. The loop writes submitted and released, the worker
 * finished; each is published with release order after what it covers. */
#include "services/compute/worker/step_queue.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/assert.h"

struct step_queue {
    step_job_t jobs[STEP_QUEUE_JOBS];
    int work_fd, done_fd;
    uint64_t released; /* the loop's alone */
    uint64_t taken;    /* the worker's alone */
    _Atomic uint64_t submitted, finished;
    _Atomic uint64_t discard_below; /* jobs numbered below are skipped */
    atomic_bool closed, nudged;
    step_task_t *given; /* the loop's alone: not yet back */
    _Atomic(step_task_t *) task;
    atomic_bool task_done;
};

static step_job_t *job_at(step_queue_t *queue, uint64_t number) { return &queue->jobs[number % STEP_QUEUE_JOBS]; }

static qn_err_t create_job(const step_limits_t *limits, step_job_t *job)
{
    size_t tops = ((size_t)limits->max_sequences + limits->max_step_tokens) * QN_ALTERNATIVES_MAX;
    qn_arena_init(&job->arena, 0);
    job->result.tokens = calloc(limits->max_sequences, sizeof *job->result.tokens);
    job->result.prompt = calloc(limits->max_step_tokens, sizeof *job->result.prompt);
    job->result.top = calloc(tops, sizeof *job->result.top);
    job->result.reads = calloc(limits->max_sequences, sizeof *job->result.reads);
    if (job->result.tokens && job->result.prompt && job->result.top && job->result.reads) return QN_OK;
    return qn_fail(QN_ERR_NO_MEMORY, "no memory for results of %u sequences and %u tokens", limits->max_sequences,
                   limits->max_step_tokens);
}

qn_err_t step_queue_create(const step_limits_t *limits, step_queue_t **ret_queue)
{
    step_queue_t *queue = calloc(1, sizeof *queue);
    if (!queue) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the step queue");
    queue->work_fd = eventfd(0, EFD_CLOEXEC);
    queue->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    qn_err_t err = QN_OK;
    if (queue->work_fd < 0 || queue->done_fd < 0)
        err = qn_fail(QN_ERR_IO, "eventfd: %s; raise the limit of open files", strerror(errno));
    for (unsigned i = 0; !err && i < STEP_QUEUE_JOBS; i++)
        err = create_job(limits, &queue->jobs[i]);
    if (err)
        step_queue_destroy(&queue);
    else
        *ret_queue = queue;
    return err;
}

void step_queue_destroy(step_queue_t **queue)
{
    step_queue_t *self = *queue;
    if (!self) return;
    for (unsigned i = 0; i < STEP_QUEUE_JOBS; i++) {
        qn_arena_fini(&self->jobs[i].arena);
        free(self->jobs[i].result.tokens);
        free(self->jobs[i].result.prompt);
        free(self->jobs[i].result.top);
        free(self->jobs[i].result.reads);
    }
    if (self->work_fd >= 0) close(self->work_fd);
    if (self->done_fd >= 0) close(self->done_fd);
    free(self);
    *queue = NULL;
}

/* The counter of an eventfd cannot overflow: one is added per job. */
static void signal_fd(int fd)
{
    uint64_t one = 1;
    ssize_t written;
    do
        written = write(fd, &one, sizeof one);
    while (written < 0 && errno == EINTR);
    QN_ASSERT(written == sizeof one);
}

/* ---- the loop's side ---- */

uint32_t step_queue_depth(const step_queue_t *queue)
{
    return (uint32_t)(atomic_load_explicit(&queue->submitted, memory_order_relaxed) - queue->released);
}

uint64_t step_queue_submitted(const step_queue_t *queue)
{
    return atomic_load_explicit(&queue->submitted, memory_order_relaxed);
}

uint64_t step_queue_released(const step_queue_t *queue) { return queue->released; }

bool step_queue_holds(const step_queue_t *queue, uint64_t owner, uint64_t step)
{
    uint64_t submitted = atomic_load_explicit(&queue->submitted, memory_order_relaxed);
    for (uint64_t number = queue->released; number < submitted; number++) {
        const step_job_t *job = &queue->jobs[number % STEP_QUEUE_JOBS];
        if (job->owner == owner && job->plan.step == step) return true;
    }
    return false;
}

step_job_t *step_queue_vacant(step_queue_t *queue)
{
    if (step_queue_depth(queue) == STEP_QUEUE_JOBS) return NULL;
    step_job_t *job = job_at(queue, atomic_load_explicit(&queue->submitted, memory_order_relaxed));
    qn_arena_reset(&job->arena);
    job->plan = (step_plan_t){0};
    job->skipped = false;
    job->failure.code = QN_OK;
    return job;
}

void step_queue_submit(step_queue_t *queue)
{
    atomic_fetch_add_explicit(&queue->submitted, 1, memory_order_release);
    signal_fd(queue->work_fd);
}

step_job_t *step_queue_finished(step_queue_t *queue)
{
    if (atomic_load_explicit(&queue->finished, memory_order_acquire) == queue->released) return NULL;
    return job_at(queue, queue->released);
}

void step_queue_release(step_queue_t *queue)
{
    QN_ASSERT(step_queue_finished(queue) != NULL);
    queue->released++;
}

void step_queue_discard(step_queue_t *queue)
{
    atomic_store_explicit(&queue->discard_below, atomic_load_explicit(&queue->submitted, memory_order_relaxed),
                          memory_order_release);
}

bool step_queue_give_task(step_queue_t *queue, step_task_t *task)
{
    if (queue->given) return false;
    queue->given = task;
    atomic_store_explicit(&queue->task_done, false, memory_order_relaxed);
    atomic_store_explicit(&queue->task, task, memory_order_release);
    signal_fd(queue->work_fd);
    return true;
}

step_task_t *step_queue_done_task(step_queue_t *queue)
{
    step_task_t *task = queue->given;
    if (!task || !atomic_load_explicit(&queue->task_done, memory_order_acquire)) return NULL;
    queue->given = NULL;
    return task;
}

int step_queue_fd(const step_queue_t *queue) { return queue->done_fd; }

void step_queue_quiet(step_queue_t *queue)
{
    uint64_t count;
    ssize_t got = read(queue->done_fd, &count, sizeof count);
    QN_ASSERT(got == sizeof count || errno == EAGAIN || errno == EINTR);
}

void step_queue_close(step_queue_t *queue)
{
    atomic_store(&queue->closed, true);
    signal_fd(queue->work_fd);
}

void step_queue_nudge(step_queue_t *queue)
{
    atomic_store(&queue->nudged, true);
    signal_fd(queue->work_fd);
}

void step_queue_tell(step_queue_t *queue) { signal_fd(queue->done_fd); }

/* ---- the worker's side ---- */

bool step_queue_closed(const step_queue_t *queue) { return atomic_load(&queue->closed); }

step_job_t *step_queue_take(step_queue_t *queue, bool wait)
{
    for (;;) {
        if (atomic_load(&queue->closed)) return NULL;
        if (atomic_load_explicit(&queue->submitted, memory_order_acquire) != queue->taken) break;
        if (!wait || step_queue_task(queue) || atomic_exchange(&queue->nudged, false)) return NULL;
        uint64_t count;
        ssize_t got = read(queue->work_fd, &count, sizeof count);
        QN_ASSERT(got == sizeof count || errno == EINTR);
    }
    step_job_t *job = job_at(queue, queue->taken);
    job->skipped = queue->taken++ < atomic_load_explicit(&queue->discard_below, memory_order_acquire);
    return job;
}

void step_queue_finish(step_queue_t *queue)
{
    atomic_fetch_add_explicit(&queue->finished, 1, memory_order_release);
    signal_fd(queue->done_fd);
}

step_task_t *step_queue_task(const step_queue_t *queue)
{
    return atomic_load_explicit((_Atomic(step_task_t *) *)(uintptr_t)&queue->task, memory_order_acquire);
}

void step_queue_finish_task(step_queue_t *queue)
{
    atomic_store_explicit(&queue->task, NULL, memory_order_relaxed);
    atomic_store_explicit(&queue->task_done, true, memory_order_release);
    signal_fd(queue->done_fd);
}

bool step_queue_is_closed(const step_queue_t *queue) { return atomic_load((atomic_bool *)(uintptr_t)&queue->closed); }
