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

void qn_cpu_alternatives(const qn_logprob_parts_t *parts, const qn_slot_tables_t *tables, uint32_t slot,
                         const float *logits, float log_sum, uint32_t count, qn_top_entry_t *ret_top)
{
    uint32_t id_count = tables->rows[slot].logprob_id_count;
    parts->top(logits, tables->vocab, log_sum, count, ret_top);
    if (id_count == 0) return;
    const uint32_t *ids = tables->logprob_ids + (size_t)slot * QN_LOGPROB_IDS_MAX;
    ret_top += count < tables->vocab ? count : tables->vocab;
    for (uint32_t i = 0; i < id_count; i++)
        ret_top[i] = (qn_top_entry_t){.id = ids[i], .logprob = logits[ids[i]] - log_sum};
}

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
        qn_top_entry_t *top = a->ret_top + row * QN_ALTERNATIVES_MAX;
        if (a->slots)
            qn_cpu_alternatives(work->parts, &a->tables, a->slots[row], logits, log_sum, a->top_counts[row], top);
        else
            work->parts->top(logits, a->vocab, log_sum, a->top_counts[row], top);
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
