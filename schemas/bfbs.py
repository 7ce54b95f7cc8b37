"""Reads a binary FlatBuffers schema (.bfbs) without any FlatBuffers library.

What is this?   A reader of the tables of FlatBuffers' reflection.fbs that generate.py needs. A .bfbs file is itself a
                FlatBuffer: a root offset, tables with vtables, vectors and strings, all little-endian. Field numbers
                are those of reflection.fbs; they never change, later flatc versions only add some.
Must never      guess: an unknown base type is refused.
"""
import struct

BASE_TYPES = ["None", "UType", "Bool", "Byte", "UByte", "Short", "UShort", "Int", "UInt", "Long", "ULong", "Float",
              "Double", "String", "Vector", "Obj", "Union", "Array", "Vector64"]


class BadSchema(Exception):
    pass


class Table:
    """One table of the file; fields are asked for by their number."""

    def __init__(self, data, position):
        self.data, self.position = data, position
        self.vtable = position - self.unpack("<i", position)

    def unpack(self, format_, position):
        return struct.unpack_from(format_, self.data, position)[0]

    def place(self, number):
        """Position of the field in the file, 0 when absent."""
        entry = 4 + 2 * number
        if entry >= self.unpack("<H", self.vtable):
            return 0
        offset = self.unpack("<H", self.vtable + entry)
        return self.position + offset if offset else 0

    def scalar(self, number, format_, default=0):
        place = self.place(number)
        return self.unpack(format_, place) if place else default

    def follow(self, place):
        return place + self.unpack("<I", place)

    def string(self, number):
        place = self.place(number)
        return self.text(self.follow(place)) if place else None

    def text(self, start):
        length = self.unpack("<I", start)
        return self.data[start + 4:start + 4 + length].decode("utf-8")

    def table(self, number):
        place = self.place(number)
        return Table(self.data, self.follow(place)) if place else None

    def elements(self, number):
        """Targets of a vector of offsets."""
        place = self.place(number)
        if not place:
            return []
        start = self.follow(place)
        return [self.follow(start + 4 + 4 * i) for i in range(self.unpack("<I", start))]

    def tables(self, number):
        return [Table(self.data, start) for start in self.elements(number)]

    def texts(self, number):
        return [self.text(start) for start in self.elements(number)]


def base_name(number):
    if number >= len(BASE_TYPES):
        raise BadSchema(f"base type {number} is unknown here: flatc is newer than this reader")
    return BASE_TYPES[number]


class Field:
    """reflection.Field with its reflection.Type."""

    def __init__(self, table):
        kind = table.table(1)
        self.name = table.string(0)
        self.base = base_name(kind.scalar(0, "<b"))
        self.element = base_name(kind.scalar(1, "<b"))
        self.index = kind.scalar(2, "<i", -1)
        self.id, self.offset = table.scalar(2, "<H"), table.scalar(3, "<H")
        self.default_integer, self.default_real = table.scalar(4, "<q"), table.scalar(5, "<d", 0.0)
        self.deprecated, self.required = bool(table.scalar(6, "<B")), bool(table.scalar(7, "<B"))
        self.attributes = {pair.string(0): pair.string(1) for pair in table.tables(9)}
        self.optional = bool(table.scalar(11, "<B"))


class Object:
    """reflection.Object: a table or a struct."""

    def __init__(self, table):
        self.name = table.string(0)
        self.fields = [Field(field) for field in table.tables(1)]
        self.is_struct = bool(table.scalar(2, "<B"))
        self.minalign, self.bytesize = table.scalar(3, "<i"), table.scalar(4, "<i")
        self.attributes = {pair.string(0): pair.string(1) for pair in table.tables(5)}
        self.documentation = [line.strip() for line in table.texts(6)]


class EnumValue:
    def __init__(self, table):
        self.name, self.value = table.string(0), table.scalar(1, "<q")


class Enum:
    def __init__(self, table):
        self.name = table.string(0)
        self.values = [EnumValue(value) for value in table.tables(1)]
        self.is_union = bool(table.scalar(2, "<B"))
        self.documentation = [line.strip() for line in table.texts(5)]


class Schema:
    def __init__(self, table):
        self.objects = [Object(object_) for object_ in table.tables(0)]
        self.enums = [Enum(enum) for enum in table.tables(1)]
        self.identifier = table.string(2)
        root = table.table(4)
        self.root = root.string(0) if root else None


def plain(name):
    """quintet.StepPlan -> StepPlan"""
    return name.rsplit(".", 1)[-1]


def read(data):
    if len(data) < 8 or data[4:8] != b"BFBS":
        raise BadSchema("flatc wrote no binary schema")
    return Schema(Table(data, struct.unpack_from("<I", data, 0)[0]))
