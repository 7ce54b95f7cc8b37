/* What is this?      The frontend daemon: descriptor, start, tick, peers, stop.
 * State owned:       client connections, requests in flight, what is known of the model.
 * Must never:        tokenise, schedule, touch device memory; block in a callback.
 * Read next:         frontend.h, routes.c, handlers.c, exchange_reply.c, README.md */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/daemon/fd_store.h"
#include "common/watch/log.h"
#include "common/paths.h"
#include "services/frontend/access.h"
#include "services/frontend/handlers.h"
#include "services/frontend/http/listen_address.h"
#include "services/frontend/methods/call.h"
#include "services/frontend/methods/describe.h"

#define OTHER_DESCRIPTORS 256 /* links, pages, logs, and connections that are being refused */
#define STOP_LINGER_MS 300    /* for clients to read how their requests ended */
#define IDLE_TIMEOUT_S 75     /* nginx's default: proxies keep connections about as long */
#define MMAP_BYTES (256 << 10)
#define CANCEL_RETRY_NS 2000000ull
#define BOOT_IDS 1000000000000ull /* request ids per boot: ids of two lives never meet */

#define ROW(row, name, kind, unit, help) [FRONTEND_STAT_##row] = {"frontend_" name, QN_STAT_##kind, unit, help}

#define CODE_ROW(group, route, code, label)                                                                \
    [FRONTEND_STAT_REQUESTS + FRONTEND_GROUP_##group * FRONTEND_CODE_COUNT + FRONTEND_CODE_##              \
        code] = {"frontend_requests{route=\"" route "\",code=\"" label "\"}", QN_STAT_COUNTER, "requests", \
                 "Requests answered, by route and HTTP status"}
#define COMPLETIONS_ROW(code) CODE_ROW(COMPLETIONS, "completions", code, #code),
#define GENERATE_ROW(code) CODE_ROW(GENERATE, "generate", code, #code),
#define TOKENIZE_ROW(code) CODE_ROW(TOKENIZE, "tokenize", code, #code),
#define OTHER_ROW(code) CODE_ROW(OTHER, "other", code, #code),

static const qn_stat_spec_t frontend_stats[FRONTEND_STAT_COUNT] = {
    // clang-format off
    FRONTEND_CODES(COMPLETIONS_ROW) CODE_ROW(COMPLETIONS, "completions", OTHER, "other"),
    FRONTEND_CODES(GENERATE_ROW) CODE_ROW(GENERATE, "generate", OTHER, "other"),
    FRONTEND_CODES(TOKENIZE_ROW) CODE_ROW(TOKENIZE, "tokenize", OTHER, "other"),
    FRONTEND_CODES(OTHER_ROW) CODE_ROW(OTHER, "other", OTHER, "other"),
    // clang-format on
    ROW(ACTIVE, "active_sequences", GAUGE, "sequences", "Sequences and queries in flight"),
    ROW(PROMPT_TOKENS, "prompt_tokens", COUNTER, "tokens", "Prompt tokens of answered requests"),
    ROW(GENERATED_TOKENS, "generated_tokens", COUNTER, "tokens", "Generated tokens of answered requests"),
    ROW(SENT_BYTES, "sent_bytes", COUNTER, "bytes", "Bytes of reply bodies"),
    ROW(DISCONNECTS, "disconnects", COUNTER, "requests", "Clients that left before their answer was complete"),
    ROW(CANCELS, "cancels", COUNTER, "sequences", "Sequences cancelled"),
    ROW(REPEATED, "repeated_tokens", COUNTER, "tokens", "Tokens that came twice and were dropped"),
    ROW(GAPS, "gaps", COUNTER, "requests", "Requests failed because output was missing"),
    ROW(UNKNOWN, "late_deltas", COUNTER, "deltas", "Output for requests that were gone already"),
    ROW(UNKNOWN_FIELDS, "unknown_fields", COUNTER, "fields", "Fields of request bodies that no route knows"),
    ROW(TTFT, "time_to_first_token", HISTOGRAM_NS, "seconds", "From the whole HTTP request to the first token"),
    ROW(INTER_TOKEN, "inter_token", HISTOGRAM_NS, "seconds", "Between tokens of a sequence"),
    ROW(METHOD, "method_call", HISTOGRAM_NS, "seconds", "From a method's call to its answer, or its failure"),
    ROW(LATENCY, "request", HISTOGRAM_NS, "seconds", "From the whole HTTP request to the end of its answer"),
};

void frontend_count(frontend_t *frontend, unsigned row, uint64_t amount)
{
    qn_stats_add(qn_daemon_stats(frontend->daemon), QN_DAEMON_STATS_TABLE, row, amount);
}

/* SplitMix64 (Steele, Lea, Flood 2014): for ids and default seeds, not for secrets. */
uint64_t frontend_random(frontend_t *frontend)
{
    uint64_t mixed = (frontend->random += 0x9E3779B97F4A7C15ull);
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9ull;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBull;
    return mixed ^ (mixed >> 31);
}

/* ---- start ---- */

static void choose_socket(void *context, int fd, const char *name)
{
    int *found = context;
    size_t length = strlen(name);
    bool is_unit = length > 7 && strcmp(name + length - 7, ".socket") == 0;
    if (*found < 0 && (strcmp(name, "http") == 0 || is_unit)) *found = fd;
}

/* The socket that a service manager passed under the name "http", or as the only one of a .socket unit; -1: none. */
static int inherited_socket(void)
{
    int found = -1;
    qn_fd_store_each("", choose_socket, &found);
    return found;
}

static qn_err_t open_listener(const qn_config_values_t *config, int *ret_fd, bool *ret_inherited)
{
    listen_address_t address;
    *ret_fd = inherited_socket();
    *ret_inherited = *ret_fd >= 0;
    if (*ret_inherited) return QN_OK;
    qn_err_t err = listen_address_parse(config->frontend.listen, &address);
    return err == QN_OK ? listen_address_open(&address, ret_fd) : err;
}

/* A shell's soft limit of 1024 is below what max_connections and the links need; the hard one may be raised to. */
static void raise_descriptor_limit(uint64_t max_connections)
{
    struct rlimit limit;
    rlim_t wanted = (rlim_t)max_connections + OTHER_DESCRIPTORS;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= wanted) return;
    limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur < wanted)
        qn_log_warning("%llu descriptors may be open; frontend.max_connections needs %llu (ulimit -n)",
                       (unsigned long long)limit.rlim_cur, (unsigned long long)wanted);
}

static void on_gone(void *context, http_request_t *request)
{
    frontend_t *frontend = context;
    exchange_t *exchange = http_request_user(request);
    bool called = calls_forget(&frontend->calls, request);
    if (!exchange && !called && !frontend_forget_body(frontend, request)) return;
    frontend_count(frontend, FRONTEND_STAT_DISCONNECTS, 1);
    if (!exchange) return;
    frontend_forget(frontend, exchange, QN_CANCEL_REASON_CLIENT_GONE);
}

static void on_sent(void *context, size_t bytes) { frontend_count(context, FRONTEND_STAT_SENT_BYTES, bytes); }

/* Takes the socket. */
static qn_err_t serve(frontend_t *frontend, int fd, bool inherited, http_server_t **ret_server)
{
    http_server_limits_t limits = {
        .max_body_bytes = frontend->config->frontend.max_body_bytes,
        .max_connections = (unsigned)frontend->config->frontend.max_connections,
        .idle_timeout_s = IDLE_TIMEOUT_S,
        .inherited = inherited,
    };
    http_server_callbacks_t callbacks = {
        .context = frontend,
        .request = frontend_request,
        .gone = on_gone,
        .refuse = frontend_refuse,
        .sent = on_sent,
    };
    qn_err_t err = http_server_create(fd, &limits, &callbacks, ret_server);
    return err == QN_OK ? qn_daemon_watch(frontend->daemon, http_server_fd(*ret_server)) : err;
}

/* Administrators' own listener, where there is one. */
static qn_err_t open_admin(frontend_t *frontend)
{
    int fd = -1;
    char shown[QN_ENDPOINT_MAX];
    listen_address_t address;
    const char *asked = frontend->config->frontend.admin_listen;
    if (!asked[0]) return QN_OK;
    qn_err_t err = listen_address_parse(asked, &address);
    if (err == QN_OK) err = listen_address_open(&address, &fd);
    if (err != QN_OK) return err;
    listen_address_of(fd, shown, sizeof shown);
    qn_log_notice("listening for administrators on %s", shown);
    return serve(frontend, fd, false, &frontend->admin);
}

static qn_err_t open_http(frontend_t *frontend)
{
    int fd = -1;
    bool inherited = false;
    raise_descriptor_limit(frontend->config->frontend.max_connections);
    qn_err_t err = access_open(frontend);
    if (err == QN_OK) err = open_admin(frontend);
    if (err == QN_OK) err = open_listener(frontend->config, &fd, &inherited);
    if (err != QN_OK) return err;
    char shown[QN_ENDPOINT_MAX];
    listen_address_of(fd, shown, sizeof shown);
    err = serve(frontend, fd, inherited, &frontend->http);
    if (err != QN_OK) return err;
    qn_log_notice("listening on %s", shown);
    qn_daemon_set_state(frontend->daemon, QN_STATE_READY, shown);
    return QN_OK;
}

/* The model's name until memory describes it: model.id, or the last component of the directory. */
static void name_model(frontend_t *frontend)
{
    served_model_t *model = &frontend->model;
    char path[QN_PATH_MAX] = "";
    if (qn_paths_model(frontend->config, path, sizeof path) != QN_OK)
        snprintf(path, sizeof path, "%s", frontend->config->model.path);
    for (size_t end = strlen(path); end > 1 && path[end - 1] == '/'; end--)
        path[end - 1] = '\0';
    const char *last = strrchr(path, '/');
    const char *id = frontend->config->model.id[0] ? frontend->config->model.id : last ? last + 1 : path;
    snprintf(model->path, sizeof model->path, "%s", path);
    snprintf(model->id, sizeof model->id, "%.256s", id);
    model->created_s = (int64_t)time(NULL);
    model->bos_id = -1;
}

/* What could not finish in time is told so: 503, or an error event in a stream that has begun. */
static void end_what_runs(frontend_t *frontend)
{
    http_error_t error;
    http_error_set(&error, 503, NULL, "The server stopped before this request was complete. Send it again.");
    for (uint32_t i = 0; i < request_table_count(frontend->table); i++)
        frontend_fail(frontend, request_table_at(frontend->table, i), &error);
    frontend_look(frontend, qn_clock_now_ns());
    for (int service = QN_SERVICE_FRONTEND; service <= QN_SERVICE_COMPUTE; service++)
        frontend_end_calls(frontend, (qn_service_t)service);
    frontend_end_bodies(frontend, &error);
}

static void service_fini(void **state)
{
    frontend_t *frontend = *state;
    if (!frontend) return;
    if (frontend->worker) qn_daemon_unwatch(frontend->daemon, worker_fd(frontend->worker));
    if (frontend->http) {
        end_what_runs(frontend);
        qn_daemon_unwatch(frontend->daemon, http_server_fd(frontend->http));
    }
    if (frontend->admin) qn_daemon_unwatch(frontend->daemon, http_server_fd(frontend->admin));
    worker_destroy(&frontend->worker);
    http_server_destroy(&frontend->http, STOP_LINGER_MS);
    http_server_destroy(&frontend->admin, STOP_LINGER_MS);
    access_close(frontend);
    request_table_destroy(&frontend->table);
    request_log_destroy(&frontend->log);
    if (frontend->profile.profiling) qn_daemon_unwatch(frontend->daemon, profiling_fd(frontend->profile.profiling));
    profiling_destroy(&frontend->profile.profiling);
    qn_in_hand_close(&frontend->hand);
    qn_arena_fini(&frontend->scratch);
    reply_buffer_fini(&frontend->text);
    free(frontend->cancels);
    qn_config_free(&frontend->changed);
    free(frontend);
    *state = NULL;
}

static qn_err_t service_init(qn_daemon_t *daemon, const qn_config_values_t *config, void **ret_state)
{
    frontend_t *frontend = calloc(1, sizeof *frontend);
    if (!frontend) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the frontend");
    frontend->daemon = daemon;
    frontend->config = config;
    frontend->cancels = calloc(FRONTEND_CANCELS_MAX, sizeof *frontend->cancels);
    QN_ASSERT(frontend->cancels != NULL);
    qn_arena_init(&frontend->scratch, 64 * 1024);
    if (getrandom(&frontend->random, sizeof frontend->random, 0) != (ssize_t)sizeof frontend->random)
        frontend->random = qn_clock_now_ns();
    qn_peer_status_t self;
    qn_daemon_self_status(daemon, &self);
    frontend->table = request_table_create(self.restarts * BOOT_IDS + 1, (uint32_t)config->frontend.queue_limit);
    frontend->log = request_log_create();
    calls_init(&frontend->calls, qn_daemon_epoch(daemon));
    name_model(frontend);
    mallopt(M_MMAP_THRESHOLD, MMAP_BYTES); /* fixed: what is larger always goes back when it is freed */
    mallopt(M_MXFAST, 0);                  /* small pieces join when they are freed: so does the tree of a large body */
    qn_err_t err = qn_in_hand_open(qn_daemon_run_dir(daemon), "frontend", qn_daemon_epoch(daemon), &frontend->hand);
    if (err == QN_OK) err = worker_create(&frontend->worker);
    if (err == QN_OK) err = qn_daemon_watch(daemon, worker_fd(frontend->worker));
    if (err == QN_OK) err = profiling_create(qn_daemon_run_dir(daemon), &frontend->profile.profiling);
    if (err == QN_OK) err = qn_daemon_watch(daemon, profiling_fd(frontend->profile.profiling));
    if (err == QN_OK) err = open_http(frontend);
    if (err != QN_OK) {
        service_fini((void **)&frontend);
        return err;
    }
    *ret_state = frontend;
    return QN_OK;
}

/* ---- peers ---- */

/* Fails what only `service` could have answered: it died with what it held. */
static void fail_waiting(frontend_t *frontend, qn_service_t service)
{
    http_error_t error;
    http_error_set(&error, 503, NULL, "The %s service ended while it held this request. Send it again.",
                   qn_service_enum.names[service]);
    for (uint32_t i = 0; i < request_table_count(frontend->table); i++) {
        exchange_t *exchange = request_table_at(frontend->table, i);
        bool of_memory = exchange->route == ROUTE_CACHE_STATS || exchange->route == ROUTE_FLUSH_CACHE;
        if (of_memory == (service == QN_SERVICE_MEMORY)) frontend_fail(frontend, exchange, &error);
    }
}

static void service_peer(void *state, qn_peer_t peer, qn_peer_event_t event)
{
    frontend_t *frontend = state;
    bool answers = peer.service == QN_SERVICE_TOKENIZER || peer.service == QN_SERVICE_MEMORY;
    if (event == QN_PEER_UP) request_log_meet(frontend->log, peer.service, peer.epoch, qn_clock_now_ns());
    if (event == QN_PEER_GONE) frontend_end_calls(frontend, (qn_service_t)peer.service);
    if (event == QN_PEER_GONE && answers) fail_waiting(frontend, (qn_service_t)peer.service);
    if (event == QN_PEER_UP && peer.service == QN_SERVICE_MEMORY) frontend_send_describe(frontend, peer);
    /* A request does not outlive the tokenizer that held it (fail_waiting): there is nothing to send again. */
    if (event == QN_PEER_UP && peer.service == QN_SERVICE_TOKENIZER) frontend_send_replay_complete(frontend, peer);
    if (event == QN_PEER_UP && peer.service == QN_SERVICE_TOKENIZER) describe_meet_tokenizer(frontend);
}

/* ---- tick ---- */

/* False: some wait for room. They wait, too, while neither tokenizer nor scheduler is there: the ledger may hold what
 * they are about. */
static bool send_cancels(frontend_t *frontend)
{
    uint32_t sent = 0;
    qn_send_outcome_t outcome = QN_SEND_OK;
    while (sent < frontend->cancel_count) {
        const frontend_cancel_t *cancel = &frontend->cancels[sent];
        outcome = frontend_send_cancel(frontend, cancel->request, cancel->reason);
        if (outcome != QN_SEND_OK) break;
        sent++;
    }
    frontend->cancel_count -= sent;
    if (sent) memmove(frontend->cancels, frontend->cancels + sent, frontend->cancel_count * sizeof *frontend->cancels);
    return outcome != QN_SEND_FULL;
}

static uint64_t earlier(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Both listeners; milliseconds until it must be called again. */
static uint64_t serve_clients(frontend_t *frontend, uint64_t now_ns)
{
    uint64_t http_ms = http_server_run(frontend->http, now_ns);
    return frontend->admin ? earlier(http_ms, http_server_run(frontend->admin, now_ns)) : http_ms;
}

static uint64_t service_tick(void *state, uint64_t now_ns)
{
    frontend_t *frontend = state;
    access_turn(frontend);
    frontend_send_rest(frontend); /* before new ones come */
    frontend_take_work(frontend);
    frontend_answer_profile(&frontend->profile);
    frontend_look(frontend, now_ns);
    if (now_ns >= frontend->scan_ns) {
        frontend_scan(frontend, now_ns);
        frontend_scan_calls(frontend, now_ns);
        frontend->scan_ns = now_ns + FRONTEND_SCAN_NS;
    }
    uint64_t http_ms = serve_clients(frontend, now_ns);
    if (frontend_look(frontend, now_ns)) http_ms = serve_clients(frontend, now_ns); /* what failed at once */
    bool all_sent = send_cancels(frontend);
    qn_stats_set(qn_daemon_stats(frontend->daemon), QN_DAEMON_STATS_TABLE, FRONTEND_STAT_ACTIVE,
                 request_table_active(frontend->table));
    uint64_t next_ns = http_ms == UINT64_MAX ? UINT64_MAX : now_ns + http_ms * 1000000;
    if (request_table_count(frontend->table) > 0 || frontend->calls.count > 0)
        next_ns = earlier(next_ns, frontend->scan_ns);
    if (frontend->unsent) return now_ns;
    return all_sent ? next_ns : earlier(next_ns, now_ns + CANCEL_RETRY_NS);
}

/* ---- stop ---- */

static void service_drain(void *state)
{
    frontend_t *frontend = state;
    frontend->draining = true;
    http_server_quiesce(frontend->http);
    if (frontend->admin) http_server_quiesce(frontend->admin);
    qn_daemon_set_state(frontend->daemon, QN_STATE_DRAINING, "finishing what runs; no new requests");
}

static bool service_drained(const void *state)
{
    const frontend_t *frontend = state;
    return request_table_count(frontend->table) == 0 && calls_for_clients(&frontend->calls) == 0 && !frontend->bodies;
}

const qn_daemon_descriptor_t qn_frontend_daemon = {
    .service = QN_SERVICE_FRONTEND,
    .name = "frontend",
    .dials = (const qn_service_t[]){QN_SERVICE_TOKENIZER, QN_SERVICE_SCHEDULER, QN_SERVICE_MEMORY, QN_SERVICE_COMPUTE,
                                    QN_SERVICE_NONE},
    .handlers = frontend_handlers,
    .reply = frontend_take_reply,
    .methods = frontend_methods,
    .stats = frontend_stats,
    .stat_count = FRONTEND_STAT_COUNT,
    .init = service_init,
    .peer = service_peer,
    .tick = service_tick,
    .drain = service_drain,
    .drained = service_drained,
    .fini = service_fini,
};
