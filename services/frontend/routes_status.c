/* What is this?      Routes answered at once from what the frontend knows: heartbeats, configuration, statistics pages.
 * State owned:       none.
 * Must never:        ask another service: health is passive and queues no work.
 * Read next:         common/daemon/daemon.h (qn_peer_status_t), common/watch/stats.h, prometheus.h. */
#include <stdio.h>
#include <string.h>

#include "common/build.h"
#include "common/clock.h"
#include "common/watch/last_error.h"
#include "services/frontend/methods/call.h"
#include "services/frontend/methods/describe.h"
#include "services/frontend/methods/docs.h"
#include "services/frontend/methods/openapi.h"
#include "services/frontend/reply/prometheus.h"

static const qn_service_t services[] = {
    QN_SERVICE_FRONTEND, QN_SERVICE_TOKENIZER, QN_SERVICE_SCHEDULER, QN_SERVICE_MEMORY, QN_SERVICE_COMPUTE,
};
#define SERVICE_COUNT (sizeof services / sizeof services[0])

/* Why it is down, from what it left in the run directory. */
static void add_last_error(const frontend_t *frontend, qn_service_t service, qn_peer_status_t *status)
{
    char error[QN_ERR_TEXT_MAX];
    qn_last_error_read(qn_daemon_run_dir(frontend->daemon), qn_service_enum.names[service], error, sizeof error);
    if (!error[0]) return;
    size_t used = strlen(status->text);
    snprintf(status->text + used, sizeof status->text - used, "%s%s", used ? "; last error: " : "last error: ", error);
}

static qn_peer_status_t status_of(const frontend_t *frontend, qn_service_t service)
{
    qn_peer_status_t status = {0};
    if (service != QN_SERVICE_FRONTEND) {
        qn_daemon_peer_status(frontend->daemon, service, &status);
        if (!status.alive) add_last_error(frontend, service, &status);
        return status;
    }
    qn_daemon_self_status(frontend->daemon, &status);
    status.alive = true; /* it answers */
    if (frontend->draining) status.state = QN_STATE_DRAINING;
    return status;
}

/* A service that is not heard of is down, whatever it said last. */
static const char *state_name(const qn_peer_status_t *status)
{
    return status->alive ? qn_state_enum.names[status->state] : "down";
}

static bool all_ready(const frontend_t *frontend)
{
    for (size_t i = 0; i < SERVICE_COUNT; i++) {
        qn_peer_status_t status = status_of(frontend, services[i]);
        if (!status.alive || status.state != QN_STATE_READY) return false;
    }
    return true;
}

/* {"status": "ok", "services": [{"name", "state", "text"}]} */
static void put_health(const frontend_t *frontend, bool good, reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    json_put_open(&writer, '{');
    json_put_member_string(&writer, "status", good ? "ok" : "unavailable");
    json_put_key(&writer, "services");
    json_put_open(&writer, '[');
    for (size_t i = 0; i < SERVICE_COUNT; i++) {
        qn_peer_status_t status = status_of(frontend, services[i]);
        json_put_open(&writer, '{');
        json_put_member_string(&writer, "name", qn_service_enum.names[services[i]]);
        json_put_member_string(&writer, "state", state_name(&status));
        json_put_member_string(&writer, "text", status.text);
        json_put_close(&writer, '}');
    }
    json_put_close(&writer, ']');
    json_put_close(&writer, '}');
}

static void route_health(frontend_t *frontend, http_request_t *request, route_t route)
{
    bool good = all_ready(frontend);
    reply_buffer_t body = {0};
    put_health(frontend, good, &body);
    if (good) {
        frontend_reply_json(frontend, request, route, 200, &body);
        return;
    }
    http_request_add_header(request, "Retry-After", "1");
    frontend_count_status(frontend, route, 503);
    http_request_reply(request, 503, "application/json", &body);
}

void frontend_put_service(const frontend_t *frontend, qn_service_t service, json_writer_t *writer)
{
    qn_peer_status_t status = status_of(frontend, service);
    bool self = service == QN_SERVICE_FRONTEND;
    json_put_member_string(writer, "name", qn_service_enum.names[service]);
    json_put_key(writer, "pid");
    status.pid ? json_put_unsigned(writer, status.pid) : json_put_null(writer);
    json_put_member_unsigned(writer, "epoch", self ? qn_daemon_epoch(frontend->daemon) : status.peer.epoch);
    json_put_member_string(writer, "build", status.build);
    json_put_member_string(writer, "state", state_name(&status));
    json_put_key(writer, "uptime_s");
    json_put_number(writer, (double)status.uptime_ms / 1e3);
    json_put_member_unsigned(writer, "restarts", status.restarts);
    json_put_member_string(writer, "transport", status.transport[0] ? status.transport : self ? "http" : NULL);
    json_put_member_string(writer, "text", status.text);
}

void frontend_put_health(const frontend_t *frontend, qn_service_t service, json_writer_t *writer)
{
    qn_peer_status_t status = status_of(frontend, service);
    uint64_t now_ns = qn_clock_now_ns();
    char error[QN_ERR_TEXT_MAX];
    qn_last_error_read(qn_daemon_run_dir(frontend->daemon), qn_service_enum.names[service], error, sizeof error);
    json_put_member_string(writer, "state", state_name(&status));
    json_put_member_bool(writer, "alive", status.alive);
    json_put_member_string(writer, "text", status.text);
    json_put_member_string(writer, "last_error", error[0] ? error : NULL);
    json_put_key(writer, "heard_ms_ago");
    json_put_number(writer, now_ns > status.heard_ns ? (double)(now_ns - status.heard_ns) / 1e6 : 0);
    json_put_member_unsigned(writer, "heartbeats", status.beats);
    json_put_member_unsigned(writer, "memory_epoch", status.memory_epoch);
}

static void put_services(const frontend_t *frontend, reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    json_put_open(&writer, '{');
    json_put_key(&writer, "services");
    json_put_open(&writer, '[');
    for (size_t i = 0; i < SERVICE_COUNT; i++) {
        json_put_open(&writer, '{');
        frontend_put_service(frontend, services[i], &writer);
        json_put_close(&writer, '}');
    }
    json_put_close(&writer, ']');
    json_put_close(&writer, '}');
}

static void put_models(const frontend_t *frontend, reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    json_put_open(&writer, '{');
    json_put_member_string(&writer, "object", "list");
    json_put_key(&writer, "data");
    json_put_open(&writer, '[');
    reply_query_model(&frontend->model, &writer);
    json_put_close(&writer, ']');
    json_put_close(&writer, '}');
}

static void put_version(reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    json_put_open(&writer, '{');
    json_put_member_string(&writer, "version", qn_build_id());
    json_put_member_unsigned(&writer, "protocol", QN_PROTOCOL);
    json_put_close(&writer, '}');
}

static void put_server_info(const frontend_t *frontend, reply_buffer_t *out)
{
    const qn_config_values_t *config = frontend->config;
    json_writer_t writer = json_writer_on(out);
    json_put_open(&writer, '{');
    json_put_member_string(&writer, "version", qn_build_id());
    json_put_member_string(&writer, "listen", config->frontend.listen);
    json_put_member_string(&writer, "mode", config->frontend.mode);
    json_put_member_unsigned(&writer, "max_body_bytes", config->frontend.max_body_bytes);
    json_put_member_unsigned(&writer, "queue_limit", config->frontend.queue_limit);
    json_put_member_unsigned(&writer, "active_requests", request_table_active(frontend->table));
    json_put_member_string(&writer, "policy", config->scheduler.policy);
    json_put_member_unsigned(&writer, "max_sequences", config->scheduler.max_sequences);
    json_put_member_unsigned(&writer, "max_step_tokens", config->scheduler.max_step_tokens);
    json_put_member_unsigned(&writer, "lookahead", config->scheduler.lookahead);
    json_put_member_string(&writer, "backend", config->compute.backend);
    json_put_member_string(&writer, "share", config->memory.share);
    json_put_member_bool(&writer, "prefix_cache", config->memory.prefix_cache);
    json_put_key(&writer, "model");
    reply_query_model_info(&frontend->model, &writer);
    json_put_close(&writer, '}');
}

/* ---- metrics ---- */

static void add_gauge(prometheus_t *page, const char *service, const char *name, const char *help, uint64_t value)
{
    qn_stat_row_t row = {.name = name, .unit = "", .help = help, .kind = QN_STAT_GAUGE, .value = value};
    prometheus_add(page, service, &row);
}

/* A page outlives its daemon: figures of a service that is down are its last ones. */
static void add_page(const frontend_t *frontend, prometheus_t *page, const char *service)
{
    qn_stats_view_t *view = NULL;
    if (qn_stats_open(qn_daemon_run_dir(frontend->daemon), service, &view) != QN_OK) return;
    for (size_t i = 0; i < qn_stats_row_count(view); i++) {
        qn_stat_row_t row;
        qn_stats_read_row(view, i, &row);
        prometheus_add(page, service, &row);
    }
    qn_stats_close(&view);
}

static void route_metrics(frontend_t *frontend, http_request_t *request)
{
    reply_buffer_t body = {0};
    prometheus_t *page = prometheus_create(frontend->model.id);
    for (size_t i = 0; i < SERVICE_COUNT; i++) {
        const char *name = qn_service_enum.names[services[i]];
        qn_peer_status_t status = status_of(frontend, services[i]);
        add_gauge(page, name, "service_up", "1 while the service is heard of", status.alive);
        add_gauge(page, name, "service_ready", "1 while the service says that it is ready",
                  status.alive && status.state == QN_STATE_READY);
        add_gauge(page, name, "service_restarts", "Boots of the service before the present one", status.restarts);
    }
    for (size_t i = 0; i < SERVICE_COUNT; i++)
        add_page(frontend, page, qn_service_enum.names[services[i]]);
    prometheus_write(page, &body);
    prometheus_destroy(&page);
    frontend_count_status(frontend, ROUTE_METRICS, 200);
    http_request_reply(request, 200, PROMETHEUS_CONTENT_TYPE, &body);
}

/* ---- entry ---- */

static bool put_status(frontend_t *frontend, const router_match_t *match, reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    switch (match->route) {
    case ROUTE_MODELS: put_models(frontend, out); return true;
    case ROUTE_MODEL:
        if (strcmp(match->rest, frontend->model.id) != 0) return false;
        reply_query_model(&frontend->model, &writer);
        return true;
    case ROUTE_PING: reply_buffer_text(out, "{\"status\":\"ok\"}"); return true;
    case ROUTE_VERSION: put_version(out); return true;
    case ROUTE_SERVICES: put_services(frontend, out); return true;
    case ROUTE_MODEL_INFO: reply_query_model_info(&frontend->model, &writer); return true;
    case ROUTE_SERVER_INFO: put_server_info(frontend, out); return true;
    default: return false;
    }
}

/* The description itself is no data with metadata: tools read it. */
static void route_openapi(frontend_t *frontend, http_request_t *request, route_t route)
{
    reply_buffer_t body = {0}, page = {0};
    openapi_write(&frontend->model, &body);
    if (route == ROUTE_OPENAPI) {
        frontend_reply_json(frontend, request, route, 200, &body);
        return;
    }
    docs_write(&body, &page);
    reply_buffer_fini(&body);
    http_request_add_header(request, "Content-Security-Policy", DOCS_POLICY);
    frontend_count_status(frontend, route, 200);
    http_request_reply(request, 200, "text/html; charset=utf-8", &page);
}

static void route_service(frontend_t *frontend, http_request_t *request, const router_match_t *match)
{
    uint64_t received_ns = qn_clock_now_ns();
    qn_service_t service;
    reply_buffer_t body = {0};
    if (!frontend_find_service(frontend, request, match, &service)) return;
    if (match->route == ROUTE_SERVICE)
        describe_service(frontend, service, &body);
    else
        describe_examples(frontend, service, &body);
    frontend_reply_data(frontend, request, match->route, 200, frontend_wants_research(frontend, request), received_ns,
                        NULL, "read from the table of methods, heartbeats and the statistics page", &body);
}

void frontend_status_route(frontend_t *frontend, http_request_t *request, const router_match_t *match)
{
    uint64_t received_ns = qn_clock_now_ns();
    if (match->route == ROUTE_SERVICE || match->route == ROUTE_EXAMPLES) {
        route_service(frontend, request, match);
        return;
    }
    if (match->route == ROUTE_HEALTH || match->route == ROUTE_READY) {
        route_health(frontend, request, match->route);
        return;
    }
    if (match->route == ROUTE_OPENAPI || match->route == ROUTE_DOCS) {
        route_openapi(frontend, request, match->route);
        return;
    }
    if (match->route == ROUTE_METRICS) {
        route_metrics(frontend, request);
        return;
    }
    reply_buffer_t body = {0};
    if (put_status(frontend, match, &body)) {
        frontend_reply_data(frontend, request, match->route, 200, frontend_wants_research(frontend, request),
                            received_ns, NULL, "read from what the frontend knows", &body);
        return;
    }
    http_error_t error;
    http_error_set(&error, 404, "model", "The model \"%.128s\" is not served here; \"%.128s\" is.", match->rest,
                   frontend->model.id);
    snprintf(error.code, sizeof error.code, "model_not_found");
    frontend_reply_error(frontend, request, match->route, &error);
}
