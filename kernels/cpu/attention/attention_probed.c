/* What is this?      Reference attention under masks, and with its weights written: all scores of a row, what the masks leave
 *                    of them, softmax, sum, in double.
 * State owned:       none.
 * Must never:        let a result depend on how a prompt was cut into runs.
 * Read next:         attention_mask.h (the rules), attention_probed_vector.c, attention.c. */
#include "kernels/cpu/attention/attention_mask.h"

typedef struct {
    const qn_probed_attention_t *a;
    qn_stream_t *stream;
} launch_t;

static float score(const qn_attention_t *a, const float *q, size_t at)
{
    double sum = 0;
    for (uint32_t d = 0; d < a->kv.head_dim; d++)
        sum += (double)q[d] * qn_load(a->kv.data, a->kv.scalar, at + d);
    sum *= a->scale;
    return (float)(a->softcap > 0 ? a->softcap * tanh(sum / a->softcap) : sum);
}

/* Turns scores into weights that add up to 1. */
static void weigh(float *scores, uint32_t count)
{
    float best = -INFINITY;
    double total = 0;
    for (uint32_t i = 0; i < count; i++)
        best = scores[i] > best ? scores[i] : best;
    for (uint32_t i = 0; i < count; i++)
        total += exp((double)scores[i] - best);
    for (uint32_t i = 0; i < count; i++)
        scores[i] = (float)(exp((double)scores[i] - best) / total);
}

/* Adds up the values. */
static void sum_values(const qn_probed_attention_t *probed, const qn_query_t *query, const row_mask_t *row,
                       uint32_t head, const float *weights)
{
    const qn_attention_t *a = &probed->attention;
    uint32_t kv_head = head / (a->heads / a->kv.kv_heads), dim = a->kv.head_dim, i = 0;
    float *shown =
        probed->ret_weights ? probed->ret_weights + (query->row * a->heads + head) * probed->weight_columns : NULL;
    double sum[QN_ATTENTION_DIM_MAX] = {0};
    for (uint32_t p = mask_next(row, query->begin); p < query->end; p = mask_next(row, p + 1), i++) {
        if (shown) shown[p] = weights[i];
        if (weights[i] == 0) continue;
        size_t value = qn_kv_at(a, query, 1, p, kv_head);
        for (uint32_t d = 0; d < dim; d++)
            sum[d] += (double)weights[i] * qn_load(a->kv.data, a->kv.scalar, value + d);
    }
    float *out = (float *)a->out + (query->row * a->heads + head) * dim;
    for (uint32_t d = 0; d < dim; d++)
        out[d] = (float)sum[d];
}

static void attend_head(const qn_probed_attention_t *probed, const qn_query_t *query, uint32_t run, uint32_t head,
                        float *scores)
{
    const qn_attention_t *a = &probed->attention;
    uint32_t kv_head = head / (a->heads / a->kv.kv_heads), count = 0;
    const float *q = (const float *)a->q + (query->row * a->heads + head) * a->kv.head_dim;
    row_mask_t row = mask_of_row(probed, query, head);
    for (uint32_t p = mask_next(&row, query->begin); p < query->end; p = mask_next(&row, p + 1))
        scores[count++] = score(a, q, qn_kv_at(a, query, 0, p, kv_head));
    if (mask_reads_scores(&row))
        mask_scores(&row, query->begin, query->end, a->kv.block_tokens, scores, count, scores + count);
    uint32_t left = mask_left(scores, count);
    weigh(scores, count);
    sum_values(probed, query, &row, head, scores);
    mask_count(probed, run, (uint64_t)count + left, 2 * (uint64_t)(query->end - query->begin));
}

static void attend(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    const launch_t *launch = arguments;
    const qn_attention_t *a = &launch->a->attention;
    float *scores = qn_cpu_workspace(launch->stream, thread);
    QN_ASSERT(a->kv.head_dim <= QN_ATTENTION_DIM_MAX && launch->a->mask_count <= QN_MASKS_MAX);
    for (size_t item = begin; item < end; item++) {
        qn_query_t query = qn_query_find(a, item / a->heads);
        QN_ASSERT(query.end <= QN_MASK_POSITIONS_MAX);
        attend_head(launch->a, &query, mask_run_of(a, item / a->heads), (uint32_t)(item % a->heads), scores);
    }
}

void qn_cpu_attention_probed(qn_stream_t *stream, const void *arguments)
{
    launch_t launch = {arguments, stream};
    const qn_attention_t *a = &launch.a->attention;
    qn_cpu_split(stream, qn_query_count(a) * a->heads, 1, attend, &launch);
}
