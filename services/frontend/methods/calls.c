/* What is this?      A table of calls by id; an id names its place.
 * State owned:       the calls.
 * Must never:        give out an id twice; look at what an answer says.
 * Read next:         calls.h, call_service.c. */
#include "services/frontend/methods/calls.h"

#include <string.h>

#include "common/assert.h"

#define OF_CALLS (1ull << 62) /* ids of generation requests are far below */

void calls_init(calls_t *calls, uint32_t epoch)
{
    memset(calls, 0, sizeof *calls);
    calls->first_id = OF_CALLS | (uint64_t)(epoch & 0xfffff) << 40;
}

call_t *calls_open(calls_t *calls)
{
    for (uint32_t i = 0; i < CALLS_MAX; i++) {
        call_t *call = &calls->calls[i];
        if (call->id) continue;
        *call = (call_t){.id = calls->first_id | (uint64_t)++calls->made << 8 | i};
        calls->count++;
        return call;
    }
    return NULL;
}

void calls_close(calls_t *calls, call_t *call)
{
    QN_ASSERT(call->id && calls->count > 0);
    call->id = 0;
    calls->count--;
}

call_t *calls_find(calls_t *calls, uint64_t id)
{
    call_t *call = &calls->calls[id % CALLS_MAX];
    return id && call->id == id ? call : NULL;
}

call_t *calls_overdue(calls_t *calls, uint64_t now_ns)
{
    for (uint32_t i = 0; i < CALLS_MAX && calls->count; i++)
        if (calls->calls[i].id && now_ns >= calls->calls[i].deadline_ns) return &calls->calls[i];
    return NULL;
}

call_t *calls_of_service(calls_t *calls, qn_service_t service)
{
    for (uint32_t i = 0; i < CALLS_MAX && calls->count; i++)
        if (calls->calls[i].id && calls->calls[i].method->service == service) return &calls->calls[i];
    return NULL;
}

uint32_t calls_for_clients(const calls_t *calls)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < CALLS_MAX && calls->count; i++)
        if (calls->calls[i].id && calls->calls[i].request) count++;
    return count;
}

bool calls_forget(calls_t *calls, const void *request)
{
    bool any = false;
    for (uint32_t i = 0; i < CALLS_MAX && calls->count; i++) {
        call_t *call = &calls->calls[i];
        if (!call->id || call->request != request) continue;
        call->request = NULL;
        any = true;
    }
    return any;
}
