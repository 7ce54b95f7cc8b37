/* What is this?      Frames as JSON and back, by the descriptors; the same JSON as flatc's.
 * State owned:       none.
 * Must never:        change a value silently: what does not fit the field is refused.
 * Read next:         wire.h (how numbers that JSON lacks are written), wire_check.c (limits). */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/limits.h"
#include "common/config/suggest.h"
#include "common/wire/wire.h"
#include "common/wire/wire_internal.h"

/* ---- to JSON ------------------------------------------------------------------------------------------------ */

static json_t *table_to_json(const qn_wire_type_t *type, const uint8_t *message);

/* The double nearest to the shortest decimal that reads back as the same float: 0.8f is 0.8, not 0.800000012. */
static json_t *float_to_json(float value)
{
    if (isnan(value)) return json_string("nan");
    if (isinf(value)) return json_string(value < 0 ? "-inf" : "inf");
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    return json_real(strtod(text, NULL));
}

static json_t *u64_to_json(uint64_t value)
{
    if (value <= INT64_MAX) return json_integer((json_int_t)value);
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, value);
    return json_string(text);
}

static json_t *scalar_to_json(const qn_wire_field_t *field, const uint8_t *at)
{
    uint64_t bits = 0;
    memcpy(&bits, at, field->bytes);
    if (field->kind == QN_WIRE_BOOL) return json_boolean(bits != 0);
    if (field->kind == QN_WIRE_ENUM) return json_string(field->enumeration->names[bits]);
    if (field->kind == QN_WIRE_I32) return json_integer((int32_t)bits);
    if (field->kind != QN_WIRE_F32) return u64_to_json(bits);
    float value;
    memcpy(&value, at, sizeof value);
    return float_to_json(value);
}

static json_t *struct_to_json(const qn_wire_struct_t *record, const uint8_t *at)
{
    json_t *object = json_object();
    for (size_t i = 0; i < record->member_count; i++) {
        const qn_wire_field_t *member = &record->members[i];
        json_object_set_new(object, member->name,
                            member->kind == QN_WIRE_STRUCT ? struct_to_json(member->record, at + member->offset)
                                                           : scalar_to_json(member, at + member->offset));
    }
    return object;
}

/* One element; `at` is its place in C form. */
static json_t *element_to_json(const qn_wire_field_t *field, const uint8_t *at)
{
    if (field->kind == QN_WIRE_STRUCT) return struct_to_json(field->record, at);
    if (field->kind == QN_WIRE_TABLE) return table_to_json(field->table, at);
    if (field->kind != QN_WIRE_STRING) return scalar_to_json(field, at);
    const qn_text_t *text = (const qn_text_t *)(const void *)at;
    return json_stringn(text->data, text->bytes);
}

static json_t *vector_to_json(const qn_wire_field_t *field, const uint8_t *elements, uint32_t count)
{
    json_t *array = json_array();
    size_t bytes = wire_element_bytes(field);
    for (uint32_t i = 0; i < count; i++)
        json_array_append_new(array, element_to_json(field, elements + i * bytes));
    return array;
}

/* NULL: the field is absent or has its default. */
static json_t *field_to_json(const qn_wire_field_t *field, const uint8_t *message)
{
    const uint8_t *at = message + field->offset;
    if (wire_is_scalar(field) && !field->vector) {
        uint8_t fallback[8];
        wire_store_fallback(field, fallback);
        return memcmp(at, fallback, field->bytes) == 0 ? NULL : scalar_to_json(field, at);
    }
    if (field->kind == QN_WIRE_STRUCT && !field->vector) return struct_to_json(field->record, at);
    const uint8_t *pointer = wire_load_pointer(message, field);
    if (!pointer) return NULL;
    if (field->vector) return vector_to_json(field, pointer, wire_load_count(message, field));
    return element_to_json(field, field->kind == QN_WIRE_TABLE ? pointer : at);
}

static json_t *table_to_json(const qn_wire_type_t *type, const uint8_t *message)
{
    json_t *object = json_object();
    for (size_t i = 0; i < type->field_count; i++) {
        json_t *value = field_to_json(&type->fields[i], message);
        if (value) json_object_set_new(object, type->fields[i].name, value);
    }
    return object;
}

json_t *qn_wire_to_json(const qn_wire_type_t *type, const void *frame, size_t bytes)
{
    qn_arena_t arena;
    qn_arena_init(&arena, 0);
    if ((uintptr_t)frame % 8 != 0 && bytes <= QN_FRAME_BYTES_MAX)
        frame = memcpy(qn_arena_alloc(&arena, bytes, 8), frame, bytes);
    uint8_t *message = qn_arena_alloc(&arena, type->struct_bytes, 16);
    json_t *json = NULL;
    if (qn_wire_decode(type, frame, bytes, &arena, message) == QN_OK) json = table_to_json(type, message);
    qn_arena_fini(&arena);
    return json;
}

/* ---- from JSON ---------------------------------------------------------------------------------------------- */

static qn_err_t table_from_json(const qn_wire_type_t *type, size_t first, const json_t *json, qn_arena_t *arena,
                                const wire_path_t *path, uint8_t *message);

static const char *json_kind(const json_t *json)
{
    switch (json_typeof(json)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a real number";
    case JSON_TRUE:
    case JSON_FALSE: return "a boolean";
    case JSON_NULL: return "null";
    }
    return "nothing";
}

static qn_err_t wrong_kind(const wire_path_t *path, const char *wanted, const json_t *json)
{
    return qn_wire_fail(path, QN_ERR_INVALID, "wants %s, not %s", wanted, json_kind(json));
}

static qn_err_t unknown_member(const wire_path_t *path, const char *name, const qn_wire_field_t *fields, size_t count)
{
    const char *nearest = NULL;
    unsigned best = QN_SUGGEST_DISTANCE_MAX + 1;
    for (size_t i = 0; i < count; i++) {
        unsigned distance = qn_edit_distance(name, fields[i].name);
        if (distance < best) best = distance, nearest = fields[i].name;
    }
    wire_path_t place = wire_path(path, name);
    if (nearest) return qn_wire_fail(&place, QN_ERR_INVALID, "unknown member; did you mean \"%s\"?", nearest);
    return qn_wire_fail(&place, QN_ERR_INVALID, "unknown member");
}

static const qn_wire_field_t *find_member(const qn_wire_field_t *fields, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(fields[i].name, name) == 0) return &fields[i];
    return NULL;
}

static qn_err_t float_from_json(const json_t *json, const wire_path_t *path, void *at)
{
    float value;
    if (json_is_number(json)) {
        value = (float)json_number_value(json);
        if (!isfinite(value)) return qn_wire_fail(path, QN_ERR_INVALID, "does not fit a float");
    } else {
        const char *text = json_is_string(json) ? json_string_value(json) : "";
        if (strcmp(text, "nan") == 0)
            value = NAN;
        else if (strcmp(text, "inf") == 0)
            value = INFINITY;
        else if (strcmp(text, "-inf") == 0)
            value = -INFINITY;
        else
            return wrong_kind(path, "a number, \"nan\", \"inf\" or \"-inf\"", json);
    }
    memcpy(at, &value, sizeof value);
    return QN_OK;
}

/* All of a decimal ulong. */
static bool u64_from_text(const char *text, uint64_t *ret_value)
{
    if (*text < '0' || *text > '9') return false;
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || *end) return false;
    *ret_value = value;
    return true;
}

static qn_err_t integer_from_json(const qn_wire_field_t *field, const json_t *json, const wire_path_t *path, void *at)
{
    uint64_t bits;
    if (field->kind == QN_WIRE_U64 && json_is_string(json)) {
        if (!u64_from_text(json_string_value(json), &bits))
            return qn_wire_fail(path, QN_ERR_INVALID, "is not a decimal number of 64 bits");
    } else {
        bool whole = json_is_real(json) && fabs(json_real_value(json)) < 0x1p53 &&
                     rint(json_real_value(json)) == json_real_value(json);
        if (!json_is_integer(json) && !whole) return wrong_kind(path, "an integer", json);
        int64_t value = whole ? (int64_t)json_real_value(json) : json_integer_value(json); /* 5.0 is an integer */
        bool is_signed = field->kind == QN_WIRE_I32;
        int64_t least = is_signed ? INT32_MIN : 0;
        int64_t most = is_signed ? INT32_MAX : field->bytes == 8 ? INT64_MAX : ((int64_t)1 << 8 * field->bytes) - 1;
        if (value < least || value > most)
            return qn_wire_fail(path, QN_ERR_INVALID, "%" PRId64 " is outside %" PRId64 " to %" PRId64, value, least,
                                most);
        bits = (uint64_t)value;
    }
    memcpy(at, &bits, field->bytes);
    return QN_OK;
}

static qn_err_t enum_from_json(const qn_wire_field_t *field, const json_t *json, const wire_path_t *path, uint8_t *at)
{
    const qn_wire_enum_t *enumeration = field->enumeration;
    if (!json_is_string(json)) return wrong_kind(path, "the name of a value", json);
    for (unsigned i = 0; i < enumeration->count; i++) {
        if (strcmp(enumeration->names[i], json_string_value(json)) != 0) continue;
        *at = (uint8_t)i;
        return QN_OK;
    }
    return qn_wire_fail(path, QN_ERR_INVALID, "\"%s\" is no value of %s", json_string_value(json), enumeration->name);
}

static qn_err_t scalar_from_json(const qn_wire_field_t *field, const json_t *json, const wire_path_t *path, uint8_t *at)
{
    if (field->kind == QN_WIRE_F32) return float_from_json(json, path, at);
    if (field->kind == QN_WIRE_ENUM) return enum_from_json(field, json, path, at);
    if (field->kind != QN_WIRE_BOOL) return integer_from_json(field, json, path, at);
    if (!json_is_boolean(json)) return wrong_kind(path, "true or false", json);
    *at = json_is_true(json);
    return QN_OK;
}

static qn_err_t struct_from_json(const qn_wire_struct_t *record, const json_t *json, const wire_path_t *path,
                                 uint8_t *at)
{
    if (!json_is_object(json)) return wrong_kind(path, "an object", json);
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)json, name, value)
    {
        if (!find_member(record->members, record->member_count, name))
            return unknown_member(path, name, record->members, record->member_count);
    }
    for (size_t i = 0; i < record->member_count; i++) {
        const qn_wire_field_t *member = &record->members[i];
        wire_path_t place = wire_path(path, member->name);
        value = json_object_get(json, member->name);
        if (!value) return qn_wire_fail(&place, QN_ERR_INVALID, "is missing; a struct needs all its members");
        qn_err_t err = member->kind == QN_WIRE_STRUCT
                           ? struct_from_json(member->record, value, &place, at + member->offset)
                           : scalar_from_json(member, value, &place, at + member->offset);
        if (err) return err;
    }
    return QN_OK;
}

static qn_err_t text_from_json(const json_t *json, qn_arena_t *arena, const wire_path_t *path, uint8_t *at)
{
    if (!json_is_string(json)) return wrong_kind(path, "a string", json);
    size_t bytes = json_string_length(json);
    if (bytes > QN_FRAME_BYTES_MAX)
        return qn_wire_fail(path, QN_ERR_LIMIT, "%zu bytes exceed the maximum of a frame", bytes);
    qn_text_t text = {.data = qn_arena_strndup(arena, json_string_value(json), bytes), .bytes = (uint32_t)bytes};
    memcpy(at, &text, sizeof text);
    return QN_OK;
}

static qn_err_t element_from_json(const qn_wire_field_t *field, const json_t *json, qn_arena_t *arena,
                                  const wire_path_t *path, uint8_t *at)
{
    if (field->kind == QN_WIRE_STRUCT) return struct_from_json(field->record, json, path, at);
    if (field->kind == QN_WIRE_STRING) return text_from_json(json, arena, path, at);
    if (field->kind == QN_WIRE_TABLE) return table_from_json(field->table, 0, json, arena, path, at);
    return scalar_from_json(field, json, path, at);
}

static qn_err_t vector_from_json(const qn_wire_field_t *field, const json_t *json, qn_arena_t *arena,
                                 const wire_path_t *parent, uint8_t *message)
{
    wire_path_t path = wire_path(parent, field->name);
    if (!json_is_array(json)) return wrong_kind(&path, "an array", json);
    size_t count = json_array_size(json), bytes = wire_element_bytes(field);
    if (count > field->max_len)
        return qn_wire_fail(&path, QN_ERR_LIMIT, "%zu elements exceed the maximum of %u", count, field->max_len);
    uint8_t *elements = qn_arena_zalloc(arena, count ? count : 1, bytes);
    for (size_t i = 0; i < count; i++) {
        wire_path_t place = wire_path_at(parent, field->name, i);
        qn_err_t err = element_from_json(field, json_array_get(json, i), arena, &place, elements + i * bytes);
        if (err) return err;
    }
    uint32_t elements_count = (uint32_t)count;
    memcpy(message + field->offset, &elements, sizeof elements);
    memcpy(message + field->count_offset, &elements_count, sizeof elements_count);
    return QN_OK;
}

static qn_err_t field_from_json(const qn_wire_field_t *field, const json_t *json, qn_arena_t *arena,
                                const wire_path_t *parent, uint8_t *message)
{
    if (field->vector) return vector_from_json(field, json, arena, parent, message);
    wire_path_t path = wire_path(parent, field->name);
    if (field->kind != QN_WIRE_TABLE) return element_from_json(field, json, arena, &path, message + field->offset);
    uint8_t *inner = qn_arena_alloc(arena, field->table->struct_bytes, 16);
    memcpy(message + field->offset, &inner, sizeof inner);
    return table_from_json(field->table, 0, json, arena, &path, inner);
}

/* Members of fields `first` and later. null says, as in flatc, that the member is not there. */
static qn_err_t table_from_json(const qn_wire_type_t *type, size_t first, const json_t *json, qn_arena_t *arena,
                                const wire_path_t *path, uint8_t *message)
{
    if (!json_is_object(json)) return wrong_kind(path, "an object", json);
    memset(message, 0, type->struct_bytes);
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)json, name, value)
    {
        if (!find_member(type->fields + first, type->field_count - first, name))
            return unknown_member(path, name, type->fields + first, type->field_count - first);
    }
    for (size_t i = first; i < type->field_count; i++) {
        const qn_wire_field_t *field = &type->fields[i];
        value = json_object_get(json, field->name);
        qn_err_t err = QN_OK;
        wire_path_t place = wire_path(path, field->name);
        if (value && !json_is_null(value))
            err = field_from_json(field, value, arena, path, message);
        else if (field->required)
            err = qn_wire_fail(&place, QN_ERR_INVALID, "is required and absent");
        else if (wire_is_scalar(field) && !field->vector)
            wire_store_fallback(field, message + field->offset);
        if (err) return err;
    }
    return QN_OK;
}

qn_err_t qn_wire_from_json(const qn_wire_type_t *type, const json_t *json, qn_arena_t *arena, const uint8_t **ret_frame,
                           size_t *ret_bytes)
{
    wire_path_t path = wire_path(NULL, type->name);
    uint8_t *message = qn_arena_alloc(arena, type->struct_bytes, 16);
    qn_err_t err = table_from_json(type, 0, json, arena, &path, message);
    return err ? err : qn_wire_encode(type, message, arena, ret_frame, ret_bytes);
}

qn_err_t qn_wire_read_members(const qn_wire_type_t *type, const json_t *json, qn_arena_t *arena, void *ret_message)
{
    wire_path_t whole = wire_path(NULL, "");
    json_t *none = json ? NULL : json_object();
    if (json && !json_is_object(json))
        return qn_wire_fail(&whole, QN_ERR_INVALID, "wants an object, not %s", json_kind(json));
    qn_err_t err = table_from_json(type, 1, json ? json : none, arena, NULL, ret_message);
    json_decref(none);
    return err ? err : qn_wire_check(type, ret_message, NULL);
}
