/* What is this?      Reference RMSNorm.
 * State owned:       none.
 * Must never:        subtract the mean: that is layernorm.c.
 * Read next:         rmsnorm_vector.c, matmul.c. */
#include <math.h>

#include "kernels/cpu/cpu.h"

static void norm_rows(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_rmsnorm_t *a = arguments;
    for (size_t row = begin; row < end; row++) {
        const float *x = (const float *)a->x + row * a->width;
        const float *residual = a->residual ? (const float *)a->residual + row * a->width : NULL;
        float *out = (float *)a->out + row * a->width;
        double squares = 0;
        for (uint32_t i = 0; i < a->width; i++)
            squares += (double)x[i] * x[i];
        double scale = 1 / sqrt(squares / a->width + a->eps);
        for (uint32_t i = 0; i < a->width; i++) {
            double weight = (double)a->weight_offset + qn_load(a->weight.data, a->weight.scalar, i);
            out[i] = (float)(x[i] * scale * weight + (residual ? residual[i] : 0));
        }
    }
}

void qn_cpu_rmsnorm(qn_stream_t *stream, const void *arguments)
{
    const qn_rmsnorm_t *a = arguments;
    qn_cpu_split(stream, a->rows, qn_grain(4 * (size_t)a->width), norm_rows, a);
}
