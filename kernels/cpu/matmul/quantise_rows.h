/* Activations as signed bytes: the other operand of an integer product. For files in kernels/cpu/ only.
 *
 * Each token's inputs are cut into groups of G, each with a scale s. Beside it lies what the sum of a product of the
 * group begins with, for weights are the unsigned operand of vpdpbusd and their bytes u no whole numbers w.
 *
 *   int4   G is the weights' group, s = max|x| / 127, q = round(x / s), so that x differs from s q by at most s / 2.
 *          w = u - 8, start = -8 sum(q): then start + sum(u q) = sum(w q), exactly.
 *   int8   G = 128. The bytes span the group from its least to its greatest value, zero included:
 *          s = (max - min) / 254.9, z = 128 + round(min / s), q = round(x / s) - z, and x differs from s (q + z) by at
 *          most s / 2. (A little less than 255, so that both ends rounded apart are 255 still.) start is two numbers of
 *          16 bits, z and above it sum(q), which the product multiplies with sums of its weights.
 *
 * One great activation coarsens the steps of its group, but mostly to one side: with z they are about half as long, and
 * groups may be longer, each of which costs the product a step in floats.
 *
 * A group of zeros, or of numbers below 1e-30, has scale 0; an infinity or NaN makes the scale one, so that it comes
 * out at the end as it would in floats.
 *
 * Tokens are laid out in blocks of at most QN_QUANTISE_TOKENS, as even as they can be, for a tile of the product takes
 * one block: some of them one token more than the others. With f its first token and n its tokens block b has
 *
 *   values + f * groups * G   [groups][n][G] bytes
 *   scales + f * groups       [groups][n] f32
 *   starts + f * groups       [groups][n]
 *
 * so that a tile reads all three from front to back. Inputs beyond M have q = 0. (LLM.int8, Dettmers et al. 2022, has
 * one scale a row; groups keep one great activation from coarsening the rest.) */
#ifndef QN_KERNELS_CPU_MATMUL_QUANTISE_ROWS_H
#define QN_KERNELS_CPU_MATMUL_QUANTISE_ROWS_H

#include "kernels/kernels.h"

#define QN_QUANTISE_TOKENS 12
#define QN_QUANTISE_INT8 128 /* G for int8 weights */

typedef struct {
    int8_t *values;
    float *scales;
    int32_t *starts;
    uint32_t tokens, inputs;
    uint32_t group;  /* G: 32 or 64 for int4 weights, QN_QUANTISE_INT8 for int8 */
    uint32_t groups; /* ceil(M / G) */
    uint32_t blocks;
    uint32_t block_tokens, longer; /* the first `longer` blocks have block_tokens + 1 */
} qn_quantised_t;

/* Lays an empty one out in `scratch`, which the result borrows: qn_matmul_scratch_bytes(tokens, inputs) are enough. */
qn_quantised_t qn_quantised_plan(uint32_t tokens, uint32_t inputs, uint32_t group, void *scratch);

/* First token of a block; for `blocks`, the number of tokens. */
static inline uint32_t qn_quantised_first(const qn_quantised_t *rows, uint32_t block)
{
    return block * rows->block_tokens + (block < rows->longer ? block : rows->longer);
}

/* Fills in one token from its row x[0 .. M). Different tokens may be filled in by different threads. */
void qn_quantise_row_avx512(const qn_quantised_t *rows, uint32_t token, const float *x);

#endif
