"""Some four hundred model directories, each with one thing wrong or odd. `quintet model check` says something definite of each,
memory (and for some the whole of `quintet up`) agrees, and nothing crashes or hangs. Run with QUINTET_BUILD=build/asan too."""
import json
import math
import os
import pathlib
import random
import select
import shutil
import socket
import struct
import subprocess

import pytest

from engine import BUILD, ROOT, SLOW, Engine

BASE = ROOT / "tests/golden/llama3"
FILES = ["config.json", "generation_config.json", "model.safetensors.index.json"]
SHARD = "model-00003-of-00006.safetensors"
LIMIT_S = 20 * SLOW
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("QUINTET_")}
GOOD_STATUS = {0, 65, 66, 69, 71, 74, 78}


# ---- the directories ----

@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "base"
    directory.mkdir()
    for file in BASE.iterdir():
        if not file.name.startswith("golden"):
            shutil.copy(file, directory)
    return directory


def replica(base, change):
    """A copy that shares all files but those that `change`, given the directory, writes anew."""
    directory = base.parent / "model"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for file in base.iterdir():
        os.link(file, directory / file.name)
    change(directory)
    return directory


def put(directory, name, content):
    (directory / name).unlink(missing_ok=True)
    (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def edit_json(name, key, value):
    def change(directory):
        data = json.loads((directory / name).read_text())
        if value is ...:
            data.pop(key, None)
        else:
            data[key] = value
        put(directory, name, json.dumps(data))
    return change


def edit_bytes(name, edit):
    def change(directory):
        data = bytearray((directory / name).read_bytes())
        put(directory, name, bytes(edit(data)))
    return change


def edit_header(edit):
    """Edits the JSON header of a shard; the data stays."""
    def change(data):
        size = struct.unpack_from("<Q", data)[0]
        header = json.loads(data[8:8 + size])
        edit(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + size:]
    return edit_bytes(SHARD, change)


def edit_tensor(key, edit):
    def change(header):
        name = sorted(k for k in header if k != "__metadata__")[0]
        header[name][key] = edit(header[name][key])
    return edit_header(change)


# ---- what is wrong: {what: change} ----

ODD = {"absent": ..., "null": None, "text": "x", "number text": "4", "-1": -1, "0": 0, "1": 1, "2.5": 2.5, "huge": 10**30,
       "1e30": 1e30, "NaN": math.nan, "Infinity": math.inf, "true": True, "list": [], "object": {}, "list of null": [None]}


def config_keys():
    for key in sorted(json.loads((BASE / "config.json").read_text())):
        for what, value in ODD.items():
            yield f"config {key}: {what}", edit_json("config.json", key, value)
    for key in ("rope_scaling", "layer_types", "sliding_window", "quantization_config", "torch_dtype", "rope_theta"):
        for what, value in ODD.items():
            yield f"config {key}: {what}", edit_json("config.json", key, value)


def rope_keys():
    rope = json.loads((BASE / "config.json").read_text())["rope_parameters"]
    for key in rope:
        for what in ("absent", "null", "text", "-1", "0", "NaN", "1e30"):
            changed = {k: v for k, v in rope.items() if k != key}
            if ODD[what] is not ...:
                changed[key] = ODD[what]
            yield f"rope {key}: {what}", edit_json("config.json", "rope_parameters", changed)


def generation_keys():
    for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "eos_token_id"):
        for what in ("null", "text", "-1", "0", "2.5", "huge", "NaN", "true", "list", "list of null"):
            yield f"generation {key}: {what}", edit_json("generation_config.json", key, ODD[what])


def texts():
    for name in FILES:
        for what, text in {"empty": "", "cut": "{", "list": "[]", "text": '"x"', "binary": "\x00\x01\x02", "deep": "[" * 5000,
                           "not UTF-8": b'{"a": "\xff"}', "BOM": b"\xef\xbb\xbf{}", "long": " " * (20 << 20)}.items():
            yield f"{name}: {what}", lambda d, name=name, text=text: put(d, name, text)


def missing_and_special():
    """For every file: nothing, and what is no file."""
    kinds = {"missing": lambda path: None, "FIFO": os.mkfifo, "directory": os.mkdir, "device": lambda path: os.symlink("/dev/zero", path),
             "socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
             "link to nowhere": lambda path: os.symlink("nowhere", path), "link to itself": lambda path: os.symlink(path.name, path),
             "unreadable": lambda path: path.touch(0o000)}
    for name in (*FILES, SHARD):
        for what, make in kinds.items():
            def change(directory, name=name, make=make):
                (directory / name).unlink()
                make(directory / name)
            yield f"{name}: {what}", change


def index_entries():
    def entries(edit):
        def change(directory):
            index = json.loads((directory / FILES[2]).read_text())
            edit(index["weight_map"])
            put(directory, FILES[2], json.dumps(index))
        return change
    for what, file in {"outside": "../model.safetensors", "absolute": "/etc/passwd", "number": 7, "null": None, "empty": "",
                       "long": "x" * 400, "absent": "gone.safetensors", "dot": ".", "no weights": "config.json"}.items():
        yield f"index {what}", entries(lambda m, file=file: m.__setitem__("some.tensor", file))
    yield "index empty", entries(lambda m: m.clear())
    yield "index short", entries(lambda m: [m.pop(k) for k in list(m)[2:]])
    yield "index many", entries(lambda m: m.update({f"t{i}": f"f{i}.safetensors" for i in range(600)}))


def shards():
    size = (BASE / SHARD).stat().st_size
    draw = random.Random(7)
    for length in (0, 1, 7, 8, 9, 100, size // 2, size - 1, size + 1):
        yield f"shard of {length} bytes", edit_bytes(SHARD, lambda d, n=length: d[:n] + bytes(max(0, n - len(d))))
    header = struct.unpack_from("<Q", (BASE / SHARD).read_bytes())[0]
    for i in range(60):
        at, bit = draw.randrange(8 + header), 1 << draw.randrange(8)

        def flip(data, at=at, bit=bit):
            data[at] ^= bit
            return data
        yield f"bit {bit} of byte {at} of the header", edit_bytes(SHARD, flip)
    for value in (0, 1, header - 1, header + 1, 2**31, 2**63, 2**64 - 1):
        yield f"header of {value}", edit_bytes(SHARD, lambda d, v=value: struct.pack("<Q", v) + d[8:])
    for dtype in ("F8_E4M3", "I32", "BOOL", "F99", "", "bf16", 7, None):
        yield f"dtype {dtype}", edit_tensor("dtype", lambda old, dtype=dtype: dtype)
    for what, shape in {"scalar": lambda s: [], "swapped": lambda s: s[::-1] + [1], "negative": lambda s: [-1, *s], "huge": lambda s: [2**62, 2**62],
                        "text": lambda s: "x", "reals": lambda s: [float(n) for n in s], "deep": lambda s: [*s] + [1] * 12}.items():
        yield f"shape {what}", edit_tensor("shape", shape)
    for what, offsets in {"backwards": lambda o: o[::-1], "beyond": lambda o: [o[0], 2**40], "shifted": lambda o: [o[0] + 2, o[1] + 2],
                          "short": lambda o: [o[0], o[1] - 2], "negative": lambda o: [-2, o[1]], "one": lambda o: o[:1], "none": lambda o: None}.items():
        yield f"offsets {what}", edit_tensor("data_offsets", offsets)
    yield "tensor renamed", edit_header(lambda h: h.__setitem__("other", h.pop(sorted(k for k in h if k != "__metadata__")[0])))
    yield "metadata odd", edit_header(lambda h: h.__setitem__("__metadata__", [1]))


def numbers():
    name, size = SHARD, (BASE / SHARD).stat().st_size
    for what, bits in {"NaN": 0x7FC0, "infinite": 0x7F80, "minus infinite": 0xFF80}.items():
        for at in (size - 2, size - 50002):
            def spoil(data, at=at, bits=bits):
                struct.pack_into("<H", data, at, bits)
                return data
            yield f"{what} at {at}", edit_bytes(name, spoil)


FAMILIES = {"config": config_keys, "rope": rope_keys, "generation": generation_keys, "texts": texts, "special": missing_and_special,
            "index": index_entries, "shards": shards, "numbers": numbers}


# ---- what is asked ----

def model_check(directory):
    """(exit status, the report)"""
    done = subprocess.run([BUILD / "quintet", "model", "check", "-j", directory], cwd=ROOT, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=LIMIT_S, env=ENVIRONMENT)
    assert done.stderr == "", done.stderr[-2000:]
    return done.returncode, json.loads(done.stdout)


def memory_loads(directory, run_dir):
    """(whether the daemon is ready with this model, what it wrote): memory alone, as a service manager starts it."""
    notify = run_dir / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(notify))
        process = subprocess.Popen([BUILD / "quintet-memory", "--run-dir", run_dir, "--set", f"model.path={directory}",
                                    "--set", "memory.kv_bytes=1MiB"], stdin=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True, env={**ENVIRONMENT, "NOTIFY_SOCKET": str(notify)})
        end = os.pidfd_open(process.pid)
        try:
            ready = False
            while not ready:
                woken = select.select([manager, end], [], [], LIMIT_S)[0]
                assert woken, "neither ready nor ended"
                if manager not in woken:
                    break
                ready = b"READY=1" in manager.recv(8192)
            process.terminate()
            text = process.communicate(timeout=LIMIT_S)[1]
        finally:
            process.kill()
            os.close(end)
            notify.unlink()
    assert process.returncode in GOOD_STATUS and "Sanitizer" not in text, f"{process.returncode}: {text[-2000:]}"
    assert ready or "<3>memory: " in text, text
    return ready, text


def up_serves(directory):
    try:
        with Engine(model__path=directory, tokenizer__path=directory, memory__kv_bytes="4MiB") as engine:
            status, answer = engine.call("POST", "/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 2, "logprobs": 0})
            assert status == 200 and all(math.isfinite(x) for x in answer["choices"][0]["logprobs"]["token_logprobs"]), answer
            return True
    except AssertionError as ended:
        if "quintet up ended" not in str(ended):
            raise
        assert "Sanitizer" not in str(ended), str(ended)[-2000:]
        return False


def judge(directory, run_dir):
    """Raises AssertionError when something is wrong; returns whether the model can be served."""
    status, report = model_check(directory)
    failed = [row for row in report["checks"] if row["result"] == "fail"]
    assert status in GOOD_STATUS and (status == 0) == (not failed), (status, failed)
    assert all(row["text"] for row in report["checks"]) and all(row.get("remedy") for row in failed), failed
    ready, text = memory_loads(directory, run_dir)
    assert ready == (status == 0), f"check says {failed or 'good'}, memory says {text[-400:]}"
    return ready


@pytest.mark.parametrize("family", FAMILIES)
def test_broken_models_check_and_memory_say_the_same(family, base, tmp_path):
    wrong, served, total = [], 0, 0
    for what, change in FAMILIES[family]():
        total += 1
        try:
            served += judge(replica(base, change), tmp_path)
        except (AssertionError, subprocess.TimeoutExpired, ValueError) as error:
            wrong.append(f"{what}: {error}")
    assert not wrong, f"{len(wrong)} of {total}:\n" + "\n".join(wrong)[:6000]
    assert total > served or family == "rope"


@pytest.mark.parametrize("family", FAMILIES)
def test_broken_models_up_says_the_same(family, base):
    """One of sixteen, since five processes start for each."""
    for what, change in list(FAMILIES[family]())[3::16]:
        directory = replica(base, change)
        assert up_serves(directory) == (model_check(directory)[0] == 0), what


@pytest.mark.parametrize("kind", ["FIFO", "directory", "link to nowhere", "device"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"])
def test_broken_models_special_tokenizer_files_are_refused(name, kind, base):
    def change(directory):
        shutil.copy(ROOT / "deploy/models/default/tokenizer.json", directory)
        make = {"FIFO": os.mkfifo, "directory": os.mkdir, "link to nowhere": lambda path: os.symlink("nowhere", path),
                "device": lambda path: os.symlink("/dev/zero", path)}[kind]
        (directory / name).unlink(missing_ok=True)
        make(directory / name)
    directory = replica(base, change)
    status, report = model_check(directory)
    failed = [row for row in report["checks"] if row["result"] == "fail"]
    assert status != 0 and name in failed[0]["text"], report
    assert not up_serves(directory)


def test_broken_models_are_hundreds():
    assert sum(len(list(family())) for family in FAMILIES.values()) >= 300
