/* What is this?      Half of the planner: what is asked of memory and given back to it.
 * State owned:       the lists being built, whether admission is blocked.
 * Must never:        give back what a plan without a result may write; preempt who arrived first.
 * Read next:         planner.h (rules 4 to 6), services/memory/block_pool.h (the other side). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/assert.h"
#include "services/scheduler/planner/planner_inner.h"

static sequence_t *running_at(const planner_t *planner, uint32_t slot)
{
    uint32_t index = planner->batch->slot_owner[slot];
    if (index == BATCH_NOBODY || planner->batch->sequences[index].phase != SEQUENCE_RUNNING) return NULL;
    return &planner->batch->sequences[index];
}

/* Cannot run its next token, and memory has refused a block for it. */
static bool starves(const planner_t *planner, const sequence_t *sequence)
{
    return sequence->short_of_blocks && sequence->planned >= batch_capacity(planner->batch, sequence) &&
           sequence->planned < request_run_limit(sequence->request);
}

static bool somebody_is_short(const planner_t *planner)
{
    for (uint32_t slot = 0; slot < planner->batch->slot_count; slot++) {
        const sequence_t *sequence = running_at(planner, slot);
        if (sequence != NULL && sequence->short_of_blocks) return true;
    }
    return false;
}

/* ---- preemption ---- */

static void block_admission(planner_t *planner, uint64_t now_ns)
{
    planner->admission_blocked = true;
    planner->blocked_release_count = planner->batch->release_count;
    planner->retry_ns = now_ns + ADMISSION_RETRY_NS;
}

static const sequence_t *apart_of(const planner_t *planner)
{
    return planner->apart < PLANNER_NOBODY ? &planner->batch->sequences[planner->apart] : NULL;
}

/* Rule 9: it starves, or was refused, or has no slot. */
static bool needs_room(const planner_t *planner, const sequence_t *apart)
{
    if (apart->phase == SEQUENCE_RUNNING) return starves(planner, apart);
    return apart->phase == SEQUENCE_WAITING &&
           (planner->batch->free_slots == 0 || planner->batch->open_refusals != planner->seen_refusals);
}

/* Whose turn is earlier: orphans come after all others. */
static bool is_before(const sequence_t *a, const sequence_t *b)
{
    bool orphan = request_is_orphan(a->request);
    if (orphan != request_is_orphan(b->request)) return !orphan;
    return a->request->arrival < b->request->arrival;
}

/* The starving sequence whose turn is first, or NULL; *ret_first is the running one whose turn is. */
static const sequence_t *find_needy(const planner_t *planner, const sequence_t **ret_first)
{
    const sequence_t *apart = apart_of(planner);
    if (planner->apart != PLANNER_EVERYBODY) {
        *ret_first = apart;
        return apart != NULL && needs_room(planner, apart) ? apart : NULL;
    }
    const sequence_t *needy = NULL, *first = NULL;
    for (uint32_t slot = 0; slot < planner->batch->slot_count; slot++) {
        const sequence_t *sequence = running_at(planner, slot);
        if (sequence == NULL) continue;
        if (first == NULL || is_before(sequence, first)) first = sequence;
        if (starves(planner, sequence) && (needy == NULL || is_before(sequence, needy))) needy = sequence;
    }
    *ret_first = first;
    return needy;
}

/* The running orphan that arrived last, or NULL. */
static const sequence_t *last_orphan(const planner_t *planner)
{
    const sequence_t *last = NULL;
    for (uint32_t slot = 0; slot < planner->batch->slot_count; slot++) {
        const sequence_t *sequence = running_at(planner, slot);
        if (sequence == NULL || !request_is_orphan(sequence->request)) continue;
        if (last == NULL || sequence->request->arrival > last->request->arrival) last = sequence;
    }
    return last;
}

static void yield(planner_t *planner, const sequence_t *orphan, const char *what)
{
    char reason[QN_POLICY_REASON_MAX];
    snprintf(reason, sizeof reason, "request %" PRIu64 ", whose client is gone, yields its %s", orphan->request->id,
             what);
    planner_note(planner, reason);
    batch_preempt(planner->batch, orphan->request->index);
    planner->counts.preemptions++;
}

/* Waiting requests that have a client, `most` at most. */
static uint32_t count_waiting(const planner_t *planner, uint32_t most)
{
    const batch_t *batch = planner->batch;
    uint32_t count = 0;
    const request_t *request = batch->waiting_count > 0 ? ledger_next(batch->ledger, NULL) : NULL;
    for (; request != NULL && count < most; request = ledger_next(batch->ledger, request))
        count += batch->sequences[request->index].phase == SEQUENCE_WAITING && !request_is_orphan(request);
    return count;
}

/* Running sequences but `first`, in order of arrival. */
static uint32_t show_candidates(planner_t *planner, const sequence_t *first)
{
    uint32_t count = 0;
    for (uint32_t slot = 0; slot < planner->batch->slot_count; slot++) {
        const sequence_t *sequence = running_at(planner, slot);
        if (sequence == NULL || sequence == first) continue;
        uint32_t at = count++;
        for (; at > 0 && planner->view[at - 1].arrival > sequence->request->arrival; at--)
            planner->view[at] = planner->view[at - 1];
        planner_show(planner, sequence, &planner->view[at]);
    }
    return count;
}

static void preempt(planner_t *planner, uint64_t now_ns, uint64_t *again_ns)
{
    batch_t *batch = planner->batch;
    const sequence_t *first;
    const sequence_t *needy = find_needy(planner, &first);
    if (needy == NULL || batch->retiring_count > 0 || batch->leasing_count > 0)
        return; /* blocks, or a refusal, are on their way */
    const sequence_t *orphan = last_orphan(planner);
    if (apart_of(planner) == NULL && orphan != NULL && !request_is_orphan(first->request)) {
        yield(planner, orphan, "blocks");
        block_admission(planner, now_ns);
        return;
    }
    uint32_t count = show_candidates(planner, first);
    if (count == 0) { /* alone, and it fits by itself: somebody's blocks are still on their way inside memory */
        if (now_ns >= planner->retry_ns) {
            planner->retry_ns = now_ns + ADMISSION_RETRY_NS;
            batch_forget_shortage(batch);
        }
        *again_ns = planner->retry_ns;
        return;
    }
    qn_policy_view_t view = planner_view(planner, now_ns, count);
    qn_policy_preempt_t choice;
    policy_preempt(planner->policies.scheduling, &view, needy->request->id, &choice);
    batch_preempt(batch, ledger_find(batch->ledger, choice.id)->index);
    planner_decide(planner, choice.id, "preempt", planner->policies.scheduling, now_ns, choice.reason);
    planner->counts.preemptions++;
    if (apart_of(planner) != NULL)
        planner->seen_refusals = batch->open_refusals; /* it asks again at once, behind the Release */
    else
        block_admission(planner, now_ns);
}

/* Rule 8: who waits and has a client finds slots and blocks, but for rule 9. */
static void yield_to_waiting(planner_t *planner)
{
    batch_t *batch = planner->batch;
    if (batch->retiring_count == 0 && planner->yielding) planner->yielding = planner->admission_blocked = false;
    if (planner->apart != PLANNER_EVERYBODY || last_orphan(planner) == NULL) return;
    uint32_t waiting = count_waiting(planner, batch->slot_count);
    bool blocked = batch->open_refusals != planner->seen_refusals || planner->admission_blocked;
    for (const sequence_t *orphan; waiting > batch->free_slots && (orphan = last_orphan(planner)) != NULL;)
        yield(planner, orphan, "slot");
    if (waiting > 0 && (blocked || somebody_is_short(planner)) && batch->retiring_count + batch->leasing_count == 0 &&
        last_orphan(planner) != NULL)
        yield(planner, last_orphan(planner), "blocks");
    planner->yielding = batch->retiring_count > 0;
}

/* ---- commits and releases ---- */

static void add_commit(planner_t *planner, plan_traffic_t *traffic, uint32_t index)
{
    const sequence_t *sequence = &planner->batch->sequences[index];
    uint32_t end = batch_committable(planner->batch, index);
    if (end <= sequence->committed || traffic->commit_count == QN_LEASE_ITEMS_MAX) return;
    planner->commits[traffic->commit_count++] = (plan_commit_t){
        .sequence = sequence->request->id,
        .position = sequence->committed,
        .ids = sequence->request->ids + sequence->committed,
        .ids_count = end - sequence->committed,
    };
    batch_committed(planner->batch, index, end);
}

static void add_commits(planner_t *planner, plan_traffic_t *traffic)
{
    const batch_t *batch = planner->batch;
    for (uint32_t slot = 0; slot < batch->slot_count; slot++)
        if (running_at(planner, slot) != NULL) add_commit(planner, traffic, batch->slot_owner[slot]);
    for (uint32_t i = 0; i < batch->retiring_count; i++)
        add_commit(planner, traffic, batch->retiring[i]);
}

static void add_releases(planner_t *planner, plan_traffic_t *traffic)
{
    batch_t *batch = planner->batch;
    for (uint32_t i = batch->retiring_count; i-- > 0 && traffic->release_count < QN_LEASE_ITEMS_MAX;) {
        uint32_t index = batch->retiring[i];
        if (!batch_releasable(batch, index)) continue;
        planner->releases[traffic->release_count++] = batch->sequences[index].request->id;
        batch_released(batch, index);
    }
}

/* ---- leases ---- */

static void add_lease(planner_t *planner, plan_traffic_t *traffic, const plan_lease_t *lease)
{
    QN_ASSERT(traffic->lease_count < QN_LEASE_ITEMS_MAX);
    planner->leases[traffic->lease_count++] = *lease;
}

static bool wants_extension(const planner_t *planner, const sequence_t *sequence)
{
    if (sequence->lease_batch != 0 || sequence->short_of_blocks) return false;
    uint32_t block_tokens = planner->batch->block_tokens;
    uint32_t headroom = block_tokens > 8 ? block_tokens : 8;
    uint32_t capacity = batch_capacity(planner->batch, sequence);
    return capacity < request_run_limit(sequence->request) && capacity < sequence->planned + headroom;
}

/* Extensions in order of arrival: when blocks are few, who came first gets them. */
static void add_extensions(planner_t *planner, plan_traffic_t *traffic)
{
    const batch_t *batch = planner->batch;
    uint32_t *order = planner->tokens_of_slot; /* free between plans */
    uint32_t count = 0;
    for (uint32_t slot = 0; slot < batch->slot_count; slot++) {
        const sequence_t *sequence = running_at(planner, slot);
        if (sequence == NULL || !wants_extension(planner, sequence)) continue;
        if (planner->apart != PLANNER_EVERYBODY && sequence != apart_of(planner)) continue;
        uint32_t at = count++;
        for (; at > 0 && batch->sequences[order[at - 1]].request->arrival > sequence->request->arrival; at--)
            order[at] = order[at - 1];
        order[at] = batch->slot_owner[slot];
    }
    for (uint32_t i = 0; i < count; i++) {
        const sequence_t *sequence = &batch->sequences[order[i]];
        uint32_t tokens = planner_lease_tokens(planner, sequence);
        plan_lease_t lease = {.sequence = sequence->request->id, .salt = sequence->request->salt, .tokens = tokens};
        add_lease(planner, traffic, &lease);
        batch_lease_extend(planner->batch, order[i], tokens, traffic->lease_batch);
    }
}

static const sequence_t *first_waiting(const planner_t *planner, bool orphans)
{
    const batch_t *batch = planner->batch;
    const request_t *request = ledger_next(batch->ledger, NULL);
    for (; request != NULL; request = ledger_next(batch->ledger, request))
        if (batch->sequences[request->index].phase == SEQUENCE_WAITING && request_is_orphan(request) == orphans)
            return &batch->sequences[request->index];
    return NULL;
}

/* Rule 6. Sets *again_ns when only time can tell. */
static bool admission_is_open(planner_t *planner, bool orphans, uint64_t now_ns, uint64_t *again_ns)
{
    batch_t *batch = planner->batch;
    if (batch->open_refusals != planner->seen_refusals) {
        planner->seen_refusals = batch->open_refusals;
        block_admission(planner, now_ns);
    }
    if (somebody_is_short(planner)) return false;
    if (!planner->admission_blocked || batch->release_count != planner->blocked_release_count) {
        planner->admission_blocked = false;
        return true;
    }
    qn_policy_sequence_t shown;
    planner_show(planner, first_waiting(planner, orphans), &shown);
    bool idle = batch->running_count + batch->retiring_count + batch->leasing_count == 0;
    if (!idle && batch->available_blocks < shown.blocks_wanted + 2 * batch->running_count) return false;
    if (now_ns < planner->retry_ns) {
        *again_ns = planner->retry_ns;
        return false;
    }
    planner->admission_blocked = false;
    return true;
}

static uint32_t show_waiting(planner_t *planner, bool orphans)
{
    const batch_t *batch = planner->batch;
    uint32_t count = 0;
    const request_t *request = ledger_next(batch->ledger, NULL);
    for (; request != NULL && count < batch->waiting_count; request = ledger_next(batch->ledger, request))
        if (batch->sequences[request->index].phase == SEQUENCE_WAITING && request_is_orphan(request) == orphans)
            planner_show(planner, &batch->sequences[request->index], &planner->view[count++]);
    return count;
}

static void open_lease(planner_t *planner, plan_traffic_t *traffic, uint32_t index)
{
    const sequence_t *sequence = &planner->batch->sequences[index];
    const request_t *request = sequence->request;
    bool shared = !request_runs_whole_prompt(request);
    plan_lease_t lease = {
        .sequence = request->id,
        .salt = request->salt,
        .tokens = planner_lease_tokens(planner, sequence),
        .ids = shared ? request->ids : NULL,
        .ids_count = shared ? request_known_tokens(request) : 0,
        .open = true,
    };
    add_lease(planner, traffic, &lease);
    batch_lease_open(planner->batch, index, lease.tokens, traffic->lease_batch);
    planner->counts.admissions++;
}

/* Rule 9: at once, unless it was refused although nobody else holds anything. */
static void admit_apart(planner_t *planner, plan_traffic_t *traffic, uint64_t now_ns)
{
    batch_t *batch = planner->batch;
    const sequence_t *apart = apart_of(planner);
    if (apart == NULL || apart->phase != SEQUENCE_WAITING || batch->free_slots == 0) return;
    if (batch->open_refusals != planner->seen_refusals) {
        planner->seen_refusals = batch->open_refusals;
        block_admission(planner, now_ns);
    }
    if (planner->admission_blocked && now_ns < planner->retry_ns) {
        traffic->again_ns = planner->retry_ns;
        return;
    }
    planner->admission_blocked = false;
    open_lease(planner, traffic, apart->request->index);
    planner_note(planner, "runs apart: a daemon crashed");
}

static void add_admissions(planner_t *planner, plan_traffic_t *traffic, uint64_t now_ns)
{
    batch_t *batch = planner->batch;
    if (planner->apart != PLANNER_EVERYBODY) {
        admit_apart(planner, traffic, now_ns);
        return;
    }
    if (batch->waiting_count == 0 || batch->free_slots == 0) return;
    bool orphans = count_waiting(planner, 1) == 0;
    if (!admission_is_open(planner, orphans, now_ns, &traffic->again_ns)) return;
    if (planner_awaits_prefixes(planner, now_ns, &traffic->again_ns)) return;
    qn_policy_view_t view = planner_view(planner, now_ns, show_waiting(planner, orphans));
    uint32_t most = batch->free_slots < QN_POLICY_ADMISSIONS_MAX ? batch->free_slots : QN_POLICY_ADMISSIONS_MAX;
    policy_admit(planner->policies.scheduling, &view, most, &planner->admit);
    uint64_t ids = 0;
    for (uint32_t i = 0; i < planner->admit.count; i++) {
        const qn_policy_admission_t *admission = &planner->admit.admissions[i];
        const request_t *request = ledger_find(batch->ledger, admission->id);
        ids += request_known_tokens(request);
        if (i > 0 && ids > LEASE_IDS_MAX) break;
        open_lease(planner, traffic, request->index);
        planner_decide(planner, admission->id, "admit", planner->policies.scheduling, now_ns, admission->reason);
    }
}

void planner_traffic(planner_t *planner, uint64_t now_ns, plan_traffic_t *ret_traffic)
{
    plan_traffic_t traffic = {
        .commits = planner->commits,
        .releases = planner->releases,
        .leases = planner->leases,
        .lookups = planner->lookups,
        .lease_batch = planner->last_lease_batch + 1,
        .again_ns = PLANNER_NEVER,
    };
    preempt(planner, now_ns, &traffic.again_ns);
    add_commits(planner, &traffic);
    add_releases(planner, &traffic);
    yield_to_waiting(planner);
    add_extensions(planner, &traffic);
    planner_add_lookups(planner, &traffic, now_ns);
    add_admissions(planner, &traffic, now_ns);
    if (traffic.lease_count > 0) planner->last_lease_batch = traffic.lease_batch;
    *ret_traffic = traffic;
}
