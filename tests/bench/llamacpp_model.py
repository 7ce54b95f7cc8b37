"""One set of random weights of a Qwen2 shape, twice: as a Hugging Face directory and as GGUF files.

usage: tests/bench/llamacpp_model.py SHAPE_DIR OUT_DIR

OUT_DIR gets config.json and model.safetensors (bf16), and a GGUF file per format. The GGUF files have no
vocabulary. In q4_0.gguf the embedding, which is the head too, is Q8_0, as Quintet's int4 keeps it in int8.
Needs numpy and gguf (PyPI)."""
import json
import pathlib
import shutil
import struct
import sys

import gguf
import numpy as np

SEED = 1
DEVIATION = 0.02
FORMATS = {"bf16": gguf.GGMLQuantizationType.BF16, "f16": gguf.GGMLQuantizationType.F16,
           "q8_0": gguf.GGMLQuantizationType.Q8_0,
           "q4_0": gguf.GGMLQuantizationType.Q4_0}


def tensors_of(config):
    """(Hugging Face name, GGUF name, shape) of every tensor."""
    hidden, mlp, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q = hidden
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", "token_embd.weight", (vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        ours, theirs = f"model.layers.{i}.", f"blk.{i}."
        yield ours + "input_layernorm.weight", theirs + "attn_norm.weight", (hidden,)
        for name, width in (("q", q), ("k", kv), ("v", kv)):
            yield ours + f"self_attn.{name}_proj.weight", theirs + f"attn_{name}.weight", (width, hidden)
            yield ours + f"self_attn.{name}_proj.bias", theirs + f"attn_{name}.bias", (width,)
        yield ours + "self_attn.o_proj.weight", theirs + "attn_output.weight", (hidden, q)
        yield ours + "post_attention_layernorm.weight", theirs + "ffn_norm.weight", (hidden,)
        yield ours + "mlp.gate_proj.weight", theirs + "ffn_gate.weight", (mlp, hidden)
        yield ours + "mlp.up_proj.weight", theirs + "ffn_up.weight", (mlp, hidden)
        yield ours + "mlp.down_proj.weight", theirs + "ffn_down.weight", (hidden, mlp)
    yield "model.norm.weight", "output_norm.weight", (hidden,)


def bf16_bits(index, name, shape):
    """Random bf16 values as uint16, the same in every run: norms are 1."""
    if name.endswith("norm.weight"):
        values = np.ones(shape, np.float32)
    else:
        values = np.random.default_rng((SEED, index)).standard_normal(shape, np.float32) * DEVIATION
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def write_safetensors(config, path):
    header, offset = {}, 0
    rows = list(tensors_of(config))
    for name, _, shape in rows:
        count = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for index, (name, _, shape) in enumerate(rows):
            bf16_bits(index, name, shape).tofile(file)


def add_metadata(writer, config):
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def write_gguf(config, path, kind):
    writer = gguf.GGUFWriter(path, "qwen2")
    add_metadata(writer, config)
    for index, (name, theirs, shape) in enumerate(tensors_of(config)):
        values = (bf16_bits(index, name, shape).astype(np.uint32) << 16).view(np.float32)
        if len(shape) == 1:
            writer.add_tensor(theirs, values)
            continue
        q4 = kind == gguf.GGMLQuantizationType.Q4_0
        use = gguf.GGMLQuantizationType.Q8_0 if q4 and theirs == "token_embd.weight" else kind
        writer.add_tensor(theirs, gguf.quantize(values, use), raw_dtype=use)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(shape_directory, out_directory):
    """Makes what is missing."""
    out = pathlib.Path(out_directory)
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads(pathlib.Path(shape_directory, "config.json").read_text())
    if config["model_type"] != "qwen2" or not config["tie_word_embeddings"]:
        sys.exit("only Qwen2 shapes with a tied head: other families store q and k in another order in GGUF")
    if not (out / "model.safetensors").exists():
        shutil.copy(pathlib.Path(shape_directory, "config.json"), out / "config.json")
        write_safetensors(config, out / "part")
        (out / "part").rename(out / "model.safetensors")
    for name, kind in FORMATS.items():
        if not (out / f"{name}.gguf").exists():
            write_gguf(config, out / "part", kind)
            (out / "part").rename(out / f"{name}.gguf")
    return out


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    make(sys.argv[1], sys.argv[2])
