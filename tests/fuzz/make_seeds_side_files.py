#!/usr/bin/env python3
"""Seeds of fuzz_side_files: the cases of tests/golden/side_files. A seed is the four files and a text, a zero byte
between each.

usage: tests/fuzz/make_seeds_side_files.py FOLDER"""
import json
import pathlib
import sys

NAMES = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"]

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
golden = json.loads(pathlib.Path(__file__).parents[1].joinpath("golden/side_files/cases.json").read_text("utf-8"))
for index, case in enumerate(golden["cases"][:100]):
    files = [json.dumps(case["files"][name]) if name in case["files"] else "" for name in NAMES]
    folder.joinpath(f"case{index}").write_bytes("\0".join([*files, case["texts"][0]]).encode())
