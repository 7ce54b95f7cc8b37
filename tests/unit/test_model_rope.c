/* Every rope scaling against the numbers of Hugging Face transformers (its LlamaRotaryEmbedding, float32), and how far
 * each is said to reach. */
#include "common/model/model_config.h"
#include "tests/unit/kernel_check.h"

#define LLAMA                                                                                                        \
    "\"architectures\":[\"LlamaForCausalLM\"],\"num_hidden_layers\":2,\"hidden_size\":64,\"num_attention_heads\":4," \
    "\"intermediate_size\":96,\"vocab_size\":100"

static qn_model_config_t parse(uint32_t head_dim, uint32_t positions, const char *rope)
{
    char text[1024];
    qn_model_config_t config;
    snprintf(text, sizeof text, "{" LLAMA ",\"head_dim\":%u,\"max_position_embeddings\":%u,%s}", head_dim, positions,
             rope);
    if (qn_model_config_parse(text, strlen(text), NULL, 0, NULL, &config)) fail_msg("%s: %s", rope, qn_err_text());
    return config;
}

typedef struct {
    uint32_t head_dim, positions;
    const char *rope;
    uint32_t max_positions;
    double attention_factor;
    uint32_t pairs[6];
    float want[6];
} rope_case_t;

static const rope_case_t CASES[] = {
    {128,
     32768,
     "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1000000.0}",
     32768,
     1,
     {0, 1, 16, 32, 45, 63},
     {1, 0.80584222f, 0.031622779f, 0.001f, 6.0429637e-05f, 1.2409378e-06f}},
    {128,
     131072,
     "\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
     "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}",
     131072,
     1,
     {0, 1, 16, 32, 45, 63},
     {1, 0.81461722f, 0.037606031f, 0.00052484602f, 1.2297639e-05f, 3.0689259e-07f}},
    {64,
     131072,
     "\"rope_parameters\":{\"rope_theta\":500000.0,\"rope_type\":\"llama3\",\"factor\":32.0,"
     "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}",
     131072,
     1,
     {0, 1, 8, 16, 21, 31},
     {1, 0.66360128f, 0.037606031f, 0.00042955671f, 5.6872323e-06f, 9.4183065e-08f}},
    {128,
     4096,
     "\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}",
     16384,
     1,
     {0, 1, 16, 32, 45, 63},
     {0.25f, 0.21649109f, 0.025f, 0.0025f, 0.00038498163f, 2.8869548e-05f}},
    {128,
     32768,
     "\"rope_theta\":1000000.0,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,"
     "\"original_max_position_embeddings\":32768}",
     131072,
     1.138629436111989,
     {0, 1, 16, 32, 45, 63},
     {1, 0.80584222f, 0.031622779f, 0.00060294115f, 1.5107409e-05f, 3.1023444e-07f}},
    {128,
     131072,
     "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":32.0,\"original_max_position_embeddings\":4096}",
     131072,
     1.3465735902799727,
     {0, 1, 16, 32, 45, 63},
     {1, 0.86596435f, 0.1f, 0.0055288463f, 0.00010549981f, 3.6086935e-06f}},
    {64,
     131072,
     "\"rope_theta\":150000,\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":32.0,\"beta_fast\":32.0,"
     "\"beta_slow\":1.0,\"truncate\":false,\"original_max_position_embeddings\":4096}",
     131072,
     1.3465735902799727,
     {0, 1, 8, 16, 21, 31},
     {1, 0.6890443f, 0.050813273f, 0.00045648392f, 1.253257e-05f, 3.0235114e-07f}},
    {64,
     163840,
     "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,\"beta_fast\":32,\"beta_slow\":1,\"mscale\":1.0,"
     "\"mscale_all_dim\":0.707,\"original_max_position_embeddings\":4096}",
     163840,
     1.0857263992561355,
     {0, 1, 8, 16, 21, 31},
     {1, 0.7498942f, 0.1f, 0.0055000004f, 0.00041499041f, 3.3338035e-06f}},
    /* Dynamic scaling happens in the kernel: up to max_position_embeddings these are the frequencies. */
    {128,
     4096,
     "\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}",
     8192,
     1,
     {0, 1, 16, 32, 32, 63},
     {1, 0.86596435f, 0.1f, 0.01f, 0.01f, 0.00011547819f}},
};

static void test_model_rope_frequencies_are_those_of_transformers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        const rope_case_t *row = &CASES[i];
        qn_model_config_t c = parse(row->head_dim, row->positions, row->rope);
        float got[QN_HEAD_DIM_MAX / 2];
        qn_rope_frequencies(&c.rope, row->head_dim, got);
        for (int f = 0; f < 6; f++) /* transformers computes powers in float32: some 1e-6 off */
            if (!(fabsf(got[row->pairs[f]] - row->want[f]) <= 4e-6f * row->want[f]))
                fail_msg("%s: frequency %u is %.8g, expected %.8g", row->rope, row->pairs[f],
                         (double)got[row->pairs[f]], (double)row->want[f]);
        assert_true(fabs(c.rope.attention_factor - row->attention_factor) < 1e-9);
        assert_int_equal(c.max_positions, row->max_positions);
    }
}

/* Position 100 of a sequence of `length`. */
typedef struct {
    uint32_t head_dim, positions;
    double factor;
    uint32_t length;
    float cosines[4], sines[4]; /* of pairs 1, D/8, D/4 and D/2 - 1 */
} dynamic_case_t;

static const dynamic_case_t DYNAMIC[] = {
    {128,
     4096,
     2.0,
     2048,
     {0.201254f, -0.839072f, 0.540302f, 0.999933f},
     {-0.979539f, -0.544021f, 0.841471f, 0.011548f}},
    {128,
     4096,
     2.0,
     4096,
     {0.201254f, -0.839072f, 0.540302f, 0.999933f},
     {-0.979539f, -0.544021f, 0.841471f, 0.011548f}},
    {128,
     4096,
     2.0,
     4097,
     {0.200596f, -0.839745f, 0.540511f, 0.999933f},
     {-0.979674f, -0.542980f, 0.841337f, 0.011542f}},
    {128,
     4096,
     2.0,
     8192,
     {-0.962037f, 0.284685f, 0.840637f, 0.999993f},
     {-0.272918f, 0.958621f, 0.541599f, 0.003849f}},
    {128,
     4096,
     2.0,
     12288,
     {-0.916804f, 0.935317f, 0.904096f, 0.999997f},
     {0.399337f, 0.353812f, 0.427330f, 0.002310f}},
    {64,
     2048,
     4.0,
     2048,
     {0.917596f, -0.839072f, 0.540302f, 0.999911f},
     {-0.397514f, -0.544021f, 0.841471f, 0.013335f}},
    {64,
     2048,
     4.0,
     2049,
     {0.915712f, -0.841799f, 0.541149f, 0.999911f},
     {-0.401836f, -0.539791f, 0.840927f, 0.013309f}},
    {64, 2048, 4.0, 6144, {0.736271f, 0.819026f, 0.948691f, 0.999999f}, {0.676687f, -0.573757f, 0.316206f, 0.001482f}},
};

static void test_model_rope_dynamic_angles_are_those_of_transformers(void **state)
{
    (void)state;
    qn_stream_t *stream = check_stream(1);
    for (size_t i = 0; i < sizeof DYNAMIC / sizeof DYNAMIC[0]; i++) {
        const dynamic_case_t *row = &DYNAMIC[i];
        char rope[128];
        snprintf(rope, sizeof rope, "\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":%g}", row->factor);
        qn_model_config_t c = parse(row->head_dim, row->positions, rope);
        uint32_t position = 100, half = row->head_dim / 2;
        float out[QN_HEAD_DIM_MAX];
        qn_rope_angles_t a = {.positions = &position,
                              .lengths = &row->length,
                              .theta = (float)c.rope.theta,
                              .factor = (float)c.rope.factor,
                              .original_positions = c.rope.original_max_positions,
                              .scale = (float)c.rope.attention_factor,
                              .tokens = 1,
                              .head_dim = row->head_dim,
                              .out = out};
        check_kernel(QN_OP_ROPE_ANGLES, "reference")->launch(stream, &a);
        uint32_t pairs[4] = {1, half / 4, half / 2, half - 1};
        for (int p = 0; p < 4; p++)
            if (!(fabsf(out[pairs[p]] - row->cosines[p]) < 3e-5f &&
                  fabsf(out[half + pairs[p]] - row->sines[p]) < 3e-5f))
                fail_msg("length %u, pair %u: %.6f %.6f, expected %.6f %.6f", row->length, pairs[p],
                         (double)out[pairs[p]], (double)out[half + pairs[p]], (double)row->cosines[p],
                         (double)row->sines[p]);
    }
    qn_stream_destroy(&stream);
}

static void test_model_rope_length_is_stretched_only_where_a_scaling_stretches(void **state)
{
    (void)state;
    static const struct {
        const char *rope;
        uint32_t original, max_positions;
    } ROWS[] = {
        {"\"rope_scaling\":null", 0, 4096},
        {"\"rope_scaling\":{}", 0, 4096},
        {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}", 0, 16384},
        {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":4,\"original_max_position_embeddings\":1024}", 0, 4096},
        {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":4,\"original_max_position_embeddings\":2048}", 0, 8192},
        {"\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.5}", 4096, 10240},
        {"\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2,\"original_max_position_embeddings\":512}", 4096, 8192},
        {"\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":1e6}", 4096, QN_POSITIONS_MAX},
        {"\"rope_scaling\":{\"type\":\"yarn\",\"original_max_position_embeddings\":1024}", 1024, 4096},
        {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}", 4096, 8192},
        {"\"original_max_position_embeddings\":2048,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":8,"
         "\"original_max_position_embeddings\":1024}",
         2048, 16384},
        {"\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
         "\"original_max_position_embeddings\":1024}",
         1024, 4096},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        qn_model_config_t c = parse(64, 4096, ROWS[i].rope);
        if (c.rope.original_max_positions != ROWS[i].original || c.max_positions != ROWS[i].max_positions)
            fail_msg("%s: %u of %u", ROWS[i].rope, c.max_positions, c.rope.original_max_positions);
    }
}

static void test_model_rope_scaling_of_the_old_key_wins(void **state)
{
    (void)state;
    qn_model_config_t c = parse(64, 4096,
                                "\"rope_theta\":5000,\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":2},"
                                "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":7000}");
    assert_true(c.rope.type == QN_ROPE_LINEAR && c.rope.theta == 5000);
    c = parse(64, 4096, "\"rope_theta\":5000,\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":7000}");
    assert_true(c.rope.type == QN_ROPE_DEFAULT && c.rope.theta == 7000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_rope_frequencies_are_those_of_transformers),
        cmocka_unit_test(test_model_rope_dynamic_angles_are_those_of_transformers),
        cmocka_unit_test(test_model_rope_length_is_stretched_only_where_a_scaling_stretches),
        cmocka_unit_test(test_model_rope_scaling_of_the_old_key_wins),
    };
    return cmocka_run_group_tests_name("model_rope", tests, NULL, NULL);
}
