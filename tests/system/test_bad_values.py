"""Every field of every POST route against thirty kinds of bad value: an answer in JSON, never a 5xx, never silence; a
4xx names the field. What a value means depends on the field, so each kind may also be taken (200): `ok` says where it
must not be."""
import http.client
import json
import math

import pytest

from engine import SLOW, Engine

BIG = 10**6

# name -> JSON text. Texts that are no JSON at all are among them: clients send those too.
VALUES = {
    "true": "true",
    "false": "false",
    "minus one": "-1",
    "zero": "0",
    "half": "0.5",
    "float of an int": "3.0",
    "1e308": "1e308",
    "-1e308": "-1e308",
    "1e999": "1e999",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "2^31": str(2**31),
    "2^32": str(2**32),
    "2^63": str(2**63),
    "-2^63-1": str(-(2**63) - 1),
    "300 digits": "9" * 300,
    "empty string": '""',
    "word": '"abc"',
    "number as string": '"1"',
    "huge string": '"' + "x" * BIG + '"',
    "NUL in a string": '"a\\u0000b"',
    "lone surrogate": '"\\ud800"',
    "raw control character": '"a\x01b"',
    "empty list": "[]",
    "list of null": "[null]",
    "list of a negative": "[-1]",
    "list of lists": "[[[]]]",
    "deep lists": "[" * BIG + "]" * BIG,
    "empty object": "{}",
    "object": '{"a": {"b": [1]}}',
    "no value": "",
}
NOT_JSON = {"1e999", "NaN", "Infinity", "-Infinity", "2^63", "-2^63-1", "300 digits", "lone surrogate",
            "raw control character", "deep lists", "no value"}  # refused whatever the field

SAMPLING = ["temperature", "top_p", "top_k", "min_p", "n", "seed", "stop", "stop_token_ids", "ignore_eos",
            "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "allowed_token_ids", "bad_words",
            "skip_special_tokens"]

ROUTES = {
    "/v1/completions": ({"prompt": "a", "max_tokens": 1}, SAMPLING + [
        "prompt", "model", "max_tokens", "min_tokens", "best_of", "stream", "stream_options", "logprobs", "echo", "user",
        "add_special_tokens", "prompt_logprobs", "priority", "return_token_ids", "truncate_prompt_tokens", "cache_salt",
        "request_id", "include_stop_str_in_output", "return_tokens_as_token_ids", "logprob_token_ids", "suffix", "tools", "response_format"]),
    "/generate": ({"text": "a", "sampling_params": {"max_new_tokens": 1}},
                  ["text", "input_ids", "sampling_params", "stream", "return_logprob", "logprob_start_len",
                   "top_logprobs_num", "token_ids_logprob", "return_text_in_logprobs", "rid", "priority", "model", "cache_salt", "lora_path"]
                  + ["sampling_params." + name for name in SAMPLING + ["max_new_tokens", "min_new_tokens", "no_stop_trim"]]),
    "/batch_generate": ({"prompts": ["a", "b"], "max_tokens": 1},
                        ["prompts", "max_tokens", "min_tokens", "sampling_params", "stream", "return_logprob", "priority", "rid",
                         "model"] + SAMPLING),
    "/tokenize": ({"prompt": "a"}, ["prompt", "text", "model", "add_special_tokens", "return_token_strs", "messages"]),
    "/detokenize": ({"tokens": [5]}, ["tokens", "model", "skip_special_tokens"]),
    "/abort_request": ({"rid": "nobody"}, ["rid", "request_id", "abort_all"]),
}

# Beyond types: what these fields can never mean.
NEVER = {"temperature": ["minus one", "1e308", "word", "empty list"], "top_p": ["minus one", "2^31"], "n": ["zero", "half"],
         "max_tokens": ["minus one", "half", "word"], "stream": ["zero", "word"], "prompt": ["true", "zero", "empty object"],
         "prompts": ["true", "zero", "word", "empty object"],
         "logprobs": ["2^31", "true"], "best_of": ["zero"], "logit_bias": ["zero", "word", "object"], "stop": ["zero", "true"],
         "tokens": ["word", "list of a negative"], "sampling_params": ["word", "zero"], "cache_salt": ["NUL in a string"]}


@pytest.fixture(scope="module")
def server():
    with Engine(frontend__max_body_bytes="8MiB") as running:
        yield running
        assert running.process.poll() is None


def body_with(base, field, text):
    """The JSON text of `base` with `field` (of an object inside, after a dot) set to `text`."""
    base = json.loads(json.dumps(base))
    *outer, name = field.split(".")
    inside = base
    for part in outer:
        inside = inside[part]
    inside[name] = "@value@"
    return json.dumps(base).replace('"@value@"', text)


def post(connection, path, body):
    connection.request("POST", path, body.encode(), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    return reply.status, reply.read()


def raw(server, path, text):
    """(status, parsed JSON) of a body that is sent as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60 * SLOW)
    status, reply = post(connection, path, text)
    connection.close()
    return status, json.loads(reply)


def check(path, field, name, status, reply):
    where = f"{path} {field}: {name} -> {status} {reply[:300]!r}"
    assert 200 <= status < 500, where
    if status == 200:
        assert name not in NOT_JSON and name not in NEVER.get(field.split(".")[-1], []), where
        return
    error = json.loads(reply)["error"]
    assert error["message"] and error["type"] and error["code"], where
    if name in ("deep lists", "no value"):  # nothing was read, or the text ended elsewhere
        return
    related = {"prompt": ["text"], "text": ["prompt", "input_ids"], "input_ids": ["text"], "rid": ["request_id"],
               "stream_options": ["stream"], "abort_all": ["rid"], "request_id": ["rid"], "min_tokens": ["max_tokens"]}
    allowed = [field, *related.get(field, [])]
    assert error["param"] and any(error["param"].startswith(one) for one in allowed) or \
        error["param"] == "best_of" and field == "n" or error["param"] in ("prompt", "text") and "huge" in name, where


@pytest.mark.parametrize("path", ROUTES)
def test_bad_value_in_every_field_is_refused_by_name(server, path):
    base, fields = ROUTES[path]
    for field in fields:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60 * SLOW)
        for name, text in VALUES.items():
            status, reply = post(connection, path, body_with(base, field, text))
            check(path, field, name, status, reply)
        connection.close()
    assert server.call("GET", "/ready")[0] == 200
    assert "killed by" not in server.log_path.read_text(errors="replace")


def test_duplicate_member_is_named(server):
    for path, (base, fields) in ROUTES.items():
        for field in fields:
            if "." in field:
                continue
            status, reply = raw(server, path, f'{{"{field}": null, "{field}": null}}')
            assert status == 400 and reply["error"]["param"] == field, (path, field, reply)


def test_body_that_is_no_object_is_refused(server):
    for path in ROUTES:
        for body in ["[]", "5", '"a"', "null", "{", "}", "{]", "\x00", "\ufeff{}", "{} {}", "{'a': 1}", "{\"a\"}"]:
            status, reply = raw(server, path, body)
            assert status == 400 and reply["error"]["message"], (path, body, reply)


def test_keys_and_values_are_bounded(server):
    many = "{" + ",".join(f'"k{i}": 0' for i in range(20000)) + "}"
    assert raw(server, "/v1/completions", many)[0] == 400
    values = '{"prompt": [' + ",".join(["[1]"] * 1_100_000) + "]}"
    assert raw(server, "/v1/completions", values)[0] == 400


def test_numbers_in_replies_are_finite(server):
    status, reply = server.call("POST", "/v1/completions", {"prompt": "a", "max_tokens": 2, "logprobs": 2, "echo": True})
    assert status == 200
    numbers = [value for value in reply["choices"][0]["logprobs"]["token_logprobs"] if value is not None]
    assert numbers and all(math.isfinite(value) for value in numbers)
