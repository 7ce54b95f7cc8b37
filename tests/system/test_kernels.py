"""Kernels over HTTP: chosen, timed, tuned and loaded while requests run."""
import concurrent.futures
import json
import os
import pathlib
import re
import signal

import pytest
from engine import BUILD, Engine

OBJECTS = f"{BUILD}/kernels:{BUILD}/tests/kernels"
PROMPT = [7 + 3 * i % 400 for i in range(70)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    table = tmp_path_factory.mktemp("tuned") / "kernels.json"
    with Engine(compute__kernel_dirs=OBJECTS, compute__autotune_table=table) as running:
        running.table = table
        yield running


@pytest.fixture(autouse=True)
def take_back(engine):
    yield
    for row in engine.get("/kernels")["operations"]:
        if row["live"]:
            choose(engine, row["operation"], "auto")


def choose(engine, operation, name):
    status, reply = engine.call("PUT", f"/kernels/{operation}", {"implementation": name})
    assert status == 200, reply
    return reply


def operation(engine, name):
    return next(row for row in engine.get("/kernels")["operations"] if row["operation"] == name)


def others(engine, name):
    """Built-in implementations of an operation that this machine has and that are not chosen."""
    row = operation(engine, name)
    return [one["name"] for one in row["implementations"]
            if one["available"] and one["fits"] and not one["object"] and one["name"] != row["chosen"]]


def scores(engine, prompt=PROMPT, tokens=12):
    """Ids, their log-probabilities as they are, and how much of the prompt was cached."""
    reply = engine.post("/generate", {"input_ids": prompt, "return_logprob": True,
                                      "sampling_params": {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}})
    info = reply["meta_info"]
    return reply["output_ids"], [entry[0] for entry in info["output_token_logprobs"]], info["cached_tokens"]


def test_choice_has_the_bits_of_a_configured_engine_and_no_stale_prefix(engine):
    before = scores(engine)
    assert scores(engine)[2] > 0
    name = others(engine, "rmsnorm")[0]
    with Engine(compute__kernels=f"rmsnorm={name},attention.prefill=reference,attention.decode=reference") as configured:
        want = scores(configured)
    choose(engine, "rmsnorm", name)
    changed = choose(engine, "attention.decode", "reference")
    assert changed["also"] == ["attention.prefill"] and changed["reruns"]
    assert operation(engine, "attention.prefill")["chosen"] == "reference"
    got = scores(engine)
    assert got == want and got[2] == 0, "what other kernels computed was a prefix"
    assert got[1] != before[1], "other kernels, the same bits: nothing was changed"
    choose(engine, "rmsnorm", "auto")
    assert choose(engine, "attention.prefill", "auto")["implementation"] != "reference"
    engine.generate([9, 8, 7], 1)  # by its end the scheduler has heard of them: what is cached is counted at the first lease
    again = scores(engine)
    assert again[:2] == before[:2] and again[2] > 0, "the prefix of the old kernels is one again"


def test_choice_that_keys_do_not_depend_on_keeps_the_cache(engine):
    scores(engine)
    assert not choose(engine, "sampler", "reference")["reruns"]
    assert scores(engine)[2] > 0


def test_choices_under_load_lose_nothing(engine):
    prompts = [[3 + i, 40 + i, 90, 12 + 2 * i] * 4 for i in range(24)]
    want = engine.generate_many(prompts, 48)
    names = [operation(engine, "rmsnorm")["chosen"], *others(engine, "rmsnorm")]

    with concurrent.futures.ThreadPoolExecutor(25) as pool:
        running = [pool.submit(engine.generate, prompt, 48) for prompt in prompts]
        for i in range(20):
            choose(engine, "rmsnorm", names[i % len(names)])
        got = [future.result() for future in running]
    assert got == want


def test_choice_outlives_compute(engine):
    name = others(engine, "rope")[0]
    choose(engine, "rope", name)
    before = {"compute": engine.epochs()["compute"]}
    engine.kill("compute")
    engine.wait_reborn(before)
    assert operation(engine, "rope")["chosen"] == name
    kept = json.loads(pathlib.Path(engine.run_dir, "live", "compute.kernels").read_text())
    assert kept["kernels"] == {"rope": name}


@pytest.mark.parametrize("method,path,body,param,words", [
    ("PUT", "/kernels/rmsnrom", {"implementation": "auto"}, "operation", 'did you mean "rmsnorm"'),
    ("PUT", "/kernels/rmsnorm", {"implementation": "fast"}, "implementation", "there are auto, reference"),
    ("PUT", "/kernels/rmsnorm", {}, "implementation", "missing"),
    ("PUT", "/kernels/rmsnorm", {"implementation": 3}, "implementation", "not a string"),
    ("PUT", "/kernels/rmsnorm", {"implementation": "x" * 40}, "implementation", "1 to 31"),
    ("PUT", "/kernels/rmsnorm", {"implementation": "auto", "operation": "rope"}, "operation", "leave it out"),
    ("PUT", "/kernels/rmsnorm", {"implementation": "auto", "now": True}, "now", "no field"),
    ("PUT", "/kernels/lm_head", {"implementation": "auto"}, "operation", "matmul"),
    ("POST", "/kernels/benchmark", {}, "operation", ""),
    ("POST", "/kernels/benchmark", {"operation": "flash_atention"}, "operation", 'did you mean "flash_attention"'),
    ("POST", "/kernels/benchmark", {"operation": "gemm", "implementation": "fast"}, "implementation", "there are reference"),
    ("POST", "/kernels/benchmark", {"operation": "gemm", "dtype": "f64"}, "dtype", "f32, bf16"),
    ("POST", "/kernels/benchmark", {"operation": "rmsnorm", "dtype": "int8"}, "dtype", "others none"),
    ("POST", "/kernels/benchmark", {"operation": "gemm", "part": "middle"}, "part", "gate_up"),
    ("POST", "/kernels/benchmark", {"operation": "gemm", "batch_size": 0}, "batch_size", "minimum"),
    ("POST", "/kernels/benchmark", {"operation": "gemm", "batch_size": 1024, "seq_len": 1024}, "seq_len", "tokens"),
    ("POST", "/kernels/benchmark", {"operation": "gemm", "seconds": 60}, "seconds", "maximum"),
    ("POST", "/kernels/benchmark", {"operation": "attention", "heads": 3, "kv_heads": 2}, "kv_heads", "multiple"),
    ("POST", "/kernels/benchmark", {"operation": "attention", "head_dim": 10}, "head_dim", "multiple of 4"),
    ("POST", "/kernels/benchmark", {"operation": "moe_gemm"}, "operation", "no experts"),
    ("POST", "/kernels/benchmark", {"operation": "lm_head", "hidden": 65536, "vocab": 1048576, "seq_len": 1}, "seq_len",
     "smaller shape"),
    ("POST", "/kernels/autotune", {"operation": "rmsnrom"}, "operation", "rmsnorm"),
    ("POST", "/kernels/load", {}, "path", ""),
    ("POST", "/kernels/load", {"path": "/etc/passwd"}, "path", "outside of compute.kernel_dirs"),
    ("POST", "/kernels/load", {"path": str(BUILD / "quintet")}, "path", "outside of compute.kernel_dirs"),
])
def test_bad_input_names_its_field(engine, method, path, body, param, words):
    status, reply = engine.call(method, path, body)
    assert status == 400 and reply["error"]["param"] == param and words in reply["error"]["message"], reply


def test_object_that_is_not_there_is_404(engine):
    status, reply = engine.call("POST", "/kernels/load", {"path": "absent.so"})
    assert status == 404 and reply["error"]["param"] == "path"


@pytest.mark.parametrize("body", [
    {"operation": "flash_attention", "batch_size": 2, "seq_len": 48},
    {"operation": "paged_attention", "batch_size": 3, "seq_len": 100},
    {"operation": "gemm", "batch_size": 4, "seq_len": 2, "dtype": "int8"},
    {"operation": "lm_head", "seq_len": 1},
    {"operation": "rms_norm", "hidden": 100, "seq_len": 7},
    {"operation": "geglu", "seq_len": 5},
    {"operation": "sampler", "batch_size": 4},
    {"operation": "slot_update", "batch_size": 4, "seq_len": 64},
    {"operation": "block_copy", "batch_size": 2},
    {"operation": "step_input", "batch_size": 4, "seq_len": 64},
    {"operation": "norm_matmul", "seq_len": 8, "dtype": "int8"},
])
def test_benchmark_checks_then_times_while_requests_run(engine, body):
    want = engine.generate(PROMPT, 32)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = [pool.submit(engine.generate, PROMPT, 32) for _ in range(4)]
        reply = engine.post("/kernels/benchmark", {**body, "seconds": 0.002})
        assert [future.result() for future in running] == [want] * 4
    assert reply["results"], reply
    timed = [row for row in reply["results"] if row["us"] > 0]
    assert timed and [row["us"] for row in timed] == sorted(row["us"] for row in timed)
    for row in timed:
        assert row["gb_per_s"] > 0 and row["median_us"] >= row["us"] and row["rounds"] >= 3
        assert row["right"] == (0 <= row["error"] <= row["tolerance"])
    assert all(row["right"] for row in timed if row["chosen"])


def test_autotune_stores_what_the_next_life_reads(engine):
    reply = engine.post("/kernels/autotune", {"operation": "rope", "seconds": 0.001})
    row, = reply["operations"]
    assert reply["complete"] and reply["applied"] and reply["stored"] == str(engine.table) and row["operation"] == "rope"
    table = json.loads(engine.table.read_text())
    entry = table["machines"][reply["machine"]]
    assert table["format"] == 1 and entry["chosen"] == {"rope": row["implementation"]}
    assert {shape["shape"] for shape in entry["measured"]} == {shape["shape"] for shape in row["shapes"]}
    assert operation(engine, "rope")["chosen"] == row["implementation"]
    entry["chosen"] = {"rope": "reference", "rmsnorm": "of_another_build"}
    engine.table.write_text(json.dumps(table))
    before = {"compute": engine.epochs()["compute"]}
    engine.kill("compute")
    engine.wait_reborn(before)
    assert engine.get("/kernels")["tuned"] == "rope=reference"
    assert operation(engine, "rope")["chosen"] == "reference"
    assert operation(engine, "rmsnorm")["chosen"] != "of_another_build"
    assert engine.post("/kernels/autotune", {"operation": "rope", "seconds": 0.001, "apply": False})["applied"] is False
    assert operation(engine, "rope")["chosen"] == "reference"


def test_wrong_object_is_refused_with_the_shape_and_the_error(engine):
    for name, words in (("wrong_1.so", "relative error 0.01"), ("wrong_4.so", "crashes with SIG"), ("wrong_8.so", "compile it again")):
        status, reply = engine.call("POST", "/kernels/load", {"path": name})
        assert status == 400 and reply["error"]["param"] == "path" and words in reply["error"]["message"], reply
    assert "odd T 1" in engine.call("POST", "/kernels/load", {"path": "wrong_4.so"})[1]["error"]["message"]
    assert not any(one["object"] for row in engine.get("/kernels")["operations"] for one in row["implementations"])


def test_loaded_kernels_serve_until_compute_crashes_with_them(engine):
    prompts = [[3 + i, 40 + i, 90, 12 + 2 * i] * 4 for i in range(6)]
    want = engine.generate_many(prompts, 12)
    loaded = engine.post("/kernels/load", {"path": "all.so"})
    assert {row["operation"] for row in loaded["kernels"]} >= {"rmsnorm", "matmul", "attention.decode"}
    assert all(row["cases"] > 20 and row["error"] < 1e-5 for row in loaded["kernels"])
    for name in ("rmsnorm", "attention.decode"):
        assert choose(engine, name, "plain")["implementation"] == "plain"
    assert operation(engine, "attention.prefill")["chosen"] == "plain"
    assert engine.generate_many(prompts, 12) == want
    before = {"compute": engine.epochs()["compute"]}
    engine.kill("compute")  # from outside: nobody's fault
    engine.wait_reborn(before)
    assert operation(engine, "rmsnorm")["chosen"] == "plain" and engine.get("/kernels")["withdrawn"] == []

    before = {"compute": engine.epochs()["compute"]}
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        running = [pool.submit(engine.generate, prompt, 12) for prompt in prompts]
        os.kill(engine.pids()["compute"], signal.SIGSEGV)
        assert [future.result() for future in running] == want
    engine.wait_reborn(before)
    shown = engine.get("/kernels")
    assert shown["withdrawn"] == [f"{BUILD}/tests/kernels/all.so"] and shown["live"] == ""
    assert operation(engine, "rmsnorm")["chosen"] != "plain"
    assert re.search(r"quintet_scheduler_quarantined_total\{[^}]*\} 0\n", engine.get("/metrics"))
    assert "withdrawn" in next(row["text"] for row in engine.get("/services")["services"] if row["name"] == "compute")


def test_objects_of_the_configuration_are_loaded_at_start():
    with Engine(compute__kernel_dirs=OBJECTS, compute__kernel_objects="example_rmsnorm.so", compute__kernels="rmsnorm=example") as engine:
        assert operation(engine, "rmsnorm")["chosen"] == "example"
        assert len(engine.generate(PROMPT, 8)) == 8
    with pytest.raises(AssertionError, match="relative error 0.01"):
        Engine(compute__kernel_dirs=OBJECTS, compute__kernel_objects="wrong_1.so").__enter__()


def test_inproc_composition_has_all_of_it():
    with Engine("--inproc", compute__kernel_dirs=OBJECTS) as engine:
        want = engine.generate(PROMPT, 8)
        engine.post("/kernels/load", {"path": "example_rmsnorm.so"})
        choose(engine, "rmsnorm", "example")
        assert engine.generate(PROMPT, 8) == want
        assert engine.post("/kernels/benchmark", {"operation": "rmsnorm", "seconds": 0.001})["results"]
