#!/usr/bin/env python3
"""Time to encode and to decode one StepPlan of 256 runs, best of 20 rounds.

usage: tests/bench/wire.py"""
import json
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TOOL = ROOT / "build/tests/wire/wire_tool"


def main():
    plan = json.loads((ROOT / "schemas/step_plan.json").read_text())
    plan["runs"] = [{**plan["runs"][0], "slot": slot, "token_count": 1} for slot in range(256)]
    frame = subprocess.run([TOOL, "encode", "StepPlan"], input=json.dumps(plan).encode(), stdout=subprocess.PIPE, check=True).stdout
    subprocess.run([TOOL, "bench"], input=frame, check=True)


if __name__ == "__main__":
    main()
