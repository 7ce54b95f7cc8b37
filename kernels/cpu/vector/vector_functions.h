/* Functions of vectors that the *_vector.c algorithms need beyond arithmetic: exponentials and what is made of them,
 * comparison, rounding to bf16. Include after vector_avx2.h or vector_avx512.h. Each lane's result depends on that
 * lane alone. Errors are bounds over the whole range unless said otherwise. */
#ifndef QN_KERNELS_CPU_VECTOR_VECTOR_FUNCTIONS_H
#define QN_KERNELS_CPU_VECTOR_VECTOR_FUNCTIONS_H

#include <stdbool.h>
#include <string.h>

#if VEC_LANES == 16

VEC_INLINE vec_t vec_min(vec_t a, vec_t b) { return _mm512_min_ps(a, b); }
VEC_INLINE vec_t vec_round(vec_t a) { return _mm512_roundscale_ps(a, 8); }
VEC_INLINE vec_t vec_absolute(vec_t a) { return _mm512_abs_ps(a); }
/* a < b ? yes : no, lane by lane */
VEC_INLINE vec_t vec_less(vec_t a, vec_t b, vec_t yes, vec_t no)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
VEC_INLINE vec_t vec_copy_sign(vec_t value, vec_t sign)
{
    __m512i bit = _mm512_set1_epi32((int)0x80000000u);
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_andnot_si512(bit, _mm512_castps_si512(value)),
                                               _mm512_and_si512(bit, _mm512_castps_si512(sign))));
}
/* p * 2^n for whole n; 0 where x < low, and for NaN x. */
VEC_INLINE vec_t vec_scale_above(vec_t p, vec_t n, vec_t x, vec_t low)
{
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, low, _CMP_GE_OQ), p, n);
}
/* Bit i: a[i] >= b[i] */
VEC_INLINE uint32_t vec_not_below(vec_t a, vec_t b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
VEC_INLINE bool vec_any_above(vec_t a, vec_t b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
VEC_INLINE vec_t vec_lane_numbers(void) { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
VEC_INLINE __m256i vec_narrow(vec_t a)
{
    __m512i bits = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
/* qn_f32_to_bf16 of every lane */
VEC_INLINE void vec_store_bf16(uint16_t *to, vec_t value)
{
    _mm256_storeu_si256((__m256i *)(void *)to, vec_narrow(value));
}

#else

VEC_INLINE vec_t vec_min(vec_t a, vec_t b) { return _mm256_min_ps(a, b); }
VEC_INLINE vec_t vec_round(vec_t a) { return _mm256_round_ps(a, 8); }
VEC_INLINE vec_t vec_absolute(vec_t a) { return _mm256_andnot_ps(vec_set(-0.0f), a); }
VEC_INLINE vec_t vec_less(vec_t a, vec_t b, vec_t yes, vec_t no)
{
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
VEC_INLINE vec_t vec_copy_sign(vec_t value, vec_t sign)
{
    return _mm256_or_ps(vec_absolute(value), _mm256_and_ps(vec_set(-0.0f), sign));
}
VEC_INLINE vec_t vec_scale_above(vec_t p, vec_t n, vec_t x, vec_t low)
{
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(power)), _mm256_cmp_ps(x, low, _CMP_GE_OQ));
}
VEC_INLINE uint32_t vec_not_below(vec_t a, vec_t b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
}
VEC_INLINE bool vec_any_above(vec_t a, vec_t b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
VEC_INLINE vec_t vec_lane_numbers(void) { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
VEC_INLINE void vec_store_bf16(uint16_t *to, vec_t value)
{
    __m256i bits = _mm256_castps_si256(value),
            odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    rounded = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet),
                                                   _mm256_cmp_ps(value, value, _CMP_UNORD_Q)));
    rounded = _mm256_srli_epi32(rounded, 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    _mm_storeu_si128((__m128i *)(void *)to, _mm256_castsi256_si128(packed));
}

#endif

VEC_INLINE void vec_store_bf16_some(uint16_t *to, vec_t value, uint32_t count)
{
    uint16_t lanes[VEC_LANES];
    vec_store_bf16(lanes, value);
    memcpy(to, lanes, count * sizeof *to);
}

/* e^x for x <= 88 within 1e-7 of its value: exactly 1 for 0, exactly 0 below -87.3 and for NaN. The reduction and the
 * polynomial are those of Cephes' expf. */
VEC_INLINE vec_t vec_exp_weight(vec_t x)
{
    vec_t low = vec_set(-87.3f), clear = vec_max(x, low);
    vec_t n = vec_round(vec_mul(clear, vec_set(1.44269504088896341f)));
    vec_t r = vec_fma(n, vec_set(2.12194440e-4f), vec_fma(n, vec_set(-0.693359375f), clear));
    vec_t p = vec_fma(vec_set(1.9875691500e-4f), r, vec_set(1.3981999507e-3f));
    p = vec_fma(p, r, vec_set(8.3334519073e-3f));
    p = vec_fma(p, r, vec_set(4.1665795894e-2f));
    p = vec_fma(p, r, vec_set(1.6666665459e-1f));
    p = vec_fma(p, r, vec_set(5.0000001201e-1f));
    p = vec_add(vec_fma(vec_mul(r, r), p, r), vec_set(1));
    return vec_scale_above(p, n, x, low);
}

/* 2^x for x <= 126, within 1e-7 of its value: exactly 1 for 0, exactly 0 below -126 and for NaN. Cephes' exp2f. */
VEC_INLINE vec_t vec_exp2_weight(vec_t x)
{
    vec_t n = vec_round(x), r = vec_sub(x, n);
    vec_t p = vec_fma(vec_set(1.535336188319500e-4f), r, vec_set(1.339887440266574e-3f));
    p = vec_fma(p, r, vec_set(9.618437357674640e-3f));
    p = vec_fma(p, r, vec_set(5.550332471162809e-2f));
    p = vec_fma(p, r, vec_set(2.402264791363012e-1f));
    p = vec_fma(p, r, vec_set(6.931472028550421e-1f));
    return vec_scale_above(vec_fma(p, r, vec_set(1)), n, x, vec_set(-126));
}

/* Within 2e-7 of its value. Cephes' tanhf: a polynomial near zero, where 1 - 2 / (e^2x + 1) would cancel. */
VEC_INLINE vec_t vec_tanh(vec_t x)
{
    vec_t size = vec_absolute(x), one = vec_set(1), z = vec_mul(x, x);
    vec_t p = vec_fma(vec_set(-5.70498872745e-3f), z, vec_set(2.06390887954e-2f));
    p = vec_fma(p, z, vec_set(-5.37397155531e-2f));
    p = vec_fma(p, z, vec_set(1.33314422036e-1f));
    p = vec_fma(p, z, vec_set(-3.33332819422e-1f));
    vec_t near = vec_fma(vec_mul(p, z), x, x);
    vec_t power = vec_exp_weight(vec_min(vec_add(size, size), vec_set(40)));
    vec_t far = vec_sub(one, vec_div(vec_set(2), vec_add(power, one)));
    return vec_less(size, vec_set(0.625f), near, vec_copy_sign(far, x));
}

/* x / (1 + e^-s) within 4e-7 of its value; through e^-|s|, which cannot overflow. */
VEC_INLINE vec_t vec_times_logistic(vec_t x, vec_t s)
{
    vec_t zero = vec_zero(), power = vec_exp_weight(vec_sub(zero, vec_absolute(s)));
    return vec_div(vec_less(s, zero, vec_mul(x, power), x), vec_add(vec_set(1), power));
}

/* The normal distribution's cumulative function (1 + erf(x / sqrt 2)) / 2: erfc's tail as t exp(-z^2 + P(t)) with
 * t = 1 / (1 + z/2) (Press et al., Numerical Recipes, erfcc): within 6e-7 of its value down to -3, 5e-6 at -12. */
VEC_INLINE vec_t vec_normal(vec_t x)
{
    static const float P[] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                              -0.18628806f, 0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
    x = vec_min(vec_max(x, vec_set(-14)), vec_set(14)); /* beyond, 0 and 1; the square stays finite */
    vec_t one = vec_set(1), z = vec_mul(vec_absolute(x), vec_set(0.70710678118654752f));
    vec_t t = vec_div(one, vec_fma(z, vec_set(0.5f), one)), p = vec_set(P[0]);
    for (int i = 1; i < 10; i++)
        p = vec_fma(p, t, vec_set(P[i]));
    vec_t square = vec_mul(x, x), lost = vec_fma(x, x, vec_sub(vec_zero(), square)), half = vec_set(-0.5f);
    vec_t tail = vec_mul(vec_mul(t, vec_set(0.5f)), vec_exp_weight(vec_fma(square, half, p)));
    tail = vec_fma(vec_mul(lost, half), tail, tail);
    return vec_less(x, vec_zero(), tail, vec_sub(one, tail));
}

#endif
