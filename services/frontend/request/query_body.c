/* What is this?      Bodies of /tokenize, /detokenize and /abort_request.
 * State owned:       none; results live in the query's arena.
 * Must never:        let a field through that changes nothing without a word.
 * Read next:         json_fields.h, generation_parse.c (the same for generation). */
#include "services/frontend/request/query_body.h"

#include <string.h>

#include "services/frontend/request/json_fields.h"

#define AT(field) offsetof(query_body_t, field)

static const json_field_t tokenize_fields[] = {
    {"add_special_tokens", JSON_FIELD_FLAG, AT(add_special), 0, 0, 0},
    {"return_token_strs", JSON_FIELD_FLAG, AT(with_pieces), 0, 0, 0},
};

static const json_field_t detokenize_fields[] = {
    {"skip_special_tokens", JSON_FIELD_FLAG, AT(skip_special), 0, 0, 0},
};

static const json_field_t abort_fields[] = {
    {"abort_all", JSON_FIELD_FLAG, AT(abort_all), 0, 0, 0},
};

static const struct {
    route_t route;
    const json_field_t *fields;
    size_t count;
    const char *others[4]; /* read by hand */
} routes[] = {
    {ROUTE_TOKENIZE, tokenize_fields, 2, {"prompt", "text", "model", "messages"}},
    {ROUTE_DETOKENIZE, detokenize_fields, 1, {"tokens", "model"}},
    {ROUTE_ABORT_REQUEST, abort_fields, 1, {"rid", "request_id"}},
};

static bool names(size_t route, const char *name)
{
    for (size_t i = 0; i < sizeof routes[0].others / sizeof routes[0].others[0]; i++) {
        if (routes[route].others[i] && strcmp(routes[route].others[i], name) == 0) return true;
    }
    return json_fields_name(routes[route].fields, routes[route].count, name);
}

static bool knows_tokenize(const char *name) { return names(0, name); }
static bool knows_detokenize(const char *name) { return names(1, name); }
static bool knows_abort(const char *name) { return names(2, name); }

/* prompt, or text, which is the same. */
static bool read_text(const json_t *root, query_body_t *query, http_error_t *ret_error)
{
    const json_t *prompt = json_object_get(root, "prompt"), *text = json_object_get(root, "text");
    bool has_prompt = prompt && !json_is_null(prompt), has_text = text && !json_is_null(text);
    const json_t *messages = json_object_get(root, "messages");
    if (messages && !json_is_null(messages)) {
        http_error_set(ret_error, 400, "messages", "messages is not supported here: send the text as prompt.");
        return false;
    }
    const char *param = has_text && !has_prompt ? "text" : "prompt";
    const json_t *value = has_text && !has_prompt ? text : prompt;
    if ((has_prompt && has_text) || !json_is_string(value)) {
        http_error_set(ret_error, 400, param, "%s must be a string; give one of prompt and text.", param);
        return false;
    }
    query->text.bytes = json_string_length(value);
    query->text.data = qn_arena_strndup(&query->arena, json_string_value(value), query->text.bytes);
    return true;
}

/* {"rid": ...} (SGLang), {"request_id": ...} (vLLM). */
static bool read_abort_id(const json_t *root, query_body_t *query, http_error_t *ret_error)
{
    const char *const ids[] = {"rid", "request_id"};
    for (size_t i = 0; i < 2; i++) {
        const json_t *value = json_object_get(root, ids[i]);
        if (!value || json_is_null(value)) continue;
        size_t bytes = json_is_string(value) ? json_string_length(value) : 0;
        if (!json_is_string(value) || bytes > QN_CLIENT_REQUEST_MAX || memchr(json_string_value(value), '\0', bytes)) {
            http_error_set(ret_error, 400, ids[i], "%s must be a string of at most %d bytes without NUL.", ids[i],
                           QN_CLIENT_REQUEST_MAX);
            return false;
        }
        if (bytes > 0 && !query->abort_id)
            query->abort_id = qn_arena_strndup(&query->arena, json_string_value(value), bytes);
    }
    return true;
}

static bool read_query(route_t route, const json_t *root, const generation_limits_t *limits, query_body_t *query,
                       http_error_t *ret_error)
{
    size_t row = route == ROUTE_TOKENIZE ? 0 : route == ROUTE_DETOKENIZE ? 1 : 2;
    bool (*const known[])(const char *) = {knows_tokenize, knows_detokenize, knows_abort};
    unknown_fields_add(&query->unknown, root, "", known[row]);
    if (!json_fields_read(root, "", routes[row].fields, routes[row].count, query, ret_error)) return false;
    if (route == ROUTE_ABORT_REQUEST) return read_abort_id(root, query, ret_error);
    if (!generation_check_model(root, limits->model, ret_error)) return false;
    if (route == ROUTE_TOKENIZE) return read_text(root, query, ret_error);
    return generation_parse_ids(json_object_get(root, "tokens"), "tokens", limits->vocab_size, &query->arena,
                                &query->ids, &query->id_count, ret_error);
}

bool query_body_parse(route_t route, const char *body, size_t bytes, const generation_limits_t *limits,
                      query_body_t *ret_query, http_error_t *ret_error)
{
    *ret_query = (query_body_t){.add_special = true};
    qn_arena_init(&ret_query->arena, 4096);
    if (route == ROUTE_ABORT_REQUEST && bytes == 0) return true;
    json_t *root = json_fields_parse(body, bytes, ret_error);
    bool good = root && read_query(route, root, limits, ret_query, ret_error) &&
                generation_check_unknown(&ret_query->unknown, limits->strict, ret_error);
    json_decref(root);
    if (!good) query_body_fini(ret_query);
    return good;
}

const json_field_t *query_body_fields(route_t route, size_t *ret_count)
{
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        if (routes[i].route != route) continue;
        *ret_count = routes[i].count;
        return routes[i].fields;
    }
    return NULL;
}

void query_body_fini(query_body_t *query)
{
    qn_arena_fini(&query->arena);
    *query = (query_body_t){0};
}
