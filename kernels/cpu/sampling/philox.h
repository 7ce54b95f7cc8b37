/* Philox4x32-10: ten rounds that turn (key, counter) into 128 random bits, with no state to keep (Salmon et al. 2011,
 * "Parallel random numbers: as easy as 1, 2, 3"). The same seed and position give the same number everywhere. */
#ifndef QN_KERNELS_CPU_SAMPLING_PHILOX_H
#define QN_KERNELS_CPU_SAMPLING_PHILOX_H

#include <stdint.h>

static inline void qn_philox(uint64_t key, const uint32_t counter[4], uint32_t ret_words[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    ret_words[0] = c0;
    ret_words[1] = c1;
    ret_words[2] = c2;
    ret_words[3] = c3;
}

/* Uniform in [0, 1) with 53 bits, for the token at `position` of a sequence with `seed`. */
static inline double qn_philox_uniform(uint64_t seed, uint32_t position)
{
    uint32_t words[4];
    qn_philox(seed, (const uint32_t[4]){position, 0, 0, 0}, words);
    return (double)(((uint64_t)words[1] << 32 | words[0]) >> 11) * 0x1p-53;
}

#endif
