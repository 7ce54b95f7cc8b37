/* What is this?      The sum of a token's experts for AVX-512; the algorithm is in moe_combine_body.h.
 * State owned:       none.
 * Must never:        be reached on a machine without AVX-512: registry.c sees to it.
 * Read next:         moe_combine_body.h, vector_avx512.h. */
#include "kernels/cpu/vector_avx512.h"

#define KERNEL(name) name##_avx512
#include "kernels/cpu/moe_combine_body.h"
