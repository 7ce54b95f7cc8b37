/* What is this?      The border between the scheduler and its policies, which may be foreign code.
 * State owned:       none; the seats'.
 * Must never:        let a decision through that names what was not offered or spends what was not there.
 * Read next:         common/policy.h for the contract, policy_seat.h for who decides, policy_builtin.c for the default. */
#include "services/scheduler/policy/policy.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/assert.h"
#include "common/checksum.h"

/* ---- seats ---- */

qn_policy_catalogue_t policy_catalogue(qn_policy_kind_t kind, const char *dirs)
{
    static const qn_policy_head_t *const scheduling[] = {&policy_fcfs.head, &policy_priority.head,
                                                         &policy_shortest_job.head, &policy_prefix.head,
                                                         &policy_fair.head};
    static const qn_policy_head_t *const batching[] = {&batching_fixed.head, &batching_pressure.head};
    static const qn_policy_head_t *const admission[] = {&admission_queue.head, &admission_user_share.head};
    qn_policy_catalogue_t catalogue = {.kind = kind, .dirs = dirs};
    if (kind == QN_POLICY_SCHEDULING)
        catalogue.builtin = scheduling, catalogue.builtin_count = sizeof scheduling / sizeof *scheduling;
    else if (kind == QN_POLICY_BATCHING)
        catalogue.builtin = batching, catalogue.builtin_count = sizeof batching / sizeof *batching;
    else
        catalogue.builtin = admission, catalogue.builtin_count = sizeof admission / sizeof *admission;
    return catalogue;
}

qn_policy_seat_t *policies_seat(const policies_t *policies, qn_policy_kind_t kind)
{
    if (kind == QN_POLICY_SCHEDULING) return policies->scheduling;
    return kind == QN_POLICY_BATCHING ? policies->batching : policies->admission;
}

void policies_close(policies_t *policies)
{
    qn_policy_seat_close(&policies->scheduling);
    qn_policy_seat_close(&policies->batching);
    qn_policy_seat_close(&policies->admission);
}

static const void *table_of(const qn_policy_object_t *object) { return qn_policy_object_head(object); }

/* ---- checks ---- */

static void end_text(char reason[QN_POLICY_REASON_MAX]) { reason[QN_POLICY_REASON_MAX - 1] = '\0'; }

static const qn_policy_sequence_t *offered(const qn_policy_view_t *view, uint64_t id)
{
    for (uint32_t i = 0; i < view->sequence_count; i++)
        if (view->sequences[i].id == id) return &view->sequences[i];
    return NULL;
}

/* The words of a broken rule; `room` keeps them. */
static const char *broke(char room[QN_POLICY_WORDS_MAX], const char *rule, uint64_t id)
{
    snprintf(room, QN_POLICY_WORDS_MAX, "%s (request %" PRIu64 ")", rule, id);
    return room;
}

/* Appends to the words of a decision, as far as there is room. */
static void add_words(qn_policy_decision_t *decision, uint64_t id, uint32_t tokens)
{
    size_t used = strlen(decision->words);
    if (used + 32 > sizeof decision->words) return;
    if (tokens == 0)
        snprintf(decision->words + used, sizeof decision->words - used, "%s%" PRIu64, used > 0 ? " " : "", id);
    else
        snprintf(decision->words + used, sizeof decision->words - used, "%s%" PRIu64 ":%u", used > 0 ? " " : "", id,
                 tokens);
}

static void add_hash(qn_policy_decision_t *decision, uint64_t id, uint64_t value)
{
    const uint64_t pair[2] = {id, value};
    decision->hash = qn_fingerprint(pair, sizeof pair, decision->hash);
}

/* ---- admit ---- */

static const char *check_admit(const qn_policy_view_t *view, uint32_t admissions_max, qn_policy_admit_t *admit,
                               char room[QN_POLICY_WORDS_MAX])
{
    if (admit->count > admissions_max) return "admit names more than it may";
    for (uint32_t i = 0; i < admit->count; i++) {
        qn_policy_admission_t *admission = &admit->admissions[i];
        end_text(admission->reason);
        if (offered(view, admission->id) == NULL)
            return broke(room, "admit names a request that is not waiting", admission->id);
        for (uint32_t j = 0; j < i; j++)
            if (admit->admissions[j].id == admission->id)
                return broke(room, "admit names a request twice", admission->id);
    }
    return NULL;
}

static bool ask_admit(qn_policy_seat_t *seat, bool shadow, const qn_policy_view_t *view, uint32_t admissions_max,
                      qn_policy_admit_t *ret_admit)
{
    char room[QN_POLICY_WORDS_MAX];
    const qn_policy_object_t *object = qn_policy_seat_ask(seat, shadow);
    ret_admit->count = 0;
    ((const qn_policy_t *)table_of(object))->admit(qn_policy_object_memory(object), view, admissions_max, ret_admit);
    return qn_policy_seat_take(seat, shadow, check_admit(view, admissions_max, ret_admit, room));
}

static void describe_admit(const qn_policy_admit_t *admit, qn_policy_decision_t *ret_decision)
{
    *ret_decision = (qn_policy_decision_t){0};
    for (uint32_t i = 0; i < admit->count; i++) {
        add_hash(ret_decision, admit->admissions[i].id, 0);
        add_words(ret_decision, admit->admissions[i].id, 0);
    }
    if (admit->count > 0) memcpy(ret_decision->reason, admit->admissions[0].reason, QN_POLICY_REASON_MAX);
}

void policy_admit(qn_policy_seat_t *seat, const qn_policy_view_t *view, uint32_t admissions_max,
                  qn_policy_admit_t *ret_admit)
{
    while (!ask_admit(seat, false, view, admissions_max, ret_admit)) {
    }
    if (qn_policy_seat_shadow(seat) == NULL) return;
    qn_policy_admit_t admit;
    qn_policy_decision_t by_live, by_shadow;
    if (!ask_admit(seat, true, view, admissions_max, &admit)) return;
    describe_admit(ret_admit, &by_live);
    describe_admit(&admit, &by_shadow);
    qn_policy_seat_compare(seat, "admit", view->now_ns, &by_live, &by_shadow);
}

/* ---- share ---- */

typedef struct {
    const qn_policy_view_t *view;
    uint32_t budget_tokens, chunk_tokens;
    bool must_progress;
} share_call_t;

static const char *check_part(const share_call_t *call, const qn_policy_share_t *share, uint32_t at,
                              char room[QN_POLICY_WORDS_MAX])
{
    const qn_policy_part_t *part = &share->parts[at];
    const qn_policy_sequence_t *sequence = offered(call->view, part->id);
    if (sequence == NULL) return broke(room, "share names a request that has nothing to prefill", part->id);
    if (part->tokens == 0 || part->tokens > sequence->prefill_tokens || part->tokens > call->chunk_tokens)
        return broke(room, "share deals 0 tokens, or more than are left or than a chunk may have", part->id);
    for (uint32_t j = 0; j < at; j++)
        if (share->parts[j].id == part->id) return broke(room, "share names a request twice", part->id);
    return NULL;
}

static const char *check_share(const share_call_t *call, const qn_policy_part_t *parts, qn_policy_share_t *share,
                               char room[QN_POLICY_WORDS_MAX])
{
    uint64_t dealt = 0;
    end_text(share->reason);
    if (share->parts != parts || share->count > call->view->sequence_count) return "share names more than it may";
    for (uint32_t i = 0; i < share->count; i++) {
        const char *broken = check_part(call, share, i, room);
        if (broken != NULL) return broken;
        dealt += parts[i].tokens;
    }
    if (dealt > call->budget_tokens) return "share deals more tokens than the budget has";
    return call->must_progress && dealt == 0 ? "share deals nothing although nothing else runs" : NULL;
}

static bool ask_share(qn_policy_seat_t *seat, bool shadow, const share_call_t *call, qn_policy_part_t *parts,
                      qn_policy_share_t *ret_share)
{
    char room[QN_POLICY_WORDS_MAX];
    const qn_policy_object_t *object = qn_policy_seat_ask(seat, shadow);
    ret_share->parts = parts;
    ret_share->count = 0;
    ret_share->reason[0] = '\0';
    ((const qn_policy_t *)table_of(object))
        ->share(qn_policy_object_memory(object), call->view, call->budget_tokens, call->chunk_tokens,
                call->view->sequence_count, call->must_progress, ret_share);
    bool stands = qn_policy_seat_take(seat, shadow, check_share(call, parts, ret_share, room));
    ret_share->parts = parts;
    return stands;
}

/* Equal when everybody gets the same, in whatever order. */
static void describe_share(const qn_policy_share_t *share, qn_policy_decision_t *ret_decision)
{
    *ret_decision = (qn_policy_decision_t){0};
    for (uint32_t i = 0; i < share->count; i++) {
        qn_policy_decision_t one = {0};
        add_hash(&one, share->parts[i].id, share->parts[i].tokens);
        ret_decision->hash += one.hash;
        add_words(ret_decision, share->parts[i].id, share->parts[i].tokens);
    }
    memcpy(ret_decision->reason, share->reason, QN_POLICY_REASON_MAX);
}

void policy_share(qn_policy_seat_t *seat, const qn_policy_view_t *view, uint32_t budget_tokens, uint32_t chunk_tokens,
                  bool must_progress, qn_policy_part_t *room, qn_policy_share_t *ret_share)
{
    const share_call_t call = {.view = view,
                               .budget_tokens = budget_tokens,
                               .chunk_tokens = chunk_tokens,
                               .must_progress = must_progress};
    qn_policy_part_t *parts = ret_share->parts;
    while (!ask_share(seat, false, &call, parts, ret_share)) {
    }
    if (qn_policy_seat_shadow(seat) == NULL) return;
    qn_policy_share_t share;
    qn_policy_decision_t by_live, by_shadow;
    if (!ask_share(seat, true, &call, room, &share)) return;
    describe_share(ret_share, &by_live);
    describe_share(&share, &by_shadow);
    qn_policy_seat_compare(seat, "share", view->now_ns, &by_live, &by_shadow);
}

/* ---- preempt ---- */

static bool ask_preempt(qn_policy_seat_t *seat, bool shadow, const qn_policy_view_t *view, uint64_t needy,
                        qn_policy_preempt_t *ret_preempt)
{
    char room[QN_POLICY_WORDS_MAX];
    const qn_policy_object_t *object = qn_policy_seat_ask(seat, shadow);
    *ret_preempt = (qn_policy_preempt_t){0};
    ((const qn_policy_t *)table_of(object))->preempt(qn_policy_object_memory(object), view, needy, ret_preempt);
    end_text(ret_preempt->reason);
    const char *broken = offered(view, ret_preempt->id) == NULL
                             ? broke(room, "preempt names a request that may not be preempted", ret_preempt->id)
                             : NULL;
    return qn_policy_seat_take(seat, shadow, broken);
}

static void describe_preempt(const qn_policy_preempt_t *preempt, qn_policy_decision_t *ret_decision)
{
    *ret_decision = (qn_policy_decision_t){0};
    add_hash(ret_decision, preempt->id, 0);
    add_words(ret_decision, preempt->id, 0);
    memcpy(ret_decision->reason, preempt->reason, QN_POLICY_REASON_MAX);
}

void policy_preempt(qn_policy_seat_t *seat, const qn_policy_view_t *view, uint64_t needy,
                    qn_policy_preempt_t *ret_preempt)
{
    while (!ask_preempt(seat, false, view, needy, ret_preempt)) {
    }
    if (qn_policy_seat_shadow(seat) == NULL) return;
    qn_policy_preempt_t preempt;
    qn_policy_decision_t by_live, by_shadow;
    if (!ask_preempt(seat, true, view, needy, &preempt)) return;
    describe_preempt(ret_preempt, &by_live);
    describe_preempt(&preempt, &by_shadow);
    qn_policy_seat_compare(seat, "preempt", view->now_ns, &by_live, &by_shadow);
}

/* ---- batching ---- */

static const char *check_size(const qn_policy_load_t *load, qn_policy_size_t *size)
{
    end_text(size->reason);
    if (size->step_tokens < load->decode_tokens || size->step_tokens > load->step_tokens_max)
        return "a step has fewer tokens than decode, or more than scheduler.max_step_tokens";
    if (size->step_tokens == 0) return "a step has no tokens although nothing decodes";
    if (size->chunk_tokens == 0 || size->chunk_tokens > load->step_tokens_max)
        return "a chunk has no tokens, or more than scheduler.max_step_tokens";
    return NULL;
}

static bool ask_size(qn_policy_seat_t *seat, bool shadow, const qn_policy_load_t *load, qn_policy_size_t *ret_size)
{
    const qn_policy_object_t *object = qn_policy_seat_ask(seat, shadow);
    *ret_size = (qn_policy_size_t){0};
    ((const qn_batching_policy_t *)table_of(object))->size(qn_policy_object_memory(object), load, ret_size);
    return qn_policy_seat_take(seat, shadow, check_size(load, ret_size));
}

static void describe_size(const qn_policy_size_t *size, qn_policy_decision_t *ret_decision)
{
    *ret_decision = (qn_policy_decision_t){0};
    add_hash(ret_decision, size->step_tokens, size->chunk_tokens);
    snprintf(ret_decision->words, sizeof ret_decision->words, "%u tokens, chunks of %u", size->step_tokens,
             size->chunk_tokens);
    memcpy(ret_decision->reason, size->reason, QN_POLICY_REASON_MAX);
}

void policy_size(qn_policy_seat_t *seat, const qn_policy_load_t *load, qn_policy_size_t *ret_size)
{
    while (!ask_size(seat, false, load, ret_size)) {
    }
    if (qn_policy_seat_shadow(seat) == NULL) return;
    qn_policy_size_t size;
    qn_policy_decision_t by_live, by_shadow;
    if (!ask_size(seat, true, load, &size)) return;
    describe_size(ret_size, &by_live);
    describe_size(&size, &by_shadow);
    qn_policy_seat_compare(seat, "size", load->now_ns, &by_live, &by_shadow);
}

/* ---- admission ---- */

static const char *check_verdict(qn_policy_verdict_t *verdict)
{
    end_text(verdict->reason);
    if (verdict->accept > 1) return "a verdict is neither 0 nor 1";
    if (!verdict->accept && (verdict->retry_after_ms < 1 || verdict->retry_after_ms > 3600000))
        return "a refusal says to try again in less than 1 ms or more than an hour";
    return !verdict->accept && verdict->reason[0] == '\0' ? "a refusal has no reason" : NULL;
}

static bool ask_judge(qn_policy_seat_t *seat, bool shadow, const qn_policy_arrival_t *arrival,
                      qn_policy_verdict_t *ret_verdict)
{
    const qn_policy_object_t *object = qn_policy_seat_ask(seat, shadow);
    *ret_verdict = (qn_policy_verdict_t){0};
    ((const qn_admission_policy_t *)table_of(object))->judge(qn_policy_object_memory(object), arrival, ret_verdict);
    return qn_policy_seat_take(seat, shadow, check_verdict(ret_verdict));
}

static void describe_verdict(const qn_policy_arrival_t *arrival, const qn_policy_verdict_t *verdict,
                             qn_policy_decision_t *ret_decision)
{
    *ret_decision = (qn_policy_decision_t){0};
    add_hash(ret_decision, arrival->id, verdict->accept);
    snprintf(ret_decision->words, sizeof ret_decision->words, "%s %" PRIu64, verdict->accept ? "accept" : "refuse",
             arrival->id);
    memcpy(ret_decision->reason, verdict->reason, QN_POLICY_REASON_MAX);
}

void policy_judge(qn_policy_seat_t *seat, const qn_policy_arrival_t *arrival, qn_policy_verdict_t *ret_verdict)
{
    while (!ask_judge(seat, false, arrival, ret_verdict)) {
    }
    if (qn_policy_seat_shadow(seat) == NULL) return;
    qn_policy_verdict_t verdict;
    qn_policy_decision_t by_live, by_shadow;
    if (!ask_judge(seat, true, arrival, &verdict)) return;
    describe_verdict(arrival, ret_verdict, &by_live);
    describe_verdict(arrival, &verdict, &by_shadow);
    qn_policy_seat_compare(seat, "judge", arrival->now_ns, &by_live, &by_shadow);
}
