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
 * TILES of 8 tokens reuse a weight fragment; GROUPS of 16 rows reuse one of x. Neither changes an output.
 *
 * MODE: STAGED, x is brought to shared memory at once, where it fits: with the memory busy with weights, each load that
 * a thread waits for takes microseconds. NORMED, x is the residual stream and normed on that way, with the additions of
 * rmsnorm.cu. GATED, the second group of rows is the same 16 outputs of `up`, and f(gate) * up is stored. All round
 * where the operations apart would round, so they give the same bits. */
#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/norm.cuh"

#define SPLIT 8
#define ROWS 16            /* weight rows of one product */
#define UNIT 128           /* inputs that a warp takes at a time */
/* Of the ring, 32 KiB each. More than half of the shared memory: a processor then never holds two blocks of one launch
 * while another holds none, as dependent launch would place them; attention's block fits beside one. */
#define STAGES 4
/* Of them before grid_wait(): more would stand before x in the memory's queues, where a product is so short that it
 * matters. */
#define EARLY_STAGES(inputs) ((inputs) >= 4096 ? STAGES : 2)
#define COPIES 8           /* of 16 bytes, per thread and stage */
#define TILE_TOKENS 8

enum { PLAIN = 0, STAGED = 1, NORMED = 2, GATED = 4 };   /* bits of MODE; NORMED only with STAGED */
#define X_BYTES 32768      /* of x in shared memory, at most */
#define X_CHUNKS 8         /* of 16 bytes, of x per thread: 256 threads take a token's in turns */
#define X_PAD 32           /* elements between tokens: the quads of two tokens read different banks */

typedef struct {
    const bf16 *x;
    uint32_t tokens, inputs, part_count;   /* GATED: gate and up share tiles, one part */
    qn_matmul_part_t parts[QN_MATMUL_PARTS];
    uint32_t tile_ends[QN_MATMUL_PARTS];   /* tiles of part p end before this index */
    const bf16 *norm;                      /* NORMED: [M] */
    float norm_eps, norm_offset;
    qn_activation_t kind;                  /* GATED */
    bf16 *gated;                           /* [T, O] */
    uint32_t early;                        /* stages on their way before grid_wait() */
} thin_t;

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
template <int GROUPS, int MODE> struct feeder {
    uint32_t tile, m;              /* m: of this thread's first piece */
    const bf16 *rows[2 * GROUPS];  /* at this thread's row of each half */

    __device__ __forceinline__ void find_rows(const thin_t &a)
    {
        if (tile >= a.tile_ends[a.part_count - 1]) return;
        uint32_t first, lane = threadIdx.x % WARP;
        const qn_matmul_part_t &part = find_part(a, tile, MODE & GATED ? ROWS : ROWS * GROUPS, first);
#pragma unroll
        for (int half = 0; half < 2 * GROUPS; half++) {
            bool up = MODE & GATED && half >= 2;
            uint32_t row = min(first + (up ? half - 2 : half) * 8 + lane / 4, part.outputs - 1);
            rows[half] = (const bf16 *)(up ? a.parts[1] : part).weight.data + (size_t)row * a.inputs;
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

/* What is added to an output beside the product. */
typedef struct { float bias, residual; } addend_t;

template <class O>
static __device__ __forceinline__ addend_t load_addend(const qn_matmul_part_t &part, uint32_t row, size_t at)
{
    addend_t addend = {};
    if (part.bias.data) addend.bias = load_scalar(part.bias.data, part.bias.scalar, row);
    if (part.residual) addend.residual = to_float(((const O *)part.residual)[at]);
    return addend;
}

static __device__ __forceinline__ float add(const qn_matmul_part_t &part, const addend_t &addend, float sum)
{
    if (part.bias.data) sum += addend.bias;
    if (part.residual) sum += addend.residual;
    return sum;
}

/* The addend of this thread's first output of a tile, on its way while the products are formed. */
template <int TILES, int GROUPS, class O>
static __device__ __forceinline__ addend_t first_addend(const thin_t &a, uint32_t tile, uint32_t first_token,
                                                        uint32_t tokens)
{
    constexpr uint32_t ALL_ROWS = ROWS * GROUPS;
    uint32_t first_row, token = threadIdx.x / ALL_ROWS;
    const qn_matmul_part_t &part = find_part(a, tile, ALL_ROWS, first_row);
    uint32_t row = first_row + threadIdx.x % ALL_ROWS;
    if (token >= min((uint32_t)(TILES * TILE_TOKENS), tokens) || row >= part.outputs) return {};
    return load_addend<O>(part, row, (size_t)(first_token + token) * part.outputs + row);
}

/* One output: the warps' sums in their order. */
template <int COLUMNS, int ALL_ROWS>
static __device__ __forceinline__ float sum_warps(const float *partial, uint32_t token, uint32_t r)
{
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < SPLIT; warp++) sum += partial[(warp * COLUMNS + token) * (ALL_ROWS + 1) + r];
    return sum;
}

/* Stores the outputs of one tile. With few tokens the first warps do it while the others go on. */
template <int TILES, int GROUPS, class O>
static __device__ __forceinline__ void finish(const thin_t &a, const float *partial, uint32_t tile,
                                              uint32_t first_token, uint32_t tokens, const addend_t &first_addend)
{
    constexpr uint32_t ALL_ROWS = ROWS * GROUPS, COLUMNS = TILES * TILE_TOKENS;
    uint32_t first_row;
    const qn_matmul_part_t &part = find_part(a, tile, ALL_ROWS, first_row);
    for (uint32_t i = threadIdx.x; i < ALL_ROWS * min(COLUMNS, tokens); i += SPLIT * WARP) {
        uint32_t r = i % ALL_ROWS, token = i / ALL_ROWS, row = first_row + r;
        if (row >= part.outputs) continue;
        size_t at = (size_t)(first_token + token) * part.outputs + row;
        addend_t addend = i == threadIdx.x ? first_addend : load_addend<O>(part, row, at);
        ((O *)part.out)[at] = from_float<O>(add(part, addend, sum_warps<COLUMNS, ALL_ROWS>(partial, token, r)));
    }
}

/* The same for gate and up: their rows r and ROWS + r are one output, f(gate) * up. */
template <int TILES>
static __device__ __forceinline__ void finish_gated(const thin_t &a, const float *partial, uint32_t tile,
                                                    uint32_t first_token, uint32_t tokens)
{
    constexpr uint32_t COLUMNS = TILES * TILE_TOKENS;
    const qn_matmul_part_t &gate_part = a.parts[0], &up_part = a.parts[1];
    for (uint32_t i = threadIdx.x; i < ROWS * min(COLUMNS, tokens); i += SPLIT * WARP) {
        uint32_t r = i % ROWS, token = i / ROWS, row = tile * ROWS + r;
        if (row >= gate_part.outputs) continue;
        float gate = sum_warps<COLUMNS, 2 * ROWS>(partial, token, r);
        float up = sum_warps<COLUMNS, 2 * ROWS>(partial, token, ROWS + r);
        if (gate_part.bias.data) gate += load_scalar(gate_part.bias.data, gate_part.bias.scalar, row);
        if (up_part.bias.data) up += load_scalar(up_part.bias.data, up_part.bias.scalar, row);
        gate = to_float(from_float<bf16>(gate)), up = to_float(from_float<bf16>(up));
        a.gated[(size_t)(first_token + token) * gate_part.outputs + row] =
            from_float<bf16>(activated(a.kind, gate) * up);
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
static __device__ __forceinline__ void load_x(const bf16 *x, uint32_t stride, uint32_t m, uint32_t inputs,
                                              uint32_t tokens, uint4 (&to)[PIECES][TILES])
{
    uint32_t token = threadIdx.x % WARP / 4;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            uint32_t t = tile * TILE_TOKENS + token, at = m + piece * 32;
            to[piece][tile] = make_uint4(0, 0, 0, 0);
            if (t < tokens && at < inputs) to[piece][tile] = *(const uint4 *)(x + (size_t)t * stride + at);
        }
}

/* ---- x in shared memory ---- */

/* Goes over this thread's chunks: calls visit(j, token, m, first, last) for its j-th, at input m of a token (beyond the
 * end: the thread has none there), and whether it is the thread's first and last of that token. Counted, not divided:
 * every thread of every product goes this way. */
template <class F>
static __device__ __forceinline__ void for_each_chunk(uint32_t inputs, uint32_t tokens, F visit)
{
    constexpr uint32_t STEP = NORM_THREADS * 8;
    uint32_t token = 0, m = threadIdx.x * 8, end = (inputs + STEP - 1) / STEP * STEP;
#pragma unroll
    for (uint32_t j = 0; j < X_CHUNKS; j++) {
        if (token == tokens) break;
        bool last = m + STEP >= end;
        visit(j, token, m, m < STEP, last);
        m = last ? threadIdx.x * 8 : m + STEP;
        token += last;
    }
}

/* All of this thread's chunks on their way. */
static __device__ __forceinline__ void load_chunks(const bf16 *x, uint32_t inputs, uint32_t tokens,
                                                   uint4 (&to)[X_CHUNKS])
{
    for_each_chunk(inputs, tokens, [&](uint32_t j, uint32_t token, uint32_t m, bool, bool) {
        to[j] = make_uint4(0, 0, 0, 0);
        if (m < inputs) to[j] = *(const uint4 *)(x + (size_t)token * inputs + m);
    });
}

/* The norm's weights of the same chunks. They are constant: before grid_wait(). */
static __device__ __forceinline__ void load_norm(const thin_t &a, uint32_t tokens, uint4 (&to)[X_CHUNKS])
{
    for_each_chunk(a.inputs, tokens, [&](uint32_t j, uint32_t, uint32_t m, bool, bool) {
        to[j] = make_uint4(0, 0, 0, 0);
        if (m < a.inputs) to[j] = *(const uint4 *)(a.norm + m);
    });
}

static __device__ __forceinline__ uint32_t norm_pair(uint32_t x, uint32_t weight, float scale, float offset)
{
    float values[2], weights[2];
    unpack(x, values);
    unpack(weight, weights);
    return pack_bf16(normed(values[0], scale, weights[0], offset), normed(values[1], scale, weights[1], offset));
}

/* Norms the chunks: each token's squares are added in the order of rmsnorm.cu. */
static __device__ __forceinline__ void norm_chunks(const thin_t &a, uint32_t tokens, const uint4 (&weights)[X_CHUNKS],
                                                   uint4 (&chunks)[X_CHUNKS])
{
    __shared__ float room[X_CHUNKS][NORM_WARPS];
    static_assert(SPLIT * WARP == NORM_THREADS, "the additions of rmsnorm.cu");
    uint32_t lane = threadIdx.x % WARP;
    float sum = 0, scale = 0;
    for_each_chunk(a.inputs, tokens, [&](uint32_t j, uint32_t token, uint32_t, bool first, bool last) {
        float values[8];
        unpack(chunks[j].x, values), unpack(chunks[j].y, values + 2);
        unpack(chunks[j].z, values + 4), unpack(chunks[j].w, values + 6);
        if (first) sum = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) sum = fmaf(values[i], values[i], sum);
        if (!last) return;
        float all = warp_sum(sum);
        if (lane == 0) room[token][threadIdx.x / WARP] = all;
    });
    __syncthreads();
    for_each_chunk(a.inputs, tokens, [&](uint32_t j, uint32_t token, uint32_t, bool first, bool) {
        if (first)
            scale = norm_scale(warp_sum(lane < NORM_WARPS ? room[token][lane] : 0.0f), a.inputs, a.norm_eps);
        chunks[j].x = norm_pair(chunks[j].x, weights[j].x, scale, a.norm_offset);
        chunks[j].y = norm_pair(chunks[j].y, weights[j].y, scale, a.norm_offset);
        chunks[j].z = norm_pair(chunks[j].z, weights[j].z, scale, a.norm_offset);
        chunks[j].w = norm_pair(chunks[j].w, weights[j].w, scale, a.norm_offset);
    });
}

static __device__ __forceinline__ void store_chunks(const uint4 (&chunks)[X_CHUNKS], uint32_t inputs, uint32_t tokens,
                                                    bf16 *staged)
{
    for_each_chunk(inputs, tokens, [&](uint32_t j, uint32_t token, uint32_t m, bool, bool) {
        if (m < inputs) *(uint4 *)(staged + (size_t)token * (inputs + X_PAD) + m) = chunks[j];
    });
    __syncthreads();
}

/* ---- the product ---- */

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
            for (int t = 0; t < TILES; t++) mma_rows(sums[group][t], low, high, values[piece][t]);
        }
}

/* Sums of all warps for one tile. */
template <int TILES, int GROUPS> constexpr int PARTIALS = SPLIT * TILES * TILE_TOKENS * (ROWS * GROUPS + 1);

/* gridDim: x blocks that share out the tiles of all parts, y TILES * 8 tokens each. */
template <int TILES, int GROUPS, class O, int MODE>
static __global__ void __launch_bounds__(SPLIT * WARP, 1) multiply_thin(const __grid_constant__ thin_t a)
{
    constexpr int PIECES = UNIT / GROUPS / 32;
    static_assert(!(MODE & STAGED) || TILES == 1, "room for eight tokens at most");
    static_assert(!(MODE & NORMED) || MODE & STAGED, "x is normed where it is staged");
    static_assert(!(MODE & GATED) || GROUPS == 2, "gate and up");
    extern __shared__ uint4 ring[];   /* [STAGES][SPLIT][COPIES][WARP], then two sets of sums, then x */
    uint4 *own = ring + threadIdx.x / WARP * COPIES * WARP + threadIdx.x % WARP;
    float *partial = (float *)(ring + STAGES * SPLIT * COPIES * WARP);
    uint32_t first_token = blockIdx.y * TILES * TILE_TOKENS, tokens = a.tokens - first_token, stride = a.inputs;
    const bf16 *x = a.x + (size_t)first_token * a.inputs;
    feeder<GROUPS, MODE> feeder = { blockIdx.x, threadIdx.x / WARP * UNIT + threadIdx.x % 4 * 8, {} };

    grid_release();
    feeder.find_rows(a);
#pragma unroll
    for (uint32_t stage = 0; stage < STAGES; stage++)
        if (stage < a.early) feeder.feed(a, own + stage * SPLIT * COPIES * WARP);
    uint4 norm_weights[MODE & NORMED ? X_CHUNKS : 1];
    if constexpr (MODE & NORMED) load_norm(a, tokens, norm_weights);
    grid_wait();   /* weights are constant: they are on their way while the kernel before this one ends */
    if constexpr (MODE & STAGED) {
        bf16 *staged = (bf16 *)(partial + 2 * PARTIALS<TILES, GROUPS>);
        uint4 chunks[X_CHUNKS];
        load_chunks(x, a.inputs, tokens, chunks);
#pragma unroll
        for (uint32_t stage = 0; stage < STAGES; stage++)
            if (stage >= a.early) feeder.feed(a, own + stage * SPLIT * COPIES * WARP);
        if constexpr (MODE & NORMED) norm_chunks(a, tokens, norm_weights, chunks);
        store_chunks(chunks, a.inputs, tokens, staged);
        x = staged, stride = a.inputs + X_PAD;
    }

    float sums[GROUPS][TILES][4] = {};
    uint32_t slot = 0, count = 0, warp = threadIdx.x / WARP, base = warp * UNIT, start = base + threadIdx.x % 4 * 8;
    uint32_t tiles = a.tile_ends[a.part_count - 1];
    uint4 values[PIECES][TILES], next[PIECES][TILES];
    load_x(x, stride, start, a.inputs, tokens, values);
    if constexpr (!(MODE & STAGED))
#pragma unroll
        for (uint32_t stage = 0; stage < STAGES; stage++)
            if (stage >= a.early) feeder.feed(a, own + stage * SPLIT * COPIES * WARP);
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x, count++) {
        addend_t addend = {};
        if constexpr (!(MODE & GATED)) addend = first_addend<TILES, GROUPS, O>(a, tile, first_token, tokens);
        for (uint32_t m = start, then; m - base < feeder.end_of(a.inputs); m = then) {
            then = feeder.template next_m<GROUPS>(m);
            load_x(x, stride, then - base < feeder.end_of(a.inputs) ? then : start, a.inputs, tokens, next);
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
        if constexpr (MODE & GATED) finish_gated<TILES>(a, set, tile, first_token, tokens);
        else finish<TILES, GROUPS, O>(a, set, tile, first_token, tokens, addend);
    }
}

template <int TILES, int GROUPS>
constexpr size_t SHARED = sizeof(uint4) * STAGES * SPLIT * COPIES * WARP
    + sizeof(float) * 2 * PARTIALS<TILES, GROUPS>;

static size_t staged_bytes(const qn_matmul_t *a) { return (size_t)a->tokens * (a->inputs + X_PAD) * sizeof(bf16); }

/* Whether x fits into shared memory, and into the threads' registers on its way there. */
static bool can_stage(const qn_matmul_t *a)
{
    return a->tokens <= TILE_TOKENS && a->tokens * divide_up(a->inputs, NORM_THREADS * 8) <= X_CHUNKS
        && staged_bytes(a) <= X_BYTES + X_PAD * sizeof(bf16) * TILE_TOKENS;
}

template <int TILES, int GROUPS, class O, int MODE>
static void start(qn_stream_t *stream, const qn_matmul_t *a, thin_t &thin)
{
    uint32_t tiles = 0;
    thin.x = (const bf16 *)a->x, thin.tokens = a->tokens, thin.inputs = a->inputs;
    thin.early = stream->options.early_stages ? stream->options.early_stages : EARLY_STAGES(a->inputs);
    thin.part_count = MODE & GATED ? 1 : a->part_count;
    for (uint32_t p = 0; p < a->part_count; p++) thin.parts[p] = a->parts[p];
    for (uint32_t p = 0; p < thin.part_count; p++)
        thin.tile_ends[p] = tiles += divide_up(a->parts[p].outputs, MODE & GATED ? ROWS : ROWS * GROUPS);
    dim3 grid(tiles < stream->processors ? tiles : stream->processors, divide_up(a->tokens, TILES * TILE_TOKENS));
    qn_cuda_start(stream, "matmul.thin", multiply_thin<TILES, GROUPS, O, MODE>, grid, SPLIT * WARP,
                  SHARED<TILES, GROUPS> + (MODE & STAGED ? staged_bytes(a) : 0), thin);
}

/* Wider tiles read x less often, but only pay where several of them come to each processor. */
template <int TILES, class O, int MODE>
static void start_grouped(qn_stream_t *stream, const qn_matmul_t *a, thin_t &thin)
{
    uint32_t outputs = 0;
    for (uint32_t p = 0; p < a->part_count; p++) outputs += a->parts[p].outputs;
    if (outputs >= 4 * 2 * ROWS * stream->processors) start<TILES, 2, O, MODE>(stream, a, thin);
    else start<TILES, 1, O, MODE>(stream, a, thin);
}

template <class O> static void start_tiles(qn_stream_t *stream, const qn_matmul_t *a, thin_t &thin)
{
    if (can_stage(a)) start_grouped<1, O, STAGED>(stream, a, thin);
    else if (a->tokens <= TILE_TOKENS) start_grouped<1, O, PLAIN>(stream, a, thin);
    else if (a->tokens <= 2 * TILE_TOKENS) start_grouped<2, O, PLAIN>(stream, a, thin);
    else start_grouped<4, O, PLAIN>(stream, a, thin);
}

template <int TILES, int GROUPS, class O, int MODE> static void prepare(cudaError_t *error)
{
    if (*error) return;
    *error = cudaFuncSetAttribute(multiply_thin<TILES, GROUPS, O, MODE>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  SHARED<TILES, GROUPS>
                                      + (MODE & STAGED ? X_BYTES + X_PAD * sizeof(bf16) * TILE_TOKENS : 0));
}

template <class O> static void prepare_all(cudaError_t *error)
{
    prepare<1, 1, O, PLAIN>(error), prepare<2, 1, O, PLAIN>(error), prepare<4, 1, O, PLAIN>(error);
    prepare<1, 2, O, PLAIN>(error), prepare<2, 2, O, PLAIN>(error), prepare<4, 2, O, PLAIN>(error);
    prepare<1, 1, O, STAGED>(error), prepare<1, 2, O, STAGED>(error);
    prepare<1, 1, O, STAGED | NORMED>(error), prepare<1, 2, O, STAGED | NORMED>(error);
}

cudaError_t qn_cuda_prepare_thin(void)
{
    cudaError_t error = cudaSuccess;
    prepare_all<float>(&error);
    prepare_all<bf16>(&error);
    prepare<1, 2, bf16, STAGED | GATED>(&error), prepare<1, 2, bf16, STAGED | NORMED | GATED>(&error);
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
    thin_t thin = {};
    with_scalar(product->out, [&](auto out) { start_tiles<decltype(out)>(stream, product->a, thin); });
}

/* ---- with norm and activation ---- */

bool qn_cuda_thin_fused_fits(const qn_stream_t *stream, const qn_norm_matmul_t *a)
{
    product_t product = { &a->matmul, a->logits ? QN_SCALAR_F32 : QN_SCALAR_BF16 };
    const qn_rmsnorm_t *norm = &a->norm;
    bool gated = a->activation.out != NULL;
    if (!can_stage(&a->matmul) || !qn_cuda_thin_fits(stream, &product)) return false;
    if (norm->x && (norm->weight.scalar != QN_SCALAR_BF16 || norm->residual || norm->width <= NORM_WARP_WIDTH
                    || ((uintptr_t)norm->x | (uintptr_t)norm->weight.data) % 16)) return false;
    return !gated || (a->matmul.part_count == 2 && a->activation.up && !a->logits
                      && !a->matmul.parts[0].residual && !a->matmul.parts[1].residual);
}

template <int MODE> static void start_fused(qn_stream_t *stream, const qn_norm_matmul_t *a, thin_t &thin)
{
    qn_matmul_t matmul = a->matmul;
    if constexpr (MODE & NORMED) {
        matmul.x = a->norm.x;
        thin.norm = (const bf16 *)a->norm.weight.data;
        thin.norm_eps = a->norm.eps, thin.norm_offset = a->norm.weight_offset;
    }
    if constexpr (MODE & GATED) {
        thin.kind = a->activation.kind;
        thin.gated = (bf16 *)a->activation.out;
        start<1, 2, bf16, MODE>(stream, &matmul, thin);
    } else if (a->logits) {
        start_grouped<1, float, MODE>(stream, &matmul, thin);
    } else {
        start_grouped<1, bf16, MODE>(stream, &matmul, thin);
    }
}

void qn_cuda_thin_fused(qn_stream_t *stream, const qn_norm_matmul_t *a)
{
    thin_t thin = {};
    if (a->norm.x && a->activation.out) start_fused<STAGED | NORMED | GATED>(stream, a, thin);
    else if (a->norm.x) start_fused<STAGED | NORMED>(stream, a, thin);
    else if (a->activation.out) start_fused<STAGED | GATED>(stream, a, thin);
    else start_fused<STAGED>(stream, a, thin);
}
