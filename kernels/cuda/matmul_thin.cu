/* What is this?      The matrix product for few tokens, which costs what reading the weights costs: bf16 weights
 *                    stream from memory straight into the registers that tensor cores take, 16 bytes a load.
 * State owned:       none.
 * Must never:        let the additions of an output depend on the number of tokens or on its place in a tile.
 * Read next:         matmul.cu, which chooses; mma.m16n8k16 in the PTX manual for the fragments.
 *
 * A product m16n8k16 takes 16 weight rows and 8 tokens. Of its 16 inputs a thread holds pairs that lie 8 apart; but
 * the order of inputs is free as long as weights and x agree. So thread t of a quad loads inputs 8t .. 8t+7 of a
 * 32-input piece at once and hands them out as two products: no shared memory, no shuffle.
 *
 * SPLIT warps share one tile of 16 rows, each takes every SPLIT-th unit of 128 inputs (256 bytes of a row), and their
 * sums are added in the order of the warps. TILES of 8 tokens reuse a weight fragment; GROUPS tiles of rows share a
 * block, so that x is read from the first-level cache. Neither changes the additions of an output. */
#include "kernels/cuda/matmul.cuh"

#define SPLIT 8
#define ROWS 16            /* outputs of a warp */
#define PIECES 4           /* 32-input pieces of a unit */
#define UNIT (32 * PIECES)
#define TILE_TOKENS 8

typedef struct {
    const bf16 *x;
    uint32_t tokens, inputs, part_count;
    qn_matmul_part_t parts[QN_MATMUL_PARTS];
    uint32_t tile_ends[QN_MATMUL_PARTS];   /* blocks of part p end before this block index */
} thin_t;

/* A unit of two weight rows: [piece][row r, row r + 8]. */
typedef struct { uint4 words[PIECES][2]; } fragment_t;

static __device__ __forceinline__ uint4 load_stream(const bf16 *from)
{
    uint4 words;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w) : "l"(from));
    return words;
}

static __device__ __forceinline__ void mma(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                           uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* Pieces beyond the inputs are zero. */
static __device__ __forceinline__ void load_weights(const bf16 *const (&rows)[2], uint32_t m, uint32_t inputs,
                                                    fragment_t &to)
{
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        bool inside = m + 32 * piece < inputs;
#pragma unroll
        for (int half = 0; half < 2; half++)
            to.words[piece][half] = inside ? load_stream(rows[half] + m + 32 * piece) : make_uint4(0, 0, 0, 0);
    }
}

template <int TILES>
static __device__ __forceinline__ void add_unit(const fragment_t &weights, const bf16 *x, uint32_t m, uint32_t inputs,
                                                uint32_t tokens, float (&sums)[TILES][4])
{
    uint32_t token = threadIdx.x % WARP / 4;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        uint32_t at = m + 32 * piece;
        const uint4 &low = weights.words[piece][0], &high = weights.words[piece][1];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            uint32_t t = tile * TILE_TOKENS + token;
            uint4 value = make_uint4(0, 0, 0, 0);
            if (t < tokens && at < inputs) value = *(const uint4 *)(x + (size_t)t * inputs + at);
            mma(sums[tile], low.x, high.x, low.y, high.y, value.x, value.y);
            mma(sums[tile], low.z, high.z, low.w, high.w, value.z, value.w);
        }
    }
}

/* Adds the warps' sums in their order and stores outputs of one tile of rows. */
template <int TILES, int GROUPS, class O>
static __device__ void finish(const float *partial, const qn_matmul_part_t &part, uint32_t first_row,
                              uint32_t first_token, uint32_t tokens)
{
    constexpr uint32_t ALL_ROWS = ROWS * GROUPS, COLUMNS = TILES * TILE_TOKENS;
    for (uint32_t i = threadIdx.x; i < ALL_ROWS * min(COLUMNS, tokens); i += blockDim.x) {
        uint32_t r = i % ALL_ROWS, token = i / ALL_ROWS, row = first_row + r;
        if (row >= part.outputs) continue;
        float sum = 0;
#pragma unroll
        for (int warp = 0; warp < SPLIT; warp++)
            sum += partial[(((r / ROWS) * SPLIT + warp) * COLUMNS + token) * (ROWS + 1) + r % ROWS];
        size_t at = (size_t)(first_token + token) * part.outputs + row;
        if (part.bias.data) sum += load_scalar(part.bias.data, part.bias.scalar, row);
        if (part.residual) sum += to_float(((const O *)part.residual)[at]);
        ((O *)part.out)[at] = from_float<O>(sum);
    }
}

/* blockIdx: x tile of rows of all parts, y TILES * 8 tokens. */
template <int TILES, int GROUPS, class O>
static __global__ void __launch_bounds__(SPLIT * GROUPS * WARP, GROUPS == 1 ? 2 : 1)
multiply_thin(const __grid_constant__ thin_t a)
{
    extern __shared__ float partial[];   /* [GROUPS][SPLIT][TILES * 8][ROWS + 1] */
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, p = 0;
    while (blockIdx.x >= a.tile_ends[p]) p++;
    const qn_matmul_part_t &part = a.parts[p];
    uint32_t first_row = (blockIdx.x - (p ? a.tile_ends[p - 1] : 0)) * ROWS * GROUPS;
    uint32_t group = warp / SPLIT, row = first_row + group * ROWS + lane / 4, last = part.outputs - 1;
    const bf16 *weights = (const bf16 *)part.weight.data + lane % 4 * 8;
    const bf16 *const rows[2] = { weights + (size_t)min(row, last) * a.inputs,
                                  weights + (size_t)min(row + 8, last) * a.inputs };
    uint32_t first_token = blockIdx.y * TILES * TILE_TOKENS, tokens = a.tokens - first_token;
    const bf16 *x = a.x + (size_t)first_token * a.inputs;

    grid_release();
    float sums[TILES][4] = {};
    uint32_t end = a.inputs, m = warp % SPLIT * UNIT + lane % 4 * 8;
    fragment_t now, next;
    load_weights(rows, m, end, now);
    grid_wait();   /* weights are constant: they are on their way while the kernel before this one ends */
    for (; m < end; m += SPLIT * UNIT) {
        load_weights(rows, m + SPLIT * UNIT, end, next);
        add_unit<TILES>(now, x, m, end, tokens, sums);
        now = next;
    }
    float *own = partial + (size_t)warp * TILES * TILE_TOKENS * (ROWS + 1);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            own[(tile * TILE_TOKENS + lane % 4 * 2 + i % 2) * (ROWS + 1) + lane / 4 + i / 2 * 8] = sums[tile][i];
    __syncthreads();
    finish<TILES, GROUPS, O>(partial, part, first_row, first_token, tokens);
}

template <int TILES, int GROUPS, class O> static void start(qn_stream_t *stream, const qn_matmul_t *a)
{
    thin_t thin = { (const bf16 *)a->x, a->tokens, a->inputs, a->part_count, {}, {} };
    uint32_t tiles = 0;
    for (uint32_t p = 0; p < a->part_count; p++) {
        thin.parts[p] = a->parts[p];
        thin.tile_ends[p] = tiles += divide_up(a->parts[p].outputs, ROWS * GROUPS);
    }
    dim3 grid(tiles, divide_up(a->tokens, TILES * TILE_TOKENS));
    size_t shared = sizeof(float) * GROUPS * SPLIT * TILES * TILE_TOKENS * (ROWS + 1);
    qn_cuda_start(stream, "matmul.thin", multiply_thin<TILES, GROUPS, O>, grid, SPLIT * GROUPS * WARP, shared, thin);
}

/* Two tiles of rows share a block only where there are enough of them to fill the device. */
template <int TILES, class O> static void start_grouped(qn_stream_t *stream, const qn_matmul_t *a)
{
    uint32_t outputs = 0;
    for (uint32_t p = 0; p < a->part_count; p++) outputs += a->parts[p].outputs;
    if constexpr (TILES > 1) {
        if (outputs >= 2 * ROWS * 2 * stream->processors) return start<TILES, 2, O>(stream, a);
    }
    start<TILES, 1, O>(stream, a);
}

template <class O> static void start_tiles(qn_stream_t *stream, const qn_matmul_t *a)
{
    if (a->tokens <= TILE_TOKENS) start_grouped<1, O>(stream, a);
    else if (a->tokens <= 2 * TILE_TOKENS) start_grouped<2, O>(stream, a);
    else start_grouped<4, O>(stream, a);
}

bool qn_cuda_thin_fits(const qn_stream_t *stream, const product_t *product)
{
    const qn_matmul_t *a = product->a;
    if (stream->options.activations != QN_SCALAR_BF16 || a->inputs % 8 || (uintptr_t)a->x % 16) return false;
    for (uint32_t p = 0; p < a->part_count; p++)
        if (a->parts[p].weight.scalar != QN_SCALAR_BF16 || (uintptr_t)a->parts[p].weight.data % 16) return false;
    return true;
}

void qn_cuda_thin(qn_stream_t *stream, const product_t *product)
{
    with_scalar(product->out, [&](auto out) { start_tiles<decltype(out)>(stream, product->a); });
}
