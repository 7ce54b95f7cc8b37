/* What is this?      The method scheduler.history: the life of a request, for people.
 * State owned:       none; the service's.
 * Must never:        change what is scheduled.
 * Read next:         history.h, planner.h (decisions), schemas/scheduler/scheduler_history_reply.fbs. */
#include <inttypes.h>

#include "services/scheduler/handlers.h"
#include "services/scheduler/methods.h"

static qn_timeline_t show_timeline(uint64_t request, const request_timeline_t *timeline)
{
    return (qn_timeline_t){.request = request,
                           .received_ns = timeline->received_ns,
                           .encode_begin_ns = timeline->encode_begin_ns,
                           .submitted_ns = timeline->submitted_ns,
                           .queued_ns = timeline->queued_ns,
                           .planned_ns = timeline->planned_ns,
                           .executed_ns = timeline->executed_ns,
                           .computed_ns = timeline->computed_ns,
                           .resulted_ns = timeline->resulted_ns};
}

static void show_steps(const history_t *history, uint64_t request, uint32_t room, qn_arena_t *arena,
                       qn_scheduler_history_reply_t *reply)
{
    history_run_t *runs = qn_arena_zalloc(arena, room, sizeof *runs);
    qn_history_run_t *rows = qn_arena_zalloc(arena, room, sizeof *rows);
    reply->runs_count = history_runs(history, request, room, runs);
    for (uint32_t i = 0; i < reply->runs_count; i++) {
        const history_step_t *step = history_step(history, runs[i].step);
        rows[i] = (qn_history_run_t){.request = runs[i].request,
                                     .step = runs[i].step,
                                     .position = runs[i].position,
                                     .token_count = runs[i].tokens};
        if (!step) continue;
        rows[i].sent_ns = step->sent_ns;
        rows[i].begin_ns = step->begin_ns;
        rows[i].end_ns = step->end_ns;
        rows[i].result_ns = step->result_ns;
        rows[i].step_sequences = step->sequences;
        rows[i].step_tokens = step->tokens;
    }
    reply->runs = rows;
}

static void show_decisions(const scheduler_service_t *service, const qn_call_t *call, uint64_t request,
                           qn_scheduler_history_reply_t *reply)
{
    uint32_t room = QN_SCHEDULER_HISTORY_REPLY_DECISIONS_MAX;
    qn_decision_t *rows = qn_arena_zalloc(call->arena, room, sizeof *rows);
    const planner_decision_t *one;
    reply->decisions = rows;
    for (uint32_t i = 0; request && i < room && (one = scheduler_decision(service->scheduler, request, i)); i++)
        rows[reply->decisions_count++] = (qn_decision_t){.step = one->step,
                                                         .age_ms = (call->began_ns - one->now_ns) / 1000000,
                                                         .text = qn_text(one->reason),
                                                         .function = qn_text(one->function),
                                                         .policy = qn_text(one->policy),
                                                         .request = one->request};
}

static void show_life(const history_life_t *life, qn_scheduler_history_reply_t *reply)
{
    if (!life) return;
    reply->blocks_most = life->blocks_most;
    reply->steps_total = life->steps;
    reply->first_step = life->first_step;
    reply->last_step = life->last_step;
}

static void show_live(const scheduler_service_t *service, const qn_call_t *call, const request_t *request,
                      qn_scheduler_history_reply_t *reply)
{
    qn_queued_sequence_t *queue = qn_arena_zalloc(call->arena, 1, sizeof *queue);
    scheduler_show_sequence(scheduler_batch(service->scheduler), request, call->began_ns, queue);
    reply->live = true;
    reply->queue = queue;
    reply->timeline = show_timeline(request->id, &request->timeline);
    reply->finish = (qn_finish_t)request->finish;
    reply->priority = request->priority;
    reply->prompt_tokens = request->prompt_tokens;
    reply->cached_tokens = request->cached_tokens;
    reply->generated_tokens = request->generated_tokens;
    reply->max_tokens = request->generated_max;
    reply->preemptions = request->preemptions;
    reply->crashes = request->crashes;
    show_life(history_live(service->history, request->index, request->id), reply);
}

static void show_ended(const history_life_t *life, qn_scheduler_history_reply_t *reply)
{
    reply->timeline = show_timeline(life->request, &life->timeline);
    reply->finish = (qn_finish_t)life->finish;
    reply->ended_ns = life->ended_ns;
    reply->priority = life->priority;
    reply->prompt_tokens = life->prompt_tokens;
    reply->cached_tokens = life->cached_tokens;
    reply->generated_tokens = life->generated_tokens;
    reply->max_tokens = life->generated_max;
    reply->preemptions = life->preemptions;
    reply->crashes = life->crashes;
    show_life(life, reply);
}

qn_call_outcome_t scheduler_method_history(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const scheduler_service_t *service = state;
    const qn_scheduler_history_t *asked = message;
    qn_scheduler_history_reply_t *reply = ret_reply;
    const request_t *request =
        asked->request ? ledger_find(scheduler_ledger(service->scheduler), asked->request) : NULL;
    const history_life_t *life = request ? NULL : history_ended(service->history, asked->request);
    if (asked->request && !request && !life)
        return qn_call_fail(call, 404, "request",
                            "request: %" PRIu64
                            " neither lives nor is among the last %u that ended in this life of the "
                            "scheduler; scheduler.queue shows who lives",
                            asked->request, HISTORY_LIVES);
    reply->request = asked->request;
    if (request) show_live(service, call, request, reply);
    if (life) show_ended(life, reply);
    show_steps(service->history, asked->request, asked->limit, call->arena, reply);
    show_decisions(service, call, asked->request, reply);
    return QN_CALL_DONE;
}
