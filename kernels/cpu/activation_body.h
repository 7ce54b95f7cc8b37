/* The vector activations, written once; included after a vector header and KERNEL(name). */
#include <math.h>

#include "kernels/cpu/cpu.h"

/* x / (1 + e^-s) */
VEC_INLINE vec_t times_logistic(vec_t x, vec_t s)
{
    return vec_div(x, vec_add(vec_set(1), vec_exp(vec_sub(vec_zero(), s))));
}

/* x/2 (1 + tanh u) = x / (1 + e^-2u) */
VEC_INLINE vec_t gelu_tanh(vec_t x)
{
    const float twice = 2 * 0.797884560802865f;  /* 2 sqrt(2 / pi) */
    vec_t cubed = vec_mul(vec_mul(x, x), x);
    return times_logistic(x, vec_mul(vec_set(twice), vec_fma(vec_set(0.044715f), cubed, x)));
}

VEC_INLINE vec_t gelu(vec_t x)
{
    float lanes[VEC_LANES];
    vec_store(lanes, x);
    for (uint32_t i = 0; i < VEC_LANES; i++) lanes[i] = lanes[i] / 2 * (1 + erff(lanes[i] * 0.707106781186547f));
    return vec_load(lanes);
}

VEC_INLINE vec_t activate(qn_activation_t kind, vec_t x)
{
    switch (kind) {
    case QN_ACTIVATION_SILU: return times_logistic(x, x);
    case QN_ACTIVATION_GELU_TANH: return gelu_tanh(x);
    case QN_ACTIVATION_GELU: return gelu(x);
    case QN_ACTIVATION_RELU: return vec_max(x, vec_zero());
    }
    return x;
}

/* Items are vectors of LANES values. */
static void activate_values(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_activate_t *a = arguments;
    const float *gate = a->gate, *up = a->up;
    float *out = a->out;
    size_t total = (size_t)a->tokens * a->width;
    for (size_t i = begin * VEC_LANES; i < end * VEC_LANES && i < total; i += VEC_LANES) {
        uint32_t count = total - i < VEC_LANES ? (uint32_t)(total - i) : VEC_LANES;
        vec_t value = activate(a->kind, vec_load_some(gate + i, count));
        if (up) value = vec_mul(value, vec_load_some(up + i, count));
        vec_store_some(out + i, value, count);
    }
}

void KERNEL(qn_cpu_activation)(qn_stream_t *stream, const void *arguments)
{
    const qn_activate_t *a = arguments;
    size_t vectors = ((size_t)a->tokens * a->width + VEC_LANES - 1) / VEC_LANES;
    qn_cpu_split(stream, vectors, 1000, activate_values, a);
}
