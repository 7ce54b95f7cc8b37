/* The exact matrix products against the reference: every weight format, odd sizes, outliers, several parts, bias and
 * residual; batch invariance to the bit; and for panels the same bits from every instruction set. */
#include "tests/unit/kernel_check.h"
#include "tests/unit/matmul_case.h"

/* Around the edges of every tile: tokens 4, 6, 8, 12 and multiples; inputs 8, 32, 64, 128, 256; outputs 16 and 32. */
static const shape_t SHAPES[] = {
    {1, 1, 1},     {1, 7, 3},    {1, 8, 8},     {1, 16, 16},    {1, 17, 17},   {1, 256, 100}, {1, 300, 129},
    {2, 33, 15},   {2, 129, 65}, {3, 64, 40},   {3, 257, 33},   {4, 31, 16},   {4, 255, 80},  {5, 352, 17},
    {6, 5, 33},    {7, 100, 31}, {8, 16, 33},   {8, 515, 70},   {9, 128, 48},  {11, 95, 64},  {12, 130, 49},
    {13, 127, 32}, {13, 1, 5},   {16, 65, 1},   {17, 24, 64},   {24, 258, 97}, {25, 513, 30}, {63, 40, 20},
    {64, 48, 16},  {65, 15, 9},  {130, 72, 50}, {203, 261, 34},
};
#define SHAPE_COUNT (sizeof SHAPES / sizeof SHAPES[0])

static const char *const NAMES[] = {"reference", "avx2", "avx512"};
#define NAME_COUNT 3

static void check_against_reference(const qn_kernel_t *fast, const shape_t *shape, const format_t *format, bool extras)
{
    operands_t o = make_operands(shape, format, shape->inputs * 131 + shape->outputs);
    qn_stream_t *stream = check_stream(2);
    float *want = new_output(shape), *got = new_output(shape);
    multiply(check_kernel(QN_OP_MATMUL, "reference"), stream, &o, shape, 0, shape->tokens, extras, want);
    multiply(fast, stream, &o, shape, 0, shape->tokens, extras, got);
    compare(fast->name, &o, shape, format, got, want);
    qn_stream_destroy(&stream);
    free(want);
    free(got);
    free_operands(&o);
}

static void test_matmul_every_shape_and_format_agrees_with_reference(void **state)
{
    (void)state;
    for (size_t k = 0; k < CHECK_FAST_COUNT; k++) {
        const qn_kernel_t *fast = check_kernel(QN_OP_MATMUL, CHECK_FAST[k]);
        for (size_t i = 0; fast && i < SHAPE_COUNT; i++)
            for (size_t f = 0; f < FORMAT_COUNT; f++)
                for (int extras = 0; extras < 2; extras++)
                    check_against_reference(fast, &SHAPES[i], &FORMATS[f], extras);
    }
}

/* Each row alone, in pieces that need other tiles, and with other thread counts: the bits it has in the whole batch. */
static void check_rows_alone(const qn_kernel_t *kernel, const shape_t *shape, const format_t *format)
{
    static const uint32_t PIECES[] = {1, 2, 3, 5, 8, 11, 14, 50, 1000};
    operands_t o = make_operands(shape, format, 99);
    float *whole = new_output(shape), *part = new_output(shape);
    qn_stream_t *one = check_stream(1), *five = check_stream(5);
    multiply(kernel, five, &o, shape, 0, shape->tokens, true, whole);
    for (size_t p = 0; p < sizeof PIECES / sizeof PIECES[0]; p++)
        for (uint32_t t = 0; t < shape->tokens; t += PIECES[p]) {
            uint32_t tokens = shape->tokens - t < PIECES[p] ? shape->tokens - t : PIECES[p];
            multiply(kernel, p % 2 ? one : five, &o, shape, t, tokens, true, part);
            if (memcmp(part, whole + (size_t)t * shape->outputs, tokens * shape->outputs * sizeof *part) != 0)
                fail_msg("%s M %u O %u %s: tokens %u..%u differ alone", kernel->name, shape->inputs, shape->outputs,
                         format->name, t, t + tokens);
        }
    qn_stream_destroy(&one);
    qn_stream_destroy(&five);
    free(whole);
    free(part);
    free_operands(&o);
}

static void test_matmul_rows_alone_and_together_have_the_same_bits(void **state)
{
    (void)state;
    static const shape_t BIG[] = {{70, 256, 96}, {13, 100, 37}, {6, 353, 16}, {210, 301, 40}};
    for (size_t n = 1; n < NAME_COUNT; n++) {
        const qn_kernel_t *kernel = check_kernel(QN_OP_MATMUL, NAMES[n]);
        for (size_t i = 0; kernel && i < 4; i++)
            for (size_t f = 0; f < FORMAT_COUNT; f++)
                check_rows_alone(kernel, &BIG[i], &FORMATS[f]);
    }
}

/* One chain of additions per output, whatever the width of a vector. */
static void test_matmul_panels_have_the_same_bits_on_avx2_and_avx512(void **state)
{
    (void)state;
    const qn_kernel_t *narrow = check_kernel(QN_OP_MATMUL, "avx2"), *wide = check_kernel(QN_OP_MATMUL, "avx512");
    if (!narrow || !wide) skip();
    qn_stream_t *stream = check_stream(2);
    for (size_t i = 0; i < SHAPE_COUNT; i++)
        for (size_t f = 0; f < FORMAT_COUNT; f++) {
            if (FORMATS[f].layout != QN_LAYOUT_PANELS) continue;
            operands_t o = make_operands(&SHAPES[i], &FORMATS[f], 17);
            float *a = new_output(&SHAPES[i]), *b = new_output(&SHAPES[i]);
            multiply(narrow, stream, &o, &SHAPES[i], 0, SHAPES[i].tokens, true, a);
            multiply(wide, stream, &o, &SHAPES[i], 0, SHAPES[i].tokens, true, b);
            assert_memory_equal(a, b, (size_t)SHAPES[i].tokens * SHAPES[i].outputs * sizeof *a);
            free(a);
            free(b);
            free_operands(&o);
        }
    qn_stream_destroy(&stream);
}

/* Large enough for several threads to share it, so that parts begin and end within a thread's range. */
static void check_parts(const qn_kernel_t *kernel, uint32_t tokens, uint32_t inputs, const uint32_t outputs[3],
                        const size_t formats[3])
{
    qn_stream_t *stream = check_stream(3);
    void *scratch = check_aligned(qn_matmul_scratch_bytes(tokens, inputs));
    qn_matmul_t a = {.tokens = tokens, .inputs = inputs, .part_count = 3, .scratch = scratch};
    operands_t o[3];
    float *single[3], *joint[3];
    for (int p = 0; p < 3; p++) {
        shape_t shape = {tokens, inputs, outputs[p]};
        o[p] = make_operands(&shape, &FORMATS[formats[p]], 7);
        single[p] = new_output(&shape);
        joint[p] = new_output(&shape);
        multiply(kernel, stream, &o[p], &shape, 0, tokens, true, single[p]);
        a.parts[p] = (qn_matmul_part_t){.weight = o[p].weight,
                                        .bias = o[p].bias,
                                        .residual = o[p].residual,
                                        .out = joint[p],
                                        .outputs = outputs[p]};
    }
    a.x = o[0].x; /* the same seed gives all three the same x */
    kernel->launch(stream, &a);
    for (int p = 0; p < 3; p++) {
        assert_memory_equal(joint[p], single[p], tokens * outputs[p] * sizeof(float));
        free(single[p]);
        free(joint[p]);
        free_operands(&o[p]);
    }
    free(scratch);
    qn_stream_destroy(&stream);
}

static void test_matmul_three_parts_give_what_three_launches_give(void **state)
{
    (void)state;
    static const struct {
        uint32_t tokens, inputs, outputs[3];
        size_t formats[3];
    } CASES[] = {
        {4, 50, {33, 5, 16}, {1, 0, 1}},      {4, 50, {33, 5, 16}, {3, 2, 4}},     {1, 600, {200, 90, 90}, {3, 3, 3}},
        {1, 600, {200, 90, 90}, {4, 1, 5}},   {9, 300, {100, 300, 17}, {5, 6, 2}}, {40, 300, {100, 300, 17}, {3, 0, 6}},
        {250, 130, {40, 16, 100}, {4, 4, 3}},
    };
    for (size_t n = 0; n < NAME_COUNT; n++) {
        const qn_kernel_t *kernel = check_kernel(QN_OP_MATMUL, NAMES[n]);
        for (size_t i = 0; kernel && i < sizeof CASES / sizeof CASES[0]; i++)
            check_parts(kernel, CASES[i].tokens, CASES[i].inputs, CASES[i].outputs, CASES[i].formats);
    }
}

static void test_matmul_residual_may_be_the_output(void **state)
{
    (void)state;
    static const shape_t ALIASED[] = {{3, 40, 24}, {9, 40, 24}, {30, 300, 47}};
    qn_stream_t *stream = check_stream(2);
    for (size_t n = 0; n < NAME_COUNT; n++) {
        const qn_kernel_t *kernel = check_kernel(QN_OP_MATMUL, NAMES[n]);
        for (size_t i = 0; kernel && i < 3 * FORMAT_COUNT; i++) {
            const shape_t *shape = &ALIASED[i % 3];
            size_t bytes = (size_t)shape->tokens * shape->outputs * sizeof(float);
            operands_t o = make_operands(shape, &FORMATS[i / 3], 3);
            float *want = new_output(shape), *got = o.residual;
            multiply(kernel, stream, &o, shape, 0, shape->tokens, true, want);
            void *scratch = check_aligned(qn_matmul_scratch_bytes(shape->tokens, shape->inputs));
            kernel->launch(stream, &(qn_matmul_t){.x = o.x,
                                                  .tokens = shape->tokens,
                                                  .inputs = shape->inputs,
                                                  .part_count = 1,
                                                  .scratch = scratch,
                                                  .parts = {{.weight = o.weight,
                                                             .bias = o.bias,
                                                             .outputs = shape->outputs,
                                                             .residual = got,
                                                             .out = got}}});
            assert_memory_equal(got, want, bytes);
            free(want);
            free(scratch);
            free_operands(&o);
        }
    }
    qn_stream_destroy(&stream);
}

/* An expert that no token chose. */
static void test_matmul_no_tokens_writes_nothing(void **state)
{
    (void)state;
    shape_t shape = {1, 40, 24};
    qn_stream_t *stream = check_stream(2);
    for (size_t n = 0; n < NAME_COUNT; n++) {
        const qn_kernel_t *kernel = check_kernel(QN_OP_MATMUL, NAMES[n]);
        for (size_t f = 0; kernel && f < FORMAT_COUNT; f++) {
            operands_t o = make_operands(&shape, &FORMATS[f], 3);
            float out = 0;
            multiply(kernel, stream, &o, &shape, 0, 0, true, &out);
            free_operands(&o);
        }
    }
    qn_stream_destroy(&stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_every_shape_and_format_agrees_with_reference),
        cmocka_unit_test(test_matmul_rows_alone_and_together_have_the_same_bits),
        cmocka_unit_test(test_matmul_panels_have_the_same_bits_on_avx2_and_avx512),
        cmocka_unit_test(test_matmul_three_parts_give_what_three_launches_give),
        cmocka_unit_test(test_matmul_residual_may_be_the_output),
        cmocka_unit_test(test_matmul_no_tokens_writes_nothing),
    };
    return cmocka_run_group_tests_name("kernels_matmul", tests, NULL, NULL);
}
