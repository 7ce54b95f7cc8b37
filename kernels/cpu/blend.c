/* What is this?      The blend of two arrays of rows: what taps write with.
 * State owned:       none.
 * Must never:        read an array whose factor is 0: it may hold anything.
 * Read next:         kernels.h. */
#include "kernels/cpu/cpu.h"

void qn_cpu_blend(qn_stream_t *stream, const void *arguments)
{
    (void)stream;
    const qn_blend_t *a = arguments;
    float *out = a->out;
    for (uint32_t r = 0; r < a->rows; r++)
        for (uint32_t i = 0; i < a->width; i++) {
            size_t at = (size_t)r * a->width + i;
            float sum = a->x_factor != 0 ? a->x_factor * ((const float *)a->x)[at] : 0;
            if (a->y_factor != 0) sum += a->y_factor * ((const float *)a->y)[a->y_is_row ? i : at];
            out[at] = sum;
        }
}
