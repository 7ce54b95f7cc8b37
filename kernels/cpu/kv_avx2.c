/* What is this?      The writes into the KV region for AVX2; the algorithm is in kv_body.h.
 * State owned:       none.
 * Must never:        be reached on a machine without AVX2: registry.c sees to it.
 * Read next:         kv_body.h, vector_avx2.h. */
#include "kernels/cpu/vector_avx2.h"

#define KERNEL(name) name##_avx2
#include "kernels/cpu/kv_body.h"
