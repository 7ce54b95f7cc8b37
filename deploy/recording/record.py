#!/usr/bin/env python3
"""Records the README's terminal session: runs real commands against real services and draws what they print as an SVG.

usage: deploy/recording/record.py [--out deploy/recording/session.svg]

Each scene is a command in a pseudo-terminal; its colours are kept. The lines of a scene appear one after the other by CSS
animation, and all at once for readers who prefer reduced motion. Standard library only."""
import argparse
import html
import os
import pathlib
import pty
import re
import select
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/system"))
from engine import BUILD, Engine  # noqa: E402

COLUMNS, LINE, CHARACTER, MARGIN = 122, 19, 8.05, 18
COLOURS = {"31": "#f47067", "32": "#8ddb8c", "33": "#f0c674", "34": "#79b8ff", "35": "#d2a8ff", "36": "#76e3ea",
           "90": "#8b949e", "2": "#8b949e", "1": "#ffffff"}
TEXT, PROMPT, GROUND = "#c9d1d9", "#8ddb8c", "#0d1117"


def run(command, environment, seconds=60):
    """What `command` prints in a terminal of COLUMNS columns."""
    leader, follower = pty.openpty()
    import fcntl, struct, termios  # noqa: E401
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    process = subprocess.Popen(command, cwd=ROOT, stdin=follower, stdout=follower, stderr=follower,
                               env={**os.environ, **environment, "TERM": "xterm-256color"}, shell=True,
                               start_new_session=True)
    os.close(follower)
    printed, until = b"", time.monotonic() + seconds
    while time.monotonic() < until:
        if not select.select([leader], [], [], 0.1)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            data = os.read(leader, 65536)
        except OSError:
            break
        if not data:
            break
        printed += data
    process.wait(10)
    os.close(leader)
    return printed.decode("utf-8", "replace").replace("\r\n", "\n")


def spans(line):
    """(text, colour) pieces of a line with SGR colours; other escapes are dropped."""
    line = line.split("\r")[-1]
    line = re.sub(r"\x1b\[[0-9;?]*[A-LN-Za-ln-z]", "", line)
    colour, found = TEXT, []
    for piece in re.split(r"(\x1b\[[0-9;]*m)", line):
        code = re.fullmatch(r"\x1b\[([0-9;]*)m", piece)
        if code:
            known = [COLOURS[c] for c in code.group(1).split(";") if c in COLOURS]
            colour = known[-1] if known else TEXT
        elif piece:
            found.append((piece, colour))
    return found


def clipped(pieces):
    room, kept = COLUMNS, []
    for text, colour in pieces:
        if room > 0:
            kept.append((text[:room], colour))
        room -= len(text)
    return kept


def draw(rows):
    """rows: (seconds at which it appears, [(text, colour)])"""
    width, height = int(COLUMNS * CHARACTER + 2 * MARGIN), len(rows) * LINE + 2 * MARGIN + 26
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           'role="img" aria-label="A terminal session: starting Quintet, watching a prompt cross five services">',
           "<style>text{font:13.4px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}"
           "@keyframes show{from{opacity:0}to{opacity:1}}g.line{opacity:0;animation:show .12s linear forwards}"
           "@media (prefers-reduced-motion:reduce){g.line{opacity:1;animation:none}}</style>",
           f'<rect width="{width}" height="{height}" rx="9" fill="{GROUND}"/>']
    for i, colour in enumerate(("#f47067", "#f0c674", "#8ddb8c")):
        out.append(f'<circle cx="{MARGIN + 4 + 18 * i}" cy="18" r="5.5" fill="{colour}"/>')
    for number, (at, pieces) in enumerate(rows):
        y, column = MARGIN + 34 + number * LINE, 0
        out.append(f'<g class="line" style="animation-delay:{at:.2f}s">')
        for text, colour in clipped(pieces):
            if text.strip():
                out.append(f'<text x="{MARGIN + column * CHARACTER:.1f}" y="{y}" fill="{colour}" '
                           f'textLength="{len(text) * CHARACTER:.1f}">{html.escape(text)}</text>')
            column += len(text)
        out.append("</g>")
    return "\n".join(out + ["</svg>"]) + "\n"


def scenes(engine):
    """(what the reader sees typed, what runs, most lines)"""
    quintet = BUILD / "quintet"
    sniff = (f"{quintet} sniff --run-dir {engine.run_dir} --count 20 & "
             f"sleep 0.4; {quintet} generate 'A transaction is' --max-tokens 8 --temperature 0 -q >/dev/null; wait")
    return [
        ("quintet up &", f"grep -v notice {engine.log_path} | head -9; grep -c . {engine.log_path} >/dev/null", 7),
        ("quintet generate 'A transaction is' --max-tokens 40 --temperature 0 --echo",
         f"{quintet} generate 'A transaction is' --max-tokens 40 --temperature 0 --echo", 6),
        ("quintet sniff     # another prompt crosses the five services", sniff, 18),
        ("quintet status", f"{quintet} status", 8),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "deploy/recording/session.svg")
    options = parser.parse_args()
    rows, at = [], 0.3
    with Engine() as engine:
        environment = {"QUINTET_URL": engine.url}
        for typed, command, most in scenes(engine):
            printed = [line for line in run(command, environment).split("\n") if line.strip()][:most]
            rows.append((at, [("$ ", PROMPT), (typed, "#ffffff")]))
            at += 0.7
            for line in printed:
                line = line.replace(str(engine.port), "8000").replace(engine.run_dir, "/run/quintet")
                rows.append((at, spans(line)))
                at += 0.14
            rows.append((at, []))
            at += 1.2
    options.out.write_text(draw(rows[:-1]), encoding="utf-8")
    print(f"{options.out}: {len(rows)} lines")


if __name__ == "__main__":
    main()
