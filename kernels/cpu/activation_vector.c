/* What is this?      The activations in vectors.
 * State owned:       none.
 * Must never:        run on a machine without the instructions it is compiled for: registry.c sees to it.
 * Read next:         vector.h, activation.c, activation_functions.h. */
#include "kernels/cpu/vector/vector.h"

#include "kernels/cpu/activation_functions.h"
#include "kernels/cpu/cpu.h"

VEC_INLINE void activate_values(const qn_activate_t *a, qn_activation_t kind, size_t begin, size_t end)
{
    const float *gate = a->gate, *up = a->up;
    float *out = a->out;
    size_t total = (size_t)a->tokens * a->width;
    for (size_t i = begin * VEC_LANES; i < end * VEC_LANES && i < total; i += VEC_LANES) {
        uint32_t count = total - i < VEC_LANES ? (uint32_t)(total - i) : VEC_LANES;
        vec_t value = activate(kind, vec_load_some(gate + i, count));
        if (up) value = vec_mul(value, vec_load_some(up + i, count));
        vec_store_some(out + i, value, count);
    }
}

/* Items are vectors of LANES values. */
static void activate_items(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_activate_t *a = arguments;
    switch (a->kind) {
    case QN_ACTIVATION_SILU: activate_values(a, QN_ACTIVATION_SILU, begin, end); break;
    case QN_ACTIVATION_GELU_TANH: activate_values(a, QN_ACTIVATION_GELU_TANH, begin, end); break;
    case QN_ACTIVATION_GELU: activate_values(a, QN_ACTIVATION_GELU, begin, end); break;
    case QN_ACTIVATION_RELU: activate_values(a, QN_ACTIVATION_RELU, begin, end); break;
    }
}

void KERNEL(qn_cpu_activation)(qn_stream_t *stream, const void *arguments)
{
    const qn_activate_t *a = arguments;
    size_t vectors = ((size_t)a->tokens * a->width + VEC_LANES - 1) / VEC_LANES;
    qn_cpu_split(stream, vectors, 1000, activate_items, a);
}
