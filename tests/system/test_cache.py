"""The cache for people: pins, clones, save and restore, plans; over deaths of memory and of everything."""
import pathlib
import shutil
import tempfile
import threading

import pytest
from engine import ROOT, Engine

PROMPT = [(7 * i) % 200 + 3 for i in range(53)]  # three full blocks of 16 and five tokens


@pytest.fixture(scope="module")
def engine():
    with Engine() as running:
        running.post("/cache/clear", {"pins": True})
        yield running


@pytest.fixture(autouse=True)
def empty(request):
    if "engine" in request.fixturenames:
        request.getfixturevalue("engine").post("/cache/clear", {"pins": True})


def cached(engine, ids):
    return engine.post("/cache/lookup", {"ids": ids})["cached_tokens"]


def refused(engine, path, body, status, param=None, words=""):
    got, reply = engine.call("POST", path, body)
    assert got == status and words in reply["error"]["message"], (path, body, got, reply)
    assert param is None or reply["error"]["param"] == param, reply


# ---- pins ----


def test_cache_pins_have_owners_and_stay_through_a_clear(engine):
    engine.generate(PROMPT, 2)
    pin = engine.post("/cache/pin", {"ids": PROMPT[:32], "owner": "ann", "ttl_s": 3600})
    assert pin["pinned_tokens"] == 32 and 3500 < pin["expires_in_s"] <= 3600
    again = engine.post("/cache/pin", {"ids": PROMPT[:32], "owner": "bob"})
    assert again["pin"] != pin["pin"] and again["expires_in_s"] == -1
    listed = engine.get("/cache/pins")
    assert [(row["pin"], row["owner"], row["tokens"], row["resident"]) for row in listed["pins"]] == [
        (pin["pin"], "ann", 32, True), (again["pin"], "bob", 32, True)]
    assert listed["held_blocks"] == 2 and listed["pins"][0]["first_ids"] == PROMPT[:16]
    assert engine.post("/cache/clear", {})["pinned_blocks"] == 2
    assert cached(engine, PROMPT) == 32
    assert engine.post("/cache/unpin", {"owner": "ann"})["pins"] == 1
    engine.post("/cache/clear", {})
    assert cached(engine, PROMPT) == 32  # bob still wants it
    engine.post("/cache/unpin", {"pin": again["pin"]})
    engine.post("/cache/clear", {})
    assert cached(engine, PROMPT) == 0
    refused(engine, "/cache/unpin", {"pin": again["pin"]}, 404, "pin")
    refused(engine, "/cache/unpin", {"owner": "ann"}, 404, "owner")
    refused(engine, "/cache/unpin", {"owner": "ann", "pin": 3}, 400, "pin")
    refused(engine, "/cache/pin", {"ids": PROMPT, "owner": "x" * 65}, 400, "owner")


def test_cache_stats_tell_hits_misses_and_pins(engine):
    before = engine.get("/cache/stats")
    engine.generate(PROMPT, 1)
    engine.generate(PROMPT, 1)
    engine.post("/cache/pin", {"ids": PROMPT})
    after = engine.get("/cache/stats")
    assert after["hits"] - before["hits"] == 1 and after["misses"] - before["misses"] == 1
    assert after["lookups"] == after["hits"] + after["misses"] and 0 < after["hit_rate"] < 1
    assert after["pins"] == 1 and after["pinned_blocks"] == 3


def test_cache_pins_are_held_in_their_blocks_after_memory_dies():
    with Engine() as engine:
        ids = engine.generate(PROMPT, 8)
        pin = engine.post("/cache/pin", {"ids": PROMPT[:48], "owner": "ann"})["pin"]
        engine.post("/cache/pin", {"ids": PROMPT[:16], "owner": "short", "ttl_s": 1})
        clone = engine.post("/cache/clone", {"ids": PROMPT[:40], "owner": "ann"})
        assert clone["tokens"] == 40 and clone["copied_rows"] == 8
        before = {"memory": engine.epochs()["memory"]}
        engine.kill("memory")
        engine.wait_reborn(before)
        engine.wait_for(lambda: len(engine.get("/cache/pins")["pins"]) == 2, 30, "the short one ends")
        rows = engine.get("/cache/pins")["pins"]
        assert [(row["pin"], row["tokens"], row["resident"]) for row in rows] == [(pin, 48, True), (clone["pin"], 40, True)]
        hits = engine.get("/cache/stats")["hit_tokens"]
        assert engine.generate(PROMPT, 8) == ids
        assert engine.get("/cache/stats")["hit_tokens"] - hits == 48


def test_cache_pins_wait_for_their_prefix_when_its_bytes_are_gone():
    directory = tempfile.mkdtemp(prefix="qn-", dir="/tmp")
    try:
        with Engine() as engine:
            ids = engine.generate(PROMPT, 4)
            engine.post("/cache/pin", {"ids": PROMPT, "owner": "ann"})
            shutil.copy(pathlib.Path(engine.run_dir, "memory.pins"), directory)
        again = Engine()
        shutil.copy(pathlib.Path(directory, "memory.pins"), again.run_dir)
        with again as engine:
            assert [row["resident"] for row in engine.get("/cache/pins")["pins"]] == [False]
            assert engine.generate(PROMPT, 4) == ids
            assert [row["resident"] for row in engine.get("/cache/pins")["pins"]] == [True]
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_cache_pins_of_a_damaged_file_are_forgotten(damage):
    with Engine() as engine:
        engine.generate(PROMPT, 1)
        engine.post("/cache/pin", {"ids": PROMPT})
        path = pathlib.Path(engine.run_dir, "memory.pins")
        before = {"memory": engine.epochs()["memory"]}
        data = bytearray(path.read_bytes())
        data[60] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-4])
        engine.kill("memory")
        engine.wait_reborn(before)
        assert engine.get("/cache/pins")["pins"] == []
        assert cached(engine, PROMPT) == 0


# ---- clones ----


def test_cache_clone_of_a_prefix_gives_its_last_tokens_to_the_next_request(engine):
    ids = engine.generate(PROMPT, 8)
    clone = engine.post("/cache/clone", {"ids": PROMPT[:40]})
    assert (clone["tokens"], clone["shared_blocks"], clone["copied_rows"]) == (40, 2, 8)
    engine.post("/cache/clear", {})
    before = engine.get("/cache/stats")["hit_tokens"]
    assert engine.generate(PROMPT, 8) == ids
    assert engine.get("/cache/stats")["hit_tokens"] - before == 40
    other = PROMPT[:36] + [5, 6, 7, 8]  # goes another way inside the block
    engine.post("/cache/clear", {})
    before = engine.get("/cache/stats")["hit_tokens"]
    with_clone = engine.generate(other, 8)
    assert engine.get("/cache/stats")["hit_tokens"] - before == 36
    engine.post("/cache/clear", {"pins": True})
    assert engine.generate(other, 8) == with_clone


def clone_running(engine):
    """(clone, output of the request it was made of). The request may end before it is asked for: then there is another."""
    for _ in range(50):
        engine.post("/cache/clear", {"pins": True})
        result = []
        runner = threading.Thread(target=lambda: result.append(engine.generate(PROMPT, 400)))
        runner.start()
        while runner.is_alive():
            rows = engine.post("/services/scheduler/queue", {})["sequences"]
            for row in rows:
                if row["proven_tokens"] > len(PROMPT) + 3:
                    status, clone = engine.call("POST", "/cache/clone", {"request": row["id"]})
                    assert status in (200, 404), clone
                    if status == 200:
                        runner.join()
                        return clone, result[0]
    raise AssertionError("every request ended before it could be cloned")


def test_cache_clone_of_a_running_request(engine):
    whole = engine.generate(PROMPT, 400)
    clone, result = clone_running(engine)
    assert result == whole
    assert clone["tokens"] > len(PROMPT) and clone["ids"] == (PROMPT + whole)[:clone["tokens"]]
    hits = engine.get("/cache/stats")["hit_tokens"]
    fork = clone["ids"] + [(PROMPT + whole)[clone["tokens"]]]
    left = len(PROMPT) + 400 - len(fork)
    assert engine.generate(fork, left) == whole[-left:]
    assert engine.get("/cache/stats")["hit_tokens"] - hits >= clone["tokens"]


def test_cache_clone_refuses(engine):
    refused(engine, "/cache/clone", {}, 400, "request")
    refused(engine, "/cache/clone", {"request": 99, "ids": [1]}, 400, "request")
    refused(engine, "/cache/clone", {"request": 99}, 404, "request")
    assert engine.post("/cache/clone", {"ids": [1, 2, 3]})["pin"] == 0


# ---- files ----


def test_cache_save_restores_after_everything_died():
    directory = tempfile.mkdtemp(prefix="qn-", dir="/tmp")
    try:
        settings = {"memory__cache_dir": directory + "/prefixes"}
        with Engine(**settings) as engine:
            ids = engine.generate(PROMPT, 8)
            plan = engine.post("/cache/save", {"name": "p.1", "ids": PROMPT, "dry_run": True})
            assert plan["tokens"] == 48 and not list(pathlib.Path(directory, "prefixes").iterdir())
            saved = engine.post("/cache/save", {"name": "p.1", "ids": PROMPT})
            assert saved["tokens"] == 48 and saved["blocks"] == 3 and saved["bytes"] == plan["bytes"]
            assert pathlib.Path(directory, "prefixes/p.1.prefix").stat().st_size == saved["bytes"]
            refused(engine, "/cache/save", {"name": "p.1", "ids": PROMPT}, 409, "name", "already")
            engine.post("/cache/save", {"name": "p.1", "ids": PROMPT, "replace": True})
            assert engine.used_blocks() == 0
        with Engine(**settings) as engine:
            assert cached(engine, PROMPT) == 0
            row, = engine.post("/cache/restore", {"dry_run": True})["files"]
            assert row["name"] == "p.1" and row["fits"] and row["tokens"] == 48
            before = {"memory": engine.epochs()["memory"]}
            engine.kill("memory")
            engine.wait_reborn(before)
            restored = engine.post("/cache/restore", {"name": "p.1"})
            assert (restored["tokens"], restored["read_blocks"]) == (48, 3)
            assert engine.post("/cache/restore", {"name": "p.1"})["read_blocks"] == 0
            hits = engine.get("/cache/stats")["hit_tokens"]
            assert engine.generate(PROMPT, 8) == ids
            assert engine.get("/cache/stats")["hit_tokens"] - hits == 48
            assert engine.used_blocks() == 0
        with Engine(**settings, memory__kv_dtype="bf16") as engine:
            refused(engine, "/cache/restore", {"name": "p.1"}, 409, "name", "memory.kv_dtype")
        with Engine(**settings, memory__block_tokens=8) as engine:
            refused(engine, "/cache/restore", {"name": "p.1"}, 409, "name", "memory.block_tokens")
        with Engine(**settings, model__path=ROOT / "tests/golden/gpt2") as engine:
            row, = engine.post("/cache/restore", {"dry_run": True})["files"]
            assert not row["fits"] and "another model" in row["unfit"]
            refused(engine, "/cache/restore", {"name": "p.1"}, 409, "name", "another model")
    finally:
        shutil.rmtree(directory)


def test_cache_restore_refuses_what_is_damaged_or_no_file(engine):
    directory = pathlib.Path(engine.run_dir, "saved")
    engine.generate(PROMPT, 1)
    engine.post("/cache/save", {"name": "good", "ids": PROMPT})
    data = (directory / "good.prefix").read_bytes()
    for name, damaged in {"short": data[:-1], "long": data + b"x", "header": b"Q" + bytes([data[1] ^ 1]) + data[2:],
                          "fields": data[:52] + bytes([data[52] ^ 1]) + data[53:],
                          "ids": data[:210] + bytes([data[210] ^ 1]) + data[211:],
                          "block": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "empty": b""}.items():
        (directory / f"{name}.prefix").write_bytes(damaged)
        engine.post("/cache/clear", {})
        refused(engine, "/cache/restore", {"name": name}, 422, "name")
        assert cached(engine, PROMPT) == 0 and engine.used_blocks() == 0
    (directory / "link.prefix").symlink_to("/dev/zero")
    (directory / "folder.prefix").mkdir()
    for name in ["link", "folder"]:
        refused(engine, "/cache/restore", {"name": name}, 422, "name")
    for name in ["..", "../good", "a/b", ".good", "", "x" * 65, "na me", "n\u0000"]:
        for path in ["/cache/restore", "/cache/save"]:
            refused(engine, path, {"name": name, **({"ids": PROMPT} if "save" in path else {})}, 400, "name")
    refused(engine, "/cache/restore", {"name": "none"}, 404, "name")
    refused(engine, "/cache/restore", {}, 400, "name")
    refused(engine, "/cache/save", {"name": "x", "ids": [1, 2, 3]}, 404, "ids")
    shown = {row["name"]: row["fits"] for row in engine.post("/cache/restore", {"dry_run": True})["files"]}
    assert shown["good"] and not shown["short"] and not shown["header"]


def test_cache_save_has_a_bound():
    with Engine(memory__cache_dir_bytes="10KiB") as engine:
        engine.generate(PROMPT, 1)
        refused(engine, "/cache/save", {"name": "x", "ids": PROMPT}, 507, "name", "memory.cache_dir_bytes")


def test_cache_saves_and_restores_under_load_change_nothing(engine):
    prompts = [[(p * 31 + i) % 200 + 3 for i in range(40)] for p in range(6)]
    expected = engine.generate_many(prompts, 48)
    engine.generate(PROMPT, 1)
    engine.post("/cache/save", {"name": "load", "ids": PROMPT, "replace": True})
    failures = []

    def restores():
        try:
            for _ in range(12):
                engine.post("/cache/clear", {"pins": True})
                engine.post("/cache/restore", {"name": "load"})
                engine.post("/cache/clone", {"ids": PROMPT[:41]})
        except AssertionError as error:
            failures.append(error)

    worker = threading.Thread(target=restores)
    worker.start()
    for _ in range(3):
        assert engine.generate_many(prompts, 48) == expected
    worker.join()
    assert not failures, failures


# ---- plans ----


def test_memory_plan_of_the_served_model_and_of_another(engine):
    usage = engine.get("/memory/usage")
    plan = engine.post("/memory/plan", {"sequence_tokens": 100})
    assert plan["fits"] and plan["weights_bytes"] <= usage["weights_bytes"] and plan["block_bytes"] == usage["block_bytes"]
    per_sequence = -(-100 // plan["block_tokens"])
    assert plan["sequences"] == plan["block_count"] // per_sequence
    assert plan["tiers"][0]["tokens"] == plan["block_count"] * plan["block_tokens"]
    small = engine.post("/memory/plan", {"kv_bytes": 10 * plan["block_bytes"], "max_model_len": 160, "strategy": "lru_eviction",
                                         "tiers": [{"name": "file", "bytes": 100 * plan["block_bytes"]}]})
    assert small["fits"] and small["block_count"] == 10 and small["longest_tokens"] == 160 and small["strategy"] == "lru"
    assert [(tier["name"], tier["blocks"]) for tier in small["tiers"]] == [("host", 10), ("file", 100)]
    half = engine.post("/memory/plan", {"kv_dtype": "bf16"})
    assert half["block_bytes"] * 2 == plan["block_bytes"]
    none = engine.post("/memory/plan", {"device_bytes": plan["weights_bytes"]})
    assert not none["fits"] and none["missing_bytes"] > 0 and "do not fit" in none["reason"]
    enough = none["device_bytes"] + none["missing_bytes"]
    assert engine.post("/memory/plan", {"device_bytes": enough})["fits"]
    assert not engine.post("/memory/plan", {"device_bytes": enough - 1})["fits"]
    other = engine.post("/memory/plan", {"model_path": str(ROOT / "tests/golden/gpt2")})
    assert other["fits"] and other["model"] == "gpt2" and other["weights_bytes"] != plan["weights_bytes"]
    refused(engine, "/memory/plan", {"model_path": "/nowhere"}, 404, "model_path")
    refused(engine, "/memory/plan", {"kv_dtype": "f16"}, 400, "kv_dtype")
    refused(engine, "/memory/plan", {"strategy": "magic"}, 400, "strategy")
    refused(engine, "/memory/plan", {"kv_bytes": 1 << 50}, 400, "kv_bytes")
