/* What is this?      Rows by index: token embedding, and gathering rows of activations.
 * State owned:       none.
 * Must never:        round where the multiplier is 1 and there is no position.
 * Read next:         rmsnorm.cu. */
#include "kernels/cuda/device.cuh"

/* Whole warps, one vector a thread, at most 256. */
static unsigned row_threads(uint32_t width, int vec)
{
    uint32_t threads = divide_up(divide_up(width, vec), WARP) * WARP;
    return threads < 256 ? threads : 256;
}

/* A row of a position table of either type, VEC elements of it; it is read once per token. */
template <int VEC> static __device__ void add_position(const qn_weight_t &table, size_t at, float (&values)[VEC])
{
#pragma unroll
    for (int j = 0; j < VEC; j++)
        values[j] += load_scalar(table.data, table.scalar, at + j);
}

/* A block per token. */
template <int VEC, class W, class A> static __global__ void embed_rows(qn_embedding_t a)
{
    grid_begin();
    const W *from = (const W *)a.table.data + (size_t)a.ids[blockIdx.x] * a.width;
    A *to = (A *)a.out + (size_t)blockIdx.x * a.width;
    size_t position = a.position_table.data ? (size_t)a.positions[blockIdx.x] * a.width : 0;
    for (uint32_t i = threadIdx.x * VEC; i < a.width; i += blockDim.x * VEC) {
        float values[VEC];
        load_vector(from + i, values);
#pragma unroll
        for (int j = 0; j < VEC; j++)
            values[j] *= a.multiplier;
        if (a.position_table.data) add_position(a.position_table, position + i, values);
        store_vector(to + i, values);
    }
}

extern "C" void qn_cuda_embedding(qn_stream_t *stream, const void *arguments)
{
    const qn_embedding_t *a = (const qn_embedding_t *)arguments;
    QN_ASSERT(a->table.layout == QN_LAYOUT_ROWS && a->position_table.layout == QN_LAYOUT_ROWS);
    if (!a->tokens) return;
    with_scalar(a->table.scalar, [&](auto w) {
        with_scalar(stream->options.activations, [&](auto act) {
            with_vector(a->width, (uintptr_t)a->table.data | (uintptr_t)a->out, [&](auto vec) {
                qn_cuda_start(stream, "embedding", embed_rows<vec(), decltype(w), decltype(act)>, a->tokens,
                              row_threads(a->width, vec()), 0, *a);
            });
        });
    });
}

/* out[blockIdx.x] = x[rows[blockIdx.x]] */
template <int VEC, class A> static __global__ void copy_rows(const A *x, const uint32_t *rows, uint32_t width, A *out)
{
    grid_begin();
    const A *from = x + (size_t)rows[blockIdx.x] * width;
    A *to = out + (size_t)blockIdx.x * width;
    for (uint32_t i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC) {
        float values[VEC];
        load_vector(from + i, values);
        store_vector(to + i, values);
    }
}

extern "C" void qn_cuda_gather_rows(qn_stream_t *stream, const void *arguments)
{
    const qn_gather_rows_t *a = (const qn_gather_rows_t *)arguments;
    if (!a->row_count) return;
    with_scalar(stream->options.activations, [&](auto act) {
        with_vector(a->width, (uintptr_t)a->x | (uintptr_t)a->out, [&](auto vec) {
            using A = decltype(act);
            qn_cuda_start(stream, "gather_rows", copy_rows<vec(), A>, a->row_count, row_threads(a->width, vec()), 0,
                          (const A *)a->x, a->rows, a->width, (A *)a->out);
        });
    });
}
