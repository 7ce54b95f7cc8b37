/* What is this?      The matrix product for few tokens, which costs what reading the weights costs: bf16 weights
 *                    stream through a ring in shared memory into the registers that tensor cores take.
 * State owned:       none.
 * Must never:        let the additions of an output depend on the number of tokens or on its place in a tile.
 * Read next:         matmul.cu, which chooses; mma.m16n8k16 in the PTX manual for the fragments.
 *
 * A product m16n8k16 takes 16 weight rows and 8 tokens. Of its 16 inputs a thread holds pairs that lie 8 apart; but
 * the order of inputs is free as long as weights and x agree. So thread t of a quad takes inputs 8t .. 8t+7 of a
 * 32-input piece at once and hands them out as two products: no shuffle, and each thread reads back from shared memory
 * just the 16 bytes that it had copied there, so no barrier either.
 *
 * A block stays on its processor and walks over tiles of rows. Its SPLIT warps share a tile, each takes every SPLIT-th
 * unit of 128 inputs, and their sums are added in the order of the warps. The ring runs ahead over the ends of tiles,
 * and, with dependent launch, is full before the kernel that computes x has ended: the memory is never idle.
 * TILES of 8 tokens reuse a weight fragment; GROUPS of 16 rows reuse one of x. Neither changes an output. */
#include "kernels/cuda/matmul.cuh"

#define SPLIT 8
#define ROWS 16            /* weight rows of one product */
#define UNIT 128           /* inputs that a warp takes at a time */
/* Of the ring, 32 KiB each. More than half of the shared memory: a processor then never holds two blocks of one launch
 * while another holds none, as dependent launch would place them; attention's block fits beside one. */
#define STAGES 4
#define COPIES 8           /* of 16 bytes, per thread and stage */
#define TILE_TOKENS 8

typedef struct {
    const bf16 *x;
    uint32_t tokens, inputs, part_count;
    qn_matmul_part_t parts[QN_MATMUL_PARTS];
    uint32_t tile_ends[QN_MATMUL_PARTS];   /* tiles of part p end before this index */
} thin_t;

static __device__ __forceinline__ void mma(float (&sums)[4], const uint4 &low, const uint4 &high, const uint4 &x)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(low.x), "r"(high.x), "r"(low.y), "r"(high.y), "r"(x.x), "r"(x.y));
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(low.z), "r"(high.z), "r"(low.w), "r"(high.w), "r"(x.z), "r"(x.w));
}

/* Finds the part of a tile, and the tile's first row in it. */
static __device__ __forceinline__ const qn_matmul_part_t &find_part(const thin_t &a, uint32_t tile, uint32_t rows,
                                                                    uint32_t &ret_row)
{
    uint32_t p = 0;
    while (tile >= a.tile_ends[p]) p++;
    ret_row = (tile - (p ? a.tile_ends[p - 1] : 0)) * rows;
    return a.parts[p];
}

/* What the ring copies next: a stage is UNIT / GROUPS inputs of 16 * GROUPS rows. Lane l has row l / 4 of each half
 * of 8 rows, and inputs l % 4 * 8 of each piece. */
template <int GROUPS> struct feeder {
    uint32_t tile, m;              /* m: of this thread's first piece */
    const bf16 *rows[2 * GROUPS];  /* at this thread's row of each half */

    __device__ __forceinline__ void find_rows(const thin_t &a)
    {
        if (tile >= a.tile_ends[a.part_count - 1]) return;
        uint32_t first, lane = threadIdx.x % WARP;
        const qn_matmul_part_t &part = find_part(a, tile, ROWS * GROUPS, first);
#pragma unroll
        for (int half = 0; half < 2 * GROUPS; half++) {
            uint32_t row = min(first + half * 8 + lane / 4, part.outputs - 1);
            rows[half] = (const bf16 *)part.weight.data + (size_t)row * a.inputs;
        }
    }

    /* Copies one stage and steps on; past the last tile it copies nothing. */
    __device__ __forceinline__ void feed(const thin_t &a, uint4 *to)
    {
        constexpr int PIECES = UNIT / GROUPS / 32;
        if (tile < a.tile_ends[a.part_count - 1]) {
#pragma unroll
            for (int i = 0; i < COPIES; i++) {
                uint32_t at = m + i / (2 * GROUPS) * 32;
                static_assert(PIECES * 2 * GROUPS == COPIES, "a stage is 16 bytes x COPIES a thread");
                asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;"
                             :: "r"((uint32_t)__cvta_generic_to_shared(to + i * WARP)),
                                "l"(rows[i % (2 * GROUPS)] + (at < a.inputs ? at : 0)), "r"(at < a.inputs ? 16 : 0)
                             : "memory");
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        m = next_m<GROUPS>(m);
        if (m - threadIdx.x % 4 * 8 - threadIdx.x / WARP * UNIT < end_of(a.inputs)) return;
        m = threadIdx.x / WARP * UNIT + threadIdx.x % 4 * 8;
        tile += gridDim.x;
        find_rows(a);
    }

    /* The next stage of the warp: the rest of its unit, then the unit SPLIT units on. */
    template <int G> static __device__ __forceinline__ uint32_t next_m(uint32_t at)
    {
        constexpr uint32_t STEP = UNIT / G;
        at += STEP;
        return (at / STEP) % G == 0 ? at + (SPLIT - 1) * UNIT : at;
    }

    /* All warps go through the same number of stages, the last ones maybe empty. */
    static __device__ __forceinline__ uint32_t end_of(uint32_t inputs)
    {
        return (inputs + SPLIT * UNIT - 1) / (SPLIT * UNIT) * (SPLIT * UNIT);
    }
};

/* Adds the warps' sums in their order and stores the outputs of one tile. With few tokens the first warps do it while
 * the others go on. */
template <int TILES, int GROUPS, class O>
static __device__ __forceinline__ void finish(const thin_t &a, const float *partial, uint32_t tile,
                                              uint32_t first_token, uint32_t tokens)
{
    constexpr uint32_t ALL_ROWS = ROWS * GROUPS, COLUMNS = TILES * TILE_TOKENS;
    uint32_t first_row;
    const qn_matmul_part_t &part = find_part(a, tile, ALL_ROWS, first_row);
    for (uint32_t i = threadIdx.x; i < ALL_ROWS * min(COLUMNS, tokens); i += SPLIT * WARP) {
        uint32_t r = i % ALL_ROWS, token = i / ALL_ROWS, row = first_row + r;
        if (row >= part.outputs) continue;
        float sum = 0;
#pragma unroll
        for (int warp = 0; warp < SPLIT; warp++) sum += partial[(warp * COLUMNS + token) * (ALL_ROWS + 1) + r];
        size_t at = (size_t)(first_token + token) * part.outputs + row;
        if (part.bias.data) sum += load_scalar(part.bias.data, part.bias.scalar, row);
        if (part.residual) sum += to_float(((const O *)part.residual)[at]);
        ((O *)part.out)[at] = from_float<O>(sum);
    }
}

/* This warp's sums of one tile, for finish(); and zeros for the next. */
template <int TILES, int GROUPS>
static __device__ __forceinline__ void leave_sums(float (&sums)[GROUPS][TILES][4], float *partial)
{
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float *own = partial + warp * TILES * TILE_TOKENS * (ROWS * GROUPS + 1);
#pragma unroll
    for (int group = 0; group < GROUPS; group++)
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t token = tile * TILE_TOKENS + lane % 4 * 2 + i % 2, row = group * ROWS + lane / 4 + i / 2 * 8;
                own[token * (ROWS * GROUPS + 1) + row] = sums[group][tile][i];
                sums[group][tile][i] = 0;
            }
}

/* x of the stage that begins at m, of the tokens lane / 4 of each tile. */
template <int TILES, int PIECES>
static __device__ __forceinline__ void load_x(const bf16 *x, uint32_t m, uint32_t inputs, uint32_t tokens,
                                              uint4 (&to)[PIECES][TILES])
{
    uint32_t token = threadIdx.x % WARP / 4;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            uint32_t t = tile * TILE_TOKENS + token, at = m + piece * 32;
            to[piece][tile] = make_uint4(0, 0, 0, 0);
            if (t < tokens && at < inputs) to[piece][tile] = *(const uint4 *)(x + (size_t)t * inputs + at);
        }
}

/* Adds the products of one stage. */
template <int TILES, int GROUPS, int PIECES>
static __device__ __forceinline__ void add_stage(const uint4 *stage, const uint4 (&values)[PIECES][TILES],
                                                 float (&sums)[GROUPS][TILES][4])
{
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            uint4 low = stage[(piece * 2 * GROUPS + group * 2) * WARP];
            uint4 high = stage[(piece * 2 * GROUPS + group * 2 + 1) * WARP];
#pragma unroll
            for (int t = 0; t < TILES; t++) mma(sums[group][t], low, high, values[piece][t]);
        }
}

/* Sums of all warps for one tile. */
template <int TILES, int GROUPS> constexpr int PARTIALS = SPLIT * TILES * TILE_TOKENS * (ROWS * GROUPS + 1);

/* gridDim: x blocks that share out the tiles of all parts, y TILES * 8 tokens each. */
template <int TILES, int GROUPS, class O>
static __global__ void __launch_bounds__(SPLIT * WARP, 1) multiply_thin(const __grid_constant__ thin_t a)
{
    constexpr int PIECES = UNIT / GROUPS / 32;
    extern __shared__ uint4 ring[];   /* [STAGES][SPLIT][COPIES][WARP], then two sets of sums */
    uint4 *own = ring + threadIdx.x / WARP * COPIES * WARP + threadIdx.x % WARP;
    float *partial = (float *)(ring + STAGES * SPLIT * COPIES * WARP);
    uint32_t first_token = blockIdx.y * TILES * TILE_TOKENS, tokens = a.tokens - first_token;
    const bf16 *x = a.x + (size_t)first_token * a.inputs;
    feeder<GROUPS> feeder = { blockIdx.x, threadIdx.x / WARP * UNIT + threadIdx.x % 4 * 8, {} };

    grid_release();
    feeder.find_rows(a);
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) feeder.feed(a, own + stage * SPLIT * COPIES * WARP);
    grid_wait();   /* weights are constant: they are on their way while the kernel before this one ends */

    float sums[GROUPS][TILES][4] = {};
    uint32_t slot = 0, count = 0, warp = threadIdx.x / WARP, base = warp * UNIT, start = base + threadIdx.x % 4 * 8;
    uint4 values[PIECES][TILES], next[PIECES][TILES];
    load_x(x, start, a.inputs, tokens, values);
    for (uint32_t tile = blockIdx.x; tile < a.tile_ends[a.part_count - 1]; tile += gridDim.x, count++) {
        for (uint32_t m = start, then; m - base < feeder.end_of(a.inputs); m = then) {
            then = feeder.template next_m<GROUPS>(m);
            load_x(x, then - base < feeder.end_of(a.inputs) ? then : start, a.inputs, tokens, next);
            asm volatile("cp.async.wait_group %0;" :: "n"(STAGES - 1) : "memory");
            uint4 *stage = own + slot * SPLIT * COPIES * WARP;
            add_stage(stage, values, sums);
            feeder.feed(a, stage);
            slot = slot + 1 == STAGES ? 0 : slot + 1;
#pragma unroll
            for (int i = 0; i < PIECES * TILES; i++) values[i / TILES][i % TILES] = next[i / TILES][i % TILES];
        }
        /* Two sets of sums in turn: one barrier a tile is enough. */
        float *set = partial + count % 2 * PARTIALS<TILES, GROUPS>;
        leave_sums<TILES, GROUPS>(sums, set);
        __syncthreads();
        finish<TILES, GROUPS, O>(a, set, tile, first_token, tokens);
    }
}

template <int TILES, int GROUPS>
constexpr size_t SHARED = sizeof(uint4) * STAGES * SPLIT * COPIES * WARP
    + sizeof(float) * 2 * PARTIALS<TILES, GROUPS>;

template <int TILES, int GROUPS, class O> static void start(qn_stream_t *stream, const qn_matmul_t *a)
{
    thin_t thin = { (const bf16 *)a->x, a->tokens, a->inputs, a->part_count, {}, {} };
    uint32_t tiles = 0;
    for (uint32_t p = 0; p < a->part_count; p++) {
        thin.parts[p] = a->parts[p];
        thin.tile_ends[p] = tiles += divide_up(a->parts[p].outputs, ROWS * GROUPS);
    }
    dim3 grid(tiles < stream->processors ? tiles : stream->processors, divide_up(a->tokens, TILES * TILE_TOKENS));
    qn_cuda_start(stream, "matmul.thin", multiply_thin<TILES, GROUPS, O>, grid, SPLIT * WARP, SHARED<TILES, GROUPS>,
                  thin);
}

/* Wider tiles read x less often, but only pay where several of them come to each processor. */
template <int TILES, class O> static void start_grouped(qn_stream_t *stream, const qn_matmul_t *a)
{
    uint32_t outputs = 0;
    for (uint32_t p = 0; p < a->part_count; p++) outputs += a->parts[p].outputs;
    if (outputs >= 4 * 2 * ROWS * stream->processors) start<TILES, 2, O>(stream, a);
    else start<TILES, 1, O>(stream, a);
}

template <class O> static void start_tiles(qn_stream_t *stream, const qn_matmul_t *a)
{
    if (a->tokens <= TILE_TOKENS) start_grouped<1, O>(stream, a);
    else if (a->tokens <= 2 * TILE_TOKENS) start_grouped<2, O>(stream, a);
    else start_grouped<4, O>(stream, a);
}

template <int TILES, int GROUPS, class O> static void prepare(cudaError_t *error)
{
    if (*error) return;
    *error = cudaFuncSetAttribute(multiply_thin<TILES, GROUPS, O>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  SHARED<TILES, GROUPS>);
}

template <class O> static void prepare_all(cudaError_t *error)
{
    prepare<1, 1, O>(error), prepare<2, 1, O>(error), prepare<4, 1, O>(error);
    prepare<1, 2, O>(error), prepare<2, 2, O>(error), prepare<4, 2, O>(error);
}

cudaError_t qn_cuda_prepare_thin(void)
{
    cudaError_t error = cudaSuccess;
    prepare_all<float>(&error);
    prepare_all<bf16>(&error);
    return error;
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
