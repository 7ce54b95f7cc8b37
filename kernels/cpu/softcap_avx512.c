/* What is this?      The soft-cap of logits for AVX-512; the algorithm is in softcap_body.h.
 * State owned:       none.
 * Must never:        be reached on a machine without AVX-512: registry.c sees to it.
 * Read next:         softcap_body.h, vector_avx512.h. */
#include "kernels/cpu/vector_avx512.h"

#define KERNEL(name) name##_avx512
#include "kernels/cpu/softcap_body.h"
