/* What is this?      Writes into the KV region: this step's keys and values, and copies of whole blocks.
 * State owned:       none.
 * Must never:        write a row that the step did not name.
 * Read next:         attention.c. */
#include "kernels/cpu/cpu.h"

static void store_row(const qn_kv_t *kv, uint32_t which, uint32_t layer, int64_t row, const float *from)
{
    uint32_t block = (uint32_t)(row / kv->block_tokens), offset = (uint32_t)(row % kv->block_tokens);
    size_t at = qn_kv_offset(kv, layer, which, block, offset), width = (size_t)kv->kv_heads * kv->head_dim;
    if (kv->scalar == QN_SCALAR_F32) {
        memcpy((float *)kv->data + at, from, width * sizeof *from);
        return;
    }
    uint16_t *to = (uint16_t *)kv->data + at;
    for (size_t i = 0; i < width; i++)
        to[i] = qn_f32_to_bf16(from[i]);
}

static void store_tokens(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_kv_write_t *a = arguments;
    size_t width = (size_t)a->kv.kv_heads * a->kv.head_dim;
    for (size_t t = begin; t < end; t++) {
        if (a->kv_rows[t] < 0) continue;
        store_row(&a->kv, 0, a->layer, a->kv_rows[t], (const float *)a->k + t * width);
        store_row(&a->kv, 1, a->layer, a->kv_rows[t], (const float *)a->v + t * width);
    }
}

void qn_cpu_kv_write(qn_stream_t *stream, const void *arguments)
{
    const qn_kv_write_t *a = arguments;
    qn_cpu_split(stream, a->tokens, qn_grain(2 * (size_t)a->kv.kv_heads * a->kv.head_dim), store_tokens, a);
}

/* Items are the 2L planes of the region: copies within one plane keep their order. */
static void copy_planes(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_block_copy_args_t *a = arguments;
    const qn_kv_t *kv = &a->kv;
    size_t bytes = (size_t)kv->block_tokens * kv->kv_heads * kv->head_dim * qn_scalar_bytes(kv->scalar);
    for (size_t plane = begin; plane < end; plane++) {
        char *base = (char *)kv->data + plane * kv->blocks * bytes;
        for (uint32_t i = 0; i < a->copy_count; i++)
            memmove(base + a->copies[i].to * bytes, base + a->copies[i].from * bytes, bytes);
    }
}

void qn_cpu_block_copy(qn_stream_t *stream, const void *arguments)
{
    const qn_block_copy_args_t *a = arguments;
    if (a->copy_count) qn_cpu_split(stream, 2 * (size_t)a->kv.layers, 1, copy_planes, a);
}
