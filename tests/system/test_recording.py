"""The recorder: over HTTP and as a command; its timelines against the trace event format."""
import collections
import json
import pathlib
import subprocess

import pytest
from engine import BUILD, SERVICES, Engine

PROCESSES = SERVICES + ["device"]


@pytest.fixture(scope="module", params=[(), ("--inproc",)], ids=["ipc", "inproc"])
def engine(request):
    with Engine(*request.param) as running:
        yield running


def check_trace(trace):
    """What viewers demand: slices of a track nest, arrows have both ends and lie in slices, asynchronous slices end."""
    tracks, arrows, open_slices = collections.defaultdict(list), collections.defaultdict(list), collections.Counter()
    for event in trace["traceEvents"]:
        phase = event["ph"]
        assert isinstance(event["pid"], int) and phase in "MXistfbeC", event
        if phase == "M":
            continue
        assert event["ts"] >= 0 and event["tid"] == 1, event
        if phase == "X":
            assert event["dur"] >= 0
            tracks[event["pid"]].append((event["ts"], event["ts"] + event["dur"], event["name"]))
        elif phase in "stf":
            arrows[event["cat"], event["id"]].append(event)
        elif phase in "be":
            open_slices[event["id"], event["name"]] += 1 if phase == "b" else -1
    assert not any(open_slices.values()), open_slices
    slack = 0.0005    # times are written in whole nanoseconds, read as floating point
    for slices in tracks.values():
        stack = []
        for begin, end, name in sorted(slices, key=lambda row: (row[0], -row[1])):
            while stack and stack[-1] <= begin + slack:
                stack.pop()
            assert not stack or end <= stack[-1] + slack, (name, begin, end)
            stack.append(end)
    for events in arrows.values():
        phases = [event["ph"] for event in sorted(events, key=lambda event: (event["ts"], "stf".index(event["ph"])))]
        assert phases[0] == "s" and phases[-1] == "f" and set(phases[1:-1]) <= {"t"}, phases
        for event in events:
            assert any(begin - slack <= event["ts"] <= end + slack for begin, end, _ in tracks[event["pid"]]), event
    return tracks, arrows


def process_names(trace):
    return {event["pid"]: event["args"]["name"] for event in trace["traceEvents"]
            if event["ph"] == "M" and event["name"] == "process_name"}


def start(engine, **body):
    status, reply = engine.call("POST", "/debug/profiling/start", body or None)
    assert status == 200, reply
    return reply


def stop(engine):
    status, reply = engine.call("POST", "/debug/profiling/stop")
    assert status == 200, reply
    return reply


def complete(engine, name, **fields):
    body = {"prompt": "The SELECT statement", "max_tokens": 8, "temperature": 0, "ignore_eos": True, **fields}
    status, reply = engine.call("POST", "/v1/completions", body, {"x-request-id": name})
    assert status == 200, reply


def test_recording_has_all_that_was_sent_after_its_start(engine):
    begun = start(engine)
    assert begun["services"] == SERVICES and begun["name"] == "recording" and begun["max_s"] == 60
    complete(engine, "one")
    complete(engine, "two", n=2)
    ended = stop(engine)
    trace = ended["trace"]
    assert ended["ended"] == "stopped" and ended["missed"] == 0 and not ended["truncated"]
    assert ended["requests"] == 3 and ended["steps"] >= 16 and ended["hops"] > 3 * 16
    assert json.loads(pathlib.Path(ended["trace_path"]).read_text()) == trace
    names = process_names(trace)
    assert sorted(names.values()) == sorted(PROCESSES)
    tracks, arrows = check_trace(trace)
    on = {name: [row[2] for row in tracks[pid]] for pid, name in names.items()}
    assert sum(name.startswith("step ") for name in on["device"]) == ended["steps"]
    assert "Encode" in on["tokenizer"] and "Submit" in on["scheduler"] and "Lease" in on["memory"]
    assert "StepPlan" in on["compute"] and "TextDelta" in on["frontend"] and "turn" in on["frontend"]
    ways = [[names[event["pid"]] for event in events] for (kind, _), events in arrows.items() if kind == "request"]
    assert len(ways) == 3
    for way in ways:
        assert way[0] == way[-1] == "frontend" and set(way) == set(PROCESSES), way
    parts = collections.Counter(event["name"] for event in trace["traceEvents"] if event["ph"] == "b")
    assert parts == {"request": 3, "tokenize": 3, "queue": 3, "prefill": 3, "decode": 3}


def test_recording_tells_the_same_again_and_starts_anew(engine):
    start(engine, name="again", max_s=30)
    first = stop(engine)
    assert stop(engine) == first and first["name"] == "again" and first["requests"] == 0
    check_trace(first["trace"])
    start(engine, name="other")
    assert stop(engine)["name"] == "other"


def test_recording_ends_by_itself(engine):
    begun = start(engine, name="short", max_s=1)
    trace = pathlib.Path(begun["capture_path"].replace(".qncap", ".trace.json"))
    engine.wait_for(lambda: trace.exists() and trace.read_text().endswith("}\n"), 20, "the recording's own end")
    assert stop(engine)["ended"] == "time over"


def test_recording_keeps_a_bounded_number(engine):
    for i in range(10):
        start(engine, name=f"many-{i}")
        stop(engine)
    kept = list(pathlib.Path(engine.run_dir, "recordings").glob("*.qncap"))
    assert len(kept) == 8 and pathlib.Path(engine.run_dir, "recordings/many-9.qncap") in kept
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)


@pytest.mark.parametrize("body,param", [
    ({"name": "../out"}, "name"), ({"name": ".hidden"}, "name"), ({"name": "a b"}, "name"), ({"name": "n" * 64}, "name"),
    ({"max_s": 0}, "max_s"), ({"max_s": 601}, "max_s"), ({"seconds": 3}, "seconds"),
])
def test_recording_refuses_what_it_cannot_do(engine, body, param):
    status, reply = engine.call("POST", "/debug/profiling/start", body)
    assert status == 400 and reply["error"]["param"] == param, reply


def test_recording_runs_one_at_a_time():
    with Engine() as engine:
        status, reply = engine.call("POST", "/debug/profiling/stop")
        assert status == 409 and "start" in reply["error"]["message"]
        start(engine, name="first")
        assert start(engine, name="first")["name"] == "first"
        status, reply = engine.call("POST", "/debug/profiling/start", {"name": "second"})
        assert status == 409 and reply["error"]["param"] == "name"
        status, reply = engine.call("POST", "/debug/profiling/stop", {"name": "second"})
        assert status == 404 and "first" in reply["error"]["message"]
        assert stop(engine)["name"] == "first"


def test_recording_goes_on_over_a_death():
    with Engine(failpoints="compute.before_step:4:kill:1") as engine:
        start(engine)
        complete(engine, "survivor", max_tokens=16)
        trace = stop(engine)["trace"]
        tracks, _ = check_trace(trace)
        assert sum(row[2].startswith("step ") for row in tracks[len(PROCESSES)]) >= 3


def quintet(*arguments, **options):
    return subprocess.run([BUILD / "quintet", *arguments], capture_output=True, text=True, timeout=60, **options)


def test_record_and_trace_commands(engine, tmp_path):
    recorder = subprocess.Popen([BUILD / "quintet", "record", "by-hand", "--json", "--run-dir", engine.run_dir],
                                stdout=subprocess.PIPE, text=True)
    capture = pathlib.Path(engine.run_dir, "recordings/by-hand.qncap")
    recorded = 0
    try:
        engine.wait_for(lambda: capture.exists(), 20, "the capture")
        while capture.stat().st_size < 10000:    # until the taps know of it
            complete(engine, f"by-hand-{recorded}")
            recorded += 1
    finally:
        recorder.terminate()
    figures = json.loads(recorder.communicate(timeout=60)[0])
    assert recorder.returncode == 0 and figures["end"] == "stopped" and figures["messages"] > 0
    assert figures["path"] == str(capture)
    made = quintet("trace", "by-hand", "--run-dir", engine.run_dir, "--output", tmp_path / "trace.json")
    assert made.returncode == 0, made.stderr
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert set(process_names(trace).values()) >= {"scheduler", "compute", "device"} and trace["traceEvents"]
    piped = quintet("trace", "-q", "-", stdin=capture.open("rb"))
    assert json.loads(piped.stdout) == trace and piped.stderr == ""
    shown = quintet("sniff", "-q", "-j", "-r", capture, "type StepPlan")
    assert shown.returncode == 0 and len(shown.stdout.splitlines()) == trace["otherData"]["steps"]


def test_trace_of_a_torn_capture_is_whole_json(engine, tmp_path):
    start(engine, name="torn")
    complete(engine, "torn")
    stop(engine)
    whole = pathlib.Path(engine.run_dir, "recordings/torn.qncap").read_bytes()
    torn = tmp_path / "torn.qncap"
    torn.write_bytes(whole[:len(whole) * 2 // 3])
    made = quintet("trace", torn)
    trace = json.loads(made.stdout)
    assert made.returncode == 0 and "torn" in made.stderr and trace["otherData"]["torn"] is True


@pytest.mark.parametrize("arguments,status,words", [
    (("trace", "/nowhere/at.all"), 66, "cannot open"),
    (("trace",), 64, "wants one"),
    (("record",), 64, "wants one"),
    (("record", "a b", "--run-dir", "/tmp"), None, "no name of a recording"),
    (("record", "x", "--seconds", "0"), 64, "seconds"),
])
def test_record_and_trace_say_what_is_wrong(arguments, status, words):
    made = quintet(*arguments)
    assert made.returncode and (status is None or made.returncode == status) and words in made.stderr, made.stderr
