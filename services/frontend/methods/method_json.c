/* What is this?      JSON of a reply, by its descriptors.
 * State owned:       none.
 * Must never:        know a method by name; leave a member out.
 * Read next:         common/wire/wire_codec.h (descriptors), json_writer.h; common/wire/wire_json.c (JSON of messages). */
#include "services/frontend/methods/method_json.h"

#include <string.h>

#define DATA_FIRST 2 /* fields 0 and 1 of a reply are head and began_ns */
#define REASONING "algorithm_reasoning"

static const void *load_pointer(const void *message, const qn_wire_field_t *field)
{
    const void *pointer;
    memcpy(&pointer, (const uint8_t *)message + field->offset, sizeof pointer);
    return pointer;
}

static uint32_t load_count(const void *message, const qn_wire_field_t *field)
{
    uint32_t count;
    memcpy(&count, (const uint8_t *)message + field->count_offset, sizeof count);
    return count;
}

static void write_scalar(const qn_wire_field_t *field, const uint8_t *at, json_writer_t *writer)
{
    uint64_t bits = 0;
    float real;
    memcpy(&bits, at, field->bytes);
    switch ((qn_wire_kind_t)field->kind) {
    case QN_WIRE_BOOL: json_put_bool(writer, bits != 0); break;
    case QN_WIRE_ENUM: json_put_string(writer, field->enumeration->names[bits]); break;
    case QN_WIRE_I32: json_put_signed(writer, (int32_t)bits); break;
    case QN_WIRE_F32:
        memcpy(&real, at, sizeof real);
        json_put_float(writer, real);
        break;
    default: json_put_unsigned(writer, bits);
    }
}

static void write_struct(const qn_wire_struct_t *record, const uint8_t *at, json_writer_t *writer)
{
    json_put_open(writer, '{');
    for (size_t i = 0; i < record->member_count; i++) {
        const qn_wire_field_t *member = &record->members[i];
        json_put_key(writer, member->name);
        if (member->kind == QN_WIRE_STRUCT)
            write_struct(member->record, at + member->offset, writer);
        else
            write_scalar(member, at + member->offset, writer);
    }
    json_put_close(writer, '}');
}

static void write_text(const qn_text_t *text, json_writer_t *writer)
{
    if (text->data)
        json_put_text(writer, text->data, text->bytes);
    else
        json_put_null(writer);
}

static size_t element_bytes(const qn_wire_field_t *field)
{
    if (field->kind == QN_WIRE_STRING) return sizeof(qn_text_t);
    return field->kind == QN_WIRE_TABLE ? field->table->struct_bytes : field->bytes;
}

static void write_element(const qn_wire_field_t *field, const uint8_t *at, json_writer_t *writer)
{
    if (field->kind == QN_WIRE_STRUCT)
        write_struct(field->record, at, writer);
    else if (field->kind == QN_WIRE_TABLE)
        method_json_write_table(field->table, at, writer);
    else if (field->kind == QN_WIRE_STRING)
        write_text((const qn_text_t *)(const void *)at, writer);
    else
        write_scalar(field, at, writer);
}

static void write_field(const qn_wire_field_t *field, const void *message, json_writer_t *writer)
{
    const uint8_t *at = (const uint8_t *)message + field->offset;
    if (field->vector) {
        const uint8_t *elements = load_pointer(message, field);
        json_put_open(writer, '[');
        for (uint32_t i = 0; elements && i < load_count(message, field); i++)
            write_element(field, elements + i * element_bytes(field), writer);
        json_put_close(writer, ']');
        return;
    }
    if (field->kind == QN_WIRE_TABLE) at = load_pointer(message, field);
    if (at)
        write_element(field, at, writer);
    else
        json_put_null(writer);
}

static void write_fields(const qn_wire_type_t *type, size_t first, const void *message, json_writer_t *writer)
{
    json_put_open(writer, '{');
    for (size_t i = first; i < type->field_count; i++) {
        if (first && strcmp(type->fields[i].name, REASONING) == 0) continue;
        json_put_key(writer, type->fields[i].name);
        write_field(&type->fields[i], message, writer);
    }
    json_put_close(writer, '}');
}

void method_json_write(const qn_wire_type_t *type, const void *reply, json_writer_t *writer)
{
    write_fields(type, DATA_FIRST, reply, writer);
}

void method_json_write_table(const qn_wire_type_t *type, const void *table, json_writer_t *writer)
{
    write_fields(type, 0, table, writer);
}

uint64_t method_reply_began_ns(const qn_wire_type_t *type, const void *reply)
{
    uint64_t began_ns;
    memcpy(&began_ns, (const uint8_t *)reply + type->fields[1].offset, sizeof began_ns);
    return began_ns;
}

const qn_text_t *method_reply_reasoning(const qn_wire_type_t *type, const void *reply, uint32_t *ret_count)
{
    *ret_count = 0;
    for (size_t i = DATA_FIRST; i < type->field_count; i++) {
        if (strcmp(type->fields[i].name, REASONING) != 0) continue;
        *ret_count = load_count(reply, &type->fields[i]);
        return load_pointer(reply, &type->fields[i]);
    }
    return NULL;
}
