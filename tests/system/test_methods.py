"""Methods over HTTP: every example of every service on several model families, what is refused, who may call."""
import concurrent.futures
import http.client
import json
import re

import pytest
from engine import ROOT, SERVICES, Engine, free_port

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


def tcp_endpoints():
    return {f"{service}__endpoint": f"tcp://127.0.0.1:{free_port()}" for service in SERVICES[1:]}


@pytest.mark.parametrize("arguments,endpoints", [((), dict), (("--inproc",), dict), ((), tcp_endpoints)],
                         ids=["ipc", "inproc", "tcp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_methods_every_listed_example_succeeds(family, arguments, endpoints):
    with Engine(*arguments, model__path=ROOT / "tests/golden" / family, **endpoints()) as engine:
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


@pytest.mark.parametrize("path,headers,param", [("?mode=loud", {}, "mode"), ("", {"x-quintet-mode": "loud"}, "x-quintet-mode"),
                                                ("?mode=", {}, "mode")])
@pytest.mark.parametrize("method,route", [("GET", "/version"), ("POST", "/services/memory/usage"), ("POST", "/v1/completions")])
def test_mode_that_is_none_is_refused(engine, method, route, path, headers, param):
    status, reply = engine.call(method, route + path, None if method == "GET" else {"prompt": [1], "max_tokens": 1}, headers)
    assert status == 400 and reply["error"]["param"] == param and "production or research" in reply["error"]["message"]


def test_methods_take_numbers_as_json_writes_them(engine):
    assert engine.post("/services/memory/blocks", {"limit": 2.0}) == engine.post("/services/memory/blocks", {"limit": 2})
    assert engine.call("POST", "/services/memory/blocks", {"limit": 2.5})[0] == 400


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


def test_methods_killed_service_ends_its_calls_and_answers_again():
    """Calls without a break while memory is killed: each is answered, with what it asked for or a 503 that names it."""
    with Engine() as engine:
        before = {"memory": engine.epochs()["memory"]}

        def ask(_):
            connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=30)
            connection.request("POST", "/services/memory/blocks", json.dumps({"limit": 4096}),
                               {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, reply.getheader("Retry-After"), json.loads(reply.read())

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            running = [pool.submit(ask, i) for i in range(200)]
            engine.kill("memory")
            answers = [one.result() for one in running]
        for status, retry, reply in answers:
            assert status == 200 or (status == 503 and retry and "memory" in reply["error"]["message"]), (status, reply)
        engine.wait_reborn(before)
        assert engine.post("/services/memory/blocks", {"limit": 1})["total"] > 0


@pytest.mark.parametrize("origin,host,status", [
    ("http://evil.example", None, 403),
    ("null", None, 403),
    ("http://127.0.0.1:1", None, 403),
    ("http://rebound.example:{port}", "rebound.example:{port}", 403),
    ("http://127.0.0.1:{port}", None, 200),
    ("http://localhost:{port}", "localhost:{port}", 200),
    (None, None, 200),
])
@pytest.mark.parametrize("path,body", [("/services/memory/evict", None), ("/services/memory/evict", {"dry_run": True}),
                                       ("/cache/unpin", {"all": True}), ("/flush_cache", None),
                                       ("/abort_request", {"abort_all": True})])
def test_methods_that_change_something_are_not_for_foreign_web_pages(engine, origin, host, status, path, body):
    headers = {}
    if origin:
        headers["Origin"] = origin.format(port=engine.port)
    if host:
        headers["Host"] = host.format(port=engine.port)
    got, reply = engine.call("POST", path, body, headers)
    assert got == status, reply
    assert status == 200 or reply["error"]["param"] == "origin"


def test_methods_a_page_of_the_same_site_may_read(engine):
    assert engine.call("POST", "/services/memory/usage", {}, {"Origin": "http://evil.example"})[0] == 200
    assert engine.call("POST", "/services/memory/evict", {}, {"Sec-Fetch-Site": "cross-site"})[0] == 403


def test_openapi_is_valid_and_has_every_route(engine):
    from openapi_spec_validator import validate
    api = engine.get("/openapi.json")
    validate(api)
    for service in SERVICES:
        for row in methods_of(engine, service):
            operation = api["paths"][f"/services/{service}/{row['name']}"]["post"]
            content = operation["requestBody"]["content"]["application/json"]
            assert content["schema"] == row["request"] and content["example"] == row["example"]
    source = (ROOT / "services/frontend/http/router.c").read_text() + \
        (ROOT / "services/frontend/research/forms.def").read_text()
    routes = set(re.findall(r'[{,(]\s*"(/[^"]*)"', source)) - {"/", "/services/{service}/{method}"}
    assert len(routes) > 25
    assert {path.removesuffix("{model}") for path in api["paths"]} >= routes


def test_openapi_operations_answer_as_described(engine):
    """Every operation that has an example, and every GET: the status and the type of the answer are among those named."""
    assert engine.call("POST", "/v1/completions", {"prompt": [1, 2], "max_tokens": 1}, {"x-request-id": "example"})[0] == 200
    for path, verbs in engine.get("/openapi.json")["paths"].items():
        for verb, operation in verbs.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if verb != "get" and content and "example" not in content:
                continue
            target = path.replace("{model}", "default").replace("{service}", "memory").replace("{id}", "example")
            target = target.replace("{tensor_id}", "all")
            status, reply = engine.call(verb.upper(), target, content.get("example"))
            assert str(status) in operation["responses"], (verb, path, status, reply)
            assert status == 200, (verb, path, reply)
            kinds = operation["responses"]["200"]["content"]
            assert ("application/json" in kinds) == isinstance(reply, (dict, list)), (verb, path)


def test_docs_page_stands_alone_and_holds_the_description(engine):
    status, page = engine.call("GET", "/docs")
    assert status == 200 and page.startswith("<!DOCTYPE html>")
    assert not re.search(r"(src|href)=[\"'](?!#)", page) and "@import" not in page and "http" not in page.split("<script")[0]
    held = re.search(r'<script id="api" type="application/json">(.*?)</script>', page, re.S).group(1)
    assert json.loads(held) == engine.get("/openapi.json")


def test_config_live_keys_change_and_others_say_why_not():
    with Engine() as engine:
        assert engine.call("PUT", "/config", {"set": [{"key": "frontend.mode", "value": "research"}]})[0] == 200
        assert set(engine.get("/version")) == {"data", "metadata"}
        for changes, status, param in [
                ([("frontend.mode", "production"), ("scheduler.policy", "priority")], 409, "scheduler.policy"),
                ([("frontend.mod", "production")], 400, "frontend.mod"),
                ([("frontend.mode", "loud")], 400, "frontend.mode"),
                ([("frontend.default_max_tokens", "many")], 400, "frontend.default_max_tokens")]:
            got, reply = engine.call("PUT", "/config", {"set": [{"key": k, "value": v} for k, v in changes]})
            assert (got, reply["error"]["param"]) == (status, param), reply
            assert "nothing was changed" in reply["error"]["message"]
        assert set(engine.get("/version")) == {"data", "metadata"}
        assert engine.call("PUT", "/config", {"set": [{"key": "frontend.mode", "value": "production"},
                                                      {"key": "frontend.default_max_tokens", "value": "3"}]})[0] == 200
        for body, status, param in [({"frontend.default_max_tokens": 5, "frontend.strict_fields": True}, 200, None),
                                    ({"frontend.strict_fields": False, "frontend.mode": "production"}, 200, None),
                                    ({"frontend.mod": "x"}, 400, "frontend.mod"), ({"frontend.mode": ["x"]}, 400, "frontend.mode"),
                                    ({"scheduler.policy": "priority"}, 409, "scheduler.policy"), ({"set": [7]}, 400, "set"),
                                    ({"frontend.default_max_tokens": 3}, 200, None)]:
            got, reply = engine.call("PUT", "/config", body)
            assert got == status and (got == 200 or reply["error"]["param"] == param), (body, reply)
        assert engine.call("PUT", "/config?mode=research", {"frontend.mode": "production"})[1]["metadata"]["method"] == "config_set"
        keys = {row["key"]: row for row in engine.get("/config")["keys"]}
        assert keys["frontend.mode"]["origin"] == "set live" and keys["frontend.mode"]["live"]
        assert not keys["scheduler.policy"]["live"]
        reply = engine.post("/v1/completions", {"prompt": [1, 2, 3], "ignore_eos": True})
        assert reply["usage"]["completion_tokens"] == 3
        assert [row["key"] for row in engine.get("/config?prefix=log.")["keys"]] == ["log.level"]


def test_cache_pin_keeps_a_prefix_and_evict_takes_the_rest():
    with Engine() as engine:
        ids, other = list(range(1, 50)), list(range(100, 150))
        for prompt in (ids, other):
            engine.generate(prompt, 2)
        found = engine.post("/cache/lookup", {"ids": ids})
        assert found["cached_tokens"] == 48 and len(found["blocks"]) == 3 and found["tokens"] == 49
        pin = engine.post("/cache/pin", {"ids": ids})
        assert (pin["pinned_tokens"], pin["pins"]) == (48, 1)
        assert engine.post("/cache/pin", {"ids": ids})["pin"] == pin["pin"]
        shown = engine.post("/services/memory/blocks", {"limit": 4096})["blocks"]
        assert sorted(row["block"] for row in shown if row["pins"]) == sorted(found["blocks"])
        assert all(row["state"] == "held" and row["indexed"] and row["hash"] for row in shown if row["pins"])
        would = engine.post("/cache/evict", {"dry_run": True})
        assert would["evicted"] == len(would["blocks"]) == would["cached_blocks"] >= 3
        assert engine.post("/cache/evict", {"dry_run": True}) == would
        assert engine.post("/cache/evict", {"ids": other, "dry_run": True})["evicted"] == 3
        assert engine.post("/cache/evict", {"ids": ids})["evicted"] == 0
        done = engine.post("/cache/evict", {})
        assert done["evicted"] == would["evicted"] and done["cached_blocks"] == 0
        assert engine.post("/cache/lookup", {"ids": ids})["cached_tokens"] == 48
        assert engine.post("/cache/lookup", {"ids": other})["cached_tokens"] == 0
        assert engine.call("POST", "/cache/unpin", {"pin": 9})[0] == 404
        assert engine.call("POST", "/cache/unpin", {"pin": 1, "all": True})[0] == 400
        assert engine.post("/cache/unpin", {"ids": ids})["pins"] == 0
        assert engine.post("/cache/evict", {})["evicted"] == 3
        assert engine.generate(ids, 2) == engine.generate(ids, 2)


def test_scheduler_explain_says_why_a_request_waits():
    """One slot and two long requests: the second waits for the first, and the decisions say whom the policy took."""
    with Engine(scheduler__max_sequences=1) as engine:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            running = [pool.submit(engine.generate, [7, 8, 9 + i], 200) for i in range(2)]
            rows = []

            def both():
                rows[:] = engine.post("/services/scheduler/queue", {})["sequences"]
                return len(rows) == 2 and {row["state"] for row in rows} & {"waiting"}
            engine.wait_for(lambda: both() or all(one.done() for one in running), 20, "a request that waits")
            waiting = [row for row in rows if row["state"] == "waiting"]
            if waiting:
                status, told = engine.call("POST", "/services/scheduler/explain?mode=research", {"request": waiting[0]["id"]})
                if status == 200 and told["data"]["sequence"]["state"] == "waiting":
                    assert told["data"]["why"].startswith("waits: ") and "1 of 1 slots" in told["data"]["why"]
            shown = engine.post("/services/frontend/requests", {})
            assert shown["queue_limit"] == 1024
            for one in running:
                one.result()
        told = engine.post("/services/scheduler/explain", {})
        assert told["policy"] == "fcfs" and any("admit" in row["text"] for row in told["decisions"])


def test_tokenizer_encode_says_where_each_token_is(engine):
    text = "The SELECT statement é returns rows"
    told = engine.post("/services/tokenizer/encode", {"text": text})
    raw = text.encode()
    assert told["count"] == len(told["ids"]) == len(told["tokens"]) == len(told["begins"]) == len(told["ends"])
    assert b"".join(raw[b:e] for b, e in zip(told["begins"], told["ends"])) == raw
    assert told["ids"] == engine.post("/tokenize", {"prompt": text})["tokens"]
    assert engine.post("/services/tokenizer/decode", {"ids": told["ids"]})["text"] == text
    page = engine.post("/services/tokenizer/vocabulary", {"offset": told["ids"][1], "limit": 1})
    assert page["tokens"][0]["text"] == told["tokens"][1] and page["next"] == told["ids"][1] + 1
    status, reply = engine.call("POST", "/services/tokenizer/decode", {"ids": [1, 1 << 20]})
    assert status == 400 and reply["error"]["param"] == "ids" and "ids[1]" in reply["error"]["message"]


def test_tokenizer_encode_of_a_long_text_is_done_beside_the_loop(engine):
    text = "The SELECT statement returns rows. " * 1500
    told = engine.post("/services/tokenizer/encode", {"text": text})
    assert told["ends"][-1] == len(text) and told["ids"] == engine.post("/tokenize", {"prompt": text})["tokens"]
    status, reply = engine.call("POST", "/services/tokenizer/encode", {"text": "x" * 65537})
    assert status == 400 and reply["error"]["param"] == "text"


def test_compute_kernels_name_the_chosen(engine):
    told = engine.post("/services/compute/kernels", {})
    for row in told["operations"]:
        chosen = [one["name"] for one in row["implementations"] if one["chosen"]]
        assert chosen == ([row["chosen"]] if row["chosen"] else [])
        assert all(one["available"] and one["fits"] for one in row["implementations"] if one["chosen"])
    status, reply = engine.call("POST", "/services/compute/kernels", {"operation": "flash"})
    assert status == 404 and reply["error"]["param"] == "operation"
