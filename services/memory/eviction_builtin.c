/* What is this?      The built-in eviction policies: lru, lfu, fifo, cost.
 * State owned:       none; see common/policy.h.
 * Must never:        look at anything but the block it is shown.
 * Read next:         eviction.c, which keeps the order. */
#include "services/memory/eviction.h"

/* Least recently used. */
static double lru_score(const qn_policy_memory_t *memory, const qn_policy_block_t *block)
{
    (void)memory;
    return (double)block->use;
}

/* Least frequently used; of equally used ones the least recently: a block that nobody found since it was written goes
 * first. */
static double lfu_score(const qn_policy_memory_t *memory, const qn_policy_block_t *block)
{
    (void)memory;
    double hits = block->hits < 4095 ? (double)block->hits : 4095; /* both are whole numbers in a double's 53 bits */
    return hits * 0x1p40 + (double)block->use;
}

/* First in, first out: the oldest content goes, used or not. */
static double fifo_score(const qn_policy_memory_t *memory, const qn_policy_block_t *block)
{
    (void)memory;
    return (double)block->born;
}

/* What it costs to compute it again times how often it is wanted, growing old by what was evicted meanwhile: GreedyDual-
 * Size-Frequency (Cherkasova 1998; GreedyDual: Young 1994). A token behind others costs more: attention reads all of
 * them. 4096 tokens of context cost as much again as the rest of the network, about. */
static double cost_score(const qn_policy_memory_t *memory, const qn_policy_block_t *block)
{
    (void)memory;
    double context = (double)block->depth * block->block_tokens;
    return block->floor + (double)(block->hits + 1) * (1 + context / 4096);
}

#define EVICTION(words) {.version = QN_POLICY_ABI_VERSION, .kind = QN_POLICY_EVICTION, .name = (words)}

const qn_eviction_policy_t eviction_lru = {.head = EVICTION("lru"), .score = lru_score};
const qn_eviction_policy_t eviction_lfu = {.head = EVICTION("lfu"), .score = lfu_score};
const qn_eviction_policy_t eviction_fifo = {.head = EVICTION("fifo"), .score = fifo_score};
const qn_eviction_policy_t eviction_cost = {.head = EVICTION("cost"), .score = cost_score};

qn_policy_catalogue_t eviction_catalogue(const char *dirs)
{
    static const qn_policy_head_t *const builtin[] = {&eviction_lru.head, &eviction_lfu.head, &eviction_fifo.head,
                                                      &eviction_cost.head};
    return (qn_policy_catalogue_t){.kind = QN_POLICY_EVICTION,
                                   .builtin = builtin,
                                   .builtin_count = sizeof builtin / sizeof *builtin,
                                   .dirs = dirs};
}
