/* What is this?      RMSNorm: a warp per row where rows are short (heads of q and k), else a block per row.
 * State owned:       none.
 * Must never:        let the order of a row's additions depend on anything but its width.
 * Read next:         norm.cuh, layernorm.cu, matmul_skinny.cu (the same as a prologue). */
#include "kernels/cuda/norm.cuh"

/* x and residual may be out: each thread reads again only what it writes itself. */
template <int VEC, class W, class A>
static __device__ void scale_row(const qn_rmsnorm_t &a, size_t row, float scale, unsigned first, unsigned step)
{
    const A *x = (const A *)a.x + row * a.width, *residual = (const A *)a.residual + row * a.width;
    A *out = (A *)a.out + row * a.width;
    for (uint32_t i = first; i < a.width; i += step) {
        float values[VEC], weights[VEC];
        load_vector(x + i, values);
        load_vector((const W *)a.weight.data + i, weights);
#pragma unroll
        for (int j = 0; j < VEC; j++)
            values[j] = normed(values[j], scale, weights[j], a.weight_offset);
        if (a.residual) {
            load_vector(residual + i, weights);
#pragma unroll
            for (int j = 0; j < VEC; j++)
                values[j] += weights[j];
        }
        store_vector(out + i, values);
    }
}

template <int VEC, class W, class A> static __global__ void norm_short(qn_rmsnorm_t a)
{
    grid_begin();
    uint32_t row = blockIdx.x * NORM_WARPS + threadIdx.x / WARP, first = threadIdx.x % WARP * VEC;
    if (row >= a.rows) return;
    const A *x = (const A *)a.x + (size_t)row * a.width;
    float sum = warp_sum(square_sum<VEC>(x, a.width, first, WARP * VEC));
    scale_row<VEC, W, A>(a, row, norm_scale(sum, a.width, a.eps), first, WARP * VEC);
}

template <int VEC, class W, class A> static __global__ void norm_long(qn_rmsnorm_t a)
{
    __shared__ float room[WARP];
    grid_begin();
    const A *x = (const A *)a.x + (size_t)blockIdx.x * a.width;
    uint32_t first = threadIdx.x * VEC, step = NORM_THREADS * VEC;
    float sum = block_sum(square_sum<VEC>(x, a.width, first, step), room);
    scale_row<VEC, W, A>(a, blockIdx.x, norm_scale(sum, a.width, a.eps), first, step);
}

template <int VEC, class W, class A> static void start(qn_stream_t *stream, const qn_rmsnorm_t *a)
{
    if (a->width <= NORM_WARP_WIDTH)
        qn_cuda_start(stream, "rmsnorm", norm_short<VEC, W, A>, divide_up(a->rows, NORM_WARPS), NORM_THREADS, 0, *a);
    else
        qn_cuda_start(stream, "rmsnorm", norm_long<VEC, W, A>, a->rows, NORM_THREADS, 0, *a);
}

extern "C" void qn_cuda_rmsnorm(qn_stream_t *stream, const void *arguments)
{
    const qn_rmsnorm_t *a = (const qn_rmsnorm_t *)arguments;
    if (!a->rows) return;
    uintptr_t addresses = (uintptr_t)a->x | (uintptr_t)a->out | (uintptr_t)a->weight.data | (uintptr_t)a->residual;
    with_scalar(a->weight.scalar, [&](auto w) {
        with_scalar(stream->options.activations, [&](auto act) {
            with_vector(a->width, addresses, [&](auto vec) { start<vec(), decltype(w), decltype(act)>(stream, a); });
        });
    });
}
