/* What is this?      Copies of rows: token embedding and gathering rows by index.
 * State owned:       none.
 * Must never:        round: both are exact.
 * Read next:         rmsnorm.c. */
#include "kernels/cpu/cpu.h"

static void embed_rows(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_embedding_t *a = arguments;
    for (size_t t = begin; t < end; t++) {
        float *out = (float *)a->out + t * a->width;
        size_t row = (size_t)a->ids[t] * a->width;
        for (uint32_t e = 0; e < a->width; e++) out[e] = qn_load(a->table.data, a->table.scalar, row + e);
    }
}

void qn_cpu_embedding(qn_stream_t *stream, const void *arguments)
{
    const qn_embedding_t *a = arguments;
    qn_cpu_split(stream, a->tokens, qn_grain(a->width), embed_rows, a);
}

void qn_cpu_gather_rows(qn_stream_t *stream, const void *arguments)
{
    (void)stream;
    const qn_gather_rows_t *a = arguments;
    for (uint32_t s = 0; s < a->row_count; s++)
        memcpy((float *)a->out + (size_t)s * a->width, (const float *)a->x + (size_t)a->rows[s] * a->width,
               a->width * sizeof(float));
}
