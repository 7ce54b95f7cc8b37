#!/usr/bin/env python3
"""Encoding speed beside Hugging Face `tokenizers`, one thread each, the same tokenizer.json and text in the same run.

usage: PYTHON tests/bench/tokenizer.py [--tokenizer FILE] [--text FILE] [--rounds N]

PYTHON needs `tokenizers` (tests/bench/requirements.txt). Default: GPT-2's vocabulary; the text is this project's own C,
Python and documentation with the multilingual texts of the golden tests strewn in.

warm  MB/s of the whole text in documents of 16 KiB and of 1 MiB, the better of both; for `tokenizers` also the better
      of encode and encode_batch_fast (no offsets); the ratio is the median of alternating rounds
cold  median time of a 2 KiB prompt not seen before, in a process that has encoded other text; by kind of text"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizers  # noqa: E402  (reads the variables above)

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests/golden/tokenizers"
DOCUMENTS = 16 << 10, 1 << 20
PROMPT_BYTES = 2048


def pieces(text, size):
    """The text in pieces of at most `size` bytes, cut between characters as `quintet bench tokenizer` cuts."""
    data, start = text.encode(), 0
    while start < len(data):
        end = min(start + size, len(data))
        while end < len(data) and end > start + 1 and data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[start:end].decode()
        start = end


def sources(*patterns):
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return "".join((ROOT / path).read_text() for path in listed.stdout.splitlines() if (ROOT / path).exists())


def mixed_text():
    code, multilingual = sources("*.c", "*.h", "*.py", "*.md"), json.loads((GOLDEN / "texts.json").read_text())["multi"]
    parts = list(pieces(code, len(code) // len(multilingual)))
    return "".join(a + b for a, b in zip(parts, multilingual + [""] * len(parts)))


def ours(arguments, path, document, warm=0, seconds=0.5):
    command = [ROOT / "build/quintet", "bench", "tokenizer", "--json", "--tokenizer", arguments.tokenizer, "--text",
               path, "--document", str(document), "--warm", str(warm), "--prompt", str(PROMPT_BYTES), "--seconds",
               str(seconds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def theirs(tokenizer, documents, size):
    """Bytes per second, the better way, and the number of tokens."""
    best, count = 0, 0
    for encode in (lambda: [tokenizer.encode(d, add_special_tokens=False) for d in documents],
                   lambda: tokenizer.encode_batch_fast(documents, add_special_tokens=False)):
        begin = time.perf_counter()
        encoded = encode()
        best = max(best, size / (time.perf_counter() - begin))
        count = sum(len(e.ids) for e in encoded)
    return best, count


def warm(arguments, tokenizer, text, path):
    size, ratios, speeds = len(text.encode()), [], []
    cut = {document: list(pieces(text, document)) for document in DOCUMENTS}
    theirs(tokenizer, cut[DOCUMENTS[0]], size)
    for _ in range(arguments.rounds):
        mine, other = 0, 0
        for document in DOCUMENTS:
            report = ours(arguments, path, document)
            speed, count = theirs(tokenizer, cut[document], size)
            assert report["tokens"] == count, (document, report["tokens"], count)
            mine, other = max(mine, report["warm_bytes_per_second"]), max(other, speed)
        ratios.append(mine / other)
        speeds.append((mine, other))
    mine, other = (statistics.median(s[i] for s in speeds) / 1e6 for i in (0, 1))
    print(f"warm   quintet {mine:6.1f} MB/s  tokenizers {tokenizers.__version__} {other:5.2f} MB/s  "
          f"ratio {statistics.median(ratios):.1f}  ({size} bytes)", flush=True)


def cold(arguments, tokenizer, name, before, text):
    """Prompts of `text` after `before` was encoded."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(before + text)
        file.flush()
        report = ours(arguments, file.name, DOCUMENTS[1], len(before.encode()), 0.01)
    times = []
    for prompt in pieces(text, PROMPT_BYTES):
        begin = time.perf_counter()
        tokenizer.encode(prompt, add_special_tokens=False)
        times.append(time.perf_counter() - begin)
    new, last, emptied = (report[key] * 1e6 for key in ("new_p50_s", "new_p99_s", "forgotten_p50_s"))
    print(f"cold   {name:12} quintet p50 {new:6.1f} us (p99 {last:.1f}; cache emptied: p50 {emptied:.1f})  "
          f"tokenizers p50 {statistics.median(times) * 1e6:6.0f} us  ({report['prompts']} prompts)", flush=True)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--tokenizer", default=str(GOLDEN / "gpt2.tokenizer.json"))
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    tokenizer = tokenizers.Tokenizer.from_file(arguments.tokenizer)
    text = arguments.text.read_text() if arguments.text else mixed_text()
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        warm(arguments, tokenizer, text, file.name)
    half = len(text) // 2
    cold(arguments, tokenizer, "mixed", text[:half], text[half:])
    if not arguments.text:
        documentation = sources("*.md")
        cold(arguments, tokenizer, "English", text[:half], documentation)
        cold(arguments, tokenizer, "multilingual", text[:half].encode("ascii", "ignore").decode(),
             "".join(json.loads((GOLDEN / "texts.json").read_text())["multi"]))


if __name__ == "__main__":
    main()
