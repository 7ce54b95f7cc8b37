#!/usr/bin/env python3
"""Writes unicode_runs.c: the class mask of every code point as runs.

The classes are those the reference tokenizer library works with, so the output is committed and not made
at build time: a newer table would move token boundaries. General categories: Unicode 16.0 (its regular
expression engine). Two of its components know older tables; code points assigned later are listed here.

    python3.14 services/tokenizer/split/unicode_runs.py > services/tokenizer/split/unicode_runs.c

needs a Python whose unicodedata is 16.0.0 (3.14), or the package unicodedata2 of that version.
"""
import sys

try:
    import unicodedata2 as u
except ImportError:
    import unicodedata as u

if u.unidata_version != "16.0.0":
    sys.exit(f"unicode_runs.py: needs Unicode 16.0.0, this Python has {u.unidata_version}")

UPPER, LOWER, OTHER_LETTER, MARK, NUMBER, SPACE, PUNCTUATION, WORD, NFC_UNSAFE, JOINS_BEFORE, UNNORMALIZED = (
    1 << i for i in range(11))


def code_points(text):
    for item in text.split():
        first, _, last = item.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


# Punctuation the Punctuation pre-tokenizer does not know, and what it takes for punctuation besides.
LATER_PUNCTUATION = set(code_points("""
    61D 9FD A76 C77 C84 1B4E-1B4F 1B7D-1B7F 2E43-2E4F 2E52-2E5D 10D6E 10EAD 10F55-10F59 10F86-10F89 113D4-113D5
    113D7-113D8 1144B-1144F 1145A-1145B 1145D 11660-1166C 116B9 1183B 11944-11946 119E2 11A3F-11A46 11A9A-11A9C
    11A9E-11AA2 11B00-11B09 11BE1 11C41-11C45 11C70-11C71 11EF7-11EF8 11F43-11F4F 11FFF 12FF1-12FF2 16D6D-16D6F
    16E97-16E9A 16FE2 1E5FF 1E95E-1E95F
"""))
FORMER_PUNCTUATION = {0x166D, 0x111C9}
# Decompositions and combining classes the normalizers do not know: these code points stay as they are.
LATER_FORMS = set(code_points("""
    7FD 897-89F 8CA-8D3 9FE C3C D3B-D3C EBA 1715 1ABF-1ACE 1DF6-1DFA 32FF A7F2-A7F4 A82C AB69 105C9 105E4
    10781-10785 10787-107B0 107B2-107BA 10D24-10D27 10D69-10D6D 10EAB-10EAC 10EFD-10EFF 10F46-10F50 10F82-10F85
    11070 1133B 11383 11385 1138E 11391 113C5 113C7-113C8 113CE-113D0 1145E 11839-1183A 11938 1193D-1193E 11943
    119E0 11A34 11A47 11A99 11D42 11D44-11D45 11D97 11F41-11F42 16121-16128 1612F 16D68-16D6A 16FF0-16FF1
    1CCD6-1CCF9 1E030-1E06D 1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF 1E5EE-1E5EF 1F16C 1FBF0-1FBF9
"""))

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
    if (category[0] == "P" and code not in LATER_PUNCTUATION) or code in FORMER_PUNCTUATION:
        m |= PUNCTUATION
    if category[0] in "LM" or category in ("Nd", "Nl", "Pc") or code in WORD_EXTRA:
        m |= WORD
    if code in LATER_FORMS:
        return m | UNNORMALIZED
    if code in seconds or u.combining(c) or u.normalize("NFC", c) != c:
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

print("""/* What is this?      Unicode 16.0 classes as runs; written by unicode_runs.py, never by hand.
 * State owned:       none.
 * Must never:        change with the Unicode version of the machine: token boundaries would move.
 * Read next:         unicode_classes.h. */
#include "services/tokenizer/split/unicode_classes.h"

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
