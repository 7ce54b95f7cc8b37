/* The root mean square of a row, in the one order of additions that rmsnorm.cu and the prologue of matmul_skinny.cu
 * share: NORM_THREADS threads take vectors of VEC in turns, then warps, then the block. Rows up to NORM_WARP_WIDTH are
 * one warp's. For files in kernels/cuda/ only. */
#ifndef QN_KERNELS_CUDA_NORM_CUH
#define QN_KERNELS_CUDA_NORM_CUH

#include "kernels/cuda/device.cuh"

#define NORM_THREADS 256
#define NORM_WARPS (NORM_THREADS / WARP)
#define NORM_WARP_WIDTH 512

template <int VEC, class A>
static __device__ __forceinline__ float square_sum(const A *x, uint32_t width, unsigned first, unsigned step)
{
    float sum = 0;
    for (uint32_t i = first; i < width; i += step) {
        float values[VEC];
        load_vector(x + i, values);
#pragma unroll
        for (int j = 0; j < VEC; j++)
            sum = fmaf(values[j], values[j], sum);
    }
    return sum;
}

static __device__ __forceinline__ float norm_scale(float squares, uint32_t width, float eps)
{
    return 1 / sqrtf(squares / width + eps);
}

/* One element, rounded after each step: the same bits wherever it is computed. */
static __device__ __forceinline__ float normed(float x, float scale, float weight, float offset)
{
    return __fmul_rn(__fmul_rn(x, scale), __fadd_rn(offset, weight));
}

#endif
