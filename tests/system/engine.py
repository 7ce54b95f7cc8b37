"""A running Quintet for tests: `quintet up` on a free port in a run directory of its own.

QUINTET_BUILD names the folder of the binaries (default: build)."""
import concurrent.futures
import http.client
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / os.environ.get("QUINTET_BUILD", "build")
SERVICES = ["frontend", "tokenizer", "scheduler", "memory", "compute"]
SLOW = 10 if "san" in BUILD.name else 1  # sanitizer builds take longer


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Engine:
    """Starts on enter, stops on exit; `settings` are --set pairs, `failpoints` is QUINTET_FAILPOINTS (tests/README.md)."""

    def __init__(self, *arguments, failpoints="", **settings):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.run_dir = tempfile.mkdtemp(prefix="qn-", dir="/tmp")
        self.log_path = pathlib.Path(self.run_dir, "up.log")
        pairs = {"frontend.listen": f"127.0.0.1:{self.port}", **{k.replace("__", "."): v for k, v in settings.items()}}
        self.command = [str(BUILD / "quintet"), "up", "--run-dir", self.run_dir, *arguments]
        for key, value in pairs.items():
            self.command += ["--set", f"{key}={value}"]
        self.environment = {**os.environ, "QUINTET_FAILPOINTS": failpoints}
        self.process = None

    def __enter__(self):
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=self.environment)
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *unused):
        self.status = None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.status = self.process.wait(20 * SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log = self.log_path.read_text(errors="replace")
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def wait_ready(self, seconds=30):
        until = time.monotonic() + seconds * SLOW
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise AssertionError("quintet up ended:\n" + self.log_path.read_text(errors="replace"))
            try:
                if self.call("GET", "/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise AssertionError("not ready:\n" + self.log_path.read_text(errors="replace"))

    def call(self, method, path, body=None, headers=None, timeout=120):
        """(status, parsed JSON or text)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            reply = connection.getresponse()
            text = reply.read().decode()
            kind = reply.getheader("Content-Type", "")
            return reply.status, json.loads(text) if "json" in kind else text
        finally:
            connection.close()

    def get(self, path):
        status, reply = self.call("GET", path)
        assert status == 200, (path, status, reply)
        return reply

    def post(self, path, body):
        status, reply = self.call("POST", path, body)
        assert status == 200, (path, status, reply)
        return reply

    def generate(self, input_ids, tokens, **sampling):
        """Output ids."""
        sampling = {"temperature": 0, "ignore_eos": True, **sampling, "max_new_tokens": tokens}
        return self.post("/generate", {"input_ids": input_ids, "sampling_params": sampling})["output_ids"]

    def generate_many(self, prompts, tokens, **sampling):
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda ids: self.generate(ids, tokens, **sampling), prompts))

    def pids(self):
        return {row["name"]: row["pid"] for row in self.get("/services")["services"]}

    def epochs(self):
        """Life of each service; 0: never seen. {} while the frontend is down."""
        try:
            return {row["name"]: row["epoch"] for row in self.get("/services")["services"]}
        except OSError:
            return {}

    def kill(self, service):
        """SIGKILL; returns once the process is dead and somebody else can see that."""
        process = os.pidfd_open(self.pids()[service])
        signal.pidfd_send_signal(process, signal.SIGKILL)
        assert select.select([process], [], [], 30)[0], f"{service} does not die"
        os.close(process)

    def wait_reborn(self, before):
        """Waits until each of the services in `before` (name -> epoch) lives again, and all are ready."""
        self.wait_for(lambda: all(self.epochs().get(name, 0) > epoch for name, epoch in before.items()), 30,
                      f"a life after {before}")
        self.wait_ready()

    def fired(self):
        """The failpoints that fired so far, in order."""
        journal = pathlib.Path(self.run_dir, "failpoints")
        return journal.read_text().split() if journal.exists() else []

    def fired(self):
        """The failpoints that fired so far, in order."""
        journal = pathlib.Path(self.run_dir, "failpoints")
        return journal.read_text().split() if journal.exists() else []

    def used_blocks(self):
        return self.get("/cache/stats")["used_blocks"]

    def wait_for(self, condition, seconds, what):
        begin = time.monotonic()
        while not condition():
            if time.monotonic() - begin > seconds * SLOW:
                raise AssertionError(f"not within {seconds} s: {what}\n" + self.log_path.read_text(errors="replace")[-4000:])
            time.sleep(0.002)
        return time.monotonic() - begin
