"""A peer of the same user that sends damaged and absurd frames to every daemon: nobody dies, and afterwards all is right."""
import concurrent.futures
import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "system"))
from engine import BUILD, Engine  # noqa: E402

PROMPTS = [list(range(10 + 40 * i, 40 + 43 * i)) for i in range(4)]
TOKENS = 40
FRAMES = int(os.environ.get("QUINTET_FORGED_FRAMES", "4000"))
SEED = os.environ.get("QUINTET_FORGED_SEED", "7")


def generate(engine, ids):
    """Output ids. A request whose id the forged peer has used is asked for again, as Retry-After says."""
    end = time.monotonic() + 30
    while True:
        status, reply = engine.call("POST", "/generate", {
            "input_ids": ids, "sampling_params": {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}})
        if status == 200 or time.monotonic() > end:
            assert status == 200, (status, reply)
            return reply["output_ids"]
        assert status == 503, (status, reply)


def test_forged_frames_kill_nobody_and_change_nothing():
    with Engine() as engine:
        expected = engine.generate_many(PROMPTS, TOKENS)
        for _ in range(2):  # ids of later requests lie beyond those forged below 40, whose valid Submits do run
            engine.generate_many(PROMPTS, 1)
        before = engine.epochs()
        done = subprocess.run([str(BUILD / "tests/chaos/forge"), engine.run_dir, SEED, str(FRAMES)], capture_output=True,
                              text=True, timeout=600)
        log = engine.log_path.read_text(errors="replace")
        assert done.returncode == 0, (done.stderr, log[-3000:])
        assert engine.epochs() == before, log[-3000:]
        engine.wait_for(lambda: engine.call("GET", "/ready")[0] == 200, 30, "ready again")
        with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
            assert list(pool.map(lambda ids: generate(engine, ids), PROMPTS)) == expected
        engine.wait_for(lambda: engine.used_blocks() == 0, 60, "all blocks back")
