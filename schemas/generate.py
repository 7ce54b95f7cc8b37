#!/usr/bin/env python3
"""Turns schemas/*.fbs and those of its rooms into build/gen/qn_messages.h and .c, qn_methods.h and .c, qn_limits.h.

What is this?   The C side of the message schemas: one C struct per table and struct, and the descriptors by which
                common/wire/wire.c encodes, verifies and decodes. Each .fbs goes through `flatc -b --schema`; the binary
                schema (.bfbs, described by FlatBuffers' reflection.fbs) is read by schemas/bfbs.py.
Must never      accept what the verifier cannot bound: see check_*().
Read next       schemas/README.md (how a message is added), common/wire/wire_codec.h (the descriptors).
"""
import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import bfbs  # noqa: E402
import emit  # noqa: E402
import methods  # noqa: E402
from emit import snake  # noqa: E402
from methods import SchemaError  # noqa: E402

# base type of reflection.fbs -> (C type, descriptor kind, bytes, least, most)
SCALARS = {
    "Bool": ("bool", "BOOL", 1, 0, 1),
    "UByte": ("uint8_t", "U8", 1, 0, 2**8 - 1),
    "UShort": ("uint16_t", "U16", 2, 0, 2**16 - 1),
    "Int": ("int32_t", "I32", 4, -2**31, 2**31 - 1),
    "UInt": ("uint32_t", "U32", 4, 0, 2**32 - 1),
    "ULong": ("uint64_t", "U64", 8, 0, 2**64 - 1),
    "Float": ("float", "F32", 4, -3.4028234663852886e38, 3.4028234663852886e38),
}
C_WORDS = set("""auto break case char const continue default do double else enum extern float for goto if inline int
    long register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
    bool true false unix linux""".split())
HEAD = "Head"
FIELDS_MAX = 120        # QN_WIRE_FIELDS_MAX; structs have a uint16_t for their members, so both are far from full
DEPTH_MAX = 4           # tables inside tables: the verifier recurses, so its depth is bounded here
ELEMENTS_MAX = 2**20    # strings and tables of one message: offsets may share a target, so a frame's size bounds nothing


class Field:
    """A field of a table or a member of a struct, checked, with everything the emitter prints."""

    def __init__(self, owner, raw, enums, objects, comment):
        self.name, self.owner, self.comment = raw.name, owner, comment
        self.slot, self.frame_offset = raw.id, raw.offset
        self.required = raw.required
        self.where = f"{owner.file}: {owner.name}.{raw.name}"
        self.attributes = raw.attributes
        base = raw.base
        self.vector = base == "Vector"
        if self.vector:
            base = raw.element
        self.refuse_shapes(raw, base)
        self.enum = self.record = self.table = None
        if raw.index >= 0 and base == "Obj":
            target = bfbs.plain(objects[raw.index].name)
            if objects[raw.index].is_struct:
                self.record = target
                self.bytes, self.align = objects[raw.index].bytesize, objects[raw.index].minalign
                self.kind = "STRUCT"
            else:
                self.table, self.kind, self.bytes, self.align = target, "TABLE", 4, 4
        elif base == "String":
            self.kind, self.bytes, self.align = "STRING", 4, 4
        else:
            self.take_scalar(raw, base, enums)
        self.take_lengths()
        if self.kind in ("STRUCT", "STRING", "TABLE") and ("min" in self.attributes or "max" in self.attributes):
            raise SchemaError(f"{self.where}: min and max are for numbers; a length is max_len")
        if not owner.is_struct and self.kind == "STRUCT" and not self.vector and not self.required:
            raise SchemaError(f"{self.where}: a struct field must be (required): in C it is there by value")

    def refuse_shapes(self, raw, base):
        if raw.name in C_WORDS:
            raise SchemaError(f"{self.where}: is a C word; choose another name")
        if raw.deprecated:
            raise SchemaError(f"{self.where}: deprecated fields are removed here, all services are built together")
        if raw.base in ("Union", "UType") or base in ("Union", "UType"):
            raise SchemaError(f"{self.where}: no unions; a message is a file of its own, a choice is an enum")
        if raw.optional and raw.base in SCALARS:
            raise SchemaError(f"{self.where}: no optional scalars (= null); choose a value that means absent")
        if base not in ("Obj", "String") and base not in SCALARS:
            raise SchemaError(f"{self.where}: type {base} is not on this wire; one of bool ubyte ushort int uint "
                              "ulong float, an enum, a struct, a string, a vector or a table")

    def take_scalar(self, raw, base, enums):
        self.c_type, self.kind, self.bytes, least, most = SCALARS[base]
        self.align = self.bytes
        self.is_float = base == "Float"
        self.limited = base == "Bool"
        if raw.index >= 0:
            self.enum, self.kind, self.limited = bfbs.plain(enums[raw.index].name), "ENUM", True
            if base != "UByte":
                raise SchemaError(f"{self.where}: an enum must be on ubyte")
            most = len(enums[raw.index].values) - 1
        self.default = raw.default_real if self.is_float else raw.default_integer % 2**64
        if base == "Int":
            self.default = raw.default_integer
        self.minimum, self.maximum = self.limit("min", least), self.limit("max", most)
        if not least <= self.minimum <= self.maximum <= most:
            raise SchemaError(f"{self.where}: min {self.minimum} and max {self.maximum} must fit the type, "
                              "min not above max")

    def limit(self, key, otherwise):
        if key not in self.attributes:
            return otherwise
        if self.enum or self.kind == "BOOL":
            raise SchemaError(f"{self.where}: {key} on a bool or an enum; their range is their values")
        self.limited = True
        try:
            return float(self.attributes[key]) if self.is_float else int(self.attributes[key], 0)
        except ValueError:
            raise SchemaError(f"{self.where}: {key} \"{self.attributes[key]}\" is not a number of the field's type")

    def take_lengths(self):
        self.max_len = self.length("max_len", self.vector or self.kind == "STRING")
        self.max_bytes = self.length("max_bytes", self.vector and self.kind == "STRING")

    def length(self, key, wanted):
        if not wanted:
            if key in self.attributes:
                raise SchemaError(f"{self.where}: {key} has no meaning on this type")
            return 0
        value = self.attributes.get(key)
        if value is None or not value.isdigit() or not 0 < int(value) <= 2**24:
            raise SchemaError(f"{self.where}: needs ({key}: \"N\"), 1 to {2**24}: every length has a limit")
        return int(value)


class Record:
    """A table or a struct."""

    def __init__(self, file, raw, enums, objects, comments):
        self.file, self.name, self.is_struct = file, bfbs.plain(raw.name), raw.is_struct
        self.attributes = raw.attributes
        self.bytes, self.align, self.documentation = raw.bytesize, raw.minalign, raw.documentation
        self.c_name = f"qn_{snake(self.name)}"
        self.identifier = None
        fields = sorted(raw.fields, key=lambda field: field.id)
        if [field.id for field in fields] != list(range(len(fields))) or len(fields) > FIELDS_MAX:
            raise SchemaError(f"{file}: {self.name}: at most {FIELDS_MAX} fields, ids without a gap")
        if raw.bytesize > 4096:
            raise SchemaError(f"{file}: {self.name}: a struct of {raw.bytesize} bytes; offsets in tables have 16 bits")
        self.fields = [Field(self, field, enums, objects, comments.get((self.name, field.name))) for field in fields]
        names = [f.name for f in self.fields] + [f"{f.name}_count" for f in self.fields if f.vector]
        for name in names:
            if names.count(name) > 1:
                raise SchemaError(f"{file}: {self.name}.{name}: the C struct would have two members of this name "
                                  "(a vector `x` has its length in `x_count`)")

    def signature(self):
        """What must agree wherever the type is seen."""
        return [(f.name, f.kind, f.vector, f.bytes, f.record, f.table, f.enum, sorted(f.attributes.items()))
                for f in self.fields]


class Enum:
    def __init__(self, file, raw):
        self.file, self.name, self.documentation = file, bfbs.plain(raw.name), raw.documentation
        self.c_name = f"qn_{snake(self.name)}"
        self.values = [value.name for value in raw.values]
        if raw.is_union:
            raise SchemaError(f"{file}: {self.name}: no unions; a message is a file of its own, a choice is an enum")
        if [value.value for value in raw.values] != list(range(len(raw.values))) or not 0 < len(self.values) < 256:
            raise SchemaError(f"{file}: {self.name}: enum values must be 0, 1, 2, … without a gap")


class Schemas:
    """All types of all files, by name."""

    def __init__(self):
        self.enums, self.records = {}, {}

    def add(self, path, schema, comments):
        """Takes one file's binary schema; files without a root type only lend their types to others."""
        if schema.root is None:
            return
        for raw in schema.enums:
            enum = Enum(path.name, raw)
            self.enums.setdefault(enum.name, enum)
            if self.enums[enum.name].values != enum.values:
                raise SchemaError(f"{path.name}: enum {enum.name} is another one in {self.enums[enum.name].file}")
        for raw in schema.objects:
            record = Record(path.name, raw, schema.enums, schema.objects, comments)
            known = self.records.setdefault(record.name, record)
            if known.signature() != record.signature():
                raise SchemaError(f"{path.name}: {record.name} is another type in {known.file}")
        self.add_root(path, self.records[bfbs.plain(schema.root)], schema.identifier)

    def add_root(self, path, root, identifier):
        if not re.fullmatch(r"Q[A-Z0-9]{3}", identifier or ""):
            raise SchemaError(f"{path.name}: needs file_identifier \"Qxyz\": Q and three capitals or digits")
        for other in self.messages():
            if other.identifier == identifier:
                raise SchemaError(f"{path.name}: file_identifier \"{identifier}\" is {other.name}'s, in {other.file}")
        head = root.fields[0] if root.fields else None
        if head is None or (head.name, head.record, head.required) != ("head", HEAD, True):
            raise SchemaError(f"{path.name}: {root.name}: field 0 of a message must be `head:Head (required)`")
        if snake(root.name) != path.stem:
            raise SchemaError(f"{path.name}: root type {root.name} belongs into {snake(root.name)}.fbs")
        root.identifier, root.path = identifier, path

    def messages(self):
        return sorted((r for r in self.records.values() if r.identifier), key=lambda record: record.name)

    def ordered(self, structs):
        """Records in an order in which each follows the types it holds."""
        done = []

        def visit(record, depth):
            if depth > DEPTH_MAX:
                raise SchemaError(f"{record.file}: {record.name}: tables nest deeper than {DEPTH_MAX}, or in a circle")
            for field in record.fields:
                inner = self.records.get(field.record or field.table)
                if inner:
                    visit(inner, depth + 1)
            if record not in done:
                done.append(record)

        for name in sorted(self.records):
            visit(self.records[name], 0)
        return [record for record in done if record.is_struct == structs]

    def check(self):
        for record in self.records.values():
            for field in record.fields:
                if field.table and self.records[field.table].identifier:
                    raise SchemaError(f"{field.where}: a message cannot be inside another")
        self.ordered(structs=False)     # refuses circles
        self.methods = methods.read(self)
        roots = {name for method in self.methods for name in (method.request.name, method.reply.name)}
        for message in self.messages():
            self.check_elements(message, 1, message.name in roots)

    def check_elements(self, record, times, of_method):
        """Vectors of strings and tables: how many elements a frame may claim, and who may hold tables."""
        for field in record.fields:
            if field.vector and field.table not in (None, "Tensor") and not of_method:
                raise SchemaError(f"{field.where}: a vector of tables costs 50 times a vector of structs; only Tensor "
                                  "may be in one, but for requests and replies of methods")
            count = times * (field.max_len if field.vector and field.kind in ("TABLE", "STRING") else 1)
            if count > ELEMENTS_MAX:
                raise SchemaError(f"{field.where}: a message might have {count} of them; lower a max_len on the way, "
                                  f"their product may be {ELEMENTS_MAX}")
            if field.table:
                self.check_elements(self.records[field.table], count, of_method)

    def check_names(self):
        names = [snake(n) for n in list(self.enums) + list(self.records)]
        for name in names:
            if names.count(name) > 1:
                raise SchemaError(f"qn_{name}_t would be two C types: rename one")


def read_comments(path):
    """{(type, field): text} of `field:…; // text`, which flatc does not keep."""
    comments, owner = {}, None
    for line in path.read_text(encoding="utf-8").splitlines():
        opening = re.match(r"\s*(?:table|struct)\s+(\w+)", line)
        if opening:
            owner = opening.group(1)
        field = re.match(r"\s+(\w+)\s*:[^;]*;\s*//(?!/)\s*(.*\S)", line)
        if owner and field:
            comments[(owner, field.group(1))] = field.group(2)
    return comments


def compile_schema(flatc, path, directory):
    """Returns the bytes of the file's binary schema."""
    command = [flatc, "-b", "--schema", "--bfbs-comments", "-o", str(directory), str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    if done.returncode != 0:
        raise SchemaError(f"{path}: flatc refuses it:\n{done.stdout.strip()}")
    return (pathlib.Path(directory) / f"{path.stem}.bfbs").read_bytes()


def load(flatc, paths):
    schemas, comments = Schemas(), {}
    for path in paths:
        comments.update(read_comments(path))
    with tempfile.TemporaryDirectory() as directory:
        for path in sorted(paths):
            schemas.add(path, bfbs.read(compile_schema(flatc, path, directory)), comments)
    schemas.check()
    schemas.check_names()
    return schemas


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flatc", default="flatc", help="the FlatBuffers schema compiler, 2.0.8 or newer")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="directory of the generated files")
    parser.add_argument("schemas", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    try:
        schemas = load(arguments.flatc, arguments.schemas)
        texts = {"qn_limits.h": emit.limits(schemas), "qn_messages.h": emit.header(schemas),
                 "qn_messages.c": emit.source(schemas), "qn_methods.h": methods.header(schemas),
                 "qn_methods.c": methods.source(schemas)}
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (arguments.out / name).write_text(text, encoding="utf-8")
    except (SchemaError, bfbs.BadSchema, OSError) as error:
        sys.exit(f"schemas/generate.py: {error}")


if __name__ == "__main__":
    main()
