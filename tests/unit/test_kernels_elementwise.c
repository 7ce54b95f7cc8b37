/* The small kernels: norms, gates, rope, copies of rows, writes into the KV region, bf16 rounding. */
#include "common/model/model_config.h"
#include "kernels/weight_layout.h"
#include "tests/unit/kernel_check.h"

static void test_bf16_rounding_is_nearest_even(void **state)
{
    (void)state;
    static const struct {
        uint32_t bits;
        uint16_t want;
    } ROWS[] = {
        {0x3f800000, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f818000, 0x3f82}, {0x3f808001, 0x3f81},
        {0x7f7fffff, 0x7f80}, {0x80000000, 0x8000}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80},
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
    static const uint32_t WIDTHS[] = {1, 7, 8, 15, 16, 17, 64, 100, 256};
    qn_stream_t *stream = check_stream(2);
    for (size_t i = 0; i < sizeof WIDTHS / sizeof WIDTHS[0]; i++)
        for (int f32 = 0; f32 < 2; f32++) {
            uint32_t rows = 5, width = WIDTHS[i];
            float *x = check_values(rows * width, i + 1, true), *values = check_values(width, i + 2, false);
            qn_weight_t weight = check_weight(values, width, f32 ? QN_SCALAR_F32 : QN_SCALAR_BF16);
            float want[5 * 256], got[5 * 256], alone[256];
            qn_rmsnorm_t a = {.x = x, .weight = weight, .rows = rows, .width = width, .eps = 1e-5f, .out = want};
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

/* Out may be x or the residual; Gemma's offset is added to the weight. */
static void test_rmsnorm_offset_and_residual_in_any_place_agree_with_the_formula(void **state)
{
    (void)state;
    enum { ROWS = 3, WIDTH = 37, COUNT = ROWS * WIDTH };
    static const char *const NAMES[] = {"reference", "avx2", "avx512"};
    static const float OFFSETS[] = {0, 1};
    qn_stream_t *stream = check_stream(1);
    for (size_t n = 0; n < 12; n++) {
        const qn_kernel_t *kernel = check_kernel(QN_OP_RMSNORM, NAMES[n % 3]);
        if (!kernel) continue;
        bool with_residual = n / 6;
        float *x = check_values(COUNT, 4, false), *residual = check_values(COUNT, 6, false);
        float *values = check_values(WIDTH, 5, false), out[COUNT];
        qn_weight_t weight = check_weight(values, WIDTH, n % 2 ? QN_SCALAR_BF16 : QN_SCALAR_F32);
        qn_rmsnorm_t a = {.x = x,
                          .weight = weight,
                          .residual = with_residual ? residual : NULL,
                          .rows = ROWS,
                          .width = WIDTH,
                          .eps = 1e-6f,
                          .weight_offset = OFFSETS[n / 3 % 2],
                          .out = out};
        kernel->launch(stream, &a);
        for (size_t row = 0; row < ROWS; row++) {
            double squares = 0;
            for (size_t i = 0; i < WIDTH; i++)
                squares += (double)x[row * WIDTH + i] * x[row * WIDTH + i];
            for (size_t i = 0; i < WIDTH; i++) {
                double want = x[row * WIDTH + i] / sqrt(squares / WIDTH + 1e-6) * ((double)a.weight_offset + values[i]);
                if (with_residual) want += residual[row * WIDTH + i];
                assert_true(fabs(out[row * WIDTH + i] - want) < 3e-6);
            }
        }
        a.out = with_residual ? residual : x;
        kernel->launch(stream, &a);
        assert_memory_equal(a.out, out, sizeof out);
        free(x);
        free(residual);
        free(values);
        free((void *)weight.data);
    }
    qn_stream_destroy(&stream);
}

static void test_layernorm_rows_have_the_mean_and_deviation_of_weight_and_bias(void **state)
{
    (void)state;
    enum { ROWS = 4 };
    static const uint32_t WIDTHS[] = {1, 2, 9, 64, 131};
    qn_stream_t *stream = check_stream(2);
    for (size_t i = 0; i < sizeof WIDTHS / sizeof WIDTHS[0]; i++)
        for (int with_bias = 0; with_bias < 2; with_bias++) {
            uint32_t width = WIDTHS[i];
            float *x = check_values(ROWS * width, i + 1, false), *values = check_values(2 * width, i + 2, false);
            for (uint32_t e = 0; e < ROWS * width; e++)
                x[e] += 1000; /* far from zero: the variance must survive */
            qn_weight_t weight = check_weight(values, width, QN_SCALAR_BF16);
            qn_weight_t bias = check_weight(values + width, width, QN_SCALAR_F32);
            float out[ROWS * 131];
            qn_layernorm_t a = {.x = x, .weight = weight, .rows = ROWS, .width = width, .eps = 1e-5f, .out = out};
            if (with_bias) a.bias = bias;
            check_kernel(QN_OP_LAYERNORM, "reference")->launch(stream, &a);
            for (uint32_t row = 0; row < ROWS; row++) {
                double sum = 0, squares = 0;
                for (uint32_t e = 0; e < width; e++)
                    sum += x[row * width + e];
                for (uint32_t e = 0; e < width; e++)
                    squares += pow(x[row * width + e] - sum / width, 2);
                for (uint32_t e = 0; e < width; e++) {
                    double want = (x[row * width + e] - sum / width) / sqrt(squares / width + 1e-5) * values[e];
                    if (with_bias) want += values[width + e];
                    assert_true(fabs(out[row * width + e] - want) < 1e-6);
                }
            }
            a.out = x;
            check_kernel(QN_OP_LAYERNORM, "reference")->launch(stream, &a);
            assert_memory_equal(x, out, ROWS * width * sizeof *out);
            free(x);
            free(values);
            free((void *)weight.data);
            free((void *)bias.data);
        }
    qn_stream_destroy(&stream);
}

/* Values of each function at points where they are known: from tables of erf and tanh. */
static void test_activation_reference_has_the_known_values(void **state)
{
    (void)state;
    static const struct {
        qn_activation_t kind;
        float x, want;
    } ROWS[] = {
        {QN_ACTIVATION_SILU, 1, 0.7310586f},
        {QN_ACTIVATION_SILU, -2, -0.2384058f},
        {QN_ACTIVATION_GELU, 1, 0.8413447f},
        {QN_ACTIVATION_GELU, -0.5f, -0.1542688f},
        {QN_ACTIVATION_GELU_TANH, 1, 0.8411920f},
        {QN_ACTIVATION_GELU_TANH, -0.5f, -0.1542860f},
        {QN_ACTIVATION_RELU, 3, 3},
        {QN_ACTIVATION_RELU, -3, 0},
    };
    qn_stream_t *stream = check_stream(1);
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        float got, up = -4;
        qn_activate_t a = {.gate = &ROWS[i].x, .tokens = 1, .width = 1, .kind = ROWS[i].kind, .out = &got};
        check_kernel(QN_OP_ACTIVATION, "reference")->launch(stream, &a);
        assert_true(fabsf(got - ROWS[i].want) < 1e-6f);
        a.up = &up;
        check_kernel(QN_OP_ACTIVATION, "reference")->launch(stream, &a);
        assert_true(fabsf(got + 4 * ROWS[i].want) < 4e-6f);
    }
    qn_stream_destroy(&stream);
}

static void test_activation_every_kind_agrees_with_reference_and_survives_extremes(void **state)
{
    (void)state;
    static const float EXTREMES[] = {0, -0.0f, 1e-30f, -1e-30f, 80, -80, 100, -100, 1e10f, -1e10f};
    qn_stream_t *stream = check_stream(2);
    for (uint32_t trial = 0; trial < 8 * 13; trial++) {
        uint32_t width = 1 + trial / 8 * 3, count = 3 * width;
        float *gate = check_values(count, width, false), *up = check_values(count, width + 1, false);
        for (uint32_t i = 0; i < count; i++)
            gate[i] = i % 2 ? EXTREMES[i / 2 % 10] : gate[i] * 20;
        float want[120], got[120];
        qn_activate_t a = {.gate = gate,
                           .up = trial / 4 % 2 ? up : NULL,
                           .tokens = 3,
                           .width = width,
                           .kind = (qn_activation_t)(trial % 4),
                           .out = want};
        check_kernel(QN_OP_ACTIVATION, "reference")->launch(stream, &a);
        for (size_t k = 0; k < CHECK_FAST_COUNT; k++) {
            const qn_kernel_t *fast = check_kernel(QN_OP_ACTIVATION, CHECK_FAST[k]);
            if (!fast) continue;
            a.out = got;
            fast->launch(stream, &a);
            for (uint32_t i = 0; i < count; i++)
                if (!(fabsf(got[i] - want[i]) <= 1e-6f * fabsf(want[i]) + 1e-6f))
                    fail_msg("%s: activation %u of %g (times %g) is %g, reference %g", fast->name, trial % 4,
                             (double)gate[i], (double)up[i], (double)got[i], (double)want[i]);
        }
        free(gate);
        free(up);
    }
    qn_stream_destroy(&stream);
}

static void test_softcap_bends_below_the_cap(void **state)
{
    (void)state;
    static const float VALUES[] = {0, 1, -1, 30, -30, 1e6f, -1e6f, INFINITY, -INFINITY};
    enum { COUNT = sizeof VALUES / sizeof VALUES[0] };
    qn_stream_t *stream = check_stream(2);
    float x[COUNT];
    memcpy(x, VALUES, sizeof x);
    check_kernel(QN_OP_SOFTCAP, "reference")
        ->launch(stream, &(qn_softcap_t){.x = x, .rows = 3, .width = COUNT / 3, .cap = 30});
    for (size_t i = 0; i < COUNT; i++)
        assert_true(fabs(x[i] - 30 * tanh(VALUES[i] / 30.0)) < 1e-5);
    assert_true(x[5] == 30 && x[8] == -30);
    qn_stream_destroy(&stream);
}

/* A rotation by position * frequency, as a complex product. */
static void test_rope_rotates_pairs_by_position_times_frequency(void **state)
{
    (void)state;
    enum { T = 4, H = 3, K = 1, D = 8 };
    static const uint32_t POSITIONS[T] = {0, 1, 77, 1999};
    qn_stream_t *stream = check_stream(2);
    qn_rope_config_t rope = {.type = QN_ROPE_DEFAULT, .theta = 10000};
    float frequencies[D / 2], angles[T * D];
    qn_rope_frequencies(&rope, D, frequencies);
    float *q = check_values(T * H * D, 1, false), *k = check_values(T * K * D, 2, false), before[T * H * D];
    memcpy(before, q, sizeof before);
    check_kernel(QN_OP_ROPE_ANGLES, "reference")
        ->launch(stream, &(qn_rope_angles_t){.positions = POSITIONS,
                                             .frequencies = frequencies,
                                             .scale = 1,
                                             .tokens = T,
                                             .head_dim = D,
                                             .out = angles});
    check_kernel(QN_OP_ROPE, "reference")
        ->launch(stream,
                 &(qn_rope_t){.angles = angles, .q = q, .k = k, .tokens = T, .heads = H, .kv_heads = K, .head_dim = D});
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

/* Up to the original length the base is the model's; beyond, that of the sequence's length, token by token. Numbers
 * from transformers' formula, worked out by hand: o = 32, factor 4, theta 10000, D = 8, so that n = 40 gives the base
 * 10000 * 2^(8/6) and n = 64 10000 * 5^(8/6). */
static void test_rope_angles_dynamic_go_by_each_tokens_length(void **state)
{
    (void)state;
    enum { T = 5, D = 8 };
    static const uint32_t POSITIONS[T] = {3, 31, 39, 3, 63}, LENGTHS[T] = {32, 32, 40, 40, 64};
    static const double BASES[T] = {10000, 10000, 25198.42099789746, 25198.42099789746, 85498.79733383485};
    qn_stream_t *stream = check_stream(2);
    float angles[T * D], one[D];
    qn_rope_angles_t a = {.positions = POSITIONS,
                          .lengths = LENGTHS,
                          .theta = 10000,
                          .factor = 4,
                          .original_positions = 32,
                          .scale = 1,
                          .tokens = T,
                          .head_dim = D,
                          .out = angles};
    check_kernel(QN_OP_ROPE_ANGLES, "reference")->launch(stream, &a);
    for (int t = 0; t < T; t++) {
        for (int i = 0; i < D / 2; i++) {
            double angle = POSITIONS[t] * pow(BASES[t], -2.0 * i / D);
            assert_true(fabs(angles[t * D + i] - cos(angle)) < 1e-5);
            assert_true(fabs(angles[t * D + D / 2 + i] - sin(angle)) < 1e-5);
        }
        qn_rope_angles_t alone = a;
        alone.positions += t, alone.lengths += t, alone.tokens = 1, alone.out = one;
        check_kernel(QN_OP_ROPE_ANGLES, "reference")->launch(stream, &alone);
        assert_memory_equal(one, angles + t * D, sizeof one);
    }
    qn_stream_destroy(&stream);
}

static void test_embedding_multiplies_and_adds_positions(void **state)
{
    (void)state;
    static const uint32_t IDS[3] = {4, 0, 4}, POSITIONS[3] = {1, 0, 2};
    enum { V = 5, P = 3, E = 6 };
    qn_stream_t *stream = check_stream(1);
    float *values = check_values(V * E, 1, false), *places = check_values(P * E, 2, false), out[3 * E];
    qn_weight_t table = check_weight(values, V * E, QN_SCALAR_BF16);
    qn_weight_t position_table = check_weight(places, P * E, QN_SCALAR_F32);
    check_kernel(QN_OP_EMBEDDING, "reference")
        ->launch(stream, &(qn_embedding_t){.table = table,
                                           .position_table = position_table,
                                           .ids = IDS,
                                           .positions = POSITIONS,
                                           .tokens = 3,
                                           .width = E,
                                           .multiplier = 2.5f,
                                           .out = out});
    for (int t = 0; t < 3; t++)
        for (int e = 0; e < E; e++)
            assert_true(out[t * E + e] == values[IDS[t] * E + e] * 2.5f + places[POSITIONS[t] * E + e]);
    free(values);
    free(places);
    free((void *)table.data);
    free((void *)position_table.data);
    qn_stream_destroy(&stream);
}

/* A tied table lies in panels: its rows come out as weight_layout.h says they are. */
static void test_embedding_reads_packed_tables(void **state)
{
    (void)state;
    static const uint32_t IDS[4] = {16, 0, 15, 17};
    enum { V = 18, E = 40 };
    static const qn_scalar_t SCALARS[] = {QN_SCALAR_F32, QN_SCALAR_BF16, QN_SCALAR_INT8};
    qn_stream_t *stream = check_stream(2);
    float *values = check_values(V * E, 1, false), out[4 * E];
    for (size_t s = 0; s < 3; s++) {
        uint64_t bytes;
        assert_int_equal(qn_weight_bytes(SCALARS[s], QN_LAYOUT_PANELS, 0, V, E, &bytes), QN_OK);
        void *data = aligned_alloc(64, bytes);
        qn_weight_pack(SCALARS[s], 0, V, E, 0, 2, values, data);
        qn_weight_t table = {.data = data, .scalar = SCALARS[s], .layout = QN_LAYOUT_PANELS};
        check_kernel(QN_OP_EMBEDDING, "reference")
            ->launch(stream, &(qn_embedding_t){
                                 .table = table, .ids = IDS, .tokens = 4, .width = E, .multiplier = 1, .out = out});
        for (int t = 0; t < 4; t++)
            for (int e = 0; e < E; e++) {
                assert_true(out[t * E + e] == qn_weight_get(&table, E, IDS[t], e));
                assert_true(fabsf(out[t * E + e] - values[IDS[t] * E + e]) < (s ? 5e-3f : 1e-12f));
            }
        free(data);
    }
    free(values);
    qn_stream_destroy(&stream);
}

static void test_embedding_and_gather_copy_the_named_rows(void **state)
{
    (void)state;
    static const uint32_t IDS[5] = {9, 0, 3, 3, 7};
    qn_stream_t *stream = check_stream(3);
    for (int f32 = 0; f32 < 2; f32++) {
        float *values = check_values(10 * 6, 1, false), out[5 * 6], gathered[2 * 6];
        qn_weight_t table = check_weight(values, 10 * 6, f32 ? QN_SCALAR_F32 : QN_SCALAR_BF16);
        check_kernel(QN_OP_EMBEDDING, "reference")
            ->launch(stream, &(qn_embedding_t){
                                 .table = table, .ids = IDS, .tokens = 5, .width = 6, .multiplier = 1, .out = out});
        for (int t = 0; t < 5; t++)
            assert_memory_equal(out + t * 6, values + IDS[t] * 6, 6 * sizeof *out);
        check_kernel(QN_OP_GATHER_ROWS, "reference")
            ->launch(stream,
                     &(qn_gather_rows_t){
                         .x = out, .rows = (const uint32_t[]){4, 1}, .row_count = 2, .width = 6, .out = gathered});
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
    return (qn_kv_t){.data = data,
                     .scalar = scalar,
                     .layers = LAYERS,
                     .blocks = BLOCKS,
                     .block_tokens = BLOCK_TOKENS,
                     .kv_heads = KV_HEADS,
                     .head_dim = DIM};
}

static void test_kv_write_fills_the_named_rows_and_nothing_else(void **state)
{
    (void)state;
    static const int64_t ROWS[3] = {5, -1, 11};
    qn_stream_t *stream = check_stream(2);
    for (int f32 = 0; f32 < 2; f32++) {
        qn_kv_t kv = make_kv(f32 ? QN_SCALAR_F32 : QN_SCALAR_BF16);
        float *k = check_values(3 * ROW, 1, false), *v = check_values(3 * ROW, 2, false);
        check_kernel(QN_OP_KV_WRITE, "reference")
            ->launch(stream, &(qn_kv_write_t){.kv = kv, .layer = 1, .tokens = 3, .k = k, .v = v, .kv_rows = ROWS});
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
    for (size_t i = 0; i < LAYERS * 2 * BLOCKS * BLOCK_TOKENS * ROW; i++)
        ((float *)kv.data)[i] = (float)i;
    float *before = malloc(LAYERS * 2 * BLOCKS * BLOCK_TOKENS * ROW * sizeof *before);
    memcpy(before, kv.data, LAYERS * 2 * BLOCKS * BLOCK_TOKENS * ROW * sizeof *before);
    check_kernel(QN_OP_BLOCK_COPY, "reference")
        ->launch(stream,
                 &(qn_block_copy_args_t){.kv = kv, .copies = (const qn_copy_t[]){{0, 2}, {1, 0}}, .copy_count = 2});
    static const uint32_t SOURCE[BLOCKS] = {1, 1, 0};
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
    static const float LOGITS[2][6] = {{1, 3, 3, -INFINITY, 0, 3}, {1e4f, -1e4f, 0, 0, 0, 0}};
    qn_stream_t *stream = check_stream(2);
    float got[2];
    qn_top_entry_t top[2 * QN_ALTERNATIVES_MAX];
    check_kernel(QN_OP_LOGPROBS, "reference")
        ->launch(stream, &(qn_logprobs_t){.logits = &LOGITS[0][0],
                                          .targets = (const uint32_t[]){0, 0},
                                          .top_counts = (const uint32_t[]){4, 20},
                                          .rows = 2,
                                          .vocab = 6,
                                          .ret_logprobs = got,
                                          .ret_top = top});
    double total = 3 * exp(3) + exp(1) + exp(0);
    assert_true(fabs(got[0] - (1 - log(total))) < 1e-6);
    assert_true(got[1] == 0);
    assert_int_equal(top[0].id, 1);
    assert_int_equal(top[1].id, 2);
    assert_int_equal(top[2].id, 5);
    assert_int_equal(top[3].id, 0);
    assert_true(fabs(top[2].logprob - (3 - log(total))) < 1e-6);
    assert_int_equal(top[QN_ALTERNATIVES_MAX].id, 0);
    assert_int_equal(top[QN_ALTERNATIVES_MAX + 1].id, 2); /* of 20 asked, the 6 there are */
    qn_stream_destroy(&stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_rounding_is_nearest_even),
        cmocka_unit_test(test_rmsnorm_every_width_agrees_with_reference),
        cmocka_unit_test(test_rmsnorm_offset_and_residual_in_any_place_agree_with_the_formula),
        cmocka_unit_test(test_layernorm_rows_have_the_mean_and_deviation_of_weight_and_bias),
        cmocka_unit_test(test_activation_reference_has_the_known_values),
        cmocka_unit_test(test_activation_every_kind_agrees_with_reference_and_survives_extremes),
        cmocka_unit_test(test_softcap_bends_below_the_cap),
        cmocka_unit_test(test_rope_rotates_pairs_by_position_times_frequency),
        cmocka_unit_test(test_rope_angles_dynamic_go_by_each_tokens_length),
        cmocka_unit_test(test_embedding_multiplies_and_adds_positions),
        cmocka_unit_test(test_embedding_reads_packed_tables),
        cmocka_unit_test(test_embedding_and_gather_copy_the_named_rows),
        cmocka_unit_test(test_kv_write_fills_the_named_rows_and_nothing_else),
        cmocka_unit_test(test_block_copy_copies_all_layers_in_order),
        cmocka_unit_test(test_logprobs_are_log_softmax_with_ties_to_the_lower_id),
    };
    return cmocka_run_group_tests_name("kernels_elementwise", tests, NULL, NULL);
}
