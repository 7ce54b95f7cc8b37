#!/usr/bin/env python3
"""Seeds of fuzz_tokenizer_json: small tokenizers that between them use every kind of component, each with a text. A seed
is the tokenizer.json, a zero byte, the text.

usage: tests/fuzz/make_seeds_tokenizer_json.py FOLDER"""
import json
import pathlib
import sys

PIECES = ["a", "b", "c", "d", "e", "h", "l", "o", "▁", "<", ">", "s", "'", "Ġ", "Ã", "©", "!", "1", "▁h", "he", "ll",
          "hell", "hello", "Ġa", "ab"]
MERGES = [["▁", "h"], ["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"], ["Ġ", "a"], ["a", "b"]]
WORDS = {"type": "BPE", "vocab": {piece: i for i, piece in enumerate(PIECES)}, "merges": MERGES}
BYTES = {f"<0x{byte:02X}>": 100 + byte for byte in range(256)}
BEGIN = {"id": 0, "content": "<s>", "special": True, "normalized": False}


def split(pattern, behavior, invert):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def replace(kind, pattern, content):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

SEEDS = {
    # name: text, model, the components that are not null
    "gpt2": ("hello ab <s>é 1!", WORDS, {
        "added_tokens": [BEGIN], "pre_tokenizer": BYTE_LEVEL, "decoder": {"type": "ByteLevel"}}),
    "llama2": ("hello ab é<s>", {**WORDS, "vocab": {**WORDS["vocab"], **BYTES}, "byte_fallback": True, "fuse_unk": True,
                                 "unk_token": "a"}, {
        "added_tokens": [BEGIN],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                                           replace("String", " ", "▁")]},
        "decoder": {"type": "Sequence", "decoders": [replace("String", "▁", " "), {"type": "ByteFallback"},
                                                     {"type": "Fuse"},
                                                     {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}}),
    "mapped": ("aab!! a", WORDS, {
        "normalizer": {"type": "ByteLevel"}, "pre_tokenizer": {"type": "Punctuation", "behavior": "Contiguous"},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}, replace("Regex", "a+", "x"),
                                                     {"type": "Strip", "content": "x", "start": 1, "stop": 1}]}}),
    "split": ("hello ab 12 e\u0301", {**WORDS, "ignore_merges": True}, {
        "added_tokens": [{"id": 0, "content": "ab", "single_word": True, "lstrip": True, "rstrip": True}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            split("\\p{L}+|\\s+", "MergedWithNext", True), {"type": "Digits", "individual_digits": True},
            {**METASPACE, "split": True}]},
        "post_processor": {"type": "TemplateProcessing",
                           "single": [{"SpecialToken": {"id": "B"}}, {"Sequence": {"id": "A"}}],
                           "special_tokens": {"B": {"id": "B", "ids": [1]}}},
        "decoder": METASPACE}),
    "affix": ("ab ba", {"type": "BPE", "unk_token": "?", "continuing_subword_prefix": "##", "end_of_word_suffix": "</w>",
                        "vocab": {"?": 0, "a": 1, "##b</w>": 2, "ab</w>": 3}, "merges": ["a ##b</w>"]}, {
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": {"type": "BPEDecoder", "suffix": "</w>"}}),
}


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (text, model, components) in SEEDS.items():
        file = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
                "decoder": None, **components, "model": model}
        json_text = json.dumps(file, ensure_ascii=False, separators=(",", ":"))
        (folder / name).write_bytes(json_text.encode() + b"\0" + text.encode())


if __name__ == "__main__":
    main()
