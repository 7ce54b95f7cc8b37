/* What is this?      The matrix product with the bf16 dot instruction: twice the products of an FMA, for activations
 *                    rounded to bf16. The algorithm is in matmul_panels.h.
 * State owned:       none.
 * Must never:        be reached without AVX512_BF16, nor unless asked for by name: registry.c sees to both.
 * Read next:         matmul_pairs_body.h, matmul_panels.h. */
#include "kernels/cpu/vector/vector_avx512.h"

VEC_INLINE vec_t dot_pairs(vec_t weights, vec_t word, vec_t sum)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(weights), (__m512bh)_mm512_castps_si512(word));
}

#define KERNEL(name) name##_avx512bf16
#include "kernels/cpu/matmul/matmul_pairs_body.h"
