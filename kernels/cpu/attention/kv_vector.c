/* What is this?      The writes into the KV region in vectors.
 * State owned:       none.
 * Must never:        run on a machine without the instructions it is compiled for: registry.c sees to it.
 * Read next:         vector.h, kv.c. */
#include "kernels/cpu/vector/vector.h"

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vector/vector_functions.h"

static void store_row(const qn_kv_t *kv, size_t at, const float *from)
{
    size_t width = (size_t)kv->kv_heads * kv->head_dim, i = 0;
    if (kv->scalar == QN_SCALAR_F32) {
        memcpy((float *)kv->data + at, from, width * sizeof *from);
        return;
    }
    uint16_t *to = (uint16_t *)kv->data + at;
    for (; i + VEC_LANES <= width; i += VEC_LANES)
        vec_store_bf16(to + i, vec_load(from + i));
    uint32_t tail = (uint32_t)(width - i);
    if (tail) vec_store_bf16_some(to + i, vec_load_some(from + i, tail), tail);
}

static void store_tokens(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_kv_write_t *a = arguments;
    size_t width = (size_t)a->kv.kv_heads * a->kv.head_dim;
    for (size_t t = begin; t < end; t++) {
        if (a->kv_rows[t] < 0) continue;
        uint32_t block = (uint32_t)(a->kv_rows[t] / a->kv.block_tokens);
        uint32_t offset = (uint32_t)(a->kv_rows[t] % a->kv.block_tokens);
        store_row(&a->kv, qn_kv_offset(&a->kv, a->layer, 0, block, offset), (const float *)a->k + t * width);
        store_row(&a->kv, qn_kv_offset(&a->kv, a->layer, 1, block, offset), (const float *)a->v + t * width);
    }
}

void KERNEL(qn_cpu_kv_write)(qn_stream_t *stream, const void *arguments)
{
    const qn_kv_write_t *a = arguments;
    qn_cpu_split(stream, a->tokens, qn_grain((size_t)a->kv.kv_heads * a->kv.head_dim / 2), store_tokens, a);
}
