/* What is this?      Activations to signed bytes with AVX-512.
 * State owned:       none.
 * Must never:        give a token other bits because of the tokens beside it.
 * Read next:         quantise_rows.h, matmul_avx512vnni.c. */
#include <immintrin.h>

#include "common/assert.h"
#include "kernels/cpu/quantise_rows.h"

#define LANES 16
#define GROUP_MAX 64
#define VECTORS_MAX (GROUP_MAX / LANES)
#define TINY 1e-30f  /* 127 / x must stay finite */

qn_quantised_t qn_quantised_plan(uint32_t tokens, uint32_t inputs, uint32_t group, int32_t zero, void *scratch)
{
    QN_ASSERT(tokens && (group == 32 || group == 64));
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
        .tokens = tokens, .inputs = inputs, .group = group, .groups = groups, .zero = zero,
        .blocks = blocks, .block_tokens = tokens / blocks, .longer = tokens % blocks,
    };
}

/* Compared as whole numbers the bits of |x| have the order of |x|, with infinity and then NaN on top: no second test
 * is needed to let those through. */
static inline float greatest_magnitude(const __m512 *x, uint32_t vectors)
{
    __m512i greatest = _mm512_setzero_si512();
    for (uint32_t v = 0; v < vectors; v++)
        greatest = _mm512_max_epu32(greatest, _mm512_castps_si512(_mm512_abs_ps(x[v])));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128((int)_mm512_reduce_max_epu32(greatest))));
}

/* Group of `vectors` * LANES inputs, of which `count` are there. Returns the scale. */
static inline float quantise_group(const float *x, uint32_t count, const uint32_t vectors, int8_t *values,
                                   int32_t *ret_sum)
{
    __m512 x_lanes[VECTORS_MAX];
    for (uint32_t v = 0; v < vectors; v++) {
        uint32_t left = count > v * LANES ? count - v * LANES : 0;
        __mmask16 mask = left >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
        x_lanes[v] = _mm512_maskz_loadu_ps(mask, x + v * LANES);
    }
    float greatest = greatest_magnitude(x_lanes, vectors);
    bool zero = greatest < TINY;
    __m512 inverse = _mm512_set1_ps(zero ? 0 : 127.0f / greatest);
    __m512i sum = _mm512_setzero_si512();
    for (uint32_t v = 0; v < vectors; v++) {
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(x_lanes[v], inverse));
        sum = _mm512_add_epi32(sum, q);
        _mm_storeu_si128((__m128i *)(void *)(values + v * LANES), _mm512_cvtsepi32_epi8(q));
    }
    *ret_sum = _mm512_reduce_add_epi32(sum);
    return zero ? 0 : greatest / 127.0f;
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
    uint32_t count = qn_quantised_first(rows, block + 1) - first, group = rows->group;
    size_t place = (size_t)first * rows->groups + (token - first);
    for (uint32_t g = 0; g < rows->groups; g++, place += count) {
        const float *from = x + (size_t)g * group;
        uint32_t left = rows->inputs - g * group;
        int32_t sum;
        if (group == 64) rows->scales[place] = quantise_group(from, left, 4, rows->values + place * 64, &sum);
        else rows->scales[place] = quantise_group(from, left, 2, rows->values + place * 32, &sum);
        rows->starts[place] = (int32_t)(0u - (uint32_t)rows->zero * (uint32_t)sum);  /* of a NaN's sum too */
    }
}
