/* The KV blocks: who holds which, what they contain, which may be shared, which may go.
 *
 * Pin rules
 *  1. A block is in exactly one state: free (content means nothing), held (listed in the tables of `references` ≥ 1
 *     sequences), or cached (held by nobody, kept in the prefix index for its content).
 *  2. A held block is never evicted, never moved and never given to a sequence as a fresh block.
 *  3. Only cached blocks are evicted, and only when a lease needs more blocks than are free; the eviction policy
 *     chooses which. Of a block that cached ones follow it is the last of those, which would go with it (rule 8).
 *  4. A block is shared only if it is in the index, and it enters the index only when all its `block_tokens` tokens are
 *     committed: their KV is written, as a StepResult has proven.
 *  5. A block in the index is never written again. A sequence may write only the blocks it was given fresh, at
 *     positions from Grant.cached_tokens on that it has not committed; such a block is held by that sequence alone.
 *  6. The block with the last token of a prompt is never shared at open: at least one token is left to run.
 *  7. Blocks match by content, not by hash: salt, all tokens before the block, and its own tokens are compared. The
 *     chained hash only finds the bucket.
 *  8. Every block in the index follows a block in the index (or starts a prefix). When one leaves the index, those that
 *     follow it leave too: the cached ones become free, the held ones stay held and are simply found no more.
 *  9. Of two blocks with equal content the first stays in the index. If that one is cached and the second is held, the
 *     second takes its place and the first becomes free.
 * 10. Flush empties the index but for full blocks of pins; held blocks stay with their sequences. A sequence whose chain
 *     left the index adds nothing to it any more.
 * 11. A pin holds blocks as a sequence does, and writes none: its full blocks stay held and indexed. Pins and fills leave
 *     enough blocks unheld for one sequence of the greatest length, so that somebody always makes progress; pins hold
 *     pin_blocks_max blocks at most.
 * 12. A clone is a pin that may also hold one block behind its full ones, of which it keeps the first rows: rows that are
 *     committed, which are never written again. Whoever was given that block goes on writing behind them.
 * 13. A sequence that is opened with ids that go on as a clone's rows do has them copied into its first block of its own:
 *     the grant says from where, and they count as cached. It holds that block too until its first commit, which proves
 *     that the copy was made; what has not been committed may have to be copied again.
 * 14. A fill holds fresh blocks that memory itself writes (restore); they enter the index when all of it is there.
 *
 * Times: open, extend, commit and release are O(blocks touched) (eviction of a block that others follow: amortised over
 * their entering the index); no allocation after creation. Not thread-safe, never blocks. Knows no socket, no device:
 * a block is a number in [0, block_count).
 * The chained block hash follows vLLM's automatic prefix caching (Kwon et al., SOSP 2023); the tree of blocks follows
 * SGLang's RadixAttention (Zheng et al., 2024). */
#ifndef QN_MEMORY_BLOCK_POOL_H
#define QN_MEMORY_BLOCK_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "services/memory/eviction.h"

typedef struct block_pool block_pool_t;

typedef struct {
    uint32_t block_count;       /* 1 .. 2^28 */
    uint32_t block_tokens;      /* 1 .. 1024 */
    uint32_t sequences_max;     /* sequences open at once, 1 .. 65536 */
    uint32_t tokens_max;        /* of one sequence; a lease for more is short of blocks */
    bool prefix_cache;          /* false: nothing enters the index, blocks become free at once */
    uint32_t pin_blocks_max;    /* blocks that pins may hold; 0: as many as rule 11 allows */
    qn_policy_seat_t *eviction; /* who decides what is evicted; borrowed, outlives the pool; NULL: lru */
} block_pool_options_t;

/* Values of GrantOutcome (schemas/grant.fbs). */
typedef enum {
    BLOCK_POOL_GRANTED = 0,
    BLOCK_POOL_SHORT_OF_BLOCKS = 1,  /* not enough blocks, or sequences_max are open; nothing changed */
    BLOCK_POOL_UNKNOWN_SEQUENCE = 2, /* the sequence is not open */
    BLOCK_POOL_ALREADY_OPEN = 3,     /* opened twice; nothing changed */
} block_pool_outcome_t;

/* Entries [first_block, first_block + block_count) of the sequence's block table. */
typedef struct {
    uint32_t first_block;
    uint32_t block_count;
    uint32_t cached_tokens; /* open: leading tokens that are resident, those of a copy included; else 0 */
    const uint32_t *blocks; /* view of the new entries, valid until the next call that changes the pool */
    bool copies; /* open: block `copy_from` is to be copied into the one of the token at cached_tokens, before a
                               step runs it; else cached_tokens is a multiple of block_tokens */
    uint32_t copy_from;
} block_pool_grant_t;

typedef struct {
    uint32_t block_tokens, total_blocks;
    uint32_t held_blocks, cached_blocks, free_blocks; /* sum: total_blocks */
    uint32_t sequences;
    uint64_t lookups;       /* opens that brought ids */
    uint64_t lookup_tokens; /* their ids */
    uint64_t hits;          /* of the lookups, found something */
    uint64_t hit_tokens;    /* of the ids, found */
    uint64_t evictions;     /* blocks */
    uint64_t grants, grants_short, flushes;
    const char *policy; /* name of the eviction policy */
} block_pool_stats_t;

/* Takes all memory it will ever use (about 190 + 4 * block_tokens bytes per block, 4 bytes per table entry of
 * sequences_max sequences, touched only when used). QN_ERR_INVALID: an option out of range; QN_ERR_NO_MEMORY.
 * Returns owned. */
qn_err_t block_pool_create(const block_pool_options_t *options, block_pool_t **ret_pool);
void block_pool_destroy(block_pool_t **pool);

/* Opens `sequence` with room for `tokens` tokens (≥ ids_count is usual, not required). `ids`: its first tokens, for
 * which resident prefixes under the same `salt` are shared; NULL or ids_count 0: none are looked for. The grant is
 * the whole table, shared blocks first. Outcomes: GRANTED, SHORT, ALREADY_OPEN. */
block_pool_outcome_t block_pool_open(block_pool_t *pool, uint64_t sequence, uint64_t salt, uint32_t tokens,
                                     const uint32_t *ids, uint32_t ids_count, block_pool_grant_t *ret_grant);
/* Makes room for `tokens` tokens in all; a table that is long enough grants 0 blocks. Outcomes: GRANTED, SHORT,
 * UNKNOWN. */
block_pool_outcome_t block_pool_extend(block_pool_t *pool, uint64_t sequence, uint32_t tokens,
                                       block_pool_grant_t *ret_grant);
/* Gives all blocks of the sequence back: indexed ones become cached when nobody else holds them, others free.
 * Returns false (and does nothing) for a sequence that is not open. */
bool block_pool_release(block_pool_t *pool, uint64_t sequence);
/* Releases every sequence (the scheduler is gone). Returns how many. */
uint32_t block_pool_release_all(block_pool_t *pool);

/* The KV of tokens [position, position + ids_count) of the sequence is written and these are its ids. Commits continue
 * where the last one ended (open: at cached_tokens); what repeats earlier positions is skipped, full blocks enter the
 * index. Returns false and changes nothing when the sequence is not open, leaves a gap, or exceeds its table. */
bool block_pool_commit(block_pool_t *pool, uint64_t sequence, uint32_t position, const uint32_t *ids,
                       uint32_t ids_count);

/* The kernels that compute what is written from now on: part of the identity of blocks of sequences that are opened from now
 * on, and of what is looked up. 0: unknown, as at first. */
void block_pool_set_kernels(block_pool_t *pool, uint64_t kernel_set);
/* What blocks that are written now under this salt are known by beside their tokens. */
uint64_t block_pool_identity(const block_pool_t *pool, uint64_t salt);

/* How many leading tokens of `ids` are resident: a multiple of block_tokens, below ids_count. Changes nothing. */
uint32_t block_pool_lookup(const block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count);

/* The same with the last full block: what could be kept of these ids. */
uint32_t block_pool_resident(const block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count);
uint32_t block_pool_block_tokens(const block_pool_t *pool);
/* Whether prefixes are shared at all. */
bool block_pool_shares(const block_pool_t *pool);
/* Blocks that pins may hold. */
uint32_t block_pool_pin_blocks_max(const block_pool_t *pool);

/* The sequence's block table: view of *ret_count entries, valid until the next change; NULL when not open. */
const uint32_t *block_pool_table(const block_pool_t *pool, uint64_t sequence, uint32_t *ret_count);
/* How many sequences hold the block. */
uint32_t block_pool_references(const block_pool_t *pool, uint32_t block);
/* Whether the block is in the index (and so must not be written). */
bool block_pool_indexed(const block_pool_t *pool, uint32_t block);

/* Empties the index (rule 10). Returns the number of cached blocks that became free. */
uint32_t block_pool_flush(block_pool_t *pool);

/* Blocks a lease can still get: free + cached. */
uint32_t block_pool_available(const block_pool_t *pool);
void block_pool_stats(const block_pool_t *pool, block_pool_stats_t *ret_stats);

/* Live or shadow of the eviction seat has changed. O(cached blocks). */
void block_pool_eviction_changed(block_pool_t *pool);

/* Verifies every invariant of the rules above by a full walk, O(blocks + table entries): reference counts equal the
 * number of tables, states partition the blocks, the index and the eviction candidates are exactly the right blocks,
 * chains are closed. Returns NULL, or a static text that names the broken one. For check() callbacks and tests. */
const char *block_pool_check(const block_pool_t *pool);

/* ---- for people: pins, clones, eviction, the map (block_pool_pins.c, block_pool_clone.c, block_pool_map.c) ---- */

#define BLOCK_POOL_PINS_MAX 64
#define BLOCK_POOL_FILLS_MAX 2

typedef enum {
    BLOCK_POOL_PINNED,
    BLOCK_POOL_NOT_CACHED,    /* nothing of it is resident: nothing was pinned */
    BLOCK_POOL_PINS_FULL,     /* BLOCK_POOL_PINS_MAX pins */
    BLOCK_POOL_PINS_TOO_MUCH, /* rule 11 */
    BLOCK_POOL_NOT_OPEN,      /* clone: no such sequence, or its blocks are not in the index */
} block_pool_pin_outcome_t;

/* Pins the resident full blocks of `ids` (rule 11); the same prefix again is the same pin. *ret_pin: its number, from 1;
 * *ret_tokens: how many tokens its blocks hold. */
block_pool_pin_outcome_t block_pool_pin(block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count,
                                        uint32_t *ret_pin, uint32_t *ret_tokens);
/* The same with the rows that ids have in the block behind (rule 12). */
block_pool_pin_outcome_t block_pool_clone(block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count,
                                          uint32_t *ret_pin, uint32_t *ret_tokens);
/* Of all that this sequence has committed. */
block_pool_pin_outcome_t block_pool_clone_sequence(block_pool_t *pool, uint64_t sequence, uint32_t *ret_pin,
                                                   uint32_t *ret_tokens);
/* What a pin keeps: *ret_tokens ids into ret_ids [ids_max] as far as they go. False: there is no such pin. */
bool block_pool_pin_ids(const block_pool_t *pool, uint32_t pin, uint32_t ids_max, uint32_t *ret_ids,
                        uint32_t *ret_tokens, uint64_t *ret_salt, uint64_t *ret_identity);
/* Its blocks, a view as block_pool_table's; NULL: there is no such pin. */
const uint32_t *block_pool_pin_blocks(const block_pool_t *pool, uint32_t pin, uint32_t *ret_count);
/* Makes a pin of an earlier pool over the same bytes again, as block_pool_pin_ids and _blocks gave it. Before any sequence
 * is opened. False, and nothing changed: it contradicts itself, another pin or the rules. */
bool block_pool_adopt(block_pool_t *pool, uint32_t pin, uint64_t salt, uint64_t identity, const uint32_t *ids,
                      uint32_t ids_count, const uint32_t *blocks, uint32_t block_count);

/* Opens a fill (rule 14) for the full blocks of `ids` under this identity; ids_count is a multiple of block_tokens. The
 * grant is the whole table; its cached_tokens are there already. One whose tokens all are needs no room: it only holds
 * them. False: no room (rule 11), or BLOCK_POOL_FILLS_MAX are open. */
bool block_pool_fill_open(block_pool_t *pool, uint64_t salt, uint64_t identity, const uint32_t *ids, uint32_t ids_count,
                          uint64_t *ret_fill, block_pool_grant_t *ret_grant);
/* All of it is written: its blocks enter the index and become cached. */
void block_pool_fill_finish(block_pool_t *pool, uint64_t id, const uint32_t *ids, uint32_t ids_count);
/* It came to nothing. */
void block_pool_fill_drop(block_pool_t *pool, uint64_t id);
/* False: there is no such pin. */
bool block_pool_unpin(block_pool_t *pool, uint32_t pin);
/* Returns how many there were. */
uint32_t block_pool_unpin_all(block_pool_t *pool);
/* The pin of the longest resident prefix of `ids` that is pinned; 0: none. */
uint32_t block_pool_pin_of(const block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count);
/* Pins there are, and the blocks that they hold, each once. */
uint32_t block_pool_pins(const block_pool_t *pool, uint32_t *ret_blocks);

/* Evicts up to `count` cached blocks (UINT32_MAX: all) in the order of the policy, with the cached ones that follow them;
 * `dry`: only says which the policy would choose. Those that it chose are in *ret_blocks [*ret_count], a view until the
 * next call of the pool. Returns how many went, or would. */
uint32_t block_pool_evict(block_pool_t *pool, uint32_t count, bool dry, const uint32_t **ret_blocks,
                          uint32_t *ret_count);
/* The same for the cached blocks of this prefix, last one first, and all that follow them. */
uint32_t block_pool_evict_prefix(block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count, bool dry,
                                 const uint32_t **ret_blocks, uint32_t *ret_count);

#define BLOCK_POOL_OWNERS_MAX 8

typedef enum { BLOCK_POOL_FREE, BLOCK_POOL_HELD, BLOCK_POOL_CACHED } block_pool_state_t;

/* What is known of one block. */
typedef struct {
    block_pool_state_t state;
    uint32_t references, pins;
    uint64_t owners[BLOCK_POOL_OWNERS_MAX]; /* the first sequences that hold it */
    uint32_t owner_count;
    bool indexed;
    uint64_t content; /* indexed: stands for its tokens and all before them; never used twice */
    uint32_t depth;   /* indexed */
    uint64_t hits, used;
} block_pool_block_t;

/* Blocks [first, first + count), which exist, into ret_blocks. O(count + all table entries). */
void block_pool_show(const block_pool_t *pool, uint32_t first, uint32_t count, block_pool_block_t *ret_blocks);
/* The blocks of the longest resident prefix, into ret_blocks [blocks_max]; returns how many. */
uint32_t block_pool_lookup_blocks(const block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count,
                                  uint32_t blocks_max, uint32_t *ret_blocks);

typedef struct {
    uint64_t held_tokens; /* room in the tables of sequences */
    uint64_t used_tokens; /* of it, committed */
    uint32_t free_blocks, free_runs, largest_free_run;
} block_pool_fragmentation_t;
void block_pool_fragmentation(block_pool_t *pool, block_pool_fragmentation_t *ret_fragmentation);

#endif
