/* Eviction policies: which unreferenced cached block goes when the pool needs a free one.
 *
 * A table of functions over a state the policy owns; a built-in policy is one file, eviction_<name>.c. The pool tells
 * it what enters and leaves the set of candidates and asks it to choose; the choice is checked against that set, and a
 * policy that names any other block is a bug that ends the process.
 * Calls are single-threaded, must not block, and take time O(1) or O(log blocks). A policy reads no clock: `use` of a
 * candidate is the pool's logical time, which grows by one with every open, extend, commit and release. */
#ifndef QN_MEMORY_EVICTION_H
#define QN_MEMORY_EVICTION_H

#include <stdint.h>

#define EVICTION_ABI_VERSION 1
#define EVICTION_NO_BLOCK UINT32_MAX

/* What a policy may know of a block that nobody references any more. */
typedef struct {
    uint32_t block;
    uint32_t depth; /* index of the block in its prefix: 0 holds the first tokens of a prompt */
    uint64_t use;   /* logical time of its last release; larger is later */
    uint64_t hits;  /* sequences that found it in the index since it was written */
} eviction_candidate_t;

typedef struct {
    uint32_t version; /* EVICTION_ABI_VERSION */
    const char *name;
    /* State for blocks [0, block_count); all its memory is taken here. NULL: out of memory. */
    void *(*create)(uint32_t block_count);
    void (*destroy)(void *state);
    /* The block became a candidate. Blocks of one sequence arrive last block first, because a block is found only
     * through the blocks before it. */
    void (*add)(void *state, const eviction_candidate_t *candidate);
    /* The block is no candidate any more: referenced again, evicted, or flushed. */
    void (*remove)(void *state, uint32_t block);
    /* The candidate to evict next (it stays one until `remove`); EVICTION_NO_BLOCK only when there is none. */
    uint32_t (*choose)(void *state);
} eviction_policy_t;

/* Least recently used: the candidate with the oldest release goes first. */
extern const eviction_policy_t eviction_lru;

/* The built-in policy of this name ("lru"), or NULL. */
const eviction_policy_t *eviction_find(const char *name);

#endif
