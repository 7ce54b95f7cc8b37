#!/usr/bin/env python3
"""SIGKILL of daemons under load, again and again: single ones, pairs and triples, all five.

usage: tests/chaos/kills.py [--single 200] [--several 100] [--all 20] [--seed N] [--set KEY=VALUE ...]

Sixteen clients stream greedy tokens without end. A kill comes when they have seen tokens, and the next one when all is ready
again and the clients have answers of the new life. What must hold: every answer that ends well has the bytes of an undisturbed
run, and one that is cut short has a beginning of them; scheduler, compute and memory lose nothing; a new request is answered within
a second of the engine being ready; at the end no block is held, and no daemon has more descriptors or much more memory than after the
first kill. Ends with a table; exit status 1 when anything does not hold."""
import argparse
import os
import pathlib
import random
import resource
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "system"))
from engine import SERVICES, Engine  # noqa: E402
from load import Load  # noqa: E402

PROMPTS = [list(range(10 + 25 * i, 40 + 27 * i)) for i in range(16)]
TOKENS = 60
LOSES_NOTHING = {"scheduler", "compute", "memory"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--single", type=int, default=200)
    parser.add_argument("--several", type=int, default=100)
    parser.add_argument("--all", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


def victims(options, draw):
    """(kind, services) of every kill, in a drawn order."""
    kills = [("single", [SERVICES[i % len(SERVICES)]]) for i in range(options.single)]
    kills += [("several", draw.sample(SERVICES, draw.choice([2, 3]))) for _ in range(options.several)]
    kills += [("all", list(SERVICES)) for _ in range(options.all)]
    draw.shuffle(kills)
    return kills


def footprint(engine):
    """Descriptors and resident bytes of each daemon."""
    found = {}
    for name, pid in engine.pids().items():
        pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
        found[name] = (len(os.listdir(f"/proc/{pid}/fd")), pages * resource.getpagesize())
    return found


def kill(engine, services):
    before = engine.epochs()
    pids = engine.pids()
    for name in services:
        try:
            os.kill(pids[name], signal.SIGKILL)
        except ProcessLookupError:
            pass
    engine.wait_reborn({name: before[name] for name in services})


class Findings:
    def __init__(self):
        self.wrong, self.lost, self.slow, self.waits = [], [], [], []

    def answers(self, load, expected, services, since):
        for index, status, ids in load.answers[since:]:
            if ids != expected[index][:len(ids)] or (status == 200 and len(ids) != TOKENS):
                self.wrong.append((services, index, status, ids))
            if status != 200 and set(services) <= LOSES_NOTHING:
                self.lost.append((services, index, status, len(ids)))

    def new_request(self, engine, services):
        begin = time.monotonic()
        engine.generate([1, 2, 3], 1)
        self.waits.append(time.monotonic() - begin)
        if self.waits[-1] > 1:
            self.slow.append((services, round(self.waits[-1], 3)))


def leaks(first, last):
    """What a daemon holds more than after the first kill: descriptors, or a third and 64 MiB of memory."""
    found = []
    for name in SERVICES:
        if last[name][0] > first[name][0] + 4:
            found.append(f"{name}: {first[name][0]} descriptors, then {last[name][0]}")
        if last[name][1] > first[name][1] * 4 // 3 + (64 << 20):
            found.append(f"{name}: {first[name][1] >> 20} MiB, then {last[name][1] >> 20} MiB")
    return found


def main():
    options = arguments()
    print(f"seed {options.seed}", flush=True)
    settings = dict(pair.split("=", 1) for pair in options.set)
    findings, begin = Findings(), time.monotonic()
    with Engine(**{key.replace(".", "__"): value for key, value in settings.items()}) as engine:
        expected = engine.generate_many(PROMPTS, TOKENS)
        kills = victims(options, random.Random(options.seed))
        first = None
        with Load(engine, PROMPTS, TOKENS) as load:
            for number, (kind, services) in enumerate(kills, 1):
                since = len(load.answers)
                load.wait_tokens(5 * len(PROMPTS))
                kill(engine, services)
                findings.new_request(engine, services)
                load.wait_answers(len(PROMPTS))
                findings.answers(load, expected, services, since)
                first = first or footprint(engine)
                if number % 20 == 0:
                    print(f"{number} of {len(kills)} kills, {len(load.answers)} answers, {len(findings.wrong)} wrong, "
                          f"{len(findings.lost)} lost, {len(findings.slow)} slow", flush=True)
            total = len(load.answers)
        engine.wait_for(lambda: engine.used_blocks() == 0, 60, "all blocks back")
        leaked = leaks(first, footprint(engine))
        after = engine.generate_many(PROMPTS, TOKENS)
    waits = sorted(findings.waits) or [0]
    print(f"""
kills                              {len(kills)} in {time.monotonic() - begin:.0f} s
answers                            {total}
with other bytes                   {len(findings.wrong)} {findings.wrong[:2]}
lost by scheduler, compute, memory {len(findings.lost)} {findings.lost[:2]}
a new request's wait, p50 and max  {waits[len(waits) // 2]:.3f} {waits[-1]:.3f} s; over 1 s: {len(findings.slow)} {findings.slow[:3]}
blocks held at the end             0
descriptors or memory lost         {leaked or "none"}
the same bytes afterwards          {after == expected}""")
    return 1 if findings.wrong or findings.lost or findings.slow or leaked or after != expected else 0


if __name__ == "__main__":
    sys.exit(main())
