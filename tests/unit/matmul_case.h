/* One matrix product for the tests of the products: seeded operands in any weight format, a launch with guards, the
 * comparison with the reference. Include after kernel_check.h. */
#ifndef QN_TESTS_UNIT_MATMUL_CASE_H
#define QN_TESTS_UNIT_MATMUL_CASE_H

#include "kernels/weight_layout.h"

typedef struct {
    uint32_t tokens, inputs, outputs;
} shape_t;

typedef struct {
    const char *name;
    qn_layout_t layout;
    qn_scalar_t scalar;
    uint32_t group;
} format_t;

static const format_t FORMATS[] = {
    {"rows f32", QN_LAYOUT_ROWS, QN_SCALAR_F32, 0},
    {"rows bf16", QN_LAYOUT_ROWS, QN_SCALAR_BF16, 0},
    {"panels f32", QN_LAYOUT_PANELS, QN_SCALAR_F32, 0},
    {"panels bf16", QN_LAYOUT_PANELS, QN_SCALAR_BF16, 0},
    {"panels int8", QN_LAYOUT_PANELS, QN_SCALAR_INT8, 0},
    {"panels int4 by 32", QN_LAYOUT_PANELS, QN_SCALAR_INT4, 32},
    {"panels int4 by 64", QN_LAYOUT_PANELS, QN_SCALAR_INT4, 64},
};
#define FORMAT_COUNT (sizeof FORMATS / sizeof FORMATS[0])

typedef struct {
    float *x, *values, *bias_values, *residual; /* values: of the weights as stored, [O, M] */
    qn_weight_t weight, bias;
} operands_t;

CHECK_HELPER void *check_aligned(size_t bytes)
{
    void *data = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    assert_non_null(data);
    return data;
}

/* The values in a format; they become those that the format can say. Owned. */
CHECK_HELPER qn_weight_t check_format(float *values, const shape_t *shape, const format_t *format)
{
    size_t count = (size_t)shape->outputs * shape->inputs;
    if (format->layout == QN_LAYOUT_ROWS) return check_weight(values, count, format->scalar);
    qn_weight_t weight = {.scalar = format->scalar, .layout = QN_LAYOUT_PANELS, .group = format->group};
    uint64_t bytes;
    assert_int_equal(qn_weight_bytes(weight.scalar, weight.layout, weight.group, shape->outputs, shape->inputs, &bytes),
                     QN_OK);
    void *data = aligned_alloc(64, bytes); /* to the byte, so that a read beyond the end is found */
    assert_non_null(data);
    qn_weight_pack(weight.scalar, weight.group, shape->outputs, shape->inputs, 0, qn_panel_count(shape->outputs),
                   values, data);
    weight.data = data;
    for (uint32_t o = 0; o < shape->outputs; o++)
        qn_weight_row(&weight, shape->inputs, o, values + (size_t)o * shape->inputs);
    return weight;
}

/* Activations and weights have planted outliers. Bias: of the other type than the weights where that can be. */
CHECK_HELPER operands_t make_operands(const shape_t *shape, const format_t *format, uint64_t seed)
{
    operands_t o;
    o.x = check_values((size_t)shape->tokens * shape->inputs, seed, true);
    o.values = check_values((size_t)shape->inputs * shape->outputs, seed + 1, seed % 2);
    o.bias_values = check_values(shape->outputs, seed + 2, false);
    o.residual = check_values((size_t)shape->tokens * shape->outputs, seed + 3, false);
    o.weight = check_format(o.values, shape, format);
    o.bias =
        check_weight(o.bias_values, shape->outputs, format->scalar == QN_SCALAR_F32 ? QN_SCALAR_BF16 : QN_SCALAR_F32);
    return o;
}

CHECK_HELPER void free_operands(operands_t *o)
{
    free(o->x);
    free(o->values);
    free(o->bias_values);
    free(o->residual);
    free((void *)o->weight.data);
    free((void *)o->bias.data);
}

/* Runs tokens [first, first + tokens) of the product into `out`, which has a guard word behind it. */
CHECK_HELPER void multiply(const qn_kernel_t *kernel, qn_stream_t *stream, const operands_t *o, const shape_t *shape,
                           uint32_t first, uint32_t tokens, bool extras, float *out)
{
    size_t count = (size_t)tokens * shape->outputs;
    void *scratch = check_aligned(qn_matmul_scratch_bytes(tokens, shape->inputs));
    out[count] = 1234.5f;
    kernel->launch(stream,
                   &(qn_matmul_t){.x = o->x + (size_t)first * shape->inputs,
                                  .tokens = tokens,
                                  .inputs = shape->inputs,
                                  .part_count = 1,
                                  .parts = {{.weight = o->weight,
                                             .bias = extras ? o->bias : (qn_weight_t){0},
                                             .outputs = shape->outputs,
                                             .residual = extras ? o->residual + (size_t)first * shape->outputs : NULL,
                                             .out = out}},
                                  .scratch = scratch});
    assert_true(out[count] == 1234.5f);
    free(scratch);
}

/* The error of a float32 sum grows with the sum of magnitudes, not with the result, and as a random walk with the
 * number of additions to one accumulator. */
CHECK_HELPER float tolerance(const operands_t *o, const shape_t *shape, size_t t, size_t output)
{
    double magnitude = 3;
    for (uint32_t m = 0; m < shape->inputs; m++)
        magnitude += fabs((double)o->x[t * shape->inputs + m] * o->values[output * shape->inputs + m]);
    return (float)(magnitude * 6e-8 * (6 + sqrt(shape->inputs)));
}

CHECK_HELPER void compare(const char *name, const operands_t *o, const shape_t *shape, const format_t *format,
                          const float *got, const float *want)
{
    for (size_t i = 0; i < (size_t)shape->tokens * shape->outputs; i++) {
        float allowed = tolerance(o, shape, i / shape->outputs, i % shape->outputs);
        if (!(fabsf(got[i] - want[i]) <= allowed))
            fail_msg("%s T %u M %u O %u %s: [%zu] is %g, reference %g, allowed %g", name, shape->tokens, shape->inputs,
                     shape->outputs, format->name, i, (double)got[i], (double)want[i], (double)allowed);
    }
}

CHECK_HELPER float *new_output(const shape_t *shape)
{
    float *out = malloc(((size_t)shape->tokens * shape->outputs + 1) * sizeof *out);
    assert_non_null(out);
    return out;
}

#endif
