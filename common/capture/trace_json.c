/* What is this?      The writer of trace events.
 * State owned:       the file's position.
 * Must never:        write what a viewer refuses: a name that is no constant, a time before the first.
 * Read next:         trace.c (which events), "Trace Event Format" (Google, 2016). */
#include "common/capture/trace_json.h"

#include <inttypes.h>
#include <stdarg.h>

#include "common/build.h"

static void put(trace_json_t *json, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(trace_json_t *json, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int written = vfprintf(json->out, format, arguments);
    va_end(arguments);
    if (written > 0) json->bytes += (uint64_t)written;
}

/* Microseconds with three places: integers, so that no digit is lost in a long capture. */
static void put_time(trace_json_t *json, const char *key, uint64_t ns)
{
    put(json, "\"%s\":%" PRIu64 ".%03u", key, ns / 1000, (unsigned)(ns % 1000));
}

static uint64_t since_base(const trace_json_t *json, uint64_t time_ns)
{
    return time_ns > json->base_ns ? time_ns - json->base_ns : 0;
}

/* False: the trace is as long as it may be. */
static bool begin(trace_json_t *json, const char *phase, trace_place_t at)
{
    if (json->bytes > QN_TRACE_BYTES_MAX) {
        json->truncated = true;
        return false;
    }
    put(json, "%s\n{\"ph\":\"%s\",\"pid\":%u,\"tid\":%u,", json->events++ ? "," : "", phase, at.process, TRACE_THREAD);
    put_time(json, "ts", since_base(json, at.time_ns));
    return true;
}

void trace_json_begin(trace_json_t *json) { put(json, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":["); }

void trace_json_end(trace_json_t *json, const qn_trace_figures_t *figures)
{
    put(json,
        "\n],\"otherData\":{\"clock\":\"CLOCK_MONOTONIC\",\"begun_ns\":%" PRIu64
        ",\"build\":\"%s\",\"requests\":%" PRIu64 ",\"steps\":%" PRIu64 ",\"hops\":%" PRIu64 ",\"missed\":%" PRIu64
        ",\"truncated\":%s,\"torn\":%s}}\n",
        json->base_ns, qn_build_id(), figures->requests, figures->steps, figures->hops, figures->missed,
        json->truncated ? "true" : "false", figures->torn ? "true" : "false");
}

void trace_json_name_process(trace_json_t *json, unsigned process, const char *name, const char *thread)
{
    put(json,
        "%s\n{\"ph\":\"M\",\"pid\":%u,\"name\":\"process_name\",\"args\":{\"name\":\"%s\"}},"
        "\n{\"ph\":\"M\",\"pid\":%u,\"name\":\"process_sort_index\",\"args\":{\"sort_index\":%u}},"
        "\n{\"ph\":\"M\",\"pid\":%u,\"tid\":%u,\"name\":\"thread_name\",\"args\":{\"name\":\"%s\"}}",
        json->events ? "," : "", process, name, process, process, process, TRACE_THREAD, thread);
    json->events += 3;
}

void trace_json_slice(trace_json_t *json, trace_place_t at, uint64_t end_ns, const char *category, const char *name,
                      const char *arguments)
{
    if (!begin(json, "X", at)) return;
    uint64_t begin_ns = since_base(json, at.time_ns);
    put(json, ",");
    put_time(json, "dur", since_base(json, end_ns) > begin_ns ? since_base(json, end_ns) - begin_ns : 0);
    put(json, ",\"cat\":\"%s\",\"name\":\"%s\",\"args\":{%s}}", category, name, arguments);
}

void trace_json_instant(trace_json_t *json, trace_place_t at, const char *category, const char *name,
                        const char *arguments)
{
    if (!begin(json, "i", at)) return;
    put(json, ",\"s\":\"t\",\"cat\":\"%s\",\"name\":\"%s\",\"args\":{%s}}", category, name, arguments);
}

void trace_json_flow(trace_json_t *json, trace_place_t at, char phase, const char *category, uint64_t id)
{
    const char name[2] = {phase, '\0'};
    if (!begin(json, name, at)) return;
    put(json, ",\"id\":%" PRIu64 ",\"cat\":\"%s\",\"name\":\"%s\"%s}", id, category, category,
        phase == 's' ? "" : ",\"bp\":\"e\"");
}

void trace_json_async(trace_json_t *json, trace_place_t at, char phase, const char *name, uint64_t id)
{
    const char text[2] = {phase, '\0'};
    if (!begin(json, text, at)) return;
    put(json, ",\"id\":\"%" PRIu64 "\",\"cat\":\"request\",\"name\":\"%s\"}", id, name);
}

void trace_json_counter(trace_json_t *json, trace_place_t at, const char *name, const char *arguments)
{
    if (!begin(json, "C", at)) return;
    put(json, ",\"name\":\"%s\",\"args\":{%s}}", name, arguments);
}
