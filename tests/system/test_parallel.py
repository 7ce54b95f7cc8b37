"""Tensors that are split and computed on, against numpy; bounds, owners, and what runs beside."""
import math
import threading

import numpy as np
import pytest
from engine import Engine


@pytest.fixture(scope="module")
def engine():
    with Engine() as running:
        yield running


@pytest.fixture(autouse=True)
def empty(request):
    if "engine" in request.fixturenames:
        request.getfixturevalue("engine").post("/services/compute/tensor_drop", {"all": True})


def random(shape, seed):
    """compute's random tensors: SplitMix64 of (seed, i), 24 bits of it, in [-1, 1)."""
    mask = (1 << 64) - 1
    numbers = []
    for i in range(math.prod(shape)):
        x = (seed * 0x9E3779B97F4A7C15 + (i + 1) * 0xD1342543DE82EF95) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        x ^= x >> 31
        numbers.append((x >> 40) * 2.0**-23 - 1)
    return np.array(numbers, np.float32).reshape(shape)


def values(reply, i=0):
    row = reply["results"][i]
    flat = reply["values"][row["values_offset"]:row["values_offset"] + row["values_count"]]
    return np.array(flat, np.float32).reshape(row["shape"])


def execute(engine, **body):
    return engine.post("/parallel/execute", body)


def refused(engine, method, path, body, status, param, words=""):
    got, reply = engine.call(method, path, body)
    assert got == status and reply["error"]["param"] == param and words in reply["error"]["message"], (got, reply)


def erf(x):
    return np.vectorize(math.erf)(x.astype(np.float64))


REFERENCE = {
    "softmax": lambda x: np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True),
    "rmsnorm": lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5),
    "layernorm": lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def test_parallel_requests_of_the_seeds(engine):
    split = engine.post("/parallel/tensor_split", {"tensor_shape": [4, 512, 768], "split_dim": 0, "num_splits": 2})
    assert [row["id"] for row in split["splits"]] == ["split_0", "split_1"]
    assert [(row["shape"], row["offset"]) for row in split["splits"]] == [([2, 512, 768], 0), ([2, 512, 768], 2)]
    reply = execute(engine, splits=["split_0", "split_1"], operation="matmul", gather=True)
    assert reply["results"][0]["shape"] == [4, 512, 768] and "seed 1" in reply["with"]
    assert reply["values_left_out"] and reply["values"] == [] and reply["moved_bytes"] > 0
    assert len(reply["workers"]) == 2 and all(row["us"] > 0 for row in reply["workers"])
    page = engine.post("/services/compute/tensor_values", {"tensor_id": reply["result_id"], "offset": 768 * 600, "limit": 768})
    x = random([1, 1, 768], 0)  # the first row, to compare one that is elsewhere with numpy
    assert page["total"] == 4 * 512 * 768 and len(page["values"]) == 768
    first = engine.post("/services/compute/tensor_values", {"tensor_id": reply["result_id"], "limit": 768})["values"]
    assert np.allclose(first, x[0, 0] @ random([768, 768], 1), atol=1e-4)
    assert engine.call("DELETE", f"/parallel/{split['tensor_id']}")[0] == 200
    refused(engine, "DELETE", f"/parallel/{split['tensor_id']}", None, 404, "tensor_id")


@pytest.mark.parametrize("size,asked,sizes", [(6, 2, [3, 3]), (7, 2, [4, 3]), (7, 3, [3, 3, 1]), (5, 4, [2, 2, 1]), (3, 3, [1, 1, 1]),
                                              (2, 5, [1, 1]), (4, 1, [4])])
def test_parallel_pieces_are_those_of_torch_chunk(engine, size, asked, sizes):
    for shape, dim in [([size, 3], 0), ([2, size, 3], 1), ([2, size, 3], -2), ([3, size], 1), ([size], 0)]:
        split = engine.post("/parallel/tensor_split", {"tensor_shape": shape, "fill": "arange", "split_dim": dim, "num_splits": asked})
        x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
        pieces = np.split(x, np.cumsum(sizes)[:-1], axis=dim)
        assert [row["shape"] for row in split["splits"]] == [list(piece.shape) for piece in pieces]
        reply = execute(engine, operation="relu")
        for i, piece in enumerate(pieces):
            assert np.array_equal(values(reply, i), piece)
        assert np.array_equal(values(execute(engine, operation="relu", gather=True)), x)


@pytest.mark.parametrize("operation", REFERENCE)
def test_parallel_operations_are_those_of_numpy_and_the_same_in_pieces(engine, operation):
    x = random([4, 5, 48], 3)
    whole = values(execute(engine, tensor=x.tolist(), operation=operation, gather=True))
    assert np.allclose(whole, REFERENCE[operation](x.astype(np.float64)), atol=2e-6)
    for dim, pieces in [(0, 3), (1, 2)]:
        engine.post("/parallel/tensor_split", {"tensor_shape": [4, 5, 48], "seed": 3, "split_dim": dim, "num_splits": pieces})
        assert np.array_equal(values(execute(engine, operation=operation, gather=True)), whole)  # bit by bit
    norm = operation.endswith("norm")
    status, reply = engine.call("POST", "/parallel/execute",
                                {"tensor": x.tolist(), "operation": operation, "with": list(range(48)), "gather": True})
    assert (status == 200) == norm, reply
    if norm:
        assert np.allclose(values(reply), whole * np.arange(48), atol=1e-4)


def test_parallel_matmul_in_rows_is_bit_exact_and_in_columns_a_sum(engine):
    x, w = random([6, 7, 40], 5), random([40, 24], 9)
    whole = values(execute(engine, tensor=x.tolist(), **{"with": w.tolist()}, operation="matmul", gather=True))
    assert np.allclose(whole, x @ w, atol=1e-5)
    for dim in [0, 1]:
        engine.post("/parallel/tensor_split", {"tensor_shape": [6, 7, 40], "seed": 5, "split_dim": dim, "num_splits": 4})
        assert np.array_equal(values(execute(engine, operation="matmul", **{"with": w.tolist()}, gather=True)), whole)
    engine.post("/parallel/tensor_split", {"tensor": x.tolist(), "split_dim": -1, "num_splits": 4})
    assert np.allclose(values(execute(engine, operation="matmul", **{"with": w.tolist()}, reduce="sum")), whole, atol=1e-5)
    refused(engine, "POST", "/parallel/execute", {"operation": "matmul", "with": w.tolist(), "gather": True}, 400, "gather", "sum")


def test_parallel_add_and_mul_broadcast_as_numpy(engine):
    x = random([3, 4, 8], 1)
    for other in [random([3, 4, 8], 2), random([8], 2), random([4, 1], 2), random([1], 2), random([3, 1, 8], 2)]:
        for dim in range(3):
            engine.post("/parallel/tensor_split", {"tensor_shape": [3, 4, 8], "seed": 1, "split_dim": dim, "num_splits": 3})
            for operation, expected in [("add", x + other), ("mul", x * other)]:
                reply = execute(engine, operation=operation, **{"with": other.tolist()}, gather=True)
                assert np.array_equal(values(reply), expected)
    kept = engine.post("/parallel/tensor_split", {"tensor": x.tolist()})["tensor_id"]
    assert np.array_equal(values(execute(engine, tensor_id=kept, operation="add", **{"with": kept}, gather=True)), x + x)
    engine.post("/parallel/tensor_split", {"tensor_id": kept, "split_dim": 1, "num_splits": 4})
    assert np.allclose(values(execute(engine, operation="relu", reduce="sum")), np.maximum(x, 0).sum(1, keepdims=True), atol=1e-6)
    refused(engine, "POST", "/parallel/execute", {"operation": "add", "with": [1, 2, 3]}, 400, "with", "does not suit")


def test_parallel_bf16_rounds_as_bf16(engine):
    x = random([5, 9], 4)
    split = engine.post("/parallel/tensor_split", {"tensor": x.tolist(), "dtype": "bf16"})
    rounded = values(execute(engine, operation="add", **{"with": [0]}, gather=True))
    bits = x.view(np.uint32)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    assert split["dtype"] == "bf16" and np.array_equal(rounded, expected)


def test_parallel_summaries_and_some_pieces_only(engine):
    engine.post("/parallel/tensor_split", {"tensor": [[0, 1], [2, 3], [4, 5]], "num_splits": 3})
    reply = execute(engine, splits=["split_2", "split_0"], operation="relu", gather=True)
    assert values(reply).tolist() == [[4, 5], [0, 1]]
    summary = reply["results"][0]["summary"]
    assert (summary["min"], summary["max"], summary["mean"], summary["zeros"], summary["nan_count"]) == (0, 5, 2.5, 0.25, 0)
    assert abs(summary["std"] - np.std([4, 5, 0, 1])) < 1e-6


@pytest.mark.parametrize("path,body,status,param", [
    ("tensor_split", {}, 400, "tensor_shape"),
    ("tensor_split", {"tensor_shape": [2, 0]}, 400, "tensor_shape"),
    ("tensor_split", {"tensor_shape": [1 << 12, 1 << 13]}, 400, "tensor_shape"),
    ("tensor_split", {"tensor_shape": [2] * 9}, 400, "tensor_shape"),
    ("tensor_split", {"tensor_shape": [2, 2], "split_dim": 2}, 400, "split_dim"),
    ("tensor_split", {"tensor_shape": [2, 2], "split_dim": -3}, 400, "split_dim"),
    ("tensor_split", {"tensor_shape": [2, 2], "num_splits": 0}, 400, "num_splits"),
    ("tensor_split", {"tensor_shape": [2, 2], "num_splits": 65}, 400, "num_splits"),
    ("tensor_split", {"tensor_shape": [2, 2], "dtype": "f16"}, 400, "dtype"),
    ("tensor_split", {"tensor_shape": [2, 2], "fill": "ones"}, 400, "fill"),
    ("tensor_split", {"tensor": [[1, 2], [3]]}, 400, "tensor"),
    ("tensor_split", {"tensor": [["a"]]}, 400, "tensor"),
    ("tensor_split", {"tensor": {"shape": [3], "values": [1, 2]}}, 400, "tensor"),
    ("tensor_split", {"tensor": "t99"}, 404, "tensor_id"),
    ("tensor_split", {"tensor": [1], "tensor_shape": [1]}, 400, "tensor_shape"),
    ("execute", {"operation": "relu"}, 404, "tensor_id"),
    ("execute", {"operation": "conv", "tensor": [1]}, 400, "operation"),
    ("execute", {"operation": "relu", "tensor": [1], "reduce": "max"}, 400, "reduce"),
    ("execute", {"operation": "relu", "tensor": [1], "reduce": "sum", "gather": True}, 400, "reduce"),
    ("execute", {"operation": "add", "tensor": [1]}, 400, "with"),
    ("execute", {"operation": "relu", "tensor": [1], "with": [1]}, 400, "with"),
    ("execute", {"operation": "matmul", "tensor": [1, 2], "with": [[1], [2], [3]]}, 400, "with"),
    ("execute", {"operation": "relu", "splits": ["piece"]}, 400, "splits"),
    ("execute", {"operation": "relu", "splits": ["split_0", "split_0"]}, 400, "splits"),
    ("execute", {"operation": "relu", "tensor": [1], "splits": ["split_0"]}, 400, "tensor"),
    ("execute", {"operation": "relu", "tensor": [1], "eps": 2}, 400, "eps"),
    ("execute", {"tensor": [1]}, 400, "operation"),
    ("execute", {"operation": "matmul", "tensor": [[0] * 5000]}, 413, "with"),
])
def test_parallel_refuses_by_name(engine, path, body, status, param):
    refused(engine, "POST", f"/parallel/{path}", body, status, param)
    assert engine.get("/parallel/tensors")["tensors"] == []
    assert engine.get("/parallel/tensors")["free_bytes"] == 256 << 20


def test_parallel_uneven_pieces_and_rows_that_are_split_are_refused(engine):
    engine.post("/parallel/tensor_split", {"tensor_shape": [3, 4], "num_splits": 2})
    refused(engine, "POST", "/parallel/execute", {"operation": "relu", "reduce": "sum"}, 400, "reduce")
    refused(engine, "POST", "/parallel/execute", {"operation": "relu", "splits": ["split_2"]}, 404, "splits")
    engine.post("/parallel/tensor_split", {"tensor_shape": [3, 4], "split_dim": 1})
    for operation in ["softmax", "rmsnorm", "layernorm"]:
        refused(engine, "POST", "/parallel/execute", {"operation": operation}, 400, "operation")


def test_parallel_bounds_owners_and_deadlines():
    with Engine(compute__tensor_bytes="64KiB", frontend__max_inline_values=100) as engine:
        engine.post("/parallel/tensor_split", {"tensor_shape": [100, 100], "owner": "ann"})
        refused(engine, "POST", "/parallel/tensor_split", {"tensor_shape": [100, 100]}, 413, "tensor_shape", "compute.tensor_bytes")
        refused(engine, "POST", "/services/compute/tensor_values", {"limit": 101}, 413, "limit", "max_inline_values")
        kept = engine.get("/parallel/tensors")["tensors"]
        assert [(row["owner"], row["shape"]) for row in kept] == [("ann", [100, 100])]
        assert engine.post("/services/compute/tensor_drop", {"owner": "ann"})["dropped"] == 1
        engine.post("/parallel/tensor_split", {"tensor_shape": [2], "ttl_s": 1})
        engine.wait_for(lambda: engine.get("/parallel/tensors")["tensors"] == [], 30, "its time is over")
        assert engine.get("/parallel/tensors")["free_bytes"] == 64 << 10


def test_parallel_work_changes_no_request_that_runs(engine):
    prompts = [[(p * 17 + i) % 200 + 3 for i in range(30)] for p in range(6)]
    expected = engine.generate_many(prompts, 64)
    engine.post("/parallel/tensor_split", {"tensor_shape": [64, 128], "num_splits": 4})
    first = execute(engine, operation="matmul", gather=True)["values"]
    failures = []

    def work():
        for _ in range(20):
            if execute(engine, operation="matmul", gather=True)["values"] != first:
                failures.append("another result")

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        assert engine.generate_many(prompts, 64) == expected
    worker.join()
    assert not failures


def test_parallel_tensors_outlive_memory():
    with Engine() as engine:
        engine.post("/parallel/tensor_split", {"tensor_shape": [4, 4], "fill": "arange"})
        before = {"memory": engine.epochs()["memory"]}
        engine.kill("memory")
        engine.wait_reborn(before)
        assert values(execute(engine, operation="relu", gather=True)).ravel().tolist() == list(range(16))
