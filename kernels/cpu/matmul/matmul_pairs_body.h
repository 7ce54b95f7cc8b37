/* The product that multiplies bf16 weights by x rounded to bf16, two inputs of an output per step; included after
 * vector_avx512.h, KERNEL(name) and dot_pairs, which adds to each lane the products of its two pairs. Other weights are
 * the business of "avx512". */
#define MATMUL_PAIRS true
#define MATMUL_STEP(weight, word, sum) dot_pairs(weight, word, sum)
#include "kernels/cpu/matmul/matmul_panels.h"
#include "kernels/cpu/matmul/matmul_parts.h"

static bool is_pairs(const qn_matmul_part_t *part)
{
    return part->weight.layout == QN_LAYOUT_PANELS && part->weight.scalar == QN_SCALAR_BF16;
}

static bool is_no_pairs(const qn_matmul_part_t *part) { return !is_pairs(part); }

void KERNEL(qn_cpu_matmul)(qn_stream_t *stream, const void *arguments)
{
    qn_matmul_t pairs = qn_matmul_keep(arguments, is_pairs), others = qn_matmul_keep(arguments, is_no_pairs);
    if (pairs.part_count > 0) multiply_panels(stream, &pairs);
    if (others.part_count > 0) qn_cpu_matmul_avx512(stream, &others);
}
