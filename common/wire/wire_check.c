/* What is this?      The limits of the schemas, checked on a C struct: the same code before encoding and after
 *                    decoding, so that nothing is sent that would be refused.
 * State owned:       none.
 * Must never:        trust a value it has not read as plain bytes (a bool of 2 is undefined behaviour to load).
 * Read next:         wire_read.c, wire_write.c. */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "common/limits.h"
#include "common/wire/wire.h"
#include "common/wire/wire_internal.h"

static size_t path_print(const wire_path_t *path, char *text, size_t room)
{
    size_t used = path->parent ? path_print(path->parent, text, room) : 0;
    const char *dot = path->parent ? "." : "";
    int more = path->index < 0 ? snprintf(text + used, room - used, "%s%s", dot, path->name)
                               : snprintf(text + used, room - used, "%s%s[%" PRId64 "]", dot, path->name, path->index);
    used += (size_t)more;
    return used < room ? used : room - 1;
}

static _Thread_local char place[256];

const char *qn_wire_error_place(void) { return place; }

qn_err_t qn_wire_fail(const wire_path_t *path, qn_err_t code, const char *format, ...)
{
    char text[QN_ERR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    path_print(path, place, sizeof place);
    return qn_fail(code, "%s%s%s", place, place[0] ? ": " : "", text);
}

/* ---- ranges ------------------------------------------------------------------------------------------------- */

/* Index of the first value outside [min, max], or count. The whole vector is looked at without a branch first, four
 * values at a time: it is nearly always good, and limits of hot vectors are checked in every step. Wrapping
 * subtraction makes one comparison of two; the float form is true for NaN. */
#define FIRST_OUTSIDE(name, value_t, outside)                                                    \
    static inline unsigned name##_bad(const uint8_t *at, value_t min, value_t max)               \
    {                                                                                            \
        value_t value;                                                                           \
        memcpy(&value, at, sizeof value);                                                        \
        return (outside);                                                                        \
    }                                                                                            \
    static size_t name(const uint8_t *at, size_t stride, size_t count, value_t min, value_t max) \
    {                                                                                            \
        const uint8_t *four = at;                                                                \
        unsigned a = 0, b = 0, c = 0, d = 0;                                                     \
        for (size_t left = count; left >= 4; left -= 4, four += 4 * stride) {                    \
            a |= name##_bad(four, min, max);                                                     \
            b |= name##_bad(four + stride, min, max);                                            \
            c |= name##_bad(four + 2 * stride, min, max);                                        \
            d |= name##_bad(four + 3 * stride, min, max);                                        \
        }                                                                                        \
        for (size_t i = a | b | c | d ? 0 : count & ~(size_t)3; i < count; i++)                  \
            if (name##_bad(at + i * stride, min, max)) return i;                                 \
        return count;                                                                            \
    }

FIRST_OUTSIDE(first_outside_u8, uint8_t, (uint8_t)(value - min) > (uint8_t)(max - min))
FIRST_OUTSIDE(first_outside_u16, uint16_t, (uint16_t)(value - min) > (uint16_t)(max - min))
FIRST_OUTSIDE(first_outside_u32, uint32_t, value - min > max - min)
FIRST_OUTSIDE(first_outside_i32, int32_t, (unsigned)(value < min) | (value > max))
FIRST_OUTSIDE(first_outside_u64, uint64_t, value - min > max - min)
FIRST_OUTSIDE(first_outside_f32, float, !((value >= min) & (value <= max)))

static size_t first_outside(const qn_wire_field_t *field, const uint8_t *at, size_t stride, size_t count)
{
    const qn_wire_number_t min = field->min, max = field->max;
    switch ((qn_wire_kind_t)field->kind) {
    case QN_WIRE_BOOL:
    case QN_WIRE_ENUM:
    case QN_WIRE_U8: return first_outside_u8(at, stride, count, (uint8_t)min.u, (uint8_t)max.u);
    case QN_WIRE_U16: return first_outside_u16(at, stride, count, (uint16_t)min.u, (uint16_t)max.u);
    case QN_WIRE_U32: return first_outside_u32(at, stride, count, (uint32_t)min.u, (uint32_t)max.u);
    case QN_WIRE_I32: return first_outside_i32(at, stride, count, (int32_t)min.i, (int32_t)max.i);
    case QN_WIRE_U64: return first_outside_u64(at, stride, count, min.u, max.u);
    case QN_WIRE_F32: return first_outside_f32(at, stride, count, (float)min.f, (float)max.f);
    case QN_WIRE_STRUCT:
    case QN_WIRE_STRING:
    case QN_WIRE_TABLE: break;
    }
    return count;
}

static qn_err_t range_fail(const wire_path_t *path, const qn_wire_field_t *field, const uint8_t *at)
{
    if (field->kind == QN_WIRE_BOOL) return qn_wire_fail(path, QN_ERR_INVALID, "%u is not a bool (0 or 1)", *at);
    if (field->kind == QN_WIRE_ENUM)
        return qn_wire_fail(path, QN_ERR_INVALID, "%u is no value of %s (0 to %u)", *at, field->enumeration->name,
                            field->enumeration->count - 1u);
    if (field->kind == QN_WIRE_F32) {
        float value;
        memcpy(&value, at, sizeof value);
        if (isnan(value)) return qn_wire_fail(path, QN_ERR_INVALID, "is not a number (NaN)");
        bool below = value < (float)field->min.f;
        return qn_wire_fail(path, QN_ERR_INVALID, "%g is %s %g", (double)value,
                            below ? "below the minimum" : "above the maximum", below ? field->min.f : field->max.f);
    }
    if (field->kind == QN_WIRE_I32) {
        int32_t value;
        memcpy(&value, at, sizeof value);
        bool below = value < field->min.i;
        return qn_wire_fail(path, QN_ERR_INVALID, "%" PRId32 " is %s %" PRId64, value,
                            below ? "below the minimum" : "above the maximum", below ? field->min.i : field->max.i);
    }
    uint64_t value = 0;
    memcpy(&value, at, field->bytes);
    bool below = value < field->min.u;
    return qn_wire_fail(path, QN_ERR_INVALID, "%" PRIu64 " is %s %" PRIu64, value,
                        below ? "below the minimum" : "above the maximum", below ? field->min.u : field->max.u);
}

/* The limited members of `count` structs that follow each other. `vector`: the path has an index. */
static qn_err_t check_structs(const qn_wire_field_t *field, const uint8_t *at, size_t count, const wire_path_t *parent)
{
    const qn_wire_struct_t *record = field->record;
    for (size_t i = 0; i < record->limit_count; i++) {
        const qn_wire_field_t *limit = &record->limits[i];
        size_t bad = first_outside(limit, at + limit->offset, record->bytes, count);
        if (bad == count) continue;
        wire_path_t inner = field->vector ? wire_path_at(parent, field->name, bad) : wire_path(parent, field->name);
        wire_path_t path = wire_path(&inner, limit->name);
        return range_fail(&path, limit, at + bad * record->bytes + limit->offset);
    }
    return QN_OK;
}

static qn_err_t check_scalars(const qn_wire_field_t *field, const uint8_t *at, size_t count, const wire_path_t *parent)
{
    if (!field->limited) return QN_OK;
    size_t bad = first_outside(field, at, field->bytes, count);
    if (bad == count) return QN_OK;
    wire_path_t path = field->vector ? wire_path_at(parent, field->name, bad) : wire_path(parent, field->name);
    return range_fail(&path, field, at + bad * field->bytes);
}

/* ---- text --------------------------------------------------------------------------------------------------- */

/* Length of the UTF-8 character at `at` (RFC 3629: shortest form, no surrogates, up to U+10FFFF), 0 when it is none. */
static size_t character_bytes(const uint8_t *at, size_t room)
{
    uint8_t lead = at[0];
    if (lead < 0x80) return 1;
    size_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || room < bytes) return 0;
    uint8_t least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (at[1] < least || at[1] > most) return 0;
    for (size_t i = 2; i < bytes; i++)
        if ((at[i] & 0xc0) != 0x80) return 0;
    return bytes;
}

/* Index of the first byte that is not UTF-8, or `bytes`. */
static size_t utf8_prefix(const uint8_t *text, size_t bytes)
{
    size_t i = 0;
    while (i < bytes) {
        uint64_t eight;
        while (bytes - i >= 8 && (memcpy(&eight, text + i, 8), !(eight & 0x8080808080808080u)))
            i += 8;
        if (i == bytes) break;
        size_t step = character_bytes(text + i, bytes - i);
        if (step == 0) break;
        i += step;
    }
    return i;
}

static qn_err_t check_text(const qn_text_t *text, uint32_t max_bytes, const wire_path_t *path)
{
    if (text->bytes > max_bytes)
        return qn_wire_fail(path, QN_ERR_LIMIT, "%u bytes exceed the maximum of %u", text->bytes, max_bytes);
    size_t good = utf8_prefix((const uint8_t *)text->data, text->bytes);
    if (good < text->bytes) return qn_wire_fail(path, QN_ERR_INVALID, "not UTF-8 at byte %zu", good);
    return QN_OK;
}

static qn_err_t check_texts(const qn_wire_field_t *field, const qn_text_t *texts, uint32_t count,
                            const wire_path_t *parent)
{
    for (uint32_t i = 0; i < count; i++) {
        wire_path_t path = wire_path_at(parent, field->name, i);
        if (!texts[i].data) return qn_wire_fail(&path, QN_ERR_INVALID, "an element of a vector cannot be absent");
        qn_err_t err = check_text(&texts[i], field->max_bytes, &path);
        if (err) return err;
    }
    return QN_OK;
}

/* ---- fields ------------------------------------------------------------------------------------------------- */

qn_err_t qn_wire_check_length(const qn_wire_field_t *field, uint32_t count, const wire_path_t *parent)
{
    if (count <= field->max_len) return QN_OK;
    wire_path_t path = wire_path(parent, field->name);
    return qn_wire_fail(&path, QN_ERR_LIMIT, "%u elements exceed the maximum of %u", count, field->max_len);
}

static qn_err_t check_vector(const qn_wire_field_t *field, const void *message, const wire_path_t *parent)
{
    const uint8_t *at = wire_load_pointer(message, field);
    uint32_t count = wire_load_count(message, field);
    qn_err_t err = qn_wire_check_length(field, count, parent);
    if (err || count == 0) return err;
    if (!at) {
        wire_path_t path = wire_path(parent, field->name);
        return qn_wire_fail(&path, QN_ERR_INVALID, "%u elements at a NULL pointer", count);
    }
    if (field->kind == QN_WIRE_STRUCT) return check_structs(field, at, count, parent);
    if (field->kind == QN_WIRE_STRING) return check_texts(field, (const qn_text_t *)(const void *)at, count, parent);
    if (field->kind != QN_WIRE_TABLE) return check_scalars(field, at, count, parent);
    for (uint32_t i = 0; i < count && !err; i++) {
        wire_path_t path = wire_path_at(parent, field->name, i);
        err = qn_wire_check(field->table, at + (size_t)i * field->table->struct_bytes, &path);
    }
    return err;
}

static qn_err_t check_string(const qn_wire_field_t *field, const void *at, const wire_path_t *parent)
{
    qn_text_t text;
    memcpy(&text, at, sizeof text);
    wire_path_t path = wire_path(parent, field->name);
    if (text.data) return check_text(&text, field->max_len, &path);
    return field->required ? qn_wire_fail(&path, QN_ERR_INVALID, "is required and absent") : QN_OK;
}

static qn_err_t check_table(const qn_wire_field_t *field, const void *message, const wire_path_t *parent)
{
    const void *inner = wire_load_pointer(message, field);
    wire_path_t path = wire_path(parent, field->name);
    if (inner) return qn_wire_check(field->table, inner, &path);
    return field->required ? qn_wire_fail(&path, QN_ERR_INVALID, "is required and absent") : QN_OK;
}

qn_err_t qn_wire_check(const qn_wire_type_t *type, const void *message, const wire_path_t *path)
{
    qn_err_t err = QN_OK;
    for (size_t i = 0; i < type->field_count && !err; i++) {
        const qn_wire_field_t *field = &type->fields[i];
        const uint8_t *at = (const uint8_t *)message + field->offset;
        if (field->vector)
            err = check_vector(field, message, path);
        else if (field->kind == QN_WIRE_STRUCT)
            err = check_structs(field, at, 1, path);
        else if (field->kind == QN_WIRE_STRING)
            err = check_string(field, at, path);
        else if (field->kind == QN_WIRE_TABLE)
            err = check_table(field, message, path);
        else
            err = check_scalars(field, at, 1, path);
    }
    return err;
}
