/* What is this?      The sampler and the log-probabilities for AVX2; the algorithms are in sampler_body.h and
 *                    logprobs_body.h.
 * State owned:       none.
 * Must never:        be reached on a machine without AVX2: registry.c sees to it.
 * Read next:         sampler_body.h, sampler.c, vector_avx2.h. */
#include "kernels/cpu/vector_avx2.h"

#define KERNEL(name) name##_avx2
#include "kernels/cpu/sampler_body.h"
