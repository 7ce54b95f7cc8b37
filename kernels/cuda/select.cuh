/* Choosing among the V values of one row, by a block of 1024 threads: the greatest, the best few, the ids until a
 * count or a mass is reached. For files in kernels/cuda/ only.
 *
 * Values are ordered by (value, lower id first), packed into one 64-bit word. Masses are fixed-point numbers: their
 * sums are exact, so no order of additions, and no way to the same set, can change a choice.
 *
 * Reading a row costs one processor several microseconds, so it is read few times: the best of each thread's share
 * bounds the best values of the row from below, and what lies above such a bound is copied to a short list in shared
 * memory, in the order of ids. Callers check that the list holds what they need, and take the whole row if not. */
#ifndef QN_KERNELS_CUDA_SELECT_CUH
#define QN_KERNELS_CUDA_SELECT_CUH

#include "kernels/cuda/device.cuh"

#define SELECT_THREADS 1024
#define SELECT_WARPS (SELECT_THREADS / WARP)
#define LIST_MAX 4096

/* A set of candidates: a row, or a list out of one. */
typedef struct {
    const float *values;
    const uint32_t *ids;   /* ascending; NULL: the index is the id */
    uint32_t count;
} candidates_t;

typedef struct {
    unsigned long long words[WARP];
    uint32_t offsets[SELECT_WARPS + 1];
    float values[LIST_MAX];
    uint32_t ids[LIST_MAX];
} select_room_t;

/* Orders floats like unsigned integers; NaN below everything. */
static __device__ __forceinline__ uint32_t sort_key(float value)
{
    uint32_t bits = __float_as_uint(value);
    if (value != value) return 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ unsigned long long pack(float value, uint32_t id)
{
    return (unsigned long long)sort_key(value) << 32 | ~id;
}

static __device__ __forceinline__ uint32_t packed_id(unsigned long long word) { return ~(uint32_t)word; }

/* Each warp has a contiguous range, its lanes take turns: ranges are in the order of ids. Calls visit(index). */
template <class F> static __device__ __forceinline__ void for_each(uint32_t count, F visit)
{
    uint32_t share = (count + SELECT_THREADS - 1) / SELECT_THREADS * WARP, first = threadIdx.x / WARP * share;
    uint32_t end = min(first + share, count);
#pragma unroll 8
    for (uint32_t i = first + threadIdx.x % WARP; i < end; i += WARP) visit(i);
}

/* As for_each, with the value: BATCH loads are on their way at once, also where visit() writes to the row. */
#define BATCH 8
template <class F>
static __device__ __forceinline__ void for_each_value(const float *values, uint32_t count, F visit)
{
    uint32_t share = (count + SELECT_THREADS - 1) / SELECT_THREADS * WARP, first = threadIdx.x / WARP * share;
    uint32_t end = min(first + share, count);
    for (uint32_t i = first + threadIdx.x % WARP; i < end; i += BATCH * WARP) {
        float batch[BATCH];
#pragma unroll
        for (uint32_t j = 0; j < BATCH; j++) batch[j] = i + j * WARP < end ? values[i + j * WARP] : 0;
#pragma unroll
        for (uint32_t j = 0; j < BATCH; j++)
            if (i + j * WARP < end) visit(i + j * WARP, batch[j]);
    }
}

/* A running best of one thread that sees ids in ascending order; NaN never wins, the lower id wins ties. */
typedef struct { float value; uint32_t id; } best_t;

static __device__ __forceinline__ void take_better(best_t &best, float value, uint32_t id)
{
    if (value > best.value || best.id == 0xffffffffu) best = { value == value ? value : -INFINITY, id };
}

static __device__ __forceinline__ unsigned long long pack_best(const best_t &best)
{
    return best.id == 0xffffffffu ? 0 : pack(best.value + 0.0f, best.id);   /* 0 and -0 tie */
}

/* The greatest value, ties to the lower id. */
static __device__ uint32_t greatest(const float *values, uint32_t count, select_room_t &room)
{
    best_t best = { -INFINITY, 0xffffffffu };
    for_each_value(values, count, [&](uint32_t i, float value) { take_better(best, value, i); });
    return packed_id(block_max(pack_best(best), 0ull, room.words));
}

/* A bound that about `rank` or more of the values reach: the rank-th greatest of the threads' own best keys. */
static __device__ uint32_t key_bound(uint32_t own_best, uint32_t rank)
{
    uint32_t bound = 0;
    for (int bit = 31; bit >= 0; bit--) {
        uint32_t trial = bound | 1u << bit;
        if (__syncthreads_count(own_best >= trial) >= rank) bound = trial;
    }
    return bound;
}

/* Copies candidates that `wants(value, id)` to room's list, in order of ids; false (list unusable) when they are more
 * than LIST_MAX. value_of gives the value of an index. */
template <class V, class F>
static __device__ bool make_list(uint32_t count, V value_of, F wants, select_room_t &room, candidates_t &ret_list)
{
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, own = 0;
    for_each(count, [&](uint32_t i) { own += wants(value_of(i), i); });
    own = warp_sum(own);
    __syncthreads();
    if (lane == 0) room.offsets[warp + 1] = own;
    if (threadIdx.x == 0) room.offsets[0] = 0;
    __syncthreads();
    if (threadIdx.x == 0)
        for (uint32_t w = 0; w < SELECT_WARPS; w++) room.offsets[w + 1] += room.offsets[w];
    __syncthreads();
    ret_list = { room.values, room.ids, room.offsets[SELECT_WARPS] };
    if (ret_list.count > LIST_MAX) return false;
    uint32_t share = (count + SELECT_THREADS - 1) / SELECT_THREADS * WARP, first = warp * share;
    uint32_t at = room.offsets[warp];
    for (uint32_t base = first; base < min(first + share, count); base += WARP) {
        uint32_t i = base + lane;
        float value = i < count ? value_of(i) : 0;
        bool wanted = i < count && wants(value, i);
        uint32_t lanes = __ballot_sync(ALL_LANES, wanted);
        if (wanted) {
            uint32_t to = at + __popc(lanes & ((1u << lane) - 1));
            room.values[to] = value;
            room.ids[to] = i;
        }
        at += __popc(lanes);
    }
    __syncthreads();
    return true;
}

/* The largest word L such that the weights of candidates with pack >= L sum to at least `target`; 0 when all together
 * do not. weight_of(value) is an integer. */
template <class F>
static __device__ unsigned long long select_limit(const candidates_t &c, uint32_t vocab, F weight_of,
                                                  unsigned long long target, select_room_t &room)
{
    unsigned long long limit = 0;
    int id_bits = 32 - __clz(vocab);
    for (int bit = 63; bit >= 0; bit--) {
        if (bit == 31) {
            /* The high bits of every ~id are ones. */
            bit = id_bits - 1;
            limit |= 0xffffffffull >> id_bits << id_bits;
        }
        unsigned long long trial = limit | 1ull << bit, sum = 0;
        for_each(c.count, [&](uint32_t i) {
            float value = c.values[i];
            if (pack(value, c.ids ? c.ids[i] : i) >= trial) sum += weight_of(value);
        });
        if (block_sum(sum, room.words) >= target) limit = trial;
    }
    return limit;
}

#endif
