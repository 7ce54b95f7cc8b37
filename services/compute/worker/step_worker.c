/* What is this?      The thread that executes steps.
 * State owned:       the thread.
 * Must never:        talk to anybody but through its queue; go on after a device error.
 * Read next:         step_queue.h, executor.h. */
#include "services/compute/worker/step_worker.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/failpoint.h"

struct step_worker {
    step_queue_t *queue;
    executor_t *executor;
    int nice;
    unsigned steps_in_flight;
    task_queue_t *tasks;
    qn_stream_t *task_stream;
    pthread_t thread;
};

/* Jobs taken and not yet finished, oldest first. */
typedef struct {
    step_job_t *jobs[STEP_QUEUE_JOBS];
    unsigned count;
} flight_t;

static void begin(step_worker_t *self, step_job_t *job)
{
    if (QN_FAILPOINT_IDS(QN_FAILPOINT_COMPUTE_BEFORE_STEP, job->plan.ids, job->plan.id_count))
        qn_failure_keep(&job->failure, qn_fail(QN_ERR_DEVICE, "a failpoint failed the step before it began"));
    executor_submit(self->executor, &job->plan, &job->result);
}

static void finish_oldest(step_worker_t *self, flight_t *flight)
{
    step_job_t *job = flight->jobs[0];
    qn_err_t err = job->skipped ? QN_OK : executor_finish(self->executor);
    if (!err && !job->skipped && QN_FAILPOINT_IDS(QN_FAILPOINT_COMPUTE_AFTER_STEP, job->plan.ids, job->plan.id_count))
        err = qn_fail(QN_ERR_DEVICE, "a failpoint failed the step");
    if (err) qn_failure_keep(&job->failure, err);
    memmove(flight->jobs, flight->jobs + 1, --flight->count * sizeof *flight->jobs);
    step_queue_finish(self->queue);
}

/* What else there is to do; a step never waits for more than a slice of it. */
static void run_task(step_worker_t *self)
{
    if (self->tasks && task_queue_run(self->tasks, self->task_stream)) step_queue_tell(self->queue);
}

/* While the device works, this thread looks for the next plan and for the end of the oldest step in turn, without
 * sleeping: a plan that comes late leaves the device idle for as long as somebody takes to notice. It gives way each
 * time: the kernel may have put a thread that carries messages on this core. */
static void *worker_main(void *argument)
{
    step_worker_t *self = argument;
    flight_t flight = {.count = 0};
    /* A refused renice only costs others latency. */
    if (self->nice) setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), self->nice);
    for (;;) {
        step_task_t *task = step_queue_task(self->queue);
        bool rests = task && flight.count == 0 && !task->run(task, self->executor);
        if (task && flight.count == 0 && !rests) step_queue_finish_task(self->queue);
        bool room = flight.count < self->steps_in_flight && !(task && flight.count); /* those in flight end first */
        bool idle = flight.count == 0;
        bool waits = idle && !rests && !(self->tasks && task_queue_pending(self->tasks));
        step_job_t *job = room ? step_queue_take(self->queue, waits) : NULL;
        if (job) {
            if (!job->skipped) begin(self, job);
            flight.jobs[flight.count++] = job;
        } else if (idle) {
            if (step_queue_closed(self->queue)) return NULL;
            run_task(self);
            continue;
        }
        if (flight.jobs[0]->skipped || executor_is_done(self->executor)) {
            finish_oldest(self, &flight);
            run_task(self);
        } else
            sched_yield();
    }
}

qn_err_t step_worker_start(step_queue_t *queue, executor_t *executor, const step_worker_options_t *options,
                           step_worker_t **ret_worker)
{
    QN_ASSERT(options->steps_in_flight >= 1 && options->steps_in_flight <= STEP_QUEUE_JOBS);
    step_worker_t *self = calloc(1, sizeof *self);
    if (!self) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the step worker");
    *self = (step_worker_t){.queue = queue,
                            .executor = executor,
                            .nice = options->nice,
                            .steps_in_flight = options->steps_in_flight,
                            .tasks = options->tasks,
                            .task_stream = options->task_stream};
    sigset_t all, before; /* signals belong to the process's own loop */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = pthread_create(&self->thread, NULL, worker_main, self);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure) {
        free(self);
        return qn_fail(QN_ERR_IO, "cannot start the step worker: %s", strerror(failure));
    }
    *ret_worker = self;
    return QN_OK;
}

void step_worker_stop(step_worker_t **worker)
{
    if (!*worker) return;
    step_queue_close((*worker)->queue);
    pthread_join((*worker)->thread, NULL);
    free(*worker);
    *worker = NULL;
}
