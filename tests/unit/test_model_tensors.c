/* The list of tensors agrees with published parameter counts and with real checkpoints of every family. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>

#include "common/model/model_tensors.h"
#include "services/memory/weights/safetensors.h"
#include "tests/unit/published_models.h"

static qn_model_config_t small_config(void)
{
    return (qn_model_config_t){.layers = 3,
                               .hidden = 8,
                               .heads = 4,
                               .kv_heads = 2,
                               .head_dim = 6,
                               .intermediate = 10,
                               .vocab = 20,
                               .gated_mlp = true,
                               .rope.type = QN_ROPE_DEFAULT};
}

static const qn_model_tensor_t *find(const qn_model_config_t *config, const char *name)
{
    static qn_model_tensor_t tensor;
    for (size_t i = 0; i < qn_model_tensor_count(config); i++) {
        qn_model_tensor_at(config, i, &tensor);
        if (strcmp(tensor.name, name) == 0) return &tensor;
    }
    return NULL;
}

static void test_model_tensors_shapes_follow_the_configuration(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        qn_tensor_role_t role;
        qn_tensor_use_t use;
        uint32_t layer, rank;
        uint64_t shape[2];
    } wanted[] = {
        {"model.embed_tokens.weight", QN_TENSOR_EMBEDDING, QN_TENSOR_OUTER, QN_TENSOR_NO_LAYER, 2, {20, 8}},
        {"model.layers.0.input_layernorm.weight", QN_TENSOR_ATTENTION_NORM, QN_TENSOR_PLAIN, 0, 1, {8}},
        {"model.layers.1.self_attn.q_proj.weight", QN_TENSOR_Q, QN_TENSOR_PRODUCT, 1, 2, {24, 8}},
        {"model.layers.2.self_attn.k_proj.weight", QN_TENSOR_K, QN_TENSOR_PRODUCT, 2, 2, {12, 8}},
        {"model.layers.2.self_attn.v_proj.weight", QN_TENSOR_V, QN_TENSOR_PRODUCT, 2, 2, {12, 8}},
        {"model.layers.0.self_attn.o_proj.weight", QN_TENSOR_OUTPUT, QN_TENSOR_PRODUCT, 0, 2, {8, 24}},
        {"model.layers.0.post_attention_layernorm.weight", QN_TENSOR_MLP_NORM, QN_TENSOR_PLAIN, 0, 1, {8}},
        {"model.layers.0.mlp.gate_proj.weight", QN_TENSOR_GATE, QN_TENSOR_PRODUCT, 0, 2, {10, 8}},
        {"model.layers.0.mlp.up_proj.weight", QN_TENSOR_UP, QN_TENSOR_PRODUCT, 0, 2, {10, 8}},
        {"model.layers.0.mlp.down_proj.weight", QN_TENSOR_DOWN, QN_TENSOR_PRODUCT, 0, 2, {8, 10}},
        {"model.norm.weight", QN_TENSOR_FINAL_NORM, QN_TENSOR_PLAIN, QN_TENSOR_NO_LAYER, 1, {8}},
        {"lm_head.weight", QN_TENSOR_HEAD, QN_TENSOR_OUTER, QN_TENSOR_NO_LAYER, 2, {20, 8}},
    };
    qn_model_config_t config = small_config();
    assert_int_equal(qn_model_tensor_count(&config), 1 + 3 * 9 + 2);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        const qn_model_tensor_t *tensor = find(&config, wanted[i].name);
        if (!tensor) fail_msg("%s is missing", wanted[i].name);
        assert_string_equal(tensor->source, tensor->name);
        assert_int_equal(tensor->role, wanted[i].role);
        assert_int_equal(tensor->use, wanted[i].use);
        assert_int_equal(tensor->layer, wanted[i].layer);
        assert_int_equal(tensor->expert, QN_TENSOR_NO_EXPERT);
        assert_int_equal(tensor->rank, wanted[i].rank);
        assert_int_equal(tensor->shape[0], wanted[i].shape[0]);
        assert_int_equal(tensor->shape[1], wanted[i].shape[1]);
        assert_true(!tensor->transposed && tensor->source_first == 0 && tensor->source_outputs == tensor->shape[0]);
    }
}

static void test_model_tensors_switches_add_and_remove(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    config.tie_embeddings = true;
    assert_null(find(&config, "lm_head.weight"));
    assert_null(find(&config, "model.layers.1.self_attn.q_proj.bias"));
    config.qkv_bias = config.output_bias = config.mlp_bias = config.qk_norm = true;
    static const struct {
        const char *name;
        uint64_t extent;
    } added[] = {
        {"model.layers.1.self_attn.q_proj.bias", 24},  {"model.layers.1.self_attn.k_proj.bias", 12},
        {"model.layers.1.self_attn.v_proj.bias", 12},  {"model.layers.1.self_attn.o_proj.bias", 8},
        {"model.layers.1.self_attn.q_norm.weight", 6}, {"model.layers.1.self_attn.k_norm.weight", 6},
        {"model.layers.1.mlp.gate_proj.bias", 10},     {"model.layers.1.mlp.up_proj.bias", 10},
        {"model.layers.1.mlp.down_proj.bias", 8},
    };
    for (size_t i = 0; i < sizeof added / sizeof *added; i++) {
        const qn_model_tensor_t *tensor = find(&config, added[i].name);
        if (!tensor) fail_msg("%s is missing", added[i].name);
        assert_int_equal(tensor->rank, 1);
        assert_int_equal(tensor->use, QN_TENSOR_PLAIN);
        assert_int_equal(tensor->shape[0], added[i].extent);
    }
    assert_int_equal(qn_model_tensor_count(&config), 1 + 3 * (9 + 9) + 1);
}

static void test_model_tensors_gpt2_splits_and_transposes_its_sources(void **state)
{
    (void)state;
    static const struct {
        const char *name, *source;
        qn_tensor_role_t role;
        bool transposed;
        uint64_t shape[2], outputs, first;
    } wanted[] = {
        {"transformer.wte.weight", "transformer.wte.weight", QN_TENSOR_EMBEDDING, false, {50257, 768}, 50257, 0},
        {"transformer.wpe.weight", "transformer.wpe.weight", QN_TENSOR_POSITIONS, false, {1024, 768}, 1024, 0},
        {"transformer.h.0.ln_1.bias", "transformer.h.0.ln_1.bias", QN_TENSOR_ATTENTION_NORM_BIAS, false, {768}, 768, 0},
        {"transformer.h.3.attn.c_attn.q.weight",
         "transformer.h.3.attn.c_attn.weight",
         QN_TENSOR_Q,
         true,
         {768, 768},
         2304,
         0},
        {"transformer.h.3.attn.c_attn.k.weight",
         "transformer.h.3.attn.c_attn.weight",
         QN_TENSOR_K,
         true,
         {768, 768},
         2304,
         768},
        {"transformer.h.3.attn.c_attn.v.weight",
         "transformer.h.3.attn.c_attn.weight",
         QN_TENSOR_V,
         true,
         {768, 768},
         2304,
         1536},
        {"transformer.h.11.attn.c_attn.v.bias",
         "transformer.h.11.attn.c_attn.bias",
         QN_TENSOR_V_BIAS,
         false,
         {768},
         2304,
         1536},
        {"transformer.h.11.attn.c_proj.weight",
         "transformer.h.11.attn.c_proj.weight",
         QN_TENSOR_OUTPUT,
         true,
         {768, 768},
         768,
         0},
        {"transformer.h.0.mlp.c_fc.weight",
         "transformer.h.0.mlp.c_fc.weight",
         QN_TENSOR_UP,
         true,
         {3072, 768},
         3072,
         0},
        {"transformer.h.0.mlp.c_proj.weight",
         "transformer.h.0.mlp.c_proj.weight",
         QN_TENSOR_DOWN,
         true,
         {768, 3072},
         768,
         0},
        {"transformer.h.0.mlp.c_proj.bias",
         "transformer.h.0.mlp.c_proj.bias",
         QN_TENSOR_DOWN_BIAS,
         false,
         {768},
         768,
         0},
        {"transformer.ln_f.bias", "transformer.ln_f.bias", QN_TENSOR_FINAL_NORM_BIAS, false, {768}, 768, 0},
    };
    qn_model_config_t config = published_config("gpt2");
    assert_int_equal(qn_model_tensor_count(&config), 2 + 12 * 16 + 2);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        const qn_model_tensor_t *tensor = find(&config, wanted[i].name);
        if (!tensor) fail_msg("%s is missing", wanted[i].name);
        assert_string_equal(tensor->source, wanted[i].source);
        assert_int_equal(tensor->role, wanted[i].role);
        assert_int_equal(tensor->transposed, wanted[i].transposed);
        assert_memory_equal(tensor->shape, wanted[i].shape, sizeof tensor->shape);
        assert_int_equal(tensor->source_outputs, wanted[i].outputs);
        assert_int_equal(tensor->source_first, wanted[i].first);
    }
}

static void test_model_tensors_experts_have_their_families_names(void **state)
{
    (void)state;
    static const struct {
        const char *model, *name;
        qn_tensor_role_t role;
        uint32_t expert;
        uint64_t shape[2];
    } wanted[] = {
        {"Mixtral-8x7B-v0.1",
         "model.layers.31.block_sparse_moe.gate.weight",
         QN_TENSOR_ROUTER,
         QN_TENSOR_NO_EXPERT,
         {8, 4096}},
        {"Mixtral-8x7B-v0.1",
         "model.layers.0.block_sparse_moe.experts.7.w1.weight",
         QN_TENSOR_EXPERT_GATE,
         7,
         {14336, 4096}},
        {"Mixtral-8x7B-v0.1",
         "model.layers.0.block_sparse_moe.experts.7.w3.weight",
         QN_TENSOR_EXPERT_UP,
         7,
         {14336, 4096}},
        {"Mixtral-8x7B-v0.1",
         "model.layers.0.block_sparse_moe.experts.7.w2.weight",
         QN_TENSOR_EXPERT_DOWN,
         7,
         {4096, 14336}},
        {"Qwen3-30B-A3B", "model.layers.47.mlp.gate.weight", QN_TENSOR_ROUTER, QN_TENSOR_NO_EXPERT, {128, 2048}},
        {"Qwen3-30B-A3B", "model.layers.47.mlp.experts.127.gate_proj.weight", QN_TENSOR_EXPERT_GATE, 127, {768, 2048}},
        {"Qwen3-30B-A3B", "model.layers.47.mlp.experts.127.down_proj.weight", QN_TENSOR_EXPERT_DOWN, 127, {2048, 768}},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        qn_model_config_t config = published_config(wanted[i].model);
        const qn_model_tensor_t *tensor = find(&config, wanted[i].name);
        if (!tensor) fail_msg("%s is missing", wanted[i].name);
        assert_int_equal(tensor->role, wanted[i].role);
        assert_int_equal(tensor->expert, wanted[i].expert);
        assert_int_equal(tensor->use, tensor->role == QN_TENSOR_ROUTER ? QN_TENSOR_PLAIN : QN_TENSOR_PRODUCT);
        assert_memory_equal(tensor->shape, wanted[i].shape, sizeof tensor->shape);
        assert_null(find(&config, "model.layers.0.mlp.gate_proj.weight"));
    }
}

static void test_model_tensors_dense_layers_between_sparse_ones_have_an_mlp(void **state)
{
    (void)state;
    qn_model_config_t config = small_config();
    config.architecture = QN_ARCHITECTURE_QWEN3_MOE;
    config.experts = 4, config.experts_per_token = 2, config.expert_intermediate = 5;
    config.layer_is_sparse[1] = true;
    assert_int_equal(qn_model_tensor_count(&config), 1 + 9 + (6 + 1 + 12) + 9 + 2);
    static const struct {
        size_t index;
        const char *name;
    } wanted[] = {
        {9, "model.layers.0.mlp.down_proj.weight"},
        {10, "model.layers.1.input_layernorm.weight"},
        {16, "model.layers.1.mlp.gate.weight"},
        {17, "model.layers.1.mlp.experts.0.gate_proj.weight"},
        {18, "model.layers.1.mlp.experts.0.up_proj.weight"},
        {19, "model.layers.1.mlp.experts.0.down_proj.weight"},
        {20, "model.layers.1.mlp.experts.1.gate_proj.weight"},
        {28, "model.layers.1.mlp.experts.3.down_proj.weight"},
        {29, "model.layers.2.input_layernorm.weight"},
        {36, "model.layers.2.mlp.up_proj.weight"},
        {38, "model.norm.weight"},
        {39, "lm_head.weight"},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        qn_model_tensor_t tensor;
        qn_model_tensor_at(&config, wanted[i].index, &tensor);
        assert_string_equal(tensor.name, wanted[i].name);
    }
}

static void test_model_tensors_gemma2_has_four_norms_a_layer(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        qn_tensor_role_t role;
    } wanted[] = {
        {"model.layers.25.input_layernorm.weight", QN_TENSOR_ATTENTION_NORM},
        {"model.layers.25.post_attention_layernorm.weight", QN_TENSOR_POST_ATTENTION_NORM},
        {"model.layers.25.pre_feedforward_layernorm.weight", QN_TENSOR_MLP_NORM},
        {"model.layers.25.post_feedforward_layernorm.weight", QN_TENSOR_POST_MLP_NORM},
    };
    qn_model_config_t config = published_config("gemma-2-2b");
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        const qn_model_tensor_t *tensor = find(&config, wanted[i].name);
        if (!tensor) fail_msg("%s is missing", wanted[i].name);
        assert_int_equal(tensor->role, wanted[i].role);
    }
    assert_null(find(&config, "lm_head.weight"));
}

static void test_model_tensors_parameters_are_those_published(void **state)
{
    (void)state;
    for (size_t i = 0; i < PUBLISHED_COUNT; i++) {
        qn_model_config_t config = published_config(PUBLISHED[i].name);
        uint64_t parameters = 0;
        size_t count = qn_model_tensor_count(&config);
        assert_true(count <= QN_TENSORS_MAX);
        for (size_t j = 0; j < count; j++) {
            qn_model_tensor_t tensor;
            qn_model_tensor_at(&config, j, &tensor);
            parameters += tensor.shape[0] * (tensor.rank == 2 ? tensor.shape[1] : 1);
        }
        if (parameters != PUBLISHED[i].parameters)
            fail_msg("%s: %llu parameters, published are %llu", PUBLISHED[i].name, (unsigned long long)parameters,
                     (unsigned long long)PUBLISHED[i].parameters);
    }
}

static int by_text(const void *left, const void *right) { return strcmp(left, right); }

static void test_model_tensors_names_are_unique_and_fit(void **state)
{
    (void)state;
    for (size_t i = 0; i < PUBLISHED_COUNT; i++) {
        qn_model_config_t config = published_config(PUBLISHED[i].name);
        size_t count = qn_model_tensor_count(&config);
        char(*names)[QN_NAME_MAX] = malloc(count * sizeof *names);
        for (size_t j = 0; j < count; j++) {
            qn_model_tensor_t tensor;
            qn_model_tensor_at(&config, j, &tensor);
            memcpy(names[j], tensor.name, QN_NAME_MAX);
        }
        qsort(names, count, sizeof *names, by_text);
        for (size_t j = 1; j < count; j++)
            assert_string_not_equal(names[j - 1], names[j]);
        free(names);
    }
    /* The longest names there can be: every number at its limit. */
    qn_model_config_t widest = small_config();
    widest.layers = QN_LAYERS_MAX, widest.experts = QN_EXPERTS_MAX, widest.architecture = QN_ARCHITECTURE_MIXTRAL;
    widest.layer_is_sparse[QN_LAYERS_MAX - 1] = true;
    qn_model_tensor_t last;
    qn_model_tensor_at(&widest, qn_model_tensor_count(&widest) - 3, &last);
    assert_string_equal(last.name, "model.layers.255.block_sparse_moe.experts.1023.w2.weight");
}

/* Names and shapes in the checkpoint of `tensor`'s source. */
static void check_source(const safetensors_t *checkpoint, const qn_model_tensor_t *tensor, const char *path)
{
    const safetensors_tensor_t *there = safetensors_find(checkpoint, tensor->source);
    if (!there) fail_msg("%s: %s is not in the checkpoint", path, tensor->source);
    assert_int_equal(tensor->rank, there->rank);
    assert_int_equal(there->shape[tensor->transposed ? 1 : 0], tensor->source_outputs);
    if (tensor->rank == 2) assert_int_equal(there->shape[tensor->transposed ? 0 : 1], tensor->shape[1]);
}

static qn_model_config_t read_config(const char *path)
{
    char text[8192], name[256];
    snprintf(name, sizeof name, "%s/config.json", path);
    FILE *file = fopen(name, "r");
    if (!file) fail_msg("%s cannot be opened", name);
    size_t bytes = fread(text, 1, sizeof text, file);
    fclose(file);
    qn_model_config_t config;
    if (qn_model_config_parse(text, bytes, NULL, 0, NULL, &config)) fail_msg("%s: %s", name, qn_err_text());
    return config;
}

static void test_model_tensors_are_exactly_those_of_the_checkpoints(void **state)
{
    (void)state;
    static const char *const PATHS[] = {
        "deploy/models/default", "tests/golden/llama3",   "tests/golden/mistral",
        "tests/golden/qwen2",    "tests/golden/qwen3",    "tests/golden/gpt2",
        "tests/golden/mixtral",  "tests/golden/qwen3moe", "tests/golden/gemma2",
    };
    for (size_t i = 0; i < sizeof PATHS / sizeof *PATHS; i++) {
        qn_model_config_t config = read_config(PATHS[i]);
        safetensors_t *checkpoint;
        if (safetensors_open(PATHS[i], &checkpoint)) fail_msg("%s", qn_err_text());
        uint64_t wanted = 0, there = 0;
        for (size_t j = 0; j < qn_model_tensor_count(&config); j++) {
            qn_model_tensor_t tensor;
            qn_model_tensor_at(&config, j, &tensor);
            check_source(checkpoint, &tensor, PATHS[i]);
            wanted += tensor.shape[0] * (tensor.rank == 2 ? tensor.shape[1] : 1);
        }
        for (size_t j = 0; j < safetensors_count(checkpoint); j++)
            there += safetensors_elements(safetensors_at(checkpoint, j));
        assert_int_equal(wanted, there); /* every element of the checkpoint is used once */
        safetensors_close(&checkpoint);
    }
}

static void test_model_tensors_bare_sources_lack_the_model_in_front(void **state)
{
    (void)state;
    assert_string_equal(qn_model_tensor_bare_source("model.layers.0.mlp.up_proj.bias"), "layers.0.mlp.up_proj.bias");
    assert_string_equal(qn_model_tensor_bare_source("transformer.wte.weight"), "wte.weight");
    assert_null(qn_model_tensor_bare_source("lm_head.weight"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_tensors_shapes_follow_the_configuration),
        cmocka_unit_test(test_model_tensors_switches_add_and_remove),
        cmocka_unit_test(test_model_tensors_gpt2_splits_and_transposes_its_sources),
        cmocka_unit_test(test_model_tensors_experts_have_their_families_names),
        cmocka_unit_test(test_model_tensors_dense_layers_between_sparse_ones_have_an_mlp),
        cmocka_unit_test(test_model_tensors_gemma2_has_four_norms_a_layer),
        cmocka_unit_test(test_model_tensors_parameters_are_those_published),
        cmocka_unit_test(test_model_tensors_names_are_unique_and_fit),
        cmocka_unit_test(test_model_tensors_bare_sources_lack_the_model_in_front),
        cmocka_unit_test(test_model_tensors_are_exactly_those_of_the_checkpoints),
    };
    return cmocka_run_group_tests_name("model_tensors", tests, NULL, NULL);
}
