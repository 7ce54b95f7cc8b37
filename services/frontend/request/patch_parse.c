/* What is this?      The parser of points and patches.
 * State owned:       none.
 * Must never:        take a member that it does nothing with.
 * Read next:         patch_parse.h, common/probe/probe.h (whether they suit the model). */
#include "services/frontend/request/patch_parse.h"

#include <stdlib.h>
#include <string.h>

#include "common/limits.h"

/* ---- points ---- */

static const struct {
    const char *name;
    qn_tap_site_t site;
} SITES[] = {{"embed", QN_TAP_SITE_EMBED},   {"attn.q", QN_TAP_SITE_ATTN_Q},     {"attn.k", QN_TAP_SITE_ATTN_K},
             {"attn.v", QN_TAP_SITE_ATTN_V}, {"attn.out", QN_TAP_SITE_ATTN_OUT}, {"mlp.out", QN_TAP_SITE_MLP_OUT},
             {"resid", QN_TAP_SITE_RESID},   {"norm", QN_TAP_SITE_NORM},         {"logits", QN_TAP_SITE_LOGITS}};

static bool find_site(const char *name, bool of_layer, qn_tap_site_t *ret_site)
{
    for (size_t i = 0; i < sizeof SITES / sizeof *SITES; i++)
        if (strcmp(SITES[i].name, name) == 0 && qn_probe_site_is_of_layer(SITES[i].site) == of_layer) {
            *ret_site = SITES[i].site;
            return true;
        }
    return false;
}

/* "layer.5.attn.q" or "layer.*.attn.q": the layers, and what follows; NULL: neither. */
static const char *split_layer(const char *name, uint32_t layers, uint32_t *ret_from, uint32_t *ret_to)
{
    const char *number = name + strlen("layer."), *dot = strchr(number, '.');
    char *end = NULL;
    if (!dot) return NULL;
    *ret_from = 0;
    *ret_to = layers;
    if (dot == number + 1 && *number == '*') return dot + 1;
    unsigned long layer = *number >= '0' && *number <= '9' ? strtoul(number, &end, 10) : 0;
    if (end != dot || layer >= QN_LAYERS_MAX) return NULL;
    *ret_from = (uint32_t)layer;
    *ret_to = *ret_from + 1;
    return dot + 1;
}

bool point_parse(const char *name, uint32_t layers, const qn_tap_point_t *like, const char *param, patch_list_t *list,
                 http_error_t *ret_error)
{
    uint32_t from = 0, to = 1;
    qn_tap_site_t site;
    bool of_layer = strncmp(name, "layer.", strlen("layer.")) == 0;
    const char *site_name = of_layer ? split_layer(name, layers, &from, &to) : name;
    if (!site_name || !find_site(site_name, of_layer, &site)) {
        http_error_set(
            ret_error, 400, param,
            "%s: \"%.64s\" is no point; there are embed, norm, logits, and layer.N. (or layer.*.) with attn.q, "
            "attn.k, attn.v, attn.out, mlp.out, resid",
            param, name);
        return false;
    }
    if (of_layer && layers == 0 && from == to) {
        http_error_set(ret_error, 503, param, "%s: the model is not known yet; try again", param);
        return false;
    }
    if (of_layer && layers && to > layers) {
        http_error_set(ret_error, 400, param, "%s: \"%.64s\": the model has %u layers, from 0", param, name, layers);
        return false;
    }
    for (uint32_t layer = from; layer < to; layer++) {
        if (list->point_count == list->points_max) {
            http_error_set(ret_error, 400, param, "%s: more than %u points", param, list->points_max);
            return false;
        }
        qn_tap_point_t *point = &list->points[list->point_count++];
        *point = *like;
        point->site = site;
        point->layer = (uint16_t)layer;
    }
    return true;
}

/* ---- patches ---- */

static bool refuse(http_error_t *error, const char *param, const char *why)
{
    http_error_set(error, 400, param, "%s: %s", param, why);
    return false;
}

static bool check_members(const json_t *patch, http_error_t *error)
{
    static const char *const known[] = {"point", "action", "values", "scale", "positions"};
    const char *name;
    json_t *member;
    json_object_foreach((json_t *)(uintptr_t)patch, name, member)
    {
        size_t i = 0;
        while (i < 5 && strcmp(known[i], name) != 0)
            i++;
        if (i < 5) continue;
        http_error_set(error, 400, "patches",
                       "patches: \"%.64s\" is no member; there are point, action, values, scale, "
                       "positions",
                       name);
        return false;
    }
    return true;
}

static bool add_numbers(const json_t *value, patch_list_t *list, http_error_t *error)
{
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *each = json_array_get(value, i);
        if (json_is_array(each)) {
            if (!add_numbers(each, list, error)) return false;
        } else if (json_is_number(each) && list->value_count < QN_TAP_VALUES_MAX) {
            list->values[list->value_count++] = (float)json_number_value(each);
        } else {
            http_error_set(error, 400, "patches.values", "patches.values: numbers, or lists of them, %d at most in all",
                           QN_TAP_VALUES_MAX);
            return false;
        }
    }
    return true;
}

static bool read_positions(const json_t *value, uint32_t end, qn_tap_point_t *point, http_error_t *error)
{
    const json_t *from = json_array_get(value, 0), *to = json_array_get(value, 1);
    point->position_to = end;
    if (!value || json_is_null(value)) return true;
    if (json_array_size(value) != 2 || !json_is_integer(from) || !json_is_integer(to) || json_integer_value(from) < 0 ||
        json_integer_value(from) >= json_integer_value(to) || json_integer_value(to) > end) {
        http_error_set(error, 400, "patches.positions", "patches.positions: [from, to) with 0 <= from < to <= %u", end);
        return false;
    }
    point->position_from = (uint32_t)json_integer_value(from);
    point->position_to = (uint32_t)json_integer_value(to);
    return true;
}

static bool parse_patch(const json_t *patch, uint32_t layers, uint32_t position_end, patch_list_t *list,
                        http_error_t *error)
{
    const char *name = json_string_value(json_object_get(patch, "point"));
    const json_t *action = json_object_get(patch, "action"), *scale = json_object_get(patch, "scale");
    const char *word = action && !json_is_null(action) ? json_string_value(action) : "add";
    qn_tap_point_t point = {.value_offset = list->value_count, .scale = 1};
    if (!json_is_object(patch)) return refuse(error, "patches", "a list of {point, action, values, scale, positions}");
    if (!check_members(patch, error)) return false;
    if (!name) return refuse(error, "patches.point", "a patch has a point, such as \"layer.0.resid\"");
    if (!word || (strcmp(word, "add") != 0 && strcmp(word, "replace") != 0))
        return refuse(error, "patches.action", "add or replace");
    if (scale && !json_is_null(scale) && !json_is_number(scale)) return refuse(error, "patches.scale", "a number");
    if (!json_is_array(json_object_get(patch, "values"))) return refuse(error, "patches.values", "a list of numbers");
    point.action = strcmp(word, "add") == 0 ? QN_TAP_ACTION_ADD : QN_TAP_ACTION_REPLACE;
    if (json_is_number(scale)) point.scale = (float)json_number_value(scale);
    if (!read_positions(json_object_get(patch, "positions"), position_end, &point, error) ||
        !add_numbers(json_object_get(patch, "values"), list, error))
        return false;
    point.value_count = list->value_count - point.value_offset;
    return point_parse(name, layers, &point, "patches.point", list, error);
}

bool patches_parse(const json_t *value, uint32_t layers, uint32_t position_end, patch_list_t *list,
                   http_error_t *ret_error)
{
    if (!json_is_array(value))
        return refuse(ret_error, "patches", "a list of {point, action, values, scale, positions}");
    for (size_t i = 0; i < json_array_size(value); i++)
        if (!parse_patch(json_array_get(value, i), layers, position_end, list, ret_error)) return false;
    return true;
}
