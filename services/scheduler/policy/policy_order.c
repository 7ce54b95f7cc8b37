/* What is this?      Policies that are an order: next, last, and how a budget is dealt.
 * State owned:       none.
 * Must never:        look at anything but the view.
 * Read next:         policy_builtin.c, the orders. */
#include "services/scheduler/policy/policy_order.h"

#include <stddef.h>
#include <stdio.h>

const qn_policy_sequence_t *policy_order_next(const qn_policy_view_t *view, policy_before_t before,
                                              const qn_policy_sequence_t *previous)
{
    const qn_policy_sequence_t *best = NULL;
    for (uint32_t i = 0; i < view->sequence_count; i++) {
        const qn_policy_sequence_t *one = &view->sequences[i];
        if ((previous == NULL || before(previous, one)) && (best == NULL || before(one, best))) best = one;
    }
    return best;
}

const qn_policy_sequence_t *policy_order_last(const qn_policy_view_t *view, policy_before_t before)
{
    const qn_policy_sequence_t *last = &view->sequences[0];
    for (uint32_t i = 1; i < view->sequence_count; i++)
        if (before(last, &view->sequences[i])) last = &view->sequences[i];
    return last;
}

void policy_order_share(const qn_policy_view_t *view, policy_before_t before, const char *name, uint32_t budget_tokens,
                        uint32_t chunk_tokens, uint32_t parts_max, qn_policy_share_t *ret_share)
{
    uint32_t left = budget_tokens;
    const qn_policy_sequence_t *one = policy_order_next(view, before, NULL);
    for (; one != NULL && left > 0 && ret_share->count < parts_max; one = policy_order_next(view, before, one)) {
        uint32_t tokens = one->prefill_tokens < chunk_tokens ? one->prefill_tokens : chunk_tokens;
        tokens = tokens < left ? tokens : left;
        ret_share->parts[ret_share->count++] = (qn_policy_part_t){.id = one->id, .tokens = tokens};
        left -= tokens;
    }
    snprintf(ret_share->reason, sizeof ret_share->reason, "%s: %u prompt tokens of a budget of %u, %u of %u prompts",
             name, budget_tokens - left, budget_tokens, ret_share->count, view->sequence_count);
}
