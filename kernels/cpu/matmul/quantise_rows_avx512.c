/* What is this?      Activations to signed bytes with AVX-512.
 * State owned:       none.
 * Must never:        give a token other bits because of the tokens beside it.
 * Read next:         quantise_rows.h, matmul_avx512vnni.c.
 *
 * Several groups of a token go together, so that the sums over lanes and the divisions, whose latency would otherwise
 * be most of the time, are done once for all: first the range of each, then their scales, one a lane, then the bytes.
 * The inputs are read twice, the second time from the first-level cache. */
#include <immintrin.h>

#include "common/assert.h"
#include "kernels/cpu/matmul/quantise_rows.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define BATCH LANES  /* groups: one a lane */
#define BATCH_INT8 8 /* groups: two lanes each, for the values above and below zero */
#define INT8_STEPS 254.9f
#define TINY 1e-30f /* 127 / x must stay finite */
#define SIGN ((int32_t)0x80000000)

qn_quantised_t qn_quantised_plan(uint32_t tokens, uint32_t inputs, uint32_t group, void *scratch)
{
    QN_ASSERT(tokens && (group == 32 || group == 64 || group == QN_QUANTISE_INT8));
    QN_ASSERT(((uintptr_t)scratch & 63) == 0);
    uint32_t groups = (inputs + group - 1) / group;
    size_t places = (size_t)tokens * groups;
    size_t value_bytes = (places * group + 63) & ~(size_t)63;
    uint32_t blocks = (tokens + QN_QUANTISE_TOKENS - 1) / QN_QUANTISE_TOKENS;
    char *base = scratch;
    return (qn_quantised_t){
        .values = (int8_t *)base,
        .scales = (float *)(void *)(base + value_bytes),
        .starts = (int32_t *)(void *)(base + value_bytes + places * sizeof(float)),
        .tokens = tokens,
        .inputs = inputs,
        .group = group,
        .groups = groups,
        .blocks = blocks,
        .block_tokens = tokens / blocks,
        .longer = tokens % blocks,
    };
}

/* ---- what all share ---- */

/* Lane i of the result combines the lanes of a[i]. */
#define FOLD(name, combine)                                                                                            \
    INLINE __m512i name(const __m512i a[LANES])                                                                        \
    {                                                                                                                  \
        __m512i b[8], c[4], d[2];                                                                                      \
        for (int i = 0; i < 8; i++)                                                                                    \
            b[i] =                                                                                                     \
                combine(_mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1])); \
        for (int i = 0; i < 4; i++)                                                                                    \
            c[i] =                                                                                                     \
                combine(_mm512_unpacklo_epi64(b[2 * i], b[2 * i + 1]), _mm512_unpackhi_epi64(b[2 * i], b[2 * i + 1])); \
        for (int i = 0; i < 2; i++)                                                                                    \
            d[i] = combine(_mm512_shuffle_i32x4(c[2 * i], c[2 * i + 1], 0x44),                                         \
                           _mm512_shuffle_i32x4(c[2 * i], c[2 * i + 1], 0xee));                                        \
        return combine(_mm512_shuffle_i32x4(d[0], d[1], 0x88), _mm512_shuffle_i32x4(d[0], d[1], 0xdd));                \
    }

FOLD(fold_greatest, _mm512_max_epu32)
FOLD(fold_sum, _mm512_add_epi32)

/* Those of the LANES inputs from `at` on that are there. */
INLINE __mmask16 lanes_there(uint32_t at, uint32_t inputs)
{
    uint32_t left = inputs > at ? inputs - at : 0;
    return left >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
}

/* LANES inputs from x[at], of which `inputs` are there; `whole`: all of them. */
INLINE __m512 load_inputs(const float *x, uint32_t at, uint32_t inputs, const bool whole)
{
    return whole ? _mm512_loadu_ps(x + at) : _mm512_maskz_loadu_ps(lanes_there(at, inputs), x + at);
}

/* Packing works within quarters of a register: its quad 4L + v is quarter L of q[v], the quad 4v + L of the group. */
INLINE void store_bytes(const __m512i *q, const uint32_t count, int8_t *values)
{
    __m512i low = _mm512_packs_epi32(q[0], q[1]);
    if (count == 64) {
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        __m512i bytes = _mm512_packs_epi16(low, _mm512_packs_epi32(q[2], q[3]));
        _mm512_storeu_si512(values, _mm512_permutexvar_epi32(order, bytes));
    } else {
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
        __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, low));
        _mm256_storeu_si256((__m256i *)(void *)values, _mm512_castsi512_si256(bytes));
    }
}

/* ---- sixteen groups for int4 ---- */

/* Compared as whole numbers the bits of |x| have the order of |x|, with infinity and then NaN on top: no second test
 * is needed to let those through. */
INLINE __m512i greatest_of_group(const float *x, uint32_t inputs, const uint32_t group, const bool whole)
{
    __m512i greatest = _mm512_setzero_si512();
    for (uint32_t at = 0; at < group; at += LANES) {
        __m512 lanes = load_inputs(x, at, inputs, whole);
        greatest = _mm512_max_epu32(greatest, _mm512_castps_si512(_mm512_abs_ps(lanes)));
    }
    return greatest;
}

/* Returns sums of the bytes; their sum is the group's. Asks for the group of the next batch: hardware, which begins
 * anew in every page, comes too late for rows from memory. */
INLINE __m512i quantise_group(const float *x, uint32_t inputs, const uint32_t group, const bool whole, float inverse,
                              int8_t *values)
{
    __m512i q[4], sum = _mm512_setzero_si512();
    for (uint32_t v = 0; v < group / LANES; v++) {
        __m512 lanes = load_inputs(x, v * LANES, inputs, whole);
        _mm_prefetch((const char *)(x + v * LANES + BATCH * group), _MM_HINT_T0);
        q[v] = _mm512_cvtps_epi32(_mm512_mul_ps(lanes, _mm512_set1_ps(inverse)));
        sum = _mm512_add_epi32(sum, q[v]);
    }
    store_bytes(q, group, values);
    return sum;
}

/* `count` <= BATCH groups of x, of which `inputs` are there; their places are `stride` apart. */
INLINE void quantise_batch(const qn_quantised_t *rows, size_t place, size_t stride, const float *x, uint32_t inputs,
                           const uint32_t group, const bool whole, const uint32_t count)
{
    __m512i lanes[BATCH];
    _Alignas(64) float scales[BATCH], inverses[BATCH];
    _Alignas(64) int32_t starts[BATCH];
    for (uint32_t g = 0; g < count; g++)
        lanes[g] = greatest_of_group(x + g * group, inputs, group, whole);
    for (uint32_t g = count; g < BATCH; g++)
        lanes[g] = _mm512_setzero_si512();
    __m512 greatest = _mm512_castsi512_ps(fold_greatest(lanes)), most = _mm512_set1_ps(127);
    __mmask16 some = _mm512_cmp_ps_mask(greatest, _mm512_set1_ps(TINY), _CMP_NLT_UQ);
    _mm512_store_ps(scales, _mm512_maskz_div_ps(some, greatest, most));
    _mm512_store_ps(inverses, _mm512_maskz_div_ps(some, most, greatest));
    for (uint32_t g = 0; g < count; g++)
        lanes[g] = quantise_group(x + g * group, inputs, group, whole, inverses[g],
                                  rows->values + (place + g * stride) * group);
    _mm512_store_si512(starts, _mm512_mullo_epi32(fold_sum(lanes), _mm512_set1_epi32(-8)));
    for (uint32_t g = 0; g < count; g++) {
        rows->scales[place + g * stride] = scales[g];
        rows->starts[place + g * stride] = starts[g];
    }
}

/* ---- eight groups for int8 ---- */

/* The greatest of the values, and of their negatives; at least 0. As whole numbers the bits of floats not below zero
 * have the floats' order, with infinity and then NaN on top, and all others are below zero. */
INLINE void range_of_group(const float *x, uint32_t inputs, const bool whole, __m512i *above, __m512i *below)
{
    *above = *below = _mm512_setzero_si512();
    for (uint32_t at = 0; at < QN_QUANTISE_INT8; at += LANES) {
        __m512i bits = _mm512_castps_si512(load_inputs(x, at, inputs, whole));
        *above = _mm512_max_epi32(*above, bits);
        *below = _mm512_max_epi32(*below, _mm512_xor_si512(bits, _mm512_set1_epi32(SIGN)));
    }
}

/* As quantise_group. */
INLINE __m512i quantise_range(const float *x, uint32_t inputs, const bool whole, float inverse, int32_t zero,
                              int8_t *values)
{
    __m512i q[QN_QUANTISE_INT8 / LANES], sum = _mm512_setzero_si512();
    for (uint32_t v = 0; v < QN_QUANTISE_INT8 / LANES; v++) {
        __m512 lanes = load_inputs(x, v * LANES, inputs, whole);
        _mm_prefetch((const char *)(x + v * LANES + BATCH_INT8 * QN_QUANTISE_INT8), _MM_HINT_T0);
        q[v] = _mm512_cvtps_epi32(_mm512_mul_ps(lanes, _mm512_set1_ps(inverse)));
        q[v] = _mm512_sub_epi32(q[v], _mm512_set1_epi32(zero));
        if (!whole) q[v] = _mm512_maskz_mov_epi32(lanes_there(v * LANES, inputs), q[v]);
        sum = _mm512_add_epi32(sum, q[v]);
    }
    store_bytes(q, 64, values);
    store_bytes(q + 4, 64, values + 64);
    return sum;
}

/* `count` <= BATCH_INT8 groups, as quantise_batch. */
INLINE void quantise_ranges(const qn_quantised_t *rows, size_t place, size_t stride, const float *x, uint32_t inputs,
                            const bool whole, const uint32_t count)
{
    const uint32_t group = QN_QUANTISE_INT8;
    __m512i lanes[LANES];
    _Alignas(64) float scales[LANES], inverses[LANES];
    _Alignas(64) int32_t zeros[LANES], sums[LANES];
    for (uint32_t g = 0; g < LANES; g++)
        lanes[g] = _mm512_setzero_si512();
    for (uint32_t g = 0; g < count; g++)
        range_of_group(x + g * group, inputs, whole, &lanes[g], &lanes[g + BATCH_INT8]);
    __m512 above = _mm512_castsi512_ps(fold_greatest(lanes));
    __m512 below = _mm512_shuffle_f32x4(above, above, 0x4e), step = _mm512_set1_ps(1 / INT8_STEPS);
    __m512 scale = _mm512_fmadd_ps(above, step, _mm512_mul_ps(below, step));
    __mmask16 some = _mm512_cmp_ps_mask(scale, _mm512_set1_ps(TINY / INT8_STEPS), _CMP_NLT_UQ);
    __m512 inverse = _mm512_maskz_div_ps(some, _mm512_set1_ps(1), scale);
    __mmask16 finite = _mm512_cmp_ps_mask(inverse, _mm512_setzero_ps(), _CMP_GT_OQ);
    _mm512_store_ps(scales, _mm512_maskz_mov_ps(some, scale));
    _mm512_store_ps(inverses, inverse);
    __m512i zero = _mm512_maskz_cvtps_epi32(finite, _mm512_mul_ps(below, inverse));
    zero = _mm512_sub_epi32(_mm512_set1_epi32(128), zero);
    _mm512_store_si512(zeros, zero);
    for (uint32_t g = 0; g < count; g++)
        lanes[g] = quantise_range(x + g * group, inputs, whole, inverses[g], zeros[g],
                                  rows->values + (place + g * stride) * group);
    zero = _mm512_mask_blend_epi16(0xaaaaaaaa, zero, _mm512_slli_epi32(fold_sum(lanes), 16));
    _mm512_store_si512(sums, zero);
    for (uint32_t g = 0; g < count; g++) {
        rows->scales[place + g * stride] = scales[g];
        rows->starts[place + g * stride] = sums[g];
    }
}

/* ---- a token ---- */

INLINE void quantise_int8(const qn_quantised_t *rows, size_t place, size_t stride, const float *x)
{
    const uint32_t group = QN_QUANTISE_INT8;
    uint32_t whole = rows->inputs / group, left = rows->inputs % group, count;
    for (uint32_t g = 0; g < whole; g += count, x += count * group, place += count * stride) {
        count = whole - g < BATCH_INT8 ? whole - g : BATCH_INT8;
        if (count == BATCH_INT8)
            quantise_ranges(rows, place, stride, x, group, true, BATCH_INT8);
        else
            quantise_ranges(rows, place, stride, x, group, true, count);
    }
    if (left) quantise_ranges(rows, place, stride, x, left, false, 1);
}

INLINE void quantise_groups(const qn_quantised_t *rows, size_t place, size_t stride, const float *x,
                            const uint32_t group)
{
    uint32_t whole = rows->inputs / group, left = rows->inputs % group, count;
    for (uint32_t g = 0; g < whole; g += count, x += count * group, place += count * stride) {
        count = whole - g < BATCH ? whole - g : BATCH;
        if (count == BATCH)
            quantise_batch(rows, place, stride, x, group, group, true, BATCH);
        else
            quantise_batch(rows, place, stride, x, group, group, true, count);
    }
    if (left) quantise_batch(rows, place, stride, x, left, group, false, 1);
}

static uint32_t block_of(const qn_quantised_t *rows, uint32_t token)
{
    uint32_t in_longer = rows->longer * (rows->block_tokens + 1);
    if (token < in_longer) return token / (rows->block_tokens + 1);
    return rows->longer + (token - in_longer) / rows->block_tokens;
}

void qn_quantise_row_avx512(const qn_quantised_t *rows, uint32_t token, const float *x)
{
    uint32_t block = block_of(rows, token), first = qn_quantised_first(rows, block);
    size_t stride = qn_quantised_first(rows, block + 1) - first;
    size_t place = (size_t)first * rows->groups + (token - first);
    if (rows->group == QN_QUANTISE_INT8)
        quantise_int8(rows, place, stride, x);
    else if (rows->group == 64)
        quantise_groups(rows, place, stride, x, 64);
    else
        quantise_groups(rows, place, stride, x, 32);
}
