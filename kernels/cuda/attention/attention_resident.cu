/* What is this?      attention.decode for many sequences on sm_90: a grid that is resident all at once, whose blocks
 *                    have equal runs of the work, whose warps read keys and values by the copy engine.
 * State owned:       partial sums in the stream's workspace and the counters of (sequence, kv head)s that are cut.
 * Must never:        let who computed a split show in the bits.
 * Read next:         attention_cells.h (how work is shared out), attention_worker.cuh (what a warp does).
 *
 * A warp takes the piece of 64 positions that is its own of every cell (256). Positions are the rows of both products, since
 * the G <= 8 heads of a kv head would fill half of a tile or less: S^T = K Q^T, O^T = V^T P^T, by mma.m16n8k16.
 * It has a ring of its own and fills it by itself, tile by tile, by tensor copies of 64 dimensions of up to 64
 * positions; no warp waits for another but where a (sequence, kv head) ends.
 *
 * One order of additions: the pieces of a split that are one warp's are summed by the online softmax, splits are added
 * to each other in ascending order, and the four warps last. A run that ends within a (sequence, kv head) leaves the
 * sum of its splits; one that begins within it leaves each split by itself; the block that finds itself the last one
 * of them adds up, in order. */
#include "kernels/cuda/attention/attention_worker.cuh"

template <class S>
static __global__ void __launch_bounds__(RESIDENT_THREADS, S::BLOCKS)
    attend_runs(const __grid_constant__ resident_t resident)
{
    extern __shared__ __align__(MAP_ALIGN) char room[];
    common_t &common = *(common_t *)(room + S::RING);
    bf16 *queries = (bf16 *)(room + S::RING + sizeof(common_t));
    float *merged = (float *)(queries + 2 * RESIDENT_WARPS * resident.group * S::QUERY);
    worker_t<S> worker(resident, common, merged, queries, shared_address(room));
    grid_release();
    if (!resident.settled) grid_wait();
    worker.open();
    find_run(resident.a, common);
    worker.begin_copies();
    uint32_t filled = worker.fill(0, !resident.settled);
    if (resident.settled) grid_wait();
    worker.fill(filled, true);
    worker.work();
}

/* ---- host side ---- */

/* Calls with the shape for this head dimension. */
template <class F> static void with_resident_shape(uint32_t dim, F call)
{
    if (dim == 64)
        call(resident_shape<64, 2, 2>());
    else
        call(resident_shape<128, 2, 2>());
}

template <class S> static size_t shared_bytes(uint32_t group)
{
    return S::RING + sizeof(common_t) + 2 * RESIDENT_WARPS * group * S::QUERY * sizeof(bf16) +
           RESIDENT_WARPS * group * S::STRIDE * sizeof(float);
}

static bool takes_heads(uint32_t heads, uint32_t kv_heads, uint32_t dim)
{
    return (dim == 64 || dim == 128) && heads / kv_heads <= HEADS_MAX;
}

bool qn_cuda_resident_accepts(const qn_kernel_case_t *shape)
{
    uint32_t P = shape->block_tokens;
    return shape->kv_scalar == QN_SCALAR_BF16 && takes_heads(shape->heads, shape->kv_heads, shape->head_dim) &&
           P >= 16 && (P & (P - 1)) == 0;
}

/* Room for the splits of every block's (sequence, kv head) that its run cuts. */
static size_t partial_bytes(const qn_stream_t *stream, uint32_t dim, uint32_t group)
{
    size_t bytes = 0, width = divide_up(group, 2) * 8;
    with_resident_shape(dim, [&](auto s) {
        using S = decltype(s);
        bytes = sizeof(float) * S::BLOCKS * stream->processors * SPLIT_COUNT * RESIDENT_WARPS * LINES<S::D> * width;
    });
    return bytes;
}

size_t qn_cuda_resident_bytes(const qn_stream_t *stream)
{
    const qn_cuda_options_t *o = &stream->options;
    if (stream->capability < 90 || !takes_heads(o->heads, o->kv_heads, o->head_dim)) return 0;
    return partial_bytes(stream, o->head_dim, o->heads / o->kv_heads);
}

cudaError_t qn_cuda_prepare_resident(qn_stream_t *stream)
{
    cudaDriverEntryPointQueryResult found;
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &stream->encode_map, 12000,
                                                         cudaEnableDefault, &found);
    if (!error && found != cudaDriverEntryPointSuccess) error = cudaErrorNotSupported;
    for (uint32_t dim = 64; dim <= 128 && !error; dim += 64)
        with_resident_shape(dim, [&](auto s) {
            using S = decltype(s);
            error = cudaFuncSetAttribute(attend_runs<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         (int)stream->block_shared);
        });
    return error;
}

/* The cache as the copy engine sees it. */
static cudaError_t make_map(const qn_stream_t *stream, const qn_kv_t *kv, uint32_t box, CUtensorMap *ret_map)
{
    cuuint64_t row = (cuuint64_t)kv->head_dim * sizeof(bf16), heads = kv->kv_heads, tokens = kv->block_tokens;
    cuuint64_t dims[4] = {kv->head_dim, heads, tokens, (cuuint64_t)kv->layers * 2 * kv->blocks};
    cuuint64_t strides[3] = {row, row * heads, row * heads * tokens};
    cuuint32_t boxes[4] = {64, 1, box, 1}, steps[4] = {1, 1, 1, 1};
    CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
    auto encode = (CUresult(*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                               const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                               CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill))stream->encode_map;
    CUresult result =
        encode(ret_map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, kv->data, dims, strides, boxes, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

bool qn_cuda_resident_fits(const qn_stream_t *stream, const qn_attention_t *a)
{
    qn_kernel_case_t shape = {};
    shape.heads = a->heads, shape.kv_heads = a->kv.kv_heads, shape.head_dim = a->kv.head_dim;
    shape.block_tokens = a->kv.block_tokens, shape.kv_scalar = a->kv.scalar;
    return stream->capability >= 90 && qn_cuda_resident_accepts(&shape) && attention_fits(stream, a);
}

void qn_cuda_start_resident(qn_stream_t *stream, const qn_attention_t *a, bool settled)
{
    resident_t resident = {};
    resident.a = *a, resident.settled = settled;
    resident.partial = (float *)stream->workspace, resident.counters = stream->counters;
    resident.group = a->heads / a->kv.kv_heads;
    resident.shift = (uint32_t)__builtin_ctz(a->kv.block_tokens);
    QN_ASSERT(partial_bytes(stream, a->kv.head_dim, resident.group) <= stream->workspace_bytes &&
              a->run_count <= stream->options.max_sequences);
    with_resident_shape(a->kv.head_dim, [&](auto s) {
        using S = decltype(s);
        resident.box = a->kv.block_tokens < S::POSITIONS ? a->kv.block_tokens : (uint32_t)S::POSITIONS;
        cudaError_t error = make_map(stream, &a->kv, resident.box, &resident.map);
        qn_cuda_check(stream, error, "attention.decode: the cache's tensor map");
        if (!error)
            qn_cuda_start(stream, "attention.decode", attend_runs<S>, S::BLOCKS * stream->processors, RESIDENT_THREADS,
                          shared_bytes<S>(resident.group), resident);
    });
}

/* What the device cannot run is an error of the stream, not another kernel. */
extern "C" void qn_cuda_attention_resident(qn_stream_t *stream, const void *arguments)
{
    const qn_attention_t *a = (const qn_attention_t *)arguments;
    if (!a->run_count) return;
    if (qn_cuda_resident_fits(stream, a))
        qn_cuda_start_resident(stream, a, false);
    else
        qn_cuda_check(stream, cudaErrorNotSupported, "attention.decode=resident, for bf16 on compute capability 9.0");
}

extern "C" void qn_cuda_decode_attention_resident(qn_stream_t *stream, const void *arguments)
{
    const qn_decode_attention_t *f = (const qn_decode_attention_t *)arguments;
    uintptr_t addresses = (uintptr_t)f->write.k | (uintptr_t)f->write.v | (uintptr_t)f->rope.angles;
    if (!f->attention.run_count) return;
    if (!qn_cuda_resident_fits(stream, &f->attention)) {
        qn_cuda_check(stream, cudaErrorNotSupported, "decode_attention=resident, for bf16 on compute capability 9.0");
        return;
    }
    bool wide = addresses % 16 == 0; /* what comes before is one launch */
    if (wide) {
        qn_cuda_enter_attention(stream, f);
    } else {
        if (f->q_norm.x) qn_cuda_rmsnorm(stream, &f->q_norm);
        if (f->k_norm.x) qn_cuda_rmsnorm(stream, &f->k_norm);
        if (f->rope.angles) qn_cuda_rope(stream, &f->rope);
        qn_cuda_kv_write(stream, &f->write);
    }
    qn_cuda_start_resident(stream, &f->attention, wide);
}
