/* The binding of tensors by name: complete models bind, and every way a checkpoint can be wrong is refused by the
 * tensor's name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/weight_layout.h"
#include "services/compute/model.h"

#define TENSORS_MAX 96
#define BASE_BYTES (2 << 20)

/* A checkpoint in the order of qn_model_tensor_at, reversed, with a stranger in front. */
typedef struct {
    qn_model_config_t config;
    char names[TENSORS_MAX][QN_NAME_MAX];
    uint64_t shapes[TENSORS_MAX][2];
    model_tensor_t tensors[TENSORS_MAX];
    size_t count;
} checkpoint_t;

static _Alignas(64) unsigned char base[BASE_BYTES];

/* Bytes as weight_layout.h counts them; formats that there are none of keep what they have. */
static void format_tensor(model_tensor_t *tensor, qn_scalar_t scalar, qn_layout_t layout, uint32_t group)
{
    bool exists =
        layout == QN_LAYOUT_PANELS ? scalar != QN_SCALAR_INT4 || group == 32 || group == 64 : scalar <= QN_SCALAR_BF16;
    tensor->scalar = scalar, tensor->layout = layout, tensor->group = group;
    if (exists)
        assert_int_equal(qn_weight_bytes(scalar, layout, group, tensor->shape[0],
                                         tensor->rank > 1 ? tensor->shape[1] : 1, &tensor->bytes),
                         QN_OK);
}

static void list_tensors(checkpoint_t *c)
{
    static const uint64_t STRANGE[1] = {3};
    size_t wanted = qn_model_tensor_count(&c->config);
    assert_in_range(wanted, 1, TENSORS_MAX - 1);
    c->tensors[c->count++] = (model_tensor_t){.name = "model.rotary.inv_freq", .shape = STRANGE, .rank = 1};
    uint64_t offset = 0;
    for (size_t i = wanted; i-- > 0; c->count++) {
        qn_model_tensor_t want;
        qn_model_tensor_at(&c->config, i, &want);
        memcpy(c->names[c->count], want.name, sizeof want.name);
        memcpy(c->shapes[c->count], want.shape, sizeof want.shape);
        model_tensor_t *tensor = &c->tensors[c->count];
        *tensor = (model_tensor_t){.name = c->names[c->count],
                                   .supported = true,
                                   .shape = c->shapes[c->count],
                                   .rank = want.rank,
                                   .offset = offset};
        format_tensor(tensor, QN_SCALAR_BF16, QN_LAYOUT_ROWS, 0);
        offset += 16384; /* room for any format */
    }
}

static void make_checkpoint(checkpoint_t *c, bool tied)
{
    memset(c, 0, sizeof *c);
    c->config = (qn_model_config_t){.layers = 2,
                                    .hidden = 16,
                                    .heads = 2,
                                    .kv_heads = 1,
                                    .head_dim = 8,
                                    .intermediate = 24,
                                    .vocab = 30,
                                    .gated_mlp = true,
                                    .tie_embeddings = tied};
    strcpy(c->config.architecture_name, "LlamaForCausalLM");
    list_tensors(c);
}

/* The second layer has experts. */
static void make_sparse_checkpoint(checkpoint_t *c)
{
    memset(c, 0, sizeof *c);
    c->config = (qn_model_config_t){.architecture = QN_ARCHITECTURE_QWEN3_MOE,
                                    .layers = 2,
                                    .hidden = 16,
                                    .heads = 2,
                                    .kv_heads = 1,
                                    .head_dim = 8,
                                    .intermediate = 24,
                                    .vocab = 30,
                                    .gated_mlp = true,
                                    .tie_embeddings = true,
                                    .experts = 5,
                                    .experts_per_token = 2,
                                    .expert_intermediate = 12,
                                    .layer_is_sparse = {false, true}};
    strcpy(c->config.architecture_name, "Qwen3MoeForCausalLM");
    list_tensors(c);
}

static model_tensor_t *find(checkpoint_t *c, const char *name)
{
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->tensors[i].name, name) == 0) return &c->tensors[i];
    fail_msg("no %s", name);
    return NULL;
}

static qn_err_t bind(const checkpoint_t *c, model_t **ret)
{
    return model_bind(&c->config, c->tensors, c->count, base, BASE_BYTES, ret);
}

static void test_model_complete_checkpoint_binds_every_role(void **state)
{
    (void)state;
    checkpoint_t *c = malloc(sizeof *c);
    make_checkpoint(c, false);
    model_t *model;
    assert_int_equal(bind(c, &model), QN_OK);
    const qn_weight_t *outer = model->outer.weights;
    assert_ptr_equal(outer[QN_TENSOR_EMBEDDING].data, base + find(c, "model.embed_tokens.weight")->offset);
    assert_ptr_equal(outer[QN_TENSOR_HEAD].data, base + find(c, "lm_head.weight")->offset);
    assert_ptr_equal(outer[QN_TENSOR_FINAL_NORM].data, base + find(c, "model.norm.weight")->offset);
    const qn_weight_t *down = &model->layers[1].weights[QN_TENSOR_DOWN];
    assert_ptr_equal(down->data, base + find(c, "model.layers.1.mlp.down_proj.weight")->offset);
    assert_int_equal(down->scalar, QN_SCALAR_BF16);
    assert_null(model->layers[0].weights[QN_TENSOR_Q_BIAS].data);
    model_destroy(&model);
    assert_null(model);
    model_destroy(&model);
    free(c);
}

static void test_model_tied_head_is_the_embedding(void **state)
{
    (void)state;
    checkpoint_t *c = malloc(sizeof *c);
    make_checkpoint(c, true);
    model_t *model;
    assert_int_equal(bind(c, &model), QN_OK);
    assert_non_null(model->outer.weights[QN_TENSOR_HEAD].data);
    assert_ptr_equal(model->outer.weights[QN_TENSOR_HEAD].data, model->outer.weights[QN_TENSOR_EMBEDDING].data);
    model_destroy(&model);
    free(c);
}

#define VICTIM "model.layers.1.self_attn.k_proj.weight"

static void test_model_wrong_tensors_are_refused_by_name(void **state)
{
    (void)state;
    static const char *const CASES[] = {"missing", "shape", "rank", "type", "offset", "end", "wrap", "align", "bytes"};
    checkpoint_t *c = malloc(sizeof *c);
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        make_checkpoint(c, false);
        model_tensor_t *victim = find(c, VICTIM);
        uint64_t other[2] = {8, 17};
        qn_err_t want = QN_ERR_INVALID;
        switch (i) {
        case 0: victim->name = "model.layers.1.self_attn.kproj.weight"; break;
        case 1: victim->shape = other; break;
        case 2: victim->rank = 1; break;
        case 3:
            victim->supported = false;
            want = QN_ERR_UNSUPPORTED;
            break;
        case 4: victim->offset = BASE_BYTES; break;
        case 5: victim->offset = BASE_BYTES - victim->bytes + 16; break;
        case 6: victim->offset = UINT64_MAX - 15; break;
        case 7: victim->offset += 2; break;
        default: victim->bytes -= 2; break;
        }
        model_t *model = NULL;
        qn_err_t err = bind(c, &model);
        if (err != want || model || !strstr(qn_err_text(), VICTIM))
            fail_msg("%s: %s: %s", CASES[i], qn_err_name(err), err ? qn_err_text() : "");
    }
    free(c);
}

static void test_model_experts_bind_by_layer_part_and_number(void **state)
{
    (void)state;
    checkpoint_t *c = malloc(sizeof *c);
    make_sparse_checkpoint(c);
    model_t *model;
    assert_int_equal(bind(c, &model), QN_OK);
    size_t bound = 0;
    for (size_t i = 0, count = qn_model_tensor_count(&c->config); i < count; i++) {
        qn_model_tensor_t want;
        qn_model_tensor_at(&c->config, i, &want);
        if (want.expert == QN_TENSOR_NO_EXPERT) continue;
        model_expert_part_t part = want.role == QN_TENSOR_EXPERT_GATE ? MODEL_EXPERT_GATE
                                   : want.role == QN_TENSOR_EXPERT_UP ? MODEL_EXPERT_UP
                                                                      : MODEL_EXPERT_DOWN;
        const qn_weight_t *weight = &model->experts[model_expert_at(&c->config, want.layer, part) + want.expert];
        assert_ptr_equal(weight->data, base + find(c, want.name)->offset);
        bound++;
    }
    assert_int_equal(bound, 3 * 5);
    assert_non_null(model->layers[1].weights[QN_TENSOR_ROUTER].data);
    assert_null(model->layers[1].weights[QN_TENSOR_GATE].data);
    assert_non_null(model->layers[0].weights[QN_TENSOR_GATE].data);
    assert_null(model->experts[model_expert_at(&c->config, 0, MODEL_EXPERT_GATE)].data);
    model_destroy(&model);
    free(c);
}

/* Products and tables may be packed and quantised, with the bytes that takes; what is read as rows may not. */
static void test_model_formats_are_taken_where_kernels_read_them(void **state)
{
    (void)state;
    enum { PRODUCT, TABLE, NORM };
    static const char *const NAMES[] = {"model.layers.1.self_attn.k_proj.weight", "lm_head.weight",
                                        "model.layers.1.input_layernorm.weight"};
    static const struct {
        int which;
        qn_scalar_t scalar;
        qn_layout_t layout;
        uint32_t group;
        qn_err_t want;
    } CASES[] = {
        {PRODUCT, QN_SCALAR_F32, QN_LAYOUT_ROWS, 0, QN_OK},
        {PRODUCT, QN_SCALAR_F32, QN_LAYOUT_PANELS, 0, QN_OK},
        {PRODUCT, QN_SCALAR_BF16, QN_LAYOUT_PANELS, 0, QN_OK},
        {PRODUCT, QN_SCALAR_INT8, QN_LAYOUT_PANELS, 0, QN_OK},
        {PRODUCT, QN_SCALAR_INT4, QN_LAYOUT_PANELS, 32, QN_OK},
        {PRODUCT, QN_SCALAR_INT4, QN_LAYOUT_PANELS, 64, QN_OK},
        {PRODUCT, QN_SCALAR_INT4, QN_LAYOUT_PANELS, 16, QN_ERR_UNSUPPORTED},
        {PRODUCT, QN_SCALAR_INT4, QN_LAYOUT_PANELS, 0, QN_ERR_UNSUPPORTED},
        {PRODUCT, QN_SCALAR_INT8, QN_LAYOUT_ROWS, 0, QN_ERR_INVALID},
        {TABLE, QN_SCALAR_INT8, QN_LAYOUT_PANELS, 0, QN_OK},
        {TABLE, QN_SCALAR_BF16, QN_LAYOUT_PANELS, 0, QN_OK},
        {NORM, QN_SCALAR_F32, QN_LAYOUT_ROWS, 0, QN_OK},
        {NORM, QN_SCALAR_BF16, QN_LAYOUT_PANELS, 0, QN_ERR_INVALID},
        {NORM, QN_SCALAR_INT8, QN_LAYOUT_ROWS, 0, QN_ERR_INVALID},
    };
    checkpoint_t *c = malloc(sizeof *c);
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        make_checkpoint(c, false);
        model_tensor_t *victim = find(c, NAMES[CASES[i].which]);
        format_tensor(victim, CASES[i].scalar, CASES[i].layout, CASES[i].group);
        model_t *model = NULL;
        qn_err_t err = bind(c, &model);
        if (err != CASES[i].want || (err && !strstr(qn_err_text(), victim->name)))
            fail_msg("case %zu: %s: %s", i, qn_err_name(err), err ? qn_err_text() : "");
        if (!err) {
            victim->bytes -= 2; /* the row's own count is not what it takes */
            model_destroy(&model);
            assert_int_equal(bind(c, &model), QN_ERR_INVALID);
        }
    }
    free(c);
}

static void test_model_last_byte_of_the_region_may_be_used(void **state)
{
    (void)state;
    checkpoint_t *c = malloc(sizeof *c);
    make_checkpoint(c, false);
    model_tensor_t *victim = find(c, VICTIM);
    victim->offset = BASE_BYTES - victim->bytes;
    model_t *model;
    assert_int_equal(bind(c, &model), QN_OK);
    model_destroy(&model);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_complete_checkpoint_binds_every_role),
        cmocka_unit_test(test_model_tied_head_is_the_embedding),
        cmocka_unit_test(test_model_wrong_tensors_are_refused_by_name),
        cmocka_unit_test(test_model_experts_bind_by_layer_part_and_number),
        cmocka_unit_test(test_model_formats_are_taken_where_kernels_read_them),
        cmocka_unit_test(test_model_last_byte_of_the_region_may_be_used),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
