"""SIGKILL of each service under load: the supervisor restarts it and new requests are served with the same ids."""
import os
import pathlib
import signal
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "system"))
from engine import BUILD, SERVICES, Engine  # noqa: E402
from load import LOST, Load  # noqa: E402

PROMPTS = [list(range(10 + 40 * i, 40 + 43 * i)) for i in range(8)]
TOKENS = 100


@pytest.fixture(scope="module")
def engine():
    with Engine() as running:
        yield running


@pytest.fixture(scope="module")
def expected(engine):
    return engine.generate_many(PROMPTS, TOKENS)


def kill_under_load(engine, service):
    """SIGKILL when eight clients have seen tokens; returns their answers, which go on after the restart."""
    before = engine.epochs()[service]
    with Load(engine, PROMPTS, TOKENS) as load:
        load.wait_tokens(10 * len(PROMPTS))
        engine.kill(service)
        engine.wait_reborn({service: before})
        load.wait_answers(len(PROMPTS))
    return load.answers


@pytest.mark.parametrize("service", ["frontend", "tokenizer"])
def test_kill_before_the_scheduler_is_followed_by_service(engine, expected, service):
    """What these hold is lost today, but it ends at once, with a word for the client."""
    for index, status, ids in kill_under_load(engine, service):
        assert status in (LOST, 200, 503, "service_unavailable"), status
        assert ids == expected[index][:len(ids)]
    assert engine.generate_many(PROMPTS, TOKENS) == expected
    engine.wait_for(lambda: engine.used_blocks() == 0, 60, "all blocks back")


@pytest.mark.parametrize("service", ["scheduler", "compute", "memory"])
def test_kill_behind_the_tokenizer_loses_nothing(engine, expected, service):
    for index, status, ids in kill_under_load(engine, service):
        assert (status, ids) == (200, expected[index])
    engine.wait_for(lambda: engine.used_blocks() == 0, 60, "all blocks back")


def test_kill_of_all_at_once_is_followed_by_service(engine, expected):
    before = engine.epochs()
    for pid in engine.pids().values():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    engine.wait_reborn(before)
    assert engine.generate_many(PROMPTS, TOKENS) == expected


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "frontend"])
def test_kill_is_known_as_soon_as_the_process_is_dead(engine, service):
    """Asked after the death, the frontend tells of it, or of the next life; never of the one that is over."""
    for _ in range(3):
        before = {row["name"]: row for row in engine.get("/services")["services"]}[service]
        engine.kill(service)
        ready = engine.call("GET", "/ready")[0]
        after = {row["name"]: row for row in engine.get("/services")["services"]}[service]
        if after["epoch"] == before["epoch"]:
            assert ready == 503
            assert after["state"] == "down" and after["pid"] is None and after["text"] == "its process died"
        else:
            assert after["epoch"] > before["epoch"] and after["pid"] not in (None, before["pid"])
            assert after["restarts"] == after["epoch"] - 1
        engine.wait_reborn({service: before["epoch"]})


def test_duplicate_service_is_refused_and_disturbs_nobody(engine, expected):
    for service in SERVICES:
        done = subprocess.run([str(BUILD / f"quintet-{service}"), "--run-dir", engine.run_dir], capture_output=True,
                              text=True, timeout=60)
        assert done.returncode == 69, done
        assert "already runs" in done.stderr, done.stderr
    assert engine.generate_many(PROMPTS, TOKENS) == expected
