/* What is this?      Reference attention over the paged KV cache: one query head at a time, in double, with the
 *                    running maximum of online softmax (Milakov & Gimelshein 2018).
 * State owned:       none.
 * Must never:        let a result depend on how a prompt was cut into runs.
 * Read next:         attention.h (work split), attention_avx512.c. */
#include "kernels/cpu/attention/attention.h"

#include <math.h>

static double score(const float *q, const qn_kv_t *kv, size_t at)
{
    double sum = 0;
    for (uint32_t d = 0; d < kv->head_dim; d++)
        sum += (double)q[d] * qn_load(kv->data, kv->scalar, at + d);
    return sum;
}

/* Scaled, and bent below the cap when there is one. */
static double shape_score(const qn_attention_t *a, double product)
{
    double scaled = product * a->scale;
    return a->softcap > 0 ? a->softcap * tanh(scaled / a->softcap) : scaled;
}

static void attend_head(const qn_attention_t *a, const qn_query_t *query, uint32_t head)
{
    uint32_t kv_head = head / (a->heads / a->kv.kv_heads), dim = a->kv.head_dim;
    const float *q = (const float *)a->q + (query->row * a->heads + head) * dim;
    double best = -INFINITY, total = 0, sum[QN_ATTENTION_DIM_MAX] = {0};
    for (uint32_t p = query->begin; p < query->end; p++) {
        double s = shape_score(a, score(q, &a->kv, qn_kv_at(a, query, 0, p, kv_head)));
        double keep = s > best ? exp(best - s) : 1;
        if (s > best) best = s;
        double weight = exp(s - best);
        size_t value = qn_kv_at(a, query, 1, p, kv_head);
        total = total * keep + weight;
        for (uint32_t d = 0; d < dim; d++)
            sum[d] = sum[d] * keep + weight * qn_load(a->kv.data, a->kv.scalar, value + d);
    }
    float *out = (float *)a->out + (query->row * a->heads + head) * dim;
    for (uint32_t d = 0; d < dim; d++)
        out[d] = (float)(sum[d] / total);
}

static void attend(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_attention_t *a = arguments;
    QN_ASSERT(a->kv.head_dim <= QN_ATTENTION_DIM_MAX);
    for (size_t item = begin; item < end; item++) {
        qn_query_t query = qn_query_find(a, item / a->heads);
        attend_head(a, &query, (uint32_t)(item % a->heads));
    }
}

void qn_cpu_attention(qn_stream_t *stream, const void *arguments)
{
    const qn_attention_t *a = arguments;
    qn_cpu_split(stream, qn_query_count(a) * a->heads, 1, attend, a);
}
