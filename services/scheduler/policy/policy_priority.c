/* What is this?      Lower `priority` first; among equals, first come first served.
 * State owned:       none; see common/policy.h.
 * Must never:        look at anything but the view.
 * Read next:         planner.c, the caller. */
#include <stdio.h>

#include "services/scheduler/policy/policy.h"

static bool before(const qn_policy_sequence_t *a, const qn_policy_sequence_t *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->arrival < b->arrival;
}

/* The first in order that comes after `previous` (NULL: the first of all), or NULL. */
static const qn_policy_sequence_t *next_in_order(const qn_policy_view_t *view, const qn_policy_sequence_t *previous)
{
    const qn_policy_sequence_t *best = NULL;
    for (uint32_t i = 0; i < view->sequence_count; i++) {
        const qn_policy_sequence_t *one = &view->sequences[i];
        if ((previous == NULL || before(previous, one)) && (best == NULL || before(one, best))) best = one;
    }
    return best;
}

static void admit(const qn_policy_view_t *view, uint32_t admissions_max, qn_policy_admit_t *ret_admit)
{
    const qn_policy_sequence_t *one = next_in_order(view, NULL);
    for (; one != NULL && ret_admit->count < admissions_max; one = next_in_order(view, one)) {
        qn_policy_admission_t *admission = &ret_admit->admissions[ret_admit->count++];
        admission->id = one->id;
        snprintf(admission->reason, sizeof admission->reason, "priority: admit %llu with priority %d, of %u waiting",
                 (unsigned long long)one->id, one->priority, view->waiting_count);
    }
}

static void share(const qn_policy_view_t *view, uint32_t budget_tokens, uint32_t chunk_tokens, uint32_t parts_max,
                  int must_progress, qn_policy_share_t *ret_share)
{
    (void)must_progress; /* the whole budget is always dealt */
    uint32_t left = budget_tokens;
    const qn_policy_sequence_t *one = next_in_order(view, NULL);
    for (; one != NULL && left > 0 && ret_share->count < parts_max; one = next_in_order(view, one)) {
        uint32_t tokens = one->prefill_tokens < chunk_tokens ? one->prefill_tokens : chunk_tokens;
        tokens = tokens < left ? tokens : left;
        ret_share->parts[ret_share->count++] = (qn_policy_part_t){.id = one->id, .tokens = tokens};
        left -= tokens;
    }
    snprintf(ret_share->reason, sizeof ret_share->reason,
             "priority: %u prompt tokens of a budget of %u, %u of %u prompts", budget_tokens - left, budget_tokens,
             ret_share->count, view->sequence_count);
}

static void preempt(const qn_policy_view_t *view, uint64_t needy, qn_policy_preempt_t *ret_preempt)
{
    const qn_policy_sequence_t *last = &view->sequences[0];
    for (uint32_t i = 1; i < view->sequence_count; i++)
        if (before(last, &view->sequences[i])) last = &view->sequences[i];
    ret_preempt->id = last->id;
    snprintf(ret_preempt->reason, sizeof ret_preempt->reason,
             "priority: %llu (priority %d) gives %u blocks back; %llu needs "
             "one",
             (unsigned long long)last->id, last->priority, last->blocks, (unsigned long long)needy);
}

const qn_policy_t policy_priority = {
    .version = QN_POLICY_ABI_VERSION,
    .name = "priority",
    .admit = admit,
    .share = share,
    .preempt = preempt,
};
