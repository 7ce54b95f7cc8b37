/* What is this?      Attention under masks, and with its weights written, in vectors: a row's scores, what the masks leave
 *                    of them, its sum. Blocks of the cache that no rule by position leaves are never read.
 * State owned:       none.
 * Must never:        run on a machine without the instructions it is compiled for: registry.c sees to it.
 * Read next:         vector.h, attention_mask.h, attention_probed.c. */
#include "kernels/cpu/vector/vector.h"
#include "kernels/cpu/vector/vector_load.h"

#include "kernels/cpu/attention/attention_mask.h"

typedef struct {
    const qn_probed_attention_t *a;
    qn_stream_t *stream;
} launch_t;

VEC_INLINE float dot(qn_scalar_t scalar, const float *q, const void *data, size_t at, uint32_t dim)
{
    vec_t low = vec_zero(), high = vec_zero();
    uint32_t d = 0;
    for (; d + 2 * VEC_LANES <= dim; d += 2 * VEC_LANES) {
        low = vec_fma(vec_load(q + d), vec_load_as(scalar, data, at + d), low);
        high = vec_fma(vec_load(q + d + VEC_LANES), vec_load_as(scalar, data, at + d + VEC_LANES), high);
    }
    for (; d < dim; d += VEC_LANES) {
        uint32_t count = mask_smaller(dim - d, VEC_LANES);
        low = vec_fma(vec_load_some(q + d, count), vec_load_some_as(scalar, data, at + d, count), low);
    }
    return vec_sum(vec_add(low, high));
}

VEC_INLINE void add_row(qn_scalar_t scalar, float *sum, float weight, const void *data, size_t at, uint32_t dim)
{
    vec_t times = vec_set(weight);
    for (uint32_t d = 0; d < dim; d += VEC_LANES) {
        uint32_t count = mask_smaller(dim - d, VEC_LANES);
        vec_store(sum + d, vec_fma(times, vec_load_some_as(scalar, data, at + d, count), vec_load(sum + d)));
    }
}

/* Scores of the candidates; returns how many there are. */
VEC_INLINE uint32_t score_row(qn_scalar_t scalar, const qn_attention_t *a, const qn_query_t *query,
                              const row_mask_t *row, uint32_t head, float *scores)
{
    uint32_t kv_head = head / (a->heads / a->kv.kv_heads), dim = a->kv.head_dim, count = 0;
    const float *q = (const float *)a->q + (query->row * a->heads + head) * dim;
    for (uint32_t p = mask_next(row, query->begin); p < query->end; p = mask_next(row, p + 1)) {
        float scaled = dot(scalar, q, a->kv.data, qn_kv_at(a, query, 0, p, kv_head), dim) * a->scale;
        scores[count++] = a->softcap > 0 ? a->softcap * tanhf(scaled / a->softcap) : scaled;
    }
    return count;
}

static void weigh(float *scores, uint32_t count)
{
    float best = -INFINITY;
    for (uint32_t i = 0; i < count; i++)
        best = scores[i] > best ? scores[i] : best;
    vec_t sums = vec_zero(), shift = vec_set(best);
    for (uint32_t i = 0; i < count; i += VEC_LANES) {
        uint32_t some = mask_smaller(count - i, VEC_LANES);
        vec_store_some(scores + i, vec_exp(vec_sub(vec_load_some(scores + i, some), shift)), some);
        sums = vec_add(sums, vec_load_some(scores + i, some));
    }
    vec_t each = vec_set(1 / vec_sum(sums));
    for (uint32_t i = 0; i < count; i += VEC_LANES) {
        uint32_t some = mask_smaller(count - i, VEC_LANES);
        vec_store_some(scores + i, vec_mul(vec_load_some(scores + i, some), each), some);
    }
}

/* vec_exp gives the least float, not 0, for -infinity: what is masked counts as nothing. */
#define NOTHING 1e-37f

VEC_INLINE void sum_row(qn_scalar_t scalar, const qn_probed_attention_t *probed, const qn_query_t *query,
                        const row_mask_t *row, uint32_t head, const float *weights)
{
    const qn_attention_t *a = &probed->attention;
    uint32_t kv_head = head / (a->heads / a->kv.kv_heads), dim = a->kv.head_dim, i = 0;
    size_t at = query->row * a->heads + head;
    float sum[QN_ATTENTION_DIM_MAX + VEC_LANES] = {0};
    for (uint32_t p = mask_next(row, query->begin); p < query->end; p = mask_next(row, p + 1), i++) {
        bool seen = weights[i] > NOTHING;
        if (probed->ret_weights) probed->ret_weights[at * probed->weight_columns + p] = seen ? weights[i] : 0;
        if (!seen) continue;
        add_row(scalar, sum, weights[i], a->kv.data, qn_kv_at(a, query, 1, p, kv_head), dim);
    }
    memcpy((float *)a->out + at * dim, sum, dim * sizeof *sum);
}

static void attend_head(const qn_probed_attention_t *probed, const qn_query_t *query, uint32_t run, uint32_t head,
                        float *scores)
{
    const qn_attention_t *a = &probed->attention;
    row_mask_t row = mask_of_row(probed, query, head);
    bool f32 = a->kv.scalar == QN_SCALAR_F32;
    uint32_t count = f32 ? score_row(QN_SCALAR_F32, a, query, &row, head, scores)
                         : score_row(QN_SCALAR_BF16, a, query, &row, head, scores);
    if (mask_reads_scores(&row))
        mask_scores(&row, query->begin, query->end, a->kv.block_tokens, scores, count, scores + count);
    uint32_t left = mask_left(scores, count);
    weigh(scores, count);
    if (f32)
        sum_row(QN_SCALAR_F32, probed, query, &row, head, scores);
    else
        sum_row(QN_SCALAR_BF16, probed, query, &row, head, scores);
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

void KERNEL(qn_cpu_attention_probed)(qn_stream_t *stream, const void *arguments)
{
    launch_t launch = {arguments, stream};
    const qn_attention_t *a = &launch.a->attention;
    qn_cpu_split(stream, qn_query_count(a) * a->heads, 1, attend, &launch);
}
