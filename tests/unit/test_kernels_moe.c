/* Mixture of experts: which experts a token gets and with what weight, the order of the assignments, the products of
 * each expert, and the sum. */
#include "tests/unit/kernel_check.h"

#include "kernels/weight_layout.h"

enum { T_MAX = 40, X_MAX = 16, A_MAX = 4 };

typedef struct {
    float weights[T_MAX * A_MAX];
    uint32_t places[T_MAX * A_MAX], rows[T_MAX * A_MAX], offsets[X_MAX + 1];
} routing_t;

static void route(qn_stream_t *stream, const float *logits, uint32_t tokens, uint32_t experts, uint32_t per_token,
                  bool normalise, routing_t *ret)
{
    memset(ret, 0xee, sizeof *ret);
    check_kernel(QN_OP_MOE_ROUTE, "reference")
        ->launch(stream, &(qn_moe_route_t){.logits = logits,
                                           .tokens = tokens,
                                           .experts = experts,
                                           .per_token = per_token,
                                           .normalise = normalise,
                                           .ret_weights = ret->weights,
                                           .ret_places = ret->places,
                                           .ret_rows = ret->rows,
                                           .ret_offsets = ret->offsets});
}

static uint32_t expert_of(const routing_t *routing, uint32_t experts, uint32_t place)
{
    uint32_t e = 0;
    while (e < experts && place >= routing->offsets[e + 1])
        e++;
    return e;
}

static void test_moe_route_takes_the_greatest_with_softmax_weights(void **state)
{
    (void)state;
    static const float LOGITS[2][4] = {{0, 2, 1, -1}, {3, 0, 0, 4}};
    qn_stream_t *stream = check_stream(1);
    routing_t r;
    for (int normalise = 0; normalise < 2; normalise++) {
        route(stream, &LOGITS[0][0], 2, 4, 2, normalise, &r);
        double first = normalise ? exp(2) + exp(1) : exp(0) + exp(2) + exp(1) + exp(-1);
        double second = normalise ? exp(3) + exp(4) : exp(3) + 2 + exp(4);
        assert_true(fabs(r.weights[0] - exp(2) / first) < 1e-7 && fabs(r.weights[1] - exp(1) / first) < 1e-7);
        assert_true(fabs(r.weights[2] - exp(4) / second) < 1e-7 && fabs(r.weights[3] - exp(3) / second) < 1e-7);
        /* by expert: 0 of token 1, 1 of token 0, 2 of token 0, 3 of token 1 */
        static const uint32_t OFFSETS[5] = {0, 1, 2, 3, 4}, ROWS[4] = {1, 0, 0, 1}, PLACES[4] = {1, 2, 3, 0};
        assert_memory_equal(r.offsets, OFFSETS, sizeof OFFSETS);
        assert_memory_equal(r.rows, ROWS, sizeof ROWS);
        assert_memory_equal(r.places, PLACES, sizeof PLACES);
    }
    qn_stream_destroy(&stream);
}

static void test_moe_route_ties_go_to_the_lower_expert(void **state)
{
    (void)state;
    static const float LOGITS[3][5] = {{1, 1, 1, 1, 1}, {0, 7, -0.0f, 7, 0}, {-INFINITY, 2, NAN, 2, NAN}};
    static const uint32_t WANT[3][3] = {{0, 1, 2}, {1, 3, 0}, {1, 3, 0}};
    qn_stream_t *stream = check_stream(1);
    routing_t r;
    route(stream, &LOGITS[0][0], 3, 5, 3, true, &r);
    for (uint32_t t = 0; t < 3; t++)
        for (uint32_t a = 0; a < 3; a++)
            assert_int_equal(expert_of(&r, 5, r.places[t * 3 + a]), WANT[t][a]);
    qn_stream_destroy(&stream);
}

/* Whatever the logits are: every assignment has one place, places of an expert are tokens in ascending order, and a
 * token alone gets what it gets in a batch. */
static void test_moe_route_any_batch_is_grouped_and_invariant(void **state)
{
    (void)state;
    uint64_t seed = 77;
    for (uint32_t trial = 0; trial < 60; trial++) {
        uint32_t tokens = 1 + check_next(&seed) % T_MAX, experts = 1 + check_next(&seed) % X_MAX;
        uint32_t limit = experts < A_MAX ? experts : A_MAX, per_token = 1 + check_next(&seed) % limit;
        float *logits = check_values(tokens * experts, trial, false);
        for (uint32_t i = 0; trial % 3 == 0 && i < tokens * experts; i++)
            logits[i] = roundf(logits[i] * 2);
        qn_stream_t *stream = check_stream(1 + trial % 3);
        routing_t r, alone;
        route(stream, logits, tokens, experts, per_token, trial % 2, &r);
        bool taken[T_MAX * A_MAX] = {false};
        assert_int_equal(r.offsets[0], 0);
        assert_int_equal(r.offsets[experts], tokens * per_token);
        for (uint32_t e = 0; e < experts; e++) {
            assert_true(r.offsets[e] <= r.offsets[e + 1]);
            for (uint32_t i = r.offsets[e]; i + 1 < r.offsets[e + 1]; i++)
                assert_true(r.rows[i] < r.rows[i + 1]);
        }
        for (uint32_t i = 0; i < tokens * per_token; i++) {
            assert_true(r.places[i] < tokens * per_token && !taken[r.places[i]]);
            taken[r.places[i]] = true;
            assert_int_equal(r.rows[r.places[i]], i / per_token);
        }
        for (uint32_t t = 0; t < tokens; t++) {
            route(stream, logits + t * experts, 1, experts, per_token, trial % 2, &alone);
            assert_memory_equal(alone.weights, r.weights + t * per_token, per_token * sizeof *r.weights);
            for (uint32_t a = 0; a < per_token; a++)
                assert_int_equal(expert_of(&alone, experts, alone.places[a]),
                                 expert_of(&r, experts, r.places[t * per_token + a]));
        }
        qn_stream_destroy(&stream);
        free(logits);
    }
}

/* ---- products ---- */

enum { EXPERTS = 4, INPUTS = 70, OUTPUTS = 21 };

/* Each expert's weights in the format. */
static void make_experts(uint64_t seed, qn_scalar_t scalar, qn_layout_t layout, uint32_t group,
                         qn_weight_t *ret_weights)
{
    for (uint32_t e = 0; e < EXPERTS; e++) {
        float *values = check_values(OUTPUTS * INPUTS, seed + e, false);
        if (layout == QN_LAYOUT_ROWS) {
            ret_weights[e] = check_weight(values, OUTPUTS * INPUTS, scalar);
        } else {
            uint64_t bytes;
            assert_int_equal(qn_weight_bytes(scalar, layout, group, OUTPUTS, INPUTS, &bytes), QN_OK);
            void *data = aligned_alloc(64, bytes);
            qn_weight_pack(scalar, group, OUTPUTS, INPUTS, 0, qn_panel_count(OUTPUTS), values, data);
            ret_weights[e] = (qn_weight_t){.data = data, .scalar = scalar, .layout = layout, .group = group};
        }
        free(values);
    }
}

static void check_products(qn_stream_t *stream, const char *name, const qn_weight_t *up, const qn_weight_t *gate,
                           float tolerance)
{
    static const uint32_t OFFSETS[EXPERTS + 1] = {0, 5, 5, 6, 25}; /* the second has nothing to do */
    enum { PLACES = 25 };
    const qn_kernel_t *kernel = check_kernel(QN_OP_EXPERT_MATMUL, name);
    if (!kernel) return;
    float *x = check_values(PLACES * INPUTS, 5, false), out[2][PLACES * OUTPUTS];
    void *scratch = aligned_alloc(64, qn_matmul_scratch_bytes(PLACES, INPUTS) / 64 * 64 + 64);
    kernel->launch(stream, &(qn_expert_matmul_t){.x = x,
                                                 .offsets = OFFSETS,
                                                 .places = PLACES,
                                                 .inputs = INPUTS,
                                                 .experts = EXPERTS,
                                                 .outputs = OUTPUTS,
                                                 .weights = {gate, up},
                                                 .out = {out[0], out[1]},
                                                 .part_count = 2,
                                                 .scratch = scratch,
                                                 .scalar = up[0].scalar});
    for (uint32_t e = 0; e < EXPERTS; e++)
        for (uint32_t i = OFFSETS[e]; i < OFFSETS[e + 1]; i++)
            for (uint32_t o = 0; o < OUTPUTS; o++)
                for (int p = 0; p < 2; p++) {
                    double want = 0;
                    for (uint32_t m = 0; m < INPUTS; m++)
                        want += (double)x[i * INPUTS + m] * qn_weight_get(&(p ? up : gate)[e], INPUTS, o, m);
                    if (!(fabs(out[p][i * OUTPUTS + o] - want) <= (double)tolerance))
                        fail_msg("%s: part %d, place %u, output %u: %g, expected %g", name, p, i, o,
                                 (double)out[p][i * OUTPUTS + o], want);
                }
    free(x);
    free(scratch);
}

static void test_expert_matmul_each_place_meets_its_experts_weights(void **state)
{
    (void)state;
    static const struct {
        qn_scalar_t scalar;
        qn_layout_t layout;
        uint32_t group;
    } FORMATS[] = {
        {QN_SCALAR_F32, QN_LAYOUT_ROWS, 0},    {QN_SCALAR_BF16, QN_LAYOUT_ROWS, 0},
        {QN_SCALAR_F32, QN_LAYOUT_PANELS, 0},  {QN_SCALAR_BF16, QN_LAYOUT_PANELS, 0},
        {QN_SCALAR_INT8, QN_LAYOUT_PANELS, 0}, {QN_SCALAR_INT4, QN_LAYOUT_PANELS, 32},
    };
    qn_stream_t *stream = check_stream(2);
    for (size_t f = 0; f < sizeof FORMATS / sizeof FORMATS[0]; f++) {
        qn_weight_t up[EXPERTS], gate[EXPERTS];
        make_experts(100, FORMATS[f].scalar, FORMATS[f].layout, FORMATS[f].group, up);
        make_experts(200, FORMATS[f].scalar, FORMATS[f].layout, FORMATS[f].group, gate);
        bool quantised = FORMATS[f].scalar > QN_SCALAR_BF16;
        check_products(stream, "reference", up, gate, 1e-5f);
        check_products(stream, "avx2", up, gate, 2e-5f);
        check_products(stream, "avx512", up, gate, 2e-5f);
        check_products(stream, "vnni", up, gate, quantised ? 0.1f : 2e-5f);
        for (uint32_t e = 0; e < EXPERTS; e++) {
            free((void *)up[e].data);
            free((void *)gate[e].data);
        }
    }
    qn_stream_destroy(&stream);
}

/* ---- the sum ---- */

static void test_moe_combine_adds_choices_in_order_to_the_residual(void **state)
{
    (void)state;
    static const float X[4][3] = {{1, 2, 3}, {10, 20, 30}, {100, 200, 300}, {-1, -2, -4}};
    static const float WEIGHTS[4] = {0.5f, 0.25f, 2, 1};
    static const uint32_t PLACES[4] = {2, 0, 1, 3};
    static const float WANT[6] = {1000 + 50 + 0.25f, 1000 + 100 + 0.5f, 1000 + 150 + 0.75f, 20 - 1, 40 - 2, 60 - 4};
    qn_stream_t *stream = check_stream(2);
    float residual[6] = {1000, 1000, 1000, 0, 0, 0}, out[6];
    qn_moe_combine_t a = {.x = X,
                          .weights = WEIGHTS,
                          .places = PLACES,
                          .residual = residual,
                          .tokens = 2,
                          .per_token = 2,
                          .width = 3,
                          .out = out};
    check_kernel(QN_OP_MOE_COMBINE, "reference")->launch(stream, &a);
    assert_memory_equal(out, WANT, sizeof WANT);
    a.out = residual;
    check_kernel(QN_OP_MOE_COMBINE, "reference")->launch(stream, &a);
    assert_memory_equal(residual, WANT, sizeof WANT);
    qn_stream_destroy(&stream);
}

static void test_moe_combine_every_width_agrees_with_the_sum(void **state)
{
    (void)state;
    static const uint32_t WIDTHS[] = {1, 63, 64, 65, 200};
    enum { TOKENS = 3, CHOICES = 4, WIDTH_MAX = 200 };
    static const uint32_t PLACES[TOKENS * CHOICES] = {11, 3, 0, 7, 1, 2, 10, 9, 8, 4, 6, 5};
    qn_stream_t *stream = check_stream(2);
    for (size_t w = 0; w < sizeof WIDTHS / sizeof WIDTHS[0]; w++) {
        uint32_t width = WIDTHS[w];
        float *x = check_values(TOKENS * CHOICES * width, 1, false), *residual = check_values(TOKENS * width, 2, false);
        float *weights = check_values(TOKENS * CHOICES, 3, false), out[TOKENS * WIDTH_MAX];
        check_kernel(QN_OP_MOE_COMBINE, "reference")
            ->launch(stream, &(qn_moe_combine_t){.x = x,
                                                 .weights = weights,
                                                 .places = PLACES,
                                                 .residual = residual,
                                                 .tokens = TOKENS,
                                                 .per_token = CHOICES,
                                                 .width = width,
                                                 .out = out});
        for (uint32_t t = 0; t < TOKENS; t++)
            for (uint32_t i = 0; i < width; i++) {
                double want = residual[t * width + i];
                for (uint32_t c = 0; c < CHOICES; c++)
                    want += (double)weights[t * CHOICES + c] * x[PLACES[t * CHOICES + c] * width + i];
                assert_true(out[t * width + i] == (float)want);
            }
        free(x);
        free(residual);
        free(weights);
    }
    qn_stream_destroy(&stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_moe_route_takes_the_greatest_with_softmax_weights),
        cmocka_unit_test(test_moe_route_ties_go_to_the_lower_expert),
        cmocka_unit_test(test_moe_route_any_batch_is_grouped_and_invariant),
        cmocka_unit_test(test_expert_matmul_each_place_meets_its_experts_weights),
        cmocka_unit_test(test_moe_combine_adds_choices_in_order_to_the_residual),
        cmocka_unit_test(test_moe_combine_every_width_agrees_with_the_sum),
    };
    return cmocka_run_group_tests_name("kernels_moe", tests, NULL, NULL);
}
