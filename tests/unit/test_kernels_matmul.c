/* The matrix products against the reference: odd sizes, outliers, both weight types, several parts, bias and residual;
 * and batch invariance to the bit. */
#include "tests/unit/kernel_check.h"

typedef struct { uint32_t tokens, inputs, outputs; } shape_t;

static const shape_t SHAPES[] = {
    { 1, 1, 1 }, { 1, 7, 3 }, { 1, 8, 8 }, { 1, 16, 16 }, { 1, 17, 17 }, { 1, 256, 100 }, { 2, 33, 15 }, { 3, 64, 40 },
    { 4, 31, 16 }, { 5, 352, 17 }, { 7, 100, 31 }, { 8, 16, 33 }, { 9, 128, 48 }, { 16, 65, 1 }, { 17, 24, 64 },
    { 63, 40, 20 }, { 64, 48, 16 }, { 65, 15, 9 }, { 130, 72, 50 },
};
#define SHAPE_COUNT (sizeof SHAPES / sizeof SHAPES[0])

typedef struct {
    float *x, *values, *bias_values, *residual;
    qn_weight_t weight, bias;
} operands_t;

static operands_t make_operands(const shape_t *shape, qn_scalar_t scalar, uint64_t seed)
{
    operands_t o;
    size_t weights = (size_t)shape->inputs * shape->outputs;
    o.x = check_values((size_t)shape->tokens * shape->inputs, seed, true);
    o.values = check_values(weights, seed + 1, false);
    o.bias_values = check_values(shape->outputs, seed + 2, false);
    o.residual = check_values((size_t)shape->tokens * shape->outputs, seed + 3, false);
    o.weight = check_weight(o.values, weights, scalar);
    o.bias = check_weight(o.bias_values, shape->outputs, scalar);
    return o;
}

static void free_operands(operands_t *o)
{
    free(o->x);
    free(o->values);
    free(o->bias_values);
    free(o->residual);
    free((void *)o->weight.data);
    free((void *)o->bias.data);
}

/* Runs tokens [first, first + tokens) of the product into `out`, which has a guard word behind it. */
static void multiply(const qn_kernel_t *kernel, qn_stream_t *stream, const operands_t *o, const shape_t *shape,
                     uint32_t first, uint32_t tokens, bool extras, float *out)
{
    size_t count = (size_t)tokens * shape->outputs;
    out[count] = 1234.5f;
    kernel->launch(stream, &(qn_matmul_t){
        .x = o->x + (size_t)first * shape->inputs, .tokens = tokens, .inputs = shape->inputs, .part_count = 1,
        .parts = { { .weight = o->weight, .bias = extras ? o->bias : (qn_weight_t){ 0 }, .outputs = shape->outputs,
                     .residual = extras ? o->residual + (size_t)first * shape->outputs : NULL, .out = out } } });
    assert_true(out[count] == 1234.5f);
}

/* The error of a float32 sum grows with the sum of magnitudes, not with the result. */
static float tolerance(const operands_t *o, const shape_t *shape, size_t t, size_t output)
{
    double magnitude = 3;
    for (uint32_t m = 0; m < shape->inputs; m++)
        magnitude += fabs((double)o->x[t * shape->inputs + m] * o->values[output * shape->inputs + m]);
    return (float)(magnitude * 4e-7);
}

static void check_against_reference(const qn_kernel_t *fast, const shape_t *shape, qn_scalar_t scalar, bool extras)
{
    operands_t o = make_operands(shape, scalar, shape->inputs * 131 + shape->outputs);
    qn_stream_t *stream = check_stream(2);
    size_t count = (size_t)shape->tokens * shape->outputs;
    float *want = malloc((count + 1) * sizeof *want), *got = malloc((count + 1) * sizeof *got);
    multiply(check_kernel(QN_OP_MATMUL, "reference"), stream, &o, shape, 0, shape->tokens, extras, want);
    multiply(fast, stream, &o, shape, 0, shape->tokens, extras, got);
    for (size_t i = 0; i < count; i++) {
        float allowed = tolerance(&o, shape, i / shape->outputs, i % shape->outputs);
        if (!(fabsf(got[i] - want[i]) <= allowed))
            fail_msg("%s T %u M %u O %u scalar %d: [%zu] is %g, reference %g, allowed %g", fast->name, shape->tokens,
                     shape->inputs, shape->outputs, scalar, i, (double)got[i], (double)want[i], (double)allowed);
    }
    qn_stream_destroy(&stream);
    free(want);
    free(got);
    free_operands(&o);
}

static void test_matmul_every_shape_agrees_with_reference(void **state)
{
    (void)state;
    for (size_t k = 0; k < CHECK_FAST_COUNT; k++) {
        const qn_kernel_t *fast = check_kernel(QN_OP_MATMUL, CHECK_FAST[k]);
        for (size_t i = 0; fast && i < SHAPE_COUNT; i++)
            for (int mode = 0; mode < 4; mode++)
                check_against_reference(fast, &SHAPES[i], mode & 1 ? QN_SCALAR_F32 : QN_SCALAR_BF16, mode & 2);
    }
}

/* Each row alone, in pieces of 3, and with other thread counts: the same bits as in the whole batch. */
static void check_rows_alone(const qn_kernel_t *kernel, const shape_t *shape, qn_scalar_t scalar)
{
    operands_t o = make_operands(shape, scalar, 99);
    size_t count = (size_t)shape->tokens * shape->outputs;
    float *whole = malloc((count + 1) * sizeof *whole), *part = malloc((count + 1) * sizeof *part);
    qn_stream_t *one = check_stream(1), *three = check_stream(3);
    multiply(kernel, three, &o, shape, 0, shape->tokens, true, whole);
    static const uint32_t PIECES[] = { 1, 3, 8, 1000 };
    for (size_t p = 0; p < 4; p++)
        for (uint32_t t = 0; t < shape->tokens; t += PIECES[p]) {
            uint32_t tokens = shape->tokens - t < PIECES[p] ? shape->tokens - t : PIECES[p];
            multiply(kernel, one, &o, shape, t, tokens, true, part);
            assert_memory_equal(part, whole + (size_t)t * shape->outputs, tokens * shape->outputs * sizeof *part);
        }
    qn_stream_destroy(&one);
    qn_stream_destroy(&three);
    free(whole);
    free(part);
    free_operands(&o);
}

static void test_matmul_rows_alone_and_together_have_the_same_bits(void **state)
{
    (void)state;
    static const char *const NAMES[] = { "reference", "avx2", "avx512" };
    static const shape_t BIG[] = { { 70, 256, 96 }, { 13, 100, 37 }, { 6, 353, 16 } };
    for (size_t n = 0; n < 3; n++) {
        const qn_kernel_t *kernel = check_kernel(QN_OP_MATMUL, NAMES[n]);
        for (size_t i = 0; kernel && i < 3; i++) {
            check_rows_alone(kernel, &BIG[i], QN_SCALAR_BF16);
            check_rows_alone(kernel, &BIG[i], QN_SCALAR_F32);
        }
    }
}

static void test_matmul_three_parts_give_what_three_launches_give(void **state)
{
    (void)state;
    static const uint32_t OUTPUTS[3] = { 33, 5, 16 };
    static const char *const NAMES[] = { "reference", "avx2", "avx512" };
    qn_stream_t *stream = check_stream(3);
    for (size_t n = 0; n < 3; n++) {
        const qn_kernel_t *kernel = check_kernel(QN_OP_MATMUL, NAMES[n]);
        if (!kernel) continue;
        operands_t o[3];
        float single[3][4 * 40], joint[3][4 * 40];
        qn_matmul_t a = { .tokens = 4, .inputs = 50, .part_count = 3 };
        for (int p = 0; p < 3; p++) {
            shape_t shape = { 4, 50, OUTPUTS[p] };
            o[p] = make_operands(&shape, p == 1 ? QN_SCALAR_F32 : QN_SCALAR_BF16, 7);
            multiply(kernel, stream, &o[p], &shape, 0, 4, true, single[p]);
            a.parts[p] = (qn_matmul_part_t){ .weight = o[p].weight, .bias = o[p].bias, .residual = o[p].residual,
                                             .out = joint[p], .outputs = OUTPUTS[p] };
        }
        a.x = o[0].x;  /* the same seed gives all three the same x */
        kernel->launch(stream, &a);
        for (int p = 0; p < 3; p++) {
            assert_memory_equal(joint[p], single[p], 4 * OUTPUTS[p] * sizeof(float));
            free_operands(&o[p]);
        }
    }
    qn_stream_destroy(&stream);
}

static void test_matmul_residual_may_be_the_output(void **state)
{
    (void)state;
    static const char *const NAMES[] = { "reference", "avx2", "avx512" };
    shape_t shape = { 9, 40, 24 };
    qn_stream_t *stream = check_stream(2);
    for (size_t n = 0; n < 3; n++) {
        const qn_kernel_t *kernel = check_kernel(QN_OP_MATMUL, NAMES[n]);
        if (!kernel) continue;
        operands_t o = make_operands(&shape, QN_SCALAR_BF16, 3);
        float want[9 * 24 + 1], got[9 * 24 + 1];
        multiply(kernel, stream, &o, &shape, 0, 9, true, want);
        memcpy(got, o.residual, 9 * 24 * sizeof *got);
        kernel->launch(stream, &(qn_matmul_t){ .x = o.x, .tokens = 9, .inputs = 40, .part_count = 1,
            .parts = { { .weight = o.weight, .bias = o.bias, .outputs = 24, .residual = got, .out = got } } });
        assert_memory_equal(got, want, 9 * 24 * sizeof *got);
        free_operands(&o);
    }
    qn_stream_destroy(&stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_every_shape_agrees_with_reference),
        cmocka_unit_test(test_matmul_rows_alone_and_together_have_the_same_bits),
        cmocka_unit_test(test_matmul_three_parts_give_what_three_launches_give),
        cmocka_unit_test(test_matmul_residual_may_be_the_output),
    };
    return cmocka_run_group_tests_name("kernels_matmul", tests, NULL, NULL);
}
