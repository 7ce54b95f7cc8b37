/* Philox4x32-10 on the device: the same numbers as kernels/cpu/sampling/philox.h, which explains it. */
#ifndef QN_KERNELS_CUDA_SAMPLING_PHILOX_CUH
#define QN_KERNELS_CUDA_SAMPLING_PHILOX_CUH

#include <stdint.h>

/* Uniform in [0, 1) with 53 bits, for the token at `position` of a sequence with `seed`. */
static __device__ double philox_uniform(uint64_t seed, uint32_t position)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = position, c1 = 0, c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (double)(((uint64_t)c1 << 32 | c0) >> 11) * 0x1p-53;
}

#endif
