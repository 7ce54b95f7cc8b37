"""Faults: with each of them on, under load, every request completes with the same ids."""
import concurrent.futures
import subprocess

import pytest
from engine import BUILD, Engine

PROMPTS = [[5 + i, 17, 33, 4 + i, 99, 100 + i * 3] * 3 for i in range(12)]
EDGES = [("Submit", "tokenizer", "scheduler"), ("Lease", "scheduler", "memory"), ("Grant", "memory", "scheduler"),
         ("Commit", "scheduler", "memory"), ("Release", "scheduler", "memory"), ("StepPlan", "scheduler", "compute"),
         ("StepResult", "compute", "scheduler"), ("TokenBatch", "scheduler", "tokenizer")]


@pytest.fixture(scope="module")
def engine():
    with Engine() as running:
        running.want = load(running)
        yield running


@pytest.fixture(autouse=True)
def clear(engine):
    yield
    engine.wait_ready()
    assert engine.call("DELETE", "/faults")[0] == 200


def load(engine):
    with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda i: engine.generate(PROMPTS[i], 24, temperature=0.8, seed=i), range(len(PROMPTS))))


def arm(engine, *faults):
    status, reply = engine.call("PUT", "/faults", {"faults": list(faults)})
    assert status == 200, reply
    return reply["faults"]


def fired(engine):
    return sum(fault["fired"] for fault in engine.get("/faults")["faults"])


def load_until_fired(engine):
    """A busy machine may put all leases into one message: load until something has fired."""
    for _ in range(20):
        assert load(engine) == engine.want
        if fired(engine):
            return
    raise AssertionError("nothing fired")


@pytest.mark.parametrize("kind", ["delay", "drop", "duplicate", "reorder", "corrupt"])
@pytest.mark.parametrize("message,sender,receiver", EDGES, ids=[edge[0] for edge in EDGES])
def test_faults_of_messages_change_no_id(engine, kind, message, sender, receiver):
    more = {"delay_ms": 20, "count": 5} if kind == "delay" else {"count": 2}
    arm(engine, {"kind": kind, "type": message, "from": sender, "to": receiver, "probability": 0.7, "seed": 3, **more})
    load_until_fired(engine)


@pytest.mark.parametrize("kind", ["delay", "drop", "duplicate", "reorder", "corrupt"])
@pytest.mark.parametrize("message", ["Heartbeat", "Credit"])
def test_faults_of_link_control_change_no_id(engine, kind, message):
    more = {"delay_ms": 20} if kind == "delay" else {}
    arm(engine, {"kind": kind, "type": message, "probability": 0.5, "count": 10, "seed": 1, **more})
    assert load(engine) == engine.want


@pytest.mark.parametrize("service", ["scheduler", "memory", "compute"])
def test_fault_kills_a_service_at_its_step_once(engine, service):
    before = {service: engine.epochs()[service]}
    arm(engine, {"kind": "kill", "to": service, "step": 3})
    load_until_fired(engine)
    engine.wait_reborn(before)
    assert load(engine) == engine.want
    fault, = engine.get("/faults")["faults"]
    assert fault["fired"] == 1 and fault["hits"] > 3 and engine.epochs()[service] == before[service] + 1


def test_fault_fails_leases(engine):
    arm(engine, {"kind": "fail_lease", "count": 10, "probability": 0.8, "seed": 2})
    load_until_fired(engine)


def test_fault_refuses_allocations(engine):
    arm(engine, {"kind": "refuse_allocation", "count": 2})
    before = {"compute": engine.epochs()["compute"]}
    engine.kill("compute")
    assert load(engine) == engine.want
    engine.wait_reborn(before)
    assert fired(engine) == 2


def test_faults_all_at_once(engine):
    arm(engine, *({"kind": kind, "type": edge[0], "from": edge[1], "to": edge[2], "probability": 0.1, "count": 2, "seed": 5}
                  for kind in ("drop", "duplicate") for edge in EDGES))
    for _ in range(3):
        assert load(engine) == engine.want


@pytest.mark.parametrize("message,sender,receiver", [("Encode", "frontend", "tokenizer"), ("TextDelta", "tokenizer", "frontend")])
def test_fault_between_frontend_and_tokenizer_ends_requests_with_a_remedy(engine, message, sender, receiver):
    """As when the tokenizer dies: 503, and the same request again gives the same ids."""
    arm(engine, {"kind": "drop", "type": message, "from": sender, "to": receiver, "count": 1})
    body = {"input_ids": PROMPTS[0], "sampling_params": {"max_new_tokens": 24, "temperature": 0.8, "seed": 0, "ignore_eos": True}}
    status, reply = engine.call("POST", "/generate", body)
    assert status == 503 and "Send it again" in reply["error"]["message"]
    engine.wait_ready()
    assert engine.post("/generate", body)["output_ids"] == engine.want[0]


def test_faults_outlive_the_frontend_and_are_cleared_everywhere_at_once(engine):
    arm(engine, {"kind": "drop", "type": "StepPlan", "from": "scheduler", "to": "compute", "probability": 0, "seed": 9})
    before = {"frontend": engine.epochs()["frontend"]}
    engine.kill("frontend")
    engine.wait_for(lambda: engine.epochs().get("frontend", 0) > before["frontend"], 30, "another frontend")
    engine.wait_ready()
    fault, = engine.get("/faults")["faults"]
    assert fault["kind"] == "drop" and fault["seed"] == 9 and fault["probability"] == 0
    load(engine)
    assert engine.get("/faults")["faults"][0]["hits"] > 0
    shown = subprocess.run([BUILD / "quintet", "status", "--url", engine.url], capture_output=True, text=True, check=True)
    assert "fault: drop StepPlan from scheduler to compute, fired 0 of " in shown.stdout
    assert engine.call("DELETE", "/faults") == (200, {"faults": []})
    assert engine.get("/faults") == {"faults": []}
    shown = subprocess.run([BUILD / "quintet", "status", "--url", engine.url], capture_output=True, text=True, check=True)
    assert "\nfault: " not in shown.stdout


@pytest.mark.parametrize("fault,param,words", [
    ({}, "kind", ""),
    ({"kind": "explode"}, "kind", "there are delay, drop"),
    ({"kind": "drop", "type": "StepPlam"}, "type", "no message"),
    ({"kind": "drop", "from": "nobody"}, "from", "there are frontend"),
    ({"kind": "drop", "to": "nobody"}, "to", "there are frontend"),
    ({"kind": "drop", "probability": 2}, "probability", "maximum"),
    ({"kind": "drop", "probability": -1}, "probability", "minimum"),
    ({"kind": "drop", "delay_ms": 3}, "delay_ms", "for nothing else"),
    ({"kind": "delay"}, "delay_ms", "1 to 10000"),
    ({"kind": "delay", "delay_ms": 20000}, "delay_ms", "maximum"),
    ({"kind": "drop", "step": 3}, "step", "of a kill"),
    ({"kind": "kill"}, "to", "which service"),
    ({"kind": "kill", "to": "tool"}, "to", "which service"),
    ({"kind": "fail_lease", "type": "Lease"}, "type", "no message"),
    ({"kind": "drop", "often": True}, "often", "unknown"),
])
def test_faults_bad_input_names_its_field_and_arms_nothing(engine, fault, param, words):
    status, reply = engine.call("PUT", "/faults", {"faults": [{"kind": "drop", "type": "Bye", "probability": 0}, fault]})
    assert status == 400 and reply["error"]["param"].split(".")[-1] == param and words in reply["error"]["message"], reply
    assert engine.get("/faults") == {"faults": []}


def test_faults_more_than_there_are_places_are_refused(engine):
    status, reply = engine.call("PUT", "/faults", {"faults": [{"kind": "drop", "type": "Bye", "probability": 0}] * 17})
    assert status == 400 and reply["error"]["param"] == "faults"
