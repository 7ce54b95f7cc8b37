#!/usr/bin/env python3
"""What lm-eval does, while daemons die: 64 prompts of 600 ids, echo and logprobs, sixteen at once, beside eight streams.

usage: tests/chaos/scoring.py [--prompts 64] [--ids 600] [--set KEY=VALUE ...]

Compute, scheduler and memory are each killed once meanwhile. All must complete, with the scores that each prompt has alone."""
import argparse
import concurrent.futures
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "system"))
from engine import Engine  # noqa: E402
from load import Load  # noqa: E402

STREAMS = [list(range(5 + 30 * i, 30 + 33 * i)) for i in range(8)]
STREAM_TOKENS = 100


def score(engine, ids):
    reply = engine.post("/v1/completions", {"prompt": ids, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1})
    return reply["choices"][0]["logprobs"]["token_logprobs"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--ids", type=int, default=600)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    draw = random.Random(11)
    prompts = [[draw.randrange(10, 4000) for _ in range(options.ids)] for _ in range(options.prompts)]
    settings = dict(pair.split("=", 1) for pair in options.set)
    with Engine(**{key.replace(".", "__"): value for key, value in settings.items()}) as engine:
        expected = engine.generate_many(STREAMS, STREAM_TOKENS)
        alone = [score(engine, ids) for ids in prompts]
        engine.post("/flush_cache", {})
        wrong = []
        with Load(engine, STREAMS, STREAM_TOKENS) as load, concurrent.futures.ThreadPoolExecutor(16) as pool:
            jobs = [pool.submit(score, engine, ids) for ids in prompts]
            for service in ("compute", "scheduler", "memory"):
                load.wait_tokens(8 * len(STREAMS))
                before = engine.epochs()[service]
                engine.kill(service)
                engine.wait_reborn({service: before})
            together = [job.result() for job in jobs]
            load.wait_answers(len(STREAMS))
        wrong += [i for i, (one, other) in enumerate(zip(alone, together)) if one != other]
        cut = [answer for answer in load.answers if answer[1] != 200]
        other = [index for index, status, ids in load.answers if status == 200 and ids != expected[index]]
    print(f"""prompts scored                {len(together)} of {options.ids} ids
scores unlike those alone     {len(wrong)} {wrong[:8]}
streams completed             {len(load.answers) - len(cut)}, cut short {len(cut)}, with other bytes {len(other)}""")
    return 1 if wrong or cut or other else 0


if __name__ == "__main__":
    sys.exit(main())
