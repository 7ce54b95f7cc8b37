/* The reference checkpoints: what transformers computed in float32 for each, and how logits compare with it. Include
 * after cmocka.h, once per program. */
#ifndef QN_TESTS_GOLDEN_CASES_H
#define QN_TESTS_GOLDEN_CASES_H

#include <jansson.h>
#include <math.h>

#include "tests/golden/engine.h"

typedef struct {
    uint32_t prompt_tokens, greedy_tokens;
    uint32_t prompt[ENGINE_TOKENS_MAX], greedy[ENGINE_TOKENS_MAX];
    float margin[ENGINE_TOKENS_MAX], logprobs[ENGINE_TOKENS_MAX];
} golden_case_t;

typedef struct {
    const char *name, *model; /* directories: of what is expected, of the weights */
    uint32_t model_len;
    const char *config; /* directory of config.json; NULL: that of the weights */
} golden_model_t;

static const golden_model_t MODELS[] = {
    {"tests/golden/llama3", "tests/golden/llama3", 128, NULL},
    {"tests/golden/default", "deploy/models/default", 768, NULL},
    {"tests/golden/mistral", "tests/golden/mistral", 128, NULL},
    {"tests/golden/qwen2", "tests/golden/qwen2", 128, NULL},
    {"tests/golden/qwen3", "tests/golden/qwen3", 128, NULL},
    {"tests/golden/gpt2", "tests/golden/gpt2", 128, NULL},
    {"tests/golden/gemma2", "tests/golden/gemma2", 128, NULL},
    {"tests/golden/mixtral", "tests/golden/mixtral", 128, NULL},
    {"tests/golden/qwen3moe", "tests/golden/qwen3moe", 128, NULL},
    {"tests/golden/dynamic", "tests/golden/qwen2", 128, "tests/golden/dynamic"},
};
#define MODEL_COUNT (sizeof MODELS / sizeof MODELS[0])
#define DEFAULT_MODEL 1

ENGINE_HELPER json_t *load_cases(const golden_model_t *model, json_t **ret_root)
{
    char path[QN_PATH_MAX];
    snprintf(path, sizeof path, "%s/golden.json", model->name);
    json_error_t error;
    *ret_root = json_load_file(path, 0, &error);
    assert_non_null(*ret_root);
    return json_object_get(*ret_root, "cases");
}

ENGINE_HELPER uint32_t read_ids(const json_t *list, uint32_t *ids)
{
    size_t count = json_array_size(list);
    assert_in_range(count, 1, ENGINE_TOKENS_MAX);
    for (size_t i = 0; i < count; i++)
        ids[i] = (uint32_t)json_integer_value(json_array_get(list, i));
    return (uint32_t)count;
}

ENGINE_HELPER void read_case(const json_t *from, golden_case_t *ret)
{
    ret->prompt_tokens = read_ids(json_object_get(from, "prompt_ids"), ret->prompt);
    ret->greedy_tokens = read_ids(json_object_get(from, "greedy_ids"), ret->greedy);
    for (uint32_t i = 0; i < ret->greedy_tokens; i++) {
        ret->margin[i] = (float)json_number_value(json_array_get(json_object_get(from, "greedy_margin"), i));
        ret->logprobs[i] = (float)json_number_value(json_array_get(json_object_get(from, "greedy_logprobs"), i));
    }
}

/* What a row of logits is compared with: [V] expected, [V] got. */
typedef void (*row_check_t)(void *context, const float *expected, const float *logits, uint32_t vocab);

/* Rows [T, V] of golden.safetensors, or the last few. Steps of one token give each row in turn. */
ENGINE_HELPER void walk_logits(engine_t *engine, const golden_case_t *want, const safetensors_tensor_t *tensor,
                               row_check_t check, void *context)
{
    uint32_t vocab = engine->limits.vocab, have = (uint32_t)tensor->shape[0], rows;
    float *expected = malloc(vocab * sizeof *expected);
    engine_plan_t *p = malloc(sizeof *p);
    engine_sequence_t *s = calloc(1, sizeof *s);
    *s = (engine_sequence_t){.prompt = want->prompt,
                             .prompt_tokens = want->prompt_tokens,
                             .sampling = engine_greedy(),
                             .chunk = 1};
    assert_int_equal(tensor->shape[1], vocab);
    for (uint32_t t = 0; t < want->prompt_tokens; t++) {
        p->plan = (step_plan_t){.sets = p->sets, .blocks = p->blocks, .runs = p->runs, .ids = p->ids};
        if (!s->set) engine_plan_set(engine, p, s, 0);
        engine_plan_run(p, s);
        p->runs[0].sample = true;
        engine_step(engine, &p->plan);
        if (t + have < want->prompt_tokens) continue;
        const float *logits = engine_logits(engine, &rows);
        assert_int_equal(rows, 1);
        uint64_t row = t + have - want->prompt_tokens;
        assert_int_equal(safetensors_read_f32(tensor, row * vocab, vocab, expected), QN_OK);
        check(context, expected, logits, vocab);
    }
    p->plan = (step_plan_t){.retire = &s->slot, .retire_count = 1};
    engine_step(engine, &p->plan);
    free(expected);
    free(p);
    free(s);
}

ENGINE_HELPER double log_total(const float *logits, uint32_t vocab)
{
    double best = logits[0], sum = 0;
    for (uint32_t v = 1; v < vocab; v++)
        best = logits[v] > best ? logits[v] : best;
    for (uint32_t v = 0; v < vocab; v++)
        sum += exp(logits[v] - best);
    return best + log(sum);
}

/* `targets` are the ids that follow the next rows, `left` of them; their negative log-likelihoods are summed, too. */
typedef struct {
    uint32_t rows, same, scored, left;
    const uint32_t *targets;
    double divergence, nll_want, nll_got;
} quality_t;

/* Kullback-Leibler divergence of the expected distribution from the one got; whether the first choice is the same. */
ENGINE_HELPER void add_quality(void *context, const float *expected, const float *logits, uint32_t vocab)
{
    quality_t *q = context;
    double want_total = log_total(expected, vocab), got_total = log_total(logits, vocab), sum = 0;
    uint32_t want = 0, got = 0;
    for (uint32_t v = 0; v < vocab; v++) {
        double p = expected[v] - want_total;
        sum += exp(p) * (p - (logits[v] - got_total));
        if (expected[v] > expected[want]) want = v;
        if (logits[v] > logits[got]) got = v;
    }
    q->divergence += sum;
    if (q->left) {
        q->nll_want += want_total - expected[*q->targets];
        q->nll_got += got_total - logits[*q->targets++];
        q->left--, q->scored++;
    }
    q->same += want == got;
    q->rows++;
}

#endif
