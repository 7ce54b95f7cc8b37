/* What is this?      The rope of config.json, and the mathematics of its scalings (transformers' modeling_rope_utils).
 * State owned:       none.
 * Must never:        take one scaling for another: an unknown one is refused.
 * Read next:         kernels/cpu/rope.c, which turns frequencies into angles and does dynamic scaling. */
#include <math.h>
#include <string.h>

#include "common/model/model_config_internal.h"

#define TURN 6.283185307179586476925 /* 2 pi */

/* ---- reading ---- */

/* transformers' yarn: how strongly attention is sharpened for a stretch of `factor`. */
static double yarn_mscale(double factor, double mscale) { return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1; }

static qn_err_t read_yarn(const json_t *scaling, qn_rope_config_t *rope)
{
    double mscale, mscale_all;
    qn_err_t err = qn_model_config_real(scaling, "beta_fast", 32, 1e-6, 1e9, &rope->beta_fast);
    if (!err) err = qn_model_config_real(scaling, "beta_slow", 1, 1e-6, 1e9, &rope->beta_slow);
    if (!err) err = qn_model_config_flag(scaling, "truncate", true, &rope->truncate);
    if (!err) err = qn_model_config_real(scaling, "mscale", 0, 0, 1e3, &mscale);
    if (!err) err = qn_model_config_real(scaling, "mscale_all_dim", 0, 0, 1e3, &mscale_all);
    if (err) return err;
    double standard = mscale > 0 && mscale_all > 0
                          ? yarn_mscale(rope->factor, mscale) / yarn_mscale(rope->factor, mscale_all)
                          : yarn_mscale(rope->factor, 1);
    return qn_model_config_real(scaling, "attention_factor", standard, 1e-3, 1e3, &rope->attention_factor);
}

static qn_err_t read_llama3(const json_t *scaling, qn_rope_config_t *rope)
{
    qn_err_t err = qn_model_config_real(scaling, "low_freq_factor", NAN, 1e-6, 1e6, &rope->low_freq_factor);
    if (!err) err = qn_model_config_real(scaling, "high_freq_factor", NAN, 1e-6, 1e6, &rope->high_freq_factor);
    if (!err && rope->high_freq_factor <= rope->low_freq_factor)
        return qn_fail(QN_ERR_INVALID, "config.json: \"high_freq_factor\" must exceed \"low_freq_factor\"");
    return err;
}

static qn_err_t read_type(const json_t *scaling, qn_rope_type_t *ret_type)
{
    static const struct {
        const char *name;
        qn_rope_type_t type;
    } NAMES[] = {
        {"default", QN_ROPE_DEFAULT}, {"linear", QN_ROPE_LINEAR}, {"dynamic", QN_ROPE_DYNAMIC},
        {"llama3", QN_ROPE_LLAMA3},   {"yarn", QN_ROPE_YARN},
    };
    const json_t *value = qn_model_config_value(scaling, "rope_type");
    if (!value) value = qn_model_config_value(scaling, "type");
    const char *name = value ? json_string_value(value) : "default";
    for (size_t i = 0; name && i < sizeof NAMES / sizeof NAMES[0]; i++)
        if (strcmp(NAMES[i].name, name) == 0) {
            *ret_type = NAMES[i].type;
            return QN_OK;
        }
    return qn_fail(QN_ERR_UNSUPPORTED,
                   "config.json: rope type \"%.60s\" is not supported; supported are default, linear, dynamic, "
                   "llama3, yarn",
                   name ? name : "(not a string)");
}

/* Old style: rope_theta at the top and an optional rope_scaling, which wins as in transformers. New style: everything
 * in rope_parameters. NULL: neither. */
static qn_err_t find_scaling(const json_t *root, const json_t **ret_scaling)
{
    static const char *const KEYS[] = {"rope_scaling", "rope_parameters"};
    *ret_scaling = NULL;
    for (size_t i = 0; i < 2; i++) {
        const json_t *scaling = qn_model_config_value(root, KEYS[i]);
        if (scaling && !json_is_object(scaling))
            return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" must be an object", KEYS[i]);
        if (scaling && json_object_size(scaling) && !*ret_scaling) *ret_scaling = scaling;
    }
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)*ret_scaling, key, value) if (json_is_object(value)) return qn_fail(
        QN_ERR_UNSUPPORTED,
        "config.json: a rope of its own for layers of type \"%.60s\" is not "
        "supported",
        key);
    return QN_OK;
}

static qn_err_t refuse_partial(const json_t *object)
{
    double partial;
    qn_err_t err = qn_model_config_real(object, "partial_rotary_factor", 1, 0, 1, &partial);
    if (!err && partial != 1)
        return qn_fail(QN_ERR_UNSUPPORTED, "config.json: \"partial_rotary_factor\" %g is not supported", partial);
    return err;
}

/* The length the model was trained at: as transformers, a value at the top wins over the one in `scaling`. */
static qn_err_t read_original(const json_t *root, const json_t *scaling, uint32_t fallback, uint32_t *ret_original)
{
    const char *const key = "original_max_position_embeddings";
    const json_t *object = qn_model_config_value(root, key) ? root : scaling;
    return qn_model_config_count(object, key, fallback, 1, QN_POSITIONS_MAX, ret_original);
}

static void stretch(qn_model_config_t *config, uint32_t original, double factor)
{
    double stretched = original * factor;
    if (stretched > QN_POSITIONS_MAX) stretched = QN_POSITIONS_MAX;
    if (stretched > config->max_positions) config->max_positions = (uint32_t)stretched;
}

static qn_err_t read_scaled(const json_t *root, const json_t *scaling, qn_model_config_t *config)
{
    qn_rope_config_t *rope = &config->rope;
    uint32_t original;
    qn_err_t err = read_original(root, scaling, config->max_positions, &original);
    if (err) return err;
    if (rope->type == QN_ROPE_DYNAMIC) original = config->max_positions;
    bool ratio_known = rope->type == QN_ROPE_YARN && original < config->max_positions;
    double ratio = (double)config->max_positions / original;
    err = qn_model_config_real(scaling, "factor", ratio_known ? ratio : NAN, 1, 1e6, &rope->factor);
    if (err) return err;
    if (rope->type != QN_ROPE_LINEAR) rope->original_max_positions = original;
    if (rope->type == QN_ROPE_LLAMA3) return read_llama3(scaling, rope);
    if (rope->type == QN_ROPE_DYNAMIC && config->head_dim <= 2)
        return qn_fail(QN_ERR_INVALID, "config.json: a dynamic rope needs a \"head_dim\" above 2");
    if (rope->type == QN_ROPE_YARN) err = read_yarn(scaling, rope);
    if (!err) stretch(config, original, rope->factor);
    return err;
}

qn_err_t qn_model_config_rope(const json_t *root, double theta, qn_model_config_t *config)
{
    qn_rope_config_t *rope = &config->rope;
    const json_t *scaling;
    *rope = (qn_rope_config_t){.factor = 1, .attention_factor = 1, .truncate = true};
    qn_err_t err = find_scaling(root, &scaling);
    if (!err) err = read_type(scaling, &rope->type);
    if (!err) err = refuse_partial(root);
    if (!err) err = refuse_partial(scaling);
    const json_t *from = qn_model_config_value(scaling, "rope_theta") ? scaling : root;
    /* Above 1: yarn divides by its logarithm. */
    if (!err) err = qn_model_config_real(from, "rope_theta", theta, 1.001, 1e12, &rope->theta);
    if (err || rope->type == QN_ROPE_DEFAULT) return err;
    return read_scaled(root, scaling, config);
}

/* ---- frequencies ---- */

static void llama3_frequencies(const qn_rope_config_t *rope, uint32_t pairs, uint32_t head_dim, float *ret)
{
    double context = rope->original_max_positions;
    for (uint32_t i = 0; i < pairs; i++) {
        double speed = pow(rope->theta, -2.0 * i / head_dim), wavelength = TURN / speed;
        double smooth =
            (context / wavelength - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
        if (smooth < 0) smooth = 0;
        if (smooth > 1) smooth = 1;
        ret[i] = (float)((1 - smooth) * speed / rope->factor + smooth * speed);
    }
}

/* The pair index whose wave turns `rotations` times within the original context. */
static double yarn_dimension(const qn_rope_config_t *rope, uint32_t head_dim, double rotations)
{
    return head_dim * log(rope->original_max_positions / (rotations * TURN)) / (2 * log(rope->theta));
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
    if (rope->type == QN_ROPE_LLAMA3) {
        llama3_frequencies(rope, pairs, head_dim, ret_frequencies);
        return;
    }
    if (rope->type == QN_ROPE_YARN) {
        yarn_frequencies(rope, pairs, head_dim, ret_frequencies);
        return;
    }
    double slow = rope->type == QN_ROPE_LINEAR ? rope->factor : 1;
    for (uint32_t i = 0; i < pairs; i++)
        ret_frequencies[i] = rope->type == QN_ROPE_NONE ? 0 : (float)(pow(rope->theta, -2.0 * i / head_dim) / slow);
}
