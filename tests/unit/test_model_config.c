/* config.json of every family, old and new style: what each key means, what absent keys mean, and what a bad file is
 * told. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/model/model_config.h"
#include "tests/unit/published_models.h"

#define BASE                                                                                                         \
    "\"architectures\":[\"LlamaForCausalLM\"],\"num_hidden_layers\":2,\"hidden_size\":64,\"num_attention_heads\":4," \
    "\"intermediate_size\":96,\"vocab_size\":100,\"max_position_embeddings\":128"

#define SMALL(name)                                                                                          \
    "\"architectures\":[\"" name "\"],\"num_hidden_layers\":4,\"hidden_size\":64,\"num_attention_heads\":4," \
    "\"intermediate_size\":96,\"vocab_size\":100,\"max_position_embeddings\":128"
#define GPT2                                                                                               \
    "\"architectures\":[\"GPT2LMHeadModel\"],\"n_layer\":2,\"n_embd\":64,\"n_head\":4,\"vocab_size\":100," \
    "\"n_positions\":128"
#define MIXTRAL SMALL("MixtralForCausalLM") ",\"num_local_experts\":4,\"num_experts_per_tok\":2"
#define QWEN3_MOE \
    SMALL("Qwen3MoeForCausalLM") ",\"num_experts\":8,\"num_experts_per_tok\":2,\"moe_intermediate_size\":32"
#define GEMMA2 SMALL("Gemma2ForCausalLM")

static qn_err_t parse(const char *text, const char *generation, qn_model_config_t *ret)
{
    return qn_model_config_parse(text, strlen(text), generation, generation ? strlen(generation) : 0, NULL, ret);
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
    assert_true(c.norm == QN_NORM_RMS && c.norm_weight_offset == 0 && c.embedding_multiplier == 1 && c.gated_mlp);
    assert_true(c.activation == QN_ACTIVATION_SILU && c.attention_scale == 0.25f && !c.attention_scale_by_layer);
    assert_true(c.attention_softcap == 0 && c.logit_softcap == 0 && !c.post_norms && c.experts == 0);
    assert_false(c.tie_embeddings || c.qkv_bias || c.output_bias || c.mlp_bias || c.qk_norm);
    assert_int_equal(c.eos_count, 0);
    assert_int_equal(c.bos, -1);
}

static void test_model_config_every_field_is_read(void **state)
{
    (void)state;
    qn_model_config_t c =
        parse_ok("{" BASE
                 ",\"num_key_value_heads\":2,\"head_dim\":32,\"rms_norm_eps\":1e-5,\"tie_word_embeddings\":true,"
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
    assert_int_equal(c.max_positions, 512);
    assert_true(c.norm_eps == 1e-5f && c.tie_embeddings && c.qkv_bias && c.output_bias && c.mlp_bias);
    assert_int_equal(c.bos, 3);
    assert_int_equal(c.eos_count, 3);
    assert_true(c.eos[0] == 9 && c.eos[1] == 7 && c.eos[2] == 8);
    assert_true(c.rope.theta == 500000 && c.rope.type == QN_ROPE_LINEAR && c.rope.factor == 4);
}

static void test_model_config_old_and_new_rope_style_agree(void **state)
{
    (void)state;
    qn_model_config_t old =
        parse_ok("{" BASE ",\"rope_theta\":5000,\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,"
                 "\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}",
                 NULL);
    qn_model_config_t new =
        parse_ok("{" BASE ",\"rope_parameters\":{\"rope_theta\":5000,\"rope_type\":\"llama3\","
                 "\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}",
                 NULL);
    assert_memory_equal(&old.rope, &new.rope, sizeof old.rope);
    assert_int_equal(old.rope.type, QN_ROPE_LLAMA3);
}

static void test_model_config_architectures_differ_as_they_should(void **state)
{
    (void)state;
#define REST                                                                                          \
    ",\"num_hidden_layers\":3,\"hidden_size\":64,\"num_attention_heads\":4,\"intermediate_size\":96," \
    "\"vocab_size\":100,\"max_position_embeddings\":128,\"sliding_window\":24"
    qn_model_config_t mistral = parse_ok("{\"architectures\":[\"MistralForCausalLM\"]" REST "}", NULL);
    assert_int_equal(mistral.sliding_window, 24);
    assert_true(mistral.layer_slides[0] && mistral.layer_slides[2] && !mistral.qkv_bias);
    qn_model_config_t llama = parse_ok("{\"architectures\":[\"LlamaForCausalLM\"]" REST "}", NULL);
    assert_true(llama.sliding_window == 0 && !llama.layer_slides[0]);
    qn_model_config_t qwen2 = parse_ok("{\"architectures\":[\"Qwen2ForCausalLM\"]" REST "}", NULL);
    assert_true(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.qk_norm && qwen2.sliding_window == 0);
    qn_model_config_t windowed = parse_ok("{\"architectures\":[\"Qwen2ForCausalLM\"],\"use_sliding_window\":true,"
                                          "\"max_window_layers\":2" REST "}",
                                          NULL);
    assert_true(!windowed.layer_slides[1] && windowed.layer_slides[2]);
    qn_model_config_t qwen3 = parse_ok("{\"architectures\":[\"Qwen3ForCausalLM\"],\"layer_types\":[\"full_attention\","
                                       "\"sliding_attention\",\"full_attention\"],\"use_sliding_window\":true" REST "}",
                                       NULL);
    assert_true(qwen3.qk_norm && !qwen3.qkv_bias && !qwen3.layer_slides[0] && qwen3.layer_slides[1]);
}

static void test_model_config_windows_follow_the_architecture(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint32_t window;
        const char *slides;
    } ROWS[] = {
        {"{" SMALL("MistralForCausalLM") "}", 4096, "1111"},
        {"{" SMALL("MistralForCausalLM") ",\"sliding_window\":null}", 0, "0000"},
        {"{" SMALL("MistralForCausalLM") ",\"sliding_window\":24}", 24, "1111"},
        {"{" SMALL("MinistralForCausalLM") ",\"sliding_window\":24,\"layer_types\":[\"full_attention\","
                                           "\"sliding_attention\",\"full_attention\",\"sliding_attention\"]}",
         24, "0101"},
        {"{" MIXTRAL "}", 0, "0000"},
        {"{" MIXTRAL ",\"sliding_window\":24}", 24, "1111"},
        {"{" SMALL("Qwen2ForCausalLM") ",\"sliding_window\":24}", 0, "0000"},
        {"{" SMALL("Qwen2ForCausalLM") ",\"use_sliding_window\":true,\"sliding_window\":24}", 24, "0000"},
        {"{" SMALL("Qwen3ForCausalLM") ",\"use_sliding_window\":true,\"max_window_layers\":3}", 4096, "0001"},
        {"{" QWEN3_MOE ",\"use_sliding_window\":true,\"sliding_window\":24,\"max_window_layers\":3}", 24, "1111"},
        {"{" SMALL("GemmaForCausalLM") ",\"sliding_window\":24}", 0, "0000"},
        {"{" GEMMA2 "}", 4096, "1010"},
        {"{" GEMMA2 ",\"sliding_window\":null}", 0, "0000"},
        {"{" GEMMA2 ",\"sliding_window\":16,\"layer_types\":[\"full_attention\",\"sliding_attention\","
         "\"sliding_attention\",\"full_attention\"]}",
         16, "0110"},
        {"{" GPT2 ",\"sliding_window\":16}", 0, "00"},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        qn_model_config_t c = parse_ok(ROWS[i].text, NULL);
        if (c.sliding_window != ROWS[i].window) fail_msg("%s: window %u", ROWS[i].text, c.sliding_window);
        for (uint32_t layer = 0; layer < c.layers; layer++)
            if (c.layer_slides[layer] != (ROWS[i].slides[layer] == '1')) fail_msg("%s: layer %u", ROWS[i].text, layer);
    }
}

static void test_model_config_gpt2_has_its_own_keys(void **state)
{
    (void)state;
    qn_model_config_t c = parse_ok("{" GPT2 ",\"n_inner\":null,\"num_key_value_heads\":2,\"head_dim\":8}", NULL);
    assert_true(c.layers == 2 && c.hidden == 64 && c.heads == 4 && c.kv_heads == 4 && c.head_dim == 16);
    assert_true(c.intermediate == 256 && c.max_positions == 128 && c.norm == QN_NORM_LAYER && c.norm_eps == 1e-5f);
    assert_true(c.rope.type == QN_ROPE_NONE && c.activation == QN_ACTIVATION_GELU_TANH && !c.gated_mlp);
    assert_true(c.tie_embeddings && c.qkv_bias && c.output_bias && c.mlp_bias && !c.qk_norm);
    assert_true(c.attention_scale == 0.25f && !c.attention_scale_by_layer && c.embedding_multiplier == 1);
    c = parse_ok("{" GPT2 ",\"n_inner\":100,\"tie_word_embeddings\":false,\"scale_attn_weights\":false,"
                 "\"scale_attn_by_inverse_layer_idx\":true,\"activation_function\":\"relu\","
                 "\"reorder_and_upcast_attn\":true,\"layer_norm_epsilon\":1e-6}",
                 NULL);
    assert_true(c.intermediate == 100 && !c.tie_embeddings && c.attention_scale == 1 && c.attention_scale_by_layer);
    assert_true(c.activation == QN_ACTIVATION_RELU && c.norm_eps == 1e-6f);
}

static void test_model_config_gemma_scales_and_caps(void **state)
{
    (void)state;
    qn_model_config_t one = parse_ok("{" SMALL("GemmaForCausalLM") ",\"hidden_act\":\"gelu\"}", NULL);
    assert_true(one.norm_weight_offset == 1 && one.embedding_multiplier == 8 && !one.post_norms && one.tie_embeddings);
    assert_true(one.head_dim == 256 && one.attention_scale == 0.0625f && one.activation == QN_ACTIVATION_GELU_TANH);
    assert_true(one.attention_softcap == 0 && one.logit_softcap == 0);
    qn_model_config_t two = parse_ok("{" GEMMA2 "}", NULL);
    assert_true(two.norm_weight_offset == 1 && two.embedding_multiplier == 8 && two.post_norms && two.tie_embeddings);
    assert_true(two.attention_softcap == 50 && two.logit_softcap == 30 && two.attention_scale == 0.0625f);
    assert_int_equal(two.activation, QN_ACTIVATION_GELU_TANH);
    two = parse_ok("{" GEMMA2 ",\"head_dim\":32,\"query_pre_attn_scalar\":144,\"attn_logit_softcapping\":null,"
                   "\"final_logit_softcapping\":null,\"hidden_activation\":\"gelu\",\"hidden_act\":\"relu\","
                   "\"tie_word_embeddings\":false,\"attention_bias\":true}",
                   NULL);
    assert_true(two.attention_scale == (float)(1 / 12.0) && two.attention_softcap == 0 && two.logit_softcap == 0);
    assert_true(two.head_dim == 32 && two.activation == QN_ACTIVATION_GELU && !two.tie_embeddings);
    assert_true(two.qkv_bias && two.output_bias);
}

static void test_model_config_experts_stand_in_the_layers_transformers_gives_them(void **state)
{
    (void)state;
    static const struct {
        const char *text, *sparse;
        uint32_t experts, width;
        bool normalise;
    } ROWS[] = {
        {"{" MIXTRAL "}", "1111", 4, 96, true},
        {"{" QWEN3_MOE "}", "1111", 8, 32, false},
        {"{" QWEN3_MOE ",\"num_experts\":null,\"num_local_experts\":6,\"norm_topk_prob\":true}", "1111", 6, 32, true},
        {"{" QWEN3_MOE ",\"decoder_sparse_step\":2}", "0101", 8, 32, false},
        {"{" QWEN3_MOE ",\"mlp_only_layers\":[0,2]}", "0101", 8, 32, false},
        {"{" QWEN3_MOE ",\"decoder_sparse_step\":2,\"mlp_only_layers\":[3]}", "0100", 8, 32, false},
        {"{" QWEN3_MOE ",\"decoder_sparse_step\":3,\"mlp_only_layers\":[2]}", "0000", 0, 0, false},
        {"{" QWEN3_MOE ",\"num_experts\":0}", "0000", 0, 0, false},
        {"{" SMALL("LlamaForCausalLM") ",\"num_experts\":4}", "0000", 0, 0, false},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        qn_model_config_t c = parse_ok(ROWS[i].text, NULL);
        if (c.experts != ROWS[i].experts || c.expert_intermediate != ROWS[i].width ||
            c.experts_per_token != (c.experts ? 2 : 0))
            fail_msg("%s: %u experts of %u", ROWS[i].text, c.experts, c.expert_intermediate);
        if (c.experts) assert_int_equal(c.normalise_experts, ROWS[i].normalise);
        for (uint32_t layer = 0; layer < c.layers; layer++)
            if (c.layer_is_sparse[layer] != (ROWS[i].sparse[layer] == '1'))
                fail_msg("%s: layer %u", ROWS[i].text, layer);
    }
}

static void test_model_config_activations_have_many_names(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        qn_activation_t activation;
    } ROWS[] = {
        {"silu", QN_ACTIVATION_SILU},           {"swish", QN_ACTIVATION_SILU},
        {"gelu", QN_ACTIVATION_GELU},           {"gelu_python", QN_ACTIVATION_GELU},
        {"gelu_new", QN_ACTIVATION_GELU_TANH},  {"gelu_pytorch_tanh", QN_ACTIVATION_GELU_TANH},
        {"gelu_fast", QN_ACTIVATION_GELU_TANH}, {"relu", QN_ACTIVATION_RELU},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        char text[1024];
        snprintf(text, sizeof text, "{" BASE ",\"hidden_act\":\"%s\"}", ROWS[i].name);
        assert_int_equal(parse_ok(text, NULL).activation, ROWS[i].activation);
    }
}

static void test_model_config_absent_and_null_head_dim_differ(void **state)
{
    (void)state;
    assert_int_equal(parse_ok("{" SMALL("Qwen3ForCausalLM") "}", NULL).head_dim, 128);
    assert_int_equal(parse_ok("{" SMALL("Qwen3ForCausalLM") ",\"head_dim\":null}", NULL).head_dim, 16);
    assert_int_equal(parse_ok("{" MIXTRAL ",\"head_dim\":null}", NULL).head_dim, 16);
    assert_int_equal(parse_ok("{" QWEN3_MOE "}", NULL).head_dim, 16);
}

static void test_model_config_published_models_are_read_as_their_makers_meant(void **state)
{
    (void)state;
    qn_model_config_t c = published_config("Llama-2-7b-hf");
    assert_true(c.kv_heads == 32 && c.head_dim == 128 && c.rope.type == QN_ROPE_DEFAULT && c.rope.theta == 1e4);
    c = published_config("Llama-3.1-8B");
    assert_true(c.rope.type == QN_ROPE_LLAMA3 && c.rope.theta == 5e5 && c.rope.original_max_positions == 8192);
    assert_true(c.max_positions == 131072 && c.eos_count == 1 && c.eos[0] == 128001 && c.bos == 128000);
    c = published_config("Mistral-7B-v0.1");
    assert_true(c.sliding_window == 4096 && c.layer_slides[0] && c.layer_slides[31]);
    c = published_config("Mistral-7B-v0.3");
    assert_true(c.sliding_window == 0 && !c.layer_slides[0] && c.rope.theta == 1e6 && c.vocab == 32768);
    c = published_config("Mixtral-8x7B-v0.1");
    assert_true(c.experts == 8 && c.experts_per_token == 2 && c.expert_intermediate == 14336 && c.normalise_experts);
    c = published_config("Qwen2.5-0.5B");
    assert_true(c.qkv_bias && !c.output_bias && c.tie_embeddings && c.sliding_window == 0 && c.head_dim == 64);
    c = published_config("Qwen3-0.6B");
    assert_true(c.qk_norm && !c.qkv_bias && c.head_dim == 128 && c.hidden == 1024 && c.bos == 151643);
    c = published_config("Qwen3-30B-A3B");
    assert_true(c.experts == 128 && c.experts_per_token == 8 && c.expert_intermediate == 768 && c.normalise_experts);
    assert_true(c.layer_is_sparse[0] && c.layer_is_sparse[47] && c.qk_norm && c.head_dim == 128);
    c = published_config("gemma-2b");
    assert_true(c.tie_embeddings && c.kv_heads == 1 && c.activation == QN_ACTIVATION_GELU_TANH);
    c = published_config("gemma-2-2b");
    assert_true(c.tie_embeddings && c.embedding_multiplier == 48 && c.attention_scale == 0.0625f && c.post_norms);
    assert_true(c.layer_slides[0] && !c.layer_slides[1] && c.layer_slides[24] && !c.layer_slides[25]);
    c = published_config("gpt2-xl");
    assert_true(c.tie_embeddings && c.head_dim == 64 && c.intermediate == 6400 && c.max_positions == 1024);
}

static void test_model_config_bad_files_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        qn_err_t err;
        const char *part;
    } ROWS[] = {
        {"{", QN_ERR_INVALID, "not JSON"},
        {"[]", QN_ERR_INVALID, "not a JSON object"},
        {"{}", QN_ERR_INVALID, "\"architectures\""},
        {"{\"architectures\":[]}", QN_ERR_INVALID, "\"architectures\""},
        {"{\"architectures\":[null],\"model_type\":null}", QN_ERR_INVALID, "\"model_type\" is missing"},
        {"{\"architectures\":null,\"model_type\":\"mamba\"}", QN_ERR_UNSUPPORTED, "\"model_type\" is mamba"},
        {"{\"architectures\":[\"LlamaForSequenceClassification\"],\"model_type\":\"llama\"}", QN_ERR_UNSUPPORTED,
         "\"LlamaForSequenceClassification\""},
        {"{\"architectures\":[\"GPT9\"]}", QN_ERR_UNSUPPORTED, "\"GPT9\""},
        {"{\"architectures\":[\"LlamaForCausalLM\"]}", QN_ERR_INVALID, "\"num_hidden_layers\" is missing"},
        {"{" BASE ",\"num_hidden_layers\":0}", QN_ERR_INVALID, "\"num_hidden_layers\" is 0"},
        {"{" BASE ",\"num_hidden_layers\":257}", QN_ERR_INVALID, "\"num_hidden_layers\" is 257"},
        {"{" BASE ",\"num_hidden_layers\":2.5}", QN_ERR_INVALID, "whole number"},
        {"{" BASE ",\"num_hidden_layers\":1e30}", QN_ERR_INVALID, "whole number"},
        {"{" BASE ",\"num_hidden_layers\":Infinity}", QN_ERR_INVALID, "whole number"},
        {"{" BASE ",\"rms_norm_eps\":NaN}", QN_ERR_INVALID, "\"rms_norm_eps\""},
        {"{" BASE ",\"vocab_size\":1048577}", QN_ERR_INVALID, "\"vocab_size\""},
        {"{" BASE ",\"hidden_size\":-64}", QN_ERR_INVALID, "\"hidden_size\""},
        {"{" BASE ",\"num_key_value_heads\":3}", QN_ERR_INVALID, "no multiple"},
        {"{" BASE ",\"head_dim\":7}", QN_ERR_INVALID, "odd"},
        {"{" BASE ",\"head_dim\":514}", QN_ERR_INVALID, "\"head_dim\""},
        {"{" BASE ",\"hidden_size\":2,\"num_attention_heads\":4}", QN_ERR_INVALID, "\"head_dim\""},
        {"{" BASE ",\"rms_norm_eps\":\"x\"}", QN_ERR_INVALID, "\"rms_norm_eps\""},
        {"{" BASE ",\"tie_word_embeddings\":2}", QN_ERR_INVALID, "\"tie_word_embeddings\""},
        {"{" BASE ",\"quantization_config\":{\"quant_method\":\"awq\"}}", QN_ERR_UNSUPPORTED, "\"awq\""},
        {"{" BASE ",\"hidden_act\":\"quick_gelu\"}", QN_ERR_UNSUPPORTED, "\"quick_gelu\""},
        {"{" BASE ",\"hidden_act\":7}", QN_ERR_UNSUPPORTED, "\"hidden_act\""},
        {"{" BASE ",\"add_cross_attention\":true}", QN_ERR_UNSUPPORTED, "\"add_cross_attention\""},
        {"{" BASE ",\"use_bidirectional_attention\":true}", QN_ERR_UNSUPPORTED, "\"use_bidirectional_attention\""},
        {"{" BASE ",\"use_bidirectional_attention\":\"all\"}", QN_ERR_UNSUPPORTED, "bidirectional"},
        {"{" BASE ",\"shared_expert_intermediate_size\":512}", QN_ERR_UNSUPPORTED, "\"shared_expert"},
        {"{" BASE ",\"n_shared_experts\":1}", QN_ERR_UNSUPPORTED, "\"n_shared_experts\""},
        {"{" BASE ",\"partial_rotary_factor\":0.5}", QN_ERR_UNSUPPORTED, "\"partial_rotary_factor\" 0.5"},
        {"{" BASE ",\"rope_parameters\":{\"partial_rotary_factor\":0.25}}", QN_ERR_UNSUPPORTED, "0.25"},
        {"{" BASE ",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1e4}}}", QN_ERR_UNSUPPORTED,
         "\"full_attention\""},
        {"{" BASE ",\"head_dim\":2,\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}", QN_ERR_INVALID,
         "\"head_dim\" above 2"},
        {"{" BASE ",\"rope_scaling\":{\"type\":\"dynamic\"}}", QN_ERR_INVALID, "\"factor\" is missing"},
        {"{" BASE ",\"rope_scaling\":{\"type\":\"yarn\"}}", QN_ERR_INVALID, "\"factor\" is missing"},
        {"{" BASE ",\"rope_scaling\":{\"type\":\"longrope\"}}", QN_ERR_UNSUPPORTED, "\"longrope\""},
        {"{" BASE ",\"rope_scaling\":{\"type\":\"linear\"}}", QN_ERR_INVALID, "\"factor\" is missing"},
        {"{" BASE ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}", QN_ERR_INVALID, "\"factor\""},
        {"{" BASE ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8}}", QN_ERR_INVALID, "\"low_freq_factor\""},
        {"{" BASE ",\"rope_theta\":1,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}}", QN_ERR_INVALID,
         "\"rope_theta\" is 1"},
        {"{" BASE ",\"rope_scaling\":3}", QN_ERR_INVALID, "\"rope_scaling\" must be an object"},
        {"{" BASE ",\"rope_parameters\":[]}", QN_ERR_INVALID, "\"rope_parameters\" must be an object"},
        {"{" BASE ",\"eos_token_id\":\"</s>\"}", QN_ERR_INVALID, "\"eos_token_id\""},
        {"{" BASE ",\"eos_token_id\":[1,1.5]}", QN_ERR_INVALID, "\"eos_token_id\""},
        {"{" BASE ",\"bos_token_id\":[1]}", QN_ERR_INVALID, "\"bos_token_id\""},
        {"{" BASE ",\"layer_types\":[\"full_attention\"]}", QN_ERR_INVALID, "\"layer_types\""},
        {"{" BASE ",\"layer_types\":[\"full_attention\",\"chunked_attention\"]}", QN_ERR_UNSUPPORTED,
         "\"chunked_attention\""},
        {"{" GPT2 ",\"n_head\":3}", QN_ERR_INVALID, "\"n_embd\" 64 is no multiple of \"n_head\" 3"},
        {"{" GPT2 ",\"n_layer\":null}", QN_ERR_INVALID, "\"n_layer\" is missing"},
        {"{" GPT2 ",\"scale_attn_weights\":\"yes\"}", QN_ERR_INVALID, "\"scale_attn_weights\""},
        {"{" MIXTRAL ",\"num_local_experts\":0}", QN_ERR_INVALID, "\"num_local_experts\" is 0"},
        {"{" MIXTRAL ",\"num_local_experts\":1025}", QN_ERR_INVALID, "\"num_local_experts\" is 1025"},
        {"{" MIXTRAL ",\"num_experts_per_tok\":5}", QN_ERR_INVALID, "\"num_experts_per_tok\" is 5"},
        {"{" QWEN3_MOE ",\"num_experts\":null}", QN_ERR_INVALID, "\"num_experts\" is missing"},
        {"{" QWEN3_MOE ",\"moe_intermediate_size\":null}", QN_ERR_INVALID, "\"moe_intermediate_size\" is missing"},
        {"{" QWEN3_MOE ",\"decoder_sparse_step\":0}", QN_ERR_INVALID, "\"decoder_sparse_step\" is 0"},
        {"{" QWEN3_MOE ",\"mlp_only_layers\":3}", QN_ERR_INVALID, "\"mlp_only_layers\""},
        {"{" QWEN3_MOE ",\"mlp_only_layers\":[4]}", QN_ERR_INVALID, "layers below 4"},
        {"{" GEMMA2 ",\"query_pre_attn_scalar\":0}", QN_ERR_INVALID, "\"query_pre_attn_scalar\""},
        {"{" GEMMA2 ",\"hidden_activation\":\"laplace\"}", QN_ERR_UNSUPPORTED, "\"hidden_activation\" \"laplace\""},
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

#define PLAIN_SHAPE                                                                                                     \
    "\"num_hidden_layers\":2,\"hidden_size\":64,\"num_attention_heads\":4,\"intermediate_size\":96,\"vocab_size\":100," \
    "\"max_position_embeddings\":128"

static void test_model_config_architecture_is_found_by_any_of_its_names(void **state)
{
    (void)state;
    static const struct {
        const char *says, *name;
    } ROWS[] = {
        {"\"architectures\":[\"LLaMAForCausalLM\"]", "LlamaForCausalLM"},
        {"\"architectures\":[\"LlamaModel\"]", "LlamaForCausalLM"},
        {"\"architectures\":\"LlamaForCausalLM\"", "LlamaForCausalLM"},
        {"\"architectures\":[\"Unheard\",\"MistralForCausalLM\"]", "MistralForCausalLM"},
        {"\"architectures\":[\"Qwen2Model\"]", "Qwen2ForCausalLM"},
        {"\"model_type\":\"llama\"", "LlamaForCausalLM"},
        {"\"architectures\":null,\"model_type\":\"mistral\"", "MistralForCausalLM"},
        {"\"architectures\":[],\"model_type\":\"ministral\"", "MinistralForCausalLM"},
        {"\"architectures\":[null,7,\"\"],\"model_type\":\"qwen3\"", "Qwen3ForCausalLM"},
        {"\"model_type\":\"gemma\"", "GemmaForCausalLM"},
        {"\"model_type\":\"gemma2\"", "Gemma2ForCausalLM"},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        char text[400];
        snprintf(text, sizeof text, "{%s," PLAIN_SHAPE "}", ROWS[i].says);
        assert_string_equal(parse_ok(text, NULL).architecture_name, ROWS[i].name);
    }
    assert_string_equal(parse_ok("{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_embd\":64,\"n_head\":4,\"vocab_size\":100,"
                                 "\"n_positions\":128}",
                                 NULL)
                            .architecture_name,
                        "GPT2LMHeadModel");
}

/* What nobody reads may hold anything that Python's json module writes; a whole number may look like a real one. */
static void test_model_config_is_json_as_python_writes_it(void **state)
{
    (void)state;
    qn_model_config_t c =
        parse_ok("{\"architectures\":[\"LlamaForCausalLM\"],\"num_hidden_layers\":2.0,\"hidden_size\":64.0,"
                 "\"num_attention_heads\":4e0,\"intermediate_size\":96,\"vocab_size\":99,\"vocab_size\":100.0,"
                 "\"max_position_embeddings\":128.0,\"tie_word_embeddings\":1,\"rope_scaling\":null,\"rms_norm_eps\":1,"
                 "\"a\":NaN,\"b\":[-Infinity,Infinity,1e999],\"c\":1000000000000000019884624838656,\"d\":\"\\ud83d\","
                 "\"e\":\"\\u0000\",\"f\\u0000\":1e30,\"eos_token_id\":[2.0,null,100,-1],\"bos_token_id\":100,"
                 "\"torch_dtype\":\"float16\",\"dtype\":\"bfloat16\"}",
                 "{\"eos_token_id\":[7,4096],\"max_time\":Infinity}");
    assert_true(c.layers == 2 && c.hidden == 64 && c.heads == 4 && c.vocab == 100 && c.max_positions == 128);
    assert_true(c.tie_embeddings && c.norm_eps == 1 && c.rope.type == QN_ROPE_DEFAULT);
    assert_true(c.eos_count == 2 && c.eos[0] == 7 && c.eos[1] == 2 && c.bos == -1);
    assert_string_equal(c.dtype_name, "bfloat16");
}

static void test_model_config_contradictions_are_said(void **state)
{
    (void)state;
    qn_model_warnings_t warnings = {0};
    qn_model_config_t config;
    const char *text = "{" BASE ",\"model_type\":\"qwen2\",\"bos_token_id\":-1,\"eos_token_id\":[100,3]}";
    const char *generation = "{\"eos_token_id\":4000}";
    assert_int_equal(qn_model_config_parse(text, strlen(text), generation, strlen(generation), &warnings, &config),
                     QN_OK);
    static const char *const SAID[] = {"\"model_type\" says qwen2", "generation_config.json: \"eos_token_id\" 4000",
                                       "config.json: \"eos_token_id\" 100", "\"bos_token_id\" -1"};
    assert_int_equal(warnings.count, 4);
    for (size_t i = 0; i < 4; i++)
        if (!strstr(warnings.texts[i], SAID[i])) fail_msg("%s", warnings.texts[i]);
    for (int i = 0; i < 30; i++)
        qn_model_warn(&warnings, "%d \xff %s", i, "\xe2\x82\xac");
    assert_true(warnings.count == QN_MODEL_WARNINGS_MAX && warnings.dropped == 34 - QN_MODEL_WARNINGS_MAX);
    assert_string_equal(warnings.texts[4], "0 ? \xe2\x82\xac");
    qn_model_warnings_t other = {0};
    char longer[600];
    memset(longer, 'x', sizeof longer);
    memcpy(longer + QN_MODEL_WARNING_BYTES_MAX - 3, "\xe2\x82\xac", 4); /* is cut in two */
    qn_model_warn(&other, "%s", longer);
    qn_model_warn(&other, "%s", longer);
    assert_true(other.count == 1 && strlen(other.texts[0]) == QN_MODEL_WARNING_BYTES_MAX - 1);
    assert_string_equal(other.texts[0] + QN_MODEL_WARNING_BYTES_MAX - 3, "??");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_config_windows_follow_the_architecture),
        cmocka_unit_test(test_model_config_gpt2_has_its_own_keys),
        cmocka_unit_test(test_model_config_gemma_scales_and_caps),
        cmocka_unit_test(test_model_config_experts_stand_in_the_layers_transformers_gives_them),
        cmocka_unit_test(test_model_config_activations_have_many_names),
        cmocka_unit_test(test_model_config_absent_and_null_head_dim_differ),
        cmocka_unit_test(test_model_config_published_models_are_read_as_their_makers_meant),
        cmocka_unit_test(test_model_config_minimal_gets_the_defaults),
        cmocka_unit_test(test_model_config_every_field_is_read),
        cmocka_unit_test(test_model_config_old_and_new_rope_style_agree),
        cmocka_unit_test(test_model_config_architectures_differ_as_they_should),
        cmocka_unit_test(test_model_config_bad_files_are_refused_by_name),
        cmocka_unit_test(test_model_config_architecture_is_found_by_any_of_its_names),
        cmocka_unit_test(test_model_config_is_json_as_python_writes_it),
        cmocka_unit_test(test_model_config_contradictions_are_said),
        cmocka_unit_test(test_model_config_kv_block_bytes_are_checked),
    };
    return cmocka_run_group_tests_name("model_config", tests, NULL, NULL);
}
