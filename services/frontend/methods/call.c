/* What is this?      Method calls between HTTP and the services: out with the request, back with the reply.
 * State owned:       frontend_t.calls.
 * Must never:        know a method by name; answer a request twice.
 * Read next:         call.h, calls.h, common/daemon/calls.h (the other end), method_json.h. */
#include "services/frontend/methods/call.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/clock.h"
#include "services/frontend/methods/method_json.h"
#include "services/frontend/research.h"

/* ---- answers ---- */

/* Says what was done and how long it took, by the three clocks readings that a reply brings. */
static void write_metadata(const frontend_t *frontend, const call_t *call, const void *reply, json_writer_t *writer)
{
    const qn_method_t *method = call->method;
    const qn_wire_type_t *type = qn_wire_type(method->reply);
    const qn_head_t *head = reply;
    qn_peer_status_t status;
    if (method->service == QN_SERVICE_FRONTEND)
        qn_daemon_self_status(frontend->daemon, &status);
    else
        qn_daemon_peer_status(frontend->daemon, method->service, &status);
    research_call_t metadata = {
        .service = qn_service_enum.names[method->service],
        .method = method->verb,
        .local = method->service == QN_SERVICE_FRONTEND,
        .sent_ns = call->sent_ns,
        .began_ns = reply ? method_reply_began_ns(type, reply) : call->sent_ns,
        .replied_ns = reply ? head->sent_ns : call->sent_ns,
        .now_ns = qn_clock_now_ns(),
        .epoch = reply && head->epoch ? head->epoch : status.peer.epoch,
        .build = status.build,
    };
    if (reply) metadata.reasoning = method_reply_reasoning(type, reply, &metadata.reasoning_count);
    research_write_call(&metadata, writer);
}

void frontend_answer_data(frontend_t *frontend, const call_t *call, const void *reply, reply_buffer_t *data)
{
    if (!call->request) {
        reply_buffer_fini(data);
        return;
    }
    if (call->research) {
        reply_buffer_t wrapped = {0};
        reply_buffer_text(&wrapped, "{\"data\":");
        reply_buffer_append(&wrapped, data->data, data->bytes);
        reply_buffer_text(&wrapped, ",\"metadata\":");
        json_writer_t writer = json_writer_on(&wrapped);
        write_metadata(frontend, call, reply, &writer);
        reply_buffer_text(&wrapped, "}");
        reply_buffer_fini(data);
        *data = wrapped;
    }
    frontend_reply_json(frontend, call->request, call->route, 200, data);
}

void frontend_answer_call(void *state, call_t *call, const void *reply)
{
    frontend_t *frontend = state;
    if (!call->request) return;
    if (!reply) {
        frontend_reply_error(frontend, call->request, call->route, &call->error);
        return;
    }
    reply_buffer_t data = {0};
    json_writer_t writer = json_writer_on(&data);
    method_json_write(qn_wire_type(call->method->reply), reply, &writer);
    frontend_answer_data(frontend, call, reply, &data);
}

/* Once per call; its place is free before `done` runs, which may make the next one. */
static void finish(frontend_t *frontend, call_t *call, const void *reply)
{
    call_t over = *call;
    uint64_t before = qn_in_hand_take(frontend->hand, over.hand_key);
    qn_stats_observe_ns(qn_daemon_stats(frontend->daemon), QN_DAEMON_STATS_TABLE, FRONTEND_STAT_METHOD,
                        qn_clock_now_ns() - over.sent_ns);
    if (call->id) calls_close(&frontend->calls, call);
    over.done(frontend, &over, reply);
    qn_in_hand_take(frontend->hand, before);
}

/* ---- calling ---- */

static bool is_reachable(const frontend_t *frontend, qn_service_t service)
{
    return service == QN_SERVICE_FRONTEND || qn_daemon_peer(frontend->daemon, service).epoch != 0;
}

/* False: call->error says why it did not go out. */
static bool send(frontend_t *frontend, call_t *call, void *message)
{
    const qn_method_t *method = call->method;
    const char *service = qn_service_enum.names[method->service];
    ((qn_head_t *)message)->request = call->id;
    if (!is_reachable(frontend, method->service)) {
        http_error_set(&call->error, 503, NULL,
                       "The %s service is not there (yet); GET /services shows all. Try again.", service);
        return false;
    }
    if (method->service == QN_SERVICE_FRONTEND) {
        qn_daemon_call_self(frontend->daemon, method, message);
        return true;
    }
    switch (
        qn_daemon_send(frontend->daemon, qn_daemon_peer(frontend->daemon, method->service), method->request, message)) {
    case QN_SEND_OK: return true;
    case QN_SEND_INVALID: http_error_set(&call->error, 400, NULL, "%.400s. Send less.", qn_err_text()); return false;
    case QN_SEND_FULL: http_error_set(&call->error, 503, NULL, "The %s service is behind. Try again.", service); break;
    case QN_SEND_GONE: http_error_set(&call->error, 503, NULL, "The %s service has just ended. Try again.", service);
    }
    return false;
}

void frontend_call(frontend_t *frontend, const qn_method_t *method, void *message, http_request_t *request,
                   route_t route, call_done_t done, void *context)
{
    call_t none = {0}, *call = calls_open(&frontend->calls);
    bool full = call == NULL;
    if (full) call = &none;
    call->method = method;
    call->request = request;
    call->route = route;
    call->research = request && frontend_wants_research(frontend, request);
    call->received_ns = call->sent_ns = qn_clock_now_ns();
    call->deadline_ns = call->sent_ns + method->seconds * 1000000000ull;
    call->hand_key = qn_in_hand_now(frontend->hand);
    call->done = done ? done : frontend_answer_call;
    call->context = context;
    if (full)
        http_error_set(&call->error, 503, NULL, "%d calls of methods wait for their answers. Try again.", CALLS_MAX);
    else if (frontend->draining)
        http_error_set(&call->error, 503, NULL, "The server is stopping. Try again later.");
    else if (send(frontend, call, message))
        return;
    finish(frontend, call, NULL);
}

/* ---- the route ---- */

static bool starts_with(const char *text, const char *start) { return strncasecmp(text, start, strlen(start)) == 0; }

/* A name that only this host or network can have given itself: an address, or localhost. Any other may be a page's own
 * name that was made to lead here. */
static bool is_address(const char *host)
{
    size_t length = strcspn(host, ":");
    return host[0] == '[' || strspn(host, "0123456789.") == length || (length == 9 && starts_with(host, "localhost"));
}

bool frontend_is_from_here(frontend_t *frontend, http_request_t *request, route_t route)
{
    const char *origin = http_request_header(request, "origin"), *site = http_request_header(request, "sec-fetch-site");
    const char *host = http_request_header(request, "host");
    bool foreign = site && strcasecmp(site, "same-origin") != 0 && strcasecmp(site, "none") != 0;
    if (origin && !foreign) {
        const char *from = starts_with(origin, "http://")    ? origin + 7
                           : starts_with(origin, "https://") ? origin + 8
                                                             : "";
        foreign = !host || strcasecmp(from, host) != 0 || !is_address(host);
    }
    if (!foreign) return true;
    http_error_t error;
    http_error_set(&error, 403, "origin",
                   "A web page of another origin (%.100s) may not change anything here. Open the "
                   "page from this server, by its address, or leave the browser out.",
                   origin ? origin : site);
    frontend_reply_error(frontend, request, route, &error);
    return false;
}

static qn_service_t find_service(segment_t name)
{
    for (int i = QN_SERVICE_FRONTEND; i <= QN_SERVICE_COMPUTE; i++) {
        const char *known = qn_service_enum.names[i];
        if (strlen(known) == name.bytes && memcmp(known, name.text, name.bytes) == 0) return (qn_service_t)i;
    }
    return QN_SERVICE_NONE;
}

bool frontend_find_service(frontend_t *frontend, http_request_t *request, const router_match_t *match,
                           qn_service_t *ret_service)
{
    http_error_t error;
    *ret_service = find_service(match->segments[0]);
    if (*ret_service != QN_SERVICE_NONE) return true;
    http_error_set(&error, 404, "service", "There is no service \"%.*s\"; GET /services lists the five.",
                   (int)(match->segments[0].bytes < 64 ? match->segments[0].bytes : 64), match->segments[0].text);
    frontend_reply_error(frontend, request, match->route, &error);
    return false;
}

static void reply_no_method(frontend_t *frontend, http_request_t *request, const router_match_t *match,
                            qn_service_t service)
{
    http_error_t error;
    char verb[QN_NAME_MAX];
    snprintf(verb, sizeof verb, "%.*s", (int)match->segments[1].bytes, match->segments[1].text);
    const qn_method_t *nearest = qn_method_nearest(service, verb);
    const char *name = qn_service_enum.names[service];
    http_error_set(&error, 404, "method", "%s has no method \"%s\"%s%s%s; GET /services/%s lists them.", name, verb,
                   nearest ? "; did you mean \"" : "", nearest ? nearest->verb : "", nearest ? "\"?" : "", name);
    frontend_reply_error(frontend, request, match->route, &error);
}

void frontend_method_route(frontend_t *frontend, http_request_t *request, const router_match_t *match)
{
    qn_service_t service;
    if (!frontend_find_service(frontend, request, match, &service)) return;
    const qn_method_t *method = qn_method_find(service, match->segments[1].text, match->segments[1].bytes);
    if (method)
        frontend_take_method(frontend, request, match->route, method);
    else
        reply_no_method(frontend, request, match, service);
}

void frontend_take_method(frontend_t *frontend, http_request_t *request, route_t route, const qn_method_t *method)
{
    http_error_t error;
    size_t bytes;
    http_request_body(request, &bytes);
    if (method->changes && !frontend_is_from_here(frontend, request, route)) return;
    if (bytes > 0 && !frontend_check_content_type(request, &error)) {
        frontend_reply_error(frontend, request, route, &error);
        return;
    }
    frontend_take_body(frontend, request, route, method, &(generation_limits_t){.model = ""});
}

void frontend_method_body(frontend_t *frontend, body_t *body)
{
    frontend_call(frontend, body->method.method, body->method.request, body->request, body->route, NULL, NULL);
}

/* ---- events ---- */

void frontend_take_reply(void *state, qn_peer_t from, qn_message_type_t type, const void *message)
{
    (void)from;
    frontend_t *frontend = state;
    call_t *call = calls_find(&frontend->calls, ((const qn_head_t *)message)->request);
    if (call && call->method->reply == type) finish(frontend, call, message); /* late ones: the call is over */
}

bool frontend_refuse_call(frontend_t *frontend, const qn_refusal_t *refusal)
{
    call_t *call = calls_find(&frontend->calls, refusal->head.request);
    if (!call) return false;
    http_error_set(&call->error, refusal->status, refusal->param.data, "%s",
                   refusal->text.data ? refusal->text.data : "refused without a reason");
    if (refusal->retry_after_ms) call->error.retry_after_s = (refusal->retry_after_ms + 999) / 1000;
    finish(frontend, call, NULL);
    return true;
}

void frontend_end_calls(frontend_t *frontend, qn_service_t service)
{
    for (call_t *call; (call = calls_of_service(&frontend->calls, service));) {
        const char *name = qn_service_enum.names[service];
        http_error_set(&call->error, 503, NULL, "The %s service ended while it held this call%s.", name,
                       call->method->once ? "; whether it was done is not known: look before you send it again"
                                          : ". Send it again");
        finish(frontend, call, NULL);
    }
}

void frontend_scan_calls(frontend_t *frontend, uint64_t now_ns)
{
    for (call_t *call; (call = calls_overdue(&frontend->calls, now_ns));) {
        http_error_set(&call->error, 504, NULL, "%s did not answer within %u s; see GET /services.", call->method->name,
                       call->method->seconds);
        finish(frontend, call, NULL);
    }
}
