"""quintet bench: figures that would be nonsense fail here. Small and short: no figure of this file is a result."""
import json
import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUINTET = ROOT / os.environ.get("QUINTET_BUILD", "build") / "quintet"
MODEL = ROOT / "deploy/models/default"
SHAPES = ROOT / "deploy/shapes"
TEXT = ROOT / "tests/system/test_http.py"
EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_UNAVAILABLE, EX_CONFIG = 64, 65, 66, 69, 78


def bench(*arguments, text=""):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QUINTET_")}
    return subprocess.run([QUINTET, "bench", *map(str, arguments)], input=text, capture_output=True, text=True,
                          timeout=300, env=environment)


def figures(*arguments, text=""):
    done = bench(*arguments, "--json", text=text)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


# ---- the machine -------------------------------------------------------------------------------------------------


def test_machine_figures_are_possible():
    speed = figures("machine", "--buffer", "64")
    assert 1e8 < speed["read_one"] < 1e12 and 1e8 < speed["read"] < 1e13
    # Wide bounds: what else runs on this machine slows down one figure more than another.
    assert 1e8 < speed["f32_one"] < 1e13 and 0.1 * speed["f32_one"] < speed["f32"] < 1e15
    assert speed["int8"] == 0 or speed["int8"] > speed["f32"] * 0.2
    assert speed["threads"] == len(os.sched_getaffinity(0))


# ---- kernels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["rmsnorm", "kv_write", "moe_route"])
def test_kernels_are_checked_and_timed(op):
    report = figures("kernels", "--op", op, "--seconds", "0.001")
    assert report["kernels"] and {row["op"] for row in report["kernels"]} == {op}
    for row in report["kernels"]:
        assert row["right"] and row["error"] < 1e-5, row
        assert 0 < row["best_s"] <= row["median_s"] < 10, row
        assert row["bytes"] > 0


# ---- steps -------------------------------------------------------------------------------------------------------


def small_shape(folder, layers=4, **changes):
    """A Qwen2 of some 25 MB: config.json alone."""
    config = json.loads((SHAPES / "qwen2.5-0.5b/config.json").read_text())
    config.update({"num_hidden_layers": layers, "vocab_size": 4096, "intermediate_size": 1024, "bos_token_id": 0,
                   "eos_token_id": 0, **changes})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def weight_bytes(layers=4):
    hidden, mlp, vocab, kv = 896, 1024, 4096, 128
    products = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * mlp) + vocab * hidden
    return products, 2 * (products + layers * (2 * hidden + hidden + 2 * kv) + hidden)


def test_step_of_a_shape_without_weights_counts_what_it_moves(tmp_path):
    shape = small_shape(tmp_path / "shape")
    report = figures("step", "--model", shape, "--batch", "1,3", "--context", "32,64", "--prefill", "48", "--seconds",
                     "0.02")
    products, bf16 = weight_bytes()
    assert report["products"] == "bf16" and report["kv"] == "f32"
    assert bf16 <= report["weights_bytes"] < bf16 * 1.01
    rows = {(row["kind"], row["batch"], row["context"]): row for row in report["figures"]}
    assert sorted(rows) == [("decode", 1, 32), ("decode", 1, 64), ("decode", 3, 32), ("decode", 3, 64),
                            ("prefill", 1, 48)]
    for (kind, batch, context), row in rows.items():
        assert 0 < row["best_s"] <= row["median_s"] and row["steps"] >= 5
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["median_s"], rel=1e-6)
        # The parts are most of the whole, and nothing else: sums of steps and medians differ a little.
        assert 0 < sum(row["parts_s"].values()) < 5 * row["median_s"] + 0.01
        if kind == "decode":
            kv = 2 * 4 * 128 * 4 * batch * context
            assert row["bytes"] == pytest.approx(bf16 + kv, rel=0.01)
            assert row["percent"] == pytest.approx(100 * row["bytes"] / row["median_s"] / row["limit"], rel=1e-6)
        else:
            assert row["operations"] == pytest.approx(2 * 48 * (products - 4096 * 896) + 2 * 4096 * 896
                                                      + 4 * 4 * 896 * 48 * 49 / 2, rel=0.01)
            assert 0 < row["percent"] < 120


@pytest.mark.parametrize("quantize,bits", [("int8", 8), ("int4", 4.5)])
def test_step_of_quantised_weights_moves_less(tmp_path, quantize, bits):
    shape = small_shape(tmp_path / "shape")
    report = figures("step", "--model", shape, "--batch", "1", "--context", "32", "--prefill", "0", "--seconds", "0.02",
                     "--set", f"model.quantize={quantize}")
    head, products = 4096 * 896, weight_bytes()[0]
    assert report["products"] == quantize and report["head"] == "int8"
    assert report["weights_bytes"] == pytest.approx(head + (products - head) * bits / 8, rel=0.03)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_step_is_compared_with_the_peak_of_its_instructions(tmp_path, quantize):
    report = figures("step", "--model", small_shape(tmp_path / "shape", layers=1), "--batch", "0", "--prefill", "8",
                     "--seconds", "0.01", "--set", f"model.quantize={quantize}")
    kind = "int8" if report["matmul"] == "vnni" and quantize == "int8" else "f32"
    row, = report["figures"]
    assert row["limit_name"] == kind and row["limit"] == pytest.approx(report["machine"][kind], rel=1e-6)


def test_step_takes_kernels_and_threads(tmp_path):
    shape = small_shape(tmp_path / "shape", layers=1)
    report = figures("step", "--model", shape, "--batch", "1", "--context", "8", "--prefill", "0", "--seconds", "0.01",
                     "--threads", "1", "--set", "compute.kernels=matmul=reference", "--set", "memory.kv_dtype=bf16")
    assert (report["matmul"], report["threads"], report["kv"]) == ("reference", 1, "bf16")


@pytest.mark.parametrize("shape", sorted(path.name for path in SHAPES.iterdir()))
def test_shapes_are_models(shape):
    """The directories of deploy/shapes are understood; the memory of a large one is not asked for here."""
    done = bench("step", "--model", SHAPES / shape, "--set", "compute.kernels=matmul=none")
    assert done.returncode == EX_CONFIG and "matmul" in done.stderr


# ---- quality -----------------------------------------------------------------------------------------------------


def quality(*arguments):
    return figures("quality", "--text", TEXT, "--tokens", "256", "--context", "64", *arguments)


def test_quality_of_the_exact_configuration_is_perfect():
    report = quality()
    assert report["kl_mean"] == report["kl_max"] == 0 and report["top1_percent"] == 100
    assert report["perplexity"] == report["perplexity_reference"]
    assert 2 < report["perplexity"] < 4096
    assert (report["positions"], report["sequences"], report["length"]) == (256, 4, 64)


def test_quality_falls_with_the_bits():
    kv = quality("--set", "memory.kv_dtype=bf16")
    int8 = quality("--set", "model.quantize=int8")
    int4 = quality("--set", "model.quantize=int4")
    assert 0 < kv["kl_mean"] < int8["kl_mean"] < int4["kl_mean"] < 2
    for report in (kv, int8, int4):
        assert 0 < report["kl_mean"] <= report["kl_p99"] <= report["kl_max"]
        assert 30 < report["top1_percent"] <= 100
        assert report["perplexity_reference"] == kv["perplexity_reference"]
    assert int8["kl_mean"] < 0.05 and int8["top1_percent"] > int4["top1_percent"]


def test_quality_against_the_plain_kernels_is_rounding():
    report = quality("--reference", "reference", "--set", "compute.threads=2")
    assert 0 <= report["kl_mean"] < 1e-8 and report["kl_max"] < 1e-6 and report["top1_percent"] > 98


# ---- tokenizers --------------------------------------------------------------------------------------------------


def test_tokenizer_counts_the_text(tmp_path):
    text = "".join(path.read_text() for path in sorted((ROOT / "tests/system").glob("*.py"))) + "größer 大きい\n" * 400
    report = figures("tokenizer", "--tokenizer", MODEL, "--text", "-", "--warm", "4096", "--seconds", "0.05", text=text)
    assert report["bytes"] == len(text.encode())
    whole = subprocess.run([QUINTET, "tokenize", "--tokenizer", MODEL, "--jsonl", "--no-special"],
                           input=json.dumps(text) + "\n", capture_output=True, text=True, check=True)
    assert report["tokens"] == len(json.loads(whole.stdout))
    assert report["prompts"] >= (report["bytes"] - 4096) // 2048 - 1
    assert 0 < report["new_p50_s"] <= report["new_p99_s"] < 1 and 0 < report["forgotten_p50_s"] < 1
    assert report["warm_best_bytes_per_second"] >= report["warm_bytes_per_second"] > 1e4


# ---- what goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments,status,words", [
    ([], EX_USAGE, "what to measure"),
    (["stepp"], EX_USAGE, 'did you mean "step"'),
    (["machine", "--threads", "0"], EX_USAGE, "--threads"),
    (["machine", "extra"], EX_USAGE, "extra"),
    (["kernels", "--op", "matmull"], EX_USAGE, 'did you mean "matmul"'),
    (["kernels", "--kernel", "avx3"], EX_USAGE, 'did you mean "avx2"'),
    (["kernels", "--op", "slot_update", "-j"], EX_UNAVAILABLE, "no case for operation slot_update"),
    (["kernels", "--op", "softcap", "--kernel", "vnni", "-j"], EX_UNAVAILABLE, "with kernel vnni"),
    (["step", "--batch", "1,,2"], EX_USAGE, "--batch"),
    (["step", "--batch", "4097"], EX_USAGE, "--batch"),
    (["step", "--batch", "0", "--prefill", "0"], EX_USAGE, "nothing to measure"),
    (["step", "--context", "4000000000"], EX_USAGE, "--context"),
    (["step", "--context", "100000"], EX_UNAVAILABLE, "positions"),
    (["step", "--model", "/nonexistent"], EX_NOINPUT, "/nonexistent"),
    (["step", "--set", "model.quantise=int8"], EX_CONFIG, "model.quantize"),
    (["step", "--set", "compute.backend=cuda"], EX_UNAVAILABLE, "compute.backend"),
    (["kernels", "--set", "compute.backend=cuda"], EX_UNAVAILABLE, "compute.backend"),
    (["kernels", "--set", "compute.backnd=cuda"], EX_CONFIG, "compute.backend"),
    (["quality"], EX_USAGE, "--text"),
    (["quality", "--text", "/nonexistent"], EX_NOINPUT, "/nonexistent"),
    (["quality", "--text", "-"], EX_DATAERR, "at least 2"),
    (["tokenizer", "--text", "-"], EX_USAGE, "--tokenizer"),
    (["tokenizer", "--tokenizer", MODEL, "--text", "-"], EX_DATAERR, "too few"),
], ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else "")
def test_wrong_use_is_explained(arguments, status, words):
    done = bench(*arguments)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    if "-j" in arguments:  # a failure is an object, too
        assert words in json.loads(done.stdout)["error"]["message"]
    else:
        assert done.stdout == ""


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "text").write_bytes(b"abc\xff" * 4096)
    for arguments in (["tokenizer", "--tokenizer", MODEL], ["quality"]):
        done = bench(*arguments, "--text", tmp_path / "text")
        assert done.returncode == EX_DATAERR and "UTF-8" in done.stderr


def test_model_without_tokenizer_has_no_quality(tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(MODEL / name, tmp_path / name)
    done = bench("quality", "--model", tmp_path, "--text", TEXT)
    assert done.returncode == EX_NOINPUT and "tokenizer.json" in done.stderr


@pytest.mark.parametrize("name", ["machine", "kernels", "step", "quality", "tokenizer", "serve"])
def test_every_benchmark_has_help(name):
    done = bench(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: quintet bench {name}") and "--json" in done.stdout
