/* What is this?      Normalizers, decoders and the helpers all component loaders share.
 * State owned:       none.
 * Must never:        accept a component it does not know, or guess a missing member.
 * Read next:         pretokenizer_json.c, template_json.c, tokenizer_json.c. */
#include "services/tokenizer/json/component_json.h"

#include <stdio.h>

#define WHERE_BYTES 160

qn_err_t component_json_unsupported(const char *where, const char *what, const char *type)
{
    return qn_fail(QN_ERR_UNSUPPORTED, "%s: %s type \"%.64s\" is not supported", where, what, type);
}

qn_err_t component_json_type(const json_t *json, const char *where, const char **ret)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    if (!type) return qn_fail(QN_ERR_INVALID, "%s.type: must be a string", where);
    *ret = type;
    return QN_OK;
}

qn_err_t component_json_bool(const json_t *json, const char *where, const char *key, int fallback, bool *ret)
{
    const json_t *value = json_object_get(json, key);
    if ((!value || json_is_null(value)) && fallback >= 0) {
        *ret = fallback != 0;
        return QN_OK;
    }
    if (!json_is_boolean(value)) return qn_fail(QN_ERR_INVALID, "%s.%s: must be true or false", where, key);
    *ret = json_is_true(value);
    return QN_OK;
}

qn_err_t component_json_string(const json_t *json, const char *where, const char *key, const char **ret,
                               size_t *ret_bytes)
{
    const json_t *value = json_object_get(json, key);
    if (!json_is_string(value)) return qn_fail(QN_ERR_INVALID, "%s.%s: must be a string", where, key);
    *ret = json_string_value(value);
    *ret_bytes = json_string_length(value);
    return QN_OK;
}

qn_err_t component_json_character(const json_t *json, const char *where, const char *key, uint32_t *ret)
{
    const char *text;
    size_t bytes;
    unsigned size = 0;
    qn_err_t err = component_json_string(json, where, key, &text, &bytes);
    if (err) return err;
    if (bytes > 0) *ret = unicode_decode((const uint8_t *)text, &size);
    if (bytes == 0 || size != bytes) return qn_fail(QN_ERR_INVALID, "%s.%s: must be exactly one character", where, key);
    return QN_OK;
}

qn_err_t component_json_pattern(const json_t *json, const char *where, pattern_t **ret)
{
    const json_t *pattern = json_object_get(json, "pattern");
    const json_t *literal = json_object_get(pattern, "String"), *regex = json_object_get(pattern, "Regex");
    char path[WHERE_BYTES];
    snprintf(path, sizeof path, "%s.pattern", where);
    const json_t *text = literal ? literal : regex;
    if (!json_is_string(text))
        return qn_fail(QN_ERR_INVALID, "%s: must be {\"String\": text} or {\"Regex\": expression}", path);
    return pattern_open(json_string_value(text), json_string_length(text), literal == NULL, path, ret);
}

static uint8_t *copy_bytes(const char *text, size_t bytes)
{
    uint8_t *copy = malloc(bytes + 1);
    QN_ASSERT(copy != NULL);
    memcpy(copy, text, bytes);
    copy[bytes] = 0;
    return copy;
}

static qn_err_t load_content(const json_t *json, const char *where, const char *key, uint8_t **ret_content,
                             size_t *ret_bytes)
{
    const char *text;
    qn_err_t err = component_json_string(json, where, key, &text, ret_bytes);
    if (!err) *ret_content = copy_bytes(text, *ret_bytes);
    return err;
}

/* ---- normalizers ---- */

static const struct {
    const char *type;
    normalizer_kind_t kind;
} normalizer_types[] = {
    {"NFC", NORMALIZER_NFC},
    {"NFD", NORMALIZER_NFD},
    {"NFKC", NORMALIZER_NFKC},
    {"NFKD", NORMALIZER_NFKD},
    {"Lowercase", NORMALIZER_LOWERCASE},
    {"Strip", NORMALIZER_STRIP},
    {"StripAccents", NORMALIZER_STRIP_ACCENTS},
    {"Prepend", NORMALIZER_PREPEND},
    {"Replace", NORMALIZER_REPLACE},
    {"ByteLevel", NORMALIZER_BYTE_LEVEL},
    {"Nmt", NORMALIZER_NMT},
};

static qn_err_t load_normalizer_members(const json_t *json, const char *where, normalizer_step_t *step)
{
    qn_err_t err = QN_OK;
    if (step->kind == NORMALIZER_STRIP) {
        err = component_json_bool(json, where, "strip_left", -1, &step->left);
        if (!err) err = component_json_bool(json, where, "strip_right", -1, &step->right);
    } else if (step->kind == NORMALIZER_PREPEND) {
        err = load_content(json, where, "prepend", &step->content, &step->content_bytes);
    } else if (step->kind == NORMALIZER_REPLACE) {
        err = component_json_pattern(json, where, &step->pattern);
        if (!err) err = load_content(json, where, "content", &step->content, &step->content_bytes);
    }
    return err;
}

static qn_err_t load_normalizer(const json_t *json, const char *where, int depth, normalizer_t *normalizer)
{
    const char *type = NULL;
    qn_err_t err = component_json_type(json, where, &type);
    if (err) return err;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *items = json_object_get(json, "normalizers");
        if (!json_is_array(items) || depth > 4)
            return qn_fail(QN_ERR_INVALID, "%s.normalizers: must be an array, at most 4 deep", where);
        for (size_t i = 0; !err && i < json_array_size(items); i++) {
            char path[WHERE_BYTES];
            snprintf(path, sizeof path, "%.120s.normalizers[%zu]", where, i);
            err = load_normalizer(json_array_get(items, i), path, depth + 1, normalizer);
        }
        return err;
    }
    for (size_t i = 0; i < sizeof normalizer_types / sizeof *normalizer_types; i++) {
        if (strcmp(type, normalizer_types[i].type) != 0) continue;
        if (normalizer->count == NORMALIZER_STEPS_MAX)
            return qn_fail(QN_ERR_LIMIT, "%s: more than %d normalizers", where, NORMALIZER_STEPS_MAX);
        normalizer_step_t *step = &normalizer->steps[normalizer->count++];
        step->kind = normalizer_types[i].kind;
        return load_normalizer_members(json, where, step);
    }
    return component_json_unsupported(where, "normalizer", type);
}

qn_err_t normalizer_json_load(const json_t *json, normalizer_t *normalizer)
{
    return json && !json_is_null(json) ? load_normalizer(json, "normalizer", 0, normalizer) : QN_OK;
}

/* ---- decoders ---- */

static qn_err_t load_count(const json_t *json, const char *where, const char *key, uint32_t *ret)
{
    const json_t *value = json_object_get(json, key);
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > INT32_MAX)
        return qn_fail(QN_ERR_INVALID, "%s.%s: must be a number from 0 to %d", where, key, INT32_MAX);
    *ret = (uint32_t)json_integer_value(value);
    return QN_OK;
}

static qn_err_t load_strip(const json_t *json, const char *where, decoder_stage_t *stage)
{
    qn_err_t err = component_json_character(json, where, "content", &stage->character);
    if (!err) err = load_count(json, where, "start", &stage->start);
    if (!err) err = load_count(json, where, "stop", &stage->stop);
    return err;
}

static qn_err_t load_replace(const json_t *json, const char *where, decoder_stage_t *stage)
{
    qn_err_t err = component_json_pattern(json, where, &stage->pattern);
    if (!err) err = load_content(json, where, "content", &stage->content, &stage->content_bytes);
    return err;
}

static qn_err_t load_metaspace(const json_t *json, const char *where, decoder_stage_t *stage)
{
    const char *scheme = json_string_value(json_object_get(json, "prepend_scheme"));
    stage->keeps_first =
        json_is_false(json_object_get(json, "add_prefix_space")) || (scheme && strcmp(scheme, "never") == 0);
    return component_json_character(json, where, "replacement", &stage->character);
}

static qn_err_t load_bpe_decoder(const json_t *json, const char *where, decoder_stage_t *stage)
{
    const char *suffix;
    size_t bytes;
    qn_err_t err = component_json_string(json, where, "suffix", &suffix, &bytes);
    return err ? err : pattern_open(suffix, bytes, false, where, &stage->pattern);
}

static qn_err_t load_nothing(const json_t *json, const char *where, decoder_stage_t *stage)
{
    (void)json, (void)where, (void)stage;
    return QN_OK;
}

static const struct {
    const char *type;
    decoder_kind_t kind;
    qn_err_t (*load)(const json_t *json, const char *where, decoder_stage_t *stage);
} decoder_types[] = {
    {"ByteLevel", DECODER_BYTE_LEVEL, load_nothing},
    {"ByteFallback", DECODER_BYTE_FALLBACK, load_nothing},
    {"Metaspace", DECODER_METASPACE, load_metaspace},
    {"Fuse", DECODER_FUSE, load_nothing},
    {"Strip", DECODER_STRIP, load_strip},
    {"Replace", DECODER_REPLACE, load_replace},
    {"BPEDecoder", DECODER_BPE, load_bpe_decoder},
};

static qn_err_t load_decoder(const json_t *json, const char *where, int depth, decoder_t *decoder)
{
    const char *type = NULL;
    qn_err_t err = component_json_type(json, where, &type);
    if (err) return err;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *items = json_object_get(json, "decoders");
        if (!json_is_array(items) || depth > 4)
            return qn_fail(QN_ERR_INVALID, "%s.decoders: must be an array, at most 4 deep", where);
        for (size_t i = 0; !err && i < json_array_size(items); i++) {
            char path[WHERE_BYTES];
            snprintf(path, sizeof path, "%.120s.decoders[%zu]", where, i);
            err = load_decoder(json_array_get(items, i), path, depth + 1, decoder);
        }
        return err;
    }
    for (size_t i = 0; i < sizeof decoder_types / sizeof *decoder_types; i++) {
        if (strcmp(type, decoder_types[i].type) != 0) continue;
        if (decoder->count == DECODER_STAGES_MAX)
            return qn_fail(QN_ERR_LIMIT, "%s: more than %d decoders", where, DECODER_STAGES_MAX);
        decoder_stage_t *stage = &decoder->stages[decoder->count++];
        stage->kind = decoder_types[i].kind;
        return decoder_types[i].load(json, where, stage);
    }
    return component_json_unsupported(where, "decoder", type);
}

qn_err_t decoder_json_load(const json_t *json, decoder_t *decoder)
{
    if (json && !json_is_null(json)) return load_decoder(json, "decoder", 0, decoder);
    decoder->stages[0].kind = DECODER_JOIN_SPACES;
    decoder->count = 1;
    return QN_OK;
}
