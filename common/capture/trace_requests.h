/* The requests of a trace: how far each has come, and the arrow along its way. For trace.c only. */
#ifndef QN_COMMON_CAPTURE_TRACE_REQUESTS_H
#define QN_COMMON_CAPTURE_TRACE_REQUESTS_H

#include "common/capture/trace_json.h"
#include "qn_messages.h"

#define TRACE_REQUESTS_MAX 65536u /* followed; further ones have no arrows of their own */

typedef struct trace_requests trace_requests_t;

/* Returns owned; NULL: no memory. */
trace_requests_t *trace_requests_create(trace_json_t *json);
/* Ends what has not ended: at `now_ns`, the end of the trace. */
void trace_requests_destroy(trace_requests_t **requests, uint64_t now_ns);
/* How many different ones were there. */
uint64_t trace_requests_count(const trace_requests_t *requests);

/* A message about it was handled, or its step ran, there. Up to its first token it is an arrow. */
void trace_requests_pass(trace_requests_t *requests, uint64_t id, trace_place_t at);
/* Its way up to the first token is known: slices for it. */
void trace_requests_timeline(trace_requests_t *requests, const qn_timeline_t *timeline);
/* Its end is on the way to the frontend: it ends with the next place there, or then. */
void trace_requests_end(trace_requests_t *requests, uint64_t id, uint64_t sent_ns);

#endif
