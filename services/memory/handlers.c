/* What is this?      The translation between messages and memory's nouns; the only file that knows both.
 * State owned:       the list of those who wait for the model's description; the buffers of a Grant.
 * Must never:        decide which block goes where (block_pool.c) or how large a region is (kv_size.c, compute).
 * Read next:         schemas/lease.fbs, schemas/reserve.fbs, block_pool.h, region_table.h. */
#include "services/memory/handlers.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/failpoint.h"
#include "common/watch/log.h"
#include "services/memory/kept_regions.h"
#include "services/memory/methods.h"

/* The ids of an item, NULL when it has none (then `ids` itself may be absent). */
QN_GRANT_OUTCOME_SAME_VALUES(BLOCK_POOL_);

static const uint32_t *ids_at(const uint32_t *ids, uint32_t offset, uint32_t count)
{
    return count ? ids + offset : NULL;
}

void memory_send_or_log(memory_service_t *service, qn_peer_t to, qn_message_type_t type, const void *message)
{
    qn_send_outcome_t outcome = qn_daemon_send(service->daemon, to, type, message);
    if (outcome == QN_SEND_FULL)
        qn_log_warning("a %s was dropped: its receiver (epoch %" PRIu32 ") takes nothing", qn_message_name(type),
                       to.epoch);
    if (outcome == QN_SEND_INVALID)
        qn_daemon_refuse(service->daemon, to, ((const qn_head_t *)message)->request, 500, NULL, qn_err_text());
}

/* false: the message was refused with 503 because there is no model yet. */
static bool require_model(memory_service_t *service, qn_peer_t from, uint64_t request)
{
    if (service->loaded) return true;
    qn_daemon_refuse(service->daemon, from, request, 503, NULL, "memory is still loading the model");
    return false;
}

/* ---- the model ---- */

static void answer_describe(memory_service_t *service, const memory_asker_t *asker)
{
    const model_directory_t *directory = service->model.directory;
    const qn_model_config_t *config = &directory->config;
    const qn_generation_config_t *generation = &directory->generation;
    qn_text_t warnings[QN_MODEL_WARNINGS_MAX];
    qn_region_t weights, kv;
    qn_region_describe(region_table_find_name(service->regions, "weights"), &weights);
    qn_region_describe(region_table_find_name(service->regions, "kv"), &kv);
    qn_model_description_t reply = {
        .head.request = asker->request,
        .model = qn_text(directory->id),
        .architecture = qn_text(config->architecture_name),
        .vocab_size = config->vocab,
        .max_model_len = service->model.kv.max_model_len,
        .eos_ids = config->eos,
        .eos_ids_count = config->eos_count,
        .bos_id = config->bos,
        .default_sampling =
            {
                .temperature = generation->temperature,
                .top_p = generation->top_p,
                .min_p = generation->min_p,
                .repetition_penalty = generation->repetition_penalty,
                .top_k = generation->top_k,
                .max_tokens = generation->max_tokens,
            },
        .block_tokens = (uint32_t)service->config->memory.block_tokens,
        .block_count = service->model.kv.block_count,
        .kv_dtype = service->model.kv_dtype,
        .weights_bytes = weights.bytes,
        .weights = &weights,
        .kv = &kv,
        .head_dim = config->head_dim,
        .warnings = warnings,
        .warnings_count = directory->warnings.count,
        .layers = config->layers,
        .heads = config->heads,
        .kv_heads = config->kv_heads,
        .hidden = config->hidden,
    };
    for (uint32_t i = 0; i < reply.warnings_count; i++)
        warnings[i] = qn_text(directory->warnings.texts[i]);
    if (asker->want_tensors) {
        reply.config_json = (qn_text_t){.data = directory->config_text, .bytes = (uint32_t)directory->config_bytes};
        reply.tensors = service->tensors;
        reply.tensors_count = (uint32_t)weights_count(service->model.weights);
    }
    memory_send_or_log(service, asker->peer, QN_MESSAGE_MODEL_DESCRIPTION, &reply);
}

static void handle_describe(void *state, qn_peer_t from, const void *message)
{
    memory_service_t *service = state;
    const qn_describe_t *describe = message;
    memory_asker_t asker = {.peer = from, .request = describe->head.request, .want_tensors = describe->want_tensors};
    if (service->loaded)
        answer_describe(service, &asker);
    else if (service->asker_count < QN_PEERS_MAX)
        service->askers[service->asker_count++] = asker;
    else
        qn_daemon_refuse(service->daemon, from, asker.request, 503, NULL, "too many ask for the model while it loads");
}

qn_err_t memory_publish_model(memory_service_t *service)
{
    const weights_t *weights = service->model.weights;
    size_t count = weights_count(weights);
    service->tensors = calloc(count + 1, sizeof *service->tensors);
    if (!service->tensors) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the list of %zu tensors", count);
    for (size_t i = 0; i < count; i++) {
        const weights_tensor_t *tensor = weights_at(weights, i);
        service->tensors[i] = (qn_tensor_t){.name = qn_text(tensor->name),
                                            .dtype = weights_format_dtype(tensor->scalar),
                                            .shape = tensor->shape,
                                            .shape_count = tensor->rank,
                                            .offset = tensor->offset,
                                            .bytes = tensor->bytes,
                                            .layout = tensor->layout == QN_LAYOUT_PANELS ? QN_TENSOR_LAYOUT_PANELS
                                                                                         : QN_TENSOR_LAYOUT_ROWS,
                                            .group = tensor->group};
    }
    service->loaded = true;
    for (size_t i = 0; i < service->asker_count; i++)
        answer_describe(service, &service->askers[i]);
    service->asker_count = 0;
    return QN_OK;
}

void memory_meet_peer(memory_service_t *service, qn_peer_t peer)
{
    if (qn_peer_is_scheduler(peer)) service->scheduler = peer;
    if (peer.service == QN_SERVICE_COMPUTE) service->compute = peer;
}

void memory_forget_peer(memory_service_t *service, qn_peer_t peer)
{
    if (qn_peer_is_scheduler(peer)) {
        if (peer.epoch > service->gone_scheduler) service->gone_scheduler = peer.epoch;
        if (qn_peer_equal(peer, service->scheduler)) service->scheduler = (qn_peer_t){0};
        memory_clones_fail(service);
    }
    if (qn_peer_equal(peer, service->compute)) {
        service->compute = (qn_peer_t){0};
        memory_restores_settled(service, 0); /* nothing of it runs any more */
    }
    size_t left = 0;
    for (size_t i = 0; i < service->asker_count; i++) {
        if (!qn_peer_equal(service->askers[i].peer, peer)) service->askers[left++] = service->askers[i];
    }
    service->asker_count = left;
    memory_forget_holder(service, peer);
    if (!qn_peer_is_scheduler(peer) || !service->loaded) return;
    uint32_t released = block_pool_release_all(service->model.pool);
    if (released)
        qn_log_notice("scheduler epoch %" PRIu32 " is gone: %" PRIu32 " sequences released", peer.epoch, released);
}

/* ---- regions ---- */

static void handle_reserve(void *state, qn_peer_t from, const void *message)
{
    memory_service_t *service = state;
    const qn_reserve_t *reserve = message;
    uint64_t request = reserve->head.request;
    if (reserve->kind == QN_REGION_KIND_WEIGHTS || reserve->kind == QN_REGION_KIND_KV) {
        qn_daemon_refuse(service->daemon, from, request, 400, "kind", "weights and KV are memory's own: see Describe");
        return;
    }
    const qn_mapping_t *region;
    qn_mapping_t *old;
    bool fresh;
    if (reserve->kind == QN_REGION_KIND_TAP && !service->workspace) {
        qn_daemon_refuse(service->daemon, from, request, 501, "kind",
                         "there is no workspace: memory.workspace_bytes is 0");
        return;
    }
    qn_err_t err = region_table_reserve(service->regions, reserve->kind, reserve->name.data, reserve->name.bytes,
                                        reserve->bytes, &region, &fresh, &old);
    if (err) {
        qn_log_warning("Reserve refused: %s", qn_err_text());
        qn_daemon_refuse(service->daemon, from, request, err == QN_ERR_INVALID ? 400 : 507,
                         err == QN_ERR_INVALID ? "name" : "bytes", qn_err_text());
        return;
    }
    if (old) kept_regions_drop(old);
    qn_region_close(&old);
    if (fresh) kept_regions_put(region);
    qn_region_t wire;
    qn_region_describe(region, &wire);
    qn_reserved_t reply = {.head.request = request, .region = &wire};
    memory_send_or_log(service, from, QN_MESSAGE_RESERVED, &reply);
}

/* ---- leases ---- */

static uint32_t blocks_for(const memory_service_t *service, uint32_t tokens)
{
    return (uint32_t)((tokens + service->config->memory.block_tokens - 1) / service->config->memory.block_tokens);
}

/* One item; its blocks are appended to the Grant's. An item that might not fit into this Grant is short of blocks: the
 * scheduler asks again. */
static void lease_item(memory_service_t *service, const qn_lease_t *lease, const qn_lease_item_t *item,
                       qn_grant_t *reply, qn_grant_item_t *ret_item)
{
    uint32_t *block_count = &reply->blocks_count;
    block_pool_t *pool = service->model.pool;
    block_pool_grant_t grant = {0};
    block_pool_outcome_t outcome = BLOCK_POOL_SHORT_OF_BLOCKS;
    if (blocks_for(service, item->tokens) <= QN_GRANT_BLOCKS_MAX - *block_count) {
        if (item->open)
            outcome = block_pool_open(pool, item->sequence, item->salt, item->tokens,
                                      ids_at(lease->ids, item->ids_offset, item->ids_count), item->ids_count, &grant);
        else
            outcome = block_pool_extend(pool, item->sequence, item->tokens, &grant);
    }
    *ret_item = (qn_grant_item_t){.sequence = item->sequence,
                                  .block_offset = *block_count,
                                  .outcome = (qn_grant_outcome_t)outcome};
    if (outcome != BLOCK_POOL_GRANTED) return;
    if (grant.block_count) /* views of no blocks may be NULL */
        memcpy(service->grant_blocks + *block_count, grant.blocks, grant.block_count * sizeof *grant.blocks);
    ret_item->first_block = grant.first_block;
    ret_item->block_count = grant.block_count;
    ret_item->cached_tokens = grant.cached_tokens;
    if (grant.copies)
        service->grant_copies[reply->copies_count++] =
            (qn_grant_copy_t){.sequence = item->sequence,
                              .from = grant.copy_from,
                              .to = grant.blocks[grant.cached_tokens / service->config->memory.block_tokens]};
    *block_count += grant.block_count;
}

/* A Grant has room for all items, and every item's ids lie inside the message's. */
static bool check_lease(const qn_lease_t *lease)
{
    if (lease->items_count > QN_GRANT_ITEMS_MAX) return false;
    for (uint32_t i = 0; i < lease->items_count; i++) {
        const qn_lease_item_t *item = &lease->items[i];
        if (item->ids_offset > lease->ids_count || item->ids_count > lease->ids_count - item->ids_offset) return false;
    }
    return true;
}

static void handle_lease(void *state, qn_peer_t from, const void *message)
{
    memory_service_t *service = state;
    const qn_lease_t *lease = message;
    if (!require_model(service, from, lease->head.request)) return;
    if (!qn_peer_is_scheduler(from) || !check_lease(lease)) {
        qn_daemon_refuse(service->daemon, from, lease->head.request, 400, "items",
                         !qn_peer_is_scheduler(from) ? "only the scheduler holds leases"
                                                     : "too many items, or an item's ids lie outside ids");
        return;
    }
    qn_grant_t reply = {.head.request = lease->head.request,
                        .batch = lease->batch,
                        .items = service->grant_items,
                        .items_count = lease->items_count,
                        .blocks = service->grant_blocks,
                        .copies = service->grant_copies};
    if (QN_FAILPOINT_IDS(QN_FAILPOINT_MEMORY_BEFORE_GRANT, lease->ids, lease->ids_count))
        qn_daemon_fail(service->daemon, qn_fail(QN_ERR_INVALID, "a failpoint failed a Lease"));
    for (uint32_t i = 0; i < lease->items_count; i++)
        lease_item(service, lease, &lease->items[i], &reply, &service->grant_items[i]);
    block_pool_stats_t stats;
    block_pool_stats(service->model.pool, &stats);
    reply.free_blocks = stats.free_blocks;
    reply.cached_blocks = stats.cached_blocks;
    memory_send_or_log(service, from, QN_MESSAGE_GRANT, &reply);
    if (QN_FAILPOINT_IDS(QN_FAILPOINT_MEMORY_AFTER_LEASE, lease->ids, lease->ids_count))
        qn_daemon_fail(service->daemon, qn_fail(QN_ERR_INVALID, "a failpoint failed a Lease that was granted"));
}

static void handle_release(void *state, qn_peer_t from, const void *message)
{
    memory_service_t *service = state;
    const qn_release_t *release = message;
    if (!service->loaded || !qn_peer_is_scheduler(from)) return;
    for (uint32_t i = 0; i < release->sequences_count; i++)
        block_pool_release(service->model.pool, release->sequences[i]);
}

static void handle_commit(void *state, qn_peer_t from, const void *message)
{
    memory_service_t *service = state;
    const qn_commit_t *commit = message;
    if (!service->loaded || !qn_peer_is_scheduler(from)) return;
    for (uint32_t i = 0; i < commit->items_count; i++) {
        const qn_commit_item_t *item = &commit->items[i];
        if (item->ids_offset > commit->ids_count || item->ids_count > commit->ids_count - item->ids_offset) {
            qn_daemon_refuse(service->daemon, from, commit->head.request, 400, "items",
                             "an item's ids lie outside ids");
            return;
        }
        if (!block_pool_commit(service->model.pool, item->sequence, item->position,
                               ids_at(commit->ids, item->ids_offset, item->ids_count), item->ids_count))
            qn_log_debug("Commit of sequence %" PRIu64 " at %" PRIu32 " ignored: not open, or not next", item->sequence,
                         item->position);
    }
    if (commit->head.request) memory_clone_committed(service, commit->head.request);
}

/* What a Lease would share now, for a scheduling policy that wants to know. */
static void handle_prefix_query(void *state, qn_peer_t from, const void *message)
{
    memory_service_t *service = state;
    const qn_prefix_query_t *query = message;
    qn_prefix_hit_t hits[QN_PREFIX_HITS_ITEMS_MAX];
    if (!service->loaded || !qn_peer_is_scheduler(from)) return;
    for (uint32_t i = 0; i < query->items_count; i++) {
        const qn_prefix_query_item_t *item = &query->items[i];
        if (item->ids_offset > query->ids_count || item->ids_count > query->ids_count - item->ids_offset) {
            qn_daemon_refuse(service->daemon, from, query->head.request, 400, "items", "an item's ids lie outside ids");
            return;
        }
        hits[i] = (qn_prefix_hit_t){.sequence = item->sequence,
                                    .tokens = block_pool_lookup(service->model.pool, item->salt,
                                                                query->ids + item->ids_offset, item->ids_count)};
    }
    qn_prefix_hits_t reply = {.head.request = query->head.request,
                              .batch = query->batch,
                              .items = hits,
                              .items_count = query->items_count};
    memory_send_or_log(service, from, QN_MESSAGE_PREFIX_HITS, &reply);
}

/* ---- the cache, for people ---- */

static void handle_settled(void *state, qn_peer_t from, const void *message)
{
    memory_service_t *service = state;
    const qn_settled_t *settled = message;
    if (qn_peer_equal(from, service->compute) && settled->head.request)
        memory_restores_settled(service, settled->head.request);
}

static void handle_cache_query(void *state, qn_peer_t from, const void *message)
{
    memory_service_t *service = state;
    const qn_cache_query_t *query = message;
    if (!require_model(service, from, query->head.request)) return;
    block_pool_stats_t stats;
    block_pool_stats(service->model.pool, &stats);
    qn_cache_stats_t reply = {
        .head.request = query->head.request,
        .block_tokens = stats.block_tokens,
        .block_bytes = service->model.block_bytes,
        .total_blocks = stats.total_blocks,
        .used_blocks = stats.held_blocks,
        .cached_blocks = stats.cached_blocks,
        .free_blocks = stats.free_blocks,
        .sequences = stats.sequences,
        .lookups = stats.lookups,
        .lookup_tokens = stats.lookup_tokens,
        .hit_tokens = stats.hit_tokens,
        .evictions = stats.evictions,
        .grants = stats.grants,
        .grants_short = stats.grants_short,
        .flushes = stats.flushes,
        .policy = qn_text(stats.policy),
        .hits = stats.hits,
        .pins = pin_book_count(service->pins),
    };
    block_pool_pins(service->model.pool, &reply.pinned_blocks);
    memory_send_or_log(service, from, QN_MESSAGE_CACHE_STATS, &reply);
}

static void handle_flush_cache(void *state, qn_peer_t from, const void *message)
{
    memory_service_t *service = state;
    const qn_flush_cache_t *flush = message;
    if (!require_model(service, from, flush->head.request)) return;
    qn_flushed_t reply = {.head.request = flush->head.request, .freed_blocks = block_pool_flush(service->model.pool)};
    qn_log_info("prefix cache flushed: %" PRIu32 " blocks freed", reply.freed_blocks);
    memory_send_or_log(service, from, QN_MESSAGE_FLUSHED, &reply);
}

const qn_handler_t memory_handlers[] = {
    {QN_MESSAGE_DESCRIBE, handle_describe},
    {QN_MESSAGE_RESERVE, handle_reserve},
    {QN_MESSAGE_LEASE, handle_lease},
    {QN_MESSAGE_RELEASE, handle_release},
    {QN_MESSAGE_COMMIT, handle_commit},
    {QN_MESSAGE_CACHE_QUERY, handle_cache_query},
    {QN_MESSAGE_FLUSH_CACHE, handle_flush_cache},
    {QN_MESSAGE_SETTLED, handle_settled},
    {QN_MESSAGE_PREFIX_QUERY, handle_prefix_query},
    {QN_MESSAGE_WORKSPACE_LEASE, memory_handle_workspace_lease},
    {QN_MESSAGE_WORKSPACE_RELEASE, memory_handle_workspace_release},
    {QN_MESSAGE_NONE, NULL},
};
