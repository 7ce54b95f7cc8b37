/* What is this?      The tokens that begin and end a sequence, of config.json and generation_config.json.
 * State owned:       none.
 * Must never:        refuse a model for an id that nothing can sample.
 * Read next:         model_config.c. */
#include <inttypes.h>

#include "common/model/model_config_internal.h"

static qn_err_t add_eos(const json_t *value, const char *file, qn_model_config_t *config, qn_model_warnings_t *warnings)
{
    int64_t id;
    if (json_is_null(value)) return QN_OK;
    if (!qn_model_config_whole(value, &id))
        return qn_fail(QN_ERR_INVALID, "%s: \"eos_token_id\" must be a token id or a list of them", file);
    if (id < 0 || id >= config->vocab) {
        qn_model_warn(warnings,
                      "%s: \"eos_token_id\" %" PRId64 " is not below vocab_size %" PRIu32
                      " and can never be sampled: it is left out",
                      file, id, config->vocab);
        return QN_OK;
    }
    for (uint32_t i = 0; i < config->eos_count; i++)
        if (config->eos[i] == id) return QN_OK;
    if (config->eos_count == QN_STOP_IDS_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s: more than %d end tokens", file, QN_STOP_IDS_MAX);
    config->eos[config->eos_count++] = (uint32_t)id;
    return QN_OK;
}

qn_err_t qn_model_config_eos(const json_t *object, const char *file, qn_model_config_t *config,
                             qn_model_warnings_t *warnings)
{
    const json_t *value = qn_model_config_value(object, "eos_token_id");
    if (!value) return QN_OK;
    if (!json_is_array(value)) return add_eos(value, file, config, warnings);
    qn_err_t err = QN_OK;
    for (size_t i = 0; !err && i < json_array_size(value); i++)
        err = add_eos(json_array_get(value, i), file, config, warnings);
    return err;
}

qn_err_t qn_model_config_bos(const json_t *root, qn_model_config_t *config, qn_model_warnings_t *warnings)
{
    const json_t *value = qn_model_config_value(root, "bos_token_id");
    int64_t id;
    config->bos = -1;
    if (!value) return QN_OK;
    if (!qn_model_config_whole(value, &id))
        return qn_fail(QN_ERR_INVALID, "config.json: \"bos_token_id\" must be a token id");
    if (id >= 0 && id < config->vocab)
        config->bos = (int32_t)id;
    else
        qn_model_warn(warnings,
                      "config.json: \"bos_token_id\" %" PRId64 " is not below vocab_size %" PRIu32
                      ": the model has none",
                      id, config->vocab);
    return QN_OK;
}
