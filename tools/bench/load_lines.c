/* What is this?      The lines of a file of prompts, or of a trace.
 * State owned:       the lines of a load_lines_t.
 * Must never:        leave a member of a line unused.
 * Read next:         load_prompts.c, which makes requests of them. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench/load_prompts.h"

#define ARRIVAL_S_MAX 86400.0

/* Where a line stands, for messages. */
typedef struct {
    const char *path;
    size_t number;
} place_t;

static qn_err_t bad(const place_t *place, const char *what)
{
    return qn_fail(QN_ERR_INVALID, "%s, line %zu: %s", place->path, place->number, what);
}

static qn_err_t take_count(const place_t *place, const json_t *value, const char *name, uint32_t *ret_count)
{
    json_int_t count = json_integer_value(value);
    if (!json_is_integer(value) || count < 1 || count > QN_PROMPT_TOKENS_MAX)
        return qn_fail(QN_ERR_INVALID, "%s, line %zu: %s must be a whole number from 1 to %u", place->path,
                       place->number, name, QN_PROMPT_TOKENS_MAX);
    *ret_count = (uint32_t)count;
    return QN_OK;
}

/* One prompt: a text, or ids. */
static qn_err_t take_prompt(const place_t *place, const json_t *value, load_line_t *line)
{
    if (line->prompt || line->prompt_tokens)
        return bad(place, "give one of prompt, text, input_ids and prompt_tokens, not several");
    size_t count = json_array_size(value);
    if (!json_is_string(value) && !count)
        return bad(place, "a prompt is a string, or a list of token ids with one at least");
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(value, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > UINT32_MAX)
            return bad(place, "the list of a prompt has something that is no token id");
    }
    if (count > QN_PROMPT_TOKENS_MAX) return bad(place, "the prompt has more token ids than any server takes");
    line->prompt = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    line->prompt_tokens = (uint32_t)count;
    return line->prompt ? QN_OK : qn_fail(QN_ERR_NO_MEMORY, "no memory for %s", place->path);
}

static qn_err_t take_arrival(const place_t *place, const json_t *value, double least, double *ret_arrival_s)
{
    double arrival_s = json_number_value(value);
    if (!json_is_number(value) || !(arrival_s >= 0 && arrival_s <= ARRIVAL_S_MAX))
        return bad(place, "arrival must be a number of seconds from 0 to 86400");
    if (arrival_s < least) return bad(place, "arrival is before that of the line before: sort the lines");
    *ret_arrival_s = arrival_s;
    return QN_OK;
}

static qn_err_t take_member(const place_t *place, const char *name, const json_t *value, double least_s,
                            load_line_t *line)
{
    if (!strcmp(name, "prompt") || !strcmp(name, "text") || !strcmp(name, "input_ids"))
        return take_prompt(place, value, line);
    if (!strcmp(name, "max_tokens")) return take_count(place, value, name, &line->max_tokens);
    if (!strcmp(name, "arrival")) return take_arrival(place, value, least_s, &line->arrival_s);
    if (!strcmp(name, "prompt_tokens")) {
        if (line->prompt) return bad(place, "give one of prompt, text, input_ids and prompt_tokens, not several");
        return take_count(place, value, name, &line->prompt_tokens);
    }
    return qn_fail(
        QN_ERR_INVALID,
        "%s, line %zu: \"%.40s\" is not understood; a line has prompt, text, input_ids or prompt_tokens, and "
        "max_tokens and arrival",
        place->path, place->number, name);
}

static qn_err_t take_object(const place_t *place, json_t *object, bool is_trace, double least_s, load_line_t *line)
{
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        qn_err_t err = take_member(place, name, value, least_s, line);
        if (err) return err;
    }
    if (!line->prompt && !line->prompt_tokens)
        return bad(place, "there is no prompt, text, input_ids or prompt_tokens");
    bool has_arrival = json_object_get(object, "arrival") != NULL;
    if (is_trace && !has_arrival) return bad(place, "a line of a trace has its arrival in seconds");
    if (!is_trace && has_arrival) return bad(place, "arrival is for --trace: give the file there");
    return QN_OK;
}

static qn_err_t take_line(const place_t *place, const char *text, size_t bytes, bool is_trace, double least_s,
                          load_line_t *line)
{
    json_error_t why;
    json_t *json = json_loadb(text, bytes, JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &why);
    qn_err_t err;
    if (!json)
        err = bad(place, why.text);
    else if (json_is_object(json))
        err = take_object(place, json, is_trace, least_s, line);
    else if (json_is_string(json) && !is_trace)
        err = take_prompt(place, json, line);
    else
        err = bad(place, is_trace ? "it must be a JSON object" : "it must be a JSON object or string");
    json_decref(json);
    return err;
}

static load_line_t *add_line(load_lines_t *lines)
{
    if (lines->count == lines->capacity) {
        size_t capacity = lines->capacity ? lines->capacity * 2 : 256;
        load_line_t *grown = realloc(lines->items, capacity * sizeof *grown);
        if (!grown) return NULL;
        lines->items = grown;
        lines->capacity = capacity;
    }
    lines->items[lines->count] = (load_line_t){0};
    return &lines->items[lines->count++];
}

qn_err_t load_lines_parse(const char *path, const char *text, size_t bytes, bool is_trace, load_lines_t *ret_lines)
{
    place_t place = {.path = path};
    for (const char *at = text, *end = text + bytes; at < end;) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size_t length = newline ? (size_t)(newline - at) : (size_t)(end - at);
        place.number++;
        if (strspn(at, " \t\r") < length) {
            if (ret_lines->count == LOAD_LINES_MAX)
                return qn_fail(QN_ERR_LIMIT, "%s has more than %d lines", path, LOAD_LINES_MAX);
            double least_s = ret_lines->count ? ret_lines->items[ret_lines->count - 1].arrival_s : 0;
            load_line_t *line = add_line(ret_lines);
            if (!line) return qn_fail(QN_ERR_NO_MEMORY, "no memory for %s", path);
            qn_err_t err = take_line(&place, at, length, is_trace, least_s, line);
            if (err) return err;
        }
        at += length + 1;
    }
    return ret_lines->count ? QN_OK : qn_fail(QN_ERR_INVALID, "%s has no line", path);
}

void load_lines_fini(load_lines_t *lines)
{
    for (size_t i = 0; i < lines->count; i++)
        free(lines->items[i].prompt);
    free(lines->items);
    *lines = (load_lines_t){0};
}
