/* Runs cases where compute.backend says: places a case's arrays, launches, brings the
 * outputs back, and times. A host's arrays lie where the case made them, but for what is rotated. */
#ifndef QN_COMPUTE_BENCH_KERNEL_RUNNER_H
#define QN_COMPUTE_BENCH_KERNEL_RUNNER_H

#include "common/config/config.h"
#include "kernels/bench/bench_time.h"
#include "kernels/bench/kernel_cases.h"
#include "kernels/bench/machine_speed.h"

typedef struct kernel_runner kernel_runner_t;

typedef struct {
    const qn_kernel_t *kernels; /* all of this backend; view */
    size_t kernel_count;
    uint32_t isa; /* of the machine or the device */
    bool device;
    qn_scalar_t activations;
    char device_name[64]; /* "NVIDIA H200"; of a device */
} kernel_runner_info_t;

typedef struct {
    qn_stream_t *stream;    /* CPU: that implementations run on, borrowed; NULL: one of its own, of compute.threads */
    uint32_t exact_threads; /* CPU threads of the exact side; 0: compute.threads */
    bool deterministic;     /* CUDA: as backend_stream_options_t */
    const qn_scalar_t *activations; /* NULL: as compute.activations says of weights that are not known */
} kernel_runner_options_t;

/* Returns owned. What backend_find and a stream can fail with: no such backend in this build, no GPU. */
qn_err_t kernel_runner_open(const qn_config_values_t *config, const kernel_runner_options_t *options,
                            kernel_runner_t **ret_runner);
void kernel_runner_close(kernel_runner_t **runner);
const kernel_runner_info_t *kernel_runner_info(const kernel_runner_t *runner);

/* Computes the exact side with the CPU's plain implementations, on the runner's own threads; any thread, beside anything that
 * runs on the runner's stream. Before kernel_runner_take: outputs are kept as they are then. Blocks up to seconds. */
qn_err_t kernel_runner_compute_exact(kernel_runner_t *runner, const kernel_case_t *made);
/* Places the arrays of `made`, which the runner borrows until the next one or kernel_runner_leave. Failure:
 * QN_ERR_NO_MEMORY, QN_ERR_DEVICE. */
qn_err_t kernel_runner_take(kernel_runner_t *runner, const kernel_case_t *made);
void kernel_runner_leave(kernel_runner_t *runner);
/* One launch on outputs as they were at first; what it gives is in the case's `tested`. */
qn_err_t kernel_runner_check(kernel_runner_t *runner, const qn_kernel_t *kernel);
/* Time of one launch. On a device of its own: launches are captured into a graph, whose replays the device times. */
qn_err_t kernel_runner_time(kernel_runner_t *runner, const qn_kernel_t *kernel, double seconds, bench_time_t *ret_time);

#endif
