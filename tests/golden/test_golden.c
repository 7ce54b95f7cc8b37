/* The numbers: greedy ids, log-probabilities, logits and prompt log-probabilities of the reference checkpoints against
 * what transformers computes in float32, for the plain and the vector kernels, weights as rows and in panels, every way
 * of cutting a prompt, and both types of KV cache; and how far int8 and int4 weights take them. golden.json and
 * golden.safetensors beside this file say what is expected (dynamic/make_golden.py made those of a dynamic rope). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/golden/cases.h"
#include "tests/golden/engine.h"

#define AVX2_ONLY QN_ISA_AVX2
#define AVX512_ONLY (QN_ISA_AVX2 | QN_ISA_AVX512)
#define ROWS {.layout = QN_LAYOUT_ROWS}
#define PANELS {.layout = QN_LAYOUT_PANELS}
#define INT8 {.layout = QN_LAYOUT_PANELS, .quantize = WEIGHTS_QUANTIZE_INT8}
#define INT4(inputs) {.layout = QN_LAYOUT_PANELS, .quantize = WEIGHTS_QUANTIZE_INT4, .group = (inputs)}

typedef struct {
    const char *kernels;
    uint32_t isa, chunk, threads, block_tokens;
    qn_scalar_t kv;
    bool ids_not_slot;
    weights_format_t format;
    bool every_model;        /* else the first two, which tell as much of it as all would */
    const char *activations; /* compute.activations; NULL: auto */
} golden_way_t;

static const golden_way_t WAYS[] = {
    {"reference", 0, 0, 1, 16, QN_SCALAR_F32, false, ROWS, false, NULL},
    {"reference", 0, 7, 2, 4, QN_SCALAR_F32, false, PANELS, true, NULL},
    {"", AVX2_ONLY, 0, 1, 16, QN_SCALAR_F32, false, ROWS, false, NULL},
    {"", AVX2_ONLY, 1, 2, 8, QN_SCALAR_F32, false, PANELS, true, NULL},
    {"", AVX2_ONLY, 0, 2, 32, QN_SCALAR_F32, false, PANELS, false, NULL},
    {"", AVX512_ONLY, 0, 1, 16, QN_SCALAR_F32, false, ROWS, true, NULL},
    {"", AVX512_ONLY, 1, 2, 1, QN_SCALAR_F32, false, PANELS, false, NULL},
    {"", 0, 0, 1, 16, QN_SCALAR_F32, false, PANELS, true, NULL},
    {"", 0, 7, 2, 16, QN_SCALAR_F32, false, PANELS, true, NULL},
    {"", 0, 16, 3, 64, QN_SCALAR_F32, true, PANELS, false, NULL},
};
#define WAY_COUNT (sizeof WAYS / sizeof WAYS[0])
#define AS_SERVED 7

static engine_t *open_way(const golden_model_t *model, const golden_way_t *way)
{
    return engine_open((engine_options_t){.directory = model->model,
                                          .config = model->config,
                                          .kernels = way->kernels,
                                          .activations = way->activations,
                                          .isa = way->isa,
                                          .threads = way->threads,
                                          .block_tokens = way->block_tokens,
                                          .step_tokens = model->model_len,
                                          .model_len = model->model_len,
                                          .kv_scalar = way->kv,
                                          .format = way->format,
                                          .sequences = 2});
}

static bool is_reference(const golden_way_t *way) { return strcmp(way->kernels, "reference") == 0; }

/* Ways that take seconds for a long prompt, where a short one shows the same. */
static bool is_slow(const golden_way_t *way) { return is_reference(way) || (way->isa && way->chunk == 1); }

static void run_case(engine_t *engine, const golden_case_t *want, const golden_way_t *way, engine_sequence_t *s)
{
    uint32_t tokens = is_reference(way) && want->greedy_tokens > 12 ? 12 : want->greedy_tokens;
    *s = (engine_sequence_t){.prompt = want->prompt,
                             .prompt_tokens = want->prompt_tokens,
                             .max_tokens = tokens,
                             .chunk = way->chunk,
                             .sampling = engine_greedy(),
                             .ids_not_slot = way->ids_not_slot};
    engine_run(engine, s, 1);
}

/* Ids agree up to the first choice that was a toss-up; log-probabilities agree as far as the ids do. Returns the
 * largest difference. */
static float compare_greedy(const golden_case_t *want, const engine_sequence_t *got, const char *where)
{
    float worst = 0;
    for (uint32_t i = 0; i < got->generated; i++) {
        if (got->ids[i] != want->greedy[i]) {
            if (want->margin[i] > 1e-3f)
                fail_msg("%s: token %u is %u, expected %u by a margin of %g", where, i, got->ids[i], want->greedy[i],
                         (double)want->margin[i]);
            break;
        }
        float difference = fabsf(got->logprobs[i] - want->logprobs[i]);
        if (!(difference <= 1e-3f))
            fail_msg("%s: log-probability of token %u is %g, expected %g", where, i, (double)got->logprobs[i],
                     (double)want->logprobs[i]);
        worst = difference > worst ? difference : worst;
    }
    return worst;
}

static void test_golden_greedy_every_way_agrees_with_float32(void **state)
{
    (void)state;
    golden_case_t *want = malloc(sizeof *want);
    engine_sequence_t *got = malloc(sizeof *got);
    for (size_t m = 0; m < MODEL_COUNT; m++)
        for (size_t w = 0; w < WAY_COUNT; w++) {
            if (m > DEFAULT_MODEL && !WAYS[w].every_model) continue;
            json_t *root, *cases = load_cases(&MODELS[m], &root);
            engine_t *engine = open_way(&MODELS[m], &WAYS[w]);
            float worst = 0;
            for (size_t i = 0; i < json_array_size(cases); i++) {
                char where[128];
                snprintf(where, sizeof where, "%s case %zu way %zu", MODELS[m].name, i, w);
                read_case(json_array_get(cases, i), want);
                if (is_slow(&WAYS[w]) && want->prompt_tokens > 100) continue;
                run_case(engine, want, &WAYS[w], got);
                float difference = compare_greedy(want, got, where);
                worst = difference > worst ? difference : worst;
            }
            print_message("%s, kernels \"%s\" isa %x, %s, chunk %u, threads %u: largest difference %.2g\n",
                          MODELS[m].name, WAYS[w].kernels, WAYS[w].isa,
                          WAYS[w].format.layout == QN_LAYOUT_PANELS ? "panels" : "rows", WAYS[w].chunk, WAYS[w].threads,
                          (double)worst);
            engine_close(engine);
            json_decref(root);
        }
    free(want);
    free(got);
}

/* ---- logits ---- */

/* All cases of a model that are not longer than `longest`. */
static void walk_model(const golden_model_t *model, const golden_way_t *way, uint32_t longest, row_check_t check,
                       void *context)
{
    char path[QN_PATH_MAX], name[32];
    golden_case_t *want = malloc(sizeof *want);
    json_t *root, *cases = load_cases(model, &root);
    snprintf(path, sizeof path, "%s/golden.safetensors", model->name);
    safetensors_t *tensors;
    assert_int_equal(safetensors_open(path, &tensors), QN_OK);
    engine_t *engine = open_way(model, way);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        read_case(json_array_get(cases, i), want);
        if (want->prompt_tokens > longest) continue;
        snprintf(name, sizeof name, "logits_%zu", i);
        const safetensors_tensor_t *tensor = safetensors_find(tensors, name);
        assert_non_null(tensor);
        walk_logits(engine, want, tensor, check, context);
    }
    engine_close(engine);
    safetensors_close(&tensors);
    json_decref(root);
    free(want);
}

typedef struct {
    uint32_t rows;
    float worst;
} logits_check_t;

static void check_logits(void *context, const float *expected, const float *logits, uint32_t vocab)
{
    logits_check_t *c = context;
    for (uint32_t v = 0; v < vocab; v++) {
        float difference = fabsf(logits[v] - expected[v]);
        if (!(difference <= 1e-3f))
            fail_msg("row %u logit %u: %g, expected %g", c->rows, v, (double)logits[v], (double)expected[v]);
        c->worst = difference > c->worst ? difference : c->worst;
    }
    c->rows++;
}

static void test_golden_logits_every_prompt_row_agrees_with_float32(void **state)
{
    (void)state;
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        logits_check_t c = {0};
        walk_model(&MODELS[m], &WAYS[AS_SERVED], UINT32_MAX, check_logits, &c);
        print_message("%s: %u rows of logits, largest difference %.2g\n", MODELS[m].name, c.rows, (double)c.worst);
        assert_true(c.rows > 0);
    }
}

/* ---- weights of fewer bits ---- */

/* The reference's logits of every row, and how the same rows compare. */
typedef struct {
    float *logits; /* [rows, V] */
    uint32_t rows, compared;
    float worst;
} exact_check_t;

static void keep_row(void *context, const float *expected, const float *logits, uint32_t vocab)
{
    exact_check_t *c = context;
    (void)expected;
    c->logits = realloc(c->logits, (c->rows + 1) * (size_t)vocab * sizeof *c->logits);
    assert_non_null(c->logits);
    memcpy(c->logits + c->rows++ * (size_t)vocab, logits, vocab * sizeof *logits);
}

static void compare_row(void *context, const float *expected, const float *logits, uint32_t vocab)
{
    exact_check_t *c = context;
    const float *kept = c->logits + c->compared++ * (size_t)vocab;
    (void)expected;
    for (uint32_t v = 0; v < vocab; v++)
        if (!(fabsf(logits[v] - kept[v]) <= c->worst)) c->worst = fabsf(logits[v] - kept[v]);
}

#define EXACT_LONGEST 8 /* prompts compared with the reference, which takes its time */
#define QUALITY_LONGEST 40

/* The largest difference between the reference's logits and those of kernels with f32 activations. */
static float compare_exact(const golden_model_t *model, golden_way_t way)
{
    static const uint32_t EXACT[] = {AVX2_ONLY, AVX512_ONLY};
    exact_check_t c = {0};
    way.kernels = "reference";
    walk_model(model, &way, EXACT_LONGEST, keep_row, &c);
    way.kernels = "";
    for (size_t i = 0; i < sizeof EXACT / sizeof EXACT[0]; i++) {
        way.isa = EXACT[i];
        c.compared = 0;
        walk_model(model, &way, EXACT_LONGEST, compare_row, &c);
        assert_true(c.rows > 0 && c.compared == c.rows);
    }
    free(c.logits);
    return c.worst;
}

/* Kernels with f32 activations compute what the reference does; those that round them too stay as close to float32. */
static void check_quantised(const golden_model_t *model, const char *name, weights_format_t format, double bound)
{
    golden_way_t way = {.kernels = "", .isa = AVX2_ONLY, .threads = 2, .format = format};
    quality_t exact = {0}, best = {0};
    float worst = compare_exact(model, way);
    walk_model(model, &way, QUALITY_LONGEST, add_quality, &exact);
    way.isa = 0;
    walk_model(model, &way, QUALITY_LONGEST, add_quality, &best);
    print_message("%s, %s: vector kernels within %.2g of the reference; divergence from float32 %.2g with f32 "
                  "activations (same choice in %u of %u), %.2g with the best that fit (%u)\n",
                  model->name, name, (double)worst, exact.divergence / exact.rows, exact.same, exact.rows,
                  best.divergence / best.rows, best.same);
    if (!(worst <= 1e-3f)) fail_msg("the kernels disagree");
    if (!(exact.divergence <= bound * exact.rows && best.divergence <= bound * best.rows))
        fail_msg("more than %g", bound);
}

/* Random weights have no structure that would forgive rounding: the bounds are those of a sane computation, and quality
 * is measured on a text elsewhere. */
static void test_golden_quantised_weights_stay_close_to_float32(void **state)
{
    (void)state;
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        check_quantised(&MODELS[m], "int8", (weights_format_t)INT8, 0.05);
        check_quantised(&MODELS[m], "int4, groups of 32", (weights_format_t)INT4(32), 0.5);
        check_quantised(&MODELS[m], "int4, groups of 64", (weights_format_t)INT4(64), 0.5);
    }
}

/* ---- other ways to numbers ---- */

static void test_golden_prompt_logprobs_any_chunk_agree_with_float32(void **state)
{
    (void)state;
    static const uint32_t CHUNKS[] = {0, 1, 7, 16};
    golden_case_t *want = malloc(sizeof *want);
    engine_sequence_t *s = malloc(sizeof *s);
    float logits[512];
    json_t *root, *cases = load_cases(&MODELS[0], &root);
    safetensors_t *tensors;
    assert_int_equal(safetensors_open("tests/golden/llama3/golden.safetensors", &tensors), QN_OK);
    /* 65 tokens: more rows than logits are computed at once. */
    read_case(json_array_get(cases, 3), want);
    const safetensors_tensor_t *tensor = safetensors_find(tensors, "logits_3");
    assert_non_null(tensor);
    for (size_t c = 0; c < sizeof CHUNKS / sizeof CHUNKS[0]; c++) {
        engine_t *engine = open_way(&MODELS[0], &WAYS[AS_SERVED]);
        *s = (engine_sequence_t){.prompt = want->prompt,
                                 .prompt_tokens = want->prompt_tokens,
                                 .max_tokens = 1,
                                 .chunk = CHUNKS[c],
                                 .sampling = engine_greedy()};
        s->sampling.prompt_logprobs = true;
        engine_run(engine, s, 1);
        assert_int_equal(s->prompt_logprob_count, want->prompt_tokens - 1);
        for (uint32_t i = 0; i + 1 < want->prompt_tokens; i++) {
            assert_int_equal(safetensors_read_f32(tensor, (uint64_t)i * 512, 512, logits), QN_OK);
            assert_int_equal(s->prompt_logprobs[i].position, i + 1);
            assert_int_equal(s->prompt_logprobs[i].id, want->prompt[i + 1]);
            double expected = logits[want->prompt[i + 1]] - log_total(logits, 512);
            assert_true(fabs(s->prompt_logprobs[i].logprob - expected) <= 1e-3);
        }
        engine_close(engine);
    }
    safetensors_close(&tensors);
    json_decref(root);
    free(want);
    free(s);
}

/* bf16 keys and values cost about three digits: the same words, log-probabilities within a few hundredths. */
/* Greedy runs of the bundled model, for as long as they choose what float32 chooses. */
static void check_close(const golden_way_t *way, const char *name)
{
    golden_case_t *want = malloc(sizeof *want);
    engine_sequence_t *s = malloc(sizeof *s);
    json_t *root, *cases = load_cases(&MODELS[DEFAULT_MODEL], &root);
    engine_t *engine = open_way(&MODELS[DEFAULT_MODEL], way);
    uint32_t compared = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        read_case(json_array_get(cases, i), want);
        run_case(engine, want, way, s);
        for (uint32_t t = 0; t < want->greedy_tokens && s->ids[t] == want->greedy[t]; t++, compared++)
            assert_true(fabsf(s->logprobs[t] - want->logprobs[t]) < 0.1f);
    }
    assert_true(compared > 128);
    print_message("%s: %u of the greedy tokens are the same\n", name, compared);
    engine_close(engine);
    json_decref(root);
    free(want);
    free(s);
}

static void test_golden_bf16_kv_stays_close(void **state)
{
    (void)state;
    check_close(&(golden_way_t){.kernels = "", .threads = 2, .kv = QN_SCALAR_BF16, .format = PANELS}, "bf16 KV");
}

static void test_golden_bf16_activations_stay_close(void **state)
{
    (void)state;
    if (!(qn_kernels_isa() & QN_ISA_AVX512_BF16)) skip();
    check_close(&(golden_way_t){.kernels = "", .threads = 2, .format = PANELS, .activations = "bf16"},
                "bf16 activations");
}

/* The residual stream after each layer but the last, whose golden is normed: a network cut off there. */
static void test_golden_hidden_states_agree_layer_by_layer(void **state)
{
    (void)state;
    golden_case_t *want = malloc(sizeof *want);
    engine_sequence_t *s = malloc(sizeof *s);
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        char path[QN_PATH_MAX];
        json_t *root, *cases = load_cases(&MODELS[m], &root);
        size_t detail = (size_t)json_integer_value(json_object_get(root, "detail_case"));
        read_case(json_array_get(cases, detail), want);
        json_decref(root);
        safetensors_t *tensors;
        snprintf(path, sizeof path, "%s/golden.safetensors", MODELS[m].name);
        assert_int_equal(safetensors_open(path, &tensors), QN_OK);
        const safetensors_tensor_t *hidden = safetensors_find(tensors, "hidden");
        float worst = 0;
        for (uint32_t layers = 1; hidden && layers + 1 < hidden->shape[0]; layers++) {
            engine_t *engine = engine_open((engine_options_t){
                .directory = MODELS[m].model, .layers = layers, .step_tokens = MODELS[m].model_len, .format = PANELS});
            *s = (engine_sequence_t){.prompt = want->prompt,
                                     .prompt_tokens = want->prompt_tokens,
                                     .max_tokens = 1,
                                     .sampling = engine_greedy()};
            engine_run(engine, s, 1);
            scratch_t scratch;
            scratch_place(&engine->model->config, &engine->limits, engine_at(engine, ENGINE_ACTIVATIONS),
                          engine_at(engine, ENGINE_STATE), engine_at(engine, ENGINE_STEP_IO), &scratch);
            size_t count = (size_t)want->prompt_tokens * engine->model->config.hidden;
            float *expected = malloc(count * sizeof *expected);
            assert_int_equal(safetensors_read_f32(hidden, layers * count, count, expected), QN_OK);
            for (size_t i = 0; i < count; i++) {
                float difference = fabsf(((const float *)scratch.x)[i] - expected[i]);
                if (!(difference <= 1e-4f * (1 + fabsf(expected[i]))))
                    fail_msg("%s, after layer %u, value %zu: %g, expected %g", MODELS[m].name, layers, i,
                             (double)((const float *)scratch.x)[i], (double)expected[i]);
                worst = difference > worst ? difference : worst;
            }
            free(expected);
            engine_close(engine);
        }
        if (hidden) print_message("%s: largest difference after a layer %.2g\n", MODELS[m].name, (double)worst);
        safetensors_close(&tensors);
    }
    free(want);
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_greedy_every_way_agrees_with_float32),
        cmocka_unit_test(test_golden_logits_every_prompt_row_agrees_with_float32),
        cmocka_unit_test(test_golden_quantised_weights_stay_close_to_float32),
        cmocka_unit_test(test_golden_prompt_logprobs_any_chunk_agree_with_float32),
        cmocka_unit_test(test_golden_bf16_kv_stays_close),
        cmocka_unit_test(test_golden_bf16_activations_stay_close),
        cmocka_unit_test(test_golden_hidden_states_agree_layer_by_layer),
    };
    return cmocka_run_group_tests_name("golden", tests, NULL, NULL);
}
