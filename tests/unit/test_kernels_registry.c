/* The choice of kernels: what "" and "reference" give, overrides, and what a wrong word is told. */
#include "tests/unit/kernel_check.h"

static const qn_kernel_case_t SHAPE = {.heads = 4,
                                       .kv_heads = 2,
                                       .head_dim = 64,
                                       .hidden = 256,
                                       .intermediate = 768,
                                       .vocab = 4096,
                                       .block_tokens = 16,
                                       .kv_scalar = QN_SCALAR_F32};

static void test_registry_every_operation_has_a_reference_for_every_machine(void **state)
{
    (void)state;
    for (unsigned op = 0; op < QN_OP_REQUIRED; op++) {
        const qn_kernel_t *kernel = check_kernel((qn_op_t)op, "reference");
        assert_non_null(kernel);
        assert_int_equal(kernel->isa, 0);
        assert_null(kernel->accepts);
    }
}

static void test_registry_empty_choice_takes_the_best_that_fits(void **state)
{
    (void)state;
    static const struct {
        uint32_t isa, heads;
        const char *want;
    } ROWS[] = {
        {0, 4, "reference"},
        {QN_ISA_AVX2, 4, "avx2"},
        {QN_ISA_AVX2 | QN_ISA_AVX512, 4, "avx512"},
        {QN_ISA_AVX2 | QN_ISA_AVX512, 4096, "reference"},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        qn_kernel_case_t shape = SHAPE;
        shape.heads = ROWS[i].heads;
        qn_kernel_set_t set;
        assert_int_equal(qn_kernels_choose("", &shape, ROWS[i].isa, &set), QN_OK);
        assert_string_equal(set.chosen[QN_OP_ATTENTION_PREFILL]->name, ROWS[i].want);
        assert_string_equal(set.chosen[QN_OP_ATTENTION_DECODE]->name, ROWS[i].want);
        for (unsigned op = 0; op < QN_OP_REQUIRED; op++)
            assert_int_equal(set.chosen[op]->op, op);
    }
}

static void test_registry_reference_means_all_of_it(void **state)
{
    (void)state;
    qn_kernel_set_t set;
    assert_int_equal(qn_kernels_choose("reference", &SHAPE, qn_kernels_isa(), &set), QN_OK);
    for (unsigned op = 0; op < QN_OP_REQUIRED; op++)
        assert_string_equal(set.chosen[op]->name, "reference");
}

static void test_registry_named_overrides_apply(void **state)
{
    (void)state;
    qn_kernel_set_t set;
    uint32_t isa = QN_ISA_AVX2 | QN_ISA_AVX512;
    assert_int_equal(qn_kernels_choose("matmul=avx2,attention.decode=reference", &SHAPE, isa, &set), QN_OK);
    assert_string_equal(set.chosen[QN_OP_MATMUL]->name, "avx2");
    assert_string_equal(set.chosen[QN_OP_ATTENTION_DECODE]->name, "reference");
    assert_string_equal(set.chosen[QN_OP_ATTENTION_PREFILL]->name, "avx512");
}

static void test_registry_later_items_and_items_over_reference_count(void **state)
{
    (void)state;
    qn_kernel_set_t set;
    uint32_t isa = QN_ISA_AVX2 | QN_ISA_AVX512;
    assert_int_equal(qn_kernels_choose("matmul=avx2,matmul=avx512", &SHAPE, isa, &set), QN_OK);
    assert_string_equal(set.chosen[QN_OP_MATMUL]->name, "avx512");
    assert_int_equal(qn_kernels_choose("reference,rope=avx2", &SHAPE, isa, &set), QN_OK);
    assert_string_equal(set.chosen[QN_OP_ROPE]->name, "avx2");
    assert_string_equal(set.chosen[QN_OP_MATMUL]->name, "reference");
}

static void no_launch(qn_stream_t *stream, const void *arguments)
{
    (void)stream;
    (void)arguments;
}

/* A fused launch must not hide that a part of it was asked for by name. */
static void test_registry_fused_operations_follow_their_parts(void **state)
{
    (void)state;
    static const qn_kernel_t TABLE[] = {
        {QN_OP_MATMUL, "a", 0, 0, NULL, no_launch},           {QN_OP_MATMUL, "b", 0, 1, NULL, no_launch},
        {QN_OP_RMSNORM, "a", 0, 0, NULL, no_launch},          {QN_OP_RMSNORM, "b", 0, 1, NULL, no_launch},
        {QN_OP_ATTENTION_DECODE, "a", 0, 0, NULL, no_launch}, {QN_OP_ATTENTION_DECODE, "b", 0, 1, NULL, no_launch},
        {QN_OP_NORM_MATMUL, "b", 0, 1, NULL, no_launch},      {QN_OP_DECODE_ATTENTION, "a", 0, 0, NULL, no_launch},
        {QN_OP_DECODE_ATTENTION, "b", 0, 1, NULL, no_launch},
    };
    static const struct {
        const char *choice, *norm_matmul, *decode_attention; /* NULL: its parts run one by one */
    } ROWS[] = {
        {"", "b", "b"},
        {"matmul=b", "b", "b"},
        {"matmul=a", NULL, "b"},
        {"rmsnorm=a", NULL, NULL},
        {"attention.decode=a", "b", "a"},
        {"attention.decode=a,decode_attention=b", "b", "b"},
        {"matmul=a,norm_matmul=b", "b", "b"},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        qn_kernel_set_t set;
        assert_int_equal(qn_kernels_choose_from(TABLE, sizeof TABLE / sizeof TABLE[0], ROWS[i].choice, &SHAPE, 0, &set),
                         QN_OK);
        const qn_kernel_t *got[] = {set.chosen[QN_OP_NORM_MATMUL], set.chosen[QN_OP_DECODE_ATTENTION]};
        const char *want[] = {ROWS[i].norm_matmul, ROWS[i].decode_attention};
        for (size_t k = 0; k < 2; k++) {
            assert_int_equal(got[k] == NULL, want[k] == NULL);
            if (want[k]) assert_string_equal(got[k]->name, want[k]);
        }
    }
}

/* The sampler changes no key and no value, a norm does. */
static void test_registry_fingerprint_is_of_what_keys_and_values_come_from(void **state)
{
    (void)state;
    qn_kernel_set_t a, b, c;
    uint32_t isa = QN_ISA_AVX2 | QN_ISA_AVX512;
    assert_int_equal(qn_kernels_choose("", &SHAPE, isa, &a), QN_OK);
    assert_int_equal(qn_kernels_choose("sampler=reference,logprobs=reference", &SHAPE, isa, &b), QN_OK);
    assert_int_equal(qn_kernels_choose("rmsnorm=reference", &SHAPE, isa, &c), QN_OK);
    assert_true(qn_kernels_fingerprint(&a, 1) == qn_kernels_fingerprint(&b, 1));
    assert_true(qn_kernels_fingerprint(&a, 1) != qn_kernels_fingerprint(&c, 1));
    assert_true(qn_kernels_fingerprint(&a, 1) != qn_kernels_fingerprint(&a, 2));
    assert_true(qn_kernels_fingerprint(&a, 1) < UINT64_C(1) << 53);
}

static void test_registry_wrong_words_are_refused_with_a_remedy(void **state)
{
    (void)state;
    static const struct {
        const char *choice;
        uint32_t isa, heads;
        const char *part;
    } ROWS[] = {
        {"matmull=avx2", QN_ISA_AVX2, 4, "did you mean \"matmul\""},
        {"atention.decode=avx2", QN_ISA_AVX2, 4, "did you mean \"attention.decode\""},
        {"matmul=avx3", QN_ISA_AVX2, 4, "reference, avx2, avx512"},
        {"matmul", QN_ISA_AVX2, 4, "op=name"},
        {"referense", QN_ISA_AVX2, 4, "op=name"},
        {"matmul=avx512", QN_ISA_AVX2, 4, "cannot run"},
        {"attention.decode=avx2", QN_ISA_AVX2, 4096, "4096 heads of 64, blocks of 16 tokens"},
        {"=avx2", QN_ISA_AVX2, 4, "no operation"},
        {"matmul=avx2,,", QN_ISA_AVX2, 4, "op=name"},
        {"matmul=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", QN_ISA_AVX2, 4, "too long"},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        qn_kernel_case_t shape = SHAPE;
        shape.heads = ROWS[i].heads;
        qn_kernel_set_t set;
        assert_int_equal(qn_kernels_choose(ROWS[i].choice, &shape, ROWS[i].isa, &set), QN_ERR_CONFIG);
        if (!strstr(qn_err_text(), ROWS[i].part)) fail_msg("\"%s\": %s", ROWS[i].choice, qn_err_text());
    }
}

/* ---- the stream ---- */

typedef struct {
    unsigned char *hits;
    size_t items;
    uint64_t threads[8];
} cover_t;

static void cover(const void *arguments, size_t begin, size_t end, unsigned thread)
{
    const cover_t *c = arguments;
    for (size_t i = begin; i < end; i++)
        c->hits[i]++;
    ((cover_t *)(uintptr_t)c)->threads[thread] += end - begin;
}

static void test_stream_split_covers_every_item_once(void **state)
{
    (void)state;
    static const size_t ITEMS[] = {0, 1, 2, 3, 5, 7, 64, 1000};
    for (uint32_t threads = 1; threads <= 5; threads++) {
        qn_stream_t *stream = check_stream(threads);
        assert_int_equal(qn_stream_threads(stream), threads);
        for (int round = 0; round < 50; round++)
            for (size_t i = 0; i < sizeof ITEMS / sizeof ITEMS[0]; i++) {
                unsigned char hits[1000] = {0};
                cover_t c = {.hits = hits, .items = ITEMS[i]};
                qn_cpu_split(stream, ITEMS[i], 1, cover, &c);
                for (size_t h = 0; h < 1000; h++)
                    assert_int_equal(hits[h], h < ITEMS[i]);
            }
        qn_stream_destroy(&stream);
        assert_null(stream);
    }
}

static void test_stream_small_work_stays_on_the_caller(void **state)
{
    (void)state;
    qn_stream_t *stream = check_stream(4);
    unsigned char hits[1000] = {0};
    cover_t c = {.hits = hits};
    qn_cpu_split(stream, 99, 100, cover, &c);
    assert_int_equal(c.threads[0], 99);
    memset(&c.threads, 0, sizeof c.threads);
    qn_cpu_split(stream, 200, 100, cover, &c);
    assert_int_equal(c.threads[0], 100);
    assert_int_equal(c.threads[1], 100);
    assert_int_equal(qn_stream_wait(stream), QN_OK);
    qn_stream_destroy(&stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_registry_every_operation_has_a_reference_for_every_machine),
        cmocka_unit_test(test_registry_empty_choice_takes_the_best_that_fits),
        cmocka_unit_test(test_registry_reference_means_all_of_it),
        cmocka_unit_test(test_registry_named_overrides_apply),
        cmocka_unit_test(test_registry_later_items_and_items_over_reference_count),
        cmocka_unit_test(test_registry_fused_operations_follow_their_parts),
        cmocka_unit_test(test_registry_fingerprint_is_of_what_keys_and_values_come_from),
        cmocka_unit_test(test_registry_wrong_words_are_refused_with_a_remedy),
        cmocka_unit_test(test_stream_split_covers_every_item_once),
        cmocka_unit_test(test_stream_small_work_stays_on_the_caller),
    };
    return cmocka_run_group_tests_name("kernels_registry", tests, NULL, NULL);
}
