/* What is this?      The methods beside probes: the session's mask, and the tokens of a sequence.
 * State owned:       scheduler_service_t.mask.
 * Must never:        change a request that is there: its blocks are of the mask it came with.
 * Read next:         session_mask.h, common/daemon/calls.h. */
#include "services/scheduler/methods.h"

#include <inttypes.h>
#include <stdio.h>

static qn_call_outcome_t show(const scheduler_service_t *service, const qn_call_t *call,
                              qn_scheduler_mask_reply_t *ret_reply)
{
    const session_mask_t *mask = &service->mask;
    qn_mask_row_t *rows = qn_arena_zalloc(call->arena, mask->count + 1, sizeof *rows);
    char *id = qn_arena_zalloc(call->arena, 17, 1);
    for (uint32_t i = 0; i < mask->count; i++) {
        const qn_mask_rule_t *from = &mask->rules[i];
        rows[i] = (qn_mask_row_t){.kind = from->kind,
                                  .k = from->k,
                                  .window = from->window,
                                  .sinks = from->sinks,
                                  .value = from->value,
                                  .layer_from = from->layer_from,
                                  .layer_to = from->layer_to,
                                  .head_from = from->head_from,
                                  .head_to = from->head_to};
    }
    snprintf(id, 17, "%016" PRIx64, qn_probe_group(&(qn_probe_t){.masks = mask->rules, .mask_count = mask->count}));
    if (mask->count) ret_reply->id = qn_text(id);
    ret_reply->rules = rows;
    ret_reply->rules_count = mask->count;
    return QN_CALL_DONE;
}

qn_call_outcome_t method_mask_get(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)message;
    return show(state, call, ret_reply);
}

qn_call_outcome_t method_mask_set(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    scheduler_service_t *service = state;
    const qn_scheduler_mask_set_t *request = message;
    session_mask_t mask = {.count = request->rules_count};
    const char *param;
    for (uint32_t i = 0; i < request->rules_count; i++) {
        const qn_mask_row_t *from = &request->rules[i];
        mask.rules[i] = (qn_mask_rule_t){.kind = from->kind,
                                         .k = from->k,
                                         .window = from->window,
                                         .sinks = from->sinks,
                                         .value = from->value,
                                         .layer_from = from->layer_from,
                                         .layer_to = from->layer_to,
                                         .head_from = from->head_from,
                                         .head_to = from->head_to};
    }
    const qn_probe_t probe = {.masks = mask.rules, .mask_count = mask.count};
    if (mask.count && !service->probes.layers)
        return qn_call_fail(call, 503, NULL, "the scheduler does not know the model yet; try again");
    if (mask.count && qn_probe_check(&probe, &service->probes, &param) < 0)
        return qn_call_fail(call, 400, "rules", "%s", qn_err_text());
    if (session_mask_save(qn_daemon_run_dir(service->daemon), &mask) < 0)
        return qn_call_fail(call, 500, NULL, "the mask cannot be kept: %s", qn_err_text());
    service->mask = mask;
    return show(service, call, ret_reply);
}

qn_call_outcome_t method_tokens(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const scheduler_service_t *service = state;
    const qn_scheduler_tokens_t *asked = message;
    qn_scheduler_tokens_reply_t *reply = ret_reply;
    const ledger_t *ledger = scheduler_ledger(service->scheduler);
    const request_t *request = asked->request ? ledger_find(ledger, asked->request) : ledger_next(ledger, NULL);
    if (!request && !asked->request) return QN_CALL_DONE; /* nobody is there */
    if (!request)
        return qn_call_fail(call, 404, "request",
                            "request: %" PRIu64 " is not in the ledger; scheduler.queue shows who is", asked->request);
    reply->prompt_tokens = request->prompt_tokens;
    reply->computed_tokens = scheduler_batch(service->scheduler)->sequences[request->index].proven;
    reply->ids = request->ids;
    reply->ids_count = request_known_tokens(request);
    return QN_CALL_DONE;
}
