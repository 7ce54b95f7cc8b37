/* What kernels of this folder share: the two scalar types, vectors of eight, sums over warps and blocks, and the two
 * instructions of dependent launch. For files in kernels/cuda/ only. */
#ifndef QN_KERNELS_CUDA_DEVICE_CUH
#define QN_KERNELS_CUDA_DEVICE_CUH

#include <cuda_bf16.h>

#include "kernels/cuda/stream.cuh"

typedef __nv_bfloat16 bf16;

#define WARP 32
#define ALL_LANES 0xffffffffu

/* ---- dependent launch (PTX griddepcontrol, sm_90) ---- */

/* Returns when the kernels before this one are done and what they wrote can be seen. */
static __device__ __forceinline__ void grid_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Lets the next kernel be made resident; it still waits for all of this one in its grid_wait(). */
static __device__ __forceinline__ void grid_release()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

static __device__ __forceinline__ void grid_begin()
{
    grid_release();
    grid_wait();
}

/* ---- clusters: blocks that run together (sm_90) ---- */

/* All threads of the cluster's blocks that have not exited; what they wrote to their shared memory can be seen. */
static __device__ __forceinline__ void cluster_barrier()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}

/* The same in two halves, and nothing of what was written to shared memory need be seen: others are as far as here. */
static __device__ __forceinline__ void cluster_arrive()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}

static __device__ __forceinline__ void cluster_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait;" ::: "memory");
#endif
}

/* The address in shared memory of the same place in block `rank` of the cluster. */
static __device__ __forceinline__ uint32_t cluster_place(uint32_t own, uint32_t rank)
{
    uint32_t there = own;
#if __CUDA_ARCH__ >= 900
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(own), "r"(rank));
#endif
    return there;
}

static __device__ __forceinline__ float4 cluster_load_quad(const float *own, uint32_t rank)
{
    float4 quad = {};
#if __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(quad.x), "=f"(quad.y), "=f"(quad.z), "=f"(quad.w)
                 : "r"(cluster_place((uint32_t)__cvta_generic_to_shared(own), rank))
                 : "memory");
#endif
    return quad;
}

/* The same place in the shared memory of block `rank` of the cluster. */
static __device__ __forceinline__ float cluster_load(const float *own, uint32_t rank)
{
    float value = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n\t.reg .u32 there;\n\tmapa.shared::cluster.u32 there, %1, %2;\n\t"
                 "ld.shared::cluster.f32 %0, [there];\n\t}"
                 : "=f"(value)
                 : "r"((uint32_t)__cvta_generic_to_shared(own)), "r"(rank)
                 : "memory");
#endif
    return value;
}

static __device__ __forceinline__ uint32_t cluster_load_half(const uint32_t *own, uint32_t rank)
{
    return __float_as_uint(cluster_load((const float *)own, rank));
}

static __device__ __forceinline__ unsigned long long cluster_load_word(const unsigned long long *own, uint32_t rank)
{
    unsigned long long value = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n\t.reg .u32 there;\n\tmapa.shared::cluster.u32 there, %1, %2;\n\t"
                 "ld.shared::cluster.u64 %0, [there];\n\t}"
                 : "=l"(value)
                 : "r"((uint32_t)__cvta_generic_to_shared(own)), "r"(rank)
                 : "memory");
#endif
    return value;
}

/* ---- scalars ---- */

static __device__ __forceinline__ float to_float(float value) { return value; }
static __device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }

template <class T> __device__ __forceinline__ T from_float(float value);
template <> __device__ __forceinline__ float from_float<float>(float value) { return value; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float value) { return __float2bfloat16_rn(value); }

/* Element `index` of a weight of either type, for values that are read once per row. */
static __device__ __forceinline__ float load_scalar(const void *data, qn_scalar_t scalar, size_t index)
{
    return scalar == QN_SCALAR_F32 ? ((const float *)data)[index] : to_float(((const bf16 *)data)[index]);
}

/* qn_kv_offset of kernels.h for the device: elements from the start of the region to one position's K or V. */
static __device__ __forceinline__ size_t kv_offset(const qn_kv_t &kv, uint32_t layer, uint32_t which, uint32_t block,
                                                   uint32_t offset)
{
    size_t plane = (size_t)layer * 2 + which;
    return ((plane * kv.blocks + block) * kv.block_tokens + offset) * kv.kv_heads * kv.head_dim;
}

/* ---- vectors: VEC is 8 where widths and addresses allow, else 1 ---- */

static __device__ __forceinline__ void unpack(uint32_t pair, float *to)
{
    to[0] = __uint_as_float(pair << 16);
    to[1] = __uint_as_float(pair & 0xffff0000u);
}

template <int VEC, class T> __device__ __forceinline__ void load_vector(const T *from, float (&to)[VEC])
{
    if constexpr (VEC == 1) {
        to[0] = to_float(*from);
    } else if constexpr (sizeof(T) == 4) {
        float4 low = ((const float4 *)from)[0], high = ((const float4 *)from)[1];
        to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
        to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
    } else {
        uint4 words = *(const uint4 *)from;
        unpack(words.x, to), unpack(words.y, to + 2), unpack(words.z, to + 4), unpack(words.w, to + 6);
    }
}

static __device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(const uint32_t *)&pair;
}

template <int VEC, class T> __device__ __forceinline__ void store_vector(T *to, const float (&from)[VEC])
{
    if constexpr (VEC == 1) {
        *to = from_float<T>(from[0]);
    } else if constexpr (sizeof(T) == 4) {
        ((float4 *)to)[0] = make_float4(from[0], from[1], from[2], from[3]);
        ((float4 *)to)[1] = make_float4(from[4], from[5], from[6], from[7]);
    } else {
        *(uint4 *)to = make_uint4(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]),
                                  pack_bf16(from[6], from[7]));
    }
}

/* ---- rotation ---- */

/* Products are rounded before they are added, as on the CPU. */
static __device__ __forceinline__ void rotate_pair(float &low, float &high, float cosine, float sine)
{
    float first = __fsub_rn(__fmul_rn(low, cosine), __fmul_rn(high, sine));
    high = __fadd_rn(__fmul_rn(high, cosine), __fmul_rn(low, sine));
    low = first;
}

/* ---- the nonlinearity of MLPs (common/model/activation.h) ---- */

/* Written without differences of near numbers: the relative error stays that of the exponential. */
static __device__ __forceinline__ float activated(qn_activation_t kind, float x)
{
    switch (kind) {
    case QN_ACTIVATION_SILU: return x / (1 + expf(-x));
    case QN_ACTIVATION_GELU_TANH: /* (1 + tanh u) / 2 = 1 / (1 + e^-2u) */
        return x / (1 + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    case QN_ACTIVATION_GELU: return 0.5f * x * erfcf(-0.70710678118654752f * x);
    default: return fmaxf(x, 0);
    }
}

/* ---- sums and maxima, in one fixed order ---- */

template <class T> __device__ __forceinline__ T warp_sum(T value)
{
    for (int step = WARP / 2; step > 0; step /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

template <class T> __device__ __forceinline__ T warp_max(T value)
{
    for (int step = WARP / 2; step > 0; step /= 2) {
        T other = __shfl_xor_sync(ALL_LANES, value, step);
        value = other > value ? other : value;
    }
    return value;
}

/* Of all threads of the block, given to all; `room` is [WARP] in shared memory and free again at the next barrier. */
template <class T> static __device__ T block_sum(T value, T *room)
{
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = (blockDim.x + WARP - 1) / WARP;
    value = warp_sum(value);
    __syncthreads();
    if (lane == 0) room[warp] = value;
    __syncthreads();
    return warp_sum(lane < warps ? room[lane] : T(0));
}

template <class T> static __device__ T block_max(T value, T least, T *room)
{
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = (blockDim.x + WARP - 1) / WARP;
    value = warp_max(value);
    __syncthreads();
    if (lane == 0) room[warp] = value;
    __syncthreads();
    return warp_max(lane < warps ? room[lane] : least);
}

/* ---- host side: from run-time types to template arguments ---- */

template <class F> static void with_scalar(qn_scalar_t scalar, F call)
{
    if (scalar == QN_SCALAR_F32)
        call(float());
    else
        call(bf16());
}

/* Calls with 8 where every row of `width` elements at all of the addresses starts on 16 bytes, else with 1. */
template <class F> static void with_vector(uint32_t width, uintptr_t addresses, F call)
{
    if (width % 8 == 0 && addresses % 16 == 0)
        call(std::integral_constant<int, 8>());
    else
        call(std::integral_constant<int, 1>());
}

static inline uint32_t divide_up(uint32_t count, uint32_t by) { return (count + by - 1) / by; }

#endif
