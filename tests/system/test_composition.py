"""Five threads in one process under mixed load: for `make tsan`, and cheap enough for every run."""
import concurrent.futures
import json

from engine import Engine


def stream(engine, i):
    status, text = engine.call("POST", "/v1/completions", {
        "prompt": f"Statement {i}: SELECT", "max_tokens": 12 + i, "stream": True, "temperature": 0.7, "seed": i,
        "ignore_eos": True, "logprobs": 2, "stop": ["never there"]})
    assert status == 200
    events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return sum(len(json.loads(e)["choices"][0]["logprobs"]["tokens"]) for e in events[:-1])


def test_composition_serves_mixed_load_and_stops_cleanly():
    with Engine("--inproc") as engine:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            counts = list(pool.map(lambda i: stream(engine, i), range(16)))
            many = list(pool.map(lambda i: engine.generate(list(range(5, 40 + i)), 8), range(8)))
        assert counts == [12 + i for i in range(16)]
        assert all(len(ids) == 8 for ids in many)
        for path in ("/metrics", "/services", "/cache/stats", "/health"):
            engine.get(path)
        engine.post("/flush_cache", {})
        engine.wait_for(lambda: engine.used_blocks() == 0, 30, "all blocks back")
    assert engine.status == 0, engine.log
    assert "WARNING: ThreadSanitizer" not in engine.log, engine.log
