/* What is this?      attention.decode on tensor cores: the query heads of a kv head are the 16 rows of one tile, so
 *                    keys and values are read once; long contexts are split over blocks. With or without what stands
 *                    before it: the norms of q and k, their rotation, and the write of k and v to the cache.
 * State owned:       partial sums in the stream's workspace and the counters of splits that are done.
 * Must never:        combine splits in the order in which they end.
 * Read next:         attention.cuh (the arithmetic), fused.h; attention_resident.cu, for many sequences.
 *
 * Splits (Flash-Decoding, Dao et al. 2023): each block has unnormalised sums, best scores and totals of its positions.
 * Where a kv head's splits are one cluster, all of its blocks combine a part of the outputs each, out of each other's
 * shared memory; else they leave them in memory, and the block that finds itself the last one combines them. Both in
 * the order of the splits. In deterministic mode the splits depend on the length alone; otherwise also on how many
 * sequences fill the device already.
 *
 * FUSED: keys and values of earlier positions are constant in a step, so their copies begin before the kernel that
 * projects q, k and v has ended; this token's own key and value go to the cache and, beside it, into the tile. */
#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/norm.cuh"

#define SPLITS_MAX QN_CUDA_SPLITS_MAX
#define EXTRA 4 /* after a row's sums: best score, total, and room to the next 16 bytes */
#define BATCH 8
#define CLUSTER 8              /* blocks; what every device with clusters takes */
#define CLUSTER_POSITIONS 4096 /* contexts up to here are split over one cluster only */

/* What stands before attention. */
typedef struct {
    const float *angles;        /* NULL: no rotation */
    const bf16 *k, *v;          /* [T, K, D] */
    const int64_t *kv_rows;     /* [T] */
    qn_weight_t q_norm, k_norm; /* data NULL: none */
    float q_eps, q_offset, k_eps, k_offset;
} prologue_t;

typedef struct {
    qn_attention_t a;
    prologue_t before;             /* FUSED */
    float *partial;                /* [N, row tiles, splits, rows of a tile, D + EXTRA] */
    uint32_t *counters;            /* [N, row tiles] */
    uint32_t splits;               /* at most, = gridDim.x */
    uint32_t wanted;               /* splits that fill the device */
    uint32_t chunk_min, chunk_max; /* positions of a split; the bound on splits goes first */
    bool clustered;                /* CLUSTER splits are a cluster */
    uint32_t group;                /* query heads of a kv head */
} decode_t;

/* Positions of one split: a multiple of the tile. */
static __device__ __forceinline__ uint32_t chunk_of(const decode_t &d, uint32_t length, uint32_t tile)
{
    if (d.clustered && length <= CLUSTER_POSITIONS) return ((length + CLUSTER - 1) / CLUSTER + tile - 1) / tile * tile;
    uint32_t chunk = min(max((length + d.wanted - 1) / d.wanted, d.chunk_min), d.chunk_max);
    return (max(chunk, (length + d.splits - 1) / d.splits) + tile - 1) / tile * tile;
}

/* Adds up the four warps, which have the same rows and a quarter of the positions each. Warp w leaves its rows, made
 * comparable by the common best, in shared memory; then threads go over (row, d). totals and bests: [warp][row]. */
template <class S>
static __device__ void merge_warps(attention_sums<S::D> &sums, float *rows, float *bests, float *totals)
{
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int r = 0; r < 2; r++)
        if (lane % 4 == 0) bests[warp * TILE_ROWS + lane / 4 + r * 8] = sums.best[r];
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        uint32_t row = lane / 4 + r * 8;
        float best = -INFINITY;
#pragma unroll
        for (int w = 0; w < S::POSITION_WARPS; w++)
            best = fmaxf(best, bests[w * TILE_ROWS + row]);
        float keep = sums.best[r] == -INFINITY ? 0 : exp2f(sums.best[r] - best);
        if (lane % 4 == 0) totals[warp * TILE_ROWS + row] = sums.total[r] * keep;
        float *to = rows + ((size_t)warp * TILE_ROWS + row) * S::D + lane % 4 * 2;
#pragma unroll
        for (int d = 0; d < S::D / 8; d++) {
            to[d * 8] = sums.out[d][r * 2] * keep;
            to[d * 8 + 1] = sums.out[d][r * 2 + 1] * keep;
        }
    }
    __syncthreads();
}

template <class S> static __device__ float merged(const float *rows, uint32_t row, uint32_t d)
{
    float sum = 0;
#pragma unroll
    for (int w = 0; w < S::POSITION_WARPS; w++)
        sum += rows[((size_t)w * TILE_ROWS + row) * S::D + d];
    return sum;
}

static __device__ float merged_total(const float *totals, uint32_t row)
{
    float sum = 0;
#pragma unroll
    for (int w = 0; w < ATTENTION_WARPS; w++)
        sum += totals[w * TILE_ROWS + row];
    return sum;
}

static __device__ float merged_best(const float *bests, uint32_t row)
{
    float best = -INFINITY;
#pragma unroll
    for (int w = 0; w < ATTENTION_WARPS; w++)
        best = fmaxf(best, bests[w * TILE_ROWS + row]);
    return best;
}

/* True in all threads of the block that ends last of `count`. */
static __device__ bool is_last(uint32_t *counter, uint32_t count)
{
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1) == count - 1;
        if (last) *counter = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

/* The share of every (split, row) in the result, into shares[] (which has twice the room): a warp per row, its lanes
 * over the splits. */
static __device__ void find_shares(const float *partial, uint32_t width, uint32_t splits, uint32_t stride,
                                   uint32_t rows, float *shares)
{
    float *totals = shares + SPLITS_MAX * TILE_ROWS;
    for (uint32_t i = threadIdx.x; i < splits * rows; i += ATTENTION_WARPS * WARP) {
        const float *extra = partial + (i / rows * stride + i % rows + 1) * width - EXTRA;
        shares[i] = __ldcg(extra);
        totals[i] = __ldcg(extra + 1);
    }
    __syncthreads();
    for (uint32_t row = threadIdx.x / WARP; row < rows; row += ATTENTION_WARPS) {
        float best = -INFINITY, total = 0;
        for (uint32_t s = threadIdx.x % WARP; s < splits; s += WARP)
            best = fmaxf(best, shares[s * rows + row]);
        best = warp_max(best);
        for (uint32_t s = threadIdx.x % WARP; s < splits; s += WARP) {
            float share = power_of_two(shares[s * rows + row] - best);
            shares[s * rows + row] = share;
            total = fmaf(share, totals[s * rows + row], total);
        }
        total = 1 / warp_sum(total);
        for (uint32_t s = threadIdx.x % WARP; s < splits; s += WARP)
            shares[s * rows + row] *= total;
    }
    __syncthreads();
}

/* Four elements of one row in up to BATCH splits from `first` on; all on their way at once. */
static __device__ __forceinline__ void load_splits(const float *from, size_t step, uint32_t first, uint32_t splits,
                                                   float4 (&to)[BATCH])
{
#pragma unroll
    for (uint32_t i = 0; i < BATCH; i++)
        if (first + i < splits) to[i] = __ldcg((const float4 *)(from + (first + i) * step));
}

/* Adds up the splits of one row tile, each thread four elements at a time, in the order of the splits. */
template <class S>
static __device__ void combine(const qn_attention_t &a, const attention_item_t &item, const float *partial,
                               uint32_t splits, uint32_t stride, uint32_t rows, float *shares)
{
    constexpr uint32_t QUADS = S::D / 4, WIDTH = S::D + EXTRA;
    float4 batch[BATCH];
    if (threadIdx.x < rows * QUADS) /* the first loads do not wait for the shares */
        load_splits(partial + threadIdx.x / QUADS * WIDTH + threadIdx.x % QUADS * 4, stride * WIDTH, 0, splits, batch);
    find_shares(partial, WIDTH, splits, stride, rows, shares);
    for (uint32_t i = threadIdx.x; i < rows * QUADS; i += ATTENTION_WARPS * WARP) {
        uint32_t row = i / QUADS, d = i % QUADS * 4;
        const float *from = partial + row * WIDTH + d;
        float4 sum = make_float4(0, 0, 0, 0);
        for (uint32_t first = 0; first < splits; first += BATCH) {
            if (first || i != threadIdx.x) load_splits(from, stride * WIDTH, first, splits, batch);
#pragma unroll
            for (uint32_t j = 0; j < BATCH; j++) {
                if (first + j >= splits) break;
                float share = shares[(first + j) * rows + row];
                sum.x = fmaf(share, batch[j].x, sum.x), sum.y = fmaf(share, batch[j].y, sum.y);
                sum.z = fmaf(share, batch[j].z, sum.z), sum.w = fmaf(share, batch[j].w, sum.w);
            }
        }
        bf16 *out = (bf16 *)a.out + out_at<S>(a, item, item.first_row + row) + d;
        *(uint2 *)out = make_uint2(pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w));
    }
}

template <class S>
static __device__ void store_out(const qn_attention_t &a, const attention_item_t &item, uint32_t rows,
                                 const float *merged_rows, const float *totals)
{
    for (uint32_t i = threadIdx.x; i < rows * S::D; i += ATTENTION_WARPS * WARP) {
        uint32_t row = i / S::D, d = i % S::D;
        float value = merged<S>(merged_rows, row, d) / merged_total(totals, row);
        ((bf16 *)a.out)[out_at<S>(a, item, item.first_row + row) + d] = from_float<bf16>(value);
    }
}

/* Leaves this split's rows; the last block combines, and uses the merged rows' memory for it. */
template <class S>
static __device__ void store_split(const decode_t &decode, const attention_item_t &item, uint32_t rows, uint32_t splits,
                                   float *merged_rows, const float *bests, const float *totals)
{
    constexpr uint32_t WIDTH = S::D + EXTRA;
    size_t tile = (size_t)blockIdx.z * gridDim.y + blockIdx.y;
    uint32_t stride = min(decode.group, (uint32_t)TILE_ROWS); /* rows of a full tile */
    float *partial = decode.partial + tile * decode.splits * stride * WIDTH;
    float *own = partial + blockIdx.x * stride * WIDTH;
    for (uint32_t i = threadIdx.x; i < rows * S::D; i += ATTENTION_WARPS * WARP)
        own[i / S::D * WIDTH + i % S::D] = merged<S>(merged_rows, i / S::D, i % S::D);
    if (threadIdx.x < rows) {
        own[threadIdx.x * WIDTH + S::D] = merged_best(bests, threadIdx.x);
        own[threadIdx.x * WIDTH + S::D + 1] = merged_total(totals, threadIdx.x);
    }
    if (is_last(&decode.counters[tile], splits)) combine<S>(decode.a, item, partial, splits, stride, rows, merged_rows);
}

/* Each block of the cluster combines its share of the outputs. All of its blocks that have a split call it. */
template <class S>
static __device__ void combine_cluster(const qn_attention_t &a, const attention_item_t &item, uint32_t rows,
                                       uint32_t splits, float *merged_rows, const float *bests, const float *totals)
{
    __shared__ float extras[2][TILE_ROWS]; /* best and total of each row */
    for (uint32_t i = threadIdx.x; i < rows * S::D; i += ATTENTION_WARPS * WARP)
        merged_rows[i] = merged<S>(merged_rows, i / S::D, i % S::D); /* in place: warp 0's */
    if (threadIdx.x < rows) {
        extras[0][threadIdx.x] = merged_best(bests, threadIdx.x);
        extras[1][threadIdx.x] = merged_total(totals, threadIdx.x);
    }
    cluster_barrier();
    for (uint32_t i = blockIdx.x * ATTENTION_WARPS * WARP + threadIdx.x; i < rows * S::D;
         i += splits * ATTENTION_WARPS * WARP) {
        uint32_t row = i / S::D;
        float best = -INFINITY, total = 0, sum = 0, scores[CLUSTER], parts[CLUSTER], values[CLUSTER];
#pragma unroll
        for (uint32_t s = 0; s < CLUSTER; s++) {
            scores[s] = s < splits ? cluster_load(&extras[0][row], s) : -INFINITY;
            parts[s] = s < splits ? cluster_load(&extras[1][row], s) : 0;
            values[s] = s < splits ? cluster_load(&merged_rows[i], s) : 0;
        }
#pragma unroll
        for (uint32_t s = 0; s < CLUSTER; s++)
            best = fmaxf(best, scores[s]);
#pragma unroll
        for (uint32_t s = 0; s < CLUSTER; s++) {
            float share = power_of_two(scores[s] - best);
            total = fmaf(share, parts[s], total);
            sum = fmaf(share, values[s], sum);
        }
        ((bf16 *)a.out)[out_at<S>(a, item, item.first_row + row) + i % S::D] = from_float<bf16>(sum / total);
    }
    cluster_barrier(); /* nobody leaves while others read its shared memory */
}

/* ---- before attention ---- */

/* Out of line: few models norm heads, and the others should not fetch the code. */
static __device__ __noinline__ float head_scale(const bf16 *head, uint32_t width, float eps)
{
    return norm_scale(warp_sum(square_sum<8>(head, width, threadIdx.x % WARP * 8, WARP * 8)), width, eps);
}

static __device__ __noinline__ float norm_element(const qn_weight_t &norm, uint32_t i, float value, float scale,
                                                  float offset)
{
    return to_float(from_float<bf16>(normed(value, scale, load_scalar(norm.data, norm.scalar, i), offset)));
}

/* A head on its way to shared memory and, unless NULL, the cache. A lane has pairs i, i + D/2 for every 32nd i. */
template <int D> struct head_t {
    static constexpr uint32_t PAIRS = D / 2, EACH = (PAIRS + WARP - 1) / WARP;
    const bf16 *from;
    const qn_weight_t *norm; /* NULL: none */
    const float *angles;     /* NULL: none */
    float eps, offset;
    bf16 *to, *cache;
    bf16 lows[EACH], highs[EACH];
    float cosines[EACH], sines[EACH];

    __device__ __forceinline__ void load()
    {
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++) {
            uint32_t i = threadIdx.x % WARP + j * WARP;
            if (PAIRS % WARP && i >= PAIRS) break;
            lows[j] = from[i], highs[j] = from[i + PAIRS];
            if (angles) cosines[j] = angles[i], sines[j] = angles[i + PAIRS];
        }
    }

    /* Rounds to bf16 where the operations apart would round. */
    __device__ __forceinline__ void store() const
    {
        float scale = norm ? head_scale(from, D, eps) : 0;
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++) {
            uint32_t i = threadIdx.x % WARP + j * WARP;
            if (PAIRS % WARP && i >= PAIRS) break;
            float low = to_float(lows[j]), high = to_float(highs[j]);
            if (norm) {
                low = norm_element(*norm, i, low, scale, offset);
                high = norm_element(*norm, i + PAIRS, high, scale, offset);
            }
            if (angles) rotate_pair(low, high, cosines[j], sines[j]);
            to[i] = from_float<bf16>(low), to[i + PAIRS] = from_float<bf16>(high);
            if (cache) cache[i] = from_float<bf16>(low), cache[i + PAIRS] = from_float<bf16>(high);
        }
    }
};

/* Where this token's key goes in the cache, or NULL; its value is a plane further. */
static __device__ bf16 *cache_place(const decode_t &decode, const attention_item_t &item)
{
    const qn_kv_t &kv = decode.a.kv;
    int64_t row = decode.before.kv_rows[item.run.first];
    if (row < 0 || item.first_row) return NULL; /* one of the tiles of query heads writes */
    size_t before = (size_t)decode.a.layer * 2 * kv.blocks * kv.block_tokens; /* rows of other layers */
    return (bf16 *)kv.data + ((before + (size_t)row) * kv.kv_heads + item.kv_head) * kv.head_dim;
}

/* The jobs of a block: its query heads into shared memory, then, in the split that has this token's position, its key
 * and value into `fresh`. */
template <class S>
static __device__ __forceinline__ head_t<S::D> describe_head(const decode_t &decode, const attention_item_t &item,
                                                             uint32_t job, uint32_t count, bf16 *queries, bf16 *fresh)
{
    const qn_attention_t &a = decode.a;
    const prologue_t &before = decode.before;
    const float *angles = before.angles ? before.angles + (size_t)item.run.first * S::D : NULL;
    size_t own = ((size_t)item.run.first * a.kv.kv_heads + item.kv_head) * S::D;
    if (job < count)
        return {(const bf16 *)a.q + out_at<S>(a, item, item.first_row + job),
                before.q_norm.data ? &before.q_norm : NULL,
                angles,
                before.q_eps,
                before.q_offset,
                queries + job * S::STRIDE,
                NULL};
    if (job == count)
        return {before.k + own,
                before.k_norm.data ? &before.k_norm : NULL,
                angles,
                before.k_eps,
                before.k_offset,
                fresh,
                NULL};
    return {before.v + own, NULL, NULL, 0, 0, fresh + S::D, NULL};
}

/* Two jobs of a warp: all loads are on their way before any is waited for. */
template <class S> struct pair_t {
    head_t<S::D> one, two;
    uint32_t job, jobs;

    __device__ __forceinline__ pair_t(const decode_t &decode, const attention_item_t &item, uint32_t first,
                                      uint32_t count, uint32_t jobs_, bf16 *queries, bf16 *fresh)
        : job(first + threadIdx.x / WARP), jobs(jobs_)
    {
        one = describe_head<S>(decode, item, job, count, queries, fresh);
        two = describe_head<S>(decode, item, job + ATTENTION_WARPS, count, queries, fresh);
    }

    __device__ __forceinline__ void run(const decode_t &decode, const attention_item_t &item, uint32_t count)
    {
        uint32_t second = job + ATTENTION_WARPS;
        if (job >= jobs) return;
        one.load();
        if (second < jobs) two.load();
        if (jobs > count && max(job, second < jobs ? second : 0) >= count) {
            const qn_kv_t &kv = decode.a.kv;
            bf16 *place = cache_place(decode, item);
            size_t plane = (size_t)kv.blocks * kv.block_tokens * kv.kv_heads * S::D;
            if (place && job >= count) one.cache = place + (job - count) * plane;
            if (place && second < jobs && second >= count) two.cache = place + (second - count) * plane;
        }
        one.store();
        if (second < jobs) two.store();
    }
};

/* Rows of the query tile that no head owns. */
template <class S> static __device__ void clear_queries(uint32_t count, bf16 *queries)
{
    constexpr uint32_t PIECES = S::D / 8;
    for (uint32_t i = count * PIECES + threadIdx.x; i < TILE_ROWS * PIECES; i += ATTENTION_WARPS * WARP)
        *(uint4 *)(queries + i / PIECES * S::STRIDE + i % PIECES * 8) = make_uint4(0, 0, 0, 0);
}

/* Puts `fresh` into the tile at `stage` that begins at `first`, if its position is there. */
template <class S>
static __device__ void patch_tile(const attention_item_t &item, const bf16 *fresh, uint32_t first, bf16 *stage)
{
    constexpr uint32_t PIECES = S::D / 8;
    uint32_t row = item.fresh - first;
    if (row >= S::TILE || item.fresh >= item.end) return;
    for (uint32_t i = threadIdx.x; i < 2 * PIECES; i += ATTENTION_WARPS * WARP)
        *(uint4 *)(stage + (i / PIECES * S::TILE + row) * S::STRIDE + i % PIECES * 8) = ((const uint4 *)fresh)[i];
}

/* ---- the kernel ---- */

/* The run, its positions, and this block's split of them; returns how many splits the run has: none without tokens. */
template <class S, bool FUSED> static __device__ uint32_t find_split(const decode_t &decode, attention_item_t &item)
{
    const qn_attention_t &a = decode.a;
    uint32_t tiles = (decode.group + TILE_ROWS - 1) / TILE_ROWS, begin, end;
    item.run = a.runs[blockIdx.z], item.group = decode.group;
    item.table = a.tables.block_tables + (size_t)item.run.slot * a.tables.table_blocks;
    item.kv_head = blockIdx.y / tiles, item.first_row = blockIdx.y % tiles * TILE_ROWS;
    row_range<S>(a, item, 0, begin, end);
    if (!item.run.tokens) return 0;
    uint32_t origin = begin / S::TILE * S::TILE, chunk = chunk_of(decode, end - origin, S::TILE);
    item.fresh = FUSED ? end - 1 : NO_ROW;
    item.begin = max(begin, origin + blockIdx.x * chunk);
    item.end = min(end, origin + (blockIdx.x + 1) * chunk);
    return (end - origin + chunk - 1) / chunk;
}

/* blockIdx: x split, y (kv head, tile of 16 query heads), z run. */
template <class S, bool FUSED>
static __global__ void __launch_bounds__(ATTENTION_WARPS *WARP, S::D <= 128 ? 3 : 1)
    attend_splits(const __grid_constant__ decode_t decode)
{
    extern __shared__ __align__(16) bf16 shared[];
    __shared__ __align__(16) bf16 fresh[FUSED ? 2 * S::D : 8];
    __shared__ float bests[ATTENTION_WARPS * TILE_ROWS], totals[ATTENTION_WARPS * TILE_ROWS];
    grid_release();
    if (!FUSED) grid_wait();
    const qn_attention_t &a = decode.a;
    attention_item_t item;
    uint32_t splits = find_split<S, FUSED>(decode, item);
    if (blockIdx.x >= splits) return;
    uint32_t count = min(decode.group - item.first_row, (uint32_t)TILE_ROWS);
    attention_sums<S::D> sums;
    if constexpr (FUSED) {
        uint32_t rows[S::TILE / WARP];
        bf16 *queries = shared + 2 * S::STAGE;
        begin_tiles<S>(a, item, shared, rows);
        clear_queries<S>(count, queries);
        uint32_t jobs = count + (item.fresh < item.end ? 2 : 0);
        pair_t<S> heads(decode, item, 0, count, jobs, queries, fresh);
        grid_wait();
        heads.run(decode, item, count);
        for (uint32_t job = 2 * ATTENTION_WARPS; job < jobs; job += 2 * ATTENTION_WARPS)
            pair_t<S>(decode, item, job, count, jobs, queries, fresh).run(decode, item, count);
        __syncthreads();
        attend<S>(
            a, item, shared, rows, [&](uint32_t first, bf16 *stage) { patch_tile<S>(item, fresh, first, stage); },
            sums);
    } else {
        attend_cached<S>(a, item, shared, sums);
    }
    float *rows = (float *)shared;
    merge_warps<S>(sums, rows, bests, totals);
    if (splits == 1)
        store_out<S>(a, item, count, rows, totals);
    else if (decode.clustered && splits <= CLUSTER)
        combine_cluster<S>(a, item, count, splits, rows, bests, totals);
    else
        store_split<S>(decode, item, count, splits, rows, bests, totals);
}

template <int D> using decode_shape = attention_shape<D, 1>;

cudaError_t qn_cuda_prepare_decode(void)
{
    cudaError_t error = cudaSuccess;
    for (uint32_t dim = 32; dim <= 256; dim += 32)
        with_head_dim(dim, [&](auto d) {
            using S = decode_shape<d()>;
            static_assert(sizeof(float) * ATTENTION_WARPS * TILE_ROWS * S::D <= S::SHARED, "rows of all warps");
            static_assert(sizeof(float) * 2 * SPLITS_MAX * TILE_ROWS <= S::SHARED, "shares and totals of all splits");
            const cudaFuncAttribute name = cudaFuncAttributeMaxDynamicSharedMemorySize;
            if (!error) error = cudaFuncSetAttribute(attend_splits<S, false>, name, S::SHARED);
            if (!error) error = cudaFuncSetAttribute(attend_splits<S, true>, name, S::SHARED);
        });
    return error;
}

size_t qn_cuda_decode_shared(uint32_t head_dim)
{
    size_t bytes = 0;
    with_head_dim(head_dim, [&](auto d) { bytes = decode_shape<d()>::SHARED; });
    return bytes;
}

size_t qn_cuda_attention_bytes(uint32_t runs, uint32_t heads, uint32_t kv_heads, uint32_t head_dim, uint32_t splits)
{
    uint32_t group = heads / kv_heads, rows = group < TILE_ROWS ? group : TILE_ROWS;
    return sizeof(float) * runs * kv_heads * divide_up(group, TILE_ROWS) * splits * rows * (head_dim + EXTRA);
}

cudaError_t qn_cuda_prepare_attention(qn_stream_t *stream)
{
    cudaError_t error = qn_cuda_prepare_decode();
    if (!error) error = qn_cuda_prepare_prefill();
    return error || stream->capability < 90 ? error : qn_cuda_prepare_resident(stream);
}

/* How far to split. Deterministic: by length alone. Else: two blocks a processor are enough, but a long context among
 * short ones is still cut; and a few sequences, whose splits leave processors idle, take clusters. */
static void plan_splits(const qn_stream_t *stream, const qn_attention_t *a, uint32_t tiles, decode_t *decode)
{
    bool deterministic = stream->options.deterministic;
    uint32_t fill = divide_up(2 * stream->processors, a->run_count * tiles), most = stream->splits_max;
    decode->splits = deterministic ? most : fill < CLUSTER ? CLUSTER : fill < most ? fill : most;
    decode->wanted = deterministic ? most : fill < most ? fill : most;
    decode->chunk_min = deterministic ? 256 : 128;
    decode->chunk_max = deterministic ? UINT32_MAX : 2048;
    decode->clustered = !deterministic && stream->capability >= 90 && fill >= CLUSTER / 2;
    if (decode->clustered) decode->splits = divide_up(decode->splits, CLUSTER) * CLUSTER;
}

static void start(qn_stream_t *stream, const qn_attention_t *a, const prologue_t *before)
{
    uint32_t tiles = a->kv.kv_heads * divide_up(a->heads / a->kv.kv_heads, TILE_ROWS);
    decode_t decode = {*a, {},    (float *)stream->workspace, stream->counters, 0, 0, 0,
                       0,  false, a->heads / a->kv.kv_heads};
    if (before) decode.before = *before;
    plan_splits(stream, a, tiles, &decode);
    QN_ASSERT(qn_cuda_attention_bytes(a->run_count, a->heads, a->kv.kv_heads, a->kv.head_dim, decode.splits) <=
                  stream->workspace_bytes &&
              a->run_count <= stream->options.max_sequences);
    qn_cuda_how_t how = {false, decode.clustered ? (unsigned)CLUSTER : 1};
    dim3 grid(decode.splits, tiles, a->run_count);
    with_head_dim(a->kv.head_dim, [&](auto d) {
        using S = decode_shape<d()>;
        qn_cuda_start_as(stream, "attention.decode", how, before ? attend_splits<S, true> : attend_splits<S, false>,
                         grid, ATTENTION_WARPS * WARP, S::SHARED, decode);
    });
}

extern "C" void qn_cuda_attention_splits(qn_stream_t *stream, const void *arguments)
{
    const qn_attention_t *a = (const qn_attention_t *)arguments;
    if (!a->run_count) return;
    if (attention_fits(stream, a))
        start(stream, a, NULL);
    else
        qn_cuda_attention_plain(stream, a);
}

extern "C" void qn_cuda_decode_attention_splits(qn_stream_t *stream, const void *arguments)
{
    const qn_decode_attention_t *f = (const qn_decode_attention_t *)arguments;
    const qn_attention_t *a = &f->attention;
    uintptr_t addresses = (uintptr_t)f->write.k | (uintptr_t)f->write.v | (uintptr_t)f->rope.angles;
    if (!a->run_count) return;
    /* Where many sequences fill the device, each block's wait for its queries costs more than launches of their own. */
    uint32_t blocks = a->run_count * a->kv.kv_heads * divide_up(a->heads / a->kv.kv_heads, TILE_ROWS);
    if (attention_fits(stream, a) && addresses % 16 == 0 && blocks <= stream->processors) {
        prologue_t before = {f->rope.angles,
                             (const bf16 *)f->write.k,
                             (const bf16 *)f->write.v,
                             f->write.kv_rows,
                             {},
                             {},
                             f->q_norm.eps,
                             f->q_norm.weight_offset,
                             f->k_norm.eps,
                             f->k_norm.weight_offset};
        if (f->q_norm.x) before.q_norm = f->q_norm.weight;
        if (f->k_norm.x) before.k_norm = f->k_norm.weight;
        start(stream, a, &before);
        return;
    }
    if (f->q_norm.x) qn_cuda_rmsnorm(stream, &f->q_norm);
    if (f->k_norm.x) qn_cuda_rmsnorm(stream, &f->k_norm);
    if (f->rope.angles) qn_cuda_rope(stream, &f->rope);
    qn_cuda_kv_write(stream, &f->write);
    qn_cuda_attention_splits(stream, a);
}

/* ---- the choice ---- */

#define RESIDENT_RUNS 32 /* from here on the resident grid is the faster one (tests/gpu/time_attention.c) */

/* One kernel for every number of sequences in deterministic mode, where the choice may not go by it: the one that is
 * faster for many. */
static bool prefers_resident(const qn_stream_t *stream, const qn_attention_t *a)
{
    return (stream->options.deterministic || a->run_count >= RESIDENT_RUNS) && qn_cuda_resident_fits(stream, a);
}

extern "C" void qn_cuda_attention_decode(qn_stream_t *stream, const void *arguments)
{
    bool resident = prefers_resident(stream, (const qn_attention_t *)arguments);
    (resident ? qn_cuda_attention_resident : qn_cuda_attention_splits)(stream, arguments);
}

extern "C" void qn_cuda_decode_attention(qn_stream_t *stream, const void *arguments)
{
    bool resident = prefers_resident(stream, &((const qn_decode_attention_t *)arguments)->attention);
    (resident ? qn_cuda_decode_attention_resident : qn_cuda_decode_attention_splits)(stream, arguments);
}
