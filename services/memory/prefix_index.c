/* What is this?      A hash table and a tree over the same entries, one possible entry per block.
 * State owned:       keys (parent content, ids), content numbers, bucket chains, child lists.
 * Must never:        answer from a hash alone, or keep an entry whose parent is gone.
 * Read next:         block_pool.c, the only caller. */
#include "services/memory/prefix_index.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

#define NONE PREFIX_INDEX_NONE

typedef struct {
    uint64_t content; /* 0: no entry */
    uint64_t before;  /* content number of the parent; at depth 0 the salt */
    uint32_t parent;  /* block, NONE at depth 0 */
    uint32_t first_child;
    uint32_t next_sibling, previous_sibling;
    uint32_t next_in_bucket;
    uint32_t bucket;
    uint32_t depth;
} entry_t;

struct prefix_index {
    uint32_t block_count, block_tokens;
    uint32_t bucket_mask;
    uint32_t count;
    uint64_t last_content;
    entry_t *entries;  /* [block_count] */
    uint32_t *ids;     /* [block_count, block_tokens] */
    uint32_t *buckets; /* [bucket_mask + 1] */
    uint32_t *removed; /* [block_count] */
};

static uint32_t bucket_count_for(uint32_t block_count)
{
    uint32_t buckets = 16;
    while (buckets < block_count)
        buckets *= 2;
    return buckets;
}

qn_err_t prefix_index_create(uint32_t block_count, uint32_t block_tokens, prefix_index_t **ret_index)
{
    prefix_index_t *index = calloc(1, sizeof *index);
    if (index == NULL) return qn_fail(QN_ERR_NO_MEMORY, "prefix index: out of memory");
    uint32_t buckets = bucket_count_for(block_count);
    index->block_count = block_count;
    index->block_tokens = block_tokens;
    index->bucket_mask = buckets - 1;
    index->entries = calloc(block_count, sizeof *index->entries);
    index->ids = calloc((size_t)block_count * block_tokens, sizeof *index->ids);
    index->buckets = malloc(buckets * sizeof *index->buckets);
    index->removed = calloc(block_count, sizeof *index->removed);
    if (index->entries == NULL || index->ids == NULL || index->buckets == NULL || index->removed == NULL) {
        prefix_index_destroy(&index);
        return qn_fail(QN_ERR_NO_MEMORY, "prefix index: no memory for %u blocks of %u tokens; lower memory.kv_bytes",
                       block_count, block_tokens);
    }
    for (uint32_t i = 0; i < buckets; i++)
        index->buckets[i] = NONE;
    *ret_index = index;
    return QN_OK;
}

void prefix_index_destroy(prefix_index_t **index)
{
    if (*index == NULL) return;
    free((*index)->entries);
    free((*index)->ids);
    free((*index)->buckets);
    free((*index)->removed);
    free(*index);
    *index = NULL;
}

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = (a ^ b) * 0x9e3779b97f4a7c15ull;
    return x ^ (x >> 29);
}

static uint32_t bucket_of(const prefix_index_t *index, bool at_root, uint64_t before, const uint32_t *ids)
{
    uint64_t hash = mix(before, at_root ? 0x51ull : 0xc41ull);
    for (uint32_t i = 0; i < index->block_tokens; i++)
        hash = mix(hash, ids[i]);
    return (uint32_t)(mix(hash, hash >> 32) >> 7) & index->bucket_mask;
}

static const uint32_t *ids_of(const prefix_index_t *index, uint32_t block)
{
    return index->ids + (size_t)block * index->block_tokens;
}

uint32_t prefix_index_find(const prefix_index_t *index, prefix_place_t parent, uint64_t salt, const uint32_t *ids)
{
    bool at_root = parent.block == NONE;
    uint64_t before = at_root ? salt : parent.content;
    uint32_t block = index->buckets[bucket_of(index, at_root, before, ids)];
    for (; block != NONE; block = index->entries[block].next_in_bucket) {
        const entry_t *entry = &index->entries[block];
        if (entry->before == before && (entry->parent == NONE) == at_root &&
            memcmp(ids_of(index, block), ids, index->block_tokens * sizeof *ids) == 0)
            return block;
    }
    return NONE;
}

/* Puts the entry of `block` in front of its bucket and of its parent's children. */
static void link_entry(prefix_index_t *index, uint32_t block)
{
    entry_t *entry = &index->entries[block];
    entry->next_in_bucket = index->buckets[entry->bucket];
    index->buckets[entry->bucket] = block;
    entry->previous_sibling = NONE;
    entry->next_sibling = NONE;
    if (entry->parent == NONE) return;
    entry_t *parent = &index->entries[entry->parent];
    entry->next_sibling = parent->first_child;
    if (parent->first_child != NONE) index->entries[parent->first_child].previous_sibling = block;
    parent->first_child = block;
}

static void unlink_entry(prefix_index_t *index, uint32_t block)
{
    entry_t *entry = &index->entries[block];
    uint32_t *link = &index->buckets[entry->bucket];
    while (*link != block)
        link = &index->entries[*link].next_in_bucket;
    *link = entry->next_in_bucket;
    if (entry->next_sibling != NONE) index->entries[entry->next_sibling].previous_sibling = entry->previous_sibling;
    if (entry->previous_sibling != NONE)
        index->entries[entry->previous_sibling].next_sibling = entry->next_sibling;
    else if (entry->parent != NONE)
        index->entries[entry->parent].first_child = entry->next_sibling;
}

void prefix_index_insert(prefix_index_t *index, uint32_t block, prefix_place_t parent, uint64_t salt,
                         const uint32_t *ids)
{
    QN_ASSERT(block < index->block_count && index->entries[block].content == 0);
    QN_ASSERT(prefix_index_valid(index, parent));
    bool at_root = parent.block == NONE;
    entry_t *entry = &index->entries[block];
    *entry = (entry_t){
        .content = ++index->last_content,
        .before = at_root ? salt : parent.content,
        .parent = parent.block,
        .first_child = NONE,
        .depth = at_root ? 0 : index->entries[parent.block].depth + 1,
    };
    entry->bucket = bucket_of(index, at_root, entry->before, ids);
    memcpy(index->ids + (size_t)block * index->block_tokens, ids, index->block_tokens * sizeof *ids);
    link_entry(index, block);
    index->count++;
}

void prefix_index_replace(prefix_index_t *index, uint32_t from, uint32_t to)
{
    QN_ASSERT(index->entries[from].content != 0 && index->entries[to].content == 0);
    unlink_entry(index, from);
    index->entries[to] = index->entries[from];
    index->entries[from].content = 0;
    memcpy(index->ids + (size_t)to * index->block_tokens, ids_of(index, from),
           index->block_tokens * sizeof *index->ids);
    link_entry(index, to);
    for (uint32_t child = index->entries[to].first_child; child != NONE; child = index->entries[child].next_sibling)
        index->entries[child].parent = to;
}

uint32_t prefix_index_remove(prefix_index_t *index, uint32_t block, const uint32_t **ret_removed)
{
    QN_ASSERT(prefix_index_contains(index, block));
    uint32_t count = 0;
    index->removed[count++] = block;
    for (uint32_t done = 0; done < count; done++)
        for (uint32_t child = index->entries[index->removed[done]].first_child; child != NONE;
             child = index->entries[child].next_sibling)
            index->removed[count++] = child;
    for (uint32_t i = count; i-- > 0;) { /* leaves first: an entry's parent is linked when it is unlinked */
        unlink_entry(index, index->removed[i]);
        index->entries[index->removed[i]].content = 0;
    }
    index->count -= count;
    *ret_removed = index->removed;
    return count;
}

bool prefix_index_contains(const prefix_index_t *index, uint32_t block) { return index->entries[block].content != 0; }

prefix_place_t prefix_index_place(const prefix_index_t *index, uint32_t block)
{
    QN_ASSERT(prefix_index_contains(index, block));
    return (prefix_place_t){.block = block, .content = index->entries[block].content};
}

bool prefix_index_valid(const prefix_index_t *index, prefix_place_t place)
{
    return place.block == NONE || index->entries[place.block].content == place.content;
}

uint32_t prefix_index_depth(const prefix_index_t *index, uint32_t block)
{
    QN_ASSERT(prefix_index_contains(index, block));
    return index->entries[block].depth;
}

const uint32_t *prefix_index_ids(const prefix_index_t *index, uint32_t block)
{
    QN_ASSERT(prefix_index_contains(index, block));
    return ids_of(index, block);
}

uint32_t prefix_index_parent(const prefix_index_t *index, uint32_t block)
{
    QN_ASSERT(prefix_index_contains(index, block));
    return index->entries[block].parent;
}

static void compare_start(const prefix_index_t *index, uint32_t block, const uint32_t *ids, uint32_t ids_count,
                          uint32_t *best, uint32_t *ret_block)
{
    uint32_t same = 0;
    while (same < ids_count && ids_of(index, block)[same] == ids[same])
        same++;
    if (same <= *best) return;
    *best = same;
    *ret_block = block;
}

uint32_t prefix_index_find_start(const prefix_index_t *index, prefix_place_t parent, uint64_t salt, const uint32_t *ids,
                                 uint32_t ids_count, uint32_t *ret_block)
{
    uint32_t best = 0;
    QN_ASSERT(prefix_index_valid(index, parent) && ids_count < index->block_tokens);
    if (parent.block != NONE) {
        for (uint32_t child = index->entries[parent.block].first_child; child != NONE;
             child = index->entries[child].next_sibling)
            compare_start(index, child, ids, ids_count, &best, ret_block);
        return best;
    }
    for (uint32_t block = 0; block < index->block_count; block++) {
        const entry_t *entry = &index->entries[block];
        if (entry->content != 0 && entry->parent == NONE && entry->before == salt)
            compare_start(index, block, ids, ids_count, &best, ret_block);
    }
    return best;
}

uint32_t prefix_index_child(const prefix_index_t *index, uint32_t block, uint32_t child)
{
    return child == NONE ? index->entries[block].first_child : index->entries[child].next_sibling;
}

uint32_t prefix_index_count(const prefix_index_t *index) { return index->count; }

static bool listed_by_parent(const prefix_index_t *index, uint32_t block)
{
    uint32_t child = index->entries[index->entries[block].parent].first_child;
    while (child != NONE && child != block)
        child = index->entries[child].next_sibling;
    return child == block;
}

const char *prefix_index_check(const prefix_index_t *index)
{
    uint32_t in_buckets = 0;
    for (uint32_t bucket = 0; bucket <= index->bucket_mask; bucket++)
        for (uint32_t block = index->buckets[bucket]; block != NONE; block = index->entries[block].next_in_bucket) {
            const entry_t *entry = &index->entries[block];
            if (entry->content == 0 || entry->bucket != bucket)
                return "prefix index: a bucket holds a block that has no entry there";
            if (bucket_of(index, entry->parent == NONE, entry->before, ids_of(index, block)) != bucket)
                return "prefix index: an entry is in the wrong bucket";
            if (++in_buckets > index->count) return "prefix index: more entries in buckets than counted";
            if (entry->parent == NONE) continue;
            if (index->entries[entry->parent].content != entry->before || entry->content <= entry->before)
                return "prefix index: an entry follows a block that is not in the index";
            if (entry->depth != index->entries[entry->parent].depth + 1 || !listed_by_parent(index, block))
                return "prefix index: a parent does not list its child";
        }
    return in_buckets == index->count ? NULL : "prefix index: fewer entries in buckets than counted";
}
