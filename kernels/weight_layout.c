/* What is this?      Weights from and into the layouts of weight_layout.h, one element at a time where speed does not
 *                    matter; packing, where it does, is done panel by panel in cpu/weight_pack_body.h.
 * State owned:       none.
 * Must never:        depend on the machine: a panel has the same bytes everywhere.
 * Read next:         cpu/weight_pack_body.h; cpu/matmul.c, the plainest reader. */
#include "kernels/weight_layout.h"

#include <string.h>

#include "common/assert.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/matmul/weight_pack.h"

static bool has_avx2(void) { return qn_kernels_isa() & QN_ISA_AVX2; }

qn_err_t qn_weight_bytes(qn_scalar_t scalar, qn_layout_t layout, uint32_t group, uint64_t outputs, uint64_t inputs,
                         uint64_t *ret_bytes)
{
    bool panels = layout == QN_LAYOUT_PANELS;
    QN_ASSERT(panels || scalar == QN_SCALAR_F32 || scalar == QN_SCALAR_BF16);
    QN_ASSERT(scalar != QN_SCALAR_INT4 || group == 32 || group == 64);
    uint64_t count = outputs, each = 0, bytes;
    if (inputs > UINT32_MAX) return qn_fail(QN_ERR_LIMIT, "a weight with more than 2^32 inputs");
    if (panels) {
        count = outputs / QN_PANEL_ROWS + (outputs % QN_PANEL_ROWS != 0);
        each = qn_panel_bytes(scalar, group, inputs);
    } else
        each = inputs * qn_scalar_bytes(scalar);
    if (__builtin_mul_overflow(count, each, &bytes) || bytes > INT64_MAX)
        return qn_fail(QN_ERR_LIMIT, "a weight of more than 2^63 bytes");
    *ret_bytes = bytes;
    return QN_OK;
}

void qn_weight_pack(qn_scalar_t scalar, uint32_t group, uint64_t outputs, uint64_t inputs, uint64_t first,
                    uint64_t count, const float *rows, void *ret_panels)
{
    QN_ASSERT(first + count <= qn_panel_count(outputs));
    QN_ASSERT(scalar != QN_SCALAR_INT4 || group == 32 || group == 64);
    qn_weight_pack_t pack = has_avx2() ? qn_weight_pack_panel_avx2 : qn_weight_pack_panel;
    uint64_t bytes = qn_panel_bytes(scalar, group, inputs);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t left = outputs - (first + i) * QN_PANEL_ROWS;
        pack(scalar, group, left < QN_PANEL_ROWS ? left : QN_PANEL_ROWS, inputs, rows + i * QN_PANEL_ROWS * inputs,
             (uint8_t *)ret_panels + i * bytes);
    }
}

void qn_weight_widen_bf16(const void *source, size_t count, float *ret_values)
{
    (has_avx2() ? qn_widen_bf16_avx2 : qn_widen_bf16)(source, count, ret_values);
}

void qn_weight_widen_f16(const void *source, size_t count, float *ret_values)
{
    (has_avx2() ? qn_widen_f16_avx2 : qn_widen_f16)(source, count, ret_values);
}

/* ---- reading ---- */

static float get_int8(const uint8_t *panel, uint64_t inputs, uint32_t row, uint64_t input)
{
    float scale;
    memcpy(&scale, panel + qn_panel_scales(QN_SCALAR_INT8, 0, inputs) + row * sizeof scale, sizeof scale);
    return (float)((int)panel[input / 4 * 4 * QN_PANEL_ROWS + row * 4 + input % 4] - 128) * scale;
}

static float get_int4(const uint8_t *panel, uint32_t group, uint64_t inputs, uint32_t row, uint64_t input)
{
    uint16_t scale;
    uint64_t g = input / group, c = input % group / 8, j = input % 8;
    memcpy(&scale, panel + qn_panel_scales(QN_SCALAR_INT4, group, inputs) + (g * QN_PANEL_ROWS + row) * sizeof scale,
           sizeof scale);
    uint8_t byte = panel[g * (group / 2) * QN_PANEL_ROWS + (c * QN_PANEL_ROWS + row) * 4 + j % 4];
    return (float)((j < 4 ? byte & 15 : byte >> 4) - 8) * qn_bf16_to_f32(scale);
}

static float get_from_panel(const qn_weight_t *weight, const uint8_t *panel, uint64_t inputs, uint32_t row,
                            uint64_t input)
{
    switch (weight->scalar) {
    case QN_SCALAR_F32: return ((const float *)panel)[input * QN_PANEL_ROWS + row];
    case QN_SCALAR_BF16:
        return qn_bf16_to_f32(((const uint16_t *)panel)[input / 2 * 2 * QN_PANEL_ROWS + row * 2 + input % 2]);
    case QN_SCALAR_INT8: return get_int8(panel, inputs, row, input);
    case QN_SCALAR_INT4: return get_int4(panel, weight->group, inputs, row, input);
    }
    return 0;
}

void qn_weight_span(const qn_weight_t *weight, uint64_t inputs, uint64_t output, uint64_t first, uint64_t count,
                    float *ret_values)
{
    if (weight->layout == QN_LAYOUT_ROWS) {
        for (uint64_t i = 0; i < count; i++)
            ret_values[i] = qn_load(weight->data, weight->scalar, output * inputs + first + i);
        return;
    }
    const uint8_t *panel =
        (const uint8_t *)weight->data + output / QN_PANEL_ROWS * qn_panel_bytes(weight->scalar, weight->group, inputs);
    for (uint64_t i = 0; i < count; i++)
        ret_values[i] = get_from_panel(weight, panel, inputs, (uint32_t)(output % QN_PANEL_ROWS), first + i);
}

void qn_weight_row(const qn_weight_t *weight, uint64_t inputs, uint64_t output, float *ret_row)
{
    qn_weight_span(weight, inputs, output, 0, inputs, ret_row);
}

float qn_weight_get(const qn_weight_t *weight, uint64_t inputs, uint64_t output, uint64_t input)
{
    float value;
    qn_weight_span(weight, inputs, output, input, 1, &value);
    return value;
}
