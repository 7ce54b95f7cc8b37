#!/usr/bin/env python3
"""Writes unicode_runs.c: the class mask of every code point as runs.

Run with a Python whose unicodedata is 14.0.0 (Python 3.11): that is the Unicode version of the regular
expression engine whose token boundaries the models were trained with. A newer table would move
boundaries, so the output is committed and not made at build time.

    python3.11 services/tokenizer/unicode_runs.py > services/tokenizer/unicode_runs.c
"""
import sys
import unicodedata as u

if u.unidata_version != "14.0.0":
    sys.exit(f"unicode_runs.py: needs Unicode 14.0.0, this Python has {u.unidata_version}")

UPPER, LOWER, OTHER_LETTER, MARK, NUMBER, SPACE, PUNCTUATION, WORD, NFC_UNSAFE, JOINS_BEFORE, SYMBOL = (
    1 << i for i in range(11))

SPACES = {*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
# Other_Alphabetic symbols and Join_Control: word characters that are neither letter, mark nor number.
WORD_EXTRA = {*range(0x24B6, 0x24EA), *range(0x1F130, 0x1F14A), *range(0x1F150, 0x1F16A),
              *range(0x1F170, 0x1F18A), 0x200C, 0x200D}

seconds = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # Hangul vowels and tails compose with what precedes
for code in range(0x110000):
    parts = u.decomposition(chr(code)).split()
    if len(parts) == 2 and not parts[0].startswith("<"):
        seconds.add(int(parts[1], 16))


def mask(code):
    c = chr(code)
    category = u.category(c)
    m = 0
    if category in ("Lu", "Lt"):
        m |= UPPER
    if category == "Ll":
        m |= LOWER
    if category in ("Lm", "Lo"):
        m |= OTHER_LETTER
    if category[0] == "M":
        m |= MARK
    if category[0] == "N":
        m |= NUMBER
    if code in SPACES:
        m |= SPACE
    if category[0] == "P":
        m |= PUNCTUATION
    if category[0] == "S":
        m |= SYMBOL
    if category[0] in "LM" or category in ("Nd", "Nl", "Pc") or code in WORD_EXTRA:
        m |= WORD
    if code in seconds or u.combining(c) or not u.is_normalized("NFC", c):
        m |= NFC_UNSAFE
    firsts = {u.normalize(form, c)[0] for form in ("NFD", "NFKD")}
    if any(u.combining(first) or ord(first) in seconds for first in firsts):
        m |= JOINS_BEFORE
    return m


runs = []
for code in range(0x110000):
    m = 0 if 0xD800 <= code < 0xE000 else mask(code)
    if not runs or runs[-1][1] != m:
        runs.append((code, m))

print("""/* What is this?      Unicode 14.0 classes as runs; written by unicode_runs.py, never by hand.
 * State owned:       none.
 * Must never:        change with the Unicode version of the machine: token boundaries would move.
 * Read next:         unicode_classes.h. */
#include "services/tokenizer/unicode_classes.h"

/* first code point << 11 | class mask; a run lasts until the next entry. */
const uint32_t unicode_runs[] = {""")
line = "   "
for first, m in runs:
    item = f" 0x{first << 11 | m:x},"
    if len(line) + len(item) > 118:
        print(line)
        line = "   "
    line += item
print(line)
print(f"""}};

const size_t unicode_run_count = {len(runs)};""")
