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


PROMPT = [3, 141, 59, 265, 35]


@pytest.fixture(scope="module")
def llama3_answer():
    with Engine(model__path=str(ROOT / "tests/golden/llama3")) as running:
        assert running.get("/model_info")["warnings"] == []
        return running.generate(PROMPT, 12)


def move_a_tensor(directory):
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    moved = next(name for name, file in index["weight_map"].items() if file == files[0])
    index["weight_map"] |= {moved: files[1], "mtp.fc.weight": files[1], "mtp.norm.weight": "gone.safetensors"}
    index.pop("metadata", None)
    path.write_text(json.dumps(index))


def drop_the_index(directory):
    (directory / "model.safetensors.index.json").unlink()


def edit_config(**changes):
    def edit(directory):
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return edit


ODDITIES = {
    # what is done: what is said of it
    "index": (move_a_tensor, "is said to be in"),
    "no index": (drop_the_index, "there is no model.safetensors.index.json"),
    "python": (edit_config(a=float("nan"), b=float("-inf"), c=10**40, num_hidden_layers=3.0, architectures=None), None),
    "end tokens": (edit_config(eos_token_id=[1, 4000, -1], pad_token_id=-1), '"eos_token_id" 4000'),
    "dtype": (edit_config(dtype="float16"), '"dtype" is float16'),
    "model type": (edit_config(model_type="qwen2"), '"model_type" says qwen2'),
}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_model_oddities_are_said_and_change_nothing(oddity, tmp_path, llama3_answer):
    change, said = ODDITIES[oddity]
    directory = tmp_path / "model"
    shutil.copytree(ROOT / "tests/golden/llama3", directory, ignore=shutil.ignore_patterns("golden*"))
    change(directory)
    with Engine(model__path=str(directory)) as running:
        assert running.generate(PROMPT, 12) == llama3_answer
        warnings = running.get("/model_info")["warnings"]
    assert any(said in text for text in warnings) if said else warnings == [], warnings
    for text in warnings:
        assert text in running.log
