/* The vector attention, written once; included after a vector header and KERNEL(name).
 *
 * A work item is one query token and up to GROUP of its heads that read the same kv head. Positions are walked in
 * chunks that begin at multiples of CHUNK from position 0: scores of the chunk, its maximum, weights, then the weighted
 * values (online softmax, Milakov & Gimelshein 2018; paged as in vLLM, Kwon et al. 2023). A row's additions depend on
 * its position and window alone. */
#include <math.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/vector_load.h"

#define CHUNK 64
#define GROUP 4 /* heads that use a chunk's rows while they are in the first-level cache */
#define SLAB 4  /* vectors of values accumulated in registers at once */

typedef struct {
    const qn_attention_t *a;
    const qn_query_t *query;
    uint32_t kv_head;
    const char *keys[CHUNK], *values[CHUNK];  /* the rows of each position of the chunk */
    uint32_t begin, end;                /* the query's positions within the chunk */
} chunk_t;

/* One head's running softmax and weighted sum of values. */
typedef struct {
    float best, total;
    float sums[QN_ATTENTION_DIM_MAX];
} head_t;

/* Rows of one block follow each other; positions outside the query's range get a row that may be read. */
static void find_rows(chunk_t *chunk, uint32_t first)
{
    const qn_kv_t *kv = &chunk->a->kv;
    size_t width = qn_scalar_bytes(kv->scalar), step = (size_t)kv->kv_heads * kv->head_dim * width;
    for (uint32_t i = chunk->begin; i < chunk->end;) {
        uint32_t left = kv->block_tokens - (first + i) % kv->block_tokens;
        uint32_t stop = chunk->end - i < left ? chunk->end : i + left;
        const char *base = kv->data;
        const char *key = base + width * qn_kv_at(chunk->a, chunk->query, 0, first + i, chunk->kv_head);
        const char *value = base + width * qn_kv_at(chunk->a, chunk->query, 1, first + i, chunk->kv_head);
        for (; i < stop; i++, key += step, value += step) {
            chunk->keys[i] = key;
            chunk->values[i] = value;
        }
    }
    for (uint32_t i = 0; i < chunk->begin; i++) chunk->keys[i] = chunk->keys[chunk->begin];
    for (uint32_t i = chunk->end; i < CHUNK; i++) chunk->keys[i] = chunk->keys[chunk->begin];
}

/* Scores of LANES positions at once; those outside the query's range are computed from a valid row and replaced. */
VEC_INLINE void score_chunk(const chunk_t *chunk, qn_scalar_t scalar, const float *q, float *scores)
{
    const qn_kv_t *kv = &chunk->a->kv;
    uint32_t from = chunk->begin / VEC_LANES * VEC_LANES;
    for (uint32_t i = 0; i < CHUNK; i++) scores[i] = -INFINITY;
    for (uint32_t i = from; i < chunk->end; i += VEC_LANES) {
        vec_t sums[VEC_LANES];
        for (uint32_t j = 0; j < VEC_LANES; j++) sums[j] = vec_zero();
        for (uint32_t d = 0; d < kv->head_dim; d += VEC_LANES) {
            vec_t query = vec_load(q + d);
            for (uint32_t j = 0; j < VEC_LANES; j++)
                sums[j] = vec_fma(vec_load_as(scalar, chunk->keys[i + j], d), query, sums[j]);
        }
        vec_store(scores + i, vec_mul(vec_sum_each(sums), vec_set(chunk->a->scale)));
    }
    for (uint32_t i = from; i < chunk->begin; i++) scores[i] = -INFINITY;
    for (uint32_t i = chunk->end; i < CHUNK; i++) scores[i] = -INFINITY;
}

/* Turns scores into weights; returns the factor by which what was summed before shrinks. */
VEC_INLINE float weigh_chunk(const chunk_t *chunk, float *scores, head_t *head)
{
    vec_t best = vec_set(head->best);
    for (uint32_t i = 0; i < CHUNK; i += VEC_LANES) best = vec_max(best, vec_load(scores + i));
    float greatest = vec_greatest(best), keep = expf(head->best - greatest);
    best = vec_set(greatest);
    for (uint32_t i = 0; i < CHUNK; i += VEC_LANES) vec_store(scores + i, vec_exp(vec_sub(vec_load(scores + i), best)));
    for (uint32_t i = 0; i < chunk->begin; i++) scores[i] = 0;
    for (uint32_t i = chunk->end; i < CHUNK; i++) scores[i] = 0;
    vec_t total = vec_zero();
    for (uint32_t i = 0; i < CHUNK; i += VEC_LANES) total = vec_add(total, vec_load(scores + i));
    head->total = head->total * keep + vec_sum(total);
    head->best = greatest;
    return keep;
}

/* sums[0 .. vectors) = sums * keep + weights x values, for one slab of the head. */
VEC_INLINE void add_slab(const chunk_t *chunk, qn_scalar_t scalar, const float *weights, float keep, size_t at,
                         const uint32_t vectors, float *sums)
{
    vec_t slab[SLAB], factor = vec_set(keep);
    for (uint32_t j = 0; j < vectors; j++) slab[j] = vec_mul(vec_load(sums + j * VEC_LANES), factor);
    for (uint32_t i = chunk->begin; i < chunk->end; i++) {
        vec_t weight = vec_set(weights[i]);
        for (uint32_t j = 0; j < vectors; j++)
            slab[j] = vec_fma(vec_load_as(scalar, chunk->values[i], at + j * VEC_LANES), weight,
                              slab[j]);
    }
    for (uint32_t j = 0; j < vectors; j++) vec_store(sums + j * VEC_LANES, slab[j]);
}

VEC_INLINE void add_values(const chunk_t *chunk, qn_scalar_t scalar, const float *weights, float keep, float *sums)
{
    uint32_t dim = chunk->a->kv.head_dim, d = 0;
    for (; d + SLAB * VEC_LANES <= dim; d += SLAB * VEC_LANES)
        add_slab(chunk, scalar, weights, keep, d, SLAB, sums + d);
    for (; d < dim; d += VEC_LANES) add_slab(chunk, scalar, weights, keep, d, 1, sums + d);
}

VEC_INLINE void attend_group(chunk_t *chunk, qn_scalar_t scalar, uint32_t first_head, uint32_t count)
{
    const qn_attention_t *a = chunk->a;
    uint32_t dim = a->kv.head_dim;
    size_t row = (chunk->query->row * a->heads + first_head) * dim;
    float scores[CHUNK];
    head_t heads[GROUP];
    for (uint32_t h = 0; h < count; h++) {
        heads[h].best = -INFINITY;
        heads[h].total = 0;
        memset(heads[h].sums, 0, dim * sizeof *heads[h].sums);
    }
    for (uint32_t first = chunk->query->begin / CHUNK * CHUNK; first < chunk->query->end; first += CHUNK) {
        chunk->begin = chunk->query->begin > first ? chunk->query->begin - first : 0;
        chunk->end = chunk->query->end - first < CHUNK ? chunk->query->end - first : CHUNK;
        find_rows(chunk, first);
        for (uint32_t h = 0; h < count; h++) {
            score_chunk(chunk, scalar, (const float *)a->q + row + h * dim, scores);
            float keep = weigh_chunk(chunk, scores, &heads[h]);
            add_values(chunk, scalar, scores, keep, heads[h].sums);
        }
    }
    float *out = (float *)a->out + row;
    for (uint32_t h = 0; h < count; h++)
        for (uint32_t d = 0; d < dim; d++) out[h * dim + d] = heads[h].sums[d] / heads[h].total;
}

/* Early queries see little and late ones much: taking them from both ends alternately evens out contiguous ranges. */
static size_t spread(size_t index, size_t count)
{
    return index % 2 ? count - 1 - index / 2 : index / 2;
}

/* Groups of one kv head, and of all. */
static uint32_t groups_of_head(const qn_attention_t *a) { return (a->heads / a->kv.kv_heads + GROUP - 1) / GROUP; }
static uint32_t groups_of_query(const qn_attention_t *a) { return groups_of_head(a) * a->kv.kv_heads; }

static void attend_item(const qn_attention_t *a, const qn_query_t *query, uint32_t group)
{
    uint32_t per_kv_head = a->heads / a->kv.kv_heads, at = group % groups_of_head(a) * GROUP;
    chunk_t chunk = { .a = a, .query = query, .kv_head = group / groups_of_head(a) };
    uint32_t first_head = chunk.kv_head * per_kv_head + at;
    uint32_t count = per_kv_head - at < GROUP ? per_kv_head - at : GROUP;
    if (a->kv.scalar == QN_SCALAR_F32) attend_group(&chunk, QN_SCALAR_F32, first_head, count);
    else attend_group(&chunk, QN_SCALAR_BF16, first_head, count);
}

static void attend_items(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_attention_t *a = arguments;
    size_t queries = qn_query_count(a);
    uint32_t groups = groups_of_query(a);
    QN_ASSERT(a->kv.head_dim <= QN_ATTENTION_DIM_MAX && a->kv.head_dim % VEC_LANES == 0);
    for (size_t item = begin; item < end; item++) {
        qn_query_t query = qn_query_find(a, spread(item / groups, queries));
        attend_item(a, &query, (uint32_t)(item % groups));
    }
}

/* About what an item costs, from the middle of the first run. */
static size_t item_cost(const qn_attention_t *a)
{
    size_t positions = a->runs[0].position + a->runs[0].tokens / 2 + 1;
    if (a->window && positions > a->window) positions = a->window;
    return positions * a->kv.head_dim * a->heads / groups_of_query(a);
}

void KERNEL(qn_cpu_attention)(qn_stream_t *stream, const void *arguments)
{
    const qn_attention_t *a = arguments;
    qn_cpu_split(stream, qn_query_count(a) * groups_of_query(a), qn_grain(item_cost(a)), attend_items, a);
}
