/* What is this?      Packing a panel with AVX2.
 * State owned:       none.
 * Must never:        differ in a bit from weight_pack.c.
 * Read next:         weight_pack_body.h. */
#include <immintrin.h>

static inline void transpose_half(const float *rows, size_t stride, float *ret_block)
{
    __m256 a[8], b[8];
    for (int r = 0; r < 8; r++)
        a[r] = _mm256_loadu_ps(rows + (size_t)r * stride);
    for (int r = 0; r < 8; r += 2) {
        b[r] = _mm256_unpacklo_ps(a[r], a[r + 1]);
        b[r + 1] = _mm256_unpackhi_ps(a[r], a[r + 1]);
    }
    for (int r = 0; r < 8; r += 4) {
        a[r] = _mm256_shuffle_ps(b[r], b[r + 2], 0x44);
        a[r + 1] = _mm256_shuffle_ps(b[r], b[r + 2], 0xee);
        a[r + 2] = _mm256_shuffle_ps(b[r + 1], b[r + 3], 0x44);
        a[r + 3] = _mm256_shuffle_ps(b[r + 1], b[r + 3], 0xee);
    }
    for (int r = 0; r < 4; r++) {
        _mm256_storeu_ps(ret_block + r * 16, _mm256_permute2f128_ps(a[r], a[r + 4], 0x20));
        _mm256_storeu_ps(ret_block + (r + 4) * 16, _mm256_permute2f128_ps(a[r], a[r + 4], 0x31));
    }
}

/* 16 rows of 8 inputs, `stride` floats apart, become [8][16]. */
static inline void transpose_16_by_8(const float *rows, size_t stride, float (*ret_block)[16])
{
    transpose_half(rows, stride, ret_block[0]);
    transpose_half(rows + 8 * stride, stride, ret_block[0] + 8);
}

#define PACK_TRANSPOSE transpose_16_by_8
#define PACK(name) name##_avx2
#define PACK_WIDTH 8
#include "kernels/cpu/matmul/weight_pack_body.h"
