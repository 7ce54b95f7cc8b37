"""Policies chosen live: nothing is lost, the same tokens come out, a restart keeps the choice, wrong objects are refused."""
import concurrent.futures
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile

import pytest
from engine import BUILD, ROOT, SLOW, Engine

SCHEDULING = ["fcfs", "priority", "shortest_job", "prefix", "fair", "example_scheduling.so"]
BATCHING = ["fixed", "pressure", "example_batching.so"]
EVICTION = ["lru", "lfu", "fifo", "cost", "example_eviction.so"]
SWITCHES = int(os.environ.get("QUINTET_SWITCHES", "30"))  # 100 by hand


def put(engine, kind, **body):
    status, reply = engine.call("PUT", f"/policies/{kind}", body)
    assert status == 200, (kind, body, reply)
    return reply


def metrics(engine, name):
    """{labels: value} of a family."""
    rows = [line.rsplit(" ", 1) for line in engine.call("GET", "/metrics")[1].splitlines() if line.startswith(name + "{")]
    return {labels: float(value) for labels, value in rows}


def compile_policy(folder, name, source):
    path = pathlib.Path(folder, name + ".so")
    subprocess.run(["cc", "-std=c11", f"-I{ROOT}", "-fPIC", "-shared", "-x", "c", "-", "-o", path], input=source, text=True,
                   check=True)
    return path


BROKEN = """
#include "common/policy.h"
static void admit(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t most, qn_policy_admit_t *ret) {
    (void)memory, (void)view, (void)most;
    ret->count = 1;
    ret->admissions[0].id = 4711;
}
static void share(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t budget, uint32_t chunk,
                  uint32_t most, int must, qn_policy_share_t *ret) {
    (void)memory, (void)view, (void)budget, (void)chunk, (void)most, (void)must, (void)ret;
}
static void preempt(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint64_t needy,
                    qn_policy_preempt_t *ret) { (void)memory, (void)view, (void)needy, (void)ret; }
static const qn_policy_t policy = {
    .head = {.version = QN_POLICY_ABI_VERSION, .kind = QN_POLICY_SCHEDULING, .name = "broken"},
    .admit = admit, .share = share, .preempt = preempt};
const qn_policy_head_t *qn_policy_entry(void) { return &policy.head; }
"""

ABI1 = """
#include <stdint.h>
struct { uint32_t version; const char *name; void *admit, *share, *preempt; } policy = {1, "old", 0, 0, 0};
void *qn_policy_entry(void) { return &policy; }
"""


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory(prefix="qn-policies-") as name:
        yield name


@pytest.fixture(scope="module")
def engine(folder):
    with Engine(policies__dirs=f"{folder}:{BUILD}/policies", log__level="debug") as running:
        yield running


def ask(engine, number):
    """A stream with a seed of its own: prompts share beginnings, users and priorities differ."""
    ids = [1 + (number % 3)] * 20 + [5 + number, 6 + number, 7]
    status, reply = engine.call("POST", "/v1/completions", {
        "prompt": ids, "max_tokens": 40 + number % 7, "temperature": 0.8, "seed": number, "ignore_eos": True,
        "return_token_ids": True, "user": f"user-{number % 4}", "priority": number % 3, "deadline_ms": 60000 - 100 * number})
    assert status == 200, reply
    return reply["choices"][0]["token_ids"]


@pytest.mark.parametrize("arguments", [(), ("--inproc",)], ids=["ipc", "inproc"])
def test_policies_switched_live_under_streams_give_the_same_tokens(arguments):
    numbers = list(range(48))
    # few slots and few blocks: there is something to decide
    with Engine(*arguments, scheduler__max_sequences=6, memory__kv_bytes="2560KiB", model__max_model_len=128) as engine:
        undisturbed = [ask(engine, number) for number in numbers]
        with concurrent.futures.ThreadPoolExecutor(len(numbers)) as pool:
            streams = [pool.submit(ask, engine, number) for number in numbers]
            kinds = itertools.cycle([("scheduling", SCHEDULING), ("batching", BATCHING), ("eviction", EVICTION)])
            for turn in range(SWITCHES):
                kind, names = next(kinds)
                live, shadow = names[turn // 3 % len(names)], names[(turn // 3 + 1) % len(names)]
                reply = put(engine, kind, policy=live, shadow=shadow if turn % 2 else None)
                assert reply["policy"] == live and reply["withdrawn"] is None
            assert [stream.result() for stream in streams] == undisturbed
        for service in ("scheduler", "memory"):
            withdrawn = metrics(engine, "quintet_policy_withdrawn_total")
            assert withdrawn and all(count == 0 for count in withdrawn.values()), withdrawn
        assert sum(metrics(engine, "quintet_policy_switches_total").values()) >= SWITCHES - 4


def test_policies_choice_outlives_the_services(engine):
    put(engine, "scheduling", policy="fair", shadow="shortest_job")
    put(engine, "admission", policy="user_share")
    put(engine, "eviction", policy="cost", shadow="lru")
    before = {name: epoch for name, epoch in engine.epochs().items() if name in ("scheduler", "memory")}
    for service in before:
        engine.kill(service)
    engine.wait_reborn(before)
    for kind, live, shadow in (("scheduling", "fair", "shortest_job"), ("admission", "user_share", None),
                               ("eviction", "cost", "lru"), ("batching", "fixed", None)):
        shown = engine.get(f"/policies/{kind}")
        assert (shown["live"], shown["shadow"]) == (live, shadow), shown
    assert len(ask(engine, 1)) == 41
    for kind, name in (("scheduling", "fcfs"), ("admission", "queue"), ("eviction", "lru")):
        put(engine, kind, policy=name, shadow=None)


def test_policies_shadow_counts_and_shows_where_it_differs(engine):
    put(engine, "scheduling", policy="fcfs", shadow="priority")
    with concurrent.futures.ThreadPoolExecutor(90) as pool:  # more than slots: some wait, in another order
        list(pool.map(lambda number: ask(engine, 90 - number), range(90)))
    shown = engine.get("/policies/scheduling")
    assert shown["shadow_decisions"] > 0 and shown["shadow_differences"] > 0, shown
    row = shown["differences"][0]
    assert (row["live"], row["shadow"]) == ("fcfs", "priority") and row["function"] in ("admit", "share", "preempt")
    assert "fcfs" in row["live_reason"] and "priority" in row["shadow_reason"]
    assert row["live_decision"] != row["shadow_decision"]
    assert put(engine, "scheduling", shadow=None)["shadow"] is None
    assert engine.get("/policies/scheduling")["differences"] == []


def test_policies_that_break_a_rule_are_withdrawn_and_nobody_waits(engine, folder):
    compile_policy(folder, "broken", BROKEN)
    put(engine, "scheduling", policy="shortest_job")
    counted = metrics(engine, "quintet_policy_withdrawn_total")
    put(engine, "scheduling", policy="broken.so")
    assert len(ask(engine, 2)) == 42
    shown = engine.get("/policies/scheduling")
    assert shown["live"] == "shortest_job" and "broken" in shown["withdrawn"] and "4711" in shown["withdrawn"], shown
    assert sum(metrics(engine, "quintet_policy_withdrawn_total").values()) == sum(counted.values()) + 1
    [row] = [row for row in engine.get("/services")["services"] if row["name"] == "scheduler"]
    assert "withdrawn" in row["text"], row
    assert "broken" in engine.log_path.read_text() and "was withdrawn" in engine.log_path.read_text()
    status, reply = engine.call("PUT", "/policies/scheduling", {"policy": "broken.so"})
    assert status == 400 and "withdrawn" in reply["error"]["message"]
    assert put(engine, "scheduling", policy="default")["withdrawn"] is None
    assert engine.get("/policies/scheduling")["live"] == "fcfs"


@pytest.mark.parametrize("kind, body, status, param, words", [
    ("scheduling", {"policy": "lifo"}, 400, "policy", "built in are fcfs"),
    ("scheduling", {"policy": "abi1.so"}, 400, "policy", "policy ABI 1, this build has 2"),
    ("scheduling", {"policy": "OUTSIDE"}, 400, "policy", "outside the directories of policies.dirs"),
    ("scheduling", {"policy": "example_batching.so"}, 400, "policy", "of kind batching"),
    ("eviction", {"shadow": "missing.so"}, 400, "policy", "No such file"),
    ("scheduling", {"policy": 3}, 400, "policy", "must be a policy's name"),
    ("scheduling", {"policy": ""}, 400, "policy", "is wanted"),
    ("scheduling", {"polcy": "fcfs"}, 400, "polcy", "no field"),
    ("scheduling", {}, 400, "policy", "Nothing to change"),
    ("scheduling", {"policy": "x" * 600}, 400, "policy", "at most 511"),
])
def test_policies_wrong_ones_are_refused_by_name(engine, folder, kind, body, status, param, words):
    compile_policy(folder, "abi1", ABI1)
    with tempfile.TemporaryDirectory() as elsewhere:
        path = compile_policy(elsewhere, "outside", BROKEN)
        body = {key: str(path) if value == "OUTSIDE" else value for key, value in body.items()}
        before = engine.get("/policies/scheduling")["live"]
        got, reply = engine.call("PUT", f"/policies/{kind}", body)
        assert got == status and reply["error"]["param"] == param and words in reply["error"]["message"], reply
        assert engine.get("/policies/scheduling")["live"] == before


def test_policies_admission_refuses_with_429_and_the_reason():
    with Engine(scheduler__queue_limit=8, scheduler__max_sequences=2, scheduler__admission="user_share") as engine:
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            slow = {"prompt": [1, 2, 3], "max_tokens": 100, "ignore_eos": True}
            held = [pool.submit(engine.call, "POST", "/v1/completions", {**slow, "user": user})
                    for user in ("ada", "ada", "ada", "ada", "bob")]
            engine.wait_for(lambda: engine.post("/services/scheduler/queue", {})["total"] == 5, 20, "five requests")
            status, reply = engine.call("POST", "/v1/completions", {**slow, "user": "ada"})
            assert status == 429 and "user_share" in reply["error"]["message"] and "ada" in reply["error"]["message"], reply
            held.append(pool.submit(engine.call, "POST", "/v1/completions", {**slow, "user": "bob", "max_tokens": 1}))
            assert [stream.result()[0] for stream in held] == [200] * 6


def test_policies_reasons_are_in_the_request_record(engine):
    put(engine, "scheduling", policy="priority")
    ask(engine, 3)
    shown = engine.post("/services/scheduler/explain", {"limit": 256})
    admitted = [row for row in shown["decisions"] if row["function"] == "admit" and row["policy"] == "priority"]
    assert admitted and "with priority" in admitted[0]["text"], shown
    request = engine.post("/services/scheduler/explain", {"request": admitted[0]["request"]})
    assert {row["function"] for row in request["decisions"]} >= {"admit", "judge"}, request
    assert "priority: admit" in engine.log_path.read_text()  # log.level is debug


REQUESTS = [{"prompt_tokens": 40, "max_tokens": 30, "priority": 2}, {"prompt_tokens": 10, "max_tokens": 5, "priority": 1},
            {"prompt_tokens": 20, "max_tokens": 10, "priority": 3, "deadline_ms": 1, "arrival_ms": 2}]


def test_policies_schedule_is_a_simulation_that_changes_nothing(engine):
    before = (engine.get("/policies/scheduling")["decisions"], engine.post("/services/scheduler/queue", {})["last_step"])
    asked = {"requests": REQUESTS, "policy": "priority", "max_batch_size": 1, "step_us": 1000, "token_us": 10}
    reply = engine.post("/services/scheduler/schedule", asked)
    again = engine.post("/services/scheduler/schedule", asked)
    assert reply == again
    # 1 first: 10 tokens of its prompt take 1.1 ms, then four decodes; then 0, then 2
    assert [step["sequences"][0]["id"] for step in reply["schedule"]] == [1] * 5 + [0] * 30 + [2] * 10
    assert [step["sequences"][0]["phase"] for step in reply["schedule"]][:3] == ["prefill", "decode", "decode"]
    assert reply["requests"][1]["ttft_ms"] == pytest.approx(1.1) and reply["requests"][1]["latency_ms"] == pytest.approx(5.14)
    assert all("priority" in row["reason"] for row in reply["requests"])
    assert reply["metrics"]["generated_tokens"] == 45 and reply["metrics"]["late"] == 1 and reply["metrics"]["steps"] == 45
    assert reply["metrics"]["latency_ms"]["p99"] == pytest.approx(max(row["latency_ms"] for row in reply["requests"]))
    shortest = engine.post("/services/scheduler/schedule", {**asked, "policy": "shortest_job"})
    assert shortest["metrics"]["latency_ms"]["mean"] <= reply["metrics"]["latency_ms"]["mean"]
    live = engine.post("/services/scheduler/schedule", {"requests": REQUESTS})  # time by the last steps
    assert live["policy"] == engine.get("/policies/scheduling")["policy"] and live["step_us"] + live["token_us"] > 0
    assert (engine.get("/policies/scheduling")["decisions"], engine.post("/services/scheduler/queue", {})["last_step"]) == before
    research = engine.call("POST", "/services/scheduler/schedule?mode=research", asked)[1]
    assert len(research["metadata"]["algorithm_reasoning"]) == 3


@pytest.mark.parametrize("body, param, words", [
    ({"requests": REQUESTS, "policy": "lifo"}, "policy", "built in are"),
    ({"requests": REQUESTS, "batching": "lifo"}, "policy", "built in are fixed"),
    ({"requests": [{"prompt_tokens": 1000000, "max_tokens": 1000000}]}, "requests", "request 0"),
    ({"requests": [{"max_tokens": 600000}, {"max_tokens": 600000}]}, "requests", "generate 1200000 tokens"),
    ({"requests": [{"prompt_tokens": 0}]}, "requests", "below the minimum"),
    ({"requests": REQUESTS, "max_batch_size": 4, "token_budget": 2}, "token_budget", "max_step_tokens"),
    ({}, "requests", "required"),
])
def test_policies_schedule_refuses_by_field(engine, body, param, words):
    status, reply = engine.call("POST", "/services/scheduler/schedule", body)
    assert status == 400 and words in reply["error"]["message"], reply
    assert param in reply["error"]["param"], reply


BATCH = {"algorithm": "priority_queue", "max_batch_size": 1, "temperature": 0,
         "requests": [{"input_ids": [5, 6, 7], "priority": 2, "max_tokens": 6},
                      {"input_ids": [8, 9], "priority": 1, "max_tokens": 4},
                      {"input_ids": [8, 9, 10, 11], "priority": 2, "max_tokens": 2}]}


def test_policies_batch_schedule_runs_in_the_order_of_its_algorithm(engine):
    before = engine.get("/policies/scheduling")["live"]
    dry = engine.post("/optimization/batch_schedule", {**BATCH, "dry_run": True})
    assert dry["outputs"] == [] and dry["dry_run"] and len(dry["reasons"]) == 3
    assert [step["sequences"][0]["id"] for step in dry["schedule"]] == [1] * 4 + [0] * 6 + [2] * 2
    reply = engine.post("/optimization/batch_schedule", BATCH)
    assert reply["order"] == [1, 0, 2] and [len(row["output_ids"]) for row in reply["outputs"]] == [6, 4, 2]
    for row, asked in zip(reply["outputs"], BATCH["requests"]):  # the same as alone
        alone = engine.post("/generate", {"input_ids": asked["input_ids"], "sampling_params": {
            "temperature": 0, "max_new_tokens": asked["max_tokens"]}})
        assert row["output_ids"] == alone["output_ids"]
    assert set(reply["metrics"]) >= {"mean_latency_ms", "p99_latency_ms", "tokens_per_s"}
    assert all("priority" in reason for reason in reply["reasons"])
    assert engine.get("/policies/scheduling")["live"] == before  # other traffic keeps its policy
    latency = engine.post("/optimization/batch_schedule", {**BATCH, "strategy": "minimize_latency", "dry_run": True})
    assert [step["sequences"][0]["id"] for step in latency["schedule"]] == [1] * 4 + [2] * 2 + [0] * 6
    research = engine.call("POST", "/optimization/batch_schedule?mode=research", BATCH)[1]
    assert research["data"]["order"] == [1, 0, 2] and research["metadata"]["method"] == "batch_schedule"


def test_policies_batch_schedule_keeps_its_window(engine):
    requests = [{"input_ids": [3 + i, 4], "max_tokens": 30} for i in range(12)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        batch = pool.submit(engine.post, "/optimization/batch_schedule", {"requests": requests, "max_batch_size": 3})
        most = 0
        while not batch.done():
            most = max(most, engine.post("/services/scheduler/queue", {})["total"])
        assert len(batch.result()["outputs"]) == 12 and 1 <= most <= 3 + 1  # one may have ended and not left yet


@pytest.mark.parametrize("change, param, words", [
    ({"algorithm": "lifo"}, "policy", "built in are"),
    ({"algorithm": 3}, "algorithm", "name of a scheduling policy"),
    ({"strategy": "fast"}, "strategy", "minimize_latency"),
    ({"requests": []}, "requests", "1 to 256"),
    ({"requests": [{"prompt": "a", "input_ids": [1]}]}, "requests", "one of them"),
    ({"requests": [{"input_ids": [1], "max_tokens": 0}]}, "requests", "requests[0]"),
    ({"requests": [{"input_ids": [1], "max_token": 1}]}, "requests", "max_token"),
    ({"max_batch_size": 0}, "max_batch_size", "from 1 to 256"),
    ({"batch": 1}, "batch", "no field"),
    ({"requests": [{"input_ids": [1, 9999999]}]}, "prompts", "9999999"),
])
def test_policies_batch_schedule_refuses_by_field(engine, change, param, words):
    status, reply = engine.call("POST", "/optimization/batch_schedule", {**BATCH, **change})
    assert status == 400 and words in reply["error"]["message"], reply
    assert param in reply["error"]["param"], reply


def test_policies_replay_compares_policies_on_a_trace(folder):
    lines = [{"arrival_ms": i * 3, "prompt_tokens": 10 + i * 7 % 90, "max_tokens": 5 + i * 11 % 60, "user": "ab"[i % 7 == 0],
              "priority": i % 3, "deadline_ms": 100} for i in range(200)]
    trace = pathlib.Path(folder, "trace.jsonl")
    trace.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    command = [BUILD / "quintet", "policy", "replay", "-p", "fcfs", "-p", "shortest_job", "-p", "example_scheduling.so",
               "--slots", "4", "--step-us", "1000", "--token-us", "10", trace]
    done = subprocess.run([*command, "-j"], capture_output=True, text=True, check=True)
    assert done.stdout == subprocess.run([*command, "-j"], capture_output=True, text=True, check=True).stdout
    fcfs, shortest, deadline = json.loads(done.stdout)["results"]
    assert fcfs["requests"] == 200 and fcfs["generated_tokens"] == sum(line["max_tokens"] for line in lines)
    assert shortest["latency_ms"]["mean"] < fcfs["latency_ms"]["mean"] and shortest["ttft_ms"]["p50"] > 0
    assert deadline["policy"] == "example_scheduling.so" and deadline["withdrawn"] == ""
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "TTFT p99 ms" in table and "shortest_job" in table
    for text, status, words in (('{"prompt_tokens": 3}\n{"prompt": 1}', 65, "line 2: prompt"), ("", 65, "no request"),
                                ('{"prompt_tokens": 0}', 65, "from 1 to"), ("nonsense", 65, "line 1")):
        trace.write_text(text)
        failed = subprocess.run(command, capture_output=True, text=True)
        assert failed.returncode == status and words in failed.stderr, failed
    assert subprocess.run([*command[:-1], "/nonexistent"], capture_output=True).returncode == 66
    trace.write_text('{"prompt_tokens": 3}')
    assert subprocess.run([*command, "-p", "lifo"], capture_output=True).returncode == 78


def test_policies_replay_reads_a_capture(engine, folder):
    capture = pathlib.Path(folder, "day.qcap")
    with subprocess.Popen([BUILD / "quintet", "sniff", "--run-dir", engine.run_dir, "-w", capture]) as sniff:
        engine.wait_for(lambda: capture.exists() and capture.stat().st_size > 0, 20, "the sniffer writes")
        size = capture.stat().st_size
        engine.wait_for(lambda: ask(engine, 5) and capture.stat().st_size > size + 10000, 20, "it has seen requests")
        sniff.send_signal(signal.SIGINT)
        assert sniff.wait(20) in (0, 130)
    done = subprocess.run([BUILD / "quintet", "policy", "replay", "-j", "-p", "fcfs", capture], capture_output=True, text=True,
                          check=True)
    reply = json.loads(done.stdout)
    assert reply["results"][0]["requests"] >= 1 and reply["results"][0]["generated_tokens"] >= 45
    assert reply["step_us"] + reply["token_us"] > 0


def test_policies_readme_commands_run_as_they_stand(engine):
    text = (ROOT / "deploy/policies/README.md").read_text()
    [script] = [block for block in re.findall(r"^```\n(.*?)^```", text, re.M | re.S) if "shadow" in block]
    script = script.replace("build/", f"{os.path.relpath(BUILD, ROOT)}/")
    made = BUILD / "policies/mine.so"
    try:
        done = subprocess.run(["bash", "-eo", "pipefail", "-c", script], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, "QUINTET_URL": engine.url}, timeout=60 * SLOW)
        assert done.returncode == 0, done.stderr + done.stdout
        shown = [json.loads(line) for line in re.findall(r"^\{.*\}$", done.stdout.replace("}{", "}\n{"), re.M)]
        assert any(row["live"] == "fcfs" and row["shadow_decisions"] > 0 for row in shown), done.stdout
    finally:
        made.unlink(missing_ok=True)


def test_policies_eviction_object_with_which_memory_crashed_is_not_loaded_again():
    with Engine(failpoints="memory.before_grant:3:crash:1", memory__eviction="example_eviction.so") as engine:
        assert engine.get("/policies/eviction")["live"] == "keep_beginnings"
        before = {"memory": engine.epochs()["memory"]}
        streams = [ask(engine, number) for number in range(4)]
        engine.wait_reborn(before)
        shown = engine.get("/policies/eviction")
        assert shown["live"] == "lru" and "example_eviction.so" in shown["withdrawn"], shown
        assert shown["configured"] == "example_eviction.so" and [len(ids) for ids in streams] == [40, 41, 42, 43]
        status, reply = engine.call("PUT", "/policies/eviction", {"policy": "example_eviction.so"})
        assert status == 400 and "withdrawn" in reply["error"]["message"]
