/* What is this?      The sum of a token's experts for AVX2; the algorithm is in moe_combine_body.h.
 * State owned:       none.
 * Must never:        be reached on a machine without AVX2: registry.c sees to it.
 * Read next:         moe_combine_body.h, vector_avx2.h. */
#include "kernels/cpu/vector_avx2.h"

#define KERNEL(name) name##_avx2
#include "kernels/cpu/moe_combine_body.h"
