/* What is this?      The method scheduler.latency: how long requests waited and steps took, over the last minute.
 * State owned:       none; the windows are the service's.
 * Must never:        be asked for by anything that serves.
 * Read next:         common/watch/window.h, schemas/latency_reply.fbs. */
#include "common/watch/latency.h"
#include "services/scheduler/methods.h"

qn_call_outcome_t scheduler_method_latency(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)message;
    const scheduler_service_t *service = state;
    qn_latency_reply_t *reply = ret_reply;
    qn_latency_figures_t *rows = qn_arena_zalloc(call->arena, 5, sizeof *rows);
    rows[reply->rows_count++] = qn_latency_row("queue", &service->windows.queued, call->began_ns);
    rows[reply->rows_count++] = qn_latency_row("plan", &service->windows.plans, call->began_ns);
    rows[reply->rows_count++] = qn_latency_row("step_round_trip", &service->windows.round_trips, call->began_ns);
    rows[reply->rows_count++] = qn_latency_row("step", &service->windows.steps, call->began_ns);
    rows[reply->rows_count++] = qn_latency_row("idle", &service->windows.idle, call->began_ns);
    reply->rows = rows;
    return QN_CALL_DONE;
}
