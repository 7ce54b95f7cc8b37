"""`quintet call`: any method from a shell, through the frontend and without it."""
import json
import os
import subprocess

import pytest
from engine import BUILD, SERVICES, Engine, free_port

OTHERS = [service for service in SERVICES if service != "frontend"]


@pytest.fixture(scope="module", params=[(), ("--inproc",)], ids=["ipc", "inproc"])
def engine(request):
    with Engine(*request.param) as running:
        yield running


def call(engine, *arguments, text=None):
    environment = {**os.environ, "QUINTET_URL": engine.url if engine else "http://127.0.0.1:1"}
    done = subprocess.run([BUILD / "quintet", "call", *arguments], input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, env=environment, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_call_alone_lists_every_method_with_its_documentation():
    status, out, _ = call(None)
    listed = json.loads(call(None, "--list", "-j")[1])
    assert status == 0 and len(listed) > 15
    assert all(row["doc"] in out and row["name"] in out and row["service"] in SERVICES for row in listed)
    only = json.loads(call(None, "--list", "memory", "-j")[1])
    assert only == [row for row in listed if row["service"] == "memory"]


def test_call_direct_says_what_the_frontend_says(engine):
    for service in OTHERS:
        for row in json.loads(call(None, "--list", service, "-j")[1]):
            if row["changes"]:
                continue
            example = json.dumps(row["example"])
            status, direct, error = call(engine, "-j", "--direct", "--run-dir", engine.run_dir, service, row["name"], example)
            through = call(engine, "-j", service, row["name"], example)
            if "request" in row["example"]:  # which is not there
                assert status == through[0] == 69 and "(404)" in error and "(404)" in through[2], (service, row["name"], error)
                continue
            assert status == 0, (service, row["name"], error)
            assert through[0] == 0, through
            assert json.loads(direct).keys() == json.loads(through[1]).keys()
    assert call(engine, "-j", "--direct", "--run-dir", engine.run_dir, "memory", "usage")[1] == \
        call(engine, "-j", "memory", "usage")[1]


def test_call_takes_json_from_a_file_and_from_standard_input(engine, tmp_path):
    (tmp_path / "body.json").write_text('{"limit": 2}')
    from_file = call(engine, "-j", "memory", "blocks", f"@{tmp_path}/body.json")
    from_input = call(engine, "-j", "memory", "blocks", "-", text='{"limit": 2}')
    assert from_file == from_input and len(json.loads(from_file[1])["blocks"]) == 2


def test_call_example_can_be_piped_into_the_call(engine):
    example = call(None, "--example", "memory", "lookup")[1]
    assert call(engine, "memory", "lookup", "-", text=example)[0] == 0


def test_call_research_shows_metadata(engine):
    reply = json.loads(call(engine, "-j", "--research", "memory", "usage")[1])
    assert reply["metadata"]["method"] == "usage" and reply["data"]["total_blocks"] > 0


@pytest.mark.parametrize("arguments,status,words", [
    (["memory", "usag"], 64, 'did you mean "usage"'),
    (["memry", "usage"], 64, 'did you mean "memory"'),
    (["memory", "usage", "{}", "{}"], 64, "quote it"),
    (["memory", "usage", "{"], 65, "no JSON"),
    (["memory", "usage", "[]"], 65, "must be an object"),
    (["memory", "blocks", '{"limit": 0}'], 65, "below the minimum 1"),
    (["memory", "blocks", '{"limits": 1}'], 65, 'did you mean "limit"'),
    (["scheduler", "explain", '{"request": 99}'], 69, "not in the ledger"),
    (["memory", "usage", "@/no/such/file"], 66, "/no/such/file"),
    (["--direct", "--url", "x", "memory", "usage"], 64, "leave out --url"),
    (["--direct", "frontend", "requests"], 64, "leave --direct out"),
])
@pytest.mark.parametrize("direct", [False, True])
def test_call_exit_statuses_and_words(engine, arguments, status, words, direct):
    extra = ["--direct", "--run-dir", engine.run_dir] if direct and "--direct" not in arguments else []
    got, _, error = call(engine, *extra, *arguments)
    assert got == status and words in error, error


def test_call_nobody_is_there(tmp_path):
    assert call(None, "memory", "usage")[0] == 69
    status, _, error = call(None, "--direct", "--run-dir", str(tmp_path), "memory", "usage")
    assert status == 69 and "memory.sock" in error


def test_call_direct_over_tcp():
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with Engine(memory__endpoint=endpoint) as engine:
        arguments = ["-j", "--direct", "--run-dir", engine.run_dir, "--set", f"memory.endpoint={endpoint}", "memory", "usage"]
        status, out, error = call(engine, *arguments)
        assert status == 0 and json.loads(out)["total_blocks"] > 0, error
        told = json.loads(call(engine, *arguments, "--repeat", "20")[1])
        assert told["count"] == 20 and 0 < told["p50_us"] <= told["p99_us"]


def test_call_direct_callers_come_and_go_without_a_trace(engine):
    """A greeting takes a place among the peers: more callers than places, one after the other, some killed in between."""
    for i in range(80):
        assert call(engine, "--direct", "--run-dir", engine.run_dir, "scheduler", "queue")[0] == 0, i
    log = open(engine.log_path).read()
    assert "peers are connected already" not in log and "silent for" not in log
