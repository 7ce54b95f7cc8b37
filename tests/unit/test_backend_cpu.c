/* What compute.activations means on the CPU: f32 always, and bf16 for what can do it and for nothing else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "services/compute/backend/backend.h"

static const qn_kernel_case_t SHAPE = {.heads = 4,
                                       .kv_heads = 2,
                                       .head_dim = 64,
                                       .hidden = 256,
                                       .intermediate = 512,
                                       .vocab = 1000,
                                       .block_tokens = 16,
                                       .kv_scalar = QN_SCALAR_F32};
static const qn_weight_t BF16_PANELS = {.scalar = QN_SCALAR_BF16, .layout = QN_LAYOUT_PANELS};

static bool has_dots(void)
{
    const uint32_t needed = QN_ISA_AVX512 | QN_ISA_AVX512_BF16;
    return (qn_kernels_isa() & needed) == needed;
}

static void test_backend_cpu_auto_and_f32_choose_the_same_kernels(void **state)
{
    (void)state;
    const backend_t *cpu = backend_cpu();
    qn_kernel_set_t best, by_auto, by_f32;
    qn_scalar_t scalar = QN_SCALAR_BF16;
    assert_int_equal(qn_kernels_choose("", &SHAPE, qn_kernels_isa(), &best), QN_OK);
    assert_int_equal(cpu->choose_kernels("", "auto", &SHAPE, 0, &by_auto), QN_OK);
    assert_int_equal(cpu->choose_kernels("", "f32", &SHAPE, 0, &by_f32), QN_OK);
    assert_memory_equal(&best, &by_auto, sizeof best);
    assert_memory_equal(&best, &by_f32, sizeof best);
    assert_string_not_equal(best.chosen[QN_OP_MATMUL]->name, "avx512bf16"); /* the same bytes on every CPU */
    assert_int_equal(cpu->choose_activations("auto", &BF16_PANELS, &scalar), QN_OK);
    assert_int_equal(scalar, QN_SCALAR_F32);
}

static void test_backend_cpu_bf16_chooses_the_dot_products_or_is_refused(void **state)
{
    (void)state;
    const backend_t *cpu = backend_cpu();
    qn_kernel_set_t set, best;
    qn_scalar_t scalar = QN_SCALAR_BF16;
    if (!has_dots()) {
        assert_int_equal(cpu->choose_activations("bf16", NULL, &scalar), QN_ERR_CONFIG);
        assert_non_null(strstr(qn_err_text(), "AVX512-BF16"));
        return;
    }
    assert_int_equal(cpu->choose_activations("bf16", NULL, &scalar), QN_OK);
    assert_int_equal(cpu->choose_activations("bf16", &BF16_PANELS, &scalar), QN_OK);
    assert_int_equal(scalar, QN_SCALAR_F32); /* between the layers */
    assert_int_equal(cpu->choose_kernels("", "bf16", &SHAPE, 0, &set), QN_OK);
    assert_int_equal(qn_kernels_choose("", &SHAPE, qn_kernels_isa(), &best), QN_OK);
    for (unsigned op = 0; op < QN_OP_COUNT; op++) {
        if (op == QN_OP_MATMUL || op == QN_OP_EXPERT_MATMUL)
            assert_string_equal(set.chosen[op]->name, "avx512bf16");
        else if (op == QN_OP_NORM_MATMUL)
            assert_null(set.chosen[op]);
        else
            assert_ptr_equal(set.chosen[op], best.chosen[op]);
    }
    assert_int_equal(cpu->choose_kernels("rope=reference,matmul=avx512bf16", "bf16", &SHAPE, 0, &set), QN_OK);
    assert_string_equal(set.chosen[QN_OP_ROPE]->name, "reference");
}

static void test_backend_cpu_bf16_is_never_dropped_silently(void **state)
{
    (void)state;
    if (!has_dots()) skip();
    static const qn_weight_t OTHERS[] = {
        {.scalar = QN_SCALAR_F32, .layout = QN_LAYOUT_PANELS},
        {.scalar = QN_SCALAR_BF16, .layout = QN_LAYOUT_ROWS},
        {.scalar = QN_SCALAR_INT8, .layout = QN_LAYOUT_PANELS},
        {.scalar = QN_SCALAR_INT4, .layout = QN_LAYOUT_PANELS, .group = 32},
    };
    static const char *const KERNELS[] = {"reference", "matmul=avx512", "rope=reference,expert_matmul=avx512",
                                          "norm_matmul=vnni"};
    qn_scalar_t scalar;
    qn_kernel_set_t set;
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(backend_cpu()->choose_activations("bf16", &OTHERS[i], &scalar), QN_ERR_CONFIG);
        assert_int_equal(backend_cpu()->choose_kernels(KERNELS[i], "bf16", &SHAPE, 0, &set), QN_ERR_CONFIG);
        assert_non_null(strstr(qn_err_text(), "compute."));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_backend_cpu_auto_and_f32_choose_the_same_kernels),
        cmocka_unit_test(test_backend_cpu_bf16_chooses_the_dot_products_or_is_refused),
        cmocka_unit_test(test_backend_cpu_bf16_is_never_dropped_silently),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
