/* What is this?      LayerNorm: a block per row.
 * State owned:       none.
 * Must never:        form the variance as a difference of two sums: a row far from zero would lose it.
 * Read next:         rmsnorm.cu. */
#include "kernels/cuda/norm.cuh"

template <int VEC, class A> static __device__ float value_sum(const A *x, uint32_t width, unsigned first, unsigned step)
{
    float sum = 0;
    for (uint32_t i = first; i < width; i += step) {
        float values[VEC];
        load_vector(x + i, values);
#pragma unroll
        for (int j = 0; j < VEC; j++)
            sum += values[j];
    }
    return sum;
}

template <int VEC, class A>
static __device__ float deviation_sum(const A *x, float mean, uint32_t width, unsigned first, unsigned step)
{
    float sum = 0;
    for (uint32_t i = first; i < width; i += step) {
        float values[VEC];
        load_vector(x + i, values);
#pragma unroll
        for (int j = 0; j < VEC; j++)
            sum = fmaf(values[j] - mean, values[j] - mean, sum);
    }
    return sum;
}

/* out may be x: each thread reads again only what it writes itself. */
template <int VEC, class W, class A> static __global__ void norm_rows(qn_layernorm_t a)
{
    __shared__ float room[WARP];
    grid_begin();
    const A *x = (const A *)a.x + (size_t)blockIdx.x * a.width;
    A *out = (A *)a.out + (size_t)blockIdx.x * a.width;
    uint32_t first = threadIdx.x * VEC, step = NORM_THREADS * VEC;
    float mean = block_sum(value_sum<VEC>(x, a.width, first, step), room) / a.width;
    float squares = block_sum(deviation_sum<VEC>(x, mean, a.width, first, step), room);
    float scale = norm_scale(squares, a.width, a.eps);
    for (uint32_t i = first; i < a.width; i += step) {
        float values[VEC], weights[VEC];
        load_vector(x + i, values);
        load_vector((const W *)a.weight.data + i, weights);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            float bias = a.bias.data ? load_scalar(a.bias.data, a.bias.scalar, i + j) : 0;
            values[j] = fmaf((values[j] - mean) * scale, weights[j], bias);
        }
        store_vector(out + i, values);
    }
}

extern "C" void qn_cuda_layernorm(qn_stream_t *stream, const void *arguments)
{
    const qn_layernorm_t *a = (const qn_layernorm_t *)arguments;
    if (!a->rows) return;
    uintptr_t addresses = (uintptr_t)a->x | (uintptr_t)a->out | (uintptr_t)a->weight.data;
    with_scalar(a->weight.scalar, [&](auto w) {
        with_scalar(stream->options.activations, [&](auto act) {
            with_vector(a->width, addresses, [&](auto vec) {
                qn_cuda_start(stream, "layernorm", norm_rows<vec(), decltype(w), decltype(act)>, a->rows, NORM_THREADS,
                              0, *a);
            });
        });
    });
}
