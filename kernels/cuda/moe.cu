/* What is this?      Mixture of experts: the choice of experts for each token, and the weighted sum of what they say.
 * State owned:       the chosen experts, between two launches, in the stream's workspace.
 * Must never:        let a token's experts depend on the other tokens; leave an index unwritten, whatever the logits.
 * Read next:         kernels.h (moe_route's order), expert_matmul.cu (the products). */
#include "kernels/cuda/device.cuh"

#define EXPERTS_MAX 1024
#define CHOOSE_WARPS 8
#define GROUP_THREADS 1024
/* One block does both halves of the work for a few tokens. */
#define SMALL_WARPS 32
#define SMALL_PLACES 512
#define SMALL_LOGITS 10240 /* of all tokens: 40 KiB of shared memory */

/* Orders (logit, lower expert first); NaN counts as the least logit. */
static __device__ __forceinline__ unsigned long long rank_of(float logit, uint32_t expert)
{
    uint32_t bits = __float_as_uint(logit + 0.0f); /* 0 and -0 tie */
    uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (unsigned long long)key << 32 | ~expert;
}

/* One warp, one token: `logits` is its room for X values. */
template <class A>
static __device__ void choose(const qn_moe_route_t &a, uint32_t token, float *logits, uint32_t *chosen)
{
    uint32_t lane = threadIdx.x % WARP;
    const A *from = (const A *)a.logits + (size_t)token * a.experts;
    for (uint32_t e = lane; e < a.experts; e += WARP) {
        float logit = to_float(from[e]);
        logits[e] = logit == logit ? logit : -INFINITY;
    }
    __syncwarp();
    unsigned long long below = ~0ull;
    float greatest = 0, total = 0;
    for (uint32_t i = 0; i < a.per_token; i++) {
        unsigned long long best = 0;
        for (uint32_t e = lane; e < a.experts; e += WARP) {
            unsigned long long rank = rank_of(logits[e], e);
            if (rank < below && rank > best) best = rank;
        }
        below = warp_max(best);
        uint32_t expert = ~(uint32_t)below;
        if (i == 0) greatest = logits[expert];
        total += expf(logits[expert] - greatest);
        if (lane == 0) chosen[i] = expert;
    }
    __syncwarp();
    if (!a.normalise) {
        total = 0;
        for (uint32_t e = lane; e < a.experts; e += WARP)
            total += expf(logits[e] - greatest);
        total = warp_sum(total);
    }
    float *weights = a.ret_weights + (size_t)token * a.per_token;
    for (uint32_t i = lane; i < a.per_token; i += WARP)
        weights[i] = expf(logits[chosen[i]] - greatest) / total;
}

template <class A>
static __global__ void __launch_bounds__(CHOOSE_WARPS *WARP) choose_experts(qn_moe_route_t a, uint32_t *chosen)
{
    extern __shared__ float room[]; /* [warps][X] */
    grid_begin();
    uint32_t warp = threadIdx.x / WARP, token = blockIdx.x * CHOOSE_WARPS + warp;
    if (token < a.tokens) choose<A>(a, token, room + (size_t)warp * a.experts, chosen + (size_t)token * a.per_token);
}

/* Block e finds the places of expert e: how many assignments go to lower ones, then its own in order. */
static __global__ void __launch_bounds__(GROUP_THREADS) group_places(qn_moe_route_t a, const uint32_t *chosen)
{
    __shared__ uint32_t room[WARP];
    grid_begin();
    uint32_t expert = blockIdx.x, count = a.tokens * a.per_token, lower = 0;
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x)
        lower += chosen[i] < expert;
    uint32_t place = block_sum(lower, room);
    if (threadIdx.x == 0) {
        a.ret_offsets[expert] = place;
        if (expert == a.experts - 1) a.ret_offsets[a.experts] = count;
    }
    for (uint32_t first = 0; first < count; first += blockDim.x) {
        uint32_t i = first + threadIdx.x;
        bool own = i < count && chosen[i] == expert;
        uint32_t lanes = __ballot_sync(ALL_LANES, own);
        __syncthreads();
        if (lane == 0) room[warp] = __popc(lanes);
        __syncthreads();
        uint32_t before = 0, all = 0;
        for (uint32_t w = 0; w < warps; w++) {
            before += w < warp ? room[w] : 0;
            all += room[w];
        }
        if (own) {
            uint32_t at = place + before + __popc(lanes & ((1u << lane) - 1));
            a.ret_places[i] = at;
            a.ret_rows[at] = i / a.per_token;
        }
        place += all;
    }
}

/* A warp per token chooses, then a thread per assignment counts those before its own. */
template <class A> static __global__ void __launch_bounds__(SMALL_WARPS *WARP) route_few(qn_moe_route_t a)
{
    extern __shared__ float room[]; /* [T][X] */
    __shared__ uint32_t chosen[SMALL_PLACES];
    grid_begin();
    uint32_t warp = threadIdx.x / WARP, count = a.tokens * a.per_token;
    if (warp < a.tokens) choose<A>(a, warp, room + (size_t)warp * a.experts, chosen + warp * a.per_token);
    __syncthreads();
    if (threadIdx.x < count) {
        uint32_t own = chosen[threadIdx.x], place = 0;
        for (uint32_t i = 0; i < count; i++)
            place += chosen[i] < own || (chosen[i] == own && i < threadIdx.x);
        a.ret_places[threadIdx.x] = place;
        a.ret_rows[place] = threadIdx.x / a.per_token;
    }
    for (uint32_t e = threadIdx.x; e <= a.experts; e += blockDim.x) {
        uint32_t lower = 0;
        for (uint32_t i = 0; i < count; i++)
            lower += chosen[i] < e;
        a.ret_offsets[e] = lower;
    }
}

static bool is_small(const qn_moe_route_t *a)
{
    return a->tokens <= SMALL_WARPS && a->tokens * a->per_token <= SMALL_PLACES &&
           a->tokens * a->experts <= SMALL_LOGITS;
}

extern "C" void qn_cuda_moe_route(qn_stream_t *stream, const void *arguments)
{
    const qn_moe_route_t *a = (const qn_moe_route_t *)arguments;
    QN_ASSERT(a->per_token >= 1 && a->per_token <= a->experts && a->experts <= EXPERTS_MAX);
    if (!a->tokens) return;
    with_scalar(stream->options.activations, [&](auto act) {
        using A = decltype(act);
        size_t row = a->experts * sizeof(float), places = (size_t)a->tokens * a->per_token;
        if (is_small(a)) {
            unsigned threads = (places > a->tokens * WARP ? divide_up((uint32_t)places, WARP) : a->tokens) * WARP;
            qn_cuda_start(stream, "moe_route", route_few<A>, 1, threads < 256 ? 256 : threads, a->tokens * row, *a);
            return;
        }
        uint32_t *chosen = (uint32_t *)stream->workspace;
        QN_ASSERT(places * sizeof *chosen <= stream->workspace_bytes);
        qn_cuda_start(stream, "moe_route", choose_experts<A>, divide_up(a->tokens, CHOOSE_WARPS), CHOOSE_WARPS * WARP,
                      CHOOSE_WARPS * row, *a, chosen);
        qn_cuda_start(stream, "moe_route", group_places, a->experts, GROUP_THREADS, 0, *a, chosen);
    });
}

/* ---- the sum ---- */

#define COMBINE_THREADS 128

/* blockIdx: x token, y part of the row. out may be residual. */
template <int VEC, class A> static __global__ void combine_token(qn_moe_combine_t a)
{
    grid_begin();
    uint32_t t = blockIdx.x, i = (blockIdx.y * COMBINE_THREADS + threadIdx.x) * VEC;
    if (i >= a.width) return;
    const float *weights = a.weights + (size_t)t * a.per_token;
    const uint32_t *places = a.places + (size_t)t * a.per_token;
    float sums[VEC], values[VEC];
    load_vector((const A *)a.residual + (size_t)t * a.width + i, sums);
#pragma unroll 4
    for (uint32_t c = 0; c < a.per_token; c++) {
        float weight = weights[c];
        load_vector((const A *)a.x + (size_t)places[c] * a.width + i, values);
#pragma unroll
        for (int j = 0; j < VEC; j++)
            sums[j] = fmaf(weight, values[j], sums[j]);
    }
    store_vector((A *)a.out + (size_t)t * a.width + i, sums);
}

extern "C" void qn_cuda_moe_combine(qn_stream_t *stream, const void *arguments)
{
    const qn_moe_combine_t *a = (const qn_moe_combine_t *)arguments;
    if (!a->tokens) return;
    with_scalar(stream->options.activations, [&](auto act) {
        with_vector(a->width, (uintptr_t)a->x | (uintptr_t)a->residual | (uintptr_t)a->out, [&](auto vec) {
            dim3 grid(a->tokens, divide_up(a->width, COMBINE_THREADS * vec()));
            qn_cuda_start(stream, "moe_combine", combine_token<vec(), decltype(act)>, grid, COMBINE_THREADS, 0, *a);
        });
    });
}
