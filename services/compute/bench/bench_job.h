/* A benchmark beside serving: a thread of low priority that makes cases and computes what is right, and hands each measurement to
 * the worker as an errand, so that it runs between two steps on the threads or the device that serve. Requests go on between the
 * measurements; their arrays are not touched. One job at a time. */
#ifndef QN_COMPUTE_BENCH_BENCH_JOB_H
#define QN_COMPUTE_BENCH_BENCH_JOB_H

#include "common/config/config.h"
#include "kernels/bench/kernel_cases.h"
#include "kernels/bench/machine_speed.h"
#include "services/compute/worker/step_queue.h"

#define BENCH_JOB_CASES_MAX 96
#define BENCH_JOB_ROWS_MAX 768
#define BENCH_JOB_MEMORY_MAX (UINT64_C(768) << 20) /* of one case */

typedef struct {
    qn_op_t op;
    uint32_t tokens, context, sequences; /* as kernel_wish_t */
    qn_scalar_t scalar;
    const char *part; /* of static storage, or NULL */
} bench_case_t;

typedef struct {
    const qn_config_values_t *config;
    step_queue_t *queue;           /* of the worker; both outlive the job */
    qn_stream_t *stream;           /* CPU: the worker's */
    qn_scalar_t activations;       /* that the worker computes with */
    const qn_kernel_t *kernels[2]; /* rows that take part: the backend's, the loaded ones */
    size_t kernel_count[2];
    uint32_t isa;
    kernel_shape_t shape; /* name of static storage */
    bench_case_t cases[BENCH_JOB_CASES_MAX];
    size_t case_count;
    char implementation[32];     /* only this one; "": all */
    const qn_kernel_set_t *only; /* only what is chosen here; NULL: all. Copied */
    double seconds, max_seconds; /* of a measurement; of all, 0: no bound */
    machine_speed_t speed;       /* what is known of this machine; threads 0: measure it first */
} bench_spec_t;

typedef struct {
    size_t case_index;
    const qn_kernel_t *kernel;
    bool right, timed;
    double error, tolerance, best_s, median_s;
    unsigned rounds;
    char note[160]; /* why it was not timed */
} bench_row_t;

typedef struct {
    char shape[128];
    qn_scalar_t scalar;
    double bytes, operations; /* of one launch */
    bool from_memory, done;
} bench_case_result_t;

typedef struct bench_job bench_job_t;

/* Starts the thread; `spec` is copied. Returns owned. Failure: QN_ERR_NO_MEMORY, QN_ERR_IO. */
qn_err_t bench_job_start(const bench_spec_t *spec, bench_job_t **ret_job);
/* Readable when the job is done. Borrowed. */
int bench_job_fd(const bench_job_t *job);
bool bench_job_is_done(const bench_job_t *job);
/* Ends a job before its time and waits for what it is at; frees it. Call while the worker lives, or after it was stopped with
 * the queue still there. Accepts NULL. */
void bench_job_stop(bench_job_t **job);

/* ---- of a job that is done ---- */

/* The first failure, as qn_failure_t; code QN_OK: none. */
const qn_failure_t *bench_job_failure(const bench_job_t *job);
const bench_spec_t *bench_job_spec(const bench_job_t *job);
const bench_case_result_t *bench_job_case(const bench_job_t *job, size_t index);
const bench_row_t *bench_job_rows(const bench_job_t *job, size_t *ret_count);
const machine_speed_t *bench_job_speed(const bench_job_t *job);
/* False: max_seconds were over before the last case. */
bool bench_job_is_complete(const bench_job_t *job);

#endif
