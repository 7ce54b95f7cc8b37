"""Logits of the reference checkpoints under sparsity masks, by the rules of kernels/kernels.h applied to transformers' own scores.

Needs torch and transformers; run from the root of the tree. Writes cases.json and golden.safetensors beside itself: for each
checkpoint and mask the logits of the last rows of IDS, in float32."""
import json
import math
import pathlib

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.masking_utils import AttentionMaskInterface, eager_mask

HERE = pathlib.Path(__file__).parent
FAMILIES = ["llama3", "mistral", "gemma2", "mixtral", "qwen3", "gpt2"]
ROWS = 4
IDS = [(37 * i + 11) % 509 for i in range(60)]
BLOCK = 16
MASKS = {
    "top_k": [{"kind": "top_k", "k": 5}],
    "threshold": [{"kind": "threshold", "value": 0.02}],
    "ratio": [{"kind": "ratio", "value": 0.8}],
    "window": [{"kind": "window", "window": 7}],
    "sink_window": [{"kind": "sink_window", "sinks": 2, "window": 6}],
    "block_top_k": [{"kind": "block_top_k", "k": 2}],
    "top_k and threshold": [{"kind": "top_k", "k": 32}, {"kind": "threshold", "value": 0.015}],
    "a layer's head": [{"kind": "top_k", "k": 2, "layer_from": 1, "layer_to": 2, "head_from": 1, "head_to": 2}],
}
rules = []  # in force


def row_keeps(scores, position, layer, head):
    """Which of a row's scores are seen; those that causality and the model's window leave out are -inf already."""
    mine = [r for r in rules if r.get("layer_from", 0) <= layer < (r.get("layer_to", 0) or 1 << 30)
            and r.get("head_from", 0) <= head < (r.get("head_to", 0) or 1 << 30)]
    places = torch.arange(len(scores))
    candidates = scores > -1e30
    for rule in mine:
        if rule["kind"] in ("window", "sink_window"):
            candidates &= (places > position - rule["window"]) | (places < rule.get("sinks", 0))
    open_scores = torch.where(candidates, scores, torch.tensor(-math.inf))
    order = torch.sort(open_scores, descending=True, stable=True).indices
    rank = torch.empty_like(order)
    rank[order] = places
    count = int(candidates.sum())
    weights = torch.softmax(open_scores, 0)
    seen = candidates.clone()
    for rule in mine:
        if rule["kind"] == "top_k":
            seen &= rank < rule["k"]
        elif rule["kind"] == "ratio":
            seen &= rank < max(1, math.ceil((1 - rule["value"]) * count - 1e-6))
        elif rule["kind"] == "threshold":
            seen &= (weights >= rule["value"]) | (rank == 0)
        elif rule["kind"] == "block_top_k":
            best = {}
            for place in places[candidates].tolist():
                best[place // BLOCK] = max(best.get(place // BLOCK, -math.inf), float(open_scores[place]))
            kept = sorted(best, key=lambda block: (-best[block], block))[:rule["k"]]
            seen &= torch.tensor([place // BLOCK in kept for place in places.tolist()])
    return seen


def masked(module, query, key, value, attention_mask, scaling=None, dropout=0.0, softcap=None, **unused):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + attention_mask[:, :, :, :key.shape[2]]
    for head in range(scores.shape[1]):
        for position in range(scores.shape[2]):
            row = scores[0, head, position]
            row[~row_keeps(row, position, module.layer_idx, head)] = -math.inf
    return (torch.softmax(scores, -1) @ value).transpose(1, 2).contiguous(), None


def main():
    AttentionInterface.register("quintet_masked", masked)
    AttentionMaskInterface.register("quintet_masked", eager_mask)
    tensors, cases = {}, []
    for family in FAMILIES:
        folder = HERE.parent / family
        golden = json.loads((folder / "golden.json").read_text())
        detail = golden["detail_case"]
        ids = golden["cases"][detail]["prompt_ids"]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="quintet_masked").eval()
        for name, these in {"none": [], **MASKS}.items():
            rules[:] = these
            with torch.no_grad():
                logits = model(torch.tensor([ids if name == "none" else IDS])).logits[0]
            if name == "none":  # the way here gives what the other goldens say
                with safe_open(folder / "golden.safetensors", "pt") as file:
                    assert (file.get_tensor(f"logits_{detail}")[-1] - logits[-1]).abs().max() < 1e-4, family
                continue
            key = f"{family}.{len(cases)}"
            tensors[key] = logits[-ROWS:].float().contiguous()
            cases.append({"model": family, "mask": name, "rules": these, "tensor": key})
        print(family)
    save_file(tensors, HERE / "golden.safetensors")
    (HERE / "cases.json").write_text(json.dumps({"ids": IDS, "rows": ROWS, "cases": cases}, indent=1) + "\n")


main()
