#!/usr/bin/env python3
"""One sequence decoded by Hugging Face generate and by Quintet's five daemons, the same shape in bf16 on the same GPU: time per token,
and the ratio. A growing cache, launch by launch, first; then a static cache, which generate compiles. Needs torch and transformers.

usage: tests/gpu/hugging_face.py [FOLDER] [SHAPE...]     SHAPE: 1B, 8B (both)"""
import pathlib
import statistics
import sys
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import serve  # noqa: E402

CONTEXT, TOKENS = 1024, 128


def seconds_per_token(model, ids, **options):
    def run(tokens):
        torch.cuda.synchronize()
        begin = time.monotonic()
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, **options)
        torch.cuda.synchronize()
        return time.monotonic() - begin
    run(1), run(TOKENS + 1)  # a static cache is compiled for its length
    return (run(TOKENS + 1) - run(1)) / TOKENS


def hugging_face(shape):
    config = AutoConfig.from_pretrained(serve.ROOT / serve.SHAPES[shape])
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        ids = torch.arange(100, 100 + CONTEXT)[None]
    yield "generate", lambda: seconds_per_token(model, ids)
    yield "generate, static cache, compiled", lambda: seconds_per_token(model, ids, cache_implementation="static")


def quintet(shape):
    with serve.dummy(shape, scheduler__max_sequences="16", model__max_model_len="4096", scheduler__max_step_tokens="2048",
                     scheduler__prefill_chunk_tokens="2048") as engine:
        ids = list(range(100, 100 + CONTEXT))

        def run(tokens):
            begin = time.monotonic()
            assert len(engine.generate(ids, tokens)) == tokens
            return time.monotonic() - begin
        run(1), run(TOKENS + 1)  # the prompt is cached, the step recorded
        return statistics.median(run(TOKENS + 1) - run(1) for _ in range(5)) / TOKENS


def main():
    shapes = [word for word in sys.argv[1:] if word in serve.SHAPES] or list(serve.SHAPES)
    folders = [word for word in sys.argv[1:] if word not in serve.SHAPES]
    serve.engine_module.BUILD = pathlib.Path(folders[0] if folders else serve.ROOT / "build/cuda").resolve()
    for shape in shapes:
        ours = quintet(shape)
        print(f"{shape} quintet, five daemons: {ours * 1e6:.0f} us a token", flush=True)
        for name, measure in hugging_face(shape):
            try:
                theirs = measure()
                print(f"{shape} {name}: {theirs * 1e6:.0f} us a token, {theirs / ours:.1f} times ours", flush=True)
            except Exception as error:  # what this machine cannot run is said, and the rest goes on
                print(f"{shape} {name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
