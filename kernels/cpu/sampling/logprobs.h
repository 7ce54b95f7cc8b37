/* Parts of the log-probability kernel that the sampler uses too. For files in kernels/cpu/ only. */
#ifndef QN_KERNELS_CPU_SAMPLING_LOGPROBS_H
#define QN_KERNELS_CPU_SAMPLING_LOGPROBS_H

#include "kernels/cpu/cpu.h"

typedef struct {
    /* log(sum(exp(logits))), summed in one order. */
    float (*log_sum_exp)(const float *logits, uint32_t vocab);
    /* The `count` most probable ids, best first, ties to the lower id. */
    void (*top)(const float *logits, uint32_t vocab, float log_sum, uint32_t count, qn_top_entry_t *ret_top);
} qn_logprob_parts_t;

/* The likeliest `count` of a row, and behind them the ids that its slot asks for. */
void qn_cpu_alternatives(const qn_logprob_parts_t *parts, const qn_slot_tables_t *tables, uint32_t slot,
                         const float *logits, float log_sum, uint32_t count, qn_top_entry_t *ret_top);

extern const qn_logprob_parts_t QN_CPU_LOGPROB_REFERENCE;

/* A short list, best first: takes in (id, logprob), whose id is above all that were offered before. */
static inline void qn_cpu_top_offer(qn_top_entry_t *top, uint32_t *held, uint32_t count, uint32_t id, float logprob)
{
    if (*held == count && !(logprob > top[*held - 1].logprob)) return;
    uint32_t at = *held < count ? (*held)++ : *held - 1;
    for (; at > 0 && logprob > top[at - 1].logprob; at--)
        top[at] = top[at - 1];
    top[at] = (qn_top_entry_t){.id = id, .logprob = logprob};
}

void qn_cpu_logprobs_run(qn_stream_t *stream, const qn_logprobs_t *arguments, const qn_logprob_parts_t *parts);

#endif
