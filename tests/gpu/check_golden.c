/* What is this?      The reference checkpoints on the GPU: the executor over device regions, against what transformers
 *                    computed in float32, and sequences alone against the same ones in a batch.
 * State owned:       none.
 * Must never:        compare with anything that this machine computed, but where it says "the same bits".
 * Read next:         tests/golden/engine.h, tests/golden/cases.h.
 *
 * A program of its own (build/cuda/check_golden), with a line per check and a summary; run it from the project's root. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/golden/cases.h"

#define MODEL_COUNT (sizeof MODELS / sizeof MODELS[0])

typedef struct {
    const char *what, *activations, *kernels;
    qn_scalar_t kv;
    qn_share_t share;
    uint32_t chunk;
    bool exact; /* greedy ids and log-probabilities must agree; else the distributions do */
    bool deterministic;
} way_t;

#define TOLERANCE 1e-3f /* of log-probabilities, and of the margin of a choice */

/* In f32 the bits differ from the CPU's by the order of additions only. bf16 is compared as a distribution: a router may
 * choose another expert for a tie that rounding made. */
static const way_t WAYS[] = {
    {"f32, plain kernels", "f32", "reference", QN_SCALAR_F32, QN_SHARE_CUDA_IPC, 0, true, false},
    {"f32", "f32", "", QN_SCALAR_F32, QN_SHARE_CUDA_IPC, 7, true, false},
    {"f32, cuda_vmm", "f32", "", QN_SCALAR_F32, QN_SHARE_CUDA_VMM, 1, true, false},
    {"bf16, plain kernels", "bf16", "reference", QN_SCALAR_BF16, QN_SHARE_CUDA_IPC, 0, false, false},
    {"bf16", "bf16", "", QN_SCALAR_BF16, QN_SHARE_CUDA_IPC, 0, false, false},
    {"bf16, chunks of 7", "bf16", "", QN_SCALAR_BF16, QN_SHARE_CUDA_IPC, 7, false, false},
    {"bf16, tokens one by one", "bf16", "", QN_SCALAR_BF16, QN_SHARE_CUDA_IPC, 1, false, false},
    {"bf16, deterministic", "bf16", "", QN_SCALAR_BF16, QN_SHARE_CUDA_IPC, 0, false, true},
};
#define WAY_COUNT (sizeof WAYS / sizeof WAYS[0])
#define FAST 4
#define STEP_TOKENS 2048

static engine_t *open_way(const golden_model_t *model, const way_t *way, uint32_t sequences)
{
    return engine_open((engine_options_t){.directory = model->model,
                                          .config = model->config,
                                          .kernels = way->kernels,
                                          .step_tokens = STEP_TOKENS,
                                          .model_len = model->model_len,
                                          .kv_scalar = way->kv,
                                          .sequences = sequences,
                                          .backend = backend_cuda(),
                                          .share = way->share,
                                          .activations = way->activations,
                                          .deterministic = way->deterministic});
}

static unsigned compare(const golden_case_t *want, const engine_sequence_t *got, const way_t *way, float *worst)
{
    unsigned failures = 0;
    for (uint32_t i = 0; i < got->generated; i++) {
        if (got->ids[i] != want->greedy[i]) return failures + (way->exact && want->margin[i] > TOLERANCE);
        float difference = fabsf(got->logprobs[i] - want->logprobs[i]);
        if (!(difference <= *worst)) *worst = difference;
        failures += !(difference <= (way->exact ? TOLERANCE : INFINITY));
    }
    return failures;
}

static void test_gpu_greedy_every_way_agrees_with_float32(void **state)
{
    (void)state;
    unsigned failures = 0;
    golden_case_t *want = malloc(sizeof *want);
    engine_sequence_t *got = malloc(sizeof *got);
    for (size_t m = 0; m < MODEL_COUNT; m++)
        for (size_t w = 0; w < WAY_COUNT; w++) {
            json_t *root, *cases = load_cases(&MODELS[m], &root);
            engine_t *engine = open_way(&MODELS[m], &WAYS[w], 2);
            float worst = 0;
            unsigned before = failures;
            for (size_t i = 0; i < json_array_size(cases); i++) {
                read_case(json_array_get(cases, i), want);
                *got = (engine_sequence_t){.prompt = want->prompt,
                                           .prompt_tokens = want->prompt_tokens,
                                           .max_tokens = want->greedy_tokens,
                                           .chunk = WAYS[w].chunk,
                                           .sampling = engine_greedy()};
                engine_run(engine, got, 1);
                failures += compare(want, got, &WAYS[w], &worst);
            }
            print_message("%-22s %-26s %s  largest difference %.2g\n", MODELS[m].name, WAYS[w].what,
                          failures == before ? "ok  " : "FAIL", (double)worst);
            engine_close(engine);
            json_decref(root);
        }
    free(want);
    free(got);
    assert_int_equal(failures, 0);
}

/* ---- quality in bf16 ---- */

/* The bound is far above what any of them shows; tests/gpu/quality.py compares with another implementation's bf16. */
static void test_gpu_bf16_stays_close_to_float32(void **state)
{
    (void)state;
    golden_case_t *want = malloc(sizeof *want);
    unsigned failures = 0;
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        char path[QN_PATH_MAX], name[32];
        quality_t q = {0};
        json_t *root, *cases = load_cases(&MODELS[m], &root);
        safetensors_t *tensors;
        snprintf(path, sizeof path, "%s/golden.safetensors", MODELS[m].name);
        assert_int_equal(safetensors_open(path, &tensors), QN_OK);
        engine_t *engine = open_way(&MODELS[m], &WAYS[FAST], 2);
        for (size_t i = 0; i < json_array_size(cases); i++) {
            read_case(json_array_get(cases, i), want);
            snprintf(name, sizeof name, "logits_%zu", i);
            const safetensors_tensor_t *tensor = safetensors_find(tensors, name);
            assert_non_null(tensor);
            q.left = (uint32_t)tensor->shape[0] - 1; /* nothing follows the last row */
            q.targets = want->prompt + want->prompt_tokens - q.left;
            walk_logits(engine, want, tensor, add_quality, &q);
        }
        bool close = q.divergence / q.rows < 2e-2;
        print_message("%-22s %s bf16: KL %.3g nats, first choice the same in %.1f %% of %u rows, NLL %+.5f\n",
                      MODELS[m].name, close ? "ok  " : "FAIL", q.divergence / q.rows, 100.0 * q.same / q.rows, q.rows,
                      q.scored ? (q.nll_got - q.nll_want) / q.scored : 0);
        failures += !close;
        engine_close(engine);
        safetensors_close(&tensors);
        json_decref(root);
    }
    free(want);
    assert_int_equal(failures, 0);
}

/* ---- alone and in a batch ---- */

#define BATCH 64
#define BATCH_TOKENS 24
#define BATCH_PROMPT 51 /* at most */

/* Different prompts, lengths and samplings, begun at different steps. */
static void make_sequence(engine_sequence_t *s, uint32_t i, const uint32_t *ids)
{
    *s = (engine_sequence_t){.prompt = ids + i % 40,
                             .prompt_tokens = 2 + i * 7 % (BATCH_PROMPT - 1),
                             .max_tokens = BATCH_TOKENS,
                             .chunk = i % 5 * 3,
                             .start_step = i % 4,
                             .sampling = engine_greedy()};
    if (i % 3) s->sampling.temperature = 0.8f, s->sampling.seed = i, s->sampling.top_p = 0.95f;
    if (i % 3 == 2) s->sampling.repetition_penalty = 1.2f;
}

/* Sequence `index` again, of which `resumed` generated ids are known and computed in one chunk, as after a kill. */
static bool resumes_alike(engine_t *engine, const engine_sequence_t *whole, uint32_t index, const uint32_t *ids,
                          uint32_t resumed)
{
    uint32_t known[BATCH_PROMPT + BATCH_TOKENS];
    engine_sequence_t *s = malloc(sizeof *s);
    make_sequence(s, index, ids);
    memcpy(known, s->prompt, s->prompt_tokens * sizeof *known);
    memcpy(known + s->prompt_tokens, whole->ids, resumed * sizeof *known);
    s->prompt = known, s->resumed = resumed, s->max_tokens -= resumed, s->start_step = 0;
    engine_run(engine, s, 1);
    bool alike = s->generated == whole->generated - resumed &&
                 memcmp(s->ids, whole->ids + resumed, s->generated * sizeof *s->ids) == 0 &&
                 memcmp(s->logprobs, whole->logprobs + resumed, s->generated * sizeof *s->logprobs) == 0;
    free(s);
    return alike;
}

static void test_gpu_deterministic_alone_among_64_and_resumed_are_the_same_bits(void **state)
{
    (void)state;
    const way_t way = {"", "bf16", "", QN_SCALAR_BF16, QN_SHARE_CUDA_IPC, 0, false, true};
    uint32_t ids[128], different = 0;
    engine_sequence_t *batch = malloc(BATCH * sizeof *batch), *alone = malloc(sizeof *alone);
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        golden_model_t model = MODELS[m];
        model.model_len = 128;
        engine_t *engine = open_way(&model, &way, BATCH);
        for (uint32_t i = 0; i < 128; i++)
            ids[i] = (i * 37 + 11) % engine->limits.vocab;
        for (uint32_t i = 0; i < BATCH; i++)
            make_sequence(&batch[i], i, ids);
        engine_run(engine, batch, BATCH);
        for (uint32_t i = 0; i < BATCH; i += 7) {
            make_sequence(alone, i, ids);
            alone->start_step = 0;
            engine_run(engine, alone, 1);
            different += alone->generated != batch[i].generated ||
                         memcmp(alone->ids, batch[i].ids, alone->generated * sizeof *alone->ids) != 0 ||
                         memcmp(alone->logprobs, batch[i].logprobs, alone->generated * sizeof *alone->logprobs) != 0;
            different += !resumes_alike(engine, &batch[i], i, ids, 1 + i % (BATCH_TOKENS - 1));
        }
        print_message("%-22s deterministic: %u sequences differ\n", MODELS[m].name, different);
        engine_close(engine);
    }
    free(batch);
    free(alone);
    assert_int_equal(different, 0);
}

/* The reference's cases, many times over, in one batch: recorded steps with the products for many tokens. */
static void test_gpu_f32_among_64_agrees_with_float32(void **state)
{
    (void)state;
    const way_t way = {"", "f32", "", QN_SCALAR_F32, QN_SHARE_CUDA_IPC, 0, true, false};
    unsigned failures = 0;
    engine_sequence_t *batch = malloc(BATCH * sizeof *batch);
    for (size_t m = 0; m < MODEL_COUNT; m++) {
        json_t *root, *list = load_cases(&MODELS[m], &root);
        size_t count = json_array_size(list);
        golden_case_t *cases = malloc(count * sizeof *cases);
        for (size_t i = 0; i < count; i++)
            read_case(json_array_get(list, i), &cases[i]);
        for (uint32_t i = 0; i < BATCH; i++) {
            const golden_case_t *want = &cases[i % count];
            batch[i] = (engine_sequence_t){.prompt = want->prompt,
                                           .prompt_tokens = want->prompt_tokens,
                                           .max_tokens = want->greedy_tokens,
                                           .chunk = 16,
                                           .start_step = i % 4,
                                           .sampling = engine_greedy()};
        }
        engine_t *engine = open_way(&MODELS[m], &way, BATCH);
        engine_run(engine, batch, BATCH);
        unsigned before = failures;
        float worst = 0;
        for (uint32_t i = 0; i < BATCH; i++)
            failures += compare(&cases[i % count], &batch[i], &way, &worst);
        print_message("%-22s f32, 64 at once            %s  largest difference %.2g\n", MODELS[m].name,
                      failures == before ? "ok  " : "FAIL", (double)worst);
        engine_close(engine);
        free(cases);
        json_decref(root);
    }
    free(batch);
    assert_int_equal(failures, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpu_greedy_every_way_agrees_with_float32),
        cmocka_unit_test(test_gpu_bf16_stays_close_to_float32),
        cmocka_unit_test(test_gpu_deterministic_alone_among_64_and_resumed_are_the_same_bits),
        cmocka_unit_test(test_gpu_f32_among_64_agrees_with_float32),
    };
    return cmocka_run_group_tests_name("golden on the GPU", tests, NULL, NULL);
}
