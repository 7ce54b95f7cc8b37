/* What is this?      The translation between messages and compute's nouns; the only file that knows both.
 * State owned:       none; it fills in compute_service_t.
 * Must never:        decide when to ask memory (service.c) or whether a plan makes sense (slot_book.c).
 * Read next:         schemas/step_plan.fbs, schemas/model_description.fbs, slot_book.h. */
#include "services/compute/handlers.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/watch/log.h"

static const struct {
    const char *name;
    qn_region_kind_t kind;
} SCRATCH[COMPUTE_SCRATCH_COUNT] = {
    [COMPUTE_ACTIVATIONS] = {"compute.activations", QN_REGION_KIND_ACTIVATIONS},
    [COMPUTE_STATE] = {"compute.state", QN_REGION_KIND_STATE},
    [COMPUTE_STEP_IO] = {"compute.step_io", QN_REGION_KIND_STEP_IO},
};

#define WORKSPACE "workspace" /* memory's, for tensors that leave */

static void record_failure(compute_service_t *service, qn_err_t err, bool final)
{
    qn_failure_keep(&service->failure, err);
    service->failure_is_final = final;
}

static bool is_memory(const compute_service_t *service, qn_peer_t from) { return qn_peer_equal(from, service->memory); }

/* ---- memory: the model ---- */

static bool to_scalar(qn_dtype_t dtype, qn_scalar_t *ret_scalar)
{
    switch (dtype) {
    case QN_DTYPE_F32: *ret_scalar = QN_SCALAR_F32; return true;
    case QN_DTYPE_BF16: *ret_scalar = QN_SCALAR_BF16; return true;
    case QN_DTYPE_I8: *ret_scalar = QN_SCALAR_INT8; return true;
    case QN_DTYPE_I4: *ret_scalar = QN_SCALAR_INT4; return true;
    default: return false;
    }
}

static qn_err_t bind_tensors(compute_service_t *service, const qn_model_config_t *config,
                             const qn_model_description_t *description)
{
    qn_arena_t arena;
    qn_arena_init(&arena, 0);
    model_tensor_t *tensors = qn_arena_zalloc(&arena, (size_t)description->tensors_count + 1, sizeof *tensors);
    for (uint32_t i = 0; i < description->tensors_count; i++) {
        const qn_tensor_t *from = &description->tensors[i];
        model_tensor_t *to = &tensors[i];
        *to = (model_tensor_t){.name = qn_arena_strndup(&arena, from->name.data, from->name.bytes),
                               .shape = from->shape,
                               .rank = from->shape_count,
                               .offset = from->offset,
                               .bytes = from->bytes,
                               .group = from->group,
                               .layout = from->layout == QN_TENSOR_LAYOUT_PANELS ? QN_LAYOUT_PANELS : QN_LAYOUT_ROWS};
        to->supported = to_scalar(from->dtype, &to->scalar);
    }
    qn_err_t err = model_bind(config, tensors, description->tensors_count, qn_region_pointer(service->weights),
                              qn_region_bytes(service->weights), &service->model);
    qn_arena_fini(&arena);
    return err;
}

static qn_err_t describe_kv(compute_service_t *service, const qn_model_config_t *config,
                            const qn_model_description_t *description)
{
    qn_scalar_t scalar;
    uint64_t block_bytes, bytes;
    if (!to_scalar(description->kv_dtype, &scalar) || scalar > QN_SCALAR_BF16)
        return qn_fail(QN_ERR_UNSUPPORTED, "memory's KV cache has an unknown number format; use memory.kv_dtype f32 "
                                           "or bf16");
    qn_err_t err = qn_model_kv_block_bytes(config, description->block_tokens, qn_scalar_bytes(scalar), &block_bytes);
    if (err) return err;
    if (__builtin_mul_overflow(block_bytes, description->block_count, &bytes) || description->block_count == 0 ||
        bytes > qn_region_bytes(service->kv))
        return qn_fail(QN_ERR_INVALID,
                       "memory's KV region of %" PRIu64 " bytes does not hold %" PRIu32 " blocks of %" PRIu64,
                       qn_region_bytes(service->kv), description->block_count, block_bytes);
    service->kv_layout = (qn_kv_t){.data = qn_region_pointer(service->kv),
                                   .scalar = scalar,
                                   .layers = config->layers,
                                   .blocks = description->block_count,
                                   .block_tokens = description->block_tokens,
                                   .kv_heads = config->kv_heads,
                                   .head_dim = config->head_dim};
    return QN_OK;
}

static qn_err_t measure(compute_service_t *service, const qn_model_config_t *config,
                        const qn_model_description_t *description)
{
    scratch_sizes_t sizes;
    service->limits = step_limits_make((uint32_t)service->config->scheduler.max_sequences,
                                       (uint32_t)service->config->scheduler.max_step_tokens, description->max_model_len,
                                       description->block_tokens, description->block_count, config->vocab);
    step_limits_t *limits = &service->limits;
    const qn_weight_t *weights = &service->model->layers[0].weights[QN_TENSOR_OUTPUT];
    limits->probes = (qn_probe_model_t){.layers = config->layers,
                                        .heads = config->heads,
                                        .kv_heads = config->kv_heads,
                                        .head_dim = config->head_dim,
                                        .hidden = config->hidden,
                                        .vocab = config->vocab};
    limits->logit_rows = step_smaller(limits->max_step_tokens, service->backend->logit_rows);
    qn_err_t err =
        service->backend->choose_activations(service->config->compute.activations, weights, &limits->activations);
    if (!err) err = scratch_measure(config, &service->limits, &sizes);
    if (err) return err;
    service->scratch_bytes[COMPUTE_ACTIVATIONS] = sizes.activations_bytes;
    service->scratch_bytes[COMPUTE_STATE] = sizes.state_bytes;
    service->scratch_bytes[COMPUTE_STEP_IO] = sizes.step_io_bytes;
    return QN_OK;
}

/* What is wrong with the model stays wrong; what is wrong with a region may be a memory that has just restarted. */
static void take_description(compute_service_t *service, const qn_model_description_t *description)
{
    qn_model_config_t config;
    qn_err_t err = qn_model_config_parse(description->config_json.data ? description->config_json.data : "",
                                         description->config_json.bytes, NULL, 0, NULL, &config);
    if (err) {
        record_failure(service, err, true);
        return;
    }
    if (!description->weights || !description->kv)
        err = qn_fail(QN_ERR_PEER, "memory described the model %.*s without its regions", (int)description->model.bytes,
                      description->model.data);
    if (!err) err = qn_region_import(description->weights, false, &service->weights);
    if (!err) err = qn_region_import(description->kv, true, &service->kv);
    if (err) {
        record_failure(service, err, false);
        return;
    }
    err = bind_tensors(service, &config, description);
    if (!err) err = describe_kv(service, &config, description);
    if (!err) err = measure(service, &config, description);
    if (err) {
        record_failure(service, err, true);
        return;
    }
    service->weights_id = qn_region_id(service->weights);
    service->kv_id = qn_region_id(service->kv);
    service->phase = COMPUTE_DESCRIBED;
}

/* Memory sends it again when it changes: then everything built on the old one ends first. */
static void handle_model_description(void *state, qn_peer_t from, const void *message)
{
    compute_service_t *service = state;
    const qn_model_description_t *description = message;
    if (!is_memory(service, from) || service->phase == COMPUTE_ALONE) return;
    if (service->phase != COMPUTE_ASKED) {
        bool same = description->weights && description->kv && description->weights->id == service->weights_id &&
                    description->kv->id == service->kv_id;
        if (same) return;
        compute_end_session(service);
        service->memory = from;
    }
    take_description(service, description);
}

qn_send_outcome_t compute_send_describe(compute_service_t *service)
{
    return qn_daemon_send(service->daemon, service->memory, QN_MESSAGE_DESCRIBE,
                          &(qn_describe_t){.want_tensors = true});
}

/* ---- memory: the regions ---- */

qn_send_outcome_t compute_send_reserves(compute_service_t *service)
{
    for (unsigned i = 0; i < COMPUTE_SCRATCH_COUNT; i++) {
        qn_send_outcome_t outcome = qn_daemon_send(service->daemon, service->memory, QN_MESSAGE_RESERVE,
                                                   &(qn_reserve_t){.kind = SCRATCH[i].kind,
                                                                   .bytes = service->scratch_bytes[i],
                                                                   .name = qn_text(SCRATCH[i].name)});
        if (outcome != QN_SEND_OK) return outcome;
    }
    if (service->config->memory.workspace_bytes == 0) return QN_SEND_OK;
    return qn_daemon_send(service->daemon, service->memory, QN_MESSAGE_RESERVE,
                          &(qn_reserve_t){.kind = QN_REGION_KIND_TAP, .bytes = 1, .name = qn_text(WORKSPACE)});
}

static bool is_named(const qn_region_t *region, const char *name)
{
    return region->name.bytes == strlen(name) && memcmp(region->name.data, name, region->name.bytes) == 0;
}

static void handle_reserved(void *state, qn_peer_t from, const void *message)
{
    compute_service_t *service = state;
    const qn_region_t *region = ((const qn_reserved_t *)message)->region;
    if (is_memory(service, from) && service->phase == COMPUTE_RUNNING && tasks_take_region(service, region)) return;
    if (!is_memory(service, from) || service->phase != COMPUTE_RESERVING) return;
    if (is_named(region, WORKSPACE) && !service->workspace) {
        qn_err_t err = qn_region_import(region, true, &service->workspace);
        if (err) record_failure(service, err, false);
        return;
    }
    for (unsigned i = 0; i < COMPUTE_SCRATCH_COUNT; i++) {
        if (!is_named(region, SCRATCH[i].name)) continue;
        if (service->scratch[i]) return;
        qn_err_t err = qn_region_import(region, true, &service->scratch[i]);
        if (!err && qn_region_bytes(service->scratch[i]) < service->scratch_bytes[i])
            err = qn_fail(QN_ERR_PEER, "memory reserved %" PRIu64 " bytes for %s, asked were %" PRIu64,
                          qn_region_bytes(service->scratch[i]), SCRATCH[i].name, service->scratch_bytes[i]);
        if (err) record_failure(service, err, false);
        return;
    }
}

/* Memory refuses a Reserve when it has no room: there is nothing compute could do without it. */
static void handle_refusal(void *state, qn_peer_t from, const void *message)
{
    compute_service_t *service = state;
    const qn_refusal_t *refusal = message;
    if (is_memory(service, from) && service->phase == COMPUTE_RUNNING && tasks_take_refusal(service, refusal)) return;
    qn_err_t err =
        qn_fail(QN_ERR_PEER, "%s refused a %.*s: %.*s", from.service == QN_SERVICE_MEMORY ? "memory" : "a peer",
                (int)refusal->refused_type.bytes, refusal->refused_type.data ? refusal->refused_type.data : "",
                (int)refusal->text.bytes, refusal->text.data ? refusal->text.data : "");
    qn_log_warning("%s", qn_err_text());
    if (is_memory(service, from) && service->phase != COMPUTE_RUNNING)
        record_failure(service, err, refusal->status == 507);
}

static void handle_range(void *state, qn_peer_t from, const void *message)
{
    compute_service_t *service = state;
    if (is_memory(service, from) && service->phase == COMPUTE_RUNNING && service->workspace)
        tasks_take_range(service, message);
}

/* ---- the scheduler: plans ---- */

static void copy_sampling(const qn_sampling_t *from, step_sampling_t *to)
{
    *to = (step_sampling_t){.seed = from->seed,
                            .temperature = from->temperature,
                            .top_p = from->top_p,
                            .min_p = from->min_p,
                            .repetition_penalty = from->repetition_penalty,
                            .presence_penalty = from->presence_penalty,
                            .frequency_penalty = from->frequency_penalty,
                            .top_k = from->top_k,
                            .min_tokens = from->min_tokens,
                            .top_logprobs = from->top_logprobs,
                            .logprobs = from->logprobs,
                            .prompt_logprobs = from->prompt_logprobs};
}

static bool names_slot(const qn_step_plan_t *plan, uint32_t slot)
{
    for (uint32_t i = 0; i < plan->allow_only_count; i++) {
        if (plan->allow_only[i] == slot) return true;
    }
    return false;
}

static void copy_lists(const qn_step_plan_t *plan, step_set_t *set)
{
    for (uint32_t i = 0; i < plan->lists_count; i++) {
        const qn_slot_lists_t *lists = &plan->lists[i];
        if (lists->slot != set->slot) continue;
        set->logprob_offset = lists->logprob_offset;
        set->logprob_count = lists->logprob_count;
        set->bad_offset = lists->bad_offset;
        set->bad_count = lists->bad_count;
    }
}

static void *copy_array(qn_arena_t *arena, const void *from, size_t count, size_t bytes)
{
    void *to = qn_arena_alloc(arena, (count + 1) * bytes, sizeof(uint64_t));
    if (count) memcpy(to, from, count * bytes);
    return to;
}

/* Gives the sets their probes. false: one lies outside the plan's arrays, or is of a slot that is not set. */
static bool copy_probes(qn_arena_t *arena, const qn_step_plan_t *plan, const step_set_t *sets)
{
    const qn_mask_rule_t *masks = copy_array(arena, plan->masks, plan->masks_count, sizeof *masks);
    const qn_tap_point_t *taps = copy_array(arena, plan->taps, plan->taps_count, sizeof *taps);
    const float *values = copy_array(arena, plan->tap_values, plan->tap_values_count, sizeof *values);
    for (uint32_t i = 0; i < plan->probes_count; i++) {
        const qn_slot_probe_t *from = &plan->probes[i];
        step_set_t *set = NULL;
        for (uint32_t s = 0; s < plan->sets_count; s++)
            if (sets[s].slot == from->slot) set = (step_set_t *)(uintptr_t)&sets[s];
        bool inside = (uint64_t)from->mask_offset + from->mask_count <= plan->masks_count &&
                      (uint64_t)from->tap_offset + from->tap_count <= plan->taps_count &&
                      (uint64_t)from->value_offset + from->value_count <= plan->tap_values_count;
        if (!set || !inside) return false;
        set->probe = (qn_probe_t){.masks = masks + from->mask_offset,
                                  .mask_count = from->mask_count,
                                  .taps = taps + from->tap_offset,
                                  .tap_count = from->tap_count,
                                  .values = values + from->value_offset,
                                  .value_count = from->value_count,
                                  .workspace = from->workspace,
                                  .workspace_epoch = from->workspace_epoch,
                                  .workspace_until_ns = from->workspace_until_ns};
    }
    return true;
}

static const step_set_t *copy_sets(qn_arena_t *arena, const qn_step_plan_t *plan)
{
    step_set_t *sets = qn_arena_zalloc(arena, plan->sets_count + 1, sizeof *sets);
    for (uint32_t i = 0; i < plan->sets_count; i++) {
        const qn_slot_set_t *from = &plan->sets[i];
        sets[i] = (step_set_t){.request = from->request,
                               .slot = from->slot,
                               .prompt_tokens = from->prompt_tokens,
                               .stop_offset = from->stop_offset,
                               .stop_count = from->stop_count,
                               .bias_offset = from->bias_offset,
                               .bias_count = from->bias_count,
                               .allow_only = names_slot(plan, from->slot),
                               .history_offset = from->history_offset,
                               .history_count = from->history_count};
        copy_sampling(&from->sampling, &sets[i].sampling);
        copy_lists(plan, &sets[i]);
    }
    return sets;
}

static const step_run_t *copy_runs(qn_arena_t *arena, const qn_step_plan_t *plan)
{
    step_run_t *runs = qn_arena_zalloc(arena, plan->runs_count + 1, sizeof *runs);
    for (uint32_t i = 0; i < plan->runs_count; i++) {
        const qn_slot_run_t *from = &plan->runs[i];
        runs[i] = (step_run_t){.slot = from->slot,
                               .position = from->position,
                               .tokens = from->token_count,
                               .ids_offset = from->ids_offset,
                               .from_slot = from->from_slot,
                               .sample = from->sample};
    }
    return runs;
}

static const uint32_t *copy_ids(qn_arena_t *arena, const uint32_t *from, uint32_t count)
{
    uint32_t *ids = qn_arena_alloc(arena, ((size_t)count + 1) * sizeof *ids, sizeof *ids);
    if (count) memcpy(ids, from, count * sizeof *ids);
    return ids;
}

static const qn_table_entry_t *copy_blocks(qn_arena_t *arena, const qn_step_plan_t *plan)
{
    qn_table_entry_t *blocks = qn_arena_zalloc(arena, (size_t)plan->blocks_count + 1, sizeof *blocks);
    for (uint32_t i = 0; i < plan->blocks_count; i++)
        blocks[i] = (qn_table_entry_t){.slot = plan->blocks[i].slot,
                                       .index = plan->blocks[i].index,
                                       .block = plan->blocks[i].block};
    return blocks;
}

static const qn_copy_t *copy_copies(qn_arena_t *arena, const qn_step_plan_t *plan)
{
    qn_copy_t *copies = qn_arena_zalloc(arena, (size_t)plan->copies_count + 1, sizeof *copies);
    for (uint32_t i = 0; i < plan->copies_count; i++)
        copies[i] = (qn_copy_t){.from = plan->copies[i].from, .to = plan->copies[i].to};
    return copies;
}

static const qn_bias_entry_t *copy_bias(qn_arena_t *arena, const qn_step_plan_t *plan)
{
    qn_bias_entry_t *bias = qn_arena_zalloc(arena, (size_t)plan->bias_count + 1, sizeof *bias);
    for (uint32_t i = 0; i < plan->bias_count; i++)
        bias[i] = (qn_bias_entry_t){.id = plan->bias[i].id, .bias = plan->bias[i].bias};
    return bias;
}

static void copy_plan(qn_arena_t *arena, const qn_step_plan_t *from, step_plan_t *to)
{
    *to = (step_plan_t){
        .step = from->step,
        .opens = from->opens,
        .retire = copy_ids(arena, from->retire, from->retire_count),
        .retire_count = from->retire_count,
        .sets = copy_sets(arena, from),
        .set_count = from->sets_count,
        .blocks = copy_blocks(arena, from),
        .block_count = from->blocks_count,
        .copies = copy_copies(arena, from),
        .copy_count = from->copies_count,
        .runs = copy_runs(arena, from),
        .run_count = from->runs_count,
        .ids = copy_ids(arena, from->ids, from->ids_count),
        .id_count = from->ids_count,
        .stop_ids = copy_ids(arena, from->stop_ids, from->stop_ids_count),
        .stop_id_count = from->stop_ids_count,
        .bias = copy_bias(arena, from),
        .bias_count = from->bias_count,
        .list_ids = copy_ids(arena, from->list_ids, from->list_ids_count),
        .list_id_count = from->list_ids_count,
    };
}

static void refuse_plan(compute_service_t *service, qn_peer_t from, const qn_step_plan_t *plan, uint16_t status,
                        const char *param, const char *why)
{
    char text[QN_ERR_TEXT_MAX];
    snprintf(text, sizeof text, "step %" PRIu64 ": %.400s", plan->step, why);
    service->plans_refused++;
    qn_log_warning("StepPlan refused: %s", text);
    qn_daemon_refuse(service->daemon, from, plan->head.request, status, param, text);
}

static void meet_scheduler(compute_service_t *service, qn_peer_t from)
{
    if (qn_peer_equal(service->scheduler, from)) return;
    compute_forget_scheduler(service);
    service->scheduler = from;
}

/* The first plan of a session: what an earlier one has not begun is dropped, what runs is nobody's, slots are empty. */
static void open_session(compute_service_t *service, uint32_t session)
{
    service->owner++;
    service->plan_session = session;
    step_queue_discard(service->runtime->queue);
    slot_book_clear(service->runtime->book);
}

/* A plan builds on the slots of its session and on the blocks of one life of memory. */
static bool check_ground(compute_service_t *service, qn_peer_t from, const qn_step_plan_t *plan)
{
    char why[QN_REASON_MAX];
    if (plan->memory_epoch != service->memory.epoch) {
        snprintf(why, sizeof why, "it is for memory epoch %" PRIu32 ", and compute runs on epoch %" PRIu32,
                 plan->memory_epoch, service->memory.epoch);
        refuse_plan(service, from, plan, 503, "memory_epoch", why);
        return false;
    }
    meet_scheduler(service, from);
    if (plan->opens || (plan->session == service->plan_session && plan->session != 0)) return true;
    snprintf(why, sizeof why, "it is of session %" PRIu32 ", and session %" PRIu32 " is open here; open a new one",
             plan->session, service->plan_session);
    refuse_plan(service, from, plan, 503, "session", why);
    return false;
}

static void handle_step_plan(void *state, qn_peer_t from, const void *message)
{
    compute_service_t *service = state;
    const qn_step_plan_t *plan = message;
    if (!qn_peer_is_scheduler(from)) {
        refuse_plan(service, from, plan, 403, NULL, "only a scheduler plans steps");
        return;
    }
    if (from.epoch <= service->gone_scheduler) {
        refuse_plan(service, from, plan, 503, NULL, "this scheduler is dead, as memory knows");
        return;
    }
    if (service->phase != COMPUTE_RUNNING) {
        refuse_plan(service, from, plan, 503, NULL, "compute has no model yet; wait until it is ready");
        return;
    }
    if (!check_ground(service, from, plan)) return;
    if (plan->opens) open_session(service, plan->session);
    step_job_t *job = step_queue_vacant(service->runtime->queue);
    if (!job) {
        refuse_plan(service, from, plan, 429, NULL, "plans wait already; send the next one after a StepResult");
        return;
    }
    copy_plan(&job->arena, plan, &job->plan);
    job->owner = service->owner;
    const char *param = NULL;
    if (plan->probes_count && !copy_probes(&job->arena, plan, job->plan.sets))
        refuse_plan(service, from, plan, 400, "probes",
                    "a probe outside the plan's arrays, or of a slot that is not set");
    else if (slot_book_admit(service->runtime->book, &job->plan, &param) != QN_OK)
        refuse_plan(service, from, plan, 400, param, qn_err_text());
    else
        step_queue_submit(service->runtime->queue);
}

/* Memory is about to write blocks: whoever runs here was planned before. The answer waits for the steps that are here; of a
 * living scheduler they end, and no plan of it names the blocks in question. */
static void handle_settle(void *state, qn_peer_t from, const void *message)
{
    compute_service_t *service = state;
    const qn_settle_t *settle = message;
    if (from.service != QN_SERVICE_MEMORY) return;
    if (settle->gone_scheduler > service->gone_scheduler) service->gone_scheduler = settle->gone_scheduler;
    if (service->scheduler.epoch && service->scheduler.epoch <= service->gone_scheduler)
        compute_forget_scheduler(service);
    for (unsigned i = 0; i < COMPUTE_SETTLES_MAX; i++) {
        if (service->settling[i].memory.epoch != 0) continue;
        service->settling[i].memory = from;
        service->settling[i].request = settle->head.request;
        service->settling[i].jobs = service->runtime ? step_queue_submitted(service->runtime->queue) : 0;
        return;
    }
    qn_daemon_refuse(service->daemon, from, settle->head.request, 429, NULL, "too many wait for steps to end");
}

void compute_answer_settles(compute_service_t *service)
{
    for (unsigned i = 0; i < COMPUTE_SETTLES_MAX; i++) {
        bool over = !service->runtime || step_queue_released(service->runtime->queue) >= service->settling[i].jobs;
        if (service->settling[i].memory.epoch == 0 || !over) continue;
        qn_settled_t reply = {.head.request = service->settling[i].request};
        if (qn_daemon_send(service->daemon, service->settling[i].memory, QN_MESSAGE_SETTLED, &reply) != QN_SEND_FULL)
            service->settling[i].memory = (qn_peer_t){0};
    }
}

static void handle_step_query(void *state, qn_peer_t from, const void *message)
{
    compute_service_t *service = state;
    const qn_step_query_t *query = message;
    bool held = service->phase == COMPUTE_RUNNING && qn_peer_equal(from, service->scheduler) &&
                query->session == service->plan_session &&
                step_queue_holds(service->runtime->queue, service->owner, query->step);
    qn_step_status_t reply = {.head.request = query->head.request,
                              .session = query->session,
                              .step = query->step,
                              .held = held};
    qn_daemon_send(service->daemon, from, QN_MESSAGE_STEP_STATUS, &reply); /* else it is asked again */
}

void compute_forget_scheduler(compute_service_t *service)
{
    service->scheduler = (qn_peer_t){0};
    service->owner++;
    service->plan_session = 0;
    if (!service->runtime) return;
    step_queue_discard(service->runtime->queue);
    slot_book_clear(service->runtime->book);
}

/* ---- the scheduler: results ---- */

static const qn_step_token_t *wire_tokens(qn_arena_t *arena, const step_result_t *result)
{
    qn_step_token_t *tokens = qn_arena_zalloc(arena, result->token_count + 1, sizeof *tokens);
    for (uint32_t i = 0; i < result->token_count; i++) {
        const step_token_t *from = &result->tokens[i];
        tokens[i] = (qn_step_token_t){.request = from->request,
                                      .slot = from->slot,
                                      .position = from->position,
                                      .id = from->id,
                                      .logprob = from->logprob,
                                      .top_count = (uint8_t)from->top_count,
                                      .stopped = from->stopped,
                                      .masked = from->masked};
    }
    return tokens;
}

static const qn_prompt_token_t *wire_prompt(qn_arena_t *arena, const step_result_t *result)
{
    qn_prompt_token_t *tokens = qn_arena_zalloc(arena, result->prompt_count + 1, sizeof *tokens);
    for (uint32_t i = 0; i < result->prompt_count; i++) {
        const step_prompt_token_t *from = &result->prompt[i];
        tokens[i] = (qn_prompt_token_t){.request = from->request,
                                        .position = from->position,
                                        .id = from->id,
                                        .logprob = from->logprob,
                                        .top_count = (uint8_t)from->top_count};
    }
    return tokens;
}

static const qn_token_logprob_t *wire_top(qn_arena_t *arena, const step_result_t *result)
{
    qn_token_logprob_t *top = qn_arena_zalloc(arena, result->top_count + 1, sizeof *top);
    for (uint32_t i = 0; i < result->top_count; i++)
        top[i] = (qn_token_logprob_t){.id = result->top[i].id, .logprob = result->top[i].logprob};
    return top;
}

static const qn_sequence_read_t *wire_reads(qn_arena_t *arena, const step_result_t *result)
{
    qn_sequence_read_t *reads = qn_arena_zalloc(arena, result->read_count + 1, sizeof *reads);
    for (uint32_t i = 0; i < result->read_count; i++)
        reads[i] = (qn_sequence_read_t){.request = result->reads[i].request,
                                        .read = result->reads[i].read,
                                        .all = result->reads[i].all};
    return reads;
}

qn_send_outcome_t compute_send_result(compute_service_t *service, const step_job_t *job)
{
    const step_result_t *result = &job->result;
    qn_arena_reset(&service->sending);
    return qn_daemon_send(service->daemon, service->scheduler, QN_MESSAGE_STEP_RESULT,
                          &(qn_step_result_t){.step = result->step,
                                              .session = service->plan_session,
                                              .begin_ns = result->begin_ns,
                                              .end_ns = result->end_ns,
                                              .tokens = wire_tokens(&service->sending, result),
                                              .tokens_count = result->token_count,
                                              .prompt = wire_prompt(&service->sending, result),
                                              .prompt_count = result->prompt_count,
                                              .top = wire_top(&service->sending, result),
                                              .top_count = result->top_count,
                                              .reads = wire_reads(&service->sending, result),
                                              .reads_count = result->read_count});
}

const qn_handler_t compute_handlers[] = {
    {QN_MESSAGE_MODEL_DESCRIPTION, handle_model_description},
    {QN_MESSAGE_RESERVED, handle_reserved},
    {QN_MESSAGE_WORKSPACE_RANGE, handle_range},
    {QN_MESSAGE_STEP_PLAN, handle_step_plan},
    {QN_MESSAGE_STEP_QUERY, handle_step_query},
    {QN_MESSAGE_REFUSAL, handle_refusal},
    {QN_MESSAGE_SETTLE, handle_settle},
    {QN_MESSAGE_NONE, NULL},
};
