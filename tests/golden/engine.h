/* Compute without a service around it, for tests: a checkpoint brought in by memory's code, the regions
 * that memory would make, the slot book and the executor, and a small scheduler that runs sequences by hand. Include once per program. */
#ifndef QN_TESTS_GOLDEN_ENGINE_H
#define QN_TESTS_GOLDEN_ENGINE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/model/model_config.h"
#include "services/compute/executor/executor.h"
#include "services/compute/model.h"
#include "services/compute/runtime.h"
#include "services/compute/slot_book.h"
#include "services/memory/weights/safetensors.h"
#include "services/memory/weights/weights.h"

#define ENGINE_HELPER static __attribute__((unused))

typedef struct {
    const char *directory;
    const char *kernels;                                               /* compute.kernels */
    uint32_t isa;                                                      /* 0: this machine's */
    uint32_t threads, sequences, step_tokens, model_len, block_tokens; /* 0: 1, 4, 64, 256, 16 */
    qn_scalar_t kv_scalar;
    weights_format_t format;  /* zero: as the checkpoint has them */
    uint32_t layers;          /* only the first ones; 0: all */
    const char *config;       /* another directory's config.json and generation_config.json; NULL: its own */
    const backend_t *backend; /* NULL: the CPU's */
    qn_share_t share;         /* of all regions; memfd for the CPU */
    const char *activations;  /* compute.activations; NULL: auto */
    bool deterministic;
} engine_options_t;

enum { ENGINE_KV, ENGINE_ACTIVATIONS, ENGINE_STATE, ENGINE_STEP_IO, ENGINE_REGIONS };

typedef struct {
    engine_options_t options;
    step_limits_t limits;
    qn_mapping_t *weights, *regions[ENGINE_REGIONS];
    model_t *model;
    qn_stream_t *stream;
    slot_book_t *book;
    executor_t *executor;
    step_result_t result;
    uint64_t step;
    void *logits; /* the host's copy where the device's memory is not its own */
} engine_t;

#define ENGINE_OK(call)                                                              \
    do {                                                                             \
        if ((call) != QN_OK) {                                                       \
            fprintf(stderr, "%s: %s (%s)\n", #call, qn_err_text(), qn_err_origin()); \
            abort();                                                                 \
        }                                                                            \
    } while (0)

ENGINE_HELPER char *engine_read_text(const char *directory, const char *name, size_t *ret_bytes)
{
    char path[QN_PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    char *text = malloc(1 << 20);
    *ret_bytes = fread(text, 1, 1 << 20, file);
    fclose(file);
    return text;
}

static uint64_t engine_regions; /* ids given so far */

ENGINE_HELPER qn_mapping_t *engine_region(const engine_t *engine, qn_region_kind_t kind, uint64_t bytes)
{
    qn_mapping_t *region;
    qn_share_t share = engine->options.share;
    qn_region_spec_t spec = {.id = ++engine_regions,
                             .kind = kind,
                             .share = share,
                             .name = "test",
                             .device = share == QN_SHARE_MEMFD ? -1 : 0,
                             .bytes = bytes,
                             .epoch = 1};
    ENGINE_OK(qn_region_create(&spec, &region));
    return region;
}

/* Filled with a NaN, so that reading what nobody wrote shows; device memory is as memory leaves it. */
ENGINE_HELPER void *engine_memory(engine_t *engine, unsigned index, uint64_t bytes)
{
    static const qn_region_kind_t KINDS[ENGINE_REGIONS] = {[ENGINE_KV] = QN_REGION_KIND_KV,
                                                           [ENGINE_ACTIVATIONS] = QN_REGION_KIND_ACTIVATIONS,
                                                           [ENGINE_STATE] = QN_REGION_KIND_STATE,
                                                           [ENGINE_STEP_IO] = QN_REGION_KIND_STEP_IO};
    engine->regions[index] = engine_region(engine, KINDS[index], bytes);
    void *memory = qn_region_pointer(engine->regions[index]);
    if (engine->options.share == QN_SHARE_MEMFD) memset(memory, 0xa5, bytes);
    return memory;
}

ENGINE_HELPER void *engine_at(const engine_t *engine, unsigned index)
{
    return qn_region_pointer(engine->regions[index]);
}

/* Memory's table of tensors as compute reads it. */
ENGINE_HELPER void engine_bind(engine_t *engine, const qn_model_config_t *config, const weights_t *weights)
{
    size_t count = weights_count(weights);
    model_tensor_t *tensors = calloc(count, sizeof *tensors);
    for (size_t i = 0; i < count; i++) {
        const weights_tensor_t *from = weights_at(weights, i);
        tensors[i] = (model_tensor_t){.name = from->name,
                                      .supported = true,
                                      .scalar = from->scalar,
                                      .layout = from->layout,
                                      .group = from->group,
                                      .shape = from->shape,
                                      .rank = from->rank,
                                      .offset = from->offset,
                                      .bytes = from->bytes};
    }
    ENGINE_OK(model_bind(config, tensors, count, qn_region_pointer(engine->weights), qn_region_bytes(engine->weights),
                         &engine->model));
    free(tensors);
}

/* As memory loads it: planned from the checkpoint, filled into a region, bound by name. */
ENGINE_HELPER void engine_load(engine_t *engine)
{
    size_t bytes = 0, generation_bytes = 0;
    const char *directory = engine->options.config ? engine->options.config : engine->options.directory;
    char *config_text = engine_read_text(directory, "config.json", &bytes);
    char *generation = engine_read_text(directory, "generation_config.json", &generation_bytes);
    QN_ASSERT(config_text);
    qn_model_config_t config;
    ENGINE_OK(qn_model_config_parse(config_text, bytes, generation, generation_bytes, NULL, &config));
    free(config_text);
    free(generation);
    weights_t *weights;
    ENGINE_OK(weights_plan(engine->options.directory, &config, &engine->options.format, &weights));
    engine->weights = engine_region(engine, QN_REGION_KIND_WEIGHTS, weights_bytes(weights));
    ENGINE_OK(weights_fill(weights, engine->weights, 1, &(weights_progress_t){0}));
    if (engine->options.layers) config.layers = engine->options.layers; /* the first of them */
    engine_bind(engine, &config, weights);
    weights_destroy(&weights);
}

ENGINE_HELPER engine_t *engine_open(engine_options_t options)
{
    engine_t *engine = calloc(1, sizeof *engine);
    if (!options.threads) options.threads = 1;
    if (!options.sequences) options.sequences = 4;
    if (!options.step_tokens) options.step_tokens = 64;
    if (!options.model_len) options.model_len = 256;
    if (!options.block_tokens) options.block_tokens = 16;
    if (!options.kernels) options.kernels = "";
    if (!options.backend) options.backend = backend_cpu();
    engine->options = options;
    engine_load(engine);
    const qn_model_config_t *config = &engine->model->config;
    uint32_t blocks = (options.model_len + options.block_tokens - 1) / options.block_tokens * options.sequences;
    engine->limits = step_limits_make(options.sequences, options.step_tokens, options.model_len, options.block_tokens,
                                      blocks, config->vocab);
    const backend_t *backend = options.backend;
    ENGINE_OK(backend->choose_activations(options.activations ? options.activations : "auto",
                                          &engine->model->layers[0].weights[QN_TENSOR_OUTPUT],
                                          &engine->limits.activations));
    scratch_sizes_t sizes;
    ENGINE_OK(scratch_measure(config, &engine->limits, &sizes));
    uint64_t block_bytes;
    ENGINE_OK(qn_model_kv_block_bytes(config, options.block_tokens, qn_scalar_bytes(options.kv_scalar), &block_bytes));
    qn_kernel_case_t shape =
        runtime_kernel_case(config, options.block_tokens, options.kv_scalar, engine->limits.activations);
    executor_parts_t parts = {.backend = backend,
                              .deterministic = options.deterministic,
                              .model = engine->model,
                              .limits = engine->limits,
                              .now_ns = qn_clock_now_ns,
                              .activations = engine_memory(engine, ENGINE_ACTIVATIONS, sizes.activations_bytes),
                              .state = engine_memory(engine, ENGINE_STATE, sizes.state_bytes),
                              .step_io = engine_memory(engine, ENGINE_STEP_IO, sizes.step_io_bytes),
                              .kv = {.data = engine_memory(engine, ENGINE_KV, block_bytes * blocks),
                                     .scalar = options.kv_scalar,
                                     .layers = config->layers,
                                     .blocks = blocks,
                                     .block_tokens = options.block_tokens,
                                     .kv_heads = config->kv_heads,
                                     .head_dim = config->head_dim}};
    if (options.isa)
        ENGINE_OK(qn_kernels_choose(options.kernels, &shape, options.isa & qn_kernels_isa(), &parts.kernels));
    else
        ENGINE_OK(backend->choose_kernels(options.kernels, options.activations ? options.activations : "auto", &shape,
                                          0, &parts.kernels));
    backend_stream_options_t stream = {.threads = options.threads,
                                       .deterministic = options.deterministic,
                                       .shape = &shape,
                                       .activations = engine->limits.activations,
                                       .max_sequences = options.sequences};
    ENGINE_OK(backend->stream_create(&stream, &engine->stream));
    parts.stream = engine->stream;
    ENGINE_OK(executor_create(&parts, &engine->executor));
    ENGINE_OK(slot_book_create(&engine->limits, &engine->book));
    engine->result =
        (step_result_t){.tokens = calloc(options.sequences, sizeof(step_token_t)),
                        .prompt = calloc(options.step_tokens, sizeof(step_prompt_token_t)),
                        .top = calloc((size_t)(options.sequences + options.step_tokens) * QN_ALTERNATIVES_MAX,
                                      sizeof(qn_top_entry_t))};
    return engine;
}

ENGINE_HELPER void engine_close(engine_t *engine)
{
    executor_destroy(&engine->executor);
    slot_book_destroy(&engine->book);
    if (engine->logits) engine->options.backend->host_destroy(&engine->logits);
    engine->options.backend->stream_destroy(&engine->stream);
    model_destroy(&engine->model);
    qn_region_close(&engine->weights);
    for (unsigned i = 0; i < ENGINE_REGIONS; i++)
        qn_region_close(&engine->regions[i]);
    free(engine->result.tokens);
    free(engine->result.prompt);
    free(engine->result.top);
    free(engine);
}

/* Admits and runs a plan; its result is engine->result. */
ENGINE_HELPER void engine_step(engine_t *engine, step_plan_t *plan)
{
    const char *param = "";
    plan->step = ++engine->step;
    if (slot_book_admit(engine->book, plan, &param) != QN_OK) {
        fprintf(stderr, "plan refused: %s: %s\n", param, qn_err_text());
        abort();
    }
    ENGINE_OK(executor_run(engine->executor, plan, &engine->result));
}

/* Returns view of the logits [rows, V] of the last rows computed, on the host, until the next call. */
ENGINE_HELPER const float *engine_logits(engine_t *engine, uint32_t *ret_rows)
{
    const float *logits = executor_logits(engine->executor, ret_rows);
    const backend_t *backend = engine->options.backend;
    size_t row_bytes = (size_t)engine->limits.vocab * sizeof *logits;
    if (backend->synchronous) return logits;
    if (!engine->logits) ENGINE_OK(backend->host_create(engine->limits.logit_rows * row_bytes, &engine->logits));
    backend->download(engine->stream, engine->logits, logits, *ret_rows * row_bytes);
    ENGINE_OK(backend->stream_wait(engine->stream));
    return engine->logits;
}

/* ---- sequences run by hand ---- */

#define ENGINE_TOKENS_MAX 2048

/* Greedy unless `sampling` says otherwise. Fill in the first part, zero the rest. */
typedef struct {
    const uint32_t *prompt;
    uint32_t prompt_tokens, max_tokens, chunk;
    uint32_t start_step; /* joins the batch at this step */
    const uint32_t *stop_ids;
    uint32_t stop_count;
    step_sampling_t sampling;
    bool ids_not_slot; /* decode from plan ids, as after a restart */
    uint32_t resumed;  /* ids after the prompt's, in `prompt` too, that were generated before: run again */
    /* running */
    uint32_t slot, position, generated;
    bool set, ended;
    uint32_t ids[ENGINE_TOKENS_MAX];
    float logprobs[ENGINE_TOKENS_MAX];
    step_prompt_token_t prompt_logprobs[ENGINE_TOKENS_MAX];
    uint32_t prompt_logprob_count;
} engine_sequence_t;

ENGINE_HELPER step_sampling_t engine_greedy(void)
{
    return (step_sampling_t){.top_p = 1, .repetition_penalty = 1, .logprobs = true};
}

/* A scattered table, so that wrong addressing shows: entry i of slot s. */
ENGINE_HELPER uint32_t engine_block(const engine_t *engine, uint32_t slot, uint32_t index)
{
    uint32_t mixed = engine->limits.table_blocks - 1 - index;
    return mixed * engine->limits.max_sequences + (slot * 7 + 3 * index) % engine->limits.max_sequences;
}

typedef struct {
    step_set_t sets[64];
    qn_table_entry_t blocks[64 * 256];
    step_run_t runs[64];
    uint32_t ids[64 * 1024], stop_ids[64 * QN_SLOT_STOP_IDS_MAX];
    step_plan_t plan;
} engine_plan_t;

ENGINE_HELPER void engine_plan_set(engine_t *engine, engine_plan_t *p, engine_sequence_t *s, uint32_t slot)
{
    s->slot = slot;
    s->set = true;
    p->sets[p->plan.set_count++] = (step_set_t){.request = 1000 + slot,
                                                .slot = slot,
                                                .prompt_tokens = s->prompt_tokens,
                                                .sampling = s->sampling,
                                                .stop_offset = p->plan.stop_id_count,
                                                .stop_count = s->stop_count};
    for (uint32_t i = 0; i < s->stop_count; i++)
        p->stop_ids[p->plan.stop_id_count++] = s->stop_ids[i];
    uint32_t tokens = s->prompt_tokens + s->resumed + s->max_tokens;
    if (tokens > engine->limits.max_model_len) tokens = engine->limits.max_model_len;
    uint32_t count = (tokens + engine->limits.block_tokens - 1) / engine->limits.block_tokens;
    for (uint32_t i = 0; i < count; i++)
        p->blocks[p->plan.block_count++] = (qn_table_entry_t){slot, i, engine_block(engine, slot, i)};
}

ENGINE_HELPER void engine_plan_run(engine_plan_t *p, engine_sequence_t *s)
{
    step_run_t run = {.slot = s->slot, .position = s->position, .ids_offset = p->plan.id_count};
    uint32_t known = s->prompt_tokens + s->resumed;
    if (s->position < known) {
        run.tokens = known - s->position;
        if (s->chunk && run.tokens > s->chunk) run.tokens = s->chunk;
        memcpy(p->ids + p->plan.id_count, s->prompt + s->position, run.tokens * sizeof *p->ids);
        p->plan.id_count += run.tokens;
    } else {
        run.tokens = 1;
        run.from_slot = !s->ids_not_slot;
        if (s->ids_not_slot) p->ids[p->plan.id_count++] = s->ids[s->generated - 1];
    }
    run.sample = s->position + run.tokens >= known;
    s->position += run.tokens;
    p->runs[p->plan.run_count++] = run;
}

ENGINE_HELPER void engine_take(engine_t *engine, engine_sequence_t *sequences, uint32_t count)
{
    const step_result_t *result = &engine->result;
    for (uint32_t i = 0; i < result->token_count; i++) {
        engine_sequence_t *s = &sequences[result->tokens[i].request - 1000];
        QN_ASSERT(result->tokens[i].request - 1000 < count && !result->tokens[i].masked);
        s->ids[s->generated] = result->tokens[i].id;
        s->logprobs[s->generated++] = result->tokens[i].logprob;
        if (result->tokens[i].stopped || s->generated == s->max_tokens) s->ended = true;
    }
    for (uint32_t i = 0; i < result->prompt_count; i++) {
        engine_sequence_t *s = &sequences[result->prompt[i].request - 1000];
        s->prompt_logprobs[s->prompt_logprob_count++] = result->prompt[i];
    }
}

/* Runs all sequences to their end, sequence i in slot i, each in every step from its start_step on. */
ENGINE_HELPER void engine_run(engine_t *engine, engine_sequence_t *sequences, uint32_t count)
{
    engine_plan_t *p = malloc(sizeof *p);
    QN_ASSERT(p && count <= 64);
    uint32_t retire[64], retire_count = 0;
    for (uint32_t step = 0, ended = 0; ended < count; step++) {
        p->plan = (step_plan_t){.sets = p->sets,
                                .blocks = p->blocks,
                                .runs = p->runs,
                                .ids = p->ids,
                                .stop_ids = p->stop_ids,
                                .retire = retire,
                                .retire_count = retire_count};
        for (uint32_t i = 0; i < count; i++) {
            engine_sequence_t *s = &sequences[i];
            if (s->ended || s->start_step > step) continue;
            if (!s->set) engine_plan_set(engine, p, s, i);
            engine_plan_run(p, s);
        }
        engine_step(engine, &p->plan);
        engine_take(engine, sequences, count);
        retire_count = ended = 0;
        for (uint32_t i = 0; i < count; i++)
            ended += sequences[i].ended;
    }
    for (uint32_t i = 0; i < count; i++)
        retire[retire_count++] = sequences[i].slot;
    p->plan = (step_plan_t){.retire = retire, .retire_count = retire_count};
    engine_step(engine, &p->plan);
    free(p);
}

#endif
