/* What is this?      Attention under masks, and with its weights written, without tensor cores: a block per query token and
 *                    head. Scores of the first CACHED positions are kept, those beyond are computed again by each pass
 *                    over them: a row may be as long as the model allows.
 * State owned:       none.
 * Must never:        let a row's result depend on how a prompt was cut into runs.
 * Read next:         kernels.h (the rules), kernels/cpu/attention/attention_mask.h (the same, one position after the other). */
#include "kernels/cuda/device.cuh"

#define WARPS 4
#define THREADS (WARPS * WARP)
#define DIM_MAX 512 /* model_config.h's QN_HEAD_DIM_MAX */
#define PER_LANE (DIM_MAX / WARP)
#define CACHED 4096
#define BINS 2048
#define BLOCK_WORDS (QN_MASK_POSITIONS_MAX / 32)

/* The rules that hold for one row; a position is a candidate unless a span leaves it out. */
typedef struct {
    uint32_t sinks[QN_MASKS_MAX], from[QN_MASKS_MAX], spans;
    uint32_t most, blocks;
    float dropped, threshold;
} row_mask_t;

typedef struct {
    float scores[CACHED];
    uint32_t bins[BINS];
    uint32_t block_bits[BLOCK_WORDS]; /* blocks of the cache that are chosen */
    float sums[WARPS][DIM_MAX];
    float room[WARP];
    uint32_t count_room[WARP], word[2];
    row_mask_t mask;
} shared_t;

/* A row: a query's head, and what it sees of the cache. */
template <class A, class C> struct row_t {
    const qn_attention_t *a;
    const uint32_t *table;
    const A *q;
    uint32_t kv_head, begin, end;
    shared_t *shared;

    __device__ bool candidate(uint32_t p) const
    {
        for (uint32_t i = 0; i < shared->mask.spans; i++)
            if (p >= shared->mask.sinks[i] && p < shared->mask.from[i]) return false;
        return true;
    }

    __device__ const C *cache(uint32_t which, uint32_t p) const
    {
        return (const C *)a->kv.data +
               kv_offset(a->kv, a->layer, which, table[p / a->kv.block_tokens], p % a->kv.block_tokens) +
               (size_t)kv_head * a->kv.head_dim;
    }

    /* By a whole warp; -infinity where it is no candidate. */
    __device__ float compute(uint32_t p) const
    {
        if (!candidate(p)) return -INFINITY;
        const C *key = cache(0, p);
        float sum = 0;
        for (uint32_t d = threadIdx.x % WARP; d < a->kv.head_dim; d += WARP)
            sum = fmaf(to_float(q[d]), to_float(key[d]), sum);
        sum = warp_sum(sum) * a->scale;
        return a->softcap > 0 ? a->softcap * tanhf(sum / a->softcap) : sum;
    }

    __device__ uint32_t cached() const { return min(end - begin, (uint32_t)CACHED); }

    __device__ void fill() const
    {
        for (uint32_t i = threadIdx.x / WARP; i < cached(); i += WARPS) {
            float score = compute(begin + i);
            if (threadIdx.x % WARP == 0) shared->scores[i] = score;
        }
        __syncthreads();
    }

    /* f(position, score) once per position, in any order, by one thread each. */
    template <class F> __device__ void each(F f) const
    {
        for (uint32_t i = threadIdx.x; i < cached(); i += THREADS)
            f(begin + i, shared->scores[i]);
        for (uint32_t i = CACHED + threadIdx.x / WARP; i < end - begin; i += WARPS) {
            float score = compute(begin + i);
            if (threadIdx.x % WARP == 0) f(begin + i, score);
        }
    }

    /* The same for blocks of the cache and the greatest score in each. */
    template <class F> __device__ void each_block(F f) const
    {
        uint32_t P = a->kv.block_tokens;
        for (uint32_t b = begin / P + threadIdx.x / WARP; b <= (end - 1) / P; b += WARPS) {
            float best = -INFINITY;
            for (uint32_t p = max(b * P, begin); p < min((b + 1) * P, end); p++)
                best = fmaxf(best, p - begin < CACHED ? shared->scores[p - begin] : compute(p));
            if (threadIdx.x % WARP == 0) f(b, best);
        }
    }
};

/* Floats as integers of the same order. */
static __device__ uint32_t key_of(float score)
{
    uint32_t bits = __float_as_uint(score);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ uint32_t block_count(uint32_t value, shared_t *shared)
{
    return block_sum(value, shared->count_room);
}

/* The k-th greatest of what `each` shows, and the last index at which one equal to it is still among the k greatest.
 * Values of -infinity are not there. By all threads. */
template <class E>
static __device__ void select(E each, uint32_t k, shared_t *shared, uint32_t indices, uint32_t &kth, uint32_t &last)
{
    const unsigned SHIFTS[] = {21, 10, 0};
    uint32_t prefix = 0, known = 0;
    for (unsigned pass = 0; pass < 3; pass++) {
        uint32_t width = pass == 2 ? 1024 : BINS;
        for (uint32_t i = threadIdx.x; i < BINS; i += THREADS)
            shared->bins[i] = 0;
        __syncthreads();
        each([&](uint32_t, float score) {
            uint32_t key = key_of(score);
            if (score > -INFINITY && (key & known) == prefix)
                atomicAdd(&shared->bins[key >> SHIFTS[pass] & (width - 1)], 1);
        });
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t bin = width;
            while (bin > 0 && shared->bins[--bin] < k)
                k -= shared->bins[bin];
            shared->word[0] = bin;
            shared->word[1] = k;
        }
        __syncthreads();
        prefix |= shared->word[0] << SHIFTS[pass];
        k = shared->word[1];
        known |= (width - 1) << SHIFTS[pass];
        __syncthreads();
    }
    kth = prefix;
    uint32_t low = 0, high = indices; /* fewest indices that hold k equal ones: halves */
    while (low < high) {
        uint32_t middle = (low + high) / 2, equal = 0;
        each([&](uint32_t index, float score) { equal += key_of(score) == kth && index <= middle; });
        if (block_count(equal, shared) >= k)
            high = middle;
        else
            low = middle + 1;
    }
    last = low;
}

static __device__ bool takes(float score, uint32_t index, uint32_t kth, uint32_t last)
{
    uint32_t key = key_of(score);
    return key > kth || (key == kth && index <= last);
}

/* By one thread. */
static __device__ void read_masks(const qn_probed_attention_t &a, uint32_t head, uint32_t end, row_mask_t &row)
{
    row.spans = 0;
    row.most = row.blocks = UINT32_MAX;
    row.dropped = row.threshold = 0;
    for (uint32_t i = 0; i < a.mask_count; i++) {
        const qn_mask_t &m = a.masks[i];
        if (a.attention.layer < m.layer_from || a.attention.layer >= m.layer_to || head < m.head_from ||
            head >= m.head_to)
            continue;
        switch (m.kind) {
        case QN_MASK_WINDOW:
        case QN_MASK_SINK_WINDOW:
            row.sinks[row.spans] = m.kind == QN_MASK_SINK_WINDOW ? m.sinks : 0;
            row.from[row.spans++] = end > m.window ? end - m.window : 0;
            break;
        case QN_MASK_TOP_K: row.most = min(row.most, m.k); break;
        case QN_MASK_BLOCK_TOP_K: row.blocks = min(row.blocks, m.k); break;
        case QN_MASK_RATIO: row.dropped = fmaxf(row.dropped, m.value); break;
        case QN_MASK_THRESHOLD: row.threshold = fmaxf(row.threshold, m.value); break;
        }
    }
}

template <class A, class C>
static __device__ void attend_row(const qn_probed_attention_t &p, const row_t<A, C> &row, uint32_t run, size_t out_row)
{
    shared_t *shared = row.shared;
    const qn_attention_t &a = p.attention;
    const row_mask_t &mask = shared->mask;
    auto positions = [&](auto f) { row.each(f); };
    auto blocks = [&](auto f) { row.each_block(f); };
    row.fill();
    uint32_t count = 0, kth = 0, last = UINT32_MAX, block_kth = 0, block_last = UINT32_MAX;
    float best = -INFINITY, total = 0;
    row.each([&](uint32_t, float s) { count += s > -INFINITY, best = fmaxf(best, s); });
    count = block_count(count, shared);
    best = block_max(best, -INFINITY, shared->room);
    row.each([&](uint32_t, float s) { total += expf(s - best); });
    total = block_sum(total, shared->room);
    uint32_t most = min(mask.most, count);
    if (mask.dropped > 0) most = min(most, (uint32_t)ceil((1 - (double)mask.dropped) * count * (1 - 1e-6)));
    most = max(most, 1u);
    if (most < count) select(positions, most, shared, row.end, kth, last);
    bool by_block = mask.blocks != UINT32_MAX;
    if (by_block) {
        uint32_t there = 0, P = a.kv.block_tokens, all = (row.end - 1) / P + 1;
        row.each_block([&](uint32_t, float s) { there += s > -INFINITY; });
        there = block_count(there, shared);
        if (mask.blocks < there) select(blocks, mask.blocks, shared, all, block_kth, block_last);
        for (uint32_t i = threadIdx.x; i < (all + 31) / 32; i += THREADS)
            shared->block_bits[i] = 0;
        __syncthreads();
        row.each_block([&](uint32_t b, float s) {
            if (s > -INFINITY && takes(s, b, block_kth, block_last))
                atomicOr(&shared->block_bits[b / 32], 1u << b % 32);
        });
        __syncthreads();
    }
    auto seen = [&](uint32_t at, float s) {
        if (s == -INFINITY || (most < count && !takes(s, at, kth, last))) return false;
        if (mask.threshold > 0 && s < best && expf(s - best) < mask.threshold * total) return false;
        uint32_t b = at / a.kv.block_tokens;
        return !by_block || (shared->block_bits[b / 32] >> b % 32 & 1) != 0;
    };
    uint32_t values = 0;
    float kept = 0;
    row.each([&](uint32_t at, float s) {
        bool yes = seen(at, s);
        values += yes;
        kept += yes ? expf(s - best) : 0;
    });
    values = block_count(values, shared);
    kept = block_sum(kept, shared->room);
    /* Values: a warp per position, lanes over the head's elements. */
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, dim = a.kv.head_dim;
    float sums[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        sums[i] = 0;
    for (uint32_t at = row.begin + warp; at < row.end; at += WARPS) {
        float s = at - row.begin < CACHED ? shared->scores[at - row.begin] : row.compute(at);
        bool yes = seen(at, s);
        float weight = yes ? expf(s - best) / kept : 0;
        if (p.ret_weights && lane == 0) p.ret_weights[out_row * p.weight_columns + at] = weight;
        if (!yes) continue;
        const C *value = row.cache(1, at);
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (lane + i * WARP < dim) sums[i] = fmaf(weight, to_float(value[lane + i * WARP]), sums[i]);
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (lane + i * WARP < dim) shared->sums[warp][lane + i * WARP] = sums[i];
    __syncthreads();
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS) {
        float sum = 0;
        for (int w = 0; w < WARPS; w++)
            sum += shared->sums[w][d];
        ((A *)a.out)[out_row * dim + d] = from_float<A>(sum);
    }
    if (threadIdx.x == 0 && p.ret_read) {
        atomicAdd((unsigned long long *)&p.ret_read[2 * (size_t)run], (unsigned long long)count + values);
        atomicAdd((unsigned long long *)&p.ret_read[2 * (size_t)run + 1], 2ull * (row.end - row.begin));
    }
    __syncthreads();
}

/* Blocks walk over (query, head): how many there are is known on the device only. */
template <class A, class C> static __global__ void attend_rows(const __grid_constant__ qn_probed_attention_t p)
{
    extern __shared__ __align__(16) uint8_t memory[];
    shared_t *shared = (shared_t *)memory;
    const qn_attention_t &a = p.attention;
    grid_begin();
    for (size_t item = blockIdx.x;; item += gridDim.x) {
        uint32_t index = (uint32_t)(item / a.heads), head = (uint32_t)(item % a.heads), run = 0;
        while (run < a.run_count && index >= a.runs[run].tokens)
            index -= a.runs[run++].tokens;
        if (run == a.run_count) return;
        const qn_run_t &r = a.runs[run];
        uint32_t end = r.position + index + 1;
        size_t out_row = (size_t)(r.first + index) * a.heads + head;
        row_t<A, C> row = {&a,
                           a.tables.block_tables + (size_t)r.slot * a.tables.table_blocks,
                           (const A *)a.q + out_row * a.kv.head_dim,
                           head / (a.heads / a.kv.kv_heads),
                           a.window && end > a.window ? end - a.window : 0,
                           end,
                           shared};
        if (threadIdx.x == 0) read_masks(p, head, end, shared->mask);
        __syncthreads();
        attend_row(p, row, run, out_row);
    }
}

extern "C" void qn_cuda_attention_probed(qn_stream_t *stream, const void *arguments)
{
    const qn_probed_attention_t *p = (const qn_probed_attention_t *)arguments;
    QN_ASSERT(p->attention.kv.head_dim <= DIM_MAX && p->mask_count <= QN_MASKS_MAX);
    if (!p->attention.run_count) return;
    with_scalar(stream->options.activations, [&](auto act) {
        with_scalar(p->attention.kv.scalar, [&](auto cache) {
            auto kernel = attend_rows<decltype(act), decltype(cache)>;
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(shared_t));
            qn_cuda_start(stream, "attention.probed", kernel, 4 * stream->processors, THREADS, sizeof(shared_t), *p);
        });
    });
}
