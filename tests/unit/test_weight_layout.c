/* The layouts of weights: bytes of examples worked out by hand, round trips at odd sizes, errors of quantisation,
 * values at the ends of the number formats, and the same bytes from every instruction set. */
#include <float.h>

#include "kernels/cpu/matmul/weight_pack.h"
#include "kernels/weight_layout.h"
#include "tests/unit/kernel_check.h"

typedef struct {
    qn_scalar_t scalar;
    uint32_t group;
    const char *name;
} format_t;

static const format_t FORMATS[] = {
    {QN_SCALAR_F32, 0, "f32"},       {QN_SCALAR_BF16, 0, "bf16"},     {QN_SCALAR_INT8, 0, "int8"},
    {QN_SCALAR_INT4, 32, "int4/32"}, {QN_SCALAR_INT4, 64, "int4/64"},
};
#define FORMAT_COUNT (sizeof FORMATS / sizeof FORMATS[0])

static const uint32_t SIZES[] = {1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129};
#define SIZE_COUNT (sizeof SIZES / sizeof SIZES[0])

static uint64_t bytes_of(const format_t *format, uint64_t outputs, uint64_t inputs)
{
    uint64_t bytes = 0;
    assert_int_equal(qn_weight_bytes(format->scalar, QN_LAYOUT_PANELS, format->group, outputs, inputs, &bytes), QN_OK);
    assert_int_equal(bytes % 64, 0);
    return bytes;
}

/* Packs [outputs, inputs] with a guard behind; the weight's data is owned. */
static qn_weight_t pack(const format_t *format, uint64_t outputs, uint64_t inputs, const float *rows)
{
    uint64_t bytes = bytes_of(format, outputs, inputs);
    uint8_t *data = aligned_alloc(64, bytes + 64);
    memset(data, 0xa5, bytes + 64);
    qn_weight_pack(format->scalar, format->group, outputs, inputs, 0, qn_panel_count(outputs), rows, data);
    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(data[bytes + i], 0xa5);
    return (qn_weight_t){.data = data, .scalar = format->scalar, .layout = QN_LAYOUT_PANELS, .group = format->group};
}

/* ---- by hand ---- */

static const float TINY[2][3] = {{127, -64, 1}, {-254, 2, 0}};

static void test_weight_layout_f32_has_the_stated_bytes(void **state)
{
    (void)state;
    qn_weight_t weight = pack(&FORMATS[0], 2, 3, TINY[0]);
    const float *data = weight.data;
    for (int m = 0; m < 3; m++) {
        for (int r = 0; r < 16; r++)
            assert_true(data[m * 16 + r] == (r < 2 ? TINY[r][m] : 0));
    }
    free((void *)weight.data);
}

static void test_weight_layout_bf16_has_the_stated_bytes(void **state)
{
    (void)state;
    qn_weight_t weight = pack(&FORMATS[1], 2, 3, TINY[0]);
    static const uint16_t want[2][32] = {{0x42fe, 0xc280, 0xc37e, 0x4000}, {0x3f80, 0, 0, 0}};
    assert_memory_equal(weight.data, want, sizeof want);
    free((void *)weight.data);
}

static void test_weight_layout_int8_has_the_stated_bytes(void **state)
{
    (void)state;
    qn_weight_t weight = pack(&FORMATS[2], 2, 3, TINY[0]);
    const uint8_t *data = weight.data;
    static const uint8_t first[8] = {255, 64, 129, 128, 1, 129, 128, 128};
    assert_memory_equal(data, first, sizeof first);
    for (int i = 8; i < 64 * 16; i++)
        assert_int_equal(data[i], 128);
    float scales[16];
    memcpy(scales, data + 64 * 16, sizeof scales);
    for (int r = 0; r < 16; r++)
        assert_true(scales[r] == (r == 0 ? 1.0f : r == 1 ? 2.0f : 0));
    assert_int_equal(bytes_of(&FORMATS[2], 2, 3), 64 * 16 + 64);
    free((void *)weight.data);
}

static void test_weight_layout_int4_has_the_stated_bytes(void **state)
{
    (void)state;
    /* Inputs 0, 1, 5 and 8 of the first group; input 33 is the second group's second. */
    float rows[2][34] = {{-8, 7, 0, 0, 0, 1, 0, 0, 3}, {16, -14, 0, 0, 0, -2, 0, 0, -6}};
    rows[0][33] = 0.5f;
    qn_weight_t weight = pack(&FORMATS[3], 2, 34, rows[0]);
    const uint8_t *data = weight.data;
    static const uint8_t first[8] = {0x80, 0x9f, 0x88, 0x88, 0x80, 0x9f, 0x88, 0x88};
    assert_memory_equal(data, first, 8);
    static const uint8_t second[8] = {0x8b, 0x88, 0x88, 0x88, 0x8b, 0x88, 0x88, 0x88};
    assert_memory_equal(data + 64, second, 8);
    assert_int_equal(data[32 * 16 / 2 + 1], 0x80); /* group 1, input 1: -8 times a negative scale */
    uint16_t scales[2][16];
    memcpy(scales, data + 2 * 32 * 16 / 2, sizeof scales);
    assert_int_equal(scales[0][0], 0x3f80); /* 1 */
    assert_int_equal(scales[0][1], 0xc000); /* -2: the extreme 16 is -8 times it */
    assert_int_equal(scales[1][0], 0xbd80); /* -1/16 */
    assert_int_equal(scales[1][1], 0);
    for (int r = 2; r < 16; r++)
        assert_int_equal(scales[0][r] | scales[1][r], 0);
    assert_int_equal(bytes_of(&FORMATS[3], 2, 34), 2 * (32 / 2 + 2) * 16);
    free((void *)weight.data);
}

static void test_weight_layout_int4_of_64_has_one_scale_for_64(void **state)
{
    (void)state;
    float row[64] = {0};
    row[0] = -8;
    row[63] = 5;
    qn_weight_t weight = pack(&FORMATS[4], 1, 64, row);
    const uint8_t *data = weight.data;
    assert_int_equal(data[0], 0x80);
    assert_int_equal(data[7 * 64 + 3], 0xd8); /* chunk 7, row 0, byte 3: the high nibble is input 8*7 + 4 + 3 */
    assert_true(qn_weight_get(&weight, 64, 0, 0) == -8 && qn_weight_get(&weight, 64, 0, 63) == 5);
    free((void *)weight.data);
}

/* ---- round trips ---- */

/* The largest error the format may make in row `values`; the scale is the format's own. */
static float allowed_error(const format_t *format, const float *values, uint64_t inputs, uint64_t input)
{
    float most = 0;
    uint64_t begin = 0, end = inputs;
    if (format->scalar == QN_SCALAR_INT4) {
        begin = input / format->group * format->group;
        end = begin + format->group < inputs ? begin + format->group : inputs;
    }
    for (uint64_t m = begin; m < end; m++)
        most = fmaxf(most, fabsf(values[m]));
    switch (format->scalar) {
    case QN_SCALAR_F32: return 0;
    case QN_SCALAR_BF16: return fabsf(values[input]) / 256;
    case QN_SCALAR_INT8: return most / 127 / 2 * 1.00001f;
    case QN_SCALAR_INT4: return most / 5; /* a step is about a seventh, and the ends may be cut off */
    }
    return 0;
}

static void check_round_trip(const format_t *format, uint64_t outputs, uint64_t inputs)
{
    float *rows = check_values(outputs * inputs, outputs * 1009 + inputs, true), *row = malloc(inputs * sizeof *row);
    qn_weight_t weight = pack(format, outputs, inputs, rows);
    for (uint64_t o = 0; o < outputs; o++) {
        qn_weight_row(&weight, inputs, o, row);
        for (uint64_t m = 0; m < inputs; m++) {
            float value = qn_weight_get(&weight, inputs, o, m), error = fabsf(value - rows[o * inputs + m]);
            assert_true(value == row[m]);
            if (!(error <= allowed_error(format, rows + o * inputs, inputs, m)))
                fail_msg("%s [%llu, %llu] at [%llu, %llu]: %g became %g", format->name, (unsigned long long)outputs,
                         (unsigned long long)inputs, (unsigned long long)o, (unsigned long long)m,
                         (double)rows[o * inputs + m], (double)value);
        }
    }
    for (uint64_t o = outputs; o < qn_panel_count(outputs) * 16; o++) {
        for (uint64_t m = 0; m < inputs; m++)
            assert_true(qn_weight_get(&weight, inputs, o, m) == 0);
    }
    free(rows);
    free(row);
    free((void *)weight.data);
}

static void test_weight_layout_every_format_and_size_comes_back(void **state)
{
    (void)state;
    for (size_t f = 0; f < FORMAT_COUNT; f++) {
        for (size_t o = 0; o < SIZE_COUNT; o++) {
            for (size_t m = 0; m < SIZE_COUNT; m++)
                check_round_trip(&FORMATS[f], SIZES[o], SIZES[m]);
        }
    }
}

static void test_weight_layout_rows_read_like_panels(void **state)
{
    (void)state;
    float *values = check_values(5 * 19, 3, false), row[19];
    for (int i = 0; i < 2; i++) {
        qn_weight_t rows = check_weight(values, 5 * 19, FORMATS[i].scalar), panels = pack(&FORMATS[i], 5, 19, values);
        for (uint64_t o = 0; o < 5; o++) {
            qn_weight_row(&rows, 19, o, row);
            for (uint64_t m = 0; m < 19; m++)
                assert_true(row[m] == qn_weight_get(&panels, 19, o, m));
        }
        qn_weight_span(&rows, 19, 4, 7, 3, row);
        assert_true(row[0] == qn_weight_get(&panels, 19, 4, 7) && row[2] == qn_weight_get(&panels, 19, 4, 9));
        free((void *)rows.data);
        free((void *)panels.data);
    }
    free(values);
}

static void test_weight_layout_panels_packed_one_by_one_are_the_same(void **state)
{
    (void)state;
    for (size_t f = 0; f < FORMAT_COUNT; f++) {
        const format_t *format = &FORMATS[f];
        uint64_t outputs = 53, inputs = 77, panel = qn_panel_bytes(format->scalar, format->group, inputs);
        float *rows = check_values(outputs * inputs, f + 1, false);
        qn_weight_t whole = pack(format, outputs, inputs, rows);
        uint8_t *parts = aligned_alloc(64, 4 * panel);
        for (uint64_t p = 0; p < 4; p += p == 0 ? 2 : 1)
            qn_weight_pack(format->scalar, format->group, outputs, inputs, p, p == 0 ? 2 : 1, rows + p * 16 * inputs,
                           parts + p * panel);
        assert_memory_equal(parts, whole.data, 4 * panel);
        free(rows);
        free(parts);
        free((void *)whole.data);
    }
}

/* ---- the ends of the number formats ---- */

static void test_weight_layout_extremes(void **state)
{
    (void)state;
    const float huge = 0x1.fep127f, tiny = 0x1p-149f; /* the largest bf16, the smallest f32 */
    struct {
        const char *what;
        float values[4];
        bool exact_floats;
        float int8[4], int4[4];
    } rows[] = {
        {"zeros", {0, 0, 0, 0}, true, {0, 0, 0, 0}, {0, 0, 0, 0}},
        {"negative zero", {-0.0f, 0, -0.0f, 0}, true, {0, 0, 0, 0}, {0, 0, 0, 0}},
        {"one outlier", {0.001f, -1000, 0.001f, 0}, false, {0, -1000, 0, 0}, {0, -1000, 0, 0}},
        {"largest", {huge, -huge, huge, huge}, true, {huge, -huge, huge, huge}, {huge, -huge, huge, huge}},
        {"denormals", {tiny, -tiny, tiny, tiny}, false, {0, 0, 0, 0}, {0, 0, 0, 0}},
        {"beside denormals", {tiny, 1, 0x1p-130f, 0}, false, {0, 1, 0, 0}, {0, 1, 0, 0}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (size_t f = 0; f < FORMAT_COUNT; f++) {
            qn_weight_t weight = pack(&FORMATS[f], 1, 4, rows[i].values);
            for (uint64_t m = 0; m < 4; m++) {
                float value = qn_weight_get(&weight, 4, 0, m), given = rows[i].values[m];
                if (f == 0)
                    assert_memory_equal(&value, &given, sizeof value);
                else if (f == 1 && rows[i].exact_floats)
                    assert_memory_equal(&value, &given, sizeof value);
                else if (f >= 2) {
                    float want = f == 2 ? rows[i].int8[m] : rows[i].int4[m];
                    /* int4 has no +8: of equal magnitudes with both signs it keeps a seventh or an eighth less */
                    if (!(fabsf(value - want) <= fabsf(want) * (f == 2 ? 1e-6f : 0.15f)))
                        fail_msg("%s, %s: %g became %g", rows[i].what, FORMATS[f].name, (double)given, (double)value);
                }
            }
            free((void *)weight.data);
        }
    }
}

static void test_weight_layout_negative_zero_keeps_its_sign_in_floats(void **state)
{
    (void)state;
    float value = -0.0f;
    for (int f = 0; f < 2; f++) {
        qn_weight_t weight = pack(&FORMATS[f], 1, 1, &value);
        assert_true(signbit(qn_weight_get(&weight, 1, 0, 0)));
        free((void *)weight.data);
    }
}

static void test_weight_layout_what_is_not_finite_has_an_infinite_scale(void **state)
{
    (void)state;
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (size_t f = 2; f < FORMAT_COUNT; f++) {
        for (size_t i = 0; i < 4; i++) {
            float rows[2][64] = {{1, 2, 3, bad[i], 4}, {1, 2, 3}};
            qn_weight_t weight = pack(&FORMATS[f], 2, 64, rows[0]);
            const uint8_t *scales =
                (const uint8_t *)weight.data + qn_panel_scales(FORMATS[f].scalar, FORMATS[f].group, 64);
            float first = f == 2 ? ((const float *)scales)[0] : qn_bf16_to_f32(((const uint16_t *)scales)[0]);
            assert_true(isinf(first));
            assert_true(fabsf(qn_weight_get(&weight, 64, 1, 2) - 3) < 0.1f);
            free((void *)weight.data);
        }
    }
}

static void test_weight_layout_sizes_beyond_63_bits_are_refused(void **state)
{
    (void)state;
    uint64_t bytes;
    assert_int_equal(qn_weight_bytes(QN_SCALAR_F32, QN_LAYOUT_PANELS, 0, UINT64_MAX, 64, &bytes), QN_ERR_LIMIT);
    assert_int_equal(qn_weight_bytes(QN_SCALAR_F32, QN_LAYOUT_ROWS, 0, 1ull << 31, UINT32_MAX, &bytes), QN_ERR_LIMIT);
    assert_int_equal(qn_weight_bytes(QN_SCALAR_F32, QN_LAYOUT_ROWS, 0, 1, 1ull << 32, &bytes), QN_ERR_LIMIT);
    assert_int_equal(qn_weight_bytes(QN_SCALAR_BF16, QN_LAYOUT_ROWS, 0, 1ull << 30, 1 << 20, &bytes), QN_OK);
    assert_true(bytes == 1ull << 51);
}

/* ---- quality, sameness, the product ---- */

/* Squared error of plain absmax: the extreme becomes -8 and the scale stays what that makes it. */
static double plain_int4_error(const float *values, uint64_t count)
{
    float extreme = 0;
    double error = 0;
    for (uint64_t m = 0; m < count; m++)
        extreme = fabsf(values[m]) > fabsf(extreme) ? values[m] : extreme;
    float scale = qn_bf16_to_f32(qn_f32_to_bf16(extreme / -8));
    for (uint64_t m = 0; m < count; m++) {
        float number = scale == 0 ? 0 : fminf(fmaxf(rintf(values[m] / scale), -8), 7);
        error += pow((double)values[m] - (double)(number * scale), 2);
    }
    return error;
}

/* About normal, as weights are: the sum of 12 uniform numbers. */
static float draw_normal(uint64_t *seed)
{
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += check_uniform(seed);
    return sum / 2;
}

static void test_weight_layout_int4_chooses_better_scales_than_absmax(void **state)
{
    (void)state;
    const uint64_t outputs = 64, inputs = 1024;
    float *rows = malloc(outputs * inputs * sizeof *rows);
    uint64_t seed = 12345;
    for (uint64_t i = 0; i < outputs * inputs; i++)
        rows[i] = draw_normal(&seed);
    for (size_t f = 3; f < FORMAT_COUNT; f++) {
        qn_weight_t weight = pack(&FORMATS[f], outputs, inputs, rows);
        double error = 0, plain = 0;
        for (uint64_t i = 0; i < outputs * inputs; i++)
            error += pow((double)rows[i] - (double)qn_weight_get(&weight, inputs, i / inputs, i % inputs), 2);
        for (uint64_t i = 0; i < outputs * inputs; i += FORMATS[f].group)
            plain += plain_int4_error(rows + i, FORMATS[f].group);
        print_message("%s: squared error %.4f of absmax's\n", FORMATS[f].name, error / plain);
        assert_true(error < 0.92 * plain);
        free((void *)weight.data);
    }
    free(rows);
}

static void test_weight_layout_every_instruction_set_packs_the_same_bytes(void **state)
{
    (void)state;
    if (!(qn_kernels_isa() & QN_ISA_AVX2)) skip();
    for (size_t f = 0; f < FORMAT_COUNT; f++) {
        for (size_t o = 0; o < 7; o++) {
            for (size_t m = 0; m < SIZE_COUNT; m++) {
                uint64_t inputs = SIZES[m] * (m % 3 + 1), count = SIZES[o] > 16 ? 16 : SIZES[o];
                uint64_t bytes = qn_panel_bytes(FORMATS[f].scalar, FORMATS[f].group, inputs);
                float *rows = check_values(count * inputs, f * 100 + m, o % 2);
                if (o == 3) rows[count * inputs / 2] = -NAN;
                uint8_t *plain = malloc(bytes), *fast = malloc(bytes);
                qn_weight_pack_panel(FORMATS[f].scalar, FORMATS[f].group, count, inputs, rows, plain);
                qn_weight_pack_panel_avx2(FORMATS[f].scalar, FORMATS[f].group, count, inputs, rows, fast);
                assert_memory_equal(plain, fast, bytes);
                free(rows);
                free(plain);
                free(fast);
            }
        }
    }
}

static void test_weight_layout_reference_product_is_that_of_the_values(void **state)
{
    (void)state;
    const uint32_t tokens = 18, inputs = 261, outputs = 19;
    float *x = check_values(tokens * inputs, 5, true), *rows = check_values(outputs * inputs, 6, false);
    float *out = malloc(tokens * outputs * sizeof *out);
    qn_stream_t *stream = check_stream(2);
    for (size_t f = 0; f < FORMAT_COUNT; f++) {
        qn_weight_t weight = pack(&FORMATS[f], outputs, inputs, rows);
        check_kernel(QN_OP_MATMUL, "reference")
            ->launch(stream, &(qn_matmul_t){.x = x,
                                            .tokens = tokens,
                                            .inputs = inputs,
                                            .part_count = 1,
                                            .parts = {{.weight = weight, .out = out, .outputs = outputs}}});
        for (uint32_t i = 0; i < tokens * outputs; i++) {
            double sum = 0;
            for (uint32_t m = 0; m < inputs; m++)
                sum += (double)x[i / outputs * inputs + m] * qn_weight_get(&weight, inputs, i % outputs, m);
            assert_true(out[i] == (float)sum);
        }
        free((void *)weight.data);
    }
    qn_stream_destroy(&stream);
    free(x);
    free(rows);
    free(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weight_layout_f32_has_the_stated_bytes),
        cmocka_unit_test(test_weight_layout_bf16_has_the_stated_bytes),
        cmocka_unit_test(test_weight_layout_int8_has_the_stated_bytes),
        cmocka_unit_test(test_weight_layout_int4_has_the_stated_bytes),
        cmocka_unit_test(test_weight_layout_int4_of_64_has_one_scale_for_64),
        cmocka_unit_test(test_weight_layout_every_format_and_size_comes_back),
        cmocka_unit_test(test_weight_layout_rows_read_like_panels),
        cmocka_unit_test(test_weight_layout_panels_packed_one_by_one_are_the_same),
        cmocka_unit_test(test_weight_layout_extremes),
        cmocka_unit_test(test_weight_layout_negative_zero_keeps_its_sign_in_floats),
        cmocka_unit_test(test_weight_layout_what_is_not_finite_has_an_infinite_scale),
        cmocka_unit_test(test_weight_layout_sizes_beyond_63_bits_are_refused),
        cmocka_unit_test(test_weight_layout_int4_chooses_better_scales_than_absmax),
        cmocka_unit_test(test_weight_layout_every_instruction_set_packs_the_same_bytes),
        cmocka_unit_test(test_weight_layout_reference_product_is_that_of_the_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
