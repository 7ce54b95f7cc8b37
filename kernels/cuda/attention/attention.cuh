/* The attention kernel on tensor cores (FlashAttention-2, Dao 2023; paged as in vLLM, Kwon et al. 2023), written once
 * for prefill and decode. For files in kernels/cuda/ only.
 *
 * A row is one query token and one of the G = H/K query heads that share a kv head: row = token * G + head. A block
 * takes a tile of 16 rows per row warp; keys and values come in tiles of 64 positions (32 at D = 256 in prefill)
 * that begin at multiples of the tile from position 0, copied block by block of the cache into shared memory, one
 * tile ahead of the arithmetic. In prefill each warp has rows of its own; in decode all four warps have the same 16
 * rows and a quarter of the positions of each tile.
 *
 * A row's additions depend on its position, window and (decode) split alone: mma rows do not mix. */
#ifndef QN_KERNELS_CUDA_ATTENTION_ATTENTION_CUH
#define QN_KERNELS_CUDA_ATTENTION_ATTENTION_CUH

#include "kernels/cuda/device.cuh"

#define TILE_ROWS 16 /* of a warp */
#define ATTENTION_WARPS 4
#define LOG2_E 1.4426950408889634f
#define NO_ROW 0xffffffffu    /* outside: zeros */
#define FRESH_ROW 0xfffffffeu /* not in the cache yet: patched in */

/* Shape of one instantiation. */
template <int D_, int ROW_WARPS_> struct attention_shape {
    static constexpr int D = D_;
    static constexpr int ROW_WARPS = ROW_WARPS_;
    static constexpr bool DECODE = ROW_WARPS == 1; /* runs of one token: rows are query heads */
    static constexpr int POSITION_WARPS = ATTENTION_WARPS / ROW_WARPS;
    static constexpr int ROWS = ROW_WARPS * TILE_ROWS;
    static constexpr int TILE = D > 128 && POSITION_WARPS == 1 ? 32 : 64; /* positions */
    static constexpr int WARP_POSITIONS = TILE / POSITION_WARPS;
    static constexpr int STRIDE = D + 8;            /* 16 bytes more than a row: ldmatrix without bank conflicts */
    static constexpr int STAGE = 2 * TILE * STRIDE; /* elements: K, then V */
    static constexpr bool Q_IN_REGISTERS = D <= 128;
    static constexpr size_t SHARED = sizeof(bf16) * (2 * STAGE + ROWS * STRIDE);
};

/* What a block works on. */
typedef struct {
    qn_run_t run;
    const uint32_t *table;       /* the slot's block table */
    uint32_t group;              /* G */
    uint32_t kv_head, first_row; /* of the run's tokens * G rows */
    uint32_t begin, end;         /* positions of the keys */
    uint32_t fresh;              /* the position that the cache does not hold yet, or NO_ROW (decode only) */
} attention_item_t;

/* One warp's running softmax and sums for 16 rows. A thread holds rows lane/4 and lane/4 + 8. */
template <int D> struct attention_sums {
    float best[2], total[2]; /* scores in units of log2; total is this thread's share until the end */
    float out[D / 8][4];
};

static __device__ __forceinline__ void mma(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const bf16 *from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(from))
                 : "memory");
}

static __device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const bf16 *from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(from))
                 : "memory");
}

/* Copies 16 bytes to shared memory behind the program's back, or zeros when not `inside`. */
static __device__ __forceinline__ void copy_async(bf16 *to, const bf16 *from, bool inside)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
}

/* 2^x by the special function unit: 2 ulp, and 0 for what is below 2^-126. */
static __device__ __forceinline__ float power_of_two(float x)
{
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

static __device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> static __device__ __forceinline__ void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/* ---- loading ---- */

template <class S>
static __device__ void load_queries(const qn_attention_t &a, const attention_item_t &item, bf16 *shared)
{
    constexpr int PIECES = S::D / 8;
    uint32_t group = item.group, rows = S::DECODE ? group : item.run.tokens * group;
    for (uint32_t i = threadIdx.x; i < S::ROWS * PIECES; i += ATTENTION_WARPS * WARP) {
        uint32_t r = i / PIECES, piece = i % PIECES, row = item.first_row + r;
        bool inside = row < rows;
        uint32_t token = inside && !S::DECODE ? row / group : 0;
        uint32_t head = inside ? item.kv_head * group + row - token * group : 0;
        const bf16 *from = (const bf16 *)a.q + ((size_t)(item.run.first + token) * a.heads + head) * S::D + piece * 8;
        copy_async(shared + r * S::STRIDE + piece * 8, from, inside);
    }
}

/* Rows of the cache (block * P + offset) of positions first .. first + TILE: lane l knows those of l and l + 32. */
template <class S>
static __device__ __forceinline__ void find_rows(const qn_attention_t &a, const attention_item_t &item, uint32_t first,
                                                 uint32_t (&rows)[S::TILE / WARP])
{
    uint32_t P = a.kv.block_tokens, shift = __ffs(P) - 1;
    bool power = (P & (P - 1)) == 0;
#pragma unroll
    for (int i = 0; i < S::TILE / WARP; i++) {
        uint32_t position = first + threadIdx.x % WARP + i * WARP;
        bool inside = position >= item.begin && position < item.end;
        if constexpr (S::DECODE)
            if (position == item.fresh) {
                rows[i] = FRESH_ROW;
                continue;
            }
        uint32_t index = power ? position >> shift : position / P;
        rows[i] = inside ? item.table[index] * P + (position - index * P) : NO_ROW;
    }
}

/* Copies K and V of the tile whose rows find_rows() found; positions outside the item become zero. */
template <class S>
static __device__ __forceinline__ void load_tile(const qn_attention_t &a, const attention_item_t &item,
                                                 const uint32_t (&rows)[S::TILE / WARP], bf16 *shared)
{
    constexpr int PIECES = S::D / 8;
    size_t row_width = (size_t)a.kv.kv_heads * S::D, plane = (size_t)a.kv.blocks * a.kv.block_tokens * row_width;
    const bf16 *keys = (const bf16 *)a.kv.data + (size_t)a.layer * 2 * plane + (size_t)item.kv_head * S::D;
#pragma unroll
    for (uint32_t k = 0; k < S::TILE * PIECES / (ATTENTION_WARPS * WARP); k++) {
        uint32_t i = threadIdx.x + k * ATTENTION_WARPS * WARP, r = i / PIECES, piece = i % PIECES;
        uint32_t row = __shfl_sync(ALL_LANES, rows[0], r % WARP);
        if constexpr (S::TILE > WARP) {
            uint32_t upper = __shfl_sync(ALL_LANES, rows[1], r % WARP);
            row = r < WARP ? row : upper;
        }
        if constexpr (S::DECODE)
            if (row == FRESH_ROW) continue;
        bool inside = row != NO_ROW;
        const bf16 *key = keys + (inside ? row : 0) * row_width + piece * 8;
        bf16 *to = shared + r * S::STRIDE + piece * 8;
        copy_async(to, key, inside);
        copy_async(to + S::TILE * S::STRIDE, key + plane, inside);
    }
}

/* ---- arithmetic ---- */

/* Fragment A of 16 rows and inputs d .. d+16: matrices (rows 0-7, 8-15) x (d, d + 8). */
template <class S>
static __device__ __forceinline__ void load_query_fragment(const bf16 *queries, int d, uint32_t (&to)[4])
{
    uint32_t lane = threadIdx.x % WARP;
    load_matrices(to, queries + lane % 16 * S::STRIDE + d + lane / 16 * 8);
}

/* scores[n] of positions 8n .. 8n+7 of this warp's part of the tile. */
template <class S, int N>
static __device__ __forceinline__ void score(const bf16 *queries, const uint32_t (&fragments)[S::D / 16][4],
                                             const bf16 *keys, float (&scores)[N][4])
{
    uint32_t lane = threadIdx.x % WARP;
    const bf16 *from = keys + (lane % 8 + lane / 16 * 8) * S::STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            scores[n][i] = 0;
#pragma unroll
    for (int step = 0; step < S::D / 16; step++) {
        uint32_t query[4];
        if constexpr (S::Q_IN_REGISTERS) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                query[i] = fragments[step][i];
        } else {
            load_query_fragment<S>(queries, step * 16, query);
        }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t key[4];
            load_matrices(key, from + n * 8 * S::STRIDE + step * 16);
            mma(scores[n], query, key[0], key[1]);
            mma(scores[n + 1], query, key[2], key[3]);
        }
    }
}

/* c * tanh(s / c) of every scaled score s, by e^2y: tanh.approx would be off by c / 2048. */
template <int N> static __device__ __forceinline__ void cap(float (&scores)[N][4], float scale, float softcap)
{
    float inner = 2 * LOG2_E * scale / softcap;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            scores[n][i] = softcap - __fdividef(2 * softcap, power_of_two(scores[n][i] * inner) + 1);
}

/* Positions that a row does not see score -infinity. `seen` is [begin, end) per row of this thread. */
template <int N>
static __device__ __forceinline__ void mask(float (&scores)[N][4], uint32_t first, const uint32_t (&begins)[2],
                                            const uint32_t (&ends)[2])
{
    uint32_t at = first + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t position = at + n * 8 + i % 2;
            if (position < begins[i / 2] || position >= ends[i / 2]) scores[n][i] = -INFINITY;
        }
}

/* Turns scores into weights and shrinks what was summed before. `scale` turns scores into powers of two. */
template <int D, int N>
static __device__ __forceinline__ void weigh(float (&scores)[N][4], float scale, attention_sums<D> &sums)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float best = -INFINITY;
#pragma unroll
        for (int n = 0; n < N; n++)
            best = fmaxf(best, fmaxf(scores[n][r * 2], scores[n][r * 2 + 1]));
        best = fmaxf(best, __shfl_xor_sync(ALL_LANES, best, 1));
        best = fmaxf(best, __shfl_xor_sync(ALL_LANES, best, 2));
        best = fmaxf(best * scale, sums.best[r]);
        float base = best == -INFINITY ? 0 : best; /* nothing seen yet: all weights 0, not NaN */
        float keep = power_of_two(sums.best[r] - base), total = 0;
        sums.best[r] = best;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                scores[n][r * 2 + i] = power_of_two(fmaf(scores[n][r * 2 + i], scale, -base));
                total += scores[n][r * 2 + i];
            }
        sums.total[r] = sums.total[r] * keep + total;
#pragma unroll
        for (int d = 0; d < D / 8; d++) {
            sums.out[d][r * 2] *= keep;
            sums.out[d][r * 2 + 1] *= keep;
        }
    }
}

/* out += weights x values. The layout of two score tiles is that of a fragment A of 16 positions. */
template <class S, int N>
static __device__ __forceinline__ void add_values(const float (&weights)[N][4], const bf16 *values,
                                                  attention_sums<S::D> &sums)
{
    uint32_t lane = threadIdx.x % WARP;
    const bf16 *from = values + lane % 16 * S::STRIDE + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        uint32_t weight[4] = {pack_bf16(weights[n][0], weights[n][1]), pack_bf16(weights[n][2], weights[n][3]),
                              pack_bf16(weights[n + 1][0], weights[n + 1][1]),
                              pack_bf16(weights[n + 1][2], weights[n + 1][3])};
#pragma unroll
        for (int d = 0; d < S::D / 8; d += 2) {
            uint32_t value[4];
            load_matrices_transposed(value, from + n * 8 * S::STRIDE + d * 8);
            mma(sums.out[d], weight, value[0], value[1]);
            mma(sums.out[d + 1], weight, value[2], value[3]);
        }
    }
}

/* Positions that row `row` of the item sees. */
template <class S>
static __device__ __forceinline__ void row_range(const qn_attention_t &a, const attention_item_t &item, uint32_t row,
                                                 uint32_t &begin, uint32_t &end)
{
    uint32_t token = 0;
    if constexpr (!S::DECODE) token = min(row / item.group, item.run.tokens - 1);
    end = item.run.position + token + 1;
    begin = a.window && end > a.window ? end - a.window : 0;
}

/* The loads of an item's first two tiles, before their arithmetic begins: `rows` is left for the third. */
template <class S>
static __device__ __forceinline__ void begin_tiles(const qn_attention_t &a, const attention_item_t &item, bf16 *shared,
                                                   uint32_t (&rows)[S::TILE / WARP])
{
    uint32_t first = item.begin / S::TILE * S::TILE;
#pragma unroll
    for (uint32_t tile = 0; tile < 2; tile++, first += S::TILE) {
        if (first < item.end) {
            find_rows<S>(a, item, first, rows);
            load_tile<S>(a, item, rows, shared + tile * S::STAGE);
        }
        copy_commit();
    }
    find_rows<S>(a, item, first, rows);
}

/* One item: fills `sums` of this warp's rows over its part of the item's positions, after begin_tiles() and with the
 * queries in shared memory (copied by groups of cp.async older than the tiles', or visible to all). All warps of the
 * block call it; shared memory is free when it returns. patch(tile, keys) may store what the cache does not hold yet
 * into the tile at `keys`, before any warp reads it. */
template <class S, class F>
static __device__ void attend(const qn_attention_t &a, const attention_item_t &item, bf16 *shared,
                              uint32_t (&rows)[S::TILE / WARP], F patch, attention_sums<S::D> &sums)
{
    constexpr int N = S::WARP_POSITIONS / 8;
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint32_t row_warp = warp % S::ROW_WARPS, part = warp / S::ROW_WARPS * S::WARP_POSITIONS;
    bf16 *own_queries = shared + 2 * S::STAGE + row_warp * TILE_ROWS * S::STRIDE;
    uint32_t begins[2], ends[2], row = item.first_row + row_warp * TILE_ROWS + lane / 4;
    row_range<S>(a, item, row, begins[0], ends[0]);
    row_range<S>(a, item, row + 8, begins[1], ends[1]);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sums.best[r] = -INFINITY, sums.total[r] = 0;
        begins[r] = max(begins[r], item.begin), ends[r] = min(ends[r], item.end);
    }
#pragma unroll
    for (int d = 0; d < S::D / 8; d++)
        sums.out[d][0] = sums.out[d][1] = sums.out[d][2] = sums.out[d][3] = 0;

    float scale = a.softcap > 0 ? LOG2_E : a.scale * LOG2_E;
    uint32_t first = item.begin / S::TILE * S::TILE, fragments[S::D / 16][4];
    for (uint32_t tile = 0; first < item.end; tile++, first += S::TILE) {
        bf16 *stage = shared + tile % 2 * S::STAGE;
        copy_wait<1>();
        patch(first, stage);
        __syncthreads();
        if (S::Q_IN_REGISTERS && tile == 0)
#pragma unroll
            for (int step = 0; step < S::D / 16; step++)
                load_query_fragment<S>(own_queries, step * 16, fragments[step]);
        const bf16 *keys = stage + part * S::STRIDE, *values = keys + S::TILE * S::STRIDE;
        float scores[N][4];
        score<S>(own_queries, fragments, keys, scores);
        if (a.softcap > 0) cap(scores, a.scale, a.softcap);
        uint32_t from = first + part, to = from + S::WARP_POSITIONS;
        bool whole = from >= begins[0] && from >= begins[1] && to <= ends[0] && to <= ends[1];
        if (!__all_sync(ALL_LANES, whole)) mask(scores, from, begins, ends);
        weigh<S::D>(scores, scale, sums);
        add_values<S>(scores, values, sums);
        __syncthreads();
        if (first + 2 * S::TILE < item.end) load_tile<S>(a, item, rows, stage);
        copy_commit();
        find_rows<S>(a, item, first + 3 * S::TILE, rows);
    }
    copy_wait<0>();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sums.total[r] += __shfl_xor_sync(ALL_LANES, sums.total[r], 1);
        sums.total[r] += __shfl_xor_sync(ALL_LANES, sums.total[r], 2);
    }
}

/* begin_tiles() and attend() where the cache holds all and the queries lie in a.q as they are to be used. */
template <class S>
static __device__ void attend_cached(const qn_attention_t &a, const attention_item_t &item, bf16 *shared,
                                     attention_sums<S::D> &sums)
{
    uint32_t rows[S::TILE / WARP];
    load_queries<S>(a, item, shared + 2 * S::STAGE);
    begin_tiles<S>(a, item, shared, rows);
    attend<S>(a, item, shared, rows, [](uint32_t, bf16 *) {}, sums);
}

/* Where row `row` of the item goes: elements into out. */
template <class S>
static __device__ __forceinline__ size_t out_at(const qn_attention_t &a, const attention_item_t &item, uint32_t row)
{
    uint32_t group = item.group, token = S::DECODE ? 0 : row / group;
    return ((size_t)(item.run.first + token) * a.heads + item.kv_head * group + row - token * group) * S::D;
}

/* Head dimensions with an instantiation; others take attention_plain.cu. */
template <class F> static bool with_head_dim(uint32_t dim, F call)
{
    switch (dim) {
    case 32: call(std::integral_constant<int, 32>()); return true;
    case 64: call(std::integral_constant<int, 64>()); return true;
    case 96: call(std::integral_constant<int, 96>()); return true;
    case 128: call(std::integral_constant<int, 128>()); return true;
    case 256: call(std::integral_constant<int, 256>()); return true;
    default: return false;
    }
}

/* All bf16, and rows that copies of 16 bytes can take. */
static inline bool attention_fits(const qn_stream_t *stream, const qn_attention_t *a)
{
    return stream->options.activations == QN_SCALAR_BF16 && a->kv.scalar == QN_SCALAR_BF16 &&
           ((uintptr_t)a->q | (uintptr_t)a->kv.data) % 16 == 0 && with_head_dim(a->kv.head_dim, [](auto) {});
}

/* Whether qn_cuda_attention_wgmma takes it. */
bool qn_cuda_wide_fits(const qn_stream_t *stream, const qn_attention_t *a);
cudaError_t qn_cuda_prepare_decode(void);
cudaError_t qn_cuda_prepare_prefill(void);

#endif
