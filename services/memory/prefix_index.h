/* The prefix index: which block holds the KV of these tokens after those tokens.
 *
 * A tree of full blocks. An entry's key is (what stands before it, its block_tokens ids); "what stands before it" is
 * the content number of its parent entry, or the salt for the first block of a prefix. Content numbers are never
 * used twice and every parent of an entry is an entry (removal takes the whole subtree), so equal keys mean equal
 * prefixes token by token: no answer rests on a hash. The hash of the key only finds the bucket.
 *
 * Fixed memory, one possible entry per block. Not thread-safe; knows nothing of who holds a block. */
#ifndef QN_MEMORY_PREFIX_INDEX_H
#define QN_MEMORY_PREFIX_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define PREFIX_INDEX_NONE UINT32_MAX

typedef struct prefix_index prefix_index_t;

/* A place in the tree: after `block`, whose content number was `content`. {PREFIX_INDEX_NONE, 0}: at the root. */
typedef struct {
    uint32_t block;
    uint64_t content;
} prefix_place_t;

#define PREFIX_ROOT ((prefix_place_t){.block = PREFIX_INDEX_NONE, .content = 0})

/* QN_ERR_NO_MEMORY. Returns owned. */
qn_err_t prefix_index_create(uint32_t block_count, uint32_t block_tokens, prefix_index_t **ret_index);
void prefix_index_destroy(prefix_index_t **index);

/* The block that holds `ids` [block_tokens] after `parent` under `salt`, or PREFIX_INDEX_NONE. O(block_tokens). */
uint32_t prefix_index_find(const prefix_index_t *index, prefix_place_t parent, uint64_t salt, const uint32_t *ids);
/* Enters `block`, which has no entry, under a key that has none. `parent` is valid. */
void prefix_index_insert(prefix_index_t *index, uint32_t block, prefix_place_t parent, uint64_t salt,
                         const uint32_t *ids);
/* Gives the entry of `from`, content number and all that follows it included, to `to`, which has none. O(children). */
void prefix_index_replace(prefix_index_t *index, uint32_t from, uint32_t to);
/* Removes the entry of `block` and all that follow it. Returns how many; *ret_removed views their blocks, `block`
 * first, until the next removal. */
uint32_t prefix_index_remove(prefix_index_t *index, uint32_t block, const uint32_t **ret_removed);

bool prefix_index_contains(const prefix_index_t *index, uint32_t block);
/* The place after an entry. */
prefix_place_t prefix_index_place(const prefix_index_t *index, uint32_t block);
/* Whether the place still is what it was when it was taken; the root always is. */
bool prefix_index_valid(const prefix_index_t *index, prefix_place_t place);
/* Index of the entry in its prefix, from 0. */
uint32_t prefix_index_depth(const prefix_index_t *index, uint32_t block);
/* Its block_tokens ids; a view until it is removed. */
const uint32_t *prefix_index_ids(const prefix_index_t *index, uint32_t block);
/* The entry it follows, or PREFIX_INDEX_NONE. */
uint32_t prefix_index_parent(const prefix_index_t *index, uint32_t block);
/* How many of ids [ids_count < block_tokens] an entry after `parent` begins with, at most; *ret_block is that entry.
 * O(children); at the root, O(blocks). */
uint32_t prefix_index_find_start(const prefix_index_t *index, prefix_place_t parent, uint64_t salt, const uint32_t *ids,
                                 uint32_t ids_count, uint32_t *ret_block);
/* The entries that follow it directly: the first, or the one after `child`; PREFIX_INDEX_NONE: no more. */
uint32_t prefix_index_child(const prefix_index_t *index, uint32_t block, uint32_t child);
uint32_t prefix_index_count(const prefix_index_t *index);
/* Full walk: every entry is in its bucket, and its parent is an entry that lists it. NULL or the broken rule. */
const char *prefix_index_check(const prefix_index_t *index);

#endif
