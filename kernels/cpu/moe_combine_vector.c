/* What is this?      The sum of a token's experts in vectors.
 * State owned:       none.
 * Must never:        run on a machine without the instructions it is compiled for: registry.c sees to it.
 * Read next:         vector.h, moe.c. */
#include "kernels/cpu/vector/vector.h"

#include "kernels/cpu/cpu.h"

static void combine_tokens(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_moe_combine_t *a = arguments;
    for (size_t t = begin; t < end; t++) {
        const float *weights = a->weights + t * a->per_token, *residual = (const float *)a->residual + t * a->width;
        const uint32_t *places = a->places + t * a->per_token;
        float *out = (float *)a->out + t * a->width;
        for (uint32_t i = 0; i < a->width; i += VEC_LANES) {
            uint32_t count = a->width - i < VEC_LANES ? a->width - i : VEC_LANES;
            vec_t sum = vec_load_some(residual + i, count);
            for (uint32_t c = 0; c < a->per_token; c++) {
                const float *expert = (const float *)a->x + (size_t)places[c] * a->width;
                sum = vec_fma(vec_set(weights[c]), vec_load_some(expert + i, count), sum);
            }
            vec_store_some(out + i, sum, count);
        }
    }
}

void KERNEL(qn_cpu_moe_combine)(qn_stream_t *stream, const void *arguments)
{
    const qn_moe_combine_t *a = arguments;
    qn_cpu_split(stream, a->tokens, qn_grain((size_t)a->per_token * a->width / 4), combine_tokens, a);
}
