/* What is this?      The reader of config.json and generation_config.json, and the mathematics of rope scaling.
 * State owned:       none.
 * Must never:        trust a number of the file; guess an architecture.
 * Read next:         services/compute/model.c (binds tensors by this shape), kernels/kernels.h (the letters). */
#include "common/model_config.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

/* What is particular to an architecture. Booleans are defaults for keys that config.json may leave out. */
typedef struct {
    const char *name;
    qn_architecture_t architecture;
    bool qkv_bias_always;   /* not configurable: Qwen2 */
    bool qk_norm;
    bool window_needs_flag; /* sliding_window counts only with use_sliding_window (Qwen) */
} architecture_row_t;

static const architecture_row_t ARCHITECTURES[] = {
    { "LlamaForCausalLM", QN_ARCHITECTURE_LLAMA, false, false, false },
    { "MistralForCausalLM", QN_ARCHITECTURE_MISTRAL, false, false, false },
    { "Qwen2ForCausalLM", QN_ARCHITECTURE_QWEN2, true, false, true },
    { "Qwen3ForCausalLM", QN_ARCHITECTURE_QWEN3, false, true, true },
};
#define ARCHITECTURE_COUNT (sizeof ARCHITECTURES / sizeof ARCHITECTURES[0])

/* ---- typed access; `where` is the object's name in messages ---- */

static const json_t *present(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

/* Missing: `fallback` when it is not negative, else a failure. */
static qn_err_t read_count(const json_t *object, const char *key, int64_t fallback, int64_t min, int64_t max,
                           uint32_t *ret_value)
{
    const json_t *value = present(object, key);
    int64_t number = fallback;
    if (value) {
        if (!json_is_integer(value))
            return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" must be a whole number", key);
        number = json_integer_value(value);
    } else if (fallback < 0) {
        return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" is missing; this architecture needs it", key);
    }
    if (number < min || number > max)
        return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" is %lld, allowed are %lld to %lld", key, (long long)number,
                       (long long)min, (long long)max);
    *ret_value = (uint32_t)number;
    return QN_OK;
}

static qn_err_t read_real(const json_t *object, const char *key, double fallback, double min, double max,
                          double *ret_value)
{
    const json_t *value = present(object, key);
    if (value && !json_is_number(value))
        return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" must be a number", key);
    double number = value ? json_number_value(value) : fallback;
    if (isnan(number))
        return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" is missing; this rope type needs it", key);
    if (!(number >= min && number <= max))
        return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" is %g, allowed are %g to %g", key, number, min, max);
    *ret_value = number;
    return QN_OK;
}

static qn_err_t read_flag(const json_t *object, const char *key, bool fallback, bool *ret_value)
{
    const json_t *value = present(object, key);
    if (value && !json_is_boolean(value))
        return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" must be true or false", key);
    *ret_value = value ? json_is_true(value) : fallback;
    return QN_OK;
}

/* ---- architecture ---- */

static qn_err_t find_architecture(const json_t *root, const architecture_row_t **ret_row)
{
    const json_t *list = present(root, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    if (!name) return qn_fail(QN_ERR_INVALID, "config.json: \"architectures\" is missing or names none");
    char known[256] = "";
    for (size_t i = 0; i < ARCHITECTURE_COUNT; i++) {
        if (strcmp(ARCHITECTURES[i].name, name) == 0) {
            *ret_row = &ARCHITECTURES[i];
            return QN_OK;
        }
        if (i) strncat(known, ", ", sizeof known - strlen(known) - 1);
        strncat(known, ARCHITECTURES[i].name, sizeof known - strlen(known) - 1);
    }
    return qn_fail(QN_ERR_UNSUPPORTED, "config.json: architecture \"%.100s\" is not supported; supported are %s", name,
                   known);
}

static qn_err_t read_activation(const json_t *root, qn_activation_t *ret_activation)
{
    static const struct { const char *name; qn_activation_t activation; } NAMES[] = {
        { "silu", QN_ACTIVATION_SILU },
    };
    const json_t *value = present(root, "hidden_act");
    const char *name = value ? json_string_value(value) : "silu";
    for (size_t i = 0; name && i < sizeof NAMES / sizeof NAMES[0]; i++)
        if (strcmp(NAMES[i].name, name) == 0) {
            *ret_activation = NAMES[i].activation;
            return QN_OK;
        }
    return qn_fail(QN_ERR_UNSUPPORTED, "config.json: \"hidden_act\" \"%.60s\" is not supported; supported is silu",
                   name ? name : "(not a string)");
}

/* ---- rope ---- */

/* transformers' yarn: how strongly attention is sharpened for a stretch of `factor`. */
static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static qn_err_t read_yarn(const json_t *scaling, qn_rope_config_t *rope)
{
    double mscale, mscale_all;
    qn_err_t err = read_real(scaling, "beta_fast", 32, 1e-6, 1e9, &rope->beta_fast);
    if (!err) err = read_real(scaling, "beta_slow", 1, 1e-6, 1e9, &rope->beta_slow);
    if (!err) err = read_flag(scaling, "truncate", true, &rope->truncate);
    if (!err) err = read_real(scaling, "mscale", 0, 0, 1e3, &mscale);
    if (!err) err = read_real(scaling, "mscale_all_dim", 0, 0, 1e3, &mscale_all);
    if (err) return err;
    double standard = mscale > 0 && mscale_all > 0
        ? yarn_mscale(rope->factor, mscale) / yarn_mscale(rope->factor, mscale_all) : yarn_mscale(rope->factor, 1);
    return read_real(scaling, "attention_factor", standard, 1e-3, 1e3, &rope->attention_factor);
}

static qn_err_t read_rope_type(const json_t *scaling, qn_rope_type_t *ret_type)
{
    static const char *const NAMES[] = {
        [QN_ROPE_DEFAULT] = "default", [QN_ROPE_LINEAR] = "linear", [QN_ROPE_DYNAMIC] = "dynamic",
        [QN_ROPE_LLAMA3] = "llama3", [QN_ROPE_YARN] = "yarn",
    };
    const json_t *value = present(scaling, "rope_type");
    if (!value) value = present(scaling, "type");
    const char *name = value ? json_string_value(value) : "default";
    for (size_t i = 0; name && i < sizeof NAMES / sizeof NAMES[0]; i++)
        if (strcmp(NAMES[i], name) == 0) {
            *ret_type = (qn_rope_type_t)i;
            return QN_OK;
        }
    return qn_fail(QN_ERR_UNSUPPORTED,
                   "config.json: rope type \"%.60s\" is not supported; supported are default, linear, dynamic, "
                   "llama3, yarn", name ? name : "(not a string)");
}

/* New style: everything in rope_parameters. Old style: rope_theta at the top and an optional rope_scaling. */
static qn_err_t read_rope(const json_t *root, qn_model_config_t *config)
{
    qn_rope_config_t *rope = &config->rope;
    *rope = (qn_rope_config_t){ .factor = 1, .attention_factor = 1, .truncate = true };
    const json_t *scaling = present(root, "rope_parameters");
    if (!scaling) scaling = present(root, "rope_scaling");
    if (scaling && !json_is_object(scaling))
        return qn_fail(QN_ERR_INVALID, "config.json: \"rope_parameters\" must be an object");
    const json_t *theta = present(scaling, "rope_theta") ? scaling : root;
    qn_err_t err = read_rope_type(scaling, &rope->type);
    if (!err) err = read_real(theta, "rope_theta", 10000, 1, 1e12, &rope->theta);
    if (err || rope->type == QN_ROPE_DEFAULT) return err;

    double partial;
    err = read_real(scaling, "partial_rotary_factor", 1, 0, 1, &partial);
    if (!err && partial != 1)
        return qn_fail(QN_ERR_UNSUPPORTED, "config.json: \"partial_rotary_factor\" %g is not supported", partial);
    const json_t *original = present(scaling, "original_max_position_embeddings") ? scaling : root;
    if (!err)
        err = read_count(original, "original_max_position_embeddings", config->max_positions, 1, QN_POSITIONS_MAX,
                         &rope->original_max_positions);
    if (err) return err;
    bool ratio_known = rope->type == QN_ROPE_YARN && rope->original_max_positions < config->max_positions;
    double ratio = (double)config->max_positions / rope->original_max_positions;
    err = read_real(scaling, "factor", ratio_known ? ratio : NAN, 1, 1e6, &rope->factor);
    if (!err && rope->type == QN_ROPE_LLAMA3) {
        err = read_real(scaling, "low_freq_factor", NAN, 1e-6, 1e6, &rope->low_freq_factor);
        if (!err) err = read_real(scaling, "high_freq_factor", NAN, 1e-6, 1e6, &rope->high_freq_factor);
        if (!err && rope->high_freq_factor <= rope->low_freq_factor)
            return qn_fail(QN_ERR_INVALID, "config.json: \"high_freq_factor\" must exceed \"low_freq_factor\"");
    }
    if (!err && rope->type == QN_ROPE_YARN) {
        err = read_yarn(scaling, rope);
        double stretched = rope->original_max_positions * rope->factor;
        if (!err && stretched > config->max_positions && stretched <= QN_POSITIONS_MAX)
            config->max_positions = (uint32_t)stretched;
    }
    return err;
}

static void llama3_frequencies(const qn_rope_config_t *rope, uint32_t pairs, uint32_t head_dim, float *ret)
{
    const double pi2 = 6.283185307179586476925;
    double context = rope->original_max_positions;
    for (uint32_t i = 0; i < pairs; i++) {
        double speed = pow(rope->theta, -2.0 * i / head_dim), wavelength = pi2 / speed;
        double smooth = (context / wavelength - rope->low_freq_factor)
            / (rope->high_freq_factor - rope->low_freq_factor);
        if (smooth < 0) smooth = 0;
        if (smooth > 1) smooth = 1;
        ret[i] = (float)((1 - smooth) * speed / rope->factor + smooth * speed);
    }
}

/* The pair index whose wave turns `rotations` times within the original context. */
static double yarn_dimension(const qn_rope_config_t *rope, uint32_t head_dim, double rotations)
{
    return head_dim * log(rope->original_max_positions / (rotations * 6.283185307179586476925))
        / (2 * log(rope->theta));
}

static void yarn_frequencies(const qn_rope_config_t *rope, uint32_t pairs, uint32_t head_dim, float *ret)
{
    double low = yarn_dimension(rope, head_dim, rope->beta_fast);
    double high = yarn_dimension(rope, head_dim, rope->beta_slow);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    if (low < 0) low = 0;
    if (high > head_dim - 1) high = head_dim - 1;
    if (low == high) high += 0.001;
    for (uint32_t i = 0; i < pairs; i++) {
        double speed = pow(rope->theta, -2.0 * i / head_dim);
        double ramp = (i - low) / (high - low);
        if (ramp < 0) ramp = 0;
        if (ramp > 1) ramp = 1;
        ret[i] = (float)(speed / rope->factor * ramp + speed * (1 - ramp));
    }
}

void qn_rope_frequencies(const qn_rope_config_t *rope, uint32_t head_dim, float *ret_frequencies)
{
    uint32_t pairs = head_dim / 2;
    switch (rope->type) {
    case QN_ROPE_LLAMA3: llama3_frequencies(rope, pairs, head_dim, ret_frequencies); return;
    case QN_ROPE_YARN: yarn_frequencies(rope, pairs, head_dim, ret_frequencies); return;
    case QN_ROPE_NONE:
    case QN_ROPE_LINEAR:
    case QN_ROPE_DYNAMIC:
    case QN_ROPE_DEFAULT: break;
    }
    double slow = rope->type == QN_ROPE_LINEAR ? rope->factor : 1;
    for (uint32_t i = 0; i < pairs; i++)
        ret_frequencies[i] = (float)(pow(rope->theta, -2.0 * i / head_dim) / slow);
}

/* ---- tokens that end a sequence ---- */

static qn_err_t add_eos(qn_model_config_t *config, const json_t *value, const char *file)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= config->vocab)
        return qn_fail(QN_ERR_INVALID, "%s: \"eos_token_id\" must be ids below vocab_size %u", file, config->vocab);
    uint32_t id = (uint32_t)json_integer_value(value);
    for (uint32_t i = 0; i < config->eos_count; i++)
        if (config->eos[i] == id) return QN_OK;
    if (config->eos_count == QN_STOP_IDS_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s: more than %d end tokens", file, QN_STOP_IDS_MAX);
    config->eos[config->eos_count++] = id;
    return QN_OK;
}

static qn_err_t read_eos(qn_model_config_t *config, const json_t *root, const char *file)
{
    const json_t *value = present(root, "eos_token_id");
    if (!value) return QN_OK;
    if (!json_is_array(value)) return add_eos(config, value, file);
    qn_err_t err = QN_OK;
    for (size_t i = 0; !err && i < json_array_size(value); i++) err = add_eos(config, json_array_get(value, i), file);
    return err;
}

static qn_err_t read_bos(qn_model_config_t *config, const json_t *root)
{
    config->bos = -1;
    if (!present(root, "bos_token_id")) return QN_OK;
    uint32_t bos;
    qn_err_t err = read_count(root, "bos_token_id", -1, 0, (int64_t)config->vocab - 1, &bos);
    if (!err) config->bos = (int32_t)bos;
    return err;
}

/* ---- the whole ---- */

static qn_err_t read_shape(const json_t *root, qn_model_config_t *config)
{
    qn_err_t err = read_count(root, "num_hidden_layers", -1, 1, QN_LAYERS_MAX, &config->layers);
    if (!err) err = read_count(root, "hidden_size", -1, 1, QN_WIDTH_MAX, &config->hidden);
    if (!err) err = read_count(root, "num_attention_heads", -1, 1, 4096, &config->heads);
    if (!err) err = read_count(root, "num_key_value_heads", config->heads, 1, 4096, &config->kv_heads);
    if (!err)
        err = read_count(root, "head_dim", config->hidden / config->heads, 2, QN_HEAD_DIM_MAX, &config->head_dim);
    if (!err) err = read_count(root, "intermediate_size", -1, 1, QN_WIDTH_MAX, &config->intermediate);
    if (!err) err = read_count(root, "vocab_size", -1, 1, QN_VOCAB_MAX, &config->vocab);
    if (!err) err = read_count(root, "max_position_embeddings", -1, 1, QN_POSITIONS_MAX, &config->max_positions);
    if (err) return err;
    if (config->heads % config->kv_heads)
        return qn_fail(QN_ERR_INVALID, "config.json: \"num_attention_heads\" %u is no multiple of "
                       "\"num_key_value_heads\" %u", config->heads, config->kv_heads);
    if (config->head_dim % 2)
        return qn_fail(QN_ERR_INVALID, "config.json: \"head_dim\" %u is odd; rope needs pairs", config->head_dim);
    double eps;
    err = read_real(root, "rms_norm_eps", 1e-6, 0, 1, &eps);
    if (!err) config->norm_eps = (float)eps;
    return err;
}

/* A checkpoint quantised by its maker computes something else from its tensors than what they say. */
static qn_err_t refuse_quantization(const json_t *root)
{
    const json_t *quantization = json_object_get(root, "quantization_config");
    if (!quantization || json_is_null(quantization)) return QN_OK;
    const char *method = json_string_value(json_object_get(quantization, "quant_method"));
    return qn_fail(QN_ERR_UNSUPPORTED,
                   "config.json: \"quantization_config\" (\"%.60s\") is not supported; use the unquantised checkpoint",
                   method ? method : "unnamed");
}

static qn_err_t read_features(const json_t *root, const architecture_row_t *row, qn_model_config_t *config)
{
    config->qk_norm = row->qk_norm;
    qn_err_t err = read_activation(root, &config->activation);
    if (!err) err = read_flag(root, "tie_word_embeddings", false, &config->tie_embeddings);
    if (!err) err = read_flag(root, "attention_bias", false, &config->qkv_bias);
    if (!err) err = read_flag(root, "mlp_bias", false, &config->mlp_bias);
    /* attention_bias covers the output projection too; Qwen2 has a fixed bias on q, k and v alone. */
    config->output_bias = config->qkv_bias && !row->qkv_bias_always;
    config->qkv_bias = config->qkv_bias || row->qkv_bias_always;
    return err;
}

/* layer_types names each layer when present; else Qwen's first max_window_layers see everything. */
static qn_err_t read_window(const json_t *root, const architecture_row_t *row, qn_model_config_t *config)
{
    bool use = true;
    uint32_t full_layers = 0;
    qn_err_t err = read_flag(root, "use_sliding_window", !row->window_needs_flag, &use);
    if (!err) err = read_count(root, "sliding_window", 0, 0, QN_POSITIONS_MAX, &config->sliding_window);
    if (!err && row->window_needs_flag)
        err = read_count(root, "max_window_layers", 0, 0, 1 << 20, &full_layers);
    if (err) return err;
    if (!use || row->architecture == QN_ARCHITECTURE_LLAMA) config->sliding_window = 0;
    const json_t *types = present(root, "layer_types");
    if (types && json_array_size(types) != config->layers)
        return qn_fail(QN_ERR_INVALID, "config.json: \"layer_types\" must name each of the %u layers", config->layers);
    for (uint32_t i = 0; i < config->layers; i++) {
        const char *type = types ? json_string_value(json_array_get(types, i)) : NULL;
        bool slides = types ? type && strcmp(type, "sliding_attention") == 0 : i >= full_layers;
        if (types && !slides && (!type || strcmp(type, "full_attention") != 0))
            return qn_fail(QN_ERR_UNSUPPORTED, "config.json: \"layer_types\" \"%.60s\" is not supported",
                           type ? type : "(not a string)");
        config->layer_slides[i] = config->sliding_window && slides;
    }
    return QN_OK;
}

static qn_err_t parse_root(const json_t *root, const json_t *generation, qn_model_config_t *config)
{
    const architecture_row_t *row = NULL;
    qn_err_t err = find_architecture(root, &row);
    if (err) return err;
    config->architecture = row->architecture;
    strncpy(config->architecture_name, row->name, sizeof config->architecture_name - 1);
    err = refuse_quantization(root);
    if (!err) err = read_shape(root, config);
    if (!err) err = read_features(root, row, config);
    if (!err) err = read_rope(root, config);
    if (!err) err = read_window(root, row, config);
    if (!err) err = read_eos(config, generation, "generation_config.json");
    if (!err) err = read_eos(config, root, "config.json");
    if (!err) err = read_bos(config, root);
    return err;
}

static qn_err_t load_object(const char *text, size_t bytes, const char *file, json_t **ret_root)
{
    json_error_t error;
    json_t *root = json_loadb(text, bytes, 0, &error);
    if (!root)
        return qn_fail(QN_ERR_INVALID, "%s: not JSON: %.200s (line %d)", file, error.text, error.line);
    if (!json_is_object(root)) {
        json_decref(root);
        return qn_fail(QN_ERR_INVALID, "%s: not a JSON object", file);
    }
    *ret_root = root;
    return QN_OK;
}

qn_err_t qn_model_config_parse(const char *config_text, size_t config_bytes, const char *generation_text,
                               size_t generation_bytes, qn_model_config_t *ret_config)
{
    json_t *root = NULL, *generation = NULL;
    qn_model_config_t config = { 0 };
    qn_err_t err = load_object(config_text, config_bytes, "config.json", &root);
    if (!err && generation_text)
        err = load_object(generation_text, generation_bytes, "generation_config.json", &generation);
    if (!err) err = parse_root(root, generation, &config);
    json_decref(root);
    json_decref(generation);
    if (!err) *ret_config = config;
    return err;
}

qn_err_t qn_model_kv_block_bytes(const qn_model_config_t *config, uint32_t block_tokens, uint32_t scalar_bytes,
                                 uint64_t *ret_bytes)
{
    uint64_t bytes = 2ull * config->layers;
    if (__builtin_mul_overflow(bytes, (uint64_t)block_tokens * config->kv_heads, &bytes)
        || __builtin_mul_overflow(bytes, (uint64_t)config->head_dim * scalar_bytes, &bytes))
        return qn_fail(QN_ERR_LIMIT, "a KV block of %u tokens is larger than 2^64 bytes", block_tokens);
    *ret_bytes = bytes;
    return QN_OK;
}
