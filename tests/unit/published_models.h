/* config.json of well-known models as published (keys that no reader looks at are left out), and how many parameters
 * their checkpoints hold. */
#ifndef QN_TESTS_UNIT_PUBLISHED_MODELS_H
#define QN_TESTS_UNIT_PUBLISHED_MODELS_H

#include <stdint.h>
#include <string.h>

#include "common/model/model_config.h"

typedef struct {
    const char *name;
    uint64_t parameters; /* a tied head counted once */
    const char *config;
} published_model_t;

static const published_model_t PUBLISHED[] = {
    {"Llama-2-7b-hf", 6738415616,
     "{\"_name_or_path\":\"meta-llama/Llama-2-7b-hf\",\"architectures\":[\"LlamaForCausalLM\"],\"bos_token_id\":1,"
     "\"eos_token_id\":2,\"hidden_act\":\"silu\",\"hidden_size\":4096,\"initializer_range\":0.02,"
     "\"intermediate_size\":11008,\"max_position_embeddings\":4096,\"model_type\":\"llama\","
     "\"num_attention_heads\":32,\"num_hidden_layers\":32,\"num_key_value_heads\":32,\"pretraining_tp\":1,"
     "\"rms_norm_eps\":1e-05,\"rope_scaling\":null,\"tie_word_embeddings\":false,\"torch_dtype\":\"float16\","
     "\"transformers_version\":\"4.31.0.dev0\",\"use_cache\":true,\"vocab_size\":32000}"},
    {"Llama-3.1-8B", 8030261248,
     "{\"architectures\":[\"LlamaForCausalLM\"],\"attention_bias\":false,\"attention_dropout\":0.0,"
     "\"bos_token_id\":128000,\"eos_token_id\":128001,\"hidden_act\":\"silu\",\"hidden_size\":4096,"
     "\"intermediate_size\":14336,\"max_position_embeddings\":131072,\"mlp_bias\":false,\"model_type\":\"llama\","
     "\"num_attention_heads\":32,\"num_hidden_layers\":32,\"num_key_value_heads\":8,\"pretraining_tp\":1,"
     "\"rms_norm_eps\":1e-05,\"rope_scaling\":{\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
     "\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"},\"rope_theta\":500000.0,"
     "\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\",\"vocab_size\":128256}"},
    {"Llama-3.2-1B", 1235814400,
     "{\"architectures\":[\"LlamaForCausalLM\"],\"bos_token_id\":128000,\"eos_token_id\":128001,\"head_dim\":64,"
     "\"hidden_act\":\"silu\",\"hidden_size\":2048,\"intermediate_size\":8192,\"max_position_embeddings\":131072,"
     "\"num_attention_heads\":32,\"num_hidden_layers\":16,\"num_key_value_heads\":8,\"rms_norm_eps\":1e-05,"
     "\"rope_scaling\":{\"factor\":32.0,\"high_freq_factor\":4.0,\"low_freq_factor\":1.0,"
     "\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"},\"rope_theta\":500000.0,"
     "\"tie_word_embeddings\":true,\"vocab_size\":128256}"},
    {"Mistral-7B-v0.1", 7241732096,
     "{\"architectures\":[\"MistralForCausalLM\"],\"bos_token_id\":1,\"eos_token_id\":2,\"hidden_act\":\"silu\","
     "\"hidden_size\":4096,\"intermediate_size\":14336,\"max_position_embeddings\":32768,\"model_type\":\"mistral\","
     "\"num_attention_heads\":32,\"num_hidden_layers\":32,\"num_key_value_heads\":8,\"rms_norm_eps\":1e-05,"
     "\"rope_theta\":10000.0,\"sliding_window\":4096,\"tie_word_embeddings\":false,\"vocab_size\":32000}"},
    {"Mistral-7B-v0.3", 7248023552,
     "{\"architectures\":[\"MistralForCausalLM\"],\"attention_dropout\":0.0,\"bos_token_id\":1,\"eos_token_id\":2,"
     "\"hidden_act\":\"silu\",\"hidden_size\":4096,\"intermediate_size\":14336,\"max_position_embeddings\":32768,"
     "\"num_attention_heads\":32,\"num_hidden_layers\":32,\"num_key_value_heads\":8,\"rms_norm_eps\":1e-05,"
     "\"rope_theta\":1000000.0,\"sliding_window\":null,\"tie_word_embeddings\":false,\"vocab_size\":32768}"},
    {"Mixtral-8x7B-v0.1", 46702792704,
     "{\"architectures\":[\"MixtralForCausalLM\"],\"attention_dropout\":0.0,\"bos_token_id\":1,\"eos_token_id\":2,"
     "\"hidden_act\":\"silu\",\"hidden_size\":4096,\"intermediate_size\":14336,\"max_position_embeddings\":32768,"
     "\"model_type\":\"mixtral\",\"num_attention_heads\":32,\"num_experts_per_tok\":2,\"num_hidden_layers\":32,"
     "\"num_key_value_heads\":8,\"num_local_experts\":8,\"output_router_logits\":false,\"rms_norm_eps\":1e-05,"
     "\"rope_theta\":1000000.0,\"router_aux_loss_coef\":0.02,\"sliding_window\":null,"
     "\"tie_word_embeddings\":false,\"vocab_size\":32000}"},
    {"Qwen2.5-0.5B", 494032768,
     "{\"architectures\":[\"Qwen2ForCausalLM\"],\"attention_dropout\":0.0,\"bos_token_id\":151643,"
     "\"eos_token_id\":151643,\"hidden_act\":\"silu\",\"hidden_size\":896,\"intermediate_size\":4864,"
     "\"max_position_embeddings\":32768,\"max_window_layers\":24,\"model_type\":\"qwen2\","
     "\"num_attention_heads\":14,\"num_hidden_layers\":24,\"num_key_value_heads\":2,\"rms_norm_eps\":1e-06,"
     "\"rope_theta\":1000000.0,\"sliding_window\":32768,\"tie_word_embeddings\":true,\"use_mrope\":false,"
     "\"use_sliding_window\":false,\"vocab_size\":151936}"},
    {"Qwen3-0.6B", 596049920,
     "{\"architectures\":[\"Qwen3ForCausalLM\"],\"attention_bias\":false,\"attention_dropout\":0.0,"
     "\"bos_token_id\":151643,\"eos_token_id\":151645,\"head_dim\":128,\"hidden_act\":\"silu\",\"hidden_size\":1024,"
     "\"intermediate_size\":3072,\"max_position_embeddings\":40960,\"max_window_layers\":28,"
     "\"model_type\":\"qwen3\",\"num_attention_heads\":16,\"num_hidden_layers\":28,\"num_key_value_heads\":8,"
     "\"rms_norm_eps\":1e-06,\"rope_scaling\":null,\"rope_theta\":1000000,\"sliding_window\":null,"
     "\"tie_word_embeddings\":true,\"use_sliding_window\":false,\"vocab_size\":151936}"},
    {"Qwen3-30B-A3B", 30532122624,
     "{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"attention_bias\":false,\"attention_dropout\":0.0,"
     "\"bos_token_id\":151643,\"decoder_sparse_step\":1,\"eos_token_id\":151645,\"head_dim\":128,"
     "\"hidden_act\":\"silu\",\"hidden_size\":2048,\"intermediate_size\":6144,\"max_position_embeddings\":40960,"
     "\"max_window_layers\":48,\"mlp_only_layers\":[],\"model_type\":\"qwen3_moe\",\"moe_intermediate_size\":768,"
     "\"norm_topk_prob\":true,\"num_attention_heads\":32,\"num_experts\":128,\"num_experts_per_tok\":8,"
     "\"num_hidden_layers\":48,\"num_key_value_heads\":4,\"output_router_logits\":false,\"rms_norm_eps\":1e-06,"
     "\"rope_scaling\":null,\"rope_theta\":1000000.0,\"sliding_window\":null,\"tie_word_embeddings\":false,"
     "\"use_sliding_window\":false,\"vocab_size\":151936}"},
    {"Qwen3-235B-A22B", 235093634560,
     "{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"attention_bias\":false,\"bos_token_id\":151643,"
     "\"decoder_sparse_step\":1,\"eos_token_id\":151645,\"head_dim\":128,\"hidden_act\":\"silu\","
     "\"hidden_size\":4096,\"intermediate_size\":12288,\"max_position_embeddings\":40960,\"max_window_layers\":94,"
     "\"mlp_only_layers\":[],\"moe_intermediate_size\":1536,\"norm_topk_prob\":true,\"num_attention_heads\":64,"
     "\"num_experts\":128,\"num_experts_per_tok\":8,\"num_hidden_layers\":94,\"num_key_value_heads\":4,"
     "\"rms_norm_eps\":1e-06,\"rope_scaling\":null,\"rope_theta\":1000000.0,\"sliding_window\":null,"
     "\"tie_word_embeddings\":false,\"use_sliding_window\":false,\"vocab_size\":151936}"},
    {"gemma-2b", 2506172416,
     "{\"architectures\":[\"GemmaForCausalLM\"],\"attention_bias\":false,\"attention_dropout\":0.0,"
     "\"bos_token_id\":2,\"eos_token_id\":1,\"head_dim\":256,\"hidden_act\":\"gelu\",\"hidden_activation\":null,"
     "\"hidden_size\":2048,\"intermediate_size\":16384,\"max_position_embeddings\":8192,\"model_type\":\"gemma\","
     "\"num_attention_heads\":8,\"num_hidden_layers\":18,\"num_key_value_heads\":1,\"pad_token_id\":0,"
     "\"rms_norm_eps\":1e-06,\"rope_scaling\":null,\"rope_theta\":10000.0,\"vocab_size\":256000}"},
    {"gemma-2-2b", 2614341888,
     "{\"architectures\":[\"Gemma2ForCausalLM\"],\"attention_bias\":false,\"attention_dropout\":0.0,"
     "\"attn_logit_softcapping\":50.0,\"bos_token_id\":2,\"cache_implementation\":\"hybrid\",\"eos_token_id\":1,"
     "\"final_logit_softcapping\":30.0,\"head_dim\":256,\"hidden_act\":\"gelu_pytorch_tanh\","
     "\"hidden_activation\":\"gelu_pytorch_tanh\",\"hidden_size\":2304,\"intermediate_size\":9216,"
     "\"max_position_embeddings\":8192,\"model_type\":\"gemma2\",\"num_attention_heads\":8,"
     "\"num_hidden_layers\":26,\"num_key_value_heads\":4,\"pad_token_id\":0,\"query_pre_attn_scalar\":256,"
     "\"rms_norm_eps\":1e-06,\"rope_theta\":10000.0,\"sliding_window\":4096,\"vocab_size\":256000}"},
    {"gpt2", 124439808,
     "{\"activation_function\":\"gelu_new\",\"architectures\":[\"GPT2LMHeadModel\"],\"attn_pdrop\":0.1,"
     "\"bos_token_id\":50256,\"embd_pdrop\":0.1,\"eos_token_id\":50256,\"initializer_range\":0.02,"
     "\"layer_norm_epsilon\":1e-05,\"model_type\":\"gpt2\",\"n_ctx\":1024,\"n_embd\":768,\"n_head\":12,"
     "\"n_layer\":12,\"n_positions\":1024,\"resid_pdrop\":0.1,\"summary_activation\":null,"
     "\"summary_first_dropout\":0.1,\"summary_proj_to_labels\":true,\"summary_type\":\"cls_index\","
     "\"summary_use_proj\":true,\"task_specific_params\":{\"text-generation\":{\"do_sample\":true,"
     "\"max_length\":50}},\"vocab_size\":50257}"},
    {"gpt2-xl", 1557611200,
     "{\"activation_function\":\"gelu_new\",\"architectures\":[\"GPT2LMHeadModel\"],\"bos_token_id\":50256,"
     "\"eos_token_id\":50256,\"layer_norm_epsilon\":1e-05,\"model_type\":\"gpt2\",\"n_ctx\":1024,\"n_embd\":1600,"
     "\"n_head\":25,\"n_layer\":48,\"n_positions\":1024,\"output_past\":true,\"vocab_size\":50257}"},
};
#define PUBLISHED_COUNT (sizeof PUBLISHED / sizeof PUBLISHED[0])

/* Fails the test when the configuration of `name` is not accepted. */
static inline qn_model_config_t published_config(const char *name)
{
    qn_model_config_t config = {0};
    for (size_t i = 0; i < PUBLISHED_COUNT; i++) {
        if (strcmp(PUBLISHED[i].name, name) != 0) continue;
        if (qn_model_config_parse(PUBLISHED[i].config, strlen(PUBLISHED[i].config), NULL, 0, NULL, &config))
            fail_msg("%s: %s", name, qn_err_text());
        return config;
    }
    fail_msg("no published model %s", name);
    return config;
}

#endif
