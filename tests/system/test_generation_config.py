"""Sampling defaults of a model: generation_config.json says what a request means that says nothing."""
import json
import pathlib
import shutil

import pytest

from engine import ROOT, Engine

PROMPT = {"prompt": "SELECT count(*) FROM", "return_token_ids": True}


def copy_model(directory, **fields):
    for file in pathlib.Path(ROOT, "deploy/models/default").iterdir():
        shutil.copy(file, directory)
    path = directory / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return str(directory)


def ids(engine, **fields):
    return engine.post("/v1/completions", {**PROMPT, **fields})["choices"][0]["token_ids"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return copy_model(tmp_path_factory.mktemp("model"), top_k=1, max_new_tokens=9)


def test_generation_config_gives_the_defaults(model):
    with Engine(model__path=model) as engine:
        silent = ids(engine)
        assert len(silent) == 9
        assert silent == ids(engine, temperature=0)
        sampled = {tuple(ids(engine, top_k=-1, temperature=2, max_tokens=9, seed=i)) for i in range(4)}
        assert len(sampled) == 4, "a field in the request wins"


def test_generation_config_is_ignored_on_request(model):
    with Engine(model__path=model, frontend__sampling_defaults="openai") as engine:
        drawn = {tuple(ids(engine, seed=i, ignore_eos=True)) for i in range(4)}
        assert {len(one) for one in drawn} == {16} and len(drawn) > 1


def test_generation_config_out_of_range_is_refused_by_name(tmp_path):
    with pytest.raises(Exception, match='"top_p" must be a number from 0 to 1'):
        with Engine(model__path=copy_model(tmp_path, top_p=7)):
            pass
