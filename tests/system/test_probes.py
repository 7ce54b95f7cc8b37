"""Masks, patches, taps, attention scores and stages over HTTP: what they do, what they leave alone, what survives a kill."""
import array
import json
import mmap
import os
import socket
import struct
import threading

import pytest
from engine import Engine

IDS = list(range(20, 120))
MASK_ROUTE = "/optimization/sparsity_mask"
STEERING = [{"point": "layer.2.resid", "values": [(i % 7 - 3) * 0.3 for i in range(256)], "scale": 4.0}]


@pytest.fixture(scope="module")
def engine():
    with Engine() as running:
        yield running


def generate(engine, tokens=8, ids=IDS, **fields):
    body = {"input_ids": ids, "sampling_params": {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}, **fields}
    status, reply = engine.call("POST", "/generate", body)
    assert status == 200, reply
    return reply


# ---- masks and patches of a request ----

PROBES = [
    {"sparsity_mask": {"mask_pattern": "top_k", "k": 32, "threshold": 0.1}},
    {"sparsity_mask": {"sparsity_ratio": 0.8, "method": "top_k"}},
    {"sparsity_mask": {"method": "window", "window": 16}},
    {"sparsity_mask": {"method": "sink_window", "window": 12}},
    {"sparsity_mask": [{"method": "block_top_k", "k": 2}, {"method": "top_k", "k": 4, "layers": [0, 2], "heads": 1}]},
    {"patches": STEERING},
]


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: json.dumps(probe)[:50])
def test_probes_never_share_blocks_with_others(engine, probe):
    """The prefix cache is filled in either order: nobody gets what another's probe wrote."""
    ids = [7 + PROBES.index(probe)] + IDS
    first = generate(engine, ids=ids, **probe)
    plain = generate(engine, ids=ids)
    again = generate(engine, ids=ids, **probe)
    other = generate(engine, ids=ids, sparsity_mask={"method": "top_k", "k": 1})
    assert first["meta_info"]["cached_tokens"] == plain["meta_info"]["cached_tokens"] == 0
    assert other["meta_info"]["cached_tokens"] == 0
    assert again["meta_info"]["cached_tokens"] > 0 and again["output_ids"] == first["output_ids"]
    assert first["output_ids"] != plain["output_ids"]
    assert generate(engine, ids=ids)["output_ids"] == plain["output_ids"]
    share = first["meta_info"].get("kv_read_share")
    assert (0 < share < 1) if "sparsity_mask" in probe else share is None
    assert "kv_read_share" not in plain["meta_info"]


def test_probes_a_window_reads_its_share(engine):
    ids = [5] * 64
    share = generate(engine, 1, ids=ids, sparsity_mask={"method": "window", "window": 16})["meta_info"]["kv_read_share"]
    expected = sum(min(p + 1, 16) for p in range(64)) / sum(p + 1 for p in range(64))
    assert abs(share - expected) < 1e-6


def test_probes_leave_those_beside_them_alone(engine):
    alone = [generate(engine, 24, ids=IDS[:30 + i])["output_ids"] for i in range(4)]
    masked = [generate(engine, 24, ids=IDS[:30 + i], sparsity_mask={"method": "top_k", "k": 3})["output_ids"]
              for i in range(4)]
    results = {}

    def run(name, i, **fields):
        results[name, i] = generate(engine, 24, ids=IDS[:30 + i], **fields)["output_ids"]

    threads = [threading.Thread(target=run, args=("plain", i)) for i in range(4)]
    threads += [threading.Thread(target=run, args=("masked", i), kwargs={"sparsity_mask": {"method": "top_k", "k": 3}})
                for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results["plain", i] for i in range(4)] == alone
    assert [results["masked", i] for i in range(4)] == masked


@pytest.mark.parametrize("service", ["scheduler", "compute", "memory"])
def test_probes_survive_a_kill(service):
    probe = {"sparsity_mask": {"method": "top_k", "k": 6}, "patches": STEERING}
    with Engine() as engine:
        wanted = generate(engine, 200, **probe)["output_ids"]
        before, got = engine.epochs(), []
        thread = threading.Thread(target=lambda: got.append(generate(engine, 200, ids=IDS, cache_salt="other", **probe)))
        thread.start()
        engine.wait_for(lambda: engine.used_blocks() > 0, 20, "blocks in use")
        engine.kill(service)
        thread.join()
        engine.wait_reborn({service: before[service]})
        assert got[0]["output_ids"] == wanted


@pytest.mark.parametrize("mask,param", [
    ({"method": "x"}, "sparsity_mask.method"), ({"method": "top_k"}, "sparsity_mask.k"), ({"k": 0}, "sparsity_mask.k"),
    ({"k": 3, "layers": 99}, "sparsity_mask.layers"), ({"k": 3, "heads": [0, 4]}, "sparsity_mask.heads"),
    ({}, "sparsity_mask.method"), ({"kk": 3}, "sparsity_mask.kk"), (5, "sparsity_mask"), ({"threshold": 2}, "sparsity_mask.threshold"),
    ({"method": "window", "window": 4, "k": 2}, "sparsity_mask.k"), ({"k": 3, "layers": []}, "sparsity_mask.layers"),
])
def test_probes_bad_masks_are_refused(engine, mask, param):
    status, reply = engine.call("POST", "/generate", {"input_ids": IDS, "sparsity_mask": mask})
    assert status == 400 and reply["error"]["param"] == param, reply


@pytest.mark.parametrize("patch", [
    {"point": "layer.2.resid", "values": [1, 2]}, {"point": "layer.8.resid", "values": [0] * 256}, {"values": [0] * 256},
    {"point": "logits", "values": [0] * 4096}, {"point": "resid", "values": [0] * 256}, {"point": "embed", "valuess": []},
    {"point": "embed", "values": [0] * 256, "action": "multiply"}, {"point": "embed", "values": [0] * 256, "positions": [3, 3]},
])
def test_probes_bad_patches_are_refused(engine, patch):
    status, reply = engine.call("POST", "/generate", {"input_ids": IDS, "patches": [patch]})
    assert status == 400 and reply["error"]["param"].startswith("patches"), reply


# ---- the session's mask ----

def test_probes_session_mask_is_inherited_and_survives(engine):
    before = generate(engine)["output_ids"]
    assert engine.get(MASK_ROUTE)["mask"] == []
    for body in ({"mask_pattern": "top_k", "k": 32, "threshold": 0.1}, {"sparsity_ratio": 0.8, "method": "top_k"}):
        set_now = engine.post(MASK_ROUTE, body)
        assert set_now["active"] and set_now["id"] and engine.get(MASK_ROUTE) == set_now
        own = generate(engine, sparsity_mask=body)
        assert generate(engine)["output_ids"] == own["output_ids"] != before
        assert generate(engine, sparsity_mask="none")["output_ids"] == before
    epochs = engine.epochs()
    engine.kill("scheduler")
    engine.wait_reborn({"scheduler": epochs["scheduler"]})
    assert engine.get(MASK_ROUTE) == set_now and generate(engine)["output_ids"] == own["output_ids"]
    assert engine.call("DELETE", MASK_ROUTE)[1]["active"] is False
    assert generate(engine)["output_ids"] == before
    status, reply = engine.call("POST", MASK_ROUTE, {"method": "top_k", "k": 3, "scope": {"request": "x"}})
    assert status == 400 and reply["error"]["param"] == "scope"


# ---- taps, scores, stages ----

def test_probes_requests_of_the_seeds(engine):
    scores = engine.post("/debug/attention_scores", {"prompt": "The cat sat on the mat", "layer_idx": 5, "head_idx": 3})
    size = len(scores["tokens"])
    assert [len(row) for row in scores["attention_matrix"]] == [size] * size
    assert all(abs(sum(row) - 1) < 1e-5 for row in scores["attention_matrix"])
    assert 0 <= scores["sparsity_ratio"] <= 1 and scores["entropy"] > 0
    every = engine.post("/debug/attention_scores", {"prompt": "The quick brown fox", "layer_idx": 6})
    assert len(every["attention_matrix"]) == len(every["per_head"]) == 4
    embed = engine.post("/pipeline/step_execute", {"step": "embed", "input_ids": [101, 752, 2088], "return_intermediate": True})
    assert embed["output"]["shape"] == [3, 256] and len(embed["output"]["values"][2]) == 256
    status, reply = engine.call("POST", "/pipeline/step_execute", {"step": "embed", "input_ids": [101, 7592, 2088]})
    assert status == 400 and "7592" in reply["error"]["message"] and "4096" in reply["error"]["message"]
    attention = engine.post("/pipeline/step_execute", {"step": "attention", "overlap": True})
    assert attention["layer_idx"] == 0 and attention["output"]["shape"][1] == 256
    schedule = engine.post("/pipeline/schedule", {"steps": ["tokenize", "embed", "attention", "output"], "batch_size": 4,
                                                  "overlap_comm": True})
    assert len(schedule["schedule"]) == 16 and schedule["total_with_overlap_ms"] > 0
    for row in schedule["schedule"]:
        assert 0 <= row["start_ms"] <= row["end_ms"] <= schedule["total_with_overlap_ms"]


def test_probes_chain_of_stages_is_generate(engine):
    ids = engine.post("/pipeline/step_execute", {"step": "tokenize", "prompt": "Hello world"})["output"]["ids"]
    wanted, got = generate(engine, 4, ids=ids)["output_ids"], []
    for _ in range(4):
        body, steps = {"input_ids": ids + got}, ["embed"] + [f"layer.{i}" for i in range(8)] + ["sample"]
        for step in steps:
            output = engine.post("/pipeline/step_execute", {**body, "step": step})["output"]
            body["input"] = output.get("values")
        got.append(output["id"])
    assert got == wanted


def test_probes_taps_and_patches_of_a_prompt(engine):
    points = ["embed", "layer.*.resid", "layer.3.attn.q", "layer.3.mlp.out", "norm", "logits"]
    reply = engine.post("/debug/taps", {"input_ids": IDS[:6], "points": points, "positions": [2, 5]})
    names = [row["point"] for row in reply["points"]]
    assert names == ["embed"] + [f"layer.{i}.resid" for i in range(8)] + points[2:]
    for row in reply["points"]:
        assert row["shape"][0] == 3 == len(row["values"]) and row["summary"]["nan_count"] == 0
        flat = [value for line in row["values"] for value in line]
        assert abs(sum(flat) / len(flat) - row["summary"]["mean"]) < 1e-4
    patched = engine.post("/debug/taps", {"input_ids": IDS, "points": ["embed"], "patches": STEERING})
    assert patched["next_id"] == generate(engine, 1, patches=STEERING)["output_ids"][0]


def test_probes_a_living_request_is_seen_from_its_resident_keys(engine):
    body = {"input_ids": IDS[:40], "sampling_params": {"max_new_tokens": 1900, "temperature": 0, "ignore_eos": True}}
    thread = threading.Thread(target=lambda: engine.call("POST", "/generate", body, {"x-request-id": "alive"}))
    thread.start()
    ask = {"layer_idx": 2, "positions": [20, 30]}

    seen = []

    def scores():
        status, reply = engine.call("POST", "/debug/attention_scores", {"request": "alive", **ask})
        return status == 200 and not seen.append(reply)

    engine.wait_for(scores, 20, "scores of a living request")
    living = seen[0]
    fresh = engine.post("/debug/attention_scores", {"input_ids": IDS[:40], **ask})
    assert [[row[:30] for row in head] for head in living["attention_matrix"]] == fresh["attention_matrix"]
    tapped = engine.post("/debug/taps", {"request": "alive", "positions": [3, 5], "points": ["layer.7.resid"]})
    same = engine.post("/debug/taps", {"input_ids": IDS[:40], "positions": [3, 5], "points": ["layer.7.resid"]})
    assert tapped["points"] == same["points"]
    engine.call("POST", "/abort_request", {"rid": "alive"})
    thread.join()
    status, reply = engine.call("POST", "/debug/taps", {"request": "alive"})
    assert status == 404 and reply["error"]["param"] == "request"


def map_handle(handle):
    """Bytes of a tensor in the workspace, mapped: nothing is copied on the way."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(handle["fd_socket"])
        client.send(request_bytes(handle))
        _, ancillary, _, _ = client.recvmsg(64, socket.CMSG_SPACE(4))
    fd = array.array("i", ancillary[0][2])[0]
    view = mmap.mmap(fd, handle["region_bytes"], prot=mmap.PROT_READ)
    os.close(fd)
    return view[handle["offset"]:handle["offset"] + handle["bytes"]]


def request_bytes(handle):
    """fd_socket.h: what a client of the socket sends."""
    return struct.pack("=IIQ", 0x44464E51, handle["epoch"], handle["region"])


def test_probes_large_tensors_are_handles_that_a_process_maps(engine):
    small = engine.post("/debug/taps", {"input_ids": IDS[:4], "points": ["layer.1.resid"]})["points"][0]
    body = {"ids": IDS[:4], "taps": [{"site": "resid", "layer": 1}], "inline_values": 0}
    reply = engine.post("/services/compute/forward", body)
    tensor, handle = reply["taps"][0], reply["handle"]
    assert reply["values"] == [] and tensor["shape"] == [4, 256]
    usage = engine.post("/services/memory/usage", {})
    assert usage["tap_bytes"] >= handle["region_bytes"]
    data = map_handle({**handle, "offset": tensor["offset"], "bytes": tensor["bytes"]})
    assert list(array.array("f", data)) == pytest.approx([v for row in small["values"] for v in row], abs=1e-6)


@pytest.mark.parametrize("route,body,param", [
    ("/debug/attention_scores", {"prompt": "x", "layer_idx": 8}, "layer_idx"),
    ("/debug/attention_scores", {"prompt": "x", "head_idx": 4}, "head_idx"),
    ("/debug/attention_scores", {"prompt": "x", "positions": [0, 99]}, "positions"),
    ("/debug/attention_scores", {"prompt": "x", "input_ids": [1]}, "prompt"),
    ("/debug/attention_scores", {"request": "nobody"}, "request"),
    ("/debug/taps", {"points": ["layer.8.resid"]}, "points"),
    ("/debug/taps", {"points": "embed"}, "points"),
    ("/debug/taps", {"input_ids": []}, "input_ids"),
    ("/debug/taps", {"tops": 3}, "tops"),
    ("/pipeline/step_execute", {"step": "layer.8"}, "layer_idx"),
    ("/pipeline/step_execute", {"step": "embeds"}, "step"),
    ("/pipeline/step_execute", {}, "step"),
    ("/pipeline/step_execute", {"step": "mlp", "input_ids": [1], "input": [1, 2]}, "input"),
    ("/pipeline/step_execute", {"step": "mlp", "input_ids": [1], "input": {"region": 1, "epoch": 99, "offset": 0}}, "input_region"),
    ("/pipeline/schedule", {"steps": []}, "steps"),
    ("/pipeline/schedule", {"batch_size": 17}, "batch_size"),
])
def test_probes_bad_fields_are_named(engine, route, body, param):
    status, reply = engine.call("POST", route, body)
    assert 400 <= status < 500 and reply["error"]["param"] == param, (status, reply)


def test_probes_kill_of_compute_and_memory_leaves_calls_working(engine):
    for service in ("compute", "memory"):
        before = engine.epochs()
        engine.kill(service)
        engine.wait_reborn({service: before[service]})
        engine.wait_for(lambda: engine.call("POST", "/debug/taps", {"input_ids": [1, 2, 3]})[0] == 200, 30, "taps again")
    leases = engine.post("/services/compute/forward", {"ids": [1], "taps": [{"site": "resid"}], "inline_values": 0})
    assert leases["handle"]["lease"] > 0


def test_probes_without_a_workspace_say_so():
    with Engine(memory__workspace_bytes="0") as engine:
        assert engine.post("/debug/taps", {"input_ids": [1, 2]})["points"]
        status, reply = engine.call("POST", "/services/compute/forward",
                                    {"ids": [1], "taps": [{"site": "resid"}], "inline_values": 0})
        assert status == 501 and "workspace" in reply["error"]["message"], reply
