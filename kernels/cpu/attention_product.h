/* The two products of attention over one block of positions, queries x keys and weights x values, for a few rows or
 * many. Included by attention_tile.h.
 *
 * Every element of either result is one chain of multiply-adds, over D or over the positions, in ascending order: both
 * ways below give the same bits. Many rows pay for keys transposed and values widened into the first-level cache, where
 * a product of ROWS x VECTORS registers reads them; with few rows, as in decode, the transposed registers are used at
 * once and nothing is written. */
#ifndef QN_KERNELS_CPU_ATTENTION_PRODUCT_H
#define QN_KERNELS_CPU_ATTENTION_PRODUCT_H

#include "kernels/cpu/attention.h"
#include "kernels/cpu/vector_functions.h"
#include "kernels/cpu/vector_load.h"

#define BLOCK 64  /* positions */
#define ROWS 6    /* rows and vectors of a product kept in registers */
#define VECTORS (VEC_LANES / 4)
#define STEPS 8   /* of a product between two requests for what comes next */

/* A block of positions for one kv head: keys of each, those of positions [begin, end) its own. Values lie value_offset
 * bytes after the keys. The rows of `next`, at `next_offset`, will be read after these: they are asked for between the
 * arithmetic, since hardware does not foresee rows that are far apart and a core can wait for a dozen lines only. */
typedef struct {
    const qn_kv_t *kv;
    const char *const *rows;  /* [BLOCK] */
    uint32_t begin, end;
    const char *const *next;  /* [BLOCK] or NULL */
    size_t next_offset;
} block_t;

/* c[r, n] (+)= sum over k of a[r, k] b[k, n] */
typedef struct {
    const float *a, *b;
    float *c;
    size_t a_stride, b_stride, c_stride;
    uint32_t rows, columns, count;  /* columns: a multiple of VEC_LANES; count: of k */
    bool add;                       /* to what c holds */
} product_t;

/* From a row of K to the same position's of V, in bytes. */
static size_t value_offset(const qn_kv_t *kv)
{
    return (size_t)kv->blocks * kv->block_tokens * kv->kv_heads * kv->head_dim * qn_scalar_bytes(kv->scalar);
}

/* ---- many rows: the product ---- */

typedef struct {
    const char *const *rows;
    size_t offset;
    uint32_t row, bytes, count;  /* next row to ask for; bytes of each; rows per STEPS */
} hints_t;

VEC_INLINE void hint_rows(hints_t *hints)
{
    uint32_t end = hints->row + hints->count < BLOCK ? hints->row + hints->count : BLOCK;
    for (; hints->row < end; hints->row++)
        for (uint32_t at = 0; at < hints->bytes; at += 64)
            __builtin_prefetch(hints->rows[hints->row] + hints->offset + at);
}

VEC_INLINE void multiply_tile(const product_t *p, hints_t *hints, const uint32_t rows, const uint32_t vectors)
{
    vec_t sums[ROWS][VECTORS];
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t v = 0; v < vectors; v++)
            sums[r][v] = p->add ? vec_load(p->c + r * p->c_stride + v * VEC_LANES) : vec_zero();
    const float *b = p->b;
    for (uint32_t k = 0; k < p->count; k++, b += p->b_stride) {
        if (k % STEPS == 0 && hints->count) hint_rows(hints);
        vec_t column[VECTORS];
        for (uint32_t v = 0; v < vectors; v++) column[v] = vec_load(b + v * VEC_LANES);
        for (uint32_t r = 0; r < rows; r++) {
            vec_t factor = vec_set(p->a[r * p->a_stride + k]);
            for (uint32_t v = 0; v < vectors; v++) sums[r][v] = vec_fma(factor, column[v], sums[r][v]);
        }
    }
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t v = 0; v < vectors; v++) vec_store(p->c + r * p->c_stride + v * VEC_LANES, sums[r][v]);
}

VEC_INLINE void multiply_columns(product_t p, hints_t *hints, const uint32_t rows)
{
    uint32_t left = p.columns / VEC_LANES;
    for (; left >= VECTORS; left -= VECTORS, p.b += VECTORS * VEC_LANES, p.c += VECTORS * VEC_LANES)
        multiply_tile(&p, hints, rows, VECTORS);
    for (; left; left--, p.b += VEC_LANES, p.c += VEC_LANES) multiply_tile(&p, hints, rows, 1);
}

static void multiply_1(const product_t *p, hints_t *hints) { multiply_columns(*p, hints, 1); }
static void multiply_2(const product_t *p, hints_t *hints) { multiply_columns(*p, hints, 2); }
static void multiply_3(const product_t *p, hints_t *hints) { multiply_columns(*p, hints, 3); }
static void multiply_4(const product_t *p, hints_t *hints) { multiply_columns(*p, hints, 4); }
static void multiply_5(const product_t *p, hints_t *hints) { multiply_columns(*p, hints, 5); }
static void multiply_6(const product_t *p, hints_t *hints) { multiply_columns(*p, hints, 6); }
static void (*const MULTIPLY[ROWS])(const product_t *, hints_t *) = { multiply_1, multiply_2, multiply_3,
                                                                      multiply_4, multiply_5, multiply_6 };

/* Shares the rows evenly: 7 are 4 and 3. */
static void multiply(product_t p, const block_t *block)
{
    uint32_t groups = (p.rows + ROWS - 1) / ROWS, columns = (p.columns / VEC_LANES + VECTORS - 1) / VECTORS;
    uint32_t turns = groups * columns * ((p.count + STEPS - 1) / STEPS);
    hints_t hints = { .rows = block->next, .offset = block->next_offset,
                      .bytes = block->kv->head_dim * qn_scalar_bytes(block->kv->scalar),
                      .count = block->next ? (BLOCK + turns - 1) / turns : 0 };
    for (uint32_t left = p.rows; groups; groups--) {
        p.rows = (left + groups - 1) / groups;
        MULTIPLY[p.rows - 1](&p, &hints);
        p.a += p.rows * p.a_stride;
        p.c += p.rows * p.c_stride;
        left -= p.rows;
    }
}

/* ---- transposed keys, widened values ---- */

/* 16 bytes of VEC_LANES rows: lane 4g + i of quads[e] is 32-bit word e of row 4g + i. `bytes` may be below 16 at the
 * end of a row: the rest is zeros. */
VEC_INLINE void load_transposed(const char *const *rows, size_t at, uint32_t bytes, vec_t quads[4])
{
    char copies[VEC_LANES][16];
    const char *pointers[VEC_LANES];
    if (bytes < 16) {
        for (uint32_t i = 0; i < VEC_LANES; i++) {
            memset(copies[i], 0, 16);
            memcpy(copies[i], rows[i] + at, bytes);
            pointers[i] = copies[i];
        }
        rows = pointers;
        at = 0;
    }
    for (uint32_t i = 0; i < 4; i++) quads[i] = vec_gather_quads(rows + i, at);
    vec_t low01 = vec_unpack_low(quads[0], quads[1]), high01 = vec_unpack_high(quads[0], quads[1]);
    vec_t low23 = vec_unpack_low(quads[2], quads[3]), high23 = vec_unpack_high(quads[2], quads[3]);
    quads[0] = vec_unpack_low_pairs(low01, low23);
    quads[1] = vec_unpack_high_pairs(low01, low23);
    quads[2] = vec_unpack_low_pairs(high01, high23);
    quads[3] = vec_unpack_high_pairs(high01, high23);
}

/* As elements, 4 of f32 or 8 of bf16. */
VEC_INLINE void load_keys(qn_scalar_t scalar, const char *const *rows, size_t at, uint32_t bytes, vec_t keys[8])
{
    vec_t quads[4];
    load_transposed(rows, at, bytes, quads);
    for (uint32_t e = 0; e < 4; e++) {
        if (scalar == QN_SCALAR_F32) {
            keys[e] = quads[e];
            continue;
        }
        keys[2 * e] = vec_even_bf16(quads[e]);
        keys[2 * e + 1] = vec_odd_bf16(quads[e]);
    }
}

/* keys[d, i] of VEC_LANES positions; D rounded up to 16 bytes, with zeros. */
VEC_INLINE void pack_lanes(const qn_kv_t *kv, qn_scalar_t scalar, const char *const *rows, float *keys)
{
    uint32_t width = scalar == QN_SCALAR_F32 ? 4 : 2, bytes = kv->head_dim * width;
    for (uint32_t at = 0; at < bytes; at += 16) {
        vec_t elements[8];
        load_keys(scalar, rows, at, bytes - at, elements);
        for (uint32_t e = 0; e < 16 / width; e++, keys += BLOCK) vec_store(keys, elements[e]);
    }
}

static void pack_keys(const block_t *block, float *keys)
{
    for (uint32_t i = 0; i < block->end; i += VEC_LANES) {
        if (block->kv->scalar == QN_SCALAR_F32) pack_lanes(block->kv, QN_SCALAR_F32, block->rows + i, keys + i);
        else pack_lanes(block->kv, QN_SCALAR_BF16, block->rows + i, keys + i);
    }
}

VEC_INLINE void widen_rows(const block_t *block, qn_scalar_t scalar, uint32_t padded, float *values)
{
    uint32_t dim = block->kv->head_dim, whole = dim / VEC_LANES * VEC_LANES;
    size_t offset = value_offset(block->kv);
    for (uint32_t i = block->begin; i < block->end; i++, values += padded) {
        const char *row = block->rows[i] + offset;
        for (uint32_t d = 0; d < whole; d += VEC_LANES) vec_store(values + d, vec_load_as(scalar, row, d));
        if (whole < dim) vec_store(values + whole, vec_load_some_as(scalar, row, whole, dim - whole));
    }
}

/* ---- few rows: straight from the cache ---- */

/* Their sums share the registers with the transposition. */
#define DIRECT_ROWS (VEC_LANES == 16 ? 6 : 2)

/* Scores of `groups` x VEC_LANES positions. */
VEC_INLINE void score_groups(const product_t *p, const block_t *block, qn_scalar_t scalar, uint32_t first,
                             const uint32_t rows, const uint32_t groups)
{
    uint32_t width = scalar == QN_SCALAR_F32 ? 4 : 2, bytes = block->kv->head_dim * width;
    const char *const *next = block->next ? block->next : block->rows;
    vec_t sums[ROWS][4];
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t g = 0; g < groups; g++) sums[r][g] = vec_zero();
    for (uint32_t at = 0; at < bytes; at += 16) {
        for (uint32_t g = 0; g < groups; g++) {
            uint32_t position = first + g * VEC_LANES;
            vec_t keys[8];
            load_keys(scalar, block->rows + position, at, bytes - at, keys);
            for (uint32_t i = 0; i < VEC_LANES / 4; i++)  /* the next line of a quarter of the rows */
                __builtin_prefetch(next[position + at / 16 % 4 * (VEC_LANES / 4) + i] + block->next_offset + at);
            for (uint32_t e = 0; e < 16 / width; e++)
                for (uint32_t r = 0; r < rows; r++)
                    sums[r][g] = vec_fma(vec_set(p->a[r * p->a_stride + at / width + e]), keys[e], sums[r][g]);
        }
    }
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t g = 0; g < groups; g++) vec_store(p->c + r * p->c_stride + first + g * VEC_LANES, sums[r][g]);
}

VEC_INLINE void score_direct(const product_t *p, const block_t *block, qn_scalar_t scalar, const uint32_t rows)
{
    const uint32_t groups = rows <= 2 ? 4 : 2;
    uint32_t i = 0;
    for (; i + groups * VEC_LANES <= p->columns; i += groups * VEC_LANES)
        score_groups(p, block, scalar, i, rows, groups);
    for (; i < p->columns; i += VEC_LANES) score_groups(p, block, scalar, i, rows, 1);
}

/* c += weights x values for `vectors` of D from `at`; `lanes` of the last one (of one, when short). */
VEC_INLINE void add_columns(const product_t *p, const block_t *block, qn_scalar_t scalar, uint32_t at,
                            const uint32_t rows, const uint32_t vectors, uint32_t lanes)
{
    uint32_t width = scalar == QN_SCALAR_F32 ? 4 : 2;
    size_t offset = value_offset(block->kv);
    const char *const *next = block->next ? block->next : block->rows;
    vec_t sums[ROWS][VECTORS];
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t v = 0; v < vectors; v++)
            sums[r][v] = p->add ? vec_load(p->c + r * p->c_stride + at + v * VEC_LANES) : vec_zero();
    for (uint32_t k = 0; k < p->count; k++) {
        const char *row = block->rows[block->begin + k] + offset;
        for (uint32_t line = 0; line < vectors * VEC_LANES * width; line += 64)
            __builtin_prefetch(next[block->begin + k] + block->next_offset + at * width + line);
        vec_t column[VECTORS];
        for (uint32_t v = 0; v < vectors; v++)
            column[v] = lanes == VEC_LANES ? vec_load_as(scalar, row, at + v * VEC_LANES)
                                           : vec_load_some_as(scalar, row, at, lanes);
        for (uint32_t r = 0; r < rows; r++) {
            vec_t weight = vec_set(p->a[r * p->a_stride + k]);
            for (uint32_t v = 0; v < vectors; v++) sums[r][v] = vec_fma(weight, column[v], sums[r][v]);
        }
    }
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t v = 0; v < vectors; v++) vec_store(p->c + r * p->c_stride + at + v * VEC_LANES, sums[r][v]);
}

VEC_INLINE void add_direct(const product_t *p, const block_t *block, qn_scalar_t scalar, const uint32_t rows)
{
    uint32_t dim = block->kv->head_dim, d = 0;
    for (; d + VECTORS * VEC_LANES <= dim; d += VECTORS * VEC_LANES)
        add_columns(p, block, scalar, d, rows, VECTORS, VEC_LANES);
    for (; d < dim; d += VEC_LANES)
        add_columns(p, block, scalar, d, rows, 1, dim - d < VEC_LANES ? dim - d : VEC_LANES);
}

typedef void (*direct_t)(const product_t *p, const block_t *block);

#define DIRECT(verb, rows) \
    static void verb##_f32_##rows(const product_t *p, const block_t *block) \
    { verb##_direct(p, block, QN_SCALAR_F32, rows); } \
    static void verb##_bf16_##rows(const product_t *p, const block_t *block) \
    { verb##_direct(p, block, QN_SCALAR_BF16, rows); }

DIRECT(score, 1) DIRECT(score, 2) DIRECT(add, 1) DIRECT(add, 2)
#if VEC_LANES == 16
DIRECT(score, 3) DIRECT(score, 4) DIRECT(score, 5) DIRECT(score, 6)
DIRECT(add, 3) DIRECT(add, 4) DIRECT(add, 5) DIRECT(add, 6)
#define DIRECT_TABLE(verb, scalar) { verb##_##scalar##_1, verb##_##scalar##_2, verb##_##scalar##_3, \
                                     verb##_##scalar##_4, verb##_##scalar##_5, verb##_##scalar##_6 }
#else
#define DIRECT_TABLE(verb, scalar) { verb##_##scalar##_1, verb##_##scalar##_2 }
#endif
static const direct_t SCORE[2][DIRECT_ROWS] = { DIRECT_TABLE(score, f32), DIRECT_TABLE(score, bf16) };
static const direct_t ADD[2][DIRECT_ROWS] = { DIRECT_TABLE(add, f32), DIRECT_TABLE(add, bf16) };

/* ---- either way ---- */

/* scores[r, i] = q[r] . key i for the block's positions, rounded up to whole vectors; others than its own get any
 * value. q: [rows, padded]. keys: scratch of [D + 8, BLOCK]. */
static void score_block(const block_t *block, const float *q, uint32_t padded, uint32_t rows, float *keys,
                        float *scores, size_t stride)
{
    product_t p = { .a = q, .a_stride = padded, .b = keys, .b_stride = BLOCK, .c = scores, .c_stride = stride,
                    .rows = rows, .columns = (block->end + VEC_LANES - 1) / VEC_LANES * VEC_LANES,
                    .count = block->kv->head_dim };
    if (rows <= DIRECT_ROWS) {
        SCORE[block->kv->scalar == QN_SCALAR_BF16][rows - 1](&p, block);
        return;
    }
    pack_keys(block, keys);
    multiply(p, block);
}

/* sums[r] (+)= weights[r, i] value i over the block's own positions. sums: [rows, padded]; what lies beyond D is any
 * value. values: scratch of [BLOCK, padded]. */
static void add_block(const block_t *block, const float *weights, size_t stride, uint32_t padded, uint32_t rows,
                      float *values, bool add, float *sums)
{
    product_t p = { .a = weights + block->begin, .a_stride = stride, .b = values, .b_stride = padded, .c = sums,
                    .c_stride = padded, .rows = rows, .columns = padded, .count = block->end - block->begin,
                    .add = add };
    if (rows <= DIRECT_ROWS) {
        ADD[block->kv->scalar == QN_SCALAR_BF16][rows - 1](&p, block);
        return;
    }
    if (block->kv->scalar == QN_SCALAR_F32) widen_rows(block, QN_SCALAR_F32, padded, values);
    else widen_rows(block, QN_SCALAR_BF16, padded, values);
    multiply(p, block);
}

#endif
