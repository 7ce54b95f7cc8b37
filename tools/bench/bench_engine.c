/* What is this?      Memory's loading and compute's executor, joined without messages.
 * State owned:       regions, model, stream, executor and slot book of one model.
 * Must never:        load or run a model in another way than the services do.
 * Read next:         services/memory/weights/loader.c and services/compute/runtime.c, whose work this does. */
#include "tools/bench/bench_engine.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/region/region.h"
#include "services/compute/executor/executor.h"
#include "services/compute/runtime.h"
#include "services/compute/executor/scratch.h"
#include "services/memory/weights/model_directory.h"
#include "services/memory/weights/weights.h"

#define LOAD_THREADS_MAX 8
#define STEPS_MAX 2 /* in flight, of any backend */
#define KV_FILL_BYTES (1u << 20)

enum { REGION_WEIGHTS, REGION_KV, REGION_ACTIVATIONS, REGION_STATE, REGION_STEP_IO, REGION_COUNT };

static const struct {
    const char *name;
    qn_region_kind_t kind;
} REGIONS[REGION_COUNT] = {
    [REGION_WEIGHTS] = {"weights", QN_REGION_KIND_WEIGHTS},
    [REGION_KV] = {"kv", QN_REGION_KIND_KV},
    [REGION_ACTIVATIONS] = {"activations", QN_REGION_KIND_ACTIVATIONS},
    [REGION_STATE] = {"state", QN_REGION_KIND_STATE},
    [REGION_STEP_IO] = {"step_io", QN_REGION_KIND_STEP_IO},
};

struct bench_engine {
    bench_engine_size_t size;
    bool huge_pages; /* memory.huge_pages */
    model_directory_t *directory;
    weights_t *weights;
    qn_mapping_t *regions[REGION_COUNT];
    model_t *model;
    step_limits_t limits;
    qn_kv_t kv;
    const backend_t *backend;
    qn_share_t share; /* of all regions */
    int device;
    bool deterministic;
    qn_scalar_t activations;
    qn_kernel_set_t kernels;
    qn_stream_t *stream;
    executor_t *executor;
    slot_book_t *book;
    double load_s;
    /* the next plan */
    uint64_t step;
    step_set_t *sets;         /* [sequences] */
    qn_table_entry_t *blocks; /* [sequences * table_blocks] */
    uint32_t *retire;         /* [sequences] */
    step_run_t *runs;         /* [sequences] */
    uint32_t *ids;            /* [step_tokens] */
    uint32_t set_count, block_count, retire_count;
    step_result_t results[STEPS_MAX]; /* of the steps in flight */
    uint64_t finished;
    char device_name[64];
    void *logits; /* the host's copy; NULL until asked for */
};

/* ---- open ---- */

static qn_err_t make_region(bench_engine_t *engine, unsigned index, uint64_t bytes)
{
    qn_region_spec_t spec = {.id = index + 1,
                             .kind = REGIONS[index].kind,
                             .share = engine->share,
                             .device = engine->share == QN_SHARE_MEMFD ? -1 : engine->device,
                             .bytes = bytes,
                             .epoch = 1,
                             .name = REGIONS[index].name,
                             .huge_pages = engine->huge_pages};
    uint64_t free_bytes;
    qn_err_t err = qn_region_free_bytes(spec.share, spec.device, &free_bytes);
    if (!err && bytes > free_bytes)
        err = qn_fail(QN_ERR_NO_MEMORY, "%s need %" PRIu64 " MiB, %" PRIu64 " are free", spec.name, bytes >> 20,
                      free_bytes >> 20);
    return err ? err : qn_region_create(&spec, &engine->regions[index]);
}

static qn_err_t load_weights(bench_engine_t *engine, const qn_config_values_t *config)
{
    const qn_model_config_t *model = &engine->directory->config;
    weights_format_t format;
    qn_err_t err = weights_format_choose(config, &format);
    if (!err && strcmp(config->model.load_format, "dummy") == 0)
        err = weights_plan_dummy(model, config->model.seed, &format, &engine->weights);
    else if (!err)
        err = weights_plan(engine->directory->path, model, &format, &engine->weights);
    if (err) return err;
    engine->directory->config = *weights_config(engine->weights);
    err = make_region(engine, REGION_WEIGHTS, weights_bytes(engine->weights));
    if (err) return err;
    weights_progress_t progress = {0};
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned threads = cores < 1 ? 1 : cores > LOAD_THREADS_MAX ? LOAD_THREADS_MAX : (unsigned)cores;
    return weights_fill(engine->weights, engine->regions[REGION_WEIGHTS], threads, &progress);
}

static qn_err_t bind_model(bench_engine_t *engine)
{
    size_t count = weights_count(engine->weights);
    model_tensor_t *tensors = calloc(count + 1, sizeof *tensors);
    if (!tensors) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a list of %zu tensors", count);
    for (size_t i = 0; i < count; i++) {
        const weights_tensor_t *from = weights_at(engine->weights, i);
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
    qn_err_t err =
        model_bind(&engine->directory->config, tensors, count, qn_region_pointer(engine->regions[REGION_WEIGHTS]),
                   weights_bytes(engine->weights), &engine->model);
    free(tensors);
    return err;
}

/* Small numbers of either sign, nowhere zero pages that the host would share: one piece of them, again and again. */
static qn_err_t fill_kv(bench_engine_t *engine, uint64_t bytes)
{
    uint64_t state = 88172645463325252u;
    uint16_t *halves = malloc(KV_FILL_BYTES);
    if (!halves) return qn_fail(QN_ERR_NO_MEMORY, "no memory for numbers to fill the KV cache with");
    for (uint64_t i = 0; i < KV_FILL_BYTES / 2; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        halves[i] = (uint16_t)((state & 0x8000) | 0x3d00 | (state & 0xff)); /* bf16, or either half of an f32 */
    }
    for (uint64_t done = 0, piece; done < bytes; done += piece) {
        piece = bytes - done < KV_FILL_BYTES ? bytes - done : KV_FILL_BYTES;
        engine->backend->upload(engine->stream, (char *)engine->kv.data + done, halves, piece);
    }
    free(halves);
    return engine->backend->stream_wait(engine->stream);
}

static qn_scalar_t kv_scalar(const qn_config_values_t *config)
{
    return qn_config_kv_is_bf16(config) ? QN_SCALAR_BF16 : QN_SCALAR_F32;
}

/* KV blocks of a sequence. */
static uint32_t blocks_of(const bench_engine_t *engine, uint32_t block_tokens, uint32_t slot)
{
    uint32_t length = slot ? engine->size.others_len : engine->size.model_len;
    return (length + block_tokens - 1) / block_tokens;
}

static qn_err_t make_kv(bench_engine_t *engine, const qn_config_values_t *config)
{
    const qn_model_config_t *model = &engine->directory->config;
    uint32_t block_tokens = (uint32_t)config->memory.block_tokens;
    uint64_t others = (uint64_t)blocks_of(engine, block_tokens, 1) * (engine->size.sequences - 1);
    uint64_t blocks = blocks_of(engine, block_tokens, 0) + others;
    qn_scalar_t scalar = kv_scalar(config);
    uint64_t block_bytes = 0, bytes = 0;
    qn_err_t err = qn_model_kv_block_bytes(model, block_tokens, qn_scalar_bytes(scalar), &block_bytes);
    if (!err && (blocks > UINT32_MAX || __builtin_mul_overflow(block_bytes, blocks, &bytes)))
        err = qn_fail(QN_ERR_LIMIT, "%u sequences of up to %u tokens are too much KV cache", engine->size.sequences,
                      engine->size.model_len);
    if (!err) err = make_region(engine, REGION_KV, bytes);
    if (err) return err;
    engine->kv = (qn_kv_t){.data = qn_region_pointer(engine->regions[REGION_KV]),
                           .scalar = scalar,
                           .layers = model->layers,
                           .blocks = (uint32_t)blocks,
                           .block_tokens = block_tokens,
                           .kv_heads = model->kv_heads,
                           .head_dim = model->head_dim};
    engine->limits = step_limits_make(engine->size.sequences, engine->size.step_tokens, engine->size.model_len,
                                      block_tokens, (uint32_t)blocks, model->vocab);
    engine->limits.logit_rows = step_smaller(engine->limits.max_step_tokens, engine->backend->logit_rows);
    engine->limits.activations = engine->activations;
    return fill_kv(engine, bytes);
}

static qn_err_t make_scratch(bench_engine_t *engine)
{
    scratch_sizes_t sizes;
    qn_err_t err = scratch_measure(&engine->directory->config, &engine->limits, &sizes);
    if (!err) err = make_region(engine, REGION_ACTIVATIONS, sizes.activations_bytes);
    if (!err) qn_region_make_huge(engine->regions[REGION_ACTIVATIONS], 0, sizes.activations_bytes);
    if (!err) err = make_region(engine, REGION_STATE, sizes.state_bytes);
    if (!err) err = make_region(engine, REGION_STEP_IO, sizes.step_io_bytes);
    return err;
}

static qn_kernel_case_t kernel_case(const bench_engine_t *engine, const qn_config_values_t *config)
{
    return runtime_kernel_case(&engine->directory->config, (uint32_t)config->memory.block_tokens, kv_scalar(config),
                               engine->activations);
}

/* For weights like these, or NULL before anything is loaded: a wrong compute.kernels should not take minutes to be
 * told. */
static qn_err_t choose_kernels(bench_engine_t *engine, const qn_config_values_t *config, const qn_weight_t *weights)
{
    qn_err_t err = engine->backend->choose_activations(config->compute.activations, weights, &engine->activations);
    if (err) return err;
    qn_kernel_case_t shape = kernel_case(engine, config);
    return engine->backend->choose_kernels(config->compute.kernels, config->compute.activations, &shape, engine->device,
                                           &engine->kernels);
}

static qn_err_t make_stream(bench_engine_t *engine, const qn_config_values_t *config)
{
    qn_kernel_case_t shape = kernel_case(engine, config);
    backend_stream_options_t options = {.threads = (uint32_t)config->compute.threads,
                                        .device = engine->device,
                                        .activations = engine->activations,
                                        .deterministic = config->compute.deterministic,
                                        .shape = &shape,
                                        .max_sequences = engine->size.sequences};
    qn_err_t err = engine->backend->stream_create(&options, &engine->stream);
    if (!err)
        engine->backend->describe(engine->stream, engine->device, engine->device_name, sizeof engine->device_name);
    return err;
}

static qn_err_t make_executor(bench_engine_t *engine)
{
    executor_parts_t parts = {.model = engine->model,
                              .limits = engine->limits,
                              .kv = engine->kv,
                              .kernels = engine->kernels,
                              .backend = engine->backend,
                              .stream = engine->stream,
                              .deterministic = engine->deterministic,
                              .activations = qn_region_pointer(engine->regions[REGION_ACTIVATIONS]),
                              .state = qn_region_pointer(engine->regions[REGION_STATE]),
                              .step_io = qn_region_pointer(engine->regions[REGION_STEP_IO]),
                              .now_ns = qn_clock_now_ns};
    qn_err_t err = executor_create(&parts, &engine->executor);
    return err ? err : slot_book_create(&engine->limits, &engine->book);
}

static qn_err_t make_plan(bench_engine_t *engine)
{
    size_t sequences = engine->size.sequences, tokens = engine->size.step_tokens;
    engine->sets = calloc(sequences, sizeof *engine->sets);
    engine->blocks = calloc(sequences, engine->limits.table_blocks * sizeof *engine->blocks);
    engine->retire = calloc(sequences, sizeof *engine->retire);
    engine->runs = calloc(sequences, sizeof *engine->runs);
    engine->ids = calloc(tokens, sizeof *engine->ids);
    bool complete = engine->sets && engine->blocks && engine->retire && engine->runs && engine->ids;
    for (unsigned i = 0; i < STEPS_MAX; i++) {
        step_result_t *result = &engine->results[i];
        result->tokens = calloc(sequences, sizeof *result->tokens);
        result->prompt = calloc(tokens, sizeof *result->prompt);
        result->top = calloc(sequences + tokens, QN_ALTERNATIVES_MAX * sizeof *result->top);
        complete = complete && result->tokens && result->prompt && result->top;
    }
    return complete ? QN_OK : qn_fail(QN_ERR_NO_MEMORY, "no memory for plans of %zu sequences", sequences);
}

static qn_err_t open_all(bench_engine_t *engine, const qn_config_values_t *config)
{
    uint64_t begin_ns = qn_clock_now_ns();
    qn_err_t err = model_directory_read(config, &engine->directory);
    if (!err && engine->size.model_len > engine->directory->config.max_positions)
        err = qn_fail(QN_ERR_LIMIT, "%u positions are more than the %u of %s", engine->size.model_len,
                      engine->directory->config.max_positions, engine->directory->id);
    if (!err) err = choose_kernels(engine, config, NULL);
    if (!err) err = load_weights(engine, config);
    if (!err) err = bind_model(engine);
    if (!err) err = choose_kernels(engine, config, &engine->model->layers[0].weights[QN_TENSOR_OUTPUT]);
    if (!err) err = make_stream(engine, config);
    engine->load_s = (double)(qn_clock_now_ns() - begin_ns) * 1e-9;
    if (!err) err = make_kv(engine, config);
    if (!err) err = make_scratch(engine);
    if (!err) err = make_executor(engine);
    if (!err) err = make_plan(engine);
    return err;
}

qn_err_t bench_engine_open(const qn_config_values_t *config, bench_engine_size_t size, bench_engine_t **ret_engine)
{
    QN_ASSERT(size.sequences >= 1 && size.sequences <= QN_SLOTS_MAX && size.step_tokens >= size.sequences &&
              size.step_tokens <= QN_STEP_TOKENS_MAX && size.model_len <= QN_PROMPT_TOKENS_MAX &&
              size.others_len <= size.model_len);
    const backend_t *backend;
    qn_err_t err = backend_find(config, &backend);
    if (err) return err;
    bench_engine_t *engine = calloc(1, sizeof *engine);
    if (!engine) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the benchmark");
    QN_ASSERT(backend->steps_in_flight <= STEPS_MAX);
    engine->backend = backend;
    engine->device = (int)config->compute.device;
    engine->deterministic = config->compute.deterministic;
    engine->share = backend->synchronous ? QN_SHARE_MEMFD : QN_SHARE_CUDA_IPC;
    engine->size = size;
    engine->huge_pages = strcmp(config->memory.huge_pages, "off") != 0;
    err = open_all(engine, config);
    if (err)
        bench_engine_close(&engine);
    else
        *ret_engine = engine;
    return err;
}

void bench_engine_close(bench_engine_t **engine_pointer)
{
    bench_engine_t *engine = *engine_pointer;
    if (!engine) return;
    executor_destroy(&engine->executor);
    slot_book_destroy(&engine->book);
    if (engine->logits) engine->backend->host_destroy(&engine->logits);
    if (engine->stream) engine->backend->stream_destroy(&engine->stream);
    model_destroy(&engine->model);
    for (unsigned i = 0; i < REGION_COUNT; i++)
        qn_region_close(&engine->regions[i]);
    weights_destroy(&engine->weights);
    model_directory_free(&engine->directory);
    free(engine->sets);
    free(engine->blocks);
    free(engine->retire);
    free(engine->runs);
    free(engine->ids);
    for (unsigned i = 0; i < STEPS_MAX; i++) {
        free(engine->results[i].tokens);
        free(engine->results[i].prompt);
        free(engine->results[i].top);
    }
    free(engine);
    *engine_pointer = NULL;
}

/* ---- steps ---- */

void bench_engine_start(bench_engine_t *engine, uint32_t slot, uint32_t prompt_tokens)
{
    QN_ASSERT(slot < engine->size.sequences && engine->set_count < engine->size.sequences);
    engine->sets[engine->set_count++] = (step_set_t){.request = slot + 1,
                                                     .slot = slot,
                                                     .prompt_tokens = prompt_tokens,
                                                     .sampling = {.top_p = 1, .repetition_penalty = 1}};
    uint32_t block_tokens = engine->limits.block_tokens, count = blocks_of(engine, block_tokens, slot);
    uint32_t first = slot ? blocks_of(engine, block_tokens, 0) + (slot - 1) * count : 0;
    for (uint32_t i = 0; i < count; i++)
        engine->blocks[engine->block_count++] = (qn_table_entry_t){slot, i, first + i};
}

void bench_engine_retire(bench_engine_t *engine, uint32_t slot)
{
    QN_ASSERT(engine->retire_count < engine->size.sequences);
    engine->retire[engine->retire_count++] = slot;
}

qn_err_t bench_engine_submit(bench_engine_t *engine, const bench_run_t *runs, uint32_t run_count)
{
    QN_ASSERT(run_count <= engine->size.sequences);
    QN_ASSERT(engine->step - engine->finished < engine->backend->steps_in_flight);
    step_plan_t plan = {.step = ++engine->step,
                        .retire = engine->retire,
                        .retire_count = engine->retire_count,
                        .sets = engine->sets,
                        .set_count = engine->set_count,
                        .blocks = engine->blocks,
                        .block_count = engine->block_count,
                        .runs = engine->runs,
                        .run_count = run_count,
                        .ids = engine->ids};
    for (uint32_t i = 0; i < run_count; i++) {
        const bench_run_t *run = &runs[i];
        engine->runs[i] = (step_run_t){.slot = run->slot,
                                       .position = run->position,
                                       .tokens = run->tokens,
                                       .ids_offset = plan.id_count,
                                       .from_slot = !run->ids,
                                       .sample = run->sample};
        if (!run->ids) continue;
        QN_ASSERT(run->tokens <= engine->size.step_tokens - plan.id_count);
        memcpy(engine->ids + plan.id_count, run->ids, run->tokens * sizeof *run->ids);
        plan.id_count += run->tokens;
    }
    engine->retire_count = engine->set_count = engine->block_count = 0;
    const char *param = "";
    qn_err_t err = slot_book_admit(engine->book, &plan, &param);
    if (!err) executor_submit(engine->executor, &plan, &engine->results[engine->step % STEPS_MAX]);
    return err;
}

qn_err_t bench_engine_finish(bench_engine_t *engine, const step_result_t **ret_result)
{
    QN_ASSERT(engine->step != engine->finished);
    *ret_result = &engine->results[++engine->finished % STEPS_MAX];
    return executor_finish(engine->executor);
}

qn_err_t bench_engine_step(bench_engine_t *engine, const bench_run_t *runs, uint32_t run_count,
                           const step_result_t **ret_result)
{
    qn_err_t err = bench_engine_submit(engine, runs, run_count);
    return err ? err : bench_engine_finish(engine, ret_result);
}

qn_err_t bench_engine_logits(bench_engine_t *engine, const float **ret_logits, uint32_t *ret_rows)
{
    const float *logits = executor_logits(engine->executor, ret_rows);
    size_t bytes = (size_t)*ret_rows * engine->limits.vocab * sizeof *logits;
    if (!engine->logits) {
        size_t most = (size_t)engine->limits.logit_rows * engine->limits.vocab * sizeof *logits;
        qn_err_t err = engine->backend->host_create(most, &engine->logits);
        if (err) return err;
    }
    engine->backend->download(engine->stream, engine->logits, logits, bytes);
    *ret_logits = engine->logits;
    return engine->backend->stream_wait(engine->stream);
}

/* ---- what it is ---- */

void bench_engine_info(const bench_engine_t *engine, bench_engine_info_t *ret_info)
{
    *ret_info = (bench_engine_info_t){.config = &engine->directory->config,
                                      .id = engine->directory->id,
                                      .directory = engine->directory->path,
                                      .kernels = &engine->kernels,
                                      .threads = engine->backend->stream_threads(engine->stream),
                                      .backend = engine->backend,
                                      .device_name = engine->device_name,
                                      .steps_in_flight = engine->backend->steps_in_flight,
                                      .weights_bytes = weights_bytes(engine->weights),
                                      .head_scalar = engine->model->outer.weights[QN_TENSOR_HEAD].scalar,
                                      .product_scalar = engine->model->layers[0].weights[QN_TENSOR_Q].scalar,
                                      .kv_scalar = engine->kv.scalar,
                                      .load_s = engine->load_s};
}

static bool is_expert(qn_tensor_role_t role)
{
    return role == QN_TENSOR_EXPERT_GATE || role == QN_TENSOR_EXPERT_UP || role == QN_TENSOR_EXPERT_DOWN;
}

/* Positions that a query at `position` sees in `layer`, itself included. */
static uint32_t seen(const qn_model_config_t *config, uint32_t layer, uint32_t position)
{
    uint32_t all = position + 1;
    return config->layer_slides[layer] && config->sliding_window < all ? config->sliding_window : all;
}

double bench_engine_decode_bytes(const bench_engine_t *engine, uint32_t batch, uint32_t context)
{
    const qn_model_config_t *config = &engine->directory->config;
    QN_ASSERT(weights_count(engine->weights) == qn_model_tensor_count(config)); /* and in the same order */
    double bytes = 0, width = (double)config->kv_heads * config->head_dim * qn_scalar_bytes(engine->kv.scalar);
    double reached = (double)batch * config->experts_per_token;
    double share = config->experts && reached < config->experts ? reached / config->experts : 1;
    for (size_t i = 0; i < qn_model_tensor_count(config); i++) {
        qn_model_tensor_t tensor;
        qn_model_tensor_at(config, i, &tensor);
        bool is_table =
            (tensor.role == QN_TENSOR_EMBEDDING && !config->tie_embeddings) || tensor.role == QN_TENSOR_POSITIONS;
        bytes += (double)weights_at(engine->weights, i)->bytes * (is_expert(tensor.role) ? share
                                                                  : is_table ? (double)batch / (double)tensor.shape[0]
                                                                             : 1);
    }
    for (uint32_t layer = 0; layer < config->layers; layer++)
        bytes += 2.0 * batch * width * seen(config, layer, context - 1);
    return bytes;
}

double bench_engine_prefill_operations(const bench_engine_t *engine, uint32_t tokens)
{
    const qn_model_config_t *config = &engine->directory->config;
    double operations = 2.0 * config->vocab * config->hidden;
    double share = config->experts ? (double)config->experts_per_token / config->experts : 1;
    for (size_t i = 0; i < qn_model_tensor_count(config); i++) {
        qn_model_tensor_t tensor;
        qn_model_tensor_at(config, i, &tensor);
        if (tensor.rank != 2 || tensor.layer == QN_TENSOR_NO_LAYER) continue;
        operations +=
            2.0 * tokens * (double)tensor.shape[0] * (double)tensor.shape[1] * (is_expert(tensor.role) ? share : 1);
    }
    for (uint32_t layer = 0; layer < config->layers; layer++)
        for (uint32_t t = 0; t < tokens; t++)
            operations += 4.0 * seen(config, layer, t) * config->heads * config->head_dim;
    return operations;
}
