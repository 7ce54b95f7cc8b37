/* The small kernels: norms, gates, rope, copies of rows, writes into the KV region, bf16 rounding. */
#include "common/model_config.h"
#include "tests/unit/kernel_check.h"

static void test_bf16_rounding_is_nearest_even(void **state)
{
    (void)state;
    static const struct { uint32_t bits; uint16_t want; } ROWS[] = {
        { 0x3f800000, 0x3f80 }, { 0x3f808000, 0x3f80 }, { 0x3f818000, 0x3f82 }, { 0x3f808001, 0x3f81 },
        { 0x7f7fffff, 0x7f80 }, { 0x80000000, 0x8000 }, { 0x7f800000, 0x7f80 }, { 0xff800000, 0xff80 },
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        float value;
        memcpy(&value, &ROWS[i].bits, sizeof value);
        assert_int_equal(qn_f32_to_bf16(value), ROWS[i].want);
    }
    assert_true(isnan(qn_bf16_to_f32(qn_f32_to_bf16(NAN))));
}

static void test_rmsnorm_every_width_agrees_with_reference(void **state)
{
    (void)state;
    static const uint32_t WIDTHS[] = { 1, 7, 8, 15, 16, 17, 64, 100, 256 };
    qn_stream_t *stream = check_stream(2);
    for (size_t i = 0; i < sizeof WIDTHS / sizeof WIDTHS[0]; i++)
        for (int f32 = 0; f32 < 2; f32++) {
            uint32_t rows = 5, width = WIDTHS[i];
            float *x = check_values(rows * width, i + 1, true), *values = check_values(width, i + 2, false);
            qn_weight_t weight = check_weight(values, width, f32 ? QN_SCALAR_F32 : QN_SCALAR_BF16);
            float want[5 * 256], got[5 * 256], alone[256];
            qn_rmsnorm_t a = { .x = x, .weight = weight, .rows = rows, .width = width, .eps = 1e-5f, .out = want };
            check_kernel(QN_OP_RMSNORM, "reference")->launch(stream, &a);
            for (size_t k = 0; k < CHECK_FAST_COUNT; k++) {
                const qn_kernel_t *fast = check_kernel(QN_OP_RMSNORM, CHECK_FAST[k]);
                if (!fast) continue;
                a.out = got;
                fast->launch(stream, &a);
                for (size_t e = 0; e < rows * width; e++)
                    assert_true(fabsf(got[e] - want[e]) <= 2e-6f * (1 + fabsf(want[e])));
                qn_rmsnorm_t last = a;
                last.x = x + 4 * width, last.rows = 1, last.out = alone;
                fast->launch(stream, &last);
                assert_memory_equal(alone, got + 4 * width, width * sizeof *alone);
            }
            free(x);
            free(values);
            free((void *)weight.data);
        }
    qn_stream_destroy(&stream);
}

static void test_rmsnorm_in_place_gives_the_same(void **state)
{
    (void)state;
    static const char *const NAMES[] = { "reference", "avx2", "avx512" };
    qn_stream_t *stream = check_stream(1);
    for (size_t n = 0; n < 3; n++) {
        const qn_kernel_t *kernel = check_kernel(QN_OP_RMSNORM, NAMES[n]);
        if (!kernel) continue;
        float *x = check_values(3 * 37, 4, false), *values = check_values(37, 5, false), out[3 * 37];
        qn_weight_t weight = check_weight(values, 37, QN_SCALAR_BF16);
        qn_rmsnorm_t a = { .x = x, .weight = weight, .rows = 3, .width = 37, .eps = 1e-6f, .out = out };
        kernel->launch(stream, &a);
        a.out = x;
        kernel->launch(stream, &a);
        assert_memory_equal(x, out, sizeof out);
        free(x);
        free(values);
        free((void *)weight.data);
    }
    qn_stream_destroy(&stream);
}

static void test_activation_agrees_with_reference_and_survives_extremes(void **state)
{
    (void)state;
    static const float EXTREMES[] = { 0, -0.0f, 1e-30f, -1e-30f, 80, -80, 100, -100, 1e30f, -1e30f };
    qn_stream_t *stream = check_stream(2);
    for (uint32_t width = 1; width < 40; width += 3) {
        uint32_t count = 3 * width;
        float *gate = check_values(count, width, false), *up = check_values(count, width + 1, false);
        for (uint32_t i = 0; i < count; i++) gate[i] = i % 2 ? EXTREMES[i / 2 % 10] : gate[i] * 20;
        float want[120], got[120];
        qn_activate_t a = { .gate = gate, .up = up, .tokens = 3, .width = width, .out = want };
        check_kernel(QN_OP_ACTIVATION, "reference")->launch(stream, &a);
        for (size_t k = 0; k < CHECK_FAST_COUNT; k++) {
            const qn_kernel_t *fast = check_kernel(QN_OP_ACTIVATION, CHECK_FAST[k]);
            if (!fast) continue;
            a.out = got;
            fast->launch(stream, &a);
            for (uint32_t i = 0; i < count; i++)
                if (!(fabsf(got[i] - want[i]) <= 1e-6f * fabsf(want[i]) + 1e-6f))
                    fail_msg("%s: silu(%g) * %g is %g, reference %g", fast->name, (double)gate[i], (double)up[i],
                             (double)got[i], (double)want[i]);
        }
        free(gate);
        free(up);
    }
    qn_stream_destroy(&stream);
}

/* A rotation by position * frequency, as a complex product. */
static void test_rope_rotates_pairs_by_position_times_frequency(void **state)
{
    (void)state;
    enum { T = 4, H = 3, K = 1, D = 8 };
    static const uint32_t POSITIONS[T] = { 0, 1, 77, 1999 };
    qn_stream_t *stream = check_stream(2);
    qn_rope_config_t rope = { .type = QN_ROPE_DEFAULT, .theta = 10000 };
    float frequencies[D / 2], angles[T * D];
    qn_rope_frequencies(&rope, D, frequencies);
    float *q = check_values(T * H * D, 1, false), *k = check_values(T * K * D, 2, false), before[T * H * D];
    memcpy(before, q, sizeof before);
    check_kernel(QN_OP_ROPE_ANGLES, "reference")->launch(stream, &(qn_rope_angles_t){
        .positions = POSITIONS, .frequencies = frequencies, .scale = 1, .tokens = T, .head_dim = D, .out = angles });
    check_kernel(QN_OP_ROPE, "reference")->launch(stream, &(qn_rope_t){
        .angles = angles, .q = q, .k = k, .tokens = T, .heads = H, .kv_heads = K, .head_dim = D });
    for (int t = 0; t < T; t++)
        for (int h = 0; h < H; h++)
            for (int i = 0; i < D / 2; i++) {
                const float *from = before + (t * H + h) * D, *to = q + (t * H + h) * D;
                double angle = POSITIONS[t] * pow(10000, -2.0 * i / D);
                assert_true(fabs(to[i] - (from[i] * cos(angle) - from[i + D / 2] * sin(angle))) < 3e-4);
                assert_true(fabs(to[i + D / 2] - (from[i + D / 2] * cos(angle) + from[i] * sin(angle))) < 3e-4);
            }
    free(q);
    free(k);
    qn_stream_destroy(&stream);
}

static void test_embedding_and_gather_copy_the_named_rows(void **state)
{
    (void)state;
    static const uint32_t IDS[5] = { 9, 0, 3, 3, 7 };
    qn_stream_t *stream = check_stream(3);
    for (int f32 = 0; f32 < 2; f32++) {
        float *values = check_values(10 * 6, 1, false), out[5 * 6], gathered[2 * 6];
        qn_weight_t table = check_weight(values, 10 * 6, f32 ? QN_SCALAR_F32 : QN_SCALAR_BF16);
        check_kernel(QN_OP_EMBEDDING, "reference")->launch(stream, &(qn_embedding_t){
            .table = table, .ids = IDS, .tokens = 5, .width = 6, .multiplier = 1, .out = out });
        for (int t = 0; t < 5; t++) assert_memory_equal(out + t * 6, values + IDS[t] * 6, 6 * sizeof *out);
        check_kernel(QN_OP_GATHER_ROWS, "reference")->launch(stream, &(qn_gather_rows_t){
            .x = out, .rows = (const uint32_t[]){ 4, 1 }, .row_count = 2, .width = 6, .out = gathered });
        assert_memory_equal(gathered, values + 7 * 6, 6 * sizeof *out);
        assert_memory_equal(gathered + 6, values, 6 * sizeof *out);
        free(values);
        free((void *)table.data);
    }
    qn_stream_destroy(&stream);
}

enum { LAYERS = 2, BLOCKS = 3, BLOCK_TOKENS = 4, KV_HEADS = 2, DIM = 4, ROW = KV_HEADS * DIM };

static qn_kv_t make_kv(qn_scalar_t scalar)
{
    size_t bytes = (size_t)LAYERS * 2 * BLOCKS * BLOCK_TOKENS * ROW * qn_scalar_bytes(scalar);
    void *data = malloc(bytes);
    memset(data, 0, bytes);
    return (qn_kv_t){ .data = data, .scalar = scalar, .layers = LAYERS, .blocks = BLOCKS,
                      .block_tokens = BLOCK_TOKENS, .kv_heads = KV_HEADS, .head_dim = DIM };
}

static void test_kv_write_fills_the_named_rows_and_nothing_else(void **state)
{
    (void)state;
    static const int64_t ROWS[3] = { 5, -1, 11 };
    qn_stream_t *stream = check_stream(2);
    for (int f32 = 0; f32 < 2; f32++) {
        qn_kv_t kv = make_kv(f32 ? QN_SCALAR_F32 : QN_SCALAR_BF16);
        float *k = check_values(3 * ROW, 1, false), *v = check_values(3 * ROW, 2, false);
        check_kernel(QN_OP_KV_WRITE, "reference")->launch(stream, &(qn_kv_write_t){
            .kv = kv, .layer = 1, .tokens = 3, .k = k, .v = v, .kv_rows = ROWS });
        for (uint32_t layer = 0; layer < LAYERS; layer++)
            for (uint32_t which = 0; which < 2; which++)
                for (uint32_t row = 0; row < BLOCKS * BLOCK_TOKENS; row++)
                    for (uint32_t i = 0; i < ROW; i++) {
                        const float *from = which ? v : k;
                        float want = layer == 0 ? 0 : row == 5 ? from[i] : row == 11 ? from[2 * ROW + i] : 0;
                        if (!f32) want = qn_bf16_to_f32(qn_f32_to_bf16(want));
                        size_t at = qn_kv_offset(&kv, layer, which, row / BLOCK_TOKENS, row % BLOCK_TOKENS) + i;
                        assert_true(qn_load(kv.data, kv.scalar, at) == want);
                    }
        free(k);
        free(v);
        free(kv.data);
    }
    qn_stream_destroy(&stream);
}

static void test_block_copy_copies_all_layers_in_order(void **state)
{
    (void)state;
    qn_stream_t *stream = check_stream(3);
    qn_kv_t kv = make_kv(QN_SCALAR_F32);
    for (size_t i = 0; i < LAYERS * 2 * BLOCKS * BLOCK_TOKENS * ROW; i++) ((float *)kv.data)[i] = (float)i;
    float *before = malloc(LAYERS * 2 * BLOCKS * BLOCK_TOKENS * ROW * sizeof *before);
    memcpy(before, kv.data, LAYERS * 2 * BLOCKS * BLOCK_TOKENS * ROW * sizeof *before);
    check_kernel(QN_OP_BLOCK_COPY, "reference")->launch(stream, &(qn_block_copy_args_t){
        .kv = kv, .copies = (const qn_copy_t[]){ { 0, 2 }, { 1, 0 } }, .copy_count = 2 });
    static const uint32_t SOURCE[BLOCKS] = { 1, 1, 0 };
    for (uint32_t plane = 0; plane < LAYERS * 2; plane++)
        for (uint32_t block = 0; block < BLOCKS; block++)
            assert_memory_equal((float *)kv.data + qn_kv_offset(&kv, plane / 2, plane % 2, block, 0),
                                before + qn_kv_offset(&kv, plane / 2, plane % 2, SOURCE[block], 0),
                                BLOCK_TOKENS * ROW * sizeof(float));
    free(before);
    free(kv.data);
    qn_stream_destroy(&stream);
}

static void test_logprobs_are_log_softmax_with_ties_to_the_lower_id(void **state)
{
    (void)state;
    static const float LOGITS[2][6] = { { 1, 3, 3, -INFINITY, 0, 3 }, { 1e4f, -1e4f, 0, 0, 0, 0 } };
    qn_stream_t *stream = check_stream(2);
    float got[2];
    qn_top_entry_t top[2 * QN_TOP_LOGPROBS_MAX];
    check_kernel(QN_OP_LOGPROBS, "reference")->launch(stream, &(qn_logprobs_t){
        .logits = &LOGITS[0][0], .targets = (const uint32_t[]){ 0, 0 }, .top_counts = (const uint32_t[]){ 4, 20 },
        .rows = 2, .vocab = 6, .ret_logprobs = got, .ret_top = top });
    double total = 3 * exp(3) + exp(1) + exp(0);
    assert_true(fabs(got[0] - (1 - log(total))) < 1e-6);
    assert_true(got[1] == 0);
    assert_int_equal(top[0].id, 1);
    assert_int_equal(top[1].id, 2);
    assert_int_equal(top[2].id, 5);
    assert_int_equal(top[3].id, 0);
    assert_true(fabs(top[2].logprob - (3 - log(total))) < 1e-6);
    assert_int_equal(top[QN_TOP_LOGPROBS_MAX].id, 0);
    assert_int_equal(top[QN_TOP_LOGPROBS_MAX + 1].id, 2);  /* of 20 asked, the 6 there are */
    qn_stream_destroy(&stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_rounding_is_nearest_even),
        cmocka_unit_test(test_rmsnorm_every_width_agrees_with_reference),
        cmocka_unit_test(test_rmsnorm_in_place_gives_the_same),
        cmocka_unit_test(test_activation_agrees_with_reference_and_survives_extremes),
        cmocka_unit_test(test_rope_rotates_pairs_by_position_times_frequency),
        cmocka_unit_test(test_embedding_and_gather_copy_the_named_rows),
        cmocka_unit_test(test_kv_write_fills_the_named_rows_and_nothing_else),
        cmocka_unit_test(test_block_copy_copies_all_layers_in_order),
        cmocka_unit_test(test_logprobs_are_log_softmax_with_ties_to_the_lower_id),
    };
    return cmocka_run_group_tests_name("kernels_elementwise", tests, NULL, NULL);
}
