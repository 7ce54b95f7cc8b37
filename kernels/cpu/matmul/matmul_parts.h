/* Splitting a matrix product by its parts, for implementations that are several algorithms. */
#ifndef QN_KERNELS_CPU_MATMUL_MATMUL_PARTS_H
#define QN_KERNELS_CPU_MATMUL_MATMUL_PARTS_H

#include "kernels/kernels.h"

/* The product with those parts alone that `keep` wants, in their order. */
static inline qn_matmul_t qn_matmul_keep(const qn_matmul_t *a, bool (*keep)(const qn_matmul_part_t *part))
{
    qn_matmul_t kept = *a;
    kept.part_count = 0;
    for (uint32_t p = 0; p < a->part_count; p++)
        if (keep(&a->parts[p])) kept.parts[kept.part_count++] = a->parts[p];
    return kept;
}

#endif
