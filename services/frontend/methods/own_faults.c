/* What is this?      The frontend's methods about faults: what is in force, and other ones.
 * State owned:       none; the page of common/faults.h.
 * Must never:        set a part of a list: all of it or, when one rule cannot be, none.
 * Read next:         common/faults.h, schemas/frontend/frontend_faults_set.fbs. */
#include "services/frontend/methods/own_faults.h"

#include <stdio.h>
#include <string.h>

#include "common/daemon/links/endpoint.h"
#include "common/watch/log.h"
#include "common/wire/wire.h"

/* ---- reading ---- */

/* A bit of the service's name; 0: none given. False: the call was refused. */
static bool read_service(const qn_call_t *call, const char *param, const char *name, uint32_t *ret_bits)
{
    *ret_bits = 0;
    for (unsigned service = QN_SERVICE_FRONTEND; name && service <= QN_SERVICE_TOOL; service++)
        if (strcmp(qn_service_name((qn_service_t)service), name) == 0) *ret_bits = 1u << service;
    if (!name || *ret_bits) return true;
    qn_call_fail(call, 400, param,
                 "%s: there is no service \"%.32s\"; there are frontend, tokenizer, scheduler, memory, "
                 "compute and tool",
                 param, name);
    return false;
}

/* By its name ("StepPlan"); every one but link control when none is given. */
static bool read_type(const qn_call_t *call, const char *name, char ret_type[4])
{
    memset(ret_type, 0, 4);
    for (int type = QN_MESSAGE_NONE + 1; name && type < QN_MESSAGE_COUNT; type++)
        if (strcmp(qn_message_name((qn_message_type_t)type), name) == 0) {
            memcpy(ret_type, qn_wire_type((qn_message_type_t)type)->identifier, 4);
            return true;
        }
    if (!name) return true;
    qn_call_fail(call, 400, "type", "type: there is no message \"%.64s\"; GET /services/{service} lists them", name);
    return false;
}

/* What a daemon takes once a step, or for each request: its k-th is its step k. */
static const char *step_message(uint32_t to)
{
    switch (to) {
    case 1u << QN_SERVICE_FRONTEND: return "TextDelta";
    case 1u << QN_SERVICE_TOKENIZER: return "TokenBatch";
    case 1u << QN_SERVICE_SCHEDULER: return "StepResult";
    case 1u << QN_SERVICE_MEMORY: return "Lease";
    default: return "StepPlan";
    }
}

static bool read_kill(const qn_call_t *call, const qn_fault_rule_t *rule, qn_fault_t *fault)
{
    bool one_daemon = fault->to && !(fault->to & 1u << QN_SERVICE_TOOL);
    if (!one_daemon) {
        qn_call_fail(call, 400, "to", "to: say which service is to be killed");
        return false;
    }
    if (!rule->type.data && !read_type(call, step_message(fault->to), fault->type)) return false;
    if (rule->step) fault->skip = rule->step - 1;
    if (rule->count == 0) fault->count = 1; /* else it would die for ever */
    return true;
}

static bool read_rule(const qn_call_t *call, const qn_fault_rule_t *rule, qn_fault_t *ret_fault)
{
    qn_fault_t fault = {.kind = qn_fault_find(rule->kind.data),
                        .delay_ms = rule->delay_ms,
                        .probability = rule->probability,
                        .skip = rule->skip,
                        .count = rule->count,
                        .seed = rule->seed};
    bool of_messages = fault.kind >= QN_FAULT_DELAY && fault.kind <= QN_FAULT_KILL;
    if (fault.kind == QN_FAULT_NONE) {
        qn_call_fail(call, 400, "kind",
                     "kind: there is no fault \"%.32s\"; there are delay, drop, duplicate, reorder, "
                     "corrupt, kill, fail_lease and refuse_allocation",
                     rule->kind.data);
        return false;
    }
    if (!of_messages && (rule->type.data || rule->from.data || rule->to.data)) {
        qn_call_fail(call, 400,
                     rule->type.data   ? "type"
                     : rule->from.data ? "from"
                                       : "to",
                     "%s is of memory and of no message: leave type, from and to out", qn_fault_name(fault.kind));
        return false;
    }
    if ((fault.kind == QN_FAULT_DELAY) != (rule->delay_ms > 0)) {
        qn_call_fail(call, 400, "delay_ms", "delay_ms: 1 to %u for a delay, and for nothing else",
                     QN_FAULT_DELAY_MS_MAX);
        return false;
    }
    if (rule->step && fault.kind != QN_FAULT_KILL) {
        qn_call_fail(call, 400, "step", "step: of a kill; others have skip");
        return false;
    }
    if (!read_service(call, "from", rule->from.data, &fault.from) ||
        !read_service(call, "to", rule->to.data, &fault.to) || !read_type(call, rule->type.data, fault.type))
        return false;
    if (fault.kind == QN_FAULT_KILL && !read_kill(call, rule, &fault)) return false;
    *ret_fault = fault;
    return true;
}

/* ---- showing ---- */

static const char *service_of(uint32_t bits)
{
    for (unsigned service = QN_SERVICE_FRONTEND; service <= QN_SERVICE_TOOL; service++)
        if (bits == 1u << service) return qn_service_name((qn_service_t)service);
    return NULL;
}

static const char *type_of(const char type[4])
{
    uint8_t frame[8] = {0};
    memcpy(frame + 4, type, 4);
    qn_message_type_t found = qn_message_type_of(frame, sizeof frame);
    return found == QN_MESSAGE_NONE ? NULL : qn_message_name(found);
}

static qn_fault_in_force_t show_rule(const qn_fault_state_t *state)
{
    const qn_fault_t *fault = &state->fault;
    return (qn_fault_in_force_t){.kind = qn_text(qn_fault_name((qn_fault_kind_t)fault->kind)),
                                 .type = qn_text(type_of(fault->type)),
                                 .from = qn_text(service_of(fault->from)),
                                 .to = qn_text(service_of(fault->to)),
                                 .delay_ms = fault->delay_ms,
                                 .probability = fault->probability,
                                 .skip = fault->skip,
                                 .count = fault->count,
                                 .seed = fault->seed,
                                 .hits = state->hits,
                                 .fired = state->fired};
}

static void show_all(frontend_t *frontend, qn_call_t *call, qn_frontend_faults_get_reply_t *reply)
{
    qn_fault_state_t states[QN_FAULTS_MAX];
    qn_fault_in_force_t *rows = qn_arena_zalloc(call->arena, QN_FAULTS_MAX, sizeof *rows);
    reply->faults_count = qn_faults_list(qn_daemon_faults(frontend->daemon), states);
    for (uint32_t i = 0; i < reply->faults_count; i++)
        rows[i] = show_rule(&states[i]);
    reply->faults = rows;
}

qn_call_outcome_t frontend_method_faults_get(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)message;
    show_all(state, call, ret_reply);
    return QN_CALL_DONE;
}

qn_call_outcome_t frontend_method_faults_set(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    frontend_t *frontend = state;
    const qn_frontend_faults_set_t *asked = message;
    qn_fault_t faults[QN_FAULTS_MAX];
    for (uint32_t i = 0; i < asked->faults_count; i++)
        if (!read_rule(call, &asked->faults[i], &faults[i])) return QN_CALL_FAILED;
    qn_faults_set(qn_daemon_faults(frontend->daemon), faults, asked->faults_count);
    if (asked->faults_count)
        qn_log_warning("%u faults are armed", asked->faults_count);
    else
        qn_log_notice("faults are cleared");
    show_all(frontend, call, ret_reply);
    return QN_CALL_DONE;
}
