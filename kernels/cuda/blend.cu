/* What is this?      The blend of two arrays of rows: what taps write with.
 * State owned:       none.
 * Must never:        read an array whose factor is 0: it may hold anything.
 * Read next:         kernels.h. */
#include "kernels/cuda/device.cuh"

#define THREADS 256

template <class A> static __global__ void blend_rows(const __grid_constant__ qn_blend_t a)
{
    grid_begin();
    size_t count = (size_t)a.rows * a.width;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += (size_t)gridDim.x * THREADS) {
        float sum = 0;
        if (a.x_factor != 0) sum = a.x_factor * to_float(((const A *)a.x)[i]);
        if (a.y_factor != 0) sum += a.y_factor * to_float(((const A *)a.y)[a.y_is_row ? i % a.width : i]);
        ((A *)a.out)[i] = from_float<A>(sum);
    }
}

extern "C" void qn_cuda_blend(qn_stream_t *stream, const void *arguments)
{
    const qn_blend_t *a = (const qn_blend_t *)arguments;
    size_t count = (size_t)a->rows * a->width, blocks = (count + THREADS - 1) / THREADS;
    if (!count) return;
    if (blocks > 16 * stream->processors) blocks = 16 * stream->processors;
    with_scalar(stream->options.activations, [&](auto act) {
        qn_cuda_start(stream, "blend", blend_rows<decltype(act)>, (unsigned)blocks, THREADS, 0, *a);
    });
}
