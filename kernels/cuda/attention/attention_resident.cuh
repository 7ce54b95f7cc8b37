/* What attention_resident.cu's warps share: shapes, barriers, this block's run and the walk over it. For
 * attention_resident.cu only. */
#ifndef QN_KERNELS_CUDA_ATTENTION_ATTENTION_RESIDENT_CUH
#define QN_KERNELS_CUDA_ATTENTION_ATTENTION_RESIDENT_CUH

#include <cuda.h>

#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/attention/attention_cells.h"

#define RESIDENT_WARPS CELL_PIECES
#define RESIDENT_THREADS (RESIDENT_WARPS * WARP)
#define HEADS_MAX 8      /* of a kv head: columns of the tile */
#define TILE_BYTES 8192u /* of the ring: 64 positions of 64 dimensions, or 32 of 128 */
#define CHUNK_BYTES 128u /* of a row: 64 dimensions, what the copy engine swizzles */
#define MAP_ALIGN 1024u  /* of a tile: the swizzle goes by the address */
#define DEPTH_MAX 4

/* Shape of one instantiation. */
template <int D_, int DEPTH_, int BLOCKS_> struct resident_shape {
    static constexpr int D = D_;
    static constexpr int DEPTH = DEPTH_;   /* tiles of a warp's ring */
    static constexpr int BLOCKS = BLOCKS_; /* of a processor */
    static constexpr int CHUNKS = D / 64;
    static constexpr int POSITIONS = PIECE / CHUNKS; /* of a tile */
    static constexpr int TILES = 2 * CHUNKS;         /* of a piece: keys, then values */
    static constexpr int QUERY = D + 8;              /* of a query's row in shared memory: no bank conflicts */
    static constexpr int STRIDE = D + 4;             /* of a row of merged sums: likewise */
    static constexpr size_t RING = (size_t)RESIDENT_WARPS * DEPTH * TILE_BYTES;
};

typedef struct {
    CUtensorMap map; /* the cache: [D, K, P, L*2*B], innermost first */
    qn_attention_t a;
    float *partial;     /* [blocks, SPLIT_COUNT, RESIDENT_WARPS, LINES, a column of 8 threads per 2 heads] */
    uint32_t *counters; /* [N, K] */
    uint32_t group;     /* G */
    uint32_t box;       /* positions of one copy */
    uint32_t shift;     /* block_tokens = 2^shift */
    bool settled;       /* all of the cache but this step's rows is as it will be read: no need to wait */
} resident_t;

/* Floats that a thread leaves of a split: sums, bests, totals, the next split. */
template <int D> constexpr uint32_t LINES = D / 16 * 4 + 5;

/* In shared memory behind the ring. */
typedef struct alignas(16) {
    uint64_t full[RESIDENT_WARPS][DEPTH_MAX]; /* barriers */
    float bests[RESIDENT_WARPS][HEADS_MAX], totals[RESIDENT_WARPS][HEADS_MAX];
    cut_t cuts[2];            /* where this block's run begins and ends */
    part_t parts[PARTS_MAX];  /* in the order in which they are taken */
    uint32_t part_count, all; /* pieces of all runs */
    uint32_t sums[RESIDENT_WARPS];
    uint32_t last;
} common_t;

/* ---- barriers and copies ---- */

static __device__ __forceinline__ uint32_t shared_address(const void *at)
{
    return (uint32_t)__cvta_generic_to_shared(at);
}

static __device__ __forceinline__ void full_wait(uint32_t barrier, uint32_t parity)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n\t.reg .pred over;\n\tagain:\n\t"
                 "mbarrier.try_wait.parity.shared.b64 over, [%0], %1;\n\t@!over bra again;\n\t}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
#endif
}

static __device__ __forceinline__ void expect_bytes(uint32_t barrier, uint32_t bytes)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.expect_tx.shared.b64 state, [%0], %1;\n\t}" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
#endif
}

static __device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, uint32_t barrier, uint32_t dim,
                                                uint32_t head, uint32_t offset, uint32_t block)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, "
                 "%5}], [%6];" ::"r"(to),
                 "l"(map), "r"(dim), "r"(head), "r"(offset), "r"(block), "r"(barrier)
                 : "memory");
#endif
}

/* ---- this block's run ---- */

static __device__ __forceinline__ span_t span_at(const qn_attention_t &a, uint32_t run)
{
    return span_of(__ldg(&a.runs[run].position), __ldg(&a.runs[run].tokens), a.window);
}

/* Finds this block's run and the order of its parts; by all threads. */
static __device__ void find_run(const qn_attention_t &a, common_t &common)
{
    uint32_t each = (a.run_count + RESIDENT_THREADS - 1) / RESIDENT_THREADS, own = 0, heads = a.kv.kv_heads;
    uint32_t first = min(threadIdx.x * each, a.run_count), last = min(first + each, a.run_count);
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (uint32_t run = first; run < last; run++)
        own += pieces_of(span_at(a, run)) * heads;
    uint32_t upto = own;
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        uint32_t lower = __shfl_up_sync(ALL_LANES, upto, step);
        if (lane >= step) upto += lower;
    }
    if (lane == WARP - 1) common.sums[warp] = upto;
    __syncthreads();
    uint32_t all = 0, before = upto - own;
#pragma unroll
    for (uint32_t w = 0; w < RESIDENT_WARPS; w++) {
        if (w < warp) before += common.sums[w];
        all += common.sums[w];
    }
    uint32_t from = run_begin(blockIdx.x, gridDim.x, all), to = run_begin(blockIdx.x + 1, gridDim.x, all);
    uint32_t reach = cut_reach(gridDim.x, all);
    for (uint32_t run = first; run < last; run++) {
        span_t span = span_at(a, run);
        uint32_t pieces = pieces_of(span) * heads;
        if (from - before < pieces) common.cuts[0] = cut_in(span, run, before, from, heads, reach);
        if (to - before < pieces) common.cuts[1] = cut_in(span, run, before, to, heads, reach);
        before += pieces;
        if (pieces && to == all && before == all) common.cuts[1] = {run + 1, 0, 0, all}; /* none with cells after it */
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        cut_t begin = common.cuts[0];
        span_t span = {0, 0, 0, 0};
        if (begin.run < a.run_count) span = span_at(a, begin.run);
        common.part_count = all ? order_run(begin, common.cuts[1], span, heads, common.parts) : 0;
        common.all = all;
    }
    __syncthreads();
}

/* The walk over a block's run: (sequence, kv head) by (sequence, kv head), the cells of each that are its own. */
struct walk_t {
    const qn_attention_t &a;
    const common_t &common;
    bool more;
    uint32_t part, run, head, before; /* pieces of the line before the sequence */
    uint32_t cell, stop;
    span_t span;

    __device__ __forceinline__ walk_t(const qn_attention_t &a_, const common_t &common_)
        : a(a_), common(common_), part(0)
    {
        enter_part();
    }

    /* Begins at cell `from`, or at the first where it is 0. False where the part has none of its cells. */
    __device__ __forceinline__ bool enter_head(uint32_t from)
    {
        const cut_t &to = common.parts[part].to;
        cell = from ? from : span.first;
        stop = run == to.run && head == to.head ? to.cell : span.stop;
        return cell < stop;
    }

    __device__ __forceinline__ void enter_part()
    {
        for (; (more = part < common.part_count); part++) {
            const cut_t &from = common.parts[part].from;
            run = from.run, head = from.head, before = from.before;
            span = span_at(a, run);
            if (enter_head(from.cell) || advance()) return;
        }
    }

    /* To the part's next (sequence, kv head) with cells. */
    __device__ __forceinline__ bool advance()
    {
        const cut_t &to = common.parts[part].to;
        while (run != to.run || head != to.head) {
            if (++head == a.kv.kv_heads) {
                head = 0, before += pieces_of(span) * a.kv.kv_heads;
                if (++run < a.run_count) span = span_at(a, run);
            }
            if (enter_head(0)) return true;
        }
        return false;
    }

    __device__ __forceinline__ void next()
    {
        if (advance()) return;
        part++;
        enter_part();
    }
};

#endif
