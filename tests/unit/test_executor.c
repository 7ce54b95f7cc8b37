/* The executor on small real models: the same sequence gives the same bits alone and in a batch, in any chunks, with
 * any number of threads, from the slot or from ids, and after a restart; what has ended is masked. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/golden/engine.h"

#define MODEL "tests/golden/llama3"
#define GPT2 "tests/golden/gpt2"
#define GEMMA2 "tests/golden/gemma2"
#define MIXTRAL "tests/golden/mixtral"
#define QWEN3_MOE "tests/golden/qwen3moe"
#define DYNAMIC "tests/golden/dynamic"
#define BATCH 16
#define PROMPT_MAX 48
#define NEW_TOKENS 6
#define ALL_AVX2 "avx2" /* open_way makes it the best of that instruction set */

#ifdef QN_CHECKED /* is slow: fewer layers, and of every kind of sequence one */
#define EVERY 5
#define LAYERS 2
#else
#define EVERY 1
#define LAYERS 0 /* all */
#endif

/* Sixteen different sequences: prompts of 1 to 46 tokens, greedy, random, penalised. */
static void make_sequences(uint32_t prompts[BATCH][PROMPT_MAX], engine_sequence_t *s, uint32_t chunk, bool staggered)
{
    for (uint32_t i = 0; i < BATCH; i++) {
        uint32_t tokens = 1 + 3 * i;
        for (uint32_t t = 0; t < tokens; t++)
            prompts[i][t] = (t * 31 + i * 17 + t * t) % 512;
        s[i] = (engine_sequence_t){.prompt = prompts[i],
                                   .prompt_tokens = tokens,
                                   .max_tokens = NEW_TOKENS,
                                   .chunk = chunk,
                                   .start_step = staggered ? (i + i / 5) % 5 : 0,
                                   .sampling = engine_greedy()};
        if (i % 4 >= 1) s[i].sampling.temperature = 0.9f, s[i].sampling.seed = 100 + i;
        if (i % 4 >= 2) s[i].sampling.top_k = 40, s[i].sampling.top_p = 0.9f;
        if (i % 4 == 3) s[i].sampling.repetition_penalty = 1.3f, s[i].sampling.frequency_penalty = 0.2f;
    }
}

static engine_t *open_engine(uint32_t threads, qn_scalar_t kv)
{
    return engine_open((engine_options_t){.directory = MODEL,
                                          .threads = threads,
                                          .sequences = BATCH,
                                          .step_tokens = 512,
                                          .model_len = 64,
                                          .kv_scalar = kv,
                                          .format = {.layout = QN_LAYOUT_PANELS}});
}

static void expect_same(const engine_sequence_t *a, const engine_sequence_t *b, const char *what)
{
    assert_int_equal(a->generated, b->generated);
    for (uint32_t t = 0; t < a->generated; t++)
        if (a->ids[t] != b->ids[t] || memcmp(&a->logprobs[t], &b->logprobs[t], sizeof(float)) != 0)
            fail_msg("%s: token %u is %u (%.9g), alone %u (%.9g)", what, t, b->ids[t], (double)b->logprobs[t],
                     a->ids[t], (double)a->logprobs[t]);
}

typedef struct {
    const char *model, *kernels;
    weights_format_t format;
    qn_scalar_t kv;
    uint32_t block_tokens, chunk, threads;
    bool staggered;
} way_t;

#define ROWS {.layout = QN_LAYOUT_ROWS}
#define PANELS {.layout = QN_LAYOUT_PANELS}
#define INT8 {.layout = QN_LAYOUT_PANELS, .quantize = WEIGHTS_QUANTIZE_INT8}
#define INT4 {.layout = QN_LAYOUT_PANELS, .quantize = WEIGHTS_QUANTIZE_INT4, .group = 32}

/* Every way of the same model, kernels, weights and cache type must agree with the sequences run one by one. */
static const way_t WAYS[] = {
    {MODEL, "reference", ROWS, QN_SCALAR_F32, 16, 7, 3, true},
    {MODEL, ALL_AVX2, ROWS, QN_SCALAR_F32, 16, 0, 1, false},
    {MODEL, ALL_AVX2, ROWS, QN_SCALAR_F32, 8, 1, 2, true},
    {MODEL, ALL_AVX2, PANELS, QN_SCALAR_F32, 16, 7, 2, true},
    {MODEL, ALL_AVX2, INT8, QN_SCALAR_F32, 16, 7, 2, true},
    {MODEL, "", ROWS, QN_SCALAR_F32, 16, 0, 1, false},
    {MODEL, "", ROWS, QN_SCALAR_F32, 16, 1, 2, false},
    {MODEL, "", PANELS, QN_SCALAR_F32, 8, 7, 3, true},
    {MODEL, "", PANELS, QN_SCALAR_F32, 4, 16, 2, true},
    {MODEL, "", PANELS, QN_SCALAR_BF16, 16, 0, 1, false},
    {MODEL, "", PANELS, QN_SCALAR_BF16, 8, 7, 2, true},
    {MODEL, "", INT8, QN_SCALAR_F32, 16, 0, 1, false},
    {MODEL, "", INT8, QN_SCALAR_F32, 16, 5, 3, true},
    {MODEL, "", INT4, QN_SCALAR_F32, 16, 1, 2, false},
    {MODEL, "", INT4, QN_SCALAR_F32, 16, 5, 3, true},
    {GPT2, "", PANELS, QN_SCALAR_F32, 16, 0, 2, false},
    {GPT2, "", PANELS, QN_SCALAR_F32, 16, 7, 2, true},
    {GEMMA2, "", PANELS, QN_SCALAR_F32, 16, 0, 2, false},
    {GEMMA2, "", PANELS, QN_SCALAR_F32, 16, 7, 2, true},
    {MIXTRAL, "reference", ROWS, QN_SCALAR_F32, 16, 7, 2, true},
    {MIXTRAL, "", PANELS, QN_SCALAR_F32, 16, 0, 2, false},
    {MIXTRAL, "", PANELS, QN_SCALAR_F32, 16, 7, 3, true},
    {QWEN3_MOE, ALL_AVX2, PANELS, QN_SCALAR_F32, 16, 7, 2, true},
    {QWEN3_MOE, "", INT8, QN_SCALAR_F32, 16, 0, 2, false},
    {QWEN3_MOE, "", INT8, QN_SCALAR_F32, 16, 7, 2, true},
    {DYNAMIC, "", PANELS, QN_SCALAR_F32, 16, 0, 2, false},
    {DYNAMIC, "", PANELS, QN_SCALAR_F32, 16, 7, 2, true},
};

static bool same_numbers(const way_t *a, const way_t *b)
{
    return strcmp(a->model, b->model) == 0 && strcmp(a->kernels, b->kernels) == 0 && a->kv == b->kv &&
           a->format.layout == b->format.layout && a->format.quantize == b->format.quantize;
}

/* Keeps sequences 0, every, 2 * every, … in the first places. Returns how many. */
static uint32_t keep_every(engine_sequence_t *s, uint32_t every)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < BATCH; i += every)
        s[kept++] = s[i];
    return kept;
}

/* A dynamic rope comes with the weights of another model. */
static engine_t *open_way(const way_t *way, uint32_t threads, uint32_t block_tokens)
{
    bool dynamic = strcmp(way->model, DYNAMIC) == 0, avx2 = strcmp(way->kernels, ALL_AVX2) == 0;
    return engine_open((engine_options_t){.directory = dynamic ? "tests/golden/qwen2" : way->model,
                                          .config = way->model,
                                          .kernels = avx2 ? "" : way->kernels,
                                          .isa = avx2 ? QN_ISA_AVX2 : 0,
                                          .threads = threads,
                                          .sequences = BATCH,
                                          .step_tokens = 512,
                                          .model_len = 64,
                                          .block_tokens = block_tokens,
                                          .kv_scalar = way->kv,
                                          .format = way->format,
                                          .layers = LAYERS});
}

static void run_alone(const way_t *way, uint32_t prompts[BATCH][PROMPT_MAX], engine_sequence_t *alone)
{
    engine_t *engine = open_way(way, 1, 16);
    make_sequences(prompts, alone, 0, false);
    for (uint32_t i = 0; i < BATCH; i += EVERY)
        engine_run(engine, &alone[i], 1);
    engine_close(engine);
}

static void test_executor_alone_and_batched_any_chunk_have_the_same_bits(void **state)
{
    (void)state;
    static uint32_t prompts[BATCH][PROMPT_MAX];
    engine_sequence_t *alone = malloc(BATCH * sizeof *alone), *batch = malloc(BATCH * sizeof *batch);
    for (size_t w = 0; w < sizeof WAYS / sizeof WAYS[0]; w++) {
        const way_t *way = &WAYS[w];
        if (strcmp(way->kernels, ALL_AVX2) == 0 && !(qn_kernels_isa() & QN_ISA_AVX2)) continue;
        if (w == 0 || !same_numbers(way, way - 1)) run_alone(way, prompts, alone);
        engine_t *engine = open_way(way, way->threads, way->block_tokens);
        make_sequences(prompts, batch, way->chunk, way->staggered);
        uint32_t every = way->chunk ? EVERY : 1; /* the prompts of a batch at once are all there in every build */
        engine_run(engine, batch, keep_every(batch, every));
        for (uint32_t i = 0; i < BATCH; i += EVERY) {
            char what[64];
            snprintf(what, sizeof what, "way %zu sequence %u", w, i);
            expect_same(&alone[i], &batch[i / every], what);
        }
        engine_close(engine);
    }
    free(alone);
    free(batch);
}

static void test_executor_from_slot_and_from_ids_are_the_same(void **state)
{
    (void)state;
    static uint32_t prompts[BATCH][PROMPT_MAX];
    engine_sequence_t *a = malloc(BATCH * sizeof *a), *b = malloc(BATCH * sizeof *b);
    engine_t *engine = open_engine(2, QN_SCALAR_F32);
    make_sequences(prompts, a, 0, false);
    make_sequences(prompts, b, 0, false);
    for (uint32_t i = 0; i < BATCH; i++)
        b[i].ids_not_slot = true;
    engine_run(engine, a, BATCH);
    engine_run(engine, b, BATCH);
    for (uint32_t i = 0; i < BATCH; i++)
        expect_same(&a[i], &b[i], "from ids");
    engine_close(engine);
    free(a);
    free(b);
}

/* Another compute takes over after 4 generated tokens: the KV of `kept` positions is still there (copied here), the
 * rest is run again from ids, and what penalties must know of the kept ones comes as history. */
static void resume(const engine_sequence_t *whole, engine_t *old, uint32_t kept, const char *what)
{
    engine_t *fresh = open_engine(2, QN_SCALAR_F32);
    engine_sequence_t *s = malloc(sizeof *s);
    uint64_t block_bytes;
    ENGINE_OK(qn_model_kv_block_bytes(&old->model->config, 16, 4, &block_bytes));
    memcpy(engine_at(fresh, ENGINE_KV), engine_at(old, ENGINE_KV), block_bytes * fresh->limits.kv_blocks);
    uint32_t known[PROMPT_MAX + NEW_TOKENS], tokens = whole->prompt_tokens + 4;
    memcpy(known, whole->prompt, whole->prompt_tokens * sizeof *known);
    memcpy(known + whole->prompt_tokens, whole->ids, 4 * sizeof *known);
    *s = (engine_sequence_t){.prompt = known,
                             .prompt_tokens = whole->prompt_tokens,
                             .max_tokens = whole->max_tokens,
                             .sampling = whole->sampling};
    engine_plan_t *p = malloc(sizeof *p);
    p->plan =
        (step_plan_t){.sets = p->sets, .blocks = p->blocks, .runs = p->runs, .ids = p->ids, .stop_ids = p->stop_ids};
    engine_plan_set(fresh, p, s, 0);
    p->sets[0].history_count = kept;
    memcpy(p->ids, known, tokens * sizeof *known);
    p->plan.id_count = tokens;
    p->runs[0] = (step_run_t){.slot = 0, .position = kept, .tokens = tokens - kept, .ids_offset = kept, .sample = true};
    p->plan.run_count = 1;
    engine_step(fresh, &p->plan);
    if (fresh->result.tokens[0].id != whole->ids[4] ||
        memcmp(&fresh->result.tokens[0].logprob, &whole->logprobs[4], sizeof(float)) != 0)
        fail_msg("%s: resumed with %u, undisturbed %u", what, fresh->result.tokens[0].id, whole->ids[4]);
    engine_close(fresh);
    free(p);
    free(s);
}

static void test_executor_resumed_on_surviving_kv_continues_the_same(void **state)
{
    (void)state;
    static uint32_t prompts[BATCH][PROMPT_MAX];
    engine_sequence_t *s = malloc(BATCH * sizeof *s);
    for (uint32_t i = 8; i < 12; i++) {
        engine_t *engine = open_engine(2, QN_SCALAR_F32);
        make_sequences(prompts, s, 0, false);
        s[i].max_tokens = 5;
        engine_run(engine, &s[i], 1);
        s[i].max_tokens = NEW_TOKENS;
        resume(&s[i], engine, s[i].prompt_tokens + 3, "all but the last");
        resume(&s[i], engine, 16, "one block");
        resume(&s[i], engine, 0, "nothing");
        engine_close(engine);
    }
    free(s);
}

static void test_executor_ended_sequences_are_masked_and_touch_nothing(void **state)
{
    (void)state;
    static const uint32_t PROMPT[3] = {5, 6, 7};
    engine_t *engine = open_engine(2, QN_SCALAR_F32);
    engine_sequence_t *probe = calloc(1, sizeof *probe), *s = calloc(1, sizeof *s);
    *probe = (engine_sequence_t){.prompt = PROMPT, .prompt_tokens = 3, .max_tokens = 2, .sampling = engine_greedy()};
    engine_run(engine, probe, 1);
    *s = (engine_sequence_t){.prompt = PROMPT,
                             .prompt_tokens = 3,
                             .max_tokens = 9,
                             .sampling = engine_greedy(),
                             .stop_ids = &probe->ids[1],
                             .stop_count = 1};
    engine_plan_t *p = malloc(sizeof *p);
    uint64_t block_bytes;
    ENGINE_OK(qn_model_kv_block_bytes(&engine->model->config, 16, 4, &block_bytes));
    char *before = malloc(block_bytes * engine->limits.kv_blocks);
    /* What the probe left would hide a write. */
    memset(engine_at(engine, ENGINE_KV), 0, block_bytes * engine->limits.kv_blocks);
    for (int step = 0; step < 4; step++) {
        p->plan = (step_plan_t){
            .sets = p->sets, .blocks = p->blocks, .runs = p->runs, .ids = p->ids, .stop_ids = p->stop_ids};
        if (step == 0) engine_plan_set(engine, p, s, 0);
        memcpy(before, engine_at(engine, ENGINE_KV), block_bytes * engine->limits.kv_blocks);
        engine_plan_run(p, s);
        engine_step(engine, &p->plan);
        assert_int_equal(engine->result.token_count, 1);
        const step_token_t *token = &engine->result.tokens[0];
        bool same = memcmp(before, engine_at(engine, ENGINE_KV), block_bytes * engine->limits.kv_blocks) == 0;
        assert_int_equal(token->position, 3 + step);
        assert_int_equal(token->stopped, step == 1);
        assert_int_equal(token->masked, step >= 2);
        assert_int_equal(same, step >= 2);
        if (step < 2) assert_int_equal(token->id, probe->ids[step]);
    }
    engine_close(engine);
    free(before);
    free(p);
    free(s);
    free(probe);
}

/* A copy of its blocks continues like the original. */
static void test_executor_copied_blocks_carry_the_sequence(void **state)
{
    (void)state;
    static uint32_t prompts[BATCH][PROMPT_MAX];
    engine_sequence_t *s = malloc(BATCH * sizeof *s);
    engine_t *engine = open_engine(2, QN_SCALAR_BF16);
    make_sequences(prompts, s, 0, false);
    engine_sequence_t *whole = &s[12]; /* greedy, 37 tokens, three blocks */
    engine_run(engine, whole, 1);
    engine_plan_t *p = malloc(sizeof *p);
    qn_copy_t copies[3];
    p->plan = (step_plan_t){.sets = p->sets,
                            .blocks = p->blocks,
                            .runs = p->runs,
                            .ids = p->ids,
                            .stop_ids = p->stop_ids,
                            .copies = copies,
                            .copy_count = 3};
    engine_sequence_t *fork = calloc(1, sizeof *fork);
    *fork = *whole;
    fork->set = false;
    engine_plan_set(engine, p, fork, 5);
    for (uint32_t i = 0; i < 3; i++)
        copies[i] = (qn_copy_t){.from = engine_block(engine, 0, i), .to = engine_block(engine, 5, i)};
    p->ids[0] = whole->ids[0];
    p->runs[0] = (step_run_t){.slot = 5, .position = 37, .tokens = 1, .sample = true};
    p->plan.run_count = p->plan.id_count = 1;
    engine_step(engine, &p->plan);
    assert_int_equal(engine->result.tokens[0].id, whole->ids[1]);
    assert_memory_equal(&engine->result.tokens[0].logprob, &whole->logprobs[1], sizeof(float));
    engine_close(engine);
    free(p);
    free(fork);
    free(s);
}

static void test_executor_top_logprobs_accompany_each_token(void **state)
{
    (void)state;
    static uint32_t prompts[BATCH][PROMPT_MAX];
    engine_sequence_t *s = malloc(BATCH * sizeof *s);
    engine_t *engine = open_engine(1, QN_SCALAR_F32);
    make_sequences(prompts, s, 0, false);
    engine_plan_t *p = malloc(sizeof *p);
    p->plan =
        (step_plan_t){.sets = p->sets, .blocks = p->blocks, .runs = p->runs, .ids = p->ids, .stop_ids = p->stop_ids};
    static const uint32_t TOP[3] = {3, 0, 20};
    for (uint32_t i = 0; i < 3; i++) {
        s[i].sampling = engine_greedy();
        s[i].sampling.top_logprobs = TOP[i];
        s[i].sampling.prompt_logprobs = i == 2;
        engine_plan_set(engine, p, &s[i], i);
        engine_plan_run(p, &s[i]);
    }
    engine_step(engine, &p->plan);
    const step_result_t *r = &engine->result;
    assert_int_equal(r->token_count, 3);
    assert_int_equal(r->prompt_count, s[2].prompt_tokens - 1);
    assert_int_equal(r->top_count, 3 + 20 + 20 * r->prompt_count);
    assert_int_equal(r->top[0].id, r->tokens[0].id);
    assert_true(r->top[0].logprob == r->tokens[0].logprob && r->top[1].logprob <= r->top[0].logprob);
    assert_int_equal(r->top[3].id, r->tokens[2].id);
    engine_close(engine);
    free(p);
    free(s);
}

static void test_executor_an_empty_plan_gives_an_empty_result(void **state)
{
    (void)state;
    engine_t *engine = open_engine(2, QN_SCALAR_F32);
    step_plan_t plan = {0};
    engine_step(engine, &plan);
    assert_int_equal(engine->result.token_count + engine->result.prompt_count + engine->result.run_tokens, 0);
    assert_int_equal(engine->result.step, 1);
    engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_executor_alone_and_batched_any_chunk_have_the_same_bits),
        cmocka_unit_test(test_executor_from_slot_and_from_ids_are_the_same),
        cmocka_unit_test(test_executor_resumed_on_surviving_kv_continues_the_same),
        cmocka_unit_test(test_executor_ended_sequences_are_masked_and_touch_nothing),
        cmocka_unit_test(test_executor_copied_blocks_carry_the_sequence),
        cmocka_unit_test(test_executor_top_logprobs_accompany_each_token),
        cmocka_unit_test(test_executor_an_empty_plan_gives_an_empty_result),
    };
    return cmocka_run_group_tests_name("executor", tests, NULL, NULL);
}
