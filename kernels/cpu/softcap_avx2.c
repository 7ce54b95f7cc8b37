/* What is this?      The soft-cap of logits for AVX2; the algorithm is in softcap_body.h.
 * State owned:       none.
 * Must never:        be reached on a machine without AVX2: registry.c sees to it.
 * Read next:         softcap_body.h, vector_avx2.h. */
#include "kernels/cpu/vector_avx2.h"

#define KERNEL(name) name##_avx2
#include "kernels/cpu/softcap_body.h"
