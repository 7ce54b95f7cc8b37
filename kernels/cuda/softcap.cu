/* What is this?      The soft-cap of logits: cap * tanh(x / cap).
 * State owned:       none.
 * Must never:        be launched with a cap of 0: off is not launching it.
 * Read next:         attention.cuh, whose scores have a soft-cap of their own. */
#include "kernels/cuda/device.cuh"

#define THREADS 256

static __global__ void cap_values(float *x, size_t count, float cap)
{
    grid_begin();
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += (size_t)gridDim.x * THREADS)
        x[i] = cap * tanhf(x[i] / cap);
}

extern "C" void qn_cuda_softcap(qn_stream_t *stream, const void *arguments)
{
    const qn_softcap_t *a = (const qn_softcap_t *)arguments;
    size_t count = (size_t)a->rows * a->width, blocks = (count + THREADS - 1) / THREADS;
    QN_ASSERT(a->cap > 0);
    if (!count) return;
    if (blocks > 16 * stream->processors) blocks = 16 * stream->processors;
    qn_cuda_start(stream, "softcap", cap_values, (unsigned)blocks, THREADS, 0, a->x, count, a->cap);
}
