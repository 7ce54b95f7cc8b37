"""The HTTP API through the clients that people have: the openai package, curl, requests, load generators."""
import asyncio
import concurrent.futures
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import openai
import pytest
import requests

from engine import BUILD, SERVICES, SLOW, Engine, free_port

PROMPT = "The SELECT statement"
GREEDY = {"model": "default", "temperature": 0}


def post(server, path, body, **how):
    return requests.post(server.url + path, json=body, timeout=60 * SLOW, **how)


def events(text):
    """The JSON values of a stream; checks its framing."""
    assert text.endswith("data: [DONE]\n\n"), text[-200:]
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(block[6:]) for block in blocks[:-1]]


def stream(server, body, path="/v1/completions"):
    reply = post(server, path, {**body, "stream": True}, stream=True)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    return events(reply.content.decode())


def curl(*arguments):
    done = subprocess.run(["curl", "-sS", "--max-time", str(30 * SLOW), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- the openai package -------------------------------------------------------------------------------------------


def test_openai_completion(client):
    reply = client.completions.create(prompt=PROMPT, max_tokens=8, **GREEDY)
    assert reply.object == "text_completion" and reply.model == "default" and reply.id.startswith("cmpl-")
    assert abs(reply.created - time.time()) < 60 * SLOW
    assert [choice.index for choice in reply.choices] == [0]
    assert reply.choices[0].finish_reason == "length" and reply.choices[0].text
    assert reply.usage.completion_tokens == 8
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 8


def test_openai_stream_equals_the_whole(client):
    whole = client.completions.create(prompt=PROMPT, max_tokens=24, **GREEDY)
    chunks = list(client.completions.create(prompt=PROMPT, max_tokens=24, stream=True,
                                            stream_options={"include_usage": True}, **GREEDY))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24
    assert all(c.usage is None for c in chunks[:-1])
    assert len(chunks) > 10  # token by token, not at the end


def test_openai_async_requests_answer_together(server):
    async def ask():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0,
                                      timeout=60 * SLOW) as client:
            async def one():
                text = ""
                async for chunk in await client.completions.create(prompt=PROMPT, max_tokens=16, stream=True, **GREEDY):
                    text += chunk.choices[0].text
                return text
            return await asyncio.gather(*[one() for _ in range(8)])
    texts = asyncio.run(ask())
    assert len(set(texts)) == 1 and texts[0]


def test_openai_prompt_forms_agree(client, server):
    ids = post(server, "/tokenize", {"prompt": PROMPT}).json()["tokens"]
    forms = {"text": PROMPT, "ids": ids, "texts": [PROMPT, PROMPT], "lists": [ids, ids, ids]}
    texts = {}
    for name, prompt in forms.items():
        reply = client.completions.create(prompt=prompt, max_tokens=6, **GREEDY)
        assert [c.index for c in reply.choices] == list(range({"text": 1, "ids": 1, "texts": 2, "lists": 3}[name]))
        assert reply.usage.prompt_tokens == len(ids) * len(reply.choices)
        texts[name] = {choice.text for choice in reply.choices}
    assert all(found == texts["text"] for found in texts.values())


def test_openai_choices_are_seeded(client):
    how = {"model": "default", "prompt": PROMPT, "max_tokens": 12, "temperature": 1.0, "seed": 7}
    first = client.completions.create(n=3, **how)
    again = client.completions.create(n=3, **how)
    assert [c.text for c in first.choices] == [c.text for c in again.choices]
    assert len({c.text for c in first.choices}) > 1
    assert first.usage.completion_tokens == sum(1 for _ in first.choices) * 12
    third = client.completions.create(**{**how, "seed": 9})  # choice i has seed + i
    assert third.choices[0].text == first.choices[2].text


def test_openai_best_of_shows_the_likeliest(client):
    how = {"model": "default", "prompt": PROMPT, "max_tokens": 8, "temperature": 1.0, "seed": 3, "logprobs": 0}
    mean = lambda choice: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)
    every = client.completions.create(n=4, **how)
    best = client.completions.create(n=1, best_of=4, **how)
    assert best.choices[0].text == max(every.choices, key=mean).text
    assert best.usage.completion_tokens == every.usage.completion_tokens


def test_openai_stop_strings_end_the_text(client):
    whole = client.completions.create(prompt=PROMPT, max_tokens=24, **GREEDY).choices[0].text
    stop = whole.split()[3]
    reply = client.completions.create(prompt=PROMPT, max_tokens=24, stop=["never seen", stop], **GREEDY).choices[0]
    assert reply.text == whole[:whole.index(stop)] and reply.finish_reason == "stop"
    assert reply.stop_reason == stop
    kept = client.completions.create(prompt=PROMPT, max_tokens=24, stop=stop, **GREEDY,
                                     extra_body={"include_stop_str_in_output": True}).choices[0]
    assert kept.text == whole[:whole.index(stop) + len(stop)]
    streamed = client.completions.create(prompt=PROMPT, max_tokens=24, stop=stop, stream=True, **GREEDY)
    assert "".join(c.choices[0].text for c in streamed) == reply.text


def test_openai_stop_token_ids_and_min_tokens(client):
    how = {"prompt": PROMPT, "max_tokens": 12, **GREEDY}
    ids = client.completions.create(extra_body={"return_token_ids": True}, **how).choices[0].token_ids
    reply = client.completions.create(extra_body={"stop_token_ids": [ids[2]]}, **how)
    assert reply.choices[0].finish_reason == "stop" and reply.choices[0].stop_reason == ids[2]
    assert reply.usage.completion_tokens <= ids.index(ids[2]) + 1
    longer = client.completions.create(extra_body={"stop_token_ids": [ids[2]], "min_tokens": 8}, **how)
    assert longer.usage.completion_tokens >= 8


def test_openai_logit_bias_and_penalties_change_the_choice(client):
    how = {"prompt": PROMPT, "max_tokens": 4, **GREEDY}
    ids = client.completions.create(extra_body={"return_token_ids": True}, **how).choices[0].token_ids
    banned = client.completions.create(logit_bias={str(ids[0]): -100}, extra_body={"return_token_ids": True}, **how)
    assert ids[0] != banned.choices[0].token_ids[0]
    forced = client.completions.create(logit_bias={"777": 100}, extra_body={"return_token_ids": True}, **how)
    assert forced.choices[0].token_ids == [777] * 4
    varied = client.completions.create(logit_bias={"777": 100}, presence_penalty=2, frequency_penalty=2,
                                       extra_body={"return_token_ids": True, "repetition_penalty": 100}, **how)
    assert varied.choices[0].token_ids[:2] != [777, 777]


def test_openai_logprobs_are_consistent(client):
    reply = client.completions.create(prompt=PROMPT, max_tokens=6, logprobs=3, **GREEDY).choices[0]
    found = reply.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 6
    assert "".join(found.tokens) == reply.text
    for token, logprob, top, offset in zip(found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset):
        assert top[token] == logprob == max(top.values())  # greedy, and the same number in both places
        assert 3 <= len(top) <= 4 and math.fsum(math.exp(v) for v in top.values()) <= 1.0001
        assert reply.text[offset:].startswith(token)


def test_openai_errors_are_the_package_s_own(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-4", prompt="x")
    assert missing.value.body["param"] == "model" and missing.value.body["code"] == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(prompt="x", **{**GREEDY, "temperature": -1})
    assert bad.value.body["param"] == "temperature" and "from 0 to 100" in bad.value.body["message"]
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(prompt=[5] * 3000, max_tokens=1, **GREEDY)
    assert "2048" in long.value.body["message"]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="default", messages=[{"role": "user", "content": "x"}])


def test_openai_models(client):
    listed = client.models.list().data
    assert [m.id for m in listed] == ["default"] and listed[0].max_model_len == 2048
    assert client.models.retrieve("default").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")


# ---- what lm-evaluation-harness and others rely on ---------------------------------------------------------------


def test_loglikelihood_of_token_prompts(server):
    """local-completions: a list of token-id prompts with echo, logprobs and one token that is thrown away."""
    texts = [PROMPT + " is used to retrieve rows", "A module is a file"]
    prompts = [post(server, "/tokenize", {"prompt": text}).json()["tokens"] for text in texts]
    reply = post(server, "/v1/completions", {"model": "default", "prompt": prompts, "temperature": 0, "max_tokens": 1,
                                             "logprobs": 1, "seed": 1234, "echo": True}).json()
    for ids, text, choice in zip(prompts, texts, sorted(reply["choices"], key=lambda c: c["index"])):
        found = choice["logprobs"]
        assert len(found["token_logprobs"]) == len(ids) + 1
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        assert "".join(found["tokens"][:-1]) == text and choice["text"].startswith(text)
        assert all(value < 0 for value in found["token_logprobs"][1:])
        for value, top in zip(found["token_logprobs"][1:], found["top_logprobs"][1:]):
            assert value <= max(top.values())
        assert found["text_offset"][len(ids)] == len(text)
    none = post(server, "/v1/completions", {"prompt": prompts[0], "max_tokens": 0, "logprobs": 1, "echo": True}).json()
    assert none["choices"][0]["text"] == texts[0] and none["usage"]["completion_tokens"] == 0
    echoed = none["choices"][0]["logprobs"]["token_logprobs"]
    wanted = reply["choices"][0]["logprobs"]["token_logprobs"][:-1]
    assert echoed[1:] == pytest.approx(wanted[1:], abs=1e-4)


def test_echo_of_text_needs_no_logprobs(server):
    text = "caf\u00e9 \u20ac \U0001F600 SELECT"
    reply = post(server, "/v1/completions", {"prompt": text, "max_tokens": 3, "temperature": 0, "echo": True}).json()
    assert reply["choices"][0]["text"].startswith(text)
    chunks = stream(server, {"prompt": text, "max_tokens": 3, "temperature": 0, "echo": True, "logprobs": 0})
    assert "".join(c["choices"][0]["text"] for c in chunks) == reply["choices"][0]["text"]
    offsets = [offset for c in chunks for offset in c["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == sorted(offsets) and offsets[-3] == len(text)


def test_vllm_prompt_logprobs_and_truncation(server):
    ids = post(server, "/tokenize", {"prompt": PROMPT}).json()["tokens"]
    body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 2, "return_token_ids": True}
    choice = post(server, "/v1/completions", body).json()["choices"][0]
    assert choice["prompt_token_ids"] == ids and choice["prompt_logprobs"][0] is None
    for wanted, entry in zip(ids[1:], choice["prompt_logprobs"][1:]):
        assert str(wanted) in entry and 2 <= len(entry) <= 3
    cut = post(server, "/v1/completions", {**body, "truncate_prompt_tokens": 2, "echo": True}).json()
    assert cut["choices"][0]["prompt_token_ids"] == ids[-2:] and cut["usage"]["prompt_tokens"] == 2
    kept = post(server, "/detokenize", {"tokens": ids[-2:]}).json()["prompt"]
    assert PROMPT.endswith(kept) and cut["choices"][0]["text"].startswith(kept)


def test_continuous_usage_counts_up(server):
    chunks = stream(server, {"prompt": PROMPT, "max_tokens": 6, "temperature": 0,
                             "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
    counts = [c["usage"]["completion_tokens"] for c in chunks]
    assert counts == sorted(counts) and counts[-1] == 6
    assert len({c["usage"]["prompt_tokens"] for c in chunks}) == 1 and chunks[0]["usage"]["prompt_tokens"] > 0


def test_streams_of_several_prompts_are_separate(server):
    prompts = [PROMPT, "A module is", "The kernel"]
    whole = post(server, "/v1/completions", {"prompt": prompts, "n": 2, "max_tokens": 8, "temperature": 0}).json()
    chunks = stream(server, {"prompt": prompts, "n": 2, "max_tokens": 8, "temperature": 0})
    texts = [""] * 6
    ends = []
    for chunk in chunks:
        for choice in chunk["choices"]:
            assert choice["index"] not in ends
            texts[choice["index"]] += choice["text"]
            if choice["finish_reason"]:
                ends.append(choice["index"])
    assert sorted(ends) == list(range(6))
    assert texts == [c["text"] for c in whole["choices"]]


# ---- SGLang's API --------------------------------------------------------------------------------------------------


def test_sglang_generate(server):
    ids = post(server, "/tokenize", {"prompt": PROMPT}).json()["tokens"]
    body = {"sampling_params": {"max_new_tokens": 6, "temperature": 0}, "return_logprob": True, "logprob_start_len": 0,
            "top_logprobs_num": 2}
    by_text = post(server, "/generate", {"text": PROMPT, **body}).json()
    by_ids = post(server, "/generate", {"input_ids": ids, **body}).json()
    assert by_text["text"] == by_ids["text"] and by_text["output_ids"] == by_ids["output_ids"]
    meta = by_ids["meta_info"]
    assert meta["prompt_tokens"] == len(ids) and meta["completion_tokens"] == 6 and meta["e2e_latency"] > 0
    assert meta["finish_reason"] == {"type": "length", "length": 6}
    assert [entry[1] for entry in meta["output_token_logprobs"]] == by_ids["output_ids"]
    assert "".join(entry[2] for entry in meta["output_token_logprobs"]) == by_ids["text"]
    assert [entry[1] for entry in meta["input_token_logprobs"]] == ids and meta["input_token_logprobs"][0][0] is None
    assert "".join(entry[2] for entry in meta["input_token_logprobs"]) == PROMPT
    for entry, top in zip(meta["output_token_logprobs"], meta["output_top_logprobs"]):
        assert len(top) == 2 and top[0] == entry
    assert by_text["meta_info"]["input_token_logprobs"] == meta["input_token_logprobs"]


def test_sglang_stream_is_cumulative(server):
    body = {"text": PROMPT, "rid": "my-rid", "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
    whole = post(server, "/generate", body).json()
    found = stream(server, body, "/generate")
    assert found[-1]["text"] == whole["text"] and found[-1]["output_ids"] == whole["output_ids"]
    assert all(later["text"].startswith(earlier["text"]) for earlier, later in zip(found, found[1:]))
    assert [e["meta_info"]["finish_reason"] is None for e in found] == [True] * (len(found) - 1) + [False]
    assert {e["meta_info"]["id"] for e in found} == {"my-rid"}
    assert {e["meta_info"]["prompt_tokens"] for e in found} == {whole["meta_info"]["prompt_tokens"]}


def test_sglang_batch_answers_a_list(server):
    sampling = {"max_new_tokens": 4, "temperature": 0}
    replies = post(server, "/generate", {"text": [PROMPT, "The kernel"], "sampling_params": sampling}).json()
    alone = post(server, "/generate", {"text": "The kernel", "sampling_params": sampling})
    assert [len(r["output_ids"]) for r in replies] == [4, 4]
    assert replies[1]["output_ids"] == alone.json()["output_ids"]


# ---- curl and plain HTTP -------------------------------------------------------------------------------------------


def test_curl_streams_without_buffering(server):
    body = json.dumps({"prompt": PROMPT, "max_tokens": 200, "temperature": 0, "ignore_eos": True, "stream": True})
    process = subprocess.Popen(["curl", "-sSN", server.url + "/v1/completions", "-H", "content-type: application/json",
                                "-d", body], stdout=subprocess.PIPE)
    first = process.stdout.readline()
    early = process.poll() is None
    rest = process.stdout.read()
    assert process.wait(60 * SLOW) == 0
    assert first.startswith(b"data: {") and early
    assert len(events((first + rest).decode())) > 100


def test_curl_keeps_the_connection_and_the_id(server):
    out = curl("-i", "-H", "x-request-id: one-two", server.url + "/ping", server.url + "/version")
    assert out.count("HTTP/1.1 200") == 2 and "x-request-id: one-two" in out
    trace = subprocess.run(["curl", "-sv", server.url + "/ping", server.url + "/ping"], capture_output=True, text=True)
    assert "Re-using existing connection" in trace.stderr or "Re-using" in trace.stderr
    assert "HTTP/1.1 200" in curl("-I", server.url + "/health")


def test_curl_expect_continue_with_a_large_prompt(server, tmp_path):
    file = tmp_path / "body.json"
    file.write_text(json.dumps({"prompt": "word " * 300000}))
    out = curl("-i", "-H", "content-type: application/json", "-H", "Expect: 100-continue", "--data-binary", f"@{file}",
               server.url + "/tokenize")
    assert "HTTP/1.1 200" in out
    assert json.loads(out.split("\n\n")[-1])["count"] >= 300000


@pytest.mark.parametrize("method, path, headers, body, status, has", [
    ("GET", "/v1/completions", {}, None, 405, "allow: post"),
    ("DELETE", "/health", {}, None, 405, "allow: get, head"),
    ("GET", "/nothing/here", {}, None, 404, '"code":"not_found"'),
    ("POST", "/v1/completions", {"content-type": "text/plain"}, "{}", 415, "application/json"),
    ("POST", "/v1/completions", {}, "{", 400, "line 1"),
    ("POST", "/v1/completions", {}, "[" * 100000, 400, "levels of lists"),
    ("POST", "/v1/completions", {}, '{"prompt":"a","prompt":"b"}', 400, "duplicate"),
    ("POST", "/v1/completions", {}, '{"prompt":"\\ud800"}', 400, "not valid json"),
    ("POST", "/v1/completions", {}, '{"prompt":"a","seed":1e400}', 400, "not valid json"),
    ("POST", "/v1/completions", {}, '{"prompt":"a","suffix":"b"}', 400, '"param":"suffix"'),
    ("POST", "/generate", {}, '{"text":"a","sampling_params":{"top_p":2}}', 400, '"param":"sampling_params.top_p"'),
    ("POST", "/v1/completions", {"x-request-id": "a b"}, '{"prompt":"a"}', 400, '"param":"x-request-id"'),
    ("POST", "/v1/completions", {}, '{"prompt":[]}', 400, '"param":"prompt"'),
    ("POST", "/v1/completions", {}, '{"prompt":[4096]}', 400, '"param":"prompt"'),
    ("POST", "/detokenize", {}, '{"tokens":["a"]}', 400, '"param":"tokens"'),
    ("POST", "/tokenize", {}, '{"messages":[]}', 400, '"param":"messages"'),
    ("POST", "/abort_request", {}, "{}", 400, '"param":"rid"'),
])
def test_bad_requests_say_why(server, method, path, headers, body, status, has):
    reply = requests.request(method, server.url + path, data=body, timeout=30 * SLOW,
                             headers={"content-type": "application/json", **headers})
    assert reply.status_code == status, reply.text
    seen = ("".join(f"{k}: {v}\n" for k, v in reply.headers.items()) + reply.text).lower()
    assert has in seen
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) > 10
    assert reply.headers.get("x-request-id")


def test_body_too_large_is_413(server):
    reply = requests.post(server.url + "/v1/completions", data=b"x" * (9 << 20), timeout=30 * SLOW,
                          headers={"content-type": "application/json"})
    assert reply.status_code == 413 and "max_body_bytes" in reply.json()["error"]["message"]


def test_garbage_on_the_socket_harms_nobody(server):
    for data in [b"\0" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                 b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                 b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                 b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"]:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30 * SLOW) as raw:
            try:
                raw.sendall(data)
            except ConnectionError:  # it has heard enough
                pass
            assert requests.get(server.url + "/ping", timeout=30 * SLOW).status_code == 200
    assert requests.get(server.url + "/health", timeout=10).status_code == 200


def test_pipelined_requests_are_answered_in_order(server):
    body = json.dumps({"prompt": PROMPT, "max_tokens": 3, "temperature": 0}).encode()
    first = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nx-request-id: first\r\n" \
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    second = b"GET /ping HTTP/1.1\r\nHost: x\r\nx-request-id: second\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30 * SLOW) as raw:
        raw.sendall(first + second)
        received = b""
        while data := raw.recv(65536):
            received += data
    assert received.count(b"HTTP/1.1 200") == 2
    assert received.index(b"x-request-id: first") < received.index(b"x-request-id: second")


# ---- for operators -------------------------------------------------------------------------------------------------


def test_tokenize_and_back(server):
    text = "SELECT * FROM t;\n\u00e9\u20ac\U0001F600"
    reply = post(server, "/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"]) and reply["max_model_len"] == 2048
    assert post(server, "/detokenize", {"tokens": reply["tokens"]}).json() == {"prompt": text}
    assert post(server, "/tokenize", {"prompt": text}).json()["token_strs"] is None
    assert post(server, "/tokenize", {"prompt": ""}).json()["count"] == 0


def test_services_and_health(server):
    services = requests.get(server.url + "/services", timeout=10).json()["services"]
    assert sorted(s["name"] for s in services) == sorted(SERVICES)
    for service in services:
        assert {"name", "pid", "epoch", "build", "state", "uptime_s", "restarts", "transport"} <= set(service)
        assert service["state"] == "ready" and service["pid"] > 0 and service["uptime_s"] >= 0
    health = requests.get(server.url + "/health", timeout=10)
    assert health.status_code == 200 and health.json()["status"] == "ok" and len(health.json()["services"]) == 5
    assert requests.get(server.url + "/ready", timeout=10).status_code == 200
    assert requests.get(server.url + "/version", timeout=10).json()["protocol"] == 1
    info = requests.get(server.url + "/model_info", timeout=10).json()
    assert info["is_generation"] is True and info["vocab_size"] == 4096
    assert requests.get(server.url + "/server_info", timeout=10).json()["model"]["served_model_name"] == "default"


def test_cache_hits_and_flush(server):
    prompt = list(range(100, 180))
    how = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 2, "temperature": 0}}
    assert post(server, "/flush_cache", None).json()["freed_blocks"] >= 0
    first = post(server, "/generate", how).json()
    second = post(server, "/generate", how).json()
    assert second["output_ids"] == first["output_ids"]
    assert first["meta_info"]["cached_tokens"] == 0 and second["meta_info"]["cached_tokens"] >= 64
    stats = requests.get(server.url + "/cache/stats", timeout=10).json()
    assert stats["hit_tokens"] >= 64 and stats["used_blocks"] == 0 and stats["cached_blocks"] >= 4
    assert post(server, "/flush_cache", None).json()["freed_blocks"] >= 4
    assert requests.get(server.url + "/flush_cache", timeout=10).status_code == 405  # GET changes nothing
    assert post(server, "/generate", how).json()["meta_info"]["cached_tokens"] == 0


SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)$')


def parse_metrics(text):
    """The text format 0.0.4, checked as promtool does: {family: (type, {(sample, labels): value})}."""
    assert text.endswith("\n")
    families, current = {}, None
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ", 3)[2]
            assert current not in families and len(line.split(" ", 3)) == 4
            families[current] = [None, {}]
        elif line.startswith("# TYPE "):
            assert line.split(" ")[2] == current and families[current][0] is None
            families[current][0] = line.split(" ")[3]
        else:
            match = SAMPLE.match(line)
            assert match, line
            name, labels, value = match.groups()
            kind = families[current][0]
            endings = ["_bucket", "_sum", "_count"] if kind == "histogram" else [""]
            assert name in [current + ending for ending in endings], line
            assert (name, labels) not in families[current][1], line
            assert kind != "counter" or current.endswith("_total")
            families[current][1][name, labels] = float(value)
    return families


def check_name(name, kind):
    """promtool's rules: base units, the ending that the kind has, no kind inside a name."""
    words = name.split("_")
    assert re.fullmatch(r"quintet(_[a-z0-9]+)+", name), name
    assert (words[-1] == "total") == (kind == "counter"), (name, kind)
    assert kind == "histogram" or words[-1] not in ("count", "sum", "bucket"), name
    assert not {"counter", "gauge", "histogram", "summary", "info"} & set(words), name
    assert not {"milliseconds", "microseconds", "nanoseconds", "minutes", "hours", "kilobytes", "megabytes", "percent",
                "bits", "ms", "us", "ns", "kb", "mb"} & set(words), name


def test_metrics_satisfy_promtool(server):
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("no promtool here (Debian package prometheus); test_metrics_are_valid_and_count knows its rules")
    done = subprocess.run([promtool, "check", "metrics"], input=requests.get(server.url + "/metrics", timeout=10).text,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done


def test_metrics_count_by_route_and_code(server):
    count = lambda route, code: parse_metrics(requests.get(server.url + "/metrics", timeout=10).text)[  # noqa: E731
        "quintet_frontend_requests_total"][1]["quintet_frontend_requests_total", (
            f'service="frontend",route="{route}",code="{code}",model_name="default"')]
    cases = [("completions", 400, "POST", "/v1/completions", {"prompt": 5.5}), ("generate", 400, "POST", "/generate", {}),
             ("tokenize", 200, "POST", "/tokenize", {"prompt": "x"}), ("other", 404, "GET", "/nowhere", None)]
    for route, code, method, path, body in cases:
        before = count(route, code)
        assert server.call(method, path, body)[0] == code, path
        assert count(route, code) == before + 1, path


def test_metrics_are_valid_and_count(server):
    before = parse_metrics(requests.get(server.url + "/metrics", timeout=10).text)
    stream(server, {"prompt": PROMPT, "max_tokens": 5, "temperature": 0})
    reply = requests.get(server.url + "/metrics", timeout=10)
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    after = parse_metrics(reply.text)
    assert all(name.startswith("quintet_") for name in after)
    model = ',model_name="default"'
    moved = lambda name, label='service="frontend"', sample="": (
        after[name][1][name + sample, label + model] - before[name][1].get((name + sample, label + model), 0))
    assert moved("quintet_frontend_requests_total", 'service="frontend",route="completions",code="200"') == 1
    assert moved("quintet_frontend_generated_tokens_total") == 5
    assert moved("quintet_frontend_time_to_first_token_seconds", sample="_count") == 1
    assert moved("quintet_frontend_sent_bytes_total") > 100
    up = after["quintet_service_up"][1]
    assert {labels for _, labels in up} == {f'service="{s}"{model}' for s in SERVICES} and set(up.values()) == {1}
    services = {labels.split('"')[1] for kind, samples in after.values() for _, labels in samples}
    assert services == set(SERVICES)
    for name, (kind, samples) in after.items():
        check_name(name, kind)
        if kind == "histogram":
            check_histogram(name, samples)


def check_histogram(name, samples):
    for service in {re.search(r'service="(\w+)"', labels)[1] for _, labels in samples}:
        buckets = [(float(re.search(r'le="([^"]+)"', labels)[1]), value) for (sample, labels), value in samples.items()
                   if sample.endswith("_bucket") and f'service="{service}"' in labels]
        assert buckets == sorted(buckets) and buckets[-1][0] == math.inf
        assert [v for _, v in buckets] == sorted(v for _, v in buckets)
        assert buckets[-1][1] == samples[name + "_count", f'service="{service}",model_name="default"']


def test_research_mode_explains(server):
    body = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    bare = post(server, "/v1/completions", body).json()
    for how in ({"params": {"mode": "research"}}, {"headers": {"x-quintet-mode": "research"}}):
        reply = post(server, "/v1/completions", body, **how).json()
        assert set(reply) == {"data", "metadata"} and reply["data"]["choices"] == bare["choices"]
        metadata = reply["metadata"]
        assert metadata["service"] == "frontend" and metadata["method"] == "completions" and metadata["epoch"] > 0
        assert "4 tokens" in metadata["algorithm_reasoning"][0]
        hops = [(hop["from"], hop["to"]) for hop in metadata["hops"]]
        assert hops[0] == ("frontend", "tokenizer") and hops[-1] == ("tokenizer", "frontend")
        assert ("scheduler", "compute") in hops and all(hop["us"] >= 0 for hop in metadata["hops"])
        assert sum(hop["us"] for hop in metadata["hops"]) <= metadata["execution_time_us"]
    last = stream(server, body, "/v1/completions?mode=research")[-1]
    assert last["choices"] == [] and last["metadata"]["hops"]
    assert "metadata" in requests.get(server.url + "/cache/stats?mode=research", timeout=10).json()


# ---- load and loss -------------------------------------------------------------------------------------------------


def test_many_clients_at_once_agree(server):
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        texts = set(pool.map(lambda _: post(server, "/v1/completions", body).json()["choices"][0]["text"], range(72)))
    assert len(texts) == 1


def test_clients_that_leave_at_random_leak_nothing(server):
    def one(number):
        body = json.dumps({"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "stream": number % 2 == 0,
                           "n": 1 + number % 3}).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
            raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                        b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            raw.settimeout(0.001 * (number * 7 % 60) + 0.001)
            try:
                raw.recv(1 + number * 37)
            except TimeoutError:
                pass
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(48)))
    server.wait_for(lambda: server.used_blocks() == 0, 30, "all blocks back")
    info = requests.get(server.url + "/server_info", timeout=10).json()
    assert info["active_requests"] == 0
    assert set(server.pids()) == set(SERVICES)


def test_limits_of_the_configuration_hold():
    with Engine(frontend__queue_limit="2", frontend__max_body_bytes="4096") as small:
        body = {"prompt": PROMPT, "max_tokens": 1500, "ignore_eos": True, "stream": True, "n": 2}
        with post(small, "/v1/completions", body, stream=True) as running:
            lines = running.iter_lines(chunk_size=1)
            next(lines)
            refused = post(small, "/v1/completions", {"prompt": "x", "max_tokens": 1})
            assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "rate_limit_error"
        small.wait_for(lambda: post(small, "/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200, 30,
                       "room again")
        assert post(small, "/v1/completions", {"prompt": "x" * 5000}).status_code == 413
        assert post(small, "/v1/completions", {"prompt": "x", "n": 3}).status_code == 400


def test_unix_socket_and_ipv6_listeners(tmp_path):
    path = tmp_path / "http"
    with UnixEngine(path) as running:
        out = curl("--unix-socket", str(path), "-H", "content-type: application/json", "-d",
                   json.dumps({"prompt": PROMPT, "max_tokens": 2, "temperature": 0}), "http://x/v1/completions")
        assert json.loads(out)["usage"]["completion_tokens"] == 2
        assert running.process.poll() is None
    if not os.path.exists("/proc/net/if_inet6") or not open("/proc/net/if_inet6").read():
        return
    port = free_port()
    both = Engine(frontend__listen=f"[::]:{port}")  # one socket for both families
    both.port = port
    with both:
        assert requests.get(f"http://[::1]:{port}/ping", timeout=10).status_code == 200
        assert requests.get(f"http://127.0.0.1:{port}/ping", timeout=10).status_code == 200


class UnixEngine(Engine):
    """Listens on a Unix socket; readiness is asked there."""

    def __init__(self, path):
        super().__init__(frontend__listen=f"unix:{path}")
        self.path = path

    def call(self, method, path, *unused, **unused_too):
        done = subprocess.run(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", str(self.path),
                               "-X", method, "http://x" + path], capture_output=True, text=True)
        return int(done.stdout or 0), None


def test_killed_tokenizer_gives_errors_not_hangs():
    with Engine() as victim:
        body = {"prompt": PROMPT, "max_tokens": 1800, "temperature": 0, "ignore_eos": True}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(post, victim, "/v1/completions", body)
            streamed = post(victim, "/v1/completions", {**body, "stream": True}, stream=True)
            lines = streamed.iter_lines(chunk_size=1)
            received = [next(lines)]
            victim.wait_for(lambda: victim.used_blocks() >= 2, 30, "both run")
            before = victim.epochs()["tokenizer"]
            victim.kill("tokenizer")
            received += list(lines)
            whole = waiting.result(20 * SLOW)
        assert whole.status_code == 503 and whole.headers["retry-after"]
        assert "tokenizer" in whole.json()["error"]["message"]
        assert "error" in events(b"\n".join(received).decode() + "\n")[-1]
        victim.wait_reborn({"tokenizer": before})
        assert post(victim, "/v1/completions", {"prompt": "x", "max_tokens": 2}).ok
        victim.wait_for(lambda: victim.used_blocks() == 0, 60, "blocks of the lost requests back")


def test_inherited_socket_is_served(tmp_path):
    """As systemd passes it: descriptor 3, named http."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        start = ('import os, sys; os.environ["LISTEN_PID"] = str(os.getpid()); os.dup2(int(sys.argv[1]), 3); '
                 'os.execv(sys.argv[2], sys.argv[2:])')
        process = subprocess.Popen(
            [sys.executable, "-c", start, str(listener.fileno()), str(BUILD / "quintet-frontend"), "--run-dir",
             str(tmp_path)], pass_fds=[listener.fileno()], stderr=subprocess.PIPE,
            env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"})
        try:
            assert requests.get(url + "/ping", timeout=20 * SLOW).status_code == 200
            health = requests.get(url + "/health", timeout=20)
            assert health.status_code == 503 and {s["state"] for s in health.json()["services"]} == {"ready", "down"}
            refused = requests.post(url + "/v1/completions", json={"prompt": "x"}, timeout=20)
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        finally:
            process.terminate()
            log = process.communicate(timeout=20 * SLOW)[1].decode()
        assert process.returncode == 0, log


def test_text_of_a_stop_token_is_left_out_like_that_of_a_stop_string(server):
    body = {"prompt": "The SELECT statement ", "max_tokens": 8, "temperature": 0, "return_token_ids": True}
    free = server.post("/v1/completions", body)["choices"][0]
    stop_id = free["token_ids"][1]
    body["stop_token_ids"] = [stop_id]
    stopped = server.post("/v1/completions", body)["choices"][0]
    kept = server.post("/v1/completions", {**body, "include_stop_str_in_output": True})["choices"][0]
    assert stopped["finish_reason"] == "stop" and stopped["stop_reason"] == stop_id
    assert stopped["token_ids"] == kept["token_ids"] == free["token_ids"][:2]
    assert len(stopped["text"]) < len(kept["text"]) and free["text"].startswith(kept["text"])


# ---- fields that steer what may be generated ----------------------------------------------------------------------


def test_allowed_token_ids_are_all_there_is(server):
    free = post(server, "/v1/completions", {**GREEDY, "prompt": PROMPT, "max_tokens": 8, "return_token_ids": True}).json()
    allowed = [40, 41, 42]
    for extra in [{}, {"temperature": 1, "seed": 3}, {"logit_bias": {"41": 50}}]:
        body = {**GREEDY, "prompt": PROMPT, "max_tokens": 8, "ignore_eos": True, "return_token_ids": True,
                "allowed_token_ids": allowed, "logprobs": 1, **extra}
        choice = post(server, "/v1/completions", body).json()["choices"][0]
        assert len(choice["token_ids"]) == 8 and set(choice["token_ids"]) <= set(allowed)
        if "logit_bias" in extra:
            assert set(choice["token_ids"]) == {41}
    assert not set(free["choices"][0]["token_ids"]) <= set(allowed)


def test_bad_word_of_one_token_never_comes(server):
    base = {**GREEDY, "prompt": PROMPT, "max_tokens": 16, "ignore_eos": True, "return_token_ids": True}
    ids = post(server, "/v1/completions", base).json()["choices"][0]["token_ids"]
    for token in ids:
        word = post(server, "/detokenize", {"tokens": [token]}).json()["prompt"]
        again = post(server, "/tokenize", {"prompt": word.lstrip(), "add_special_tokens": False}).json()["tokens"]
        spaced = post(server, "/tokenize", {"prompt": " " + word.lstrip(), "add_special_tokens": False}).json()["tokens"]
        if word.strip() and len(again) == 1 and token in (again + spaced if len(spaced) == 1 else again):
            break
    else:
        pytest.fail("no word of one token in the answer")
    reply = post(server, "/v1/completions", {**base, "bad_words": [word]})
    assert reply.status_code == 200, reply.text
    assert token not in reply.json()["choices"][0]["token_ids"]


def test_generate_lists_are_those_of_single_requests(server):
    prompts = [PROMPT, "A thread is", "int main"]
    parameters = [{"max_new_tokens": n, "temperature": 0, "ignore_eos": True} for n in (3, 5, 7)]
    whole = post(server, "/generate", {"text": prompts, "sampling_params": parameters, "return_logprob": [True, False, True],
                                       "top_logprobs_num": [2, 0, 0], "logprob_start_len": [0, -1, -1]}).json()
    for i, (prompt, one) in enumerate(zip(prompts, parameters)):
        single = post(server, "/generate", {"text": prompt, "sampling_params": one}).json()
        assert whole[i]["output_ids"] == single["output_ids"] and whole[i]["text"] == single["text"]
    first, second, third = (answer["meta_info"] for answer in whole)
    assert len(first["input_top_logprobs"]) == first["prompt_tokens"] and len(first["output_top_logprobs"]) == 3
    assert "output_token_logprobs" not in second
    assert len(third["output_token_logprobs"]) == 7 and third["input_token_logprobs"] == []
    assert "output_top_logprobs" not in third


def test_scoring_a_prompt_of_the_whole_length(server):
    length = server.get("/v1/models")["data"][0]["max_model_len"]
    ids = [(i * 31) % 4000 + 3 for i in range(length)]
    body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    reply = post(server, "/v1/completions", body).json()
    assert len(reply["choices"][0]["logprobs"]["token_logprobs"]) == length
    assert reply["usage"]["completion_tokens"] == 0


def test_unknown_fields_warn_or_are_refused(server):
    body = {**GREEDY, "prompt": "a", "max_tokens": 1, "temprature": 1}
    reply = post(server, "/v1/completions", body)
    assert reply.status_code == 200 and reply.headers["x-quintet-warning"] == "unknown fields ignored: temprature"
    assert "quintet_frontend_unknown_fields_total" in requests.get(server.url + "/metrics", timeout=10 * SLOW).text
    with Engine(frontend__strict_fields="true") as strict:
        reply = post(strict, "/v1/completions", body)
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "temprature"


# ---- connections --------------------------------------------------------------------------------------------------


def raw_reply(server, data, seconds=20):
    """All that comes for these bytes until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds * SLOW) as link:
        link.sendall(data)
        got = b""
        while piece := link.recv(65536):
            got += piece
    return got


@pytest.mark.parametrize("head", [
    b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length : 2\r\n\r\n{}",
    b"GET /health HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    b"GET /health%00x HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
])
def test_ambiguous_framing_is_refused(server, head):
    first = raw_reply(server, b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n" + head)  # also on a connection that was good
    replies = first.split(b"HTTP/1.1 ")[1:]
    assert len(replies) == 2 and replies[0].startswith(b"200") and replies[1].startswith(b"400")
    assert json.loads(replies[1].split(b"\r\n\r\n", 1)[1])["error"]["message"]


def test_limit_of_connections_is_told_at_once():
    with Engine(frontend__max_connections=4) as small:
        held = [socket.create_connection(("127.0.0.1", small.port)) for _ in range(4)]
        for link in held:  # a reply shows that it was taken
            link.sendall(b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n")
            assert link.recv(4096).startswith(b"HTTP/1.1 200")
        begin = time.monotonic()
        reply = requests.get(small.url + "/health", timeout=10 * SLOW)
        assert reply.status_code == 503 and reply.headers["retry-after"] == "1" and time.monotonic() - begin < 2 * SLOW
        assert "max_connections" in reply.json()["error"]["message"]
        for link in held:
            link.close()


def test_stop_ends_streams_with_an_error():
    with Engine(up__stop_seconds=1) as stopping:
        body = {**GREEDY, "prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True, "stream": True, "n": 8}
        reply = post(stopping, "/v1/completions", body, stream=True)
        lines = reply.iter_lines()
        assert next(lines).startswith(b"data: ")
        stopping.process.send_signal(signal.SIGTERM)
        text = b"\n".join(lines)
        assert b'data: {"error":{' in text or b'"finish_reason":"length"' in text
        assert text.endswith(b"data: [DONE]\n")


def test_token_ids_logprob_are_those_of_the_likeliest(server):
    """Every id asked for by number has the number that it has by rank, at every position of prompt and answer."""
    body = {"text": PROMPT, "sampling_params": {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True},
            "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 20}
    ranked = post(server, "/generate", body).json()["meta_info"]
    wanted = [entry[1] for entry in ranked["output_top_logprobs"][2]]
    wanted = wanted[::-1][:18] + [wanted[0], 7]  # any order, one twice
    both = post(server, "/generate", {**body, "token_ids_logprob": wanted}).json()["meta_info"]
    assert both["output_top_logprobs"] == ranked["output_top_logprobs"]
    assert both["input_top_logprobs"] == ranked["input_top_logprobs"]
    alone = post(server, "/generate", {**body, "top_logprobs_num": 0, "token_ids_logprob": wanted}).json()["meta_info"]
    assert "output_top_logprobs" not in alone
    compared = 0
    for side in ("input", "output"):
        by_id, by_rank = both[side + "_token_ids_logprobs"], ranked[side + "_top_logprobs"]
        assert alone[side + "_token_ids_logprobs"] == by_id and len(by_id) == len(by_rank)
        for entries, top in zip(by_id, by_rank):
            if top is None:
                assert entries is None
                continue
            assert [entry[1] for entry in entries] == wanted
            known = {entry[1]: entry for entry in top}
            compared += sum(entry == known[entry[1]] for entry in entries if entry[1] in known)
            assert all(entry == known[entry[1]] for entry in entries if entry[1] in known)
            assert all(entry[0] <= top[-1][0] for entry in entries if entry[1] not in known)
    assert compared >= 19
    last = stream(server, {**body, "token_ids_logprob": wanted}, "/generate")[-1]["meta_info"]
    assert last["output_token_ids_logprobs"] == both["output_token_ids_logprobs"]


def test_token_ids_logprob_of_a_batch_and_its_bounds(server):
    body = {"text": [PROMPT, "The kernel"], "sampling_params": {"max_new_tokens": 2, "temperature": 0, "ignore_eos": True},
            "return_logprob": True}

    def ids_of(value):
        metas = [reply["meta_info"] for reply in post(server, "/generate", {**body, "token_ids_logprob": value}).json()]
        return [[e[1] for e in m["output_token_ids_logprobs"][1]] if "output_token_ids_logprobs" in m else None for m in metas]

    assert ids_of([5, 6]) == [[5, 6], [5, 6]]
    assert ids_of([[5], [6, 7]]) == [[5], [6, 7]]
    assert ids_of([[5], None]) == [[5], None]
    assert ids_of(9) == [[9], [9]]
    assert ids_of(list(range(20))) == [list(range(20))] * 2
    for bad in (list(range(21)), [-1], [4096], "5", [[5]], [[5], [6], [7]], [[5], ["x"]], [[5], [[6]]]):
        reply = post(server, "/generate", {**body, "token_ids_logprob": bad})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "token_ids_logprob", bad
    reply = post(server, "/generate", {**body, "text": PROMPT, "token_ids_logprob": [[5]]})
    assert reply.status_code == 400 and "20" in post(server, "/generate", {**body, "token_ids_logprob": [0] * 21}).text


def test_logprob_token_ids_stand_for_the_likeliest(server):
    body = {**GREEDY, "prompt": PROMPT, "max_tokens": 4, "ignore_eos": True, "logprobs": 5, "echo": True,
            "return_tokens_as_token_ids": True}
    plain = post(server, "/v1/completions", body).json()["choices"][0]["logprobs"]
    found = post(server, "/v1/completions", {**body, "logprob_token_ids": [9, 4]}).json()["choices"][0]["logprobs"]
    assert found["tokens"] == plain["tokens"] and found["token_logprobs"] == plain["token_logprobs"]
    assert found["top_logprobs"][:-4] == plain["top_logprobs"][:-4], "the echoed prompt keeps its likeliest"
    for token, logprob, top in list(zip(found["tokens"], found["token_logprobs"], found["top_logprobs"]))[-4:]:
        assert set(top) == {token, "token_id:9", "token_id:4"} and top[token] == logprob
    ids = post(server, "/tokenize", {"prompt": PROMPT}).json()["tokens"]
    by_id = post(server, "/generate", {"input_ids": ids, "sampling_params": {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True},
                                       "return_logprob": True, "token_ids_logprob": [9, 4]}).json()["meta_info"]
    assert [[e[0] for e in row] for row in by_id["output_token_ids_logprobs"]] == \
        [[top["token_id:9"], top["token_id:4"]] for top in found["top_logprobs"][-4:]]
    for bad in ({"logprobs": None}, {"max_tokens": 0}, {"logprob_token_ids": [0] * 21}, {"logprob_token_ids": 9}):
        reply = post(server, "/v1/completions", {**body, "logprob_token_ids": [9], **bad})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "logprob_token_ids", bad


def bad_ids_of(server, word):
    """vLLM's rule: without a space, and with one when that has as many tokens and another first one."""
    plain, spaced = (post(server, "/tokenize", {"prompt": space + word.lstrip(), "add_special_tokens": False}).json()["tokens"]
                     for space in ("", " "))
    return [plain] + ([spaced] if spaced[0] != plain[0] and len(spaced) == len(plain) else [])


def greedy_bad_word(server):
    """A word of two or three tokens that a greedy answer has, and its sequences."""
    base = {**GREEDY, "prompt": PROMPT, "max_tokens": 32, "ignore_eos": True, "return_token_ids": True}
    ids = post(server, "/v1/completions", base).json()["choices"][0]["token_ids"]
    for at in range(2, len(ids) - 3):
        for count in (3, 2):
            word = post(server, "/detokenize", {"tokens": ids[at:at + count]}).json()["prompt"]
            if word.strip() and "\ufffd" not in word and ids[at:at + count] in (bad := bad_ids_of(server, word)):
                return base, ids, word, bad
    pytest.fail("no word of several tokens in the answer")


def contains(ids, sequence):
    return any(ids[i:i + len(sequence)] == sequence for i in range(len(ids)))


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_bad_word_of_several_tokens_never_comes_whole(server, temperature):
    base, ids, word, bad = greedy_bad_word(server)
    reply = post(server, "/v1/completions", {**base, "bad_words": [word], "temperature": temperature, "max_tokens": 200, "seed": 3})
    assert reply.status_code == 200, reply.text
    found = reply.json()["choices"][0]["token_ids"]
    assert not any(contains(found, sequence) for sequence in bad)
    if temperature == 0:  # the same until the word would have been whole, and its other tokens came
        first = min(i for i in range(len(ids)) for s in bad if ids[i:i + len(s)] == s)
        length = next(len(s) for s in bad if ids[first:first + len(s)] == s)
        assert found[:first + length - 1] == ids[:first + length - 1]


def test_bad_word_does_not_begin_in_the_prompt(server):
    """Its first tokens at the end of the prompt forbid nothing, as in vLLM."""
    base, ids, word, bad = greedy_bad_word(server)
    sequence = next(s for s in bad if contains(ids, s))
    at = next(i for i in range(len(ids)) if ids[i:i + len(sequence)] == sequence)
    prompt = post(server, "/tokenize", {"prompt": PROMPT}).json()["tokens"] + ids[:at + len(sequence) - 1]
    reply = post(server, "/v1/completions", {**base, "prompt": prompt, "max_tokens": 1, "bad_words": [word]}).json()
    assert reply["choices"][0]["token_ids"] == sequence[-1:]


def test_bad_words_bounds_name_the_field(server):
    base = {**GREEDY, "prompt": PROMPT, "max_tokens": 2}
    long = " ".join(f"{i * 7919}" for i in range(24))
    for words, says in (([long], "tokens"), (["x" * 257], "256"), (["a"] * 65, "64"), ([""], "1 to"), ([5], "string"),
                        ([long[i:i + 14] for i in range(60)], "512")):
        reply = post(server, "/v1/completions", {**base, "bad_words": words})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "bad_words", words
        assert says in reply.json()["error"]["message"], reply.text
