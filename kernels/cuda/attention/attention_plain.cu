/* What is this?      Attention without tensor cores, for types and head dimensions that attention.cuh does not take:
 *                    a warp per query token and head, positions one after the other.
 * State owned:       none.
 * Must never:        let a row's result depend on how a prompt was cut into runs.
 * Read next:         attention.cuh. */
#include "kernels/cuda/device.cuh"

#define WARPS 4
#define DIM_MAX 512 /* model_config.h's QN_HEAD_DIM_MAX */

/* Finds query `index` of all runs: its run and token; false when there are fewer. */
static __device__ bool find_query(const qn_attention_t &a, uint32_t index, qn_run_t &run, uint32_t &token)
{
    for (uint32_t i = 0; i < a.run_count; i++) {
        run = a.runs[i];
        if (index < run.tokens) {
            token = index;
            return true;
        }
        index -= run.tokens;
    }
    return false;
}

/* Lane i holds elements i, i + 32, ... of the head. */
template <int PER_LANE, class A, class C>
static __device__ void attend_head(const qn_attention_t &a, const qn_run_t &run, uint32_t token, uint32_t head)
{
    uint32_t lane = threadIdx.x % WARP, dim = a.kv.head_dim, end = run.position + token + 1;
    uint32_t kv_head = head / (a.heads / a.kv.kv_heads), begin = a.window && end > a.window ? end - a.window : 0;
    const uint32_t *table = a.tables.block_tables + (size_t)run.slot * a.tables.table_blocks;
    size_t row = ((size_t)(run.first + token) * a.heads + head) * dim;
    float query[PER_LANE], sums[PER_LANE], best = -INFINITY, total = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        query[i] = lane + i * WARP < dim ? to_float(((const A *)a.q)[row + lane + i * WARP]) : 0;
        sums[i] = 0;
    }
    for (uint32_t p = begin; p < end; p++) {
        uint32_t block = table[p / a.kv.block_tokens];
        const C *key =
            (const C *)a.kv.data + kv_offset(a.kv, a.layer, 0, block, p % a.kv.block_tokens) + (size_t)kv_head * dim;
        const C *value = key + (size_t)a.kv.blocks * a.kv.block_tokens * a.kv.kv_heads * dim;
        float score = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (lane + i * WARP < dim) score = fmaf(query[i], to_float(key[lane + i * WARP]), score);
        score = warp_sum(score) * a.scale;
        if (a.softcap > 0) score = a.softcap * tanhf(score / a.softcap);
        float greatest = fmaxf(best, score), keep = expf(best - greatest), weight = expf(score - greatest);
        best = greatest;
        total = total * keep + weight;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (lane + i * WARP < dim) sums[i] = fmaf(weight, to_float(value[lane + i * WARP]), sums[i] * keep);
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (lane + i * WARP < dim) ((A *)a.out)[row + lane + i * WARP] = from_float<A>(sums[i] / total);
}

/* Warps walk over (query, head): how many there are is known on the device only. */
template <int PER_LANE, class A, class C>
static __global__ void attend_queries(const __grid_constant__ qn_attention_t a)
{
    grid_begin();
    qn_run_t run;
    uint32_t token;
    for (size_t item = (size_t)blockIdx.x * WARPS + threadIdx.x / WARP;
         find_query(a, (uint32_t)(item / a.heads), run, token); item += (size_t)gridDim.x * WARPS)
        attend_head<PER_LANE, A, C>(a, run, token, (uint32_t)(item % a.heads));
}

template <int PER_LANE> static void start(qn_stream_t *stream, const qn_attention_t *a)
{
    with_scalar(stream->options.activations, [&](auto act) {
        with_scalar(a->kv.scalar, [&](auto cache) {
            qn_cuda_start(stream, "attention", attend_queries<PER_LANE, decltype(act), decltype(cache)>,
                          8 * stream->processors, WARPS * WARP, 0, *a);
        });
    });
}

extern "C" void qn_cuda_attention_plain(qn_stream_t *stream, const void *arguments)
{
    const qn_attention_t *a = (const qn_attention_t *)arguments;
    QN_ASSERT(a->kv.head_dim <= DIM_MAX);
    if (!a->run_count) return;
    if (a->kv.head_dim <= 4 * WARP)
        start<4>(stream, a);
    else
        start<DIM_MAX / WARP>(stream, a);
}
