/* An example of a scheduling policy in a shared object: shortest job first.
 *
 *     make && build/quintet up --set scheduler.policy=build/policies/example_policy.so
 *
 * The job's length is known to be at most prompt + max_tokens; the shorter is admitted first, dealt prompt tokens
 * first, and the longest gives up its blocks when they run short. Contract: common/policy.h. */
#include "common/policy.h"

#include <stdio.h>

static uint64_t work_left(const qn_policy_sequence_t *sequence)
{
    return (uint64_t)sequence->prefill_tokens + sequence->max_tokens - sequence->generated_tokens;
}

/* The shortest job longer than `above` (the tie breaker is arrival); NULL when there is none. */
static const qn_policy_sequence_t *next_shortest(const qn_policy_view_t *view, const qn_policy_sequence_t *above)
{
    const qn_policy_sequence_t *best = NULL;
    for (uint32_t i = 0; i < view->sequence_count; i++) {
        const qn_policy_sequence_t *one = &view->sequences[i];
        if (above != NULL && (work_left(one) < work_left(above) ||
                              (work_left(one) == work_left(above) && one->arrival <= above->arrival)))
            continue;
        if (best == NULL || work_left(one) < work_left(best)) best = one;
    }
    return best;
}

static void admit(const qn_policy_view_t *view, uint32_t admissions_max, qn_policy_admit_t *ret_admit)
{
    const qn_policy_sequence_t *one = next_shortest(view, NULL);
    for (ret_admit->count = 0; one != NULL && ret_admit->count < admissions_max; one = next_shortest(view, one)) {
        qn_policy_admission_t *admission = &ret_admit->admissions[ret_admit->count++];
        admission->id = one->id;
        snprintf(admission->reason, sizeof admission->reason, "shortest of %u waiting: at most %llu tokens to do",
                 view->waiting_count, (unsigned long long)work_left(one));
    }
}

static void share(const qn_policy_view_t *view, uint32_t budget_tokens, uint32_t chunk_tokens, uint32_t parts_max,
                  int must_progress, qn_policy_share_t *ret_share)
{
    (void)must_progress; /* the whole budget is always dealt */
    uint32_t left = budget_tokens;
    const qn_policy_sequence_t *one = next_shortest(view, NULL);
    for (ret_share->count = 0; one != NULL && left > 0 && ret_share->count < parts_max;
         one = next_shortest(view, one)) {
        uint32_t tokens = one->prefill_tokens < chunk_tokens ? one->prefill_tokens : chunk_tokens;
        tokens = tokens < left ? tokens : left;
        ret_share->parts[ret_share->count++] = (qn_policy_part_t){.id = one->id, .tokens = tokens};
        left -= tokens;
    }
    snprintf(ret_share->reason, sizeof ret_share->reason, "%u of %u prompt tokens to the shortest jobs",
             budget_tokens - left, budget_tokens);
}

static void preempt(const qn_policy_view_t *view, uint64_t needy, qn_policy_preempt_t *ret_preempt)
{
    const qn_policy_sequence_t *longest = &view->sequences[0];
    for (uint32_t i = 1; i < view->sequence_count; i++)
        if (work_left(&view->sequences[i]) >= work_left(longest)) longest = &view->sequences[i];
    ret_preempt->id = longest->id;
    snprintf(ret_preempt->reason, sizeof ret_preempt->reason, "longest job of %u gives its blocks to %llu",
             view->running_count, (unsigned long long)needy);
}

const qn_policy_t *qn_policy_entry(void)
{
    static const qn_policy_t policy = {
        .version = QN_POLICY_ABI_VERSION,
        .name = "shortest_job",
        .admit = admit,
        .share = share,
        .preempt = preempt,
    };
    return &policy;
}
