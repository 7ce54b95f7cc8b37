/* What is this?      RMSNorm: a warp per row where rows are short (heads of q and k), else a block per row.
 * State owned:       none.
 * Must never:        let the order of a row's additions depend on anything but its width.
 * Read next:         matmul.cu. */
#include "kernels/cuda/device.cuh"

#define WARP_WIDTH 512   /* rows up to this width: one warp */
#define WARPS 8          /* such rows per block */

/* x may be out: each thread reads again only what it writes itself. */
template <int VEC, class W, class A>
static __device__ void scale_row(const A *x, const W *weight, float scale, uint32_t width, unsigned first,
                                 unsigned step, A *out)
{
    for (uint32_t i = first; i < width; i += step) {
        float values[VEC], weights[VEC];
        load_vector(x + i, values);
        load_vector(weight + i, weights);
#pragma unroll
        for (int j = 0; j < VEC; j++) values[j] = values[j] * scale * weights[j];
        store_vector(out + i, values);
    }
}

template <int VEC, class A>
static __device__ float square_sum(const A *x, uint32_t width, unsigned first, unsigned step)
{
    float sum = 0;
    for (uint32_t i = first; i < width; i += step) {
        float values[VEC];
        load_vector(x + i, values);
#pragma unroll
        for (int j = 0; j < VEC; j++) sum = fmaf(values[j], values[j], sum);
    }
    return sum;
}

template <int VEC, class W, class A>
static __global__ void norm_short(const A *x, const W *weight, uint32_t rows, uint32_t width, float eps, A *out)
{
    grid_begin();
    uint32_t row = blockIdx.x * WARPS + threadIdx.x / WARP, first = threadIdx.x % WARP * VEC;
    if (row >= rows) return;
    const A *from = x + (size_t)row * width;
    float sum = warp_sum(square_sum<VEC>(from, width, first, WARP * VEC));
    scale_row<VEC>(from, weight, 1 / sqrtf(sum / width + eps), width, first, WARP * VEC, out + (size_t)row * width);
}

template <int VEC, class W, class A>
static __global__ void norm_long(const A *x, const W *weight, uint32_t width, float eps, A *out)
{
    __shared__ float room[WARP];
    grid_begin();
    const A *from = x + (size_t)blockIdx.x * width;
    uint32_t first = threadIdx.x * VEC, step = blockDim.x * VEC;
    float sum = block_sum(square_sum<VEC>(from, width, first, step), room);
    scale_row<VEC>(from, weight, 1 / sqrtf(sum / width + eps), width, first, step, out + (size_t)blockIdx.x * width);
}

template <int VEC, class W, class A> static void start(qn_stream_t *stream, const qn_rmsnorm_t *a)
{
    const A *x = (const A *)a->x;
    const W *weight = (const W *)a->weight.data;
    if (a->width <= WARP_WIDTH) {
        qn_cuda_start(stream, "rmsnorm", norm_short<VEC, W, A>, divide_up(a->rows, WARPS), WARPS * WARP, 0, x, weight,
                      a->rows, a->width, a->eps, (A *)a->out);
        return;
    }
    uint32_t threads = divide_up(divide_up(a->width, VEC), WARP) * WARP;
    qn_cuda_start(stream, "rmsnorm", norm_long<VEC, W, A>, a->rows, threads < 1024 ? threads : 1024, 0, x, weight,
                  a->width, a->eps, (A *)a->out);
}

extern "C" void qn_cuda_rmsnorm(qn_stream_t *stream, const void *arguments)
{
    const qn_rmsnorm_t *a = (const qn_rmsnorm_t *)arguments;
    if (!a->rows) return;
    uintptr_t addresses = (uintptr_t)a->x | (uintptr_t)a->out | (uintptr_t)a->weight.data;
    with_scalar(a->weight.scalar, [&](auto w) {
        with_scalar(stream->options.activations, [&](auto act) {
            with_vector(a->width, addresses, [&](auto vec) { start<vec(), decltype(w), decltype(act)>(stream, a); });
        });
    });
}
