"""What the README claims about files, functions, targets and keys is so."""
import os
import pathlib
import re
import signal
import subprocess
import threading

import pytest

from engine import BUILD, ROOT, SLOW, free_port

README = (ROOT / "README.md").read_text()


def test_readme_hop_table_names_functions_that_are_there():
    pairs = re.findall(r"`((?:services|common)/[\w/]+\.c)` `(\w+)`", README)
    assert len(pairs) >= 20
    for path, function in pairs:
        assert re.search(rf"^[a-z].*\b{function}\(", (ROOT / path).read_text(), re.M), (path, function)


def test_readme_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text() + "".join(p.read_text() for p in ROOT.glob("*.mk"))
    targets = set(re.findall(r"`?make ([a-z]+)", README))
    assert {"run", "test", "check", "tsan", "fuzz"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_readme_folders_and_links_exist():
    for name in re.findall(r"\]\(([^)#]+)\)", README):
        assert name.startswith("http") or (ROOT / name).exists(), name
    for folder in ("services", "common", "schemas", "kernels", "deploy", "tools", "tests"):
        assert f"`{folder}/" in README


def test_readme_settings_are_known_keys():
    known = subprocess.run([str(BUILD / "quintet"), "config", "keys"], capture_output=True, text=True, check=True).stdout
    keys = set(re.findall(r"--set ([a-z_]+\.[a-z_]+)=", README))
    assert keys
    for key in keys:
        assert key in known, key


# ---- its commands, run as they are written; what differs is in the environment, but for curl's port and the model's path ----

MODEL = ROOT / "deploy/models/default"
SECONDS = 60 * SLOW
COMMANDS = [line for block in re.findall(r"^```\n(.*?)^```", README, re.M | re.S) for line in block.splitlines()
            if re.match(r"(make|curl|build/)", line)]
UPS = [line for line in COMMANDS if line.startswith("build/quintet up")]
CALLS = [line for line in COMMANDS if re.match(r"curl|build/quintet (?!up)", line)]
ON_A_GPU = [line for line in COMMANDS if line.startswith("build/cuda/")]


class Reader:
    """Who follows the README: a shell in the root of the tree, with a run directory and a port of its own."""

    def __init__(self, directory):
        self.port = free_port()
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("QUINTET_")}, "XDG_RUNTIME_DIR": str(directory),
            "QUINTET_URL": f"http://127.0.0.1:{self.port}", "QUINTET_FRONTEND_LISTEN": f"127.0.0.1:{self.port}"}

    def start(self, line, **how):
        line = re.sub(r"/path/to/[\w.-]+", str(MODEL), line).replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")
        line = re.sub(r"^build/", "exec " + os.path.relpath(BUILD, ROOT) + "/", line)
        return subprocess.Popen(["bash", "-c", line], cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)

    def run(self, line):
        process = self.start(line)
        output, _ = process.communicate(timeout=SECONDS)
        return process.returncode, output


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    reader = Reader(tmp_path_factory.mktemp("run"))
    up = reader.start(UPS[0])
    try:
        assert reader.run(f"build/quintet status --wait {SECONDS}")[0] == 0
        yield reader
    finally:
        up.send_signal(signal.SIGINT)
        output, _ = up.communicate(timeout=SECONDS)
    assert up.returncode == 0, output


def test_readme_every_command_is_run_somewhere():
    makes = [line for line in COMMANDS if line.startswith("make ")]  # their targets are looked at above
    assert len(UPS) >= 4 and len(CALLS) >= 5
    assert sorted(COMMANDS) == sorted(UPS + CALLS + ON_A_GPU + makes)


@pytest.mark.parametrize("line", CALLS)
def test_readme_command_runs_as_written(reader, line):
    if " sniff " not in line:
        status, output = reader.run(line)
        assert status == 0, output
        assert output.strip()
        return
    sniffer = reader.start(line)
    assert "listening in" in sniffer.stdout.readline()
    heard = threading.Event()
    threading.Thread(target=lambda: [heard.set() for text in sniffer.stdout if "StepPlan" in text], daemon=True).start()
    for _ in range(1000):  # a subscription takes a moment to reach the daemons
        assert reader.run("build/quintet generate 'The SELECT statement ' -m 8")[0] == 0
        if heard.wait(0.01):
            break
    assert heard.is_set()
    sniffer.send_signal(signal.SIGINT)
    assert sniffer.wait(SECONDS) == 0


@pytest.mark.parametrize("line", UPS[1:])
def test_readme_way_of_starting_serves_and_stops(tmp_path, line):
    reader = Reader(tmp_path)
    up = reader.start(line)
    status, output = reader.run(f"build/quintet status --wait {SECONDS}")
    answer = reader.run("build/quintet generate 'The SELECT statement ' -m 4")
    up.send_signal(signal.SIGINT)
    log, _ = up.communicate(timeout=SECONDS)
    assert status == 0, (output, log)
    assert answer[0] == 0 and "4 tokens" in answer[1], answer
    assert up.returncode == 0, log


@pytest.mark.parametrize("line", ON_A_GPU)
def test_readme_command_for_a_gpu_is_understood(tmp_path, line):
    """A build without CUDA knows the options and says what it lacks."""
    status, output = Reader(tmp_path).run(line.replace("build/cuda/", "build/"))
    assert status != 64, output
    assert "cuda" in output.lower(), output


def test_readme_has_no_unfilled_place():
    assert not re.search(r"@[A-Z_]+@", README)


SERVICES = [f"services/{name}" for name in ("frontend", "tokenizer", "scheduler", "memory", "compute")]


@pytest.mark.parametrize("folder", [*SERVICES, "common", "deploy", "kernels", "schemas", "tools", "tests", "tests/fuzz",
                                    "tests/golden"])
def test_readme_of_each_folder_names_files_that_are_there(folder):
    text = (ROOT / folder / "README.md").read_text()
    names = re.findall(r"`([\w./*-]+\.(?:[ch]|cu|cuh|py|sh|md))`", text)
    for name in names:
        near = list((ROOT / folder).rglob(name)) if not name.startswith("../") else [(ROOT / folder / name).resolve()]
        places = near or [path for depth in ("", "*/", "*/*/") for path in ROOT.glob(depth + name)]
        assert any(path.exists() for path in places), (folder, name)
