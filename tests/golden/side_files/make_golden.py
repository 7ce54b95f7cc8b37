#!/usr/bin/env python3
"""Makes tests/golden/side_files/: what transformers makes of a tokenizer.json and the files beside it.

    tests/golden/side_files/make_golden.py [--cases N] [--seed S] [--out FILE]

Needs transformers 4.57, sentencepiece and protobuf. Small tokenizers of eight shapes are trained, then opened by
AutoTokenizer with random tokenizer_config.json, special_tokens_map.json, added_tokens.json and config.json. A case
that transformers refuses is left out, unless the reason is one that Quintet refuses too. `--out FILE` writes the
cases elsewhere: build/tests/golden/test_side_files FILE then tries thousands that are not kept.
"""
import argparse
import io
import json
import os
import pathlib
import random
import shutil
import tempfile

os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
import sentencepiece
import transformers
from tokenizers import AddedToken, Tokenizer, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
CORPUS = ["the quick brown fox jumps over the lazy dog and then the other dog", "hello world, this is a test of words",
          "a user asks the assistant a question; the assistant answers the user", "über naïve café 東京 and 北京 <tool> x",
          "def main(): return 0  # spaces   and    more", "It's what they've said, isn't it? 1234 5678 90"] * 4
TEXTS = ["hi", "hello world", " hello  world ", "<s>hi</s> <unk>x", "a<|x|>b", "a <|x|>  b<|x|> ", "<|endoftext|>the dog",
         "<tool>HELLO <TOOL> a<tool>b </tool>", "x<|im_end|>\n<|im_start|>user", "the <bos><eos> 東京 😀 é", "",
         "<extra> one<extra>two  <extra>"]
MARKS = ["<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<|endoftext|>", "<|x|>", "<tool>", "<TOOL>", "</tool>",
         "<|im_start|>", "<|im_end|>", "<extra>", "hello", " dog"]
CLASSES = ["PreTrainedTokenizerFast", "LlamaTokenizerFast", "LlamaTokenizer", "GemmaTokenizerFast", "GPT2TokenizerFast",
           "GPT2Tokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast", "GPTNeoXTokenizerFast", "CohereTokenizerFast",
           "CodeLlamaTokenizer", "BloomTokenizerFast", "PreTrainedTokenizer"]
MODELS = ["llama", "mistral", "qwen2", "qwen3_moe", "gpt2", "gemma2", "gpt_neox", "cohere", "phi3", "mixtral", "bloom"]
SPECIAL = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"]


def byte_level(pre, specials, normalizer=None, ignore_merges=False, post=None):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.pre_tokenizer, t.decoder = pre, decoders.ByteLevel()
    if normalizer:
        t.normalizer = normalizer
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=256 + 60 + len(specials), special_tokens=specials, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if post:
        ids = [(name, t.token_to_id(name)) for name in post]
        t.post_processor = processors.TemplateProcessing(single=post[0] + " $A", special_tokens=ids)
    return json.loads(t.to_str())


def sentencepiece_model():
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=out, vocab_size=370, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
        remove_extra_whitespaces=False, add_dummy_prefix=True)
    return out.getvalue()


def from_sentencepiece(model, legacy):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "tokenizer.model")
        path.write_bytes(model)
        t = transformers.LlamaTokenizerFast(vocab_file=str(path), legacy=legacy)
        return json.loads(t.backend_tokenizer.to_str())


def gemma_like(model):
    base = from_sentencepiece(model, True)
    base["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    base["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    base["decoder"] = {"type": "Sequence", "decoders": base["decoder"]["decoders"][:3]}
    return base


def make_bases(model):
    level = pre_tokenizers.ByteLevel
    split = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                                   r"\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"),
        level(add_prefix_space=False, use_regex=False)])
    bases = {
        "gpt2": byte_level(level(add_prefix_space=False), ["<|endoftext|>"]),
        "prefix": byte_level(level(add_prefix_space=True), ["<s>", "</s>", "<unk>"]),
        "llama3": byte_level(split, ["<s>", "</s>", "<|im_end|>"], ignore_merges=True, post=["<s>"]),
        "qwen": byte_level(split, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizer=normalizers.NFC()),
        "lower": byte_level(level(add_prefix_space=False), ["<s>"], normalizer=normalizers.Lowercase()),
        "llama2": from_sentencepiece(model, True),
        "llama2new": from_sentencepiece(model, False),
        "gemma": gemma_like(model),
    }
    mark = {"single_word": False, "lstrip": True, "rstrip": False, "normalized": False, "special": False}
    for name in ("qwen", "llama2"):  # with a token that is added, not trained
        vocab = bases[name]["model"]["vocab"]
        bases[name]["added_tokens"].append({"id": len(vocab), "content": "<tool>", **mark})
    return bases


def added_token(r, content):
    token = {"content": content}
    for key in ("lstrip", "rstrip", "single_word", "special", "normalized"):
        if r.random() < 0.7:
            token[key] = r.random() < 0.4
    return token


def special_value(r, dictionary):
    content = r.choice(MARKS)
    if r.random() < 0.75:
        return content
    token = added_token(r, content)
    return {"__type": "AddedToken", **token} if dictionary else token


def random_config(r):
    config = {}
    if r.random() < 0.85:
        config["tokenizer_class"] = r.choice(CLASSES)
    for key in SPECIAL:
        if r.random() < 0.3:
            config[key] = None if r.random() < 0.15 else special_value(r, True)
    for key, chance in (("add_bos_token", 0.4), ("add_eos_token", 0.3), ("add_prefix_space", 0.3), ("legacy", 0.3),
                        ("split_special_tokens", 0.1), ("clean_up_tokenization_spaces", 0.2), ("do_lower_case", 0.1)):
        if r.random() < chance:
            config[key] = r.random() < 0.5
    if r.random() < 0.3:
        config["additional_special_tokens"] = r.sample(MARKS, r.randint(0, 3))
    if r.random() < 0.1:
        config["extra_special_tokens"] = {"image_token": r.choice(MARKS)}
    if r.random() < 0.35:
        contents = r.sample(MARKS, r.randint(0, 4))
        config["added_tokens_decoder"] = {str(r.randint(0, 400) + i): added_token(r, c) for i, c in enumerate(contents)}
    config["model_max_length"] = 1e30
    return config


def random_files(r):
    files = {}
    if r.random() < 0.9:
        files["tokenizer_config.json"] = random_config(r)
    if r.random() < 0.35:
        files["special_tokens_map.json"] = {k: special_value(r, False) for k in SPECIAL if r.random() < 0.4}
        if r.random() < 0.4:
            files["special_tokens_map.json"]["additional_special_tokens"] = [
                added_token(r, m) if r.random() < 0.4 else m for m in r.sample(MARKS, r.randint(1, 3))]
    if r.random() < 0.3 and "additional_special_tokens" not in files.get("special_tokens_map.json", {}):
        files["added_tokens.json"] = {m: r.randint(0, 500) for m in r.sample(MARKS, r.randint(1, 4))}
    files["config.json"] = {"model_type": r.choice(MODELS)}
    return files


def decodes_alike(t):
    """tokenizers 0.23 decodes an added token to its normal form, 0.22 to its content: Quintet does as 0.23."""
    normalizer = t.backend_tokenizer.normalizer
    return not normalizer or all(not token.normalized or normalizer.normalize_str(token.content) == token.content
                                 for token in t.added_tokens_decoder.values())


def expected(folder, texts):
    t = transformers.AutoTokenizer.from_pretrained(folder)
    out = {"ids": [], "plain": [], "decoded": [], "shown": []}
    for text in texts:
        ids = t.encode(text)
        out["ids"].append(ids)
        out["plain"].append(t.encode(text, add_special_tokens=False))
        if not decodes_alike(t):
            continue
        out["shown"].append(t.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        out["decoded"].append(t.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return out


def refusal(error):
    return "refused" if "add_bos_token = True but" in str(error) or "add_eos_token = True but" in str(error) else None


def write_folder(folder, base, files, model):
    folder.joinpath("tokenizer.json").write_text(json.dumps(base), "utf-8")
    for name, value in files.items():
        folder.joinpath(name).write_text(json.dumps(value), "utf-8")
    folder.joinpath("tokenizer.model").write_bytes(model)


def is_natural(name, files):
    """What no directory has: a sentencepiece model beside bytes; a class guessed by model_type that does not fit, where
    Quintet leaves out what the vocabulary lacks."""
    config, kind = files.get("tokenizer_config.json"), files["config.json"]["model_type"]
    by_class = (config or {}).get("tokenizer_class", kind).lower()
    is_llama = by_class.startswith(("llama", "mistral", "mixtral", "phi3"))
    fits = {"gpt2": "gpt2 gpt_neox", "qwen": "qwen2 qwen3_moe gpt2", "llama2": "llama mistral mixtral",
            "llama2new": "llama mistral mixtral"}.get(name, "").split()
    if is_llama and (config or {}).get("add_prefix_space") is not None and not name.startswith("llama2"):
        return False
    return (config is not None or kind in fits)


def make_case(r, bases, model, used):
    name, files = r.choice(sorted(bases)), random_files(r)
    while not is_natural(name, files):
        name, files = r.choice(sorted(bases)), random_files(r)
    texts = r.sample(TEXTS, 4)
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        write_folder(folder, bases[name], files, model)
        case = {"base": name, "files": files, "texts": texts}
        try:
            return case | expected(folder, texts)
        except Exception as error:
            used.setdefault(str(error)[:60], 0)
            used[str(error)[:60]] += 1
            return case | {"refused": True} if refusal(error) else None
    finally:
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    model = sentencepiece_model()
    bases = make_bases(model)
    r, cases, used = random.Random(args.seed), [], {}
    while len(cases) < args.cases:
        case = make_case(r, bases, model, used)
        if case:
            cases.append(case)
    out = {"bases": bases, "cases": cases}
    path = args.out or HERE / "cases.json"
    path.write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")).replace('{"base"', '\n{"base"') + "\n", "utf-8")
    print(len(cases), "cases;", "transformers", transformers.__version__, "; left out:", used)


if __name__ == "__main__":
    main()
