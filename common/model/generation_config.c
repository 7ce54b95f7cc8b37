/* What is this?      The reader of the sampling defaults in generation_config.json.
 * State owned:       none.
 * Must never:        turn a value that it does not understand into a default.
 * Read next:         services/memory/handlers.c (sends them), services/frontend/request/generation_parse.c (applies them). */
#include "common/model/generation_config.h"

#include <math.h>

#include "common/limits.h"
#include "common/model/python_json.h"

/* Missing or null leaves *value. */
static qn_err_t read_real(const json_t *root, const char *key, double min, double max, float *value)
{
    const json_t *field = json_object_get(root, key);
    if (!field || json_is_null(field)) return QN_OK;
    double number = json_number_value(field);
    if (!json_is_number(field) || !(number >= min && number <= max))
        return qn_fail(QN_ERR_INVALID, "generation_config.json: \"%s\" must be a number from %g to %g", key, min, max);
    *value = (float)number;
    return QN_OK;
}

/* As read_real; numbers above `max` become it. -1 is how vLLM and SGLang say "no limit": 0 here. 50.0 is 50. */
static qn_err_t read_count(const json_t *root, const char *key, uint32_t max, uint32_t *value)
{
    const json_t *field = json_object_get(root, key);
    if (!field || json_is_null(field)) return QN_OK;
    double number = json_number_value(field);
    if (!json_is_number(field) || number != trunc(number) || number < -1)
        return qn_fail(QN_ERR_INVALID,
                       "generation_config.json: \"%s\" must be a whole number: 1 or more, or -1 or 0 for no limit",
                       key);
    *value = number < 0 ? 0 : number > max ? max : (uint32_t)number;
    return QN_OK;
}

static qn_err_t read_fields(const json_t *root, qn_generation_config_t *config)
{
    qn_err_t err = read_real(root, "temperature", 0, 100, &config->temperature);
    if (!err) err = read_real(root, "top_p", 0, 1, &config->top_p);
    if (!err) err = read_real(root, "min_p", 0, 1, &config->min_p);
    if (!err) err = read_real(root, "repetition_penalty", 0.01, 100, &config->repetition_penalty);
    if (!err) err = read_count(root, "top_k", QN_VOCAB_MAX, &config->top_k);
    if (!err) err = read_count(root, "max_new_tokens", QN_PROMPT_TOKENS_MAX, &config->max_tokens);
    if (config->top_k == QN_VOCAB_MAX) config->top_k = 0; /* all */
    return err;
}

qn_err_t qn_generation_config_parse(const char *text, size_t bytes, qn_generation_config_t *ret_config)
{
    qn_generation_config_t config = QN_GENERATION_CONFIG_NEUTRAL;
    if (text) {
        json_error_t error;
        json_t *root = qn_python_json_load(text, bytes, &error);
        qn_err_t err = QN_OK;
        if (!root)
            err = qn_fail(QN_ERR_INVALID, "generation_config.json: not JSON: %.200s (line %d)", error.text, error.line);
        else if (!json_is_object(root))
            err = qn_fail(QN_ERR_INVALID, "generation_config.json: not a JSON object");
        else
            err = read_fields(root, &config);
        json_decref(root);
        if (err) return err;
    }
    *ret_config = config;
    return QN_OK;
}
