/* What is this?      The KV blocks of one device: leases, reference counts, sharing, eviction. Rules: block_pool.h.
 * State owned:       reference counts, the free stack, sequences and their block tables, the prefix index, the policy's
 *                    state. All of it can be rebuilt: sequences lease again, prefixes are computed again.
 * Must never:        hand out a held block, share a block that is not full and committed, touch device memory.
 * Read next:         prefix_index.c (what a block contains), eviction.c (who goes first). */
#include "services/memory/block_pool_internal.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/checksum.h"

#define BLOCKS_MAX (1u << 28)
#define BLOCK_TOKENS_MAX 1024u
#define SEQUENCES_MAX 65536u

/* ---- creation ---- */

static qn_err_t check_options(const block_pool_options_t *options)
{
    if (options->block_count < 1 || options->block_count > BLOCKS_MAX)
        return qn_fail(QN_ERR_INVALID, "block pool: %u blocks is outside 1..%u; change memory.kv_bytes",
                       options->block_count, BLOCKS_MAX);
    if (options->block_tokens < 1 || options->block_tokens > BLOCK_TOKENS_MAX)
        return qn_fail(QN_ERR_INVALID, "block pool: memory.block_tokens %u is outside 1..%u", options->block_tokens,
                       BLOCK_TOKENS_MAX);
    if (options->sequences_max < 1 || options->sequences_max > SEQUENCES_MAX)
        return qn_fail(QN_ERR_INVALID, "block pool: %u sequences is outside 1..%u", options->sequences_max,
                       SEQUENCES_MAX);
    if (options->tokens_max < 1)
        return qn_fail(QN_ERR_INVALID, "block pool: a sequence of 0 tokens holds nothing; set model.max_model_len");
    return QN_OK;
}

static uint32_t blocks_for(const block_pool_t *pool, uint32_t tokens)
{
    return tokens / pool->options.block_tokens + (tokens % pool->options.block_tokens != 0);
}

static bool allocate(block_pool_t *pool)
{
    uint32_t blocks = pool->options.block_count;
    uint32_t sequences = pool->options.sequences_max + BLOCK_POOL_PRIVATE_MAX;
    pool->references = calloc(blocks, sizeof *pool->references);
    pool->hits = calloc(blocks, sizeof *pool->hits);
    pool->used = calloc(blocks, sizeof *pool->used);
    pool->born = calloc(blocks, sizeof *pool->born);
    pool->free_blocks = calloc(blocks, sizeof *pool->free_blocks);
    pool->scratch = calloc(2 * (size_t)blocks + 1, sizeof *pool->scratch);
    pool->sequences = calloc(sequences, sizeof *pool->sequences);
    pool->buckets = calloc((size_t)pool->bucket_mask + 1, sizeof *pool->buckets);
    /* calloc checks the product of its two arguments; the first is one checked here */
    size_t entries;
    if (__builtin_mul_overflow((size_t)sequences, (size_t)pool->table_max, &entries)) return false;
    pool->tables = calloc(entries, sizeof *pool->tables);
    pool->pending = calloc((size_t)sequences * pool->options.block_tokens, sizeof *pool->pending);
    pool->eviction = eviction_create(pool->options.eviction, blocks);
    return pool->references && pool->hits && pool->used && pool->born && pool->free_blocks && pool->scratch &&
           pool->sequences && pool->buckets && pool->tables && pool->pending && pool->eviction;
}

static void make_all_free(block_pool_t *pool)
{
    for (uint32_t i = 0; i < pool->options.block_count; i++) /* so that block 0 is given out first */
        pool->free_blocks[i] = pool->options.block_count - 1 - i;
    pool->free_count = pool->options.block_count;
    for (uint32_t i = 0; i <= pool->bucket_mask; i++)
        pool->buckets[i] = NONE;
    uint32_t sequences = pool->options.sequences_max + BLOCK_POOL_PRIVATE_MAX;
    for (uint32_t i = 0; i < sequences; i++)
        pool->sequences[i].next = i + 1 < sequences ? i + 1 : NONE;
}

qn_err_t block_pool_create(const block_pool_options_t *options, block_pool_t **ret_pool)
{
    qn_err_t err = check_options(options);
    if (err < 0) return err;
    block_pool_t *pool = calloc(1, sizeof *pool);
    if (pool == NULL) return qn_fail(QN_ERR_NO_MEMORY, "block pool: out of memory");
    pool->options = *options;
    pool->table_max = blocks_for(pool, options->tokens_max);
    if (pool->table_max > options->block_count) pool->table_max = options->block_count;
    uint32_t buckets = 16;
    while (buckets < options->sequences_max)
        buckets *= 2;
    pool->bucket_mask = buckets - 1;
    err = prefix_index_create(options->block_count, options->block_tokens, &pool->index);
    if (err == QN_OK && !allocate(pool))
        err = qn_fail(QN_ERR_NO_MEMORY, "block pool: no memory for %u blocks and %u sequences; lower memory.kv_bytes",
                      options->block_count, options->sequences_max);
    if (err < 0) {
        block_pool_destroy(&pool);
        return err;
    }
    make_all_free(pool);
    *ret_pool = pool;
    return QN_OK;
}

void block_pool_destroy(block_pool_t **pool)
{
    block_pool_t *self = *pool;
    if (self == NULL) return;
    eviction_destroy(&self->eviction);
    prefix_index_destroy(&self->index);
    free(self->references);
    free(self->hits);
    free(self->used);
    free(self->born);
    free(self->free_blocks);
    free(self->scratch);
    free(self->sequences);
    free(self->buckets);
    free(self->tables);
    free(self->pending);
    free(self);
    *pool = NULL;
}

/* ---- sequences by id ---- */

static uint32_t *bucket_of(const block_pool_t *pool, uint64_t id)
{
    uint64_t hash = id * 0x9e3779b97f4a7c15ull;
    return &pool->buckets[(uint32_t)(hash >> 40) & pool->bucket_mask];
}

sequence_t *block_pool_find(const block_pool_t *pool, uint64_t id)
{
    for (uint32_t i = *bucket_of(pool, id); i != NONE; i = pool->sequences[i].next)
        if (pool->sequences[i].id == id) return &pool->sequences[i];
    return NULL;
}

sequence_t *block_pool_add(block_pool_t *pool, uint64_t id, uint64_t salt, uint64_t identity)
{
    uint32_t i = pool->unused_sequence;
    sequence_t *sequence = &pool->sequences[i];
    pool->unused_sequence = sequence->next;
    uint32_t *bucket = bucket_of(pool, id);
    *sequence = (sequence_t){.id = id,
                             .salt = salt,
                             .identity = identity,
                             .next = *bucket,
                             .copied_from = NONE,
                             .chained = true,
                             .tail = PREFIX_ROOT};
    *bucket = i;
    pool->sequence_count++;
    return sequence;
}

static void remove_sequence(block_pool_t *pool, sequence_t *sequence)
{
    uint32_t i = (uint32_t)(sequence - pool->sequences);
    uint32_t *link = bucket_of(pool, sequence->id);
    while (*link != i)
        link = &pool->sequences[*link].next;
    *link = sequence->next;
    sequence->next = pool->unused_sequence;
    pool->unused_sequence = i;
    pool->sequence_count--;
}

uint32_t *block_pool_table_of(const block_pool_t *pool, const sequence_t *sequence)
{
    return pool->tables + (size_t)(sequence - pool->sequences) * pool->table_max;
}

uint32_t *block_pool_pending_of(const block_pool_t *pool, const sequence_t *sequence)
{
    return pool->pending + (size_t)(sequence - pool->sequences) * pool->options.block_tokens;
}

/* ---- the three states of a block (rule 1) ---- */

void block_pool_make_free(block_pool_t *pool, uint32_t block)
{
    pool->hits[block] = 0;
    pool->free_blocks[pool->free_count++] = block;
}

static void leave_cached(block_pool_t *pool, uint32_t block)
{
    eviction_remove(pool->eviction, block);
    pool->cached_count--;
}

uint32_t block_pool_unindex(block_pool_t *pool, uint32_t block)
{
    const uint32_t *removed;
    uint32_t count = prefix_index_remove(pool->index, block, &removed);
    uint32_t freed = 0;
    for (uint32_t i = count; i-- > 0;) {
        if (pool->references[removed[i]] > 0) continue;
        leave_cached(pool, removed[i]);
        block_pool_make_free(pool, removed[i]);
        freed++;
    }
    return freed;
}

/* Of the cached blocks that directly follow it the one that goes first. */
static uint32_t first_cached_follower(const block_pool_t *pool, uint32_t block)
{
    uint32_t first = PREFIX_INDEX_NONE;
    uint32_t child = prefix_index_child(pool->index, block, PREFIX_INDEX_NONE);
    for (; child != PREFIX_INDEX_NONE; child = prefix_index_child(pool->index, block, child))
        if (eviction_contains(pool->eviction, child) &&
            (first == PREFIX_INDEX_NONE || eviction_is_before(pool->eviction, child, first)))
            first = child;
    return first;
}

uint32_t block_pool_choose(const block_pool_t *pool)
{
    uint32_t block = eviction_choose(pool->eviction);
    QN_ASSERT(block < pool->options.block_count && pool->references[block] == 0);
    for (uint32_t follower; (follower = first_cached_follower(pool, block)) != PREFIX_INDEX_NONE;)
        block = follower;
    return block;
}

static void evict_one(block_pool_t *pool)
{
    uint32_t block = block_pool_choose(pool);
    eviction_evicts(pool->eviction, block, pool->use);
    pool->stats.evictions += block_pool_unindex(pool, block);
}

uint32_t block_pool_take_fresh(block_pool_t *pool)
{
    if (pool->free_count == 0) evict_one(pool);
    uint32_t block = pool->free_blocks[--pool->free_count];
    QN_ASSERT(pool->references[block] == 0);
    pool->references[block] = 1;
    return block;
}

void block_pool_hold(block_pool_t *pool, uint32_t block)
{
    if (pool->references[block]++ == 0) leave_cached(pool, block);
    pool->hits[block]++;
}

static void let_go(block_pool_t *pool, uint32_t block)
{
    QN_ASSERT(pool->references[block] > 0);
    if (--pool->references[block] > 0) return;
    pool->used[block] = pool->use;
    if (!prefix_index_contains(pool->index, block)) {
        block_pool_make_free(pool, block);
        return;
    }
    const qn_policy_block_t candidate = {
        .block = block,
        .now = pool->use,
        .use = pool->used[block],
        .born = pool->born[block],
        .hits = pool->hits[block],
        .depth = prefix_index_depth(pool->index, block),
        .block_tokens = pool->options.block_tokens,
    };
    eviction_add(pool->eviction, &candidate);
    pool->cached_count++;
}

/* ---- leases ---- */

void block_pool_set_kernels(block_pool_t *pool, uint64_t kernel_set) { pool->kernel_set = kernel_set; }

uint64_t block_pool_identity(const block_pool_t *pool, uint64_t salt)
{
    const uint64_t facts[] = {salt, pool->kernel_set};
    return pool->kernel_set ? qn_fingerprint(facts, sizeof facts, 0) : salt;
}

uint32_t block_pool_find_prefix(const block_pool_t *pool, uint64_t identity, const uint32_t *ids, uint32_t ids_count,
                                uint32_t blocks_max, uint32_t *ret_blocks)
{
    if (!pool->options.prefix_cache || ids_count == 0) return 0;
    uint32_t full = (ids_count - 1) / pool->options.block_tokens;
    uint32_t limit = full < blocks_max ? full : blocks_max;
    prefix_place_t place = PREFIX_ROOT;
    uint32_t found = 0;
    for (; found < limit; found++) {
        uint32_t block =
            prefix_index_find(pool->index, place, identity, ids + (size_t)found * pool->options.block_tokens);
        if (block == PREFIX_INDEX_NONE) break;
        if (ret_blocks != NULL) ret_blocks[found] = block;
        place = prefix_index_place(pool->index, block);
    }
    return found;
}

static block_pool_outcome_t refuse_short(block_pool_t *pool)
{
    pool->stats.grants_short++;
    return BLOCK_POOL_SHORT_OF_BLOCKS;
}

/* Rows of a clone that the sequence's first block of its own begins with (rule 13); *ret_from: the block they are in. */
static uint32_t find_rows(const block_pool_t *pool, uint64_t identity, const uint32_t *table, uint32_t shared,
                          uint32_t needed, const uint32_t *ids, uint32_t ids_count, uint32_t *ret_from)
{
    uint32_t at = shared * pool->options.block_tokens;
    if (pool->tailed_pins == 0 || shared == needed || ids_count <= at + 1) return 0;
    prefix_place_t place = shared > 0 ? prefix_index_place(pool->index, table[shared - 1]) : PREFIX_ROOT;
    return block_pool_find_tail(pool, place, identity, ids + at, ids_count - 1 - at, ret_from);
}

block_pool_outcome_t block_pool_open(block_pool_t *pool, uint64_t sequence_id, uint64_t salt, uint32_t tokens,
                                     const uint32_t *ids, uint32_t ids_count, block_pool_grant_t *ret_grant)
{
    if (block_pool_is_private(sequence_id)) return BLOCK_POOL_UNKNOWN_SEQUENCE;
    if (block_pool_find(pool, sequence_id) != NULL) return BLOCK_POOL_ALREADY_OPEN;
    uint32_t needed = blocks_for(pool, tokens), from = NONE;
    bool full = pool->sequence_count - pool->pin_count - pool->fill_count == pool->options.sequences_max;
    if (full || needed > pool->table_max) return refuse_short(pool);
    uint32_t *table = pool->tables + (size_t)pool->unused_sequence * pool->table_max;
    uint32_t shared = block_pool_find_prefix(pool, block_pool_identity(pool, salt), ids, ids_count, needed, table);
    uint32_t revived = 0; /* shared blocks that are cached now, and so cannot be evicted for the fresh ones */
    for (uint32_t i = 0; i < shared; i++)
        revived += pool->references[table[i]] == 0;
    if (needed - shared > block_pool_available(pool) - revived) return refuse_short(pool);
    uint32_t rows = find_rows(pool, block_pool_identity(pool, salt), table, shared, needed, ids, ids_count, &from);

    pool->use++;
    sequence_t *sequence = block_pool_add(pool, sequence_id, salt, block_pool_identity(pool, salt));
    for (uint32_t i = 0; i < shared; i++)
        block_pool_hold(pool, table[i]);
    if (rows > 0) block_pool_hold(pool, from); /* before fresh blocks are taken */
    for (uint32_t i = shared; i < needed; i++)
        table[i] = block_pool_take_fresh(pool);
    sequence->block_count = needed;
    sequence->committed = shared * pool->options.block_tokens;
    sequence->tail = shared > 0 ? prefix_index_place(pool->index, table[shared - 1]) : PREFIX_ROOT;
    sequence->copied_from = rows > 0 ? from : NONE;
    block_pool_append(pool, sequence, ids + sequence->committed, rows);
    pool->stats.grants++;
    pool->stats.lookups += ids_count > 0;
    pool->stats.lookup_tokens += ids_count;
    pool->stats.hits += ids_count > 0 && sequence->committed > 0;
    pool->stats.hit_tokens += sequence->committed;
    *ret_grant = (block_pool_grant_t){.block_count = needed,
                                      .cached_tokens = sequence->committed,
                                      .blocks = table,
                                      .copies = rows > 0,
                                      .copy_from = from};
    return BLOCK_POOL_GRANTED;
}

block_pool_outcome_t block_pool_extend(block_pool_t *pool, uint64_t sequence_id, uint32_t tokens,
                                       block_pool_grant_t *ret_grant)
{
    sequence_t *sequence = block_pool_is_private(sequence_id) ? NULL : block_pool_find(pool, sequence_id);
    if (sequence == NULL) return BLOCK_POOL_UNKNOWN_SEQUENCE;
    uint32_t needed = blocks_for(pool, tokens);
    uint32_t first = sequence->block_count;
    uint32_t fresh = needed > first ? needed - first : 0;
    if (needed > pool->table_max || fresh > block_pool_available(pool)) return refuse_short(pool);
    pool->use++;
    uint32_t *table = block_pool_table_of(pool, sequence);
    for (uint32_t i = first; i < first + fresh; i++)
        table[i] = block_pool_take_fresh(pool);
    sequence->block_count = first + fresh;
    pool->stats.grants++;
    *ret_grant = (block_pool_grant_t){.first_block = first, .block_count = fresh, .blocks = table + first};
    return BLOCK_POOL_GRANTED;
}

static void forget_copy(block_pool_t *pool, sequence_t *sequence)
{
    if (sequence->copied_from != NONE) let_go(pool, sequence->copied_from);
    sequence->copied_from = NONE;
}

void block_pool_close(block_pool_t *pool, sequence_t *sequence)
{
    pool->use++;
    forget_copy(pool, sequence);
    const uint32_t *table = block_pool_table_of(pool, sequence);
    for (uint32_t i = sequence->block_count; i-- > 0;) /* last first: see eviction.h */
        let_go(pool, table[i]);
    remove_sequence(pool, sequence);
}

bool block_pool_release(block_pool_t *pool, uint64_t sequence_id)
{
    sequence_t *sequence = block_pool_is_private(sequence_id) ? NULL : block_pool_find(pool, sequence_id);
    if (sequence == NULL) return false;
    block_pool_close(pool, sequence);
    return true;
}

uint32_t block_pool_release_all(block_pool_t *pool)
{
    uint32_t released = 0;
    for (uint32_t i = 0; i <= pool->bucket_mask; i++)
        for (uint32_t next, j = pool->buckets[i]; j != NONE; j = next) {
            next = pool->sequences[j].next;
            if (block_pool_is_private(pool->sequences[j].id)) continue;
            block_pool_close(pool, &pool->sequences[j]);
            released++;
        }
    return released;
}

/* ---- contents ---- */

/* Enters a held, just completed block into the index after the sequence's tail (rules 4, 8, 9). */
static void index_block(block_pool_t *pool, sequence_t *sequence, uint32_t block, const uint32_t *ids)
{
    if (!pool->options.prefix_cache || !sequence->chained) return;
    if (!prefix_index_valid(pool->index, sequence->tail)) {
        sequence->chained = false;
        return;
    }
    uint32_t first = prefix_index_find(pool->index, sequence->tail, sequence->identity, ids);
    if (first == PREFIX_INDEX_NONE) {
        prefix_index_insert(pool->index, block, sequence->tail, sequence->identity, ids);
        pool->born[block] = pool->use;
        first = block;
    } else if (pool->references[first] == 0) {
        leave_cached(pool, first);
        prefix_index_replace(pool->index, first, block);
        pool->born[block] = pool->born[first];
        pool->hits[block] = pool->hits[first];
        block_pool_make_free(pool, first);
        first = block;
    }
    sequence->tail = prefix_index_place(pool->index, first);
}

void block_pool_append(block_pool_t *pool, sequence_t *sequence, const uint32_t *ids, uint32_t ids_count)
{
    uint32_t block_tokens = pool->options.block_tokens;
    uint32_t *pending = block_pool_pending_of(pool, sequence);
    const uint32_t *table = block_pool_table_of(pool, sequence);
    for (uint32_t i = 0; i < ids_count; i++) {
        uint32_t at = sequence->committed++;
        pending[at % block_tokens] = ids[i];
        if (sequence->committed % block_tokens == 0) index_block(pool, sequence, table[at / block_tokens], pending);
    }
}

bool block_pool_commit(block_pool_t *pool, uint64_t sequence_id, uint32_t position, const uint32_t *ids,
                       uint32_t ids_count)
{
    sequence_t *sequence = block_pool_is_private(sequence_id) ? NULL : block_pool_find(pool, sequence_id);
    if (sequence == NULL || position > sequence->committed) return false;
    uint64_t end = (uint64_t)position + ids_count;
    if (end > (uint64_t)sequence->block_count * pool->options.block_tokens) return false;
    pool->use++;
    if (end <= sequence->committed) return true;
    uint32_t known = sequence->committed - position;
    forget_copy(pool, sequence); /* a step behind the copy has run */
    block_pool_append(pool, sequence, ids + known, ids_count - known);
    return true;
}

uint32_t block_pool_lookup(const block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count)
{
    return block_pool_find_prefix(pool, block_pool_identity(pool, salt), ids, ids_count, UINT32_MAX, NULL) *
           pool->options.block_tokens;
}

uint32_t block_pool_resident(const block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count)
{
    return block_pool_find_full(pool, block_pool_identity(pool, salt), ids, ids_count, pool->table_max, NULL) *
           pool->options.block_tokens;
}

uint32_t block_pool_block_tokens(const block_pool_t *pool) { return pool->options.block_tokens; }

bool block_pool_shares(const block_pool_t *pool) { return pool->options.prefix_cache; }

uint32_t block_pool_pin_blocks_max(const block_pool_t *pool)
{
    uint32_t room = pool->options.block_count - pool->table_max, most = pool->options.pin_blocks_max;
    return most > 0 && most < room ? most : room;
}

uint32_t block_pool_flush(block_pool_t *pool)
{
    uint32_t freed = 0;
    block_pool_count_pinned(pool, false,
                            pool->scratch); /* who follows a pinned block may go, who is followed by one not */
    for (uint32_t block = 0; block < pool->options.block_count && prefix_index_count(pool->index) > 0; block++)
        if (prefix_index_contains(pool->index, block) && pool->scratch[block] == 0)
            freed += block_pool_unindex(pool, block);
    pool->stats.flushes++;
    return freed;
}

void block_pool_eviction_changed(block_pool_t *pool) { eviction_rescore(pool->eviction); }

/* ---- views ---- */

const uint32_t *block_pool_table(const block_pool_t *pool, uint64_t sequence_id, uint32_t *ret_count)
{
    const sequence_t *sequence = block_pool_find(pool, sequence_id);
    if (sequence == NULL) return NULL;
    *ret_count = sequence->block_count;
    return block_pool_table_of(pool, sequence);
}

uint32_t block_pool_references(const block_pool_t *pool, uint32_t block)
{
    QN_ASSERT(block < pool->options.block_count);
    return pool->references[block];
}

bool block_pool_indexed(const block_pool_t *pool, uint32_t block)
{
    QN_ASSERT(block < pool->options.block_count);
    return prefix_index_contains(pool->index, block);
}

uint32_t block_pool_available(const block_pool_t *pool) { return pool->free_count + pool->cached_count; }

void block_pool_stats(const block_pool_t *pool, block_pool_stats_t *ret_stats)
{
    *ret_stats = pool->stats;
    ret_stats->block_tokens = pool->options.block_tokens;
    ret_stats->total_blocks = pool->options.block_count;
    ret_stats->free_blocks = pool->free_count;
    ret_stats->cached_blocks = pool->cached_count;
    ret_stats->held_blocks = pool->options.block_count - pool->free_count - pool->cached_count;
    ret_stats->sequences = pool->sequence_count - pool->pin_count - pool->fill_count;
    ret_stats->policy = qn_policy_seat_name(eviction_seat(pool->eviction));
}

/* ---- invariants ---- */

/* Who holds a block without being its writer: clones their last one, and who copies from one. */
static void count_readers(const block_pool_t *pool, uint32_t *readers)
{
    for (uint32_t i = 0; i <= pool->bucket_mask; i++)
        for (uint32_t j = pool->buckets[i]; j != NONE; j = pool->sequences[j].next) {
            const sequence_t *sequence = &pool->sequences[j];
            if (sequence->copied_from != NONE) readers[sequence->copied_from]++;
            if (block_pool_is_pin(sequence->id) && sequence->committed % pool->options.block_tokens != 0)
                readers[block_pool_table_of(pool, sequence)[sequence->block_count - 1]]++;
        }
}

static const char *check_table(const block_pool_t *pool, const sequence_t *sequence, uint32_t *seen,
                               const uint32_t *readers)
{
    const uint32_t *table = block_pool_table_of(pool, sequence);
    for (uint32_t k = 0; k < sequence->block_count; k++) {
        if (table[k] >= pool->options.block_count) return "block pool: a table names a block that does not exist";
        seen[table[k]]++;
        if (k < sequence->committed / pool->options.block_tokens || block_pool_is_pin(sequence->id)) continue;
        if (pool->references[table[k]] - readers[table[k]] != 1 || prefix_index_contains(pool->index, table[k]))
            return "block pool: a block that may be written is shared or in the index";
    }
    return NULL;
}

static const char *count_references(const block_pool_t *pool, uint32_t *seen, const uint32_t *readers)
{
    uint32_t sequences = 0;
    for (uint32_t i = 0; i <= pool->bucket_mask; i++)
        for (uint32_t j = pool->buckets[i]; j != NONE; j = pool->sequences[j].next) {
            const sequence_t *sequence = &pool->sequences[j];
            if (++sequences > pool->sequence_count) return "block pool: more sequences in buckets than counted";
            if (sequence->block_count > pool->table_max ||
                sequence->committed > sequence->block_count * (uint64_t)pool->options.block_tokens)
                return "block pool: a sequence has committed more than its table holds";
            const char *broken = check_table(pool, sequence, seen, readers);
            if (broken != NULL) return broken;
            if (sequence->copied_from != NONE) seen[sequence->copied_from]++;
        }
    return sequences == pool->sequence_count ? NULL : "block pool: fewer sequences in buckets than counted";
}

const char *block_pool_check(const block_pool_t *pool)
{
    uint32_t *seen = pool->scratch, *readers = pool->scratch + pool->options.block_count + 1;
    memset(seen, 0, (2 * (size_t)pool->options.block_count + 1) * sizeof *seen);
    count_readers(pool, readers);
    const char *broken = count_references(pool, seen, readers);
    if (broken != NULL) return broken;
    uint32_t held = 0, cached = 0;
    for (uint32_t block = 0; block < pool->options.block_count; block++) {
        if (seen[block] != pool->references[block])
            return "block pool: references differ from the number of tables that list the block";
        if (seen[block] > 1 + readers[block] && !prefix_index_contains(pool->index, block) &&
            pool->stats.flushes == 0 && pool->stats.evictions == 0)
            return "block pool: a block is shared that never was in the index";
        held += seen[block] > 0;
        cached += seen[block] == 0 && prefix_index_contains(pool->index, block);
    }
    if (cached != pool->cached_count || held + cached + pool->free_count != pool->options.block_count)
        return "block pool: free, held and cached blocks do not add up";
    for (uint32_t i = 0; i < pool->free_count; i++) {
        uint32_t block = pool->free_blocks[i];
        if (seen[block]++ != 0 || prefix_index_contains(pool->index, block))
            return "block pool: a free block is held, indexed, or free twice";
    }
    const char *wrong = eviction_check(pool->eviction);
    return wrong != NULL ? wrong : prefix_index_check(pool->index);
}
