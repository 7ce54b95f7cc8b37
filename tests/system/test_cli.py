"""The quintet command as people use it: against a server of canned replies for everything that can go wrong, and
against real services for what must go right."""
import http.server
import json
import os
import pathlib
import re
import select
import signal
import socket
import struct
import subprocess
import threading
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUINTET = ROOT / os.environ.get("QUINTET_BUILD", "build") / "quintet"
MODEL = ROOT / "deploy/models/default"
SECONDS = 60
EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_UNAVAILABLE, EX_CANTCREAT, EX_TEMPFAIL, EX_PROTOCOL = 64, 65, 66, 69, 73, 75, 76


def quintet(*arguments, url=None, **how):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QUINTET_")}
    if url:
        environment["QUINTET_URL"] = url
    how = {"input": "", **how}
    return subprocess.run([QUINTET, *map(str, arguments)], capture_output=True, text=True, timeout=SECONDS,
                          env=environment, **how)


def until(what, seconds=SECONDS):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = what()
        if value:
            return value
        time.sleep(0.02)
    return what()


# ---- a server of canned replies ----------------------------------------------------------------------------------


class FakeServer:
    """Answers by path from `replies`: (status, headers, body) or a function(handler, body)."""

    def __init__(self):
        self.replies = {}
        self.requests = []
        self.client_left = threading.Event()
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.answer(None)

            def do_POST(self):
                self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def answer(self, body):
                fake.requests.append((self.path, dict(self.headers), json.loads(body) if body else None))
                reply = fake.replies.get(self.path, (404, {}, {"error": {"message": "no such route"}}))
                if callable(reply):
                    reply(self, fake.requests[-1][2])
                    return
                status, headers, content = reply
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stream(self, events, hang=False):
        """A reply that streams events; with `hang` it then waits until the client leaves."""

        def reply(handler, _):
            handler.send_response(200)
            handler.send_header("Content-Type", "text/event-stream")
            handler.send_header("x-request-id", "fake-1")
            handler.send_header("Connection", "close")
            handler.end_headers()
            for event in events:
                text = event if isinstance(event, str) else json.dumps(event)
                handler.wfile.write(f"data: {text}\n\n".encode())
                handler.wfile.flush()
            if hang:
                handler.connection.settimeout(SECONDS)
                if not handler.connection.recv(1):
                    self.client_left.set()
            handler.close_connection = True

        return reply


@pytest.fixture
def fake():
    server = FakeServer()
    yield server
    server.server.shutdown()
    server.server.server_close()


def chunk(text, reason=None, ids=None):
    choice = {"index": 0, "text": text, "finish_reason": reason}
    if ids is not None:
        choice["token_ids"] = ids
    return {"id": "cmpl-1", "object": "text_completion", "choices": [choice]}


USAGE = {"id": "cmpl-1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}}
HOPS = {"id": "cmpl-1", "choices": [], "metadata": {"service": "frontend", "hops": [
    {"from": "frontend", "to": "tokenizer", "us": 50}, {"from": "tokenizer", "to": "tokenizer", "us": 120.5}]}}
ANSWER = [chunk(" one", ids=[5]), chunk(" two", ids=[6]), chunk("", "length", ids=[7]), USAGE, HOPS, "[DONE]"]


# ---- the command itself ------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_each_has_help():
    done = quintet("--help")
    assert done.returncode == 0
    commands = re.findall(r"^  (\w+) ", done.stdout, re.M)
    assert {"up", "generate", "tokenize", "detokenize", "status", "sniff", "config", "doctor"} <= set(commands)
    for command in commands:
        done = quintet(command, "--help")
        assert done.returncode == 0 and done.stdout.startswith("usage: quintet " + command), command
        assert "--help" in done.stdout
        assert quintet("help", command).stdout == done.stdout


def test_no_command_is_a_usage_error():
    done = quintet()
    assert done.returncode == EX_USAGE and "usage: quintet" in done.stderr and not done.stdout


@pytest.mark.parametrize("arguments, says", [
    (["generte", "x"], 'did you mean "generate"'),
    (["nonsense"], 'unknown command "nonsense"'),
    (["generate", "--max-token", "5", "x"], "did you mean --max-tokens"),
    (["generate"], "give a prompt"),
    (["generate", "two", "words"], "quote it"),
    (["generate", "x", "--temperature", "hot"], "--temperature wants a number from 0 to 100"),
    (["generate", "x", "--max-tokens", "-1"], "--max-tokens wants a whole number"),
    (["generate", "x", "--top-p", "1.5"], "from 0 to 1"),
    (["generate", "x", "--stop"], "--stop wants a value"),
    (["generate", "x", "--url", "gopher://x"], "no URL of a server"),
    (["generate", "x", "--prompt-file", "y"], "not both"),
    (["generate", "x", "--input-ids", "1"], "not both"),
    (["generate", "--input-ids", "1 x"], '"1 x" is no token id'),
    (["generate", "--input-ids", ""], "names no token id"),
    (["generate", "--input-ids", "1", "--echo"], "leave it out"),
    (["generate", "-qj"], "give a prompt"),
    (["tokenize"], "give a text"),
    (["tokenize", "--jsonl", "x"], "takes no TEXT"),
    (["tokenize", "x", "--tokenizer", "f", "--url", "u"], "leave out --url"),
    (["detokenize"], "give token ids"),
    (["detokenize", "12", "x3"], '"x3" is no token id'),
    (["detokenize", "-5"], "unknown option -5"),
    (["detokenize", "1", "--keep-special", "--skip-special"], "exclude each other"),
    (["detokenize", "--jsonl", "--json"], "leave out --json"),
    (["tokenize", "--jsonl", "-j"], "leave out --json"),
    (["up", "--inproc", "--compose", "memory"], "exclude each other"),
    (["status", "x"], 'unexpected argument "x"'),
    (["sniff", "-c", "0"], "--count wants a whole number from 1"),
    (["sniff", "-r", "f", "--run-dir", "d"], "needs no --run-dir"),
])
def test_wrong_use_says_what_and_exits_64(arguments, says):
    done = quintet(*arguments)
    assert done.returncode == EX_USAGE
    assert says in done.stderr
    if {"-j", "-qj", "--json"} & set(arguments):
        error = json.loads(done.stdout)["error"]
        assert says in error["message"] and error["exit_status"] == EX_USAGE
    else:
        assert not done.stdout


@pytest.mark.parametrize("arguments", [["generate", "x"], ["tokenize", "x"], ["detokenize", "1"], ["status"]])
def test_no_server_is_unavailable_with_the_remedy(arguments, tmp_path):
    done = quintet(*arguments, url=f"unix:{tmp_path}/nobody.sock")
    assert done.returncode == EX_UNAVAILABLE
    assert "quintet up" in done.stderr and "QUINTET_URL" in done.stderr
    assert not done.stdout


# ---- generate ----------------------------------------------------------------------------------------------------


def test_generate_streams_text_and_ends_with_figures(fake):
    fake.replies["/v1/completions"] = fake.stream(ANSWER)
    done = quintet("generate", "zero", "--max-tokens", "3", "--temperature", "0", "--stop", "A", "--stop", "B",
                   "--seed", "7", "--ignore-eos", "--top-k", "4", "--top-p", "0.5", url=fake.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == " one two\n"
    assert re.fullmatch(r"TTFT [\d.]+ ms \| (\d+ tok/s \| )?3 tokens, length"
                        r" \| hops: frontend>tokenizer 0\.05 ms, in tokenizer 0\.12 ms\n", done.stderr), done.stderr
    path, headers, body = fake.requests[0]
    assert headers["x-quintet-mode"] == "research"
    assert body == {"prompt": "zero", "max_tokens": 3, "temperature": 0.0, "stop": ["A", "B"], "seed": 7, "top_k": 4,
                    "top_p": 0.5, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
                    "return_token_ids": True}


def test_generate_sends_only_what_was_asked(fake):
    fake.replies["/v1/completions"] = fake.stream(ANSWER)
    assert quintet("generate", "-q", "zero", url=fake.url).stderr == ""
    assert fake.requests[0][2] == {"prompt": "zero", "max_tokens": 128, "stream": True,
                                   "stream_options": {"include_usage": True}}


def test_generate_three_tokens_at_once_have_no_rate(fake):
    fake.replies["/v1/completions"] = fake.stream(ANSWER)
    assert "tok/s" not in quintet("generate", "zero", url=fake.url).stderr
    assert json.loads(quintet("generate", "-j", "zero", url=fake.url).stdout)["tokens_per_second"] is None


def test_generate_rate_is_of_the_tokens_after_the_first_event(fake):
    """Ninety tokens in the first event took no time that the client saw; the eight after it did."""

    def reply(handler, body):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        write = lambda event: (handler.wfile.write(f"data: {json.dumps(event)}\n\n".encode()), handler.wfile.flush())  # noqa: E731
        write(chunk("a", ids=list(range(90))))
        assert not select.select([handler.connection], [], [], 0.1)[0]  # for a time between the two to speak of
        write(chunk("b", "length", ids=list(range(8))))
        write({**USAGE, "usage": {"prompt_tokens": 1, "completion_tokens": 98, "total_tokens": 99}})
        handler.wfile.write(b"data: [DONE]\n\n")
        handler.close_connection = True

    fake.replies["/v1/completions"] = reply
    answer = json.loads(quintet("generate", "-j", "zero", url=fake.url).stdout)
    assert answer["tokens"] == 98
    # A busy machine may read both at once; then there is no rate.
    assert answer["tokens_per_second"] in (None, pytest.approx(8000 / answer["stream_ms"], rel=1e-6))


def test_generate_takes_token_ids(fake):
    fake.replies["/v1/completions"] = fake.stream(ANSWER)
    for ids in ("464 3797", "464,3797", "[464, 3797]"):
        assert quintet("generate", "-q", "--input-ids", ids, url=fake.url).returncode == 0
    assert all(body["prompt"] == [464, 3797] for _, _, body in fake.requests)


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "//v1//"])
def test_url_may_be_that_of_openai_clients(fake, tail):
    fake.replies["/v1/completions"] = fake.stream(ANSWER)
    fake.replies["/services"], fake.replies["/ready"] = (200, {}, SERVICES), (200, {}, {})
    assert quintet("generate", "-q", "x", "--url", fake.url + tail).returncode == 0
    assert quintet("status", "-q", url=fake.url + tail).returncode == 0


def test_json_errors_are_json(fake, tmp_path):
    refusal = {"message": "must be between 0 and 1", "type": "invalid_request_error", "param": "top_p", "code": 400}
    fake.replies["/v1/completions"] = (400, {}, {"error": refusal})
    done = quintet("generate", "-j", "x", url=fake.url)
    error = json.loads(done.stdout)["error"]
    assert done.returncode == error["exit_status"] == EX_DATAERR and error["server"] == refusal
    fake.replies["/v1/completions"] = fake.stream([chunk(" one"), {"error": {"message": "gone", "code": 503}}])
    done = quintet("generate", "-j", "x", url=fake.url)
    assert json.loads(done.stdout)["error"]["exit_status"] == done.returncode == EX_TEMPFAIL
    for arguments in (["status", "-j"], ["tokenize", "-j", "x"], ["detokenize", "-j", "1"], ["generate", "--json", "x"]):
        done = quintet(*arguments, url=f"unix:{tmp_path}/nobody.sock")
        assert json.loads(done.stdout)["error"]["exit_status"] == done.returncode == EX_UNAVAILABLE
        assert "quintet up" in done.stderr
    for arguments in (["sniff", "-j", "-r", tmp_path / "none"], ["config", "show", "--json", "--config", tmp_path / "none"],
                      ["model", "show", "-j", tmp_path / "none"]):
        done = quintet(*arguments)
        assert json.loads(done.stdout)["error"]["exit_status"] == done.returncode != 0, arguments


def test_generate_json_ids_and_echo(fake):
    fake.replies["/v1/completions"] = fake.stream(ANSWER)
    answer = json.loads(quintet("generate", "-j", "zero", url=fake.url).stdout)
    assert answer["text"] == " one two" and answer["ids"] == [5, 6, 7] and answer["finish_reason"] == "length"
    assert answer["tokens"] == 3 and answer["request_id"] == "fake-1" and answer["ttft_ms"] >= 0
    assert answer["usage"] == USAGE["usage"] and answer["metadata"]["hops"][0]["us"] == 50
    assert quintet("generate", "--ids", "zero", url=fake.url).stdout == "5 6 7\n"
    assert quintet("generate", "--echo", "zero", url=fake.url).stdout == "zero one two\n"


def test_generate_takes_the_prompt_from_input_and_files(fake, tmp_path):
    fake.replies["/v1/completions"] = fake.stream(ANSWER)
    (tmp_path / "prompt").write_text("a file\n")
    assert quintet("generate", "-", url=fake.url, input="from input\n").returncode == 0
    assert quintet("generate", "-f", tmp_path / "prompt", url=fake.url).returncode == 0
    assert quintet("generate", "--", "--help", url=fake.url).returncode == 0
    assert [request[2]["prompt"] for request in fake.requests] == ["from input\n", "a file\n", "--help"]
    assert quintet("generate", "-f", tmp_path / "none", url=fake.url).returncode == EX_NOINPUT


def test_generate_prompt_that_is_no_utf8_is_refused(fake):
    done = subprocess.run([QUINTET, "generate", "-", "--url", fake.url], input=b"\xff\xfe", capture_output=True)
    assert done.returncode == EX_DATAERR and b"UTF-8" in done.stderr and not fake.requests


@pytest.mark.parametrize("status, exit_status", [(400, EX_DATAERR), (429, EX_TEMPFAIL), (503, EX_TEMPFAIL), (500, 70)])
def test_generate_refusal_names_the_field(fake, status, exit_status):
    fake.replies["/v1/completions"] = (status, {"Retry-After": "3"}, {"error": {
        "message": "must be between 0 and 1", "type": "invalid_request_error", "param": "top_p", "code": status}})
    done = quintet("generate", "x", url=fake.url)
    assert done.returncode == exit_status
    assert f"({status}): top_p: must be between 0 and 1" in done.stderr and "try again in 3 s" in done.stderr
    assert not done.stdout


def test_generate_error_inside_the_stream_keeps_what_came(fake):
    fake.replies["/v1/completions"] = fake.stream(
        [chunk(" one"), {"error": {"message": "compute was restarted", "code": 503}}])
    done = quintet("generate", "x", url=fake.url)
    assert done.returncode == EX_TEMPFAIL
    assert done.stdout == " one\n" and "compute was restarted" in done.stderr


@pytest.mark.parametrize("events", [[], [chunk(" one")], [chunk(" one"), "not json"], ["[1]"]])
def test_generate_answer_without_an_end_is_a_protocol_error(fake, events):
    fake.replies["/v1/completions"] = fake.stream(events)
    assert quintet("generate", "x", url=fake.url).returncode == EX_PROTOCOL


def test_generate_interrupted_closes_the_connection(fake):
    fake.replies["/v1/completions"] = fake.stream([chunk(" one")], hang=True)
    process = subprocess.Popen([QUINTET, "generate", "x", "--url", fake.url], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert process.stdout.read(4) == " one"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130 and output == "\n"
    assert fake.client_left.wait(SECONDS)


def test_generate_on_a_terminal_shows_control_characters_instead_of_obeying(fake, terminal):
    fake.replies["/v1/completions"] = fake.stream([chunk("a\x1b[2J\tb\n"), chunk("", "stop"), "[DONE]"])
    leader, follower = terminal
    process = subprocess.Popen([QUINTET, "generate", "-q", "x", "--url", fake.url], stdout=follower)
    os.close(follower)
    shown = b""
    try:
        while data := os.read(leader, 4096):
            shown += data
    except OSError:
        pass
    assert process.wait(SECONDS) == 0
    assert shown == b"a\\x1b[2J\tb\r\n"
    # Through a pipe the bytes are the model's.
    assert quintet("generate", "-q", "x", url=fake.url).stdout == "a\x1b[2J\tb\n"


def test_generate_full_disk_is_an_error(fake):
    fake.replies["/v1/completions"] = fake.stream(ANSWER)
    with open("/dev/full", "w") as full:
        done = subprocess.run([QUINTET, "generate", "x", "--url", fake.url], stdout=full, stderr=subprocess.PIPE,
                              text=True)
    assert done.returncode == 74 and "cannot write" in done.stderr


# ---- status ------------------------------------------------------------------------------------------------------

SERVICES = {"services": [{"name": "compute", "state": "ready", "pid": 42, "epoch": 3, "uptime_s": 75, "restarts": 1,
                          "transport": "ipc", "build": "0.1.0+abc"}]}


def test_status_table_json_and_exit_status(fake):
    fake.replies["/services"] = (200, {}, SERVICES)
    fake.replies["/ready"] = (200, {}, {"ready": True})
    done = quintet("status", url=fake.url)
    assert done.returncode == 0
    assert re.search(r"^compute +ready +42 +1 min +1 +3 +ipc +0\.1\.0\+abc$", done.stdout, re.M), done.stdout
    assert done.stdout.endswith("\nready\n")
    fake.replies["/ready"] = (503, {}, {"error": {"message": "not yet"}})
    done = quintet("status", "-j", url=fake.url)
    assert done.returncode == EX_TEMPFAIL
    assert json.loads(done.stdout) == {"ready": False, **SERVICES}
    assert quintet("status", "-q", url=fake.url).stdout == ""


def test_status_shows_details_and_no_process_of_a_service_that_is_down(fake):
    down = {"name": "memory", "state": "down", "pid": None, "epoch": 4, "uptime_s": 9.5, "restarts": 3, "transport": "ipc",
            "build": "0.1.0+abc", "text": "its process died; last error: no room\x1b[2J"}
    fake.replies["/services"] = (200, {}, {"services": [*SERVICES["services"], down]})
    fake.replies["/ready"] = (503, {}, {})
    done = quintet("status", url=fake.url)
    assert done.returncode == EX_TEMPFAIL
    assert re.search(r"^memory +down +- +- +3 +4 +ipc +0\.1\.0\+abc  its process died; last error: no room", done.stdout, re.M)


def test_real_status_tells_why_a_service_is_down(tmp_path):
    """The frontend alone, and a memory that cannot start: its reason is shown."""
    url = f"unix:{tmp_path}/http.sock"
    settings = ["--run-dir", tmp_path, "--set", f"frontend.listen={url}"]
    failed = subprocess.run([QUINTET.parent / "quintet-memory", *settings, "--set", f"model.path={tmp_path}/none"],
                            capture_output=True, text=True, timeout=SECONDS)
    assert failed.returncode == EX_NOINPUT
    with subprocess.Popen([QUINTET.parent / "quintet-frontend", *settings], stderr=subprocess.DEVNULL) as frontend:
        assert until(lambda: quintet("status", url=url).returncode == EX_TEMPFAIL)
        line = next(line for line in quintet("status", url=url).stdout.splitlines() if line.startswith("memory"))
        frontend.terminate()
        assert frontend.wait(SECONDS) == 0
    assert re.match(rf"memory +down +- +- .*last error: .*{tmp_path}/none", line), line


def test_status_waits_until_ready(fake):
    fake.replies["/services"] = (200, {}, SERVICES)
    looks = []

    def ready(handler, _):
        looks.append(1)
        handler.send_response(200 if len(looks) > 3 else 503)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    fake.replies["/ready"] = ready
    assert quintet("status", "--wait", "30", url=fake.url).returncode == 0
    assert len(looks) == 4


def test_status_waits_no_longer_than_told(fake):
    begin = time.monotonic()
    assert quintet("status", "--wait", "0.5", url="http://127.0.0.1:1").returncode == EX_UNAVAILABLE
    assert time.monotonic() - begin > 0.4


def test_status_of_something_else_is_a_protocol_error(fake):
    fake.replies["/services"] = (200, {}, {"hello": 1})
    fake.replies["/ready"] = (200, {}, {})
    assert quintet("status", url=fake.url).returncode == EX_PROTOCOL


# ---- tokenize, detokenize ----------------------------------------------------------------------------------------


def test_tokenize_and_detokenize_through_the_server(fake):
    fake.replies["/tokenize"] = (200, {}, {"count": 2, "max_model_len": 99, "tokens": [7, 8]})
    fake.replies["/detokenize"] = (200, {}, {"prompt": "a b"})
    assert quintet("tokenize", "a b", url=fake.url).stdout == "7 8\n"
    answer = json.loads(quintet("tokenize", "-j", "--no-special", "a b", url=fake.url).stdout)
    assert answer == {"tokens": [7, 8], "count": 2}
    assert quintet("detokenize", "7", "8,9", "[10]", url=fake.url).stdout == "a b\n"
    assert json.loads(quintet("detokenize", "-j", "--skip-special", "7", url=fake.url).stdout) == {"text": "a b"}
    bodies = [request[2] for request in fake.requests]
    assert bodies == [{"prompt": "a b", "add_special_tokens": True}, {"prompt": "a b", "add_special_tokens": False},
                      {"tokens": [7, 8, 9, 10], "skip_special_tokens": False},
                      {"tokens": [7], "skip_special_tokens": True}]
    done = quintet("tokenize", "--jsonl", url=fake.url, input='"x"\n"y"\n')
    assert done.stdout == "[7,8]\n[7,8]\n"


def test_tokenize_and_detokenize_with_a_file_are_inverse():
    texts = ["", "Hello world", "The SELECT statement\n\n  indented", "caf\u00e9 \u4f60\u597d \U0001f600",
             "nul \u0000 inside"]
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    done = quintet("tokenize", "--tokenizer", MODEL / "tokenizer.json", "--jsonl", "--no-special", input=lines)
    assert done.returncode == 0, done.stderr
    ids = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ids) == len(texts) and ids[0] == [] and all(ids[1:])
    back = quintet("detokenize", "--tokenizer", MODEL, "--jsonl", input=done.stdout)
    assert [json.loads(line) for line in back.stdout.splitlines()] == texts
    one = quintet("tokenize", "--tokenizer", MODEL, "--no-special", "Hello world")
    assert [int(word) for word in one.stdout.split()] == ids[1]
    assert quintet("detokenize", "--tokenizer", MODEL, *ids[1]).stdout == "Hello world\n"


@pytest.mark.parametrize("command, lines, says", [
    ("tokenize", '"ok"\n[1]\n', "line 2 is not a JSON string"),
    ("tokenize", '"ok"\n"open\n', "line 2 is not a JSON string"),
    ("detokenize", '[1]\n{}\n', "line 2 is not a JSON array"),
    ("detokenize", '[1]\n[1, -2]\n', "line 2, element 1 is no token id"),
    ("detokenize", '[1]\n[1, "2"]\n', "line 2, element 1 is no token id"),
])
def test_jsonl_mistake_names_the_line_and_keeps_what_was_done(command, lines, says):
    done = quintet(command, "--tokenizer", MODEL, "--jsonl", input=lines)
    assert done.returncode == EX_DATAERR
    assert says in done.stderr and done.stdout.count("\n") == 1


def test_tokenizer_file_that_is_not_there(tmp_path):
    done = quintet("tokenize", "--tokenizer", tmp_path / "none.json", "x")
    assert done.returncode == EX_NOINPUT and "none.json" in done.stderr


# ---- sniff without services --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words, caret, says", [
    (["src", "shceduler"], 4, "did you mean scheduler"),
    (["src scheduler and type StepPlam"], 23, "did you mean StepPlan"),
    (["stepp > 5"], 0, "did you mean step"),
])
def test_sniff_filter_mistake_points_at_the_word(words, caret, says):
    done = quintet("sniff", *words)
    assert done.returncode == EX_USAGE
    message, text, pointer = done.stderr.splitlines()
    assert says in message and text == "  " + " ".join(words) and pointer == "  " + " " * caret + "^"


def test_sniff_waits_for_services_and_says_who_is_missing(tmp_path):
    process = subprocess.Popen([QUINTET, "sniff", "--run-dir", tmp_path], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    assert "not there yet: frontend, tokenizer, scheduler, memory, compute" in line
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0 and output == "" and "0 messages shown\n0 received\n0 missed\n" in errors


def test_sniff_reading_what_is_no_capture(tmp_path):
    (tmp_path / "x").write_text("hello")
    assert quintet("sniff", "-r", tmp_path / "x").returncode == EX_DATAERR
    assert quintet("sniff", "-r", tmp_path / "none").returncode == EX_NOINPUT
    assert quintet("sniff", "-w", tmp_path / "no/such/dir").returncode == EX_CANTCREAT


# ---- real services -----------------------------------------------------------------------------------------------


class Up:
    """`quintet up` on the bundled model; HTTP on a Unix socket in the run directory."""

    def __init__(self, directory, *arguments):
        self.run_dir = directory
        self.url = f"unix:{directory}/http.sock"
        self.log = directory / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [QUINTET, "up", "--run-dir", directory, "--set", f"frontend.listen={self.url}", *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        done = quintet("status", "--wait", SECONDS, "-q", url=self.url)
        assert done.returncode == 0, f"not ready ({done.returncode}):\n{self.log.read_text()}"

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise

    def quintet(self, *arguments, **how):
        return quintet(*arguments, url=self.url, **how)

    def sniff(self, *arguments):
        """A sniffer that hears: its first line was a heartbeat of every service."""
        process = subprocess.Popen([QUINTET, "sniff", "--run-dir", self.run_dir, *map(str, arguments)],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stderr.readline()
        return process


@pytest.fixture(scope="module", params=["ipc", "inproc"])
def up(request, tmp_path_factory):
    services = Up(tmp_path_factory.mktemp("run"), *(["--inproc"] if request.param == "inproc" else []))
    yield services
    assert services.stop() == 0, services.log.read_text()


def test_real_status_names_the_five(up):
    answer = json.loads(up.quintet("status", "-j").stdout)
    assert answer["ready"]
    names = {service["name"] for service in answer["services"]}
    assert names >= {"frontend", "tokenizer", "scheduler", "memory", "compute"}
    assert all(service["state"] == "ready" for service in answer["services"])


def test_real_generate_streams_and_repeats(up):
    done = up.quintet("generate", "The SELECT statement ", "--max-tokens", "16", "--temperature", "0", "--ignore-eos")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "16 tokens, length" in done.stderr and "hops: frontend>tokenizer" in done.stderr
    answer = json.loads(up.quintet("generate", "The SELECT statement ", "--max-tokens", "16", "--temperature", "0",
                                   "--ignore-eos", "-j").stdout)
    assert answer["text"] + "\n" == done.stdout or answer["text"] == done.stdout
    assert len(answer["ids"]) == 16 and answer["tokens"] == 16


def test_real_stop_text_and_bad_field(up):
    arguments = ["generate", "The SELECT statement ", "-m", "32", "-t", "0", "-j"]
    whole = json.loads(up.quintet(*arguments).stdout)["text"]
    word = whole.split()[3]
    cut = json.loads(up.quintet(*arguments, "--stop", word).stdout)
    assert cut["text"] == whole[:whole.index(word)] and cut["finish_reason"] == "stop"
    done = up.quintet("generate", "x" * 100000)
    assert done.returncode == EX_DATAERR


def test_real_tokenize_agrees_with_the_file(up):
    text = "The SELECT statement retrieves rows; caf\u00e9 \U0001f600"
    by_server = up.quintet("tokenize", text).stdout
    assert by_server == quintet("tokenize", "--tokenizer", MODEL, text).stdout
    assert up.quintet("detokenize", "--skip-special", *by_server.split()).stdout == text + "\n"


@pytest.fixture(scope="module")
def capture(up, tmp_path_factory):
    """What the five said to one another during one request, and its answer."""
    path = tmp_path_factory.mktemp("capture") / "trace.qncap"
    process = up.sniff("-a", "-w", path)
    # Heartbeats come four times a second: once all five are in the file, nothing said later is missed.
    heard = until(lambda: path.exists() and all(
        name in path.read_bytes() for name in (b"frontend\0\0", b"tokenizer\0\0", b"scheduler\0\0", b"memory\0\0",
                                               b"compute\0\0")))
    assert heard
    done = up.quintet("generate", "The SELECT statement ", "-m", "8", "-t", "0", "--ignore-eos", "-j")
    answer = json.loads(done.stdout)
    size = path.stat().st_size
    assert until(lambda: path.stat().st_size > size + 2000)  # and a second of heartbeats more
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0 and "\n0 missed\n" in errors, errors
    return path, answer


def read(path, *arguments):
    done = quintet("sniff", "-r", path, "-q", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_real_sniff_shows_the_way_of_a_request_in_order(capture):
    path, answer = capture
    messages = [json.loads(line) for line in read(path, "-j", "not type Heartbeat|Credit|Hello")]
    assert all(m["direction"] == "sent" and "message" in m for m in messages)
    assert [m["time"] for m in messages] == sorted(m["time"] for m in messages)
    request = next(m for m in messages if m["type"] == "Encode")["requests"][0]
    mine = [json.loads(line) for line in read(path, "-j", f"req {request}")]
    order = [m["type"] for m in mine]
    for earlier, later in [("Encode", "Submit"), ("Submit", "Lease"), ("Lease", "Grant"), ("Grant", "StepPlan"),
                           ("StepPlan", "StepResult"), ("StepResult", "TokenBatch"), ("TokenBatch", "TextDelta"),
                           ("TextDelta", "Release")]:
        assert order.index(earlier) < (len(order) - 1 - order[::-1].index(later)), (earlier, later, order)
    ids = [t["id"] for m in mine if m["type"] == "TokenBatch" for t in m["message"].get("tokens", [])
           if t["request"] == request]
    assert ids == answer["ids"]


def test_real_sniff_lines_filters_and_hex(capture):
    path, answer = capture
    lines = read(path, "src scheduler and type StepPlan")
    shape = r"\d\d:\d\d:\d\d\.\d{6} scheduler > compute StepPlan req \d+ #\d+ \d+ bytes  step \d+, "
    assert lines and all(re.match(shape, line) for line in lines), lines[0]
    assert "fcfs" in lines[0]
    assert len(read(path, "-c", "2", "src scheduler and type StepPlan")) == 2
    assert read(path, "StepPlan.step < 0 or bytes > 99999999") == []
    assert read(path, "type Heartbeat") and not any("Heartbeat" in line for line in read(path))
    assert any("Heartbeat" in line for line in read(path, "-a"))
    hexed = read(path, "-x", "-c", "1", "type Encode")
    assert hexed[1].startswith("        0x0000:  ") and "QENC" in hexed[1]
    frame = bytes.fromhex(json.loads(read(path, "-j", "-x", "-c", "1", "type Encode")[0])["hex"])
    assert frame[4:8] == b"QENC"


def test_real_sniff_capture_cut_short_is_read_up_to_the_cut(capture, tmp_path):
    path, _ = capture
    data = path.read_bytes()
    whole = len(read(path, "-a"))
    torn = tmp_path / "torn"
    torn.write_bytes(data[:-5])
    done = quintet("sniff", "-a", "-r", torn)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == whole - 1 and "torn record" in done.stderr
    # The documented format, read by hand.
    assert data[:8] == b"QNTCAP\r\n" and struct.unpack_from("<I", data, 8) == (2,)
    offset, records = 32, 0
    while offset < len(data):
        size, = struct.unpack_from("<I", data, offset)
        offset, records = offset + 8 + size, records + 1
    assert records == len([line for line in read(path, "-a") if " -- " not in line])


def test_real_sniff_capture_goes_through_pipes(capture, tmp_path):
    path, _ = capture
    data = path.read_bytes()
    done = subprocess.run([QUINTET, "sniff", "-r", "-", "-q", "-a"], input=data, capture_output=True, timeout=SECONDS)
    assert done.returncode == 0 and done.stdout.decode().splitlines() == read(path, "-a")
    copy = subprocess.run([QUINTET, "sniff", "-r", "-", "-w", "-", "-a"], input=data, capture_output=True, timeout=SECONDS)
    assert copy.returncode == 0, copy.stderr
    (tmp_path / "copy").write_bytes(copy.stdout)
    assert read(tmp_path / "copy", "-a") == read(path, "-a")
    assert quintet("sniff", "-r", path, "-w", "-", "--print").returncode == EX_USAGE


def test_real_sniff_short_field_names_and_request_names(capture):
    path, answer = capture
    assert read(path, "finish = length") and not read(path, "finish = stop")
    assert read(path, "max_tokens = 8") and not read(path, "temperature > 0")
    number = next(json.loads(line) for line in read(path, "-j", "type Encode"))["requests"][0]
    assert read(path, f"req {answer['request_id']}") == read(path, f"req {number}")
    assert len(read(path, f"req {answer['request_id']}")) > 20


def test_real_sniff_live_by_request_name_misses_nothing(up):
    """A filter that names one request hears of it alone, all of it."""
    process = up.sniff("-j", "req my-job.7 and not type Heartbeat")
    lines = []
    thread = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))
    thread.start()

    def ask():
        body = {"prompt": "x", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        done = subprocess.run(["curl", "-sf", "--unix-socket", up.url.removeprefix("unix:"), "http://x/v1/completions",
                               "-H", "x-request-id: my-job.7", "-H", "content-type: application/json", "-d",
                               json.dumps(body)], capture_output=True, timeout=SECONDS)
        assert done.returncode == 0, done
        return any('"Release"' in line for line in list(lines))

    assert until(ask)  # subscriptions take a moment to reach the taps
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    thread.join(SECONDS)
    types = {json.loads(line)["type"] for line in lines}
    assert {"Encode", "Submit", "StepPlan", "StepResult", "TokenBatch", "TextDelta", "Release"} <= types
    assert "\n0 missed\n" in process.stderr.read()


def test_real_sniff_live_follows_a_restarted_service(tmp_path):
    services = Up(tmp_path)
    process = services.sniff("--print", "-w", tmp_path / "all", "type Heartbeat and src tokenizer")
    lines = []
    threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True).start()
    assert until(lambda: len(lines) > 1)
    status = json.loads(services.quintet("status", "-j").stdout)["services"]
    os.kill(next(s["pid"] for s in status if s["name"] == "tokenizer"), signal.SIGKILL)
    assert until(lambda: any("tokenizer: started anew" in line for line in list(lines))), "".join(lines)
    count = len(lines)
    assert until(lambda: len(lines) > count + 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    assert services.stop() == 0


def make_run(tmp_path, **environment):
    # The run directory lies in TMPDIR, and the path of a socket is short; pytest's own is long where it ran often.
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as short:
        return make_run_in(short, **environment)


def make_run_in(tmp_path, **environment):
    done = subprocess.run([ROOT / "tools/make_run.sh"], capture_output=True, text=True, timeout=120, cwd=ROOT,
                          stdin=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path), **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The SELECT statement" in done.stdout and "TTFT" in done.stdout + done.stderr
    assert os.listdir(tmp_path) == []
    return re.search(r"\(quintet up\) on (\S+) ", done.stdout)[1]


def test_make_run_script_answers_on_a_free_port_and_stops(tmp_path):
    with socket.socket() as taken:  # if not by this test, then by somebody else
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8000))
            taken.listen()
        except OSError:
            pass
        url = make_run(tmp_path, QUINTET_FRONTEND_LISTEN="")
    assert url.startswith("http://127.0.0.1:") and not url.endswith(":8000")


def test_make_run_script_obeys_the_environment(tmp_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("socket") / "http"
    assert make_run(tmp_path, QUINTET_FRONTEND_LISTEN=f"unix:{path}", TOKENS="4") == f"unix:{path}"
