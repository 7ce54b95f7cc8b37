/* What methods_tensors.c and methods_execute.c share: a task and the call that waits for it. */
#ifndef QN_COMPUTE_METHODS_TENSORS_H
#define QN_COMPUTE_METHODS_TENSORS_H

#include "services/compute/methods.h"
#include "services/compute/tensors/tensor_task.h"

typedef struct {
    tensor_task_t work; /* first: the task queue knows this */
    qn_call_t call;
    uint64_t ttl_ns;
    bool in_passing, with_passing, keep; /* tensors of this call alone: dropped when it is answered */
    void (*answer)(compute_service_t *service, void *job);
} tensor_job_t;

/* Gives the job to the worker; it is the queue's then. QN_CALL_FAILED: it was freed. */
qn_call_outcome_t tensor_job_start(compute_service_t *service, tensor_job_t *job);
/* Lets go of the tensors that it used, and of the job. */
void tensor_job_end(compute_service_t *service, tensor_job_t *job);
/* A tensor for this call; NULL: the call was refused. */
tensor_t *tensor_make(compute_service_t *service, const qn_call_t *call, const char *param, const tensor_shape_t *shape,
                      bool bf16, const char *owner, uint64_t ttl_ns);
/* The same with the numbers of a request. */
tensor_t *tensor_take(compute_service_t *service, const qn_call_t *call, const char *param,
                      const qn_tensor_value_t *value, bool bf16, const char *owner, uint64_t ttl_ns);
/* Reads sizes, which come from a request. */
bool tensor_read_shape(const uint32_t *sizes, uint32_t rank, tensor_shape_t *ret_shape);
/* "compute.0" */
qn_text_t tensor_worker_name(const compute_service_t *service);
qn_tensor_summary_t tensor_show_summary(const tensor_summary_t *summary);

#define TENSOR_PASSING_NS UINT64_C(120000000000) /* numbers of a call: longer than any call */

#endif
