/* The inside of model_config: typed access to config.json, and the part that reads the rope. */
#ifndef QN_COMMON_MODEL_CONFIG_INTERNAL_H
#define QN_COMMON_MODEL_CONFIG_INTERNAL_H

#include <jansson.h>

#include "common/model/model_config.h"

/* The value of `key`; NULL when it is absent or null. */
const json_t *qn_model_config_value(const json_t *object, const char *key);

/* Each reads one value: `fallback` when it is absent or null, else QN_ERR_INVALID naming the key when it has the wrong
 * type or lies outside min .. max. A negative (count) or NAN (real) fallback: the key must be there. */
qn_err_t qn_model_config_count(const json_t *object, const char *key, int64_t fallback, int64_t min, int64_t max,
                               uint32_t *ret_value);
qn_err_t qn_model_config_real(const json_t *object, const char *key, double fallback, double min, double max,
                              double *ret_value);
qn_err_t qn_model_config_flag(const json_t *object, const char *key, bool fallback, bool *ret_value);

/* Fills config->rope and stretches config->max_positions (model_config.h says when); head_dim and max_positions must be
 * set. `theta` is used where the file names none. */
qn_err_t qn_model_config_rope(const json_t *root, double theta, qn_model_config_t *config);

#endif
