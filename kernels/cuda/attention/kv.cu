/* What is this?      Writes into the KV region: this step's keys and values, and copies of whole blocks.
 * State owned:       none.
 * Must never:        write a row that the step did not name.
 * Read next:         attention.cuh. */
#include "kernels/cuda/device.cuh"

#define THREADS 256

/* blockIdx: x token, y K (0) or V (1). */
template <int VEC, class A, class C> static __global__ void store_token(qn_kv_write_t a)
{
    grid_begin();
    int64_t row = a.kv_rows[blockIdx.x];
    if (row < 0) return;
    uint32_t width = a.kv.kv_heads * a.kv.head_dim, which = blockIdx.y;
    size_t at =
        kv_offset(a.kv, a.layer, which, (uint32_t)(row / a.kv.block_tokens), (uint32_t)(row % a.kv.block_tokens));
    const A *from = (const A *)(which ? a.v : a.k) + (size_t)blockIdx.x * width;
    C *to = (C *)a.kv.data + at;
    for (uint32_t i = threadIdx.x * VEC; i < width; i += blockDim.x * VEC) {
        float values[VEC];
        load_vector(from + i, values);
        store_vector(to + i, values);
    }
}

extern "C" void qn_cuda_kv_write(qn_stream_t *stream, const void *arguments)
{
    const qn_kv_write_t *a = (const qn_kv_write_t *)arguments;
    if (!a->tokens) return;
    uint32_t width = a->kv.kv_heads * a->kv.head_dim;
    with_scalar(stream->options.activations, [&](auto act) {
        with_scalar(a->kv.scalar, [&](auto cache) {
            with_vector(width, (uintptr_t)a->k | (uintptr_t)a->v | (uintptr_t)a->kv.data, [&](auto vec) {
                uint32_t vectors = divide_up(width / vec(), WARP) * WARP;
                qn_cuda_start(stream, "kv_write", store_token<vec(), decltype(act), decltype(cache)>,
                              dim3(a->tokens, 2), vectors < THREADS ? vectors : THREADS, 0, *a);
            });
        });
    });
}

/* A thread owns the same word of every block of one plane, so copies that feed later copies stay in order. */
template <class U> static __global__ void copy_blocks(qn_block_copy_args_t a, size_t block_words)
{
    grid_begin();
    size_t word = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (word >= block_words) return;
    U *plane = (U *)a.kv.data + blockIdx.y * a.kv.blocks * block_words + word;
    for (uint32_t i = 0; i < a.copy_count; i++)
        plane[a.copies[i].to * block_words] = plane[a.copies[i].from * block_words];
}

extern "C" void qn_cuda_block_copy(qn_stream_t *stream, const void *arguments)
{
    const qn_block_copy_args_t *a = (const qn_block_copy_args_t *)arguments;
    if (!a->copy_count) return;
    size_t bytes = (size_t)a->kv.block_tokens * a->kv.kv_heads * a->kv.head_dim * qn_scalar_bytes(a->kv.scalar);
    bool wide = bytes % sizeof(uint4) == 0 && (uintptr_t)a->kv.data % sizeof(uint4) == 0;
    size_t words = bytes / (wide ? sizeof(uint4) : sizeof(uint16_t));
    dim3 grid((unsigned)((words + THREADS - 1) / THREADS), 2 * a->kv.layers);
    if (wide)
        qn_cuda_start(stream, "block_copy", copy_blocks<uint4>, grid, THREADS, 0, *a, words);
    else
        qn_cuda_start(stream, "block_copy", copy_blocks<uint16_t>, grid, THREADS, 0, *a, words);
}
