/* config.json of both styles, its defaults, every rope scaling against independent numbers, and what a bad file is
 * told. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/model_config.h"

#define BASE \
    "\"architectures\":[\"LlamaForCausalLM\"],\"num_hidden_layers\":2,\"hidden_size\":64,\"num_attention_heads\":4," \
    "\"intermediate_size\":96,\"vocab_size\":100,\"max_position_embeddings\":128"

static qn_err_t parse(const char *text, const char *generation, qn_model_config_t *ret)
{
    return qn_model_config_parse(text, strlen(text), generation, generation ? strlen(generation) : 0, ret);
}

static qn_model_config_t parse_ok(const char *text, const char *generation)
{
    qn_model_config_t config;
    if (parse(text, generation, &config) != QN_OK) fail_msg("%s", qn_err_text());
    return config;
}

static void test_model_config_minimal_gets_the_defaults(void **state)
{
    (void)state;
    qn_model_config_t c = parse_ok("{" BASE "}", NULL);
    assert_string_equal(c.architecture_name, "LlamaForCausalLM");
    assert_int_equal(c.kv_heads, 4);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.rope.type, QN_ROPE_DEFAULT);
    assert_true(c.rope.theta == 10000 && c.rope.attention_factor == 1);
    assert_true(c.norm_eps == 1e-6f);
    assert_false(c.tie_embeddings || c.qkv_bias || c.output_bias || c.mlp_bias || c.qk_norm);
    assert_int_equal(c.eos_count, 0);
    assert_int_equal(c.bos, -1);
}

static void test_model_config_every_field_is_read(void **state)
{
    (void)state;
    qn_model_config_t c = parse_ok(
        "{" BASE ",\"num_key_value_heads\":2,\"head_dim\":32,\"rms_norm_eps\":1e-5,\"tie_word_embeddings\":true,"
        "\"attention_bias\":true,\"mlp_bias\":true,\"bos_token_id\":3,\"eos_token_id\":[7,8],"
        "\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":4}}",
        "{\"eos_token_id\":[9,7]}");
    assert_int_equal(c.layers, 2);
    assert_int_equal(c.hidden, 64);
    assert_int_equal(c.heads, 4);
    assert_int_equal(c.kv_heads, 2);
    assert_int_equal(c.head_dim, 32);
    assert_int_equal(c.intermediate, 96);
    assert_int_equal(c.vocab, 100);
    assert_int_equal(c.max_positions, 128);
    assert_true(c.norm_eps == 1e-5f && c.tie_embeddings && c.qkv_bias && c.output_bias && c.mlp_bias);
    assert_int_equal(c.bos, 3);
    assert_int_equal(c.eos_count, 3);
    assert_true(c.eos[0] == 9 && c.eos[1] == 7 && c.eos[2] == 8);
    assert_true(c.rope.theta == 500000 && c.rope.type == QN_ROPE_LINEAR && c.rope.factor == 4);
}

static void test_model_config_old_and_new_rope_style_agree(void **state)
{
    (void)state;
    qn_model_config_t old = parse_ok("{" BASE ",\"rope_theta\":5000,\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,"
        "\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}", NULL);
    qn_model_config_t new = parse_ok("{" BASE ",\"rope_parameters\":{\"rope_theta\":5000,\"rope_type\":\"llama3\","
        "\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}", NULL);
    assert_memory_equal(&old.rope, &new.rope, sizeof old.rope);
    assert_int_equal(old.rope.type, QN_ROPE_LLAMA3);
}

/* Numbers of transformers' ROPE_INIT_FUNCTIONS for head_dim 8, theta 10000. */
typedef struct {
    const char *scaling;
    float want[4];
    double attention_factor;
    uint32_t max_positions;
} rope_case_t;

static const rope_case_t ROPES[] = {
    { "{\"rope_type\":\"default\"}", { 1, 0.1f, 0.01f, 0.001f }, 1, 128 },
    { "{\"rope_type\":\"linear\",\"factor\":4}", { 0.25f, 0.025f, 0.0025f, 0.00025f }, 1, 128 },
    { "{\"rope_type\":\"dynamic\",\"factor\":4}", { 1, 0.1f, 0.01f, 0.001f }, 1, 128 },
    /* context 64: wavelengths 6.28, 62.8, 628, 6283; 6.28 < 64/4 stays, 628 > 64/1 is divided by 8, and 62.8 lies
     * between: smooth = (64/62.83 - 1)/3 = 0.006197 -> 0.1 * ((1-s)/8 + s). */
    { "{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
      "\"original_max_position_embeddings\":64}", { 1, 0.01304226f, 0.00125f, 0.000125f }, 1, 128 },
    /* original 4096: corrections at 8*ln(4096/(32*2pi))/(2*ln(1e4)) = 1.308 -> 1 and ...(1*2pi) = 2.813 -> 3;
     * ramp 0, 0, 0.5, 1; attention factor 0.1*ln(4)+1. */
    { "{\"rope_type\":\"yarn\",\"factor\":4,\"original_max_position_embeddings\":4096}",
      { 1, 0.1f, 0.00625f, 0.00025f }, 1.1386294361, 16384 },
};

static void test_model_config_rope_frequencies_are_those_of_transformers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof ROPES / sizeof ROPES[0]; i++) {
        char text[1024];
        snprintf(text, sizeof text, "{" BASE ",\"head_dim\":8,\"rope_scaling\":%s}", ROPES[i].scaling);
        qn_model_config_t c = parse_ok(text, NULL);
        float got[4];
        qn_rope_frequencies(&c.rope, 8, got);
        for (int f = 0; f < 4; f++)
            if (!(fabsf(got[f] - ROPES[i].want[f]) <= 2e-6f * ROPES[i].want[f]))
                fail_msg("%s: frequency %d is %.8g, expected %.8g", ROPES[i].scaling, f, (double)got[f],
                         (double)ROPES[i].want[f]);
        assert_true(fabs(c.rope.attention_factor - ROPES[i].attention_factor) < 1e-9);
        assert_int_equal(c.max_positions, ROPES[i].max_positions);
    }
}

static void test_model_config_architectures_differ_as_they_should(void **state)
{
    (void)state;
#define REST ",\"num_hidden_layers\":3,\"hidden_size\":64,\"num_attention_heads\":4,\"intermediate_size\":96," \
    "\"vocab_size\":100,\"max_position_embeddings\":128,\"sliding_window\":24"
    qn_model_config_t mistral = parse_ok("{\"architectures\":[\"MistralForCausalLM\"]" REST "}", NULL);
    assert_int_equal(mistral.sliding_window, 24);
    assert_true(mistral.layer_slides[0] && mistral.layer_slides[2] && !mistral.qkv_bias);
    qn_model_config_t llama = parse_ok("{\"architectures\":[\"LlamaForCausalLM\"]" REST "}", NULL);
    assert_true(llama.sliding_window == 0 && !llama.layer_slides[0]);
    qn_model_config_t qwen2 = parse_ok("{\"architectures\":[\"Qwen2ForCausalLM\"]" REST "}", NULL);
    assert_true(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.qk_norm && qwen2.sliding_window == 0);
    qn_model_config_t windowed = parse_ok("{\"architectures\":[\"Qwen2ForCausalLM\"],\"use_sliding_window\":true,"
                                          "\"max_window_layers\":2" REST "}", NULL);
    assert_true(!windowed.layer_slides[1] && windowed.layer_slides[2]);
    qn_model_config_t qwen3 = parse_ok("{\"architectures\":[\"Qwen3ForCausalLM\"],\"layer_types\":[\"full_attention\","
        "\"sliding_attention\",\"full_attention\"],\"use_sliding_window\":true" REST "}", NULL);
    assert_true(qwen3.qk_norm && !qwen3.qkv_bias && !qwen3.layer_slides[0] && qwen3.layer_slides[1]);
}

static void test_model_config_bad_files_are_refused_by_name(void **state)
{
    (void)state;
    static const struct { const char *text; qn_err_t err; const char *part; } ROWS[] = {
        { "{", QN_ERR_INVALID, "not JSON" },
        { "[]", QN_ERR_INVALID, "not a JSON object" },
        { "{}", QN_ERR_INVALID, "\"architectures\"" },
        { "{\"architectures\":[]}", QN_ERR_INVALID, "\"architectures\"" },
        { "{\"architectures\":[\"GPT9\"]}", QN_ERR_UNSUPPORTED, "\"GPT9\"" },
        { "{\"architectures\":[\"LlamaForCausalLM\"]}", QN_ERR_INVALID, "\"num_hidden_layers\" is missing" },
        { "{" BASE ",\"num_hidden_layers\":0}", QN_ERR_INVALID, "\"num_hidden_layers\" is 0" },
        { "{" BASE ",\"num_hidden_layers\":257}", QN_ERR_INVALID, "\"num_hidden_layers\" is 257" },
        { "{" BASE ",\"num_hidden_layers\":2.0}", QN_ERR_INVALID, "whole number" },
        { "{" BASE ",\"vocab_size\":1048577}", QN_ERR_INVALID, "\"vocab_size\"" },
        { "{" BASE ",\"hidden_size\":-64}", QN_ERR_INVALID, "\"hidden_size\"" },
        { "{" BASE ",\"num_key_value_heads\":3}", QN_ERR_INVALID, "no multiple" },
        { "{" BASE ",\"head_dim\":7}", QN_ERR_INVALID, "odd" },
        { "{" BASE ",\"head_dim\":514}", QN_ERR_INVALID, "\"head_dim\"" },
        { "{" BASE ",\"hidden_size\":2,\"num_attention_heads\":4}", QN_ERR_INVALID, "\"head_dim\"" },
        { "{" BASE ",\"rms_norm_eps\":\"x\"}", QN_ERR_INVALID, "\"rms_norm_eps\"" },
        { "{" BASE ",\"tie_word_embeddings\":1}", QN_ERR_INVALID, "\"tie_word_embeddings\"" },
        { "{" BASE ",\"quantization_config\":{\"quant_method\":\"awq\"}}", QN_ERR_UNSUPPORTED, "\"awq\"" },
        { "{" BASE ",\"hidden_act\":\"relu\"}", QN_ERR_UNSUPPORTED, "\"relu\"" },
        { "{" BASE ",\"rope_scaling\":{\"type\":\"longrope\"}}", QN_ERR_UNSUPPORTED, "\"longrope\"" },
        { "{" BASE ",\"rope_scaling\":{\"type\":\"linear\"}}", QN_ERR_INVALID, "\"factor\" is missing" },
        { "{" BASE ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}", QN_ERR_INVALID, "\"factor\"" },
        { "{" BASE ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8}}", QN_ERR_INVALID, "\"low_freq_factor\"" },
        { "{" BASE ",\"rope_scaling\":3}", QN_ERR_INVALID, "must be an object" },
        { "{" BASE ",\"eos_token_id\":100}", QN_ERR_INVALID, "\"eos_token_id\"" },
        { "{" BASE ",\"bos_token_id\":-2}", QN_ERR_INVALID, "\"bos_token_id\"" },
        { "{" BASE ",\"layer_types\":[\"full_attention\"]}", QN_ERR_INVALID, "\"layer_types\"" },
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        qn_model_config_t config;
        qn_err_t err = parse(ROWS[i].text, NULL, &config);
        if (err != ROWS[i].err || !strstr(qn_err_text(), ROWS[i].part))
            fail_msg("%s: %s: %s", ROWS[i].text, qn_err_name(err), err ? qn_err_text() : "");
    }
    qn_model_config_t config;
    assert_int_equal(parse("{" BASE "}", "nonsense", &config), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "generation_config.json"));
}

static void test_model_config_kv_block_bytes_are_checked(void **state)
{
    (void)state;
    qn_model_config_t c = parse_ok("{" BASE ",\"num_key_value_heads\":2}", NULL);
    uint64_t bytes;
    assert_int_equal(qn_model_kv_block_bytes(&c, 16, 4, &bytes), QN_OK);
    assert_int_equal(bytes, 2 * 2 * 16 * 2 * 16 * 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_config_minimal_gets_the_defaults),
        cmocka_unit_test(test_model_config_every_field_is_read),
        cmocka_unit_test(test_model_config_old_and_new_rope_style_agree),
        cmocka_unit_test(test_model_config_rope_frequencies_are_those_of_transformers),
        cmocka_unit_test(test_model_config_architectures_differ_as_they_should),
        cmocka_unit_test(test_model_config_bad_files_are_refused_by_name),
        cmocka_unit_test(test_model_config_kv_block_bytes_are_checked),
    };
    return cmocka_run_group_tests_name("model_config", tests, NULL, NULL);
}
