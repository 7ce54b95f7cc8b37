/* What is this?      The parts of request parsing that both APIs share, and its entry.
 * State owned:       none; results live in the generation's arena.
 * Must never:        trust a length, a type or a range; know HTTP or messages.
 * Read next:         generation_completions.c and generation_generate.c, the two APIs. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "services/frontend/request/generation_internal.h"
#include "services/frontend/request/mask_parse.h"
#include "services/frontend/request/patch_parse.h"

static const generation_unsupported_t unsupported[] = {
    {"tools", "functions are not called here", NULL},
    {"tool_choice", "functions are not called here", "none"},
    {"parallel_tool_calls", "functions are not called here", NULL},
    {"functions", "functions are not called here", NULL},
    {"function_call", "functions are not called here", "none"},
    {"response_format", "constrained output is not built in", "text"},
    {"structured_outputs", "constrained output is not built in", NULL},
    {"guided_json", "constrained output is not built in", NULL},
    {"guided_regex", "constrained output is not built in", NULL},
    {"guided_choice", "constrained output is not built in", NULL},
    {"guided_grammar", "constrained output is not built in", NULL},
    {"guided_decoding_backend", "constrained output is not built in", NULL},
    {"guided_whitespace_pattern", "constrained output is not built in", NULL},
    {"grammar", "constrained output is not built in", NULL},
    {"json_schema", "constrained output is not built in", NULL},
    {"regex", "constrained output is not built in", NULL},
    {"ebnf", "constrained output is not built in", NULL},
    {"structural_tag", "constrained output is not built in", NULL},
    {"stop_regex", "stop strings are plain text", NULL},
    {"use_beam_search", "there is no beam search", NULL},
    {"length_penalty", "there is no beam search", "1"},
    {"early_stopping", "there is no beam search", NULL},
    {"no_repeat_ngram_size", "repetition_penalty is what there is", "0"},
    {"typical_p", "the samplers are top_p, top_k and min_p", "1"},
    {"top_a", "the samplers are top_p, top_k and min_p", "0"},
    {"tfs_z", "the samplers are top_p, top_k and min_p", "1"},
    {"mirostat", "the samplers are top_p, top_k and min_p", "0"},
    {"dynatemp_range", "the samplers are top_p, top_k and min_p", "0"},
    {"xtc_probability", "the samplers are top_p, top_k and min_p", "0"},
    {"dry_multiplier", "repetition_penalty is what there is", "0"},
    {"top_n_sigma", "the samplers are top_p, top_k and min_p", "-1"},
    {"n_probs", "ask with logprobs", "0"},
    {"prompt_embeds", "prompts are text or token ids", NULL},
    {"input_embeds", "prompts are text or token ids", NULL},
    {"images", "the model reads text", NULL},
    {"image_url", "the model reads text", NULL},
    {"image_data", "the model reads text", NULL},
    {"video_data", "the model reads text", NULL},
    {"audio", "the model reads and writes text", NULL},
    {"audio_data", "the model reads text", NULL},
    {"multi_modal_data", "the model reads text", NULL},
    {"mm_processor_kwargs", "the model reads text", NULL},
    {"prediction", "there is no speculative decoding", NULL},
    {"logits_processors", "requests cannot bring code", NULL},
    {"custom_logit_processor", "requests cannot bring code", NULL},
    {"custom_params", "requests cannot bring code", NULL},
    {"lora_path", "there are no adapters", NULL},
    {"kernels", "kernels are chosen for all requests, with PUT /kernels/{op}", NULL},
    {"lora_id", "there are no adapters", NULL},
    {"lora_request", "there are no adapters", NULL},
    {"session_params", "there are no sessions", NULL},
    {"store", "answers are not kept", NULL},
    {"metadata", "answers are not kept, so nothing can be attached to them", NULL},
    {"service_tier", "all requests are served alike; see priority", "auto"},
    {"reasoning_effort", "the model's reasoning is not steered", NULL},
    {"web_search_options", "nothing is searched", NULL},
    {"kv_transfer_params", "the cache is not moved between servers", NULL},
    {"bootstrap_host", "prefill and decode run in one server", NULL},
    {"data_parallel_rank", "there is one engine", NULL},
    {"return_hidden_states", "activations are not returned here", NULL},
    {"spaces_between_special_tokens", "text is decoded with them", "true"},
    {"detokenize", "the answer always has its text", "true"},
};

const generation_unsupported_t *generation_unsupported_everywhere(size_t *ret_count)
{
    *ret_count = sizeof unsupported / sizeof unsupported[0];
    return unsupported;
}

bool generation_unsupported_name(const generation_unsupported_t *rows, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(rows[i].name, name) == 0) return true;
    }
    return false;
}

static bool is_neutral(const json_t *value, const char *neutral)
{
    switch (json_typeof(value)) {
    case JSON_NULL:
    case JSON_FALSE: return true;
    case JSON_TRUE: return neutral && strcmp(neutral, "true") == 0;
    case JSON_INTEGER:
    case JSON_REAL: {
        char *end = NULL;
        double number = neutral ? strtod(neutral, &end) : 0;
        return neutral && end != neutral && *end == '\0' && json_number_value(value) == number;
    }
    case JSON_STRING:
        return json_string_length(value) == 0 || (neutral && strcmp(json_string_value(value), neutral) == 0);
    case JSON_ARRAY: return json_array_size(value) == 0;
    case JSON_OBJECT: {
        const json_t *type = json_object_get(value, "type"); /* {"type": "text"} */
        return json_object_size(value) == 0 ||
               (neutral && json_is_string(type) && strcmp(json_string_value(type), neutral) == 0);
    }
    }
    return false;
}

bool generation_refuse_unsupported(generation_parser_t *parser, const json_t *object, const char *prefix,
                                   const generation_unsupported_t *rows, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const json_t *value = json_object_get(object, rows[i].name);
        if (!value || is_neutral(value, rows[i].neutral)) continue;
        char param[QN_NAME_MAX + 1];
        snprintf(param, sizeof param, "%s%s", prefix, rows[i].name);
        http_error_set(parser->error, 400, param, "%s is not supported: %s. Leave it out.", param, rows[i].why);
        snprintf(parser->error->code, sizeof parser->error->code, "unsupported_value");
        return false;
    }
    return true;
}

static generation_text_t copy_text(generation_parser_t *parser, const json_t *value)
{
    size_t bytes = json_string_length(value);
    return (generation_text_t){
        .data = qn_arena_strndup(&parser->generation->arena, json_string_value(value), bytes),
        .bytes = bytes,
    };
}

bool generation_is_name(const json_t *value)
{
    size_t bytes = json_is_string(value) ? json_string_length(value) : 0;
    const char *text = json_string_value(value);
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] < 0x21 || text[i] > 0x7E) return false;
    }
    return bytes > 0 && bytes <= QN_CLIENT_REQUEST_MAX;
}

bool generation_name(generation_parser_t *parser, const json_t *object, const char *name, const char **ret_text)
{
    const json_t *value = json_object_get(object, name);
    if (!value || json_is_null(value)) return true;
    if (!generation_is_name(value)) {
        http_error_set(parser->error, 400, name,
                       "%s must be a string of 1 to %d printable ASCII characters without "
                       "spaces.",
                       name, QN_CLIENT_REQUEST_MAX);
        return false;
    }
    *ret_text = copy_text(parser, value).data;
    return true;
}

bool generation_salt(generation_parser_t *parser, const json_t *object)
{
    const json_t *value = json_object_get(object, "cache_salt");
    if (!value || json_is_null(value)) return true;
    size_t bytes = json_is_string(value) ? json_string_length(value) : 0;
    if (bytes == 0 || bytes > QN_CLIENT_REQUEST_MAX || memchr(json_string_value(value), '\0', bytes)) {
        http_error_set(parser->error, 400, "cache_salt", "cache_salt must be a string of 1 to %d bytes without NUL.",
                       QN_CLIENT_REQUEST_MAX);
        return false;
    }
    parser->generation->cache_salt = copy_text(parser, value);
    return true;
}

/* ---- who asks, and until when ---- */

static const json_field_t caller_fields[] = {
    {"deadline_ms", JSON_FIELD_UNSIGNED, offsetof(generation_t, deadline_ms), 1, 86400000, 0},
};

static bool read_name(generation_parser_t *parser, const json_t *object, const char *name, generation_text_t *ret_text)
{
    const json_t *value = json_object_get(object, name);
    if (!value || json_is_null(value)) return true;
    size_t bytes = json_is_string(value) ? json_string_length(value) : 0;
    if (!json_is_string(value) || bytes > QN_CLIENT_REQUEST_MAX || memchr(json_string_value(value), '\0', bytes)) {
        http_error_set(parser->error, 400, name, "%s must be a string of at most %d bytes without NUL.", name,
                       QN_CLIENT_REQUEST_MAX);
        return false;
    }
    if (bytes > 0) *ret_text = copy_text(parser, value);
    return true;
}

bool generation_caller_name(const char *name)
{
    return strcmp(name, "user") == 0 || strcmp(name, "adapter") == 0 ||
           json_fields_name(caller_fields, sizeof caller_fields / sizeof caller_fields[0], name);
}

bool generation_caller(generation_parser_t *parser, const json_t *object)
{
    generation_t *generation = parser->generation;
    const json_t *model = json_object_get(object, "model"); /* it is the one that is served: generation_check_model */
    if (json_is_string(model) && json_string_length(model) > 0) {
        const char *served = parser->limits->model;
        if (served && served[0] != '\0') generation->model = copy_text(parser, model);
    }
    return read_name(parser, object, "user", &generation->user) &&
           read_name(parser, object, "adapter", &generation->adapter) &&
           json_fields_read(object, "", caller_fields, sizeof caller_fields / sizeof caller_fields[0], generation,
                            parser->error);
}

bool generation_masks(generation_parser_t *parser, const json_t *object)
{
    const json_t *value = json_object_get(object, "sparsity_mask");
    mask_list_t list = {.count = 0};
    if (!value || json_is_null(value)) return true;
    bool none = json_is_string(value) && strcmp(json_string_value(value), "none") == 0;
    if (!none && !json_is_object(value) && !json_is_array(value)) {
        http_error_set(parser->error, 400, "sparsity_mask",
                       "sparsity_mask must be a mask, a list of masks or \"none\", not %s.", json_fields_type(value));
        return false;
    }
    if (!none &&
        !mask_parse(value, "sparsity_mask.", parser->limits->layers, parser->limits->heads, NULL, &list, parser->error))
        return false;
    qn_mask_rule_t *masks = qn_arena_zalloc(&parser->generation->arena, list.count + 1, sizeof *masks);
    memcpy(masks, list.rules, list.count * sizeof *masks);
    parser->generation->masks = masks;
    parser->generation->mask_count = list.count;
    parser->generation->own_masks = true;
    return true;
}

bool generation_patches(generation_parser_t *parser, const json_t *object)
{
    const json_t *value = json_object_get(object, "patches");
    generation_t *generation = parser->generation;
    if (!value || json_is_null(value)) return true;
    patch_list_t list = {.points = qn_arena_zalloc(&generation->arena, QN_TAPS_MAX, sizeof *list.points),
                         .points_max = QN_TAPS_MAX,
                         .values = qn_arena_zalloc(&generation->arena, QN_TAP_VALUES_MAX, sizeof *list.values)};
    if (!patches_parse(value, parser->limits->layers, QN_PROMPT_TOKENS_MAX, &list, parser->error)) return false;
    generation->patches = list.points;
    generation->patch_count = list.point_count;
    generation->patch_values = list.values;
    generation->patch_value_count = list.value_count;
    return true;
}

/* ---- stop, stop_token_ids, logit_bias ---- */

static bool add_stop(generation_parser_t *parser, const json_t *value, const char *param)
{
    generation_t *generation = parser->generation;
    size_t bytes = json_is_string(value) ? json_string_length(value) : 0;
    if (bytes == 0 || bytes > QN_STOP_STRING_BYTES_MAX) {
        http_error_set(parser->error, 400, param, "%s must be a string, or a list of strings, of 1 to %d bytes each.",
                       param, QN_STOP_STRING_BYTES_MAX);
        return false;
    }
    if (generation->stop_count == QN_STOP_STRINGS_MAX) {
        http_error_set(parser->error, 400, param, "%s has more than %d strings.", param, QN_STOP_STRINGS_MAX);
        return false;
    }
    generation->stop[generation->stop_count++] = copy_text(parser, value);
    return true;
}

static bool read_stop(generation_parser_t *parser, const json_t *object, const char *prefix)
{
    char param[QN_NAME_MAX + 1];
    snprintf(param, sizeof param, "%sstop", prefix);
    const json_t *value = json_object_get(object, "stop");
    if (!value || json_is_null(value)) return true;
    if (!json_is_array(value)) return add_stop(parser, value, param);
    for (size_t i = 0; i < json_array_size(value); i++) {
        if (!add_stop(parser, json_array_get(value, i), param)) return false;
    }
    return true;
}

static bool read_stop_ids(generation_parser_t *parser, const json_t *object, const char *prefix)
{
    char param[QN_NAME_MAX + 1];
    snprintf(param, sizeof param, "%sstop_token_ids", prefix);
    const json_t *value = json_object_get(object, "stop_token_ids");
    if (!value || json_is_null(value)) return true;
    generation_t *generation = parser->generation;
    const uint32_t *ids = NULL;
    if (!generation_parse_ids(value, param, parser->limits->vocab_size, &generation->arena, &ids,
                              &generation->stop_id_count, parser->error))
        return false;
    if (generation->stop_id_count > QN_STOP_IDS_MAX) {
        http_error_set(parser->error, 400, param, "%s has %u ids; at most %d are allowed.", param,
                       generation->stop_id_count, QN_STOP_IDS_MAX);
        return false;
    }
    if (generation->stop_id_count) memcpy(generation->stop_ids, ids, generation->stop_id_count * sizeof *ids);
    return true;
}

/* {"50256": -100}: keys are ids in decimal. */
static bool read_bias_row(generation_parser_t *parser, const char *param, const char *key, const json_t *value,
                          generation_bias_t *ret_row)
{
    uint32_t vocabulary = parser->limits->vocab_size ? parser->limits->vocab_size : QN_VOCAB_MAX;
    char *end = NULL;
    errno = 0;
    unsigned long id = strtoul(key, &end, 10);
    if (key[0] < '0' || key[0] > '9' || *end != '\0' || errno != 0 || id >= vocabulary) {
        http_error_set(parser->error, 400, param, "%s has the key \"%.40s\"; keys are token ids from 0 to %u.", param,
                       key, vocabulary - 1);
        return false;
    }
    double bias = json_number_value(value);
    if (!json_is_number(value) || !(bias >= -100 && bias <= 100)) {
        http_error_set(parser->error, 400, param, "%s of token %lu must be a number from -100 to 100.", param, id);
        return false;
    }
    *ret_row = (generation_bias_t){.id = (uint32_t)id, .bias = (float)bias};
    return true;
}

static bool read_bias(generation_parser_t *parser, const json_t *object, const char *prefix)
{
    char param[QN_NAME_MAX + 1];
    snprintf(param, sizeof param, "%slogit_bias", prefix);
    json_t *value = json_object_get(object, "logit_bias");
    if (!value || json_is_null(value)) return true;
    if (!json_is_object(value) || json_object_size(value) > QN_LOGIT_BIAS_MAX) {
        http_error_set(parser->error, 400, param, "%s must be an object of at most %d token ids and numbers.", param,
                       QN_LOGIT_BIAS_MAX);
        return false;
    }
    generation_t *generation = parser->generation;
    generation_bias_t *rows = qn_arena_zalloc(&generation->arena, json_object_size(value) + 1, sizeof *rows);
    const char *key;
    const json_t *bias;
    json_object_foreach(value, key, bias)
    {
        if (!read_bias_row(parser, param, key, bias, &rows[generation->bias_count])) return false;
        generation->bias_count++;
    }
    generation->bias = rows;
    return true;
}

/* allowed_token_ids: they become the rows of the bias, keeping what logit_bias says of them; all others are out. */
static bool read_allowed(generation_parser_t *parser, const json_t *object, const char *prefix)
{
    char param[QN_NAME_MAX + 1];
    snprintf(param, sizeof param, "%sallowed_token_ids", prefix);
    const json_t *value = json_object_get(object, "allowed_token_ids");
    if (!value || json_is_null(value)) return true;
    generation_t *generation = parser->generation;
    const uint32_t *ids = NULL;
    uint32_t count = 0, row_count = 0;
    if (!generation_parse_ids(value, param, parser->limits->vocab_size, &generation->arena, &ids, &count,
                              parser->error))
        return false;
    generation_bias_t *rows = qn_arena_zalloc(&generation->arena, QN_LOGIT_BIAS_MAX, sizeof *rows);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = 0;
        while (at < row_count && rows[at].id != ids[i])
            at++;
        if (at == row_count && ++row_count > QN_LOGIT_BIAS_MAX) break;
        rows[at].id = ids[i];
        for (uint32_t j = 0; j < generation->bias_count; j++)
            rows[at].bias = generation->bias[j].id == ids[i] ? generation->bias[j].bias : rows[at].bias;
    }
    if (count == 0 || row_count > QN_LOGIT_BIAS_MAX) {
        http_error_set(parser->error, 400, param, "%s must have 1 to %d different ids.", param, QN_LOGIT_BIAS_MAX);
        return false;
    }
    generation->bias = rows;
    generation->bias_count = row_count;
    generation->allow_only = true;
    return true;
}

static bool read_bad_words(generation_parser_t *parser, const json_t *object, const char *prefix)
{
    char param[QN_NAME_MAX + 1];
    snprintf(param, sizeof param, "%sbad_words", prefix);
    const json_t *value = json_object_get(object, "bad_words");
    if (!value || json_is_null(value)) return true;
    generation_t *generation = parser->generation;
    if (!json_is_array(value) || json_array_size(value) > GENERATION_BAD_WORDS_MAX) {
        http_error_set(parser->error, 400, param, "%s must be a list of at most %d strings.", param,
                       GENERATION_BAD_WORDS_MAX);
        return false;
    }
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *word = json_array_get(value, i);
        size_t bytes = json_is_string(word) ? json_string_length(word) : 0;
        if (bytes == 0 || bytes > QN_STOP_STRING_BYTES_MAX) {
            http_error_set(parser->error, 400, param, "%s[%zu] must be a string of 1 to %d bytes.", param, i,
                           QN_STOP_STRING_BYTES_MAX);
            return false;
        }
        generation->bad_words[generation->bad_word_count++] = copy_text(parser, word);
    }
    return true;
}

bool generation_logprob_ids(generation_parser_t *parser, const json_t *value, const char *param)
{
    generation_t *generation = parser->generation;
    if (!value || json_is_null(value)) return true;
    bool one = generation->api != GENERATION_COMPLETIONS && json_is_integer(value);
    json_t *list = one ? json_pack("[O]", (json_t *)(uintptr_t)value) : NULL;
    bool good = generation_parse_ids(list ? list : value, param, parser->limits->vocab_size, &generation->arena,
                                     &generation->logprob_ids, &generation->logprob_id_count, parser->error);
    json_decref(list);
    if (!good || generation->logprob_id_count <= QN_LOGPROB_IDS_MAX) return good;
    http_error_set(parser->error, 400, param, "%s has %u ids; at most %d are allowed.", param,
                   generation->logprob_id_count, QN_LOGPROB_IDS_MAX);
    return false;
}

static bool read_top_k(generation_parser_t *parser, const json_t *object, const char *prefix)
{
    char param[QN_NAME_MAX + 1];
    snprintf(param, sizeof param, "%stop_k", prefix);
    const json_t *value = json_object_get(object, "top_k");
    if (!value || json_is_null(value)) return true;
    int64_t top_k = 0; /* SGLang writes 2^30 for "all", vLLM and SGLang -1 */
    if (!json_fields_integer(value, param, -1, 1 << 30, &top_k, parser->error)) return false;
    parser->generation->top_k = top_k < 0 || top_k >= QN_VOCAB_MAX ? 0 : (uint32_t)top_k;
    return true;
}

bool generation_sampling_lists(generation_parser_t *parser, const json_t *object, const char *prefix)
{
    return read_stop(parser, object, prefix) && read_stop_ids(parser, object, prefix) &&
           read_bias(parser, object, prefix) && read_allowed(parser, object, prefix) &&
           read_bad_words(parser, object, prefix) && read_top_k(parser, object, prefix);
}

bool generation_list_name(const char *name)
{
    static const char *const names[] = {"stop",      "stop_token_ids", "logit_bias", "allowed_token_ids",
                                        "bad_words", "top_k"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i], name) == 0) return true;
    }
    return false;
}

/* ---- prompts ---- */

bool generation_parse_ids(const json_t *list, const char *param, uint32_t vocab_size, qn_arena_t *arena,
                          const uint32_t **ret_ids, uint32_t *ret_count, http_error_t *ret_error)
{
    size_t count = json_is_array(list) ? json_array_size(list) : 0;
    if (!json_is_array(list) || count > QN_PROMPT_TOKENS_MAX) {
        http_error_set(ret_error, 400, param, "%s must be a list of at most %u token ids.", param,
                       QN_PROMPT_TOKENS_MAX);
        return false;
    }
    uint32_t *ids = qn_arena_alloc(arena, count * sizeof *ids + sizeof *ids, _Alignof(uint32_t));
    for (size_t i = 0; i < count; i++) {
        int64_t id = 0;
        uint32_t vocabulary = vocab_size ? vocab_size : QN_VOCAB_MAX;
        if (!json_fields_integer(json_array_get(list, i), param, 0, (int64_t)vocabulary - 1, &id, ret_error))
            return false;
        ids[i] = (uint32_t)id;
    }
    *ret_ids = ids;
    *ret_count = (uint32_t)count;
    return true;
}

static bool begin_prompts(generation_parser_t *parser, size_t count, bool is_list, const char *param)
{
    if (count == 0 || count > QN_PROMPTS_MAX) {
        http_error_set(parser->error, 400, param, "%s has %zu prompts; 1 to %d are allowed.", param, count,
                       QN_PROMPTS_MAX);
        return false;
    }
    generation_t *generation = parser->generation;
    generation->prompts = qn_arena_zalloc(&generation->arena, count, sizeof *generation->prompts);
    generation->prompt_count = (uint32_t)count;
    generation->is_list = is_list;
    return true;
}

bool generation_text_prompts(generation_parser_t *parser, const json_t *value, const char *param)
{
    if (json_is_string(value)) {
        if (!begin_prompts(parser, 1, false, param)) return false;
        parser->generation->prompts[0].text = copy_text(parser, value);
        return true;
    }
    if (!begin_prompts(parser, json_array_size(value), true, param)) return false;
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *text = json_array_get(value, i);
        if (!json_is_string(text)) {
            http_error_set(parser->error, 400, param, "%s[%zu] is %s; all of the list must be strings.", param, i,
                           json_fields_type(text));
            return false;
        }
        parser->generation->prompts[i].text = copy_text(parser, text);
    }
    return true;
}

static bool read_prompt_ids(generation_parser_t *parser, const json_t *list, const char *param, size_t index)
{
    generation_prompt_t *prompt = &parser->generation->prompts[index];
    if (!generation_parse_ids(list, param, parser->limits->vocab_size, &parser->generation->arena, &prompt->ids,
                              &prompt->id_count, parser->error))
        return false;
    if (prompt->id_count > 0) return true;
    http_error_set(parser->error, 400, param, "%s holds an empty list of token ids; a prompt needs at least one.",
                   param);
    return false;
}

bool generation_id_prompts(generation_parser_t *parser, const json_t *value, const char *param)
{
    if (!json_is_array(json_array_get(value, 0)))
        return begin_prompts(parser, 1, false, param) && read_prompt_ids(parser, value, param, 0);
    if (!begin_prompts(parser, json_array_size(value), true, param)) return false;
    for (size_t i = 0; i < json_array_size(value); i++) {
        if (!read_prompt_ids(parser, json_array_get(value, i), param, i)) return false;
    }
    return true;
}

/* ---- entry ---- */

bool generation_check_model(const json_t *root, const char *model, http_error_t *ret_error)
{
    const json_t *value = json_object_get(root, "model");
    if (!value || json_is_null(value)) return true;
    if (!json_is_string(value)) {
        http_error_set(ret_error, 400, "model", "model must be a string, it is %s.", json_fields_type(value));
        return false;
    }
    const char *name = json_string_value(value);
    if (!model || model[0] == '\0' || name[0] == '\0' || strcmp(name, model) == 0) return true;
    http_error_set(ret_error, 404, "model", "The model \"%.128s\" is not served here; \"%.128s\" is (GET /v1/models).",
                   name, model);
    snprintf(ret_error->code, sizeof ret_error->code, "model_not_found");
    return false;
}

/* What the request makes the services send: its prompts once per choice. */
static bool check_sent_bytes(generation_parser_t *parser)
{
    const generation_t *generation = parser->generation;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < generation->prompt_count; i++)
        bytes += generation->prompts[i].text.bytes + sizeof(uint32_t) * (uint64_t)generation->prompts[i].id_count;
    if (bytes * generation->best_of <= QN_REQUEST_BYTES_MAX) return true;
    const char *param = generation_field_name(generation, "n");
    http_error_set(parser->error, 400, param,
                   "%s: the prompts have %llu bytes and are sent once for each of %u choices; that may be %u bytes in "
                   "all. Ask for fewer choices at a time.",
                   param, (unsigned long long)bytes, generation->best_of, QN_REQUEST_BYTES_MAX);
    return false;
}

/* Log-probabilities of prompt tokens that the reply may hold; a text has at most as many tokens as bytes. */
static bool check_scores(generation_parser_t *parser)
{
    const generation_t *generation = parser->generation;
    uint64_t longest = parser->limits->max_model_len ? parser->limits->max_model_len : QN_PROMPT_TOKENS_MAX, scores = 0;
    for (uint32_t i = 0; i < generation->prompt_count; i++) {
        const generation_prompt_t *prompt = &generation->prompts[i];
        int32_t alternatives = generation_for(generation, i)->prompt_logprobs;
        uint64_t tokens = prompt->id_count ? prompt->id_count : prompt->text.bytes + 1;
        if (alternatives == GENERATION_NONE) continue;
        uint64_t each = (uint64_t)alternatives + generation_for(generation, i)->logprob_id_count + 1;
        scores += (tokens < longest ? tokens : longest) * each * generation->best_of;
    }
    if (scores <= QN_REQUEST_SCORES_MAX) return true;
    const char *param = generation->api != GENERATION_COMPLETIONS ? "top_logprobs_num"
                        : generation->show_prompt_logprobs        ? "prompt_logprobs"
                                                                  : "logprobs";
    http_error_set(
        parser->error, 400, param,
        "%s: prompts, alternatives and choices together may make %llu log-probabilities of prompt tokens; %u "
        "are allowed. Send fewer prompts at a time, or ask for fewer alternatives.",
        param, (unsigned long long)scores, QN_REQUEST_SCORES_MAX);
    return false;
}

/* With min_tokens the model's end tokens are out for a while; something must be left to choose from. */
static bool check_allowed(generation_parser_t *parser, const generation_t *generation)
{
    const generation_limits_t *limits = parser->limits;
    uint32_t free_ids = generation->bias_count;
    if (!generation->allow_only || generation->min_tokens == 0) return true;
    for (uint32_t i = 0; i < generation->bias_count; i++) {
        bool stops = false;
        for (uint32_t j = 0; j < generation->stop_id_count; j++)
            stops = stops || generation->stop_ids[j] == generation->bias[i].id;
        for (uint32_t j = 0; !generation->ignore_eos && j < limits->eos_id_count; j++)
            stops = stops || limits->eos_ids[j] == generation->bias[i].id;
        free_ids -= stops;
    }
    if (free_ids > 0) return true;
    const char *param = generation_field_name(generation, "allowed_token_ids");
    http_error_set(parser->error, 400, param,
                   "%s holds only ids that end the answer, which the minimum of %u tokens forbids at first.", param,
                   generation->min_tokens);
    return false;
}

/* Rules that tie the sampling fields of one prompt, or of all, together. */
static bool check_sampling(generation_parser_t *parser, generation_t *generation)
{
    if (generation->max_tokens == 0) generation->discard_output = true;
    if (generation->min_tokens > generation->max_tokens) {
        const char *param = generation_field_name(generation, "min_tokens");
        http_error_set(parser->error, 400, param, "%s is %u; it may not exceed the %u tokens to generate.", param,
                       generation->min_tokens, generation->max_tokens);
        return false;
    }
    if (generation->temperature < 1e-5f) generation->temperature = 0; /* below this, logits overflow: greedy, as vLLM */
    return check_allowed(parser, generation);
}

static void cut_prompts(generation_t *generation) /* of ids; text is cut by the tokenizer */
{
    uint32_t keep = generation->truncate_prompt_tokens;
    for (uint32_t i = 0; keep && i < generation->prompt_count; i++) {
        generation_prompt_t *prompt = &generation->prompts[i];
        if (prompt->id_count <= keep) continue;
        prompt->ids += prompt->id_count - keep;
        prompt->id_count = keep;
    }
}

/* Rules that tie fields together, the same for both APIs. */
static bool check_together(generation_parser_t *parser)
{
    generation_t *generation = parser->generation;
    const generation_limits_t *limits = parser->limits;
    uint64_t requests = (uint64_t)generation->prompt_count * generation->best_of;
    if (requests > limits->requests_max) {
        http_error_set(parser->error, 400, generation_field_name(generation, "prompt"),
                       "The request asks for %llu sequences (prompts times choices); this server allows %u "
                       "(frontend.queue_limit). Split it.",
                       (unsigned long long)requests, limits->requests_max);
        return false;
    }
    cut_prompts(generation);
    for (uint32_t i = 0; generation->variants && i < generation->prompt_count; i++) {
        if (!check_sampling(parser, (generation_t *)&generation->variants[i])) return false;
    }
    return check_sampling(parser, generation) && check_sent_bytes(parser) && check_scores(parser);
}

const char *generation_field_name(const generation_t *generation, const char *name)
{
    static const char *const rows[][2] = {
        {"n", "sampling_params.n"},
        {"max_tokens", "sampling_params.max_new_tokens"},
        {"min_tokens", "sampling_params.min_new_tokens"},
        {"stop", "sampling_params.stop"},
        {"stop_token_ids", "sampling_params.stop_token_ids"},
        {"logit_bias", "sampling_params.logit_bias"},
        {"allowed_token_ids", "sampling_params.allowed_token_ids"},
        {"bad_words", "sampling_params.bad_words"},
        {"logprob_token_ids", "token_ids_logprob"},
    };
    if (!name || generation->api == GENERATION_COMPLETIONS) return name;
    if (generation->plain && strcmp(name, "logprob_token_ids") == 0) return "token_ids_logprob";
    if (generation->plain) return generation->api == GENERATION_BATCH && strcmp(name, "prompt") == 0 ? "prompts" : name;
    if (strcmp(name, "prompt") == 0)
        return generation->prompt_count && generation->prompts[0].ids ? "input_ids" : "text";
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (strcmp(rows[i][0], name) == 0) return rows[i][1];
    }
    return name;
}

bool generation_check_unknown(const unknown_fields_t *unknown, bool strict, http_error_t *ret_error)
{
    if (!strict || unknown->count == 0) return true;
    http_error_set(ret_error, 400, unknown->first,
                   "Unknown: %s. This server refuses fields that it does not know (frontend.strict_fields).",
                   unknown->names);
    snprintf(ret_error->code, sizeof ret_error->code, "unknown_parameter");
    return false;
}

bool generation_parse(generation_api_t api, const char *body, size_t bytes, const generation_limits_t *limits,
                      generation_t *ret_generation, http_error_t *ret_error)
{
    json_t *root = json_fields_parse(body, bytes, ret_error);
    if (!root) return false;
    uint32_t usual_max_tokens = api == GENERATION_COMPLETIONS ? 16 : 128; /* OpenAI's and SGLang's */
    *ret_generation = (generation_t){
        .api = api,
        .n = 1,
        .best_of = 1,
        .temperature = limits->defaults.temperature,
        .top_p = limits->defaults.top_p,
        .min_p = limits->defaults.min_p,
        .top_k = limits->defaults.top_k,
        .repetition_penalty = limits->defaults.repetition_penalty,
        .skip_special = true,
        .add_special = true,
        .text_in_logprobs = true,
        .logprobs = GENERATION_NONE,
        .prompt_logprobs = GENERATION_NONE,
        .logprob_start = -1,
        .max_tokens = limits->default_max_tokens ? limits->default_max_tokens : usual_max_tokens,
    };
    qn_arena_init(&ret_generation->arena, 4096);
    generation_parser_t parser = {.root = root, .limits = limits, .generation = ret_generation, .error = ret_error};
    bool good = generation_check_model(root, limits->model, ret_error) && generation_caller(&parser, root) &&
                (api == GENERATION_COMPLETIONS ? generation_completions(&parser) : generation_generate(&parser)) &&
                check_together(&parser) &&
                generation_check_unknown(&ret_generation->unknown, limits->strict, ret_error);
    json_decref(root);
    if (!good) generation_fini(ret_generation);
    return good;
}

void generation_fini(generation_t *generation)
{
    qn_arena_fini(&generation->arena);
    *generation = (generation_t){0};
}
