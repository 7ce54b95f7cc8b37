/* The vector passes over a row of logits, written once; included after a vector header and KERNEL(name), by
 * sampler_vector.c. Sums over the vocabulary are LANES chains within STRETCH ids, then in double: one order per size. */
#include <math.h>

#include "kernels/cpu/sampling/logprobs.h"
#include "kernels/cpu/vector/vector_functions.h"

#define STRETCH 1024u /* ids whose exponentials are added up in float */

static uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Lanes beyond `count` are minus infinity. */
VEC_INLINE vec_t load_logits(const float *from, uint32_t count)
{
    if (count >= VEC_LANES) return vec_load(from);
    return vec_less(vec_lane_numbers(), vec_set((float)count), vec_load_some(from, count), vec_set(-INFINITY));
}

/* The greatest of a stretch; NaN loses (the maximum of NaN and b is b). */
static float greatest_of(const float *values, uint32_t count)
{
    vec_t best[4];
    for (int j = 0; j < 4; j++)
        best[j] = vec_set(-INFINITY);
    uint32_t i = 0;
    for (; i + 4 * VEC_LANES <= count; i += 4 * VEC_LANES)
        for (uint32_t j = 0; j < 4; j++)
            best[j] = vec_max(vec_load(values + i + j * VEC_LANES), best[j]);
    for (; i < count; i += VEC_LANES)
        best[0] = vec_max(load_logits(values + i, count - i), best[0]);
    return vec_greatest(vec_max(vec_max(best[0], best[1]), vec_max(best[2], best[3])));
}

static float greatest_value(const float *values, uint32_t vocab)
{
    float best = -INFINITY;
    for (uint32_t v = 0; v < vocab; v += STRETCH) {
        float here = greatest_of(values + v, smaller(vocab - v, STRETCH));
        best = here > best ? here : best;
    }
    return best;
}

static float log_sum_exp(const float *logits, uint32_t vocab)
{
    float best = greatest_value(logits, vocab);
    double sum = 0;
    for (uint32_t first = 0; first < vocab; first += STRETCH) {
        uint32_t end = smaller(vocab, first + STRETCH);
        vec_t total = vec_zero(), common = vec_set(best);
        for (uint32_t v = first; v < end; v += VEC_LANES)
            total = vec_add(total, vec_exp_weight(vec_sub(load_logits(logits + v, end - v), common)));
        sum += vec_sum(total);
    }
    return best + (float)log(sum);
}

static void top_logprobs(const float *logits, uint32_t vocab, float log_sum, uint32_t count, qn_top_entry_t *ret_top)
{
    if (count > vocab) count = vocab;
    uint32_t held = 0;
    for (uint32_t v = 0; v < vocab && count; v += VEC_LANES) {
        /* Nearly all ids are below the last of the list. */
        float last = held < count ? -INFINITY : ret_top[held - 1].logprob;
        vec_t here = vec_sub(load_logits(logits + v, vocab - v), vec_set(log_sum));
        if (held == count && !vec_any_above(here, vec_set(last))) continue;
        for (uint32_t i = v; i < vocab && i < v + VEC_LANES; i++)
            qn_cpu_top_offer(ret_top, &held, count, i, logits[i] - log_sum);
    }
}

static const qn_logprob_parts_t LOGPROB_PARTS = {log_sum_exp, top_logprobs};

void KERNEL(qn_cpu_logprobs)(qn_stream_t *stream, const void *arguments)
{
    qn_cpu_logprobs_run(stream, arguments, &LOGPROB_PARTS);
}
