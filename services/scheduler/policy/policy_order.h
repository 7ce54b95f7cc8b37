/* What policies have in common that are one question: which of two sequences comes first. The rest follows from it: who is
 * before others is admitted first and dealt prompt tokens first; who is last gives up its blocks. */
#ifndef QN_SCHEDULER_POLICY_POLICY_ORDER_H
#define QN_SCHEDULER_POLICY_POLICY_ORDER_H

#include <stdbool.h>

#include "common/policy.h"

/* A strict total order; arrival is unique and breaks ties. */
typedef bool (*policy_before_t)(const qn_policy_sequence_t *a, const qn_policy_sequence_t *b);

/* The first that comes after `previous` (NULL: the first of all), or NULL. */
const qn_policy_sequence_t *policy_order_next(const qn_policy_view_t *view, policy_before_t before,
                                              const qn_policy_sequence_t *previous);
const qn_policy_sequence_t *policy_order_last(const qn_policy_view_t *view, policy_before_t before);

/* Deals the whole budget in order; the reason says how much of it with the policy's name. */
void policy_order_share(const qn_policy_view_t *view, policy_before_t before, const char *name, uint32_t budget_tokens,
                        uint32_t chunk_tokens, uint32_t parts_max, qn_policy_share_t *ret_share);

/* Tokens that are still to be computed for it at most. */
static inline uint64_t policy_work_left(const qn_policy_sequence_t *one)
{
    return (uint64_t)one->prefill_tokens + one->max_tokens - one->generated_tokens;
}

#endif
