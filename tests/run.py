#!/usr/bin/env python3
"""Runs the test suites and ends with one line: N passed, N failed, N skipped.

usage: tests/run.py ci|quick|asan|tsan|fuzz

A cmocka program counts its own tests; a program that crashes or hangs counts as one failure more. Skips are
shown with their reason. Standard library only: it also runs before the test environment exists.
"""
import glob
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM_SECONDS = 300
PYTEST_SECONDS = 600


class Tally:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failures = []

    def add(self, name, passed, failed, skipped, output, seconds):
        self.passed += passed
        self.failed += failed
        self.skipped += skipped
        mark = "FAIL" if failed else "ok"
        print(f"{mark:4} {name:44} {passed:4} passed {seconds:6.1f} s" + (f"  {skipped} skipped" if skipped else ""), flush=True)
        if failed:
            self.failures.append(name)
            print(output[-20000:], flush=True)
        for line in output.splitlines():
            if skipped and "SKIPPED" in line:
                print("     " + line.strip(), flush=True)

    def close(self):
        for name in self.failures:
            print("failed: " + name)
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped")
        return 1 if self.failed or not self.passed else 0


def run(command, seconds, environment=None):
    begin = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=seconds, env={**os.environ, **(environment or {})})
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        status, output = "timeout", (late.stdout or b"") + f"\nno end after {seconds} s\n".encode()
    return status, output.decode("utf-8", "replace"), time.monotonic() - begin


def count_cmocka(output):
    """(passed, failed, skipped) of a cmocka program's summaries. Before 1.1.7 they do not name the group:
    "[  SKIPPED ] 1 test(s), listed below:", since then "[  SKIPPED ] group: 1 test(s), listed below:"."""
    def total(word):
        return sum(int(n) for n in re.findall(rf"^\[  {word:8}\] (?:.*: )?(\d+) test\(s\)", output, re.M))
    return total("PASSED"), total("FAILED"), total("SKIPPED")


def run_program(tally, path, environment=None):
    name = str(pathlib.Path(path).relative_to(ROOT / "build"))
    status, output, seconds = run([path], PROGRAM_SECONDS, environment)
    passed, failed, skipped = count_cmocka(output)
    if status != 0 and not failed:
        failed = 1
        output += f"\n{name}: ended with {status}\n"
    if status == 0 and not passed and not skipped:
        failed = 1
        output += f"\n{name}: ran no test\n"
    tally.add(name, passed, failed, skipped, output, seconds)


# Unit tests of what runs threads; the rest has nothing for ThreadSanitizer to see and takes it minutes.
THREADED = ["executor", "fd_socket", "frontend_answers", "frontend_service", "http_client", "kernels_attention",
            "kernels_elementwise", "kernels_matmul", "kernels_matmul_int", "kernels_vector", "loader", "region",
            "stats", "step_queue", "step_worker", "tap", "text_job", "tokenizer", "tokenizer_service", "weights",
            "weights_bring"]


def run_programs(tally, build, folders, environment=None, only=None):
    for folder in folders:
        for source in sorted(glob.glob(str(ROOT / "tests" / folder / "*.c"))):
            if only and pathlib.Path(source).stem.removeprefix("test_") not in only:
                continue
            program = ROOT / build / "tests" / folder / pathlib.Path(source).stem
            if "int main(" in pathlib.Path(source).read_text() and not program.name.endswith("_tool"):
                run_program(tally, str(program), environment)


def run_pytest(tally, arguments, environment=None, seconds=PYTEST_SECONDS):
    command = [str(ROOT / "build/venv/bin/python"), "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *arguments]
    status, output, took = run(command, seconds, environment)
    last = output.strip().splitlines()[-1] if output.strip() else ""
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    if status not in (0, 1) and not failed:
        failed = 1
    tally.add("pytest " + " ".join(arguments), counts.get("passed", 0), failed, counts.get("skipped", 0), output, took)


SANITIZER = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "LSAN_OPTIONS": "suppressions=" + str(ROOT / "tests/lsan.supp"),
}
TSAN = {"TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1:suppressions=" + str(ROOT / "tests/tsan.supp")}


def main():
    suite = sys.argv[1] if len(sys.argv) == 2 else ""
    tally = Tally()
    if suite == "quick":
        run_programs(tally, "build", ["unit", "flow", "sim", "golden", "wire", "process"])
    elif suite == "asan":
        run_programs(tally, "build/asan", ["unit", "flow", "sim", "wire"], SANITIZER)
    elif suite == "tsan":
        missing = [name for name in THREADED if not (ROOT / "tests/unit" / f"test_{name}.c").exists()]
        assert not missing, f"THREADED names tests that are not there: {missing}"
        run_programs(tally, "build/tsan", ["unit"], TSAN, THREADED)
        run_programs(tally, "build/tsan", ["flow"], TSAN)
        run_pytest(tally, ["tests/system/test_composition.py"], {**TSAN, "QUINTET_BUILD": "build/tsan"})
    elif suite == "ci":
        run_programs(tally, "build/asan", ["unit", "flow", "wire"], SANITIZER)
        run_programs(tally, "build", ["sim", "golden", "process"])
        run_pytest(tally, ["tests/wire", "tests/process", "tests/system"])
    elif suite == "fuzz":
        seconds = os.environ.get("FUZZ_SECONDS", "60")
        for program in sorted(glob.glob(str(ROOT / "build/fuzz/fuzzers/fuzz_*"))):
            fuzz(tally, pathlib.Path(program), int(seconds))
    else:
        print(__doc__)
        return 64
    return tally.close()


def fuzz(tally, program, seconds):
    name = program.name.removeprefix("fuzz_")
    corpus = ROOT / "build/fuzz/corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = [str(p) for p in (ROOT / "tests/fuzz/seeds" / name, ROOT / "build/fuzz/seeds" / name) if p.is_dir()]
    command = [str(program), f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=4096", "-print_final_stats=1",
               f"-artifact_prefix={corpus}/../", str(corpus), *seeds]
    status, output, took = run(command, seconds + 120)
    tally.add("fuzz " + name, 1 if status == 0 else 0, 0 if status == 0 else 1, 0, output, took)


if __name__ == "__main__":
    sys.exit(main())
