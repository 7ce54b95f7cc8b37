/* What is this?      The method tokenizer.latency: how long texts and tokens took, over the last minute.
 * State owned:       none; the windows are the service's.
 * Must never:        be asked for by anything that serves.
 * Read next:         common/watch/window.h, schemas/latency_reply.fbs. */
#include "common/watch/latency.h"
#include "services/tokenizer/handlers.h"

qn_call_outcome_t tokenizer_method_latency(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)message;
    const tokenizer_service_t *service = state;
    qn_latency_reply_t *reply = ret_reply;
    qn_latency_figures_t *rows = qn_arena_zalloc(call->arena, 3, sizeof *rows);
    rows[reply->rows_count++] = qn_latency_row("tokenize", &service->encodes, call->began_ns);
    rows[reply->rows_count++] = qn_latency_row("detokenize", &service->decodes, call->began_ns);
    rows[reply->rows_count++] = qn_latency_row("detokenize_wait", &service->waits, call->began_ns);
    reply->rows = rows;
    return QN_CALL_DONE;
}
