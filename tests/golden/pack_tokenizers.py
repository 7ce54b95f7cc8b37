#!/usr/bin/env python3
"""Makes tests/golden/tokenizers/ from a directory of reference outputs.

    tests/golden/pack_tokenizers.py DIR

DIR holds texts.json.xz ({group: [text]}), and for each tokenizer NAME.tokenizer.json.xz and
NAME.expected.json.xz ({group: {ids, decoded, decoded_skip_special}}, written with the tokenizers library,
add_special_tokens=False). Here a decoded text that equals the text itself becomes null, which is nearly
all of them.
"""
import json
import lzma
import pathlib
import sys

source, target = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent / "tokenizers"


def read(name):
    return json.loads(lzma.decompress((source / name).read_bytes()))


def write(name, value):
    (target / name).write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")


texts = read("texts.json.xz")
write("texts.json", texts)
for path in sorted(source.glob("*.tokenizer.json.xz")):
    name = path.name.split(".")[0]
    write(f"{name}.tokenizer.json", read(path.name))
    expected = read(f"{name}.expected.json.xz")
    for group, outputs in expected.items():
        for key in ("decoded", "decoded_skip_special"):
            decoded = outputs.get(key) or []
            outputs[key] = [None if got == text else got for got, text in zip(decoded, texts[group])]
    write(f"{name}.golden.json", expected)
