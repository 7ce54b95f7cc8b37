/* What is this?      The scheduler's methods: the queue and its decisions, for people.
 * State owned:       none; the service's.
 * Must never:        change what is scheduled.
 * Read next:         common/daemon/calls.h, schemas/scheduler/, scheduler.h, batch.h. */
#include "common/clock.h"
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

static void show_sequence(const batch_t *batch, const request_t *request, uint64_t now_ns, qn_queued_sequence_t *ret)
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
            show_sequence(batch, request, call->began_ns, &rows[reply->sequences_count++]);
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

const qn_method_row_t scheduler_methods[] = {
    {QN_METHOD_SCHEDULER_QUEUE, method_queue},
    {QN_METHOD_SCHEDULER_MASK_GET, method_mask_get},
    {QN_METHOD_SCHEDULER_MASK_SET, method_mask_set},
    {QN_METHOD_NONE, NULL},
};
