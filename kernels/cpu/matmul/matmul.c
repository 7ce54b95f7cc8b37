/* What is this?      Reference matrix product: one dot product in double per output, of weights in any format.
 * State owned:       none.
 * Must never:        be made fast; it is what the others are measured against.
 * Read next:         weight_layout.h for the formats; matmul_avx2.c, matmul_avx512.c. */
#include "kernels/cpu/cpu.h"
#include "kernels/weight_layout.h"

#define SPAN 256  /* inputs of a weight row at a time, as f32 on the stack */
#define TOKENS 16 /* tokens that share them */

/* sums[t] = dot of row `output` and x of token first + t, inputs ascending. */
static void dot(const qn_matmul_t *a, const qn_weight_t *weight, size_t output, size_t first, size_t tokens,
                double *ret_sums)
{
    float values[SPAN];
    const float *x = (const float *)a->x + first * a->inputs;
    for (size_t t = 0; t < tokens; t++)
        ret_sums[t] = 0;
    for (size_t m = 0; m < a->inputs; m += SPAN) {
        size_t count = a->inputs - m < SPAN ? a->inputs - m : SPAN;
        qn_weight_span(weight, a->inputs, output, m, count, values);
        for (size_t t = 0; t < tokens; t++) {
            for (size_t i = 0; i < count; i++)
                ret_sums[t] += (double)x[t * a->inputs + m + i] * values[i];
        }
    }
}

static void multiply_output(const qn_matmul_t *a, const qn_matmul_part_t *part, size_t output)
{
    double sums[TOKENS];
    for (size_t first = 0; first < a->tokens; first += TOKENS) {
        size_t tokens = a->tokens - first < TOKENS ? a->tokens - first : TOKENS;
        dot(a, &part->weight, output, first, tokens, sums);
        for (size_t t = 0; t < tokens; t++) {
            size_t at = (first + t) * part->outputs + output;
            double sum = sums[t];
            if (part->bias.data) sum += qn_load(part->bias.data, part->bias.scalar, output);
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
        for (size_t o = begin; o < end && o < outputs; o++)
            multiply_output(a, &a->parts[p], o);
        if (end <= outputs) return;
        begin = begin > outputs ? begin - outputs : 0;
        end -= outputs;
    }
}

void qn_cpu_matmul(qn_stream_t *stream, const void *arguments)
{
    const qn_matmul_t *a = arguments;
    size_t outputs = 0;
    for (uint32_t p = 0; p < a->part_count; p++)
        outputs += a->parts[p].outputs;
    qn_cpu_split(stream, outputs, qn_grain((size_t)a->tokens * a->inputs), multiply, a);
}
