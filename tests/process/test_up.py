"""`quintet up` with services that do exactly what a test needs: readiness, restart, kept descriptors, stopping."""
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUINTET = ROOT / os.environ.get("QUINTET_BUILD", "build") / "quintet"
SERVICES = ["frontend", "tokenizer", "scheduler", "compute", "memory"]
READY = [{"notify": "READY=1"}]
SECONDS = 60


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(what, seconds=SECONDS):
    """Polls for a condition of another process, with a deadline."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = what()
        if value:
            return value
        time.sleep(0.01)
    return what()


class Up:
    """One `quintet up` over fake services; its log is collected as it comes."""

    def __init__(self, directory):
        self.directory = directory
        self.binaries = directory / "bin"
        self.run_dir = directory / "run"
        self.binaries.mkdir()
        source = (pathlib.Path(__file__).parent / "fake_service.py").read_text()
        for service in SERVICES:
            program = self.binaries / f"quintet-{service}"
            program.write_text(f"#!{sys.executable} -SE\n{source}")
            program.chmod(0o755)
            self.plan(service, READY)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("QUINTET_")}
        # Nobody listens there: the fake frontend speaks no HTTP.
        # On a busy machine the fakes, which are Python, take longer to stop than real services may.
        self.environment.update(FAKE_DIR=str(directory), LC_ALL="C.UTF-8", QUINTET_UP_STOP_SECONDS="60",
                                QUINTET_FRONTEND_LISTEN=f"unix:{directory}/http")
        self.process = None
        self.lines = []

    def plan(self, service, *lives):
        (self.directory / f"{service}.json").write_text(json.dumps(lives))

    def start(self, *arguments, **how):
        command = [QUINTET, "up", "--bin-dir", self.binaries, "--run-dir", self.run_dir, *arguments]
        how = {"stderr": subprocess.PIPE, **how}
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                                        env=self.environment, start_new_session=True, **how)
        if self.process.stderr:
            threading.Thread(target=self.collect, args=(self.process.stderr,), daemon=True).start()
        return self

    def collect(self, stream):
        for line in stream:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern, seconds=SECONDS):
        found = until(lambda: next((line for line in list(self.lines) if re.search(pattern, line)), None), seconds)
        assert found, f"no line matches {pattern!r}:\n" + "\n".join(self.lines)
        return found

    def events(self, event=None, service=None):
        path = self.directory / "events"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [row for row in rows if event in (None, row["event"]) and service in (None, row["service"])]

    def life(self, service, number):
        """Waits for the start of a life of a service; returns what it saw."""
        found = until(lambda: [row for row in self.events("start", service) if row["life"] == number])
        assert found, f"{service} never had life {number}:\n" + "\n".join(self.lines)
        return found[0]

    def stop(self, number=signal.SIGINT):
        self.process.send_signal(number)
        return self.end()

    def end(self):
        status = self.process.wait(SECONDS)
        return status

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in [row["pid"] for row in self.events("start")] + [row["child"] for row in self.events("spawned")]:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def up(tmp_path):
    # A socket's path is short; pytest's directories are not.
    directory = pathlib.Path("/tmp") / f"quintet-up-{os.getpid()}-{time.monotonic_ns()}"
    directory.mkdir()
    value = Up(directory)
    yield value
    value.close()
    subprocess.run(["rm", "-rf", directory], check=True)


def test_up_all_ready_says_so_and_stops_in_order(up):
    up.start("--set", "scheduler.max_sequences=7", "--set", "frontend.listen=127.0.0.1:8123")
    assert re.search(r"ready: http://127\.0\.0\.1:8123 \(model default, \d+\.\d s\)", up.wait_for("ready:"))
    assert up.stop() == 0
    assert up.process.stdout.read() == ""
    assert [row["service"] for row in up.events("stop")] == SERVICES
    exits = {row["service"]: row["time"] for row in up.events("exit")}
    stops = {row["service"]: row["time"] for row in up.events("stop")}
    for before, after in zip(SERVICES, SERVICES[1:]):
        assert exits[before] < stops[after]
    for row in up.events("start"):
        assert row["group"] == row["pid"]
        assert row["stdin"] == "/dev/null"
        assert row["fds"] == {}
        assert set(row["open"]) <= {0, 1, 2, 3}  # 3 is the listing itself
        assert row["arguments"] == ["--set", "scheduler.max_sequences=7", "--set", "frontend.listen=127.0.0.1:8123",
                                    "--run-dir", str(up.run_dir)]
    assert not list(up.run_dir.glob("*.notify"))


def test_up_sigterm_stops_like_ctrl_c(up):
    up.start().wait_for("ready:")
    assert up.stop(signal.SIGTERM) == 0
    assert [row["service"] for row in up.events("stop")] == SERVICES


def test_up_not_ready_before_the_last_service(up):
    up.plan("compute", [])
    up.start()
    until(lambda: len(up.events("start")) == 5)
    assert not any("ready:" in line for line in up.lines)
    assert up.stop() == 0


def test_up_is_ready_when_the_frontend_agrees(up):
    """All five have said READY=1, but the frontend has to hear of them before a request is served."""
    answers = [b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n\r\n"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        up.start("--set", f"frontend.listen=127.0.0.1:{server.getsockname()[1]}")
        for answer in answers:
            client, _ = server.accept()
            with client:
                assert client.recv(4096).startswith(b"GET /ready HTTP/1.1\r\n")
                assert not any("ready:" in line for line in up.lines)
                client.sendall(answer)
        up.wait_for("ready:")
        assert up.stop() == 0
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_up_stops_while_the_frontend_does_not_answer(up):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        up.start("--set", f"frontend.listen=127.0.0.1:{server.getsockname()[1]}")
        client, _ = server.accept()
        assert up.stop() == 0
        assert not any("ready:" in line for line in up.lines)
        client.close()


def test_up_killed_service_is_restarted_at_once(up):
    up.start().wait_for("ready:")
    os.kill(up.life("scheduler", 1)["pid"], signal.SIGKILL)
    up.life("scheduler", 2)
    assert "was killed by SIGKILL; starting it again in 0.00 s" in up.wait_for("scheduler was killed")
    up.wait_for(r"scheduler is ready again")
    assert len(up.events("start")) == 6
    assert up.stop() == 0


def test_up_restarts_back_off(up):
    up.plan("tokenizer", READY, [{"exit": 70}], [{"exit": 70}], [{"exit": 70}], READY)
    up.start().wait_for("ready:")
    os.kill(up.life("tokenizer", 1)["pid"], signal.SIGKILL)
    up.wait_for("tokenizer is ready again")
    delays = [re.search(r"again in (\d\.\d\d) s", line).group(1) for line in up.lines if "again in" in line]
    assert delays == ["0.00", "0.05", "0.10", "0.20"]
    exits = [row["time"] for row in up.events("exit", "tokenizer")]
    starts = [row["time"] for row in up.events("start", "tokenizer")]
    for exit_time, start_time, least in zip(exits, starts[2:], (0.05, 0.10, 0.20)):
        assert start_time - exit_time >= least
    assert up.stop() == 0


def test_up_kept_descriptors_come_back_after_kill(up):
    up.plan("scheduler", [{"store": ["ledger", "first life"]}, {"store": ["index", "of it"]}, *READY],
            [{"notify": "FDSTOREREMOVE=1\nFDNAME=index"}, {"store": ["late", "just before death"]},
             {"kill": signal.SIGKILL}],
            READY)
    up.start().wait_for("ready:")
    os.kill(up.life("scheduler", 1)["pid"], signal.SIGKILL)
    assert up.life("scheduler", 2)["fds"] == {"ledger": "first life", "index": "of it"}
    assert up.life("scheduler", 3)["fds"] == {"ledger": "first life", "late": "just before death"}
    assert up.life("memory", 1)["fds"] == {}
    assert up.stop() == 0


def test_up_configuration_error_of_a_service_is_fatal_and_shown(up):
    up.plan("memory", [{"print": "<3>memory: memory.kv_bytes is more than this machine has"}, {"exit": 78}])
    up.start()
    assert up.end() == 78
    up.wait_for("error: memory cannot start: it ended with status 78: memory.kv_bytes is more than this machine has$")
    assert up.wait_for("stopped").endswith("stopped, because memory cannot start: it ended with status 78: "
                                           "memory.kv_bytes is more than this machine has")
    assert len(up.events("start", "memory")) == 1
    assert not any(is_alive(row["pid"]) for row in up.events("start"))


def test_up_same_status_after_ready_is_not_fatal(up):
    up.plan("memory", [*READY, {"exit": 78}], READY)
    up.start()
    up.life("memory", 2)
    up.wait_for("ready:")
    assert up.stop() == 0


def test_up_service_that_never_gets_ready_is_given_up(up):
    up.plan("compute", [{"kill": signal.SIGABRT}])
    up.start()
    assert up.end() == 70
    assert "compute cannot start: it was killed by SIGABRT" in up.wait_for("cannot start")
    assert len(up.events("start", "compute")) == 5


def test_up_bad_configuration_is_refused_before_anything_starts(up):
    up.start("--set", "scheduler.polcy=fcfs")
    assert up.end() == 78
    up.wait_for("unknown key scheduler.polcy; did you mean scheduler.policy?")
    assert not up.events()


def test_up_missing_program_is_refused(up):
    (up.binaries / "quintet-memory").unlink()
    up.start()
    assert up.end() == 66
    assert f"no program quintet-memory in {up.binaries}" in up.wait_for("no program")
    assert not up.events()


def test_up_twice_in_one_run_directory_is_refused(up):
    up.start().wait_for("ready:")
    second = subprocess.run([QUINTET, "up", "--bin-dir", up.binaries, "--run-dir", up.run_dir], env=up.environment,
                            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
    assert second.returncode == 69
    assert f"up already runs in {up.run_dir} (pid {up.process.pid})" in second.stderr
    assert second.stdout == ""
    assert len(up.events("start")) == 5
    assert up.stop() == 0


def test_up_second_ctrl_c_kills_at_once(up):
    up.plan("frontend", [{"ignore_stop": True}, *READY])
    up.start("--set", "up.stop_seconds=600").wait_for("ready:")
    up.process.send_signal(signal.SIGINT)
    assert until(lambda: up.events("ignored", "frontend"))
    # One that follows the first closely counts as the same key stroke; who goes on pressing is obeyed.
    assert until(lambda: up.process.send_signal(signal.SIGINT) or up.process.poll() is not None)
    assert up.process.returncode == 130
    assert not any(is_alive(row["pid"]) for row in up.events("start"))


def test_up_service_that_does_not_stop_is_killed_in_time(up):
    up.plan("scheduler", [{"ignore_stop": True}, *READY])
    up.start("--set", "up.stop_seconds=1").wait_for("ready:")
    begin = time.monotonic()
    assert up.stop() == 70
    assert time.monotonic() - begin > 1.9
    up.wait_for("scheduler did not stop; killing it")
    assert {row["service"] for row in up.events("stop")} == {"frontend", "tokenizer", "compute", "memory"}


def test_up_its_own_death_takes_the_services_along(up):
    up.start().wait_for("ready:")
    pids = [row["pid"] for row in up.events("start")]
    up.process.kill()
    up.process.wait()
    assert until(lambda: not any(is_alive(pid) for pid in pids))


def test_up_waits_for_services_of_a_killed_supervisor(up):
    up.plan("memory", [{"lock": 600}, *READY], [{"lock": 0}, *READY])
    up.start().wait_for("ready:")
    up.process.kill()
    up.process.wait()
    up.lines.clear()
    up.start().wait_for("memory of an earlier quintet up is still ending; waiting for it")
    os.kill(up.events("spawned")[0]["child"], signal.SIGKILL)
    up.wait_for("ready:")
    assert up.stop() == 0
    assert len(up.events("start", "memory")) == 2
    assert not up.events("exit", "memory")[0]["status"]


def test_up_beside_a_service_that_stays_is_refused(up):
    up.plan("memory", [{"lock": 600}, *READY], [{"lock": 0}, *READY])
    up.start().wait_for("ready:")
    up.process.kill()
    up.process.wait()
    up.start()
    assert up.end() == 69
    up.wait_for("memory of an earlier quintet up is still ending; waiting for it")


def test_up_death_of_a_service_takes_its_children_along(up):
    up.plan("tokenizer", [{"spawn": True}, *READY], READY)
    up.start().wait_for("ready:")
    child = up.events("spawned")[0]["child"]
    assert is_alive(child)
    os.kill(up.life("tokenizer", 1)["pid"], signal.SIGKILL)
    up.life("tokenizer", 2)
    assert until(lambda: not is_alive(child))
    assert up.stop() == 0


@pytest.mark.parametrize("how, signal_name", [([], "ABRT"), ([{"kill": signal.SIGSTOP}], "KILL")])
def test_up_service_without_a_sign_of_life_is_killed_and_started_again(up, how, signal_name):
    """One that only waits dies of SIGABRT; one that is stopped cannot, and is killed."""
    up.plan("memory", [{"notify": "READY=1\nWATCHDOG=1"}, *how], READY)
    up.start("--set", "up.watchdog_seconds=1")
    first = up.life("memory", 1)
    assert first["watchdog"] == ["1000000", True]
    up.wait_for(r"memory shows no sign of life for 1\.\d s: killing it")
    up.wait_for(rf"memory was killed by SIG{signal_name}.*starting it again")
    second = up.life("memory", 2)
    assert second["time"] - first["time"] > 1
    assert [len(up.events("start", service)) for service in SERVICES] == [1, 1, 1, 1, 2]
    assert up.stop() == 0


def test_up_busy_service_that_gives_signs_of_life_is_left_alone(up):
    up.plan("memory", [*READY, {"alive": 3}])
    up.plan("compute", READY)  # never said that it would
    up.start("--set", "up.watchdog_seconds=1")
    assert until(lambda: up.events("fed", "memory"))
    assert len(up.events("start")) == 5
    assert not any("no sign of life" in line for line in up.lines)


def test_up_watchdog_can_be_switched_off(up):
    up.start("--set", "up.watchdog_seconds=0")
    assert up.life("memory", 1)["watchdog"] == [None, False]


def test_up_log_names_source_and_level(up):
    up.plan("memory", [{"print": "<4>memory: low"}, {"print": "bare \x1b[31mred"}, {"print": "x" * 10000}, *READY])
    up.start().wait_for("ready:")
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} memory    warning: low", up.wait_for("low"))
    assert up.wait_for("bare").endswith("memory    bare ?[31mred")
    assert up.wait_for("xxx").endswith("x...")
    assert len(up.wait_for("xxx")) < 3200
    assert up.stop() == 0


def test_up_unread_log_holds_nothing_up(up):
    read_end, write_end = os.pipe()
    up.plan("memory", [*READY, {"flood": True}])
    up.start(stderr=write_end)
    os.close(write_end)
    os.kill(up.life("tokenizer", 1)["pid"], signal.SIGKILL)
    up.life("tokenizer", 2)
    up.process.send_signal(signal.SIGTERM)
    assert up.end() == 0
    os.close(read_end)


@pytest.mark.parametrize("environment, coloured", [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_up_colours_only_a_terminal_that_wants_it(up, terminal, environment, coloured):
    up.environment.pop("NO_COLOR", None)
    up.environment.update({"TERM": "xterm", **environment})
    master, slave = terminal
    up.start(stderr=slave)
    os.close(slave)
    text = b""
    while b"ready:" not in text:
        text += os.read(master, 4096)
    assert (b"\x1b[" in text) == coloured
    up.process.send_signal(signal.SIGINT)
    try:
        while os.read(master, 4096):
            pass
    except OSError:  # how a pty says end of file
        pass
    assert up.end() == 0
    os.close(master)


def test_up_shows_on_a_terminal_what_a_service_is_loading(up, terminal):
    up.environment.update({"TERM": "xterm"})
    up.plan("memory", [{"notify": "STATUS=loading 1.0 GiB of 4.0 GiB"}, {"notify": "STATUS=loading 2.0 GiB of 4.0 GiB"}, *READY])
    up.plan("compute", [{"notify": "STATUS=waiting for memory"}, *READY])
    leader, follower = terminal
    up.start(stderr=follower)
    os.close(follower)
    text = b""
    while b"ready:" not in text:
        text += os.read(leader, 4096)
    assert b"\r\x1b[Kmemory    loading 1.0 GiB of 4.0 GiB\r" in text
    assert text.index(b"1.0 GiB of") < text.index(b"loading 2.0 GiB of 4.0 GiB\r\x1b[K") < text.index(b"ready:")
    assert b"waiting for memory" not in text
    up.process.send_signal(signal.SIGINT)
    try:
        while os.read(leader, 4096):
            pass
    except OSError:  # how a pty says end of file
        pass
    assert up.end() == 0
    os.close(leader)


def test_up_shows_no_progress_in_a_file(up):
    up.plan("memory", [{"notify": "STATUS=loading 1.0 GiB of 4.0 GiB"}, *READY])
    up.start().wait_for("ready:")
    assert up.stop() == 0
    assert not any("loading" in line or "\r" in line for line in up.lines)


def test_up_hybrid_runs_the_composed_services_in_one_supervised_process(up):
    up.start("--set", "up.composed=tokenizer").wait_for("ready:")
    assert {row["service"] for row in up.events("start")} == {"frontend", "scheduler", "compute", "memory"}
    pid = int(re.search(r"tokenizer started: .*pid (\d+)", up.wait_for("tokenizer started")).group(1))
    assert pid != up.process.pid
    os.kill(pid, signal.SIGKILL)
    up.wait_for("composed was killed by SIGKILL; starting it again")
    up.wait_for("composed is ready again")
    assert up.stop() == 0
    up.wait_for("tokenizer stopped")
