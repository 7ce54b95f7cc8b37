/* What is this?      Typed, bounded access to the values of config.json.
 * State owned:       none.
 * Must never:        hand out a number of the file that was not checked against its bounds.
 * Read next:         model_config.c. */
#include <math.h>

#include "common/model/model_config_internal.h"

const json_t *qn_model_config_value(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

bool qn_model_config_whole(const json_t *value, int64_t *ret_number)
{
    double real = json_real_value(value);
    if (json_is_integer(value))
        *ret_number = json_integer_value(value);
    else if (json_is_real(value) && real == trunc(real) && fabs(real) < 0x1p63)
        *ret_number = (int64_t)real;
    else
        return false;
    return true;
}

qn_err_t qn_model_config_count(const json_t *object, const char *key, int64_t fallback, int64_t min, int64_t max,
                               uint32_t *ret_value)
{
    const json_t *value = qn_model_config_value(object, key);
    int64_t number = fallback;
    if (!value && fallback < 0)
        return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" is missing; this architecture needs it", key);
    if (value && !qn_model_config_whole(value, &number))
        return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" must be a whole number from %lld to %lld", key,
                       (long long)min, (long long)max);
    if (number < min || number > max)
        return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" is %lld, allowed are %lld to %lld", key, (long long)number,
                       (long long)min, (long long)max);
    *ret_value = (uint32_t)number;
    return QN_OK;
}

qn_err_t qn_model_config_real(const json_t *object, const char *key, double fallback, double min, double max,
                              double *ret_value)
{
    const json_t *value = qn_model_config_value(object, key);
    if (value && !json_is_number(value)) return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" must be a number", key);
    double number = value ? json_number_value(value) : fallback;
    if (isnan(number)) return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" is missing; this model needs it", key);
    if (!(number >= min && number <= max))
        return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" is %g, allowed are %g to %g", key, number, min, max);
    *ret_value = number;
    return QN_OK;
}

qn_err_t qn_model_config_flag(const json_t *object, const char *key, bool fallback, bool *ret_value)
{
    const json_t *value = qn_model_config_value(object, key);
    int64_t number = fallback;
    bool good = !value || json_is_boolean(value) || qn_model_config_whole(value, &number);
    if (!good || number < 0 || number > 1)
        return qn_fail(QN_ERR_INVALID, "config.json: \"%s\" must be true or false", key);
    *ret_value = json_is_boolean(value) ? json_is_true(value) : number;
    return QN_OK;
}
