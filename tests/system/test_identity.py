"""The same ids whatever runs beside a request, however its prompt is cut, with and without lookahead, in five processes
or one. Greedy and seeded sampling."""
import random

import pytest

from engine import Engine

VOCABULARY = 4096
TOKENS = 24


def prompts():
    dice = random.Random(20)
    lengths = [1, 2, 15, 16, 17, 31, 33, 64, 100, 129, 200, 257, 5, 48, 80, 300]
    return [[dice.randrange(4, VOCABULARY) for _ in range(n)] for n in lengths]


@pytest.fixture(scope="module")
def alone():
    """One at a time, plain settings."""
    with Engine(scheduler__lookahead=0, scheduler__max_sequences=1, memory__prefix_cache="false") as engine:
        greedy = [engine.generate(ids, TOKENS) for ids in prompts()]
        seeded = [engine.generate(ids, TOKENS, temperature=0.9, top_p=0.9, top_k=50, seed=i) for i, ids in enumerate(prompts())]
    assert len({tuple(ids) for ids in greedy}) > 8, "the prompts must lead to different outputs"
    return greedy, seeded


@pytest.mark.parametrize("arguments, settings", [
    ([], {}),
    ([], {"scheduler.lookahead": 0}),
    ([], {"scheduler.prefill_chunk_tokens": 7}),
    ([], {"scheduler.prefill_chunk_tokens": 64, "scheduler.max_step_tokens": 65}),
    ([], {"scheduler.policy": "priority"}),
    ([], {"compute.threads": 1}),
    (["--inproc"], {}),
    (["--inproc"], {"scheduler.lookahead": 0, "scheduler.prefill_chunk_tokens": 33}),
    ([], {"up.composed": "tokenizer,scheduler"}),
    # So few blocks that sequences are preempted and run again: 60 blocks of 16 hold 960 of 1682 tokens.
    ([], {"memory.kv_bytes": 60 * 16 * 8192}),
], ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else " ".join(value))
def test_identity_of_sixteen_together_and_each_alone(alone, arguments, settings):
    with Engine(*arguments, **settings) as engine:
        assert engine.generate_many(prompts(), TOKENS) == alone[0]
        for i, ids in enumerate(prompts()):
            assert engine.generate(ids, TOKENS, temperature=0.9, top_p=0.9, top_k=50, seed=i) == alone[1][i]
        assert engine.used_blocks() == 0
