"""`quintet config` and `quintet doctor`: answers, JSON and exit statuses."""
import json
import os
import pathlib
import socket
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUINTET = ROOT / os.environ.get("QUINTET_BUILD", "build") / "quintet"


@pytest.fixture
def quintet(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QUINTET_")}

    def run(*arguments, **more):
        done = subprocess.run([QUINTET, *arguments], cwd=tmp_path, env={**environment, **more}, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def run_dir(tmp_path):
    path = pathlib.Path("/tmp") / f"quintet-doctor-{os.getpid()}"
    path.mkdir(mode=0o700)
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


def test_config_show_tells_values_and_origins(quintet, tmp_path):
    (tmp_path / "q.yaml").write_text("scheduler:\n  lookahead: 0\n")
    status, out, _ = quintet("config", "show", "--origin", "--config", "q.yaml", "--set", "log.level=debug",
                             QUINTET_MEMORY_KV_BYTES="1GiB")
    lines = {line.split(":")[0]: line for line in out.splitlines()}
    assert status == 0
    assert lines["scheduler.lookahead"].split() == ["scheduler.lookahead:", "0", "#", "q.yaml:2"]
    assert lines["memory.kv_bytes"].split("  # ")[1] == "environment QUINTET_MEMORY_KV_BYTES"
    assert lines["memory.kv_bytes"].split()[1] == "1GiB"
    assert lines["log.level"].endswith("# --set")
    assert lines["scheduler.policy"].endswith("# default")


def test_config_show_json_has_typed_values(quintet, tmp_path):
    """QUINTET_CONFIG names the file when --config does not."""
    (tmp_path / "q.yaml").write_text("memory:\n  prefix_cache: false\n  kv_bytes: 2MiB\n")
    status, out, _ = quintet("config", "show", "-j", QUINTET_CONFIG="q.yaml")
    values = json.loads(out)
    assert status == 0
    assert values["memory.prefix_cache"] is False
    assert values["memory.kv_bytes"] == 2 << 20
    assert values["scheduler.max_sequences"] == 64


def test_config_get_answers_one_value(quintet):
    assert quintet("config", "get", "scheduler.policy") == (0, "fcfs\n", "")
    assert quintet("config", "get", "-j", "memory.block_tokens") == (0, "16\n", "")
    assert json.loads(quintet("config", "get", "-j", "--origin", "memory.block_tokens")[1]) == {"value": 16, "origin": "default"}
    status, out, err = quintet("config", "get", "scheduler.polcy")
    assert (status, out) == (64, "")
    assert "unknown key scheduler.polcy; did you mean scheduler.policy?" in err


def test_config_check_judges_a_file(quintet, tmp_path):
    (tmp_path / "good.yaml").write_text((ROOT / "config.yaml").read_text())
    (tmp_path / "bad.yaml").write_text("scheduler:\n  polcy: fcfs\n")
    assert quintet("config", "check", "good.yaml") == (0, "good.yaml: ok\n", "")
    status, out, err = quintet("config", "check", "bad.yaml")
    assert (status, out) == (78, "")
    assert "bad.yaml:2: unknown key scheduler.polcy; did you mean scheduler.policy?" in err
    status, out, _ = quintet("config", "check", "-j", "bad.yaml")
    assert status == 78
    assert json.loads(out)["ok"] is False


def test_config_keys_lists_every_key_in_every_form(quintet):
    rows = json.loads(quintet("config", "keys", "-j")[1])
    plain = quintet("config", "keys")[1].splitlines()
    markdown = quintet("config", "keys", "--markdown")[1].splitlines()
    assert len(rows) == len(plain) == len(markdown) - 2
    assert {row["key"] for row in rows} == set(json.loads(quintet("config", "show", "-j")[1]))
    assert quintet("config", "keys", "--yaml")[1] == (ROOT / "config.yaml").read_text()


@pytest.mark.parametrize("arguments", [["frobnicate"], ["get"], ["check"], ["show", "extra"], ["--nothing"], ["--set"],
                                       ["show", "--yaml"], ["get", "run_dir", "--markdown"], ["keys", "--origin"],
                                       ["keys", "--yaml", "-j"], ["keys", "--set", "log.level=debug"]])
def test_config_wrong_use_is_64(quintet, arguments):
    status, out, err = quintet("config", *arguments)
    assert status == 64
    assert json.loads(out)["error"]["exit_status"] == 64 if "-j" in arguments else out == ""
    assert "quintet config --help" in err


def checks(out):
    return {row["check"]: row for row in json.loads(out)["checks"]}


def test_doctor_on_this_machine_finds_the_bundled_model(quintet, run_dir):
    status, out, err = quintet("doctor", "-j", "--run-dir", run_dir, "--set", "frontend.listen=127.0.0.1:0")
    found = checks(out)
    assert (status, err) == (0, ""), out
    assert found["model"]["text"].endswith("deploy/models/default (default)")
    assert found["programs"]["result"] == "ok"
    status, out, _ = quintet("doctor", "--run-dir", run_dir, "--set", "frontend.listen=127.0.0.1:0")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == [
        row["result"] for row in found.values()]


def test_doctor_names_what_is_wrong_and_the_remedy(quintet, run_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, out, _ = quintet("doctor", "-j", "--run-dir", run_dir, "--set", f"frontend.listen=127.0.0.1:{port}",
                                 "--set", "model.path=/nonexistent", "--set", "compute.backend=cuda",
                                 "--set", "compute.device=63")
    found = checks(out)
    assert status == 69
    assert json.loads(out)["result"] == "fail"
    assert "Address already in use" in found["listen"]["text"] and "--set frontend.listen" in found["listen"]["remedy"]
    assert "/nonexistent/config.json" in found["model"]["text"] and found["model"]["remedy"]
    assert found["gpu"]["result"] == "fail" and "compute.backend=cpu" in found["gpu"]["remedy"]


def test_doctor_warns_of_a_run_directory_that_others_can_write(quintet, run_dir):
    run_dir.chmod(0o777)
    status, out, _ = quintet("doctor", "-j", "--run-dir", run_dir, "--set", "frontend.listen=127.0.0.1:0")
    assert status == 0
    assert checks(out)["run_dir"]["result"] == "warn"
    assert "chmod" in checks(out)["run_dir"]["remedy"]


def test_doctor_refuses_a_wrong_configuration(quintet):
    status, out, err = quintet("doctor", "--set", "scheduler.lookahead=2")
    assert (status, out) == (78, "")
    assert "scheduler.lookahead must be from 0 to 1" in err
