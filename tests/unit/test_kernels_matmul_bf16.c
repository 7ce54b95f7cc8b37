/* The product of "avx512bf16" with its one instruction emulated, so that its tiles, its packing and its rounding are
 * checked on any machine with AVX-512. */
#include <immintrin.h>

#include "tests/unit/kernel_check.h"
#include "tests/unit/matmul_case.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#endif

#include "kernels/cpu/vector/vector_avx512.h"

/* vdpbf16ps: each lane adds the products of its two bf16 pairs. */
VEC_INLINE vec_t dot_pairs(vec_t weights, vec_t word, vec_t sum)
{
    vec_words_t w = _mm512_castps_si512(weights), x = _mm512_castps_si512(word);
    return vec_fma(vec_low_bf16(w), vec_low_bf16(x), vec_fma(vec_high_bf16(w), vec_high_bf16(x), sum));
}

void qn_cpu_matmul_emulated(qn_stream_t *stream, const void *arguments);
#define KERNEL(name) name##_emulated
#include "kernels/cpu/matmul/matmul_pairs_body.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static const format_t PAIRS = {"panels bf16", QN_LAYOUT_PANELS, QN_SCALAR_BF16, 0};
static const qn_kernel_t EMULATED = {.op = QN_OP_MATMUL, .name = "avx512bf16", .launch = qn_cpu_matmul_emulated};

static const shape_t SHAPES[] = {
    {1, 1, 1},  {1, 257, 33}, {1, 300, 129}, {2, 8, 16},    {3, 255, 40},  {4, 513, 80},
    {7, 9, 17}, {9, 256, 31}, {12, 65, 65},  {13, 511, 34}, {40, 258, 48}, {131, 70, 50},
};
#define SHAPE_COUNT (sizeof SHAPES / sizeof SHAPES[0])

/* Not skipped quietly elsewhere: the reason is in the report. */
static bool runs_here(void) { return qn_kernels_isa() & QN_ISA_AVX512; }

static void test_matmul_bf16_rounds_x_and_agrees_with_reference(void **state)
{
    (void)state;
    if (!runs_here()) skip();
    qn_stream_t *stream = check_stream(2);
    for (size_t i = 0; i < SHAPE_COUNT; i++) {
        const shape_t *shape = &SHAPES[i];
        operands_t o = make_operands(shape, &PAIRS, 5 + i), rounded = o;
        size_t count = (size_t)shape->tokens * shape->inputs;
        float *want = new_output(shape), *got = new_output(shape);
        rounded.x = malloc(count * sizeof(float));
        for (size_t j = 0; j < count; j++)
            rounded.x[j] = qn_bf16_to_f32(qn_f32_to_bf16(o.x[j]));
        multiply(check_kernel(QN_OP_MATMUL, "reference"), stream, &rounded, shape, 0, shape->tokens, i % 2, want);
        multiply(&EMULATED, stream, &o, shape, 0, shape->tokens, i % 2, got);
        compare("avx512bf16", &rounded, shape, &PAIRS, got, want);
        free(rounded.x);
        free(want);
        free(got);
        free_operands(&o);
    }
    qn_stream_destroy(&stream);
}

static void test_matmul_bf16_rows_alone_and_together_have_the_same_bits(void **state)
{
    (void)state;
    if (!runs_here()) skip();
    static const uint32_t PIECES[] = {1, 3, 7, 12, 20};
    shape_t shape = {50, 300, 47};
    operands_t o = make_operands(&shape, &PAIRS, 99);
    float *whole = new_output(&shape), *part = new_output(&shape);
    qn_stream_t *stream = check_stream(3);
    multiply(&EMULATED, stream, &o, &shape, 0, shape.tokens, true, whole);
    for (size_t p = 0; p < sizeof PIECES / sizeof PIECES[0]; p++)
        for (uint32_t t = 0; t < shape.tokens; t += PIECES[p]) {
            uint32_t tokens = shape.tokens - t < PIECES[p] ? shape.tokens - t : PIECES[p];
            multiply(&EMULATED, stream, &o, &shape, t, tokens, true, part);
            assert_memory_equal(part, whole + (size_t)t * shape.outputs, tokens * shape.outputs * sizeof *part);
        }
    qn_stream_destroy(&stream);
    free(whole);
    free(part);
    free_operands(&o);
}

static void test_matmul_bf16_leaves_other_formats_to_avx512(void **state)
{
    (void)state;
    const qn_kernel_t *exact = check_kernel(QN_OP_MATMUL, "avx512");
    if (!exact) skip();
    qn_stream_t *stream = check_stream(2);
    for (size_t f = 0; f < FORMAT_COUNT; f++) {
        if (strcmp(FORMATS[f].name, PAIRS.name) == 0) continue;
        shape_t shape = {5, 70, 20};
        operands_t o = make_operands(&shape, &FORMATS[f], 3);
        float want[5 * 20 + 1], got[5 * 20 + 1];
        multiply(exact, stream, &o, &shape, 0, 5, true, want);
        multiply(&EMULATED, stream, &o, &shape, 0, 5, true, got);
        assert_memory_equal(got, want, sizeof want);
        free_operands(&o);
    }
    qn_stream_destroy(&stream);
}

/* Ties go to even, NaN stays NaN, infinity and signs survive, overflow becomes infinity; as the scalar conversion. */
static void test_matmul_bf16_packs_as_the_scalar_conversion_rounds(void **state)
{
    (void)state;
    if (!runs_here()) skip();
    static const uint32_t BITS[] = {
        0x00000000, 0x80000000, 0x3f800000, 0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff, 0x7f7fffff,
        0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 0xffffffff, 0x00000001, 0x807fffff, 0xc2f6e979,
    };
    enum { COUNT = sizeof BITS / sizeof BITS[0] };
    for (size_t count = 1; count <= COUNT; count++) {
        float values[COUNT], words[COUNT];
        uint16_t packed[2 * COUNT];
        memcpy(values, BITS, sizeof values);
        pack_row(values, count, words);
        memcpy(packed, words, sizeof words);
        for (size_t i = 0; i < count; i++)
            assert_int_equal(packed[i], qn_f32_to_bf16(values[i]));
        for (size_t i = count; i < (count + 7) / 8 * 8; i++)
            assert_int_equal(packed[i], 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_bf16_rounds_x_and_agrees_with_reference),
        cmocka_unit_test(test_matmul_bf16_rows_alone_and_together_have_the_same_bits),
        cmocka_unit_test(test_matmul_bf16_leaves_other_formats_to_avx512),
        cmocka_unit_test(test_matmul_bf16_packs_as_the_scalar_conversion_rounds),
    };
    return cmocka_run_group_tests_name("kernels_matmul_bf16", tests, NULL, NULL);
}
