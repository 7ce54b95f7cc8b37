/* Taps and attention weights of the reference checkpoints against transformers' hidden states and attentions in float32,
 * over a private cache, in chunks, and from what is resident of a living sequence; what taps write; stages one by one; and
 * that a step with a probe leaves those beside it alone. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "services/compute/executor/executor_task.h"
#include "tests/golden/cases.h"
#include "tests/golden/engine.h"

typedef struct {
    engine_t *engine;
    golden_case_t want;
    safetensors_t *tensors;
    void *cache;
    executor_task_t task; /* over the whole prompt; nothing is asked of it yet */
} detail_t;

static void open_detail(detail_t *d, size_t model, uint32_t step_tokens)
{
    char path[QN_PATH_MAX];
    json_t *root, *cases = load_cases(&MODELS[model], &root);
    read_case(json_array_get(cases, (size_t)json_integer_value(json_object_get(root, "detail_case"))), &d->want);
    json_decref(root);
    snprintf(path, sizeof path, "%s/golden.safetensors", MODELS[model].name);
    assert_int_equal(safetensors_open(path, &d->tensors), QN_OK);
    d->engine = engine_open((engine_options_t){.directory = MODELS[model].model,
                                               .config = MODELS[model].config,
                                               .step_tokens = step_tokens,
                                               .model_len = MODELS[model].model_len,
                                               .format = {.layout = QN_LAYOUT_PANELS}});
    const qn_model_config_t *config = &d->engine->model->config;
    uint32_t blocks = d->want.prompt_tokens / 16 + 2;
    size_t bytes = (size_t)config->layers * 2 * blocks * 16 * config->kv_heads * config->head_dim * sizeof(float);
    d->cache = aligned_alloc(64, (bytes + 63) / 64 * 64);
    memset(d->cache, 0xff, bytes); /* what nobody wrote must not be read */
    d->task = (executor_task_t){.ids = d->want.prompt,
                                .count = d->want.prompt_tokens,
                                .kv = {.data = d->cache,
                                       .scalar = QN_SCALAR_F32,
                                       .layers = config->layers,
                                       .blocks = blocks,
                                       .block_tokens = 16,
                                       .kv_heads = config->kv_heads,
                                       .head_dim = config->head_dim},
                                .stages = {.embed = true, .layer_count = config->layers},
                                .workspace_bytes = UINT64_MAX};
}

static void close_detail(detail_t *d)
{
    free(d->cache);
    safetensors_close(&d->tensors);
    engine_close(d->engine);
}

static void check_near(const float *got, const float *want, size_t count, const char *model, const char *what)
{
    for (size_t i = 0; i < count; i++)
        if (!(fabsf(got[i] - want[i]) <= 1e-4f * (1 + fabsf(want[i]))))
            fail_msg("%s, %s, value %zu: %g, expected %g", model, what, i, (double)got[i], (double)want[i]);
}

/* hidden[0]: the embedding's output; [l + 1]: of layer l, the last one behind the final norm. */
static void check_hidden(detail_t *d, size_t model)
{
    const safetensors_tensor_t *hidden = safetensors_find(d->tensors, "hidden");
    uint32_t layers = d->engine->model->config.layers;
    size_t count = (size_t)d->want.prompt_tokens * d->engine->model->config.hidden;
    qn_tap_point_t taps[QN_LAYERS_MAX + 1];
    float *rows = calloc((layers + 1) * count, sizeof *rows), *want = malloc(count * sizeof *want);
    for (uint32_t i = 0; i <= layers; i++)
        taps[i] = (qn_tap_point_t){.offset = i * count * sizeof *rows,
                                   .position_to = UINT32_MAX,
                                   .layer = (uint16_t)(i && i < layers ? i - 1 : 0),
                                   .site = i == 0       ? QN_TAP_SITE_EMBED
                                           : i < layers ? QN_TAP_SITE_RESID
                                                        : QN_TAP_SITE_NORM};
    d->task.probe = (qn_probe_t){.taps = taps, .tap_count = layers + 1, .workspace = 1};
    d->task.workspace = (uint8_t *)rows;
    ENGINE_OK(executor_run_task(d->engine->executor, &d->task));
    for (uint32_t i = 0; i <= layers; i++) {
        char what[32];
        snprintf(what, sizeof what, "hidden state %u", i);
        assert_int_equal(safetensors_read_f32(hidden, i * count, count, want), QN_OK);
        check_near(rows + i * count, want, count, MODELS[model].name, what);
    }
    d->task.probe = (qn_probe_t){0};
    free(rows);
    free(want);
}

/* attentions [L, H, T, T]; ours are [T, H, T]. */
static void check_attentions(detail_t *d, size_t model, uint32_t from)
{
    const safetensors_tensor_t *attentions = safetensors_find(d->tensors, "attentions");
    uint32_t T = d->want.prompt_tokens, H = d->engine->model->config.heads;
    float *got = malloc((size_t)(T - from) * H * T * sizeof *got), *want = malloc((size_t)H * T * T * sizeof *want);
    for (uint32_t layer = 0; layer < d->engine->model->config.layers; layer++) {
        memset(got, 0, (size_t)(T - from) * H * T * sizeof *got);
        d->task.weights = got;
        d->task.weight_layer = layer;
        d->task.weight_from = from;
        d->task.weight_columns = T;
        ENGINE_OK(executor_run_task(d->engine->executor, &d->task));
        assert_int_equal(safetensors_read_f32(attentions, (size_t)layer * H * T * T, (size_t)H * T * T, want), QN_OK);
        for (uint32_t t = from; t < T; t++)
            for (uint32_t h = 0; h < H; h++) {
                const float *row = got + ((size_t)(t - from) * H + h) * T;
                double sum = 0;
                for (uint32_t p = 0; p < T; p++)
                    sum += (double)row[p];
                assert_true(fabs(sum - 1) < 1e-5);
                check_near(row, want + ((size_t)h * T + t) * T, T, MODELS[model].name, "attention");
            }
    }
    d->task.weights = NULL;
    free(got);
    free(want);
}

static void test_probes_hidden_states_and_attentions_agree_with_transformers(void **state)
{
    (void)state;
    static const uint32_t STEP_TOKENS[] = {256, 7};
    detail_t *d = malloc(sizeof *d);
    for (size_t m = 0; m < MODEL_COUNT; m++)
        for (size_t i = 0; i < 2; i++) {
            open_detail(d, m, STEP_TOKENS[i]);
            if (safetensors_find(d->tensors, "hidden")) {
                check_hidden(d, m);
                check_attentions(d, m, 0);
                check_attentions(d, m, d->want.prompt_tokens / 2);
            }
            close_detail(d);
        }
    free(d);
}

/* Stage by stage, each from what the one before it left, gives the logits of all at once. */
static void test_probes_stages_one_by_one_are_the_network(void **state)
{
    (void)state;
    detail_t *d = malloc(sizeof *d);
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        open_detail(d, m, 256);
        uint32_t layers = d->engine->model->config.layers, V = d->engine->limits.vocab;
        size_t count = (size_t)d->want.prompt_tokens * d->engine->model->config.hidden;
        float *whole = malloc(V * sizeof *whole), *pieces = malloc(V * sizeof *pieces);
        float *x = malloc(count * sizeof *x), *next = malloc(count * sizeof *next);
        d->task.ret_logits = whole;
        ENGINE_OK(executor_run_task(d->engine->executor, &d->task));
        d->task.ret_logits = NULL;
        for (uint32_t stage = 0; stage <= 2 * layers; stage++) {
            bool attention = stage % 2 == 1;
            d->task.stages = (forward_stages_t){.embed = stage == 0,
                                                .first_layer = stage ? (stage - 1) / 2 : 0,
                                                .attention = stage && attention,
                                                .mlp = stage && !attention};
            d->task.input = stage ? x : NULL;
            d->task.ret_residual = next;
            if (stage == 2 * layers) d->task.ret_logits = pieces;
            ENGINE_OK(executor_run_task(d->engine->executor, &d->task));
            memcpy(x, next, count * sizeof *x);
        }
        assert_memory_equal(whole, pieces, V * sizeof *whole);
        free(whole);
        free(pieces);
        free(x);
        free(next);
        close_detail(d);
    }
    free(d);
}

/* Adding a vector and then its negative is nothing; replacing rows by what was read there is nothing; adding one is not. */
static void test_probes_what_taps_write_is_seen_behind_them(void **state)
{
    (void)state;
    static const qn_tap_site_t SITES[] = {QN_TAP_SITE_EMBED,  QN_TAP_SITE_ATTN_Q,   QN_TAP_SITE_ATTN_K,
                                          QN_TAP_SITE_ATTN_V, QN_TAP_SITE_ATTN_OUT, QN_TAP_SITE_MLP_OUT,
                                          QN_TAP_SITE_RESID};
    detail_t *d = malloc(sizeof *d);
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        open_detail(d, m, 256);
        const qn_model_config_t *config = &d->engine->model->config;
        const qn_probe_model_t shape = {.layers = config->layers,
                                        .heads = config->heads,
                                        .kv_heads = config->kv_heads,
                                        .head_dim = config->head_dim,
                                        .hidden = config->hidden,
                                        .vocab = config->vocab};
        uint32_t V = d->engine->limits.vocab;
        float *plain = malloc(V * sizeof *plain), *got = malloc(V * sizeof *got);
        d->task.ret_logits = plain;
        ENGINE_OK(executor_run_task(d->engine->executor, &d->task));
        d->task.ret_logits = got;
        for (size_t s = 0; s < sizeof SITES / sizeof *SITES; s++) {
            uint32_t width = qn_probe_width(&shape, SITES[s]);
            float *rows = calloc(2 * (size_t)width, sizeof *rows);
            qn_tap_point_t taps[2] = {{.position_from = 1, .position_to = 3, .site = SITES[s]}};
            d->task.workspace = (uint8_t *)rows;
            d->task.probe = (qn_probe_t){.taps = taps, .tap_count = 1, .workspace = 1};
            ENGINE_OK(executor_run_task(d->engine->executor, &d->task));
            assert_memory_equal(got, plain, V * sizeof *got); /* to look changes nothing */
            taps[0].action = QN_TAP_ACTION_REPLACE;
            taps[0].value_count = 2 * width;
            taps[0].scale = 1;
            d->task.probe.values = rows;
            d->task.probe.value_count = 2 * width;
            ENGINE_OK(executor_run_task(d->engine->executor, &d->task));
            check_near(got, plain, V, MODELS[m].name, "rows replaced by themselves");
            taps[0].action = QN_TAP_ACTION_ADD;
            taps[0].value_count = width;
            taps[0].scale = 3;
            ENGINE_OK(executor_run_task(d->engine->executor, &d->task));
            assert_memory_not_equal(got, plain, V * sizeof *got);
            taps[1] = taps[0];
            taps[1].scale = -3;
            d->task.probe.tap_count = 2;
            ENGINE_OK(executor_run_task(d->engine->executor, &d->task));
            check_near(got, plain, V, MODELS[m].name, "a vector and its negative");
            free(rows);
        }
        free(plain);
        free(got);
        close_detail(d);
    }
    free(d);
}

/* ---- masks ---- */

static uint32_t number_of(const json_t *rule, const char *name)
{
    return (uint32_t)json_integer_value(json_object_get(rule, name));
}

static qn_mask_rule_t read_rule(const json_t *rule)
{
    const char *kind = json_string_value(json_object_get(rule, "kind"));
    uint32_t at = 0;
    while (strcmp(qn_mask_rule_kind_enum.names[at], kind) != 0)
        assert_true(++at < qn_mask_rule_kind_enum.count);
    return (qn_mask_rule_t){.kind = (qn_mask_rule_kind_t)at,
                            .k = number_of(rule, "k"),
                            .window = number_of(rule, "window"),
                            .sinks = number_of(rule, "sinks"),
                            .value = (float)json_number_value(json_object_get(rule, "value")),
                            .layer_from = (uint16_t)number_of(rule, "layer_from"),
                            .layer_to = (uint16_t)number_of(rule, "layer_to"),
                            .head_from = (uint16_t)number_of(rule, "head_from"),
                            .head_to = (uint16_t)number_of(rule, "head_to")};
}

static size_t model_named(const char *name)
{
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        const char *last = strrchr(MODELS[m].name, '/');
        if (strcmp(last ? last + 1 : MODELS[m].name, name) == 0) return m;
    }
    fail_msg("no model %s", name);
    return 0;
}

/* The last rows of one case, as a prompt in chunks of `step_tokens`. */
static void check_mask(const json_t *root, const json_t *one, const safetensors_t *tensors, uint32_t step_tokens)
{
    detail_t *d = malloc(sizeof *d);
    const json_t *ids = json_object_get(root, "ids"), *rules = json_object_get(one, "rules");
    uint32_t count = (uint32_t)json_array_size(ids), rows = number_of(root, "rows"), tokens[256];
    const char *name = json_string_value(json_object_get(one, "tensor"));
    qn_mask_rule_t masks[8];
    for (uint32_t i = 0; i < count; i++)
        tokens[i] = (uint32_t)json_integer_value(json_array_get(ids, i));
    for (size_t i = 0; i < json_array_size(rules); i++)
        masks[i] = read_rule(json_array_get(rules, i));
    open_detail(d, model_named(json_string_value(json_object_get(one, "model"))), step_tokens);
    free(d->cache);
    d->task.kv.blocks = count / 16 + 1;
    size_t bytes =
        (size_t)d->task.kv.layers * 2 * d->task.kv.blocks * 16 * d->task.kv.kv_heads * d->task.kv.head_dim * 4;
    d->cache = d->task.kv.data = aligned_alloc(64, (bytes + 63) / 64 * 64);
    uint32_t V = d->engine->limits.vocab;
    float *got = calloc((size_t)rows * V, sizeof *got), *want = malloc((size_t)rows * V * sizeof *want);
    qn_tap_point_t tap = {.position_from = count - rows, .position_to = count, .site = QN_TAP_SITE_LOGITS};
    d->task.ids = tokens;
    d->task.count = count;
    d->task.workspace = (uint8_t *)got;
    d->task.probe = (qn_probe_t){
        .masks = masks, .mask_count = (uint32_t)json_array_size(rules), .taps = &tap, .tap_count = 1, .workspace = 1};
    ENGINE_OK(executor_run_task(d->engine->executor, &d->task));
    assert_int_equal(safetensors_read_f32(safetensors_find(tensors, name), 0, (size_t)rows * V, want), QN_OK);
    for (size_t i = 0; i < (size_t)rows * V; i++)
        if (!(fabsf(got[i] - want[i]) <= 1e-3f))
            fail_msg("%s under %s, chunks of %u, logit %zu: %g, expected %g", name,
                     json_string_value(json_object_get(one, "mask")), step_tokens, i, (double)got[i], (double)want[i]);
    free(got);
    free(want);
    close_detail(d);
    free(d);
}

static void test_probes_masked_logits_agree_with_the_rule_on_transformers_scores(void **state)
{
    (void)state;
    safetensors_t *tensors;
    json_t *root = json_load_file("tests/golden/masks/cases.json", 0, NULL);
    assert_non_null(root);
    assert_int_equal(safetensors_open("tests/golden/masks/golden.safetensors", &tensors), QN_OK);
    const json_t *cases = json_object_get(root, "cases");
    for (size_t i = 0; i < json_array_size(cases); i++) {
        check_mask(root, json_array_get(cases, i), tensors, 256);
        check_mask(root, json_array_get(cases, i), tensors, 13);
        check_mask(root, json_array_get(cases, i), tensors, 1);
    }
    safetensors_close(&tensors);
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_probes_hidden_states_and_attentions_agree_with_transformers),
        cmocka_unit_test(test_probes_stages_one_by_one_are_the_network),
        cmocka_unit_test(test_probes_what_taps_write_is_seen_behind_them),
        cmocka_unit_test(test_probes_masked_logits_agree_with_the_rule_on_transformers_scores),
    };
    return cmocka_run_group_tests_name("probes", tests, NULL, NULL);
}
