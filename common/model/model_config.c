/* What is this?      The reader of config.json and generation_config.json: what each key means to an architecture.
 * State owned:       none.
 * Must never:        trust a number of the file; skip a feature that changes the result.
 * Read next:         model_config_architecture.c (the table), model_config_rope.c; services/compute/model.c (binds tensors by this shape). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/model/model_config_internal.h"
#include "common/model/python_json.h"

/* ---- what is not computed ---- */

/* A checkpoint quantised by its maker computes something else from its tensors than what they say. */
static qn_err_t refuse_quantization(const json_t *root)
{
    const json_t *quantization = qn_model_config_value(root, "quantization_config");
    if (!quantization) return QN_OK;
    const char *method = json_string_value(json_object_get(quantization, "quant_method"));
    return qn_fail(QN_ERR_UNSUPPORTED,
                   "config.json: \"quantization_config\" (\"%.60s\") is not supported; use the unquantised checkpoint",
                   method ? method : "unnamed");
}

/* Features that models of these architectures are known to carry and that change the result. */
static qn_err_t refuse_features(const json_t *root)
{
    static const char *const KEYS[] = {
        "add_cross_attention", "is_encoder_decoder", "use_bidirectional_attention", "shared_expert_intermediate_size",
        "n_shared_experts",    "num_shared_experts",
    };
    for (size_t i = 0; i < sizeof KEYS / sizeof KEYS[0]; i++) {
        const json_t *value = qn_model_config_value(root, KEYS[i]);
        int64_t number;
        bool none = !value || json_is_false(value) || (qn_model_config_whole(value, &number) && number == 0);
        if (!none) return qn_fail(QN_ERR_UNSUPPORTED, "config.json: \"%s\" is not supported", KEYS[i]);
    }
    return refuse_quantization(root);
}

/* ---- shape ---- */

static qn_err_t check_heads(const model_architecture_t *row, const qn_model_config_t *config)
{
    if (config->heads % config->kv_heads)
        return qn_fail(QN_ERR_INVALID,
                       "config.json: \"num_attention_heads\" %u is no multiple of "
                       "\"num_key_value_heads\" %u",
                       config->heads, config->kv_heads);
    if (row->architecture == QN_ARCHITECTURE_GPT2 && config->hidden % config->heads)
        return qn_fail(QN_ERR_INVALID, "config.json: \"n_embd\" %u is no multiple of \"n_head\" %u", config->hidden,
                       config->heads);
    if (config->head_dim % 2)
        return qn_fail(QN_ERR_INVALID, "config.json: \"head_dim\" %u is odd; rope and kernels need pairs",
                       config->head_dim);
    return QN_OK;
}

/* GPT-2 knows neither fewer kv heads nor heads of a width of their own. */
static qn_err_t read_heads(const json_t *root, const model_architecture_t *row, qn_model_config_t *config)
{
    const json_t *object = row->architecture == QN_ARCHITECTURE_GPT2 ? NULL : root;
    bool is_null = json_is_null(json_object_get(object, "head_dim"));
    uint32_t standard = row->head_dim && !is_null ? row->head_dim : config->hidden / config->heads;
    qn_err_t err = qn_model_config_count(object, "num_key_value_heads", config->heads, 1, 4096, &config->kv_heads);
    if (!err) err = qn_model_config_count(object, "head_dim", standard, 2, QN_HEAD_DIM_MAX, &config->head_dim);
    return err ? err : check_heads(row, config);
}

static qn_err_t read_shape(const json_t *root, const model_architecture_t *row, qn_model_config_t *config)
{
    const key_names_t *keys = row->keys;
    double eps;
    qn_err_t err = qn_model_config_count(root, keys->layers, -1, 1, QN_LAYERS_MAX, &config->layers);
    if (!err) err = qn_model_config_count(root, keys->hidden, -1, 1, QN_WIDTH_MAX, &config->hidden);
    if (!err) err = qn_model_config_count(root, keys->heads, -1, 1, 4096, &config->heads);
    if (!err) err = read_heads(root, row, config);
    if (err) return err;
    int64_t wide = row->architecture == QN_ARCHITECTURE_GPT2 ? 4 * (int64_t)config->hidden : -1;
    err = qn_model_config_count(root, keys->intermediate, wide, 1, QN_WIDTH_MAX, &config->intermediate);
    if (!err) err = qn_model_config_count(root, "vocab_size", -1, 1, QN_VOCAB_MAX, &config->vocab);
    if (!err) err = qn_model_config_count(root, keys->positions, -1, 1, QN_POSITIONS_MAX, &config->max_positions);
    if (!err) err = qn_model_config_real(root, keys->eps, row->eps, 0, 1, &eps);
    if (!err) config->norm_eps = (float)eps;
    return err;
}

/* ---- features ---- */

static qn_err_t name_activation(const char *key, const char *name, qn_activation_t *ret_activation)
{
    static const struct {
        const char *name;
        qn_activation_t activation;
    } NAMES[] = {
        {"silu", QN_ACTIVATION_SILU},
        {"swish", QN_ACTIVATION_SILU},
        {"gelu", QN_ACTIVATION_GELU},
        {"gelu_python", QN_ACTIVATION_GELU},
        {"gelu_new", QN_ACTIVATION_GELU_TANH},
        {"gelu_pytorch_tanh", QN_ACTIVATION_GELU_TANH},
        {"gelu_python_tanh", QN_ACTIVATION_GELU_TANH},
        {"gelu_fast", QN_ACTIVATION_GELU_TANH},
        {"gelu_accurate", QN_ACTIVATION_GELU_TANH},
        {"relu", QN_ACTIVATION_RELU},
    };
    for (size_t i = 0; name && i < sizeof NAMES / sizeof NAMES[0]; i++)
        if (strcmp(NAMES[i].name, name) == 0) {
            *ret_activation = NAMES[i].activation;
            return QN_OK;
        }
    return qn_fail(QN_ERR_UNSUPPORTED,
                   "config.json: \"%s\" \"%.60s\" is not supported; supported are silu, gelu, "
                   "gelu_new, gelu_pytorch_tanh, relu",
                   key, name ? name : "(not a string)");
}

/* The first Gemma's configurations say "gelu" and mean its tanh form (transformers' GemmaConfig corrects it too). */
static qn_err_t read_activation(const json_t *root, const model_architecture_t *row, qn_activation_t *ret_activation)
{
    const json_t *value = qn_model_config_value(root, row->keys->activation);
    const char *name = value ? json_string_value(value) : row->activation;
    if (row->architecture == QN_ARCHITECTURE_GEMMA && name && strcmp(name, "gelu") == 0) name = GELU_TANH;
    return name_activation(row->keys->activation, name, ret_activation);
}

static void set_gpt2(qn_model_config_t *config)
{
    config->norm = QN_NORM_LAYER;
    config->gated_mlp = false;
    config->qkv_bias = config->output_bias = config->mlp_bias = true;
    config->rope = (qn_rope_config_t){.type = QN_ROPE_NONE, .factor = 1, .attention_factor = 1, .truncate = true};
}

static qn_err_t read_features(const json_t *root, const model_architecture_t *row, qn_model_config_t *config)
{
    config->norm = QN_NORM_RMS;
    config->gated_mlp = true;
    config->qk_norm = row->traits & QK_NORM;
    config->post_norms = row->traits & CAPPED;
    config->norm_weight_offset = row->traits & GEMMA ? 1 : 0;
    config->embedding_multiplier = row->traits & GEMMA ? sqrtf((float)config->hidden) : 1;
    qn_err_t err = read_activation(root, row, &config->activation);
    if (!err) err = qn_model_config_flag(root, "tie_word_embeddings", row->traits & TIED, &config->tie_embeddings);
    if (row->architecture == QN_ARCHITECTURE_GPT2) {
        set_gpt2(config);
        return err;
    }
    if (!err) err = qn_model_config_flag(root, "attention_bias", false, &config->output_bias);
    if (!err) err = qn_model_config_flag(root, "mlp_bias", false, &config->mlp_bias);
    config->qkv_bias = config->output_bias || row->traits & QKV_BIAS;
    if (row->traits & QKV_BIAS) config->output_bias = false;
    return err ? err : qn_model_config_rope(root, row->theta, config);
}

/* ---- attention ---- */

static qn_err_t read_gpt2_scale(const json_t *root, qn_model_config_t *config)
{
    bool scaled;
    qn_err_t err = qn_model_config_flag(root, "scale_attn_weights", true, &scaled);
    if (!err && !scaled) config->attention_scale = 1;
    if (!err)
        err = qn_model_config_flag(root, "scale_attn_by_inverse_layer_idx", false, &config->attention_scale_by_layer);
    return err;
}

/* A soft-cap is off when its key is null, and has its default when it is absent. */
static qn_err_t read_cap(const json_t *root, const char *key, double standard, float *ret_cap)
{
    double cap, none = json_is_null(json_object_get(root, key)) ? 0 : standard;
    qn_err_t err = qn_model_config_real(root, key, none, 0, 1e6, &cap);
    if (!err) *ret_cap = (float)cap;
    return err;
}

static qn_err_t read_scale(const json_t *root, const model_architecture_t *row, qn_model_config_t *config)
{
    double scalar = config->head_dim;
    config->attention_scale = (float)(1 / sqrt(scalar));
    if (row->architecture == QN_ARCHITECTURE_GPT2) return read_gpt2_scale(root, config);
    if (!(row->traits & CAPPED)) return QN_OK;
    qn_err_t err = qn_model_config_real(root, "query_pre_attn_scalar", 256, 1e-6, 1e6, &scalar);
    if (!err) config->attention_scale = (float)(1 / sqrt(scalar));
    if (!err) err = read_cap(root, "attn_logit_softcapping", 50, &config->attention_softcap);
    if (!err) err = read_cap(root, "final_logit_softcapping", 30, &config->logit_softcap);
    return err;
}

/* layer_types names each layer when present; else the architecture has a rule. */
static qn_err_t read_layer_types(const json_t *root, const model_architecture_t *row, uint32_t full_layers,
                                 qn_model_config_t *config)
{
    const json_t *types = qn_model_config_value(root, "layer_types");
    if (types && json_array_size(types) != config->layers)
        return qn_fail(QN_ERR_INVALID, "config.json: \"layer_types\" must name each of the %u layers", config->layers);
    for (uint32_t i = 0; i < config->layers; i++) {
        const char *type = types ? json_string_value(json_array_get(types, i)) : NULL;
        bool slides = types ? type && strcmp(type, "sliding_attention") == 0
                            : i >= full_layers && !(row->traits & WINDOW_EVEN && i % 2);
        if (types && !slides && (!type || strcmp(type, "full_attention") != 0))
            return qn_fail(QN_ERR_UNSUPPORTED, "config.json: \"layer_types\" \"%.60s\" is not supported",
                           type ? type : "(not a string)");
        config->layer_slides[i] = config->sliding_window && slides;
    }
    return QN_OK;
}

/* A sliding_window that is null is none; one that is absent has the architecture's default. */
static qn_err_t read_window(const json_t *root, const model_architecture_t *row, qn_model_config_t *config)
{
    bool use = true;
    uint32_t full_layers = 0, none = json_is_null(json_object_get(root, "sliding_window")) ? 0 : row->window;
    qn_err_t err = QN_OK;
    if (row->traits & WINDOW_ASKED) err = qn_model_config_flag(root, "use_sliding_window", false, &use);
    if (!err) err = qn_model_config_count(root, "sliding_window", none, 0, QN_POSITIONS_MAX, &config->sliding_window);
    if (!err && row->traits & WINDOW_LATE)
        err = qn_model_config_count(root, "max_window_layers", 28, 0, 1 << 20, &full_layers);
    if (err) return err;
    if (!use || row->traits & NO_WINDOW) config->sliding_window = 0;
    return read_layer_types(root, row, full_layers, config);
}

/* ---- experts ---- */

static bool names_layer(const json_t *list, uint32_t layer)
{
    int64_t number;
    for (size_t i = 0; i < json_array_size(list); i++)
        if (qn_model_config_whole(json_array_get(list, i), &number) && number == layer) return true;
    return false;
}

static qn_err_t check_layer_list(const json_t *list, uint32_t layers)
{
    bool good = !list || json_is_array(list);
    int64_t number;
    for (size_t i = 0; good && i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        good = qn_model_config_whole(item, &number) && number >= 0 && number < layers;
    }
    return good ? QN_OK
                : qn_fail(QN_ERR_INVALID, "config.json: \"mlp_only_layers\" must be a list of layers below %u", layers);
}

/* Which layers have experts, as transformers' Qwen3MoeDecoderLayer decides it. */
static qn_err_t read_sparse_layers(const json_t *root, const model_architecture_t *row, qn_model_config_t *config)
{
    uint32_t every = 1;
    const json_t *dense = NULL;
    qn_err_t err = QN_OK;
    if (row->traits & EXPERTS_SPARSE) {
        dense = qn_model_config_value(root, "mlp_only_layers");
        err = check_layer_list(dense, config->layers);
        if (!err) err = qn_model_config_count(root, "decoder_sparse_step", 1, 1, 1 << 20, &every);
    }
    bool any = false;
    for (uint32_t i = 0; !err && i < config->layers; i++) {
        config->layer_is_sparse[i] = (i + 1) % every == 0 && !names_layer(dense, i);
        any = any || config->layer_is_sparse[i];
    }
    if (!any) config->experts = config->experts_per_token = config->expert_intermediate = 0;
    return err;
}

static qn_err_t read_experts(const json_t *root, const model_architecture_t *row, qn_model_config_t *config)
{
    if (!(row->traits & EXPERTS)) return QN_OK;
    bool sparse = row->traits & EXPERTS_SPARSE;
    const char *key = qn_model_config_value(root, "num_local_experts") || !sparse ? "num_local_experts" : "num_experts";
    qn_err_t err = qn_model_config_count(root, key, -1, sparse ? 0 : 1, QN_EXPERTS_MAX, &config->experts);
    if (err || config->experts == 0) return err;
    err = qn_model_config_count(root, "num_experts_per_tok", -1, 1, config->experts, &config->experts_per_token);
    config->normalise_experts = true;
    config->expert_intermediate = config->intermediate;
    if (!err && sparse)
        err = qn_model_config_count(root, "moe_intermediate_size", -1, 1, QN_WIDTH_MAX, &config->expert_intermediate);
    if (!err && sparse) err = qn_model_config_flag(root, "norm_topk_prob", false, &config->normalise_experts);
    return err ? err : read_sparse_layers(root, row, config);
}

/* ---- the whole ---- */

/* "dtype" is the newer spelling of "torch_dtype". */
static void read_dtype(const json_t *root, qn_model_config_t *config)
{
    const json_t *value = qn_model_config_value(root, "dtype");
    if (!value) value = qn_model_config_value(root, "torch_dtype");
    const char *name = json_string_value(value);
    if (name && strncmp(name, "torch.", 6) == 0) name += 6;
    if (name) snprintf(config->dtype_name, sizeof config->dtype_name, "%s", name);
}

static qn_err_t parse_root(const json_t *root, const json_t *generation, qn_model_config_t *config,
                           qn_model_warnings_t *warnings)
{
    const model_architecture_t *row = NULL;
    qn_err_t err = qn_model_config_architecture(root, warnings, &row);
    if (err) return err;
    config->architecture = row->architecture;
    strncpy(config->architecture_name, row->name, sizeof config->architecture_name - 1);
    err = refuse_features(root);
    if (!err) err = read_shape(root, row, config);
    if (!err) err = read_features(root, row, config);
    if (!err) err = read_scale(root, row, config);
    if (!err) err = read_window(root, row, config);
    if (!err) err = read_experts(root, row, config);
    if (!err) err = qn_model_config_eos(generation, "generation_config.json", config, warnings);
    if (!err) err = qn_model_config_eos(root, "config.json", config, warnings);
    if (!err) err = qn_model_config_bos(root, config, warnings);
    if (!err) read_dtype(root, config);
    return err;
}

static qn_err_t load_object(const char *text, size_t bytes, const char *file, json_t **ret_root)
{
    json_error_t error;
    json_t *root = qn_python_json_load(text, bytes, &error);
    if (!root) return qn_fail(QN_ERR_INVALID, "%s: not JSON: %.200s (line %d)", file, error.text, error.line);
    if (!json_is_object(root)) {
        json_decref(root);
        return qn_fail(QN_ERR_INVALID, "%s: not a JSON object", file);
    }
    *ret_root = root;
    return QN_OK;
}

qn_err_t qn_model_config_parse(const char *config_text, size_t config_bytes, const char *generation_text,
                               size_t generation_bytes, qn_model_warnings_t *warnings, qn_model_config_t *ret_config)
{
    json_t *root = NULL, *generation = NULL;
    qn_model_config_t config = {0};
    qn_err_t err = load_object(config_text, config_bytes, "config.json", &root);
    if (!err && generation_text)
        err = load_object(generation_text, generation_bytes, "generation_config.json", &generation);
    if (!err) err = parse_root(root, generation, &config, warnings);
    json_decref(root);
    json_decref(generation);
    if (!err) *ret_config = config;
    return err;
}

qn_err_t qn_model_kv_block_bytes(const qn_model_config_t *config, uint32_t block_tokens, uint32_t scalar_bytes,
                                 uint64_t *ret_bytes)
{
    uint64_t bytes = 2ull * config->layers;
    if (__builtin_mul_overflow(bytes, (uint64_t)block_tokens * config->kv_heads, &bytes) ||
        __builtin_mul_overflow(bytes, (uint64_t)config->head_dim * scalar_bytes, &bytes))
        return qn_fail(QN_ERR_LIMIT, "a KV block of %u tokens is larger than 2^64 bytes", block_tokens);
    *ret_bytes = bytes;
    return QN_OK;
}
