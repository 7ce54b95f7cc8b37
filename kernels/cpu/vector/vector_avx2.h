/* Eight float lanes of AVX2 with FMA, under the names that the *_vector.c algorithms are written in; vector_avx512.h is
 * its twin. `some` variants touch `count` <= VEC_LANES elements and read zeros for the rest. */
#ifndef QN_KERNELS_CPU_VECTOR_VECTOR_AVX2_H
#define QN_KERNELS_CPU_VECTOR_VECTOR_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VEC_LANES 8
#define VEC_INLINE static inline __attribute__((always_inline, unused))

typedef __m256 vec_t;

VEC_INLINE vec_t vec_zero(void) { return _mm256_setzero_ps(); }
VEC_INLINE vec_t vec_set(float value) { return _mm256_set1_ps(value); }
VEC_INLINE vec_t vec_add(vec_t a, vec_t b) { return _mm256_add_ps(a, b); }
VEC_INLINE vec_t vec_sub(vec_t a, vec_t b) { return _mm256_sub_ps(a, b); }
VEC_INLINE vec_t vec_mul(vec_t a, vec_t b) { return _mm256_mul_ps(a, b); }
VEC_INLINE vec_t vec_div(vec_t a, vec_t b) { return _mm256_div_ps(a, b); }
VEC_INLINE vec_t vec_max(vec_t a, vec_t b) { return _mm256_max_ps(a, b); }
/* a * b + c */
VEC_INLINE vec_t vec_fma(vec_t a, vec_t b, vec_t c) { return _mm256_fmadd_ps(a, b, c); }
VEC_INLINE vec_t vec_fma_at(vec_t a, const float *b, vec_t c) { return vec_fma(a, vec_set(*b), c); }

VEC_INLINE vec_t vec_load(const float *from) { return _mm256_loadu_ps(from); }
VEC_INLINE void vec_store(float *to, vec_t value) { _mm256_storeu_ps(to, value); }
VEC_INLINE vec_t vec_load_some(const float *from, uint32_t count)
{
    if (count == VEC_LANES) return vec_load(from);
    float lanes[8] = {0};
    memcpy(lanes, from, count * sizeof *from);
    return vec_load(lanes);
}
VEC_INLINE void vec_store_some(float *to, vec_t value, uint32_t count)
{
    if (count == VEC_LANES) {
        vec_store(to, value);
        return;
    }
    float lanes[8];
    vec_store(lanes, value);
    memcpy(to, lanes, count * sizeof *to);
}

VEC_INLINE vec_t vec_load_bf16(const uint16_t *from)
{
    __m128i bf16 = _mm_loadu_si128((const __m128i *)(const void *)from);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16), 16));
}
VEC_INLINE vec_t vec_load_bf16_some(const uint16_t *from, uint32_t count)
{
    if (count == VEC_LANES) return vec_load_bf16(from);
    uint16_t lanes[8] = {0};
    memcpy(lanes, from, count * sizeof *from);
    return vec_load_bf16(lanes);
}

/* Eight 32-bit words: one vector's share of a line of packed weights (weight_layout.h). */
typedef __m256i vec_words_t;

VEC_INLINE vec_words_t vec_load_words(const void *from) { return _mm256_loadu_si256(from); }
VEC_INLINE void vec_store_words(void *to, vec_words_t words) { _mm256_storeu_si256(to, words); }
VEC_INLINE vec_t vec_of_words(vec_words_t words) { return _mm256_castsi256_ps(words); }
/* The low and the high bf16 of each word: one operation each, since bf16 is the upper half of an f32. */
VEC_INLINE vec_t vec_low_bf16(vec_words_t words) { return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)); }
VEC_INLINE vec_t vec_high_bf16(vec_words_t words)
{
    return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(-65536)));
}
/* Byte `index` of each word, less 128. Or'ed into the mantissa of 2^23 it makes the float 2^23 + byte. */
VEC_INLINE vec_t vec_byte(vec_words_t words, uint32_t index)
{
    __m256i byte = _mm256_and_si256(_mm256_srli_epi32(words, (int)(8 * index)), _mm256_set1_epi32(255));
    return vec_sub(_mm256_castsi256_ps(_mm256_or_si256(byte, _mm256_set1_epi32(0x4b000000))), vec_set(0x1p23f + 128));
}
/* The nibble at bit `shift` of each word, less 8, times `scale`; exact if the scale has 8 bits. The nibble is left
 * where it is and its place made up for in the scale: nibble 2^shift * (scale 2^-shift) - 8 scale. */
VEC_INLINE vec_t vec_nibble(vec_words_t words, uint32_t shift, vec_t scale)
{
    if (shift >= 16) words = _mm256_srli_epi32(words, 16);
    shift %= 16;
    __m256i nibble = _mm256_and_si256(words, _mm256_set1_epi32(15 << shift));
    return vec_fma(_mm256_cvtepi32_ps(nibble), vec_mul(scale, vec_set(1.0f / (float)(1 << shift))),
                   vec_mul(scale, vec_set(-8)));
}

/* Lane i of the result is the sum of a[i]; every a[i] is added up in the same order. */
VEC_INLINE vec_t vec_sum_each(const vec_t a[8])
{
    vec_t b[4], c[2];
    for (int i = 0; i < 4; i++)
        b[i] = vec_add(_mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]), _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]));
    for (int i = 0; i < 2; i++) {
        __m256d low = _mm256_castps_pd(b[2 * i]), high = _mm256_castps_pd(b[2 * i + 1]);
        c[i] =
            vec_add(_mm256_castpd_ps(_mm256_unpacklo_pd(low, high)), _mm256_castpd_ps(_mm256_unpackhi_pd(low, high)));
    }
    return vec_add(_mm256_permute2f128_ps(c[0], c[1], 0x20), _mm256_permute2f128_ps(c[0], c[1], 0x31));
}

VEC_INLINE float vec_sum(vec_t a)
{
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
VEC_INLINE float vec_greatest(vec_t a)
{
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

/* e^x to about 2 ulp; x below -87.3 gives a number near 1e-38, above 88.3 one near 1e38. Cephes' expf. */
VEC_INLINE vec_t vec_exp(vec_t x)
{
    x = _mm256_min_ps(_mm256_max_ps(x, vec_set(-87.3f)), vec_set(88.3f));
    vec_t n = _mm256_round_ps(vec_mul(x, vec_set(1.44269504088896341f)), 8);
    vec_t r = vec_fma(n, vec_set(-0.693359375f), x);
    r = vec_fma(n, vec_set(2.12194440e-4f), r);
    vec_t p = vec_set(1.9875691500e-4f);
    p = vec_fma(p, r, vec_set(1.3981999507e-3f));
    p = vec_fma(p, r, vec_set(8.3334519073e-3f));
    p = vec_fma(p, r, vec_set(4.1665795894e-2f));
    p = vec_fma(p, r, vec_set(1.6666665459e-1f));
    p = vec_fma(p, r, vec_set(5.0000001201e-1f));
    p = vec_add(vec_fma(vec_mul(r, r), p, r), vec_set(1));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return vec_mul(p, _mm256_castsi256_ps(power));
}

#endif
