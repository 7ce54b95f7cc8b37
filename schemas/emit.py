"""Prints qn_messages.h and qn_messages.c from checked schemas.

What is this?   Text only: generate.py has read and checked everything. The header is the contract that people read,
                so the schema's comments, units and limits are carried into it; the source is descriptor tables.
Read next       common/wire/wire_codec.h, the meaning of each descriptor field.
"""
import re

WIDTH = 118


def snake(name):
    """StepPlan -> step_plan, DType -> dtype."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def upper(name):
    return snake(name).upper()


def comment_lines(texts, indent=""):
    """A block comment of the given lines, or nothing."""
    texts = [text.replace("*/", "* /") for text in texts if text]
    if not texts:
        return []
    lines = [f"{indent}{'/*' if i == 0 else ' *'} {text}" for i, text in enumerate(texts)]
    lines[-1] += " */"
    return lines


def number(value):
    return f"{value:g}" if isinstance(value, float) else str(value)


def limit_text(field):
    """What the verifier demands of the field, in words."""
    words = []
    if field.required and (field.vector or field.kind in ("STRING", "TABLE")):
        words.append("required")
    if field.max_len:
        words.append(f"at most {field.max_len}{'' if field.vector else ' bytes'}")
    if field.max_bytes:
        words.append(f"each at most {field.max_bytes} bytes")
    if "min" in field.attributes or "max" in field.attributes:
        words.append(f"{number(field.minimum)} to {number(field.maximum)}")
    if getattr(field, "default", 0) and not field.owner.is_struct:
        words.append(f"default {number(field.default)}")
    return ", ".join(words)


def element_type(field):
    if field.kind == "STRING":
        return "qn_text_t"
    name = field.enum or field.record or field.table
    return f"qn_{snake(name)}_t" if name else field.c_type


def member(field):
    """The C member (or the two of a vector) with its comment."""
    note = "; ".join(text for text in (limit_text(field), field.comment) if text)
    pointer = field.vector or field.kind == "TABLE"
    first = f"    {'const ' if pointer else ''}{element_type(field)} {'*' if pointer else ''}{field.name};"
    tail = [f"    uint32_t {field.name}_count;"] if field.vector else []
    if not note:
        return [first] + tail
    line = f"{first:<35} /* {note.replace('*/', '* /')} */"
    return ([line] if len(line) <= WIDTH else comment_lines([note], "    ") + [first]) + tail


def enum_type(enum):
    lines = comment_lines(enum.documentation) + ["typedef enum __attribute__((packed)) {"]
    lines += [f"    QN_{upper(enum.name)}_{value.upper()} = {i}," for i, value in enumerate(enum.values)]
    lines += [f"}} {enum.c_name}_t;",
              f"extern const qn_wire_enum_t {enum.c_name}_enum;"]
    return lines + same_values_macro(enum) + [""]


def same_values_macro(enum):
    """For a noun that has its own enum of the same values: the file that casts one to the other asserts it."""
    name = upper(enum.name)
    pairs = [f"(int)prefix##{value.upper()} == QN_{name}_{value.upper()}" for value in enum.values]
    return [f"#define QN_{name}_SAME_VALUES(prefix) \\",
            "    _Static_assert(" + " && \\\n                   ".join(pairs) + ", \\",
            f'                   "the values of {enum.name} in schemas/")']


def record_type(record):
    lines = comment_lines(record.documentation) + [f"typedef struct {record.c_name} {{"]
    for field in record.fields:
        lines += member(field)
    lines.append(f"}} {record.c_name}_t;")
    if not record.is_struct:
        lines += init_macro(record)
    return lines + [""]


def init_macro(record):
    """An initialiser with the defaults that are not zero."""
    values = [f".{f.name} = {number(f.default)}" for f in record.fields if getattr(f, "default", 0)]
    first = record.fields[0]
    values = values or [f".{first.name} = {{ 0 }}" if first.kind in ("STRUCT", "STRING") else f".{first.name} = 0"]
    return [f"#define QN_{upper(record.name)}_INIT {{ {', '.join(values)} }}"]


def message_prototypes(record):
    name = record.c_name
    return [
        f"qn_err_t {name}_encode(const {name}_t *message, qn_arena_t *arena, const uint8_t **ret_frame,",
        "    size_t *ret_bytes);",
        f"qn_err_t {name}_decode(const void *frame, size_t bytes, qn_arena_t *arena, {name}_t *ret_message);",
    ]


LIMITS_TOP = """\
/* Made by schemas/generate.py from the .fbs files; not to be edited.
 * Most elements (of a string: bytes) of each field, for code that knows no message. */
#ifndef QN_LIMITS_H
#define QN_LIMITS_H
"""


def limits(schemas):
    """QN_LEASE_ITEMS_MAX and so on: a header without types, which nouns may include."""
    lines = [LIMITS_TOP]
    for record in schemas.ordered(structs=False):
        for field in record.fields:
            name = f"QN_{upper(record.name)}_{field.name.upper()}"
            lines += [f"#define {name}_MAX {field.max_len}u"] if field.max_len else []
            lines += [f"#define {name}_BYTES_MAX {field.max_bytes}u"] if field.max_bytes else []
    return "\n".join(lines + ["", "#endif"]) + "\n"


HEADER_TOP = """\
/* Made by schemas/generate.py from the .fbs files; not to be edited.
 * One C struct per table and struct. What pointers, counts and texts mean in them: common/wire/wire_codec.h. */
#ifndef QN_MESSAGES_H
#define QN_MESSAGES_H

#include "common/wire/wire_codec.h"
#include "qn_limits.h"
"""

HEADER_LOOKUPS = """\
/* NULL for QN_MESSAGE_NONE and anything out of range. */
const qn_wire_type_t *qn_wire_type(qn_message_type_t type);
/* "StepPlan"; "none" for QN_MESSAGE_NONE and anything out of range. */
const char *qn_message_name(qn_message_type_t type);
/* By the file identifier of a frame of any alignment; QN_MESSAGE_NONE when it is none of ours. */
qn_message_type_t qn_message_type_of(const void *frame, size_t bytes);
/* By name, "StepPlan"; QN_MESSAGE_NONE when there is none. */
qn_message_type_t qn_message_type_by_name(const char *name);
/* Size of the C struct; 0 for QN_MESSAGE_NONE. */
size_t qn_message_struct_bytes(qn_message_type_t type);

/* qn_wire_encode and qn_wire_decode with the type in the name. */"""


def header(schemas):
    lines = [HEADER_TOP]
    for name in sorted(schemas.enums):
        lines += enum_type(schemas.enums[name])
    for record in schemas.ordered(structs=True) + schemas.ordered(structs=False):
        lines += record_type(record)
    lines += ["typedef enum {", "    QN_MESSAGE_NONE,"]
    lines += [f"    QN_MESSAGE_{upper(record.name)}," for record in schemas.messages()]
    lines += ["    QN_MESSAGE_COUNT,", "} qn_message_type_t;", "", HEADER_LOOKUPS]
    for record in schemas.messages():
        lines += message_prototypes(record)
    return "\n".join(lines + ["", "#endif"]) + "\n"


# ---- source ---------------------------------------------------------------------------------------------------------

def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def enum_table(enum):
    names = ", ".join(quoted(value) for value in enum.values)
    return [f"_Static_assert(sizeof({enum.c_name}_t) == 1, \"a ubyte in the frame\");",
            f"static const char *const {enum.c_name}_names[] = {{ {names} }};",
            f"const qn_wire_enum_t {enum.c_name}_enum = {{ \"{enum.name}\", {enum.c_name}_names, "
            f"{len(enum.values)} }};", ""]


def wire_number(field, value):
    if field.is_float:
        return f"{{ .f = {float(value)!r} }}"
    return f"{{ .i = {value} }}" if field.kind == "I32" else f"{{ .u = {value}u }}"


def field_row(field, c_name, name=None, offset=None):
    """One qn_wire_field_t initialiser; zero members are left out."""
    parts = [f".name = {quoted(name or field.name)}", f".kind = QN_WIRE_{field.kind}",
             f".bytes = {field.bytes}", f".align = {field.align}",
             f".offset = {offset if offset is not None else f'offsetof({c_name}_t, {field.name})'}"]
    if not field.owner.is_struct:
        parts.append(f".slot = {field.slot}")
    if field.vector:
        parts += [".vector = true", f".count_offset = offsetof({c_name}_t, {field.name}_count)"]
    parts += [f".{key} = {getattr(field, key)}" for key in ("max_len", "max_bytes") if getattr(field, key)]
    if field.required:
        parts.append(".required = true")
    if hasattr(field, "c_type"):
        parts += scalar_parts(field)
    for key, target, suffix in (("enumeration", field.enum, "_enum"), ("record", field.record, "_struct"),
                                ("table", field.table, "_table")):
        if target:
            parts.append(f".{key} = &qn_{snake(target)}{suffix}")
    return "    { " + ", ".join(parts) + " },"


def scalar_parts(field):
    parts = []
    if field.limited:
        parts += [".limited = true", f".min = {wire_number(field, field.minimum)}",
                  f".max = {wire_number(field, field.maximum)}"]
    if field.default:
        parts.append(f".fallback = {wire_number(field, field.default)}")
    return parts


def flat_members(schemas, record, prefix="", base=0):
    """(path, offset, field) of all scalars of a struct, inner structs opened."""
    for field in record.fields:
        if field.record:
            yield from flat_members(schemas, schemas.records[field.record], f"{prefix}{field.name}.",
                                    base + field.frame_offset)
        else:
            yield prefix + field.name, base + field.frame_offset, field


def gaps(members, total):
    """(offset, bytes) of the padding between scalars."""
    end, found = 0, []
    for _, offset, field in members:
        if offset > end:
            found.append((end, offset - end))
        end = offset + field.bytes
    return found + ([(end, total - end)] if end < total else [])


def array(declaration, rows):
    """A static array and the expression for a pointer to it: NULL when it has no rows."""
    if not rows:
        return [], "NULL"
    name = re.search(r"(\w+)\[\]", declaration).group(1)
    return [f"static const {declaration} = {{", *rows, "};"], name


def struct_table(schemas, record):
    flat = list(flat_members(schemas, record))
    limits = [field_row(field, None, path, offset) for path, offset, field in flat if field.limited]
    holes = [f"    {{ {offset}, {size} }}," for offset, size in gaps(flat, record.bytes)]
    name = record.c_name
    lines, members = array(f"qn_wire_field_t {name}_members[]", [field_row(f, name) for f in record.fields])
    more, limit_name = array(f"qn_wire_field_t {name}_limits[]", limits)
    last, gap_name = array(f"qn_wire_gap_t {name}_gaps[]", holes)
    asserts = [f"_Static_assert(sizeof({name}_t) == {record.bytes}, \"layout of the frame\");"]
    asserts += [f"_Static_assert(offsetof({name}_t, {f.name}) == {f.frame_offset}, \"layout of the frame\");"
                for f in record.fields]
    return asserts + lines + more + last + [
        f"static const qn_wire_struct_t {name}_struct = {{",
        f"    .name = \"{record.name}\", .bytes = {record.bytes}, .align = {record.align},",
        f"    .member_count = {len(record.fields)}, .limit_count = {len(limits)}, .gap_count = {len(holes)},",
        f"    .members = {members}, .limits = {limit_name}, .gaps = {gap_name},", "};", ""]


def table_table(record):
    name = record.c_name
    lines, fields = array(f"qn_wire_field_t {name}_fields[]", [field_row(f, name) for f in record.fields])
    order = sorted(range(len(record.fields)), key=lambda i: (-inline_align(record.fields[i]), i))
    return lines + [
        f"static const uint8_t {name}_layout[] = {{ {', '.join(map(str, order))} }};",
        f"static const qn_wire_type_t {name}_table = {{",
        f"    .name = \"{record.name}\", .identifier = \"{record.identifier or ''}\", "
        f".struct_bytes = sizeof({name}_t),",
        f"    .field_count = {len(record.fields)}, .fields = {fields}, .layout = {name}_layout,", "};", ""]


def inline_align(field):
    return 4 if field.vector else field.align


def message_functions(record):
    name = record.c_name
    return [f"qn_err_t {name}_encode(const {name}_t *message, qn_arena_t *arena, const uint8_t **ret_frame,",
            "    size_t *ret_bytes)", "{",
            f"    return qn_wire_encode(&{name}_table, message, arena, ret_frame, ret_bytes);", "}", "",
            f"qn_err_t {name}_decode(const void *frame, size_t bytes, qn_arena_t *arena, {name}_t *ret_message)", "{",
            f"    return qn_wire_decode(&{name}_table, frame, bytes, arena, ret_message);", "}", ""]


def identifier_switch(schemas):
    """The type of a frame by its four letters, as a little-endian number: every frame that comes asks for it."""
    lines = ["static qn_message_type_t type_of_identifier(uint32_t identifier)", "{", "    switch (identifier) {"]
    lines += [f"    case 0x{int.from_bytes(record.identifier.encode(), 'little'):08x}: return "
              f"QN_MESSAGE_{upper(record.name)};" for record in schemas.messages()]
    return lines + ["    default: return QN_MESSAGE_NONE;", "    }", "}", ""]


SOURCE_LOOKUPS = """\
const qn_wire_type_t *qn_wire_type(qn_message_type_t type)
{
    return (unsigned)type < QN_MESSAGE_COUNT ? message_tables[type] : NULL;
}

const char *qn_message_name(qn_message_type_t type)
{
    const qn_wire_type_t *table = qn_wire_type(type);
    return table ? table->name : "none";
}

qn_message_type_t qn_message_type_of(const void *frame, size_t bytes)
{
    uint32_t identifier;
    if (bytes < 8) return QN_MESSAGE_NONE;
    memcpy(&identifier, (const char *)frame + 4, sizeof identifier);
    return type_of_identifier(identifier);
}

qn_message_type_t qn_message_type_by_name(const char *name)
{
    for (int type = 1; type < QN_MESSAGE_COUNT; type++)
        if (strcmp(message_tables[type]->name, name) == 0) return (qn_message_type_t)type;
    return QN_MESSAGE_NONE;
}

size_t qn_message_struct_bytes(qn_message_type_t type)
{
    const qn_wire_type_t *table = qn_wire_type(type);
    return table ? table->struct_bytes : 0;
}
"""


def source(schemas):
    lines = ["/* Made by schemas/generate.py from the .fbs files; not to be edited. */", '#include "qn_messages.h"', ""]
    for name in sorted(schemas.enums):
        lines += enum_table(schemas.enums[name])
    for record in schemas.ordered(structs=True):
        lines += struct_table(schemas, record)
    for record in schemas.ordered(structs=False):
        lines += table_table(record)
    lines += ["static const qn_wire_type_t *const message_tables[QN_MESSAGE_COUNT] = {"]
    lines += [f"    [QN_MESSAGE_{upper(record.name)}] = &{record.c_name}_table," for record in schemas.messages()]
    lines += ["};", "", *identifier_switch(schemas), SOURCE_LOOKUPS]
    for record in schemas.messages():
        lines += message_functions(record)
    return "\n".join(lines)
