/* Reads typed, range-checked members of a JSON object into a C struct, by a table. A value of the wrong type or out of
 * range is refused with a message that names field, value and what is allowed; null counts as absent, which leaves
 * the target as it was. Members that no table names are gathered by unknown_fields.h. */
#ifndef QN_FRONTEND_REQUEST_JSON_FIELDS_H
#define QN_FRONTEND_REQUEST_JSON_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "services/frontend/http/http_error.h"

typedef enum {
    JSON_FIELD_FLAG,     /* bool */
    JSON_FIELD_UNSIGNED, /* uint32_t */
    JSON_FIELD_SIGNED,   /* int32_t */
    JSON_FIELD_SEED,     /* uint64_t; any 64-bit integer, a negative one as its two's complement */
    JSON_FIELD_FLOAT,    /* float */
} json_field_kind_t;

typedef struct {
    const char *name;
    json_field_kind_t kind;
    size_t offset;       /* of the target in the struct */
    double min, max;     /* inclusive; not for flags and seeds */
    size_t given_offset; /* of a bool set when the field is present; 0: none */
} json_field_t;

/* Parses a whole body that must be one JSON object. Refuses (400) duplicate members, lone surrogates, numbers that do
 * not fit, and trees beyond the three limits below. Returns owned (json_decref), or NULL with *ret_error written. */
json_t *json_fields_parse(const char *body, size_t bytes, http_error_t *ret_error);
#define JSON_FIELDS_DEPTH_MAX 64
#define JSON_FIELDS_KEYS_MAX 16384
#define JSON_FIELDS_VALUES_MAX (2u << 20) /* twice the longest prompt of ids */

/* `prefix`: "" or "sampling_params.", put before names in messages. False: *ret_error is written. */
bool json_fields_read(const json_t *object, const char *prefix, const json_field_t *fields, size_t count, void *target,
                      http_error_t *ret_error);

/* Whether a table has a field of this name. */
bool json_fields_name(const json_field_t *fields, size_t count, const char *name);

/* One integer value, not null: a JSON integer, or a real without fraction, in [min, max]. */
bool json_fields_integer(const json_t *value, const char *param, int64_t min, int64_t max, int64_t *ret_value,
                         http_error_t *ret_error);

/* The value as compact JSON for a message, cut to `room` bytes with "..." at the end. */
void json_fields_show(const json_t *value, char *ret_text, size_t room);
/* "a string", "an object", ... */
const char *json_fields_type(const json_t *value);

#endif
