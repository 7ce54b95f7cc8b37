"""Broken configurations: every key with every kind of bad value, files that are no configuration, and values that are right by
themselves and wrong together. Each is refused with 78 (EX_CONFIG), by name, at once, and leaves nothing running."""
import json
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
QUINTET = ROOT / os.environ.get("QUINTET_BUILD", "build") / "quintet"
EX_CONFIG = 78


def quintet(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("QUINTET_")}
    return subprocess.run([QUINTET, *map(str, arguments)], capture_output=True, timeout=60, env={**clean, **environment})


KEYS = json.loads(quintet("config", "keys", "-j").stdout)


def bad_values(key):
    """YAML texts that are no value of the key."""
    values = ["[1, 2]", "{a: 1}", "[]", "&a 1", "*a"]
    if "min" in key or key["kind"] in ("count", "bytes", "integer", "number"):
        values += ["text", "-1", "1e99", "0x", "nan", ".inf", '""', "1 2", "99999999999999999999999", "1.5.2", "'5 apples'"]
        values += [str(key["max"] + 1)] if "max" in key else []
        values += [str(key["min"] - 1)] if "min" in key else []
    if "choices" in key:
        values += ["none_of_these", '""', "7", "'auto '"]
    if key["kind"] in ("bool", "switch", "flag"):
        values += ["perhaps", "2", '""', "truely"]
    return values


def nested(name, text):
    *rooms, leaf = name.split(".")
    lines = ["  " * depth + room + ":" for depth, room in enumerate(rooms)]
    return "\n".join(lines + ["  " * len(rooms) + f"{leaf}: {text}"]) + "\n"


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key["key"])
def test_bad_value_of_any_key_is_refused_by_line_and_name(key, tmp_path):
    file = tmp_path / "config.yaml"
    for text in bad_values(key):
        file.write_text("# a comment\n" + nested(key["key"], text))
        result = quintet("config", "check", file)
        said = result.stderr.decode()
        assert result.returncode == EX_CONFIG, f"{text}: {result.returncode} {said}"
        line = file.read_text().count("\n")
        assert f"{file}:{line}" in said and (key["key"] in said or "anchor" in said or "alias" in said), f"{text}: {said}"
        assert len(said) < 1000


def test_bad_value_of_any_key_by_environment_and_flag_is_refused_by_name():
    for key in KEYS:
        for text in [value for value in bad_values(key) if value.isalnum()][:2]:
            name = "QUINTET_" + key["key"].replace(".", "_").upper()
            by_flag = quintet("config", "show", "--set", f"{key['key']}={text}")
            by_name = quintet("config", "show", **{name: text})
            assert by_flag.returncode in (64, EX_CONFIG) and key["key"] in by_flag.stderr.decode(), (key["key"], text)
            assert by_name.returncode == EX_CONFIG and name in by_name.stderr.decode(), (name, text, by_name.stderr)


FILES = {
    "tab": b"frontend:\n\tlisten: 127.0.0.1:1\n",
    "unknown room": b"frontent:\n  listen: 127.0.0.1:1\n",
    "unknown key": b"frontend:\n  lissten: 127.0.0.1:1\n",
    "key twice": b"frontend:\n  mode: production\n  mode: research\n",
    "room twice": b"frontend:\n  mode: production\nfrontend:\n  mode: research\n",
    "room without keys is a value": b"frontend: 7\n",
    "list at the top": b"- a\n- b\n",
    "text at the top": b"hello\n",
    "two documents": b"frontend:\n  mode: research\n---\nfrontend:\n  mode: research\n",
    "json cut short": b'{"frontend": {"mode": "research"',
    "quote left open": b'frontend:\n  listen: "127.0.0.1:1\n',
    "no UTF-8": b"frontend:\n  listen: \xff\xfe\n",
    "NUL": b"frontend:\n  listen: a\x00b\n",
    "control characters": b"frontend:\n  listen: \"a\\x07b\"\n  mode: nothing\n",
    "a binary": bytes(range(256)) * 64,
    "deep": b"a:\n" + b"".join(b" " * depth + b"b:\n" for depth in range(1, 400)),
    "deep flow": b"a: " + b"[" * 5000,
    "merge key": b"base: &base\n  mode: research\nfrontend:\n  <<: *base\n",
    "tag": b"frontend:\n  mode: !!python/object:os.system research\n  queue: 1\n",
    "huge": b"# " + b"x" * (9 << 20) + b"\nfrontend:\n  nothing: 1\n",
    "many lines": b"".join(b"key%d: 1\n" % i for i in range(20000)),
    "key of a list": b"frontend:\n  ? [a, b]\n  : 1\n",
    "long name": b"f" * 100000 + b": 1\n",
    "long value": b"frontend:\n  mode: " + b"r" * 100000 + b"\n",
}


@pytest.mark.parametrize("name", FILES)
def test_file_that_is_no_configuration_is_refused_with_its_place(name, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(FILES[name])
    result = quintet("config", "check", file)
    said = result.stderr.decode()  # valid UTF-8, whatever the file holds
    assert result.returncode == EX_CONFIG and str(file) in said, said[:300]
    assert len(said) < 1500 and not any(ord(c) < 32 and c != "\n" for c in said)


def test_paths_that_are_no_file_are_refused(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, tmp_path / "absent.yaml", fifo, "/dev/zero", "/dev/null/x"):
        result = quintet("config", "check", path)
        assert result.returncode in (66, EX_CONFIG) and str(path) in result.stderr.decode(), (path, result)


TOGETHER = {
    "listen without a port": ({"frontend.listen": "127.0.0.1"}, "frontend.listen"),
    "listen on a port that is none": ({"frontend.listen": "127.0.0.1:70000"}, "frontend.listen"),
    "listen on a name that is none": ({"frontend.listen": "no such host:80"}, "frontend.listen"),
    "socket in a directory that is none": ({"frontend.listen": "unix:/no/such/directory/s"}, "frontend.listen"),
    "socket path too long": ({"frontend.listen": "unix:/tmp/" + "s" * 200}, "frontend.listen"),
    "no model there": ({"model.path": "/no/such/model"}, "/no/such/model"),
    "a model that is a file": ({"model.path": __file__}, "test_broken_configurations"),
    "a policy that is none": ({"scheduler.policy": "quickest"}, "scheduler.policy"),
    "a policy that is not there": ({"scheduler.policy": "/no/such/policy.so"}, "/no/such/policy.so"),
    "a policy that is no object": ({"scheduler.policy": __file__.replace(".py", ".so")}, ".so"),
    "KV for no block": ({"memory.kv_bytes": "1"}, "memory.kv_bytes"),
    "a kernel that is none": ({"compute.kernels": "matmul=fastest"}, "matmul"),
    "an operation that is none": ({"compute.kernels": "matmull=reference"}, "matmull"),
    "a run directory that is a file": ({"run_dir": __file__}, "test_broken_configurations"),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_values_that_cannot_be_served_end_the_start_and_are_named(name, tmp_path):
    settings, named = TOGETHER[name]
    settings = {"run_dir": str(tmp_path / "run"), "frontend.listen": f"unix:{tmp_path}/http.sock", **settings}
    flags = [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
    result = quintet("up", *flags)
    said = result.stderr.decode() + result.stdout.decode()
    assert result.returncode not in (0, 1) and result.returncode < 128, (result.returncode, said[-500:])
    assert named in said, said[-800:]
