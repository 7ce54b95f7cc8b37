/* What is this?      The built-in eviction policy: least recently used, and the lookup of built-in policies by name.
 * State owned:       one doubly linked list over block numbers, oldest release first.
 * Must never:        read a clock, or look at anything but the candidates it is given.
 * Read next:         eviction.h for the contract, block_pool.c for the caller. */
#include "services/memory/eviction.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    uint32_t previous, next;
} lru_link_t;

/* The list is closed over links[block_count], so that no end is special. */
typedef struct {
    uint32_t block_count;
    lru_link_t links[];
} lru_t;

static void *lru_create(uint32_t block_count)
{
    lru_t *lru = malloc(sizeof *lru + ((size_t)block_count + 1) * sizeof(lru_link_t));
    if (lru == NULL) return NULL;
    lru->block_count = block_count;
    lru->links[block_count] = (lru_link_t){.previous = block_count, .next = block_count};
    return lru;
}

static void lru_destroy(void *state) { free(state); }

static void lru_add(void *state, const eviction_candidate_t *candidate)
{
    lru_t *lru = state;
    uint32_t end = lru->block_count;
    uint32_t block = candidate->block;
    lru->links[block] = (lru_link_t){.previous = lru->links[end].previous, .next = end};
    lru->links[lru->links[end].previous].next = block;
    lru->links[end].previous = block;
}

static void lru_remove(void *state, uint32_t block)
{
    lru_t *lru = state;
    lru_link_t link = lru->links[block];
    lru->links[link.previous].next = link.next;
    lru->links[link.next].previous = link.previous;
}

static uint32_t lru_choose(void *state)
{
    const lru_t *lru = state;
    uint32_t oldest = lru->links[lru->block_count].next;
    return oldest == lru->block_count ? EVICTION_NO_BLOCK : oldest;
}

const eviction_policy_t eviction_lru = {
    .version = EVICTION_ABI_VERSION,
    .name = "lru",
    .create = lru_create,
    .destroy = lru_destroy,
    .add = lru_add,
    .remove = lru_remove,
    .choose = lru_choose,
};

const eviction_policy_t *eviction_find(const char *name)
{
    return strcmp(name, eviction_lru.name) == 0 ? &eviction_lru : NULL;
}
