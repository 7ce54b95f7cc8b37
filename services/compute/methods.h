/* Compute's methods: a function per row of compute_methods, and what their files share. */
/* Compute's methods, by file; methods.c has the table. */
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
qn_call_outcome_t compute_method_choose_kernel(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t compute_method_load_kernel(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t compute_method_benchmark_kernel(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t compute_method_autotune(void *state, qn_call_t *call, const void *message, void *ret_reply);

/* methods_autotune.c: the job that is done was its; answers. */
void compute_answer_autotune(compute_service_t *service);
/* methods_benchmark.c: the job's spec without its cases. False: the call was refused. */
bool compute_bench_begin(compute_service_t *service, const qn_call_t *call, bench_spec_t *ret_spec);
/* Starts it. */
qn_call_outcome_t compute_bench_start(compute_service_t *service, qn_call_t *call, const bench_spec_t *spec,
                                      bool tuning, bool apply);
/* The format of the model's products. */
qn_scalar_t compute_weight_format(const compute_service_t *service);

/* methods_*.c of what runs the network beside the steps */
qn_call_outcome_t method_forward(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t method_attention_scores(void *state, qn_call_t *call, const void *message, void *ret_reply);
qn_call_outcome_t method_run_stage(void *state, qn_call_t *call, const void *message, void *ret_reply);

#endif
