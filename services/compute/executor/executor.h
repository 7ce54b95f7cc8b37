/* The executor: runs one admitted plan and reports what came of it. Everything it touches was sized and placed at
 * creation: a step allocates nothing. One thread at a time. */
#ifndef QN_COMPUTE_EXECUTOR_EXECUTOR_H
#define QN_COMPUTE_EXECUTOR_EXECUTOR_H

#include "common/err.h"
#include "common/region/region.h"
#include "services/compute/backend/backend.h"
#include "services/compute/forward/forward.h"
#include "services/compute/worker/step.h"

typedef struct executor executor_t;

typedef struct {
    const model_t *model; /* borrowed, like the stream; both outlive the executor */
    step_limits_t limits;
    qn_kv_t kv;
    qn_kernel_set_t kernels;
    const backend_t *backend; /* the stream's and the kernels' */
    qn_stream_t *stream;
    bool deterministic;                  /* compute.deterministic, the stream's */
    void *activations, *state, *step_io; /* at least scratch_measure()'s bytes each, 64-byte aligned */
    const qn_mapping_t *workspace;       /* borrowed; where taps read to, NULL: nowhere */
    uint64_t (*now_ns)(void);            /* stamps begin, end and (of a synchronous backend) times; decides nothing */
} executor_parts_t;

/* Returns owned. Failure: QN_ERR_NO_MEMORY. */
qn_err_t executor_create(const executor_parts_t *parts, executor_t **ret_executor);
void executor_destroy(executor_t **executor);
/* Launches `plan`, which slot_book_admit has accepted after every plan before it. The plan has been read when it returns;
 * `result`, whose arrays have the capacities of step.h, is written until the step is finished. At most
 * backend->steps_in_flight steps are between the two; a synchronous backend has run the step when this returns. */
void executor_submit(executor_t *self, const step_plan_t *plan, step_result_t *result);
/* Whether the oldest submitted step is done (or has failed). Does not block. */
bool executor_is_done(const executor_t *executor);
/* Blocks (and spins) until the oldest submitted step is done and fills its result. Failure: the device's, sticky. */
qn_err_t executor_finish(executor_t *self);
/* Other kernels from the next step on; none may be in flight. What was recorded with the old ones is recorded anew. */
void executor_set_kernels(executor_t *self, const qn_kernel_set_t *kernels);
/* Both, for one step at a time. */
qn_err_t executor_run(executor_t *self, const step_plan_t *plan, step_result_t *result);
/* Measures the parts of some steps from now on, or no more: for a backend that is not synchronous, where that is not free;
 * a synchronous one measures every step. Any thread. */
void executor_sample(executor_t *executor, bool wanted);
/* Returns view of the logits [rows, V] of the last rows computed, in device memory, until the next step: for
 * tests and taps. */
const float *executor_logits(const executor_t *executor, uint32_t *ret_rows);

#endif
