/* x as the tiles of matmul_tiles.h read it, for launches of more than a few tokens.
 *
 * A tile wants the words of up to TILE_TOKENS tokens, step by step. Read where they lie, a dozen rows of a power-of-two
 * width would fight for one set of the first-level cache, and their addresses would need a dozen registers. So steps
 * are cut into blocks of BLOCK_STEPS and copied to
 *   [block][token][step of the block]
 * where a tile's rows follow each other at a constant distance. Steps and tokens beyond the last are zeros. */
#ifndef QN_KERNELS_CPU_MATMUL_MATMUL_PACK_H
#define QN_KERNELS_CPU_MATMUL_MATMUL_PACK_H

#include "kernels/cpu/matmul/matmul_weights.h"

/* A tile is two vectors of outputs times TILE_TOKENS: 24 accumulators of the 32 registers (12 of 16 on AVX2) with the
 * two weights and the shared word beside them. Two FMA units of latency 4 need 8 chains; more make each load serve more
 * products: 14 loads for 24 FMAs, which two load ports do in 7 cycles of 12. A last tile is as narrow as TILE_QUANTUM
 * allows. */
#define TILE_VECTORS 2
#define TILE_TOKENS (VEC_LANES == 16 ? 12 : 6)
#define TILE_QUANTUM (TILE_TOKENS / 3)
/* The f32 weights of a tile and block are 16 KiB (AVX2: 8), which stay in the first-level cache over all tokens. Not
 * less than an int4 group, and not more than qn_matmul_scratch_bytes rounds to. */
#define BLOCK_STEPS 128u

typedef struct {
    const qn_matmul_t *a;
    float *words;         /* the launch's scratch */
    size_t tiles, width;  /* width: tokens, with those that pad the last tile */
    size_t steps, blocks; /* steps: a multiple of every line's inputs */
} packed_t;

static inline packed_t packed_of(const qn_matmul_t *a)
{
    packed_t packed = {.a = a, .words = a->scratch};
    packed.tiles = ((size_t)a->tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    packed.width = ((size_t)a->tokens + TILE_QUANTUM - 1) / TILE_QUANTUM * TILE_QUANTUM;
    packed.steps = ((size_t)a->inputs + 7) / 8 * (MATMUL_PAIRS ? 4 : 8);
    packed.blocks = (packed.steps + BLOCK_STEPS - 1) / BLOCK_STEPS;
    return packed;
}

static inline float *packed_row(const packed_t *packed, size_t block, size_t token)
{
    return packed->words + (block * packed->width + token) * BLOCK_STEPS;
}

static inline uint32_t packed_tile_width(const packed_t *packed, size_t tile)
{
    size_t left = packed->width - tile * TILE_TOKENS;
    return left < TILE_TOKENS ? (uint32_t)left : TILE_TOKENS;
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

/* Eight inputs as words: themselves, or four pairs rounded to bf16, the even one in the low half. */
VEC_INLINE void pack_eight(const float *values, float *words)
{
    __m128 low = _mm_loadu_ps(values), high = _mm_loadu_ps(values + 4);
    if (MATMUL_PAIRS) {
        _mm_storeu_ps(words, _mm_castsi128_ps(_mm_packus_epi32(round_bf16(low), round_bf16(high))));
        return;
    }
    _mm_storeu_ps(words, low);
    _mm_storeu_ps(words + 4, high);
}

/* One block of one token; `count` inputs, of which the last eight may be fewer. */
static void pack_row(const float *values, size_t count, float *words)
{
    size_t whole = count / 8 * 8;
    for (size_t i = 0; i < whole; i += 8)
        pack_eight(values + i, words + (MATMUL_PAIRS ? i / 2 : i));
    if (whole == count) return;
    float some[8] = {0};
    memcpy(some, values + whole, (count - whole) * sizeof *values);
    pack_eight(some, words + (MATMUL_PAIRS ? whole / 2 : whole));
}

/* Items are tokens. */
static void pack_items(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const packed_t *packed = arguments;
    const qn_matmul_t *a = packed->a;
    const size_t in_block = BLOCK_STEPS * (MATMUL_PAIRS ? 2 : 1);
    for (size_t token = begin; token < end; token++)
        for (size_t block = 0; block < packed->blocks; block++) {
            float *words = packed_row(packed, block, token);
            size_t first = block * in_block, left = a->inputs - first;
            if (token < a->tokens)
                pack_row((const float *)a->x + token * a->inputs + first, left < in_block ? left : in_block, words);
            else
                memset(words, 0, BLOCK_STEPS * sizeof *words);
        }
}

static void pack_x(qn_stream_t *stream, const packed_t *packed)
{
    QN_ASSERT(packed->words && (uintptr_t)packed->words % 64 == 0);
    qn_cpu_split(stream, packed->width, qn_grain(packed->steps / 4), pack_items, packed);
}

#endif
