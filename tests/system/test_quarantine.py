"""A request that makes a daemon crash twice is ended with a 500 that says so, and kept for the post-mortem; everybody else
goes on as if nothing had been. Failpoints make the request do it: the token POISON in its prompt."""
import concurrent.futures
import http.client
import json
import pathlib
import random

import pytest

from engine import BUILD, SLOW, Engine

POISON = 4000
TOKENS = 60


def prompts():
    dice = random.Random(9)
    return [[dice.randrange(4, 3900) for _ in range(n)] for n in [3, 20, 33, 64, 100, 130, 200, 257] * 2]


def poisoned(length=20):
    return [5] * (length - 1) + [POISON]


def ask(engine, ids, **more):
    return engine.call("POST", "/v1/completions", {"prompt": ids, "max_tokens": 8, "temperature": 0, **more})


def records(engine):
    return [json.loads(path.read_text()) for path in sorted(pathlib.Path(engine.run_dir, "quarantine").glob("*.json"))]


@pytest.fixture(scope="module")
def undisturbed():
    with Engine() as engine:
        return [engine.generate(ids, TOKENS) for ids in prompts()]


def run_beside(engine, request):
    """Sixteen streams and the request, together."""
    with concurrent.futures.ThreadPoolExecutor(17) as pool:
        streams = [pool.submit(engine.generate, ids, TOKENS) for ids in prompts()]
        answer = pool.submit(request)
        return [stream.result() for stream in streams], answer.result()


@pytest.mark.parametrize("point, daemon, ends", [
    ("compute.before_step", "compute", "SIGABRT"),
    ("compute.after_step", "compute", "SIGABRT"),
    ("memory.before_grant", "memory", "SIGABRT"),
    ("scheduler.before_plan", "scheduler", "SIGABRT"),
    ("scheduler.submit", "scheduler", "SIGABRT"),
    ("compute.before_step", "compute", "status 70"),
])
def test_quarantine_after_two_deaths_and_sixteen_streams_have_the_same_bytes(undisturbed, point, daemon, ends):
    action = "crash" if ends.startswith("SIG") else "exit=" + ends.split()[1]
    with Engine(failpoints=f"{point}@{POISON}:1:{action}") as engine:
        streams, (status, reply) = run_beside(engine, lambda: ask(engine, poisoned()))
        assert streams == undisturbed
        assert status == 500 and "crash twice" in reply["error"]["message"] and "quarantine" in reply["error"]["message"]
        assert engine.fired() == [point] * 2
        [record] = records(engine)
        assert record["daemon"] == daemon and record["crash"] == ends
        assert record["prompt_ids"] == poisoned() and record["sampling"]["max_tokens"] == 8
        assert ask(engine, prompts()[0])[0] == 200
        assert engine.used_blocks() == 0


def test_quarantine_of_a_request_alone_takes_two_deaths_too():
    with Engine(failpoints=f"compute.before_step@{POISON}:1:crash") as engine:
        assert ask(engine, poisoned())[0] == 500
        assert engine.fired() == ["compute.before_step"] * 2
        assert ask(engine, [5, 6])[0] == 200


def test_quarantine_of_two_requests_finds_both(undisturbed):
    with Engine(failpoints=f"compute.before_step@{POISON}:1:crash,compute.before_step@{POISON + 1}:1:crash") as engine:
        def both():
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                return list(pool.map(lambda ids: ask(engine, ids)[0], [poisoned(), poisoned() + [POISON + 1]]))
        streams, answers = run_beside(engine, both)
        assert streams == undisturbed and answers == [500, 500] and len(records(engine)) == 2


def test_quarantine_of_a_stream_ends_it_with_an_error_event():
    with Engine(failpoints=f"scheduler.before_plan@{POISON}:1:crash") as engine:
        status, text = ask(engine, poisoned(), stream=True)
        assert "crash twice" in (text if isinstance(text, str) else json.dumps(text)), (status, text)


@pytest.mark.parametrize("point", ["compute.before_step", "memory.before_grant", "scheduler.before_plan"])
def test_quarantine_takes_no_kill_from_outside_for_a_crash(undisturbed, point):
    with Engine(failpoints=f"{point}@{POISON}:1:kill:3") as engine:
        streams, (status, reply) = run_beside(engine, lambda: ask(engine, poisoned()))
        assert streams == undisturbed and status == 200
        assert engine.fired() == [point] * 3
        assert records(engine) == []


def test_quarantine_takes_no_watchdog_for_a_crash():
    with Engine(failpoints=f"scheduler.before_plan@{POISON}:1:hang:2", up__watchdog_seconds=2 * SLOW) as engine:
        assert ask(engine, poisoned())[0] == 200
        assert engine.fired() == ["scheduler.before_plan"] * 2
        assert engine.log_path.read_text(errors="replace").count("scheduler was killed by SIGABRT") == 2
        assert records(engine) == []


def test_quarantine_withdraws_a_loaded_policy_before_it_suspects_a_request(undisturbed):
    policy = BUILD / "policies/example_scheduling.so"
    with Engine(failpoints="scheduler.before_plan:9:crash:1", scheduler__policy=policy) as engine:
        [row] = [row for row in engine.get("/services")["services"] if row["name"] == "scheduler"]
        assert "deadline" in json.dumps(row) and "withdrawn" not in json.dumps(row)
        streams, (status, _) = run_beside(engine, lambda: ask(engine, poisoned()))
        assert streams == undisturbed and status == 200
        [row] = [row for row in engine.get("/services")["services"] if row["name"] == "scheduler"]
        assert "fcfs" in json.dumps(row) and "withdrawn" in json.dumps(row), row
        assert records(engine) == [] and "was withdrawn" in engine.log_path.read_text()


# ---- before a request is in the ledger: its text ----


def try_until_refused(engine, path, body):
    """As a client that tries again; the daemon's death breaks its connection, or is answered by 503."""
    for _ in range(20):
        try:
            status, reply = engine.call("POST", path, body)
        except (OSError, http.client.HTTPException):
            continue
        finally:
            engine.wait_ready()
        if status != 503:
            return status, json.dumps(reply)
    raise AssertionError("never refused")


@pytest.mark.parametrize("failpoint, path, body", [
    ("tokenizer.before_encode@boom:1:crash", "/v1/completions", {"prompt": "a boom b", "max_tokens": 4}),
    ("tokenizer.after_encode@4000:1:crash", "/v1/completions", {"prompt": [7, 4000], "max_tokens": 4}),
    ("tokenizer.before_encode@boom:1:exit=1", "/tokenize", {"prompt": "a boom b"}),
    ("tokenizer.token:1:crash:2", "/v1/completions", {"prompt": "a boom b", "max_tokens": 4}),
    ("frontend.request@boom:1:crash", "/v1/completions", {"prompt": "a boom b", "max_tokens": 4}),
    ("frontend.request@boom:1:crash", "/tokenize", {"prompt": "a boom b"}),
    ("frontend.first_byte:1:crash:2", "/v1/completions", {"prompt": "a boom b", "max_tokens": 4}),
])
def test_quarantine_of_a_text_that_kills_tokenizer_or_frontend(failpoint, path, body):
    with Engine(failpoints=failpoint) as engine:
        status, reply = try_until_refused(engine, path, body)
        assert status == 500 and "crash twice" in reply
        assert engine.fired() == [failpoint.split(":")[0].split("@")[0]] * 2
        [record] = records(engine)
        assert record["daemon"] == failpoint.split(".")[0] and ("boom" in json.dumps(record) or record["ids"] == [7, 4000])
        assert engine.call("POST", path, {"prompt": "another text", "max_tokens": 4})[0] == 200
        assert engine.call("POST", path, body)[0] == 500 and len(records(engine)) == 1


def test_quarantine_takes_no_kill_of_the_tokenizer_for_a_crash():
    with Engine(failpoints="tokenizer.before_encode@boom:1:kill:4") as engine:
        assert try_until_refused(engine, "/tokenize", {"prompt": "a boom b"})[0] == 200
        assert records(engine) == [] and len(engine.fired()) == 4
