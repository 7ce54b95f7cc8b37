/* What is this?      POST /generate as SGLang writes it.
 * State owned:       none.
 * Must never:        let a field through that changes nothing: what is known and not done is refused.
 * Read next:         generation_parse.c for the parts shared with OpenAI's API. */
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

static const generation_unsupported_t unsupported_sampling[] = {
    {"json_schema", "constrained output is not built in", NULL},
    {"regex", "constrained output is not built in", NULL},
    {"ebnf", "constrained output is not built in", NULL},
    {"structural_tag", "constrained output is not built in", NULL},
    {"stop_regex", "stop strings are plain text", NULL},
    {"custom_params", "requests cannot bring code", NULL},
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

static const generation_unsupported_t unsupported[] = {
    {"image_data", "the model reads text", NULL},
    {"video_data", "the model reads text", NULL},
    {"audio_data", "the model reads text", NULL},
    {"input_embeds", "prompts are text or token ids", NULL},
    {"token_ids_logprob", "log-probabilities are those of the most likely tokens (top_logprobs_num)", NULL},
    {"lora_path", "there are no adapters", NULL},
    {"session_params", "there are no sessions", NULL},
    {"custom_logit_processor", "requests cannot bring code", NULL},
    {"return_hidden_states", "activations are not returned here", NULL},
};

static bool read_prompts(generation_parser_t *parser)
{
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

static bool read_sampling(generation_parser_t *parser)
{
    const json_t *value = json_object_get(parser->root, "sampling_params");
    if (!value || json_is_null(value)) return true;
    if (!json_is_object(value)) {
        http_error_set(parser->error, 400, "sampling_params",
                       "sampling_params must be one object for all prompts, it is %s.", json_fields_type(value));
        return false;
    }
    const char *prefix = "sampling_params.";
    return generation_refuse_unsupported(parser, value, prefix, unsupported_sampling, COUNT(unsupported_sampling)) &&
           json_fields_read(value, prefix, sampling_fields, COUNT(sampling_fields), parser->generation,
                            parser->error) &&
           generation_sampling_lists(parser, value, prefix);
}

static bool read_logprobs(generation_parser_t *parser)
{
    generation_t *generation = parser->generation;
    logprob_fields_t read = {.start = -1};
    if (!json_fields_read(parser->root, "", logprob_fields, COUNT(logprob_fields), &read, parser->error)) return false;
    if (!read.return_logprob) return true;
    generation->logprobs = (int32_t)read.top;
    generation->logprob_start = read.start;
    if (read.start >= 0) generation->prompt_logprobs = (int32_t)read.top;
    return true;
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

bool generation_generate(generation_parser_t *parser)
{
    generation_t *generation = parser->generation;
    bool good =
        generation_refuse_unsupported(parser, parser->root, "", unsupported, COUNT(unsupported)) &&
        read_prompts(parser) && json_fields_read(parser->root, "", fields, COUNT(fields), generation, parser->error) &&
        read_sampling(parser) && read_logprobs(parser) && read_rid(parser) && generation_salt(parser, parser->root);
    generation->best_of = generation->n;
    return good;
}
