/* What is this?      From a capture to trace events, in one pass.
 * State owned:       one run: file, reorder window, messages on their way, requests.
 * Must never:        trust a frame; hold more than a window of messages.
 * Read next:         trace.h, trace_requests.c (a request's way), trace_json.c (the format). */
#include "common/capture/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/capture/capture_file.h"
#include "common/capture/capture_order.h"
#include "common/capture/trace_json.h"
#include "common/capture/trace_links.h"
#include "common/capture/trace_requests.h"

#define WINDOW_NS 1000000000ull  /* as quintet sniff -r */
#define CALLS_BEGIN (1ull << 62) /* ids from here on are of method calls */

typedef struct {
    trace_json_t json;
    qn_capture_t *capture;
    qn_capture_order_t order;
    qn_capture_slots_t slots;
    qn_arena_t arena; /* of the message in hand */
    trace_links_t *links;
    trace_requests_t *requests;
    qn_trace_figures_t figures;
    uint64_t now_ns, device_ns; /* of the last message; end of the last step */
    uint64_t arrows;            /* between messages, so far */
    uint64_t boots[QN_SERVICE_TOOL + 1];
    bool named[TRACE_DEVICE + 1];
} run_t;

static bool is_request(uint64_t id) { return id && id < CALLS_BEGIN; }

static void name_process(run_t *run, unsigned process, const char *name, const char *thread)
{
    if (run->named[process]) return;
    run->named[process] = true;
    trace_json_name_process(&run->json, process, name, thread);
}

/* ---- spans ---- */

static void arrow(run_t *run, const trace_link_t *link, trace_place_t to)
{
    trace_place_t from = {link->key.from, link->sent_ns};
    uint64_t id = ++run->arrows;
    trace_json_flow(&run->json, from, 's', "message", id);
    trace_json_flow(&run->json, to, 'f', "message", id);
}

static void show_handled(run_t *run, unsigned process, const qn_tap_span_t *span)
{
    char arguments[160];
    const char *name = "unknown";
    for (int i = 1; i < QN_MESSAGE_COUNT; i++)
        if (memcmp(qn_wire_type((qn_message_type_t)i)->identifier, span->type, sizeof span->type) == 0)
            name = qn_message_name((qn_message_type_t)i);
    trace_place_t at = {process, span->begin_ns};
    snprintf(arguments, sizeof arguments, "\"from\":\"%s\",\"request\":\"%" PRIu64 "\",\"sequence\":%" PRIu64,
             qn_capture_service_name((qn_service_t)span->from), span->request, span->sequence);
    trace_json_slice(&run->json, at, span->end_ns, "handle", name, arguments);
    trace_key_t key = {.from = span->from, .to = (uint8_t)process, .epoch = span->epoch, .sequence = span->sequence};
    memcpy(key.type, span->type, sizeof key.type);
    const trace_link_t *link = trace_links_take(run->links, &key);
    if (!link) return;
    arrow(run, link, at);
    for (size_t i = 0; i < link->request_count; i++)
        trace_requests_pass(run->requests, link->requests[i], at);
}

static void show_span(run_t *run, unsigned process, const qn_tap_span_t *span)
{
    if (span->kind == QN_TAP_HANDLED)
        show_handled(run, process, span);
    else
        trace_json_slice(&run->json, (trace_place_t){process, span->begin_ns}, span->end_ns, "loop", "turn", "");
    if (span->end_ns > run->now_ns) run->now_ns = span->end_ns;
}

/* ---- messages ---- */

static void show_plan(run_t *run, trace_place_t at, const qn_step_plan_t *plan)
{
    char arguments[96];
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < plan->runs_count; i++)
        tokens += plan->runs[i].token_count;
    snprintf(arguments, sizeof arguments, "\"sequences\":%" PRIu32 ",\"tokens\":%" PRIu64, plan->runs_count, tokens);
    trace_json_counter(&run->json, at, "step", arguments);
    run->figures.steps++;
}

/* Steps of one device do not overlap: what looks so is the clock's grain. */
static void show_step(run_t *run, const qn_step_result_t *result)
{
    char name[40], arguments[96];
    if (!result->begin_ns || result->end_ns < result->begin_ns) return;
    uint64_t begin_ns = result->begin_ns > run->device_ns ? result->begin_ns : run->device_ns;
    uint64_t end_ns = result->end_ns > begin_ns ? result->end_ns : begin_ns;
    trace_place_t at = {TRACE_DEVICE, begin_ns};
    name_process(run, TRACE_DEVICE, "device", "steps");
    snprintf(name, sizeof name, "step %" PRIu64, result->step);
    snprintf(arguments, sizeof arguments, "\"step\":%" PRIu64 ",\"tokens\":%" PRIu32 ",\"session\":%" PRIu32,
             result->step, result->tokens_count, result->session);
    trace_json_slice(&run->json, at, end_ns, "step", name, arguments);
    run->device_ns = end_ns;
    for (uint32_t i = 0; i < result->tokens_count; i++)
        if (is_request(result->tokens[i].request)) trace_requests_pass(run->requests, result->tokens[i].request, at);
}

static void show_text(run_t *run, trace_place_t at, const qn_text_delta_t *delta)
{
    for (uint32_t i = 0; i < delta->timelines_count; i++)
        trace_requests_timeline(run->requests, &delta->timelines[i]);
    for (uint32_t i = 0; i < delta->ends_count; i++)
        trace_requests_end(run->requests, delta->ends[i].request, at.time_ns);
}

static void show_content(run_t *run, trace_place_t at, const qn_capture_message_t *message)
{
    switch (message->type) {
    case QN_MESSAGE_STEP_PLAN: show_plan(run, at, message->content); break;
    case QN_MESSAGE_STEP_RESULT: show_step(run, message->content); break;
    case QN_MESSAGE_TEXT_DELTA: show_text(run, at, message->content); break;
    default: break;
    }
}

static void show_sent(run_t *run, unsigned process, const qn_capture_message_t *message)
{
    char arguments[160];
    trace_place_t at = {process, message->time_ns};
    snprintf(arguments, sizeof arguments, "\"to\":\"%s\",\"bytes\":%zu,\"sequence\":%" PRIu64 ",\"requests\":%zu",
             qn_capture_service_name(message->head.dst), message->bytes, message->head.sequence,
             message->request_count);
    trace_json_instant(&run->json, at, "send", message->content ? qn_message_name(message->type) : "broken frame",
                       arguments);
    run->figures.hops++;
    if (!message->content) return;
    uint64_t *ids = qn_arena_zalloc(&run->arena, message->request_count + 1, sizeof *ids);
    size_t count = 0;
    for (size_t i = 0; i < message->request_count; i++)
        if (is_request(message->requests[i])) ids[count++] = message->requests[i];
    if (message->type == QN_MESSAGE_ENCODE)
        for (size_t i = 0; i < count; i++)
            trace_requests_pass(run->requests, ids[i], at); /* where its arrow begins */
    trace_key_t key = {.from = (uint8_t)message->head.src,
                       .to = (uint8_t)message->head.dst,
                       .epoch = message->head.epoch,
                       .sequence = message->head.sequence};
    memcpy(key.type, message->header.type, sizeof key.type);
    trace_links_put(run->links, &key, message->time_ns, ids, count);
    show_content(run, at, message);
}

static bool is_chatter(qn_message_type_t type)
{
    return type == QN_MESSAGE_HELLO || type == QN_MESSAGE_HEARTBEAT || type == QN_MESSAGE_CREDIT;
}

/* Takes the message. */
static void show(run_t *run, qn_capture_message_t *message)
{
    unsigned process = message->header.source;
    const qn_tap_span_t *span = qn_capture_message_span(message);
    run->figures.missed += message->missed;
    qn_arena_reset(&run->arena);
    if (process >= QN_SERVICE_FRONTEND && process <= QN_SERVICE_COMPUTE) {
        if (!run->json.base_ns) run->json.base_ns = message->time_ns;
        if (message->time_ns > run->now_ns) run->now_ns = message->time_ns;
        name_process(run, process, qn_capture_service_name((qn_service_t)process), "loop");
        bool anew = run->boots[process] && run->boots[process] != message->header.boot_ns;
        run->boots[process] = message->header.boot_ns;
        if (anew)
            trace_json_instant(&run->json, (trace_place_t){process, message->time_ns}, "life", "started anew", "");
        if (span)
            show_span(run, process, span);
        else if (message->header.direction == QN_TAP_SENT && !is_chatter(message->type)) {
            qn_capture_message_decode(message, &run->slots, &run->arena);
            show_sent(run, process, message);
        }
    }
    free(message);
}

/* ---- one run ---- */

static void show_due(run_t *run, uint64_t now_ns)
{
    qn_capture_message_t *message;
    while ((message = qn_capture_order_take(&run->order, now_ns)) != NULL)
        show(run, message);
}

static void show_all(run_t *run)
{
    qn_capture_message_t *message;
    qn_capture_outcome_t outcome;
    uint64_t newest_ns = 0;
    while ((outcome = qn_capture_read(run->capture, &message)) == QN_CAPTURE_MESSAGE) {
        if (message->time_ns > newest_ns) newest_ns = message->time_ns;
        qn_capture_order_put(&run->order, message);
        show_due(run, newest_ns);
    }
    show_due(run, UINT64_MAX);
    run->figures.torn = outcome == QN_CAPTURE_TORN;
}

static void finish(run_t *run)
{
    run->figures.requests = trace_requests_count(run->requests);
    trace_requests_destroy(&run->requests, run->now_ns);
    run->figures.events = run->json.events;
    run->figures.truncated = run->json.truncated;
    trace_json_end(&run->json, &run->figures);
    run->figures.bytes = run->json.bytes;
}

qn_err_t qn_trace_write(const char *capture_path, FILE *out, qn_trace_figures_t *ret_figures)
{
    run_t *run = calloc(1, sizeof *run);
    if (!run) return qn_fail(QN_ERR_NO_MEMORY, "no memory for a trace");
    run->json.out = out;
    qn_err_t err = qn_capture_open(capture_path, &run->capture);
    if (!err) run->links = trace_links_create();
    if (!err) run->requests = trace_requests_create(&run->json);
    if (!err && (!run->links || !run->requests)) err = qn_fail(QN_ERR_NO_MEMORY, "no memory for a trace");
    if (!err) {
        qn_arena_init(&run->arena, 0);
        qn_capture_order_init(&run->order, WINDOW_NS);
        trace_json_begin(&run->json);
        show_all(run);
        finish(run);
        qn_capture_order_fini(&run->order);
        qn_arena_fini(&run->arena);
        *ret_figures = run->figures;
        if (fflush(out) || ferror(out)) err = qn_fail(QN_ERR_IO, "cannot write the trace: %s", strerror(errno));
    }
    if (run->requests) trace_requests_destroy(&run->requests, 0);
    trace_links_destroy(&run->links);
    qn_capture_close(&run->capture);
    free(run);
    return err;
}
