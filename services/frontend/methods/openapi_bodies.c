/* What is this?      Bodies of the routes that are no methods, as JSON Schema, from the tables that parse them.
 * State owned:       none.
 * Must never:        say more of a field than its parser does.
 * Read next:         generation.h, query_body.h, json_fields.h (the tables); openapi.c. */
#include <string.h>

#include "services/frontend/methods/openapi.h"
#include "services/frontend/request/query_body.h"

/* Read by hand, not by a table: JSON members of "properties". */
#define STRING "{\"type\":\"string\",\"minLength\":1}"
#define IDS "{\"type\":\"array\",\"minItems\":1,\"items\":{\"type\":\"integer\",\"minimum\":0}}"
#define LIST_OF(schema) "{\"type\":\"array\",\"minItems\":1,\"items\":" schema "}"
#define TEXTS                                                      \
    "{\"anyOf\":[" STRING "," LIST_OF(STRING) "," IDS "," LIST_OF( \
        IDS) "],"                                                  \
             "\"description\":\"a string, a list of strings, token ids, or a list of such lists\"}"
#define NAME "{\"type\":[\"string\",\"null\"]}"
#define LISTS                                                                                                \
    "\"stop\":{\"type\":[\"string\",\"array\",\"null\"]},\"stop_token_ids\":{\"type\":[\"array\",\"null\"]," \
    "\"items\":{\"type\":\"integer\"}},\"logit_bias\":{\"type\":[\"object\",\"null\"]},"                     \
    "\"allowed_token_ids\":{\"type\":[\"array\",\"null\"]},\"bad_words\":{\"type\":[\"array\",\"null\"]},"   \
    "\"top_k\":{\"type\":[\"integer\",\"null\"]},\"user\":" NAME ",\"adapter\":{\"enum\":[\"\",null]},"      \
    "\"deadline_ms\":{\"type\":[\"integer\",\"null\"],\"minimum\":1,\"maximum\":86400000}"

static const struct {
    route_t route;
    const char *properties, *rest; /* of the schema beside "properties" */
} by_hand[] = {
    {ROUTE_COMPLETIONS, "\"prompt\":" TEXTS ",\"model\":" NAME ",\"cache_salt\":" NAME "," LISTS,
     "\"required\":[\"prompt\"]"},
    {ROUTE_GENERATE,
     "\"prompt\":" TEXTS ",\"text\":{\"anyOf\":[" STRING
     "," LIST_OF(STRING) "]},\"input_ids\":{\"anyOf\":[" IDS
                         "," LIST_OF(IDS) "]},\"rid\":{\"type\":[\"string\",\"array\",\"null\"]}," LISTS,
     "\"anyOf\":[{\"required\":[\"prompt\"]},{\"required\":[\"text\"]},{\"required\":[\"input_ids\"]}]"},
    {ROUTE_BATCH_GENERATE, "\"prompts\":{\"anyOf\":[" LIST_OF(STRING) "," LIST_OF(IDS) "]}," LISTS,
     "\"required\":[\"prompts\"]"},
    {ROUTE_TOKENIZE, "\"prompt\":{\"type\":\"string\"},\"text\":{\"type\":\"string\"}",
     "\"anyOf\":[{\"required\":[\"prompt\"]},{\"required\":[\"text\"]}]"},
    {ROUTE_DETOKENIZE, "\"tokens\":{\"type\":\"array\",\"items\":{\"type\":\"integer\",\"minimum\":0}}",
     "\"required\":[\"tokens\"]"},
    {ROUTE_ABORT_REQUEST, "\"rid\":" NAME ",\"request_id\":" NAME, NULL},
};

static void put_field(const json_field_t *field, json_writer_t *writer)
{
    static const char *const types[] = {
        [JSON_FIELD_FLAG] = "boolean", [JSON_FIELD_UNSIGNED] = "integer", [JSON_FIELD_SIGNED] = "integer",
        [JSON_FIELD_SEED] = "integer", [JSON_FIELD_FLOAT] = "number",
    };
    json_put_key(writer, field->name);
    json_put_open(writer, '{');
    json_put_key(writer, "type");
    json_put_open(writer, '[');
    json_put_string(writer, types[field->kind]);
    json_put_string(writer, "null");
    json_put_close(writer, ']');
    if (field->kind != JSON_FIELD_FLAG && field->kind != JSON_FIELD_SEED) {
        json_put_key(writer, "minimum");
        json_put_number(writer, field->min);
        json_put_key(writer, "maximum");
        json_put_number(writer, field->max);
    }
    json_put_close(writer, '}');
}

static void put_fields(const json_field_t *fields, size_t count, json_writer_t *writer)
{
    for (size_t i = 0; i < count; i++)
        put_field(&fields[i], writer);
}

static void put_generation(generation_api_t api, json_writer_t *writer)
{
    const json_field_t *fields;
    const char *under;
    size_t count;
    for (unsigned i = 0; (fields = generation_fields(api, i, &count, &under)); i++) {
        if (under) {
            json_put_key(writer, under);
            json_put_open(writer, '{');
            json_put_key(writer, "type");
            json_put_raw(writer, "[\"object\",\"array\",\"null\"]", 25);
            json_put_key(writer, "properties");
            json_put_open(writer, '{');
        }
        put_fields(fields, count, writer);
        if (under) {
            json_put_close(writer, '}');
            json_put_close(writer, '}');
        }
    }
}

bool openapi_put_body(route_t route, json_writer_t *writer)
{
    size_t row = 0, count = 0;
    while (row < sizeof by_hand / sizeof by_hand[0] && by_hand[row].route != route)
        row++;
    if (row == sizeof by_hand / sizeof by_hand[0]) return false;
    json_put_open(writer, '{');
    json_put_member_string(writer, "type", "object");
    json_put_key(writer, "properties");
    json_put_open(writer, '{');
    json_put_raw(writer, by_hand[row].properties, strlen(by_hand[row].properties));
    const json_field_t *fields = query_body_fields(route, &count);
    if (fields)
        put_fields(fields, count, writer);
    else
        put_generation(route == ROUTE_COMPLETIONS ? GENERATION_COMPLETIONS
                       : route == ROUTE_GENERATE  ? GENERATION_GENERATE
                                                  : GENERATION_BATCH,
                       writer);
    json_put_close(writer, '}');
    if (by_hand[row].rest) json_put_raw(writer, by_hand[row].rest, strlen(by_hand[row].rest));
    json_put_close(writer, '}');
    return true;
}

void openapi_put_example(route_t route, const served_model_t *model, json_writer_t *writer)
{
    const char *text = "{}";
    switch (route) {
    case ROUTE_COMPLETIONS: text = "{\"prompt\":[1,2,3],\"max_tokens\":8}"; break;
    case ROUTE_GENERATE: text = "{\"input_ids\":[1,2,3],\"sampling_params\":{\"max_new_tokens\":8}}"; break;
    case ROUTE_BATCH_GENERATE: text = "{\"prompts\":[[1,2,3],[4,5]],\"max_tokens\":8}"; break;
    case ROUTE_TOKENIZE: text = model->has_text ? "{\"prompt\":\"The SELECT statement\"}" : "{\"prompt\":\"\"}"; break;
    case ROUTE_DETOKENIZE: text = "{\"tokens\":[1,2,3]}"; break;
    case ROUTE_ABORT_REQUEST: text = "{\"abort_all\":true}"; break;
    default: break;
    }
    json_put_raw(writer, text, strlen(text));
}
