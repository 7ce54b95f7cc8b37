/* The vector versions of everything that is not a product or attention, each against its reference: odd widths,
 * extremes, outliers, and the same bits alone or in a batch on any number of threads. */
#include "tests/unit/kernel_check.h"

static const uint32_t WIDTHS[] = {1, 2, 7, 8, 9, 15, 16, 17, 33, 64, 100, 257, 1030};
#define WIDTH_COUNT (sizeof WIDTHS / sizeof WIDTHS[0])
#define WIDTH_MAX 1030

static void check_close(const char *name, const float *got, const float *want, size_t count, double relative,
                        double absolute)
{
    for (size_t i = 0; i < count; i++)
        if (!(fabs((double)got[i] - want[i]) <= relative * fabs((double)want[i]) + absolute))
            fail_msg("%s: [%zu] is %.9g, reference %.9g", name, i, (double)got[i], (double)want[i]);
}

static void launch(qn_op_t op, const char *name, uint32_t threads, const void *arguments)
{
    qn_stream_t *stream = check_stream(threads);
    check_kernel(op, name)->launch(stream, arguments);
    qn_stream_destroy(&stream);
}

/* ---- activations ---- */

static const qn_activation_t KINDS[] = {QN_ACTIVATION_SILU, QN_ACTIVATION_GELU_TANH, QN_ACTIVATION_GELU,
                                        QN_ACTIVATION_RELU};

/* Every kind over [-12, 12]: within a millionth of the value itself. Beyond, GELU is 0 or x. */
static void test_activation_every_kind_is_accurate_to_a_millionth(void **state)
{
    (void)state;
    enum { COUNT = 200001 };
    float *x = malloc(COUNT * sizeof *x), *want = malloc(COUNT * sizeof *want), *got = malloc(COUNT * sizeof *got);
    for (int i = 0; i < COUNT; i++)
        x[i] = (float)(i - COUNT / 2) * 1.2e-4f;
    for (size_t k = 0; k < 4; k++) {
        qn_activate_t a = {.gate = x, .tokens = 1, .width = COUNT, .kind = KINDS[k], .out = want};
        launch(QN_OP_ACTIVATION, "reference", 2, &a);
        /* The argument of an exponential is rounded: far out, that is what its value is worth. */
        double relative = KINDS[k] == QN_ACTIVATION_SILU ? 1e-6 : 4e-6;
        for (size_t n = 0; n < CHECK_FAST_COUNT; n++) {
            if (!check_kernel(QN_OP_ACTIVATION, CHECK_FAST[n])) continue;
            a.out = got;
            launch(QN_OP_ACTIVATION, CHECK_FAST[n], 2, &a);
            check_close(CHECK_FAST[n], got, want, COUNT, relative, 1e-8);
        }
    }
    free(x), free(want), free(got);
}

static void test_activation_survives_extremes_with_and_without_up(void **state)
{
    (void)state;
    static const float X[] = {0,   -0.0f, 1e-30f, -1e-30f, 1e-40f, 80,    -80,   89,
                              -89, 200,   -200,   1e30f,   -1e30f, 3e38f, -3e38f};
    enum { COUNT = sizeof X / sizeof X[0] };
    float up[COUNT], want[COUNT], got[COUNT];
    for (size_t i = 0; i < COUNT; i++)
        up[i] = i % 2 ? -2 : 0.5f;
    for (size_t k = 0; k < 8; k++) {
        qn_activate_t a = {
            .gate = X, .up = k < 4 ? NULL : up, .tokens = 3, .width = COUNT / 3, .kind = KINDS[k % 4], .out = want};
        launch(QN_OP_ACTIVATION, "reference", 1, &a);
        for (size_t n = 0; n < CHECK_FAST_COUNT; n++) {
            if (!check_kernel(QN_OP_ACTIVATION, CHECK_FAST[n])) continue;
            a.out = got;
            launch(QN_OP_ACTIVATION, CHECK_FAST[n], 1, &a);
            for (size_t i = 0; i < COUNT; i++)
                if (isfinite(want[i])) check_close(CHECK_FAST[n], got + i, want + i, 1, 1e-6, 1e-8);
        }
    }
}

static void test_softcap_bends_as_the_reference_does(void **state)
{
    (void)state;
    enum { COUNT = 100003 };
    float *x = malloc(COUNT * sizeof *x), *want = malloc(COUNT * sizeof *want), *got = malloc(COUNT * sizeof *got);
    for (int i = 0; i < COUNT; i++)
        x[i] = (float)(i - COUNT / 2) * 3e-3f;
    x[0] = -1e30f, x[COUNT - 1] = INFINITY;
    memcpy(want, x, COUNT * sizeof *x);
    launch(QN_OP_SOFTCAP, "reference", 2, &(qn_softcap_t){.x = want, .rows = 1, .width = COUNT, .cap = 30});
    for (size_t n = 0; n < CHECK_FAST_COUNT; n++) {
        if (!check_kernel(QN_OP_SOFTCAP, CHECK_FAST[n])) continue;
        memcpy(got, x, COUNT * sizeof *x);
        launch(QN_OP_SOFTCAP, CHECK_FAST[n], 2, &(qn_softcap_t){.x = got, .rows = 1, .width = COUNT, .cap = 30});
        check_close(CHECK_FAST[n], got, want, COUNT, 4e-7, 0);
    }
    free(x), free(want), free(got);
}

/* ---- norms ---- */

#define ROWS 5

static void test_rmsnorm_with_offset_and_residual_agrees_with_reference(void **state)
{
    (void)state;
    float want[ROWS * WIDTH_MAX], got[ROWS * WIDTH_MAX];
    for (size_t w = 0; w < WIDTH_COUNT; w++)
        for (int f32 = 0; f32 < 2; f32++) {
            uint32_t width = WIDTHS[w];
            float *x = check_values(ROWS * width, w + 1, true), *values = check_values(width, w + 2, false);
            float *residual = check_values(ROWS * width, w + 3, false);
            qn_weight_t weight = check_weight(values, width, f32 ? QN_SCALAR_F32 : QN_SCALAR_BF16);
            qn_rmsnorm_t a = {.x = x,
                              .weight = weight,
                              .residual = f32 ? NULL : residual,
                              .rows = ROWS,
                              .width = width,
                              .eps = 1e-6f,
                              .weight_offset = f32 ? 0 : 1,
                              .out = want};
            launch(QN_OP_RMSNORM, "reference", 1, &a);
            for (size_t n = 0; n < CHECK_FAST_COUNT; n++) {
                if (!check_kernel(QN_OP_RMSNORM, CHECK_FAST[n])) continue;
                a.out = got;
                launch(QN_OP_RMSNORM, CHECK_FAST[n], 2, &a);
                check_close(CHECK_FAST[n], got, want, ROWS * width, 2e-6, 2e-6);
            }
            free(x), free(values), free(residual), free((void *)weight.data);
        }
}

/* Rows near zero, with outliers, and a thousand times their spread away from zero. */
static void test_layernorm_agrees_with_reference_also_far_from_zero(void **state)
{
    (void)state;
    float want[ROWS * WIDTH_MAX], got[ROWS * WIDTH_MAX], alone[WIDTH_MAX];
    for (size_t w = 0; w < WIDTH_COUNT; w++)
        for (int shape = 0; shape < 3; shape++) {
            uint32_t width = WIDTHS[w];
            float *x = check_values(ROWS * width, w + 1, shape == 1), *values = check_values(width, w + 2, false);
            float *shifts = check_values(width, w + 3, false);
            for (uint32_t i = 0; shape == 2 && i < ROWS * width; i++)
                x[i] += 1000;
            qn_weight_t weight = check_weight(values, width, shape ? QN_SCALAR_F32 : QN_SCALAR_BF16);
            qn_weight_t bias = check_weight(shifts, width, QN_SCALAR_BF16);
            qn_layernorm_t a = {.x = x,
                                .weight = weight,
                                .bias = shape == 1 ? (qn_weight_t){0} : bias,
                                .rows = ROWS,
                                .width = width,
                                .eps = 1e-5f,
                                .out = want};
            launch(QN_OP_LAYERNORM, "reference", 1, &a);
            for (size_t n = 0; n < CHECK_FAST_COUNT; n++) {
                if (!check_kernel(QN_OP_LAYERNORM, CHECK_FAST[n])) continue;
                a.out = got;
                launch(QN_OP_LAYERNORM, CHECK_FAST[n], 3, &a);
                check_close(CHECK_FAST[n], got, want, ROWS * width, 2e-6, shape == 2 ? 1e-5 : 2e-6);
                qn_layernorm_t last = a;
                last.x = x + 4 * width, last.rows = 1, last.out = alone;
                launch(QN_OP_LAYERNORM, CHECK_FAST[n], 1, &last);
                assert_memory_equal(alone, got + 4 * width, width * sizeof *alone);
            }
            free(x), free(values), free(shifts), free((void *)weight.data), free((void *)bias.data);
        }
}

/* ---- rope, the cache, experts ---- */

static void test_rope_every_head_size_agrees_with_reference(void **state)
{
    (void)state;
    static const uint32_t DIMS[] = {2, 6, 16, 32, 34, 64, 80, 100, 128, 256};
    enum { T = 3, H = 3, K = 2 };
    for (size_t d = 0; d < sizeof DIMS / sizeof DIMS[0]; d++) {
        uint32_t dim = DIMS[d];
        float *angles = check_values(T * dim, 1, false), *q = check_values(T * H * dim, 2, true);
        float *k = check_values(T * K * dim, 3, false);
        qn_rope_t a = {.angles = angles, .q = q, .k = k, .tokens = T, .heads = H, .kv_heads = K, .head_dim = dim};
        launch(QN_OP_ROPE, "reference", 1, &a);
        for (size_t n = 0; n < CHECK_FAST_COUNT; n++) {
            if (!check_kernel(QN_OP_ROPE, CHECK_FAST[n])) continue;
            float *fast_q = check_values(T * H * dim, 2, true), *fast_k = check_values(T * K * dim, 3, false);
            a.q = fast_q, a.k = fast_k;
            launch(QN_OP_ROPE, CHECK_FAST[n], 2, &a);
            check_close(CHECK_FAST[n], fast_q, q, T * H * dim, 1e-6, 1e-4); /* of outliers up to 1000 */
            check_close(CHECK_FAST[n], fast_k, k, T * K * dim, 1e-6, 2e-7);
            free(fast_q), free(fast_k);
        }
        free(angles), free(q), free(k);
    }
}

/* Conversion is exact: ties, infinities, subnormals and NaN as in the reference. */
static void test_kv_write_stores_the_same_bits_as_the_reference(void **state)
{
    (void)state;
    static const uint32_t SPECIAL[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x7f7fffff, 0x80000000, 0x7f800000,
                                       0xff800000, 0x00000001, 0x807fffff, 0x7fc00000, 0x7f800001, 0xffffffff};
    static const int64_t KV_ROWS[4] = {5, -1, 11, 0};
    static const uint32_t DIMS[] = {1, 5, 8, 13, 16, 40};
    for (size_t d = 0; d < sizeof DIMS / sizeof DIMS[0]; d++)
        for (int f32 = 0; f32 < 2; f32++) {
            uint32_t dim = DIMS[d], row = 3 * dim;
            qn_kv_t kv = {.scalar = f32 ? QN_SCALAR_F32 : QN_SCALAR_BF16,
                          .layers = 2,
                          .blocks = 3,
                          .block_tokens = 4,
                          .kv_heads = 3,
                          .head_dim = dim};
            size_t bytes = (size_t)2 * 2 * 3 * 4 * row * qn_scalar_bytes(kv.scalar);
            float *k = check_values(4 * row, 1, false), *v = check_values(4 * row, 2, true);
            for (uint32_t i = 0; i < 12 && i < 4 * row; i++)
                memcpy(&k[i], &SPECIAL[i], sizeof *k);
            void *want = calloc(1, bytes), *got = calloc(1, bytes);
            qn_kv_write_t a = {.kv = kv, .layer = 1, .tokens = 4, .k = k, .v = v, .kv_rows = KV_ROWS};
            a.kv.data = want;
            launch(QN_OP_KV_WRITE, "reference", 1, &a);
            for (size_t n = 0; n < CHECK_FAST_COUNT; n++) {
                if (!check_kernel(QN_OP_KV_WRITE, CHECK_FAST[n])) continue;
                memset(got, 0, bytes);
                a.kv.data = got;
                launch(QN_OP_KV_WRITE, CHECK_FAST[n], 2, &a);
                assert_memory_equal(got, want, bytes);
            }
            free(k), free(v), free(want), free(got);
        }
}

static void test_moe_combine_agrees_with_reference_in_place(void **state)
{
    (void)state;
    enum { T = 4, A = 3 };
    static const uint32_t PLACES[T * A] = {0, 5, 9, 11, 1, 2, 3, 10, 4, 8, 6, 7};
    for (size_t w = 0; w < WIDTH_COUNT; w++) {
        uint32_t width = WIDTHS[w];
        float *x = check_values(T * A * width, 1, false), *weights = check_values(T * A, 2, false);
        float *want = check_values(T * width, 3, false);
        qn_moe_combine_t a = {.x = x,
                              .weights = weights,
                              .places = PLACES,
                              .residual = want,
                              .tokens = T,
                              .per_token = A,
                              .width = width,
                              .out = want};
        launch(QN_OP_MOE_COMBINE, "reference", 1, &a);
        for (size_t n = 0; n < CHECK_FAST_COUNT; n++) {
            if (!check_kernel(QN_OP_MOE_COMBINE, CHECK_FAST[n])) continue;
            float *got = check_values(T * width, 3, false);
            a.residual = a.out = got;
            launch(QN_OP_MOE_COMBINE, CHECK_FAST[n], 3, &a);
            check_close(CHECK_FAST[n], got, want, T * width, 1e-6, 5e-7);
            free(got);
        }
        free(x), free(weights), free(want);
    }
}

/* ---- the vocabulary ---- */

static const uint32_t VOCABULARIES[] = {1, 2, 15, 17, 1023, 1024, 1025, 5000, 151936};
#define VOCABULARY_COUNT (sizeof VOCABULARIES / sizeof VOCABULARIES[0])

/* Values in steps, so that there are many ties, the greatest among them. */
static float *stepped_logits(uint32_t vocab, uint64_t seed, float steps)
{
    float *logits = check_values(vocab, seed, false);
    for (uint32_t v = 0; v < vocab; v++)
        logits[v] = roundf(logits[v] * steps) / steps * 20;
    return logits;
}

static void test_logprobs_agree_with_reference_and_keep_ties_in_order(void **state)
{
    (void)state;
    for (size_t i = 0; i < VOCABULARY_COUNT; i++)
        for (int shape = 0; shape < 3; shape++) {
            uint32_t vocab = VOCABULARIES[i], target = vocab / 2, count = 20;
            float *logits = stepped_logits(vocab, i + 1, shape == 0 ? 3 : 1e6f), want, got;
            for (uint32_t v = 0; shape == 2 && v < vocab; v += 3)
                logits[v] = v % 2 ? -INFINITY : 1e4f;
            qn_top_entry_t top[QN_ALTERNATIVES_MAX], fast_top[QN_ALTERNATIVES_MAX];
            uint32_t slot = 0, ids[QN_LOGPROB_IDS_MAX] = {vocab - 1, 0}, all = (vocab < 20 ? vocab : 20) + 2;
            qn_logprobs_t a = {.logits = logits,
                               .targets = &target,
                               .top_counts = &count,
                               .slots = &slot,
                               .tables = {.rows = &(qn_slot_row_t){.logprob_id_count = 2},
                                          .logprob_ids = ids,
                                          .slots = 1,
                                          .vocab = vocab},
                               .rows = 1,
                               .vocab = vocab,
                               .ret_logprobs = &want,
                               .ret_top = top};
            launch(QN_OP_LOGPROBS, "reference", 1, &a);
            for (size_t n = 0; n < CHECK_FAST_COUNT; n++) {
                if (!check_kernel(QN_OP_LOGPROBS, CHECK_FAST[n])) continue;
                a.ret_logprobs = &got;
                a.ret_top = fast_top;
                launch(QN_OP_LOGPROBS, CHECK_FAST[n], 1, &a);
                if (isfinite(want))
                    check_close(CHECK_FAST[n], &got, &want, 1, 2e-7, 2e-6);
                else
                    assert_true(got == want);
                for (uint32_t t = 0; t < all; t++) {
                    assert_int_equal(fast_top[t].id, top[t].id);
                    if (isfinite(top[t].logprob))
                        check_close("top", &fast_top[t].logprob, &top[t].logprob, 1, 2e-7, 2e-6);
                }
            }
            free(logits);
        }
}

typedef struct {
    qn_slot_row_t row;
    qn_bias_entry_t bias[2];
    uint32_t stop_ids[1], vocab;
    uint32_t *counts;
    float *scratch;
} sampling_t;

static uint32_t sample(sampling_t *s, const char *name, const float *logits, uint32_t position)
{
    qn_slot_row_t row = s->row;
    uint32_t stop_ids[QN_SLOT_STOP_IDS_MAX] = {s->stop_ids[0]};
    qn_bias_entry_t bias[QN_LOGIT_BIAS_MAX] = {s->bias[0], s->bias[1]};
    qn_sample_result_t result;
    launch(QN_OP_SAMPLER, name, 1,
           &(qn_sampler_t){.tables = {.rows = &row,
                                      .stop_ids = stop_ids,
                                      .bias = bias,
                                      .counts = s->counts,
                                      .slots = 1,
                                      .vocab = s->vocab},
                           .samples = &(qn_sample_t){0, position},
                           .sample_count = 1,
                           .logits = logits,
                           .scratch = s->scratch,
                           .ret_results = &result});
    if (s->row.penalties) s->counts[result.id]--;
    return result.id;
}

static void test_sampler_greedy_finds_the_first_of_the_greatest(void **state)
{
    (void)state;
    for (size_t i = 0; i < VOCABULARY_COUNT; i++)
        for (uint64_t seed = 1; seed <= 4; seed++) {
            sampling_t s = {.vocab = VOCABULARIES[i], .row = {.top_p = 1, .repetition_penalty = 1}};
            float *logits = stepped_logits(s.vocab, seed, seed % 2 ? 5 : 1e6f);
            for (uint32_t v = 1; seed == 3 && v < s.vocab; v += 2)
                logits[v] = NAN;
            if (seed == 4) logits[0] = NAN; /* what nothing is greater than */
            uint32_t want = sample(&s, "reference", logits, 1);
            for (size_t n = 0; n < CHECK_FAST_COUNT; n++)
                if (check_kernel(QN_OP_SAMPLER, CHECK_FAST[n]))
                    assert_int_equal(sample(&s, CHECK_FAST[n], logits, 1), want);
            free(logits);
        }
}

/* Peaked, flat, and clipped distributions of every kind of cut. Exponentials differ in the last bit, so a draw may
 * fall on the other side of a limit once in a very long while: not in these. */
static const struct {
    uint32_t top_k;
    float top_p, min_p, temperature;
    uint8_t penalties, bias;
} DRAWS[] = {
    {0, 1, 0, 1, 0, 0},        {0, 1, 0.05f, 1, 0, 0},   {50, 1, 0, 0.7f, 0, 0}, {1, 1, 0, 2, 0, 0},
    {20, 0.8f, 0.1f, 1, 0, 0}, {0, 0.9f, 0, 0.3f, 0, 0}, {0, 0.95f, 0, 3, 0, 0}, {0, 0.999999f, 0, 1, 0, 0},
    {4000, 0.5f, 0, 1, 0, 0},  {40, 0.95f, 0, 1, 1, 1},  {0, 1, 0, 1, 1, 1},     {0, 0, 0, 1, 0, 0},
    {0, 0.7f, 0.01f, 1, 1, 0},
};

static void test_sampler_draws_what_the_reference_draws(void **state)
{
    (void)state;
    static const uint32_t SIZES[] = {5, 1000, 5000, 151936};
    for (size_t i = 0; i < 4; i++)
        for (size_t d = 0; d < sizeof DRAWS / sizeof DRAWS[0]; d++) {
            sampling_t s = {.vocab = SIZES[i], .bias = {{1, 5}, {2, -100}}};
            s.row = (qn_slot_row_t){.seed = 77 + d,
                                    .prompt_tokens = 1,
                                    .top_k = DRAWS[d].top_k,
                                    .temperature = DRAWS[d].temperature,
                                    .top_p = DRAWS[d].top_p,
                                    .min_p = DRAWS[d].min_p,
                                    .repetition_penalty = DRAWS[d].penalties ? 1.2f : 1,
                                    .presence_penalty = DRAWS[d].penalties ? 0.5f : 0,
                                    .penalties = DRAWS[d].penalties,
                                    .bias_count = DRAWS[d].bias ? 2 : 0,
                                    .stop_count = 1,
                                    .min_tokens = d % 2 ? 0 : 100};
            s.counts = calloc(s.vocab, sizeof *s.counts);
            for (uint32_t v = 0; v < s.vocab; v += 7)
                s.counts[v] = v % 2 ? QN_COUNT_PROMPT : 2;
            s.scratch = malloc(2 * (size_t)s.vocab * sizeof *s.scratch);
            float *logits = check_values(s.vocab, d + 1, false);
            for (uint32_t v = 0; v < s.vocab; v++)
                logits[v] = logits[v] * 6 + (v % 97 == 3 ? 8 : 0);
            for (uint32_t position = 1; position < (s.vocab > 5000 ? 4 : 40); position++) {
                uint32_t want = sample(&s, "reference", logits, position);
                for (size_t n = 0; n < CHECK_FAST_COUNT; n++) {
                    if (!check_kernel(QN_OP_SAMPLER, CHECK_FAST[n])) continue;
                    uint32_t got = sample(&s, CHECK_FAST[n], logits, position);
                    if (got != want)
                        fail_msg("%s, vocabulary %u, case %zu, position %u: %u, reference %u", CHECK_FAST[n], s.vocab,
                                 d, position, got, want);
                }
            }
            free(logits), free(s.counts), free(s.scratch);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_activation_every_kind_is_accurate_to_a_millionth),
        cmocka_unit_test(test_activation_survives_extremes_with_and_without_up),
        cmocka_unit_test(test_softcap_bends_as_the_reference_does),
        cmocka_unit_test(test_rmsnorm_with_offset_and_residual_agrees_with_reference),
        cmocka_unit_test(test_layernorm_agrees_with_reference_also_far_from_zero),
        cmocka_unit_test(test_rope_every_head_size_agrees_with_reference),
        cmocka_unit_test(test_kv_write_stores_the_same_bits_as_the_reference),
        cmocka_unit_test(test_moe_combine_agrees_with_reference_in_place),
        cmocka_unit_test(test_logprobs_agree_with_reference_and_keep_ties_in_order),
        cmocka_unit_test(test_sampler_greedy_finds_the_first_of_the_greatest),
        cmocka_unit_test(test_sampler_draws_what_the_reference_draws),
    };
    return cmocka_run_group_tests_name("kernels_vector", tests, NULL, NULL);
}
