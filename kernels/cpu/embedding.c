/* What is this?      Rows by index: token embedding, and gathering rows of activations.
 * State owned:       none.
 * Must never:        read a row that an id does not name; round where the multiplier is 1 and there is no position.
 * Read next:         kernels/weight_layout.h (a table may be packed), rmsnorm.c. */
#include "kernels/cpu/cpu.h"
#include "kernels/weight_layout.h"

static void embed_row(const qn_embedding_t *a, size_t t)
{
    float *out = (float *)a->out + t * a->width;
    qn_weight_row(&a->table, a->width, a->ids[t], out);
    for (uint32_t e = 0; a->multiplier != 1 && e < a->width; e++)
        out[e] *= a->multiplier;
    if (!a->position_table.data) return;
    size_t row = (size_t)a->positions[t] * a->width;
    for (uint32_t e = 0; e < a->width; e++)
        out[e] += qn_load(a->position_table.data, a->position_table.scalar, row + e);
}

static void embed_rows(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    for (size_t t = begin; t < end; t++)
        embed_row(arguments, t);
}

void qn_cpu_embedding(qn_stream_t *stream, const void *arguments)
{
    const qn_embedding_t *a = arguments;
    QN_ASSERT(!a->position_table.data || a->position_table.layout == QN_LAYOUT_ROWS);
    qn_cpu_split(stream, a->tokens, qn_grain(a->width), embed_rows, a);
}

static void gather(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_gather_rows_t *a = arguments;
    for (size_t s = begin; s < end; s++)
        memcpy((float *)a->out + s * a->width, (const float *)a->x + (size_t)a->rows[s] * a->width,
               a->width * sizeof(float));
}

void qn_cpu_gather_rows(qn_stream_t *stream, const void *arguments)
{
    const qn_gather_rows_t *a = arguments;
    qn_cpu_split(stream, a->row_count, qn_grain(a->width / 4), gather, a);
}
