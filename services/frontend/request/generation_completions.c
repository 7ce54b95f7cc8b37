/* What is this?      POST /v1/completions as OpenAI and vLLM write it.
 * State owned:       none.
 * Must never:        let a field through that changes nothing: what is known and not done is refused.
 * Read next:         generation_parse.c for the parts shared with SGLang's API. */
#include <string.h>

#include "services/frontend/request/generation_internal.h"

#define AT(field) offsetof(generation_t, field)

static const json_field_t fields[] = {
    {"n", JSON_FIELD_UNSIGNED, AT(n), 1, QN_CHOICES_MAX, 0},
    {"best_of", JSON_FIELD_UNSIGNED, AT(best_of), 1, QN_CHOICES_MAX, 0},
    {"max_tokens", JSON_FIELD_UNSIGNED, AT(max_tokens), 0, QN_PROMPT_TOKENS_MAX, 0},
    {"min_tokens", JSON_FIELD_UNSIGNED, AT(min_tokens), 0, QN_PROMPT_TOKENS_MAX, 0},
    {"temperature", JSON_FIELD_FLOAT, AT(temperature), 0, 100, 0},
    {"top_p", JSON_FIELD_FLOAT, AT(top_p), 0, 1, 0},
    {"min_p", JSON_FIELD_FLOAT, AT(min_p), 0, 1, 0},
    {"presence_penalty", JSON_FIELD_FLOAT, AT(presence_penalty), -2, 2, 0},
    {"frequency_penalty", JSON_FIELD_FLOAT, AT(frequency_penalty), -2, 2, 0},
    {"repetition_penalty", JSON_FIELD_FLOAT, AT(repetition_penalty), 0.01, 100, 0},
    {"seed", JSON_FIELD_SEED, AT(seed), 0, 0, AT(seed_given)},
    {"stream", JSON_FIELD_FLAG, AT(stream), 0, 0, 0},
    {"echo", JSON_FIELD_FLAG, AT(echo), 0, 0, 0},
    {"logprobs", JSON_FIELD_SIGNED, AT(logprobs), 0, QN_TOP_LOGPROBS_MAX, 0},
    {"prompt_logprobs", JSON_FIELD_SIGNED, AT(prompt_logprobs), 0, QN_TOP_LOGPROBS_MAX, AT(show_prompt_logprobs)},
    {"ignore_eos", JSON_FIELD_FLAG, AT(ignore_eos), 0, 0, 0},
    {"skip_special_tokens", JSON_FIELD_FLAG, AT(skip_special), 0, 0, 0},
    {"add_special_tokens", JSON_FIELD_FLAG, AT(add_special), 0, 0, 0},
    {"include_stop_str_in_output", JSON_FIELD_FLAG, AT(include_stop), 0, 0, 0},
    {"return_token_ids", JSON_FIELD_FLAG, AT(return_token_ids), 0, 0, 0},
    {"return_tokens_as_token_ids", JSON_FIELD_FLAG, AT(tokens_as_ids), 0, 0, 0},
    {"priority", JSON_FIELD_SIGNED, AT(priority), INT32_MIN, INT32_MAX, 0},
    {"truncate_prompt_tokens", JSON_FIELD_UNSIGNED, AT(truncate_prompt_tokens), 1, QN_PROMPT_TOKENS_MAX, 0},
};

static const json_field_t stream_fields[] = {
    {"include_usage", JSON_FIELD_FLAG, AT(include_usage), 0, 0, 0},
    {"continuous_usage_stats", JSON_FIELD_FLAG, AT(continuous_usage), 0, 0, 0},
};

static const generation_unsupported_t unsupported[] = {
    {"suffix", "the model does not fill in the middle", NULL},
    {"token_ids_logprob", "that is SGLang's name; here it is logprob_token_ids", NULL},
    {"messages", "that is POST /v1/chat/completions; here it is prompt", NULL},
};

/* Read by hand, or of no effect by what they mean: who asks, and hints for a router in front. */
static bool is_known(const char *name)
{
    static const char *const names[] = {"prompt",           "model",
                                        "stream_options",   "request_id",
                                        "cache_salt",       "safety_identifier",
                                        "prompt_cache_key", "logprob_token_ids",
                                        "sparsity_mask",    "patches"};
    size_t count;
    const generation_unsupported_t *everywhere = generation_unsupported_everywhere(&count);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i], name) == 0) return true;
    }
    return json_fields_name(fields, sizeof fields / sizeof fields[0], name) || generation_list_name(name) ||
           generation_caller_name(name) ||
           generation_unsupported_name(unsupported, sizeof unsupported / sizeof unsupported[0], name) ||
           generation_unsupported_name(everywhere, count, name);
}

static bool is_stream_option(const char *name)
{
    return json_fields_name(stream_fields, sizeof stream_fields / sizeof stream_fields[0], name);
}

/* Hints for a router change nothing here, but they have a type. */
static bool check_hints(generation_parser_t *parser)
{
    static const char *const names[] = {"safety_identifier", "prompt_cache_key"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const json_t *value = json_object_get(parser->root, names[i]);
        if (!value || json_is_null(value) || json_is_string(value)) continue;
        http_error_set(parser->error, 400, names[i], "%s must be a string, it is %s.", names[i],
                       json_fields_type(value));
        return false;
    }
    return true;
}

static bool read_prompt(generation_parser_t *parser)
{
    const json_t *value = json_object_get(parser->root, "prompt");
    if (!value || json_is_null(value)) {
        http_error_set(parser->error, 400, "prompt",
                       "prompt is missing: a string, a list of strings, a list of token "
                       "ids, or a list of such lists.");
        return false;
    }
    if (json_is_string(value)) return generation_text_prompts(parser, value, "prompt");
    if (json_is_array(value) && json_array_size(value) > 0) {
        const json_t *first = json_array_get(value, 0);
        if (json_is_string(first)) return generation_text_prompts(parser, value, "prompt");
        if (json_is_array(first) || json_is_number(first)) return generation_id_prompts(parser, value, "prompt");
    }
    http_error_set(parser->error, 400, "prompt",
                   "prompt must be a string, a list of strings, a list of token ids, or a "
                   "list of such lists; it is %s.",
                   json_is_array(value) && json_array_size(value) == 0 ? "an empty list" : json_fields_type(value));
    return false;
}

static bool read_stream_options(generation_parser_t *parser)
{
    const json_t *value = json_object_get(parser->root, "stream_options");
    if (!value || json_is_null(value)) return true;
    if (!json_is_object(value)) {
        http_error_set(parser->error, 400, "stream_options", "stream_options must be an object, it is %s.",
                       json_fields_type(value));
        return false;
    }
    unknown_fields_add(&parser->generation->unknown, value, "stream_options.", is_stream_option);
    if (!parser->generation->stream) {
        http_error_set(parser->error, 400, "stream_options", "stream_options is allowed only with \"stream\": true.");
        return false;
    }
    return json_fields_read(value, "stream_options.", stream_fields, sizeof stream_fields / sizeof stream_fields[0],
                            parser->generation, parser->error);
}

static bool check_choices(generation_parser_t *parser, bool best_of_given)
{
    generation_t *generation = parser->generation;
    if (!best_of_given) generation->best_of = generation->n;
    if (generation->best_of < generation->n) {
        http_error_set(parser->error, 400, "best_of", "best_of is %u; it may not be below n, which is %u.",
                       generation->best_of, generation->n);
        return false;
    }
    if (generation->stream && generation->best_of > generation->n) {
        http_error_set(parser->error, 400, "best_of",
                       "best_of above n cannot be streamed: which choices are best is known "
                       "only at the end. Set \"stream\": false.");
        return false;
    }
    return true;
}

/* They stand in the place of the likeliest of each generated token. */
static bool read_logprob_ids(generation_parser_t *parser)
{
    static const char param[] = "logprob_token_ids";
    generation_t *generation = parser->generation;
    if (!generation_logprob_ids(parser, json_object_get(parser->root, param), param)) return false;
    if (generation->logprob_id_count == 0) return true;
    if (generation->logprobs == GENERATION_NONE) {
        http_error_set(parser->error, 400, param, "%s needs logprobs: give \"logprobs\": 0 or more with it.", param);
        return false;
    }
    if (generation->max_tokens > 0) return true;
    http_error_set(parser->error, 400, param, "%s is about generated tokens, and max_tokens is 0.", param);
    return false;
}

/* With echo, logprobs covers the prompt too (lm-evaluation-harness lives on this). */
static bool check_echo(generation_parser_t *parser)
{
    generation_t *generation = parser->generation;
    if (generation->echo && generation->logprobs > generation->prompt_logprobs)
        generation->prompt_logprobs = generation->logprobs;
    if (generation->show_prompt_logprobs && generation->stream) {
        http_error_set(parser->error, 400, "prompt_logprobs",
                       "prompt_logprobs cannot be streamed; set \"stream\": false.");
        return false;
    }
    return true;
}

bool generation_completions(generation_parser_t *parser)
{
    generation_t *generation = parser->generation;
    const json_t *best_of = json_object_get(parser->root, "best_of");
    size_t count;
    const generation_unsupported_t *everywhere = generation_unsupported_everywhere(&count);
    unknown_fields_add(&generation->unknown, parser->root, "", is_known);
    return generation_refuse_unsupported(parser, parser->root, "", everywhere, count) &&
           generation_refuse_unsupported(parser, parser->root, "", unsupported,
                                         sizeof unsupported / sizeof unsupported[0]) &&
           read_prompt(parser) && check_hints(parser) &&
           json_fields_read(parser->root, "", fields, sizeof fields / sizeof fields[0], generation, parser->error) &&
           read_logprob_ids(parser) && generation_sampling_lists(parser, parser->root, "") &&
           read_stream_options(parser) &&
           generation_name(parser, parser->root, "request_id", &generation->request_id) &&
           generation_salt(parser, parser->root) && generation_masks(parser, parser->root) &&
           generation_patches(parser, parser->root) && check_choices(parser, best_of && !json_is_null(best_of)) &&
           check_echo(parser);
}

const json_field_t *generation_completions_fields(unsigned index, size_t *ret_count, const char **ret_under)
{
    *ret_under = index == 0 ? NULL : "stream_options";
    *ret_count = index == 0 ? sizeof fields / sizeof fields[0] : sizeof stream_fields / sizeof stream_fields[0];
    return index == 0 ? fields : index == 1 ? stream_fields : NULL;
}
