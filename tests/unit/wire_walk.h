/* What must hold for any bytes whatever, for the damage tests and the fuzzer: they are refused with a reason, or all
 * that the decoded message shows can be read, encoded and printed as JSON. Ends the process when it does not hold. */
#ifndef QN_TESTS_UNIT_WIRE_WALK_H
#define QN_TESTS_UNIT_WIRE_WALK_H

#include <stdlib.h>

#include "common/assert.h"
#include "common/wire/wire.h"

static inline void walk_bytes(const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        (void)((const volatile uint8_t *)data)[i];
}

static inline void walk_table(const qn_wire_type_t *type, const uint8_t *message);

static inline void walk_text(const qn_text_t *text)
{
    if (!text->data) return;
    walk_bytes(text->data, text->bytes + 1);
    QN_ASSERT(text->data[text->bytes] == '\0');
}

/* Reads every byte that the field shows. */
static inline void walk_field(const qn_wire_field_t *field, const uint8_t *message)
{
    const uint8_t *at = message + field->offset, *elements;
    if (!field->vector) {
        if (field->kind == QN_WIRE_STRING)
            walk_text((const qn_text_t *)(const void *)at);
        else if (field->kind != QN_WIRE_TABLE)
            walk_bytes(at, field->bytes);
        else if (memcpy(&elements, at, sizeof elements), elements)
            walk_table(field->table, elements);
        return;
    }
    uint32_t count;
    memcpy(&elements, at, sizeof elements);
    memcpy(&count, message + field->count_offset, sizeof count);
    QN_ASSERT(elements || count == 0);
    QN_ASSERT((uintptr_t)elements % field->align == 0);
    for (size_t i = 0; i < count; i++) {
        if (field->kind == QN_WIRE_STRING)
            walk_text((const qn_text_t *)(const void *)elements + i);
        else if (field->kind == QN_WIRE_TABLE)
            walk_table(field->table, elements + i * field->table->struct_bytes);
        else
            walk_bytes(elements + i * field->bytes, field->bytes);
    }
}

static inline void walk_table(const qn_wire_type_t *type, const uint8_t *message)
{
    for (size_t i = 0; i < type->field_count; i++)
        walk_field(&type->fields[i], message);
}

/* The frame as JSON and back must be `frame` again. JSON keeps that a float is NaN, not which of the many it is. */
static inline void walk_json(const qn_wire_type_t *type, const uint8_t *frame, size_t bytes, qn_arena_t *arena)
{
    json_t *json = qn_wire_to_json(type, frame, bytes);
    QN_ASSERT(json);
    const uint8_t *again;
    size_t again_bytes;
    QN_ASSERT(qn_wire_from_json(type, json, arena, &again, &again_bytes) == QN_OK);
    char *text = json_dumps(json, QN_WIRE_JSON_FLAGS);
    QN_ASSERT(text && again_bytes == bytes);
    QN_ASSERT(strstr(text, "\"nan\"") || memcmp(frame, again, bytes) == 0);
    free(text);
    json_decref(json);
}

/* Decodes into `message` and reads all of it. Returns whether the frame was accepted. */
static inline bool wire_walk(const qn_wire_type_t *type, const uint8_t *frame, size_t bytes, qn_arena_t *arena,
                             void *message)
{
    qn_head_t head = qn_wire_head(frame, bytes);
    QN_ASSERT(head.src < qn_service_enum.count && head.dst < qn_service_enum.count);
    if (qn_wire_decode(type, frame, bytes, arena, message)) {
        QN_ASSERT(strncmp(qn_err_text(), type->name, strlen(type->name)) == 0);
        return false;
    }
    walk_table(type, message);
    return true;
}

/* The same, then encodes it and takes it through JSON. */
static inline bool wire_survive(const qn_wire_type_t *type, const uint8_t *frame, size_t bytes, qn_arena_t *arena)
{
    void *message = qn_arena_alloc(arena, type->struct_bytes, 16);
    if (!wire_walk(type, frame, bytes, arena, message)) return false;
    const uint8_t *again;
    size_t again_bytes;
    /* Parts that a frame shares between two offsets are written twice, so only size may stand in the way. */
    qn_err_t err = qn_wire_encode(type, message, arena, &again, &again_bytes);
    QN_ASSERT(err == QN_OK || err == QN_ERR_LIMIT);
    if (err == QN_OK) walk_json(type, again, again_bytes, arena);
    return true;
}

#endif
