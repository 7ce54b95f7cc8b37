/* What is this?      Log-probabilities of the raw model distribution: log softmax of one id, and the best few.
 * State owned:       none.
 * Must never:        let the order of equal values depend on anything but their ids.
 * Read next:         sampler.c. */
#include "kernels/cpu/logprobs.h"

#include <math.h>

float qn_cpu_log_sum_exp(const float *logits, uint32_t vocab)
{
    float best = logits[0];
    for (uint32_t v = 1; v < vocab; v++) best = logits[v] > best ? logits[v] : best;
    double sum = 0;
    for (uint32_t v = 0; v < vocab; v++) sum += expf(logits[v] - best);
    return best + (float)log(sum);
}

/* Insertion into a short sorted list: nearly all ids fail the first comparison. */
void qn_cpu_top_logprobs(const float *logits, uint32_t vocab, float log_sum, uint32_t count, qn_top_entry_t *ret_top)
{
    if (count > vocab) count = vocab;
    uint32_t held = 0;
    for (uint32_t v = 0; v < vocab && count; v++) {
        float value = logits[v] - log_sum;
        if (held == count && !(value > ret_top[held - 1].logprob)) continue;
        uint32_t at = held < count ? held++ : held - 1;
        for (; at > 0 && value > ret_top[at - 1].logprob; at--) ret_top[at] = ret_top[at - 1];
        ret_top[at] = (qn_top_entry_t){ .id = v, .logprob = value };
    }
}

static void logprob_rows(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_logprobs_t *a = arguments;
    for (size_t row = begin; row < end; row++) {
        const float *logits = a->logits + row * a->vocab;
        float log_sum = qn_cpu_log_sum_exp(logits, a->vocab);
        a->ret_logprobs[row] = logits[a->targets[row]] - log_sum;
        qn_cpu_top_logprobs(logits, a->vocab, log_sum, a->top_counts[row], a->ret_top + row * QN_TOP_LOGPROBS_MAX);
    }
}

void qn_cpu_logprobs(qn_stream_t *stream, const void *arguments)
{
    const qn_logprobs_t *a = arguments;
    qn_cpu_split(stream, a->rows, qn_grain(10 * (size_t)a->vocab), logprob_rows, a);
}
