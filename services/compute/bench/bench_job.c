/* What is this?      The thread of a benchmark, and the errands it sends to the worker.
 * State owned:       the thread, the case at hand, the results.
 * Must never:        launch anything itself on the stream that serves; keep the worker for longer than one measurement.
 * Read next:         kernel_runner.h, services/compute/worker/step_queue.h. */
#include "services/compute/bench/bench_job.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/clock.h"
#include "kernels/loaded.h"
#include "services/compute/bench/kernel_runner.h"

/* A launch of the plain implementation of more operations takes longer than people wait; the second: than requests should. */
#define REFERENCE_OPERATIONS_MAX 2e7
#define REFERENCE_OPERATIONS_MAX_DEVICE 2e10
#define ASKED_REFERENCE_OPERATIONS_MAX 1e9
#define NICE 10
#define SPEED_BUFFER_LEAST (UINT64_C(64) << 20)
#define SPEED_BUFFER_MOST (UINT64_C(512) << 20)

struct bench_job {
    bench_spec_t spec;
    qn_kernel_set_t only;
    pthread_t thread;
    int fd;
    atomic_bool done, stopped;
    kernel_runner_t *runner;
    kernel_case_t made;
    qn_failure_t failure;
    bool complete;
    bench_case_result_t cases[BENCH_JOB_CASES_MAX];
    bench_row_t rows[BENCH_JOB_ROWS_MAX];
    size_t row_count;
};

/* ---- on the worker's thread ---- */

typedef struct {
    bench_job_t *job;
    qn_err_t (*work)(bench_job_t *job, bench_row_t *row);
    bench_row_t *row;
    sem_t ended;
    qn_failure_t failure;
} visit_t;

static void visit(void *context, struct executor *executor)
{
    visit_t *v = context;
    qn_err_t err =
        executor ? v->work(v->job, v->row) : qn_fail(QN_ERR_NOT_FOUND, "compute lost its model meanwhile; try again");
    if (err) qn_failure_keep(&v->failure, err);
    sem_post(&v->ended);
}

/* Has `work` done by the worker and waits for it. */
static qn_err_t on_worker(bench_job_t *job, qn_err_t (*work)(bench_job_t *, bench_row_t *), bench_row_t *row)
{
    visit_t v = {.job = job, .work = work, .row = row};
    sem_init(&v.ended, 0, 0);
    while (!step_queue_send(job->spec.queue, (step_errand_t){visit, &v})) {
        if (atomic_load(&job->stopped)) return qn_fail(QN_ERR_NOT_FOUND, "the benchmark was ended");
        usleep(10000); /* other errands wait */
    }
    while (sem_wait(&v.ended) != 0 && errno == EINTR)
        ;
    sem_destroy(&v.ended);
    return v.failure.code ? qn_failure_raise(&v.failure) : QN_OK;
}

static qn_err_t take(bench_job_t *job, bench_row_t *row)
{
    (void)row;
    return kernel_runner_take(job->runner, &job->made);
}

static qn_err_t leave(bench_job_t *job, bench_row_t *row)
{
    (void)row;
    kernel_runner_leave(job->runner);
    return QN_OK;
}

static qn_err_t check(bench_job_t *job, bench_row_t *row) { return kernel_runner_check(job->runner, row->kernel); }

static qn_err_t measure(bench_job_t *job, bench_row_t *row)
{
    bench_time_t time = {0};
    qn_err_t err = kernel_runner_time(job->runner, row->kernel, job->spec.seconds, &time);
    row->best_s = time.best_s, row->median_s = time.median_s, row->rounds = time.rounds;
    return err;
}

static qn_err_t measure_machine(bench_job_t *job, bench_row_t *row)
{
    (void)row;
    machine_speed_t *speed = &job->spec.speed;
    uint64_t bytes = 2 * machine_cache_bytes();
    bytes = bytes < SPEED_BUFFER_LEAST ? SPEED_BUFFER_LEAST : bytes > SPEED_BUFFER_MOST ? SPEED_BUFFER_MOST : bytes;
    return machine_speed_measure(qn_stream_threads(job->spec.stream), bytes, speed);
}

/* ---- the thread ---- */

static bool runs_here(const bench_job_t *job, const qn_kernel_t *kernel)
{
    const kernel_case_t *made = &job->made;
    const char *asked = job->spec.implementation;
    uint32_t formats = qn_kernel_formats(kernel);
    if (kernel->op != made->op || kernel->isa & ~job->spec.isa) return false;
    if (asked[0] && strcmp(asked, kernel->name) != 0) return false;
    if (job->spec.only && job->only.chosen[made->op] != kernel) return false;
    if (formats && !(formats & 1u << made->scalar)) return false;
    return !kernel->accepts || kernel->accepts(&made->needs);
}

static bool takes_too_long(const bench_job_t *job, const qn_kernel_t *kernel)
{
    bool device = kernel_runner_info(job->runner)->device;
    double most = device                        ? REFERENCE_OPERATIONS_MAX_DEVICE
                  : job->spec.implementation[0] ? ASKED_REFERENCE_OPERATIONS_MAX
                                                : REFERENCE_OPERATIONS_MAX;
    return strcmp(kernel->name, "reference") == 0 && job->made.operations > most;
}

static qn_err_t run_kernel(bench_job_t *job, size_t index, const qn_kernel_t *kernel)
{
    if (job->row_count == BENCH_JOB_ROWS_MAX) return QN_OK;
    bench_row_t *row = &job->rows[job->row_count++];
    *row = (bench_row_t){.case_index = index, .kernel = kernel, .tolerance = kernel_tolerance(&job->made)};
    if (takes_too_long(job, kernel)) {
        snprintf(row->note, sizeof row->note, "not run: the plain implementation would take too long for this shape");
        return QN_OK;
    }
    qn_err_t err = on_worker(job, check, row);
    if (err) return err;
    row->error = kernel_case_error(&job->made);
    row->right = row->error <= row->tolerance;
    if (!row->right) {
        bool finite = isfinite(row->error);
        snprintf(row->note, sizeof row->note, finite ? "not within the tolerance of this shape" : "wrong numbers");
    }
    row->timed = isfinite(row->error);
    return row->timed ? on_worker(job, measure, row) : QN_OK;
}

static qn_err_t run_case(bench_job_t *job, size_t index)
{
    const bench_case_t *one = &job->spec.cases[index];
    const kernel_runner_info_t *info = kernel_runner_info(job->runner);
    bench_case_result_t *result = &job->cases[index];
    kernel_case_target_t target = {.device = info->device,
                                   .activations = info->activations,
                                   .rotated_bytes = 3 * job->spec.speed.cache_bytes,
                                   .memory_max = BENCH_JOB_MEMORY_MAX};
    kernel_wish_t wish = {.op = one->op,
                          .shape = &job->spec.shape,
                          .tokens = one->tokens,
                          .context = one->context,
                          .sequences = one->sequences,
                          .scalar = one->scalar,
                          .part = one->part};
    qn_err_t err = kernel_case_make_wish(&wish, &target, &job->made);
    if (!err) err = kernel_runner_compute_exact(job->runner, &job->made);
    if (!err) err = info->device ? on_worker(job, take, NULL) : take(job, NULL);
    snprintf(result->shape, sizeof result->shape, "%s", job->made.shape);
    result->scalar = one->scalar, result->bytes = job->made.bytes, result->operations = job->made.operations;
    result->from_memory = job->made.bytes * (double)job->made.copies > 1.5 * (double)job->spec.speed.cache_bytes;
    for (size_t list = 0; list < 2; list++)
        for (size_t i = 0; !err && i < job->spec.kernel_count[list]; i++) {
            const qn_kernel_t *kernel = &job->spec.kernels[list][i];
            if (atomic_load(&job->stopped)) err = qn_fail(QN_ERR_NOT_FOUND, "the benchmark was ended");
            if (!err && runs_here(job, kernel)) err = run_kernel(job, index, kernel);
        }
    if (info->device && job->made.arguments) {
        qn_err_t left = on_worker(job, leave, NULL);
        if (!err) err = left;
    } else {
        kernel_runner_leave(job->runner);
    }
    kernel_case_free(&job->made);
    result->done = !err;
    return err;
}

static qn_err_t run_cases(bench_job_t *job)
{
    uint64_t begin_ns = qn_clock_now_ns();
    qn_err_t err = QN_OK;
    for (size_t i = 0; !err && i < job->spec.case_count; i++) {
        double seconds = (double)(qn_clock_now_ns() - begin_ns) * 1e-9;
        if (job->spec.max_seconds > 0 && seconds > job->spec.max_seconds) return QN_OK;
        err = run_case(job, i);
    }
    job->complete = !err;
    return err;
}

static qn_err_t know_machine(bench_job_t *job)
{
    const kernel_runner_info_t *info = kernel_runner_info(job->runner);
    machine_speed_t *speed = &job->spec.speed;
    if (info->device) {
        machine_speed_of_gpu(info->device_name, speed);
        return QN_OK;
    }
    return speed->threads ? QN_OK : on_worker(job, measure_machine, NULL);
}

static void *job_main(void *argument)
{
    bench_job_t *job = argument;
    kernel_runner_options_t options = {.stream = job->spec.stream,
                                       .exact_threads = 1,
                                       .deterministic = job->spec.config->compute.deterministic,
                                       .activations = &job->spec.activations};
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE); /* a refusal costs requests a little time */
    qn_err_t err = kernel_runner_open(job->spec.config, &options, &job->runner);
    if (!err) err = know_machine(job);
    if (!err) err = run_cases(job);
    if (err) qn_failure_keep(&job->failure, err);
    kernel_runner_close(&job->runner);
    atomic_store(&job->done, true);
    uint64_t one = 1;
    ssize_t written = write(job->fd, &one, sizeof one);
    QN_ASSERT(written == sizeof one);
    return NULL;
}

/* ---- the loop's side ---- */

qn_err_t bench_job_start(const bench_spec_t *spec, bench_job_t **ret_job)
{
    bench_job_t *job = calloc(1, sizeof *job);
    if (!job) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a benchmark");
    job->spec = *spec;
    if (spec->only) job->only = *spec->only;
    job->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    sigset_t all, before; /* signals belong to the process's own loop */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = job->fd < 0 ? errno : pthread_create(&job->thread, NULL, job_main, job);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failure) {
        *ret_job = job;
        return QN_OK;
    }
    if (job->fd >= 0) close(job->fd);
    free(job);
    return qn_fail(QN_ERR_IO, "cannot start a benchmark: %s", strerror(failure));
}

int bench_job_fd(const bench_job_t *job) { return job->fd; }

bool bench_job_is_done(const bench_job_t *job) { return atomic_load(&job->done); }

void bench_job_stop(bench_job_t **job)
{
    bench_job_t *self = *job;
    if (!self) return;
    atomic_store(&self->stopped, true);
    pthread_join(self->thread, NULL);
    close(self->fd);
    free(self);
    *job = NULL;
}

const qn_failure_t *bench_job_failure(const bench_job_t *job) { return &job->failure; }
const bench_spec_t *bench_job_spec(const bench_job_t *job) { return &job->spec; }
const bench_case_result_t *bench_job_case(const bench_job_t *job, size_t index) { return &job->cases[index]; }
const machine_speed_t *bench_job_speed(const bench_job_t *job) { return &job->spec.speed; }
bool bench_job_is_complete(const bench_job_t *job) { return job->complete; }

const bench_row_t *bench_job_rows(const bench_job_t *job, size_t *ret_count)
{
    *ret_count = job->row_count;
    return job->rows;
}
