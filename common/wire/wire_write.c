/* What is this?      The builder of frames. It runs twice over the message: once without a buffer to learn the exact
 *                    size, once to write. Unlike Google's builders it writes forwards (root offset, vtable, table,
 *                    then what the table points to), which the format allows: only vtable offsets are signed.
 * State owned:       none.
 * Must never:        leave a byte of the frame unwritten (padding is zero), or write what wire_check.c refuses.
 * Read next:         wire_read.c. */
#include "common/assert.h"
#include "common/limits.h"
#include "common/wire/wire.h"
#include "common/wire/wire_internal.h"

typedef struct {
    uint8_t *data; /* NULL: only measuring */
    size_t cursor;
} writer_t;

static size_t write_table(writer_t *writer, const qn_wire_type_t *type, const uint8_t *message);

/* Takes `bytes` bytes whose position + lead is a multiple of align; returns their position. */
static size_t take(writer_t *writer, size_t bytes, size_t align, size_t lead)
{
    size_t position = writer->cursor;
    while ((position + lead) % align != 0)
        position++;
    if (writer->data) memset(writer->data + writer->cursor, 0, position - writer->cursor);
    writer->cursor = position + bytes;
    return position;
}

/* Stores at `place` the offset to `target`, which lies behind it. */
static void link_to(writer_t *writer, size_t place, size_t target)
{
    if (writer->data) wire_store_u32(writer->data + place, (uint32_t)(target - place));
}

static bool is_present(const qn_wire_field_t *field, const uint8_t *message)
{
    if (field->vector) return field->required || wire_load_pointer(message, field);
    if (field->kind == QN_WIRE_STRUCT) return true;
    if (field->kind == QN_WIRE_STRING || field->kind == QN_WIRE_TABLE) return wire_load_pointer(message, field);
    uint8_t fallback[8];
    wire_store_fallback(field, fallback);
    return memcmp(message + field->offset, fallback, field->bytes) != 0;
}

/* The sizes that occur are constants to the compiler: a store or two instead of a call per struct. */
static void clear_gap(uint8_t *gap, size_t bytes, size_t stride, size_t count)
{
    for (; count; count--, gap += stride) {
        switch (bytes) {
        case 1: memset(gap, 0, 1); break;
        case 2: memset(gap, 0, 2); break;
        case 3: memset(gap, 0, 3); break;
        case 4: memset(gap, 0, 4); break;
        case 5: memset(gap, 0, 5); break;
        case 6: memset(gap, 0, 6); break;
        case 7: memset(gap, 0, 7); break;
        default: memset(gap, 0, bytes);
        }
    }
}

/* Copies structs and clears the padding inside them: what a C compiler leaves there is chance, and might be old
 * memory that is nobody's business. */
static void copy_structs(uint8_t *to, const uint8_t *from, const qn_wire_struct_t *record, size_t count)
{
    memcpy(to, from, count * record->bytes);
    for (size_t g = 0; g < record->gap_count; g++)
        clear_gap(to + record->gaps[g].offset, record->gaps[g].bytes, record->bytes, count);
}

static size_t write_text(writer_t *writer, const qn_text_t *text)
{
    size_t position = take(writer, 4 + (size_t)text->bytes + 1, 4, 0);
    if (!writer->data) return position;
    wire_store_u32(writer->data + position, text->bytes);
    if (text->bytes) memcpy(writer->data + position + 4, text->data, text->bytes);
    writer->data[position + 4 + text->bytes] = 0;
    return position;
}

/* A vector of strings or tables: the offsets, then the elements. */
static void write_elements(writer_t *writer, const qn_wire_field_t *field, size_t first, const uint8_t *elements,
                           uint32_t count)
{
    size_t bytes = wire_element_bytes(field);
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *element = elements + i * bytes;
        size_t target = field->kind == QN_WIRE_STRING ? write_text(writer, (const qn_text_t *)(const void *)element)
                                                      : write_table(writer, field->table, element);
        link_to(writer, first + 4 * (size_t)i, target);
    }
}

static size_t write_vector(writer_t *writer, const qn_wire_field_t *field, const uint8_t *message)
{
    const uint8_t *elements = wire_load_pointer(message, field);
    uint32_t count = wire_load_count(message, field);
    size_t bytes = (size_t)count * field->bytes;
    size_t position = take(writer, 4 + bytes, field->align > 4 ? field->align : 4, 4);
    if (writer->data) wire_store_u32(writer->data + position, count);
    if (field->kind == QN_WIRE_STRING || field->kind == QN_WIRE_TABLE)
        write_elements(writer, field, position + 4, elements, count);
    else if (writer->data && field->kind == QN_WIRE_STRUCT && count)
        copy_structs(writer->data + position + 4, elements, field->record, count);
    else if (writer->data && count)
        memcpy(writer->data + position + 4, elements, bytes);
    return position;
}

/* What the offset field at `place` points to. */
static void write_target(writer_t *writer, const qn_wire_field_t *field, const uint8_t *message, size_t place)
{
    size_t target;
    if (field->vector)
        target = write_vector(writer, field, message);
    else if (field->kind == QN_WIRE_STRING)
        target = write_text(writer, (const qn_text_t *)(const void *)(message + field->offset));
    else
        target = write_table(writer, field->table, wire_load_pointer(message, field));
    link_to(writer, place, target);
}

static bool is_offset(const qn_wire_field_t *field)
{
    return field->vector || field->kind == QN_WIRE_STRING || field->kind == QN_WIRE_TABLE;
}

/* Gives each present field its offset in the table, largest alignment first so that no padding is needed. Returns the
 * table's bytes; *ret_slots is one more than the last slot in use. */
static size_t lay_out(const qn_wire_type_t *type, const uint8_t *message, uint16_t *offsets, size_t *ret_slots)
{
    size_t end = 4, slots = 0;
    memset(offsets, 0, type->field_count * sizeof *offsets);
    for (size_t i = 0; i < type->field_count; i++) {
        const qn_wire_field_t *field = &type->fields[type->layout[i]];
        if (!is_present(field, message)) continue;
        offsets[field->slot] = (uint16_t)end;
        end += is_offset(field) ? 4 : field->bytes;
        if (field->slot >= slots) slots = field->slot + 1u;
    }
    *ret_slots = slots;
    return end;
}

static void write_inline(uint8_t *at, const qn_wire_field_t *field, const uint8_t *message)
{
    if (field->kind == QN_WIRE_STRUCT)
        copy_structs(at, message + field->offset, field->record, 1);
    else
        memcpy(at, message + field->offset, field->bytes);
}

/* Returns the position of the table. Its fields start 8-byte aligned, right behind the 4 bytes of its vtable offset. */
static size_t write_table(writer_t *writer, const qn_wire_type_t *type, const uint8_t *message)
{
    uint16_t offsets[QN_WIRE_FIELDS_MAX];
    size_t slots, bytes = lay_out(type, message, offsets, &slots);
    size_t vtable = take(writer, 4 + 2 * slots, 2, 0);
    size_t table = take(writer, bytes, 8, 4);
    if (writer->data) {
        wire_store_u16(writer->data + vtable, (uint16_t)(4 + 2 * slots));
        wire_store_u16(writer->data + vtable + 2, (uint16_t)bytes);
        memcpy(writer->data + vtable + 4, offsets, 2 * slots);
        wire_store_u32(writer->data + table, (uint32_t)(table - vtable));
    }
    for (size_t i = 0; i < type->field_count; i++) {
        const qn_wire_field_t *field = &type->fields[i];
        size_t place = table + offsets[field->slot];
        if (place == table) continue;
        if (is_offset(field))
            write_target(writer, field, message, place);
        else if (writer->data)
            write_inline(writer->data + place, field, message);
    }
    return table;
}

/* Root offset, file identifier, root table; a multiple of 8 bytes, as Google's builders make it. */
static size_t write_frame(writer_t *writer, const qn_wire_type_t *type, const uint8_t *message)
{
    size_t start = take(writer, 8, 8, 0);
    if (writer->data) memcpy(writer->data + start + 4, type->identifier, 4);
    link_to(writer, start, write_table(writer, type, message));
    take(writer, 0, 8, 0);
    return writer->cursor;
}

qn_err_t qn_wire_encode(const qn_wire_type_t *type, const void *message, qn_arena_t *arena, const uint8_t **ret_frame,
                        size_t *ret_bytes)
{
    QN_ASSERT(type->identifier[0] != '\0');
    wire_path_t path = wire_path(NULL, type->name);
    qn_head_t head;
    memcpy(&head, message, sizeof head);
    if (head.schema == 0) head.schema = QN_PROTOCOL;
    if (!wire_speaks(type, head.schema))
        return qn_wire_fail(&path, QN_ERR_INVALID, "head.schema: %u is not %u to %u; leave it 0", head.schema,
                            QN_PROTOCOL_LOWEST, QN_PROTOCOL);
    qn_err_t err = qn_wire_check(type, message, &path);
    if (err) return err;
    writer_t writer = {0};
    size_t bytes = write_frame(&writer, type, message);
    if (bytes > QN_FRAME_BYTES_MAX)
        return qn_wire_fail(&path, QN_ERR_LIMIT, "frame of %zu bytes exceeds the maximum of %u", bytes,
                            QN_FRAME_BYTES_MAX);
    writer = (writer_t){.data = qn_arena_alloc(arena, bytes, 8)};
    size_t written = write_frame(&writer, type, message);
    QN_ASSERT(written == bytes);
    qn_wire_set_head(writer.data, bytes, &head);
    *ret_frame = writer.data;
    *ret_bytes = bytes;
    return QN_OK;
}
