/* What is this?      Where the time of steps went, over the last minute.
 * State owned:       compute_service_t.windows.
 * Must never:        cost a step anything where nobody asked: parts of a step on a GPU are sampled on demand.
 * Read next:         common/watch/window.h, executor.h (executor_sample), schemas/compute/compute_latency.fbs. */
#include "common/clock.h"
#include "common/watch/latency.h"
#include "services/compute/handlers.h"

#define ASKED_NS 60000000000ull /* somebody who asked may ask again */

void compute_observe_step(compute_service_t *service, const step_result_t *result)
{
    uint64_t now_ns = result->end_ns;
    const step_times_t *times = &result->times;
    qn_window_observe(&service->windows.step, now_ns, now_ns - result->begin_ns);
    if (times->sampled) {
        qn_window_observe(&service->windows.input, now_ns, times->input_ns);
        qn_window_observe(&service->windows.attention, now_ns, times->attention_ns);
        qn_window_observe(&service->windows.mlp, now_ns, times->mlp_ns);
        qn_window_observe(&service->windows.output, now_ns, times->output_ns);
        qn_window_observe(&service->windows.sample, now_ns, times->sample_ns);
    }
    if (service->sample_until_ns && now_ns > service->sample_until_ns && service->runtime) {
        service->sample_until_ns = 0;
        executor_sample(service->runtime->executor, false);
    }
}

qn_call_outcome_t compute_method_latency(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)message;
    compute_service_t *service = state;
    qn_latency_reply_t *reply = ret_reply;
    qn_latency_figures_t *rows = qn_arena_zalloc(call->arena, 6, sizeof *rows);
    rows[reply->rows_count++] = qn_latency_row("step", &service->windows.step, call->began_ns);
    rows[reply->rows_count++] = qn_latency_row("embed", &service->windows.input, call->began_ns);
    rows[reply->rows_count++] = qn_latency_row("attention", &service->windows.attention, call->began_ns);
    rows[reply->rows_count++] = qn_latency_row("mlp", &service->windows.mlp, call->began_ns);
    rows[reply->rows_count++] = qn_latency_row("output", &service->windows.output, call->began_ns);
    rows[reply->rows_count++] = qn_latency_row("sample", &service->windows.sample, call->began_ns);
    reply->rows = rows;
    reply->total_steps = rows[0].count;
    reply->sampled_steps = rows[1].count;
    if (!service->runtime) return QN_CALL_DONE;
    service->sample_until_ns = call->began_ns + ASKED_NS;
    executor_sample(service->runtime->executor, true);
    return QN_CALL_DONE;
}
