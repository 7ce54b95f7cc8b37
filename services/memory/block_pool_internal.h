/* What the files of the block pool share: block_pool.c (leases, states, contents), block_pool_pins.c (pins and eviction by
 * people), block_pool_map.c (what is shown). */
#ifndef QN_MEMORY_BLOCK_POOL_INTERNAL_H
#define QN_MEMORY_BLOCK_POOL_INTERNAL_H

#include "services/memory/block_pool.h"
#include "services/memory/prefix_index.h"

#define NONE UINT32_MAX

typedef struct {
    uint64_t id;
    uint64_t salt;
    uint64_t identity;    /* of its blocks: its salt and the kernels, when it was opened */
    uint32_t next;        /* in its bucket, or in the list of unused entries */
    uint32_t block_count; /* entries of its table */
    uint32_t committed;   /* tokens */
    uint32_t copied_from; /* held until the first commit: the block whose rows a step copies into its own; NONE: none */
    bool chained;         /* its full blocks up to `committed` end at `tail` in the index */
    prefix_place_t tail;
} sequence_t;

struct block_pool {
    block_pool_options_t options;
    eviction_t *eviction;
    prefix_index_t *index;
    uint32_t *references;  /* [blocks] */
    uint64_t *hits;        /* [blocks] */
    uint64_t *used;        /* [blocks]: logical time of the last release */
    uint64_t *born;        /* [blocks]: logical time when its content entered the index */
    uint32_t *free_blocks; /* stack [blocks] */
    uint32_t free_count, cached_count;
    uint64_t use;        /* logical time */
    uint64_t kernel_set; /* 0: unknown */

    sequence_t *sequences; /* [sequences_max + BLOCK_POOL_PRIVATE_MAX] */
    uint32_t *buckets;     /* [bucket_mask + 1] */
    uint32_t bucket_mask;
    uint32_t unused_sequence; /* list head */
    uint32_t sequence_count;  /* pins included */
    uint32_t *tables;         /* [sequences_max + BLOCK_POOL_PRIVATE_MAX, table_max] */
    uint32_t table_max;
    uint32_t *pending; /* [.., block_tokens]: ids of the last, partly committed block */
    uint32_t pin_count, pins_made, tailed_pins;
    uint32_t fill_count, fills_made, fill_blocks;

    uint32_t *scratch; /* [2 * blocks + 1], for check, pins and eviction by people */
    block_pool_stats_t stats;
};

/* Pins and fills are sequences that nobody runs; ids of requests are far below. No message may name them. */
#define BLOCK_POOL_PIN (1ull << 63)
#define BLOCK_POOL_FILL (1ull << 62)
#define BLOCK_POOL_PRIVATE_MAX (BLOCK_POOL_PINS_MAX + BLOCK_POOL_FILLS_MAX)
static inline bool block_pool_is_pin(uint64_t sequence) { return (sequence & BLOCK_POOL_PIN) != 0; }
static inline bool block_pool_is_private(uint64_t sequence) { return sequence >> 62 != 0; }

/* ---- block_pool.c ---- */

/* NULL: not open. */
sequence_t *block_pool_find(const block_pool_t *pool, uint64_t id);
uint32_t *block_pool_table_of(const block_pool_t *pool, const sequence_t *sequence);
uint32_t *block_pool_pending_of(const block_pool_t *pool, const sequence_t *sequence);
/* Full blocks of `ids` that are resident, at most `blocks_max`, and never the one with the last id (rule 6); written to
 * `ret_blocks` when not NULL. */
uint32_t block_pool_find_prefix(const block_pool_t *pool, uint64_t identity, const uint32_t *ids, uint32_t ids_count,
                                uint32_t blocks_max, uint32_t *ret_blocks);
/* The same, the last one too: for what is kept, not run. */
static inline uint32_t block_pool_find_full(const block_pool_t *pool, uint64_t identity, const uint32_t *ids,
                                            uint32_t ids_count, uint32_t blocks_max, uint32_t *ret_blocks)
{
    return block_pool_find_prefix(pool, identity, ids, ids_count + 1, blocks_max, ret_blocks);
}
/* Takes an unused entry, without blocks. There is one for every sequence, pin and fill. */
sequence_t *block_pool_add(block_pool_t *pool, uint64_t id, uint64_t salt, uint64_t identity);
/* One more holds the block, which is in the index or held. */
void block_pool_hold(block_pool_t *pool, uint32_t block);
/* A free or cached block, held once; there is one. */
uint32_t block_pool_take_fresh(block_pool_t *pool);
void block_pool_make_free(block_pool_t *pool, uint32_t block);
/* Enters the full blocks among these ids, as block_pool_commit; the ids fit the table. */
void block_pool_append(block_pool_t *pool, sequence_t *sequence, const uint32_t *ids, uint32_t ids_count);
/* Lets all its blocks go and removes it. */
void block_pool_close(block_pool_t *pool, sequence_t *sequence);
/* Takes an entry and all that follow it out of the index; the cached ones become free (rule 8). Returns how many. */
uint32_t block_pool_unindex(block_pool_t *pool, uint32_t block);
/* The block that is evicted next; there is one. */
uint32_t block_pool_choose(const block_pool_t *pool);

/* ---- block_pool_pins.c ---- */

/* Calls `each` for every pin until it returns true; returns view of that pin, or NULL. */
const sequence_t *block_pool_find_pin(const block_pool_t *pool,
                                      bool (*each)(const block_pool_t *, const sequence_t *, void *), void *context);
/* Counts the holders of each block that is a full block of a pin into seen [blocks + 1, of which the last is the number of
 * such blocks], zeroed here; with `tails` also the last, partly kept blocks of clones. */
void block_pool_count_pinned(const block_pool_t *pool, bool tails, uint32_t *seen);
/* Whether blocks for the longest sequence, and within the share of pins, are left beside all pins and `more`. */
bool block_pool_leaves_room(const block_pool_t *pool, uint32_t more, bool pinned);

/* ---- block_pool_clone.c ---- */

/* The pin whose partly kept block begins as ids [ids_count] do, behind `place`. Returns how many of them, at most
 * ids_count; *ret_block is the block. */
uint32_t block_pool_find_tail(const block_pool_t *pool, prefix_place_t place, uint64_t identity, const uint32_t *ids,
                              uint32_t ids_count, uint32_t *ret_block);

#endif
