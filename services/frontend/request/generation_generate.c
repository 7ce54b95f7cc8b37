/* What is this?      POST /generate as SGLang writes it, and the plain forms of /generate and /batch_generate.
 * State owned:       none.
 * Must never:        let a field through that changes nothing: what is known and not done is refused.
 * Read next:         generation_parse.c for the parts shared with OpenAI's API. */
#include <stdio.h>
#include <string.h>

#include "services/frontend/request/generation_internal.h"

#define AT(field) offsetof(generation_t, field)
#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

static const json_field_t sampling_fields[] = {
    {"n", JSON_FIELD_UNSIGNED, AT(n), 1, QN_CHOICES_MAX, 0},
    {"max_new_tokens", JSON_FIELD_UNSIGNED, AT(max_tokens), 0, QN_PROMPT_TOKENS_MAX, 0},
    {"min_new_tokens", JSON_FIELD_UNSIGNED, AT(min_tokens), 0, QN_PROMPT_TOKENS_MAX, 0},
    {"temperature", JSON_FIELD_FLOAT, AT(temperature), 0, 100, 0},
    {"top_p", JSON_FIELD_FLOAT, AT(top_p), 0, 1, 0},
    {"min_p", JSON_FIELD_FLOAT, AT(min_p), 0, 1, 0},
    {"presence_penalty", JSON_FIELD_FLOAT, AT(presence_penalty), -2, 2, 0},
    {"frequency_penalty", JSON_FIELD_FLOAT, AT(frequency_penalty), -2, 2, 0},
    {"repetition_penalty", JSON_FIELD_FLOAT, AT(repetition_penalty), 0.01, 100, 0},
    {"seed", JSON_FIELD_SEED, AT(seed), 0, 0, AT(seed_given)},
    {"sampling_seed", JSON_FIELD_SEED, AT(seed), 0, 0, AT(seed_given)},
    {"ignore_eos", JSON_FIELD_FLAG, AT(ignore_eos), 0, 0, 0},
    {"skip_special_tokens", JSON_FIELD_FLAG, AT(skip_special), 0, 0, 0},
    {"no_stop_trim", JSON_FIELD_FLAG, AT(include_stop), 0, 0, 0},
};

/* SGLang's flat logprob fields, before they are put together. */
typedef struct {
    bool return_logprob;
    int32_t start;
    uint32_t top;
} logprob_fields_t;

static const json_field_t logprob_fields[] = {
    {"return_logprob", JSON_FIELD_FLAG, offsetof(logprob_fields_t, return_logprob), 0, 0, 0},
    {"logprob_start_len", JSON_FIELD_SIGNED, offsetof(logprob_fields_t, start), -1, QN_PROMPT_TOKENS_MAX, 0},
    {"top_logprobs_num", JSON_FIELD_UNSIGNED, offsetof(logprob_fields_t, top), 0, QN_TOP_LOGPROBS_MAX, 0},
};

static const json_field_t fields[] = {
    {"stream", JSON_FIELD_FLAG, AT(stream), 0, 0, 0},
    {"return_text_in_logprobs", JSON_FIELD_FLAG, AT(text_in_logprobs), 0, 0, 0},
    {"priority", JSON_FIELD_SIGNED, AT(priority), INT32_MIN, INT32_MAX, 0},
};

/* The plain form: sampling fields beside `prompt`, under these names as well. */
static const json_field_t plain_fields[] = {
    {"max_tokens", JSON_FIELD_UNSIGNED, AT(max_tokens), 0, QN_PROMPT_TOKENS_MAX, 0},
    {"min_tokens", JSON_FIELD_UNSIGNED, AT(min_tokens), 0, QN_PROMPT_TOKENS_MAX, 0},
};
#define PLAIN_MAX_TOKENS 50
#define PLAIN_TEMPERATURE 0.7f

static const generation_unsupported_t unsupported[] = {
    {"logprob_token_ids", "that is vLLM's name; here it is token_ids_logprob, beside sampling_params", NULL},
};

static const generation_unsupported_t unsupported_sampling[] = {
    {"logprob_token_ids", "here it is token_ids_logprob, beside sampling_params", NULL},
    {"token_ids_logprob", "it stands beside sampling_params", NULL},
};

static bool is_known(const char *name)
{
    static const char *const names[] = {"text",       "input_ids",         "sampling_params", "model",  "rid",
                                        "cache_salt", "token_ids_logprob", "sparsity_mask",   "patches"};
    size_t count;
    const generation_unsupported_t *everywhere = generation_unsupported_everywhere(&count);
    for (size_t i = 0; i < COUNT(names); i++) {
        if (strcmp(names[i], name) == 0) return true;
    }
    return json_fields_name(fields, COUNT(fields), name) || generation_caller_name(name) ||
           generation_unsupported_name(unsupported, COUNT(unsupported), name) ||
           json_fields_name(logprob_fields, COUNT(logprob_fields), name) ||
           generation_unsupported_name(everywhere, count, name);
}

static bool is_known_sampling(const char *name)
{
    size_t count;
    const generation_unsupported_t *everywhere = generation_unsupported_everywhere(&count);
    return json_fields_name(sampling_fields, COUNT(sampling_fields), name) || generation_list_name(name) ||
           generation_unsupported_name(unsupported_sampling, COUNT(unsupported_sampling), name) ||
           generation_unsupported_name(everywhere, count, name);
}

static bool is_known_plain(const char *name)
{
    return (is_known(name) && strcmp(name, "text") != 0 && strcmp(name, "input_ids") != 0) || is_known_sampling(name) ||
           strcmp(name, "prompt") == 0 || json_fields_name(plain_fields, COUNT(plain_fields), name);
}

static bool is_known_batch(const char *name)
{
    return strcmp(name, "prompts") == 0 || (is_known_plain(name) && strcmp(name, "prompt") != 0);
}

/* A text, a list of texts, a list of ids, a list of such lists. */
static bool read_plain_prompts(generation_parser_t *parser, const char *param)
{
    const json_t *value = json_object_get(parser->root, param);
    bool many = parser->generation->api == GENERATION_BATCH;
    const json_t *first = json_array_get(value, 0);
    if (many ? first && (json_is_string(first) || json_is_array(first)) : json_is_string(value) || first)
        return json_is_string(value) || json_is_string(first) ? generation_text_prompts(parser, value, param)
                                                              : generation_id_prompts(parser, value, param);
    http_error_set(parser->error, 400, param,
                   many ? "%s must be a list of strings, or of lists of token ids, and not empty; it is %s."
                        : "%s must be a string, a list of token ids, or a list of either; it is %s.",
                   param,
                   !value                           ? "missing"
                   : json_is_array(value) && !first ? "empty"
                                                    : json_fields_type(value));
    return false;
}

static bool read_prompts(generation_parser_t *parser)
{
    if (parser->generation->plain)
        return read_plain_prompts(parser, parser->generation->api == GENERATION_BATCH ? "prompts" : "prompt");
    const json_t *text = json_object_get(parser->root, "text"), *ids = json_object_get(parser->root, "input_ids");
    bool has_text = text && !json_is_null(text), has_ids = ids && !json_is_null(ids);
    if (has_text == has_ids) {
        http_error_set(parser->error, 400, "text", "Exactly one of text and input_ids must be given.");
        return false;
    }
    if (has_text && (json_is_string(text) || json_is_array(text))) return generation_text_prompts(parser, text, "text");
    if (has_ids && json_is_array(ids) && json_array_size(ids) > 0)
        return generation_id_prompts(parser, ids, "input_ids");
    if (has_text)
        http_error_set(parser->error, 400, "text", "text must be a string or a list of strings, it is %s.",
                       json_fields_type(text));
    else
        http_error_set(parser->error, 400, "input_ids",
                       "input_ids must be a list of token ids, or a list of such lists; "
                       "it may not be empty.");
    return false;
}

/* sampling_params: one object, into parser->generation. */
static bool read_sampling(generation_parser_t *parser, const json_t *value, const char *param)
{
    if (!value || json_is_null(value)) return true;
    if (!json_is_object(value)) {
        http_error_set(parser->error, 400, param,
                       "%s must be an object, or a list with an object per prompt; it is %s.", param,
                       json_fields_type(value));
        return false;
    }
    char prefix[QN_NAME_MAX];
    snprintf(prefix, sizeof prefix, "%s.", param);
    size_t count;
    const generation_unsupported_t *everywhere = generation_unsupported_everywhere(&count);
    return generation_refuse_unsupported(parser, value, prefix, everywhere, count) &&
           generation_refuse_unsupported(parser, value, prefix, unsupported_sampling, COUNT(unsupported_sampling)) &&
           json_fields_read(value, prefix, sampling_fields, COUNT(sampling_fields), parser->generation,
                            parser->error) &&
           generation_sampling_lists(parser, value, prefix);
}

/* The logprob fields of `object`, into parser->generation. */
static bool read_logprobs(generation_parser_t *parser, const json_t *object)
{
    generation_t *generation = parser->generation;
    logprob_fields_t read = {.start = -1};
    if (!json_fields_read(object, "", logprob_fields, COUNT(logprob_fields), &read, parser->error)) return false;
    if (!generation_logprob_ids(parser, json_object_get(object, "token_ids_logprob"), "token_ids_logprob"))
        return false;
    if (!read.return_logprob) {
        generation->logprob_id_count = 0;
        return true;
    }
    generation->logprobs = (int32_t)read.top;
    generation->logprob_start = read.start;
    if (read.start >= 0) generation->prompt_logprobs = (int32_t)read.top;
    return true;
}

/* ---- lists: something of its own for each prompt ---- */

static const char *const list_fields[] = {"sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num",
                                          "token_ids_logprob"};

/* A list of token ids is one value; a list with a list in it has one per prompt. */
static bool is_per_prompt(const char *name, const json_t *value)
{
    if (strcmp(name, "token_ids_logprob") != 0) return json_is_array(value);
    for (size_t i = 0; i < json_array_size(value); i++)
        if (json_is_array(json_array_get(value, i)) || json_is_null(json_array_get(value, i))) return true;
    return false;
}

/* False: a list where there is one prompt, or with not one element per prompt. */
static bool find_lists(generation_parser_t *parser, bool *ret_any)
{
    *ret_any = false;
    for (size_t i = 0; i < COUNT(list_fields); i++) {
        const json_t *value = json_object_get(parser->root, list_fields[i]);
        if (!is_per_prompt(list_fields[i], value)) continue;
        *ret_any = true;
        if (!parser->generation->is_list) {
            http_error_set(parser->error, 400, list_fields[i], "%s is a list, and the prompt is not; give it plainly.",
                           list_fields[i]);
            return false;
        }
        if (json_array_size(value) == parser->generation->prompt_count) continue;
        http_error_set(parser->error, 400, list_fields[i], "%s has %zu elements for %u prompts.", list_fields[i],
                       json_array_size(value), parser->generation->prompt_count);
        return false;
    }
    return true;
}

/* The logprob fields of prompt `index`, each from its list or the same for all. Returns owned. */
static json_t *logprobs_of(const json_t *root, size_t index)
{
    json_t *object = json_object();
    for (size_t i = 1; i < COUNT(list_fields); i++) {
        json_t *value = json_object_get(root, list_fields[i]);
        if (is_per_prompt(list_fields[i], value)) value = json_array_get(value, index);
        if (value) json_object_set(object, list_fields[i], value);
    }
    return object;
}

static bool read_variant(generation_parser_t *parser, size_t index)
{
    const json_t *sampling = json_object_get(parser->root, "sampling_params");
    char param[QN_NAME_MAX - 1] = "sampling_params";
    if (json_is_array(sampling)) {
        snprintf(param, sizeof param, "sampling_params[%zu]", index);
        sampling = json_array_get(sampling, index);
    }
    json_t *logprobs = logprobs_of(parser->root, index);
    bool good = read_sampling(parser, sampling, param) && read_logprobs(parser, logprobs);
    json_decref(logprobs);
    return good;
}

/* The number of choices shapes the answer: it is the same for all, as SGLang wants it. */
static bool check_same_n(generation_parser_t *parser, const generation_t *variants)
{
    for (uint32_t i = 1; i < parser->generation->prompt_count; i++) {
        if (variants[i].n == variants[0].n) continue;
        http_error_set(parser->error, 400, "sampling_params",
                       "sampling_params[%u].n is %u and that of the first is %u; "
                       "n must be the same for all prompts.",
                       i, variants[i].n, variants[0].n);
        return false;
    }
    parser->generation->n = variants[0].n;
    return true;
}

static bool read_variants(generation_parser_t *parser)
{
    generation_t *whole = parser->generation;
    generation_t *variants = qn_arena_zalloc(&whole->arena, whole->prompt_count, sizeof *variants);
    bool good = true;
    for (uint32_t i = 0; good && i < whole->prompt_count; i++) {
        variants[i] = *whole; /* with the arena: the one in use moves along */
        generation_parser_t each = *parser;
        each.generation = &variants[i];
        good = read_variant(&each, i);
        whole->arena = variants[i].arena;
    }
    for (uint32_t i = 0; i < whole->prompt_count; i++)
        variants[i].arena = (qn_arena_t){0};
    if (!good || !check_same_n(parser, variants)) return false;
    whole->variants = variants;
    for (uint32_t i = 0; i < whole->prompt_count; i++) { /* what the whole answer must know */
        if (variants[i].prompt_logprobs > whole->prompt_logprobs) whole->prompt_logprobs = variants[i].prompt_logprobs;
        if (variants[i].logprobs > whole->logprobs) whole->logprobs = variants[i].logprobs;
        whole->seed_given = whole->seed_given || variants[i].seed_given;
    }
    return true;
}

static bool read_parameters(generation_parser_t *parser)
{
    const json_t *sampling = json_object_get(parser->root, "sampling_params");
    bool lists;
    if (json_is_object(sampling))
        unknown_fields_add(&parser->generation->unknown, sampling, "sampling_params.", is_known_sampling);
    for (size_t i = 0; json_is_array(sampling) && i < json_array_size(sampling); i++)
        unknown_fields_add(&parser->generation->unknown, json_array_get(sampling, i), "sampling_params.",
                           is_known_sampling);
    if (!find_lists(parser, &lists)) return false;
    if (lists) return read_variants(parser);
    return read_sampling(parser, sampling, "sampling_params") && read_logprobs(parser, parser->root);
}

/* rid: a string for all, or one string per prompt. */
static bool read_rid(generation_parser_t *parser)
{
    generation_t *generation = parser->generation;
    const json_t *value = json_object_get(parser->root, "rid");
    if (!json_is_array(value)) return generation_name(parser, parser->root, "rid", &generation->request_id);
    if (json_array_size(value) != generation->prompt_count) {
        http_error_set(parser->error, 400, "rid", "rid has %zu names for %u prompts.", json_array_size(value),
                       generation->prompt_count);
        return false;
    }
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *name = json_array_get(value, i);
        if (!generation_is_name(name)) {
            http_error_set(parser->error, 400, "rid",
                           "rid[%zu] must be a string of 1 to %d printable ASCII characters "
                           "without spaces.",
                           i, QN_CLIENT_REQUEST_MAX);
            return false;
        }
        generation->prompts[i].rid =
            qn_arena_strndup(&generation->arena, json_string_value(name), json_string_length(name));
    }
    return true;
}

/* Sampling fields of the plain form; sampling_params, where it is given besides, changes them. */
static bool read_plain(generation_parser_t *parser)
{
    generation_t *generation = parser->generation;
    return json_fields_read(parser->root, "", sampling_fields, COUNT(sampling_fields), generation, parser->error) &&
           json_fields_read(parser->root, "", plain_fields, COUNT(plain_fields), generation, parser->error) &&
           generation_sampling_lists(parser, parser->root, "");
}

/* `prompt` says that a body is plain; text and input_ids are SGLang's. */
static void look_at_form(generation_parser_t *parser)
{
    generation_t *generation = parser->generation;
    generation->plain = generation->api == GENERATION_BATCH ||
                        (json_object_get(parser->root, "prompt") && !json_object_get(parser->root, "text") &&
                         !json_object_get(parser->root, "input_ids"));
    if (!generation->plain) return;
    if (!parser->limits->default_max_tokens) generation->max_tokens = PLAIN_MAX_TOKENS;
    generation->temperature = PLAIN_TEMPERATURE;
}

bool generation_generate(generation_parser_t *parser)
{
    look_at_form(parser);
    generation_t *generation = parser->generation;
    size_t count;
    const generation_unsupported_t *everywhere = generation_unsupported_everywhere(&count);
    unknown_fields_add(&generation->unknown, parser->root, "",
                       !generation->plain                    ? is_known
                       : generation->api == GENERATION_BATCH ? is_known_batch
                                                             : is_known_plain);
    bool good = generation_refuse_unsupported(parser, parser->root, "", everywhere, count) &&
                generation_refuse_unsupported(parser, parser->root, "", unsupported, COUNT(unsupported)) &&
                read_prompts(parser) &&
                json_fields_read(parser->root, "", fields, COUNT(fields), generation, parser->error) &&
                (!generation->plain || read_plain(parser)) && read_parameters(parser) && read_rid(parser) &&
                generation_salt(parser, parser->root) && generation_masks(parser, parser->root) &&
                generation_patches(parser, parser->root);
    generation->best_of = generation->n;
    return good;
}

const json_field_t *generation_fields(generation_api_t api, unsigned index, size_t *ret_count, const char **ret_under)
{
    static const struct {
        const json_field_t *fields;
        size_t count;
        const char *under;
    } tables[] = {
        {fields, COUNT(fields), NULL},
        {logprob_fields, COUNT(logprob_fields), NULL},
        {plain_fields, COUNT(plain_fields), NULL},
        {sampling_fields, COUNT(sampling_fields), NULL},
        {sampling_fields, COUNT(sampling_fields), "sampling_params"},
    };
    if (api == GENERATION_COMPLETIONS) return generation_completions_fields(index, ret_count, ret_under);
    if (index >= COUNT(tables)) return NULL;
    *ret_count = tables[index].count;
    *ret_under = tables[index].under;
    return tables[index].fields;
}
