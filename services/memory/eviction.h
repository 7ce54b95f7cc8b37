/* Which unreferenced cached block goes when the pool needs a free one: the candidates in the order of their scores.
 *
 * The policy (common/policy.h, kind eviction) gives a score to each block that becomes a candidate; the order is kept here,
 * so a policy is one function and can be changed at any moment: all candidates are scored anew then. A shadow has an order
 * of its own over the same candidates.
 *
 * Times: add and remove O(log candidates), choose O(1), rescore O(candidates). No allocation after creation, no clock. */
#ifndef QN_MEMORY_EVICTION_H
#define QN_MEMORY_EVICTION_H

#include <stdbool.h>
#include <stdint.h>

#include "common/policy/policy_seat.h"

#define EVICTION_NO_BLOCK UINT32_MAX

typedef struct eviction eviction_t;

extern const qn_eviction_policy_t eviction_lru, eviction_lfu, eviction_fifo, eviction_cost;

/* What is built in, with `dirs` (borrowed) for shared objects. */
qn_policy_catalogue_t eviction_catalogue(const char *dirs);

/* Over blocks [0, block_count). `seat`: borrowed; NULL: lru. Returns owned, or NULL: out of memory. */
eviction_t *eviction_create(qn_policy_seat_t *seat, uint32_t block_count);
void eviction_destroy(eviction_t **eviction);

/* The block (candidate->block) became a candidate, and was none. candidate->floor is filled in here. */
void eviction_add(eviction_t *eviction, const qn_policy_block_t *candidate);
/* It is none any more: referenced again, evicted, or flushed. */
void eviction_remove(eviction_t *eviction, uint32_t block);
/* It was removed, and nothing of it has changed since: not scored again. */
void eviction_put_back(eviction_t *eviction, uint32_t block);
bool eviction_contains(const eviction_t *eviction, uint32_t block);
uint32_t eviction_count(const eviction_t *eviction);

/* The candidate with the lowest score; EVICTION_NO_BLOCK: there is none. */
uint32_t eviction_choose(const eviction_t *eviction);
/* Whether candidate `a` goes before candidate `b`. */
bool eviction_is_before(const eviction_t *eviction, uint32_t a, uint32_t b);
/* This candidate is evicted (and removed afterwards): compared with what the shadow would have taken. */
void eviction_evicts(eviction_t *eviction, uint32_t block, uint64_t now);
/* Live or shadow of the seat has changed. */
void eviction_rescore(eviction_t *eviction);

qn_policy_seat_t *eviction_seat(const eviction_t *eviction);
/* NULL, or a static text that names what is broken. */
const char *eviction_check(const eviction_t *eviction);

#endif
