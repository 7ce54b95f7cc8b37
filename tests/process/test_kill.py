"""SIGKILL of each service under load: the supervisor restarts it and new requests are served with the same ids."""
import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "system"))
from engine import BUILD, SERVICES, Engine  # noqa: E402

PROMPTS = [list(range(10 + 40 * i, 40 + 43 * i)) for i in range(8)]


@pytest.fixture(scope="module")
def engine():
    with Engine() as running:
        yield running


@pytest.fixture(scope="module")
def expected(engine):
    return [engine.generate(ids, 32) for ids in PROMPTS]


def attempt(engine, ids, tokens):
    """A status, or None when the connection broke: what a client may see while a service is down, but never a hang."""
    try:
        status, reply = engine.call("POST", "/generate", {
            "input_ids": ids, "sampling_params": {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}}, timeout=60)
        return status, reply
    except OSError:
        return None, None


@pytest.mark.parametrize("service", SERVICES)
def test_kill_is_followed_by_service(engine, expected, service):
    before = engine.pids()[service]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = [pool.submit(attempt, engine, ids, 200) for ids in PROMPTS]
        time.sleep(0.15)
        engine.kill(service)
        answers = [future.result() for future in running]
    engine.wait_ready()
    after = {row["name"]: row for row in engine.get("/services")["services"]}
    assert after[service]["pid"] != before
    assert after[service]["restarts"] >= 1
    for status, reply in answers:
        assert status in (None, 200, 503), (status, reply)
    assert [engine.generate(ids, 32) for ids in PROMPTS] == expected
    engine.wait_for(lambda: engine.used_blocks() == 0, 12, "all blocks back")


@pytest.mark.parametrize("service", ["scheduler", "compute", "memory"])
def test_kill_behind_the_tokenizer_loses_nothing(engine, service):
    wanted = [engine.generate(ids, 200) for ids in PROMPTS]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = [pool.submit(attempt, engine, ids, 200) for ids in PROMPTS]
        time.sleep(0.2)
        engine.kill(service)
        answers = [future.result() for future in running]
    assert [status for status, _ in answers] == [200] * len(PROMPTS)
    assert [reply["output_ids"] for _, reply in answers] == wanted
    engine.wait_ready()


def test_kill_of_all_at_once_is_followed_by_service(engine, expected):
    for pid in engine.pids().values():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    time.sleep(0.05)
    engine.wait_ready()
    assert [engine.generate(ids, 32) for ids in PROMPTS] == expected


def test_duplicate_service_is_refused_and_disturbs_nobody(engine, expected):
    for service in SERVICES:
        done = subprocess.run([str(BUILD / f"quintet-{service}"), "--run-dir", engine.run_dir], capture_output=True,
                              text=True, timeout=20)
        assert done.returncode == 69, done
        assert "already runs" in done.stderr, done.stderr
    assert [engine.generate(ids, 32) for ids in PROMPTS] == expected
