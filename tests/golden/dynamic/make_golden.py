#!/usr/bin/env python3
"""Makes golden.json and golden.safetensors of this folder: the weights of ../qwen2 under a dynamic rope.

An implementation apart from the kernels: plain Python in double precision, rope as transformers does it with a cache
(modeling_rope_utils, dynamic_rope_update): a prompt is computed at once with the base of its length, each further token
with the base of its own position + 1, and cached keys keep the angles they were written with.

    ./make_golden.py            writes the two files (a minute)
    ./make_golden.py --check    computes ../qwen2's own first cases and compares, to trust this file's network
"""
import json
import math
import operator
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
WEIGHTS = os.path.join(HERE, "..", "qwen2")
GREEDY_TOKENS = 20
ROWS_KEPT = 4


def f32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def read_safetensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        raw = data[entry["data_offsets"][0]:entry["data_offsets"][1]]
        if entry["dtype"] == "BF16":
            words = struct.unpack(f"<{len(raw) // 2}H", raw)
            values = struct.unpack(f"<{len(words)}f", struct.pack(f"<{len(words)}I", *(w << 16 for w in words)))
        else:
            values = struct.unpack(f"<{len(raw) // 4}f", raw)
        width = entry["shape"][-1]
        tensors[name] = [values[i:i + width] for i in range(0, len(values), width)] if len(entry["shape"]) == 2 \
            else values
    return tensors


def dot(a, b):
    return sum(map(operator.mul, a, b))


def project(x, weight, bias=None):
    return [dot(x, row) + (bias[i] if bias else 0.0) for i, row in enumerate(weight)]


def norm(x, weight, eps):
    scale = 1 / math.sqrt(dot(x, x) / len(x) + eps)
    return [v * scale * w for v, w in zip(x, weight)]


class Model:
    def __init__(self, config, tensors):
        self.config, self.tensors = config, tensors
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.dim = config["hidden_size"] // self.heads
        rope = config.get("rope_parameters") or config
        self.theta = rope["rope_theta"]
        self.scaling = config.get("rope_scaling")
        self.cache = [([], []) for _ in range(config["num_hidden_layers"])]

    def frequencies(self, length):
        theta, limit = self.theta, self.config["max_position_embeddings"]
        if self.scaling:
            factor = self.scaling["factor"]
            theta *= (factor * max(length, limit) / limit - (factor - 1)) ** (self.dim / (self.dim - 2))
        return [f32(theta ** (-2 * i / self.dim)) for i in range(self.dim // 2)]

    def rotate(self, x, position, frequencies):
        half = self.dim // 2
        for i in range(half):
            angle = f32(position * frequencies[i])
            c, s = math.cos(angle), math.sin(angle)
            x[i], x[i + half] = x[i] * c - x[i + half] * s, x[i + half] * c + x[i] * s

    def attention(self, layer, x, position, frequencies):
        name = f"model.layers.{layer}.self_attn."
        q, k, v = (project(x, self.tensors[f"{name}{p}_proj.weight"], self.tensors[f"{name}{p}_proj.bias"])
                   for p in "qkv")
        split = lambda a, n: [a[i * self.dim:(i + 1) * self.dim] for i in range(n)]
        q, k, v = split(q, self.heads), split(k, self.kv_heads), split(v, self.kv_heads)
        for head in q + k:
            self.rotate(head, position, frequencies)
        keys, values = self.cache[layer]
        keys.append(k)
        values.append(v)
        out = []
        for h in range(self.heads):
            g = h * self.kv_heads // self.heads
            scores = [dot(q[h], key[g]) / math.sqrt(self.dim) for key in keys]
            best = max(scores)
            weights = [math.exp(s - best) for s in scores]
            total = sum(weights)
            out += [sum(w * value[g][d] for w, value in zip(weights, values)) / total for d in range(self.dim)]
        return project(out, self.tensors[name + "o_proj.weight"])

    def mlp(self, layer, x):
        name = f"model.layers.{layer}.mlp."
        gate = project(x, self.tensors[name + "gate_proj.weight"])
        up = project(x, self.tensors[name + "up_proj.weight"])
        return project([g / (1 + math.exp(-g)) * u for g, u in zip(gate, up)], self.tensors[name + "down_proj.weight"])

    def token(self, token, position, length):
        """Logits after one more token of a sequence that is `length` tokens long as this forward pass sees it."""
        frequencies, eps = self.frequencies(length), self.config["rms_norm_eps"]
        x = list(self.tensors["model.embed_tokens.weight"][token])
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            normed = norm(x, self.tensors[name + "input_layernorm.weight"], eps)
            x = list(map(operator.add, x, self.attention(layer, normed, position, frequencies)))
            normed = norm(x, self.tensors[name + "post_attention_layernorm.weight"], eps)
            x = list(map(operator.add, x, self.mlp(layer, normed)))
        return project(norm(x, self.tensors["model.norm.weight"], eps), self.tensors["model.embed_tokens.weight"])


def run(config, tensors, prompt, greedy_tokens):
    model = Model(config, tensors)
    rows = [model.token(token, i, len(prompt)) for i, token in enumerate(prompt)]
    logits, ids, margins, logprobs = rows[-1], [], [], []
    for step in range(greedy_tokens):
        first, second = sorted(logits, reverse=True)[:2]
        ids.append(logits.index(first))
        margins.append(first - second)
        logprobs.append(-math.log(sum(math.exp(v - first) for v in logits)))
        if step + 1 < greedy_tokens:
            logits = model.token(ids[-1], len(prompt) + step, len(prompt) + step + 1)
    return rows, {"prompt_ids": prompt, "greedy_ids": ids, "greedy_margin": [round(m, 5) for m in margins],
                  "greedy_logprobs": [round(p, 6) for p in logprobs]}


def check(tensors):
    config = json.load(open(os.path.join(WEIGHTS, "config.json")))
    golden = json.load(open(os.path.join(WEIGHTS, "golden.json")))
    for case in golden["cases"][:3]:
        _, made = run(config, tensors, case["prompt_ids"], 6)
        assert made["greedy_ids"] == case["greedy_ids"][:6], (made["greedy_ids"], case["greedy_ids"])
        worst = max(abs(a - b) for a, b in zip(made["greedy_logprobs"], case["greedy_logprobs"]))
        print(f"{len(case['prompt_ids'])} tokens: log-probabilities differ by {worst:.1e} at most")
        assert worst < 2e-5


def write(tensors):
    config = json.load(open(os.path.join(HERE, "config.json")))
    cases, header, body = [], {}, b""
    for number, length in enumerate([7, 24, 33, 80]):
        prompt = [(37 * i * i + 11 * i + 5 * length) % config["vocab_size"] for i in range(length)]
        rows, case = run(config, tensors, prompt, GREEDY_TOKENS)
        kept = rows[-ROWS_KEPT:]
        raw = b"".join(struct.pack(f"<{len(row)}f", *row) for row in kept)
        header[f"logits_{number}"] = {"dtype": "F32", "shape": [len(kept), len(kept[0])],
                                      "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
        cases.append(case)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(HERE, "golden.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + body)
    with open(os.path.join(HERE, "golden.json"), "w") as file:
        json.dump({"cases": cases}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    checkpoint = read_safetensors(os.path.join(WEIGHTS, "model.safetensors"))
    check(checkpoint) if "--check" in sys.argv[1:] else write(checkpoint)
