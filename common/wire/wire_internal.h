/* Shared by the files of the codec only: places in a message for error texts, and the limit checks. */
#ifndef QN_COMMON_WIRE_WIRE_INTERNAL_H
#define QN_COMMON_WIRE_WIRE_INTERNAL_H

#include "common/wire/wire_codec.h"

/* A place: `name` inside `parent`, or its element `index` (when ≥ 0). Lives on the stack of the walk. */
typedef struct wire_path {
    const struct wire_path *parent;
    const char *name;
    int64_t index;
} wire_path_t;

static inline wire_path_t wire_path(const wire_path_t *parent, const char *name)
{
    return (wire_path_t){.parent = parent, .name = name, .index = -1};
}

static inline wire_path_t wire_path_at(const wire_path_t *parent, const char *name, size_t index)
{
    return (wire_path_t){.parent = parent, .name = name, .index = (int64_t)index};
}

/* Records "Type.field[3].member: text" and returns `code`. */
qn_err_t qn_wire_fail(const wire_path_t *path, qn_err_t code, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

/* Checks every limit of a C struct of `type`: ranges, lengths, UTF-8, required strings and tables. Whether a required
 * vector is there is for the reader to check. `path` names the message. */
qn_err_t qn_wire_check(const qn_wire_type_t *type, const void *message, const wire_path_t *path);
/* One length against the field's max_len. */
qn_err_t qn_wire_check_length(const qn_wire_field_t *field, uint32_t count, const wire_path_t *parent);

static inline uint16_t wire_load_u16(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint32_t wire_load_u32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline void wire_store_u16(uint8_t *at, uint16_t value) { memcpy(at, &value, sizeof value); }
static inline void wire_store_u32(uint8_t *at, uint32_t value) { memcpy(at, &value, sizeof value); }

/* The pointer member of a vector or nested table in a C struct, whatever its element type. */
static inline const uint8_t *wire_load_pointer(const void *message, const qn_wire_field_t *field)
{
    const uint8_t *pointer;
    memcpy(&pointer, (const uint8_t *)message + field->offset, sizeof pointer);
    return pointer;
}

static inline uint32_t wire_load_count(const void *message, const qn_wire_field_t *field)
{
    return wire_load_u32((const uint8_t *)message + field->count_offset);
}

static inline bool wire_is_scalar(const qn_wire_field_t *field) { return field->kind < QN_WIRE_STRUCT; }

/* The schema default as the bytes of the C member. */
static inline void wire_store_fallback(const qn_wire_field_t *field, void *at)
{
    if (field->kind == QN_WIRE_F32) {
        float value = (float)field->fallback.f;
        memcpy(at, &value, sizeof value);
    } else {
        memcpy(at, &field->fallback, field->bytes);
    }
}

/* Size of one element of a field in its C form. */
static inline size_t wire_element_bytes(const qn_wire_field_t *field)
{
    if (field->kind == QN_WIRE_STRING) return sizeof(qn_text_t);
    return field->kind == QN_WIRE_TABLE ? field->table->struct_bytes : field->bytes;
}

/* Hello and Bye are read in any version: they keep their form, and say that others cannot be read. */
static inline bool wire_speaks(const qn_wire_type_t *type, uint16_t version)
{
    if (memcmp(type->identifier, "QHEL", 4) == 0 || memcmp(type->identifier, "QBYE", 4) == 0) return true;
    return version >= QN_PROTOCOL_LOWEST && version <= QN_PROTOCOL;
}

#endif
