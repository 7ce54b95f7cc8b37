/* How the elements of a weight matrix [O, M] (O outputs, M inputs) lie in memory: the one description that memory
 * (which packs at load), every kernel and the tests share.
 *
 * ROWS     row-major, f32 or bf16: what a checkpoint holds, and what CUDA reads.
 * PANELS   for CPU products: panel p holds the QN_PANEL_ROWS outputs 16p .. 16p+15, interleaved so that one vector load
 *          brings the same inputs of 16 outputs; an accumulator lane then is one output, and no sum over lanes is ever
 *          needed. Panels follow each other, each qn_panel_bytes long (a multiple of 64). Outputs beyond O and inputs
 *          beyond M are zeros.
 *
 *   f32    [M][16]
 *   bf16   [ceil(M/2)][16][2]: the pair of inputs that vdpbf16ps multiplies
 *   int8   [ceil(M/64)*16][16][4] bytes w + 128 (the unsigned side of vpdpbusd), then [16] f32 scales, one per output:
 *          value = (byte - 128) * scale; byte is 1 .. 255, so that |w| <= 127
 *   int4   groups of G = 32 or 64 inputs: [ceil(M/G)][G/8][16][4] bytes, then [ceil(M/G)][16] bf16 scales. Byte
 *          [g][c][row][j] holds input g*G + 8c + j in its low and g*G + 8c + 4 + j in its high nibble:
 *          value = (nibble - 8) * scale of (g, row)
 *
 * A zero of padding is the value zero: byte 128 (int8), nibble 8 (int4), and outputs beyond O have scale 0.
 *
 * Quantisation is symmetric, to nearest; int4 chooses each group's scale to lessen the squared error, and that scale
 * may be negative. A row (a group) whose scale would be below FLT_MIN has scale 0; one with a value that is not finite
 * has an infinite scale, by which whoever packed can tell. */
#ifndef QN_KERNELS_WEIGHT_LAYOUT_H
#define QN_KERNELS_WEIGHT_LAYOUT_H

#include <stdint.h>

#include "kernels/kernels.h"

#define QN_PANEL_ROWS 16
#define QN_INT8_GROUP 64 /* inputs are padded to this */

static inline uint64_t qn_panel_count(uint64_t outputs) { return (outputs + QN_PANEL_ROWS - 1) / QN_PANEL_ROWS; }

/* Bytes of one panel. `group` matters for int4 only. Cannot overflow: inputs is below 2^32. */
static inline uint64_t qn_panel_bytes(qn_scalar_t scalar, uint32_t group, uint64_t inputs)
{
    uint64_t bytes = 0, groups;
    switch (scalar) {
    case QN_SCALAR_F32: bytes = inputs * QN_PANEL_ROWS * 4; break;
    case QN_SCALAR_BF16: bytes = (inputs + 1) / 2 * QN_PANEL_ROWS * 4; break;
    case QN_SCALAR_INT8:
        bytes = (inputs + QN_INT8_GROUP - 1) / QN_INT8_GROUP * QN_INT8_GROUP * QN_PANEL_ROWS + QN_PANEL_ROWS * 4;
        break;
    case QN_SCALAR_INT4:
        groups = (inputs + group - 1) / group;
        bytes = groups * (group / 2 + 2) * QN_PANEL_ROWS;
        break;
    }
    return (bytes + 63) / 64 * 64;
}

/* Where the scales of an int8 or int4 panel begin, in bytes from the panel. */
static inline uint64_t qn_panel_scales(qn_scalar_t scalar, uint32_t group, uint64_t inputs)
{
    if (scalar == QN_SCALAR_INT8) return (inputs + QN_INT8_GROUP - 1) / QN_INT8_GROUP * QN_INT8_GROUP * QN_PANEL_ROWS;
    return (inputs + group - 1) / group * (group / 2) * QN_PANEL_ROWS;
}

/* Bytes of a whole weight. QN_ERR_LIMIT: more than 2^63. */
qn_err_t qn_weight_bytes(qn_scalar_t scalar, qn_layout_t layout, uint32_t group, uint64_t outputs, uint64_t inputs,
                         uint64_t *ret_bytes);

/* Packs panels [first, first + count) of a weight. `rows` holds their outputs row-major as f32, [16 * count, inputs]
 * (the last panel may be short: `outputs` is the whole weight's O); `ret_panels` is where panel `first` belongs. */
void qn_weight_pack(qn_scalar_t scalar, uint32_t group, uint64_t outputs, uint64_t inputs, uint64_t first,
                    uint64_t count, const float *rows, void *ret_panels);

/* `count` elements at `source`, which has any alignment, as f32: exact, subnormals, infinities and NaN payloads
 * included. */
void qn_weight_widen_bf16(const void *source, size_t count, float *ret_values);
void qn_weight_widen_f16(const void *source, size_t count, float *ret_values);

/* Element [output, input] as f32, whatever the layout: for references, gathers and tests. */
float qn_weight_get(const qn_weight_t *weight, uint64_t inputs, uint64_t output, uint64_t input);

/* Inputs [first, first + count) of row `output` as f32. */
void qn_weight_span(const qn_weight_t *weight, uint64_t inputs, uint64_t output, uint64_t first, uint64_t count,
                    float *ret_values);

/* Row `output` as f32. */
void qn_weight_row(const qn_weight_t *weight, uint64_t inputs, uint64_t output, float *ret_row);

#endif
