/* Compute's methods: a function per row of compute_methods, and what their files share. */
#ifndef QN_COMPUTE_METHODS_H
#define QN_COMPUTE_METHODS_H

#include "services/compute/handlers.h"

/* methods_tensors.c */
qn_call_outcome_t compute_method_tensor_split(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t compute_method_tensors(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t compute_method_tensor_values(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t compute_method_tensor_drop(void *state, qn_call_t *call, const void *message, void *ret_reply);
/* methods_execute.c */
qn_call_outcome_t compute_method_execute(void *state, qn_call_t *call, const void *message, void *ret_reply);

/* Answers the calls whose tasks have finished. */
void compute_finish_tasks(compute_service_t *service);
/* No worker runs: tasks that have not finished are dropped. */
void compute_drop_tasks(compute_service_t *service);
/* methods_tasks.c */
qn_call_outcome_t method_forward(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t method_attention_scores(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t method_run_stage(void *state, qn_call_t *call, const void *message, void *ret_reply);

#endif
