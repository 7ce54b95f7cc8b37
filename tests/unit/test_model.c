/* The binding of tensors by name: complete models bind, and every way a checkpoint can be wrong is refused by the
 * tensor's name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "services/compute/model.h"

#define TENSORS_MAX 64
#define BASE_BYTES (1 << 20)

/* A checkpoint in the order of qn_model_tensor_at, reversed, with a stranger in front. */
typedef struct {
    qn_model_config_t config;
    char names[TENSORS_MAX][QN_NAME_MAX];
    uint64_t shapes[TENSORS_MAX][2];
    model_tensor_t tensors[TENSORS_MAX];
    size_t count;
} checkpoint_t;

static _Alignas(64) unsigned char base[BASE_BYTES];

static void make_checkpoint(checkpoint_t *c, bool tied)
{
    static const uint64_t STRANGE[1] = { 3 };
    memset(c, 0, sizeof *c);
    c->config = (qn_model_config_t){ .layers = 2, .hidden = 16, .heads = 2, .kv_heads = 1, .head_dim = 8,
                                     .intermediate = 24, .vocab = 30, .tie_embeddings = tied };
    strcpy(c->config.architecture_name, "LlamaForCausalLM");
    size_t wanted = qn_model_tensor_count(&c->config);
    assert_in_range(wanted, 1, TENSORS_MAX - 1);
    c->tensors[c->count++] = (model_tensor_t){ .name = "model.rotary.inv_freq", .shape = STRANGE, .rank = 1 };
    uint64_t offset = 0;
    for (size_t i = wanted; i-- > 0; c->count++) {
        qn_model_tensor_t want;
        qn_model_tensor_at(&c->config, i, &want);
        memcpy(c->names[c->count], want.name, sizeof want.name);
        memcpy(c->shapes[c->count], want.shape, sizeof want.shape);
        uint64_t elements = want.shape[0] * (want.rank > 1 ? want.shape[1] : 1);
        c->tensors[c->count] = (model_tensor_t){
            .name = c->names[c->count], .supported = true, .scalar = QN_SCALAR_BF16, .shape = c->shapes[c->count],
            .rank = want.rank, .offset = offset, .bytes = elements * 2 };
        offset += (elements * 2 + 63) / 64 * 64;
    }
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
    static const char *const CASES[] = { "missing", "shape", "rank", "type", "offset", "end", "wrap", "align",
                                         "bytes" };
    checkpoint_t *c = malloc(sizeof *c);
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        make_checkpoint(c, false);
        model_tensor_t *victim = find(c, VICTIM);
        uint64_t other[2] = { 8, 17 };
        qn_err_t want = QN_ERR_INVALID;
        switch (i) {
        case 0: victim->name = "model.layers.1.self_attn.kproj.weight"; break;
        case 1: victim->shape = other; break;
        case 2: victim->rank = 1; break;
        case 3: victim->supported = false; want = QN_ERR_UNSUPPORTED; break;
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
        cmocka_unit_test(test_model_last_byte_of_the_region_may_be_used),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
