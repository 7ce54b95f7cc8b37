/* What is this?      RMSNorm in vectors. The squares of a row are added in LANES chains, then across lanes: one order
 *                    per row width.
 * State owned:       none.
 * Must never:        run on a machine without the instructions it is compiled for: registry.c sees to it.
 * Read next:         vector.h, rmsnorm.c. */
#include "kernels/cpu/vector/vector.h"

#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vector/vector_load.h"

VEC_INLINE void norm_row(const qn_rmsnorm_t *a, qn_scalar_t scalar, const float *x, const float *residual, float *out)
{
    vec_t squares = vec_zero();
    uint32_t i = 0, tail = a->width % VEC_LANES, whole = a->width - tail;
    for (; i < whole; i += VEC_LANES) {
        vec_t value = vec_load(x + i);
        squares = vec_fma(value, value, squares);
    }
    if (tail) {
        vec_t value = vec_load_some(x + i, tail);
        squares = vec_fma(value, value, squares);
    }
    vec_t scale = vec_set(1 / sqrtf(vec_sum(squares) / (float)a->width + a->eps)), offset = vec_set(a->weight_offset);
    for (i = 0; i < a->width; i += VEC_LANES) {
        uint32_t count = a->width - i < VEC_LANES ? a->width - i : VEC_LANES;
        vec_t weight = vec_add(offset, vec_load_some_as(scalar, a->weight.data, i, count));
        vec_t value = vec_mul(vec_mul(vec_load_some(x + i, count), scale), weight);
        if (residual) value = vec_add(value, vec_load_some(residual + i, count));
        vec_store_some(out + i, value, count);
    }
}

static void norm_rows(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_rmsnorm_t *a = arguments;
    for (size_t row = begin; row < end; row++) {
        const float *x = (const float *)a->x + row * a->width;
        const float *residual = a->residual ? (const float *)a->residual + row * a->width : NULL;
        float *out = (float *)a->out + row * a->width;
        if (a->weight.scalar == QN_SCALAR_F32)
            norm_row(a, QN_SCALAR_F32, x, residual, out);
        else
            norm_row(a, QN_SCALAR_BF16, x, residual, out);
    }
}

void KERNEL(qn_cpu_rmsnorm)(qn_stream_t *stream, const void *arguments)
{
    const qn_rmsnorm_t *a = arguments;
    qn_cpu_split(stream, a->rows, qn_grain(a->width), norm_rows, a);
}
