"""The methods among the messages: pairs of a request and a reply that anybody may call by name, with JSON.

What is this?   The check of what a schema says of a method, and qn_methods.h and .c: a table with the name, the doc, the
                two messages, the JSON Schema of both and the request's example. The HTTP routes, /openapi.json, the docs
                page and `quintet call` are made from it.
Must never      know a method by name.
Read next       schemas/README.md ("A method"), common/wire/method.h (the row).
"""
import json
import re

HIDDEN = ("head", "began_ns", "algorithm_reasoning")    # what a caller neither gives nor gets as data
SECONDS_MAX = 3600
OF = ("token", "text", "layer", "head", "request", "model")    # values of the attribute `of`


class SchemaError(Exception):
    """A rule of the wire is broken; the text names file and field."""


def camel(name):
    return "".join(part.capitalize() for part in re.split(r"[._]", name))


class Method:
    """A request's root table that is marked as a method."""

    def __init__(self, schemas, request):
        self.request, self.name = request, request.attributes["method"]
        self.where = f"{request.file}: {request.name}"
        services = schemas.enums["Service"].values[1:-1]
        match = re.fullmatch(r"(\w+)\.([a-z][a-z0-9_]*)", self.name)
        if not match or match.group(1) not in services:
            raise SchemaError(f"{self.where}: method \"{self.name}\" is not \"service.name\" with one of {services}")
        self.service, self.verb = match.groups()
        if request.name != camel(self.name):
            raise SchemaError(f"{self.where}: the request of {self.name} is called {camel(self.name)}")
        self.reply = schemas.records.get(request.attributes.get("reply"))
        if not self.reply or not self.reply.identifier:
            raise SchemaError(f"{self.where}: reply \"{request.attributes.get('reply')}\" is no message")
        field = self.reply.fields[1] if len(self.reply.fields) > 1 else None
        if not field or (field.name, field.kind) != ("began_ns", "U64"):
            raise SchemaError(f"{self.reply.file}: {self.reply.name}: field 1 of a reply is `began_ns:ulong`, when the "
                              "service took the request in hand")
        self.doc = " ".join(request.documentation)
        if not self.doc:
            raise SchemaError(f"{self.where}: a method needs a /// comment: it is its documentation")
        self.changes, self.once = "changes" in request.attributes, "once" in request.attributes
        self.needs_text = "needs_text" in request.attributes
        self.seconds = self.read_seconds()
        self.check_fields(schemas, request)
        self.examples = [self.read_example(record) for record in (request, self.reply)]

    def read_seconds(self):
        text = self.request.attributes.get("seconds", "10")
        if not text.isdigit() or not 0 < int(text) <= SECONDS_MAX:
            raise SchemaError(f"{self.where}: seconds \"{text}\" is not 1 to {SECONDS_MAX}")
        return int(text)

    def check_fields(self, schemas, record):
        for field in record.fields:
            kind = field.attributes.get("of")
            if kind is not None and (kind not in OF or record is not self.request):
                raise SchemaError(f"{field.where}: of \"{kind}\"; a field of the request's root may be of one of {OF}")
            if kind and (field.kind == "STRING") != (kind in ("text", "model")):
                raise SchemaError(f"{field.where}: of \"{kind}\" does not fit the type")
            if field.table:
                self.check_fields(schemas, schemas.records[field.table])

    def read_example(self, record):
        path = record.path.with_suffix(".json")
        try:
            example = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SchemaError(f"{path.name}: every message has an example beside its schema: {error}")
        return {key: value for key, value in example.items() if key not in HIDDEN}


def read(schemas):
    """The methods, by name."""
    found = [Method(schemas, message) for message in schemas.messages() if "method" in message.attributes]
    return sorted(found, key=lambda method: method.name)


# ---- JSON Schema ----------------------------------------------------------------------------------------------------

def scalar_schema(schemas, field, is_reply):
    if field.kind == "BOOL":
        return {"type": "boolean"}
    if field.enum:
        return {"type": "string", "enum": schemas.enums[field.enum].values}
    if field.is_float:
        schema = {"type": ["number", "null"] if is_reply else "number"}    # NaN is null in JSON
        limits = (field.minimum, field.maximum) if "min" in field.attributes or "max" in field.attributes else (None, None)
    else:
        schema = {"type": "integer"}
        bounded = not is_reply or "max" in field.attributes
        limits = (field.minimum, min(field.maximum, 2**63 - 1) if bounded else None)
    schema.update({key: value for key, value in zip(("minimum", "maximum"), limits) if value is not None})
    return schema


def element_schema(schemas, field, is_reply):
    if field.kind == "STRING":
        return {"type": "string", "maxLength": field.max_bytes or field.max_len}
    if field.kind in ("TABLE", "STRUCT"):
        return record_schema(schemas, schemas.records[field.table or field.record], is_reply)
    return scalar_schema(schemas, field, is_reply)


def field_schema(schemas, field, is_reply):
    schema = element_schema(schemas, field, is_reply)
    if field.vector:
        schema = {"type": "array", "maxItems": field.max_len, "items": schema}
    elif is_reply and field.kind in ("STRING", "TABLE") and not field.required:
        schema["type"] = [schema["type"], "null"]
    if not field.vector and field.kind not in ("STRING", "TABLE", "STRUCT") and not is_reply and not field.owner.is_struct:
        default = field.default
        schema["default"] = bool(default) if field.kind == "BOOL" else \
            schemas.enums[field.enum].values[default] if field.enum else default
        if "minimum" in schema and not schema["minimum"] <= default <= schema["maximum"]:
            del schema["default"]       # the number is mandatory
    if field.comment:
        schema["description"] = field.comment
    return schema


def record_schema(schemas, record, is_reply=False):
    fields = [field for field in record.fields if field.name not in HIDDEN or not record.identifier]
    schema = {"type": "object",
              "properties": {field.name: field_schema(schemas, field, is_reply) for field in fields},
              "additionalProperties": False}
    must = [field.name for field in fields
            if is_reply or field.required or record.is_struct or is_mandatory(field, schema["properties"][field.name])]
    for name in schema["properties"] if not is_reply else ():
        if name not in must:
            allow_null(schema["properties"][name])
    if must:
        schema["required"] = must
    return schema


def allow_null(schema):
    """null in a request is the same as leaving the member out."""
    schema["type"] = [schema["type"], "null"]
    if "enum" in schema:
        schema["enum"] = schema["enum"] + [None]


def is_mandatory(field, schema):
    return not field.vector and "minimum" in schema and "default" not in schema


# ---- who sends what -------------------------------------------------------------------------------------------------

def route(schemas, record):
    """(senders, receivers) as bits by service, from "a -> b" or "a, b -> c -> d" at the head of the documentation; all
    of them for link control, which has none."""
    services = schemas.enums["Service"].values
    everybody = sum(1 << i for i in range(1, len(services) - 1))

    def bits(texts):
        known = {services.index(word) for text in texts for word in re.findall(r"\w+", text) if word in services}
        return sum(1 << number for number in known) or everybody
    for method in schemas.methods:
        ends = 1 << services.index("frontend"), 1 << services.index(method.service)
        if record in (method.request, method.reply):
            return ends if record is method.request else ends[::-1]
    match = re.match(r"[\w, ]+(?: -> [\w, ]+)+", " ".join(record.documentation))
    if not match:
        return everybody, everybody
    stations = match.group().split("->")
    return bits(stations[:-1]), bits(stations[1:])


# ---- C --------------------------------------------------------------------------------------------------------------

HEADER_TOP = """\
/* Made by schemas/generate.py from the .fbs files; not to be edited.
 * The methods of all services by number. What a row says: common/wire/method.h. */
#ifndef QN_METHODS_H
#define QN_METHODS_H

#include "common/wire/method.h"

typedef enum {
    QN_METHOD_NONE,"""


def constant(method):
    return "QN_METHOD_" + method.name.replace(".", "_").upper()


def upper_message(record):
    from emit import upper
    return f"QN_MESSAGE_{upper(record.name)}"


def header(schemas):
    lines = [HEADER_TOP] + [f"    {constant(method)}," for method in schemas.methods]
    return "\n".join(lines + ["    QN_METHOD_COUNT,", "} qn_method_id_t;", "",
                              "/* By qn_method_id_t; row 0 is empty. */",
                              "extern const qn_method_t qn_methods[QN_METHOD_COUNT];", "", "#endif"]) + "\n"


def literal(text):
    """A C string, in pieces that a reader's editor can bear."""
    def escape(piece):
        return piece.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("?", "\\?")
    pieces = [text[i:i + 100] for i in range(0, len(text), 100)] or [""]
    return "\n        ".join(f'"{escape(piece)}"' for piece in pieces)


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def row(schemas, method):
    live = [f'{{ "{field.name}", QN_LIVE_{field.attributes["of"].upper()} }}' for field in method.request.fields
            if "of" in field.attributes]
    return [f"    [{constant(method)}] = {{",
            f'        .name = "{method.name}", .verb = "{method.verb}", .service = QN_SERVICE_{method.service.upper()},',
            f"        .request = {upper_message(method.request)}, .reply = {upper_message(method.reply)},",
            f"        .changes = {str(method.changes).lower()}, .once = {str(method.once).lower()}, "
            f".seconds = {method.seconds}, .needs_text = {str(method.needs_text).lower()},",
            f"        .doc = {literal(method.doc)},",
            f"        .request_schema = {literal(compact(record_schema(schemas, method.request)))},",
            f"        .reply_schema = {literal(compact(record_schema(schemas, method.reply, is_reply=True)))},",
            f"        .example = {literal(compact(method.examples[0]))},",
            f"        .reply_example = {literal(compact(method.examples[1]))},",
            f"        .live = {{ {', '.join(live) or '{ NULL, 0 }'} }}, .live_count = {len(live)},", "    },"]


def source(schemas):
    lines = ["/* Made by schemas/generate.py from the .fbs files; not to be edited. */", '#include "qn_methods.h"', "",
             "const qn_method_t qn_methods[QN_METHOD_COUNT] = {"]
    for method in schemas.methods:
        lines += row(schemas, method)
    lines += ["};", "", "const uint16_t qn_method_requests[QN_MESSAGE_COUNT] = {", "    0,"]
    lines += [f"    [{upper_message(method.request)}] = {constant(method)}," for method in schemas.methods]
    replies = sorted({upper_message(method.reply) for method in schemas.methods})
    lines += ["};", "", "const qn_message_doc_t qn_message_docs[QN_MESSAGE_COUNT] = {", "    { NULL, 0, 0 },"]
    for message in schemas.messages():
        senders, receivers = route(schemas, message)
        lines.append(f"    [{upper_message(message)}] = {{ {literal(' '.join(message.documentation))}, {senders}, {receivers} }},")
    lines += ["};", "", "const bool qn_method_replies[QN_MESSAGE_COUNT] = {", "    false,"]
    return "\n".join(lines + [f"    [{name}] = true," for name in replies] + ["};"]) + "\n"
