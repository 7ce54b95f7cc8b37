"""What a service checks before it serves: descriptors, room in the run directory, who may connect to it."""
import os
import pathlib
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "system"))
from engine import BUILD, Engine, free_port  # noqa: E402


@pytest.fixture
def run_dir():
    path = pathlib.Path("/tmp") / f"qn-start-{os.getpid()}-{time.monotonic_ns()}"
    path.mkdir(mode=0o700)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def start(run_dir, service, *arguments, limits=None, umask=0o22):
    def prepare():
        os.umask(umask)
        if limits:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    return subprocess.Popen([str(BUILD / f"quintet-{service}"), "--run-dir", run_dir, *arguments], preexec_fn=prepare,
                            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def said(process):
    """All it said until it ended by itself."""
    text = process.communicate(timeout=60)[1]
    return process.returncode, text


def stop_after(process, path):
    """Stops it once `path` is there; all it said."""
    end = time.monotonic() + 30
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert path.exists(), process.communicate()[1]
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=60)[1]


@pytest.mark.parametrize("service", ["frontend", "tokenizer", "scheduler", "memory", "compute"])
def test_start_with_too_few_descriptors_is_refused_with_the_remedy(run_dir, service):
    status, text = said(start(run_dir, service, limits=(20, 20)))
    assert status == 78, text
    assert "the limit of open files is 20" in text and "raise it" in text
    assert ("frontend.max_connections" in text) == (service == "frontend")


def test_start_supervisor_with_too_few_descriptors_is_refused(run_dir):
    done = subprocess.run([str(BUILD / "quintet"), "up", "--run-dir", run_dir], capture_output=True, text=True, timeout=60,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)))
    assert done.returncode == 78 and "the limit of open files is 20" in done.stderr


def test_start_raises_the_soft_limit_of_descriptors(run_dir):
    process = start(run_dir, "compute", limits=(20, 4096))
    try:
        end = time.monotonic() + 30
        while not (run_dir / "compute.sock").exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (4096, 4096)
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.parametrize("umask", [0, 0o22, 0o277])
def test_start_sockets_are_for_their_user_whatever_the_umask(umask):
    old = os.umask(umask)
    try:
        engine = Engine()
    finally:
        os.umask(0o22)
    try:
        pathlib.Path(engine.run_dir).chmod(0o700)
        os.umask(umask & 0o77)  # the log of the test's own must be writable
        with engine:
            modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in pathlib.Path(engine.run_dir).iterdir()
                     if stat.S_ISSOCK(path.lstat().st_mode)}
            assert len(modes) >= 10
            assert set(modes.values()) == {0o600}, modes
    finally:
        os.umask(old)


def test_start_in_a_full_run_directory_is_refused_by_name(run_dir):
    """A file system without a free page: the statistics page would be a SIGBUS at its first write."""
    script = f"mount -t tmpfs -o size=8k tmpfs {run_dir} && exec {BUILD}/quintet-compute --run-dir {run_dir}"
    tried = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f"mount -t tmpfs tmpfs {run_dir}"],
                           capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no mount namespace of one's own here: {tried.stderr.strip()}")
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode > 0 and "the run directory is full" in done.stderr, (done.returncode, done.stderr)


@pytest.mark.parametrize("address, warned", [("0.0.0.0", True), ("127.0.0.1", False)])
def test_start_on_an_open_address_warns(run_dir, address, warned):
    process = start(run_dir, "compute", "--set", f"compute.endpoint=tcp://{address}:{free_port()}")
    text = stop_after(process, run_dir / "compute.stats")
    assert ("neither authenticated nor encrypted" in text) == warned, text
