/* What is this?      memory.plan: from what was asked, the model's files and the machine to the arithmetic of plan.c.
 * State owned:       plans whose model directory is being read, on the errands' thread.
 * Must never:        allocate what it plans; read a model's files in the loop.
 * Read next:         plan.h, kv_size.h, weights/weights.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "services/memory/methods.h"
#include "services/memory/plan.h"

#define REASONS_MAX 16
#define REASON_BYTES 256

typedef struct {
    errand_t errand;
    memory_service_t *service;
    qn_call_t call;
    qn_config_values_t values; /* the configuration, with what was asked for; strings are borrowed or below */
    char path[QN_PATH_MAX], strategy[64];
    char tier_names[PLAN_TIERS_MAX][65], holds[PLAN_TIERS_MAX + 1][64];
    memory_plan_request_t request;
    memory_plan_t plan;
    char model[256];
    bool device;
    qn_dtype_t kv_dtype;
    char reasons[REASONS_MAX][REASON_BYTES];
    uint32_t reason_count;
} planning_t;

#define SAY(planning, ...)                                                                        \
    do {                                                                                          \
        if ((planning)->reason_count < REASONS_MAX)                                               \
            snprintf((planning)->reasons[(planning)->reason_count++], REASON_BYTES, __VA_ARGS__); \
    } while (0)

/* ---- the model's part ---- */

/* What does not depend on the machine: blocks, lengths, what compute takes. */
static qn_err_t size_model(planning_t *planning, const model_directory_t *directory)
{
    memory_plan_request_t *request = &planning->request;
    const qn_model_config_t *config = &directory->config;
    bool bf16 = planning->kv_dtype == QN_DTYPE_BF16;
    uint64_t activations = kv_size_compute_bytes(config, planning->values.scheduler.max_step_tokens,
                                                 planning->values.scheduler.max_sequences);
    request->activations_bytes = planning->device ? activations : activations - kv_size_context_bytes();
    request->max_model_len = directory->max_model_len;
    if (request->sequence_tokens == 0) request->sequence_tokens = request->max_model_len;
    snprintf(planning->model, sizeof planning->model, "%s", directory->id);
    return qn_model_kv_block_bytes(config, request->block_tokens, bf16 ? 2 : 4, &request->block_bytes);
}

static qn_err_t run_planning(errand_t *errand)
{
    planning_t *planning = (planning_t *)errand;
    model_directory_t *directory = NULL;
    weights_t *weights = NULL;
    weights_format_t format;
    qn_err_t err = weights_format_choose(&planning->values, &format);
    if (!err) err = model_directory_read(&planning->values, &directory);
    if (!err && strcmp(planning->values.model.load_format, "dummy") == 0)
        err = weights_plan_dummy(&directory->config, planning->values.model.seed, &format, &weights);
    else if (!err)
        err = weights_plan(directory->path, &directory->config, &format, &weights);
    if (!err) planning->request.weights_bytes = weights_bytes(weights);
    if (!err) err = size_model(planning, directory);
    weights_destroy(&weights);
    model_directory_free(&directory);
    return err;
}

/* ---- the answer ---- */

static void explain(planning_t *planning)
{
    const memory_plan_request_t *request = &planning->request;
    const memory_plan_t *plan = &planning->plan;
    SAY(planning, "a block of %" PRIu32 " tokens takes %" PRIu64 " bytes over all layers", request->block_tokens,
        request->block_bytes);
    SAY(planning,
        "%" PRIu64 " bytes less %" PRIu64 " of weights and %" PRIu64 " of activations leave %" PRIu64 " for KV",
        request->device_bytes, request->weights_bytes, request->activations_bytes, plan->kv_bytes + plan->left_bytes);
    SAY(planning, "a sequence of %" PRIu32 " tokens takes %" PRIu64 " blocks: %" PRIu64 " of them at once",
        request->sequence_tokens,
        (request->sequence_tokens + (uint64_t)request->block_tokens - 1) / request->block_tokens, plan->sequences);
    if (request->tier_count)
        SAY(planning, "further places hold blocks that %s puts out of the first; a sequence runs from the first only",
            planning->strategy);
    SAY(planning, "%.250s", plan->reason);
}

static uint32_t clipped(uint64_t number) { return number < UINT32_MAX ? (uint32_t)number : UINT32_MAX; }

static uint32_t show_tiers(planning_t *planning, qn_planned_tier_t *rows)
{
    const memory_plan_request_t *request = &planning->request;
    const memory_plan_t *plan = &planning->plan;
    rows[0] = (qn_planned_tier_t){.name = qn_text(planning->device ? "device" : "host"),
                                  .bytes = request->device_bytes,
                                  .blocks = clipped(plan->block_count),
                                  .tokens = plan->block_count * request->block_tokens,
                                  .sequences = clipped(plan->sequences),
                                  .holds = qn_text("weights, activations, KV in use")};
    for (uint32_t i = 0; i < request->tier_count; i++)
        rows[i + 1] = (qn_planned_tier_t){.name = qn_text(planning->tier_names[i]),
                                          .bytes = request->tier_bytes[i],
                                          .blocks = clipped(plan->tier_blocks[i]),
                                          .tokens = plan->tier_blocks[i] * request->block_tokens,
                                          .sequences = clipped(plan->tier_sequences[i]),
                                          .holds = qn_text("cached KV")};
    return request->tier_count + 1;
}

static void fill_reply(planning_t *planning, qn_memory_plan_reply_t *reply, qn_planned_tier_t *tiers,
                       qn_text_t *reasons)
{
    const memory_plan_request_t *request = &planning->request;
    const memory_plan_t *plan = &planning->plan;
    *reply = (qn_memory_plan_reply_t){.fits = plan->fits,
                                      .missing_bytes = plan->missing_bytes,
                                      .reason = qn_text(plan->reason),
                                      .model = qn_text(planning->model),
                                      .device_bytes = request->device_bytes,
                                      .weights_bytes = request->weights_bytes,
                                      .activations_bytes = request->activations_bytes,
                                      .kv_bytes = plan->kv_bytes,
                                      .left_bytes = plan->left_bytes,
                                      .kv_dtype = planning->kv_dtype,
                                      .block_tokens = request->block_tokens,
                                      .block_bytes = request->block_bytes,
                                      .block_count = clipped(plan->block_count),
                                      .max_model_len = request->max_model_len,
                                      .longest_tokens = clipped(plan->longest_tokens),
                                      .sequence_tokens = request->sequence_tokens,
                                      .sequences = clipped(plan->sequences),
                                      .strategy = qn_text(planning->strategy),
                                      .tiers = tiers,
                                      .algorithm_reasoning = reasons};
    reply->share = region_table_backing(planning->service->regions, &reply->device);
    reply->tiers_count = show_tiers(planning, tiers);
    for (uint32_t i = 0; i < planning->reason_count; i++)
        reasons[i] = qn_text(planning->reasons[i]);
    reply->algorithm_reasoning_count = planning->reason_count;
}

static void done_planning(errand_t *errand)
{
    planning_t *planning = (planning_t *)errand;
    qn_memory_plan_reply_t reply;
    qn_planned_tier_t tiers[PLAN_TIERS_MAX + 1];
    qn_text_t reasons[REASONS_MAX];
    if (errand->failure.code) {
        uint16_t status = errand->failure.code == QN_ERR_NOT_FOUND   ? 404
                          : errand->failure.code == QN_ERR_CANCELLED ? 503
                                                                     : 422;
        qn_call_fail(&planning->call, status, "model_path", "%s", errand->failure.text);
    } else {
        memory_plan_decide(&planning->request, &planning->plan);
        explain(planning);
        fill_reply(planning, &reply, tiers, reasons);
        qn_call_finish(&planning->call, &reply);
    }
    free(planning);
}

/* ---- the question ---- */

/* Memory that there would be with nothing of this engine in it. */
static qn_err_t find_device_bytes(const memory_service_t *service, uint64_t *ret_bytes)
{
    int32_t device;
    qn_share_t share = region_table_backing(service->regions, &device);
    qn_err_t err = qn_region_free_bytes(share, device, ret_bytes);
    for (size_t i = 0; !err && i < region_table_count(service->regions); i++)
        *ret_bytes += qn_region_bytes(region_table_at(service->regions, i));
    return err;
}

/* One that is built in, with or without "_eviction" behind its name; none: the one in force. */
static bool read_strategy(const qn_memory_plan_t *asked, planning_t *planning)
{
    block_pool_stats_t stats;
    qn_policy_catalogue_t catalogue = eviction_catalogue("");
    block_pool_stats(planning->service->model.pool, &stats);
    snprintf(planning->strategy, sizeof planning->strategy, "%.63s",
             asked->strategy.bytes ? asked->strategy.data : stats.policy);
    if (!asked->strategy.bytes) return true;
    char *suffix = strstr(planning->strategy, "_eviction");
    if (suffix && strcmp(suffix, "_eviction") == 0) *suffix = '\0';
    for (size_t i = 0; i < catalogue.builtin_count; i++)
        if (strcmp(catalogue.builtin[i]->name, planning->strategy) == 0) return true;
    return false;
}

static qn_call_outcome_t read_sizes(const qn_call_t *call, const qn_memory_plan_t *asked, planning_t *planning)
{
    memory_plan_request_t *request = &planning->request;
    bool bf16 =
        asked->kv_dtype.bytes ? strcmp(asked->kv_dtype.data, "bf16") == 0 : qn_config_kv_is_bf16(&planning->values);
    if (asked->kv_dtype.bytes && !bf16 && strcmp(asked->kv_dtype.data, "f32") != 0)
        return qn_call_fail(call, 400, "kv_dtype", "kv_dtype: f32 or bf16");
    if (asked->kv_bytes > QN_REGION_BYTES_MAX || asked->device_bytes > QN_REGION_BYTES_MAX)
        return qn_call_fail(call, 400, asked->kv_bytes > QN_REGION_BYTES_MAX ? "kv_bytes" : "device_bytes",
                            "more than 64 TiB are no size of memory");
    planning->kv_dtype = bf16 ? QN_DTYPE_BF16 : QN_DTYPE_F32;
    request->kv_bytes = asked->kv_bytes;
    request->block_tokens = asked->block_tokens ? asked->block_tokens : (uint32_t)planning->values.memory.block_tokens;
    request->sequence_tokens = asked->sequence_tokens;
    request->tier_count = asked->tiers_count;
    for (uint32_t i = 0; i < asked->tiers_count; i++) {
        if (asked->tiers[i].bytes > QN_REGION_BYTES_MAX)
            return qn_call_fail(call, 400, "tiers", "tiers[%u].bytes: more than 64 TiB are no size of memory", i);
        request->tier_bytes[i] = asked->tiers[i].bytes;
        snprintf(planning->tier_names[i], sizeof planning->tier_names[i], "%s", asked->tiers[i].name.data);
    }
    return QN_CALL_DONE;
}

/* The served model is known: no file has to be read. */
static qn_err_t plan_served(planning_t *planning, uint32_t max_model_len)
{
    const loader_result_t *model = &planning->service->model;
    model_directory_t directory = *model->directory;
    if (max_model_len) directory.max_model_len = max_model_len;
    planning->request.weights_bytes = weights_bytes(model->weights);
    return size_model(planning, &directory);
}

qn_call_outcome_t memory_method_plan(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    memory_service_t *service = state;
    const qn_memory_plan_t *asked = message;
    int32_t device;
    if (!service->loaded) return memory_still_loading(call);
    if (asked->model_path.bytes >= QN_PATH_MAX ||
        (asked->model_path.bytes && memchr(asked->model_path.data, '\0', asked->model_path.bytes)))
        return qn_call_fail(call, 400, "model_path", "model_path: no path has so many bytes, or a NUL");
    planning_t *planning = calloc(1, sizeof *planning);
    if (!planning) return qn_call_fail(call, 507, NULL, "memory has no memory for it");
    planning->errand = (errand_t){.run = run_planning, .done = done_planning};
    planning->service = service;
    planning->call = *call;
    planning->values = *service->config;
    planning->device = region_table_backing(service->regions, &device) != QN_SHARE_MEMFD;
    planning->request.device_bytes = asked->device_bytes;
    qn_call_outcome_t outcome = read_sizes(call, asked, planning);
    if (outcome == QN_CALL_DONE && !read_strategy(asked, planning))
        outcome =
            qn_call_fail(call, 400, "strategy", "strategy: there is no eviction policy \"%.64s\"", planning->strategy);
    if (outcome == QN_CALL_DONE && !asked->device_bytes && find_device_bytes(service, &planning->request.device_bytes))
        outcome = qn_call_fail(call, 500, "device_bytes", "how much there is cannot be found out: %s", qn_err_text());
    if (outcome == QN_CALL_FAILED) {
        free(planning);
        return outcome;
    }
    planning->values.model.max_model_len = asked->max_model_len;
    if (asked->model_path.bytes) {
        snprintf(planning->path, sizeof planning->path, "%s", asked->model_path.data);
        planning->values.model.path = planning->path;
        planning->values.model.id = "";
        if (errands_add(service->errands, &planning->errand)) return QN_CALL_LATER;
        free(planning);
        return qn_call_fail(call, 429, NULL, "too much is being done; try again");
    }
    if (plan_served(planning, asked->max_model_len)) qn_failure_keep(&planning->errand.failure, QN_ERR_INVALID);
    done_planning(&planning->errand);
    return QN_CALL_LATER;
}
