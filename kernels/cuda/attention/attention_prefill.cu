/* What is this?      attention.prefill on tensor cores: tiles of 64 rows, ragged runs, chunks, sliding window.
 * State owned:       none.
 * Must never:        let a row's result depend on how a prompt was cut into runs.
 * Read next:         attention.cuh (the arithmetic), attention_decode.cu.
 *
 * The launch does not know how many tokens the runs have (they are on the device, so that a launch can be captured):
 * a grid that just fills the device walks over the items, tile by tile, the last and longest tile of a run first. */
#include "kernels/cuda/attention/attention.cuh"

template <int D> using prefill_shape = attention_shape<D, ATTENTION_WARPS>;

/* Finds item `index` of all runs; false when there are fewer. */
template <class S> static __device__ bool find_item(const qn_attention_t &a, uint32_t index, attention_item_t &item)
{
    uint32_t group = a.heads / a.kv.kv_heads, run = 0, tiles = 0;
    for (; run < a.run_count; run++) {
        tiles = (a.runs[run].tokens * group + S::ROWS - 1) / S::ROWS;
        if (index < tiles * a.kv.kv_heads) break;
        index -= tiles * a.kv.kv_heads;
    }
    if (run == a.run_count) return false;
    item.run = a.runs[run], item.group = group;
    item.table = a.tables.block_tables + (size_t)item.run.slot * a.tables.table_blocks;
    item.kv_head = index % a.kv.kv_heads;
    item.first_row = (tiles - 1 - index / a.kv.kv_heads) * S::ROWS;
    uint32_t unused, last_row = item.first_row + S::ROWS - 1;
    row_range<S>(a, item, item.first_row, item.begin, unused);
    row_range<S>(a, item, last_row, unused, item.end);
    item.fresh = NO_ROW;
    return true;
}

template <class S>
static __device__ void store_rows(const qn_attention_t &a, const attention_item_t &item,
                                  const attention_sums<S::D> &sums)
{
    uint32_t lane = threadIdx.x % WARP, rows = item.run.tokens * item.group;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        uint32_t row = item.first_row + threadIdx.x / WARP * TILE_ROWS + lane / 4 + r * 8;
        if (row >= rows) continue;
        bf16 *out = (bf16 *)a.out + out_at<S>(a, item, row) + lane % 4 * 2;
        float share = 1 / sums.total[r];
#pragma unroll
        for (int d = 0; d < S::D / 8; d++)
            *(uint32_t *)(out + d * 8) = pack_bf16(sums.out[d][r * 2] * share, sums.out[d][r * 2 + 1] * share);
    }
}

/* Blocks of a processor: what registers and shared memory allow. */
template <class S> constexpr int BLOCKS = S::D <= 64 ? 3 : 2;

template <class S>
static __global__ void __launch_bounds__(ATTENTION_WARPS *WARP, BLOCKS<S>)
    attend_tiles(const __grid_constant__ qn_attention_t a)
{
    extern __shared__ __align__(16) bf16 shared[];
    grid_begin();
    attention_item_t item;
    for (uint32_t index = blockIdx.x; find_item<S>(a, index, item); index += gridDim.x) {
        attention_sums<S::D> sums;
        attend_cached<S>(a, item, shared, sums);
        store_rows<S>(a, item, sums);
    }
}

cudaError_t qn_cuda_prepare_prefill(void)
{
    cudaError_t error = cudaSuccess;
    for (uint32_t dim = 32; dim <= 256; dim += 32)
        with_head_dim(dim, [&](auto d) {
            using S = prefill_shape<d()>;
            if (!error)
                error = cudaFuncSetAttribute(attend_tiles<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::SHARED);
        });
    return error;
}

/* By the shape of the model and the device alone: a row's bits must not depend on its chunk. */
extern "C" void qn_cuda_attention_prefill(qn_stream_t *stream, const void *arguments)
{
    const qn_attention_t *a = (const qn_attention_t *)arguments;
    if (qn_cuda_wide_fits(stream, a))
        qn_cuda_attention_wgmma(stream, a);
    else if (attention_fits(stream, a))
        qn_cuda_attention_mma(stream, a);
    else
        qn_cuda_attention_plain(stream, a);
}

extern "C" void qn_cuda_attention_mma(qn_stream_t *stream, const void *arguments)
{
    const qn_attention_t *a = (const qn_attention_t *)arguments;
    if (!a->run_count) return;
    QN_ASSERT(attention_fits(stream, a));
    with_head_dim(a->kv.head_dim, [&](auto d) {
        using S = prefill_shape<d()>;
        qn_cuda_start(stream, "attention.prefill", attend_tiles<S>, BLOCKS<S> * stream->processors,
                      ATTENTION_WARPS * WARP, S::SHARED, *a);
    });
}
