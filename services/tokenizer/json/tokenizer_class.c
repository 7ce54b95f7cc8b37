/* What is this?      The table of tokenizer classes.
 * State owned:       none.
 * Must never:        hold a class whose habits were not compared with transformers (tests/golden/side_files).
 * Read next:         side_files.c. */
#include "services/tokenizer/json/tokenizer_class.h"

#include <stddef.h>
#include <string.h>

static const tokenizer_class_t classes[] = {
    {.name = "PreTrainedTokenizer"},
    {.name = "LlamaTokenizer",
     .builds_template = true,
     .adds_bos = true,
     .remakes_spaces = true,
     .prefix_space = PREFIX_SPACE_AS_FILE,
     .bos = "<s>",
     .eos = "</s>",
     .unk = "<unk>"},
    {.name = "CodeLlamaTokenizer",
     .builds_template = true,
     .adds_bos = true,
     .has_infill = true,
     .bos = "<s>",
     .eos = "</s>",
     .unk = "<unk>"},
    {.name = "GemmaTokenizer",
     .builds_template = true,
     .adds_bos = true,
     .bos = "<bos>",
     .eos = "<eos>",
     .unk = "<unk>",
     .pad = "<pad>"},
    {.name = "CohereTokenizer",
     .builds_template = true,
     .adds_bos = true,
     .prefix_in_depth = true,
     .bos = "<BOS_TOKEN>",
     .eos = "<|END_OF_TURN_TOKEN|>",
     .unk = "<UNK>"},
    {.name = "GPTNeoXTokenizer",
     .builds_template = true,
     .bos = "<|endoftext|>",
     .eos = "<|endoftext|>",
     .unk = "<|endoftext|>"},
    {.name = "GPT2Tokenizer", .bos = "<|endoftext|>", .eos = "<|endoftext|>", .unk = "<|endoftext|>"},
    {.name = "CodeGenTokenizer", .bos = "<|endoftext|>", .eos = "<|endoftext|>", .unk = "<|endoftext|>"},
    {.name = "Qwen2Tokenizer",
     .defaults_special = true,
     .eos = "<|endoftext|>",
     .unk = "<|endoftext|>",
     .pad = "<|endoftext|>"},
    {.name = "BloomTokenizer", .prefix_in_depth = true, .bos = "<s>", .eos = "</s>", .unk = "<unk>", .pad = "<pad>"},
};

static const struct {
    const char *class;
    const char *models; /* between spaces */
} by_model[] = {
    {"LlamaTokenizer", " arcee aria chameleon deepseek_v2 deepseek_v3 diffllama ernie4_5 ernie4_5_moe idefics3 jamba "
                       "jetmoe llama llama4 llama4_text llava ministral mistral mistral3 mixtral mllama persimmon phi3 "
                       "phimoe zamba zamba2 "},
    {"CodeLlamaTokenizer", " code_llama "},
    {"GemmaTokenizer", " gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma "},
    {"CohereTokenizer", " aya_vision cohere cohere2 "},
    {"GPTNeoXTokenizer", " falcon_mamba gpt_neox mamba mamba2 mpt olmo olmo2 olmoe rwkv stablelm xlstm "},
    {"GPT2Tokenizer", " dbrx emu3 exaone4 flex_olmo gpt2 gpt_bigcode gpt_neo gptj minimax olmo3 opt starcoder2 "},
    {"CodeGenTokenizer", " codegen phi "},
    {"Qwen2Tokenizer", " internvl qwen2 qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_moe qwen2_vl qwen3 qwen3_moe "
                       "qwen3_next qwen3_omni_moe qwen3_vl qwen3_vl_moe "},
    {"BloomTokenizer", " bloom "},
};

const tokenizer_class_t *tokenizer_class_by_name(const char *name, bool *ret_known)
{
    size_t bytes = strlen(name);
    if (bytes > 4 && strcmp(name + bytes - 4, "Fast") == 0) bytes -= 4;
    *ret_known = true;
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        if (strlen(classes[i].name) == bytes && memcmp(classes[i].name, name, bytes) == 0) return &classes[i];
    *ret_known = strcmp(name, "TokenizersBackend") == 0; /* what transformers 5 calls PreTrainedTokenizerFast */
    return &classes[0];
}

const tokenizer_class_t *tokenizer_class_by_model(const char *model_type)
{
    size_t bytes = strlen(model_type);
    bool known;
    for (size_t i = 0; i < sizeof by_model / sizeof *by_model; i++)
        for (const char *at = by_model[i].models; bytes && (at = strstr(at, model_type)); at++)
            if (at[-1] == ' ' && at[bytes] == ' ') return tokenizer_class_by_name(by_model[i].class, &known);
    return NULL;
}
