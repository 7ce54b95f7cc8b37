"""Model directories that are not the bundled one."""
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
