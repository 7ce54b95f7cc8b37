/* What is this?      Memory's methods: what it holds, for people.
 * State owned:       none; the service's.
 * Must never:        decide which block goes where (block_pool.c).
 * Read next:         common/daemon/calls.h, schemas/memory/, block_pool.h, region_table.h. */
#include "common/policy/policy_show.h"
#include "services/memory/methods.h"

qn_call_outcome_t memory_still_loading(const qn_call_t *call)
{
    return qn_call_fail(call, 503, NULL, "memory is still loading the model; try again");
}

static qn_call_outcome_t method_usage(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)message;
    const memory_service_t *service = state;
    qn_memory_usage_reply_t *reply = ret_reply;
    uint64_t *bytes[] = {
        [QN_REGION_KIND_WEIGHTS] = &reply->weights_bytes,
        [QN_REGION_KIND_KV] = &reply->kv_bytes,
        [QN_REGION_KIND_ACTIVATIONS] = &reply->activations_bytes,
        [QN_REGION_KIND_STEP_IO] = &reply->step_io_bytes,
        [QN_REGION_KIND_STATE] = &reply->state_bytes,
        [QN_REGION_KIND_TAP] = &reply->tap_bytes,
    };
    block_pool_stats_t stats;
    if (!service->loaded) return memory_still_loading(call);
    for (size_t kind = 0; kind < sizeof bytes / sizeof bytes[0]; kind++) {
        *bytes[kind] = region_table_bytes(service->regions, (qn_region_kind_t)kind);
        reply->total_bytes += *bytes[kind];
    }
    block_pool_stats(service->model.pool, &stats);
    reply->peak_bytes = region_table_peak(service->regions);
    reply->block_bytes = service->model.block_bytes;
    reply->block_tokens = stats.block_tokens;
    reply->total_blocks = stats.total_blocks;
    reply->used_blocks = stats.held_blocks;
    reply->cached_blocks = stats.cached_blocks;
    reply->free_blocks = stats.free_blocks;
    reply->sequences = stats.sequences;
    reply->share = region_table_backing(service->regions, &reply->device);
    return QN_CALL_DONE;
}

static qn_call_outcome_t method_regions(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)message;
    const memory_service_t *service = state;
    qn_memory_regions_reply_t *reply = ret_reply;
    size_t count = region_table_count(service->regions);
    qn_shown_region_t *rows = qn_arena_zalloc(call->arena, count + 1, sizeof *rows);
    for (size_t i = 0; i < count; i++) {
        const qn_mapping_t *region = region_table_at(service->regions, i);
        rows[i] = (qn_shown_region_t){
            .name = qn_text(qn_region_name(region)),
            .id = qn_region_id(region),
            .kind = qn_region_kind(region),
            .share = qn_region_share(region),
            .device = qn_region_device(region),
            .bytes = qn_region_bytes(region),
            .epoch = qn_region_epoch(region),
            .layout = qn_region_layout(qn_region_kind(region)),
            .fingerprint = memory_show_hash(call->arena, qn_region_fingerprint(region)),
        };
    }
    reply->regions = rows;
    reply->regions_count = (uint32_t)count;
    return QN_CALL_DONE;
}

/* ---- eviction ---- */

static qn_call_outcome_t method_policy_get(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)message;
    const memory_service_t *service = state;
    qn_memory_policy_reply_t *reply = ret_reply;
    reply->policies = qn_policy_show(service->eviction, call);
    return QN_CALL_DONE;
}

static qn_call_outcome_t change_policy(memory_service_t *service, bool shadow, qn_text_t choice, qn_call_t *call,
                                       qn_memory_policy_reply_t *reply)
{
    if (qn_policy_change(service->eviction, shadow, choice, call) != QN_CALL_DONE) return QN_CALL_FAILED;
    if (service->loaded) block_pool_eviction_changed(service->model.pool);
    reply->policies = qn_policy_show(service->eviction, call);
    return QN_CALL_DONE;
}

static qn_call_outcome_t method_policy_set(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const qn_memory_policy_set_t *asked = message;
    return change_policy(state, false, asked->policy, call, ret_reply);
}

static qn_call_outcome_t method_policy_shadow(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const qn_memory_policy_shadow_t *asked = message;
    return change_policy(state, true, asked->policy, call, ret_reply);
}

const qn_method_row_t memory_methods[] = {
    {QN_METHOD_MEMORY_USAGE, method_usage},
    {QN_METHOD_MEMORY_REGIONS, method_regions},
    {QN_METHOD_MEMORY_BLOCKS, memory_method_blocks},
    {QN_METHOD_MEMORY_LOOKUP, memory_method_lookup},
    {QN_METHOD_MEMORY_FRAGMENTATION, memory_method_fragmentation},
    {QN_METHOD_MEMORY_EVICT, memory_method_evict},
    {QN_METHOD_MEMORY_PIN, memory_method_pin},
    {QN_METHOD_MEMORY_UNPIN, memory_method_unpin},
    {QN_METHOD_MEMORY_CLEAR, memory_method_clear},
    {QN_METHOD_MEMORY_PINS, memory_method_pins},
    {QN_METHOD_MEMORY_CLONE, memory_method_clone},
    {QN_METHOD_MEMORY_SAVE, memory_method_save},
    {QN_METHOD_MEMORY_RESTORE, memory_method_restore},
    {QN_METHOD_MEMORY_PLAN, memory_method_plan},
    {QN_METHOD_MEMORY_POLICY_GET, method_policy_get},
    {QN_METHOD_MEMORY_POLICY_SET, method_policy_set},
    {QN_METHOD_MEMORY_POLICY_SHADOW, method_policy_shadow},
    {QN_METHOD_NONE, NULL},
};
