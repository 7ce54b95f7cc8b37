/* What is this?      The built-in scheduling policies that are an order: fcfs, priority, shortest_job, prefix.
 * State owned:       none; see common/policy.h.
 * Must never:        look at anything but the view.
 * Read next:         policy_order.h, what follows from an order; policy_fair.c, which is none. */
#include <stddef.h>
#include <stdio.h>

#include "services/scheduler/policy/policy.h"
#include "services/scheduler/policy/policy_order.h"

typedef void (*words_t)(const qn_policy_view_t *view, const qn_policy_sequence_t *one, uint32_t place,
                        char ret_reason[QN_POLICY_REASON_MAX]);

static void admit_in_order(const qn_policy_view_t *view, policy_before_t before, words_t words, uint32_t admissions_max,
                           qn_policy_admit_t *ret_admit)
{
    const qn_policy_sequence_t *one = policy_order_next(view, before, NULL);
    for (; one != NULL && ret_admit->count < admissions_max; one = policy_order_next(view, before, one)) {
        qn_policy_admission_t *admission = &ret_admit->admissions[ret_admit->count];
        admission->id = one->id;
        words(view, one, ret_admit->count++, admission->reason);
    }
}

/* ---- fcfs: in order of arrival, as views are ---- */

static bool fcfs_before(const qn_policy_sequence_t *a, const qn_policy_sequence_t *b)
{
    return a->arrival < b->arrival;
}

static void fcfs_admit(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t admissions_max,
                       qn_policy_admit_t *ret_admit)
{
    (void)memory;
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

static void fcfs_share(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t budget_tokens,
                       uint32_t chunk_tokens, uint32_t parts_max, int must_progress, qn_policy_share_t *ret_share)
{
    (void)memory, (void)must_progress; /* the whole budget is always dealt */
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

static void fcfs_preempt(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint64_t needy,
                         qn_policy_preempt_t *ret_preempt)
{
    (void)memory;
    const qn_policy_sequence_t *last = policy_order_last(view, fcfs_before);
    ret_preempt->id = last->id;
    snprintf(ret_preempt->reason, sizeof ret_preempt->reason,
             "fcfs: %llu came last and gives %u blocks back; %llu needs one", (unsigned long long)last->id,
             last->blocks, (unsigned long long)needy);
}

/* ---- priority: the lower number first; among equals the earlier deadline, then who came first ---- */

static uint64_t deadline_of(const qn_policy_sequence_t *one)
{
    return one->deadline_ns > 0 ? one->deadline_ns : UINT64_MAX;
}

static bool priority_before(const qn_policy_sequence_t *a, const qn_policy_sequence_t *b)
{
    if (a->priority != b->priority) return a->priority < b->priority;
    return deadline_of(a) != deadline_of(b) ? deadline_of(a) < deadline_of(b) : a->arrival < b->arrival;
}

static void priority_words(const qn_policy_view_t *view, const qn_policy_sequence_t *one, uint32_t place,
                           char ret_reason[QN_POLICY_REASON_MAX])
{
    (void)place;
    snprintf(ret_reason, QN_POLICY_REASON_MAX, "priority: admit %llu with priority %d, of %u waiting",
             (unsigned long long)one->id, one->priority, view->waiting_count);
}

static void priority_admit(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t admissions_max,
                           qn_policy_admit_t *ret_admit)
{
    (void)memory;
    admit_in_order(view, priority_before, priority_words, admissions_max, ret_admit);
}

static void priority_share(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t budget_tokens,
                           uint32_t chunk_tokens, uint32_t parts_max, int must_progress, qn_policy_share_t *ret_share)
{
    (void)memory, (void)must_progress;
    policy_order_share(view, priority_before, "priority", budget_tokens, chunk_tokens, parts_max, ret_share);
}

static void priority_preempt(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint64_t needy,
                             qn_policy_preempt_t *ret_preempt)
{
    (void)memory;
    const qn_policy_sequence_t *last = policy_order_last(view, priority_before);
    ret_preempt->id = last->id;
    snprintf(ret_preempt->reason, sizeof ret_preempt->reason,
             "priority: %llu (priority %d) gives %u blocks back; %llu needs one", (unsigned long long)last->id,
             last->priority, last->blocks, (unsigned long long)needy);
}

/* ---- shortest_job: the least work left first. Long jobs may wait for ever while short ones come ---- */

static bool shortest_before(const qn_policy_sequence_t *a, const qn_policy_sequence_t *b)
{
    uint64_t work_a = policy_work_left(a), work_b = policy_work_left(b);
    return work_a != work_b ? work_a < work_b : a->arrival < b->arrival;
}

static void shortest_words(const qn_policy_view_t *view, const qn_policy_sequence_t *one, uint32_t place,
                           char ret_reason[QN_POLICY_REASON_MAX])
{
    snprintf(ret_reason, QN_POLICY_REASON_MAX, "shortest_job: admit %llu, %s of %u waiting: at most %llu tokens to do",
             (unsigned long long)one->id, place == 0 ? "shortest" : "next", view->waiting_count,
             (unsigned long long)policy_work_left(one));
}

static void shortest_admit(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t admissions_max,
                           qn_policy_admit_t *ret_admit)
{
    (void)memory;
    admit_in_order(view, shortest_before, shortest_words, admissions_max, ret_admit);
}

static void shortest_share(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t budget_tokens,
                           uint32_t chunk_tokens, uint32_t parts_max, int must_progress, qn_policy_share_t *ret_share)
{
    (void)memory, (void)must_progress;
    policy_order_share(view, shortest_before, "shortest_job", budget_tokens, chunk_tokens, parts_max, ret_share);
}

static void shortest_preempt(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint64_t needy,
                             qn_policy_preempt_t *ret_preempt)
{
    (void)memory;
    const qn_policy_sequence_t *longest = policy_order_last(view, shortest_before);
    ret_preempt->id = longest->id;
    snprintf(ret_preempt->reason, sizeof ret_preempt->reason,
             "shortest_job: %llu has %llu tokens to do and gives %u blocks back; %llu needs one",
             (unsigned long long)longest->id, (unsigned long long)policy_work_left(longest), longest->blocks,
             (unsigned long long)needy);
}

/* ---- prefix: who finds most of its prompt in the cache first, before that is evicted (SGLang's longest prefix match).
 * Prompts that share nothing may wait for ever ---- */

static bool prefix_before(const qn_policy_sequence_t *a, const qn_policy_sequence_t *b)
{
    return a->prefix_tokens != b->prefix_tokens ? a->prefix_tokens > b->prefix_tokens : a->arrival < b->arrival;
}

static void prefix_words(const qn_policy_view_t *view, const qn_policy_sequence_t *one, uint32_t place,
                         char ret_reason[QN_POLICY_REASON_MAX])
{
    (void)place;
    snprintf(ret_reason, QN_POLICY_REASON_MAX,
             "prefix: admit %llu, %u of its %u prompt tokens are cached, of %u waiting", (unsigned long long)one->id,
             one->prefix_tokens, one->prompt_tokens, view->waiting_count);
}

static void prefix_admit(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t admissions_max,
                         qn_policy_admit_t *ret_admit)
{
    (void)memory;
    admit_in_order(view, prefix_before, prefix_words, admissions_max, ret_admit);
}

static void prefix_share(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t budget_tokens,
                         uint32_t chunk_tokens, uint32_t parts_max, int must_progress, qn_policy_share_t *ret_share)
{
    (void)memory, (void)must_progress;
    policy_order_share(view, prefix_before, "prefix", budget_tokens, chunk_tokens, parts_max, ret_share);
}

static void prefix_preempt(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint64_t needy,
                           qn_policy_preempt_t *ret_preempt)
{
    (void)memory;
    const qn_policy_sequence_t *last = policy_order_last(view, prefix_before);
    ret_preempt->id = last->id;
    snprintf(ret_preempt->reason, sizeof ret_preempt->reason,
             "prefix: %llu found least cached (%u tokens) and gives %u blocks back; %llu needs one",
             (unsigned long long)last->id, last->prefix_tokens, last->blocks, (unsigned long long)needy);
}

#define SCHEDULING(words, what)           \
    {                                     \
        .version = QN_POLICY_ABI_VERSION, \
        .kind = QN_POLICY_SCHEDULING,     \
        .name = (words),                  \
        .wants = (what),                  \
    }

const qn_policy_t policy_fcfs = {SCHEDULING("fcfs", 0), fcfs_admit, fcfs_share, fcfs_preempt};
const qn_policy_t policy_priority = {SCHEDULING("priority", 0), priority_admit, priority_share, priority_preempt};
const qn_policy_t policy_shortest_job = {SCHEDULING("shortest_job", 0), shortest_admit, shortest_share,
                                         shortest_preempt};
const qn_policy_t policy_prefix = {SCHEDULING("prefix", QN_POLICY_WANTS_PREFIX), prefix_admit, prefix_share,
                                   prefix_preempt};
