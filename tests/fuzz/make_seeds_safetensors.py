#!/usr/bin/env python3
"""Seeds of fuzz_safetensors: files of a few tensors, two of which lie about their place or size. (An index of shards is
text: those seeds are in tests/fuzz/seeds/safetensors.)

usage: tests/fuzz/make_seeds_safetensors.py FOLDER"""
import json
import pathlib
import struct
import sys

WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
          "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def one_of_each():
    header, at = {}, 0
    for dtype, width in WIDTHS.items():
        header[dtype] = tensor(dtype, [1], at, at + width)
        at += width
    return header


SEEDS = {
    # name: header, bytes of data
    "empty_header": ({}, 0),
    "two_tensors": ({"__metadata__": {"format": "pt"}, "a": tensor("F32", [2], 0, 8),
                     "b": tensor("BF16", [2, 2], 8, 16)}, 16),
    "scalar_and_empty": ({"s": tensor("I64", [], 0, 8), "e": tensor("F16", [0, 3], 8, 8)}, 8),
    "all_dtypes": (one_of_each(), sum(WIDTHS.values())),
    "overlap": ({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, 3),
    "overflow": ({"a": tensor("F64", [1 << 31, 1 << 31], 0, 8)}, 8),
}


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (header, size) in SEEDS.items():
        text = json.dumps(header, separators=(",", ":")).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(size)))


if __name__ == "__main__":
    main()
