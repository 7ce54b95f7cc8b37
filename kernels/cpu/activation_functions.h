/* The activations of a vector of values. Include after vector_*.h. */
#ifndef QN_KERNELS_CPU_ACTIVATION_FUNCTIONS_H
#define QN_KERNELS_CPU_ACTIVATION_FUNCTIONS_H

#include "kernels/cpu/vector/vector_functions.h"
#include "kernels/kernels.h"

/* x/2 (1 + tanh u) = x / (1 + e^-2u) */
VEC_INLINE vec_t gelu_tanh(vec_t x)
{
    const float twice = 2 * 0.797884560802865f; /* 2 sqrt(2 / pi) */
    vec_t cubed = vec_mul(vec_mul(x, x), x);
    return vec_times_logistic(x, vec_mul(vec_set(twice), vec_fma(vec_set(0.044715f), cubed, x)));
}

VEC_INLINE vec_t activate(qn_activation_t kind, vec_t x)
{
    switch (kind) {
    case QN_ACTIVATION_SILU: return vec_times_logistic(x, x);
    case QN_ACTIVATION_GELU_TANH: return gelu_tanh(x);
    case QN_ACTIVATION_GELU: return vec_mul(x, vec_normal(x));
    case QN_ACTIVATION_RELU: return vec_max(x, vec_zero());
    }
    return x;
}

#endif
