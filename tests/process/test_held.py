"""What runs for nobody, and what does not run: orphans give way, cancels are not lost, a stopped service comes back."""
import concurrent.futures
import json
import os
import pathlib
import signal
import socket
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "system"))
from engine import SLOW, Engine  # noqa: E402

IDS = list(range(10, 40))


@pytest.fixture(scope="module")
def engine():
    with Engine(scheduler__max_sequences=2, up__watchdog_seconds=2 * SLOW) as running:
        yield running


def longest(engine):
    return engine.get("/v1/models")["data"][0]["max_model_len"] - len(IDS) - 1


def open_stream(engine, tokens):
    """A connection whose stream has begun."""
    body = json.dumps({"input_ids": IDS, "stream": True, "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}})
    client = socket.create_connection(("127.0.0.1", engine.port), timeout=60)
    client.sendall(f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                   f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
    got = b""
    while b"data: " not in got:
        got += client.recv(65536)
    return client


def stop_all(engine, services):
    for pid in [engine.pids()[service] for service in services]:
        os.kill(pid, signal.SIGKILL)


def test_held_orphans_give_their_slots_to_new_work(engine):
    """Frontend and tokenizer die together with both slots taken: a new request does not wait for the orphans' end, and
    the death of the scheduler does not give them more time."""
    streams = [open_stream(engine, longest(engine)) for _ in range(2)]
    begin = time.monotonic()
    stop_all(engine, ["frontend", "tokenizer"])
    engine.wait_for(lambda: not responds(engine), 5, "the frontend is gone")
    engine.wait_ready()
    for _ in range(3):
        asked = time.monotonic()
        assert len(engine.generate(IDS, 1)) == 1
        assert time.monotonic() - asked < 2 * SLOW
    engine.kill("scheduler")
    engine.wait_ready()
    assert len(engine.generate(IDS, 1)) == 1
    engine.wait_for(lambda: engine.used_blocks() == 0, 14 - (time.monotonic() - begin) / SLOW, "the orphans have ended")
    for stream in streams:
        stream.close()


def responds(engine):
    try:
        return engine.call("GET", "/ping", timeout=1)[0] == 200
    except OSError:
        return False


def test_held_cancel_while_the_scheduler_is_down_ends_the_request(engine):
    """The client leaves while no scheduler is there to be told; the next one does not run its request to the end."""
    begin = time.monotonic()
    assert len(engine.generate(IDS, longest(engine))) == longest(engine)
    alone = time.monotonic() - begin
    streams = [open_stream(engine, longest(engine)) for _ in range(2)]
    engine.kill("scheduler")
    for stream in streams:
        stream.close()
    engine.wait_ready()
    ended = engine.wait_for(lambda: engine.used_blocks() == 0, 5, "its blocks are back")
    assert ended < max(alone / 2, 1.5 * SLOW), (ended, alone)


@pytest.mark.parametrize("service", ["scheduler", "compute", "tokenizer"])
def test_held_stopped_service_is_killed_and_work_goes_on(engine, service):
    expected = engine.generate(IDS, 64)
    before = engine.pids()[service]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        running = [pool.submit(engine.call, "POST", "/generate", {
            "input_ids": IDS, "sampling_params": {"max_new_tokens": 64, "temperature": 0, "ignore_eos": True}})
            for _ in range(2)]
        os.kill(before, signal.SIGSTOP)
        answers = [future.result() for future in running]
    engine.wait_for(lambda: engine.pids()[service] not in (0, before), 20, f"{service} is another process")
    engine.wait_ready()
    for status, reply in answers:
        assert status == 200 or (service == "tokenizer" and status == 503), (status, reply)
        assert status != 200 or reply["output_ids"] == expected
    assert engine.generate(IDS, 64) == expected
    assert f"{service} shows no sign of life" in engine.log_path.read_text(errors="replace")


def test_held_compute_that_answers_nothing_shows_in_health_and_resumes():
    """Stopped, with no watchdog to end it: the step is overdue, the scheduler says so, and planned again it ends right."""
    with Engine(up__watchdog_seconds=0) as engine:
        expected = engine.generate(IDS, 400)
        compute = engine.pids()["compute"]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            os.kill(compute, signal.SIGSTOP)
            try:
                running = pool.submit(engine.generate, IDS, 400)

                def words():
                    status, health = engine.call("GET", "/health")
                    return status == 503 and [row["text"] for row in health["services"] if row["name"] == "scheduler"][0]
                engine.wait_for(lambda: "no progress" in (words() or ""), 70, "health tells of the step")
            finally:
                os.kill(compute, signal.SIGCONT)
            assert running.result() == expected
        engine.wait_ready()
        assert engine.pids()["compute"] == compute
        assert engine.generate(IDS, 400) == expected
