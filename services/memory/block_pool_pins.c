/* What is this?      Pins, and eviction by people.
 * State owned:       none beyond the pool's; a pin is a sequence of the pool that nobody runs.
 * Must never:        take a block that a sequence of the greatest length would need (rule 11), or evict a held one.
 * Read next:         block_pool.h (rules 2, 3, 8, 11), block_pool_clone.c (how a pin is made), block_pool.c. */
#include "services/memory/block_pool_internal.h"

#include <string.h>

#include "common/assert.h"

const sequence_t *block_pool_find_pin(const block_pool_t *pool,
                                      bool (*each)(const block_pool_t *, const sequence_t *, void *), void *context)
{
    for (uint32_t i = 0; i <= pool->bucket_mask && pool->pin_count; i++)
        for (uint32_t j = pool->buckets[i]; j != NONE; j = pool->sequences[j].next)
            if (block_pool_is_pin(pool->sequences[j].id) && each(pool, &pool->sequences[j], context))
                return &pool->sequences[j];
    return NULL;
}

static uint32_t number_of(const sequence_t *pin) { return (uint32_t)(pin->id & ~BLOCK_POOL_PIN); }

/* ---- what pins hold ---- */

typedef struct {
    uint32_t *seen; /* [blocks], then the count */
    bool tails;
} counting_t;

static bool count_blocks(const block_pool_t *pool, const sequence_t *pin, void *context)
{
    const counting_t *counting = context;
    const uint32_t *table = block_pool_table_of(pool, pin);
    uint32_t count = counting->tails ? pin->block_count : pin->committed / pool->options.block_tokens;
    for (uint32_t i = 0; i < count; i++)
        if (counting->seen[table[i]]++ == 0) counting->seen[pool->options.block_count]++;
    return false;
}

void block_pool_count_pinned(const block_pool_t *pool, bool tails, uint32_t *seen)
{
    counting_t counting = {.seen = seen, .tails = tails};
    memset(seen, 0, (pool->options.block_count + 1) * sizeof *seen);
    block_pool_find_pin(pool, count_blocks, &counting);
}

uint32_t block_pool_pins(const block_pool_t *pool, uint32_t *ret_blocks)
{
    uint32_t *seen = pool->scratch + pool->options.block_count; /* the other half is for who asks */
    uint32_t kept = *seen;
    block_pool_count_pinned(pool, true, seen);
    *ret_blocks = seen[pool->options.block_count];
    *seen = kept;
    return pool->pin_count;
}

bool block_pool_leaves_room(const block_pool_t *pool, uint32_t more, bool pinned)
{
    uint32_t held, most = pool->options.pin_blocks_max;
    block_pool_pins(pool, &held);
    if (pinned && most > 0 && (uint64_t)held + more > most) return false;
    return (uint64_t)held + pool->fill_blocks + more + pool->table_max <= pool->options.block_count;
}

/* ---- pins ---- */

typedef struct {
    const uint32_t *blocks;
    uint32_t count;
} prefix_t;

static bool holds_prefix(const block_pool_t *pool, const sequence_t *pin, void *context)
{
    const prefix_t *prefix = context;
    return pin->committed == prefix->count * pool->options.block_tokens &&
           block_pool_table_of(pool, pin)[prefix->count - 1] == prefix->blocks[prefix->count - 1];
}

/* The resident blocks of the prefix, in scratch. */
static prefix_t find_blocks(const block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count)
{
    uint32_t count =
        block_pool_find_full(pool, block_pool_identity(pool, salt), ids, ids_count, pool->table_max, pool->scratch);
    return (prefix_t){.blocks = pool->scratch, .count = count};
}

block_pool_pin_outcome_t block_pool_pin(block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count,
                                        uint32_t *ret_pin, uint32_t *ret_tokens)
{
    prefix_t prefix = find_blocks(pool, salt, ids, ids_count);
    *ret_pin = *ret_tokens = 0;
    if (prefix.count == 0) return BLOCK_POOL_NOT_CACHED;
    *ret_tokens = prefix.count * pool->options.block_tokens;
    const sequence_t *there = block_pool_find_pin(pool, holds_prefix, &prefix);
    if (there) {
        *ret_pin = number_of(there);
        return BLOCK_POOL_PINNED;
    }
    return block_pool_clone(pool, salt, ids, *ret_tokens, ret_pin, ret_tokens);
}

bool block_pool_unpin(block_pool_t *pool, uint32_t pin)
{
    sequence_t *found = pin == 0 ? NULL : block_pool_find(pool, BLOCK_POOL_PIN | pin);
    if (found == NULL) return false;
    pool->tailed_pins -= found->committed % pool->options.block_tokens != 0;
    pool->pin_count--;
    block_pool_close(pool, found);
    return true;
}

static bool is_any(const block_pool_t *pool, const sequence_t *pin, void *context)
{
    (void)pool, (void)pin, (void)context;
    return true;
}

uint32_t block_pool_unpin_all(block_pool_t *pool)
{
    uint32_t count = 0;
    for (const sequence_t *pin; (pin = block_pool_find_pin(pool, is_any, NULL)); count++)
        block_pool_unpin(pool, number_of(pin));
    return count;
}

uint32_t block_pool_pin_of(const block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count)
{
    prefix_t prefix = find_blocks(pool, salt, ids, ids_count);
    for (; prefix.count > 0; prefix.count--) {
        const sequence_t *pin = block_pool_find_pin(pool, holds_prefix, &prefix);
        if (pin) return number_of(pin);
    }
    return 0;
}

/* ---- eviction ---- */

/* The cached blocks in the order in which they would be evicted, the first `count` of them in scratch. They are taken out
 * and put back as they were. */
static uint32_t order_of_policy(block_pool_t *pool, uint32_t count)
{
    uint32_t cached = pool->cached_count;
    for (uint32_t i = 0; i < cached; i++) {
        pool->scratch[i] = block_pool_choose(pool);
        eviction_remove(pool->eviction, pool->scratch[i]);
    }
    for (uint32_t i = 0; i < cached; i++)
        eviction_put_back(pool->eviction, pool->scratch[i]);
    return count < cached ? count : cached;
}

/* Evicts those of the first `count` blocks in scratch that are still cached; returns how many blocks went. */
static uint32_t evict_listed(block_pool_t *pool, uint32_t count)
{
    uint32_t freed = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t block = pool->scratch[i];
        if (pool->references[block] == 0 && prefix_index_contains(pool->index, block))
            freed += block_pool_unindex(pool, block);
    }
    pool->stats.evictions += freed;
    return freed;
}

uint32_t block_pool_evict(block_pool_t *pool, uint32_t count, bool dry, const uint32_t **ret_blocks,
                          uint32_t *ret_count)
{
    *ret_count = order_of_policy(pool, count);
    *ret_blocks = pool->scratch;
    return dry ? *ret_count : evict_listed(pool, *ret_count);
}

uint32_t block_pool_evict_prefix(block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count, bool dry,
                                 const uint32_t **ret_blocks, uint32_t *ret_count)
{
    prefix_t prefix = find_blocks(pool, salt, ids, ids_count);
    uint32_t held = 0;
    while (held < prefix.count && pool->references[prefix.blocks[held]] > 0)
        held++; /* who holds a block holds those before it */
    uint32_t count = prefix.count - held;
    for (uint32_t i = 0; i < count / 2; i++) {
        uint32_t *first = &pool->scratch[held + i], *last = &pool->scratch[prefix.count - 1 - i], block = *first;
        *first = *last;
        *last = block;
    }
    memmove(pool->scratch, pool->scratch + held, count * sizeof *pool->scratch);
    *ret_blocks = pool->scratch;
    *ret_count = count;
    return dry ? count : evict_listed(pool, count);
}
