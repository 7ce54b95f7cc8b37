"""A service for tests of `quintet up`: it does nothing but what its plan says.

The plan of quintet-memory is memory.json in $FAKE_DIR: a list, one entry per life, the last one for all later lives.
Steps of an entry are run in order, then the service waits for SIGTERM. Everything it does is appended to
$FAKE_DIR/events as one JSON line. Copied into a directory of binaries with the interpreter's path as first line.
"""
import array
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

DIRECTORY = os.environ["FAKE_DIR"]
held = []
NAME = os.path.basename(sys.argv[0]).removeprefix("quintet-")


def event(what, **more):
    line = json.dumps({"service": NAME, "event": what, "pid": os.getpid(), "time": time.monotonic(), **more})
    with open(os.path.join(DIRECTORY, "events"), "a") as file:
        file.write(line + "\n")


def notify(text, fds=()):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(os.environ["NOTIFY_SOCKET"])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        manager.sendmsg([text.encode()], rights)


def store(name, text):
    fd = os.memfd_create(name)
    os.write(fd, text.encode())
    notify(f"FDSTORE=1\nFDNAME={name}", [fd])
    os.close(fd)


def passed_fds():
    """What sd_listen_fds_with_names would give: name -> content."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ["LISTEN_FDNAMES"].split(":")
    assert len(names) == int(os.environ["LISTEN_FDS"])
    return {name: os.pread(3 + i, 4096, 0).decode() for i, name in enumerate(names)}


def run(step):
    verb, value = next(iter(step.items()))
    if verb == "notify":
        notify(value)
    elif verb == "store":
        store(*value)
    elif verb == "print":
        sys.stderr.write(value + "\n")
        sys.stderr.flush()
    elif verb == "flood":
        while True:
            os.write(2, b"flood " * 100 + b"\n")
    elif verb == "exit":
        event("exit", status=value)
        sys.stdout.flush()
        os._exit(value)
    elif verb == "kill":
        os.kill(os.getpid(), value)
    elif verb == "alive":  # for so many seconds
        end = time.monotonic() + value
        while time.monotonic() < end:
            notify("WATCHDOG=1")
            time.sleep(0.1)
        event("fed")
    elif verb == "ignore_stop":
        signal.signal(signal.SIGTERM, lambda *_: event("ignored"))
    elif verb == "lock":
        # As a dying process does: a copy of the locked descriptor is closed only some time after the process is gone.
        # A lock that somebody else holds is what a duplicate sees.
        file = open(os.path.join(sys.argv[sys.argv.index("--run-dir") + 1], NAME + ".lock"), "a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            run({"exit": 69})
        held.append(file)
        if value:
            event("spawned", child=subprocess.Popen(["sleep", str(value)], pass_fds=[file.fileno()],
                                                    start_new_session=True).pid)
    elif verb == "spawn":
        event("spawned", child=subprocess.Popen(["sleep", "600"]).pid)


def stop(*_):
    event("stop")
    notify("STOPPING=1")
    event("exit", status=0)
    os._exit(0)


def main():
    signal.signal(signal.SIGTERM, stop)
    with open(os.path.join(DIRECTORY, NAME + ".lives"), "a+") as file:
        file.write("x")
        file.flush()
        life = file.tell()
    with open(os.path.join(DIRECTORY, NAME + ".json")) as file:
        plan = json.load(file)
    event("start", life=life, arguments=sys.argv[1:], group=os.getpgid(0), fds=passed_fds(),
          stdin=os.readlink("/proc/self/fd/0"), open=sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
          watchdog=[os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID") == str(os.getpid())])
    for step in plan[min(life, len(plan)) - 1]:
        run(step)
    while True:
        signal.pause()


main()
