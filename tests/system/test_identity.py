"""The same ids whatever runs beside a request, however its prompt is cut, with and without lookahead, in five processes
or one. Greedy and seeded sampling."""
import concurrent.futures
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
        engine.wait_for(lambda: engine.used_blocks() == 0, 30, "all blocks back")


# ---- scores of prompts: what evaluation harnesses send ----


def scored(engine, ids):
    """Log-probabilities and alternatives of every token of the prompt, and of one generated token."""
    body = {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 2, "temperature": 0, "ignore_eos": True}
    logprobs = engine.post("/v1/completions", body)["choices"][0]["logprobs"]
    return logprobs["token_logprobs"], logprobs["top_logprobs"]


def scored_prompts():
    """Of many chunks; some share their beginning with each other, and all of it with requests that ask for no scores."""
    dice = random.Random(4)
    text = [dice.randrange(4, VOCABULARY) for _ in range(600)]
    return [text[:n] + [dice.randrange(4, VOCABULARY) for _ in range(600 - n)] for n in (0, 0, 16, 100, 256, 400, 599, 600)]


@pytest.fixture(scope="module")
def scores_alone():
    with Engine(scheduler__lookahead=0, scheduler__max_sequences=1, memory__prefix_cache="false") as engine:
        return [scored(engine, ids) for ids in scored_prompts()]


@pytest.mark.parametrize("failpoints, settings", [
    ("", {}),
    ("", {"scheduler.prefill_chunk_tokens": 33, "scheduler.lookahead": 0}),
    # So few blocks that prompts are preempted and scored again: 100 of 16 tokens.
    ("", {"memory.kv_bytes": 100 * 16 * 8192, "scheduler.prefill_chunk_tokens": 64}),
    ("compute.after_step:7:kill:1", {"scheduler.prefill_chunk_tokens": 64}),
    ("scheduler.after_result:9:kill:1", {"scheduler.prefill_chunk_tokens": 64}),
    ("memory.after_lease:5:kill:1", {"scheduler.prefill_chunk_tokens": 64}),
    ("compute.before_step:5:kill:1,scheduler.after_result:9:kill:1,memory.after_lease:9:kill:1",
     {"scheduler.prefill_chunk_tokens": 64, "memory.kv_bytes": 100 * 16 * 8192}),
], ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value)
def test_identity_of_scores_of_many_chunked_prompts_together_and_alone(alone, scores_alone, failpoints, settings):
    with Engine(failpoints=failpoints, **settings) as engine:
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            streams = [pool.submit(engine.generate, ids, TOKENS) for ids in prompts()[:8] + scored_prompts()[-1:]]
            scores = [pool.submit(scored, engine, ids) for ids in scored_prompts()]
            assert [job.result() for job in scores] == scores_alone
            assert [job.result() for job in streams[:8]] == alone[0][:8]
        assert len(engine.fired()) == len([point for point in failpoints.split(",") if point])
        engine.wait_for(lambda: engine.used_blocks() == 0, 30, "all blocks back")


# ---- bad words of several tokens, log-probabilities by id: both live in the slot, and are told again ----


def words_of(engine, ids):
    """Words of two and three tokens that the ids have."""
    found = []
    for at in range(len(ids) - 3):
        for count in (2, 3):
            word = engine.post("/detokenize", {"tokens": ids[at:at + count]})["prompt"]
            if not word.strip() or "\ufffd" in word:
                continue
            for text in (word.lstrip(), " " + word.lstrip()):
                if engine.post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"] == ids[at:at + count]:
                    found.append(word)
    return found[:16]


def listed(engine, ids, words):
    """Ids, and the log-probabilities of some tokens at every position of prompt and answer."""
    sampling = {"temperature": 0, "ignore_eos": True, "max_new_tokens": TOKENS, "bad_words": words}
    reply = engine.post("/generate", {"input_ids": ids, "sampling_params": sampling, "return_logprob": True,
                                      "logprob_start_len": 0, "top_logprobs_num": 2, "token_ids_logprob": [9, 4, ids[0]]})
    meta = reply["meta_info"]
    assert {tuple(e[1] for e in row) for row in meta["output_token_ids_logprobs"]} == {(9, 4, ids[0])}
    names = [side + name for side in ("input", "output") for name in ("_token_logprobs", "_top_logprobs", "_token_ids_logprobs")]
    return reply["output_ids"], [meta[name] for name in names]


@pytest.fixture(scope="module")
def listed_alone():
    """Words of each prompt, and what it answers without them."""
    with Engine(scheduler__lookahead=0, scheduler__max_sequences=1, memory__prefix_cache="false") as engine:
        greedy = [engine.generate(ids, TOKENS) for ids in prompts()]
        words = [words_of(engine, ids) for ids in greedy]
        answers = [listed(engine, ids, words) for ids, words in zip(prompts(), words)]
    others = sum(bool(w) and answer[0] != ids for w, ids, answer in zip(words, greedy, answers))
    assert others >= 4, "the words must change answers"
    return words, answers


@pytest.mark.parametrize("failpoints, settings", [
    ("", {}),
    ("", {"scheduler.lookahead": 0, "scheduler.prefill_chunk_tokens": 7}),
    # So few blocks that sequences are preempted and run again: what they generated is restored into a slot.
    ("", {"memory.kv_bytes": 60 * 16 * 8192}),
    ("compute.after_step:12:kill:1", {}),
    ("scheduler.after_result:14:kill:1", {"scheduler.prefill_chunk_tokens": 64}),
    ("memory.after_lease:6:kill:1", {"scheduler.prefill_chunk_tokens": 64}),
    ("compute.before_step:9:kill:1,scheduler.after_result:17:kill:1,memory.after_lease:9:kill:1",
     {"scheduler.prefill_chunk_tokens": 64, "memory.kv_bytes": 60 * 16 * 8192}),
], ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value)
def test_identity_of_bad_words_and_logprobs_by_id_together_and_alone(listed_alone, failpoints, settings):
    words, answers = listed_alone
    with Engine(failpoints=failpoints, **settings) as engine:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            jobs = [pool.submit(listed, engine, ids, each) for ids, each in zip(prompts(), words)]
            for job, answer in zip(jobs, answers):
                assert job.result() == answer
        assert len(engine.fired()) == len([point for point in failpoints.split(",") if point])
