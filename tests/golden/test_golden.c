/* The numbers: greedy ids, log-probabilities, logits and prompt log-probabilities of the reference checkpoints against
 * what transformers computes in float32, for the plain and the vector kernels, every way of cutting a prompt, and both
 * types of KV cache. golden.json and golden.safetensors beside this file say what is expected. */
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/golden/engine.h"

typedef struct {
    uint32_t prompt_tokens, greedy_tokens;
    uint32_t prompt[ENGINE_TOKENS_MAX], greedy[ENGINE_TOKENS_MAX];
    float margin[ENGINE_TOKENS_MAX], logprobs[ENGINE_TOKENS_MAX];
} golden_case_t;

typedef struct {
    const char *name, *model;     /* directories */
    uint32_t model_len;
} golden_model_t;

static const golden_model_t MODELS[] = {
    { "tests/golden/llama3", "tests/golden/llama3", 128 },
    { "tests/golden/default", "deploy/models/default", 768 },
    { "tests/golden/mistral", "tests/golden/mistral", 128 },
    { "tests/golden/qwen2", "tests/golden/qwen2", 128 },
    { "tests/golden/qwen3", "tests/golden/qwen3", 128 },
};
#define MODEL_COUNT (sizeof MODELS / sizeof MODELS[0])

typedef struct {
    const char *kernels;
    uint32_t isa, chunk, threads;
    qn_scalar_t kv;
    bool ids_not_slot;
} golden_way_t;

static const golden_way_t WAYS[] = {
    { "reference", 0, 0, 1, QN_SCALAR_F32, false },
    { "reference", 0, 7, 2, QN_SCALAR_F32, false },
    { "", QN_ISA_AVX2, 0, 1, QN_SCALAR_F32, false },
    { "", QN_ISA_AVX2, 1, 2, QN_SCALAR_F32, false },
    { "", 0, 0, 1, QN_SCALAR_F32, false },
    { "", 0, 1, 2, QN_SCALAR_F32, false },
    { "", 0, 7, 2, QN_SCALAR_F32, false },
    { "", 0, 16, 3, QN_SCALAR_F32, true },
};
#define WAY_COUNT (sizeof WAYS / sizeof WAYS[0])

static json_t *load_cases(const golden_model_t *model, json_t **ret_root)
{
    char path[QN_PATH_MAX];
    snprintf(path, sizeof path, "%s/golden.json", model->name);
    json_error_t error;
    *ret_root = json_load_file(path, 0, &error);
    assert_non_null(*ret_root);
    return json_object_get(*ret_root, "cases");
}

static uint32_t read_ids(const json_t *list, uint32_t *ids)
{
    size_t count = json_array_size(list);
    assert_in_range(count, 1, ENGINE_TOKENS_MAX);
    for (size_t i = 0; i < count; i++) ids[i] = (uint32_t)json_integer_value(json_array_get(list, i));
    return (uint32_t)count;
}

static void read_case(const json_t *from, golden_case_t *ret)
{
    ret->prompt_tokens = read_ids(json_object_get(from, "prompt_ids"), ret->prompt);
    ret->greedy_tokens = read_ids(json_object_get(from, "greedy_ids"), ret->greedy);
    for (uint32_t i = 0; i < ret->greedy_tokens; i++) {
        ret->margin[i] = (float)json_number_value(json_array_get(json_object_get(from, "greedy_margin"), i));
        ret->logprobs[i] = (float)json_number_value(json_array_get(json_object_get(from, "greedy_logprobs"), i));
    }
}

static engine_t *open_way(const golden_model_t *model, const golden_way_t *way)
{
    return engine_open((engine_options_t){
        .directory = model->model, .kernels = way->kernels, .isa = way->isa, .threads = way->threads,
        .step_tokens = model->model_len, .model_len = model->model_len, .kv_scalar = way->kv, .sequences = 2 });
}

static bool is_reference(const golden_way_t *way) { return strcmp(way->kernels, "reference") == 0; }

/* Ways that take seconds for a long prompt, where a short one shows the same. */
static bool is_slow(const golden_way_t *way) { return is_reference(way) || (way->isa && way->chunk == 1); }

/* Every way for the first two models; for the others, which differ from them by little, one of each kind. */
static bool is_wanted(size_t model, size_t way) { return model < 2 || way == 1 || way == 3 || way == 6; }

static void run_case(engine_t *engine, const golden_case_t *want, const golden_way_t *way, engine_sequence_t *s)
{
    uint32_t tokens = is_reference(way) && want->greedy_tokens > 12 ? 12 : want->greedy_tokens;
    *s = (engine_sequence_t){ .prompt = want->prompt, .prompt_tokens = want->prompt_tokens, .max_tokens = tokens,
                              .chunk = way->chunk, .sampling = engine_greedy(), .ids_not_slot = way->ids_not_slot };
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
            if (!is_wanted(m, w)) continue;
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
            print_message("%s, kernels \"%s\" isa %x, chunk %u, threads %u: largest difference %.2g\n",
                          MODELS[m].name, WAYS[w].kernels, WAYS[w].isa, WAYS[w].chunk, WAYS[w].threads,
                          (double)worst);
            engine_close(engine);
            json_decref(root);
        }
    free(want);
    free(got);
}

/* Rows [T, V] of golden.safetensors, or the last one alone. Steps of one token give each row in turn. */
static void compare_logits(engine_t *engine, const golden_case_t *want, const safetensors_tensor_t *tensor)
{
    uint32_t vocab = engine->limits.vocab, have = (uint32_t)tensor->shape[0];
    float *expected = malloc(vocab * sizeof *expected), worst = 0;
    engine_plan_t *p = malloc(sizeof *p);
    engine_sequence_t *s = calloc(1, sizeof *s);
    *s = (engine_sequence_t){ .prompt = want->prompt, .prompt_tokens = want->prompt_tokens,
                              .sampling = engine_greedy(), .chunk = 1 };
    assert_int_equal(tensor->shape[1], vocab);
    for (uint32_t t = 0; t < want->prompt_tokens; t++) {
        p->plan = (step_plan_t){ .sets = p->sets, .blocks = p->blocks, .runs = p->runs, .ids = p->ids };
        if (!s->set) engine_plan_set(engine, p, s, 0);
        engine_plan_run(p, s);
        p->runs[0].sample = true;
        engine_step(engine, &p->plan);
        if (t + have < want->prompt_tokens) continue;
        uint32_t rows;
        const float *logits = executor_logits(engine->executor, &rows);
        assert_int_equal(rows, 1);
        uint64_t row = t + have - want->prompt_tokens;
        assert_int_equal(safetensors_read_f32(tensor, row * vocab, vocab, expected), QN_OK);
        for (uint32_t v = 0; v < vocab; v++) {
            float difference = fabsf(logits[v] - expected[v]);
            if (!(difference <= 1e-3f))
                fail_msg("row %u logit %u: %g, expected %g", t, v, (double)logits[v], (double)expected[v]);
            worst = difference > worst ? difference : worst;
        }
    }
    print_message("    %u rows of logits, largest difference %.2g\n", have, (double)worst);
    p->plan = (step_plan_t){ .retire = &s->slot, .retire_count = 1 };
    engine_step(engine, &p->plan);
    free(expected);
    free(p);
    free(s);
}

static void test_golden_logits_every_prompt_row_agrees_with_float32(void **state)
{
    (void)state;
    golden_case_t *want = malloc(sizeof *want);
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        char path[QN_PATH_MAX], name[32];
        json_t *root, *cases = load_cases(&MODELS[m], &root);
        snprintf(path, sizeof path, "%s/golden.safetensors", MODELS[m].name);
        safetensors_t *tensors;
        assert_int_equal(safetensors_open(path, &tensors), QN_OK);
        engine_t *engine = open_way(&MODELS[m], &WAYS[4]);
        for (size_t i = 0; i < json_array_size(cases); i++) {
            read_case(json_array_get(cases, i), want);
            snprintf(name, sizeof name, "logits_%zu", i);
            const safetensors_tensor_t *tensor = safetensors_find(tensors, name);
            assert_non_null(tensor);
            compare_logits(engine, want, tensor);
        }
        engine_close(engine);
        safetensors_close(&tensors);
        json_decref(root);
    }
    free(want);
}

static float log_softmax(const float *logits, uint32_t vocab, uint32_t id)
{
    double best = logits[0], sum = 0;
    for (uint32_t v = 1; v < vocab; v++) best = logits[v] > best ? logits[v] : best;
    for (uint32_t v = 0; v < vocab; v++) sum += exp(logits[v] - best);
    return (float)(logits[id] - best - log(sum));
}

static void test_golden_prompt_logprobs_any_chunk_agree_with_float32(void **state)
{
    (void)state;
    static const uint32_t CHUNKS[] = { 0, 1, 7, 16 };
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
        engine_t *engine = open_way(&MODELS[0], &WAYS[4]);
        *s = (engine_sequence_t){ .prompt = want->prompt, .prompt_tokens = want->prompt_tokens, .max_tokens = 1,
                                  .chunk = CHUNKS[c], .sampling = engine_greedy() };
        s->sampling.prompt_logprobs = true;
        engine_run(engine, s, 1);
        assert_int_equal(s->prompt_logprob_count, want->prompt_tokens - 1);
        for (uint32_t i = 0; i + 1 < want->prompt_tokens; i++) {
            assert_int_equal(safetensors_read_f32(tensor, (uint64_t)i * 512, 512, logits), QN_OK);
            assert_int_equal(s->prompt_logprobs[i].position, i + 1);
            assert_int_equal(s->prompt_logprobs[i].id, want->prompt[i + 1]);
            assert_true(fabsf(s->prompt_logprobs[i].logprob - log_softmax(logits, 512, want->prompt[i + 1])) <= 1e-3f);
        }
        engine_close(engine);
    }
    safetensors_close(&tensors);
    json_decref(root);
    free(want);
    free(s);
}

/* bf16 keys and values cost about three digits: the same words, log-probabilities within a few hundredths. */
static void test_golden_bf16_kv_stays_close(void **state)
{
    (void)state;
    golden_case_t *want = malloc(sizeof *want);
    engine_sequence_t *s = malloc(sizeof *s);
    golden_way_t way = { .kernels = "", .threads = 2, .kv = QN_SCALAR_BF16 };
    json_t *root, *cases = load_cases(&MODELS[1], &root);
    engine_t *engine = open_way(&MODELS[1], &way);
    uint32_t compared = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        read_case(json_array_get(cases, i), want);
        run_case(engine, want, &way, s);
        for (uint32_t t = 0; t < want->greedy_tokens && s->ids[t] == want->greedy[t]; t++, compared++)
            assert_true(fabsf(s->logprobs[t] - want->logprobs[t]) < 0.1f);
    }
    assert_true(compared > 128);
    print_message("bf16 KV: %u of the greedy tokens are the same\n", compared);
    engine_close(engine);
    json_decref(root);
    free(want);
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_greedy_every_way_agrees_with_float32),
        cmocka_unit_test(test_golden_logits_every_prompt_row_agrees_with_float32),
        cmocka_unit_test(test_golden_prompt_logprobs_any_chunk_agree_with_float32),
        cmocka_unit_test(test_golden_bf16_kv_stays_close),
    };
    return cmocka_run_group_tests_name("golden", tests, NULL, NULL);
}
