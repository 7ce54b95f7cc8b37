/* Sixteen float lanes of AVX-512, under the names that the *_vector.c algorithms are written in; vector_avx2.h is its
 * twin. `some` variants touch `count` <= VEC_LANES elements and read zeros for the rest. */
#ifndef QN_KERNELS_CPU_VECTOR_VECTOR_AVX512_H
#define QN_KERNELS_CPU_VECTOR_VECTOR_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define VEC_LANES 16
#define VEC_INLINE static inline __attribute__((always_inline, unused))

typedef __m512 vec_t;

VEC_INLINE vec_t vec_zero(void) { return _mm512_setzero_ps(); }
VEC_INLINE vec_t vec_set(float value) { return _mm512_set1_ps(value); }
VEC_INLINE vec_t vec_add(vec_t a, vec_t b) { return _mm512_add_ps(a, b); }
VEC_INLINE vec_t vec_sub(vec_t a, vec_t b) { return _mm512_sub_ps(a, b); }
VEC_INLINE vec_t vec_mul(vec_t a, vec_t b) { return _mm512_mul_ps(a, b); }
VEC_INLINE vec_t vec_div(vec_t a, vec_t b) { return _mm512_div_ps(a, b); }
VEC_INLINE vec_t vec_max(vec_t a, vec_t b) { return _mm512_max_ps(a, b); }
/* a * b + c */
VEC_INLINE vec_t vec_fma(vec_t a, vec_t b, vec_t c) { return _mm512_fmadd_ps(a, b, c); }
/* a * *b + c with the broadcast in the same instruction, which compilers take apart where *b is used twice. */
VEC_INLINE vec_t vec_fma_at(vec_t a, const float *b, vec_t c)
{
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(a), "m"(*b));
    return c;
}

VEC_INLINE __mmask16 vec_mask(uint32_t count) { return (__mmask16)((1u << count) - 1); }
VEC_INLINE vec_t vec_load(const float *from) { return _mm512_loadu_ps(from); }
VEC_INLINE void vec_store(float *to, vec_t value) { _mm512_storeu_ps(to, value); }
VEC_INLINE vec_t vec_load_some(const float *from, uint32_t count)
{
    return _mm512_maskz_loadu_ps(vec_mask(count), from);
}
VEC_INLINE void vec_store_some(float *to, vec_t value, uint32_t count)
{
    _mm512_mask_storeu_ps(to, vec_mask(count), value);
}

VEC_INLINE vec_t vec_widen(__m256i bf16)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
}
VEC_INLINE vec_t vec_load_bf16(const uint16_t *from)
{
    return vec_widen(_mm256_loadu_si256((const __m256i *)(const void *)from));
}
VEC_INLINE vec_t vec_load_bf16_some(const uint16_t *from, uint32_t count)
{
    return vec_widen(_mm256_maskz_loadu_epi16(vec_mask(count), from));
}

/* Sixteen 32-bit words: one line of packed weights (weight_layout.h). */
typedef __m512i vec_words_t;

VEC_INLINE vec_words_t vec_load_words(const void *from) { return _mm512_loadu_si512(from); }
VEC_INLINE void vec_store_words(void *to, vec_words_t words) { _mm512_storeu_si512(to, words); }
VEC_INLINE vec_t vec_of_words(vec_words_t words) { return _mm512_castsi512_ps(words); }
/* The low and the high bf16 of each word: one operation each, since bf16 is the upper half of an f32. */
VEC_INLINE vec_t vec_low_bf16(vec_words_t words) { return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)); }
VEC_INLINE vec_t vec_high_bf16(vec_words_t words)
{
    return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(-65536)));
}
/* Byte `index` of each word, less 128. Or'ed into the mantissa of 2^23 it makes the float 2^23 + byte; 0xea is
 * (a and b) or c in one operation. */
VEC_INLINE vec_t vec_byte(vec_words_t words, uint32_t index)
{
    __m512i byte = _mm512_ternarylogic_epi32(_mm512_srli_epi32(words, 8 * index), _mm512_set1_epi32(255),
                                             _mm512_set1_epi32(0x4b000000), 0xea);
    return vec_sub(_mm512_castsi512_ps(byte), vec_set(0x1p23f + 128));
}
/* The nibble at bit `shift` of each word, less 8, times `scale`; exact if the scale has 8 bits. A table of sixteen
 * floats is one register, and the look-up reads only the low four bits of its index. */
VEC_INLINE vec_t vec_nibble(vec_words_t words, uint32_t shift, vec_t scale)
{
    const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return vec_mul(_mm512_permutexvar_ps(_mm512_srli_epi32(words, shift), table), scale);
}

/* Lane i of the result is the sum of a[i]; every a[i] is added up in the same order. */
VEC_INLINE vec_t vec_sum_each(const vec_t a[16])
{
    vec_t b[8], c[4];
    for (int i = 0; i < 8; i++)
        b[i] = vec_add(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
    for (int i = 0; i < 4; i++) {
        __m512d low = _mm512_castps_pd(b[2 * i]), high = _mm512_castps_pd(b[2 * i + 1]);
        c[i] =
            vec_add(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    }
    vec_t d0 = vec_add(_mm512_shuffle_f32x4(c[0], c[1], 0x44), _mm512_shuffle_f32x4(c[0], c[1], 0xee));
    vec_t d1 = vec_add(_mm512_shuffle_f32x4(c[2], c[3], 0x44), _mm512_shuffle_f32x4(c[2], c[3], 0xee));
    return vec_add(_mm512_shuffle_f32x4(d0, d1, 0x88), _mm512_shuffle_f32x4(d0, d1, 0xdd));
}

VEC_INLINE float vec_sum(vec_t a) { return _mm512_reduce_add_ps(a); }
VEC_INLINE float vec_greatest(vec_t a) { return _mm512_reduce_max_ps(a); }

/* e^x to about 2 ulp; x below -87.3 gives a number near 1e-38, above 88.3 one near 1e38. Cephes' expf. */
VEC_INLINE vec_t vec_exp(vec_t x)
{
    x = _mm512_min_ps(_mm512_max_ps(x, vec_set(-87.3f)), vec_set(88.3f));
    vec_t n = _mm512_roundscale_ps(vec_mul(x, vec_set(1.44269504088896341f)), 8);
    vec_t r = vec_fma(n, vec_set(-0.693359375f), x);
    r = vec_fma(n, vec_set(2.12194440e-4f), r);
    vec_t p = vec_set(1.9875691500e-4f);
    p = vec_fma(p, r, vec_set(1.3981999507e-3f));
    p = vec_fma(p, r, vec_set(8.3334519073e-3f));
    p = vec_fma(p, r, vec_set(4.1665795894e-2f));
    p = vec_fma(p, r, vec_set(1.6666665459e-1f));
    p = vec_fma(p, r, vec_set(5.0000001201e-1f));
    p = vec_add(vec_fma(vec_mul(r, r), p, r), vec_set(1));
    return _mm512_scalef_ps(p, n);
}

#endif
