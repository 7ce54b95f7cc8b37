/* What is this?      The attention for AVX2; the algorithm is in attention_tile.h and attention_body.h.
 * State owned:       none.
 * Must never:        be reached on a machine without AVX2: registry.c sees to it.
 * Read next:         attention_body.h, vector_avx2.h. */
#include "kernels/cpu/vector_avx2.h"

/* What the transposition of keys is made of. 16 bytes each of two rows. */
VEC_INLINE vec_t vec_gather_quads(const char *from, size_t step)
{
    __m256 quads = _mm256_castps128_ps256(_mm_loadu_ps((const float *)(const void *)from));
    return _mm256_insertf128_ps(quads, _mm_loadu_ps((const float *)(const void *)(from + step)), 1);
}
VEC_INLINE vec_t vec_unpack_low(vec_t a, vec_t b) { return _mm256_unpacklo_ps(a, b); }
VEC_INLINE vec_t vec_unpack_high(vec_t a, vec_t b) { return _mm256_unpackhi_ps(a, b); }
VEC_INLINE vec_t vec_unpack_low_pairs(vec_t a, vec_t b)
{
    return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
VEC_INLINE vec_t vec_unpack_high_pairs(vec_t a, vec_t b)
{
    return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
VEC_INLINE vec_t vec_even_bf16(vec_t pairs)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs), 16));
}
VEC_INLINE vec_t vec_odd_bf16(vec_t pairs)
{
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(pairs), _mm256_set1_epi32((int)0xffff0000u)));
}

#define KERNEL(name) name##_avx2
#include "kernels/cpu/attention_body.h"
