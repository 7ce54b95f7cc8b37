/* What is this?      The candidates for eviction, in two heaps: by the live policy's scores, and by a shadow's.
 * State owned:       the facts and scores of candidates, the heaps.
 * Must never:        know a block that is no candidate; believe a score that is no number.
 * Read next:         eviction.h for the contract, eviction_builtin.c for the scores, block_pool.c for the caller. */
#include "services/memory/eviction.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/assert.h"

#define NOWHERE UINT32_MAX

typedef struct {
    double *scores;   /* [block_count], of candidates */
    uint32_t *blocks; /* [block_count]: the heap */
    uint32_t *places; /* [block_count]: where in the heap; NOWHERE: no candidate */
    double floor;     /* score of the last one that went */
} heap_t;

typedef struct {
    uint64_t use, born, hits, order; /* order: of becoming a candidate */
    uint32_t depth, block_tokens;
} facts_t;

struct eviction {
    qn_policy_seat_t *seat, *own_seat; /* own_seat: when none was given */
    uint32_t block_count, count;
    uint64_t now, next_order;
    facts_t *facts; /* [block_count] */
    heap_t live, shadow;
    bool shadows; /* the shadow's heap is kept */
};

/* ---- creation ---- */

static bool allocate(heap_t *heap, uint32_t block_count)
{
    heap->scores = calloc(block_count, sizeof *heap->scores);
    heap->blocks = calloc(block_count, sizeof *heap->blocks);
    heap->places = malloc(block_count * sizeof *heap->places);
    for (uint32_t i = 0; heap->places != NULL && i < block_count; i++)
        heap->places[i] = NOWHERE;
    return heap->scores != NULL && heap->blocks != NULL && heap->places != NULL;
}

static void release(heap_t *heap)
{
    free(heap->scores);
    free(heap->blocks);
    free(heap->places);
}

eviction_t *eviction_create(qn_policy_seat_t *seat, uint32_t block_count)
{
    eviction_t *eviction = calloc(1, sizeof *eviction);
    if (eviction == NULL) return NULL;
    qn_policy_catalogue_t catalogue = eviction_catalogue("");
    qn_err_t err = seat == NULL ? qn_policy_seat_wrap(&catalogue, &eviction_lru.head, &eviction->own_seat) : QN_OK;
    eviction->seat = seat != NULL ? seat : eviction->own_seat;
    eviction->block_count = block_count;
    eviction->facts = calloc(block_count, sizeof *eviction->facts);
    bool whole = allocate(&eviction->live, block_count) && allocate(&eviction->shadow, block_count);
    if (err < 0 || !whole || eviction->facts == NULL) eviction_destroy(&eviction);
    return eviction;
}

void eviction_destroy(eviction_t **eviction)
{
    if (*eviction == NULL) return;
    release(&(*eviction)->live);
    release(&(*eviction)->shadow);
    free((*eviction)->facts);
    qn_policy_seat_close(&(*eviction)->own_seat);
    free(*eviction);
    *eviction = NULL;
}

/* ---- a heap ---- */

static bool goes_before(const eviction_t *eviction, const heap_t *heap, uint32_t a, uint32_t b)
{
    const facts_t *left = &eviction->facts[a], *right = &eviction->facts[b];
    if (heap->scores[a] != heap->scores[b]) return heap->scores[a] < heap->scores[b];
    return left->depth != right->depth ? left->depth > right->depth : left->order < right->order;
}

static void put(heap_t *heap, uint32_t place, uint32_t block)
{
    heap->blocks[place] = block;
    heap->places[block] = place;
}

static void rise(const eviction_t *eviction, heap_t *heap, uint32_t place, uint32_t block)
{
    for (; place > 0 && goes_before(eviction, heap, block, heap->blocks[(place - 1) / 2]); place = (place - 1) / 2)
        put(heap, place, heap->blocks[(place - 1) / 2]);
    put(heap, place, block);
}

static void sink(const eviction_t *eviction, heap_t *heap, uint32_t count, uint32_t place, uint32_t block)
{
    for (;;) {
        uint32_t child = 2 * place + 1;
        if (child >= count) break;
        if (child + 1 < count && goes_before(eviction, heap, heap->blocks[child + 1], heap->blocks[child])) child++;
        if (!goes_before(eviction, heap, heap->blocks[child], block)) break;
        put(heap, place, heap->blocks[child]);
        place = child;
    }
    put(heap, place, block);
}

static void take_out(const eviction_t *eviction, heap_t *heap, uint32_t count, uint32_t block)
{
    uint32_t place = heap->places[block], last = heap->blocks[count - 1];
    heap->places[block] = NOWHERE;
    if (last == block) return;
    if (place > 0 && goes_before(eviction, heap, last, heap->blocks[(place - 1) / 2]))
        rise(eviction, heap, place, last);
    else
        sink(eviction, heap, count - 1, place, last);
}

/* ---- scores ---- */

static qn_policy_block_t show(const eviction_t *eviction, const heap_t *heap, uint32_t block)
{
    const facts_t *facts = &eviction->facts[block];
    return (qn_policy_block_t){.block = block,
                               .now = eviction->now,
                               .use = facts->use,
                               .born = facts->born,
                               .hits = facts->hits,
                               .floor = heap->floor,
                               .depth = facts->depth,
                               .block_tokens = facts->block_tokens};
}

static bool ask_score(eviction_t *eviction, bool shadow, uint32_t block)
{
    heap_t *heap = shadow ? &eviction->shadow : &eviction->live;
    const qn_policy_object_t *object = qn_policy_seat_ask(eviction->seat, shadow);
    const qn_eviction_policy_t *policy = (const void *)qn_policy_object_head(object);
    qn_policy_block_t shown = show(eviction, heap, block);
    heap->scores[block] = policy->score(qn_policy_object_memory(object), &shown);
    return qn_policy_seat_take(eviction->seat, shadow, isnan(heap->scores[block]) ? "a score is no number" : NULL);
}

/* All candidates anew, with `count` of them in the heap; false: the policy was withdrawn on the way. */
static bool rescore(eviction_t *eviction, bool shadow)
{
    heap_t *heap = shadow ? &eviction->shadow : &eviction->live;
    heap->floor = 0;
    for (uint32_t i = 0; i < eviction->count; i++)
        if (!ask_score(eviction, shadow, heap->blocks[i])) return false;
    for (uint32_t i = eviction->count / 2; i-- > 0;)
        sink(eviction, heap, eviction->count, i, heap->blocks[i]);
    return true;
}

static void rescore_live(eviction_t *eviction)
{
    while (!rescore(eviction, false)) { /* the last resort is withdrawn by nothing */
    }
}

static void rescore_shadow(eviction_t *eviction)
{
    eviction->shadows = qn_policy_seat_shadow(eviction->seat) != NULL;
    if (!eviction->shadows) return;
    for (uint32_t block = 0; block < eviction->block_count; block++)
        eviction->shadow.places[block] = NOWHERE;
    for (uint32_t i = 0; i < eviction->count; i++)
        put(&eviction->shadow, i, eviction->live.blocks[i]);
    eviction->shadows = rescore(eviction, true);
}

void eviction_rescore(eviction_t *eviction)
{
    rescore_live(eviction);
    rescore_shadow(eviction);
}

/* ---- candidates ---- */

void eviction_add(eviction_t *eviction, const qn_policy_block_t *candidate)
{
    uint32_t block = (uint32_t)candidate->block;
    QN_ASSERT(block < eviction->block_count && eviction->live.places[block] == NOWHERE);
    eviction->now = candidate->now;
    eviction->facts[block] = (facts_t){.use = candidate->use,
                                       .born = candidate->born,
                                       .hits = candidate->hits,
                                       .order = eviction->next_order++,
                                       .depth = candidate->depth,
                                       .block_tokens = candidate->block_tokens};
    while (!ask_score(eviction, false, block))
        rescore_live(eviction);
    rise(eviction, &eviction->live, eviction->count, block);
    if (eviction->shadows) eviction->shadows = ask_score(eviction, true, block);
    if (eviction->shadows) rise(eviction, &eviction->shadow, eviction->count, block);
    eviction->count++;
}

void eviction_remove(eviction_t *eviction, uint32_t block)
{
    QN_ASSERT(eviction_contains(eviction, block));
    take_out(eviction, &eviction->live, eviction->count, block);
    if (eviction->shadows) take_out(eviction, &eviction->shadow, eviction->count, block);
    eviction->count--;
}

void eviction_put_back(eviction_t *eviction, uint32_t block)
{
    QN_ASSERT(block < eviction->block_count && eviction->live.places[block] == NOWHERE);
    rise(eviction, &eviction->live, eviction->count, block);
    if (eviction->shadows) rise(eviction, &eviction->shadow, eviction->count, block);
    eviction->count++;
}

bool eviction_contains(const eviction_t *eviction, uint32_t block)
{
    return block < eviction->block_count && eviction->live.places[block] != NOWHERE;
}

uint32_t eviction_count(const eviction_t *eviction) { return eviction->count; }

uint32_t eviction_choose(const eviction_t *eviction)
{
    return eviction->count > 0 ? eviction->live.blocks[0] : EVICTION_NO_BLOCK;
}

bool eviction_is_before(const eviction_t *eviction, uint32_t a, uint32_t b)
{
    return goes_before(eviction, &eviction->live, a, b);
}

/* ---- evictions ---- */

static void describe(const eviction_t *eviction, bool shadow, uint32_t block, qn_policy_decision_t *ret_decision)
{
    const heap_t *heap = shadow ? &eviction->shadow : &eviction->live;
    const qn_policy_object_t *object =
        shadow ? qn_policy_seat_shadow(eviction->seat) : qn_policy_seat_live(eviction->seat);
    const qn_eviction_policy_t *policy = (const void *)qn_policy_object_head(object);
    qn_policy_block_t shown = show(eviction, heap, block);
    *ret_decision = (qn_policy_decision_t){.hash = block};
    snprintf(ret_decision->words, sizeof ret_decision->words, "block %" PRIu32 ", score %g", block,
             heap->scores[block]);
    if (policy->explain != NULL)
        policy->explain(&shown, ret_decision->reason);
    else
        snprintf(ret_decision->reason, sizeof ret_decision->reason,
                 "%s: depth %" PRIu32 ", %" PRIu64 " hits, last used at %" PRIu64 " of %" PRIu64
                 ", cached since %" PRIu64,
                 qn_policy_object_head(object)->name, shown.depth, shown.hits, shown.use, shown.now, shown.born);
    ret_decision->reason[QN_POLICY_REASON_MAX - 1] = '\0';
}

void eviction_evicts(eviction_t *eviction, uint32_t block, uint64_t now)
{
    eviction->now = now;
    eviction->live.floor = eviction->live.scores[block];
    if (!eviction->shadows) return;
    uint32_t other = eviction->shadow.blocks[0];
    eviction->shadow.floor = eviction->shadow.scores[other];
    if (other == block) return;
    qn_policy_decision_t by_live, by_shadow;
    describe(eviction, false, block, &by_live);
    describe(eviction, true, other, &by_shadow);
    qn_policy_seat_compare(eviction->seat, "evict", now, &by_live, &by_shadow);
}

qn_policy_seat_t *eviction_seat(const eviction_t *eviction) { return eviction->seat; }

/* ---- invariants ---- */

static const char *check_heap(const eviction_t *eviction, const heap_t *heap)
{
    uint32_t in = 0;
    for (uint32_t i = 0; i < eviction->count; i++) {
        if (heap->places[heap->blocks[i]] != i) return "eviction: a block is not where its place says";
        if (i > 0 && goes_before(eviction, heap, heap->blocks[i], heap->blocks[(i - 1) / 2]))
            return "eviction: a heap is out of order";
    }
    for (uint32_t block = 0; block < eviction->block_count; block++)
        in += heap->places[block] != NOWHERE;
    return in == eviction->count ? NULL : "eviction: candidates are miscounted";
}

const char *eviction_check(const eviction_t *eviction)
{
    const char *broken = check_heap(eviction, &eviction->live);
    return broken != NULL || !eviction->shadows ? broken : check_heap(eviction, &eviction->shadow);
}
