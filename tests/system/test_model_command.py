"""`quintet model`: what it shows of good directories, and what it finds in damaged ones. No server is needed."""
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess

import pytest

from engine import BUILD, ROOT, SLOW

DEFAULT = ROOT / "deploy/models/default"
GOLDEN = ROOT / "tests/golden"
FAMILIES = ["llama3", "mistral", "qwen2", "qwen3", "gpt2", "mixtral", "qwen3moe", "gemma2"]


def quintet(*arguments):
    return subprocess.run([BUILD / "quintet", "model", *map(str, arguments)], cwd=ROOT, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=60 * SLOW,
                          env={k: v for k, v in os.environ.items() if not k.startswith("QUINTET_")})


def show(directory, *arguments):
    done = quintet("show", "-j", directory, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(directory, *arguments):
    """(exit status, rows that are not ok, all rows)"""
    done = quintet("check", "-j", directory, *arguments)
    assert done.stderr == "", done.stderr
    rows = json.loads(done.stdout)["checks"]
    return done.returncode, [row for row in rows if row["result"] != "ok"], rows


def copy(source, target, *names):
    target.mkdir(exist_ok=True)
    for file in pathlib.Path(source).iterdir():
        if file.is_file() and not file.name.startswith("golden") and (not names or file.name in names):
            shutil.copy(file, target)
    return target


def edit_config(directory, **changes):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config.pop(key, None)
        if value is not ...:
            config[key] = value
    path.write_text(json.dumps(config))


def read_tensors(path):
    """{name: [dtype, shape, bytes]}"""
    data = path.read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: [t["dtype"], t["shape"], bytearray(data[8 + size + t["data_offsets"][0]:8 + size + t["data_offsets"][1]])]
            for name, t in header.items()}


def write_tensors(path, tensors):
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def edit_tensors(directory, change):
    path = directory / "model.safetensors"
    tensors = read_tensors(path)
    change(tensors)
    write_tensors(path, tensors)


# ---- show ----

def test_model_show_default_tells_shape_tensors_and_memory():
    answer = show(DEFAULT)
    assert answer["architecture"] == "LlamaForCausalLM" and answer["parameters"] == 7344384
    assert answer["shape"]["layers"] == 8 and answer["shape"]["head_tied"] and answer["max_model_len"] == 2048
    assert answer["end_tokens"] == [0] and answer["tokenizer"] == {"tokens": 4096, "chat_template": True}
    assert sum(row["count"] for row in answer["tensors"]) == 74
    weights = answer["memory"]["weights_bytes"]
    assert weights["configured"] == weights["none"] >= 2 * 7344384 > weights["int8"] > weights["int4_group32"]
    assert weights["int4_group32"] > weights["int4_group64"]
    kv = answer["memory"]["kv"]
    assert kv["dtype"] == "f32" and kv["bytes_per_token"] == 8 * 2 * 2 * 64 * 4
    assert kv["bytes_per_sequence"] == kv["bytes_per_token"] * 2048 and answer["memory"]["activations_bytes"] > 0


def test_model_show_tensors_lists_each_with_its_place():
    rows = show(DEFAULT, "--tensors")["tensors"]
    assert len(rows) == 74 and rows[0]["name"] == "model.embed_tokens.weight" and rows[0]["offset"] == 0
    assert all(b["offset"] >= a["offset"] + a["bytes"] for a, b in zip(rows, rows[1:]))
    assert {"name", "shape", "checkpoint_dtype", "dtype", "layout", "bytes", "offset"} <= set(rows[5])


def test_model_show_follows_the_configuration():
    answer = show(DEFAULT, "--set", "model.quantize=int4", "--set", "model.quantize_group=64", "--set",
                  "memory.kv_dtype=bf16", "--set", "model.max_model_len=100")
    rows = {row["name"]: row for row in answer["tensors"]}
    assert rows["model.embed_tokens.weight"]["dtype"] == "int8"
    down = rows["model.layers.*.mlp.down_proj.weight"]
    assert down["dtype"] == "int4" and down["group"] == 64 and down["layout"] == "panels"
    assert rows["model.norm.weight"]["dtype"] == "bf16"
    assert answer["memory"]["weights_bytes"]["configured"] == answer["memory"]["weights_bytes"]["int4_group64"]
    assert answer["max_model_len"] == 100 and answer["memory"]["kv"]["bytes_per_token"] == 8 * 2 * 2 * 64 * 2


def test_model_show_text_is_for_people():
    done = quintet("show", GOLDEN / "gemma2")
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Gemma2ForCausalLM in ")
    for part in ("window       16 positions in 2 of 3 layers", "soft-caps    scores 50, logits 30", "int4 (32)",
                 "model.layers.*.pre_feedforward_layernorm.weight", "KV cache", "memory plan"):
        assert part in done.stdout, part


def test_model_show_experts_and_split_sources():
    experts = show(GOLDEN / "qwen3moe")["shape"]["experts"]
    assert experts == {"count": 8, "per_token": 2, "intermediate": 64, "normalised": True, "layers": [0, 1, 2]}
    names = [row["name"] for row in show(GOLDEN / "gpt2", "--tensors")["tensors"]]
    assert "transformer.h.1.attn.c_attn.k.weight" in names and show(GOLDEN / "gpt2")["shape"]["rope"] is None


def test_model_show_plans_before_the_download(tmp_path):
    config = {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 4864, "vocab_size": 151936,
              "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rope_theta": 1000000.0,
              "max_position_embeddings": 32768, "tie_word_embeddings": True, "rms_norm_eps": 1e-06}
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer = show(tmp_path)
    assert answer["parameters"] == 494032768 and not answer["weights_found"] and answer["tokenizer"] is None
    assert answer["memory"]["weights_bytes"]["none"] == pytest.approx(2 * 494032768, rel=0.01)
    assert answer["memory"]["weights_bytes"]["int8"] == pytest.approx(494032768, rel=0.02)


# ---- check ----

@pytest.mark.parametrize("directory", [DEFAULT, *(GOLDEN / name for name in FAMILIES)], ids=lambda path: path.name)
def test_model_check_good_directories_pass(directory):
    status, bad, rows = check(directory)
    assert status == 0
    assert [row["check"] for row in bad] == ([] if directory == DEFAULT else ["tokenizer"])
    assert [row["check"] for row in rows] == ["config", "generation", "weights", "tensors", "memory", "numbers", "tokenizer"]


def test_model_check_a_slash_at_the_end_says_nothing():
    def without_free_memory(path):  # which changes from one moment to the next
        return re.sub(r"[\d.]+ [KMG]iB free", "", quintet("check", "-j", path).stdout)

    assert without_free_memory(f"{GOLDEN}/qwen2//") == without_free_memory(GOLDEN / "qwen2")


def test_model_check_accepts_a_checkpoint_without_its_head(tmp_path):
    directory = copy(GOLDEN / "gpt2", tmp_path / "model")
    edit_tensors(directory, lambda tensors: [tensors.__setitem__(name.removeprefix("transformer."), tensors.pop(name))
                                             for name in list(tensors)])
    status, bad, _ = check(directory)
    assert status == 0 and [row["check"] for row in bad] == ["tokenizer"]


def drop(name):
    return lambda directory: edit_tensors(directory, lambda tensors: tensors.pop(name))


def reshape(directory):
    edit_tensors(directory, lambda tensors: tensors["model.norm.weight"].__setitem__(1, [2, 128]))


def retype(directory):
    edit_tensors(directory, lambda tensors: tensors["model.norm.weight"].__setitem__(0, "I16"))


def spoil(directory):
    def change(tensors):
        numbers = tensors["model.layers.3.mlp.up_proj.weight"][2]
        struct.pack_into("<H", numbers, 2 * (5 * 256 + 7), 0x7FC0)
        struct.pack_into("<H", numbers, 2 * (9 * 256), 0xFF80)
    edit_tensors(directory, change)


def cut(name, size):
    return lambda directory: os.truncate(directory / name, size)


def write(name, text):
    return lambda directory: (directory / name).write_text(text)


def remove(*names):
    return lambda directory: [(directory / name).unlink() for name in names]


def only_pickles(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def pointer(name):
    return write(name, "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 14688768\n")


def config(**changes):
    return lambda directory: edit_config(directory, **changes)


DAMAGES = {
    # what is done: exit status, the check that fails, what its text says
    "no config": (remove("config.json"), 66, "config", "config.json is missing"),
    "config not JSON": (write("config.json", "{"), 65, "config", "config.json: not JSON"),
    "config binary": (write("config.json", "\x00\x01"), 65, "config", "config.json: not JSON"),
    "unknown architecture": (config(architectures=["MambaForCausalLM"]), 69, "config", '"MambaForCausalLM"'),
    "quantised by its maker": (config(quantization_config={"quant_method": "gptq"}), 69, "config", '"gptq"'),
    "a field missing": (config(hidden_size=...), 65, "config", '"hidden_size" is missing'),
    "generation not JSON": (write("generation_config.json", "no"), 65, "generation", "generation_config.json"),
    "generation out of range": (write("generation_config.json", '{"temperature": -1}'), 65, "generation", "temperature"),
    "no weights": (remove("model.safetensors"), 66, "weights", "model.safetensors"),
    "only pickles": (only_pickles, 66, "weights", "none in .safetensors files"),
    "a pointer": (pointer("model.safetensors"), 65, "files", "model.safetensors is a Git LFS pointer"),
    "weights cut": (cut("model.safetensors", 14000000), 65, "weights", "model.safetensors"),
    "weights cut to nothing": (cut("model.safetensors", 4), 65, "weights", "model.safetensors"),
    "a tensor missing": (drop("model.layers.3.mlp.up_proj.weight"), 65, "tensors",
                         "tensor model.layers.3.mlp.up_proj.weight is missing"),
    "a tensor misshapen": (reshape, 65, "tensors", "model.norm.weight is [2, 128], config.json means [256]"),
    "of another model": (config(vocab_size=8192), 65, "tensors", "is [4096, 256], config.json means [8192, 256]"),
    "untied without a head": (config(tie_word_embeddings=False), 65, "tensors", "tensor lm_head.weight is missing"),
    "a dtype": (retype, 69, "tensors", "model.norm.weight has dtype I16"),
    "not a number": (spoil, 65, "numbers", "2 of the 196608 numbers of tensor model.layers.3.mlp.up_proj.weight are NaN or "
                     "infinite, the first in row 5, column 7"),
    "tokenizer not JSON": (cut("tokenizer.json", 1000), 65, "tokenizer", "tokenizer.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_model_check_damage_is_found_and_named(name, tmp_path):
    damage, wanted, where, text = DAMAGES[name]
    directory = copy(DEFAULT, tmp_path / "model")
    damage(directory)
    status, bad, _ = check(directory)
    failed = [row for row in bad if row["result"] == "fail"]
    assert status == wanted, bad
    assert [row["check"] for row in failed] == [where] and text in failed[0]["text"], bad
    assert failed[0]["remedy"], bad


def test_model_check_reduced_precision_dtypes_are_read(tmp_path):
    """F16 and F32 are scanned by their own exponents: 0x7f80 is a NaN in BF16 and a number in F16."""
    for dtype, code, bad in (("F16", "<H", 0x7C00), ("F32", "<I", 0x7F800000)):
        directory = copy(GOLDEN / "llama3", tmp_path / dtype, "config.json", "generation_config.json")
        tensors = {}
        for shard in GOLDEN.glob("llama3/model-*.safetensors"):
            tensors.update(read_tensors(shard))
        width = struct.calcsize(code)
        for row in tensors.values():
            row[0], row[2] = dtype, bytearray(struct.pack(code, 0x3C00) * (len(row[2]) // 2))
        write_tensors(directory / "model.safetensors", tensors)
        assert check(directory)[0] == 0
        struct.pack_into(code, tensors["model.norm.weight"][2], 3 * width, bad)
        write_tensors(directory / "model.safetensors", tensors)
        status, rows, _ = check(directory)
        assert status == 65 and "the first in row 3, column 0" in rows[0]["text"]


def test_model_check_quick_leaves_the_numbers_alone(tmp_path):
    directory = copy(DEFAULT, tmp_path / "model")
    spoil(directory)
    status, bad, rows = check(directory, "--quick")
    assert status == 0 and bad == [] and "numbers" not in [row["check"] for row in rows]


def test_model_check_holes_are_a_warning(tmp_path):
    directory = copy(DEFAULT, tmp_path / "model")
    edit_tensors(directory, lambda t: t["model.layers.0.mlp.up_proj.weight"].__setitem__(2, bytearray(2 * 768 * 256)))
    status, bad, _ = check(directory)
    assert status == 0 and [row["result"] for row in bad] == ["warn"] and "every number" in bad[0]["text"]


def test_model_check_shards_that_are_missing_are_all_named(tmp_path):
    directory = copy(GOLDEN / "llama3", tmp_path / "model")
    shards = sorted(directory.glob("model-*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        shard.unlink()
    status, bad, _ = check(directory)
    assert status == 66 and f"{len(shards)} of the {len(shards)} files" in bad[0]["text"]
    assert all(shard.name in bad[0]["text"] for shard in shards)


def test_model_check_index_that_contradicts_its_files_is_found(tmp_path):
    directory = copy(GOLDEN / "llama3", tmp_path / "model")
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = sorted(set(index["weight_map"].values()))
    moved = next(name for name, file in index["weight_map"].items() if file == names[0])
    index["weight_map"][moved] = names[1]
    path.write_text(json.dumps(index))
    status, bad, _ = check(directory)
    assert status == 0 and {row["result"] for row in bad} == {"warn"}, bad  # the files say what they hold
    assert any(moved in row["text"] and names[0] in row["text"] for row in bad), bad
    path.write_text('{"weight_map": {}}')
    assert check(directory)[0] == 65


def test_model_check_tokenizer_of_another_model_is_found(tmp_path):
    directory = copy(GOLDEN / "llama3", tmp_path / "model")
    shutil.copy(DEFAULT / "tokenizer.json", directory)
    status, bad, _ = check(directory)
    assert status == 0 and bad[0]["result"] == "warn"  # it can be served: ids beyond are refused one by one
    assert "ids go up to 4095" in bad[0]["text"] and '"vocab_size" is 512' in bad[0]["text"]


def test_model_check_tells_everything_at_once(tmp_path):
    directory = copy(DEFAULT, tmp_path / "model")
    spoil(directory)
    edit_tensors(directory, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".mlp." in name])
    (directory / "generation_config.json").write_text("{")
    (directory / "tokenizer.json").write_text("{")
    status, bad, _ = check(directory)
    assert status == 65
    assert {row["check"] for row in bad} == {"generation", "tensors", "tokenizer"}
    assert any("24 are missing" in row["text"] for row in bad)


def test_model_check_configuration_that_the_model_cannot_do_is_78():
    for pair in ("model.max_model_len=4096", "compute.backend=cuda model.quantize=int8"):
        sets = [word for setting in pair.split() for word in ("--set", setting)]
        assert check(DEFAULT, *sets)[0] == 78, pair
    status, bad, _ = check(DEFAULT, "--set", "memory.kv_bytes=1MiB")
    assert status == 0 and bad[0]["result"] == "warn" and "128 of the 2048 tokens" in bad[0]["text"]


def test_model_check_without_the_gpu_it_is_for_warns():
    status, bad, _ = check(DEFAULT, "--set", "compute.backend=cuda", "--set", "compute.device=63")
    assert status == 0 and [(row["check"], row["result"]) for row in bad] == [("memory", "warn")]
    assert "cannot be looked at" in bad[0]["text"]


def test_model_check_dummy_weights_need_no_files(tmp_path):
    directory = copy(DEFAULT, tmp_path / "model", "config.json")
    status, bad, _ = check(directory, "--set", "model.load_format=dummy")
    assert status == 0 and {row["check"] for row in bad} <= {"tokenizer", "generation"}


def test_model_check_text_names_file_and_remedy(tmp_path):
    directory = copy(DEFAULT, tmp_path / "model")
    cut("model.safetensors", 14000000)(directory)
    done = quintet("check", directory)
    assert done.returncode == 65 and done.stderr == ""
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("fail  weights"))
    assert str(directory / "model.safetensors") in lines[at] and lines[at + 1].strip().startswith("-> mend what is named, or download")


def test_model_without_a_directory_is_refused(tmp_path):
    for verb in ("show", "check"):
        assert quintet(verb, tmp_path / "nowhere").returncode == 66
        done = quintet(verb, DEFAULT / "config.json")
        assert done.returncode == 66 and "is a file" in done.stderr
    done = quintet("show", copy(DEFAULT, tmp_path / "empty", "tokenizer.json"))
    assert done.returncode == 66 and "config.json" in done.stderr and "quintet model check" in done.stderr


def test_model_wrong_use_is_64():
    for arguments in ((), ("list",), ("show", DEFAULT, DEFAULT), ("show", "--quick"), ("check", "--tensors")):
        done = quintet(*arguments)
        assert done.returncode == 64 and "try: quintet model --help" in done.stderr, arguments
    assert quintet("--help").returncode == 0
