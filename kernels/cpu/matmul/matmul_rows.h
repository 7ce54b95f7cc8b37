/* The product of weights in rows, as a checkpoint holds them, written once for AVX2 and AVX-512; included after a
 * vector header.
 *
 * Each output (t, o) has one accumulator vector: lane j adds the products m = j, j + LANES, ... in ascending order, and
 * vec_sum_each adds the lanes in one fixed order. A tile is LANES accumulators, outputs x tokens: LANES x 1 streams the
 * weights once for a decode step, 4 x LANES/4 reads each weight once for several tokens. Whichever tile computes an
 * output, its additions are the same, so batch and chunking cannot change a bit. */
#ifndef QN_KERNELS_CPU_MATMUL_MATMUL_ROWS_H
#define QN_KERNELS_CPU_MATMUL_MATMUL_ROWS_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vector/vector_load.h"

#define ROW_TOKENS 64 /* tokens of one work item: their x stays in the second-level cache */

typedef struct {
    const qn_matmul_t *a;
    const qn_matmul_part_t *part;
    size_t first_output, first_token;
} row_tile_t;

/* A decode step reads every weight once, LANES rows side by side: a pattern that hardware does not foresee. The next
 * LANES rows follow in memory; each turn of the loop asks for its share of them, in the order of their addresses. */
VEC_INLINE void prefetch_rows(const char *row, size_t m, size_t inputs, qn_scalar_t scalar)
{
    const char *next = row + (inputs + m) * VEC_LANES * qn_scalar_bytes(scalar);
    for (size_t line = 0; line < VEC_LANES * VEC_LANES * qn_scalar_bytes(scalar); line += 64)
        __builtin_prefetch(next + line);
}

/* Lane t * outputs + o is the sum of output o and token t. Rows beyond the last repeat the last; nobody keeps them. */
VEC_INLINE vec_t row_sums(const row_tile_t *tile, qn_scalar_t scalar, const uint32_t outputs, const uint32_t tokens)
{
    uint32_t inputs = tile->a->inputs;
    const char *rows[VEC_LANES];
    const float *x = (const float *)tile->a->x + tile->first_token * inputs;
    size_t last = tile->part->outputs - 1;
    for (uint32_t o = 0; o < outputs; o++) {
        size_t row = tile->first_output + o < last ? tile->first_output + o : last;
        rows[o] = (const char *)tile->part->weight.data + row * inputs * qn_scalar_bytes(scalar);
    }
    vec_t sums[VEC_LANES];
    for (uint32_t i = 0; i < VEC_LANES; i++)
        sums[i] = vec_zero();
    uint32_t m = 0;
    for (; m + VEC_LANES <= inputs; m += VEC_LANES) {
        if (tokens == 1) prefetch_rows(rows[0], m, inputs, scalar);
        vec_t weights[VEC_LANES];
        for (uint32_t o = 0; o < outputs; o++)
            weights[o] = vec_load_as(scalar, rows[o], m);
        for (uint32_t t = 0; t < tokens; t++) {
            vec_t value = vec_load(x + (size_t)t * inputs + m);
            for (uint32_t o = 0; o < outputs; o++)
                sums[t * outputs + o] = vec_fma(weights[o], value, sums[t * outputs + o]);
        }
    }
    for (uint32_t o = 0; m < inputs && o < outputs; o++) {
        vec_t weight = vec_load_some_as(scalar, rows[o], m, inputs - m);
        for (uint32_t t = 0; t < tokens; t++)
            sums[t * outputs + o] =
                vec_fma(weight, vec_load_some(x + (size_t)t * inputs + m, inputs - m), sums[t * outputs + o]);
    }
    return vec_sum_each(sums);
}

/* Stores LANES outputs of one token, or the `count` that the part still has. */
VEC_INLINE void store_row(const row_tile_t *tile, size_t token, vec_t value, uint32_t count)
{
    const qn_matmul_part_t *part = tile->part;
    size_t at = token * part->outputs + tile->first_output;
    const float *residual = part->residual ? (const float *)part->residual + at : NULL;
    float *out = (float *)part->out + at;
    if (part->bias.data) {
        vec_t bias = part->bias.scalar == QN_SCALAR_F32
                         ? vec_load_some_as(QN_SCALAR_F32, part->bias.data, tile->first_output, count)
                         : vec_load_some_as(QN_SCALAR_BF16, part->bias.data, tile->first_output, count);
        value = vec_add(value, bias);
    }
    if (residual) value = vec_add(value, vec_load_some(residual, count));
    vec_store_some(out, value, count);
}

/* LANES outputs of `count` tokens as tiles of `outputs` x `tokens`; returns how many tokens that covers. */
VEC_INLINE size_t multiply_row_tokens(row_tile_t tile, qn_scalar_t scalar, size_t count, const uint32_t outputs,
                                      const uint32_t tokens)
{
    size_t done = 0, left = tile.part->outputs - tile.first_output;
    for (; done + tokens <= count; done += tokens, tile.first_token += tokens) {
        float block[VEC_LANES][VEC_LANES], lanes[VEC_LANES];
        for (uint32_t o = 0; o < VEC_LANES; o += outputs) {
            row_tile_t part = tile;
            part.first_output += o;
            vec_store(lanes, row_sums(&part, scalar, outputs, tokens));
            for (uint32_t t = 0; t < tokens; t++)
                memcpy(&block[t][o], &lanes[t * outputs], outputs * sizeof *lanes);
        }
        for (uint32_t t = 0; t < tokens; t++)
            store_row(&tile, tile.first_token + t, vec_load(block[t]), left < VEC_LANES ? (uint32_t)left : VEC_LANES);
    }
    return done;
}

VEC_INLINE void multiply_row_tile(row_tile_t tile, qn_scalar_t scalar, size_t count)
{
    size_t done = multiply_row_tokens(tile, scalar, count, 4, VEC_LANES / 4);
    tile.first_token += done;
    multiply_row_tokens(tile, scalar, count - done, VEC_LANES, 1);
}

static size_t row_tiles(const qn_matmul_part_t *part) { return (part->outputs + VEC_LANES - 1) / VEC_LANES; }

/* Item: block of tokens x tile of LANES outputs, tiles of all parts one after the other. */
static void multiply_row_item(const qn_matmul_t *a, size_t tiles, size_t item)
{
    size_t index = item % tiles, first_token = item / tiles * ROW_TOKENS;
    const qn_matmul_part_t *part = a->parts;
    while (index >= row_tiles(part))
        index -= row_tiles(part++);
    size_t count = a->tokens - first_token < ROW_TOKENS ? a->tokens - first_token : ROW_TOKENS;
    row_tile_t tile = {.a = a, .part = part, .first_output = index * VEC_LANES, .first_token = first_token};
    if (part->weight.scalar == QN_SCALAR_F32)
        multiply_row_tile(tile, QN_SCALAR_F32, count);
    else
        multiply_row_tile(tile, QN_SCALAR_BF16, count);
}

static size_t all_row_tiles(const qn_matmul_t *a)
{
    size_t tiles = 0;
    for (uint32_t p = 0; p < a->part_count; p++)
        tiles += row_tiles(&a->parts[p]);
    return tiles;
}

static void row_items(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    size_t tiles = all_row_tiles(arguments);
    for (size_t item = begin; item < end; item++)
        multiply_row_item(arguments, tiles, item);
}

/* All parts are rows. */
static void multiply_rows(qn_stream_t *stream, const qn_matmul_t *a)
{
    size_t blocks = ((size_t)a->tokens + ROW_TOKENS - 1) / ROW_TOKENS;
    size_t cost = (size_t)(a->tokens < ROW_TOKENS ? a->tokens : ROW_TOKENS) * a->inputs;
    qn_cpu_split(stream, blocks * all_row_tiles(a), qn_grain(cost), row_items, a);
}

#endif
