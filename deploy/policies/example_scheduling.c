/* A scheduling policy in a shared object: earliest deadline first, as real-time systems do. Contract: common/policy.h.
 *
 *     make && build/quintet up --set scheduler.policy=example_scheduling.so
 *
 * Who has no deadline (the field deadline_ms of a request) comes after all who have one; ties go to who came first. */
#include "common/policy.h"

#include <stdio.h>

static int is_before(const qn_policy_sequence_t *a, const qn_policy_sequence_t *b)
{
    uint64_t deadline_a = a->deadline_ns ? a->deadline_ns : UINT64_MAX;
    uint64_t deadline_b = b->deadline_ns ? b->deadline_ns : UINT64_MAX;
    return deadline_a != deadline_b ? deadline_a < deadline_b : a->arrival < b->arrival;
}

/* The first in order that comes after `previous` (NULL: the first of all); NULL when there is none. */
static const qn_policy_sequence_t *next(const qn_policy_view_t *view, const qn_policy_sequence_t *previous)
{
    const qn_policy_sequence_t *best = NULL;
    for (uint32_t i = 0; i < view->sequence_count; i++) {
        const qn_policy_sequence_t *one = &view->sequences[i];
        if ((!previous || is_before(previous, one)) && (!best || is_before(one, best))) best = one;
    }
    return best;
}

static void admit(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t admissions_max,
                  qn_policy_admit_t *ret_admit)
{
    (void)memory; /* it keeps nothing */
    const qn_policy_sequence_t *one = next(view, NULL);
    for (; one && ret_admit->count < admissions_max; one = next(view, one)) {
        qn_policy_admission_t *admission = &ret_admit->admissions[ret_admit->count++];
        admission->id = one->id;
        double left_ms = ((double)one->deadline_ns - (double)view->now_ns) / 1e6;
        snprintf(admission->reason, sizeof admission->reason,
                 one->deadline_ns ? "%.1f ms are left to it" : "no deadline", left_ms);
    }
}

static void share(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t budget_tokens,
                  uint32_t chunk_tokens, uint32_t parts_max, int must_progress, qn_policy_share_t *ret_share)
{
    (void)memory, (void)must_progress; /* the whole budget is always dealt */
    uint32_t left = budget_tokens;
    const qn_policy_sequence_t *one = next(view, NULL);
    for (; one && left > 0 && ret_share->count < parts_max; one = next(view, one)) {
        uint32_t tokens = one->prefill_tokens < chunk_tokens ? one->prefill_tokens : chunk_tokens;
        tokens = tokens < left ? tokens : left;
        ret_share->parts[ret_share->count++] = (qn_policy_part_t){.id = one->id, .tokens = tokens};
        left -= tokens;
    }
    snprintf(ret_share->reason, sizeof ret_share->reason, "%u prompt tokens by deadline", budget_tokens - left);
}

static void preempt(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint64_t needy,
                    qn_policy_preempt_t *ret_preempt)
{
    const qn_policy_sequence_t *last = &view->sequences[0];
    (void)memory, (void)needy;
    for (uint32_t i = 1; i < view->sequence_count; i++)
        if (is_before(last, &view->sequences[i])) last = &view->sequences[i];
    ret_preempt->id = last->id;
    snprintf(ret_preempt->reason, sizeof ret_preempt->reason, "the latest deadline of %u", view->sequence_count);
}

const qn_policy_head_t *qn_policy_entry(void)
{
    static const qn_policy_t policy = {
        .head = {.version = QN_POLICY_ABI_VERSION, .kind = QN_POLICY_SCHEDULING, .name = "deadline"},
        .admit = admit,
        .share = share,
        .preempt = preempt,
    };
    return &policy.head;
}
