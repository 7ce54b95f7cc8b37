/* What is this?      Reference SwiGLU: silu(gate) * up with silu(x) = x / (1 + e^-x).
 * State owned:       none.
 * Must never:        overflow into NaN: e^-x of a very negative x is infinite and gives -0, as it should.
 * Read next:         activation_avx512.c. */
#include <math.h>

#include "kernels/cpu/cpu.h"

static void gate_values(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_activate_t *a = arguments;
    const float *gate = a->gate, *up = a->up;
    float *out = a->out;
    for (size_t i = begin; i < end; i++) out[i] = (float)(gate[i] / (1 + exp(-(double)gate[i])) * up[i]);
}

void qn_cpu_activation(qn_stream_t *stream, const void *arguments)
{
    const qn_activate_t *a = arguments;
    qn_cpu_split(stream, (size_t)a->tokens * a->width, 2000, gate_values, a);
}
