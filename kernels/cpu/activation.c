/* What is this?      Reference activations: f(gate) * up, or f(gate) alone. The formulas are in common/model/activation.h.
 * State owned:       none.
 * Must never:        overflow into NaN: e^-x of a very negative x is infinite and gives -0, as it should.
 * Read next:         activation_vector.c, softcap.c. */
#include <math.h>

#include "kernels/cpu/cpu.h"

static double activate(qn_activation_t kind, double x)
{
    switch (kind) {
    case QN_ACTIVATION_SILU: return x / (1 + exp(-x));
    case QN_ACTIVATION_GELU_TANH: return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case QN_ACTIVATION_GELU: return x / 2 * (1 + erf(x / M_SQRT2));
    case QN_ACTIVATION_RELU: return x > 0 ? x : 0;
    }
    QN_ASSERT(!"unknown activation");
    return 0;
}

static void activate_values(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_activate_t *a = arguments;
    const float *gate = a->gate, *up = a->up;
    float *out = a->out;
    for (size_t i = begin; i < end; i++)
        out[i] = (float)(activate(a->kind, gate[i]) * (up ? up[i] : 1));
}

void qn_cpu_activation(qn_stream_t *stream, const void *arguments)
{
    const qn_activate_t *a = arguments;
    qn_cpu_split(stream, (size_t)a->tokens * a->width, 2000, activate_values, a);
}
