/* x in the order in which the tiles of matmul_tiles.h read it, for launches of more than a few tokens.
 *
 * A tile of up to TILE_TOKENS tokens wants, for each step, the words of its tokens side by side. Rows of x would do, but
 * a dozen rows of a power-of-two width fall into one set of the first-level cache. Steps are cut into blocks of
 * BLOCK_STEPS, and a block's tiles follow each other, so that what is used together lies together:
 *   [block][tile][step of the block][token of the tile]
 * Steps and tokens beyond the last are zeros. The last tile is as narrow as TILE_QUANTUM allows. */
#ifndef QN_KERNELS_CPU_MATMUL_PACK_H
#define QN_KERNELS_CPU_MATMUL_PACK_H

#include "kernels/cpu/matmul_weights.h"

/* A tile is two vectors of outputs times TILE_TOKENS: 24 accumulators of the 32 registers (12 of 16 on AVX2) with the
 * two weights and the shared word beside them. Two FMA units of latency 4 need 8 chains; more make each load serve more
 * products: 14 loads for 24 FMAs, which two load ports do in 7 cycles of 12. */
#define TILE_VECTORS 2
#define TILE_TOKENS (VEC_LANES == 16 ? 12 : 6)
#define TILE_QUANTUM (TILE_TOKENS / 3)
/* Weights of a tile and block: 16 KiB of f32, which stay in the first-level cache over all tokens. Never less than an
 * int4 group. */
#define BLOCK_STEPS (VEC_LANES == 16 ? 128u : 256u)

typedef struct {
    const qn_matmul_t *a;
    float *words;          /* the launch's scratch */
    size_t tiles, width;   /* width: tokens of all tiles, with those that pad the last */
    size_t steps, blocks;  /* steps: a multiple of 4 and of every line's inputs */
} packed_t;

static inline packed_t packed_of(const qn_matmul_t *a)
{
    packed_t packed = { .a = a, .words = a->scratch };
    packed.tiles = ((size_t)a->tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    packed.width = ((size_t)a->tokens + TILE_QUANTUM - 1) / TILE_QUANTUM * TILE_QUANTUM;
    packed.steps = ((size_t)a->inputs + 7) / 8 * (MATMUL_PAIRS ? 4 : 8);
    packed.blocks = (packed.steps + BLOCK_STEPS - 1) / BLOCK_STEPS;
    return packed;
}

static inline size_t packed_block_steps(const packed_t *packed, size_t block)
{
    size_t left = packed->steps - block * BLOCK_STEPS;
    return left < BLOCK_STEPS ? left : BLOCK_STEPS;
}

static inline uint32_t packed_tile_width(const packed_t *packed, size_t tile)
{
    size_t left = packed->width - tile * TILE_TOKENS;
    return left < TILE_TOKENS ? (uint32_t)left : TILE_TOKENS;
}

static inline float *packed_tile(const packed_t *packed, size_t block, size_t tile)
{
    return packed->words + block * BLOCK_STEPS * packed->width
        + tile * TILE_TOKENS * packed_block_steps(packed, block);
}

/* Four floats as bf16 in the low halves of four words: to nearest, ties to even; NaN stays NaN. */
VEC_INLINE __m128i round_bf16(__m128 values)
{
    __m128i bits = _mm_castps_si128(values), odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
    __m128i rounded = _mm_add_epi32(bits, _mm_add_epi32(odd, _mm_set1_epi32(0x7fff)));
    __m128i quiet = _mm_or_si128(bits, _mm_set1_epi32(0x400000));
    __m128i is_nan = _mm_castps_si128(_mm_cmpunord_ps(values, values));
    return _mm_srli_epi32(_mm_blendv_epi8(rounded, quiet, is_nan), 16);
}

/* Words of four steps of one token: its floats, or pairs of them rounded to bf16, the even one in the low half. */
VEC_INLINE __m128 token_words(const float *values)
{
    if (!MATMUL_PAIRS) return _mm_loadu_ps(values);
    __m128i low = round_bf16(_mm_loadu_ps(values)), high = round_bf16(_mm_loadu_ps(values + 4));
    return _mm_castsi128_ps(_mm_packus_epi32(low, high));
}

/* The same at any place: zeros beyond the row and for tokens that do not exist. */
VEC_INLINE __m128 token_words_at(const qn_matmul_t *a, size_t token, size_t step)
{
    const uint32_t count = MATMUL_PAIRS ? 8 : 4;
    size_t input = MATMUL_PAIRS ? step * 2 : step;
    if (token >= a->tokens || input >= a->inputs) return _mm_setzero_ps();
    const float *values = (const float *)a->x + token * a->inputs + input;
    if (a->inputs - input >= count) return token_words(values);
    float some[8] = { 0 };
    memcpy(some, values, (a->inputs - input) * sizeof *values);
    return token_words(some);
}

/* Four tokens (or the two of AVX2's last) of four steps, turned. */
VEC_INLINE void pack_square(const qn_matmul_t *a, size_t token, size_t step, uint32_t count, float *to, size_t stride)
{
    __m128 r0 = token_words_at(a, token, step), r1 = token_words_at(a, token + 1, step);
    if (count == 2) {
        __m128 low = _mm_unpacklo_ps(r0, r1), high = _mm_unpackhi_ps(r0, r1);
        _mm_storel_pi((__m64 *)(void *)to, low);
        _mm_storeh_pi((__m64 *)(void *)(to + stride), low);
        _mm_storel_pi((__m64 *)(void *)(to + 2 * stride), high);
        _mm_storeh_pi((__m64 *)(void *)(to + 3 * stride), high);
        return;
    }
    __m128 r2 = token_words_at(a, token + 2, step), r3 = token_words_at(a, token + 3, step);
    _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
    _mm_storeu_ps(to, r0);
    _mm_storeu_ps(to + stride, r1);
    _mm_storeu_ps(to + 2 * stride, r2);
    _mm_storeu_ps(to + 3 * stride, r3);
}

/* Items are tiles of blocks. */
static void pack_items(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const packed_t *packed = arguments;
    for (size_t item = begin; item < end; item++) {
        size_t block = item / packed->tiles, tile = item % packed->tiles;
        size_t steps = packed_block_steps(packed, block);
        uint32_t width = packed_tile_width(packed, tile);
        float *to = packed_tile(packed, block, tile);
        for (size_t step = 0; step < steps; step += 4)
            for (uint32_t t = 0; t < width; t += 4)
                pack_square(packed->a, tile * TILE_TOKENS + t, block * BLOCK_STEPS + step, width - t,
                            to + step * width + t, width);
    }
}

static void pack_x(qn_stream_t *stream, const packed_t *packed)
{
    QN_ASSERT(packed->words && (uintptr_t)packed->words % 64 == 0);
    qn_cpu_split(stream, packed->tiles * packed->blocks, qn_grain(TILE_TOKENS * BLOCK_STEPS), pack_items, packed);
}

#endif
