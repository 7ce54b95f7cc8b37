/* What is this?      Weights without a checkpoint (load_format dummy), made where they are needed.
 * State owned:       none.
 * Must never:        differ in one bit from services/memory/weights/weights_bring.c, which makes them on the host.
 * Read next:         load.h. */
#include <cuda_bf16.h>

#include "kernels/cuda/fill.h"

#define THREADS 256
#define BLOCKS_MAX 8192

/* splitmix64 (Steele, Lea, Flood 2014) of a counter. */
static __device__ __forceinline__ uint64_t mix_counter(uint64_t value)
{
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

/* Element `place` of a group of four: 16 of the group's 64 random bits. */
static __device__ __forceinline__ uint16_t dummy_bf16(uint64_t bits, int place)
{
    float uniform = __fmul_rn((float)(int32_t)(bits >> 16 * place & 0xffff) - 32767.5f, 0x1p-15f);
    return __bfloat16_as_ushort(__float2bfloat16_rn(__fmul_rn(uniform, 0.034641016f)));
}

/* A thread makes groups of four elements. */
static __global__ void __launch_bounds__(THREADS) draw_dummies(uint16_t *to, uint64_t count, uint64_t key)
{
    for (uint64_t group = (uint64_t)blockIdx.x * THREADS + threadIdx.x; group * 4 < count;
         group += (uint64_t)gridDim.x * THREADS) {
        uint64_t bits = mix_counter(key + group);
        uint16_t *own = to + group * 4;
        ushort4 values = {dummy_bf16(bits, 0), dummy_bf16(bits, 1), dummy_bf16(bits, 2), dummy_bf16(bits, 3)};
        if (group * 4 + 4 <= count) {
            *(ushort4 *)own = values;
            continue;
        }
        own[0] = values.x;
        if (group * 4 + 1 < count) own[1] = values.y;
        if (group * 4 + 2 < count) own[2] = values.z;
    }
}

static __global__ void __launch_bounds__(THREADS) repeat(uint16_t *to, uint64_t count, uint16_t value)
{
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += (uint64_t)gridDim.x * THREADS)
        to[i] = value;
}

static unsigned blocks_for(uint64_t items)
{
    uint64_t blocks = (items + THREADS - 1) / THREADS;
    return (unsigned)(blocks < BLOCKS_MAX ? blocks : BLOCKS_MAX);
}

extern "C" cudaError_t qn_cuda_fill_invented(cudaStream_t stream, void *to, uint64_t count, uint64_t key)
{
    if (count) draw_dummies<<<blocks_for((count + 3) / 4), THREADS, 0, stream>>>((uint16_t *)to, count, key);
    return cudaGetLastError();
}

extern "C" cudaError_t qn_cuda_fill_repeated(cudaStream_t stream, void *to, uint64_t count, uint16_t value)
{
    if (count) repeat<<<blocks_for(count), THREADS, 0, stream>>>((uint16_t *)to, count, value);
    return cudaGetLastError();
}
