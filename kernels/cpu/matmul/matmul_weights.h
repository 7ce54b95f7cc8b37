/* How the panels of weight_layout.h become vectors of weights, for the *_body algorithms; included after a vector
 * header.
 *
 * A panel is read line by line: 64 bytes, sixteen 32-bit words, one word per output. A line holds as many inputs of its
 * sixteen outputs as fit (1 of f32, 2 of bf16, 4 of int8, 8 of int4), so that unpacking is shifts and masks within a
 * word and every lane stays one output. A tile multiplies what it unpacks step by step: a step is one 32-bit word of x,
 * which all lanes share, times one vector of weights. */
#ifndef QN_KERNELS_CPU_MATMUL_MATMUL_WEIGHTS_H
#define QN_KERNELS_CPU_MATMUL_MATMUL_WEIGHTS_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vector/vector_load.h"
#include "kernels/weight_layout.h"

#define LINE_BYTES 64
#define PANEL_VECTORS (QN_PANEL_ROWS / VEC_LANES)

/* gcc counts on this pragma where -O3 alone would keep an array of accumulators in memory. */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

/* The first four widen weights to f32 exactly; a step of FORM_PAIRS is two bf16 inputs multiplied as they are. */
typedef enum { FORM_F32, FORM_BF16, FORM_INT8, FORM_INT4, FORM_PAIRS } form_t;

#ifndef MATMUL_PAIRS
#define MATMUL_PAIRS false
#define MATMUL_STEP(weight, word, sum) vec_fma(weight, word, sum)
#endif

/* Steps of one line. */
VEC_INLINE uint32_t form_steps(form_t form)
{
    switch (form) {
    case FORM_BF16: return 2;
    case FORM_INT8: return 4;
    case FORM_INT4: return 8;
    default: return 1;
    }
}

/* One part's weights. */
typedef struct {
    const qn_matmul_part_t *part;
    const char *panels;
    size_t panel_bytes, panel_count;
    size_t scales;        /* where they begin in a panel */
    uint32_t group_lines; /* int4: lines that share a vector of scales */
    uint32_t lines;       /* of a panel, those that hold inputs */
    uint32_t inputs;
} matrix_t;

static inline form_t form_of(const qn_weight_t *weight)
{
    if (MATMUL_PAIRS) return FORM_PAIRS;
    switch (weight->scalar) {
    case QN_SCALAR_BF16: return FORM_BF16;
    case QN_SCALAR_INT8: return FORM_INT8;
    case QN_SCALAR_INT4: return FORM_INT4;
    default: return FORM_F32;
    }
}

static inline matrix_t matrix_of(const qn_matmul_t *a, const qn_matmul_part_t *part)
{
    const qn_weight_t *weight = &part->weight;
    uint32_t in_line = weight->scalar == QN_SCALAR_F32    ? 1
                       : weight->scalar == QN_SCALAR_BF16 ? 2
                       : weight->scalar == QN_SCALAR_INT8 ? 4
                                                          : 8;
    QN_ASSERT(weight->scalar != QN_SCALAR_INT4 || weight->group == 32 || weight->group == 64);
    return (matrix_t){
        .part = part,
        .panels = weight->data,
        .inputs = a->inputs,
        .panel_bytes = qn_panel_bytes(weight->scalar, weight->group, a->inputs),
        .panel_count = qn_panel_count(part->outputs),
        .scales = weight->scalar == QN_SCALAR_INT8 || weight->scalar == QN_SCALAR_INT4
                      ? qn_panel_scales(weight->scalar, weight->group, a->inputs)
                      : 0,
        .group_lines = weight->group / 8,
        .lines = (a->inputs + in_line - 1) / in_line,
    };
}

/* Where vector `vector` of the panels from `panel` on begins; panels beyond the last repeat it, and nobody keeps what
 * becomes of them. */
VEC_INLINE const char *matrix_vector(const matrix_t *matrix, size_t panel, uint32_t vector)
{
    size_t at = panel + vector / PANEL_VECTORS;
    if (at >= matrix->panel_count) at = matrix->panel_count - 1;
    return matrix->panels + at * matrix->panel_bytes + vector % PANEL_VECTORS * VEC_LANES * 4;
}

/* The int4 scales in force at `line` of the vector that begins at `start`. */
VEC_INLINE vec_t group_scales(const matrix_t *matrix, const char *start, uint32_t vector, size_t line)
{
    const char *panel = start - vector % PANEL_VECTORS * VEC_LANES * 4;
    const uint16_t *scales = (const uint16_t *)(const void *)(panel + matrix->scales);
    return vec_load_bf16(scales + line / matrix->group_lines * QN_PANEL_ROWS + vector % PANEL_VECTORS * VEC_LANES);
}

/* The int8 scales of the outputs from `output` on, which begin a vector. */
VEC_INLINE vec_t output_scales(const matrix_t *matrix, size_t output)
{
    const char *panel = matrix->panels + output / QN_PANEL_ROWS * matrix->panel_bytes;
    return vec_load((const float *)(const void *)(panel + matrix->scales) + output % QN_PANEL_ROWS);
}

/* Weights of one step of a line. int8 comes without its scale, which is the output's and multiplies the whole sum;
 * int4 times its scale is exact in f32 (4 bits times the 8 of a bf16). */
VEC_INLINE vec_t form_weight(const form_t form, vec_words_t line, const uint32_t step, vec_t scale)
{
    switch (form) {
    case FORM_BF16: return step == 0 ? vec_low_bf16(line) : vec_high_bf16(line);
    case FORM_INT8: return vec_byte(line, step);
    case FORM_INT4: return vec_nibble(line, step < 4 ? 8 * step : 8 * step - 28, scale);
    default: return vec_of_words(line);
    }
}

#endif
