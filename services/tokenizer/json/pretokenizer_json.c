/* What is this?      Pre-tokenizers from JSON.
 * State owned:       none.
 * Must never:        use a hand-written scanner for an expression whose text is not exactly the known one.
 * Read next:         pretokenizer.h, scanner.h. */
#include <stdio.h>

#include "services/tokenizer/json/component_json.h"

#define WHERE_BYTES 160

static qn_err_t add_step(const char *where, pretokenizer_t *pretokenizer, pretokenizer_kind_t kind,
                         pretokenizer_step_t **ret)
{
    if (pretokenizer->count == PRETOKENIZER_STEPS_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s: more than %d pre-tokenizers", where, PRETOKENIZER_STEPS_MAX);
    *ret = &pretokenizer->steps[pretokenizer->count++];
    **ret = (pretokenizer_step_t){.kind = kind};
    return QN_OK;
}

static qn_err_t add_class_split(const char *where, pretokenizer_t *pretokenizer, unsigned mask,
                                pretokenizer_behavior_t behavior)
{
    pretokenizer_step_t *step = NULL;
    qn_err_t err = add_step(where, pretokenizer, PRETOKENIZER_SPLIT, &step);
    if (err) return err;
    step->find = PRETOKENIZER_FIND_CLASS;
    step->mask = mask;
    step->with_ascii_punctuation = mask == UNICODE_PUNCTUATION;
    step->behavior = behavior;
    return QN_OK;
}

static qn_err_t load_behavior(const json_t *json, const char *where, bool is_optional, pretokenizer_behavior_t *ret)
{
    static const char *const names[] = {
        [PRETOKENIZER_REMOVED] = "Removed",
        [PRETOKENIZER_ISOLATED] = "Isolated",
        [PRETOKENIZER_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [PRETOKENIZER_MERGED_WITH_NEXT] = "MergedWithNext",
        [PRETOKENIZER_CONTIGUOUS] = "Contiguous",
    };
    const json_t *value = json_object_get(json, "behavior");
    if (!value && is_optional) {
        *ret = PRETOKENIZER_ISOLATED;
        return QN_OK;
    }
    const char *name = json_string_value(value);
    for (size_t i = 0; name && i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *ret = (pretokenizer_behavior_t)i;
        return QN_OK;
    }
    return qn_fail(QN_ERR_INVALID,
                   "%s.behavior: must be Removed, Isolated, MergedWithPrevious, MergedWithNext "
                   "or Contiguous",
                   where);
}

static qn_err_t load_split(const json_t *json, const char *where, pretokenizer_t *pretokenizer)
{
    pretokenizer_step_t *step = NULL;
    qn_err_t err = add_step(where, pretokenizer, PRETOKENIZER_SPLIT, &step);
    if (!err) err = load_behavior(json, where, false, &step->behavior);
    if (!err) err = component_json_bool(json, where, "invert", 0, &step->invert);
    if (err) return err;
    const json_t *regex = json_object_get(json_object_get(json, "pattern"), "Regex");
    if (json_is_string(regex)) step->scan = scanner_for_expression(json_string_value(regex), json_string_length(regex));
    step->find = step->scan ? PRETOKENIZER_FIND_SCANNER : PRETOKENIZER_FIND_PATTERN;
    return step->scan ? QN_OK : component_json_pattern(json, where, &step->pattern);
}

static qn_err_t load_byte_level(const json_t *json, const char *where, pretokenizer_t *pretokenizer)
{
    pretokenizer_step_t *step = NULL;
    bool adds_space, uses_regex;
    qn_err_t err = component_json_bool(json, where, "add_prefix_space", -1, &adds_space);
    if (!err) err = component_json_bool(json, where, "use_regex", 1, &uses_regex);
    if (!err && adds_space) err = add_step(where, pretokenizer, PRETOKENIZER_PREFIX_SPACE, &step);
    if (!err && uses_regex) {
        err = add_step(where, pretokenizer, PRETOKENIZER_SPLIT, &step);
        if (err) return err;
        step->find = PRETOKENIZER_FIND_SCANNER;
        step->scan = scanner_gpt2;
        step->behavior = PRETOKENIZER_ISOLATED;
    }
    return err ? err : add_step(where, pretokenizer, PRETOKENIZER_BYTE_LEVEL, &step);
}

static qn_err_t load_prepend_scheme(const json_t *json, const char *where, pretokenizer_prepend_t *ret)
{
    const json_t *scheme = json_object_get(json, "prepend_scheme");
    const char *name = scheme ? json_string_value(scheme) : "always";
    bool adds_none = json_is_false(json_object_get(json, "add_prefix_space"));
    if (name && strcmp(name, "always") == 0)
        *ret = PRETOKENIZER_PREPEND_ALWAYS;
    else if (name && strcmp(name, "first") == 0)
        *ret = PRETOKENIZER_PREPEND_FIRST;
    else if (name && strcmp(name, "never") == 0)
        *ret = PRETOKENIZER_PREPEND_NEVER;
    else
        return qn_fail(QN_ERR_INVALID, "%s.prepend_scheme: must be always, first or never", where);
    if (adds_none && *ret != PRETOKENIZER_PREPEND_NEVER)
        return qn_fail(QN_ERR_INVALID, "%s.add_prefix_space: false contradicts prepend_scheme; set that to never",
                       where);
    return QN_OK;
}

static qn_err_t load_metaspace(const json_t *json, const char *where, pretokenizer_t *pretokenizer)
{
    pretokenizer_step_t *step = NULL;
    uint32_t character = 0;
    qn_err_t err = add_step(where, pretokenizer, PRETOKENIZER_METASPACE, &step);
    if (!err) err = component_json_character(json, where, "replacement", &character);
    if (!err) err = load_prepend_scheme(json, where, &step->prepend);
    if (!err) err = component_json_bool(json, where, "split", 1, &step->splits);
    if (!err) step->literal_bytes = (uint8_t)unicode_encode(character, step->literal);
    return err;
}

static qn_err_t load_digits(const json_t *json, const char *where, pretokenizer_t *pretokenizer)
{
    bool individual;
    qn_err_t err = component_json_bool(json, where, "individual_digits", -1, &individual);
    if (err) return err;
    return add_class_split(where, pretokenizer, UNICODE_NUMBER,
                           individual ? PRETOKENIZER_ISOLATED : PRETOKENIZER_CONTIGUOUS);
}

static qn_err_t load_punctuation(const json_t *json, const char *where, pretokenizer_t *pretokenizer)
{
    pretokenizer_behavior_t behavior;
    qn_err_t err = load_behavior(json, where, true, &behavior);
    return err ? err : add_class_split(where, pretokenizer, UNICODE_PUNCTUATION, behavior);
}

static qn_err_t load_whitespace(const json_t *json, const char *where, pretokenizer_t *pretokenizer)
{
    (void)json;
    pretokenizer_step_t *step = NULL;
    qn_err_t err = add_step(where, pretokenizer, PRETOKENIZER_SPLIT, &step);
    if (err) return err;
    step->find = PRETOKENIZER_FIND_WORDS;
    step->behavior = PRETOKENIZER_REMOVED;
    step->invert = true;
    return QN_OK;
}

static qn_err_t load_whitespace_split(const json_t *json, const char *where, pretokenizer_t *pretokenizer)
{
    (void)json;
    return add_class_split(where, pretokenizer, UNICODE_SPACE, PRETOKENIZER_REMOVED);
}

static qn_err_t load_bert(const json_t *json, const char *where, pretokenizer_t *pretokenizer)
{
    qn_err_t err = load_whitespace_split(json, where, pretokenizer);
    return err ? err : add_class_split(where, pretokenizer, UNICODE_PUNCTUATION, PRETOKENIZER_ISOLATED);
}

static qn_err_t load_delimiter(const json_t *json, const char *where, pretokenizer_t *pretokenizer)
{
    pretokenizer_step_t *step = NULL;
    uint32_t character = 0;
    uint8_t bytes[4];
    qn_err_t err = add_step(where, pretokenizer, PRETOKENIZER_SPLIT, &step);
    if (!err) err = component_json_character(json, where, "delimiter", &character);
    if (err) return err;
    step->find = PRETOKENIZER_FIND_PATTERN;
    step->behavior = PRETOKENIZER_REMOVED;
    return pattern_open((const char *)bytes, unicode_encode(character, bytes), false, where, &step->pattern);
}

static qn_err_t load_fixed_length(const json_t *json, const char *where, pretokenizer_t *pretokenizer)
{
    pretokenizer_step_t *step = NULL;
    const json_t *length = json_object_get(json, "length");
    qn_err_t err = add_step(where, pretokenizer, PRETOKENIZER_FIXED_LENGTH, &step);
    if (err) return err;
    step->length = length ? (size_t)json_integer_value(length) : 5;
    if (length && (!json_is_integer(length) || json_integer_value(length) < 1))
        return qn_fail(QN_ERR_INVALID, "%s.length: must be a number of at least 1", where);
    return QN_OK;
}

static const struct {
    const char *type;
    qn_err_t (*load)(const json_t *json, const char *where, pretokenizer_t *pretokenizer);
} types[] = {
    {"Split", load_split},
    {"ByteLevel", load_byte_level},
    {"Metaspace", load_metaspace},
    {"Digits", load_digits},
    {"Punctuation", load_punctuation},
    {"Whitespace", load_whitespace},
    {"WhitespaceSplit", load_whitespace_split},
    {"BertPreTokenizer", load_bert},
    {"CharDelimiterSplit", load_delimiter},
    {"Delimiter", load_delimiter},
    {"FixedLength", load_fixed_length},
};

static qn_err_t load(const json_t *json, const char *where, int depth, pretokenizer_t *pretokenizer)
{
    const char *type = NULL;
    qn_err_t err = component_json_type(json, where, &type);
    if (err) return err;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *items = json_object_get(json, "pretokenizers");
        if (!json_is_array(items) || depth > 4)
            return qn_fail(QN_ERR_INVALID, "%s.pretokenizers: must be an array, at most 4 deep", where);
        for (size_t i = 0; !err && i < json_array_size(items); i++) {
            char path[WHERE_BYTES];
            snprintf(path, sizeof path, "%.120s.pretokenizers[%zu]", where, i);
            err = load(json_array_get(items, i), path, depth + 1, pretokenizer);
        }
        return err;
    }
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(type, types[i].type) == 0) return types[i].load(json, where, pretokenizer);
    return component_json_unsupported(where, "pre-tokenizer", type);
}

qn_err_t pretokenizer_json_load(const json_t *json, pretokenizer_t *pretokenizer)
{
    if (!json || json_is_null(json)) return QN_OK;
    qn_err_t err = load(json, "pre_tokenizer", 0, pretokenizer);
    for (size_t i = 0; !err && i < pretokenizer->count; i++)
        pretokenizer->needs_spans |= pretokenizer->steps[i].kind == PRETOKENIZER_METASPACE &&
                                     pretokenizer->steps[i].prepend == PRETOKENIZER_PREPEND_FIRST;
    return err;
}
