/* What is this?      The soft-cap of logits in vectors.
 * State owned:       none.
 * Must never:        run on a machine without the instructions it is compiled for: registry.c sees to it.
 * Read next:         vector.h, softcap.c. */
#include "kernels/cpu/vector/vector.h"

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vector/vector_functions.h"

/* Items are vectors of LANES values. */
static void cap_values(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_softcap_t *a = arguments;
    size_t total = (size_t)a->rows * a->width;
    vec_t cap = vec_set(a->cap), shrink = vec_set(1 / a->cap);
    for (size_t i = begin * VEC_LANES; i < end * VEC_LANES && i < total; i += VEC_LANES) {
        uint32_t count = total - i < VEC_LANES ? (uint32_t)(total - i) : VEC_LANES;
        vec_store_some(a->x + i, vec_mul(cap, vec_tanh(vec_mul(vec_load_some(a->x + i, count), shrink))), count);
    }
}

void KERNEL(qn_cpu_softcap)(qn_stream_t *stream, const void *arguments)
{
    const qn_softcap_t *a = arguments;
    QN_ASSERT(a->cap > 0);
    qn_cpu_split(stream, ((size_t)a->rows * a->width + VEC_LANES - 1) / VEC_LANES, 1000, cap_values, a);
}
