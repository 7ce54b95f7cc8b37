/* Activations as bytes: how far from the values they are, and what stands beside them. */
#include "kernels/cpu/matmul/quantise_rows.h"
#include "tests/unit/kernel_check.h"

static void *new_scratch(uint32_t tokens, uint32_t inputs)
{
    size_t bytes = qn_matmul_scratch_bytes(tokens, inputs);
    void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    assert_non_null(memory);
    memset(memory, 0xa5, bytes);
    return memory;
}

/* Group k of block b: half a step at most, and what its products begin with. */
static void check_quantised(const qn_quantised_t *rows, const float *x, uint32_t first, uint32_t count, uint32_t k)
{
    size_t place = (size_t)first * rows->groups + k;
    uint32_t t = first + k % count, g = k / count, group = rows->group;
    int sum = 0, start = rows->starts[place], zero = group == QN_QUANTISE_INT8 ? (int16_t)start : 0;
    float scale = rows->scales[place];
    for (uint32_t j = 0; j < group; j++) {
        int q = rows->values[place * group + j];
        sum += q;
        if (g * group + j >= rows->inputs) {
            assert_int_equal(q, 0);
            continue;
        }
        float value = x[(size_t)t * rows->inputs + g * group + j];
        if (group != QN_QUANTISE_INT8) assert_true(q >= -127);
        assert_true(fabsf((float)(q + zero) * scale - value) <= scale * 0.5001f);
    }
    if (group == QN_QUANTISE_INT8)
        assert_int_equal(start >> 16, sum);
    else
        assert_int_equal(start, -8 * sum);
}

static void test_quantise_rows_every_value_is_within_half_a_step(void **state)
{
    (void)state;
    if (!(qn_kernels_isa() & QN_ISA_AVX512)) skip();
    static const uint32_t TOKENS[] = {1, 12, 13, 50}, INPUTS[] = {1, 31, 64, 65, 128, 200, 1000, 2048};
    static const uint32_t GROUPS[] = {32, 64, QN_QUANTISE_INT8};
    for (uint32_t i = 0; i < 96; i++) {
        uint32_t tokens = TOKENS[i % 4], inputs = INPUTS[i / 4 % 8];
        float *x = check_values((size_t)tokens * inputs, i + 1, true);
        for (size_t j = 0; i % 5 == 0 && j < (size_t)tokens * inputs; j++)
            x[j] = 3 + fabsf(x[j]);
        for (size_t j = 0; i % 5 == 1 && j < (size_t)tokens * inputs; j++)
            x[j] = -fabsf(x[j]);
        void *scratch = new_scratch(tokens, inputs);
        qn_quantised_t rows = qn_quantised_plan(tokens, inputs, GROUPS[i / 32], scratch);
        for (uint32_t t = 0; t < tokens; t++)
            qn_quantise_row_avx512(&rows, t, x + (size_t)t * inputs);
        for (uint32_t b = 0; b < rows.blocks; b++) {
            uint32_t first = qn_quantised_first(&rows, b), count = qn_quantised_first(&rows, b + 1) - first;
            assert_in_range(count, 1, QN_QUANTISE_TOKENS);
            for (uint32_t k = 0; k < count * rows.groups; k++)
                check_quantised(&rows, x, first, count, k);
        }
        free(x);
        free(scratch);
    }
}

static void test_quantise_rows_tiny_values_are_zeros(void **state)
{
    (void)state;
    if (!(qn_kernels_isa() & QN_ISA_AVX512)) skip();
    static const struct {
        float value;
        bool zero;
    } CASES[] = {
        {0, true}, {1e-42f, true}, {9e-31f, true}, {1.1e-30f, false}, {-2e-30f, false}, {3e38f, false},
    };
    static const uint32_t GROUPS[] = {32, QN_QUANTISE_INT8};
    for (size_t i = 0; i < 2 * sizeof CASES / sizeof *CASES; i++) {
        float value = CASES[i / 2].value, x[128] = {[7] = value};
        uint32_t group = GROUPS[i % 2];
        void *scratch = new_scratch(1, group);
        qn_quantised_t rows = qn_quantised_plan(1, group, group, scratch);
        qn_quantise_row_avx512(&rows, 0, x);
        assert_true((rows.scales[0] == 0) == CASES[i / 2].zero);
        int zero = group == QN_QUANTISE_INT8 ? (int16_t)rows.starts[0] : 0, most = group == 32 ? 127 : 255;
        if (!CASES[i / 2].zero)
            assert_int_equal(rows.values[7] + zero, value < 0 ? -most : most);
        else
            assert_int_equal(rows.values[7], group == 32 ? 0 : -128);
        if (group == 32) assert_int_equal(rows.starts[0], -8 * rows.values[7]);
        free(scratch);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantise_rows_every_value_is_within_half_a_step),
        cmocka_unit_test(test_quantise_rows_tiny_values_are_zeros),
    };
    return cmocka_run_group_tests_name("kernels_quantise", tests, NULL, NULL);
}
