/* What is this?      The rotation of q and k for AVX-512; the algorithm is in rope_body.h.
 * State owned:       none.
 * Must never:        be reached on a machine without AVX-512: registry.c sees to it.
 * Read next:         rope_body.h, vector_avx512.h. */
#include "kernels/cpu/vector_avx512.h"

#define KERNEL(name) name##_avx512
#include "kernels/cpu/rope_body.h"
