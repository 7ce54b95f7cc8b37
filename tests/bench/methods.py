#!/usr/bin/env python3
"""What a call of a method costs beside a plain HTTP route: microseconds per request, one client, one kept-alive connection.
The client's own time (a loop of send and receive, about 15 us) is in every figure of HTTP.

usage: tests/bench/methods.py [COUNT]"""
import json
import pathlib
import socket
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "system"))
from engine import BUILD, Engine  # noqa: E402

ROUTES = [
    ("plain route /ping", "GET", "/ping", ""),
    ("plain route /version", "GET", "/version", ""),
    ("... in research mode", "GET", "/version", "x-quintet-mode: research\r\n"),
    ("the frontend's own method", "POST", "/services/frontend/requests", ""),
    ("method of another service", "POST", "/services/memory/usage", ""),
    ("... in research mode", "POST", "/services/memory/usage", "x-quintet-mode: research\r\n"),
    ("... through a form", "GET", "/memory/usage", ""),
]


class Connection:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, request):
        self.socket.sendall(request)
        data = self.socket.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), data
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += self.socket.recv(65536)


def time_route(engine, verb, path, header, count):
    request = (f"{verb} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{header}\r\n").encode()
    connection, times = Connection(engine.port), []
    for _ in range(count):
        begin = time.perf_counter_ns()
        connection.call(request)
        times.append((time.perf_counter_ns() - begin) / 1e3)
    return statistics.median(times[count // 10:])


def time_direct(engine, count):
    done = subprocess.run([BUILD / "quintet", "call", "-j", "--direct", "--run-dir", engine.run_dir, "--repeat", str(count),
                           "memory", "usage"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["p50_us"]


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with Engine() as ipc, Engine("--inproc") as inproc:
        print(f"{'median us per request':32} {'ipc':>8} {'inproc':>8}")
        for name, verb, path, header in ROUTES:
            figures = [time_route(engine, verb, path, header, count) for engine in (ipc, inproc)]
            print(f"{name:32} {figures[0]:8.1f} {figures[1]:8.1f}")
        print(f"{'direct call, no frontend':32} {time_direct(ipc, count):8.1f} {time_direct(inproc, count):8.1f}")


if __name__ == "__main__":
    main()
