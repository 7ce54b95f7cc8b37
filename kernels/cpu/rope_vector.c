/* What is this?      The rotation in vectors.
 * State owned:       none.
 * Must never:        run on a machine without the instructions it is compiled for: registry.c sees to it.
 * Read next:         vector.h, rope.c. */
#include "kernels/cpu/vector/vector.h"

#include "kernels/cpu/cpu.h"

VEC_INLINE void rotate_pairs(float *x, const float *cosines, const float *sines, uint32_t pairs, uint32_t count)
{
    vec_t low = vec_load_some(x, count), high = vec_load_some(x + pairs, count);
    vec_t cosine = vec_load_some(cosines, count), sine = vec_load_some(sines, count);
    vec_store_some(x, vec_sub(vec_mul(low, cosine), vec_mul(high, sine)), count);
    vec_store_some(x + pairs, vec_fma(high, cosine, vec_mul(low, sine)), count);
}

static void rotate_heads(float *x, const float *angles, uint32_t heads, uint32_t head_dim)
{
    uint32_t pairs = head_dim / 2, whole = pairs / VEC_LANES * VEC_LANES;
    for (uint32_t h = 0; h < heads; h++, x += head_dim) {
        for (uint32_t i = 0; i < whole; i += VEC_LANES)
            rotate_pairs(x + i, angles + i, angles + pairs + i, pairs, VEC_LANES);
        if (whole < pairs) rotate_pairs(x + whole, angles + whole, angles + pairs + whole, pairs, pairs - whole);
    }
}

static void rotate_tokens(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_rope_t *a = arguments;
    for (size_t t = begin; t < end; t++) {
        const float *angles = a->angles + t * (a->head_dim / 2 * 2);
        rotate_heads((float *)a->q + t * a->heads * a->head_dim, angles, a->heads, a->head_dim);
        rotate_heads((float *)a->k + t * a->kv_heads * a->head_dim, angles, a->kv_heads, a->head_dim);
    }
}

void KERNEL(qn_cpu_rope)(qn_stream_t *stream, const void *arguments)
{
    const qn_rope_t *a = arguments;
    qn_cpu_split(stream, a->tokens, qn_grain((size_t)(a->heads + a->kv_heads) * a->head_dim / 4), rotate_tokens, a);
}
