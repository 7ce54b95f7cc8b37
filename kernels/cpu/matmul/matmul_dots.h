/* Tiles of the integer products: the groups of one stretch of inputs, for PAIR panels and the tokens of one block. For
 * matmul_avx512vnni.c only.
 *
 * vpdpbusd multiplies 64 unsigned bytes (weights: 4 inputs of the 16 outputs of a panel) with 64 signed ones (one
 * token's 4 inputs, broadcast) and adds each lane's four products to 32 bits. A lane is an output, so no sum over lanes
 * is ever needed. Within a group of inputs the sums are whole numbers and exact, whatever their order. Each group then
 * makes one step of the float chain of its output, groups ascending:
 *
 *   int8   sum += (float)dot * x_scale                 and at the end  out = sum * w_scale
 *   int4   sum += ((float)dot * w_scale) * x_scale
 *
 * Neither operand means what its bytes say: int8 weights are w + 128 and int4 ones w + 8, and activations that go with
 * int8 are x - z. What a dot begins with puts both right: with int8 that is
 *
 *   sum(w (x + z)) = sum((w + 128) x) - 128 sum(x) + z sum(w)
 *
 * one vpdpwssd of the token's [z, sum(x)] with the output's [sum(w), -128]. Weights are summed once a stretch, or, for
 * a few tokens, with each tile.
 *
 * A tile is PAIR panels times the tokens of one block: at 12 tokens 24 of the 32 registers hold sums, and 18 loads feed
 * 24 vpdpbusd. The float sums stay in the first-level cache, touched once a group. */
#ifndef QN_KERNELS_CPU_MATMUL_MATMUL_DOTS_H
#define QN_KERNELS_CPU_MATMUL_MATMUL_DOTS_H

#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/matmul/quantise_rows.h"
#include "kernels/weight_layout.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES QN_PANEL_ROWS
#define LINE 64
#define PAIR 2 /* panels of a tile */
#define TILE QN_QUANTISE_TOKENS
#define OWN_SUMS 8 /* int8: tiles of so few tokens sum their weights themselves, beside the dots */

/* What a tile needs for one stretch. Weights and scales of the pair's second panel lie `second` bytes on. */
typedef struct {
    const uint8_t *weights, *weight_scales, *next;
    ptrdiff_t second;
    uint32_t groups;
    uint32_t next_lines; /* lines of the next stretch to ask for with each group, per panel */
    bool only_tile;      /* of its stretch: the next one follows at once */
    const int8_t *x;
    const float *x_scales;
    const int32_t *x_starts;
    const int32_t *weight_starts; /* int8: [groups][PAIR][LANES], see sum_weights; NULL: few tokens */
    uint32_t last_inputs;         /* int8: of the last group, those that the panel has */
    float *sums;                  /* [tokens][PAIR][LANES] */
} tile_t;

INLINE __m512i broadcast_quad(const int8_t *x)
{
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return _mm512_set1_epi32(quad);
}

/* Assembler, for it says that the sums stay where they are: gcc 12 copies and spills them around the intrinsic. */
INLINE void add_dot(__m512i *sum, __m512i weights, __m512i x)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(weights), "v"(x));
}

/* The same with the broadcast in one instruction, but a load for each panel. */
INLINE void add_dot_at(__m512i *sum, __m512i weights, const int8_t *x)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(*sum) : "v"(weights), "m"(*(const int8_t(*)[4])x));
}

/* Asks for `lines` lines of what comes next, of each panel. */
INLINE void ask_for_next(tile_t *tile, uint32_t lines)
{
    for (uint32_t i = 0; i < lines; i++, tile->next += LINE)
        for (uint32_t p = 0; p < PAIR; p++) {
            const char *line = (const char *)tile->next + p * tile->second;
            if (tile->only_tile)
                _mm_prefetch(line, _MM_HINT_T0);
            else
                _mm_prefetch(line, _MM_HINT_T1);
        }
}

/* A quad of inputs of all tokens: dots[p][t] += weights[p] . x[t]. Every third token loads its quad twice: fewer
 * instructions, which a core that is shared with another's work is short of before it is of loads. */
INLINE void add_quads(__m512i dots[PAIR][TILE], const __m512i weights[PAIR], const int8_t *x, const uint32_t stride,
                      const uint32_t tokens)
{
    for (uint32_t t = 0; t < tokens; t++) {
        if (t % 3 == 2) {
            for (uint32_t p = 0; p < PAIR; p++)
                add_dot_at(&dots[p][t], weights[p], x + t * stride);
        } else {
            __m512i quad = broadcast_quad(x + t * stride);
            for (uint32_t p = 0; p < PAIR; p++)
                add_dot(&dots[p][t], weights[p], quad);
        }
    }
}

/* The barrier keeps the float sums in memory: the compiler would hold them in registers that it does not have. */
INLINE void start_dots(__m512i dots[PAIR][TILE], const tile_t *tile, const uint32_t tokens)
{
    __asm__ volatile("" ::: "memory");
    for (uint32_t t = 0; t < tokens; t++) {
        __m512i start = _mm512_set1_epi32(tile->x_starts[t]);
        for (uint32_t p = 0; p < PAIR; p++)
            dots[p][t] = start;
    }
}

/* [sum(w), -128] out of 32-bit sums. */
INLINE __m512i pair_with_sums(__m512i sums)
{
    return _mm512_mask_blend_epi16(0xaaaaaaaa, sums, _mm512_set1_epi16(-128));
}

/* int8: adds [z, sum(x)] of a token times [sum(w), -128] of an output. */
INLINE void add_starts(__m512i dots[PAIR][TILE], const __m512i pairs[PAIR], const tile_t *tile, const uint32_t tokens)
{
    for (uint32_t p = 0; p < PAIR; p++)
        for (uint32_t t = 0; t < tokens; t++)
            __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(dots[p][t]) : "v"(pairs[p]), "m"(tile->x_starts[t]));
}

INLINE void start_dots_int8(__m512i dots[PAIR][TILE], const tile_t *tile, const uint32_t tokens)
{
    __m512i pairs[PAIR];
    __asm__ volatile("" ::: "memory");
    for (uint32_t p = 0; p < PAIR; p++) {
        for (uint32_t t = 0; t < tokens; t++)
            dots[p][t] = _mm512_setzero_si512();
        if (tokens > OWN_SUMS) pairs[p] = _mm512_load_si512(tile->weight_starts + p * LANES);
    }
    if (tokens > OWN_SUMS) add_starts(dots, pairs, tile, tokens);
}

INLINE void add_to_sum(float *sum, __m512 dot, float scale)
{
    _mm512_store_ps(sum, _mm512_fmadd_ps(dot, _mm512_set1_ps(scale), _mm512_load_ps(sum)));
}

INLINE void next_group(tile_t *tile, const uint32_t group, const uint32_t tokens)
{
    tile->x += tokens * group;
    tile->x_scales += tokens;
    tile->x_starts += tokens;
}

INLINE void multiply_int8(tile_t tile, const uint32_t group, const uint32_t tokens)
{
    const __m512i ones = _mm512_set1_epi8(1);
    for (uint32_t g = 0; g < tile.groups; g++, next_group(&tile, group, tokens)) {
        __m512i dots[PAIR][TILE], weights[PAIR], sums[PAIR];
        uint32_t inputs = g + 1 < tile.groups ? group : tile.last_inputs;
        uint32_t each = (tile.next_lines * 4 + group - 1) / group;
        if (tokens > OWN_SUMS) ask_for_next(&tile, tile.next_lines);
        start_dots_int8(dots, &tile, tokens);
        for (uint32_t p = 0; p < PAIR; p++)
            sums[p] = _mm512_set1_epi32(-128 * (int32_t)inputs);
        for (uint32_t c = 0; c < inputs; c += 4, tile.weights += LINE) {
            for (uint32_t p = 0; p < PAIR; p++)
                weights[p] = _mm512_load_si512(tile.weights + p * tile.second);
            add_quads(dots, weights, tile.x + c, group, tokens);
            if (tokens > OWN_SUMS) continue;
            for (uint32_t p = 0; p < PAIR; p++)
                add_dot(&sums[p], weights[p], ones);
            ask_for_next(&tile, each);
        }
        for (uint32_t p = 0; p < PAIR; p++)
            sums[p] = pair_with_sums(sums[p]);
        if (tokens <= OWN_SUMS) add_starts(dots, sums, &tile, tokens);
        for (uint32_t t = 0; t < tokens; t++)
            for (uint32_t p = 0; p < PAIR; p++)
                add_to_sum(tile.sums + (t * PAIR + p) * LANES, _mm512_cvtepi32_ps(dots[p][t]), tile.x_scales[t]);
        if (tokens > OWN_SUMS) tile.weight_starts += PAIR * LANES;
    }
}

/* 16 bf16 scales. */
INLINE __m512 load_scales(const uint8_t *from)
{
    __m256i halves = _mm256_load_si256((const __m256i *)(const void *)from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

INLINE void multiply_int4(tile_t tile, const uint32_t group, const uint32_t tokens)
{
    const __m512i low = _mm512_set1_epi8(15);
    for (uint32_t g = 0; g < tile.groups; g++, next_group(&tile, group, tokens)) {
        __m512i dots[PAIR][TILE], bytes[PAIR], weights[PAIR];
        ask_for_next(&tile, tile.next_lines);
        start_dots(dots, &tile, tokens);
        for (uint32_t c = 0; c < group; c += 8, tile.weights += LINE) {
            for (uint32_t p = 0; p < PAIR; p++) {
                bytes[p] = _mm512_load_si512(tile.weights + p * tile.second);
                weights[p] = _mm512_and_si512(bytes[p], low);
            }
            add_quads(dots, weights, tile.x + c, group, tokens);
            for (uint32_t p = 0; p < PAIR; p++)
                weights[p] = _mm512_and_si512(_mm512_srli_epi16(bytes[p], 4), low);
            add_quads(dots, weights, tile.x + c + 4, group, tokens);
        }
        for (uint32_t p = 0; p < PAIR; p++) {
            __m512 scale = load_scales(tile.weight_scales + p * tile.second);
            for (uint32_t t = 0; t < tokens; t++)
                add_to_sum(tile.sums + (t * PAIR + p) * LANES, _mm512_mul_ps(_mm512_cvtepi32_ps(dots[p][t]), scale),
                           tile.x_scales[t]);
        }
        tile.weight_scales += LANES * sizeof(uint16_t);
    }
}

/* One piece of machine code per number of tokens, for their sums must be registers. Sanitizers would take minutes over
 * all of them: a checked build runs the same loops with the number in a variable. */
#ifdef QN_CHECKED
#define TILES(name, multiply, group) \
    static void name(const tile_t *tile, uint32_t tokens) { multiply(*tile, group, tokens); }
#else
#define TILES(name, multiply, group)                      \
    static void name(const tile_t *tile, uint32_t tokens) \
    {                                                     \
        switch (tokens) {                                 \
        case 1: multiply(*tile, group, 1); break;         \
        case 2: multiply(*tile, group, 2); break;         \
        case 3: multiply(*tile, group, 3); break;         \
        case 4: multiply(*tile, group, 4); break;         \
        case 5: multiply(*tile, group, 5); break;         \
        case 6: multiply(*tile, group, 6); break;         \
        case 7: multiply(*tile, group, 7); break;         \
        case 8: multiply(*tile, group, 8); break;         \
        case 9: multiply(*tile, group, 9); break;         \
        case 10: multiply(*tile, group, 10); break;       \
        case 11: multiply(*tile, group, 11); break;       \
        default: multiply(*tile, group, TILE); break;     \
        }                                                 \
    }
#endif

TILES(int8_tile, multiply_int8, QN_QUANTISE_INT8)
TILES(int4_tile_32, multiply_int4, 32)
TILES(int4_tile_64, multiply_int4, 64)

#endif
