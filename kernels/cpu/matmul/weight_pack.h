/* One panel of a weight, packed by what instructions the machine has; the bytes are the same on every machine. For
 * weight_layout.c, which chooses, and for the test that compares them. */
#ifndef QN_KERNELS_CPU_MATMUL_WEIGHT_PACK_H
#define QN_KERNELS_CPU_MATMUL_WEIGHT_PACK_H

#include "kernels/weight_layout.h"

/* `rows` is [count, inputs] f32 with count <= QN_PANEL_ROWS; writes qn_panel_bytes at `panel`, which is 4-byte
 * aligned. */
typedef void (*qn_weight_pack_t)(qn_scalar_t scalar, uint32_t group, size_t count, size_t inputs, const float *rows,
                                 void *panel);
void qn_weight_pack_panel(qn_scalar_t scalar, uint32_t group, size_t count, size_t inputs, const float *rows,
                          void *panel);
void qn_weight_pack_panel_avx2(qn_scalar_t scalar, uint32_t group, size_t count, size_t inputs, const float *rows,
                               void *panel);
/* weight_layout.h's qn_weight_widen_*. */
void qn_widen_bf16(const void *source, size_t count, float *ret_values);
void qn_widen_bf16_avx2(const void *source, size_t count, float *ret_values);
void qn_widen_f16(const void *source, size_t count, float *ret_values);
void qn_widen_f16_avx2(const void *source, size_t count, float *ret_values);

#endif
