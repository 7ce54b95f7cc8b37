/* What is this?      The table of tensors of the Llama family (Llama, Mistral, Qwen2, Qwen3).
 * State owned:       none; a constant table.
 * Must never:        know a checkpoint: it says what must be there, not what is.
 * Read next:         model_config.h; services/memory/weights.h checks a checkpoint against this. */
#include "common/model_tensors.h"

#include <stdbool.h>
#include <stdio.h>

#include "common/assert.h"

/* Letters of a shape, as in kernels.h; Q is H*D and N is K*D. */
typedef enum { NONE = 0, V, E, F, D, Q, N } extent_t;

/* Which models have the tensor. */
typedef enum { ALWAYS, IF_QKV_BIAS, IF_OUTPUT_BIAS, IF_MLP_BIAS, IF_QK_NORM, IF_UNTIED } presence_t;

typedef struct {
    const char *suffix;
    presence_t presence;
    extent_t shape[2];
} tensor_row_t;

/* Rows FIRST_OF_LAYER .. LAST_OF_LAYER repeat in every layer. */
#define FIRST_OF_LAYER QN_TENSOR_ATTENTION_NORM
#define LAST_OF_LAYER QN_TENSOR_DOWN_BIAS

static const tensor_row_t rows[QN_TENSOR_ROLE_COUNT] = {
    [QN_TENSOR_EMBEDDING] = { "model.embed_tokens.weight", ALWAYS, { V, E } },
    [QN_TENSOR_ATTENTION_NORM] = { "input_layernorm.weight", ALWAYS, { E } },
    [QN_TENSOR_Q] = { "self_attn.q_proj.weight", ALWAYS, { Q, E } },
    [QN_TENSOR_K] = { "self_attn.k_proj.weight", ALWAYS, { N, E } },
    [QN_TENSOR_V] = { "self_attn.v_proj.weight", ALWAYS, { N, E } },
    [QN_TENSOR_Q_BIAS] = { "self_attn.q_proj.bias", IF_QKV_BIAS, { Q } },
    [QN_TENSOR_K_BIAS] = { "self_attn.k_proj.bias", IF_QKV_BIAS, { N } },
    [QN_TENSOR_V_BIAS] = { "self_attn.v_proj.bias", IF_QKV_BIAS, { N } },
    [QN_TENSOR_Q_NORM] = { "self_attn.q_norm.weight", IF_QK_NORM, { D } },
    [QN_TENSOR_K_NORM] = { "self_attn.k_norm.weight", IF_QK_NORM, { D } },
    [QN_TENSOR_OUTPUT] = { "self_attn.o_proj.weight", ALWAYS, { E, Q } },
    [QN_TENSOR_OUTPUT_BIAS] = { "self_attn.o_proj.bias", IF_OUTPUT_BIAS, { E } },
    [QN_TENSOR_MLP_NORM] = { "post_attention_layernorm.weight", ALWAYS, { E } },
    [QN_TENSOR_GATE] = { "mlp.gate_proj.weight", ALWAYS, { F, E } },
    [QN_TENSOR_UP] = { "mlp.up_proj.weight", ALWAYS, { F, E } },
    [QN_TENSOR_DOWN] = { "mlp.down_proj.weight", ALWAYS, { E, F } },
    [QN_TENSOR_GATE_BIAS] = { "mlp.gate_proj.bias", IF_MLP_BIAS, { F } },
    [QN_TENSOR_UP_BIAS] = { "mlp.up_proj.bias", IF_MLP_BIAS, { F } },
    [QN_TENSOR_DOWN_BIAS] = { "mlp.down_proj.bias", IF_MLP_BIAS, { E } },
    [QN_TENSOR_FINAL_NORM] = { "model.norm.weight", ALWAYS, { E } },
    [QN_TENSOR_HEAD] = { "lm_head.weight", IF_UNTIED, { V, E } },
};

static bool is_present(const qn_model_config_t *config, presence_t presence)
{
    switch (presence) {
    case ALWAYS: return true;
    case IF_QKV_BIAS: return config->qkv_bias;
    case IF_OUTPUT_BIAS: return config->output_bias;
    case IF_MLP_BIAS: return config->mlp_bias;
    case IF_QK_NORM: return config->qk_norm;
    case IF_UNTIED: return !config->tie_embeddings;
    }
    return false;
}

static uint64_t extent_of(const qn_model_config_t *config, extent_t extent)
{
    switch (extent) {
    case NONE: return 0;
    case V: return config->vocab;
    case E: return config->hidden;
    case F: return config->intermediate;
    case D: return config->head_dim;
    case Q: return (uint64_t)config->heads * config->head_dim;
    case N: return (uint64_t)config->kv_heads * config->head_dim;
    }
    return 0;
}

/* Present roles in [first, last]. */
static size_t count_roles(const qn_model_config_t *config, int first, int last)
{
    size_t count = 0;
    for (int role = first; role <= last; role++) count += is_present(config, rows[role].presence);
    return count;
}

/* The present role number `index` in [first, last]. */
static qn_tensor_role_t pick_role(const qn_model_config_t *config, int first, int last, size_t index)
{
    for (int role = first; role <= last; role++) {
        if (!is_present(config, rows[role].presence)) continue;
        if (index-- == 0) return (qn_tensor_role_t)role;
    }
    QN_ASSERT(!"index of a tensor beyond the model");
    return QN_TENSOR_ROLE_COUNT;
}

size_t qn_model_tensor_count(const qn_model_config_t *config)
{
    return count_roles(config, 0, FIRST_OF_LAYER - 1) +
           config->layers * count_roles(config, FIRST_OF_LAYER, LAST_OF_LAYER) +
           count_roles(config, LAST_OF_LAYER + 1, QN_TENSOR_ROLE_COUNT - 1);
}

void qn_model_tensor_at(const qn_model_config_t *config, size_t index, qn_model_tensor_t *ret_tensor)
{
    size_t before = count_roles(config, 0, FIRST_OF_LAYER - 1);
    size_t per_layer = count_roles(config, FIRST_OF_LAYER, LAST_OF_LAYER);
    uint32_t layer = QN_TENSOR_NO_LAYER;
    qn_tensor_role_t role;
    if (index < before) role = pick_role(config, 0, FIRST_OF_LAYER - 1, index);
    else if (index - before < config->layers * per_layer) {
        layer = (uint32_t)((index - before) / per_layer);
        role = pick_role(config, FIRST_OF_LAYER, LAST_OF_LAYER, (index - before) % per_layer);
    } else role = pick_role(config, LAST_OF_LAYER + 1, QN_TENSOR_ROLE_COUNT - 1,
                            index - before - config->layers * per_layer);
    const tensor_row_t *row = &rows[role];
    *ret_tensor = (qn_model_tensor_t){
        .role = role, .layer = layer, .rank = row->shape[1] == NONE ? 1 : 2,
        .shape = { extent_of(config, row->shape[0]), extent_of(config, row->shape[1]) },
    };
    if (layer == QN_TENSOR_NO_LAYER) snprintf(ret_tensor->name, sizeof ret_tensor->name, "%s", row->suffix);
    else snprintf(ret_tensor->name, sizeof ret_tensor->name, "model.layers.%u.%s", layer, row->suffix);
}
