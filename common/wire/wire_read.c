/* What is this?      The verifying reader of frames: every offset, vtable, alignment and length is checked before it
 *                    is followed, then the C struct is filled with views.
 *                    Format: https://flatbuffers.dev/internals/ (tables, vtables, vectors, strings, alignment).
 * State owned:       none.
 * Must never:        read a byte outside the frame, assert on what it read, or let a frame choose how much memory
 *                    it costs (arena pieces are bounded by max_len).
 * Read next:         wire_check.c (values), wire_write.c (the other way). */
#include <inttypes.h>

#include "common/limits.h"
#include "common/wire/wire.h"
#include "common/wire/wire_internal.h"

typedef struct {
    const uint8_t *data;
    uint32_t bytes; /* ≤ QN_FRAME_BYTES_MAX, so sums of two positions fit 64 bits easily */
    qn_arena_t *arena;
} frame_t;

/* A table whose vtable has been verified. */
typedef struct {
    uint32_t position, bytes;
    uint32_t vtable, vtable_bytes;
} table_t;

static qn_err_t read_table(const frame_t *frame, const qn_wire_type_t *type, uint32_t position, const wire_path_t *path,
                           uint8_t *ret_message);

/* Follows the offset stored at `place` (inside the frame) to a 4-byte aligned target with at least 4 bytes. */
static bool follow(const frame_t *frame, uint32_t place, uint32_t *ret_target)
{
    uint32_t offset = wire_load_u32(frame->data + place);
    uint64_t target = (uint64_t)place + offset;
    if (offset == 0 || target + 4 > frame->bytes || target % 4 != 0) return false;
    *ret_target = (uint32_t)target;
    return true;
}

static qn_err_t broken_offset(const wire_path_t *path)
{
    return qn_wire_fail(path, QN_ERR_INVALID, "broken frame: offset points outside the frame or is not aligned");
}

static qn_err_t open_table(const frame_t *frame, uint32_t position, const wire_path_t *path, table_t *ret_table)
{
    int64_t vtable = (int64_t)position - (int32_t)wire_load_u32(frame->data + position);
    if (vtable < 0 || vtable % 2 != 0 || vtable + 4 > frame->bytes)
        return qn_wire_fail(path, QN_ERR_INVALID, "broken frame: vtable outside the frame");
    uint32_t vtable_bytes = wire_load_u16(frame->data + vtable);
    uint32_t table_bytes = wire_load_u16(frame->data + vtable + 2);
    if (vtable_bytes < 4 || vtable_bytes % 2 != 0 || vtable + vtable_bytes > frame->bytes)
        return qn_wire_fail(path, QN_ERR_INVALID, "broken frame: vtable of %" PRIu32 " bytes", vtable_bytes);
    if (table_bytes < 4 || (uint64_t)position + table_bytes > frame->bytes)
        return qn_wire_fail(path, QN_ERR_INVALID, "broken frame: table of %" PRIu32 " bytes", table_bytes);
    *ret_table =
        (table_t){.position = position, .bytes = table_bytes, .vtable = (uint32_t)vtable, .vtable_bytes = vtable_bytes};
    return QN_OK;
}

/* Where the field's inline part is; 0 when the field is absent. */
static qn_err_t find_field(const frame_t *frame, const table_t *table, const qn_wire_field_t *field,
                           const wire_path_t *parent, uint32_t *ret_place)
{
    *ret_place = 0;
    uint32_t entry = 4 + 2 * (uint32_t)field->slot;
    if (entry >= table->vtable_bytes) return QN_OK;
    uint32_t offset = wire_load_u16(frame->data + table->vtable + entry);
    if (offset == 0) return QN_OK;
    uint32_t bytes = field->vector ? 4 : field->bytes, align = field->vector ? 4 : field->align;
    if (offset < 4 || offset + bytes > table->bytes || (table->position + offset) % align != 0) {
        wire_path_t path = wire_path(parent, field->name);
        return qn_wire_fail(&path, QN_ERR_INVALID, "broken frame: field outside its table or not aligned");
    }
    *ret_place = table->position + offset;
    return QN_OK;
}

static qn_err_t read_text(const frame_t *frame, uint32_t place, const wire_path_t *path, qn_text_t *ret_text)
{
    uint32_t target;
    if (!follow(frame, place, &target)) return broken_offset(path);
    uint32_t bytes = wire_load_u32(frame->data + target);
    uint64_t end = (uint64_t)target + 4 + bytes;
    if (end >= frame->bytes || frame->data[end] != 0)
        return qn_wire_fail(path, QN_ERR_INVALID, "broken frame: text of %" PRIu32 " bytes without its end", bytes);
    *ret_text = (qn_text_t){.data = (const char *)frame->data + target + 4, .bytes = bytes};
    return QN_OK;
}

/* Each element of a vector of offsets becomes a C element in the arena. */
static qn_err_t read_elements(const frame_t *frame, const qn_wire_field_t *field, uint32_t first, uint32_t count,
                              const wire_path_t *parent, const uint8_t **ret_elements)
{
    qn_err_t err = qn_wire_check_length(field, count, parent);
    if (err) return err;
    size_t bytes = wire_element_bytes(field);
    uint8_t *elements = qn_arena_zalloc(frame->arena, count ? count : 1, bytes);
    for (uint32_t i = 0; i < count; i++) {
        wire_path_t path = wire_path_at(parent, field->name, i);
        uint32_t place = first + 4 * i, target;
        uint8_t *element = elements + i * bytes;
        if (field->kind == QN_WIRE_STRING)
            err = read_text(frame, place, &path, (qn_text_t *)(void *)element);
        else if (!follow(frame, place, &target))
            err = broken_offset(&path);
        else
            err = read_table(frame, field->table, target, &path, element);
        if (err) return err;
    }
    *ret_elements = elements;
    return QN_OK;
}

static qn_err_t read_vector(const frame_t *frame, const qn_wire_field_t *field, uint32_t place,
                            const wire_path_t *parent, uint8_t *message)
{
    wire_path_t path = wire_path(parent, field->name);
    uint32_t target;
    if (!follow(frame, place, &target)) return broken_offset(&path);
    uint32_t count = wire_load_u32(frame->data + target);
    uint32_t first = target + 4;
    bool aligned = count == 0 || first % field->align == 0; /* flatc 2.0 aligns no elements that are not there */
    if ((uint64_t)first + (uint64_t)count * field->bytes > frame->bytes || !aligned)
        return qn_wire_fail(&path, QN_ERR_INVALID,
                            "broken frame: vector of %" PRIu32 " elements outside the frame "
                            "or not aligned",
                            count);
    static const _Alignas(16) uint8_t nothing[16]; /* where an empty vector points: there, and aligned */
    const uint8_t *elements = count == 0 ? nothing : frame->data + first;
    if (count > 0 && (field->kind == QN_WIRE_STRING || field->kind == QN_WIRE_TABLE)) {
        qn_err_t err = read_elements(frame, field, first, count, parent, &elements);
        if (err) return err;
    }
    memcpy(message + field->offset, &elements, sizeof elements);
    memcpy(message + field->count_offset, &count, sizeof count);
    return QN_OK;
}

static qn_err_t read_inner_table(const frame_t *frame, const qn_wire_field_t *field, uint32_t place,
                                 const wire_path_t *path, uint8_t *message)
{
    uint32_t target;
    if (!follow(frame, place, &target)) return broken_offset(path);
    uint8_t *inner = qn_arena_alloc(frame->arena, field->table->struct_bytes, 16);
    memcpy(message + field->offset, &inner, sizeof inner);
    return read_table(frame, field->table, target, path, inner);
}

static qn_err_t read_field(const frame_t *frame, const qn_wire_field_t *field, uint32_t place,
                           const wire_path_t *parent, uint8_t *message)
{
    if (field->vector) return read_vector(frame, field, place, parent, message);
    wire_path_t path = wire_path(parent, field->name);
    if (field->kind == QN_WIRE_STRING)
        return read_text(frame, place, &path, (qn_text_t *)(void *)(message + field->offset));
    if (field->kind == QN_WIRE_TABLE) return read_inner_table(frame, field, place, &path, message);
    memcpy(message + field->offset, frame->data + place, field->bytes);
    return QN_OK;
}

/* Depth is bounded: the generator refuses types that hold themselves. */
static qn_err_t read_table(const frame_t *frame, const qn_wire_type_t *type, uint32_t position, const wire_path_t *path,
                           uint8_t *ret_message)
{
    table_t table = {0};
    qn_err_t err = open_table(frame, position, path, &table);
    if (err) return err;
    memset(ret_message, 0, type->struct_bytes);
    for (size_t i = 0; i < type->field_count && !err; i++) {
        const qn_wire_field_t *field = &type->fields[i];
        uint32_t place;
        err = find_field(frame, &table, field, path, &place);
        if (err) return err;
        if (place) {
            err = read_field(frame, field, place, path, ret_message);
        } else if (wire_is_scalar(field) && !field->vector) {
            wire_store_fallback(field, ret_message + field->offset);
        } else if (field->required && (field->vector || field->kind == QN_WIRE_STRUCT)) {
            wire_path_t missing = wire_path(path, field->name);
            return qn_wire_fail(&missing, QN_ERR_INVALID, "is required and absent");
        }
    }
    return err;
}

static qn_err_t check_frame(const qn_wire_type_t *type, const uint8_t *data, size_t bytes, const wire_path_t *path)
{
    if ((uintptr_t)data % 8 != 0)
        return qn_wire_fail(path, QN_ERR_INVALID, "frame is not 8-byte aligned: copy it before decoding");
    if (bytes < 12) return qn_wire_fail(path, QN_ERR_INVALID, "frame of %zu bytes is too short", bytes);
    if (bytes > QN_FRAME_BYTES_MAX)
        return qn_wire_fail(path, QN_ERR_LIMIT, "frame of %zu bytes exceeds the maximum of %u", bytes,
                            QN_FRAME_BYTES_MAX);
    if (memcmp(data + 4, type->identifier, 4) != 0)
        return qn_wire_fail(path, QN_ERR_INVALID, "file identifier is not \"%s\": the frame is a %s", type->identifier,
                            qn_message_name(qn_message_type_of(data, bytes)));
    return QN_OK;
}

qn_err_t qn_wire_decode(const qn_wire_type_t *type, const void *frame, size_t bytes, qn_arena_t *arena,
                        void *ret_message)
{
    wire_path_t path = wire_path(NULL, type->name);
    qn_err_t err = check_frame(type, frame, bytes, &path);
    if (err) return err;
    frame_t view = {.data = frame, .bytes = (uint32_t)bytes, .arena = arena};
    uint32_t root;
    if (!follow(&view, 0, &root)) return broken_offset(&path);
    err = read_table(&view, type, root, &path, ret_message);
    if (err) return err;
    qn_head_t head;
    memcpy(&head, ret_message, sizeof head);
    if (!wire_speaks(type, head.schema))
        return qn_wire_fail(&path, QN_ERR_UNSUPPORTED,
                            "head.schema: protocol version %u, this build speaks %u to %u: "
                            "run the same release everywhere",
                            head.schema, QN_PROTOCOL_LOWEST, QN_PROTOCOL);
    return qn_wire_check(type, ret_message, &path);
}

/* ---- heads -------------------------------------------------------------------------------------------------- */

/* Position of the head in a frame of any alignment, 0 when it has none. */
static uint32_t find_head(const uint8_t *data, size_t bytes)
{
    if (bytes < 12 || bytes > QN_FRAME_BYTES_MAX) return 0;
    frame_t frame = {.data = data, .bytes = (uint32_t)bytes};
    uint32_t root;
    if (!follow(&frame, 0, &root)) return 0;
    int64_t vtable = (int64_t)root - (int32_t)wire_load_u32(data + root);
    if (vtable < 0 || vtable + 6 > (int64_t)bytes || wire_load_u16(data + vtable) < 6) return 0;
    uint32_t offset = wire_load_u16(data + vtable + 4);
    return offset >= 4 && (uint64_t)root + offset + sizeof(qn_head_t) <= bytes ? root + offset : 0;
}

qn_head_t qn_wire_head(const void *frame, size_t bytes)
{
    qn_head_t head = {0};
    uint8_t copy[sizeof head];
    uint32_t place = find_head(frame, bytes);
    if (place == 0) return head;
    memcpy(copy, (const uint8_t *)frame + place, sizeof copy);
    uint8_t *services[] = {copy + offsetof(qn_head_t, src), copy + offsetof(qn_head_t, dst)};
    for (size_t i = 0; i < 2; i++)
        if (*services[i] >= qn_service_enum.count) *services[i] = QN_SERVICE_NONE;
    memcpy(&head, copy, sizeof head);
    return head;
}

qn_err_t qn_wire_set_head(void *frame, size_t bytes, const qn_head_t *head)
{
    uint32_t place = find_head(frame, bytes);
    if (place == 0) return qn_fail(QN_ERR_INVALID, "%zu bytes are not a frame with a head", bytes);
    qn_head_t copy = *head;
    if (copy.schema == 0) copy.schema = QN_PROTOCOL;
    memcpy((uint8_t *)frame + place, &copy, sizeof copy);
    return QN_OK;
}
