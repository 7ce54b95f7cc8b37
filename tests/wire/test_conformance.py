"""The wire against Google's FlatBuffers: flatc's JSON, the C++ library, the Python runtime; both ways.

Needs flatc, g++, libflatbuffers-dev, PyPI's `flatbuffers`, and BUILD/tests/wire/wire_tool (make test-programs).
Environment: QUINTET_BUILD (default build), FLATC, CXX.
"""
import importlib
import json
import keyword
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("QUINTET_BUILD", "build")
FLATC = os.environ.get("FLATC", "flatc")
WORK = BUILD / "tests/wire/conformance"
TOOL = BUILD / "tests/wire/wire_tool"

sys.path.insert(0, str(ROOT / "schemas"))
from emit import snake  # noqa: E402


def run(command, data=b""):
    done = subprocess.run([str(part) for part in command], input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, f"{command}: {done.stderr.decode()}{done.stdout.decode()}"
    return done.stdout


def schema_files(suffix):
    """Of schemas/ and of its rooms, one per service."""
    found = [*ROOT.glob(f"schemas/*.{suffix}"), *ROOT.glob(f"schemas/*/*.{suffix}")]
    return sorted(path for path in found if path.parent.name != "released")


SCHEMAS = {match.group(1): path for path in schema_files("fbs")
           if (match := re.search(r"^root_type (\w+);", path.read_text(), re.M))}
MESSAGES = list(SCHEMAS)
ENUMS = [name for path in schema_files("fbs") for name in re.findall(r"^enum (\w+)", path.read_text(), re.M)]
each_message = pytest.mark.parametrize("message", MESSAGES)


def schema(message):
    return SCHEMAS[message]


def example(message):
    return json.loads(SCHEMAS[message].with_suffix(".json").read_text())


def alike(a, b):
    """Equal JSON; flatc prints floats with six decimals, and we print a ulong above 2^63 - 1 as a string."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float) or isinstance(b, float):
        return math.isclose(float(a), float(b), rel_tol=1e-6, abs_tol=1e-6)
    if type(a) is not type(b) and {type(a), type(b)} == {int, str}:
        return str(a) == str(b)
    return type(a) is type(b) and a == b


def encode(message, value=None):
    return run([TOOL, "encode", message], json.dumps(value or example(message)).encode())


def decode(frame):
    return json.loads(run([TOOL, "decode"], frame))


def flatc_encode(message, value):
    folder = WORK / "flatc" / message
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "value.json").write_text(json.dumps(value))
    run([FLATC, "-b", "--strict-json", "-o", folder, schema(message), folder / "value.json"])
    return (folder / "value.bin").read_bytes()


def flatc_decode(message, frame):
    """flatc checks the file identifier, so a frame of another type would be refused."""
    folder = WORK / "flatc" / message
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "frame.bin").write_bytes(frame)
    run([FLATC, "--json", "--strict-json", "-o", folder, schema(message), "--", folder / "frame.bin"])
    return json.loads((folder / "frame.json").read_text())


@pytest.fixture(scope="session")
def google_tool():
    """C++ generated code of all messages in one program."""
    folder = WORK / "cpp"
    folder.mkdir(parents=True, exist_ok=True)
    for path in schema_files("fbs"):
        run([FLATC, "--cpp", "--gen-object-api", "--scoped-enums", "-o", folder, path])
    includes = "".join(f'#include "{snake(message)}_generated.h"\n' for message in MESSAGES)
    listing = "#define MESSAGES(X) " + " ".join(f"X({message})" for message in MESSAGES) + "\n"
    (folder / "messages.inc").write_text(includes + listing)
    run([os.environ.get("CXX", "g++"), "-std=c++17", "-O0", "-I", folder, ROOT / "tests/wire/google_tool.cc", "-o",
         folder / "google_tool"])
    return folder / "google_tool"


@pytest.fixture(scope="session")
def python_code():
    folder = WORK / "python"
    folder.mkdir(parents=True, exist_ok=True)
    for path in schema_files("fbs"):
        run([FLATC, "--python", "--gen-object-api", "-o", folder, path])
    sys.path.insert(0, str(folder))
    return lambda name: importlib.import_module(f"quintet.{name}")


def test_every_schema_has_an_example_and_a_message():
    listed = dict(line.split() for line in run([TOOL, "types"]).decode().splitlines())
    assert sorted(listed) == sorted(MESSAGES)
    assert sorted(path.stem for path in schema_files("json")) == sorted(map(snake, MESSAGES))


@each_message
def test_we_read_what_flatc_writes_and_flatc_reads_what_we_write(message):
    value = example(message)
    theirs = flatc_encode(message, value)
    assert decode(theirs) == value
    again = run([TOOL, "recode"], theirs)
    assert again == encode(message)
    assert alike(flatc_decode(message, again), value)


@each_message
def test_cpp_verifies_and_reads_ours_and_we_read_what_cpp_builds(message, google_tool):
    rebuilt = run([google_tool], encode(message))
    assert decode(rebuilt) == example(message)
    assert alike(flatc_decode(message, rebuilt), example(message))


def camel(name):
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def enum_names(module):
    """{value: name} when the module holds an enum."""
    members = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    return {value: name for enum in members.values() for name, value in vars(enum).items() if isinstance(value, int)}


def python_member(seen, name):
    """flatc writes a_b as aB and a Python word, `from`, as from_."""
    return getattr(seen, camel(name) + "_" if keyword.iskeyword(name) else camel(name))


def python_equals(value, seen, python_code):
    """Whether a Python object of the object API holds what the JSON says."""
    if isinstance(value, dict):
        return all(python_equals(inner, python_member(seen, name), python_code) for name, inner in value.items())
    if isinstance(value, list):
        return len(value) == len(seen) and all(python_equals(a, b, python_code) for a, b in zip(value, seen))
    if isinstance(value, str) and isinstance(seen, int):
        return value == str(seen) or any(enum_names(python_code(enum)).get(seen) == value for enum in ENUMS)
    if isinstance(value, float):
        return math.isclose(value, seen, rel_tol=1e-6, abs_tol=1e-9)
    return value == (seen.decode() if isinstance(seen, bytes) else seen)


@each_message
def test_python_reads_ours_and_we_read_what_python_builds(message, python_code):
    import flatbuffers
    module = python_code(message)
    frame = encode(message)
    root, identifier = getattr(module, message), frame[4:8]
    assert getattr(root, f"{message}BufferHasIdentifier")(frame, 0)
    held = getattr(module, f"{message}T").InitFromObj(root.GetRootAs(frame, 0))
    assert python_equals(example(message), held, python_code)
    builder = flatbuffers.Builder(1024)
    builder.Finish(held.Pack(builder), file_identifier=identifier)
    assert decode(bytes(builder.Output())) == example(message)


@pytest.mark.parametrize("value", [2**63 - 1, 2**63, 2**64 - 1])
def test_every_ulong_passes_flatc_in_both_directions(value):
    message = example("Credit")
    message["limit"] = value if value < 2**63 else str(value)
    assert flatc_decode("Credit", encode("Credit", message))["limit"] == value
    assert decode(flatc_encode("Credit", message)) == message


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_floats_that_are_no_number_pass_from_our_json_through_flatc(value):
    message = example("TokenBatch")
    message["top"][0]["logprob"] = value
    assert decode(flatc_encode("TokenBatch", message)) == message


def test_text_of_every_kind_passes_flatc_in_both_directions():
    message = example("Detokenized")
    message["text"] = "é€🙂\u0000\n\"\\\t"
    assert decode(flatc_encode("Detokenized", message)) == message
    assert flatc_decode("Detokenized", encode("Detokenized", message)) == message


RELEASED = sorted(path.name for path in ROOT.glob("schemas/released/*.fbs"))


@pytest.mark.parametrize("name", RELEASED)
def test_schema_conforms_to_the_last_release(name):
    """What schemas/README.md says about growth: fields at the end, structs as they are, nothing removed."""
    run([FLATC, "-I", ROOT / "schemas", "--conform", ROOT / "schemas/released" / name, "--conform-includes",
         ROOT / "schemas/released", ROOT / "schemas" / name])


def test_schema_that_breaks_the_release_is_refused(tmp_path):
    """flatc does look: a struct with one member more than the released one does not pass."""
    text = (ROOT / "schemas/common.fbs").read_text()
    (tmp_path / "common.fbs").write_text(text.replace("  top_p:float", "  extra:float;\n  top_p:float", 1))
    assert text != (tmp_path / "common.fbs").read_text()
    done = subprocess.run([FLATC, "--conform", ROOT / "schemas/released/common.fbs", tmp_path / "common.fbs"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode != 0 and b"differ" in done.stdout


def emptied(value):
    """Every vector without its elements."""
    if isinstance(value, dict):
        return {key: emptied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return []
    return value


def hollow(value):
    """Vectors of tables and structs stay, what is in them is empty."""
    if isinstance(value, dict):
        return {key: hollow(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hollow(inner) for inner in value] if value and isinstance(value[0], dict) else []
    return value


@each_message
@pytest.mark.parametrize("change", [emptied, hollow])
def test_empty_vectors_pass_flatc_in_both_directions(message, change):
    """flatc 2.0 does not align where the elements of an empty vector would be."""
    value = change(example(message))
    theirs = flatc_encode(message, value)
    assert decode(theirs) == value
    assert alike(flatc_decode(message, run([TOOL, "recode"], theirs)), value)
