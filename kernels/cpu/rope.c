/* What is this?      Rotary position embedding: the angles of a step, and the rotation of q and k.
 * State owned:       none.
 * Must never:        form an angle in less than float32 precision of position * frequency.
 * Read next:         common/model/model_config.c (where the frequencies come from). */
#include <math.h>

#include "kernels/cpu/cpu.h"

#define QN_ROPE_PAIRS_MAX 256 /* half of model_config.h's QN_HEAD_DIM_MAX: a row on the stack */

/* Radians per position for a sequence of `length` tokens under dynamic scaling, "NTK-aware" (transformers'
 * modeling_rope_utils): beyond the original context the base grows with the length. */
static void stretch_frequencies(const qn_rope_angles_t *a, uint32_t length, float *ret_frequencies)
{
    double dim = a->head_dim, theta = a->theta;
    if (length > a->original_positions)
        theta *= pow((double)a->factor * length / a->original_positions - ((double)a->factor - 1), dim / (dim - 2));
    for (uint32_t i = 0; i < a->head_dim / 2; i++)
        ret_frequencies[i] = (float)pow(theta, -2.0 * i / dim);
}

static void make_angles(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_rope_angles_t *a = arguments;
    uint32_t pairs = a->head_dim / 2, length = 0;
    float stretched[QN_ROPE_PAIRS_MAX];
    const float *frequencies = a->lengths ? stretched : a->frequencies;
    QN_ASSERT(pairs <= QN_ROPE_PAIRS_MAX);
    for (size_t t = begin; t < end; t++) {
        if (a->lengths && a->lengths[t] != length) stretch_frequencies(a, length = a->lengths[t], stretched);
        float *cosines = a->out + t * a->head_dim, *sines = cosines + pairs;
        for (uint32_t i = 0; i < pairs; i++) {
            /* The product in float32 and the functions of it exact: what transformers computes. */
            float angle = (float)a->positions[t] * frequencies[i];
            cosines[i] = cosf(angle) * a->scale;
            sines[i] = sinf(angle) * a->scale;
        }
    }
}

void qn_cpu_rope_angles(qn_stream_t *stream, const void *arguments)
{
    const qn_rope_angles_t *a = arguments;
    qn_cpu_split(stream, a->tokens, qn_grain(20 * (size_t)a->head_dim), make_angles, a);
}

static void rotate(float *x, const float *cosines, const float *sines, uint32_t pairs)
{
    for (uint32_t i = 0; i < pairs; i++) {
        float low = x[i], high = x[i + pairs];
        x[i] = low * cosines[i] - high * sines[i];
        x[i + pairs] = high * cosines[i] + low * sines[i];
    }
}

static void rotate_tokens(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_rope_t *a = arguments;
    uint32_t pairs = a->head_dim / 2;
    for (size_t t = begin; t < end; t++) {
        const float *cosines = a->angles + t * a->head_dim, *sines = cosines + pairs;
        float *q = (float *)a->q + t * a->heads * a->head_dim, *k = (float *)a->k + t * a->kv_heads * a->head_dim;
        for (uint32_t h = 0; h < a->heads; h++)
            rotate(q + (size_t)h * a->head_dim, cosines, sines, pairs);
        for (uint32_t h = 0; h < a->kv_heads; h++)
            rotate(k + (size_t)h * a->head_dim, cosines, sines, pairs);
    }
}

void qn_cpu_rope(qn_stream_t *stream, const void *arguments)
{
    const qn_rope_t *a = arguments;
    qn_cpu_split(stream, a->tokens, qn_grain((size_t)(a->heads + a->kv_heads) * a->head_dim), rotate_tokens, a);
}
