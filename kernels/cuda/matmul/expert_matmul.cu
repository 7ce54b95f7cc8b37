/* What is this?      A matrix product per expert over the places that moe_route gave it. Which expert has how many is
 *                    known on the device only: a grid as large as the worst case looks its work up in the offsets.
 * State owned:       none.
 * Must never:        in deterministic mode choose by the number of places: bits would depend on the batch.
 * Read next:         moe.cu (the order of places), matmul_skinny.cu (the trick of the fragments).
 *
 * Three kernels: skinny (few places of each expert: as fast as its weights can be read, and with the order of additions
 * of matmul_skinny.cu), tiled (many: 128 x 128 tiles on tensor cores through a ring in shared memory), and plain (types
 * and widths that the others do not take). */
#include "kernels/cuda/matmul/matmul.cuh"

#define EXPERTS_MAX 1024
#define ALL_PLACES 0x80000000u /* rows of a tile that holds all places of an expert */

/* Places [first, first + count) of `expert`. */
typedef struct {
    uint32_t expert, first, count;
} expert_tile_t;

/* Tile `index` of all experts' places, cut into tiles of `rows`; false when there are fewer. All threads of the block
 * call it; `offsets` is [EXPERTS_MAX + 1] in shared memory. */
static __device__ bool find_tile(const qn_expert_matmul_t &a, uint32_t rows, uint32_t index, uint32_t *offsets,
                                 expert_tile_t &tile)
{
    for (uint32_t e = threadIdx.x; e <= a.experts; e += blockDim.x)
        offsets[e] = a.offsets[e];
    __syncthreads();
    uint32_t lane = threadIdx.x % WARP;
    for (uint32_t base = 0; base < a.experts; base += WARP) {
        uint32_t e = base + lane, places = e < a.experts ? offsets[e + 1] - offsets[e] : 0;
        uint32_t own = places ? (places - 1) / rows + 1 : 0, upto = own;
        for (uint32_t step = 1; step < WARP; step *= 2) {
            uint32_t other = __shfl_up_sync(ALL_LANES, upto, step);
            if (lane >= step) upto += other;
        }
        uint32_t all = __shfl_sync(ALL_LANES, upto, WARP - 1);
        if (index >= all) {
            index -= all;
            continue;
        }
        int owner = __ffs(__ballot_sync(ALL_LANES, upto > index)) - 1;
        uint32_t skipped = index - __shfl_sync(ALL_LANES, upto - own, owner);
        tile.expert = base + owner;
        tile.first = offsets[tile.expert] + skipped * rows;
        tile.count = min(offsets[tile.expert + 1] - tile.first, rows);
        return true;
    }
    return false;
}

/* At most this many tiles have places, however they fall. */
static uint32_t tiles_bound(const qn_expert_matmul_t *a, uint32_t rows)
{
    uint32_t used = a->places < a->experts ? a->places : a->experts;
    return (a->places - 1) / rows + used;
}

/* ---- skinny ---- */

#define SPLIT 8
#define ROWS 16
#define UNIT 128
#define PIECES (UNIT / 32)
#define TILE_TOKENS 8

/* A weight is read once by one processor: no room in its first-level cache. */
static __device__ __forceinline__ uint4 stream_in(const bf16 *from)
{
    uint4 words;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "l"(from));
    return words;
}

/* Weight rows low and high of this thread, and x of its tokens, for the unit at m. */
template <int TILES>
static __device__ __forceinline__ void multiply_unit(const bf16 *low, const bf16 *high, const bf16 *x, uint32_t inputs,
                                                     uint32_t m, uint32_t tokens, float (&sums)[TILES][4])
{
    uint4 lows[PIECES], highs[PIECES], values[PIECES][TILES];
    const uint4 zero = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        uint32_t at = m + piece * 32;
        lows[piece] = at < inputs ? stream_in(low + at) : zero;
        highs[piece] = at < inputs ? stream_in(high + at) : zero;
    }
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            uint32_t t = tile * TILE_TOKENS + threadIdx.x % WARP / 4, at = m + piece * 32;
            values[piece][tile] = t < tokens && at < inputs ? *(const uint4 *)(x + (size_t)t * inputs + at) : zero;
        }
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
            mma_rows(sums[tile], lows[piece], highs[piece], values[piece][tile]);
}

/* Sums of the warps, added in their order. */
template <int TILES>
static __device__ void finish(float (&sums)[TILES][4], float (*partial)[TILES * TILE_TOKENS][ROWS + 1],
                              uint32_t first_row, uint32_t outputs, uint32_t tokens, bf16 *out)
{
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            partial[warp][tile * TILE_TOKENS + lane % 4 * 2 + i % 2][lane / 4 + i / 2 * 8] = sums[tile][i];
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < ROWS * tokens; i += SPLIT * WARP) {
        uint32_t r = i % ROWS, token = i / ROWS;
        if (first_row + r >= outputs) continue;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < SPLIT; w++)
            sum += partial[w][token][r];
        out[(size_t)token * outputs + first_row + r] = from_float<bf16>(sum);
    }
    __syncthreads();
}

/* blockIdx: x 16 rows of a part, y one of the experts that have places. */
template <int TILES>
static __global__ void __launch_bounds__(SPLIT *WARP, TILES == 1   ? 3
                                                      : TILES == 2 ? 2
                                                                   : 1)
    multiply_few(const __grid_constant__ qn_expert_matmul_t a)
{
    __shared__ uint32_t offsets[EXPERTS_MAX + 1];
    __shared__ float partial[SPLIT][TILES * TILE_TOKENS][ROWS + 1];
    grid_begin();
    expert_tile_t own;
    if (!find_tile(a, ALL_PLACES, blockIdx.y, offsets, own)) return;
    uint32_t row_tiles = (a.outputs + ROWS - 1) / ROWS, part = blockIdx.x / row_tiles;
    uint32_t first_row = blockIdx.x % row_tiles * ROWS, lane = threadIdx.x % WARP;
    uint32_t low = min(first_row + lane / 4, a.outputs - 1), high = min(first_row + lane / 4 + 8, a.outputs - 1);
    const bf16 *weights = (const bf16 *)a.weights[part][own.expert].data;
    for (uint32_t done = 0; done < own.count; done += TILES * TILE_TOKENS) {
        uint32_t tokens = min(own.count - done, (uint32_t)(TILES * TILE_TOKENS));
        const bf16 *x = (const bf16 *)a.x + (size_t)(own.first + done) * a.inputs;
        float sums[TILES][4] = {};
        for (uint32_t base = threadIdx.x / WARP * UNIT; base < a.inputs; base += SPLIT * UNIT)
            multiply_unit<TILES>(weights + (size_t)low * a.inputs, weights + (size_t)high * a.inputs, x, a.inputs,
                                 base + lane % 4 * 8, tokens, sums);
        finish<TILES>(sums, partial, first_row, a.outputs, tokens,
                      (bf16 *)a.out[part] + (size_t)(own.first + done) * a.outputs);
    }
}

template <int TILES> static void start_few(qn_stream_t *stream, const qn_expert_matmul_t *a)
{
    dim3 grid(divide_up(a->outputs, ROWS) * a->part_count, tiles_bound(a, ALL_PLACES));
    qn_cuda_start(stream, "expert_matmul", multiply_few<TILES>, grid, SPLIT * WARP, 0, *a);
}

/* ---- tiled ---- */

#define BLOCK 128 /* places and outputs of a tile */
#define DEPTH 64  /* inputs of a stage: rows of 128 bytes, eight pieces of 16 */
#define STAGES 3
#define STAGE_BYTES (2 * BLOCK * DEPTH * 2)
#define TILED_THREADS 256 /* eight warps: 2 x 4 of them, 64 places x 32 outputs each */

/* Byte offset of a 16-byte piece: pieces of a row are exchanged by the row's number, so that eight rows' pieces lie in
 * different banks. */
static __device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t piece)
{
    return row * (DEPTH * 2) + ((piece ^ (row & 7)) << 4);
}

/* Copies rows [0, BLOCK) x inputs [m, m + DEPTH) of a matrix; what lies outside becomes zeros. */
static __device__ __forceinline__ void load_side(uint32_t to, const bf16 *from, uint32_t rows, uint32_t inputs,
                                                 uint32_t m)
{
#pragma unroll
    for (uint32_t k = 0; k < BLOCK * 8 / TILED_THREADS; k++) {
        uint32_t i = threadIdx.x + k * TILED_THREADS, row = i / 8, piece = i % 8, at = m + piece * 8;
        bool inside = row < rows && at < inputs;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + swizzled(row, piece)),
                     "l"(from + (inside ? (size_t)row * inputs + at : 0)), "r"(inside ? 16 : 0)
                     : "memory");
    }
}

static __device__ __forceinline__ void load_pieces(uint32_t (&to)[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

static __device__ __forceinline__ void mma_tile(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* One stage: x rows at `x`, weight rows at `w`, both already moved to this warp's part. */
static __device__ __forceinline__ void multiply_stage(uint32_t x, uint32_t w, float (&sums)[4][4][4])
{
    uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (uint32_t step = 0; step < DEPTH / 16; step++) {
        uint32_t rows[4][4], outputs[2][4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            load_pieces(rows[i], x + swizzled(i * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
        for (int i = 0; i < 2; i++)
            load_pieces(outputs[i], w + swizzled(i * 16 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                mma_tile(sums[i][j], rows[i], outputs[j / 2][j % 2 * 2], outputs[j / 2][j % 2 * 2 + 1]);
    }
}

static __device__ __forceinline__ void store_tile(const float (&sums)[4][4][4], uint32_t places, uint32_t outputs,
                                                  uint32_t first_output, bf16 *out)
{
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int half = 0; half < 4; half++) {
                uint32_t place = warp / 4 * 64 + i * 16 + lane / 4 + half / 2 * 8;
                uint32_t output = first_output + warp % 4 * 32 + j * 8 + lane % 4 * 2 + half % 2;
                if (place < places && output < outputs)
                    out[(size_t)place * outputs + output] = from_float<bf16>(sums[i][j][half]);
            }
}

/* blockIdx: x BLOCK outputs of a part, y BLOCK places of an expert. */
static __global__ void __launch_bounds__(TILED_THREADS, 2) multiply_tiles(const __grid_constant__ qn_expert_matmul_t a)
{
    extern __shared__ __align__(128) char ring[];
    __shared__ uint32_t offsets[EXPERTS_MAX + 1];
    grid_begin();
    expert_tile_t own;
    if (!find_tile(a, BLOCK, blockIdx.y, offsets, own)) return;
    uint32_t tiles = (a.outputs + BLOCK - 1) / BLOCK, part = blockIdx.x / tiles;
    uint32_t first_output = blockIdx.x % tiles * BLOCK, outputs = a.outputs - first_output;
    const bf16 *x = (const bf16 *)a.x + (size_t)own.first * a.inputs;
    const bf16 *w = (const bf16 *)a.weights[part][own.expert].data + (size_t)first_output * a.inputs;
    uint32_t base = (uint32_t)__cvta_generic_to_shared(ring), steps = (a.inputs + DEPTH - 1) / DEPTH;
    uint32_t warp = threadIdx.x / WARP, x_at = warp / 4 * 64 * DEPTH * 2;
    uint32_t w_at = BLOCK * DEPTH * 2 + warp % 4 * 32 * DEPTH * 2;
    auto load = [&](uint32_t step) {
        if (step < steps) {
            uint32_t to = base + step % STAGES * STAGE_BYTES;
            load_side(to, x, own.count, a.inputs, step * DEPTH);
            load_side(to + BLOCK * DEPTH * 2, w, outputs, a.inputs, step * DEPTH);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    float sums[4][4][4] = {};
    for (uint32_t step = 0; step < STAGES - 1; step++)
        load(step);
    for (uint32_t step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads(); /* the stage is there for all, and the one before it is free */
        load(step + STAGES - 1);
        uint32_t stage = base + step % STAGES * STAGE_BYTES;
        multiply_stage(stage + x_at, stage + w_at, sums);
    }
    store_tile(sums, own.count, a.outputs, first_output, (bf16 *)a.out[part] + (size_t)own.first * a.outputs);
}

cudaError_t qn_cuda_prepare_experts(void)
{
    return cudaFuncSetAttribute(multiply_tiles, cudaFuncAttributeMaxDynamicSharedMemorySize, STAGES * STAGE_BYTES);
}

/* ---- plain ---- */

#define PLAIN_WARPS 8
#define PLAIN_PLACES 8

/* blockIdx: x PLAIN_WARPS outputs of a part, y PLAIN_PLACES places of an expert. A warp per output. */
template <class A>
static __global__ void __launch_bounds__(PLAIN_WARPS *WARP) dot_places(const __grid_constant__ qn_expert_matmul_t a)
{
    __shared__ uint32_t offsets[EXPERTS_MAX + 1];
    grid_begin();
    expert_tile_t own;
    if (!find_tile(a, PLAIN_PLACES, blockIdx.y, offsets, own)) return;
    uint32_t tiles = (a.outputs + PLAIN_WARPS - 1) / PLAIN_WARPS, part = blockIdx.x / tiles;
    uint32_t row = blockIdx.x % tiles * PLAIN_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= a.outputs) return;
    const qn_weight_t weight = a.weights[part][own.expert];
    const A *x = (const A *)a.x + (size_t)own.first * a.inputs;
    float sums[PLAIN_PLACES] = {};
    for (uint32_t m = lane; m < a.inputs; m += WARP) {
        float value = load_scalar(weight.data, weight.scalar, (size_t)row * a.inputs + m);
#pragma unroll
        for (uint32_t t = 0; t < PLAIN_PLACES; t++)
            if (t < own.count) sums[t] = fmaf(to_float(x[(size_t)t * a.inputs + m]), value, sums[t]);
    }
#pragma unroll
    for (uint32_t t = 0; t < PLAIN_PLACES; t++) {
        float sum = warp_sum(sums[t]);
        if (lane == 0 && t < own.count)
            ((A *)a.out[part])[(size_t)(own.first + t) * a.outputs + row] = from_float<A>(sum);
    }
}

static void start_plain(qn_stream_t *stream, const qn_expert_matmul_t *a)
{
    dim3 grid(divide_up(a->outputs, PLAIN_WARPS) * a->part_count, tiles_bound(a, PLAIN_PLACES));
    QN_ASSERT(grid.y <= 65535);
    with_scalar(stream->options.activations, [&](auto act) {
        qn_cuda_start(stream, "expert_matmul", dot_places<decltype(act)>, grid, PLAIN_WARPS * WARP, 0, *a);
    });
}

/* ---- which ---- */

/* By the places of an expert on average; an expert with more goes over its weights again, in the cache. */
extern "C" void qn_cuda_expert_matmul(qn_stream_t *stream, const void *arguments)
{
    const qn_expert_matmul_t *a = (const qn_expert_matmul_t *)arguments;
    QN_ASSERT(a->experts <= EXPERTS_MAX && a->part_count <= QN_EXPERT_PARTS);
    if (!a->places) return;
    uint32_t each = divide_up(a->places, a->experts);
    if (stream->options.activations != QN_SCALAR_BF16 || a->scalar != QN_SCALAR_BF16 || a->inputs % 8 ||
        (uintptr_t)a->x % 16)
        return start_plain(stream, a);
    if (each > 32 && !stream->options.deterministic) {
        dim3 grid(divide_up(a->outputs, BLOCK) * a->part_count, tiles_bound(a, BLOCK));
        qn_cuda_start(stream, "expert_matmul", multiply_tiles, grid, TILED_THREADS, STAGES * STAGE_BYTES, *a);
    } else if (each <= 4)
        start_few<1>(stream, a);
    else if (each <= 12)
        start_few<2>(stream, a);
    else
        start_few<4>(stream, a);
}
