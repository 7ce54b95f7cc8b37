"""Routes of /debug: where time and memory went, and the lives of requests."""
import json
import urllib.request

import pytest
from engine import ROOT, SERVICES, Engine

PARTS = ["tokenize_ms", "queue_ms", "embed_ms", "attention_ms", "mlp_ms", "output_ms", "sample_ms", "detokenize_ms",
         "total_ms"]
TEXT = "The SELECT statement of a database is used by everybody who wants to read from its tables"


@pytest.fixture(scope="module", params=[(), ("--inproc",)], ids=["ipc", "inproc"])
def engine(request):
    with Engine(*request.param) as running:
        yield running


def complete(engine, name, **fields):
    body = {"prompt": TEXT, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **fields}
    status, reply = engine.call("POST", "/v1/completions", body, {"x-request-id": name})
    assert status == 200, reply
    return reply


# ---- time ----

def test_latency_is_null_before_anything_ran(engine):
    stats = engine.get("/debug/latency_stats")
    assert all(stats[part] is None for part in PARTS), stats
    assert stats["steps"] == 0 and stats["window_s"] == 60


def test_latency_parts_add_up(engine):
    complete(engine, "latency")
    stats = engine.get("/debug/latency_stats")
    assert all(stats[part] > 0 for part in PARTS), stats
    assert stats["steps"] == stats["sampled_steps"] == 8
    parts = sum(stats[part] for part in ["embed_ms", "attention_ms", "mlp_ms", "output_ms", "sample_ms"])
    assert parts <= stats["step_ms"] * 1.001
    assert stats["first_token_ms"] <= stats["total_ms"]
    way = [(hop["from"], hop["to"]) for hop in stats["hops"]]
    assert way[0] == ("frontend", "tokenizer") and way[-1] == ("tokenizer", "frontend") and len(way) == 9
    assert sum(hop["ms"] for hop in stats["hops"]) == pytest.approx(stats["first_token_ms"], rel=0.01)


def test_latency_detail_has_quantiles(engine):
    stats = engine.get("/debug/latency_stats?detail=1")
    for figures in [stats[part] for part in PARTS] + stats["hops"]:
        assert figures["count"] > 0 and 0 < figures["p50"] <= figures["p99"] and figures["mean"] > 0, figures
    plain = engine.get("/debug/latency_stats?detail=0")
    assert plain["attention_ms"] == pytest.approx(stats["attention_ms"]["mean"])
    status, reply = engine.call("GET", "/debug/latency_stats?detail=maybe")
    assert status == 400 and reply["error"]["param"] == "detail"


def test_latency_of_ids_alone_has_no_tokenize():
    with Engine(model__path=ROOT / "tests/golden/llama3") as engine:
        engine.generate([1, 2, 3], 4)
        stats = engine.get("/debug/latency_stats?detail=1")
        assert stats["tokenize_ms"] == {"mean": None, "p50": None, "p99": None, "count": 0}
        assert stats["attention_ms"]["count"] == 4


# ---- memory ----

def test_memory_usage_agrees_with_regions_and_proc(engine):
    usage, regions = engine.get("/debug/memory_usage"), engine.post("/services/memory/regions", {})["regions"]
    by_kind = {kind: sum(row["bytes"] for row in regions if row["kind"] == kind) / 1e6
               for kind in ("weights", "kv", "activations")}
    assert usage["model_weights_mb"] == pytest.approx(by_kind["weights"])
    assert usage["kv_cache_mb"] == pytest.approx(by_kind["kv"])
    assert usage["activation_mb"] == pytest.approx(by_kind["activations"])
    assert usage["total_mb"] == pytest.approx(sum(row["bytes"] for row in regions) / 1e6)
    assert usage["peak_memory_mb"] >= usage["total_mb"] * 0.999999
    assert set(usage["by_service"]) == set(SERVICES)
    pids = engine.pids()
    for service, figures in usage["by_service"].items():
        assert figures["pid"] == pids[service]
        assert 0 < figures["rss_mb"] <= figures["peak_rss_mb"]
    assert {row["name"] for row in usage["by_service"]["compute"]["regions"]} >= {"weights", "kv"}
    weights = {row["name"]: row["mb"] for row in usage["by_service"]["compute"]["regions"]}["weights"]
    assert weights >= usage["model_weights_mb"]


def test_memory_usage_shows_blocks_in_use_and_cached(engine):
    block_mb = engine.post("/services/memory/usage", {})["block_bytes"] / 1e6
    with running_stream(engine, "memory-stream"):
        engine.wait_for(lambda: engine.get("/debug/memory_usage")["kv_used_mb"] >= block_mb * 0.999, 10, "blocks in use")
    engine.wait_for(lambda: engine.get("/debug/memory_usage")["kv_used_mb"] == 0, 10, "blocks given back")
    assert engine.get("/debug/memory_usage")["kv_cached_mb"] > 0


# ---- requests ----

class running_stream:
    """A stream of a request that does not end by itself soon; left when the block is."""

    def __init__(self, engine, name, **fields):
        body = {"prompt": TEXT, "max_tokens": 1500, "ignore_eos": True, "temperature": 0, "stream": True, **fields}
        self.request = urllib.request.Request(engine.url + "/v1/completions", json.dumps(body).encode(),
                                              {"x-request-id": name, "content-type": "application/json"})

    def __enter__(self):
        self.reply = urllib.request.urlopen(self.request, timeout=60)
        self.reply.readline()
        return self.reply

    def __exit__(self, *unused):
        self.reply.close()


def life(engine, name, query=""):
    return engine.get(f"/debug/requests/{name}{query}")


def test_request_that_ended_is_told(engine):
    reply = complete(engine, "told", prompt="Rows of a table that nobody has asked for before: " + TEXT)
    told = life(engine, "told")
    assert told == life(engine, reply["id"])
    assert told["id"] == "told" and told["route"] == "completions" and not told["live"] and told["error"] is None
    sequence, = told["sequences"]
    assert sequence["prompt_tokens"] == reply["usage"]["prompt_tokens"] and sequence["generated_tokens"] == 8
    assert sequence["finish"] == "length" and sequence["state"] == "finished" and sequence["known_to_scheduler"]
    assert sequence["steps_total"] == len(sequence["steps"]) == 8 and sequence["blocks_most"] > 0
    steps = sequence["steps"]
    assert steps[0]["phase"] == "prefill" and steps[0]["tokens"] == sequence["prompt_tokens"]
    assert [row["phase"] for row in steps[1:]] == ["decode"] * 7
    assert [row["position"] for row in steps[1:]] == [sequence["prompt_tokens"] + i for i in range(7)]
    assert all(row["ms"] > 0 and row["step_sequences"] == 1 for row in steps)
    assert any("admit" in row["text"] for row in sequence["reasons"])
    assert [hop["to"] for hop in sequence["hops"]][-1] == "frontend" and len(sequence["hops"]) == 9
    assert len(life(engine, "told", "?steps=2")["sequences"][0]["steps"]) == 2


def test_request_in_flight_is_told(engine):
    with running_stream(engine, "in-flight"):
        told = life(engine, "in-flight")
        sequence, = told["sequences"]
        assert told["live"] and told["stream"] and sequence["state"] in ("prefill", "decode")
        assert sequence["finish"] is None and sequence["blocks"] > 0 and sequence["steps_total"] > 0


def test_request_finds_its_prefix_cached_and_the_diff_says_so(engine):
    prompt = "A prefix that both of them share, long enough to fill several blocks of the cache with it. " * 2
    complete(engine, "first", prompt=prompt)
    complete(engine, "second", prompt=prompt)
    status, reply = engine.call("POST", "/debug/requests/diff", {"a": "first", "b": "second"})
    assert status == 200 and reply["a"]["id"] == "first" and reply["b"]["id"] == "second"
    rows = {row["path"]: row for row in reply["differences"]}
    cached = rows["sequences[0].cached_tokens"]
    assert cached["a"] == 0 and cached["b"] > 0 and cached["delta"] == cached["b"]
    assert "sequences[0].prompt_tokens" not in rows and "route" not in rows


def test_request_of_several_choices_has_a_sequence_each(engine):
    complete(engine, "three", n=3)
    assert [row["generated_tokens"] for row in life(engine, "three")["sequences"]] == [8, 8, 8]


@pytest.mark.parametrize("method,path,body,status,param", [
    ("GET", "/debug/requests/nobody", None, 404, "id"),
    ("GET", "/debug/requests/told?steps=0", None, 400, "steps"),
    ("GET", "/debug/requests/told?steps=many", None, 400, "steps"),
    ("POST", "/debug/requests/diff", {"a": "told"}, 400, "b"),
    ("POST", "/debug/requests/diff", {"a": 7, "b": "told"}, 400, "a"),
    ("POST", "/debug/requests/diff", {"a": "told", "b": "nobody"}, 404, "b"),
    ("POST", "/debug/requests/diff", {"a": "told", "b": "told", "c": "told"}, 400, "c"),
])
def test_requests_refuse_what_is_not_there(engine, method, path, body, status, param):
    got, reply = engine.call(method, path, body)
    assert got == status and reply["error"]["param"] == param, reply


def test_request_life_counts_the_restarts_it_survived():
    with Engine(failpoints="scheduler.after_result:5:kill:1,compute.before_step:20:kill:1") as engine:
        reply = complete(engine, "survivor", max_tokens=64)
        assert reply["usage"]["completion_tokens"] == 64
        told = life(engine, "survivor")
        assert [row["service"] for row in told["restarts"]] == ["scheduler", "compute"]
        assert told["restarts_survived"] == 2 and told["sequences"][0]["generated_tokens"] == 64
        complete(engine, "later")
        assert life(engine, "later")["restarts"] == []


# ---- flags ----

def test_flags_change_live_or_say_why_not():
    with Engine() as engine:
        flags = engine.get("/flags")["flags"]
        assert flags["frontend.mode"] == {"value": "production", "live": True, "note": None}
        assert not flags["scheduler.max_sequences"]["live"] and "restart" in flags["scheduler.max_sequences"]["note"]
        status, reply = engine.call("PUT", "/flags", {"frontend.mode": "research", "frontend.default_max_tokens": 7,
                                                      "frontend.strict_fields": True})
        assert status == 200, reply
        flags = engine.get("/flags")["data"]["flags"]
        assert [flags[key]["value"] for key in ("frontend.mode", "frontend.default_max_tokens", "frontend.strict_fields")] \
            == ["research", "7", "true"]
        for body, status, param in [({"frontend.mode": "production", "scheduler.max_sequences": 8}, 409,
                                     "scheduler.max_sequences"),
                                    ({"frontend.mode": "loud"}, 400, "frontend.mode"),
                                    ({"frontend.mode": ["production"]}, 400, "frontend.mode"),
                                    ({"no.such": 1}, 400, "no.such"), ({}, 400, None)]:
            got, reply = engine.call("PUT", "/flags", body)
            assert got == status and reply["error"]["param"] == param, reply
        assert engine.get("/flags")["data"]["flags"]["frontend.mode"]["value"] == "research"
