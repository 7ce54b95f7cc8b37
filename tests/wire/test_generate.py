"""What schemas/generate.py refuses, by file and field, and what it makes of names and comments."""
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLATC = os.environ.get("FLATC", "flatc")

sys.path.insert(0, str(ROOT / "schemas"))
from emit import snake  # noqa: E402

COMMON = """namespace quintet;
attribute "max_len"; attribute "max_bytes"; attribute "min"; attribute "max";
attribute "method"; attribute "reply"; attribute "changes"; attribute "once"; attribute "seconds"; attribute "of"; attribute "needs_text";
enum Kind : ubyte { none = 0, some }
enum Service : ubyte { none = 0, frontend, memory, tool }
struct Head { schema:ushort; }
struct Run { count:uint; }
table Tensor { name:string (max_len: "8"); }
table Other { id:uint; }
"""


def generate(folder, files):
    (folder / "common.fbs").write_text(COMMON)
    for name, text in files.items():
        top = '' if name.endswith(".json") else 'include "common.fbs";\nnamespace quintet;\n'
        (folder / name).write_text(top + text)
    command = [sys.executable, ROOT / "schemas/generate.py", "--flatc", FLATC, "--out", folder / "gen",
               *sorted(folder.glob("*.fbs"))]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)


def probe(field="", before="", root="Probe", identifier="QPRO", head="head:Head (required);"):
    return {"probe.fbs": f'{before}\ntable Probe {{ {head} {field} }}\nroot_type {root};\n'
                         + (f'file_identifier "{identifier}";\n' if identifier else "")}


def method(marks='method: "memory.probe", reply: "Answer"', doc="/// Probes.", field="", began="began_ns:ulong;", more="",
           example="{}"):
    return {"memory_probe.fbs": f"{doc}\ntable MemoryProbe ({marks}) {{ head:Head (required); {field} }}\n"
                                'root_type MemoryProbe;\nfile_identifier "QPRO";\n',
            "answer.fbs": f"{more}\ntable Answer {{ head:Head (required); {began} }}\nroot_type Answer;\n"
                          'file_identifier "QANS";\n',
            "memory_probe.json": example, "answer.json": "{}"}


REFUSED = {
    "method without documentation": (method(doc=""), "memory_probe.fbs: MemoryProbe: a method needs a /// comment"),
    "method of no service": (method('method: "tool.probe", reply: "Answer"'), 'method "tool.probe" is not "service.name"'),
    "method of another name": (method('method: "memory.look", reply: "Answer"'),
                               "the request of memory.look is called MemoryLook"),
    "method without a reply": (method('method: "memory.probe", reply: "Other"'), 'reply "Other" is no message'),
    "reply that does not say when": (method(began="x:uint;"), "answer.fbs: Answer: field 1 of a reply is `began_ns:ulong`"),
    "method that takes for ever": (method('method: "memory.probe", reply: "Answer", seconds: "86400"'),
                                   'seconds "86400" is not 1 to'),
    "field of something unknown": (method(field='x:uint (of: "moon");'), 'MemoryProbe.x: of "moon"'),
    "field of another type than what it is of": (method(field='x:uint (of: "text");'), 'of "text" does not fit the type'),
    "example that is no JSON": (method(example="{"), "memory_probe.json: every message has an example"),
    "more elements than a frame should claim": (
        method(began='began_ns:ulong; rows:[Row] (max_len: "4096");',
               more='table Row { texts:[string] (max_len: "1024", max_bytes: "8"); }'),
        "answer.fbs: Row.texts: a message might have 4194304 of them"),
    "vector without max_len": (probe("a:[uint];"), "probe.fbs: Probe.a: needs (max_len"),
    "string without max_len": (probe("a:string;"), "probe.fbs: Probe.a: needs (max_len"),
    "vector of strings without max_bytes": (probe('a:[string] (max_len: "2");'),
                                            "probe.fbs: Probe.a: needs (max_bytes"),
    "max_len of zero": (probe('a:[uint] (max_len: "0");'), "probe.fbs: Probe.a: needs (max_len"),
    "max_len on a number": (probe('a:uint (max_len: "2");'), "probe.fbs: Probe.a: max_len has no meaning"),
    "min on a string": (probe('a:string (max_len: "2", min: "1");'), "probe.fbs: Probe.a: min and max are for numbers"),
    "min on an enum": (probe('a:Kind (min: "1");'), "probe.fbs: Probe.a: min on a bool or an enum"),
    "max that is no number": (probe('a:uint (max: "many");'), 'probe.fbs: Probe.a: max "many" is not a number'),
    "max beyond the type": (probe('a:ubyte (max: "256");'), "probe.fbs: Probe.a: min 0 and max 256"),
    "min above max": (probe('a:uint (min: "5", max: "4");'), "probe.fbs: Probe.a: min 5 and max 4"),
    "union": (probe("a:Choice;", "union Choice { Other }"), "probe.fbs: Choice: no unions"),
    "vector of tables": (probe('a:[Other] (max_len: "2");'), "probe.fbs: Probe.a: a vector of tables"),
    "optional number": (probe("a:uint = null;"), "probe.fbs: Probe.a: no optional scalars"),
    "deprecated field": (probe("a:uint (deprecated);"), "probe.fbs: Probe.a: deprecated"),
    "struct that may be absent": (probe("a:Run;"), "probe.fbs: Probe.a: a struct field must be (required)"),
    "double": (probe("a:double;"), "probe.fbs: Probe.a: type Double is not on this wire"),
    "enum on another type": (probe("a:Wide;", "enum Wide : ushort { none = 0 }"),
                             "probe.fbs: Probe.a: an enum must be on"),
    "enum with a gap": (probe("a:Gap;", "enum Gap : ubyte { none = 0, far = 2 }"), "probe.fbs: Gap: enum values"),
    "C word": (probe("register:uint;"), "probe.fbs: Probe.register: is a C word"),
    "two C members of one name": (probe('a:[uint] (max_len: "2"); a_count:uint;'),
                                  "probe.fbs: Probe.a_count: the C struct"),
    "no head": (probe("a:uint;", head=""), "probe.fbs: Probe: field 0 of a message must be"),
    "head not required": (probe(head="head:Head;"), "probe.fbs: Probe.head: a struct field must be (required)"),
    "head not first": (probe("head:Head (required);", head="a:uint;"),
                       "probe.fbs: Probe: field 0 of a message must be"),
    "no file identifier": (probe(identifier=""), 'probe.fbs: needs file_identifier "Qxyz"'),
    "file identifier not ours": (probe(identifier="ABCD"), 'probe.fbs: needs file_identifier "Qxyz"'),
    "file identifier twice": ({**probe(), "again.fbs": "table Again { head:Head (required); }\nroot_type Again;\n"
                               'file_identifier "QPRO";\n'},
                              'probe.fbs: file_identifier "QPRO" is Again\'s, in again.fbs'),
    "root in another file's name": ({"wrong.fbs": probe()["probe.fbs"]},
                                    "wrong.fbs: root type Probe belongs into probe.fbs"),
    "table that holds itself": (probe("a:Node;", "table Node { next:Node; }"), "nest deeper than"),
    "type of one name in two files": ({**probe("a:Own (required);", "struct Own { x:uint; }"),
                                       "other2.fbs": "struct Own { x:ushort; }\ntable Other2 { head:Head (required); "
                                       'a:Own (required); }\nroot_type Other2;\n'
                                       'file_identifier "QOTH";\n'}, "is another type in"),
    "not a schema": (probe("a:nothing at all"), "flatc refuses it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_generate_refuses_and_names_file_and_field(name, tmp_path):
    files, text = REFUSED[name]
    done = generate(tmp_path, files)
    assert done.returncode != 0
    assert text in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "gen").exists()


def test_generate_carries_comments_units_and_limits_into_the_header(tmp_path):
    field = ('\n  wait_ms:uint (min: "1", max: "9");   // how long\n  many:[Run] (max_len: "3");  // runs */ of it\n'
             '  ok:bool = true;\n')
    done = generate(tmp_path, probe(field, "/// What a probe is."))
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "gen/qn_messages.h").read_text()
    assert "/* What a probe is. */\ntypedef struct qn_probe {" in text
    assert re.search(r"uint32_t wait_ms; +/\* 1 to 9; how long \*/", text)
    assert re.search(r"const qn_run_t \*many; +/\* at most 3; runs \* / of it \*/\n    uint32_t many_count;", text)
    assert "#define QN_PROBE_INIT { .ok = 1 }" in text


def test_generate_makes_a_row_of_a_method(tmp_path):
    field = 'ids:[uint] (max_len: "4", of: "token");  // what to look at\n limit:uint = 3 (min: "1", max: "9");'
    done = generate(tmp_path, method(field="\n " + field + "\n", example='{"head": {}, "limit": 5}',
                                     began='began_ns:ulong; rows:[Row] (max_len: "4"); share:float;',
                                     more='table Row { name:string (max_len: "8"); }'))
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "gen/qn_methods.c").read_text().replace('"\n        "', "").replace('\\"', '"')
    assert '.name = "memory.probe", .verb = "probe", .service = QN_SERVICE_MEMORY' in text
    assert '.doc = "Probes."' in text and '.example = "{"limit":5}"' in text and '{ "ids", QN_LIVE_TOKEN }' in text
    assert '"limit":{"type":["integer","null"],"minimum":1,"maximum":9,"default":3}' in text
    assert '"description":"what to look at"' in text and '"share":{"type":["number","null"]}' in text
    assert '"rows":{"type":"array","maxItems":4,"items":{"type":"object","properties":{"name":' in text


def test_generate_gives_the_same_bytes_each_time(tmp_path):
    for name in ("one", "two"):
        command = [sys.executable, ROOT / "schemas/generate.py", "--flatc", FLATC, "--out", tmp_path / name]
        subprocess.run([*command, *ROOT.glob("schemas/*.fbs"), *ROOT.glob("schemas/[!r]*/*.fbs")], check=True)
    for name in ("qn_messages.h", "qn_messages.c"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("name,want", [("StepPlan", "step_plan"), ("DType", "dtype"), ("RegionKind", "region_kind"),
                                       ("Bye", "bye")])
def test_generate_splits_type_names_into_words(name, want):
    assert snake(name) == want
