/* Packing one panel, written once; weight_pack.c and weight_pack_avx2.c include it after PACK(name), PACK_WIDTH (lanes
 * of a vector) and, where the instruction set has a better transposition than plain loops, PACK_TRANSPOSE.
 *
 * The outputs of the panel are lanes; what is summed is summed over the inputs, ascending, in each lane alone. So the
 * bits do not depend on the width of vectors.
 * Rounding to nearest even is an addition: 1.5 * 2^23 + x has the integer nearest to x in its low bits. */
#include <float.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/matmul/weight_pack.h"

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF /* gcc fuses no multiplication with an addition in C11 mode; clang would */
#endif

#define BLOCK 64 /* inputs at a time: a multiple of every group */
#define ROUND_MAGIC 12582912.0f
#define ROUND_MAGIC_BITS 0x4b400000
#define INFINITE_BITS 0x7f800000u
#define MAGNITUDE 0x7fffffffu

typedef struct {
    const float *rows; /* [count, inputs] */
    size_t count;      /* outputs of this panel, at most QN_PANEL_ROWS */
    size_t inputs;
} source_t;

typedef float lanes_t[QN_PANEL_ROWS];

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Inputs [first, first + BLOCK) as [BLOCK][16], zeros beyond the matrix. */
static void load_block(const source_t *source, size_t first, lanes_t *ret_block)
{
    size_t wanted = source->inputs - first < BLOCK ? source->inputs - first : BLOCK;
    const float *rows = source->rows + first;
#ifdef PACK_TRANSPOSE
    if (wanted == BLOCK && source->count == QN_PANEL_ROWS) {
        for (size_t m = 0; m < BLOCK; m += 8)
            PACK_TRANSPOSE(rows + m, source->inputs, ret_block + m);
        return;
    }
#endif
    memset(ret_block, 0, BLOCK * sizeof *ret_block);
    for (size_t r = 0; r < source->count; r++) {
        for (size_t m = 0; m < wanted; m++)
            ret_block[m][r] = rows[r * source->inputs + m];
    }
}

/* ---- floats ---- */

static void pack_f32(const source_t *source, void *panel)
{
    lanes_t block[BLOCK], *out = panel;
    for (size_t m = 0; m < source->inputs; m += BLOCK) {
        load_block(source, m, block);
        size_t count = source->inputs - m < BLOCK ? source->inputs - m : BLOCK;
        memcpy(out + m, block, count * sizeof *block);
    }
}

static inline uint32_t bf16_bits(float value)
{
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
    return (bits & MAGNITUDE) > INFINITE_BITS ? quiet : rounded;
}

static void pack_bf16(const source_t *source, void *panel)
{
    lanes_t block[BLOCK];
    uint32_t(*out)[QN_PANEL_ROWS] = panel;
    for (size_t m = 0; m < source->inputs; m += BLOCK) {
        load_block(source, m, block);
        size_t left = source->inputs - m, pairs = left < BLOCK ? (left + 1) / 2 : BLOCK / 2;
        for (size_t i = 0; i < pairs; i++, out++) {
            for (size_t r = 0; r < QN_PANEL_ROWS; r++)
                (*out)[r] = bf16_bits(block[2 * i][r]) | bf16_bits(block[2 * i + 1][r]) << 16;
        }
    }
}

/* ---- int8 ---- */

/* Magnitudes compare as integers, and so does what is not finite. */
static uint32_t row_magnitude(const float *row, size_t inputs)
{
    uint32_t most = 0;
    for (size_t m = 0; m < inputs; m++) {
        uint32_t magnitude = bits_of(row[m]) & MAGNITUDE;
        most = magnitude > most ? magnitude : most;
    }
    return most;
}

/* One scale per output; `ret_divisors` are the same, but 1 where nothing is to be divided. */
static void int8_scales(const source_t *source, float *ret_scales, float *ret_divisors)
{
    for (size_t r = 0; r < QN_PANEL_ROWS; r++) {
        uint32_t most = r < source->count ? row_magnitude(source->rows + r * source->inputs, source->inputs) : 0;
        float scale = most < INFINITE_BITS ? float_of(most) / 127.0f : float_of(INFINITE_BITS);
        if (scale < FLT_MIN) scale = 0;
        ret_scales[r] = scale;
        ret_divisors[r] = scale > 0 && scale <= FLT_MAX ? scale : 1.0f;
    }
}

/* The byte of w / divisor, or that of zero. */
static inline uint32_t int8_byte(float value, float divisor, uint32_t keep)
{
    int32_t number = (int32_t)bits_of(value / divisor + ROUND_MAGIC) - ROUND_MAGIC_BITS;
    number = number > 127 ? 127 : number < -127 ? -127 : number;
    return ((uint32_t)number & keep) + 128;
}

static void pack_int8(const source_t *source, void *panel)
{
    lanes_t block[BLOCK], divisors, scales;
    uint32_t keep[QN_PANEL_ROWS], (*out)[QN_PANEL_ROWS] = panel;
    int8_scales(source, scales, divisors);
    for (size_t r = 0; r < QN_PANEL_ROWS; r++)
        keep[r] = scales[r] > 0 && scales[r] <= FLT_MAX ? ~0u : 0;
    for (size_t m = 0; m < source->inputs; m += BLOCK) {
        load_block(source, m, block);
        for (size_t i = 0; i < BLOCK; i += 4, out++) {
            for (size_t r = 0; r < QN_PANEL_ROWS; r++)
                (*out)[r] = int8_byte(block[i][r], divisors[r], keep[r]) |
                            int8_byte(block[i + 1][r], divisors[r], keep[r]) << 8 |
                            int8_byte(block[i + 2][r], divisors[r], keep[r]) << 16 |
                            int8_byte(block[i + 3][r], divisors[r], keep[r]) << 24;
        }
    }
    memcpy(out, scales, sizeof scales);
}

/* ---- int4 ---- */

/* PACK_WIDTH outputs of the panel. Compilers turn these operators into whatever vectors the machine has, and do not do
 * as well with loops over the lanes. A comparison gives -1 or 0 in each lane. */
typedef float vector_t __attribute__((vector_size(PACK_WIDTH * 4)));
typedef int32_t numbers_t __attribute__((vector_size(PACK_WIDTH * 4)));
typedef struct {
    vector_t values[BLOCK];
} group_t;

static inline numbers_t select_lanes(numbers_t mask, numbers_t yes, numbers_t no)
{
    return (yes & mask) | (no & ~mask);
}

/* The nearest of the numbers -8 .. 7; |value| is far below 2^22. */
static inline numbers_t int4_numbers(vector_t value)
{
    numbers_t number = (numbers_t)(value + ROUND_MAGIC) - ROUND_MAGIC_BITS, zero = {0};
    number = select_lanes(number > 7, zero + 7, number);
    return select_lanes(number < -8, zero - 8, number);
}

/* The value of greatest magnitude in each lane, with its sign; infinite where any value is not finite. */
static vector_t group_extremes(const group_t *group, size_t count)
{
    numbers_t most = {0}, extremes = {0}, zero = {0};
    for (size_t m = 0; m < count; m++) {
        numbers_t bits = (numbers_t)group->values[m], magnitude = bits & (int32_t)MAGNITUDE, more = magnitude > most;
        extremes = select_lanes(more, bits, extremes);
        most = select_lanes(more, magnitude, most);
    }
    return (vector_t)select_lanes(most < (int32_t)INFINITE_BITS, extremes, zero + (int32_t)INFINITE_BITS);
}

/* Tries one inverse scale on values divided by their extreme. With the numbers n it gives to values v, the scale of
 * least squared error is sum(v n) / sum(n²), and lessens the error by sum(v n)² / sum(n²): the best is kept. */
static inline void try_inverse(const group_t *group, size_t count, float inverse, vector_t *gains, vector_t *scales)
{
    vector_t products = {0}, squares = {0}, zero = {0};
    for (size_t m = 0; m < count; m++) {
        vector_t number = __builtin_convertvector(int4_numbers(group->values[m] * inverse), vector_t);
        products += group->values[m] * number;
        squares += number * number;
    }
    numbers_t none = squares == zero;
    vector_t scale = products / (vector_t)select_lanes(none, (numbers_t)(zero + 1.0f), (numbers_t)squares);
    vector_t gain = scale * products;
    numbers_t better = gain > *gains;
    *scales = (vector_t)select_lanes(better, (numbers_t)scale, (numbers_t)*scales);
    *gains = (vector_t)select_lanes(better, (numbers_t)gain, (numbers_t)*gains);
}

/* The scale of each lane. The extreme is mapped to about -8 (there is one number more on that side): to -6.4 .. -8.8,
 * of which the best after a least-squares fit wins. (The idea is llama.cpp's make_qx_quants.) */
static vector_t int4_scales(const group_t *group, size_t count)
{
    static const float inverses[] = {-8.0f, -6.4f, -6.8f, -7.2f, -7.4f, -7.6f, -7.8f, -8.2f, -8.4f, -8.8f};
    vector_t extremes = group_extremes(group, count), gains = {0}, scales = {0}, zero = {0};
    numbers_t infinite = (numbers_t)extremes == (int32_t)INFINITE_BITS;
    vector_t divisors =
        (vector_t)select_lanes(infinite | (extremes == zero), (numbers_t)(zero + 1.0f), (numbers_t)extremes);
    group_t scaled;
    for (size_t m = 0; m < count; m++)
        scaled.values[m] = group->values[m] / divisors;
    for (size_t i = 0; i < sizeof inverses / sizeof *inverses; i++)
        try_inverse(&scaled, count, inverses[i], &gains, &scales);
    return (vector_t)select_lanes(infinite, (numbers_t)extremes, (numbers_t)(divisors * scales));
}

/* Writes the scales as bf16 and returns what to divide by; `ret_keep` is -1 in lanes that have numbers. */
static inline vector_t store_scales(vector_t scales, uint16_t *ret_scales, numbers_t *ret_keep)
{
    numbers_t bits = (numbers_t)scales, magnitude = bits & (int32_t)MAGNITUDE, zero = {0};
    bits &= ~(magnitude < 0x00800000); /* below FLT_MIN */
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & (int32_t)0xffff0000u;
    for (size_t r = 0; r < PACK_WIDTH; r++)
        ret_scales[r] = (uint16_t)((uint32_t)bits[r] >> 16);
    *ret_keep = (bits != 0) & (magnitude < (int32_t)INFINITE_BITS);
    return (vector_t)select_lanes(*ret_keep, bits, (numbers_t)((vector_t)zero + 1.0f));
}

/* Outputs [lane, lane + PACK_WIDTH) of one group. */
static void pack_lanes(const lanes_t *block, size_t count, size_t lane, uint32_t (*out)[QN_PANEL_ROWS],
                       uint16_t *ret_scales)
{
    group_t group;
    numbers_t keep = {0};
    for (size_t m = 0; m < count; m++)
        memcpy(&group.values[m], &block[m][lane], sizeof group.values[m]);
    vector_t divisors = store_scales(int4_scales(&group, count), ret_scales + lane, &keep);
    for (size_t c = 0; c < count / 8; c++) {
        numbers_t words = {0};
        for (size_t j = 0; j < 4; j++) {
            numbers_t low = (int4_numbers(group.values[8 * c + j] / divisors) & keep) + 8;
            numbers_t high = (int4_numbers(group.values[8 * c + 4 + j] / divisors) & keep) + 8;
            words |= (low | high << 4) << (int)(8 * j);
        }
        memcpy(&out[c][lane], &words, sizeof words);
    }
}

static void pack_int4(const source_t *source, uint32_t group, void *panel)
{
    lanes_t block[BLOCK];
    uint32_t(*out)[QN_PANEL_ROWS] = panel;
    uint16_t(*scales)[QN_PANEL_ROWS] =
        (void *)((uint8_t *)panel + qn_panel_scales(QN_SCALAR_INT4, group, source->inputs));
    for (size_t first = 0; first < source->inputs; first += BLOCK) {
        load_block(source, first, block);
        for (size_t m = 0; m < BLOCK && first + m < source->inputs; m += group) {
            for (size_t lane = 0; lane < QN_PANEL_ROWS; lane += PACK_WIDTH)
                pack_lanes(block + m, group, lane, out, *scales);
            scales++;
            out += group / 8;
        }
    }
}

/* ---- a panel ---- */

void PACK(qn_weight_pack_panel)(qn_scalar_t scalar, uint32_t group, size_t count, size_t inputs, const float *rows,
                                void *panel)
{
    source_t source = {.rows = rows, .count = count, .inputs = inputs};
    size_t bytes = qn_panel_bytes(scalar, group, inputs), last = bytes < 64 ? bytes : 64;
    memset((uint8_t *)panel + bytes - last, 0, last); /* what the rounding up to 64 adds */
    switch (scalar) {
    case QN_SCALAR_F32: pack_f32(&source, panel); return;
    case QN_SCALAR_BF16: pack_bf16(&source, panel); return;
    case QN_SCALAR_INT8: pack_int8(&source, panel); return;
    case QN_SCALAR_INT4: pack_int4(&source, group, panel); return;
    }
}

/* ---- widening ---- */

void PACK(qn_widen_bf16)(const void *source, size_t count, float *ret_values)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t narrow;
        memcpy(&narrow, (const uint8_t *)source + 2 * i, sizeof narrow);
        ret_values[i] = float_of((uint32_t)narrow << 16);
    }
}

/* The exponent moves from a bias of 15 to one of 127; that of infinities and NaN moves as far again. A subnormal gets
 * the exponent of the smallest normal number, and has that number subtracted. */
void PACK(qn_widen_f16)(const void *source, size_t count, float *ret_values)
{
    const uint32_t least = 113u << 23;
    for (size_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, (const uint8_t *)source + 2 * i, sizeof half);
        uint32_t magnitude = (half & 0x7fffu) << 13, exponent = half & 0x7c00u;
        uint32_t normal = magnitude + (112u << 23) + (exponent == 0x7c00u ? 112u << 23 : 0);
        uint32_t subnormal = bits_of(float_of(magnitude + least) - float_of(least));
        uint32_t bits = exponent ? normal : subnormal;
        ret_values[i] = float_of(bits | (uint32_t)(half & 0x8000u) << 16);
    }
}
