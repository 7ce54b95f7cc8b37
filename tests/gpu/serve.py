#!/usr/bin/env python3
"""The five services on a GPU: the bundled model's reference outputs over HTTP, SIGKILL of compute, scheduler and memory under load with
both shares, clear refusals of what cannot work, and the speed of dummy models. One line per check and per figure; exit status 1 when a
check fails.

usage: tests/gpu/serve.py [FOLDER] [--only PART,...]
parts: golden, kill, refuse, load, checkpoint, speed, gap, split, mix"""
import argparse
import concurrent.futures
import http.client
import json
import math
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "system"))
import engine as engine_module  # noqa: E402
from engine import Engine  # noqa: E402

GPU = {"compute__backend": "cuda"}
SHAPES = {"1B": "deploy/shapes/llama-3.2-1b", "8B": "deploy/shapes/llama-3.1-8b"}
failures = 0


def say(ok, what):
    global failures
    failures += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {what}", flush=True)


def figure(what):
    print(f"     {what}", flush=True)


def stream(engine, ids, tokens, at=0, then=None):
    """Arrival of every streamed event, in seconds since the request, and the tokens that there were by then: where the client or the
    frontend wakes late, an event has several. Calls `then` after event number `at`."""
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=120)
    begin = time.monotonic()
    connection.request("POST", "/generate", json.dumps({
        "input_ids": ids, "sampling_params": {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}, "stream": True}),
        {"Content-Type": "application/json"})
    reply = connection.getresponse()
    if reply.status != 200:
        raise AssertionError(f"{reply.status} {reply.read()[:300]}")
    events = []
    for line in reply:
        if line.startswith(b"data: {"):
            events.append((time.monotonic() - begin, line))
            if then and len(events) == at:
                then()
    connection.close()
    return [when for when, _ in events], [json.loads(line[6:])["meta_info"]["completion_tokens"] for _, line in events]


# ---- checks ----

def check_golden():
    cases = json.loads((ROOT / "tests/golden/default/golden.json").read_text())["cases"]
    for share in ("cuda_ipc", "cuda_vmm"):
        for activations, tolerance in (("f32", 1e-3), ("bf16", 0.25)):
            with Engine(memory__share=share, compute__activations=activations, **GPU) as engine:
                worst, wrong = 0.0, 0
                for case in cases:
                    reply = engine.post("/v1/completions", {
                        "prompt": case["prompt_ids"], "max_tokens": len(case["greedy_ids"]),
                        "temperature": 0, "ignore_eos": True, "logprobs": 1, "return_token_ids": True})
                    choice = reply["choices"][0]
                    ids, logprobs = choice.get("token_ids"), choice["logprobs"]["token_logprobs"]
                    for i, (want, margin) in enumerate(zip(case["greedy_ids"], case["greedy_margin"])):
                        if ids[i] != want:
                            wrong += margin > tolerance
                            break
                        worst = max(worst, abs(logprobs[i] - case["greedy_logprobs"][i]))
                say(not wrong and worst <= tolerance,
                    f"golden over HTTP, {share}, {activations}: {wrong} wrong choices, log-probabilities within {worst:.2g}")


def check_kill():
    prompts = [list(range(10 + 40 * i, 40 + 43 * i)) for i in range(8)]
    for share in ("cuda_ipc", "cuda_vmm"):
        with Engine(memory__share=share, compute__deterministic="true", **GPU) as engine:
            wanted = [engine.generate(ids, 1500) for ids in prompts]
            for service in ("compute", "scheduler", "memory"):
                with concurrent.futures.ThreadPoolExecutor(9) as pool:
                    running = [pool.submit(engine.generate, ids, 1500) for ids in prompts]
                    stream(engine, prompts[0], 100)  # beside them: by its end each has made about as many
                    engine.kill(service)
                    unfinished = sum(not future.done() for future in running)
                    got = [future.result() for future in running]
                loads = [line for line in engine.log_path.read_text(errors="replace").splitlines() if " tensors, " in line]
                say(got == wanted and unfinished == 8, f"SIGKILL of {service} while {unfinished} of 8 requests run, {share}: "
                                   f"{sum(a == b for a, b in zip(got, wanted))} of 8 complete with the same ids"
                                   + (f"; weights {loads[-1].split(',')[1].strip()}" if service == "memory" else ""))


def refusal(*settings, environment=None):
    command = [str(engine_module.BUILD / "quintet-memory"), "--run-dir", f"/tmp/qn-refusal-{os.getpid()}"]
    for setting in ("compute.backend=cuda", *settings):
        command += ["--set", setting]
    begin = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return None, "still runs after 20 s", 20
    lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()[-1:]
    return done.returncode, lines[0] if lines else "", time.monotonic() - begin


def check_refusals():
    cases = [("no GPU", [], {"CUDA_VISIBLE_DEVICES": ""}), ("wrong device", ["compute.device=7"], None),
             ("too much KV", ["memory.kv_bytes=200GiB"], None),
             ("quantised weights", ["model.quantize=int8"], None), ("memfd", ["memory.share=memfd"], None)]
    for name, settings, environment in cases:
        status, text, seconds = refusal(*settings, environment=environment)
        say(status not in (None, 0), f"{name}: exit {status} after {seconds:.2f} s: {text}")


# ---- figures ----

def dummy(shape, *arguments, **settings):
    return Engine(*arguments, model__path=SHAPES[shape], model__load_format="dummy", **GPU, **settings)


def log_line(engine, word):
    return next((line for line in engine.log_path.read_text(errors="replace").splitlines() if word in line), "")


def show_load():
    for shape in SHAPES:
        begin = time.monotonic()
        with dummy(shape, scheduler__max_sequences="64", model__max_model_len="4096") as engine:
            figure(f"{shape} dummy: ready after {time.monotonic() - begin:.2f} s: {log_line(engine, 'tensors')}")


def write_checkpoint(shape, folder):
    """A Llama checkpoint of this shape in one file, of numbers that mean nothing."""
    config = json.loads((ROOT / SHAPES[shape] / "config.json").read_text())
    width, mlp, kv = config["hidden_size"], config["intermediate_size"], config["num_key_value_heads"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], width], "model.norm.weight": [width]}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = [config["vocab_size"], width]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        shapes |= {name + "input_layernorm.weight": [width], name + "post_attention_layernorm.weight": [width],
                   name + "self_attn.q_proj.weight": [config["num_attention_heads"] * head, width],
                   name + "self_attn.k_proj.weight": [kv * head, width], name + "self_attn.v_proj.weight": [kv * head, width],
                   name + "self_attn.o_proj.weight": [width, config["num_attention_heads"] * head],
                   name + "mlp.gate_proj.weight": [mlp, width], name + "mlp.up_proj.weight": [mlp, width],
                   name + "mlp.down_proj.weight": [width, mlp]}
    header, end = {}, 0
    for name, shape_of in shapes.items():
        begin, end = end, end + 2 * math.prod(shape_of)
        header[name] = {"dtype": "BF16", "shape": shape_of, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    piece = bytes(x for low in os.urandom(1 << 19) for x in (low, 0x3c)) * 16
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done in range(0, end, len(piece)):
            file.write(piece[:end - done])
    (folder / "config.json").write_text(json.dumps(config))
    return end


def show_checkpoint():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        size = write_checkpoint("8B", pathlib.Path(folder))
        for share in ("cuda_ipc", "cuda_vmm"):
            with Engine(model__path=folder, memory__share=share, model__max_model_len="4096", **GPU) as engine:
                line = log_line(engine, "tensors")
                seconds = float(re.search(r"loaded in ([\d.]+) s", line).group(1))
                figure(f"8B checkpoint, {share}, page cache to GPU: {size / seconds / 1e9:.1f} GB/s; {line}")


def device_step(shape, context):
    """Median microseconds of a decode step without services."""
    done = subprocess.run([str(engine_module.BUILD / "quintet"), "bench", "step", "--model", SHAPES[shape], "--batch", "1", "--context",
                           str(context), "--prefill", "0", "--json", "--set", "compute.backend=cuda"], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    if done.returncode:
        figure(f"bench step: {done.stderr.strip()[-300:]}")
        return None
    return json.loads(done.stdout)["figures"][0]["median_s"] * 1e6


def show_speed():
    for shape in SHAPES:
        with dummy(shape, scheduler__max_sequences="64", model__max_model_len="4096", scheduler__max_step_tokens="2048",
                   scheduler__prefill_chunk_tokens="2048") as engine:
            ids = list(range(100, 100 + 1024))
            stream(engine, ids, 64)
            times, tokens = stream(engine, ids, 512)
            step = device_step(shape, 1280)
            between = (times[-1] - times[32]) / (tokens[-1] - tokens[32]) * 1e6
            figure(f"{shape} batch 1, 1k context, HTTP stream: {between:.0f} us a token, {tokens[-1]} tokens in {len(times)} events, first "
                   f"token {times[0] * 1e3:.1f} ms"
                   + (f"; device step {step:.0f} us: ratio {between / step:.3f}" if step else ""))
            engine.kill("compute")
            killed = time.monotonic()
            engine.generate(ids[:64], 1)
            figure(f"{shape} SIGKILL of compute to the first token of a new request: {time.monotonic() - killed:.2f} s")


def show_gap():
    """From SIGKILL of compute to the next token of the stream that was running."""
    for share in ("cuda_ipc", "cuda_vmm"):
        with dummy("8B", scheduler__max_sequences="64", model__max_model_len="4096", memory__share=share) as engine:
            ids = list(range(100, 612))
            times, _ = stream(engine, ids, 600, 100, lambda: engine.kill("compute"))
            gap = max(b - a for a, b in zip(times, times[1:]))
            figure(f"8B, {share}: SIGKILL of compute to the next token of the same stream: {gap:.2f} s")


def batch_speed(engine, batch, tokens):
    prompts = [[100 + i, *range(200, 263)] for i in range(batch)]
    begin = time.monotonic()
    engine.generate_many(prompts, tokens)
    return batch * tokens / (time.monotonic() - begin)


def gaps(engine):
    """Medians of what lies between steps: the scheduler's histogram, and the hops of a step."""
    rows = {}
    pattern = re.compile(r'quintet_(scheduler_idle_gap|hop_from_compute|hop_from_scheduler)_seconds_bucket'
                         r'\{service="(scheduler|compute)",le="([^"]+)"[^}]*\} (\d+)')
    for what, service, bound, count in pattern.findall(engine.get("/metrics")):
        rows.setdefault((what, service), []).append((float(bound), int(count)))
    for (what, _), buckets in rows.items():
        yield what, 1e6 * next((bound for bound, count in buckets if count * 2 >= buckets[-1][1]), 0)


def show_split():
    settings = {"scheduler__max_sequences": "256", "model__max_model_len": "2048", "scheduler__max_step_tokens": "4096"}
    with dummy("1B", **settings) as ipc, dummy("1B", "--inproc", **settings) as inproc:
        for engine in (ipc, inproc):
            batch_speed(engine, 256, 32)
        for batch, tokens in ((1, 1000), (256, 200)):
            pairs = []
            for i in range(5):
                order = (ipc, inproc) if i % 2 == 0 else (inproc, ipc)
                speed = {id(engine): batch_speed(engine, batch, tokens) for engine in order}
                pairs.append((speed[id(ipc)], speed[id(inproc)]))
            ratio = statistics.median(a / b for a, b in pairs)
            figure(f"1B batch {batch}: five processes {statistics.median(a for a, _ in pairs):.0f} tok/s, one "
                   f"{statistics.median(b for _, b in pairs):.0f}, ratio {ratio:.3f}")
        for name, engine in (("five processes", ipc), ("one", inproc)):
            figure(f"{name}: " + ", ".join(f"{what} {value:.1f} us" for what, value in gaps(engine)))


def serial_roofline(shape, requests):
    """Seconds that the same work takes at the memory's and the tensor cores' speed, one after the other: every prompt token's
    products at 790 TFLOP/s; weights once per decode step with all sequences that still run, and their keys and values, at 4.54 TB/s."""
    config = json.loads((ROOT / SHAPES[shape] / "config.json").read_text())
    width, layers, kv = config["hidden_size"], config["num_hidden_layers"], config["num_key_value_heads"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    layer = width * head * (2 * config["num_attention_heads"] + 2 * kv) + 3 * width * config["intermediate_size"]
    prefill = sum(2 * layers * layer * prompt + 2 * layers * width * prompt * prompt for prompt, _ in requests) / 790e12
    weights = 2 * (layers * layer + config["vocab_size"] * width)
    token = 4 * layers * kv * head
    steps = max(out for _, out in requests)
    moved = sum(weights + sum(token * (prompt + i) for prompt, out in requests if out > i) for i in range(steps))
    return prefill + moved / 4.54e12


def show_mix():
    """256 requests at once, 100 to 1024 tokens in and out, seed 0."""
    lengths = random.Random(0)
    requests = [(lengths.randint(100, 1024), lengths.randint(100, 1024)) for _ in range(256)]
    for shape in SHAPES:
        with dummy(shape, scheduler__max_sequences="256", model__max_model_len="2048", scheduler__max_step_tokens="8192",
                   scheduler__prefill_chunk_tokens="8192") as engine:
            batch_speed(engine, 256, 16)
            prompts = [[(i * 7919 + 31 * j) % 120000 for j in range(prompt)] for i, (prompt, _) in enumerate(requests)]
            begin = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(256) as pool:
                list(pool.map(lambda pair: engine.generate(pair[0], pair[1][1]), zip(prompts, requests)))
            seconds, limit = time.monotonic() - begin, serial_roofline(shape, requests)
            out = sum(tokens for _, tokens in requests)
            figure(f"{shape} 256 requests, 100-1024 in and out: {seconds:.2f} s, {out / seconds:.0f} tok/s out; serial roofline "
                   f"{limit:.2f} s: {100 * limit / seconds:.0f} %")


PARTS = {"golden": check_golden, "kill": check_kill, "refuse": check_refusals, "load": show_load, "checkpoint": show_checkpoint, "speed": show_speed, "gap": show_gap,
         "split": show_split, "mix": show_mix}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=str(ROOT / "build" / "cuda"))
    parser.add_argument("--only", default=",".join(PARTS))
    arguments = parser.parse_args()
    engine_module.BUILD = pathlib.Path(arguments.folder).resolve()
    for part in arguments.only.split(","):
        print(f"== {part}", flush=True)
        try:
            PARTS[part]()
        except Exception as error:  # one part's end is not the others'
            say(False, f"{part}: {type(error).__name__}: {str(error)[-1500:]}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
