/* What is this?      The default scheduling policy: first come, first served.
 * State owned:       none; see common/policy.h.
 * Must never:        look at anything but the view.
 * Read next:         policy_priority.c, which only orders differently; planner.c, the caller. */
#include <stdio.h>

#include "services/scheduler/policy/policy.h"

static void admit(const qn_policy_view_t *view, uint32_t admissions_max, qn_policy_admit_t *ret_admit)
{
    uint32_t count = view->sequence_count < admissions_max ? view->sequence_count : admissions_max;
    for (uint32_t i = 0; i < count; i++) {
        const qn_policy_sequence_t *one = &view->sequences[i];
        qn_policy_admission_t *admission = &ret_admit->admissions[i];
        admission->id = one->id;
        snprintf(admission->reason, sizeof admission->reason, "fcfs: admit %llu, %s of %u waiting, after %.1f ms",
                 (unsigned long long)one->id, i == 0 ? "first" : "next", view->waiting_count,
                 (double)(view->now_ns - one->arrival_ns) / 1e6);
    }
    ret_admit->count = count;
}

static void share(const qn_policy_view_t *view, uint32_t budget_tokens, uint32_t chunk_tokens, uint32_t parts_max,
                  int must_progress, qn_policy_share_t *ret_share)
{
    (void)must_progress; /* the whole budget is always dealt */
    uint32_t left = budget_tokens;
    for (uint32_t i = 0; i < view->sequence_count && i < parts_max && left > 0; i++) {
        uint32_t tokens = view->sequences[i].prefill_tokens;
        tokens = tokens < chunk_tokens ? tokens : chunk_tokens;
        tokens = tokens < left ? tokens : left;
        ret_share->parts[ret_share->count++] = (qn_policy_part_t){.id = view->sequences[i].id, .tokens = tokens};
        left -= tokens;
    }
    snprintf(ret_share->reason, sizeof ret_share->reason, "fcfs: %u prompt tokens of a budget of %u, %u of %u prompts",
             budget_tokens - left, budget_tokens, ret_share->count, view->sequence_count);
}

static void preempt(const qn_policy_view_t *view, uint64_t needy, qn_policy_preempt_t *ret_preempt)
{
    const qn_policy_sequence_t *last = &view->sequences[view->sequence_count - 1];
    ret_preempt->id = last->id;
    snprintf(ret_preempt->reason, sizeof ret_preempt->reason,
             "fcfs: %llu came last and gives %u blocks back; %llu needs one", (unsigned long long)last->id,
             last->blocks, (unsigned long long)needy);
}

const qn_policy_t policy_fcfs = {
    .version = QN_POLICY_ABI_VERSION,
    .name = "fcfs",
    .admit = admit,
    .share = share,
    .preempt = preempt,
};
