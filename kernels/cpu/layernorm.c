/* What is this?      Reference LayerNorm.
 * State owned:       none.
 * Must never:        form the variance as a difference of two sums: a row far from zero would lose it.
 * Read next:         rmsnorm.c. */
#include <math.h>

#include "kernels/cpu/cpu.h"

static void norm_row(const qn_layernorm_t *a, const float *x, float *out)
{
    double sum = 0, squares = 0;
    for (uint32_t i = 0; i < a->width; i++)
        sum += x[i];
    double mean = sum / a->width;
    for (uint32_t i = 0; i < a->width; i++)
        squares += (x[i] - mean) * (x[i] - mean);
    double scale = 1 / sqrt(squares / a->width + a->eps);
    for (uint32_t i = 0; i < a->width; i++) {
        double bias = a->bias.data ? qn_load(a->bias.data, a->bias.scalar, i) : 0;
        out[i] = (float)((x[i] - mean) * scale * qn_load(a->weight.data, a->weight.scalar, i) + bias);
    }
}

static void norm_rows(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_layernorm_t *a = arguments;
    for (size_t row = begin; row < end; row++)
        norm_row(a, (const float *)a->x + row * a->width, (float *)a->out + row * a->width);
}

void qn_cpu_layernorm(qn_stream_t *stream, const void *arguments)
{
    const qn_layernorm_t *a = arguments;
    qn_cpu_split(stream, a->rows, qn_grain(6 * (size_t)a->width), norm_rows, a);
}
