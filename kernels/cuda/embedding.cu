/* What is this?      Copies of rows: token embedding and gathering rows by index.
 * State owned:       none.
 * Must never:        read a row of a table twice for one output row.
 * Read next:         rmsnorm.cu. */
#include "kernels/cuda/device.cuh"

/* out[blockIdx.x] = table[rows[blockIdx.x]] */
template <int VEC, class W, class A>
static __global__ void copy_rows(const W *table, const uint32_t *rows, uint32_t width, A *out)
{
    grid_begin();
    const W *from = table + (size_t)rows[blockIdx.x] * width;
    A *to = out + (size_t)blockIdx.x * width;
    for (uint32_t i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC) {
        float values[VEC];
        load_vector(from + i, values);
        store_vector(to + i, values);
    }
}

/* Whole warps, one vector a thread, at most 256. */
static unsigned row_threads(uint32_t width, int vec)
{
    uint32_t threads = divide_up(divide_up(width, vec), WARP) * WARP;
    return threads < 256 ? threads : 256;
}

static void launch_copy(qn_stream_t *stream, const char *at, qn_scalar_t scalar, const void *table,
                        const uint32_t *rows, uint32_t count, uint32_t width, void *out)
{
    if (!count) return;
    with_scalar(scalar, [&](auto w) {
        with_scalar(stream->options.activations, [&](auto a) {
            with_vector(width, (uintptr_t)table | (uintptr_t)out, [&](auto vec) {
                using W = decltype(w);
                using A = decltype(a);
                qn_cuda_start(stream, at, copy_rows<vec(), W, A>, count, row_threads(width, vec()), 0,
                              (const W *)table, rows, width, (A *)out);
            });
        });
    });
}

extern "C" void qn_cuda_embedding(qn_stream_t *stream, const void *arguments)
{
    const qn_embedding_t *a = (const qn_embedding_t *)arguments;
    launch_copy(stream, "embedding", a->table.scalar, a->table.data, a->ids, a->tokens, a->width, a->out);
}

extern "C" void qn_cuda_gather_rows(qn_stream_t *stream, const void *arguments)
{
    const qn_gather_rows_t *a = (const qn_gather_rows_t *)arguments;
    launch_copy(stream, "gather_rows", stream->options.activations, a->x, a->rows, a->row_count, a->width, a->out);
}
