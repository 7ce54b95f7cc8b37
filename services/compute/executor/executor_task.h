/* Work beside the steps: some tokens are run once, through the same launches, while no step is in flight, and looked at.
 * Either over a private KV cache, as a sequence of its own, or over what is resident of a living sequence, of which nothing
 * is written. The stages of the network may be run one by one. On the worker's thread. */
#ifndef QN_COMPUTE_EXECUTOR_EXECUTOR_TASK_H
#define QN_COMPUTE_EXECUTOR_EXECUTOR_TASK_H

#include "services/compute/executor/executor.h"

typedef struct {
    /* What to run. */
    uint64_t request;    /* of a living sequence; 0: a sequence of its own, from position 0 on */
    const uint32_t *ids; /* of positions [position, position + count) */
    uint32_t position, count;
    qn_kv_t kv; /* of a sequence of its own: block i holds positions from i * P on */
    forward_stages_t stages;
    const float *input; /* [count, E]; NULL with stages.embed */
    /* What to do beside it. Of a living sequence its own masks hold, whatever the probe says. */
    qn_probe_t probe;
    bool in_workspace;  /* `workspace` is a range of the region of that name */
    uint8_t *workspace; /* where taps read to */
    uint64_t workspace_bytes;
    uint32_t weight_layer, weight_from, weight_columns; /* rows of positions from weight_from on */
    float *weights;                                     /* [rows, H, weight_columns], host memory; NULL: not wanted */
    float *ret_logits;                                  /* [V] of the last position; NULL: not wanted */
    float *ret_residual;                                /* [count, E] after the stages, in f32; NULL: not wanted */
    uint64_t ret_ns;
    uint32_t done; /* tokens run so far; zero at first */
} executor_task_t;

/* Host memory that tasks may point to. Returns owned. QN_ERR_NO_MEMORY, QN_ERR_DEVICE. */
qn_err_t executor_task_memory(executor_t *executor, size_t bytes, void **ret_memory);
void executor_task_release(executor_t *executor, void **memory);
/* Runs the next chunk of it, at most a step's tokens, and waits; steps may be run between two. *ret_done: it was the last.
 * QN_ERR_NOT_FOUND: no such sequence lives here, or not so much of it is resident. Failure of the device: sticky. */
qn_err_t executor_run_chunk(executor_t *executor, executor_task_t *task, bool *ret_done);
/* All chunks. */
qn_err_t executor_run_task(executor_t *executor, executor_task_t *task);

#endif
