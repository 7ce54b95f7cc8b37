/* What is this?      Reference matrix product: one dot product in double per output.
 * State owned:       none.
 * Must never:        be made fast; it is what the others are measured against.
 * Read next:         matmul_avx2.c, matmul_avx512.c. */
#include "kernels/cpu/cpu.h"

static double dot(const float *x, const qn_weight_t *weight, size_t row, uint32_t inputs)
{
    double sum = 0;
    if (weight->scalar == QN_SCALAR_F32) {
        const float *w = (const float *)weight->data + row * inputs;
        for (uint32_t m = 0; m < inputs; m++) sum += (double)x[m] * w[m];
    } else {
        const uint16_t *w = (const uint16_t *)weight->data + row * inputs;
        for (uint32_t m = 0; m < inputs; m++) sum += (double)x[m] * qn_bf16_to_f32(w[m]);
    }
    return sum;
}

static void multiply_part(const qn_matmul_t *a, const qn_matmul_part_t *part, size_t begin, size_t end)
{
    for (uint32_t t = 0; t < a->tokens; t++) {
        const float *x = (const float *)a->x + (size_t)t * a->inputs;
        for (size_t o = begin; o < end; o++) {
            size_t at = (size_t)t * part->outputs + o;
            double sum = dot(x, &part->weight, o, a->inputs);
            if (part->bias.data) sum += qn_load(part->bias.data, part->bias.scalar, o);
            if (part->residual) sum += ((const float *)part->residual)[at];
            ((float *)part->out)[at] = (float)sum;
        }
    }
}

/* Items are the outputs of all parts, one part after the other. */
static void multiply(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    (void)thread;
    const qn_matmul_t *a = arguments;
    for (uint32_t p = 0; p < a->part_count; p++) {
        size_t outputs = a->parts[p].outputs;
        if (begin < outputs) multiply_part(a, &a->parts[p], begin, end < outputs ? end : outputs);
        if (end <= outputs) return;
        begin = begin > outputs ? begin - outputs : 0;
        end -= outputs;
    }
}

void qn_cpu_matmul(qn_stream_t *stream, const void *arguments)
{
    const qn_matmul_t *a = arguments;
    size_t outputs = 0;
    for (uint32_t p = 0; p < a->part_count; p++) outputs += a->parts[p].outputs;
    qn_cpu_split(stream, outputs, qn_grain((size_t)a->tokens * a->inputs), multiply, a);
}
