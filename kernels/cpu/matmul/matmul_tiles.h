/* The two tiles of the panel product: `direct` for a few tokens, which unpacks a weight once because it needs it once,
 * and `block` for many, which reads weights unpacked before.
 *
 * Both give every output one accumulator that starts at zero and adds its products in the order of the inputs; a tile
 * that is interrupted stores its accumulators as the f32 they are. So the bits of an output depend neither on the tile
 * nor on where blocks begin, and AVX2 and AVX-512 agree. */
#ifndef QN_KERNELS_CPU_MATMUL_MATMUL_TILES_H
#define QN_KERNELS_CPU_MATMUL_MATMUL_TILES_H

#include "kernels/cpu/matmul/matmul_pack.h"

/* ---- storing ---- */

/* The outputs of one vector, for `count` tokens from `token` on: out = sum (* int8 scale) (+ bias) (+ residual). */
VEC_INLINE void store_vector(const matrix_t *matrix, size_t token, size_t count, size_t output, const float *sums,
                             size_t stride)
{
    const qn_matmul_part_t *part = matrix->part;
    bool scaled = form_of(&part->weight) == FORM_INT8;
    uint32_t lanes = part->outputs - output < VEC_LANES ? (uint32_t)(part->outputs - output) : VEC_LANES;
    vec_t scale = scaled ? output_scales(matrix, output) : vec_zero(), bias = vec_zero();
    if (part->bias.data && part->bias.scalar == QN_SCALAR_F32)
        bias = vec_load_some_as(QN_SCALAR_F32, part->bias.data, output, lanes);
    else if (part->bias.data)
        bias = vec_load_some_as(QN_SCALAR_BF16, part->bias.data, output, lanes);
    size_t at = token * part->outputs + output;
    for (size_t t = 0; t < count; t++, at += part->outputs, sums += stride) {
        vec_t sum = vec_load(sums);
        if (scaled) sum = vec_mul(sum, scale);
        if (part->bias.data) sum = vec_add(sum, bias);
        if (part->residual) sum = vec_add(sum, vec_load_some((const float *)part->residual + at, lanes));
        vec_store_some((float *)part->out + at, sum, lanes);
    }
}

/* Stores what a tile computed, [token][vector][lane], as `count` tokens from `token` on and the outputs of `vectors`
 * vectors from `output` on, of which those beyond `end` are nobody's. */
static void store_tile(const matrix_t *matrix, size_t token, size_t count, size_t output, size_t end, uint32_t vectors,
                       const float *sums)
{
    for (uint32_t v = 0; v < vectors && output + v * VEC_LANES < end; v++)
        store_vector(matrix, token, count, output + v * VEC_LANES, sums + v * VEC_LANES, vectors * VEC_LANES);
}

/* ---- direct: a few tokens ---- */

/* Vectors of outputs side by side. One accumulator takes a product every 4 cycles at most; four panels make enough
 * chains for one token, and their four streams are few enough for the prefetchers. More tokens bring their own. */
#define DIRECT_PANELS(tokens) (VEC_LANES == 16 ? ((tokens) <= 4 ? 4u : 2u) : (tokens) <= 2 ? 2u : 1u)
#define DIRECT_TOKENS 4 /* as many rows of x are read where they are, without packing */
#define AHEAD_LINES 24  /* software prefetch: 1.5 KiB before the line in use */

/* Where a tile finds the word of (token, step): in a packed block, or in rows of x. */
typedef struct {
    const float *packed;
    size_t width; /* tokens of a packed block */
    const float *rows[DIRECT_TOKENS];
} words_t;

VEC_INLINE vec_t word_at(const words_t *words, const bool packed, uint32_t token, size_t step)
{
    return vec_set(packed ? words->packed[token * BLOCK_STEPS + step] : words->rows[token][step]);
}

/* Adds the products of one line of each vector. */
VEC_INLINE void add_line(const form_t form, const uint32_t vectors, const uint32_t tokens, const bool packed,
                         const char *const *starts, size_t line, const words_t *words, size_t first_step,
                         const vec_t *scales, vec_t *sums)
{
    vec_words_t lines[8];
    UNROLL for (uint32_t v = 0; v < vectors; v++) lines[v] = vec_load_words(starts[v] + line * LINE_BYTES);
    UNROLL for (uint32_t step = 0; step < form_steps(form); step++)
    {
        vec_t weights[8];
        UNROLL for (uint32_t v = 0; v < vectors; v++) weights[v] = form_weight(form, lines[v], step, scales[v]);
        UNROLL for (uint32_t t = 0; t < tokens; t++)
        {
            vec_t word = word_at(words, packed, t, first_step + step);
            UNROLL for (uint32_t v = 0; v < vectors; v++) sums[t * vectors + v] =
                MATMUL_STEP(weights[v], word, sums[t * vectors + v]);
        }
    }
}

/* Asks for the lines that follow AHEAD_LINES later; where a panel ends, for the first of the panels that come next. */
VEC_INLINE void prefetch_lines(const matrix_t *matrix, const uint32_t vectors, const char *const *starts, size_t line)
{
    const uint32_t panels = vectors / PANEL_VECTORS;
    size_t ahead = (line + AHEAD_LINES) * LINE_BYTES;
    if (line + AHEAD_LINES >= matrix->lines) ahead += panels * matrix->panel_bytes - matrix->lines * LINE_BYTES;
    UNROLL for (uint32_t v = 0; v < vectors; v += PANEL_VECTORS) __builtin_prefetch(starts[v] + ahead);
}

/* The sums of `tokens` tokens and the panels from `panel` on. */
VEC_INLINE void direct_sums(const form_t form, const uint32_t vectors, const uint32_t tokens, const bool packed,
                            const matrix_t *matrix, const char *const *starts, const words_t *words, vec_t *sums)
{
    const uint32_t steps = form_steps(form), block_lines = BLOCK_STEPS / steps;
    const size_t whole = packed ? matrix->lines : matrix->inputs / steps;
    words_t block = *words;
    vec_t scales[8];
    UNROLL for (uint32_t v = 0; v < vectors; v++) scales[v] = vec_zero();
    UNROLL for (uint32_t i = 0; i < vectors * tokens; i++) sums[i] = vec_zero();
    /* Runs of lines that share scales (int4) or lie in one packed block. */
    for (size_t line = 0, stop; line < whole; line = stop) {
        size_t run = form == FORM_INT4 ? matrix->group_lines : packed ? block_lines : whole;
        stop = line + run < whole ? line + run : whole;
        if (form == FORM_INT4)
            UNROLL for (uint32_t v = 0; v < vectors; v++) scales[v] = group_scales(matrix, starts[v], v, line);
        if (packed) block.packed = words->packed + line / block_lines * (words->width - 1) * BLOCK_STEPS;
        for (size_t at = line; at < stop; at++) {
            prefetch_lines(matrix, vectors, starts, at);
            add_line(form, vectors, tokens, packed, starts, at, &block, at * steps, scales, sums);
        }
    }
    if (whole == matrix->lines) return;
    /* The last line has more inputs than x. */
    float tail[DIRECT_TOKENS][8] = {0};
    words_t rest = {.packed = NULL};
    for (uint32_t t = 0; t < tokens; t++) {
        memcpy(tail[t], words->rows[t] + whole * steps, (matrix->inputs - whole * steps) * sizeof(float));
        rest.rows[t] = tail[t];
    }
    if (form == FORM_INT4)
        UNROLL for (uint32_t v = 0; v < vectors; v++) scales[v] = group_scales(matrix, starts[v], v, whole);
    add_line(form, vectors, tokens, packed, starts, whole, &rest, 0, scales, sums);
}

/* Panels [begin, end) times `count` <= `tokens` tokens from token `first` on, whose words these are. */
VEC_INLINE void direct_panels(const form_t form, const uint32_t tokens, const bool packed, const matrix_t *matrix,
                              size_t begin, size_t end, const words_t *words, size_t first, size_t count)
{
    const uint32_t vectors = DIRECT_PANELS(tokens) * PANEL_VECTORS;
    size_t last = end * QN_PANEL_ROWS < matrix->part->outputs ? end * QN_PANEL_ROWS : matrix->part->outputs;
    for (size_t panel = begin; panel < end; panel += DIRECT_PANELS(tokens)) {
        const char *starts[8];
        float stored[TILE_VECTORS * TILE_TOKENS * VEC_LANES];
        vec_t sums[TILE_VECTORS * TILE_TOKENS];
        UNROLL for (uint32_t v = 0; v < vectors; v++) starts[v] = matrix_vector(matrix, panel, v);
        direct_sums(form, vectors, tokens, packed, matrix, starts, words, sums);
        UNROLL for (uint32_t i = 0; i < vectors * tokens; i++) vec_store(stored + i * VEC_LANES, sums[i]);
        store_tile(matrix, first, count, panel * QN_PANEL_ROWS, last, vectors, stored);
    }
}

/* ---- block: any number of tokens ---- */

#define TILE_STRIDE 4u /* steps at a time */
/* Every sixth token loads its word with each product: fewer instructions, which a core that is shared with another's
 * work is short of before it is of loads. */
#define LOADS_TWICE(token) (VEC_LANES == 16 && !MATMUL_PAIRS && (token) % 6 == 5)

/* The weights of lines [begin, end) of TILE_VECTORS vectors as [step][vector][lane]. */
VEC_INLINE void unpack_block(const form_t form, const matrix_t *matrix, size_t panel, size_t begin, size_t end,
                             float *to)
{
    const char *starts[TILE_VECTORS];
    vec_t scales[TILE_VECTORS];
    UNROLL for (uint32_t v = 0; v < TILE_VECTORS; v++)
    {
        starts[v] = matrix_vector(matrix, panel, v);
        scales[v] = vec_zero();
    }
    for (size_t line = begin; line < end; line++) {
        UNROLL for (uint32_t v = 0; v < TILE_VECTORS; v++)
        {
            if (form == FORM_INT4 && line % matrix->group_lines == 0)
                scales[v] = group_scales(matrix, starts[v], v, line);
            vec_words_t words = vec_load_words(starts[v] + line * LINE_BYTES);
            UNROLL for (uint32_t step = 0; step < form_steps(form); step++)
                vec_store(to + (step * TILE_VECTORS + v) * VEC_LANES, form_weight(form, words, step, scales[v]));
        }
        to += form_steps(form) * TILE_VECTORS * VEC_LANES;
    }
}

/* Steps [step, step + count) of a tile. The barrier keeps a step's loads in it: gcc would bring those of later steps
 * forward, and put sums into memory for them. */
VEC_INLINE void add_steps(const uint32_t tokens, const uint32_t count, const float *weights, const float *words,
                          size_t step, vec_t (*tile)[TILE_VECTORS])
{
    UNROLL for (uint32_t i = 0; i < count; i++)
    {
        vec_t weight[TILE_VECTORS];
        __asm__ volatile("" ::: "memory");
        UNROLL for (uint32_t v = 0; v < TILE_VECTORS; v++) weight[v] =
            vec_load(weights + ((step + i) * TILE_VECTORS + v) * VEC_LANES);
        UNROLL for (uint32_t t = 0; t < tokens; t++)
        {
            const float *word = words + t * BLOCK_STEPS + step + i;
            UNROLL for (uint32_t v = 0; v < TILE_VECTORS; v++) tile[t][v] =
                LOADS_TWICE(t) ? vec_fma_at(weight[v], word, tile[t][v])
                               : MATMUL_STEP(weight[v], vec_set(*word), tile[t][v]);
        }
    }
}

/* Asks for the words and sums of the tile that follows: a tile begins with many lines at once, and meets each of them
 * only once. */
VEC_INLINE void ask_for_tile(const uint32_t tokens, const float *words, size_t step, const float *sums)
{
    const uint32_t line = LINE_BYTES / sizeof(float);
    UNROLL for (uint32_t i = 0; i < tokens * TILE_STRIDE / line; i++)
        __builtin_prefetch(words + tokens * (BLOCK_STEPS + step) + i * line);
    __builtin_prefetch(sums + tokens * TILE_VECTORS * VEC_LANES + step / TILE_STRIDE * line);
}

/* sums[token][vector] (+)= weights x words over `steps`; `first`: they start at zero. */
VEC_INLINE void add_block(const uint32_t tokens, const float *weights, const float *words, size_t steps, bool first,
                          float *sums)
{
    vec_t tile[TILE_TOKENS][TILE_VECTORS];
    UNROLL for (uint32_t t = 0; t < tokens; t++)
    {
        UNROLL for (uint32_t v = 0; v < TILE_VECTORS; v++) tile[t][v] =
            first ? vec_zero() : vec_load(sums + (t * TILE_VECTORS + v) * VEC_LANES);
    }
    size_t step = 0;
    for (; step + TILE_STRIDE <= steps; step += TILE_STRIDE) {
        ask_for_tile(tokens, words, step, sums);
        add_steps(tokens, TILE_STRIDE, weights, words, step, tile);
    }
    for (; step < steps; step++)
        add_steps(tokens, 1, weights, words, step, tile);
    UNROLL for (uint32_t t = 0; t < tokens; t++)
    {
        UNROLL for (uint32_t v = 0; v < TILE_VECTORS; v++)
            vec_store(sums + (t * TILE_VECTORS + v) * VEC_LANES, tile[t][v]);
    }
}

/* Out of line, so that the three sizes exist once for all formats. */
static void add_tile(uint32_t tokens, const float *weights, const float *words, size_t steps, bool first, float *sums)
{
    switch (tokens / TILE_QUANTUM) {
    case 1: add_block(TILE_QUANTUM, weights, words, steps, first, sums); break;
    case 2: add_block(TILE_QUANTUM * 2, weights, words, steps, first, sums); break;
    default: add_block(TILE_TOKENS, weights, words, steps, first, sums); break;
    }
}

#endif
