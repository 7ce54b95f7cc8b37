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
    uint32_t next;        /* in its bucket, or in the list of unused entries */
    uint32_t block_count; /* entries of its table */
    uint32_t committed;   /* tokens */
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
    uint64_t use; /* logical time */

    sequence_t *sequences; /* [sequences_max + BLOCK_POOL_PINS_MAX] */
    uint32_t *buckets;     /* [bucket_mask + 1] */
    uint32_t bucket_mask;
    uint32_t unused_sequence; /* list head */
    uint32_t sequence_count;  /* pins included */
    uint32_t *tables;         /* [sequences_max + BLOCK_POOL_PINS_MAX, table_max] */
    uint32_t table_max;
    uint32_t *pending; /* [.., block_tokens]: ids of the last, partly committed block */
    uint32_t pin_count, pins_made;

    uint32_t *scratch; /* [blocks + 1], for check and for eviction by people */
    block_pool_stats_t stats;
};

/* A pin is a sequence that nobody runs; ids of requests are far below. */
#define BLOCK_POOL_PIN (1ull << 63)
static inline bool block_pool_is_pin(uint64_t sequence) { return (sequence & BLOCK_POOL_PIN) != 0; }

/* NULL: not open. */
sequence_t *block_pool_find(const block_pool_t *pool, uint64_t id);
uint32_t *block_pool_table_of(const block_pool_t *pool, const sequence_t *sequence);
/* Full blocks of `ids` that are resident, at most `blocks_max`, and never the one with the last id (rule 6); written to
 * `ret_blocks` when not NULL. */
uint32_t block_pool_find_prefix(const block_pool_t *pool, uint64_t salt, const uint32_t *ids, uint32_t ids_count,
                                uint32_t blocks_max, uint32_t *ret_blocks);
/* Takes an entry and all that follow it out of the index; the cached ones become free (rule 8). Returns how many. */
uint32_t block_pool_unindex(block_pool_t *pool, uint32_t block);
/* The block that is evicted next; there is one. */
uint32_t block_pool_choose(const block_pool_t *pool);

#endif
