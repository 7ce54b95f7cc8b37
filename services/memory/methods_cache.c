/* What is this?      Memory's methods about KV blocks and prefixes: the map, lookup, eviction.
 * State owned:       none; the pool's.
 * Must never:        evict or move what a sequence holds.
 * Read next:         block_pool.h (the rules), schemas/memory/, methods.c (the rows). */
#include <stdio.h>

#include "common/name_hash.h"
#include "services/memory/methods.h"

QN_BLOCK_STATE_SAME_VALUES(BLOCK_POOL_);

static qn_text_t hexadecimal(qn_arena_t *arena, uint64_t value)
{
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)value);
    return (qn_text_t){.data = qn_arena_strndup(arena, text, 16), .bytes = 16};
}

qn_text_t memory_show_hash(qn_arena_t *arena, uint64_t value)
{
    return value ? hexadecimal(arena, value) : (qn_text_t){0};
}

static qn_kv_block_t show_block(qn_arena_t *arena, uint32_t number, const block_pool_block_t *block)
{
    return (qn_kv_block_t){
        .block = number,
        .state = (qn_block_state_t)block->state,
        .references = block->references,
        .pins = block->pins,
        .owners = block->owners,
        .owners_count = block->owner_count,
        .indexed = block->indexed,
        .hash = memory_show_hash(arena, block->content),
        .depth = block->depth,
        .hits = block->hits,
        .used = block->used,
    };
}

qn_call_outcome_t memory_method_blocks(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const memory_service_t *service = state;
    const qn_memory_blocks_t *asked = message;
    qn_memory_blocks_reply_t *reply = ret_reply;
    block_pool_stats_t stats;
    if (!service->loaded) return memory_still_loading(call);
    block_pool_stats(service->model.pool, &stats);
    uint32_t left = asked->offset < stats.total_blocks ? stats.total_blocks - asked->offset : 0;
    uint32_t count = left < asked->limit ? left : asked->limit;
    block_pool_block_t *blocks = qn_arena_zalloc(call->arena, count + 1, sizeof *blocks);
    qn_kv_block_t *rows = qn_arena_zalloc(call->arena, count + 1, sizeof *rows);
    block_pool_show(service->model.pool, asked->offset, count, blocks);
    for (uint32_t i = 0; i < count; i++)
        rows[i] = show_block(call->arena, asked->offset + i, &blocks[i]);
    reply->total = stats.total_blocks;
    reply->block_tokens = stats.block_tokens;
    reply->blocks = rows;
    reply->blocks_count = count;
    return QN_CALL_DONE;
}

qn_call_outcome_t memory_method_lookup(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const memory_service_t *service = state;
    const qn_memory_lookup_t *asked = message;
    qn_memory_lookup_reply_t *reply = ret_reply;
    if (!service->loaded) return memory_still_loading(call);
    uint32_t *blocks = qn_arena_zalloc(call->arena, QN_MEMORY_LOOKUP_REPLY_BLOCKS_MAX, sizeof *blocks);
    uint64_t salt = qn_name_hash(asked->cache_salt);
    reply->blocks_count = block_pool_lookup_blocks(service->model.pool, salt, asked->ids, asked->ids_count,
                                                   QN_MEMORY_LOOKUP_REPLY_BLOCKS_MAX, blocks);
    reply->blocks = blocks;
    reply->tokens = asked->ids_count;
    reply->cached_tokens = block_pool_lookup(service->model.pool, salt, asked->ids, asked->ids_count);
    reply->share = asked->ids_count ? (float)reply->cached_tokens / (float)asked->ids_count : 0;
    return QN_CALL_DONE;
}

qn_call_outcome_t memory_method_fragmentation(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)message;
    memory_service_t *service = state;
    qn_memory_fragmentation_reply_t *reply = ret_reply;
    block_pool_fragmentation_t found;
    if (!service->loaded) return memory_still_loading(call);
    block_pool_fragmentation(service->model.pool, &found);
    reply->held_tokens = found.held_tokens;
    reply->used_tokens = found.used_tokens;
    reply->internal = found.held_tokens ? 1 - (float)found.used_tokens / (float)found.held_tokens : 0;
    reply->free_blocks = found.free_blocks;
    reply->free_runs = found.free_runs;
    reply->largest_free_run = found.largest_free_run;
    reply->external = found.free_blocks ? 1 - (float)found.largest_free_run / (float)found.free_blocks : 0;
    return QN_CALL_DONE;
}

qn_call_outcome_t memory_method_evict(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    memory_service_t *service = state;
    const qn_memory_evict_t *asked = message;
    qn_memory_evict_reply_t *reply = ret_reply;
    block_pool_stats_t stats;
    if (!service->loaded) return memory_still_loading(call);
    if (asked->ids_count && asked->blocks)
        return qn_call_fail(call, 400, "blocks", "blocks: give ids or a number of blocks, not both");
    block_pool_t *pool = service->model.pool;
    if (asked->ids_count)
        reply->evicted = block_pool_evict_prefix(pool, qn_name_hash(asked->cache_salt), asked->ids, asked->ids_count,
                                                 asked->dry_run, &reply->blocks, &reply->blocks_count);
    else
        reply->evicted = block_pool_evict(pool, asked->blocks ? asked->blocks : UINT32_MAX, asked->dry_run,
                                          &reply->blocks, &reply->blocks_count);
    if (reply->blocks_count > QN_MEMORY_EVICT_REPLY_BLOCKS_MAX) reply->blocks_count = QN_MEMORY_EVICT_REPLY_BLOCKS_MAX;
    block_pool_stats(pool, &stats);
    reply->dry_run = asked->dry_run;
    reply->free_blocks = stats.free_blocks;
    reply->cached_blocks = stats.cached_blocks;
    reply->policy = qn_text(stats.policy);
    return QN_CALL_DONE;
}

qn_call_outcome_t memory_method_clear(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    memory_service_t *service = state;
    const qn_memory_clear_t *asked = message;
    qn_memory_clear_reply_t *reply = ret_reply;
    block_pool_stats_t stats;
    if (!service->loaded) return memory_still_loading(call);
    if (asked->pins) reply->removed_pins = pin_book_remove_all(service->pins, service->model.pool);
    reply->freed_blocks = block_pool_flush(service->model.pool);
    block_pool_pins(service->model.pool, &reply->pinned_blocks);
    block_pool_stats(service->model.pool, &stats);
    reply->free_blocks = stats.free_blocks;
    reply->used_blocks = stats.held_blocks;
    return QN_CALL_DONE;
}
