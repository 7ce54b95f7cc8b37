/* What is this?      The nonlinearity of an MLP, with or without a gate: f(gate) * up, or f(gate).
 * State owned:       none.
 * Must never:        overflow into NaN: e^-x of a very negative x is infinite and gives -0, as it should.
 * Read next:         device.cuh (the functions), matmul_skinny.cu (the same as an epilogue). */
#include "kernels/cuda/device.cuh"

#define THREADS 256

/* out may be gate. */
template <int VEC, class A>
static __global__ void activate_values(qn_activation_t kind, const A *gate, const A *up, size_t count, A *out)
{
    grid_begin();
    size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * VEC;
    if (i >= count) return;
    float gates[VEC], ups[VEC];
    load_vector(gate + i, gates);
    if (up) load_vector(up + i, ups);
#pragma unroll
    for (int j = 0; j < VEC; j++) {
        gates[j] = activated(kind, gates[j]);
        if (up) gates[j] *= ups[j];
    }
    store_vector(out + i, gates);
}

extern "C" void qn_cuda_activation(qn_stream_t *stream, const void *arguments)
{
    const qn_activate_t *a = (const qn_activate_t *)arguments;
    size_t count = (size_t)a->tokens * a->width;
    if (!count) return;
    with_scalar(stream->options.activations, [&](auto act) {
        using A = decltype(act);
        with_vector(a->width, (uintptr_t)a->gate | (uintptr_t)a->up | (uintptr_t)a->out, [&](auto vec) {
            uint32_t blocks = (uint32_t)((count / vec() + THREADS - 1) / THREADS);
            qn_cuda_start(stream, "activation", activate_values<vec(), A>, blocks, THREADS, 0, a->kind,
                          (const A *)a->gate, (const A *)a->up, count, (A *)a->out);
        });
    });
}
