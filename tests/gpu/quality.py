#!/usr/bin/env python3
"""bf16 on a GPU beside Hugging Face transformers in bf16, both against the float32 logits of the reference checkpoints: mean
Kullback-Leibler divergence over all prompt rows, how often the first choice is the same, and how much the mean negative log-likelihood
of the prompts' own tokens moves. Needs torch and transformers.

usage: tests/gpu/quality.py [FOLDER]     FOLDER holds check_golden (default build/cuda); exit status 1 when ours is worse"""
import json
import pathlib
import re
import subprocess
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LINE = re.compile(r"tests/golden/(\w+)\s+\S+\s+bf16: KL (\S+) nats, first choice the same in (\S+) % of (\d+) rows, NLL (\S+)")
NLL_NOISE = 2e-3  # nats of a hundred tokens, where rounding moves some up and some down
WORSE = 1.15  # rounding falls one way or the other; more than this on many rows is no accident


def weights_of(name):
    return ROOT / {"default": "deploy/models/default", "dynamic": "tests/golden/qwen2"}.get(name, f"tests/golden/{name}")


def reference(name):
    folder = ROOT / "tests/golden" / name
    config = AutoConfig.from_pretrained(folder if (folder / "config.json").exists() else weights_of(name))
    model = AutoModelForCausalLM.from_pretrained(weights_of(name), config=config, dtype=torch.bfloat16,
                                                 attn_implementation="eager").cuda().eval()
    expected = load_file(folder / "golden.safetensors")
    divergence, same, rows, moved, scored = 0.0, 0, 0, 0.0, 0
    for i, case in enumerate(json.loads((folder / "golden.json").read_text())["cases"]):
        want = expected[f"logits_{i}"].cuda().double()
        with torch.no_grad():
            got = model(torch.tensor([case["prompt_ids"]], device="cuda")).logits[0, -len(want):].double()
        p, q = want.log_softmax(-1), got.log_softmax(-1)
        divergence += (p.exp() * (p - q)).sum().item()
        same += (want.argmax(-1) == got.argmax(-1)).sum().item()
        rows += len(want)
        targets = torch.tensor(case["prompt_ids"], device="cuda")[len(case["prompt_ids"]) - len(want) + 1:, None]
        moved += (p[:-1].gather(1, targets) - q[:-1].gather(1, targets)).sum().item()
        scored += len(targets)
    return divergence / rows, 100 * same / rows, rows, moved / max(scored, 1)


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build/cuda")
    done = subprocess.run([str(folder / "check_golden")], cwd=ROOT, capture_output=True, text=True)
    ours = {name: (float(kl), float(same), int(rows), float(nll)) for name, kl, same, rows, nll in LINE.findall(done.stdout)}
    if not ours:
        sys.exit(f"check_golden printed no divergence:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    worse = 0
    print(f"{'model':10} {'rows':>5} {'KL ours':>10} {'KL HF':>10} {'ratio':>6} {'same ours':>9} {'same HF':>8} {'NLL ours':>9} {'NLL HF':>9}")
    for name, (kl, same, rows, nll) in ours.items():
        other, other_same, other_rows, other_nll = reference(name)
        assert rows == other_rows, (name, rows, other_rows)
        worse += kl > other * WORSE or nll > max(other_nll * WORSE, NLL_NOISE)
        print(f"{name:10} {rows:5} {kl:10.3g} {other:10.3g} {kl / other:6.2f} {same:8.1f}% {other_same:7.1f}% {nll:+9.5f} {other_nll:+9.5f}",
              flush=True)
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
