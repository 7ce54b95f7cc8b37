/* What is this?      The parser of sparsity masks.
 * State owned:       none.
 * Must never:        take a member that it does nothing with.
 * Read next:         mask_parse.h, kernels/kernels.h (what each rule means). */
#include "services/frontend/request/mask_parse.h"

#include <stdio.h>
#include <string.h>

#include "common/config/suggest.h"
#include "common/limits.h"
#include "services/frontend/request/json_fields.h"

#define SPANS_MAX QN_MASKS_MAX

typedef struct {
    uint16_t from, to;
} span_t;

/* One object, as it stands. */
typedef struct {
    uint32_t k, window, sinks;
    float threshold, ratio;
    bool k_given, window_given, sinks_given, threshold_given, ratio_given;
    const char *method; /* NULL: none */
    span_t layers[SPANS_MAX], heads[SPANS_MAX];
    uint32_t layer_spans, head_spans;
} mask_object_t;

typedef struct {
    const char *prefix;
    uint32_t layers, heads;
    const char *const *ignored;
    http_error_t *error;
} parser_t;

#define AT(member) offsetof(mask_object_t, member)
static const json_field_t fields[] = {
    {"k", JSON_FIELD_UNSIGNED, AT(k), 1, QN_PROMPT_TOKENS_MAX, AT(k_given)},
    {"window", JSON_FIELD_UNSIGNED, AT(window), 1, QN_PROMPT_TOKENS_MAX, AT(window_given)},
    {"sinks", JSON_FIELD_UNSIGNED, AT(sinks), 0, QN_PROMPT_TOKENS_MAX, AT(sinks_given)},
    {"threshold", JSON_FIELD_FLOAT, AT(threshold), 0, 1, AT(threshold_given)},
    {"sparsity_ratio", JSON_FIELD_FLOAT, AT(ratio), 0, 1, AT(ratio_given)},
};
#define FIELD_COUNT (sizeof fields / sizeof fields[0])
static const char *const by_hand[] = {"method", "mask_pattern", "layers", "heads"};
static const char *const methods[] = {"top_k", "threshold", "window", "sink_window", "block_top_k"};
#define METHOD_COUNT (sizeof methods / sizeof methods[0])

static bool refuse(const parser_t *parser, const char *name, const char *why)
{
    char param[80];
    snprintf(param, sizeof param, "%s%s", parser->prefix, name);
    http_error_set(parser->error, 400, param, "%s: %s", param, why);
    return false;
}

static bool is_one_of(const char *name, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0) return true;
    return false;
}

static bool check_names(const parser_t *parser, const json_t *object)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, name, value)
    {
        bool known = json_fields_name(fields, FIELD_COUNT, name) || is_one_of(name, by_hand, 4);
        for (size_t i = 0; parser->ignored && parser->ignored[i]; i++)
            known = known || strcmp(parser->ignored[i], name) == 0;
        if (!known)
            return refuse(
                parser, name,
                "no member of a mask; there are method, k, threshold, sparsity_ratio, window, sinks, layers and "
                "heads");
    }
    return true;
}

static bool read_method(const parser_t *parser, const json_t *object, const char *name, mask_object_t *mask)
{
    const json_t *value = json_object_get(object, name);
    if (!value || json_is_null(value)) return true;
    if (!json_is_string(value) || !is_one_of(json_string_value(value), methods, METHOD_COUNT))
        return refuse(parser, name, "it is top_k, threshold, window, sink_window or block_top_k");
    if (mask->method && strcmp(mask->method, json_string_value(value)) != 0)
        return refuse(parser, name, "method and mask_pattern are the same member and say different things");
    mask->method = json_string_value(value);
    return true;
}

/* A number or a list of numbers, as spans of neighbours. */
static bool read_spans(const parser_t *parser, const json_t *object, const char *name, uint32_t limit, span_t *spans,
                       uint32_t *ret_count)
{
    const json_t *value = json_object_get(object, name);
    size_t count = json_is_array(value) ? json_array_size(value) : 1;
    char why[96];
    *ret_count = 1;
    spans[0] = (span_t){0, 0}; /* all */
    if (!value || json_is_null(value)) return true;
    *ret_count = 0;
    if (count == 0) return refuse(parser, name, "an empty list is no part of the model; leave it out for all of it");
    for (size_t i = 0; i < count; i++) {
        const json_t *each = json_is_array(value) ? json_array_get(value, i) : value;
        int64_t number;
        if (!json_fields_integer(each, name, 0, UINT16_MAX - 1, &number, parser->error)) return false;
        if (limit && number >= limit) {
            snprintf(why, sizeof why, "there is no %lld; the model has %u, from 0", (long long)number, limit);
            return refuse(parser, name, why);
        }
        if (*ret_count && spans[*ret_count - 1].to == number) {
            spans[*ret_count - 1].to++;
            continue;
        }
        if (*ret_count == SPANS_MAX) return refuse(parser, name, "too many pieces; ask for fewer, or for neighbours");
        spans[(*ret_count)++] = (span_t){(uint16_t)number, (uint16_t)(number + 1)};
    }
    return true;
}

static bool add_rule(const parser_t *parser, const mask_object_t *mask, qn_mask_rule_t rule, mask_list_t *list)
{
    for (uint32_t l = 0; l < mask->layer_spans; l++)
        for (uint32_t h = 0; h < mask->head_spans; h++) {
            if (list->count == QN_MASKS_MAX)
                return refuse(parser, "layers", "layers, heads and rules together make more than 64 parts");
            rule.layer_from = mask->layers[l].from;
            rule.layer_to = mask->layers[l].to;
            rule.head_from = mask->heads[h].from;
            rule.head_to = mask->heads[h].to;
            list->rules[list->count++] = rule;
        }
    return true;
}

/* What a method cannot do without. */
static bool check_method(const parser_t *parser, const mask_object_t *mask)
{
    const char *method = mask->method ? mask->method : "";
    bool windows = strcmp(method, "window") == 0 || strcmp(method, "sink_window") == 0;
    if (strcmp(method, "top_k") == 0 && !mask->k_given && !mask->ratio_given)
        return refuse(parser, "k", "top_k needs k, or a sparsity_ratio");
    if (strcmp(method, "block_top_k") == 0 && !mask->k_given)
        return refuse(parser, "k", "block_top_k needs k, of blocks");
    if (strcmp(method, "threshold") == 0 && !mask->threshold_given)
        return refuse(parser, "threshold", "the method threshold needs one");
    if (windows && !mask->window_given) return refuse(parser, "window", "this method needs a window");
    if (mask->window_given && mask->method && !windows)
        return refuse(parser, "window", "this method has no window; give a list of two masks for both");
    if (mask->k_given && (windows || strcmp(method, "threshold") == 0))
        return refuse(parser, "k", "this method has no k; give a list of two masks for both");
    if (mask->sinks_given && !mask->window_given) return refuse(parser, "sinks", "sinks are beside a window");
    if (mask->sinks_given && strcmp(method, "window") == 0)
        return refuse(parser, "sinks", "window has no sinks; use sink_window");
    if (!mask->method && !mask->k_given && !mask->window_given && !mask->threshold_given && !mask->ratio_given)
        return refuse(parser, "method", "a mask names a method, or at least k, window, threshold or sparsity_ratio");
    return true;
}

static bool add_rules(const parser_t *parser, const mask_object_t *mask, mask_list_t *list)
{
    bool blocks = mask->method && strcmp(mask->method, "block_top_k") == 0;
    bool sinks = mask->sinks_given || (mask->method && strcmp(mask->method, "sink_window") == 0);
    const qn_mask_rule_t top = {.kind = blocks ? QN_MASK_RULE_KIND_BLOCK_TOP_K : QN_MASK_RULE_KIND_TOP_K, .k = mask->k};
    const qn_mask_rule_t window = {.kind = sinks ? QN_MASK_RULE_KIND_SINK_WINDOW : QN_MASK_RULE_KIND_WINDOW,
                                   .window = mask->window,
                                   .sinks = sinks ? mask->sinks : 0};
    const qn_mask_rule_t threshold = {.kind = QN_MASK_RULE_KIND_THRESHOLD, .value = mask->threshold};
    const qn_mask_rule_t ratio = {.kind = QN_MASK_RULE_KIND_RATIO, .value = mask->ratio};
    return (!mask->k_given || add_rule(parser, mask, top, list)) &&
           (!mask->window_given || add_rule(parser, mask, window, list)) &&
           (!mask->threshold_given || add_rule(parser, mask, threshold, list)) &&
           (!mask->ratio_given || add_rule(parser, mask, ratio, list));
}

static bool parse_object(const parser_t *parser, const json_t *object, mask_list_t *list)
{
    mask_object_t mask = {.sinks = MASK_SINKS_DEFAULT};
    if (!json_is_object(object)) return refuse(parser, "method", "a mask is an object, or a list of objects");
    return check_names(parser, object) &&
           json_fields_read(object, parser->prefix, fields, FIELD_COUNT, &mask, parser->error) &&
           read_method(parser, object, "method", &mask) && read_method(parser, object, "mask_pattern", &mask) &&
           read_spans(parser, object, "layers", parser->layers, mask.layers, &mask.layer_spans) &&
           read_spans(parser, object, "heads", parser->heads, mask.heads, &mask.head_spans) &&
           check_method(parser, &mask) && add_rules(parser, &mask, list);
}

bool mask_parse(const json_t *value, const char *prefix, uint32_t layers, uint32_t heads, const char *const *ignored,
                mask_list_t *ret_list, http_error_t *ret_error)
{
    const parser_t parser = {prefix, layers, heads, ignored, ret_error};
    ret_list->count = 0;
    if (!json_is_array(value)) return parse_object(&parser, value, ret_list);
    for (size_t i = 0; i < json_array_size(value); i++)
        if (!parse_object(&parser, json_array_get(value, i), ret_list)) return false;
    return true;
}
