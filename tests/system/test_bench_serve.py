"""quintet bench serve: that its counts are right, whatever the server does. No test depends on a figure's size."""
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading

import pytest

from engine import BUILD, ROOT, SLOW, Engine

QUINTET = BUILD / "quintet"
EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_UNAVAILABLE, EX_CANTCREAT, EX_TEMPFAIL, EX_PROTOCOL = 64, 65, 66, 69, 73, 75, 76
INTERRUPTED = 130
SECONDS = 120 * SLOW
SHORT = ["--prompt-tokens", "4-40", "--output-tokens", "3-20"]
FIGURE = {"mean", "p50", "p90", "p99", "max", "count"}
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("QUINTET_")}


def command(url, *arguments):
    return [QUINTET, "bench", "serve", "--url", url, *map(str, arguments)]


def bench(url, *arguments, text=""):
    return subprocess.run(command(url, *arguments), input=text, capture_output=True, text=True, timeout=SECONDS,
                          env=ENVIRONMENT)


def measure(url, *arguments, status=0, text=""):
    done = bench(url, "-j", *arguments, text=text)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    report = json.loads(done.stdout)
    check(report)
    return report


def check(report):
    """The form of a result, and what must hold between its figures."""
    assert report["version"] == 1
    assert set(report) == {
        "version", "server", "load", "ended_by", "duration_s", "requests", "failures", "prompt_tokens", "output_tokens",
        "cached_tokens", "tokens_counted_by", "requests_per_s", "prompt_tokens_per_s", "output_tokens_per_s", "ttft_ms", "itl_ms",
        "tpot_ms", "longest_gap_ms", "e2e_ms", "goodput", "generator", "compared"}
    assert set(report["server"]) == {"url", "model"}
    assert set(report["load"]) == {"mode", "requests", "concurrency", "seconds", "rate", "arrivals", "prompt_tokens",
                                   "output_tokens", "shared_prefix", "file", "seed", "warmup", "users", "fields"}
    requests = report["requests"]
    assert set(requests) == {"sent", "ok", "failed", "interrupted", "clipped"}
    assert requests["sent"] == requests["ok"] + requests["failed"] + requests["interrupted"]
    assert sum(failure["count"] for failure in report["failures"]) == requests["failed"]
    for failure in report["failures"]:
        assert set(failure) == {"kind", "status", "count", "message"} and failure["message"] and failure["count"] > 0
    assert set(report["generator"]) == {"late_ms", "cpu_share", "bottleneck", "waited"}
    for name in ("ttft_ms", "itl_ms", "tpot_ms", "longest_gap_ms", "e2e_ms"):
        figure = report[name]
        if figure is not None:
            assert set(figure) == FIGURE and figure["count"] > 0
            assert 0 <= figure["p50"] <= figure["p90"] <= figure["p99"] <= figure["max"], (name, figure)
            assert figure["mean"] <= figure["max"] * 1.000001
    if requests["ok"]:
        assert report["e2e_ms"]["count"] == requests["ok"]
        assert report["requests_per_s"] == pytest.approx(requests["ok"] / report["duration_s"], rel=1e-6)
        assert report["output_tokens_per_s"] == pytest.approx(report["output_tokens"] / report["duration_s"], rel=1e-6)
    else:
        assert report["ttft_ms"] is None and report["e2e_ms"] is None and report["itl_ms"] is None


def lines_of(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def whole_lines(path):
    """Of a file that is being written."""
    return pathlib.Path(path).read_text().count("\n") if pathlib.Path(path).exists() else 0


def outcomes_of(path, after=0):
    """From the line `after` on, of a file that is being written."""
    return {json.loads(line)["outcome"] for line in pathlib.Path(path).read_text().splitlines(True)[after:] if line.endswith("\n")}


def check_saved(lines, report):
    """The lines of --save are the report's requests."""
    assert sorted(line["index"] for line in lines) == list(range(report["requests"]["sent"]))
    good = [line for line in lines if line["outcome"] == "ok"]
    assert len(good) == report["requests"]["ok"]
    assert sum(line["output_tokens"] for line in good) == report["output_tokens"]
    assert sum(line["prompt_tokens"] for line in good) == report["prompt_tokens"]
    assert len({line["request_id"] for line in good}) == len(good)
    for line in good:
        assert line["first_tokens"] + sum(tokens for _, tokens in line["gaps"]) == line["output_tokens"]
        assert 0 <= line["ttft_ms"] <= line["e2e_ms"] and line["late_ms"] >= 0


# ---- a real engine -----------------------------------------------------------------------------------------------


def test_closed_loop_counts_add_up(server, tmp_path):
    saved = tmp_path / "saved.jsonl"
    report = measure(server.url, "-n", 30, "-c", 6, *SHORT, "--save", saved, "--ids", "--warmup", 3, "--slo",
                     "ttft=1e8,e2e=1e8")
    lines = lines_of(saved)
    check_saved(lines, report)
    assert report["requests"]["ok"] == 30 and report["ended_by"] == "requests" and report["failures"] == []
    assert report["tokens_counted_by"] == "usage" and report["load"]["mode"] == "closed"
    for line in lines:
        assert 4 <= line["prompt_tokens"] <= 40 and 3 <= line["output_tokens"] <= 20
        assert len(line["ids"]) == line["output_tokens"]
    assert report["itl_ms"]["count"] == sum(tokens for line in lines for _, tokens in line["gaps"])
    assert report["goodput"]["met"] == 30 and report["goodput"]["share"] == 1


def test_same_seed_same_load_other_seed_another(server, tmp_path):
    def run(name, *arguments):
        path = tmp_path / name
        measure(server.url, "-n", 12, *SHORT, "--save", path, "--ids", *arguments)
        return {line["index"]: (line["prompt_tokens"], line["ids"]) for line in lines_of(path)}
    first = run("a", "-c", 1, "--seed", 5)
    assert first == run("b", "-c", 7, "--seed", 5)
    assert first != run("c", "-c", 1, "--seed", 6)


def test_open_loop_sends_all_of_each_kind_of_arrivals(server, tmp_path):
    for arrivals in ("poisson", "uniform", "burst:4"):
        saved = tmp_path / arrivals
        report = measure(server.url, "--rate", 200, "-n", 24, "--arrivals", arrivals, *SHORT, "--save", saved)
        assert report["requests"]["ok"] == 24 and report["load"]["mode"] == "open"
        lines = sorted(lines_of(saved), key=lambda line: line["index"])
        check_saved(lines, report)
        times = [line["arrival_s"] for line in lines]
        assert times == sorted(times)
        if arrivals != "poisson":
            wanted = [i / 200 if arrivals == "uniform" else i // 4 * 4 / 200 for i in range(24)]
            assert times == pytest.approx(wanted, abs=1e-6)


def test_rate_with_a_cap_waits_and_says_so(server):
    report = measure(server.url, "--rate", 10000, "-c", 1, "-n", 10, *SHORT)
    assert report["requests"]["ok"] == 10 and report["generator"]["waited"] >= 8


def test_seconds_end_the_run_and_what_is_under_way_is_waited_for(server):
    report = measure(server.url, "--seconds", 0.3, "-c", 2, *SHORT)
    assert report["ended_by"] == "seconds" and report["requests"]["ok"] == report["requests"]["sent"] >= 2
    # An arrival that is far away (1000 s; the command has less) does not hold up the end.
    report = measure(server.url, "--seconds", 0.2, "--rate", 0.001, "--arrivals", "uniform", *SHORT)
    assert report["requests"]["ok"] == 1


def test_prompts_file_trace_and_standard_input(server, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "The SELECT statement", "max_tokens": 5}\n"plain"\n{"input_ids": [5, 6, 7], "max_tokens": 3}\n'
                    '{"prompt_tokens": 9, "max_tokens": 2}\n')
    saved = tmp_path / "saved"
    report = measure(server.url, "--prompts", file, "--output-tokens", 7, "--save", saved)
    lines = sorted(lines_of(saved), key=lambda line: line["index"])
    check_saved(lines, report)
    assert [line["output_tokens"] for line in lines] == [5, 7, 3, 2]
    assert [line["prompt_tokens"] for line in lines][2:] == [3, 9] and all(line["prompt_tokens"] for line in lines)
    assert measure(server.url, "--prompts", "-", "-n", 6, "--output-tokens", 2, text='"a"\n"b"\n')["output_tokens"] == 12

    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"prompt_tokens": 5 + i, "max_tokens": 2, "arrival": i * 0.05}) + "\n" for i in range(4)))
    report = measure(server.url, "--trace", trace, "--save", saved)
    assert report["load"]["mode"] == "trace"
    lines = sorted(lines_of(saved), key=lambda line: line["index"])
    assert [line["arrival_s"] for line in lines] == pytest.approx([0, 0.05, 0.1, 0.15], abs=1e-6)
    assert all(line["sent_s"] >= line["arrival_s"] for line in lines)


def test_shared_prefix_is_found_in_the_cache(server):
    report = measure(server.url, "-n", 20, "-c", 1, "--prompt-tokens", 8, "--output-tokens", 2, "--shared-prefix", 64, "--seed", 77)
    assert report["prompt_tokens"] == 20 * 72 and report["cached_tokens"] >= 19 * 64


def test_fields_priority_and_users_reach_the_server(server):
    report = measure(server.url, "-n", 4, *SHORT, "--priority", 3, "--user-count", 2, "--field", "top_k=5", "--field",
                     'stop=["zzzz"]')
    assert report["load"]["fields"] == {"priority": 3, "top_k": 5, "stop": ["zzzz"]}
    report = measure(server.url, "-n", 2, *SHORT, "--field", "temperature=-1", status=EX_DATAERR)
    assert report["failures"][0]["status"] == 400 and "temperature" in report["failures"][0]["message"]


def test_compare_shows_ratios(server, tmp_path):
    first = measure(server.url, "-n", 5, *SHORT, "--seed", 8)
    file = tmp_path / "first.json"
    file.write_text(json.dumps(first))
    second = measure(server.url, "-n", 5, *SHORT, "--seed", 8, "--compare", file)
    compared = second["compared"]
    assert compared["same_load"] and compared["with"] == str(file)
    assert compared["e2e_ms"]["p50"] == pytest.approx(second["e2e_ms"]["p50"] / first["e2e_ms"]["p50"], rel=1e-6)
    assert compared["requests_per_s"] == pytest.approx(second["requests_per_s"] / first["requests_per_s"], rel=1e-6)
    other = measure(server.url, "-n", 6, *SHORT, "--compare", file)
    assert not other["compared"]["same_load"]
    done = bench(server.url, "-n", 5, *SHORT, "--seed", 8, "--compare", file)
    assert done.returncode == 0 and "TTFT" in done.stdout and "x" in done.stdout and done.stderr == ""
    file.write_text("{}")
    assert bench(server.url, "--compare", file).returncode == EX_DATAERR


def test_interrupted_run_reports_what_was_done(server, tmp_path):
    saved = tmp_path / "saved"
    process = subprocess.Popen(command(server.url, "-j", "-n", 100000, "-c", 4, *SHORT, "--save", saved), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    server.wait_for(lambda: whole_lines(saved) >= 5, 60, "five answers")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == INTERRUPTED and errors == ""
    report = json.loads(output)
    check(report)
    check_saved(lines_of(saved), report)
    assert report["ended_by"] == "interrupt" and report["requests"]["ok"] >= 5 and report["requests"]["failed"] == 0
    assert report["requests"]["interrupted"] <= 4


def test_unix_socket(tmp_path):
    url = f"unix:{tmp_path}/http.sock"
    services = subprocess.Popen([QUINTET, "up", "--run-dir", tmp_path, "--set", f"frontend.listen={url}"], cwd=ROOT,
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        subprocess.run([QUINTET, "status", "--wait", str(60 * SLOW), "-q", "--url", url], check=True, timeout=SECONDS)
        report = measure(url, "-n", 6, "-c", 3, *SHORT)
        assert report["requests"]["ok"] == 6 and report["server"]["url"] == url
    finally:
        services.send_signal(signal.SIGINT)
        services.wait(SECONDS)


def test_refused_requests_are_counted_by_status():
    with Engine(frontend__queue_limit=1) as engine:
        report = measure(engine.url, "-n", 24, "-c", 12, "--prompt-tokens", 16, "--output-tokens", 60)
        assert report["requests"]["ok"] >= 1 and report["requests"]["failed"] >= 1
        assert [(failure["kind"], failure["status"]) for failure in report["failures"]] == [("http", 429)]
        assert report["output_tokens"] == report["requests"]["ok"] * 60


def test_server_that_is_killed_in_the_middle(tmp_path):
    saved = tmp_path / "saved"
    with Engine() as engine:
        process = subprocess.Popen(command(engine.url, "-j", "-n", 100000, "-c", 4, "--prompt-tokens", 16, "--output-tokens", 40,
                                           "--save", saved), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        engine.wait_for(lambda: whole_lines(saved) >= 1, 60, "the first answer")
        engine.kill("frontend")
        engine.wait_for(lambda: outcomes_of(saved) - {"ok"}, 60, "a failure")
        failed_at = whole_lines(saved)
        engine.wait_for(lambda: "ok" in outcomes_of(saved, failed_at), 60, "an answer of the next frontend")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=SECONDS)
    report = json.loads(output)
    check(report)
    check_saved(lines_of(saved), report)
    assert process.returncode == INTERRUPTED and report["requests"]["ok"] >= 2
    assert 1 <= report["requests"]["failed"]
    assert {failure["kind"] for failure in report["failures"]} <= {"broken", "incomplete", "refused", "http", "stream"}
    assert report["output_tokens"] == report["requests"]["ok"] * 40


# ---- other servers -----------------------------------------------------------------------------------------------


class Canned:
    """A server whose completions are `replies` in turn (the last one stays); after `lives` of them it is gone."""

    MODELS = b'{"object": "list", "data": [{"id": "other", "max_model_len": 100}]}'

    def __init__(self, *replies, lives=None):
        self.replies, self.lives, self.bodies, self.lock = list(replies), lives, [], threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"

    def __enter__(self):
        self.thread = threading.Thread(target=self.accept)
        self.thread.start()
        return self

    def __exit__(self, *unused):
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.thread.join()
        self.listener.close()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.answer(connection)
            if self.lives == 0:
                self.listener.close()
                return

    def answer(self, connection):
        """One request per connection, so that one thread serves all in turn."""
        file = connection.makefile("rb")
        first = file.readline().decode()
        headers = {}
        while (line := file.readline().decode().strip()):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = file.read(int(headers.get("content-length", 0)))
        if "/completions" in first:
            self.bodies.append(json.loads(body))
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            if self.lives is not None:
                self.lives -= 1
        elif "/models" in first:
            reply = plain(200, self.MODELS)
        else:
            reply = plain(404, b"{}")
        connection.sendall(reply)


def plain(status, body, kind="application/json"):
    return (f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n").encode() + body


def stream(*events):
    data = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
    return plain(200, data.encode(), "text/event-stream")


def word(text):
    return {"choices": [{"index": 0, "text": text}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 5}}
WHOLE = stream(word("a"), word("b"), word(""), USAGE, "[DONE]")
OTHER = ["--vocab-size", "50", "--prompt-tokens", "12", "--output-tokens", "5"]


def test_server_without_continuous_usage_counts_events_and_says_so():
    with Canned(WHOLE) as canned:
        report = measure(canned.url, "-n", 3, "-c", 1, *OTHER)
        done = bench(canned.url, "-n", 2, "-c", 1, *OTHER)
    assert report["requests"]["ok"] == 3 and report["tokens_counted_by"] == "events" and report["server"]["model"] == "other"
    assert report["output_tokens"] == 15 and report["prompt_tokens"] == 36 and report["cached_tokens"] is None
    assert "each event with text" in done.stdout
    body = canned.bodies[0]
    assert body["model"] == "other" and body["stream"] and body["temperature"] == 0 and body["ignore_eos"]
    assert len(body["prompt"]) == 12 and all(0 <= id < 50 for id in body["prompt"])


def test_what_is_wrong_with_an_answer_has_a_name():
    cases = [
        (stream(word("a")), "incomplete", EX_PROTOCOL),
        (stream(word("a"), {"error": {"message": "lost it", "code": 503}}), "stream", EX_TEMPFAIL),
        (stream("no json"), "protocol", EX_PROTOCOL),
        (plain(200, b'{"choices": []}'), "protocol", EX_PROTOCOL),
        (plain(429, b'{"error": {"message": "full"}}'), "http", EX_TEMPFAIL),
        (plain(500, b"<html>"), "http", 70),
        (b"", "broken", EX_UNAVAILABLE),
        (WHOLE[:-8], "broken", EX_UNAVAILABLE),
    ]
    for reply, kind, status in cases:
        with Canned(reply) as canned:
            report = measure(canned.url, "-n", 2, "-c", 1, *OTHER, status=status)
        assert [(failure["kind"], failure["count"]) for failure in report["failures"]] == [(kind, 2)], reply
        assert report["tokens_counted_by"] is None and report["output_tokens"] == 0


def test_long_refusal_is_cut_between_characters():
    for lead in range(4):
        message = "x" * lead + "\U0001f600" * 200
        with Canned(plain(400, json.dumps({"error": {"message": message}}, ensure_ascii=False).encode())) as canned:
            report = measure(canned.url, "-n", 1, *OTHER, status=EX_DATAERR)
        told = report["failures"][0]["message"]
        assert message.startswith(told) and 500 < len(told.encode()) < 512


def test_server_that_goes_away_for_good():
    with Canned(WHOLE, lives=2) as canned:
        report = measure(canned.url, "-n", 6, "-c", 1, *OTHER)
    assert report["requests"]["ok"] == 2 and report["requests"]["failed"] == 4
    assert {failure["kind"] for failure in report["failures"]} <= {"refused", "broken"}


def test_server_that_does_not_answer_in_time():
    silent = plain(200, b"data: x\n\n", "text/event-stream").replace(b"Content-Length: 9", b"Content-Length: 99")

    class Silent(Canned):
        def answer(self, connection):
            super().answer(connection)
            if self.bodies:
                connection.settimeout(SECONDS)
                connection.recv(1)  # until the client leaves
    with Silent(silent[:silent.index(b"\r\n\r\n") + 4]) as canned:
        report = measure(canned.url, "-n", 2, "-c", 1, "--timeout", 0.2, *OTHER, status=EX_TEMPFAIL)
    assert [(failure["kind"], failure["count"]) for failure in report["failures"]] == [("timeout", 2)]


def test_no_server_and_a_server_that_tells_too_little(tmp_path):
    assert bench(f"unix:{tmp_path}/nobody").returncode == EX_UNAVAILABLE
    with Canned(WHOLE) as canned:
        done = bench(canned.url, "--prompt-tokens", 5)
    assert done.returncode == EX_USAGE and "--vocab-size" in done.stderr


# ---- wrong use ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [
    ["--requests", "0"], ["--requests", "1000001"], ["--concurrency", "0"], ["--concurrency", "4097"], ["--rate", "0"],
    ["--rate", "nan"], ["--seconds", "-1"], ["--arrivals", "gamma", "--rate", "1"], ["--arrivals", "poisson"],
    ["--prompt-tokens", "10-5"], ["--output-tokens", "lognormal:5"], ["--shared-prefix", "0"], ["--shared-prefix", "5:2"],
    ["--slo", "ttft"], ["--slo", "speed=4"], ["--field", "top_k"], ["--field", "stop=zzz"], ["--field", "prompt=1"],
    ["--field", "user=\"a\"", "--user-count", "2"], ["--priority", "1.5"], ["--seed", "-1"], ["--ids"], ["--timeout", "0"],
    ["--trace", "t", "--rate", "5"], ["--prompts", "t", "--prompt-tokens", "5"], ["--prompts", "t", "--trace", "u"],
    ["--vocab-size", "0"], ["--warmup", "x"], ["--url", "ftp://x"]])
def test_bad_value_is_named(arguments):
    done = subprocess.run([QUINTET, "bench", "serve", *arguments], capture_output=True, text=True, timeout=SECONDS, env=ENVIRONMENT,
                          stdin=subprocess.DEVNULL)
    assert done.returncode == EX_USAGE and arguments[0] in done.stderr, done.stderr


def test_what_does_not_fit_into_the_model_and_bad_files(server, tmp_path):
    done = bench(server.url, "--prompt-tokens", 2000, "--output-tokens", 49)
    assert done.returncode == EX_USAGE and "--prompt-tokens" in done.stderr and "2048" in done.stderr
    report = measure(server.url, "-n", 2, "--prompt-tokens", "exp:100000", "--output-tokens", 1, "--seed", 1)
    assert report["requests"]["ok"] == 2 and report["requests"]["clipped"] == 2
    file = tmp_path / "bad.jsonl"
    file.write_text('"a"\n{"prompt": 5}\n')
    done = bench(server.url, "--prompts", file)
    assert done.returncode == EX_DATAERR and "line 2" in done.stderr
    assert bench(server.url, "--prompts", tmp_path / "none").returncode == EX_NOINPUT
    assert bench(server.url, "--compare", tmp_path / "none").returncode == EX_NOINPUT
    assert bench(server.url, "--save", tmp_path / "no/such/dir").returncode == EX_CANTCREAT
