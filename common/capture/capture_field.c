/* What is this?      Lookup of message fields by path and iteration over their values.
 * State owned:       none.
 * Must never:        read past what the decoder verified.
 * Read next:         common/wire/wire_codec.h (descriptors), sniff_filter.c (user). */
#include "common/capture/capture_field.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/limits.h"
#include "tools/cli.h"

/* Fields of a table type or members of a struct. */
typedef struct {
    const qn_wire_field_t *items;
    size_t count;
} fields_t;

static fields_t fields_of_type(const qn_wire_type_t *type) { return (fields_t){type->fields, type->field_count}; }

/* What is inside a field; none for a scalar or a text. */
static fields_t fields_inside(const qn_wire_field_t *field)
{
    if (field->kind == QN_WIRE_STRUCT) return (fields_t){field->record->members, field->record->member_count};
    return field->kind == QN_WIRE_TABLE ? fields_of_type(field->table) : (fields_t){NULL, 0};
}

static const qn_wire_field_t *find_name(fields_t fields, const char *name, size_t bytes)
{
    for (size_t i = 0; i < fields.count; i++)
        if (strlen(fields.items[i].name) == bytes && !memcmp(fields.items[i].name, name, bytes))
            return &fields.items[i];
    return NULL;
}

/* Follows `path` from `fields`, the members of what *field leads to. */
static bool follow(qn_capture_field_t *field, fields_t fields, const char *path, size_t bytes)
{
    const char *at = path, *end = path + bytes;
    while (at < end) {
        const char *dot = memchr(at, '.', (size_t)(end - at));
        size_t length = (size_t)((dot ? dot : end) - at);
        const qn_wire_field_t *step = find_name(fields, at, length);
        const qn_wire_field_t *last = at > path ? field->steps[field->step_count - 1] : NULL;
        bool countable = last && (last->vector || last->kind == QN_WIRE_STRING);
        if (!step && !dot && countable && length == 6 && !memcmp(at, "length", 6)) {
            field->length = true;
            return true;
        }
        if (!step || field->step_count == QN_CAPTURE_FIELD_DEPTH_MAX) return false;
        field->steps[field->step_count++] = step;
        fields = fields_inside(step);
        at = dot ? dot + 1 : end;
    }
    return field->step_count && !fields.count;
}

bool qn_capture_field_find(const qn_wire_type_t *type, const char *path, size_t bytes, qn_capture_field_t *ret_field)
{
    qn_capture_field_t field = {.step_count = 0};
    if (!follow(&field, fields_of_type(type), path, bytes)) return false;
    *ret_field = field;
    return true;
}

typedef struct {
    const char *path;
    size_t bytes;
    qn_capture_field_t *found;
    size_t count, capacity;
} search_t;

/* Looks below `above`, whose members are `fields`. */
static void search_inside(search_t *search, const qn_capture_field_t *above, fields_t fields)
{
    if (above->step_count == QN_CAPTURE_FIELD_DEPTH_MAX) return;
    for (size_t i = 0; i < fields.count; i++) {
        qn_capture_field_t here = *above;
        here.steps[here.step_count++] = &fields.items[i];
        fields_t inside = fields_inside(&fields.items[i]);
        qn_capture_field_t field = here;
        if (inside.count && search->count < search->capacity && follow(&field, inside, search->path, search->bytes))
            search->found[search->count++] = field;
        search_inside(search, &here, inside);
    }
}

size_t qn_capture_field_find_inside(const qn_wire_type_t *type, const char *path, size_t bytes,
                                    qn_capture_field_t *ret_fields, size_t capacity)
{
    if (capacity && qn_capture_field_find(type, path, bytes, ret_fields)) return 1;
    search_t search = {.path = path, .bytes = bytes, .found = ret_fields, .capacity = capacity};
    qn_capture_field_t none = {.step_count = 0};
    search_inside(&search, &none, fields_of_type(type));
    return search.count;
}

const qn_wire_field_t *qn_capture_field_leaf(const qn_capture_field_t *field)
{
    return field->steps[field->step_count - 1];
}

/* ---- values ---- */

typedef struct {
    const qn_capture_field_t *field;
    bool (*test)(const void *context, const qn_capture_value_t *value);
    const void *context;
} walk_t;

static bool test_number(const walk_t *walk, long double number)
{
    qn_capture_value_t value = {.number = number};
    return walk->test(walk->context, &value);
}

static bool test_scalar(const walk_t *walk, const qn_wire_field_t *field, const uint8_t *at)
{
    union {
        uint8_t u8;
        uint16_t u16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        float f32;
        qn_text_t text;
    } raw = {0};
    qn_capture_value_t value = {0};
    memcpy(&raw, at, field->kind == QN_WIRE_STRING ? sizeof raw.text : field->bytes);
    switch ((qn_wire_kind_t)field->kind) {
    case QN_WIRE_BOOL:
    case QN_WIRE_U8: return test_number(walk, raw.u8);
    case QN_WIRE_U16: return test_number(walk, raw.u16);
    case QN_WIRE_U32: return test_number(walk, raw.u32);
    case QN_WIRE_I32: return test_number(walk, raw.i32);
    case QN_WIRE_U64: return test_number(walk, raw.u64);
    case QN_WIRE_F32: return test_number(walk, raw.f32);
    case QN_WIRE_ENUM:
        value.number = raw.u8;
        value.text = raw.u8 < field->enumeration->count ? field->enumeration->names[raw.u8] : "";
        value.text_bytes = strlen(value.text);
        return walk->test(walk->context, &value);
    case QN_WIRE_STRING:
        value.text = raw.text.data ? raw.text.data : "";
        value.text_bytes = raw.text.bytes;
        return walk->test(walk->context, &value);
    case QN_WIRE_STRUCT:
    case QN_WIRE_TABLE: return false;
    }
    return false;
}

static bool walk_field(const walk_t *walk, unsigned step, const uint8_t *base);

/* `at` is one element of steps[step]. */
static bool walk_element(const walk_t *walk, unsigned step, const uint8_t *at)
{
    if (step + 1 < walk->field->step_count) return walk_field(walk, step + 1, at);
    const qn_wire_field_t *field = walk->field->steps[step];
    if (walk->field->length) {
        qn_text_t text;
        memcpy(&text, at, sizeof text);
        return test_number(walk, text.bytes);
    }
    return test_scalar(walk, field, at);
}

static size_t element_bytes(const qn_wire_field_t *field)
{
    if (field->kind == QN_WIRE_STRING) return sizeof(qn_text_t);
    return field->kind == QN_WIRE_TABLE ? field->table->struct_bytes : field->bytes;
}

static bool walk_vector(const walk_t *walk, unsigned step, const uint8_t *base)
{
    const qn_wire_field_t *field = walk->field->steps[step];
    const uint8_t *elements;
    uint32_t count;
    memcpy(&elements, base + field->offset, sizeof elements);
    memcpy(&count, base + field->count_offset, sizeof count);
    if (walk->field->length && step + 1 == walk->field->step_count) return test_number(walk, elements ? count : 0);
    for (uint32_t i = 0; elements && i < count; i++)
        if (walk_element(walk, step, elements + i * element_bytes(field))) return true;
    return false;
}

/* `base` is the C struct that holds steps[step]. */
static bool walk_field(const walk_t *walk, unsigned step, const uint8_t *base)
{
    const qn_wire_field_t *field = walk->field->steps[step];
    if (field->vector) return walk_vector(walk, step, base);
    if (field->kind != QN_WIRE_TABLE) return walk_element(walk, step, base + field->offset);
    const uint8_t *inner;
    memcpy(&inner, base + field->offset, sizeof inner);
    return inner && walk_element(walk, step, inner);
}

bool qn_capture_field_any(const qn_capture_field_t *field, const void *message,
                          bool (*test)(const void *context, const qn_capture_value_t *value), const void *context)
{
    walk_t walk = {.field = field, .test = test, .context = context};
    return walk_field(&walk, 0, message);
}

/* ---- suggestions ---- */

/* Names of one level: a wrong name deeper down is found among those of its own level by the last part. `names` NULL: only
 * counts. */
static size_t gather_names(const qn_wire_type_t *type, const char **names)
{
    size_t count = 0;
    for (unsigned message = 1; message < QN_MESSAGE_COUNT; message++) {
        const qn_wire_type_t *candidate = qn_wire_type((qn_message_type_t)message);
        for (size_t i = 0; i < candidate->field_count && (!type || type == candidate); i++) {
            fields_t inside = fields_inside(&candidate->fields[i]);
            if (names) names[count] = candidate->fields[i].name;
            for (size_t j = 0; names && j < inside.count; j++)
                names[count + 1 + j] = inside.items[j].name;
            count += 1 + inside.count;
        }
    }
    return count;
}

const char *qn_capture_field_suggest(const qn_wire_type_t *type, const char *path, size_t bytes)
{
    const char **names = calloc(gather_names(type, NULL) + 1, sizeof *names);
    QN_ASSERT(names != NULL);
    size_t count = gather_names(type, names);
    const char *last = memrchr(path, '.', bytes);
    char word[QN_NAME_MAX];
    size_t skip = last ? (size_t)(last + 1 - path) : 0;
    size_t length = bytes - skip < sizeof word - 1 ? bytes - skip : sizeof word - 1;
    memcpy(word, path + skip, length);
    word[length] = '\0';
    const char *nearest = cli_nearest(word, names, count);
    free(names);
    return nearest;
}
