/* What is this?      The answering side of methods: from a decoded request to the reply or the refusal that is sent.
 * State owned:       none.
 * Must never:        know a method by name; wait.
 * Read next:         calls.h, daemon.c (who calls this), services/<name>/methods.c (the rows). */
#include "common/daemon/calls.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/assert.h"
#include "common/daemon/daemon.h"
#include "common/watch/log.h"

static const qn_method_row_t *find_row(const qn_method_row_t *rows, qn_method_id_t id)
{
    for (; rows->method != QN_METHOD_NONE; rows++)
        if (rows->method == id) return rows;
    return NULL;
}

void qn_calls_check(qn_service_t service, const qn_method_row_t *rows)
{
    size_t given = 0, made = 0;
    if (!rows) return;
    for (size_t id = 1; id < QN_METHOD_COUNT; id++) {
        if (qn_methods[id].service != service) continue;
        made++;
        if (!find_row(rows, (qn_method_id_t)id)) qn_log_error("%s has no function", qn_methods[id].name);
        QN_ASSERT(find_row(rows, (qn_method_id_t)id));
    }
    for (; rows->method != QN_METHOD_NONE; rows++)
        given++;
    QN_ASSERT(given == made);
}

qn_call_outcome_t qn_call_fail(const qn_call_t *call, uint16_t status, const char *param, const char *format, ...)
{
    char text[QN_ERR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    qn_daemon_refuse(call->daemon, call->from, call->id, status, param, text);
    return QN_CALL_FAILED;
}

void qn_call_finish(const qn_call_t *call, void *reply)
{
    qn_head_t *head = reply; /* fields 0 and 1 of every reply */
    head->request = call->id;
    memcpy((uint8_t *)reply + qn_wire_type(call->method->reply)->fields[1].offset, &call->began_ns, sizeof(uint64_t));
    switch (qn_daemon_send(call->daemon, call->from, call->method->reply, reply)) {
    case QN_SEND_OK:
    case QN_SEND_GONE: break;
    case QN_SEND_FULL:
        qn_log_warning("the answer to a %s was dropped: its caller takes nothing", call->method->name);
        break;
    case QN_SEND_INVALID: qn_call_fail(call, 500, NULL, "the answer is larger than it may be: %.300s", qn_err_text());
    }
}

void qn_calls_run(const qn_method_row_t *rows, void *state, qn_call_t *call, const void *message)
{
    const qn_method_row_t *row = find_row(rows, (qn_method_id_t)(call->method - qn_methods));
    void *reply = qn_arena_zalloc(call->arena, 1, qn_wire_type(call->method->reply)->struct_bytes);
    if (row->run(state, call, message, reply) == QN_CALL_DONE) qn_call_finish(call, reply);
}
