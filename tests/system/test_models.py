"""Model directories that are not the bundled one."""
import json
import pathlib
import shutil

import pytest

from engine import ROOT, Engine


@pytest.fixture(scope="module")
def ids_only(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    for file in pathlib.Path(ROOT, "deploy/models/default").iterdir():
        if file.name in ("config.json", "generation_config.json") or file.suffix == ".safetensors":
            shutil.copy(file, directory)
    with Engine(model__path=str(directory)) as running:
        yield running


def test_model_without_tokenizer_serves_ids_like_the_one_with_it(ids_only):
    with Engine() as with_text:
        assert ids_only.generate([516, 2557, 1648], 12) == with_text.generate([516, 2557, 1648], 12)


def test_model_without_tokenizer_names_tokens_by_id(ids_only):
    reply = ids_only.post("/v1/completions", {"prompt": [516, 2557], "max_tokens": 2, "temperature": 0, "echo": True,
                                              "logprobs": 3, "return_token_ids": True})
    choice = reply["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in [516, 2557] + choice["token_ids"]]
    assert [len(top) for top in choice["logprobs"]["top_logprobs"][2:]] == [3, 3]


def test_model_without_tokenizer_refuses_text_by_name(ids_only):
    status, reply = ids_only.call("POST", "/v1/completions", {"prompt": "text"})
    assert status == 400 and reply["error"]["param"] == "prompt" and "tokenizer.json" in reply["error"]["message"]


FAMILIES = ["llama3", "mistral", "qwen2", "qwen3", "gpt2", "mixtral", "qwen3moe", "gemma2"]


def sure_tokens(case):
    """The greedy ids up to the first whose logit leads by less than 1e-3: there a rounding may decide."""
    sure = next((i for i, margin in enumerate(case["greedy_margin"]) if margin < 1e-3), len(case["greedy_ids"]))
    return case["greedy_ids"][:sure]


@pytest.mark.parametrize("family", FAMILIES)
def test_model_families_answer_as_their_references(family):
    directory = ROOT / "tests/golden" / family
    cases = [case for case in json.loads((directory / "golden.json").read_text())["cases"] if len(sure_tokens(case)) > 2]
    assert len(cases) > 1
    with Engine(model__path=str(directory)) as running:
        answers = running.generate_many([case["prompt_ids"] for case in cases], 24)
    for case, answer in zip(cases, answers):
        wanted = sure_tokens(case)
        assert answer[:len(wanted)] == wanted, case["prompt_ids"]


def test_model_checkpoint_without_its_head_gives_the_same(tmp_path):
    """As openai-community/gpt2: names lack "transformer." in front."""
    source = ROOT / "tests/golden/gpt2"
    shutil.copy(source / "config.json", tmp_path)
    data = (source / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    text = json.dumps({name.removeprefix("transformer."): tensor for name, tensor in header.items()}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size:])
    prompt = [3, 141, 59, 265, 35]
    with Engine(model__path=str(source)) as whole:
        wanted = whole.generate(prompt, 12)
    with Engine(model__path=str(tmp_path)) as bare:
        assert bare.generate(prompt, 12) == wanted
