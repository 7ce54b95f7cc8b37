/* Trace events, one line each. For trace*.c only. */
#ifndef QN_COMMON_CAPTURE_TRACE_JSON_H
#define QN_COMMON_CAPTURE_TRACE_JSON_H

#include "common/capture/trace.h"

/* Processes of the trace: 1 to 5 are the services (qn_service_t). */
#define TRACE_DEVICE 6u
#define TRACE_THREAD 1u

typedef struct {
    FILE *out;
    uint64_t base_ns; /* time 0 */
    uint64_t bytes, events;
    bool truncated;
} trace_json_t;

/* Where an event stands. */
typedef struct {
    unsigned process;
    uint64_t time_ns;
} trace_place_t;

void trace_json_begin(trace_json_t *json);
void trace_json_end(trace_json_t *json, const qn_trace_figures_t *figures);
void trace_json_name_process(trace_json_t *json, unsigned process, const char *name, const char *thread);
/* `arguments`: members of an object without its braces, or "". Names are constants of the program. */
void trace_json_slice(trace_json_t *json, trace_place_t at, uint64_t end_ns, const char *category, const char *name,
                      const char *arguments);
void trace_json_instant(trace_json_t *json, trace_place_t at, const char *category, const char *name,
                        const char *arguments);
/* `phase`: 's' begins an arrow, 't' leads it on, 'f' ends it. */
void trace_json_flow(trace_json_t *json, trace_place_t at, char phase, const char *category, uint64_t id);
/* `phase`: 'b' begins, 'e' ends an asynchronous slice of `id`. */
void trace_json_async(trace_json_t *json, trace_place_t at, char phase, const char *name, uint64_t id);
void trace_json_counter(trace_json_t *json, trace_place_t at, const char *name, const char *arguments);

#endif
