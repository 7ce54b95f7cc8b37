/* Activations as signed bytes: the other operand of an integer product. For files in kernels/cpu/ only.
 *
 * Each token's inputs are cut into groups of G; a group has the scale s = max|x| / 127 and the bytes
 * q = round(x / s), so that x differs from s q by at most s / 2. A group of zeros, or of numbers below 1e-30, has
 * scale 0; an infinity or NaN makes the scale one, so that it comes out at the end as it would in floats.
 *
 * Weights are the unsigned operand of vpdpbusd: bytes u that stand for w = u - z. Beside the scale of a group lies what
 * its sum begins with, start = -z * sum(q): then start + sum(u q) = sum(w q), exactly, and z costs nothing.
 *
 * Tokens are laid out in blocks of at most QN_QUANTISE_TOKENS, as even as they can be, for a tile of the product takes
 * one block: some of them one token more than the others. With f its first token and n its tokens block b has
 *
 *   values + f * groups * G   [groups][n][G] bytes
 *   scales + f * groups       [groups][n] f32
 *   starts + f * groups       [groups][n]
 *
 * so that a tile reads all three from front to back. Inputs beyond M are zeros. (LLM.int8, Dettmers et al. 2022, has
 * one scale a row; groups keep one great activation from coarsening the rest.) */
#ifndef QN_KERNELS_CPU_QUANTISE_ROWS_H
#define QN_KERNELS_CPU_QUANTISE_ROWS_H

#include "kernels/kernels.h"

#define QN_QUANTISE_TOKENS 12

typedef struct {
    int8_t *values;
    float *scales;
    int32_t *starts;
    uint32_t tokens, inputs;
    uint32_t group;              /* G: 32 or 64 */
    uint32_t groups;             /* ceil(M / G) */
    uint32_t blocks;
    uint32_t block_tokens, longer;  /* the first `longer` blocks have block_tokens + 1 */
    int32_t zero;                /* z */
} qn_quantised_t;

/* Lays an empty one out in `scratch`, which the result borrows: qn_matmul_scratch_bytes(tokens, inputs) are enough. */
qn_quantised_t qn_quantised_plan(uint32_t tokens, uint32_t inputs, uint32_t group, int32_t zero, void *scratch);

/* First token of a block; for `blocks`, the number of tokens. */
static inline uint32_t qn_quantised_first(const qn_quantised_t *rows, uint32_t block)
{
    return block * rows->block_tokens + (block < rows->longer ? block : rows->longer);
}

/* Fills in one token from its row x[0 .. M). Different tokens may be filled in by different threads. */
void qn_quantise_row_avx512(const qn_quantised_t *rows, uint32_t token, const float *x);

#endif
