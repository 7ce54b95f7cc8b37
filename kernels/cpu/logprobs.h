/* Parts of the log-probability kernel that the sampler uses too. For files in kernels/cpu/ only. */
#ifndef QN_KERNELS_CPU_LOGPROBS_H
#define QN_KERNELS_CPU_LOGPROBS_H

#include "kernels/cpu/cpu.h"

/* log(sum(exp(logits))), summed in id order in double. */
float qn_cpu_log_sum_exp(const float *logits, uint32_t vocab);
/* The `count` most probable ids, best first. */
void qn_cpu_top_logprobs(const float *logits, uint32_t vocab, float log_sum, uint32_t count, qn_top_entry_t *ret_top);

#endif
