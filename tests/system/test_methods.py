"""Methods over HTTP: every example of every service on several model families, what is refused, who may call."""
import pytest
from engine import ROOT, SERVICES, Engine

FAMILIES = ["llama3", "gpt2", "qwen3moe"]


def methods_of(engine, service):
    return engine.get(f"/services/{service}")["methods"]


def check_schema(value, schema, where):
    """The part of JSON Schema that the table of methods uses."""
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float),
             "null": type(None)}
    assert any(isinstance(value, kinds[kind]) and (kind == "boolean") == isinstance(value, bool) for kind in types), where
    if isinstance(value, dict):
        assert set(schema.get("required", [])) <= set(value) <= set(schema["properties"]), where
        for key, inner in value.items():
            check_schema(inner, schema["properties"][key], f"{where}.{key}")
    if isinstance(value, list):
        assert len(value) <= schema["maxItems"], where
        for i, inner in enumerate(value):
            check_schema(inner, schema["items"], f"{where}[{i}]")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value), where
    if "enum" in schema:
        assert value in schema["enum"], where


@pytest.fixture(scope="module")
def engine():
    with Engine() as running:
        yield running


@pytest.mark.parametrize("arguments", [(), ("--inproc",)], ids=["ipc", "inproc"])
@pytest.mark.parametrize("family", FAMILIES)
def test_methods_every_listed_example_succeeds(family, arguments):
    with Engine(*arguments, model__path=ROOT / "tests/golden" / family) as engine:
        engine.wait_for(lambda: engine.get("/services/tokenizer/examples")["examples"], 10, "examples")
        engine.generate([1, 2, 3, 4, 5], 4)
        for service in SERVICES:
            listed = methods_of(engine, service)
            shown = {row["method"]: row["request"] for row in engine.get(f"/services/{service}/examples")["examples"]}
            assert {row["name"]: row["example"] for row in listed} == shown
            for row in listed:
                where = f"{service}.{row['name']}"
                check_schema(row["example"], row["request"], where)
                status, reply = engine.call("POST", f"/services/{service}/{row['name']}", row["example"])
                assert status == 200, (where, status, reply)
                check_schema(reply, row["reply"], where)


def test_methods_empty_body_is_all_defaults(engine):
    for service in SERVICES:
        for row in methods_of(engine, service):
            if row["changes"] or "required" in row["request"]:
                continue
            status, reply = engine.call("POST", f"/services/{service}/{row['name']}")
            assert status in (200, 400), (row["name"], reply)
            assert status == 200 or reply["error"]["param"], (row["name"], reply)


@pytest.mark.parametrize("body,param,words", [
    ({"limt": 3}, "limt", 'did you mean "limit"'),
    ({"limit": 0}, "limit", "below the minimum 1"),
    ({"limit": 5000}, "limit", "above the maximum 4096"),
    ({"limit": "many"}, "limit", "wants an integer, not a string"),
    ({"limit": -1}, "limit", "outside 0 to"),
    ({"head": {}}, "head", "unknown member"),
    ({"began_ns": 3}, "began_ns", "unknown member"),
])
def test_methods_refuse_what_their_schema_does_not_say(engine, body, param, words):
    status, reply = engine.call("POST", "/services/scheduler/queue", body)
    assert status == 400 and reply["error"]["param"] == param and words in reply["error"]["message"], reply


def test_methods_null_is_the_same_as_nothing(engine):
    assert engine.post("/services/scheduler/queue", {"limit": None}) == engine.post("/services/scheduler/queue", {})


@pytest.mark.parametrize("method,path,status,words", [
    ("POST", "/services/scheduler/quee", 404, 'did you mean "queue"'),
    ("POST", "/services/nobody/queue", 404, "no service"),
    ("GET", "/services/nobody", 404, "no service"),
    ("GET", "/services/scheduler/queue", 405, "allowed: POST"),
    ("POST", "/services/scheduler", 405, "allowed: GET, HEAD"),
])
def test_methods_that_are_not_there(engine, method, path, status, words):
    got, reply = engine.call(method, path)
    assert got == status and words in reply["error"]["message"], reply


def test_methods_research_mode_wraps_with_times_and_reasons(engine):
    status, reply = engine.call("POST", "/services/memory/usage?mode=research")
    metadata = reply["metadata"]
    assert status == 200 and reply["data"]["total_blocks"] > 0
    assert set(metadata) == {"service", "method", "execution_time_us", "hops", "epoch", "build", "algorithm_reasoning"}
    assert (metadata["service"], metadata["method"]) == ("memory", "usage")
    assert [(hop["from"], hop["to"]) for hop in metadata["hops"]] == [("frontend", "memory"), ("memory", "memory"),
                                                                      ("memory", "frontend")]
    assert all(0 < hop["us"] < 1e7 for hop in metadata["hops"]) and metadata["execution_time_us"] > 0
    assert metadata["epoch"] == engine.epochs()["memory"]
    assert metadata["build"] == engine.get("/services/memory")["build"]
    by_header = engine.call("POST", "/services/memory/usage", headers={"x-quintet-mode": "research"})[1]
    assert set(by_header) == {"data", "metadata"}
    assert set(engine.post("/services/memory/usage", {})) == set(reply["data"])


def test_methods_describe_their_service(engine):
    described = engine.get("/services/scheduler")
    assert described["name"] == "scheduler" and described["health"]["alive"]
    assert {"SchedulerQueue", "Submit", "StepResult"} <= {row["name"] for row in described["messages"]["in"]}
    assert {"SchedulerQueueReply", "StepPlan"} <= {row["name"] for row in described["messages"]["out"]}
    assert described["health"]["figures"]["scheduler_ledger_requests"] == 0
    assert all(row["doc"] for row in described["methods"])


def test_methods_of_a_service_that_is_down_say_so(engine):
    with Engine() as other:
        before = {"scheduler": other.epochs()["scheduler"]}
        other.kill("scheduler")
        status, reply = other.call("POST", "/services/scheduler/queue")
        assert status in (200, 503)
        assert status == 200 or "scheduler" in reply["error"]["message"], reply
        other.wait_reborn(before)
        assert other.post("/services/scheduler/queue", {})["total"] == 0
