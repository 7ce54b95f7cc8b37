/* What the transposition of keys in attention is made of, for either vector width; included after vector.h. */
#ifndef QN_KERNELS_CPU_VECTOR_VECTOR_TRANSPOSE_H
#define QN_KERNELS_CPU_VECTOR_VECTOR_TRANSPOSE_H

#if VEC_LANES == 16
/* What the transposition of keys is made of. 16 bytes each of four rows. A broadcast into one part of a vector is a
 * load; a shuffle would compete for the one port that has them. */
VEC_INLINE __m128 vec_quad(const char *from) { return _mm_loadu_ps((const float *)(const void *)from); }
VEC_INLINE vec_t vec_gather_quads(const char *from, size_t step)
{
    __m512 quads = _mm512_castps128_ps512(vec_quad(from));
    quads = _mm512_mask_broadcast_f32x4(quads, 0x00f0, vec_quad(from + step));
    quads = _mm512_mask_broadcast_f32x4(quads, 0x0f00, vec_quad(from + 2 * step));
    return _mm512_mask_broadcast_f32x4(quads, 0xf000, vec_quad(from + 3 * step));
}
VEC_INLINE vec_t vec_unpack_low(vec_t a, vec_t b) { return _mm512_unpacklo_ps(a, b); }
VEC_INLINE vec_t vec_unpack_high(vec_t a, vec_t b) { return _mm512_unpackhi_ps(a, b); }
VEC_INLINE vec_t vec_unpack_low_pairs(vec_t a, vec_t b)
{
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
VEC_INLINE vec_t vec_unpack_high_pairs(vec_t a, vec_t b)
{
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
VEC_INLINE vec_t vec_even_bf16(vec_t pairs)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pairs), 16));
}
VEC_INLINE vec_t vec_odd_bf16(vec_t pairs)
{
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs), _mm512_set1_epi32((int)0xffff0000u)));
}
#else
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
#endif

#endif
