/* What is this?      Log-probabilities of the raw model distribution: log softmax of one id, and the best few.
 * State owned:       none.
 * Must never:        let the order of equal values depend on anything but their ids.
 * Read next:         sampler.c; logprobs_body.h for the passes in vectors. */
#include "kernels/cpu/sampling/logprobs.h"

#include <math.h>

static float log_sum_exp(const float *logits, uint32_t vocab)
{
    float best = logits[0];
    for (uint32_t v = 1; v < vocab; v++)
        best = logits[v] > best ? logits[v] : best;
    double sum = 0;
    for (uint32_t v = 0; v < vocab; v++)
        sum += expf(logits[v] - best);
    return best + (float)log(sum);
}

static void top_logprobs(const float *logits, uint32_t vocab, float log_sum, uint32_t count, qn_top_entry_t *ret_top)
{
    if (count > vocab) count = vocab;
    uint32_t held = 0;
    for (uint32_t v = 0; v < vocab && count; v++)
        qn_cpu_top_offer(ret_top, &held, count, v, logits[v] - log_sum);
}

const qn_logprob_parts_t QN_CPU_LOGPROB_REFERENCE = {log_sum_exp, top_logprobs};

typedef struct {
    const qn_logprobs_t *a;
    const qn_logprob_parts_t *parts;
} work_t;

static void logprob_rows(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const work_t *work = arguments;
    const qn_logprobs_t *a = work->a;
    for (size_t row = begin; row < end; row++) {
        const float *logits = a->logits + row * a->vocab;
        float log_sum = work->parts->log_sum_exp(logits, a->vocab);
        a->ret_logprobs[row] = logits[a->targets[row]] - log_sum;
        work->parts->top(logits, a->vocab, log_sum, a->top_counts[row], a->ret_top + row * QN_TOP_LOGPROBS_MAX);
    }
}

void qn_cpu_logprobs_run(qn_stream_t *stream, const qn_logprobs_t *arguments, const qn_logprob_parts_t *parts)
{
    qn_cpu_split(stream, arguments->rows, qn_grain(arguments->vocab), logprob_rows, &(work_t){arguments, parts});
}

void qn_cpu_logprobs(qn_stream_t *stream, const void *arguments)
{
    qn_cpu_logprobs_run(stream, arguments, &QN_CPU_LOGPROB_REFERENCE);
}
