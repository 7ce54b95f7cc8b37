/* What is this?      The table of architectures, and the choice of a row by what config.json says.
 * State owned:       none; constant tables.
 * Must never:        guess: a name that stands for other arithmetic is refused, even when its model_type is known.
 * Read next:         model_config.c, which reads the keys as the row says. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/model/model_config_internal.h"

static const key_names_t USUAL = {"num_hidden_layers",       "hidden_size",  "num_attention_heads", "intermediate_size",
                                  "max_position_embeddings", "rms_norm_eps", "hidden_act"};
static const key_names_t GEMMA2_NAMES = {"num_hidden_layers",       "hidden_size",
                                         "num_attention_heads",     "intermediate_size",
                                         "max_position_embeddings", "rms_norm_eps",
                                         "hidden_activation"};
static const key_names_t GPT2_NAMES = {
    "n_layer", "n_embd", "n_head", "n_inner", "n_positions", "layer_norm_epsilon", "activation_function"};

#define QWEN_WINDOW (WINDOW_ASKED | WINDOW_LATE)

static const model_architecture_t ARCHITECTURES[] = {
    {"LlamaForCausalLM", "LlamaModel", "llama", QN_ARCHITECTURE_LLAMA, NO_WINDOW, &USUAL, 0, 0, 1e4, 1e-6, "silu"},
    {"MistralForCausalLM", "MistralModel", "mistral", QN_ARCHITECTURE_MISTRAL, 0, &USUAL, 0, 4096, 1e4, 1e-6, "silu"},
    {"MinistralForCausalLM", "MinistralModel", "ministral", QN_ARCHITECTURE_MISTRAL, 0, &USUAL, 0, 4096, 1e4, 1e-6,
     "silu"},
    {"Qwen2ForCausalLM", "Qwen2Model", "qwen2", QN_ARCHITECTURE_QWEN2, QKV_BIAS | QWEN_WINDOW, &USUAL, 0, 4096, 1e4,
     1e-6, "silu"},
    {"Qwen3ForCausalLM", "Qwen3Model", "qwen3", QN_ARCHITECTURE_QWEN3, QK_NORM | QWEN_WINDOW, &USUAL, 128, 4096, 1e4,
     1e-6, "silu"},
    {"GPT2LMHeadModel", "GPT2Model", "gpt2", QN_ARCHITECTURE_GPT2, TIED | NO_WINDOW, &GPT2_NAMES, 0, 0, 1e4, 1e-5,
     "gelu_new"},
    {"MixtralForCausalLM", "MixtralModel", "mixtral", QN_ARCHITECTURE_MIXTRAL, EXPERTS, &USUAL, 0, 0, 1e6, 1e-5,
     "silu"},
    {"Qwen3MoeForCausalLM", "Qwen3MoeModel", "qwen3_moe", QN_ARCHITECTURE_QWEN3_MOE,
     QK_NORM | WINDOW_ASKED | EXPERTS | EXPERTS_SPARSE, &USUAL, 0, 4096, 1e4, 1e-6, "silu"},
    {"GemmaForCausalLM", "GemmaModel", "gemma", QN_ARCHITECTURE_GEMMA, TIED | NO_WINDOW | GEMMA, &USUAL, 256, 0, 1e4,
     1e-6, GELU_TANH},
    {"Gemma2ForCausalLM", "Gemma2Model", "gemma2", QN_ARCHITECTURE_GEMMA2, TIED | WINDOW_EVEN | GEMMA | CAPPED,
     &GEMMA2_NAMES, 256, 4096, 1e4, 1e-6, GELU_TANH},
};
#define ARCHITECTURE_COUNT (sizeof ARCHITECTURES / sizeof ARCHITECTURES[0])

static const model_architecture_t *find_name(const char *name)
{
    for (size_t i = 0; i < ARCHITECTURE_COUNT; i++)
        if (strcasecmp(ARCHITECTURES[i].name, name) == 0 || strcasecmp(ARCHITECTURES[i].base_name, name) == 0)
            return &ARCHITECTURES[i];
    return NULL;
}

static const model_architecture_t *find_model_type(const char *model_type)
{
    for (size_t i = 0; i < ARCHITECTURE_COUNT; i++)
        if (strcmp(ARCHITECTURES[i].model_type, model_type) == 0) return &ARCHITECTURES[i];
    return NULL;
}

static void list_names(char *ret_text, size_t size)
{
    size_t used = 0;
    ret_text[0] = '\0';
    for (size_t i = 0; i < ARCHITECTURE_COUNT && used < size; i++)
        used += (size_t)snprintf(ret_text + used, size - used, "%s%s", i ? ", " : "", ARCHITECTURES[i].name);
}

/* The first that is known, as vLLM does it; a text alone counts as a list of one. *ret_first: the first of any kind. */
static const model_architecture_t *find_in_list(const json_t *list, const char **ret_first)
{
    const model_architecture_t *row = NULL;
    size_t count = json_is_string(list) ? 1 : json_array_size(list);
    for (size_t i = 0; !row && i < count; i++) {
        const char *name = json_string_value(json_is_string(list) ? list : json_array_get(list, i));
        if (name && name[0] && !*ret_first) *ret_first = name;
        if (name) row = find_name(name);
    }
    return row;
}

qn_err_t qn_model_config_architecture(const json_t *root, qn_model_warnings_t *warnings,
                                      const model_architecture_t **ret_row)
{
    const char *first = NULL, *model_type = json_string_value(qn_model_config_value(root, "model_type"));
    const model_architecture_t *row = find_in_list(qn_model_config_value(root, "architectures"), &first);
    const model_architecture_t *of_type = model_type ? find_model_type(model_type) : NULL;
    char known[300];
    list_names(known, sizeof known);
    if (!row && first)
        return qn_fail(QN_ERR_UNSUPPORTED, "config.json: architecture \"%.100s\" is not supported; supported are %s",
                       first, known);
    if (!row && !of_type)
        return qn_fail(
            model_type ? QN_ERR_UNSUPPORTED : QN_ERR_INVALID,
            "config.json: \"architectures\" names none and \"model_type\" is %.60s; set \"architectures\" to "
            "a list of what the model is, one of %s",
            model_type ? model_type : "missing", known);
    if (row && of_type && of_type->architecture != row->architecture)
        qn_model_warn(warnings, "config.json: \"architectures\" says %s, but \"model_type\" says %s: the first is used",
                      row->name, model_type);
    *ret_row = row ? row : of_type;
    return QN_OK;
}
