/* What the cases of `quintet bench kernels` are made of. All memory belongs to the case; when there is none, the case
 * says so (no_memory), the pointer is NULL and the others cope. For kernel_cases.c only. */
#ifndef QUINTET_TOOLS_KERNEL_CASE_DATA_H
#define QUINTET_TOOLS_KERNEL_CASE_DATA_H

#include "tools/kernel_cases.h"

void *case_hold(kernel_case_t *c, size_t bytes);
void *case_hold_zero(kernel_case_t *c, size_t bytes);
void *case_copy(kernel_case_t *c, const void *from, size_t bytes);
/* In [-1, 1). */
float case_next_number(uint64_t *state);
void case_fill(float *values, size_t count, uint64_t seed);
float *case_floats(kernel_case_t *c, size_t count, uint64_t seed);
/* Scattered, below `limit`. */
uint32_t *case_ids(kernel_case_t *c, size_t count, uint32_t limit);

void case_add_output(kernel_case_t *c, const void *tested, const void *exact, size_t count, bool is_id);
/* Two outputs, one for each side. */
typedef struct { float *tested, *exact; } case_pair_t;
case_pair_t case_output_pair(kernel_case_t *c, size_t count);

/* Of a matrix in panels; int4 in groups of 32. */
uint64_t case_weight_bytes(qn_scalar_t scalar, uint64_t outputs, uint64_t inputs);
/* A random matrix in panels, values of deviation about 1/sqrt(inputs). */
qn_weight_t case_panels(kernel_case_t *c, qn_scalar_t scalar, uint64_t outputs, uint64_t inputs, uint64_t seed);
qn_weight_t case_vector(kernel_case_t *c, uint32_t count, uint64_t seed);

#endif
