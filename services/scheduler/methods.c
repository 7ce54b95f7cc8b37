/* What is this?      The scheduler's methods: the queue and its decisions, for people.
 * State owned:       none; the service's.
 * Must never:        change what is scheduled, but by a seat.
 * Read next:         common/daemon/calls.h, schemas/scheduler/, scheduler.h, batch.h. */
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/policy/policy_show.h"
#include "services/scheduler/methods.h"

static qn_sequence_state_t state_of(const sequence_t *sequence, const request_t *request)
{
    switch (sequence->phase) {
    case SEQUENCE_WAITING: return QN_SEQUENCE_STATE_WAITING;
    case SEQUENCE_LEASING: return QN_SEQUENCE_STATE_LEASING;
    case SEQUENCE_RUNNING:
        return sequence->planned < request->prompt_tokens ? QN_SEQUENCE_STATE_PREFILL : QN_SEQUENCE_STATE_DECODE;
    case SEQUENCE_RETIRING: return QN_SEQUENCE_STATE_RETIRING;
    case SEQUENCE_NONE: break;
    }
    return QN_SEQUENCE_STATE_FINISHED;
}

void scheduler_show_sequence(const batch_t *batch, const request_t *request, uint64_t now_ns, qn_queued_sequence_t *ret)
{
    const sequence_t *sequence = &batch->sequences[request->index];
    uint64_t queued_ns = request->timeline.queued_ns;
    *ret = (qn_queued_sequence_t){
        .id = request->id,
        .state = state_of(sequence, request),
        .priority = request->priority,
        .arrival = request->arrival,
        .slot = sequence->slot == BATCH_NO_SLOT || sequence->phase == SEQUENCE_NONE ? -1 : (int32_t)sequence->slot,
        .blocks = sequence->block_count,
        .prompt_tokens = request->prompt_tokens,
        .cached_tokens = request->cached_tokens,
        .generated_tokens = request->generated_tokens,
        .max_tokens = request->generated_max,
        .planned_tokens = sequence->planned,
        .proven_tokens = sequence->proven,
        .preemptions = request->preemptions,
        .age_ms = queued_ns && now_ns > queued_ns ? (now_ns - queued_ns) / 1000000 : 0,
        .orphan = request_is_orphan(request),
        .suspect = request->suspect_until != 0,
    };
}

static qn_call_outcome_t method_queue(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const scheduler_service_t *service = state;
    const qn_scheduler_queue_t *asked = message;
    qn_scheduler_queue_reply_t *reply = ret_reply;
    const batch_t *batch = scheduler_batch(service->scheduler);
    const ledger_t *ledger = scheduler_ledger(service->scheduler);
    qn_queued_sequence_t *rows = qn_arena_zalloc(call->arena, asked->limit, sizeof *rows);
    uint32_t seen = 0;
    for (const request_t *request = ledger_next(ledger, NULL); request; request = ledger_next(ledger, request))
        if (seen++ >= asked->offset && reply->sequences_count < asked->limit)
            scheduler_show_sequence(batch, request, call->began_ns, &rows[reply->sequences_count++]);
    reply->sequences = rows;
    reply->policy = qn_text(scheduler_policy_name(service->scheduler));
    reply->waiting = batch->waiting_count;
    reply->leasing = batch->leasing_count;
    reply->running = batch->running_count;
    reply->retiring = batch->retiring_count;
    reply->total = ledger_count(ledger);
    reply->total_blocks = batch->total_blocks;
    reply->available_blocks = batch->available_blocks;
    reply->steps_in_flight = batch->step_count;
    reply->last_step = batch->last_step;
    return QN_CALL_DONE;
}

/* ---- why ---- */

static uint32_t waiting_before(const scheduler_service_t *service, const request_t *request)
{
    const batch_t *batch = scheduler_batch(service->scheduler);
    const ledger_t *ledger = scheduler_ledger(service->scheduler);
    uint32_t count = 0;
    for (const request_t *other = ledger_next(ledger, NULL); other && other != request;
         other = ledger_next(ledger, other))
        count += batch->sequences[other->index].phase == SEQUENCE_WAITING;
    return count;
}

static void explain_waiting(const scheduler_service_t *service, const request_t *request, char *text, size_t room)
{
    const batch_t *batch = scheduler_batch(service->scheduler);
    uint32_t tokens = request_known_tokens(request) + 1, size = batch->block_tokens;
    if (!scheduler_running(service->scheduler)) {
        snprintf(text, room, "waits: memory or compute is not ready; GET /services shows which");
        return;
    }
    snprintf(
        text, room,
        "waits: %u waiting requests came before it; %u of %u slots are in use; it wants about %u blocks, %u of %u are "
        "free or evictable%s%s",
        waiting_before(service, request), batch->slot_count - batch->free_slots, batch->slot_count,
        size ? (tokens + size - 1) / size : 0, batch->available_blocks, batch->total_blocks,
        request->preemptions ? "; it has lost its blocks before" : "",
        request_is_orphan(request)    ? "; its client is gone, so it yields to all others"
        : request->suspect_until != 0 ? "; it was in hand at a crash, so it runs apart"
                                      : "");
}

static void explain(const scheduler_service_t *service, const request_t *request, char *text, size_t room)
{
    const batch_t *batch = scheduler_batch(service->scheduler);
    const sequence_t *sequence = &batch->sequences[request->index];
    switch (state_of(sequence, request)) {
    case QN_SEQUENCE_STATE_WAITING: explain_waiting(service, request, text, room); break;
    case QN_SEQUENCE_STATE_LEASING:
        snprintf(text, room, "has slot %u and waits for memory to lease blocks for %u tokens", sequence->slot,
                 sequence->lease_tokens);
        break;
    case QN_SEQUENCE_STATE_PREFILL:
        snprintf(text, room, "runs: %u of %u prompt tokens are planned, %u done", sequence->planned,
                 request->prompt_tokens, sequence->proven);
        break;
    case QN_SEQUENCE_STATE_DECODE:
        snprintf(text, room, "runs: %u of at most %u tokens are generated%s", request->generated_tokens,
                 request->generated_max, sequence->short_of_blocks ? "; memory had no further block for it" : "");
        break;
    case QN_SEQUENCE_STATE_RETIRING:
        snprintf(text, room, "%s: its blocks go back when step %llu has its result",
                 sequence->requeue ? "gave up its place" : "ended", (unsigned long long)sequence->last_step);
        break;
    case QN_SEQUENCE_STATE_FINISHED: snprintf(text, room, "ended; its client is still to be told"); break;
    }
}

static void show_decisions(const scheduler_service_t *service, const qn_call_t *call,
                           const qn_scheduler_explain_t *asked, qn_scheduler_explain_reply_t *reply)
{
    qn_decision_t *rows = qn_arena_zalloc(call->arena, asked->limit, sizeof *rows);
    qn_text_t *texts = qn_arena_zalloc(call->arena, asked->limit, sizeof *texts);
    const planner_decision_t *one;
    for (uint32_t i = 0; i < asked->limit && (one = scheduler_decision(service->scheduler, asked->request, i)); i++) {
        texts[i] = qn_text(one->reason);
        rows[i] = (qn_decision_t){.step = one->step,
                                  .age_ms = (call->began_ns - one->now_ns) / 1000000,
                                  .text = qn_text(one->reason),
                                  .function = qn_text(one->function),
                                  .policy = qn_text(one->policy),
                                  .request = one->request};
        reply->decisions_count++;
    }
    reply->decisions = rows;
    reply->algorithm_reasoning = texts;
    reply->algorithm_reasoning_count = reply->decisions_count;
}

static qn_call_outcome_t method_explain(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const scheduler_service_t *service = state;
    const qn_scheduler_explain_t *asked = message;
    qn_scheduler_explain_reply_t *reply = ret_reply;
    const request_t *request =
        asked->request ? ledger_find(scheduler_ledger(service->scheduler), asked->request) : NULL;
    if (asked->request && !request && !scheduler_decision(service->scheduler, asked->request, 0))
        return qn_call_fail(call, 404, "request", "request: %llu is not in the ledger; scheduler.queue shows who is",
                            (unsigned long long)asked->request);
    reply->policy = qn_text(scheduler_policy_name(service->scheduler));
    show_decisions(service, call, asked, reply);
    if (!request) return QN_CALL_DONE;
    char why[QN_SCHEDULER_EXPLAIN_REPLY_WHY_MAX];
    qn_queued_sequence_t *sequence = qn_arena_zalloc(call->arena, 1, sizeof *sequence);
    scheduler_show_sequence(scheduler_batch(service->scheduler), request, call->began_ns, sequence);
    explain(service, request, why, sizeof why);
    reply->sequence = sequence;
    reply->why = qn_text(qn_arena_strndup(call->arena, why, strlen(why)));
    return QN_CALL_DONE;
}

/* ---- policies ---- */

/* NULL: refused. */
static qn_policy_seat_t *seat_of(scheduler_service_t *service, qn_decision_kind_t kind, const qn_call_t *call)
{
    if (kind == QN_DECISION_KIND_EVICTION) {
        qn_call_fail(call, 400, "kind", "kind: memory evicts; ask memory for it");
        return NULL;
    }
    return policies_seat(scheduler_policies(service->scheduler), (qn_policy_kind_t)kind + QN_POLICY_SCHEDULING);
}

static qn_call_outcome_t method_policy_get(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const qn_scheduler_policy_get_t *asked = message;
    qn_scheduler_policy_reply_t *reply = ret_reply;
    const qn_policy_seat_t *seat = seat_of(state, asked->kind, call);
    if (seat == NULL) return QN_CALL_FAILED;
    reply->policies = qn_policy_show(seat, call);
    return QN_CALL_DONE;
}

static qn_call_outcome_t change_policy(qn_policy_seat_t *seat, bool shadow, qn_text_t choice, qn_call_t *call,
                                       qn_scheduler_policy_reply_t *reply)
{
    if (seat == NULL || qn_policy_change(seat, shadow, choice, call) != QN_CALL_DONE) return QN_CALL_FAILED;
    reply->policies = qn_policy_show(seat, call);
    return QN_CALL_DONE;
}

static qn_call_outcome_t method_policy_set(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const qn_scheduler_policy_set_t *asked = message;
    return change_policy(seat_of(state, asked->kind, call), false, asked->policy, call, ret_reply);
}

static qn_call_outcome_t method_policy_shadow(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const qn_scheduler_policy_shadow_t *asked = message;
    return change_policy(seat_of(state, asked->kind, call), true, asked->policy, call, ret_reply);
}

const qn_method_row_t scheduler_methods[] = {
    {QN_METHOD_SCHEDULER_QUEUE, method_queue},
    {QN_METHOD_SCHEDULER_EXPLAIN, method_explain},
    {QN_METHOD_SCHEDULER_POLICY_GET, method_policy_get},
    {QN_METHOD_SCHEDULER_SCHEDULE, scheduler_method_schedule},
    {QN_METHOD_SCHEDULER_POLICY_SET, method_policy_set},
    {QN_METHOD_SCHEDULER_POLICY_SHADOW, method_policy_shadow},
    {QN_METHOD_SCHEDULER_LATENCY, scheduler_method_latency},
    {QN_METHOD_SCHEDULER_HISTORY, scheduler_method_history},
    {QN_METHOD_NONE, NULL},
};
