/* What is this?      The matrix product of 9 to 160 tokens on Hopper, a launch for all parts, with bias, residual, or
 *                    f(gate) * up at its end.
 * State owned:       none.
 * Must never:        let the order of additions depend on anything but the weights' shape and the device.
 * Read next:         matmul_wide.cuh (who copies what), wgmma.cuh (the instructions).
 *
 * With so few tokens a product is as fast as weights come from memory. Weight rows are the rows of wgmma, tokens its
 * columns: one tile of 128 rows has all tokens, so that every weight is read once. Where tiles are too few to fill the
 * device the inputs are cut into segments, one for each block of a cluster, which then add up out of each other's
 * shared memory: inputs in ascending order, 16 at a time, in each segment; segments in ascending order. How many there
 * are depends on the weights' shape and the device alone, so a token's bits do not depend on the others.
 *
 * Weights are constant: a block asks for as many as it has room for before the launch before has ended. */
#include "kernels/cuda/matmul/matmul_wide.cuh"

#define WIDE_TOKENS 160 /* of a launch */

#if __CUDA_ARCH_FEAT_SM90_ALL

/* Sums of one warpgroup's 64 rows by N tokens: 128, 64 and 32 of them, as there are. */
template <int N> struct wide_sums_t {
    static constexpr int WIDE = N / 128 * 64, HALF = N / 64 % 2 * 32, REST = N / 32 % 2 * 16;
    static_assert(N < 256 && N % 32 == 0, "there are instructions for 128, 64 and 32 columns");
    float wide[WIDE ? WIDE : 1], half[HALF ? HALF : 1], rest[REST ? REST : 1];

    __device__ __forceinline__ void hold()
    {
        if constexpr (WIDE > 0) pin(wide);
        if constexpr (HALF > 0) pin(half);
        if constexpr (REST > 0) pin(rest);
    }

    __device__ __forceinline__ void add(uint64_t weights, uint64_t x, bool first)
    {
        if constexpr (WIDE > 0) multiply_rows(wide, weights, x, !first);
        if constexpr (HALF > 0) multiply_rows(half, weights, operand_at(x, WIDE * 2 * PANEL_STRIDE), !first);
        if constexpr (REST > 0) multiply_rows(rest, weights, operand_at(x, (WIDE + HALF) * 2 * PANEL_STRIDE), !first);
    }

    template <int COUNT>
    static __device__ __forceinline__ void leave_some(const float (&sums)[COUNT], uint32_t first, float *to)
    {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            to[(first + i / 4 * 8 + i % 2) * SUM_STRIDE + i / 2 % 2 * 8] = sums[i];
    }

    /* To [token, row]. */
    __device__ __forceinline__ void leave(float *to) const
    {
        uint32_t thread = threadIdx.x % TEAM, row = threadIdx.x / TEAM * TEAM_ROWS + thread / WARP * 16;
        to += thread % 4 * 2 * SUM_STRIDE + row + thread % WARP / 4;
        if constexpr (WIDE > 0) leave_some(wide, 0, to);
        if constexpr (HALF > 0) leave_some(half, WIDE * 2, to);
        if constexpr (REST > 0) leave_some(rest, (WIDE + HALF) * 2, to);
    }
};

/* The products of this block's share of the inputs. A stage is given back when the next one's products are on their way. */
template <class S>
static __device__ __forceinline__ void multiply_share(const copier_t<S> &copier, bool copies, wide_sums_t<S::N> &sums)
{
    wide_room_t<S> &room = copier.room;
    uint32_t slot = 0, parity = 0, last_slot = 0, last_parity = 0, team = threadIdx.x / TEAM;
    for (uint32_t index = 0; index < copier.share.count; index++) {
        uint64_t weights = operand(shared_address(room.stages[slot] + team * TEAM_BYTES), 16);
        uint64_t x = operand(shared_address(room.stages[slot] + TEAMS * TEAM_BYTES), 16);
        barrier_wait(shared_address(&room.full[slot]), parity);
        __syncwarp();
        sums.hold();
        products_begin();
#pragma unroll
        for (int step = 0; step < PANEL_WIDTH / 16; step++)
            sums.add(operand_at(weights, step * 32), operand_at(x, step * 32), index == 0 && step == 0);
        products_commit();
        products_wait<1>();
        __syncwarp();
        if (index > 0) {
            if (threadIdx.x % WARP == 0) barrier_arrive(shared_address(&room.empty[last_slot]));
            if (copies) copier.follow(index - 1, last_slot, last_parity);
        }
        last_slot = slot, last_parity = parity;
        if (++slot == S::STAGES) slot = 0, parity ^= 1;
    }
    products_wait<0>();
    sums.hold();
}

/* ---- the end of a tile ---- */

/* Four rows of one token, all segments. */
static __device__ __forceinline__ float4 sum_segments(uint32_t segments, const float *from)
{
    if (segments == 1) return *(const float4 *)from;
    float4 parts[SEGMENTS_MAX], sum;
#pragma unroll
    for (uint32_t s = 0; s < SEGMENTS_MAX; s++)
        if (s < segments) parts[s] = cluster_load_quad(from, s);
    sum = parts[0];
#pragma unroll
    for (uint32_t s = 1; s < SEGMENTS_MAX; s++)
        if (s < segments) sum.x += parts[s].x, sum.y += parts[s].y, sum.z += parts[s].z, sum.w += parts[s].w;
    return sum;
}

static __device__ __forceinline__ void add_bias(const qn_matmul_part_t &part, uint32_t row, float4 &sum)
{
    if (!part.bias.data) return;
    sum.x += load_scalar(part.bias.data, part.bias.scalar, row);
    sum.y += load_scalar(part.bias.data, part.bias.scalar, row + 1);
    sum.z += load_scalar(part.bias.data, part.bias.scalar, row + 2);
    sum.w += load_scalar(part.bias.data, part.bias.scalar, row + 3);
}

static __device__ __forceinline__ void store_quad(bf16 *to, const float4 &quad)
{
    *(uint2 *)to = make_uint2(pack_bf16(quad.x, quad.y), pack_bf16(quad.z, quad.w));
}

static __device__ __forceinline__ float gate_one(qn_activation_t kind, float gate, float up)
{
    return activated(kind, to_float(from_float<bf16>(gate))) * to_float(from_float<bf16>(up));
}

static __device__ __forceinline__ void finish_gated(const wide_t &w, uint32_t row, const float *sums, bf16 *to)
{
    float4 gate = sum_segments(w.segments, sums), up = sum_segments(w.segments, sums + TEAM_ROWS);
    add_bias(w.parts[0], row, gate);
    add_bias(w.parts[1], row, up);
    store_quad(to, make_float4(gate_one(w.kind, gate.x, up.x), gate_one(w.kind, gate.y, up.y),
                               gate_one(w.kind, gate.z, up.z), gate_one(w.kind, gate.w, up.w)));
}

static __device__ __forceinline__ void finish_quad(const wide_t &w, const share_t &share, const float *sums,
                                                   uint32_t token, uint32_t quad)
{
    const qn_matmul_part_t &part = w.parts[share.part];
    uint32_t row = share.row + quad * 4;
    if (row >= part.outputs) return;
    size_t at = (size_t)token * part.outputs + row;
    sums += token * SUM_STRIDE + quad * 4;
    if (w.gated) return finish_gated(w, row, sums, w.gated + at);
    uint2 residual = make_uint2(0, 0);
    if (part.residual) residual = *(const uint2 *)((const bf16 *)part.residual + at);
    float4 sum = sum_segments(w.segments, sums);
    add_bias(part, row, sum);
    if (w.logits) {
        *(float4 *)((float *)part.out + at) = sum;
        return;
    }
    float added[4];
    unpack(residual.x, added), unpack(residual.y, added + 2);
    store_quad((bf16 *)part.out + at,
               make_float4(sum.x + added[0], sum.y + added[1], sum.z + added[2], sum.w + added[3]));
}

/* Each segment's block finishes its share of the tokens. */
static __device__ __forceinline__ void finish_tile(const wide_t &w, const share_t &share, const float *sums)
{
    uint32_t each = (w.tokens + w.segments - 1) / w.segments, first = share.segment * each;
    uint32_t count = first < w.tokens ? min(each, w.tokens - first) : 0, quads = (w.gated ? TEAM_ROWS : TILE_ROWS) / 4;
    for (uint32_t i = threadIdx.x; i < count * quads; i += WIDE_THREADS)
        finish_quad(w, share, sums, first + i / quads, i % quads);
}
#endif

template <class S>
static __global__ void __launch_bounds__(WIDE_THREADS, S::BLOCKS) multiply_wide(const __grid_constant__ wide_t w)
{
#if __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(PANEL_ALIGN) char shared[];
    wide_room_t<S> &room = *(wide_room_t<S> *)shared;
    share_t share(w);
    copier_t<S> copier = {w, share, room};
    bool copies = threadIdx.x / WARP == 0 && elected();
    wide_sums_t<S::N> sums;
    grid_release();
    if (copies) {
        copier.open();
        copier.begin_weights();
    }
    __syncthreads(); /* the barriers are there */
    grid_wait();
    if (copies) copier.begin_x();
    multiply_share<S>(copier, copies, sums);
    __syncthreads(); /* sums lie where the stages were */
    sums.leave((float *)shared);
    if (w.segments > 1)
        cluster_barrier();
    else
        __syncthreads();
    finish_tile(w, share, (const float *)shared);
    if (w.segments > 1) cluster_arrive(), cluster_wait(); /* nobody leaves while others read its shared memory */
#endif
}

/* ---- the launch ---- */

/* A matrix of rows of `inputs` elements, in boxes of `rows` rows and a panel's width. */
static CUresult describe(const qn_stream_t *stream, const void *data, uint32_t count, uint32_t inputs, uint32_t rows,
                         CUtensorMap *map)
{
    cuuint64_t sizes[2] = {inputs, count}, strides[1] = {(cuuint64_t)inputs * sizeof(bf16)};
    cuuint32_t boxes[2] = {PANEL_WIDTH, rows}, steps[2] = {1, 1};
    auto encode = (decltype(&cuTensorMapEncodeTiled))stream->encode_map;
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)data, sizes, strides, boxes, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

/* Calls with the shape for this many tokens. */
template <int BLOCKS, class F> static void with_tokens(uint32_t tokens, F call)
{
    if (tokens <= 32)
        call(wide_shape<32, BLOCKS>());
    else if (tokens <= 64)
        call(wide_shape<64, BLOCKS>());
    else if (tokens <= 96)
        call(wide_shape<96, BLOCKS>());
    else if (tokens <= 128)
        call(wide_shape<128, BLOCKS>());
    else
        call(wide_shape<160, BLOCKS>());
}

/* Few tiles with many segments want a processor for each block, and all of its memory. */
static int blocks_of(const qn_norm_matmul_t *a) { return a->matmul.part_count == 1 && !a->logits ? 1 : 2; }

template <class F> static void with_wide_shape(int blocks, uint32_t tokens, F call)
{
    if (blocks == 1)
        with_tokens<1>(tokens, call);
    else
        with_tokens<2>(tokens, call);
}

/* As many segments as are on the device at once. */
static uint32_t count_segments(const qn_stream_t *stream, const qn_norm_matmul_t *a)
{
    const qn_matmul_t *m = &a->matmul;
    int blocks = blocks_of(a);
    uint32_t rows = 0, segments = 1, most = blocks == 1 ? SEGMENTS_MAX : SEGMENTS_MAX_BESIDE;
    for (uint32_t p = 0; p < m->part_count; p++)
        rows += m->parts[p].outputs;
    for (uint32_t next = 2; next <= most && next * PANEL_WIDTH <= m->inputs; next++)
        if (divide_up(rows, TILE_ROWS) <= stream->clusters[blocks - 1][next - 1]) segments = next;
    return segments;
}

/* How many clusters of each size the device holds, with one and with two of their blocks a processor: not what divides its
 * processors, since a cluster lies in one of their groups. */
template <class S> static cudaError_t count_clusters(qn_stream_t *stream)
{
    cudaError_t error = cudaSuccess;
    for (unsigned size = 1; size <= SEGMENTS_MAX && !error; size++) {
        cudaLaunchAttribute cluster = {};
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim.x = size, cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(size * stream->processors), config.blockDim = dim3(WIDE_THREADS);
        config.dynamicSmemBytes = sizeof(wide_room_t<S>), config.attrs = &cluster, config.numAttrs = 1;
        int count = 0;
        error = cudaOccupancyMaxActiveClusters(&count, multiply_wide<S>, &config);
        stream->clusters[S::BLOCKS - 1][size - 1] = (uint32_t)count;
    }
    return error;
}

cudaError_t qn_cuda_prepare_wide_product(qn_stream_t *stream)
{
    cudaError_t error = cudaSuccess;
    for (int blocks = 1; blocks <= 2; blocks++)
        for (uint32_t tokens = 32; tokens <= WIDE_TOKENS; tokens += 32)
            with_wide_shape(blocks, tokens, [&](auto shape) {
                using S = decltype(shape);
                const cudaFuncAttribute name = cudaFuncAttributeMaxDynamicSharedMemorySize;
                if (!error) error = cudaFuncSetAttribute(multiply_wide<S>, name, sizeof(wide_room_t<S>));
            });
    if (!error) error = count_clusters<wide_shape<WIDE_TOKENS, 1>>(stream);
    if (!error) error = count_clusters<wide_shape<WIDE_TOKENS, 2>>(stream);
    return error;
}

/* The launch's tokens `first` .. of all. */
static wide_t describe_product(const qn_norm_matmul_t *a, uint32_t first)
{
    const qn_matmul_t *m = &a->matmul;
    wide_t w = {};
    w.tokens = m->tokens - first < WIDE_TOKENS ? m->tokens - first : WIDE_TOKENS;
    w.chunks = divide_up(m->inputs, PANEL_WIDTH), w.logits = a->logits, w.kind = a->activation.kind;
    if (a->activation.out) w.gated = (bf16 *)a->activation.out + (size_t)first * m->parts[0].outputs;
    for (uint32_t p = 0; p < m->part_count; p++) {
        qn_matmul_part_t *part = &w.parts[p];
        *part = m->parts[p];
        part->out = (char *)part->out + (size_t)first * part->outputs * (a->logits ? sizeof(float) : sizeof(bf16));
        if (part->residual) part->residual = (const bf16 *)part->residual + (size_t)first * part->outputs;
        if (!w.gated || p == 0) w.tiles += divide_up(part->outputs, w.gated ? TEAM_ROWS : TILE_ROWS);
        w.tile_ends[p] = w.tiles;
    }
    return w;
}

static void start(qn_stream_t *stream, const qn_norm_matmul_t *a, uint32_t first)
{
    const qn_matmul_t *m = &a->matmul;
    wide_t w = describe_product(a, first);
    w.segments = count_segments(stream, a);
    with_wide_shape(blocks_of(a), w.tokens, [&](auto shape) {
        using S = decltype(shape);
        CUresult result =
            describe(stream, (const bf16 *)m->x + (size_t)first * m->inputs, w.tokens, m->inputs, S::N, &w.x);
        for (uint32_t p = 0; p < m->part_count && result == CUDA_SUCCESS; p++)
            result =
                describe(stream, m->parts[p].weight.data, m->parts[p].outputs, m->inputs, TEAM_ROWS, &w.weights[p]);
        if (result != CUDA_SUCCESS) return qn_cuda_check(stream, cudaErrorInvalidValue, "matmul.wide, a tensor map");
        qn_cuda_start_as(stream, "matmul.wide", {false, w.segments}, multiply_wide<S>, w.tiles * w.segments,
                         WIDE_THREADS, sizeof(wide_room_t<S>), w);
    });
}

bool qn_cuda_wide_product_fits(const qn_stream_t *stream, const qn_norm_matmul_t *a)
{
    const qn_matmul_t *m = &a->matmul;
    if (stream->capability < 90 || stream->options.activations != QN_SCALAR_BF16 || m->inputs % 8 ||
        ((uintptr_t)m->x | (uintptr_t)a->activation.out) % 16 ||
        (a->activation.out && (m->part_count != 2 || a->logits)))
        return false;
    for (uint32_t p = 0; p < m->part_count; p++) {
        const qn_matmul_part_t *part = &m->parts[p];
        uintptr_t addresses = (uintptr_t)part->weight.data | (uintptr_t)part->out | (uintptr_t)part->residual;
        if (part->weight.scalar != QN_SCALAR_BF16 || part->outputs % 4 || addresses % 16) return false;
        if (part->residual && (a->logits || a->activation.out)) return false;
        if (a->activation.out && part->outputs != m->parts[0].outputs) return false;
    }
    return true;
}

void qn_cuda_wide_product(qn_stream_t *stream, const qn_norm_matmul_t *a)
{
    for (uint32_t first = 0; first < a->matmul.tokens; first += WIDE_TOKENS)
        start(stream, a, first);
}
