/* The vector SwiGLU, written once; included after a vector header and KERNEL(name). */
#include "kernels/cpu/cpu.h"

VEC_INLINE vec_t gated(vec_t gate, vec_t up)
{
    vec_t one = vec_set(1);
    return vec_mul(vec_div(gate, vec_add(one, vec_exp(vec_sub(vec_zero(), gate)))), up);
}

/* Items are vectors of LANES values. */
static void gate_values(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_activate_t *a = arguments;
    const float *gate = a->gate, *up = a->up;
    float *out = a->out;
    size_t total = (size_t)a->tokens * a->width;
    for (size_t i = begin * VEC_LANES; i < end * VEC_LANES && i < total; i += VEC_LANES) {
        if (total - i >= VEC_LANES) {
            vec_store(out + i, gated(vec_load(gate + i), vec_load(up + i)));
            continue;
        }
        uint32_t tail = (uint32_t)(total - i);
        vec_store_some(out + i, gated(vec_load_some(gate + i, tail), vec_load_some(up + i, tail)), tail);
    }
}

void KERNEL(qn_cpu_activation)(qn_stream_t *stream, const void *arguments)
{
    const qn_activate_t *a = arguments;
    size_t vectors = ((size_t)a->tokens * a->width + VEC_LANES - 1) / VEC_LANES;
    qn_cpu_split(stream, vectors, 1000, gate_values, a);
}
