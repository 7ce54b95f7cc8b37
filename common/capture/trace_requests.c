/* What is this?      Arrows and nested slices of requests.
 * State owned:       a hash table of requests.
 * Must never:        leave an arrow or a slice open.
 * Read next:         trace.c. */
#include "common/capture/trace_requests.h"

#include <stdbool.h>
#include <stdlib.h>

#define TABLE (2 * TRACE_REQUESTS_MAX)

typedef struct {
    uint64_t id;        /* 0: free */
    trace_place_t last; /* of its arrow; not written yet, for it may be the last */
    unsigned passed;    /* places of the arrow so far, `last` included */
    bool known;         /* its timeline was written: the arrow waits for the end */
    bool open, decodes; /* slices that have begun */
    uint64_t end_ns;    /* its end was sent; 0: not yet */
    bool ended;
} traced_t;

struct trace_requests {
    trace_json_t *json; /* borrowed */
    uint64_t count;
    traced_t table[TABLE];
};

trace_requests_t *trace_requests_create(trace_json_t *json)
{
    trace_requests_t *requests = calloc(1, sizeof *requests);
    if (requests) requests->json = json;
    return requests;
}

/* NULL: as many as there may be. */
static traced_t *find(trace_requests_t *requests, uint64_t id)
{
    size_t at = (size_t)((id * 0x9E3779B97F4A7C15ull) >> 32) % TABLE;
    while (requests->table[at].id && requests->table[at].id != id)
        at = (at + 1) % TABLE;
    if (requests->table[at].id) return &requests->table[at];
    if (requests->count == TRACE_REQUESTS_MAX) return NULL;
    requests->count++;
    requests->table[at].id = id;
    return &requests->table[at];
}

/* Writes the place that was held back: the first, or one on the way. */
static void flush(trace_requests_t *requests, traced_t *request)
{
    if (request->passed)
        trace_json_flow(requests->json, request->last, request->passed == 1 ? 's' : 't', "request", request->id);
}

static void pass(trace_requests_t *requests, traced_t *request, trace_place_t at)
{
    flush(requests, request);
    request->last = at;
    request->passed++;
}

static void close_slices(trace_requests_t *requests, traced_t *request, uint64_t now_ns)
{
    trace_place_t at = {QN_SERVICE_FRONTEND, now_ns};
    if (request->decodes) trace_json_async(requests->json, at, 'e', "decode", request->id);
    if (request->open) trace_json_async(requests->json, at, 'e', "request", request->id);
    request->open = request->decodes = false;
}

static void part(trace_requests_t *requests, uint64_t id, const char *name, uint64_t begin_ns, uint64_t end_ns)
{
    if (!begin_ns || end_ns < begin_ns) return;
    trace_json_async(requests->json, (trace_place_t){QN_SERVICE_FRONTEND, begin_ns}, 'b', name, id);
    trace_json_async(requests->json, (trace_place_t){QN_SERVICE_FRONTEND, end_ns}, 'e', name, id);
}

void trace_requests_timeline(trace_requests_t *requests, const qn_timeline_t *timeline)
{
    traced_t *request = find(requests, timeline->request);
    if (!request || request->known || request->ended || !timeline->received_ns) return;
    request->known = request->open = true;
    trace_json_async(requests->json, (trace_place_t){QN_SERVICE_FRONTEND, timeline->received_ns}, 'b', "request",
                     request->id);
    part(requests, request->id, "tokenize", timeline->encode_begin_ns, timeline->submitted_ns);
    part(requests, request->id, "queue", timeline->queued_ns, timeline->planned_ns);
    part(requests, request->id, "prefill", timeline->planned_ns, timeline->resulted_ns);
    if (!timeline->detokenized_ns) return;
    request->decodes = true;
    trace_json_async(requests->json, (trace_place_t){QN_SERVICE_FRONTEND, timeline->detokenized_ns}, 'b', "decode",
                     request->id);
}

static void finish(trace_requests_t *requests, traced_t *request)
{
    if (request->passed >= 2) trace_json_flow(requests->json, request->last, 'f', "request", request->id);
    request->passed = 0;
}

static void end(trace_requests_t *requests, traced_t *request, uint64_t now_ns)
{
    finish(requests, request);
    close_slices(requests, request, now_ns);
    request->ended = true;
}

void trace_requests_pass(trace_requests_t *requests, uint64_t id, trace_place_t at)
{
    traced_t *request = find(requests, id);
    if (!request || request->ended) return;
    bool is_end = request->end_ns && at.process == QN_SERVICE_FRONTEND;
    if (!request->known || is_end) pass(requests, request, at);
    if (is_end) end(requests, request, at.time_ns);
}

void trace_requests_end(trace_requests_t *requests, uint64_t id, uint64_t sent_ns)
{
    traced_t *request = find(requests, id);
    if (request && !request->end_ns) request->end_ns = sent_ns;
}

uint64_t trace_requests_count(const trace_requests_t *requests) { return requests->count; }

void trace_requests_destroy(trace_requests_t **requests, uint64_t now_ns)
{
    trace_requests_t *self = *requests;
    for (size_t i = 0; self && i < TABLE; i++) {
        traced_t *request = &self->table[i];
        if (!request->id || request->ended) continue;
        end(self, request, request->end_ns ? request->end_ns : now_ns);
    }
    free(self);
    *requests = NULL;
}
