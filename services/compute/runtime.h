/* The runtime: everything that stands between a bound model and a running one: stream, kernels, executor, slot book,
 * queue, worker. Lives as long as the regions it was built over. */
#ifndef QN_COMPUTE_RUNTIME_H
#define QN_COMPUTE_RUNTIME_H

#include "services/compute/backend/backend.h"
#include "services/compute/model.h"
#include "services/compute/slot_book.h"
#include "services/compute/worker/step_queue.h"
#include "services/compute/worker/step_worker.h"

typedef struct {
    const model_t *model; /* borrowed */
    step_limits_t limits;
    qn_kv_t kv;
    const backend_t *backend;      /* compute.backend */
    const char *kernels;           /* compute.kernels */
    const char *activations_asked; /* compute.activations */
    uint32_t threads;              /* compute.threads */
    int device;                    /* compute.device */
    bool deterministic;            /* compute.deterministic */
    int nice;
    void *activations, *state, *step_io;
    task_queue_t *tasks;           /* borrowed; NULL: none */
    const qn_mapping_t *workspace; /* borrowed; NULL: none */
    uint64_t (*now_ns)(void);
} runtime_parts_t;

typedef struct {
    const backend_t *backend;
    qn_stream_t *stream;
    qn_stream_t
        *task_stream; /* of the CPU, for tasks: `stream` itself, or one of its own beside a device's; then owned */
    qn_kernel_case_t shape; /* of the model, as kernels see it */
    qn_kernel_set_t kernels;
    executor_t *executor;
    slot_book_t *book;
    step_queue_t *queue;
    step_worker_t *worker;
} runtime_t;

/* What `model` asks of kernels. */
qn_kernel_case_t runtime_kernel_case(const qn_model_config_t *config, uint32_t block_tokens, qn_scalar_t kv_scalar,
                                     qn_scalar_t activations);
/* Builds and starts all of it. Failure: that of the part that could not be made. Returns owned. */
qn_err_t runtime_create(const runtime_parts_t *parts, runtime_t **ret_runtime);
/* Waits for the step that runs. */
void runtime_destroy(runtime_t **runtime);

#endif
