/* What is this?      The matrix product for few tokens, which costs what reading the weights costs: bf16 weights
 *                    stream through a ring in shared memory into the registers that tensor cores take.
 * State owned:       none.
 * Must never:        let the additions of an output depend on the number of tokens or on its place in a tile.
 * Read next:         skinny_ring.cuh (how weights come), matmul.cu, which chooses; mma.m16n8k16 in the PTX manual for
 *                    the fragments.
 *
 * A product m16n8k16 takes 16 weight rows and 8 tokens. Of its 16 inputs a thread holds pairs that lie 8 apart; but
 * the order of inputs is free as long as weights and x agree. So thread t of a quad takes inputs 8t .. 8t+7 of a
 * 32-input piece at once and hands them out as two products, with no shuffle.
 *
 * A block stays on its processor and walks over tiles of rows. Its SPLIT warps share a tile, each takes every SPLIT-th
 * unit of 128 inputs, and their sums are added in the order of the warps. One warp more keeps the ring filled, over the
 * ends of tiles and, with dependent launch, before the kernel that computes x has ended.
 * TILES of 8 tokens reuse a weight fragment, which changes no output.
 *
 * A launch takes a few microseconds, and its instructions are fetched while they run: on an H200 a whole step of a 1B
 * shape took 6 % less when code for cases that a launch does not have (CHUNKS, PARTED, unrolled loops) went out.
 *
 * MODE: PARTED, there may be several parts. STAGED, x is brought to shared memory at once, where it fits. NORMED, x is
 * the residual stream and normed on that way, with the additions of rmsnorm.cu. GATED, half of a tile's rows are 8
 * outputs of gate, the others those of up, and f(gate) * up is stored. All round where the operations apart would
 * round, so they give the same bits. */
#include "kernels/cuda/matmul/matmul.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/matmul/skinny_ring.cuh"

#define UNIT 128 /* inputs that a warp takes at a time: eight of them are a stage */
#define PIECES (UNIT / 32)
#define TILE_TOKENS 8

enum { PLAIN = 0, STAGED = 1, NORMED = 2, GATED = 4, PARTED = 8 }; /* bits of MODE; NORMED, GATED only with STAGED */
#define X_BYTES 32768                                              /* of x in shared memory, at most */
#define X_CHUNKS 8 /* of 16 bytes, of x per thread: 256 threads take a token's in turns */
#define X_PAD 32   /* elements between tokens: the quads of two tokens read different banks */

typedef struct {
    const bf16 *x;
    uint32_t tokens, inputs, tiles;
    uint32_t depth;                          /* stages of the ring */
    uint32_t tile_ends[QN_MATMUL_PARTS];     /* PARTED: tiles of part p end before this index */
    qn_matmul_part_t parts[QN_MATMUL_PARTS]; /* GATED: gate and up, which share tiles; else without PARTED one */
    const bf16 *norm;                        /* NORMED: [M] */
    float norm_eps, norm_offset;
    qn_activation_t kind; /* GATED */
    bf16 *gated;          /* [T, O] */
} skinny_t;

/* Rows of a part in one tile. */
static constexpr __host__ __device__ uint32_t tile_rows(int mode) { return mode & GATED ? HALF : ROWS; }

/* Finds the part of a tile, and the tile's first row in it. */
template <int MODE>
static __device__ __forceinline__ const qn_matmul_part_t &find_part(const skinny_t &a, uint32_t tile, uint32_t &ret_row)
{
    uint32_t p = 0, before = 0;
    if constexpr (MODE & PARTED)
        while (tile >= a.tile_ends[p])
            before = a.tile_ends[p++];
    ret_row = (tile - before) * tile_rows(MODE);
    return a.parts[p];
}

/* The rows of a tile that are there. */
template <int MODE> static __device__ __forceinline__ rows_t rows_of(const skinny_t &a, uint32_t tile)
{
    uint32_t first;
    const qn_matmul_part_t &part = find_part<MODE>(a, tile, first);
    uint32_t left = part.outputs - first;
    const bf16 *from = (const bf16 *)part.weight.data + (size_t)first * a.inputs;
    if constexpr (MODE & GATED)
        return {{from, (const bf16 *)a.parts[1].weight.data + (size_t)first * a.inputs},
                {min(left, HALF), min(left, HALF)},
                a.inputs * sizeof(bf16)};
    return {{from, from + (size_t)HALF * a.inputs},
            {min(left, HALF), left > HALF ? min(left - HALF, HALF) : 0},
            a.inputs * sizeof(bf16)};
}

/* The warp beside the others: copies the stages of all of the block's tiles. */
template <int MODE> static __device__ __forceinline__ void fill_ring(const skinny_t &a, ring_t &ring)
{
    ring.open();
    for (uint32_t tile = blockIdx.x; tile < a.tiles; tile += gridDim.x) {
        rows_t rows = rows_of<MODE>(a, tile);
        for (uint32_t m = 0; m < a.inputs; m += STAGE_INPUTS)
            ring.fill(rows, m, min(a.inputs - m, STAGE_INPUTS));
    }
}

/* What is added to an output beside the product. */
typedef struct {
    float bias, residual;
} addend_t;

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
template <class O, int MODE>
static __device__ __forceinline__ addend_t first_addend(const skinny_t &a, uint32_t tile, uint32_t first_token,
                                                        uint32_t columns)
{
    uint32_t first_row, token = threadIdx.x / ROWS;
    const qn_matmul_part_t &part = find_part<MODE>(a, tile, first_row);
    uint32_t row = first_row + threadIdx.x % ROWS;
    if (token >= columns || row >= part.outputs) return {};
    return load_addend<O>(part, row, (size_t)(first_token + token) * part.outputs + row);
}

/* One output: the warps' sums in their order. */
static __device__ __forceinline__ float sum_warps(const float *partial, uint32_t columns, uint32_t token, uint32_t r)
{
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < SPLIT; warp++)
        sum += partial[(warp * columns + token) * (ROWS + 1) + r];
    return sum;
}

/* Stores the outputs of one tile. With few tokens the first warps do it while the others go on. */
template <class O, int MODE>
static __device__ __forceinline__ void finish(const skinny_t &a, const float *partial, uint32_t tile,
                                              uint32_t first_token, uint32_t columns, const addend_t &first_addend)
{
    uint32_t first_row;
    const qn_matmul_part_t &part = find_part<MODE>(a, tile, first_row);
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < ROWS * columns; i += SPLIT * WARP) {
        uint32_t r = i % ROWS, token = i / ROWS, row = first_row + r;
        if (row >= part.outputs) continue;
        size_t at = (size_t)(first_token + token) * part.outputs + row;
        addend_t addend = i == threadIdx.x ? first_addend : load_addend<O>(part, row, at);
        ((O *)part.out)[at] = from_float<O>(add(part, addend, sum_warps(partial, columns, token, r)));
    }
}

/* The same for gate and up: rows r and r + 8 are one output, f(gate) * up. */
static __device__ __forceinline__ void finish_gated(const skinny_t &a, const float *partial, uint32_t tile,
                                                    uint32_t first_token, uint32_t columns)
{
    constexpr uint32_t OUTPUTS = ROWS / 2;
    const qn_matmul_part_t &gate_part = a.parts[0], &up_part = a.parts[1];
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < OUTPUTS * columns; i += SPLIT * WARP) {
        uint32_t r = i % OUTPUTS, token = i / OUTPUTS, row = tile * OUTPUTS + r;
        if (row >= gate_part.outputs) continue;
        float gate = sum_warps(partial, columns, token, r);
        float up = sum_warps(partial, columns, token, OUTPUTS + r);
        if (gate_part.bias.data) gate += load_scalar(gate_part.bias.data, gate_part.bias.scalar, row);
        if (up_part.bias.data) up += load_scalar(up_part.bias.data, up_part.bias.scalar, row);
        gate = to_float(from_float<bf16>(gate)), up = to_float(from_float<bf16>(up));
        a.gated[(size_t)(first_token + token) * gate_part.outputs + row] =
            from_float<bf16>(activated(a.kind, gate) * up);
    }
}

/* This warp's sums of one tile, for finish(); and zeros for the next. */
template <int TILES>
static __device__ __forceinline__ void leave_sums(float (&sums)[TILES][4], uint32_t columns, float *partial)
{
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float *own = partial + warp * columns * (ROWS + 1);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t token = tile * TILE_TOKENS + lane % 4 * 2 + i % 2, row = lane / 4 + i / 2 * 8;
            if (token < columns) own[token * (ROWS + 1) + row] = sums[tile][i];
            sums[tile][i] = 0;
        }
}

/* Where this thread's eight inputs of a piece begin in a stage. */
static __device__ __forceinline__ uint32_t piece_at(int piece)
{
    return threadIdx.x / WARP * UNIT + piece * 32 + threadIdx.x % 4 * 8;
}

/* x of the stage that begins at m, of the tokens lane / 4 of each tile. */
template <int TILES>
static __device__ __forceinline__ void load_x(const bf16 *x, uint32_t stride, uint32_t m, uint32_t inputs,
                                              uint32_t tokens, uint4 (&to)[PIECES][TILES])
{
    uint32_t token = threadIdx.x % WARP / 4;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            uint32_t t = tile * TILE_TOKENS + token, at = m + piece_at(piece);
            to[piece][tile] = make_uint4(0, 0, 0, 0);
            if (t < tokens && at < inputs) to[piece][tile] = *(const uint4 *)(x + (size_t)t * stride + at);
        }
}

/* ---- x in shared memory ---- */

/* Goes over this thread's chunks: calls visit(j, token, m, first, last) for its j-th, at input m of a token (beyond the
 * end: the thread has none there), and whether it is the thread's first and last of that token. Counted, not divided:
 * every thread of every product goes this way. */
template <int CHUNKS, class F>
static __device__ __forceinline__ void for_each_chunk(uint32_t inputs, uint32_t tokens, F visit)
{
    constexpr uint32_t STEP = NORM_THREADS * 8;
    if constexpr (CHUNKS == 1) return visit(0, 0, threadIdx.x * 8, true, true); /* so there is one token */
    uint32_t token = 0, m = threadIdx.x * 8, end = (inputs + STEP - 1) / STEP * STEP;
#pragma unroll
    for (uint32_t j = 0; j < CHUNKS; j++) {
        if (token == tokens) break;
        bool last = m + STEP >= end;
        visit(j, token, m, m < STEP, last);
        m = last ? threadIdx.x * 8 : m + STEP;
        token += last;
    }
}

/* All of this thread's chunks on their way. */
template <int CHUNKS>
static __device__ __forceinline__ void load_chunks(const bf16 *x, uint32_t inputs, uint32_t tokens, uint4 (&to)[CHUNKS])
{
    for_each_chunk<CHUNKS>(inputs, tokens, [&](uint32_t j, uint32_t token, uint32_t m, bool, bool) {
        to[j] = make_uint4(0, 0, 0, 0);
        if (m < inputs) to[j] = *(const uint4 *)(x + (size_t)token * inputs + m);
    });
}

/* The norm's weights of the same chunks. They are constant: before grid_wait(). */
template <int CHUNKS>
static __device__ __forceinline__ void load_norm(const skinny_t &a, uint32_t tokens, uint4 (&to)[CHUNKS])
{
    for_each_chunk<CHUNKS>(a.inputs, tokens, [&](uint32_t j, uint32_t, uint32_t m, bool, bool) {
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
template <int CHUNKS>
static __device__ __forceinline__ void norm_chunks(const skinny_t &a, uint32_t tokens, const uint4 (&weights)[CHUNKS],
                                                   uint4 (&chunks)[CHUNKS])
{
    __shared__ float room[X_CHUNKS][NORM_WARPS];
    static_assert(SPLIT * WARP == NORM_THREADS, "the additions of rmsnorm.cu");
    uint32_t lane = threadIdx.x % WARP;
    float sum = 0, scale = 0;
    for_each_chunk<CHUNKS>(a.inputs, tokens, [&](uint32_t j, uint32_t token, uint32_t, bool first, bool last) {
        float values[8];
        unpack(chunks[j].x, values), unpack(chunks[j].y, values + 2);
        unpack(chunks[j].z, values + 4), unpack(chunks[j].w, values + 6);
        if (first) sum = 0;
#pragma unroll
        for (int i = 0; i < 8; i++)
            sum = fmaf(values[i], values[i], sum);
        if (!last) return;
        float all = warp_sum(sum);
        if (lane == 0) room[token][threadIdx.x / WARP] = all;
    });
    meet();
    for_each_chunk<CHUNKS>(a.inputs, tokens, [&](uint32_t j, uint32_t token, uint32_t, bool first, bool) {
        if (first) scale = norm_scale(warp_sum(lane < NORM_WARPS ? room[token][lane] : 0.0f), a.inputs, a.norm_eps);
        chunks[j].x = norm_pair(chunks[j].x, weights[j].x, scale, a.norm_offset);
        chunks[j].y = norm_pair(chunks[j].y, weights[j].y, scale, a.norm_offset);
        chunks[j].z = norm_pair(chunks[j].z, weights[j].z, scale, a.norm_offset);
        chunks[j].w = norm_pair(chunks[j].w, weights[j].w, scale, a.norm_offset);
    });
}

template <int CHUNKS>
static __device__ __forceinline__ void store_chunks(const uint4 (&chunks)[CHUNKS], uint32_t inputs, uint32_t tokens,
                                                    bf16 *staged)
{
    for_each_chunk<CHUNKS>(inputs, tokens, [&](uint32_t j, uint32_t token, uint32_t m, bool, bool) {
        if (m < inputs) *(uint4 *)(staged + (size_t)token * (inputs + X_PAD) + m) = chunks[j];
    });
    meet();
}

/* ---- the product ---- */

/* Adds the products of one stage, of whose rows `inputs` inputs were copied. */
template <int TILES>
static __device__ __forceinline__ void add_stage(const bf16 *stage, uint32_t inputs,
                                                 const uint4 (&values)[PIECES][TILES], float (&sums)[TILES][4])
{
    const bf16 *row = stage + threadIdx.x % WARP / 4 * STAGE_STRIDE;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        uint32_t at = piece_at(piece);
        uint4 low = make_uint4(0, 0, 0, 0), high = low;
        if (at < inputs) {
            low = *(const uint4 *)(row + at);
            high = *(const uint4 *)(row + ROWS / 2 * STAGE_STRIDE + at);
        }
#pragma unroll
        for (int t = 0; t < TILES; t++)
            mma_rows(sums[t], low, high, values[piece][t]);
    }
}

/* Sums of all warps for one tile. */
static __host__ __device__ __forceinline__ uint32_t partial_count(uint32_t columns)
{
    return SPLIT * columns * (ROWS + 1);
}

/* gridDim: x blocks that share out the tiles of all parts, y TILES * 8 tokens each. */
template <int TILES, class O, int MODE, int CHUNKS>
static __global__ void __launch_bounds__(THREADS, 1) multiply_skinny(const __grid_constant__ skinny_t a)
{
    static_assert(!(MODE & STAGED) || TILES == 1, "room for eight tokens at most");
    static_assert(!(MODE & NORMED) || MODE & STAGED, "x is normed where it is staged");
    extern __shared__ __align__(128) char shared[]; /* the ring, then x, then two sets of sums */
    grid_release();
    ring_t ring(shared, a.depth);
    if (threadIdx.x >= SPLIT * WARP) return fill_ring<MODE>(a, ring);
    ring.join();

    uint32_t first_token = blockIdx.y * TILES * TILE_TOKENS, tokens = a.tokens - first_token, stride = a.inputs;
    uint32_t columns = min((uint32_t)(TILES * TILE_TOKENS), tokens), tiles = a.tiles;
    const bf16 *x = a.x + (size_t)first_token * a.inputs;
    bf16 *staged = (bf16 *)(shared + RING_BYTES(a.depth));
    float *partial = (float *)(staged + (MODE & STAGED ? columns * (a.inputs + X_PAD) : 0));
    uint4 norm_weights[CHUNKS];
    if constexpr (MODE & NORMED) load_norm(a, tokens, norm_weights);
    grid_wait(); /* weights are constant, the rest is not */
    if (blockIdx.x >= tiles) return;
    if constexpr (MODE & STAGED) {
        uint4 chunks[CHUNKS];
        load_chunks(x, a.inputs, tokens, chunks);
        if constexpr (MODE & NORMED) norm_chunks(a, tokens, norm_weights, chunks);
        store_chunks(chunks, a.inputs, tokens, staged);
        x = staged, stride = a.inputs + X_PAD;
    }

    float sums[TILES][4] = {};
    uint4 values[PIECES][TILES], next[PIECES][TILES];
    load_x(x, stride, 0, a.inputs, tokens, values);
    for (uint32_t tile = blockIdx.x, count = 0; tile < tiles; tile += gridDim.x, count++) {
        addend_t addend = {};
        if constexpr (!(MODE & GATED)) addend = first_addend<O, MODE>(a, tile, first_token, columns);
        for (uint32_t m = 0; m < a.inputs; m += STAGE_INPUTS) {
            load_x(x, stride, m + STAGE_INPUTS < a.inputs ? m + STAGE_INPUTS : 0, a.inputs, tokens, next);
            add_stage(ring.take(), a.inputs - m, values, sums);
            ring.give();
#pragma unroll
            for (int i = 0; i < PIECES * TILES; i++)
                values[i / TILES][i % TILES] = next[i / TILES][i % TILES];
        }
        /* Two sets of sums in turn: one meeting a tile is enough. */
        float *set = partial + count % 2 * partial_count(columns);
        leave_sums<TILES>(sums, columns, set);
        meet();
        if constexpr (MODE & GATED)
            finish_gated(a, set, tile, first_token, columns);
        else
            finish<O, MODE>(a, set, tile, first_token, columns, addend);
    }
}

static size_t staged_bytes(const qn_matmul_t *a) { return (size_t)a->tokens * (a->inputs + X_PAD) * sizeof(bf16); }

/* Whether x fits into shared memory, and into the threads' registers on its way there. */
static bool can_stage(const qn_matmul_t *a)
{
    return a->tokens <= TILE_TOKENS && a->tokens * divide_up(a->inputs, NORM_THREADS * 8) <= X_CHUNKS &&
           staged_bytes(a) <= X_BYTES + X_PAD * sizeof(bf16) * TILE_TOKENS;
}

/* Shared memory of a launch beside its ring. */
template <int TILES, int MODE> static size_t room_bytes(const qn_matmul_t *a)
{
    uint32_t columns = a->tokens < TILES * TILE_TOKENS ? a->tokens : TILES * TILE_TOKENS;
    return sizeof(float) * 2 * partial_count(columns) + (MODE & STAGED ? staged_bytes(a) : 0);
}

static size_t stages_in(size_t bytes, size_t room)
{
    return bytes > room + RING_BYTES(0) ? (bytes - room - RING_BYTES(0)) / STAGE_BYTES : 0;
}

/* As deep as it goes, and as a block has stages. What may stand `beside` attention leaves room for it. */
static uint32_t choose_depth(const qn_stream_t *stream, size_t room, uint32_t stages, bool beside)
{
    size_t depth = stages_in(stream->block_shared, room), less = stages_in(stream->beside_shared, room);
    if (beside && less >= 3) depth = less;
    if (depth > DEPTH_MAX) depth = DEPTH_MAX;
    return stages < depth ? stages : (uint32_t)depth;
}

/* Chunks of x of a thread; one where x is not staged. Code for few of them is short, and short code is fetched soon. */
template <int MODE, class F> static void with_chunks(const qn_matmul_t *a, F call)
{
    if constexpr (MODE & STAGED) {
        uint32_t chunks = a->tokens * divide_up(a->inputs, NORM_THREADS * 8);
        if (chunks == 1)
            call(std::integral_constant<int, 1>());
        else if (chunks == 2)
            call(std::integral_constant<int, 2>());
        else
            call(std::integral_constant<int, X_CHUNKS>());
    } else {
        call(std::integral_constant<int, 1>());
    }
}

template <int TILES, class O, int MODE> static void start(qn_stream_t *stream, const qn_matmul_t *a, skinny_t &skinny)
{
    uint32_t tiles = 0, blocks = stream->processors, rounds = divide_up(a->tokens, TILES * TILE_TOKENS);
    size_t room = room_bytes<TILES, MODE>(a);
    skinny.x = (const bf16 *)a->x, skinny.tokens = a->tokens, skinny.inputs = a->inputs;
    for (uint32_t p = 0; p < a->part_count; p++) {
        skinny.parts[p] = a->parts[p];
        if (!(MODE & GATED) || p == 0) tiles += divide_up(a->parts[p].outputs, tile_rows(MODE));
        skinny.tile_ends[p] = tiles;
    }
    skinny.tiles = tiles;
    skinny.depth = choose_depth(stream, room, divide_up(a->inputs, STAGE_INPUTS) * divide_up(tiles, blocks),
                                !(MODE & GATED) && std::is_same_v<O, bf16>);
    if (tiles < blocks / 4 * 3) blocks = tiles; /* else one for each processor: the next launch finds them alike */
    with_chunks<MODE>(a, [&](auto chunks) {
        qn_cuda_start(stream, "matmul.skinny", multiply_skinny<TILES, O, MODE, chunks()>, dim3(blocks, rounds), THREADS,
                      RING_BYTES(skinny.depth) + room, skinny);
    });
}

template <class O> static void start_tiles(qn_stream_t *stream, const qn_matmul_t *a, skinny_t &skinny)
{
    constexpr int PARTS = std::is_same_v<O, bf16> ? PARTED : 0;
    if (can_stage(a) && a->part_count == 1)
        start<1, O, STAGED>(stream, a, skinny);
    else if (can_stage(a))
        start<1, O, STAGED | PARTS>(stream, a, skinny);
    else if (a->tokens <= TILE_TOKENS)
        start<1, O, PLAIN | PARTS>(stream, a, skinny);
    else if (a->tokens <= 2 * TILE_TOKENS)
        start<2, O, PLAIN | PARTS>(stream, a, skinny);
    else
        start<4, O, PLAIN | PARTS>(stream, a, skinny);
}

template <int TILES, class O, int MODE> static void prepare(const qn_stream_t *stream, cudaError_t *error)
{
    const cudaFuncAttribute name = cudaFuncAttributeMaxDynamicSharedMemorySize;
    int bytes = (int)stream->block_shared;
    if (!*error) *error = cudaFuncSetAttribute(multiply_skinny<TILES, O, MODE, 1>, name, bytes);
    if constexpr (MODE & STAGED) {
        if (!*error) *error = cudaFuncSetAttribute(multiply_skinny<TILES, O, MODE, 2>, name, bytes);
        if (!*error) *error = cudaFuncSetAttribute(multiply_skinny<TILES, O, MODE, X_CHUNKS>, name, bytes);
    }
}

template <class O, int PARTS> static void prepare_all(const qn_stream_t *stream, cudaError_t *error)
{
    prepare<1, O, PLAIN | PARTS>(stream, error), prepare<2, O, PLAIN | PARTS>(stream, error);
    prepare<4, O, PLAIN | PARTS>(stream, error), prepare<1, O, STAGED>(stream, error);
    prepare<1, O, STAGED | NORMED | PARTS>(stream, error);
}

cudaError_t qn_cuda_prepare_skinny(const qn_stream_t *stream)
{
    cudaError_t error = cudaSuccess;
    prepare_all<float, 0>(stream, &error);
    prepare_all<bf16, PARTED>(stream, &error);
    prepare<1, bf16, STAGED | PARTED>(stream, &error);
    prepare<1, bf16, STAGED | GATED>(stream, &error), prepare<1, bf16, STAGED | NORMED | GATED>(stream, &error);
    return error;
}

bool qn_cuda_skinny_fits(const qn_stream_t *stream, const product_t *product)
{
    const qn_matmul_t *a = product->a;
    if (stream->options.activations != QN_SCALAR_BF16 || a->inputs % 8 || (uintptr_t)a->x % 16) return false;
    if (product->out == QN_SCALAR_F32 && a->part_count > 1) return false;
    for (uint32_t p = 0; p < a->part_count; p++)
        if (a->parts[p].weight.scalar != QN_SCALAR_BF16 || (uintptr_t)a->parts[p].weight.data % 16) return false;
    return true;
}

void qn_cuda_skinny(qn_stream_t *stream, const product_t *product)
{
    skinny_t skinny = {};
    with_scalar(product->out, [&](auto out) { start_tiles<decltype(out)>(stream, product->a, skinny); });
}

/* ---- with norm and activation ---- */

bool qn_cuda_skinny_fused_fits(const qn_stream_t *stream, const qn_norm_matmul_t *a)
{
    product_t product = {&a->matmul, a->logits ? QN_SCALAR_F32 : QN_SCALAR_BF16};
    const qn_rmsnorm_t *norm = &a->norm;
    bool gated = a->activation.out != NULL;
    if (!can_stage(&a->matmul) || !qn_cuda_skinny_fits(stream, &product)) return false;
    if (norm->x && (norm->weight.scalar != QN_SCALAR_BF16 || norm->residual || norm->width <= NORM_WARP_WIDTH ||
                    ((uintptr_t)norm->x | (uintptr_t)norm->weight.data) % 16))
        return false;
    return !gated || (a->matmul.part_count == 2 && a->activation.up && !a->logits && !a->matmul.parts[0].residual &&
                      !a->matmul.parts[1].residual);
}

template <int MODE> static void start_fused(qn_stream_t *stream, const qn_norm_matmul_t *a, skinny_t &skinny)
{
    qn_matmul_t matmul = a->matmul;
    if constexpr (MODE & NORMED) {
        matmul.x = a->norm.x;
        skinny.norm = (const bf16 *)a->norm.weight.data;
        skinny.norm_eps = a->norm.eps, skinny.norm_offset = a->norm.weight_offset;
    }
    if constexpr (MODE & GATED) {
        skinny.kind = a->activation.kind;
        skinny.gated = (bf16 *)a->activation.out;
        start<1, bf16, MODE>(stream, &matmul, skinny);
    } else if (a->logits) {
        start<1, float, MODE>(stream, &matmul, skinny);
    } else {
        start<1, bf16, MODE | PARTED>(stream, &matmul, skinny);
    }
}

void qn_cuda_skinny_fused(qn_stream_t *stream, const qn_norm_matmul_t *a)
{
    skinny_t skinny = {};
    if (a->norm.x && a->activation.out)
        start_fused<STAGED | NORMED | GATED>(stream, a, skinny);
    else if (a->norm.x)
        start_fused<STAGED | NORMED>(stream, a, skinny);
    else if (a->activation.out)
        start_fused<STAGED | GATED>(stream, a, skinny);
    else if (a->logits)
        start_tiles<float>(stream, &a->matmul, skinny);
    else
        start_tiles<bf16>(stream, &a->matmul, skinny);
}
