/* What is this?      LayerNorm in vectors. Sums over a row are LANES chains, then across lanes: one order per row width.
 *                    The first mean may be off by rounding when a row lies far from zero; the pass that sums the squares
 *                    also finds by how much.
 * State owned:       none.
 * Must never:        run on a machine without the instructions it is compiled for: registry.c sees to it.
 * Read next:         vector.h, layernorm.c. */
#include "kernels/cpu/vector/vector.h"

#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vector/vector_functions.h"
#include "kernels/cpu/vector/vector_load.h"

VEC_INLINE uint32_t lanes_at(uint32_t width, uint32_t i) { return width - i < VEC_LANES ? width - i : VEC_LANES; }

VEC_INLINE vec_t load_parameter(const qn_weight_t *weight, uint32_t i, uint32_t count)
{
    if (weight->scalar == QN_SCALAR_F32) return vec_load_some_as(QN_SCALAR_F32, weight->data, i, count);
    return vec_load_some_as(QN_SCALAR_BF16, weight->data, i, count);
}

/* value in the first `count` lanes, zero in the others */
VEC_INLINE vec_t first_lanes(vec_t value, uint32_t count)
{
    return count == VEC_LANES ? value : vec_less(vec_lane_numbers(), vec_set((float)count), value, vec_zero());
}

static void norm_row(const qn_layernorm_t *a, const float *x, float *out)
{
    float width = (float)a->width;
    vec_t sum = vec_zero(), squares = vec_zero(), lost = vec_zero();
    for (uint32_t i = 0; i < a->width; i += VEC_LANES)
        sum = vec_add(sum, vec_load_some(x + i, lanes_at(a->width, i)));
    vec_t mean = vec_set(vec_sum(sum) / width);
    for (uint32_t i = 0; i < a->width; i += VEC_LANES) {
        uint32_t count = lanes_at(a->width, i);
        vec_t value = first_lanes(vec_sub(vec_load_some(x + i, count), mean), count);
        lost = vec_add(lost, value);
        squares = vec_fma(value, value, squares);
    }
    float rest = vec_sum(lost) / width, variance = vec_sum(squares) / width - rest * rest;
    vec_t scale = vec_set(1 / sqrtf((variance > 0 ? variance : 0) + a->eps)), shift = vec_set(rest);
    for (uint32_t i = 0; i < a->width; i += VEC_LANES) {
        uint32_t count = lanes_at(a->width, i);
        vec_t value = vec_sub(vec_sub(vec_load_some(x + i, count), mean), shift);
        value = vec_mul(vec_mul(value, scale), load_parameter(&a->weight, i, count));
        if (a->bias.data) value = vec_add(value, load_parameter(&a->bias, i, count));
        vec_store_some(out + i, value, count);
    }
}

static void norm_rows(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_layernorm_t *a = arguments;
    for (size_t row = begin; row < end; row++)
        norm_row(a, (const float *)a->x + row * a->width, (float *)a->out + row * a->width);
}

void KERNEL(qn_cpu_layernorm)(qn_stream_t *stream, const void *arguments)
{
    const qn_layernorm_t *a = arguments;
    qn_cpu_split(stream, a->rows, qn_grain(a->width), norm_rows, a);
}
