/* What is this?      The LayerNorm for AVX-512; the algorithm is in layernorm_body.h.
 * State owned:       none.
 * Must never:        be reached on a machine without AVX-512: registry.c sees to it.
 * Read next:         layernorm_body.h, vector_avx512.h. */
#include "kernels/cpu/vector_avx512.h"

#define KERNEL(name) name##_avx512
#include "kernels/cpu/layernorm_body.h"
