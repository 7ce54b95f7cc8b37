/* The list of tensors agrees with real checkpoints of every supported architecture's shape. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "common/model_tensors.h"
#include "services/memory/safetensors.h"

static qn_model_config_t small_config(void)
{
    return (qn_model_config_t){ .layers = 3, .hidden = 8, .heads = 4, .kv_heads = 2, .head_dim = 6, .intermediate = 10,
                                .vocab = 20 };
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
        uint32_t layer, rank;
        uint64_t shape[2];
    } wanted[] = {
        { "model.embed_tokens.weight", QN_TENSOR_EMBEDDING, QN_TENSOR_NO_LAYER, 2, { 20, 8 } },
        { "model.layers.0.input_layernorm.weight", QN_TENSOR_ATTENTION_NORM, 0, 1, { 8 } },
        { "model.layers.1.self_attn.q_proj.weight", QN_TENSOR_Q, 1, 2, { 24, 8 } },
        { "model.layers.2.self_attn.k_proj.weight", QN_TENSOR_K, 2, 2, { 12, 8 } },
        { "model.layers.2.self_attn.v_proj.weight", QN_TENSOR_V, 2, 2, { 12, 8 } },
        { "model.layers.0.self_attn.o_proj.weight", QN_TENSOR_OUTPUT, 0, 2, { 8, 24 } },
        { "model.layers.0.post_attention_layernorm.weight", QN_TENSOR_MLP_NORM, 0, 1, { 8 } },
        { "model.layers.0.mlp.gate_proj.weight", QN_TENSOR_GATE, 0, 2, { 10, 8 } },
        { "model.layers.0.mlp.up_proj.weight", QN_TENSOR_UP, 0, 2, { 10, 8 } },
        { "model.layers.0.mlp.down_proj.weight", QN_TENSOR_DOWN, 0, 2, { 8, 10 } },
        { "model.norm.weight", QN_TENSOR_FINAL_NORM, QN_TENSOR_NO_LAYER, 1, { 8 } },
        { "lm_head.weight", QN_TENSOR_HEAD, QN_TENSOR_NO_LAYER, 2, { 20, 8 } },
    };
    qn_model_config_t config = small_config();
    assert_int_equal(qn_model_tensor_count(&config), 1 + 3 * 9 + 2);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        const qn_model_tensor_t *tensor = find(&config, wanted[i].name);
        if (!tensor) fail_msg("%s is missing", wanted[i].name);
        assert_int_equal(tensor->role, wanted[i].role);
        assert_int_equal(tensor->layer, wanted[i].layer);
        assert_int_equal(tensor->rank, wanted[i].rank);
        assert_int_equal(tensor->shape[0], wanted[i].shape[0]);
        assert_int_equal(tensor->shape[1], wanted[i].shape[1]);
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
    static const struct { const char *name; uint64_t extent; } added[] = {
        { "model.layers.1.self_attn.q_proj.bias", 24 }, { "model.layers.1.self_attn.k_proj.bias", 12 },
        { "model.layers.1.self_attn.v_proj.bias", 12 }, { "model.layers.1.self_attn.o_proj.bias", 8 },
        { "model.layers.1.self_attn.q_norm.weight", 6 }, { "model.layers.1.self_attn.k_norm.weight", 6 },
        { "model.layers.1.mlp.gate_proj.bias", 10 }, { "model.layers.1.mlp.up_proj.bias", 10 },
        { "model.layers.1.mlp.down_proj.bias", 8 },
    };
    for (size_t i = 0; i < sizeof added / sizeof *added; i++) {
        const qn_model_tensor_t *tensor = find(&config, added[i].name);
        if (!tensor) fail_msg("%s is missing", added[i].name);
        assert_int_equal(tensor->rank, 1);
        assert_int_equal(tensor->shape[0], added[i].extent);
    }
    assert_int_equal(qn_model_tensor_count(&config), 1 + 3 * (9 + 9) + 1);
}

static void test_model_tensors_are_exactly_those_of_the_checkpoints(void **state)
{
    (void)state;
    static const struct { const char *path; qn_model_config_t config; } models[] = {
        { "deploy/models/default", { .layers = 8, .hidden = 256, .heads = 4, .kv_heads = 2, .head_dim = 64,
                                     .intermediate = 768, .vocab = 4096, .tie_embeddings = true } },
        { "tests/golden/llama3", { .layers = 3, .hidden = 128, .heads = 4, .kv_heads = 2, .head_dim = 32,
                                   .intermediate = 352, .vocab = 512 } },
    };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        safetensors_t *checkpoint;
        if (safetensors_open(models[i].path, &checkpoint)) fail_msg("%s", qn_err_text());
        assert_int_equal(qn_model_tensor_count(&models[i].config), safetensors_count(checkpoint));
        for (size_t j = 0; j < safetensors_count(checkpoint); j++) {
            const safetensors_tensor_t *there = safetensors_at(checkpoint, j);
            const qn_model_tensor_t *tensor = find(&models[i].config, there->name);
            if (!tensor) fail_msg("%s: %s is not in the list", models[i].path, there->name);
            assert_int_equal(tensor->rank, there->rank);
            assert_memory_equal(tensor->shape, there->shape, there->rank * sizeof *there->shape);
        }
        safetensors_close(&checkpoint);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_tensors_shapes_follow_the_configuration),
        cmocka_unit_test(test_model_tensors_switches_add_and_remove),
        cmocka_unit_test(test_model_tensors_are_exactly_those_of_the_checkpoints),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
