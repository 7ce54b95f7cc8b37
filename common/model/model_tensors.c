/* What is this?      The tables of tensors: what each role is, and what each family of checkpoints calls it.
 * State owned:       none; constant tables.
 * Must never:        know a checkpoint: it says what must be there, not what is.
 * Read next:         model_config.h; services/memory/weights/weights.h checks a checkpoint against this. */
#include "common/model/model_tensors.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/assert.h"

/* Letters of a shape, as in kernels.h; Q is H*D, N is K*D, M the expert's width and T max_positions. */
typedef enum { NONE = 0, V, E, F, D, Q, N, X, M, T } extent_t;

/* Which models, and which of their layers, have the tensor. */
typedef enum {
    ALWAYS,
    IF_POSITIONS,
    IF_LAYER_NORM,
    IF_QKV_BIAS,
    IF_OUTPUT_BIAS,
    IF_QK_NORM,
    IF_POST_NORMS,
    IF_UNTIED,
    IF_DENSE,
    IF_DENSE_GATED,
    IF_DENSE_BIAS,
    IF_DENSE_GATED_BIAS,
    IF_SPARSE,
} presence_t;

typedef struct {
    const char *suffix; /* within a layer after "model.layers.N."; %u is the expert */
    presence_t presence;
    extent_t shape[2];
    qn_tensor_use_t use;
} tensor_row_t;

/* Rows FIRST_OF_LAYER .. LAST_OF_LAYER repeat in every layer, the experts' of them for every expert. */
#define FIRST_OF_LAYER QN_TENSOR_ATTENTION_NORM
#define LAST_OF_LAYER QN_TENSOR_POST_MLP_NORM
#define FIRST_OF_EXPERT QN_TENSOR_EXPERT_GATE
#define LAST_OF_EXPERT QN_TENSOR_EXPERT_DOWN
#define ROLES_OF_EXPERT (LAST_OF_EXPERT - FIRST_OF_EXPERT + 1)

#define PLAIN QN_TENSOR_PLAIN
#define PRODUCT QN_TENSOR_PRODUCT
#define OUTER QN_TENSOR_OUTER

/* The names are those of Llama, which the others follow where their own table below is silent. */
static const tensor_row_t rows[QN_TENSOR_ROLE_COUNT] = {
    [QN_TENSOR_EMBEDDING] = {"model.embed_tokens.weight", ALWAYS, {V, E}, OUTER},
    [QN_TENSOR_POSITIONS] = {"model.embed_positions.weight", IF_POSITIONS, {T, E}, PLAIN},
    [QN_TENSOR_ATTENTION_NORM] = {"input_layernorm.weight", ALWAYS, {E}, PLAIN},
    [QN_TENSOR_ATTENTION_NORM_BIAS] = {"input_layernorm.bias", IF_LAYER_NORM, {E}, PLAIN},
    [QN_TENSOR_Q] = {"self_attn.q_proj.weight", ALWAYS, {Q, E}, PRODUCT},
    [QN_TENSOR_K] = {"self_attn.k_proj.weight", ALWAYS, {N, E}, PRODUCT},
    [QN_TENSOR_V] = {"self_attn.v_proj.weight", ALWAYS, {N, E}, PRODUCT},
    [QN_TENSOR_Q_BIAS] = {"self_attn.q_proj.bias", IF_QKV_BIAS, {Q}, PLAIN},
    [QN_TENSOR_K_BIAS] = {"self_attn.k_proj.bias", IF_QKV_BIAS, {N}, PLAIN},
    [QN_TENSOR_V_BIAS] = {"self_attn.v_proj.bias", IF_QKV_BIAS, {N}, PLAIN},
    [QN_TENSOR_Q_NORM] = {"self_attn.q_norm.weight", IF_QK_NORM, {D}, PLAIN},
    [QN_TENSOR_K_NORM] = {"self_attn.k_norm.weight", IF_QK_NORM, {D}, PLAIN},
    [QN_TENSOR_OUTPUT] = {"self_attn.o_proj.weight", ALWAYS, {E, Q}, PRODUCT},
    [QN_TENSOR_OUTPUT_BIAS] = {"self_attn.o_proj.bias", IF_OUTPUT_BIAS, {E}, PLAIN},
    [QN_TENSOR_POST_ATTENTION_NORM] = {"post_attention_layernorm.weight", IF_POST_NORMS, {E}, PLAIN},
    [QN_TENSOR_MLP_NORM] = {"post_attention_layernorm.weight", ALWAYS, {E}, PLAIN},
    [QN_TENSOR_MLP_NORM_BIAS] = {"post_attention_layernorm.bias", IF_LAYER_NORM, {E}, PLAIN},
    [QN_TENSOR_GATE] = {"mlp.gate_proj.weight", IF_DENSE_GATED, {F, E}, PRODUCT},
    [QN_TENSOR_UP] = {"mlp.up_proj.weight", IF_DENSE, {F, E}, PRODUCT},
    [QN_TENSOR_DOWN] = {"mlp.down_proj.weight", IF_DENSE, {E, F}, PRODUCT},
    [QN_TENSOR_GATE_BIAS] = {"mlp.gate_proj.bias", IF_DENSE_GATED_BIAS, {F}, PLAIN},
    [QN_TENSOR_UP_BIAS] = {"mlp.up_proj.bias", IF_DENSE_BIAS, {F}, PLAIN},
    [QN_TENSOR_DOWN_BIAS] = {"mlp.down_proj.bias", IF_DENSE_BIAS, {E}, PLAIN},
    [QN_TENSOR_ROUTER] = {"mlp.gate.weight", IF_SPARSE, {X, E}, PLAIN},
    [QN_TENSOR_EXPERT_GATE] = {"mlp.experts.%u.gate_proj.weight", IF_SPARSE, {M, E}, PRODUCT},
    [QN_TENSOR_EXPERT_UP] = {"mlp.experts.%u.up_proj.weight", IF_SPARSE, {M, E}, PRODUCT},
    [QN_TENSOR_EXPERT_DOWN] = {"mlp.experts.%u.down_proj.weight", IF_SPARSE, {E, M}, PRODUCT},
    [QN_TENSOR_POST_MLP_NORM] = {"post_feedforward_layernorm.weight", IF_POST_NORMS, {E}, PLAIN},
    [QN_TENSOR_FINAL_NORM] = {"model.norm.weight", ALWAYS, {E}, PLAIN},
    [QN_TENSOR_FINAL_NORM_BIAS] = {"model.norm.bias", IF_LAYER_NORM, {E}, PLAIN},
    [QN_TENSOR_HEAD] = {"lm_head.weight", IF_UNTIED, {V, E}, OUTER},
};

/* ---- families that use other names ---- */

static const char *const MIXTRAL_NAMES[QN_TENSOR_ROLE_COUNT] = {
    [QN_TENSOR_ROUTER] = "block_sparse_moe.gate.weight",
    [QN_TENSOR_EXPERT_GATE] = "block_sparse_moe.experts.%u.w1.weight",
    [QN_TENSOR_EXPERT_UP] = "block_sparse_moe.experts.%u.w3.weight",
    [QN_TENSOR_EXPERT_DOWN] = "block_sparse_moe.experts.%u.w2.weight",
};

static const char *const GEMMA2_NAMES[QN_TENSOR_ROLE_COUNT] = {
    [QN_TENSOR_MLP_NORM] = "pre_feedforward_layernorm.weight",
};

/* c_attn holds q, k and v: their names say which third. */
static const char *const GPT2_NAMES[QN_TENSOR_ROLE_COUNT] = {
    [QN_TENSOR_EMBEDDING] = "transformer.wte.weight",
    [QN_TENSOR_POSITIONS] = "transformer.wpe.weight",
    [QN_TENSOR_ATTENTION_NORM] = "ln_1.weight",
    [QN_TENSOR_ATTENTION_NORM_BIAS] = "ln_1.bias",
    [QN_TENSOR_Q] = "attn.c_attn.q.weight",
    [QN_TENSOR_K] = "attn.c_attn.k.weight",
    [QN_TENSOR_V] = "attn.c_attn.v.weight",
    [QN_TENSOR_Q_BIAS] = "attn.c_attn.q.bias",
    [QN_TENSOR_K_BIAS] = "attn.c_attn.k.bias",
    [QN_TENSOR_V_BIAS] = "attn.c_attn.v.bias",
    [QN_TENSOR_OUTPUT] = "attn.c_proj.weight",
    [QN_TENSOR_OUTPUT_BIAS] = "attn.c_proj.bias",
    [QN_TENSOR_MLP_NORM] = "ln_2.weight",
    [QN_TENSOR_MLP_NORM_BIAS] = "ln_2.bias",
    [QN_TENSOR_UP] = "mlp.c_fc.weight",
    [QN_TENSOR_UP_BIAS] = "mlp.c_fc.bias",
    [QN_TENSOR_DOWN] = "mlp.c_proj.weight",
    [QN_TENSOR_DOWN_BIAS] = "mlp.c_proj.bias",
    [QN_TENSOR_FINAL_NORM] = "transformer.ln_f.weight",
    [QN_TENSOR_FINAL_NORM_BIAS] = "transformer.ln_f.bias",
};

static const char *suffix_of(const qn_model_config_t *config, qn_tensor_role_t role)
{
    const char *name = NULL;
    if (config->architecture == QN_ARCHITECTURE_MIXTRAL)
        name = MIXTRAL_NAMES[role];
    else if (config->architecture == QN_ARCHITECTURE_GEMMA2)
        name = GEMMA2_NAMES[role];
    else if (config->architecture == QN_ARCHITECTURE_GPT2)
        name = GPT2_NAMES[role];
    return name ? name : rows[role].suffix;
}

/* ---- which tensors, how large ---- */

static bool is_present(const qn_model_config_t *config, presence_t presence, uint32_t layer)
{
    bool sparse = layer != QN_TENSOR_NO_LAYER && config->layer_is_sparse[layer];
    switch (presence) {
    case ALWAYS: return true;
    case IF_POSITIONS: return config->rope.type == QN_ROPE_NONE;
    case IF_LAYER_NORM: return config->norm == QN_NORM_LAYER;
    case IF_QKV_BIAS: return config->qkv_bias;
    case IF_OUTPUT_BIAS: return config->output_bias;
    case IF_QK_NORM: return config->qk_norm;
    case IF_POST_NORMS: return config->post_norms;
    case IF_UNTIED: return !config->tie_embeddings;
    case IF_DENSE: return !sparse;
    case IF_DENSE_GATED: return !sparse && config->gated_mlp;
    case IF_DENSE_BIAS: return !sparse && config->mlp_bias;
    case IF_DENSE_GATED_BIAS: return !sparse && config->gated_mlp && config->mlp_bias;
    case IF_SPARSE: return sparse;
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
    case X: return config->experts;
    case M: return config->expert_intermediate;
    case T: return config->max_positions;
    }
    return 0;
}

/* How many tensors a role stands for in a layer. */
static size_t count_role(const qn_model_config_t *config, int role, uint32_t layer)
{
    if (!is_present(config, rows[role].presence, layer)) return 0;
    return role >= FIRST_OF_EXPERT && role <= LAST_OF_EXPERT ? config->experts : 1;
}

static size_t count_roles(const qn_model_config_t *config, int first, int last, uint32_t layer)
{
    size_t count = 0;
    for (int role = first; role <= last; role++)
        count += count_role(config, role, layer);
    return count;
}

/* Tensors of a dense [0] and of a sparse [1] layer. */
static void count_layers(const qn_model_config_t *config, size_t *ret_counts)
{
    for (uint32_t i = 0, found = 0; i < config->layers && found != 3; i++) {
        bool sparse = config->layer_is_sparse[i];
        if (found & (1u << sparse)) continue;
        ret_counts[sparse] = count_roles(config, FIRST_OF_LAYER, LAST_OF_LAYER, i);
        found |= 1u << sparse;
    }
}

/* Where the tensor number `index` of those after `first` is: role, and expert for the experts' roles, which stand
 * expert by expert. */
static void pick_role(const qn_model_config_t *config, int first, int last, size_t index, qn_model_tensor_t *ret_tensor)
{
    for (int role = first; role <= last; role++) {
        size_t count = count_role(config, role, ret_tensor->layer);
        ret_tensor->role = (qn_tensor_role_t)role;
        if (role == FIRST_OF_EXPERT && index < count * ROLES_OF_EXPERT) {
            ret_tensor->expert = (uint32_t)(index / ROLES_OF_EXPERT);
            ret_tensor->role = (qn_tensor_role_t)(FIRST_OF_EXPERT + index % ROLES_OF_EXPERT);
            return;
        }
        if (index < count) return;
        index -= count;
    }
    QN_ASSERT(!"index of a tensor beyond the model");
}

size_t qn_model_tensor_count(const qn_model_config_t *config)
{
    size_t per_layer[2] = {0},
           count = count_roles(config, 0, FIRST_OF_LAYER - 1, QN_TENSOR_NO_LAYER) +
                   count_roles(config, LAST_OF_LAYER + 1, QN_TENSOR_ROLE_COUNT - 1, QN_TENSOR_NO_LAYER);
    count_layers(config, per_layer);
    for (uint32_t i = 0; i < config->layers; i++)
        count += per_layer[config->layer_is_sparse[i]];
    return count;
}

/* ---- one tensor ---- */

static void name_tensor(const qn_model_config_t *config, qn_model_tensor_t *tensor)
{
    const char *suffix = suffix_of(config, tensor->role);
    const char *layers = config->architecture == QN_ARCHITECTURE_GPT2 ? "transformer.h" : "model.layers";
    char inner[QN_NAME_MAX];
    int used;
    if (tensor->expert != QN_TENSOR_NO_EXPERT) {
        const char *number = strstr(suffix, "%u");
        used = snprintf(inner, sizeof inner, "%.*s%u%s", (int)(number - suffix), suffix, tensor->expert, number + 2);
    } else {
        used = snprintf(inner, sizeof inner, "%s", suffix);
    }
    QN_ASSERT(used < (int)sizeof inner);
    if (tensor->layer == QN_TENSOR_NO_LAYER)
        used = snprintf(tensor->name, sizeof tensor->name, "%s", inner);
    else
        used = snprintf(tensor->name, sizeof tensor->name, "%s.%u.%s", layers, tensor->layer, inner);
    QN_ASSERT(used < (int)sizeof tensor->name);
    memcpy(tensor->source, tensor->name, sizeof tensor->source);
    tensor->source_outputs = tensor->shape[0];
}

/* GPT-2's Conv1D holds [in, out], and c_attn the outputs of q, k and v one after the other. */
static void source_of_gpt2(qn_model_tensor_t *tensor)
{
    uint32_t third;
    tensor->transposed = tensor->use == QN_TENSOR_PRODUCT;
    if (tensor->role >= QN_TENSOR_Q && tensor->role <= QN_TENSOR_V)
        third = tensor->role - QN_TENSOR_Q;
    else if (tensor->role >= QN_TENSOR_Q_BIAS && tensor->role <= QN_TENSOR_V_BIAS)
        third = tensor->role - QN_TENSOR_Q_BIAS;
    else
        return;
    snprintf(tensor->source, sizeof tensor->source, "transformer.h.%u.attn.c_attn.%s", tensor->layer,
             tensor->rank == 2 ? "weight" : "bias");
    tensor->source_outputs = 3 * tensor->shape[0];
    tensor->source_first = third * tensor->shape[0];
}

void qn_model_tensor_at(const qn_model_config_t *config, size_t index, qn_model_tensor_t *ret_tensor)
{
    size_t per_layer[2] = {0}, before = count_roles(config, 0, FIRST_OF_LAYER - 1, QN_TENSOR_NO_LAYER);
    *ret_tensor = (qn_model_tensor_t){.layer = QN_TENSOR_NO_LAYER, .expert = QN_TENSOR_NO_EXPERT};
    if (index < before) {
        pick_role(config, 0, FIRST_OF_LAYER - 1, index, ret_tensor);
    } else {
        uint32_t layer = 0;
        count_layers(config, per_layer);
        for (index -= before; layer < config->layers && index >= per_layer[config->layer_is_sparse[layer]]; layer++)
            index -= per_layer[config->layer_is_sparse[layer]];
        if (layer < config->layers) {
            ret_tensor->layer = layer;
            pick_role(config, FIRST_OF_LAYER, LAST_OF_LAYER, index, ret_tensor);
        } else {
            pick_role(config, LAST_OF_LAYER + 1, QN_TENSOR_ROLE_COUNT - 1, index, ret_tensor);
        }
    }
    const tensor_row_t *row = &rows[ret_tensor->role];
    ret_tensor->use = row->use;
    ret_tensor->rank = row->shape[1] == NONE ? 1 : 2;
    ret_tensor->shape[0] = extent_of(config, row->shape[0]);
    ret_tensor->shape[1] = extent_of(config, row->shape[1]);
    name_tensor(config, ret_tensor);
    if (config->architecture == QN_ARCHITECTURE_GPT2) source_of_gpt2(ret_tensor);
}

const char *qn_model_tensor_bare_source(const char *source)
{
    static const char *const PREFIXES[] = {"model.", "transformer."};
    for (size_t i = 0; i < sizeof PREFIXES / sizeof *PREFIXES; i++) {
        size_t length = strlen(PREFIXES[i]);
        if (strncmp(source, PREFIXES[i], length) == 0) return source + length;
    }
    return NULL;
}
