#!/usr/bin/env python3
"""Quintet beside llama.cpp: the same weights, machine, threads and run; tokens/s and their ratio.

usage: PYTHON tests/bench/llamacpp.py [--rounds N] [--threads N] [--seconds S] [--formats bf16,f16,q8_0,q4_0]
                                      [--work DIR]

PYTHON needs llama-cpp-python (built for this machine), gguf and numpy; `make bench-llamacpp` sees to it.

Random weights of the Qwen2.5-0.5B shape are written once to DIR (default build/llama-model, 3 GB; llamacpp_model.py).
Formats are paired by size and by what they round: bf16 with BF16 (activations in bf16 too, where the CPU can) and F16, int8 with Q8_0, int4 (groups of 32) with Q4_0. Rounds alternate, so
that both see the same machine; the figure is the median of the rounds' ratios. Both keep keys and values in 16 bits.
Quintet's step includes sampling."""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# llama.cpp multiplies BF16 by activations in bf16 where the CPU has the instruction, and by f32 elsewhere.
ACTIVATIONS = ["compute.activations=bf16"] if "avx512_bf16" in pathlib.Path("/proc/cpuinfo").read_text() else []
PAIRS = {"bf16": ACTIVATIONS, "f16": [], "q8_0": ["model.quantize=int8"],
         "q4_0": ["model.quantize=int4", "model.quantize_group=32"]}
BATCHES = "1,8"


def quintet(arguments, directory, sets):
    """{"decode 1": (median, best), ...}"""
    command = [ROOT / "build/quintet", "bench", "step", "--json", "--model", directory, "--batch", BATCHES,
               "--context", str(arguments.context), "--prefill", str(arguments.prefill), "--threads",
               str(arguments.threads), "--seconds", str(arguments.seconds), "--set", "memory.kv_dtype=bf16"]
    for pair in sets:
        command += ["--set", pair]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    figures = {}
    for row in report["figures"]:
        name = f"prefill {row['tokens']}" if row["kind"] == "prefill" else f"decode {row['batch']}"
        figures[name] = row["tokens_per_second"], row["best_tokens_per_second"]
    return figures


def llama(arguments, directory, name):
    command = [sys.executable, HERE / "llamacpp_child.py", directory / f"{name}.gguf", str(arguments.threads),
               str(arguments.context), str(arguments.prefill), BATCHES, str(arguments.seconds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--formats", default=",".join(PAIRS))
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/llama-model")
    parser.add_argument("--shape", type=pathlib.Path, default=ROOT / "deploy/shapes/qwen2.5-0.5b")
    arguments = parser.parse_args()
    import llamacpp_model
    directory = llamacpp_model.make(arguments.shape, arguments.work)
    for name in arguments.formats.split(","):
        rounds = []
        for i in range(arguments.rounds):
            ours = quintet(arguments, directory, PAIRS[name]) if i % 2 == 0 else None
            theirs = llama(arguments, directory, name)
            rounds.append((ours or quintet(arguments, directory, PAIRS[name]), theirs))
        for figure in rounds[0][0]:
            ours = statistics.median(o[figure][0] for o, _ in rounds)
            theirs = statistics.median(t[figure][0] for _, t in rounds)
            ratio = statistics.median(o[figure][0] / t[figure][0] for o, t in rounds)
            best = max(o[figure][1] for o, _ in rounds) / max(t[figure][1] for _, t in rounds)
            print(f"{name:5} {figure:12} quintet {ours:8.1f} tok/s  llama.cpp {theirs:8.1f} tok/s  ratio {ratio:.2f} "
                  f"(of the best {best:.2f})", flush=True)


if __name__ == "__main__":
    main()
