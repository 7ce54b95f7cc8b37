/* Compute without a service around it, for tests: a checkpoint brought in by memory's code, the three regions on the
 * heap, the slot book and the executor, and a small scheduler that runs sequences by hand. Include once per program. */
#ifndef QN_TESTS_GOLDEN_ENGINE_H
#define QN_TESTS_GOLDEN_ENGINE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/model_config.h"
#include "services/compute/executor.h"
#include "services/compute/model.h"
#include "services/compute/slot_book.h"
#include "services/memory/safetensors.h"
#include "services/memory/weights.h"

#define ENGINE_HELPER static __attribute__((unused))

typedef struct {
    const char *directory;
    const char *kernels;          /* compute.kernels */
    uint32_t isa;                 /* 0: this machine's */
    uint32_t threads, sequences, step_tokens, model_len, block_tokens;  /* 0: 1, 4, 64, 256, 16 */
    qn_scalar_t kv_scalar;
    weights_format_t format;      /* zero: as the checkpoint has them */
    uint32_t layers;              /* only the first ones; 0: all */
    const char *config;           /* another directory's config.json and generation_config.json; NULL: its own */
} engine_options_t;

typedef struct {
    engine_options_t options;
    step_limits_t limits;
    qn_mapping_t *weights;
    char *kv, *activations, *state, *step_io;
    model_t *model;
    qn_stream_t *stream;
    slot_book_t *book;
    executor_t *executor;
    step_result_t result;
    uint64_t step;
} engine_t;

#define ENGINE_OK(call) \
    do { \
        if ((call) != QN_OK) { \
            fprintf(stderr, "%s: %s (%s)\n", #call, qn_err_text(), qn_err_origin()); \
            abort(); \
        } \
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

ENGINE_HELPER void *engine_memory(uint64_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 127) & ~UINT64_C(63));
    QN_ASSERT(memory);
    memset(memory, 0xa5, bytes);  /* a NaN, so that reading what nobody wrote shows */
    return memory;
}

/* Memory's table of tensors as compute reads it. */
ENGINE_HELPER void engine_bind(engine_t *engine, const qn_model_config_t *config, const weights_t *weights)
{
    size_t count = weights_count(weights);
    model_tensor_t *tensors = calloc(count, sizeof *tensors);
    for (size_t i = 0; i < count; i++) {
        const weights_tensor_t *from = weights_at(weights, i);
        tensors[i] = (model_tensor_t){
            .name = from->name, .supported = true, .scalar = from->scalar, .layout = from->layout,
            .group = from->group, .shape = from->shape, .rank = from->rank, .offset = from->offset,
            .bytes = from->bytes };
    }
    ENGINE_OK(model_bind(config, tensors, count, qn_region_pointer(engine->weights), qn_region_bytes(engine->weights),
                         &engine->model));
    free(tensors);
}

static uint64_t engine_regions;   /* ids given so far */

/* As memory loads it: planned from the checkpoint, filled into a region, bound by name. */
ENGINE_HELPER void engine_load(engine_t *engine)
{
    size_t bytes = 0, generation_bytes = 0;
    const char *directory = engine->options.config ? engine->options.config : engine->options.directory;
    char *config_text = engine_read_text(directory, "config.json", &bytes);
    char *generation = engine_read_text(directory, "generation_config.json", &generation_bytes);
    QN_ASSERT(config_text);
    qn_model_config_t config;
    ENGINE_OK(qn_model_config_parse(config_text, bytes, generation, generation_bytes, &config));
    free(config_text);
    free(generation);
    if (engine->options.layers) config.layers = engine->options.layers;
    weights_t *weights;
    ENGINE_OK(weights_plan(engine->options.directory, &config, &engine->options.format, &weights));
    qn_region_spec_t spec = { .id = ++engine_regions, .kind = QN_REGION_KIND_WEIGHTS, .share = QN_SHARE_MEMFD,
                              .device = -1, .bytes = weights_bytes(weights), .epoch = 1, .name = "weights" };
    ENGINE_OK(qn_region_create(&spec, &engine->weights));
    ENGINE_OK(weights_fill(weights, engine->weights, 1, &(weights_progress_t){ 0 }));
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
    engine->options = options;
    engine_load(engine);
    const qn_model_config_t *config = &engine->model->config;
    uint32_t blocks = (options.model_len + options.block_tokens - 1) / options.block_tokens * options.sequences;
    engine->limits = step_limits_make(options.sequences, options.step_tokens, options.model_len,
                                      options.block_tokens, blocks, config->vocab);
    scratch_sizes_t sizes;
    ENGINE_OK(scratch_measure(config, &engine->limits, &sizes));
    engine->activations = engine_memory(sizes.activations_bytes);
    engine->state = engine_memory(sizes.state_bytes);
    engine->step_io = engine_memory(sizes.step_io_bytes);
    uint64_t block_bytes;
    ENGINE_OK(qn_model_kv_block_bytes(config, options.block_tokens, qn_scalar_bytes(options.kv_scalar), &block_bytes));
    engine->kv = engine_memory(block_bytes * blocks);
    qn_kernel_case_t shape = {
        .heads = config->heads, .kv_heads = config->kv_heads, .head_dim = config->head_dim,
        .hidden = config->hidden, .intermediate = config->intermediate, .vocab = config->vocab,
        .block_tokens = options.block_tokens, .kv_scalar = options.kv_scalar };
    executor_parts_t parts = {
        .backend = backend_cpu(), .model = engine->model, .limits = engine->limits, .activations = engine->activations,
        .state = engine->state, .step_io = engine->step_io, .now_ns = qn_clock_now_ns,
        .kv = { .data = engine->kv, .scalar = options.kv_scalar, .layers = config->layers, .blocks = blocks,
                .block_tokens = options.block_tokens, .kv_heads = config->kv_heads, .head_dim = config->head_dim } };
    uint32_t isa = options.isa ? options.isa & qn_kernels_isa() : qn_kernels_isa();
    ENGINE_OK(qn_kernels_choose(options.kernels, &shape, isa, &parts.kernels));
    ENGINE_OK(qn_stream_create(&(qn_stream_options_t){ .threads = options.threads }, &engine->stream));
    parts.stream = engine->stream;
    ENGINE_OK(executor_create(&parts, &engine->executor));
    ENGINE_OK(slot_book_create(&engine->limits, &engine->book));
    engine->result = (step_result_t){
        .tokens = calloc(options.sequences, sizeof(step_token_t)),
        .prompt = calloc(options.step_tokens, sizeof(step_prompt_token_t)),
        .top = calloc((size_t)(options.sequences + options.step_tokens) * QN_TOP_LOGPROBS_MAX,
                      sizeof(qn_top_entry_t)) };
    return engine;
}

ENGINE_HELPER void engine_close(engine_t *engine)
{
    executor_destroy(&engine->executor);
    slot_book_destroy(&engine->book);
    qn_stream_destroy(&engine->stream);
    model_destroy(&engine->model);
    qn_region_close(&engine->weights);
    free(engine->kv);
    free(engine->activations);
    free(engine->state);
    free(engine->step_io);
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

/* ---- sequences run by hand ---- */

#define ENGINE_TOKENS_MAX 2048

/* Greedy unless `sampling` says otherwise. Fill in the first part, zero the rest. */
typedef struct {
    const uint32_t *prompt;
    uint32_t prompt_tokens, max_tokens, chunk;
    uint32_t start_step;          /* joins the batch at this step */
    const uint32_t *stop_ids;
    uint32_t stop_count;
    step_sampling_t sampling;
    bool ids_not_slot;            /* decode from plan ids, as after a restart */
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
    return (step_sampling_t){ .top_p = 1, .repetition_penalty = 1, .logprobs = true };
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
    uint32_t ids[64 * 1024], stop_ids[64 * QN_STOP_IDS_MAX];
    step_plan_t plan;
} engine_plan_t;

ENGINE_HELPER void engine_plan_set(engine_t *engine, engine_plan_t *p, engine_sequence_t *s, uint32_t slot)
{
    s->slot = slot;
    s->set = true;
    p->sets[p->plan.set_count++] = (step_set_t){
        .request = 1000 + slot, .slot = slot, .prompt_tokens = s->prompt_tokens, .sampling = s->sampling,
        .stop_offset = p->plan.stop_id_count, .stop_count = s->stop_count };
    for (uint32_t i = 0; i < s->stop_count; i++) p->stop_ids[p->plan.stop_id_count++] = s->stop_ids[i];
    uint32_t tokens = s->prompt_tokens + s->max_tokens;
    if (tokens > engine->limits.max_model_len) tokens = engine->limits.max_model_len;
    uint32_t count = (tokens + engine->limits.block_tokens - 1) / engine->limits.block_tokens;
    for (uint32_t i = 0; i < count; i++)
        p->blocks[p->plan.block_count++] = (qn_table_entry_t){ slot, i, engine_block(engine, slot, i) };
}

ENGINE_HELPER void engine_plan_run(engine_plan_t *p, engine_sequence_t *s)
{
    step_run_t run = { .slot = s->slot, .position = s->position, .ids_offset = p->plan.id_count };
    if (s->position < s->prompt_tokens) {
        run.tokens = s->prompt_tokens - s->position;
        if (s->chunk && run.tokens > s->chunk) run.tokens = s->chunk;
        memcpy(p->ids + p->plan.id_count, s->prompt + s->position, run.tokens * sizeof *p->ids);
        p->plan.id_count += run.tokens;
    } else {
        run.tokens = 1;
        run.from_slot = !s->ids_not_slot;
        if (s->ids_not_slot) p->ids[p->plan.id_count++] = s->ids[s->generated - 1];
    }
    run.sample = s->position + run.tokens >= s->prompt_tokens;
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
        p->plan = (step_plan_t){ .sets = p->sets, .blocks = p->blocks, .runs = p->runs, .ids = p->ids,
                                 .stop_ids = p->stop_ids, .retire = retire, .retire_count = retire_count };
        for (uint32_t i = 0; i < count; i++) {
            engine_sequence_t *s = &sequences[i];
            if (s->ended || s->start_step > step) continue;
            if (!s->set) engine_plan_set(engine, p, s, i);
            engine_plan_run(p, s);
        }
        engine_step(engine, &p->plan);
        engine_take(engine, sequences, count);
        retire_count = ended = 0;
        for (uint32_t i = 0; i < count; i++) ended += sequences[i].ended;
    }
    for (uint32_t i = 0; i < count; i++) retire[retire_count++] = sequences[i].slot;
    p->plan = (step_plan_t){ .retire = retire, .retire_count = retire_count };
    engine_step(engine, &p->plan);
    free(p);
}

#endif
