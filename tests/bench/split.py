#!/usr/bin/env python3
"""What the split costs: tokens/s of five processes (ipc) over five threads (inproc), greedy, batch 1 and 16, and the time per
hop, of hops with at least 100 messages (about three rounds). Rounds alternate between the two so that both see the same
machine; the figure is the median of their ratios.

usage: tests/bench/split.py [ROUNDS] [--model DIR] [--tokens N] [--set KEY=VALUE]...

DIR is a model directory (default: the bundled model, whose step is a millisecond). One with config.json alone, as those in
deploy/shapes, gets dummy weights: what a model of that size would see. N tokens are made by each sequence of a round."""
import argparse
import pathlib
import re
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "system"))
from engine import Engine  # noqa: E402

PROMPT = list(range(100, 116))


def tokens_per_second(engine, batch, tokens):
    begin = time.monotonic()
    engine.generate_many([PROMPT[:-1] + [200 + i] for i in range(batch)], tokens)
    return batch * tokens / (time.monotonic() - begin)


def hops(engine):
    """Median time of every hop in microseconds, from the histograms on /metrics."""
    rows = {}
    pattern = re.compile(r'quintet_hop_from_(\w+)_seconds_bucket\{service="(\w+)",le="([^"]+)"[^}]*\} (\d+)')
    for source, service, bound, count in pattern.findall(engine.get("/metrics")):
        rows.setdefault((source, service), []).append((float(bound), int(count)))
    for (source, service), buckets in sorted(rows.items()):
        total = buckets[-1][1]
        if total < 100:
            continue
        below = 0.0, 0
        for bound, count in buckets:
            if count >= total / 2:
                inside = (total / 2 - below[1]) / max(count - below[1], 1)
                yield source, service, 1e6 * (below[0] + (bound - below[0]) * inside), total
                break
            below = bound, count


def settings(arguments):
    pairs = dict(pair.split("=", 1) for pair in arguments.set)
    if arguments.model:
        pairs["model.path"] = arguments.model.resolve()
        if not list(arguments.model.glob("*.safetensors")):
            pairs["model.load_format"] = "dummy"
    return {key.replace(".", "__"): value for key, value in pairs.items()}


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=7)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    rounds, tokens, pairs = arguments.rounds, arguments.tokens, settings(arguments)
    print(f"{arguments.model or 'bundled model'}, {tokens} tokens a sequence, {rounds} rounds")
    with Engine(**pairs) as ipc, Engine("--inproc", **pairs) as inproc:
        for engine in (ipc, inproc):
            tokens_per_second(engine, 16, tokens)
        for batch in (1, 16):
            ratios = []
            for i in range(rounds):
                order = (ipc, inproc) if i % 2 == 0 else (inproc, ipc)
                speed = {id(engine): tokens_per_second(engine, batch, tokens) for engine in order}
                ratios.append((speed[id(ipc)], speed[id(inproc)]))
            ratio = statistics.median(a / b for a, b in ratios)
            print(f"batch {batch:2}: ipc {statistics.median(a for a, _ in ratios):7.1f} tok/s, "
                  f"inproc {statistics.median(b for _, b in ratios):7.1f} tok/s, ipc/inproc {ratio:.3f}")
        for name, engine in (("ipc", ipc), ("inproc", inproc)):
            for source, service, microseconds, count in hops(engine):
                print(f"{name:6} {source:9} > {service:9} p50 {microseconds:7.1f} us  ({count} messages)")


if __name__ == "__main__":
    main()
