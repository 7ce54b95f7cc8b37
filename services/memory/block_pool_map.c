/* What is this?      The block pool, shown to people: a page of the map, a prefix, fragmentation.
 * State owned:       none.
 * Must never:        change what the pool does.
 * Read next:         block_pool.h, methods_cache.c (who asks). */
#include "services/memory/block_pool_internal.h"

#include <string.h>

static block_pool_block_t show_block(const block_pool_t *pool, uint32_t block)
{
    bool indexed = prefix_index_contains(pool->index, block);
    uint32_t references = pool->references[block];
    return (block_pool_block_t){
        .state = references ? BLOCK_POOL_HELD
                 : indexed  ? BLOCK_POOL_CACHED
                            : BLOCK_POOL_FREE,
        .references = references,
        .indexed = indexed,
        .content = indexed ? prefix_index_place(pool->index, block).content : 0,
        .depth = indexed ? prefix_index_depth(pool->index, block) : 0,
        .hits = pool->hits[block],
        .used = pool->used[block],
    };
}

static void show_owner(const block_pool_t *pool, const sequence_t *sequence, uint32_t first, uint32_t count,
                       block_pool_block_t *blocks)
{
    const uint32_t *table = block_pool_table_of(pool, sequence);
    for (uint32_t i = 0; i < sequence->block_count; i++) {
        if (table[i] < first || table[i] - first >= count) continue;
        block_pool_block_t *shown = &blocks[table[i] - first];
        if (block_pool_is_pin(sequence->id))
            shown->pins++;
        else if (!block_pool_is_private(sequence->id) && shown->owner_count < BLOCK_POOL_OWNERS_MAX)
            shown->owners[shown->owner_count++] = sequence->id;
    }
}

void block_pool_show(const block_pool_t *pool, uint32_t first, uint32_t count, block_pool_block_t *ret_blocks)
{
    for (uint32_t i = 0; i < count; i++)
        ret_blocks[i] = show_block(pool, first + i);
    for (uint32_t i = 0; i <= pool->bucket_mask; i++)
        for (uint32_t j = pool->buckets[i]; j != NONE; j = pool->sequences[j].next)
            show_owner(pool, &pool->sequences[j], first, count, ret_blocks);
}

uint32_t block_pool_lookup_blocks(const block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count,
                                  uint32_t blocks_max, uint32_t *ret_blocks)
{
    return block_pool_find_prefix(pool, block_pool_identity(pool, salt), ids, ids_count, blocks_max, ret_blocks);
}

static void count_runs(const block_pool_t *pool, block_pool_fragmentation_t *fragmentation)
{
    uint32_t run = 0;
    for (uint32_t block = 0; block < pool->options.block_count; block++) {
        bool is_free = pool->references[block] == 0 && !prefix_index_contains(pool->index, block);
        run = is_free ? run + 1 : 0;
        fragmentation->free_runs += run == 1;
        if (run > fragmentation->largest_free_run) fragmentation->largest_free_run = run;
    }
}

void block_pool_fragmentation(block_pool_t *pool, block_pool_fragmentation_t *ret_fragmentation)
{
    *ret_fragmentation = (block_pool_fragmentation_t){.free_blocks = pool->free_count};
    for (uint32_t i = 0; i <= pool->bucket_mask; i++)
        for (uint32_t j = pool->buckets[i]; j != NONE; j = pool->sequences[j].next) {
            if (block_pool_is_private(pool->sequences[j].id)) continue;
            ret_fragmentation->held_tokens += (uint64_t)pool->sequences[j].block_count * pool->options.block_tokens;
            ret_fragmentation->used_tokens += pool->sequences[j].committed;
        }
    count_runs(pool, ret_fragmentation);
}
