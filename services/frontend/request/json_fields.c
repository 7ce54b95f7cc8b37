/* What is this?      Typed access to members of a JSON object, with messages for people.
 * State owned:       none.
 * Must never:        guess: no number from a string, no flag from a number.
 * Read next:         generation_parse.c, which holds the tables. */
#include "services/frontend/request/json_fields.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "services/frontend/reply/json_writer.h"
#include "services/frontend/request/json_scan.h"

#define SHOWN_BYTES 48

/* jansson recurses per level up to 2048 and takes some 40 bytes per value; foreign bytes get less, checked before it
 * sees them. */
static bool too_large(const char *body, size_t bytes, http_error_t *ret_error)
{
    json_size_t size = json_scan_size(body, bytes);
    const struct {
        uint32_t has, most;
        const char *what;
    } limits[] = {
        {size.depth, JSON_FIELDS_DEPTH_MAX, "levels of lists and objects"},
        {size.keys, JSON_FIELDS_KEYS_MAX, "members of objects"},
        {size.values, JSON_FIELDS_VALUES_MAX, "values"},
    };
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        if (limits[i].has <= limits[i].most) continue;
        http_error_set(ret_error, 400, NULL, "The body has %u %s; at most %u are taken.", limits[i].has, limits[i].what,
                       limits[i].most);
        return true;
    }
    return false;
}

/* jansson says where it stopped; that lies in a member, which is what the client wants to know. */
static void set_syntax_error(const char *body, size_t bytes, const json_error_t *error, http_error_t *ret_error)
{
    char name[QN_NAME_MAX + 1] = "";
    if (error->position > 0) json_scan_member(body, bytes, (size_t)error->position, name, sizeof name);
    http_error_set(ret_error, 400, name[0] ? name : NULL, "The body is not valid JSON: %s (line %d, column %d).",
                   error->text, error->line, error->column);
}

json_t *json_fields_parse(const char *body, size_t bytes, http_error_t *ret_error)
{
    if (bytes == 0) {
        http_error_set(ret_error, 400, NULL, "The body is empty; send a JSON object.");
        return NULL;
    }
    if (too_large(body, bytes, ret_error)) return NULL;
    json_error_t error;
    json_t *root = json_loadb(body, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!root) {
        set_syntax_error(body, bytes, &error, ret_error);
        return NULL;
    }
    if (!json_is_object(root)) {
        http_error_set(ret_error, 400, NULL, "The body must be a JSON object, it is %s.", json_fields_type(root));
        json_decref(root);
        return NULL;
    }
    return root;
}

const char *json_fields_type(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number";
    case JSON_TRUE:
    case JSON_FALSE: return "a boolean";
    case JSON_NULL: return "null";
    }
    return "unknown";
}

void json_fields_show(const json_t *value, char *ret_text, size_t room)
{
    if (json_is_array(value) || json_is_object(value)) { /* may be megabytes: say only what it is */
        snprintf(ret_text, room, "%s", json_fields_type(value));
        return;
    }
    if (json_is_string(value)) {
        const char *text = json_string_value(value);
        size_t bytes = json_string_length(value), shown = 0;
        while (shown < bytes && text[shown] != '\0') { /* whole characters only */
            size_t length = json_utf8_length(text + shown, bytes - shown);
            if (length == 0 || shown + length + 6 > room) break;
            shown += length;
        }
        snprintf(ret_text, room, "\"%.*s%s\"", (int)shown, text, shown < bytes ? "..." : "");
        return;
    }
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    snprintf(ret_text, room, "%s", text ? text : "?");
    free(text);
}

static bool refuse(const json_t *value, const char *param, const char *wanted, http_error_t *ret_error)
{
    char shown[SHOWN_BYTES];
    json_fields_show(value, shown, sizeof shown);
    http_error_set(ret_error, 400, param, "%s is %s; it must be %s.", param, shown, wanted);
    return false;
}

bool json_fields_integer(const json_t *value, const char *param, int64_t min, int64_t max, int64_t *ret_value,
                         http_error_t *ret_error)
{
    char wanted[96];
    snprintf(wanted, sizeof wanted, "an integer from %" PRId64 " to %" PRId64, min, max);
    int64_t number = 0;
    if (json_is_integer(value)) {
        number = json_integer_value(value);
    } else if (json_is_real(value) && fabs(json_real_value(value)) < 9e15 &&
               json_real_value(value) == trunc(json_real_value(value))) {
        number = (int64_t)json_real_value(value); /* 16.0 is an integer to JSON and to pydantic */
    } else {
        return refuse(value, param, wanted, ret_error);
    }
    if (number < min || number > max) return refuse(value, param, wanted, ret_error);
    *ret_value = number;
    return true;
}

static bool read_float(const json_t *value, const char *param, const json_field_t *field, float *ret_value,
                       http_error_t *ret_error)
{
    double number = json_number_value(value);
    if (!json_is_number(value) || !(number >= field->min && number <= field->max)) {
        char wanted[96];
        snprintf(wanted, sizeof wanted, "a number from %g to %g", field->min, field->max);
        return refuse(value, param, wanted, ret_error);
    }
    *ret_value = (float)number;
    return true;
}

static bool read_field(const json_t *value, const char *param, const json_field_t *field, char *target,
                       http_error_t *ret_error)
{
    int64_t number = 0;
    switch (field->kind) {
    case JSON_FIELD_FLAG:
        if (!json_is_boolean(value)) return refuse(value, param, "true or false", ret_error);
        *(bool *)target = json_is_true(value);
        return true;
    case JSON_FIELD_UNSIGNED:
        if (!json_fields_integer(value, param, (int64_t)field->min, (int64_t)field->max, &number, ret_error))
            return false;
        *(uint32_t *)(void *)target = (uint32_t)number;
        return true;
    case JSON_FIELD_SIGNED:
        if (!json_fields_integer(value, param, (int64_t)field->min, (int64_t)field->max, &number, ret_error))
            return false;
        *(int32_t *)(void *)target = (int32_t)number;
        return true;
    case JSON_FIELD_SEED:
        if (!json_fields_integer(value, param, INT64_MIN, INT64_MAX, &number, ret_error)) return false;
        *(uint64_t *)(void *)target = (uint64_t)number;
        return true;
    case JSON_FIELD_FLOAT: return read_float(value, param, field, (float *)(void *)target, ret_error);
    }
    return false;
}

bool json_fields_read(const json_t *object, const char *prefix, const json_field_t *fields, size_t count, void *target,
                      http_error_t *ret_error)
{
    for (size_t i = 0; i < count; i++) {
        const json_t *value = json_object_get(object, fields[i].name);
        if (!value || json_is_null(value)) continue;
        char param[QN_NAME_MAX + 1];
        snprintf(param, sizeof param, "%s%s", prefix, fields[i].name);
        if (!read_field(value, param, &fields[i], (char *)target + fields[i].offset, ret_error)) return false;
        if (fields[i].given_offset) *(bool *)((char *)target + fields[i].given_offset) = true;
    }
    return true;
}

bool json_fields_name(const json_field_t *fields, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(fields[i].name, name) == 0) return true;
    }
    return false;
}
