"""The steps of deploy/README.md under a real systemd in namespaces of its own: install, start, restart, refuse, remove.

Needs root, systemd and the right to make namespaces and overlays; what is missing is the reason of a skip."""
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

import pytest

from engine import BUILD, ROOT

SYSTEMD = pathlib.Path("/lib/systemd/systemd")
SECONDS = 120
CONFIG = "/etc/quintet/config.yaml"
SERVICES = ["memory", "compute", "scheduler", "tokenizer", "frontend"]


def why_not():
    if os.geteuid() != 0:
        return "needs root"
    if not SYSTEMD.exists() or not shutil.which("systemd-analyze"):
        return "systemd is not installed"
    if BUILD != ROOT / "build":
        return "make install installs the release build"
    if str(ROOT).startswith(("/tmp/", "/run/", "/var/", "/usr/local/", "/etc/")):
        return "the sources lie where systemd gets another file system"
    probe = subprocess.run(["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--uts", "--ipc", "--cgroup", "--net", "sh", "-c",
                            "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir /run/u /run/w && "
                            "mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/u,workdir=/run/w /etc && "
                            "mount -t cgroup2 cgroup2 /mnt"], capture_output=True, text=True)
    return f"no namespaces, overlays or cgroup2 here: {probe.stderr.strip()}" if probe.returncode else None


class Machine:
    """A booted systemd; commands run beside it."""

    def __init__(self, log):
        self.cgroup = f"quintet-test-{os.getpid()}"
        self.log = log
        self.process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts", "--ipc", "--net", "sh",
             str(ROOT / "tests/system/systemd_boot.sh"), self.cgroup], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.wait_for(lambda: children.read_text().split(), "a process 1")
        self.pid = children.read_text().split()[0]
        self.wait_for(lambda: "running" in self.run("systemctl", "is-system-running", check=False).stdout, "systemd runs")

    def wait_for(self, condition, what):
        end = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, f"systemd ended: {pathlib.Path(self.log.name).read_text()}"
            assert time.monotonic() < end, f"in vain: {what}\n{pathlib.Path(self.log.name).read_text()}"
            time.sleep(0.02)

    def run(self, *command, check=True, input=None):
        inside = ["nsenter", "-t", self.pid, "-a", "sh", "-c", 'cd "$0" && exec "$@"', str(ROOT), *command]
        done = subprocess.run(inside, capture_output=True, text=True, input=input, timeout=SECONDS)
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done

    def systemctl(self, *arguments, check=True):
        return self.run("systemctl", "--no-pager", *arguments, check=check).stdout

    def show(self, service, name):
        return self.systemctl("show", "--value", "-p", name, f"quintet-{service}").strip()

    def generate(self):
        done = self.run("/usr/local/bin/quintet", "generate", "The SELECT statement ", "-m", "24", "-t", "0", "-j")
        return json.loads(done.stdout)["ids"]

    def close(self):
        one = os.pidfd_open(int(self.pid))
        self.process.kill()  # and with it process 1, and with that all of its namespace
        self.process.wait()
        select.select([one], [], [], SECONDS)
        os.close(one)
        for line in pathlib.Path("/proc/mounts").read_text().splitlines():
            _, place, kind, *_ = line.split()
            top = pathlib.Path(place, self.cgroup)
            if kind == "cgroup2" and top.exists():
                for folder in sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True):
                    folder.rmdir()
                top.rmdir()
                return


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with open(tmp_path_factory.mktemp("systemd") / "log", "w") as log:
        made = Machine(log)
        try:
            made.run("make", "install")
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def started(machine):
    machine.systemctl("start", "quintet.target")
    machine.run("/usr/local/bin/quintet", "status", "--wait", "60")
    return machine


def test_systemd_units_verify_clean(machine):
    units = [f"quintet-{service}.service" for service in SERVICES]
    done = machine.run("systemd-analyze", "verify", "quintet.target", *units)
    assert done.stdout + done.stderr == ""


def test_systemd_first_start_after_install_serves(started):
    assert len(started.generate()) == 24
    for service in SERVICES:
        assert started.show(service, "ActiveState") == "active"
        assert started.show(service, "User") == "quintet"


def test_systemd_restart_and_kill_go_on_with_the_same_answer(started):
    wanted = started.generate()
    for service in SERVICES:
        started.systemctl("restart", f"quintet-{service}")
        started.run("/usr/local/bin/quintet", "status", "--wait", "60")
        assert started.generate() == wanted
    before = started.show("memory", "MainPID")
    started.systemctl("kill", "--signal=KILL", "quintet-memory")
    started.wait_for(lambda: started.show("memory", "MainPID") not in ("0", before), "a new memory")
    started.run("/usr/local/bin/quintet", "status", "--wait", "60")
    assert started.generate() == wanted


def test_systemd_notes_a_crash_and_no_kill(started):
    for signal, is_noted in (("KILL", False), ("SEGV", True)):
        before = started.show("compute", "MainPID")
        started.systemctl("kill", f"--signal={signal}", "quintet-compute")
        started.wait_for(lambda: started.show("compute", "MainPID") not in ("0", before), "a new compute")
        started.run("/usr/local/bin/quintet", "status", "--wait", "60")
        record = started.run("cat", "/run/quintet/compute.crash", check=False).stdout
        assert (f"pid {before}\nsignal 11\n" in record) == is_noted, record


@pytest.mark.parametrize("service, line, status, reason", [
    ("memory", "nonsense: 1", "78", "unknown key nonsense"),
    ("memory", "model: {path: /usr/local/share/quintet/schemas}", "66", "/usr/local/share/quintet/schemas"),
    ("memory", "model: {path: /run/broken-model}", "65", "config.json"),
])
def test_systemd_what_cannot_start_stays_down_with_its_reason(started, service, line, status, reason):
    unit = f"quintet-{service}"
    kept = started.run("cat", CONFIG).stdout
    started.run("mkdir", "-p", "-m", "755", "/run/broken-model")
    started.run("tee", "/run/broken-model/config.json", input="no JSON")
    try:
        started.run("tee", CONFIG, input=line + "\n")
        started.systemctl("restart", unit, check=False)
        assert started.systemctl("is-active", unit, check=False).strip() == "failed"
        assert started.show(service, "ExecMainStatus") == status
        assert started.show(service, "NRestarts") == "0"
        assert reason in started.show(service, "StatusText")
        assert reason in started.systemctl("status", unit, check=False)
    finally:
        started.run("tee", CONFIG, input=kept)
    started.systemctl("start", "quintet.target")
    started.run("/usr/local/bin/quintet", "status", "--wait", "60")


def test_systemd_reinstall_keeps_the_configuration(started):
    started.run("sh", "-c", f"echo '# mine' >> {CONFIG}")
    mine = started.run("cat", CONFIG).stdout
    started.run("make", "install")
    assert started.run("cat", CONFIG).stdout == mine


def test_systemd_installed_header_builds_a_policy(machine):
    source = (ROOT / "deploy/policies/example_scheduling.c").read_text().replace('"common/policy.h"', "<quintet/policy.h>")
    machine.run("gcc", "-std=c11", "-I/usr/local/include", "-shared", "-fPIC", "-x", "c", "-", "-o", "/tmp/policy.so", input=source)
    schemas = [path for path in ROOT.glob("schemas/**/*.fbs") if path.parent.name != "released"]
    assert machine.run("find", "/usr/local/share/quintet/schemas").stdout.count(".fbs") == len(schemas)


def test_systemd_uninstall_leaves_the_configuration_alone(started):
    started.systemctl("stop", "quintet.target")
    for service in SERVICES:
        started.wait_for(lambda: started.show(service, "ActiveState") == "inactive", f"{service} stopped")
    started.run("make", "uninstall")
    assert started.systemctl("list-unit-files", "quintet*", check=False).count("quintet-test") == 1
    assert "quintet-memory" not in started.systemctl("list-unit-files", "quintet*", check=False)
    assert started.run("sh", "-c", "find /usr/local -name '*quintet*'").stdout == ""
    assert started.run("test", "-e", CONFIG).returncode == 0
