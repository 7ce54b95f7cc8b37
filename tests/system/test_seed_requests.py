"""Requests as people type them: curl -d without a header, plain fields, nothing but what is needed."""
import json

import pytest

from test_http import curl

FORM = "application/x-www-form-urlencoded"


def post(server, path, body, *more):
    """As `curl -d` does it. Gives status and reply."""
    out = curl("-w", "\n%{http_code}", *more, "-d", body if isinstance(body, str) else json.dumps(body), server.url + path)
    text, status = out.rsplit("\n", 1)
    return int(status), json.loads(text)


def test_generate_with_a_prompt_alone(server):
    status, reply = post(server, "/generate", {"prompt": "Hello world", "max_tokens": 10})
    assert status == 200 and len(reply["output_ids"]) <= 10 and reply["text"]
    status, reply = post(server, "/generate", {"prompt": "Hello", "ignore_eos": True})
    assert status == 200 and reply["meta_info"]["completion_tokens"] == 50


def test_plain_generate_is_the_same_as_sglangs(server):
    status, plain = post(server, "/generate", {"prompt": "The SELECT statement", "max_tokens": 12, "temperature": 0, "stop": ["zzz"]})
    assert status == 200
    status, nested = post(server, "/generate", {"text": "The SELECT statement", "sampling_params": {
        "max_new_tokens": 12, "temperature": 0, "stop": ["zzz"]}})
    assert status == 200 and plain["output_ids"] == nested["output_ids"]


def test_batch_answers_in_order_as_each_alone(server):
    prompts = ["Hello", "World", "The SELECT statement"]
    status, batch = post(server, "/batch_generate", {"prompts": prompts, "max_tokens": 6, "temperature": 0})
    assert status == 200
    for prompt, output in zip(prompts, batch["outputs"], strict=True):
        alone = post(server, "/generate", {"prompt": prompt, "max_tokens": 6, "temperature": 0})[1]
        assert output["output_ids"] == alone["output_ids"] and output["text"] == alone["text"]
    status, batch = post(server, "/batch_generate", {"prompts": ["Hello", "World"]})
    assert status == 200 and len(batch["outputs"]) == 2


def test_tokenize_takes_text(server):
    status, reply = post(server, "/tokenize", {"text": "Hello world"})
    assert status == 200 and reply["count"] == len(reply["tokens"]) > 0


@pytest.mark.parametrize("path", ["/generate", "/batch_generate", "/tokenize", "/v1/completions"])
def test_page_of_another_origin_cannot_post_unasked(server, path):
    """A browser sends a form to any address without a preflight, but names its origin."""
    status, reply = post(server, path, {"prompt": "a", "prompts": ["a"]}, "-H", "Origin: http://elsewhere.example")
    assert status == 415 and FORM in reply["error"]["message"]
    status, reply = post(server, path, "hello")
    assert status == 400


def test_batch_schedule_as_the_seeds_ask(server):
    body = {"algorithm": "priority_queue", "requests": [{"prompt": "Hello", "priority": 1, "max_tokens": 50},
                                                        {"prompt": "World", "priority": 2, "max_tokens": 30}],
            "max_batch_size": 4, "strategy": "minimize_latency"}
    status, reply = post(server, "/optimization/batch_schedule", body)
    assert status == 200 and [bool(row["text"]) for row in reply["outputs"]] == [True, True]
    assert reply["schedule"][0]["sequences"][0]["phase"] == "prefill" and len(reply["reasons"]) == 2
    assert reply["order"] == [0, 1] and reply["metrics"]["tokens_per_s"] > 0


def test_parallel_and_cache(server):
    status, split = post(server, "/parallel/tensor_split", {"tensor_shape": [4, 512, 768], "split_dim": 0, "num_splits": 2})
    assert status == 200 and [row["id"] for row in split["splits"]] == ["split_0", "split_1"]
    status, reply = post(server, "/parallel/execute", {"splits": ["split_0", "split_1"], "operation": "matmul", "gather": True})
    assert status == 200 and reply["results"][0]["shape"] == [4, 512, 768] and "seed 1" in reply["with"]
    status, reply = post(server, "/cache/clear", {})
    assert status == 200 and "freed_blocks" in reply
