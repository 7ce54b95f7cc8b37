/* What is this?      The thread that executes steps.
 * State owned:       the thread.
 * Must never:        talk to anybody but through its queue; go on after a device error.
 * Read next:         step_queue.h, executor.h. */
#include "services/compute/step_worker.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

struct step_worker {
    step_queue_t *queue;
    executor_t *executor;
    int nice;
    pthread_t thread;
};

static void run_job(step_worker_t *self, step_job_t *job)
{
    if (job->skipped) return;
    job->err = executor_run(self->executor, &job->plan, &job->result);
    if (job->err) snprintf(job->error_text, sizeof job->error_text, "%s", qn_err_text());
}

static void *worker_main(void *argument)
{
    step_worker_t *self = argument;
    /* A refused renice only costs others latency. */
    if (self->nice) setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), self->nice);
    for (step_job_t *job; (job = step_queue_take(self->queue)) != NULL;) {
        run_job(self, job);
        step_queue_finish(self->queue);
    }
    return NULL;
}

qn_err_t step_worker_start(step_queue_t *queue, executor_t *executor, int nice, step_worker_t **ret_worker)
{
    step_worker_t *self = calloc(1, sizeof *self);
    if (!self) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the step worker");
    *self = (step_worker_t){ .queue = queue, .executor = executor, .nice = nice };
    sigset_t all, before;  /* signals belong to the process's own loop */
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
