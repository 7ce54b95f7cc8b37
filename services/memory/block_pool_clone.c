/* What is this?      Clones and fills: prefixes kept to their last token, made again after a restart, or brought from a file.
 * State owned:       none beyond the pool's.
 * Must never:        give a block two writers, or keep rows that are not committed.
 * Read next:         block_pool.h (rules 11 to 14), block_pool_pins.c, methods_clone.c (who asks). */
#include "services/memory/block_pool_internal.h"

#include <string.h>

#include "common/assert.h"

static uint32_t common_ids(const uint32_t *a, const uint32_t *b, uint32_t count)
{
    uint32_t same = 0;
    while (same < count && a[same] == b[same])
        same++;
    return same;
}

static bool same_place(prefix_place_t a, prefix_place_t b)
{
    return a.block == b.block && (a.block == NONE || a.content == b.content);
}

/* ---- rows behind a prefix ---- */

typedef struct {
    prefix_place_t place;
    uint64_t salt, identity;
    const uint32_t *ids;
    uint32_t ids_count;
    uint32_t rows, block; /* the best so far */
} tail_t;

/* The rows that a sequence has committed behind its full blocks, when those end at the place. */
static void try_tail(const block_pool_t *pool, const sequence_t *sequence, tail_t *tail)
{
    uint32_t have = sequence->committed % pool->options.block_tokens;
    if (have == 0 || !sequence->chained || sequence->identity != tail->identity) return;
    if (!same_place(sequence->tail, tail->place)) return;
    uint32_t most = have < tail->ids_count ? have : tail->ids_count;
    uint32_t rows = common_ids(block_pool_pending_of(pool, sequence), tail->ids, most);
    if (rows <= tail->rows) return;
    tail->rows = rows;
    tail->block = block_pool_table_of(pool, sequence)[sequence->committed / pool->options.block_tokens];
}

static bool try_pin(const block_pool_t *pool, const sequence_t *pin, void *context)
{
    tail_t *tail = context;
    try_tail(pool, pin, tail);
    return tail->rows == tail->ids_count;
}

uint32_t block_pool_find_tail(const block_pool_t *pool, prefix_place_t place, uint64_t identity, const uint32_t *ids,
                              uint32_t ids_count, uint32_t *ret_block)
{
    tail_t tail = {.place = place, .identity = identity, .ids = ids, .ids_count = ids_count};
    block_pool_find_pin(pool, try_pin, &tail);
    *ret_block = tail.block;
    return tail.rows;
}

/* The same among all that is resident: full blocks too, and what sequences are at. */
static void find_rows(const block_pool_t *pool, tail_t *tail)
{
    tail->rows =
        prefix_index_find_start(pool->index, tail->place, tail->identity, tail->ids, tail->ids_count, &tail->block);
    for (uint32_t i = 0; i <= pool->bucket_mask; i++)
        for (uint32_t j = pool->buckets[i]; j != NONE && tail->rows < tail->ids_count; j = pool->sequences[j].next)
            try_tail(pool, &pool->sequences[j], tail);
}

/* ---- clones ---- */

typedef struct {
    const tail_t *tail;
    uint32_t tokens, block;
} kept_t;

/* A pin of the same rows in the same blocks. */
static bool keeps_same(const block_pool_t *pool, const sequence_t *pin, void *context)
{
    const kept_t *kept = context;
    uint32_t last = (kept->tokens - 1) / pool->options.block_tokens;
    return pin->committed == kept->tokens && block_pool_table_of(pool, pin)[last] == kept->block &&
           pin->identity == kept->tail->identity && same_place(pin->tail, kept->tail->place);
}

/* Holds `full` blocks of scratch and the tail's; there is an entry for it. */
static const sequence_t *hold(block_pool_t *pool, uint64_t id, const tail_t *tail, uint32_t full)
{
    sequence_t *pin = block_pool_add(pool, id, tail->salt, tail->identity);
    uint32_t *table = block_pool_table_of(pool, pin);
    pin->committed = full * pool->options.block_tokens + tail->rows;
    pin->block_count = full + (tail->rows > 0);
    pin->tail = tail->place;
    if (full > 0) memcpy(table, pool->scratch, full * sizeof *table);
    if (tail->rows > 0) {
        table[full] = tail->block;
        memcpy(block_pool_pending_of(pool, pin), tail->ids, tail->rows * sizeof *tail->ids);
    }
    for (uint32_t i = 0; i < pin->block_count; i++)
        block_pool_hold(pool, table[i]);
    pool->pin_count++;
    pool->tailed_pins += tail->rows > 0;
    return pin;
}

/* Keeps `full` blocks, which are in scratch and end at the tail's place, and the tail's rows. */
static block_pool_pin_outcome_t keep(block_pool_t *pool, const tail_t *tail, uint32_t full, uint32_t *ret_pin,
                                     uint32_t *ret_tokens)
{
    *ret_pin = 0;
    *ret_tokens = full * pool->options.block_tokens + tail->rows;
    if (*ret_tokens == 0) return BLOCK_POOL_NOT_CACHED;
    kept_t kept = {.tail = tail,
                   .tokens = *ret_tokens,
                   .block = tail->rows > 0 ? tail->block : pool->scratch[full - 1]};
    const sequence_t *there = block_pool_find_pin(pool, keeps_same, &kept);
    if (there == NULL) {
        if (pool->pin_count == BLOCK_POOL_PINS_MAX) return BLOCK_POOL_PINS_FULL;
        if (!block_pool_leaves_room(pool, full + (tail->rows > 0), true)) return BLOCK_POOL_PINS_TOO_MUCH;
        there = hold(pool, BLOCK_POOL_PIN | ++pool->pins_made, tail, full);
    }
    *ret_pin = (uint32_t)(there->id & ~BLOCK_POOL_PIN);
    return BLOCK_POOL_PINNED;
}

block_pool_pin_outcome_t block_pool_clone(block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count,
                                          uint32_t *ret_pin, uint32_t *ret_tokens)
{
    *ret_pin = *ret_tokens = 0;
    if (!pool->options.prefix_cache) return BLOCK_POOL_NOT_CACHED;
    uint32_t full =
        block_pool_find_full(pool, block_pool_identity(pool, salt), ids, ids_count, pool->table_max, pool->scratch);
    uint32_t at = full * pool->options.block_tokens;
    tail_t tail = {.place = full > 0 ? prefix_index_place(pool->index, pool->scratch[full - 1]) : PREFIX_ROOT,
                   .salt = salt,
                   .identity = block_pool_identity(pool, salt),
                   .ids = ids + at,
                   .ids_count = ids_count - at};
    if (tail.ids_count >= pool->options.block_tokens) tail.ids_count = pool->options.block_tokens - 1;
    if (full < pool->table_max && tail.ids_count > 0) find_rows(pool, &tail);
    return keep(pool, &tail, full, ret_pin, ret_tokens);
}

block_pool_pin_outcome_t block_pool_clone_sequence(block_pool_t *pool, uint64_t sequence_id, uint32_t *ret_pin,
                                                   uint32_t *ret_tokens)
{
    const sequence_t *sequence = block_pool_is_private(sequence_id) ? NULL : block_pool_find(pool, sequence_id);
    *ret_pin = *ret_tokens = 0;
    if (sequence == NULL || !sequence->chained || !prefix_index_valid(pool->index, sequence->tail) ||
        !pool->options.prefix_cache)
        return BLOCK_POOL_NOT_OPEN;
    uint32_t full = sequence->committed / pool->options.block_tokens, block = sequence->tail.block;
    for (uint32_t i = full; i-- > 0; block = prefix_index_parent(pool->index, block))
        pool->scratch[i] = block;
    tail_t tail = {.place = sequence->tail,
                   .salt = sequence->salt,
                   .identity = sequence->identity,
                   .ids = block_pool_pending_of(pool, sequence),
                   .rows = sequence->committed % pool->options.block_tokens,
                   .block = full < sequence->block_count ? block_pool_table_of(pool, sequence)[full] : NONE};
    return keep(pool, &tail, full, ret_pin, ret_tokens);
}

/* ---- pins of another life ---- */

bool block_pool_pin_ids(const block_pool_t *pool, uint32_t pin, uint32_t ids_max, uint32_t *ret_ids,
                        uint32_t *ret_tokens, uint64_t *ret_salt, uint64_t *ret_identity)
{
    const sequence_t *found = block_pool_find(pool, BLOCK_POOL_PIN | pin);
    uint32_t block_tokens = pool->options.block_tokens;
    if (found == NULL) return false;
    const uint32_t *table = block_pool_table_of(pool, found);
    for (uint32_t at = 0; at < found->committed && at < ids_max; at++) {
        bool full = at / block_tokens < found->committed / block_tokens;
        const uint32_t *ids =
            full ? prefix_index_ids(pool->index, table[at / block_tokens]) : block_pool_pending_of(pool, found);
        ret_ids[at] = ids[at % block_tokens];
    }
    *ret_tokens = found->committed;
    *ret_salt = found->salt;
    *ret_identity = found->identity;
    return true;
}

const uint32_t *block_pool_pin_blocks(const block_pool_t *pool, uint32_t pin, uint32_t *ret_count)
{
    const sequence_t *found = block_pool_find(pool, BLOCK_POOL_PIN | pin);
    if (found == NULL) return NULL;
    *ret_count = found->block_count;
    return block_pool_table_of(pool, found);
}

/* Whether the blocks can hold these ids beside what other pins say of them. Changes nothing. */
static bool agrees(const block_pool_t *pool, uint64_t identity, const uint32_t *ids, uint32_t full,
                   const uint32_t *blocks, uint32_t block_count)
{
    prefix_place_t place = PREFIX_ROOT;
    bool known = true;
    uint32_t *seen = pool->scratch;
    memset(seen, 0, pool->options.block_count * sizeof *seen);
    for (uint32_t i = 0; i < block_count; i++) {
        if (blocks[i] >= pool->options.block_count || seen[blocks[i]]++) return false;
        bool indexed = prefix_index_contains(pool->index, blocks[i]);
        if (i >= full) continue; /* its rows are those of whoever has the block, or nobody's */
        uint32_t found =
            known ? prefix_index_find(pool->index, place, identity, ids + (size_t)i * pool->options.block_tokens)
                  : PREFIX_INDEX_NONE;
        known = found != PREFIX_INDEX_NONE;
        if (known ? found != blocks[i] : indexed) return false; /* held by clones: they keep its first rows */
        if (known) place = prefix_index_place(pool->index, found);
    }
    return true;
}

static void rebuild_free(block_pool_t *pool)
{
    pool->free_count = 0;
    for (uint32_t block = pool->options.block_count; block-- > 0;)
        if (pool->references[block] == 0) pool->free_blocks[pool->free_count++] = block;
}

bool block_pool_adopt(block_pool_t *pool, uint32_t pin, uint64_t salt, uint64_t identity, const uint32_t *ids,
                      uint32_t ids_count, const uint32_t *blocks, uint32_t block_count)
{
    uint32_t block_tokens = pool->options.block_tokens, full = ids_count / block_tokens;
    uint32_t needed = full + (ids_count % block_tokens != 0);
    QN_ASSERT(pool->sequence_count == pool->pin_count && pool->cached_count == 0);
    if (!pool->options.prefix_cache || pin == 0 || ids_count == 0 || block_count != needed ||
        needed > pool->table_max || pool->pin_count == BLOCK_POOL_PINS_MAX ||
        block_pool_find(pool, BLOCK_POOL_PIN | pin) != NULL)
        return false;
    if (!agrees(pool, identity, ids, full, blocks, block_count)) return false;
    if (!block_pool_leaves_room(pool, block_count, true)) return false;
    tail_t tail = {.place = PREFIX_ROOT,
                   .salt = salt,
                   .identity = identity,
                   .ids = ids + (size_t)full * block_tokens,
                   .rows = ids_count % block_tokens,
                   .block = blocks[block_count - 1]};
    for (uint32_t i = 0; i < block_count; i++) /* as if they had been held all along */
        pool->references[blocks[i]]++;
    for (uint32_t i = 0; i < full; i++) {
        if (!prefix_index_contains(pool->index, blocks[i]))
            prefix_index_insert(pool->index, blocks[i], tail.place, identity, ids + (size_t)i * block_tokens);
        tail.place = prefix_index_place(pool->index, blocks[i]);
    }
    memcpy(pool->scratch, blocks, full * sizeof *blocks);
    hold(pool, BLOCK_POOL_PIN | pin, &tail, full);
    for (uint32_t i = 0; i < block_count; i++)
        pool->references[blocks[i]]--;
    if (pin > pool->pins_made) pool->pins_made = pin;
    rebuild_free(pool);
    return true;
}

/* ---- fills ---- */

bool block_pool_fill_open(block_pool_t *pool, uint64_t salt, uint64_t identity, const uint32_t *ids, uint32_t ids_count,
                          uint64_t *ret_fill, block_pool_grant_t *ret_grant)
{
    uint32_t needed = ids_count / pool->options.block_tokens, revived = 0;
    QN_ASSERT(ids_count % pool->options.block_tokens == 0);
    if (pool->fill_count == BLOCK_POOL_FILLS_MAX || needed == 0 || needed > pool->table_max) return false;
    uint32_t shared = block_pool_find_full(pool, identity, ids, ids_count, needed, pool->scratch);
    for (uint32_t i = 0; i < shared; i++)
        revived += pool->references[pool->scratch[i]] == 0;
    if (needed - shared > block_pool_available(pool) - revived) return false;
    if (shared < needed && !block_pool_leaves_room(pool, needed, false)) return false;
    pool->use++;
    sequence_t *fill = block_pool_add(pool, BLOCK_POOL_FILL | ++pool->fills_made, salt, identity);
    uint32_t *table = block_pool_table_of(pool, fill);
    if (shared > 0) memcpy(table, pool->scratch, shared * sizeof *table);
    for (uint32_t i = 0; i < shared; i++)
        block_pool_hold(pool, table[i]);
    for (uint32_t i = shared; i < needed; i++)
        table[i] = block_pool_take_fresh(pool);
    pool->fill_count++;
    pool->fill_blocks += needed;
    fill->block_count = needed;
    fill->committed = shared * pool->options.block_tokens;
    fill->tail = shared > 0 ? prefix_index_place(pool->index, table[shared - 1]) : PREFIX_ROOT;
    *ret_fill = fill->id;
    *ret_grant = (block_pool_grant_t){.block_count = needed,
                                      .cached_tokens = fill->committed,
                                      .blocks = table,
                                      .copy_from = NONE};
    return true;
}

static void close_fill(block_pool_t *pool, sequence_t *fill)
{
    pool->fill_count--;
    pool->fill_blocks -= fill->block_count;
    block_pool_close(pool, fill);
}

void block_pool_fill_finish(block_pool_t *pool, uint64_t id, const uint32_t *ids, uint32_t ids_count)
{
    sequence_t *fill = block_pool_find(pool, id);
    QN_ASSERT(fill != NULL && ids_count == fill->block_count * pool->options.block_tokens);
    pool->use++;
    block_pool_append(pool, fill, ids + fill->committed, ids_count - fill->committed);
    close_fill(pool, fill);
}

void block_pool_fill_drop(block_pool_t *pool, uint64_t id)
{
    sequence_t *fill = block_pool_find(pool, id);
    QN_ASSERT(fill != NULL);
    close_fill(pool, fill);
}
