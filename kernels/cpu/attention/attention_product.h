/* The two products of attention over one block of positions, queries x keys and weights x values, for a few rows or
 * many. Included by attention_tile.h.
 *
 * Every element of either result is one chain of multiply-adds, over D or over the positions, in ascending order: both
 * ways below give the same bits. Many rows pay for keys transposed and values widened into the first-level cache, where
 * a product of ROWS x VECTORS registers reads them; with few rows, as in decode, the transposed registers are used at
 * once and nothing is written. */
#ifndef QN_KERNELS_CPU_ATTENTION_ATTENTION_PRODUCT_H
#define QN_KERNELS_CPU_ATTENTION_ATTENTION_PRODUCT_H

#include "kernels/cpu/attention/attention.h"
#include "kernels/cpu/vector/vector_functions.h"
#include "kernels/cpu/vector/vector_load.h"

#define BLOCK 64 /* positions */
#define ROWS 6   /* rows and vectors of a product kept in registers */
#define VECTORS (VEC_LANES / 4)
#define STEPS 8                 /* of a product between two requests for what will be read later */
#define SCORE_STRIDE (256 + 16) /* floats of a row of scores: not a power of two, or rows would meet in cache sets */

/* SHAPED functions are compiled once per shape, and the loops over their sums disappear, so that these stay in
 * registers. A checked build has them once: it is slow anyway, and should be built soon. */
#ifdef QN_CHECKED
#define SHAPED static __attribute__((noinline, unused))
#define UNROLL
#elif defined __clang__
#define SHAPED VEC_INLINE
#define UNROLL _Pragma("unroll")
#else
#define SHAPED VEC_INLINE
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Positions [first, last) of K (0) or V (1), all kv heads. */
typedef struct {
    const uint32_t *table;
    uint32_t which, first, last;
} region_t;

/* Runs one block ahead of what is read, line by line in the order of addresses, so that a block is in the second-level
 * cache when its heads are read one after the other: hardware does not foresee the rows of one head, and a core can
 * wait for about a dozen lines only. */
typedef struct {
    const char *at, *end; /* what is left of the current piece */
    const qn_kv_t *kv;
    uint32_t layer, rate; /* rate: lines asked for per line read; 0 = off */
    region_t regions[3];  /* what is left, in order; the current one shrinks */
    uint32_t region;
} foresight_t;

static __attribute__((noinline)) bool foresee_piece(foresight_t *f)
{
    while (f->region < 3 && f->regions[f->region].first >= f->regions[f->region].last)
        f->region++;
    if (f->region == 3) return false;
    region_t *r = &f->regions[f->region];
    uint32_t offset = r->first % f->kv->block_tokens, count = f->kv->block_tokens - offset;
    if (count > r->last - r->first) count = r->last - r->first;
    size_t width = qn_scalar_bytes(f->kv->scalar);
    size_t at = qn_kv_offset(f->kv, f->layer, r->which, r->table[r->first / f->kv->block_tokens], offset);
    f->at = (const char *)f->kv->data + at * width;
    f->end = f->at + (size_t)count * f->kv->kv_heads * f->kv->head_dim * width;
    r->first += count;
    return true;
}

/* To go with `count` lines read. */
VEC_INLINE void foresee(foresight_t *f, uint32_t count)
{
    for (count *= f->rate; count; count--, f->at += 64) {
        if (f->at >= f->end && !foresee_piece(f)) {
            f->rate = 0;
            return;
        }
        __builtin_prefetch(f->at);
    }
}

/* A block of positions for one kv head, which lies `head` bytes into each row. Positions [begin, end) are its own.
 * Values lie value_offset bytes after the keys. */
typedef struct {
    const qn_kv_t *kv;
    const char *const *rows; /* [BLOCK]: keys */
    size_t head;
    uint32_t begin, end;
    foresight_t *foresight; /* moved on by as much as is read here */
} block_t;

/* c[r, n] (+)= sum over k of a[r, k] b[k, n] */
typedef struct {
    const float *a, *b;
    float *c;
    size_t a_stride, b_stride, c_stride;
    uint32_t rows, columns, count; /* columns: a multiple of VEC_LANES; count: of k */
    bool add;                      /* to what c holds */
    uint32_t lines;                /* to foresee per STEPS of k */
} product_t;

/* From a row of K to the same position's of V, in bytes. */
static size_t value_offset(const qn_kv_t *kv)
{
    return (size_t)kv->blocks * kv->block_tokens * kv->kv_heads * kv->head_dim * qn_scalar_bytes(kv->scalar);
}

/* ---- many rows: the product ---- */

SHAPED void multiply_tile(const product_t *p, foresight_t *foresight, const uint32_t rows, const uint32_t vectors)
{
    vec_t sums[ROWS][VECTORS];
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t v = 0; v < vectors; v++)
            sums[r][v] = p->add ? vec_load(p->c + r * p->c_stride + v * VEC_LANES) : vec_zero();
    const float *b = p->b;
    for (uint32_t k = 0; k < p->count; k++, b += p->b_stride) {
        if (k % STEPS == 0) foresee(foresight, p->lines);
        vec_t column[VECTORS];
        for (uint32_t v = 0; v < vectors; v++)
            column[v] = vec_load(b + v * VEC_LANES);
        for (uint32_t r = 0; r < rows; r++) {
            vec_t factor = vec_set(p->a[r * p->a_stride + k]);
            for (uint32_t v = 0; v < vectors; v++)
                sums[r][v] = vec_fma(factor, column[v], sums[r][v]);
        }
    }
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t v = 0; v < vectors; v++)
            vec_store(p->c + r * p->c_stride + v * VEC_LANES, sums[r][v]);
}

SHAPED void multiply_columns(product_t p, foresight_t *foresight, const uint32_t rows)
{
    uint32_t left = p.columns / VEC_LANES;
    for (; left >= VECTORS; left -= VECTORS, p.b += VECTORS * VEC_LANES, p.c += VECTORS * VEC_LANES)
        multiply_tile(&p, foresight, rows, VECTORS);
    for (; left; left--, p.b += VEC_LANES, p.c += VEC_LANES)
        multiply_tile(&p, foresight, rows, 1);
}

static void multiply_1(const product_t *p, foresight_t *f) { multiply_columns(*p, f, 1); }
static void multiply_2(const product_t *p, foresight_t *f) { multiply_columns(*p, f, 2); }
static void multiply_3(const product_t *p, foresight_t *f) { multiply_columns(*p, f, 3); }
static void multiply_4(const product_t *p, foresight_t *f) { multiply_columns(*p, f, 4); }
static void multiply_5(const product_t *p, foresight_t *f) { multiply_columns(*p, f, 5); }
static void multiply_6(const product_t *p, foresight_t *f) { multiply_columns(*p, f, 6); }
static void (*const MULTIPLY[ROWS])(const product_t *, foresight_t *) = {multiply_1, multiply_2, multiply_3,
                                                                         multiply_4, multiply_5, multiply_6};

/* Shares the rows evenly: 7 are 4 and 3. */
static void multiply(product_t p, const block_t *block)
{
    uint32_t groups = (p.rows + ROWS - 1) / ROWS, columns = (p.columns / VEC_LANES + VECTORS - 1) / VECTORS;
    uint32_t turns = groups * columns * ((p.count + STEPS - 1) / STEPS);
    uint32_t bytes = (block->end - block->begin) * block->kv->head_dim * qn_scalar_bytes(block->kv->scalar);
    p.lines = (bytes / 64 + turns - 1) / turns;
    for (uint32_t left = p.rows; groups; groups--) {
        p.rows = (left + groups - 1) / groups;
        MULTIPLY[p.rows - 1](&p, block->foresight);
        p.a += p.rows * p.a_stride;
        p.c += p.rows * p.c_stride;
        left -= p.rows;
    }
}

/* ---- transposed keys, widened values ---- */

/* VEC_LANES rows of keys at equal distances. */
typedef struct {
    const char *base;
    size_t step;
} lanes_t;

/* Positions [first, first + VEC_LANES) of the block: in place if they lie in one block of the cache and need no padding
 * to 16 bytes, else as copies. */
static __attribute__((noinline)) lanes_t find_lanes(const block_t *block, uint32_t first, char *copies)
{
    const char *const *rows = block->rows + first;
    size_t bytes = block->kv->head_dim * qn_scalar_bytes(block->kv->scalar), step = bytes * block->kv->kv_heads;
    size_t padded = (bytes + 15) / 16 * 16;
    bool even = bytes == padded;
    for (uint32_t i = 1; even && i < VEC_LANES; i++)
        even = rows[i] == rows[0] + i * step;
    if (even) return (lanes_t){rows[0] + block->head, step};
    copies += first * padded;
    for (uint32_t i = 0; i < VEC_LANES; i++) {
        memset(copies + (i + 1) * padded - 16, 0, 16);
        memcpy(copies + i * padded, rows[i] + block->head, bytes);
    }
    return (lanes_t){copies, padded};
}

/* 16 bytes of each row, transposed, as elements: 4 of f32 or 8 of bf16. Lane 4g + i comes from row 4g + i. */
VEC_INLINE void load_keys(qn_scalar_t scalar, lanes_t lanes, size_t at, vec_t keys[8])
{
    vec_t quads[4];
    UNROLL
    for (uint32_t i = 0; i < 4; i++)
        quads[i] = vec_gather_quads(lanes.base + at + i * lanes.step, 4 * lanes.step);
    vec_t low01 = vec_unpack_low(quads[0], quads[1]), high01 = vec_unpack_high(quads[0], quads[1]);
    vec_t low23 = vec_unpack_low(quads[2], quads[3]), high23 = vec_unpack_high(quads[2], quads[3]);
    quads[0] = vec_unpack_low_pairs(low01, low23);
    quads[1] = vec_unpack_high_pairs(low01, low23);
    quads[2] = vec_unpack_low_pairs(high01, high23);
    quads[3] = vec_unpack_high_pairs(high01, high23);
    UNROLL
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
SHAPED void pack_lanes(const qn_kv_t *kv, qn_scalar_t scalar, lanes_t lanes, float *keys)
{
    const uint32_t width = scalar == QN_SCALAR_F32 ? 4 : 2;
    for (uint32_t at = 0; at < kv->head_dim * width; at += 16) {
        vec_t elements[8];
        load_keys(scalar, lanes, at, elements);
        UNROLL
        for (uint32_t e = 0; e < 16 / width; e++, keys += BLOCK)
            vec_store(keys, elements[e]);
    }
}

static void pack_keys(const block_t *block, char *copies, float *keys)
{
    for (uint32_t i = 0; i < block->end; i += VEC_LANES) {
        lanes_t lanes = find_lanes(block, i, copies);
        if (block->kv->scalar == QN_SCALAR_F32)
            pack_lanes(block->kv, QN_SCALAR_F32, lanes, keys + i);
        else
            pack_lanes(block->kv, QN_SCALAR_BF16, lanes, keys + i);
    }
}

SHAPED void widen_rows(const block_t *block, qn_scalar_t scalar, uint32_t padded, float *values)
{
    uint32_t dim = block->kv->head_dim, whole = dim / VEC_LANES * VEC_LANES;
    size_t offset = value_offset(block->kv) + block->head;
    for (uint32_t i = block->begin; i < block->end; i++, values += padded) {
        const char *row = block->rows[i] + offset;
        for (uint32_t d = 0; d < whole; d += VEC_LANES)
            vec_store(values + d, vec_load_as(scalar, row, d));
        if (whole < dim) vec_store(values + whole, vec_load_some_as(scalar, row, whole, dim - whole));
    }
}

/* ---- few rows: straight from the cache ---- */

#define DIRECT_ROWS (VEC_LANES == 16 ? 8 : 2) /* their sums share the registers with the transposition */

typedef struct {
    const block_t *block;
    const float *a; /* q as [D, DIRECT_ROWS], or weights [rows, SCORE_STRIDE] */
    float *c;
    size_t c_stride;
    uint32_t columns; /* of scores */
    bool add;
    char *copies;
} direct_t;

/* Scores of `groups` x VEC_LANES positions. */
SHAPED void score_groups(const direct_t *p, qn_scalar_t scalar, uint32_t first, const uint32_t rows,
                         const uint32_t groups)
{
    const uint32_t width = scalar == QN_SCALAR_F32 ? 4 : 2;
    const block_t *block = p->block;
    const float *q = p->a;
    vec_t sums[DIRECT_ROWS][4];
    lanes_t lanes[4];
    UNROLL
    for (uint32_t g = 0; g < groups; g++) {
        lanes[g] = find_lanes(block, first + g * VEC_LANES, p->copies);
        UNROLL
        for (uint32_t r = 0; r < rows; r++)
            sums[r][g] = vec_zero();
    }
    for (uint32_t at = 0; at < block->kv->head_dim * width; at += 16, q += 16 / width * DIRECT_ROWS) {
        UNROLL
        for (uint32_t g = 0; g < groups; g++) {
            vec_t keys[8];
            load_keys(scalar, lanes[g], at, keys);
            foresee(block->foresight, VEC_LANES / 4); /* 16 bytes of each row */
            UNROLL
            for (uint32_t e = 0; e < 16 / width; e++) {
                UNROLL
                for (uint32_t r = 0; r < rows; r++)
                    sums[r][g] = vec_fma(vec_set(q[e * DIRECT_ROWS + r]), keys[e], sums[r][g]);
            }
        }
    }
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t g = 0; g < groups; g++)
            vec_store(p->c + r * p->c_stride + first + g * VEC_LANES, sums[r][g]);
}

SHAPED void score_direct(const direct_t *p, qn_scalar_t scalar, const uint32_t rows)
{
    const uint32_t groups = rows <= 2 ? 4 : 2;
    uint32_t i = 0;
    for (; i + groups * VEC_LANES <= p->columns; i += groups * VEC_LANES)
        score_groups(p, scalar, i, rows, groups);
    for (; i < p->columns; i += VEC_LANES)
        score_groups(p, scalar, i, rows, 1);
}

/* c (+)= weights x values for `vectors` of D from `at`; `lanes` of the last one (of one, when short). */
SHAPED void add_columns(const direct_t *p, qn_scalar_t scalar, uint32_t at, const uint32_t rows, const uint32_t vectors,
                        uint32_t lanes)
{
    const uint32_t width = scalar == QN_SCALAR_F32 ? 4 : 2;
    const block_t *block = p->block;
    size_t offset = value_offset(block->kv) + block->head;
    vec_t sums[DIRECT_ROWS][VECTORS];
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t v = 0; v < vectors; v++)
            sums[r][v] = p->add ? vec_load(p->c + r * p->c_stride + at + v * VEC_LANES) : vec_zero();
    const float *weights = p->a + block->begin;
    for (uint32_t k = block->begin; k < block->end; k++, weights++) {
        const char *row = block->rows[k] + offset;
        foresee(block->foresight, vectors * VEC_LANES * width / 64);
        vec_t column[VECTORS];
        UNROLL
        for (uint32_t v = 0; v < vectors; v++)
            column[v] = lanes == VEC_LANES ? vec_load_as(scalar, row, at + v * VEC_LANES)
                                           : vec_load_some_as(scalar, row, at, lanes);
        UNROLL
        for (uint32_t r = 0; r < rows; r++) {
            vec_t weight = vec_set(weights[r * SCORE_STRIDE]);
            UNROLL
            for (uint32_t v = 0; v < vectors; v++)
                sums[r][v] = vec_fma(weight, column[v], sums[r][v]);
        }
    }
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t v = 0; v < vectors; v++)
            vec_store(p->c + r * p->c_stride + at + v * VEC_LANES, sums[r][v]);
}

SHAPED void add_direct(const direct_t *p, qn_scalar_t scalar, const uint32_t rows)
{
    const uint32_t vectors = rows <= ROWS ? VECTORS : 2;
    uint32_t dim = p->block->kv->head_dim, d = 0;
    for (; d + vectors * VEC_LANES <= dim; d += vectors * VEC_LANES)
        add_columns(p, scalar, d, rows, vectors, VEC_LANES);
    for (; d < dim; d += VEC_LANES)
        add_columns(p, scalar, d, rows, 1, dim - d < VEC_LANES ? dim - d : VEC_LANES);
}

#define DIRECT(verb, rows)                                                                      \
    static void verb##_f32_##rows(const direct_t *p) { verb##_direct(p, QN_SCALAR_F32, rows); } \
    static void verb##_bf16_##rows(const direct_t *p) { verb##_direct(p, QN_SCALAR_BF16, rows); }

DIRECT(score, 1)
DIRECT(score, 2)
DIRECT(add, 1)
DIRECT(add, 2)
#if VEC_LANES == 16
DIRECT(score, 3)
DIRECT(score, 4)
DIRECT(score, 5)
DIRECT(score, 6)
DIRECT(score, 7)
DIRECT(score, 8)
DIRECT(add, 3)
DIRECT(add, 4)
DIRECT(add, 5)
DIRECT(add, 6)
DIRECT(add, 7)
DIRECT(add, 8)
#define DIRECT_TABLE(verb, scalar)                                                       \
    {verb##_##scalar##_1, verb##_##scalar##_2, verb##_##scalar##_3, verb##_##scalar##_4, \
     verb##_##scalar##_5, verb##_##scalar##_6, verb##_##scalar##_7, verb##_##scalar##_8}
#else
#define DIRECT_TABLE(verb, scalar) {verb##_##scalar##_1, verb##_##scalar##_2}
#endif
static void (*const SCORE[2][DIRECT_ROWS])(const direct_t *) = {DIRECT_TABLE(score, f32), DIRECT_TABLE(score, bf16)};
static void (*const ADD[2][DIRECT_ROWS])(const direct_t *) = {DIRECT_TABLE(add, f32), DIRECT_TABLE(add, bf16)};

/* ---- either way ---- */

/* Where element d of row r of the queries belongs: few rows are read element by element, many row by row. */
static size_t query_at(uint32_t rows, uint32_t padded, uint32_t r, uint32_t d)
{
    return rows <= DIRECT_ROWS ? (size_t)d * DIRECT_ROWS + r : (size_t)r * padded + d;
}

/* scores[r, i] = q[r] . key i for the block's positions, rounded up to whole vectors; others than its own get any
 * value. q: as query_at says. keys: scratch of [D + 8, BLOCK]; copies: of [BLOCK, D rounded up to 16 bytes]. */
static void score_block(const block_t *block, const float *q, uint32_t padded, uint32_t rows, float *keys, char *copies,
                        float *scores)
{
    uint32_t columns = (block->end + VEC_LANES - 1) / VEC_LANES * VEC_LANES;
    if (rows <= DIRECT_ROWS) {
        SCORE[block->kv->scalar == QN_SCALAR_BF16][rows - 1](&(direct_t){
            .block = block, .a = q, .c = scores, .c_stride = SCORE_STRIDE, .columns = columns, .copies = copies});
        return;
    }
    pack_keys(block, copies, keys);
    multiply((product_t){.a = q,
                         .a_stride = padded,
                         .b = keys,
                         .b_stride = BLOCK,
                         .c = scores,
                         .c_stride = SCORE_STRIDE,
                         .rows = rows,
                         .columns = columns,
                         .count = block->kv->head_dim},
             block);
}

/* sums[r] (+)= weights[r, i] value i over the block's own positions. sums: [rows, padded]; what lies beyond D is any
 * value. values: scratch of [BLOCK, padded]. */
static void add_block(const block_t *block, const float *weights, uint32_t padded, uint32_t rows, float *values,
                      bool add, float *sums)
{
    if (rows <= DIRECT_ROWS) {
        ADD[block->kv->scalar == QN_SCALAR_BF16][rows - 1](
            &(direct_t){.block = block, .a = weights, .c = sums, .c_stride = padded, .add = add});
        return;
    }
    if (block->kv->scalar == QN_SCALAR_F32)
        widen_rows(block, QN_SCALAR_F32, padded, values);
    else
        widen_rows(block, QN_SCALAR_BF16, padded, values);
    multiply((product_t){.a = weights + block->begin,
                         .a_stride = SCORE_STRIDE,
                         .b = values,
                         .b_stride = padded,
                         .c = sums,
                         .c_stride = padded,
                         .rows = rows,
                         .columns = padded,
                         .count = block->end - block->begin,
                         .add = add},
             block);
}

#endif
