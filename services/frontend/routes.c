/* What is this?      What happens when a request came: route, check, admit, send.
 * State owned:       none beyond the frontend's; admitted requests become exchanges.
 * Must never:        wait for an answer; it comes through handlers.c and exchange_reply.c.
 * Read next:         generation.h for what is accepted, routes_status.c for routes that ask nobody. */
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "common/clock.h"
#include "common/failpoint.h"
#include "common/watch/quarantine.h"
#include "services/frontend/handlers.h"
#include "services/frontend/request/json_fields.h"

bool frontend_wants_research(const frontend_t *frontend, const http_request_t *request)
{
    const char *mode = http_request_query(request, "mode");
    if (!mode) mode = http_request_header(request, "x-quintet-mode");
    if (!mode) mode = frontend->config->frontend.mode;
    return strcmp(mode, "research") == 0;
}

/* An id for a client that brought none. */
static void make_id(frontend_t *frontend, http_request_t *request)
{
    char id[40];
    if (http_request_id(request)[0]) return;
    snprintf(id, sizeof id, "%016llx%016llx", (unsigned long long)frontend_random(frontend),
             (unsigned long long)frontend_random(frontend));
    http_request_set_id(request, id);
}

void frontend_refuse(void *context, http_request_t *request, int status, reply_buffer_t *out)
{
    frontend_t *frontend = context;
    http_error_t error;
    if (status == 413)
        http_error_set(&error, status, NULL,
                       "The body is larger than %llu bytes (frontend.max_body_bytes). Send less, or "
                       "split the prompts over several requests.",
                       (unsigned long long)frontend->config->frontend.max_body_bytes);
    else
        http_error_set(&error, status, "x-request-id",
                       "x-request-id must be 1 to %d printable ASCII characters without spaces.", HTTP_REQUEST_ID_MAX);
    http_error_write(&error, out);
    frontend_count_status(frontend, ROUTE_NONE, status);
    make_id(frontend, request);
}

static void reply_no_route(frontend_t *frontend, http_request_t *request, router_outcome_t outcome, const char *allow)
{
    http_error_t error;
    reply_buffer_t body = {0};
    http_header_t header = {"Allow", allow};
    if (outcome == ROUTER_NO_METHOD)
        http_error_set(&error, 405, NULL, "%.16s is not allowed for %.128s; allowed: %s.", http_request_method(request),
                       http_request_path(request), allow);
    else
        http_error_set(&error, 404, NULL, "There is no %.128s here.", http_request_path(request));
    http_error_write(&error, &body);
    frontend_count_status(frontend, ROUTE_NONE, error.status);
    http_request_reply(request, error.status, "application/json", &header, outcome == ROUTER_NO_METHOD ? 1 : 0, &body);
}

/* JSON by name, or nothing said; curl -d says application/x-www-form-urlencoded and must be told. */
static bool check_content_type(const http_request_t *request, http_error_t *ret_error)
{
    const char *type = http_request_header(request, "content-type");
    if (!type) return true;
    size_t length = strcspn(type, "; \t");
    if ((length == 16 && strncasecmp(type, "application/json", 16) == 0) ||
        (length > 5 && strncasecmp(type + length - 5, "+json", 5) == 0))
        return true;
    http_error_set(ret_error, 415, NULL,
                   "The content type is %.64s; send application/json "
                   "(curl: -H 'content-type: application/json').",
                   type);
    return false;
}

/* Not draining, and the service that must answer is there. */
static bool check_service(const frontend_t *frontend, qn_service_t service, http_error_t *ret_error)
{
    if (frontend->draining) {
        http_error_set(ret_error, 503, NULL, "The server is stopping. Try again later.");
        return false;
    }
    if (qn_daemon_peer(frontend->daemon, service).epoch) return true;
    http_error_set(ret_error, 503, NULL, "The %s service is not there (yet); GET /services shows all. Try again.",
                   qn_service_enum.names[service]);
    return false;
}

static void set_busy(http_error_t *ret_error, const frontend_t *frontend)
{
    http_error_set(ret_error, 429, NULL,
                   "%u sequences are in flight, %llu may be (frontend.queue_limit). Try again later.",
                   request_table_active(frontend->table), (unsigned long long)frontend->config->frontend.queue_limit);
}

static void set_full(http_error_t *ret_error, qn_send_outcome_t outcome, const char *service)
{
    http_error_set(ret_error, 503, NULL,
                   outcome == QN_SEND_FULL ? "The %s service is behind. Try again."
                                           : "The %s service has just ended. Try again.",
                   service);
}

/* ---- generation ---- */

static generation_limits_t limits_of(const frontend_t *frontend)
{
    bool of_model = frontend->model.described && strcmp(frontend->config->frontend.sampling_defaults, "model") == 0;
    qn_generation_config_t defaults = of_model ? frontend->model.defaults : QN_GENERATION_CONFIG_NEUTRAL;
    uint32_t configured = (uint32_t)frontend->config->frontend.default_max_tokens;
    return (generation_limits_t){
        .model = frontend->model.id,
        .vocab_size = frontend->model.vocab_size,
        .max_model_len = frontend->model.max_model_len,
        .default_max_tokens = configured ? configured : defaults.max_tokens,
        .defaults = defaults,
        .requests_max = (uint32_t)frontend->config->frontend.queue_limit,
    };
}

static void attach(frontend_t *frontend, exchange_t *exchange, http_request_t *request)
{
    exchange->connection = request;
    exchange->hand_key = qn_in_hand_now(frontend->hand);
    exchange->received_ns = qn_clock_now_ns();
    exchange->created_s = (int64_t)time(NULL);
    exchange->research = frontend_wants_research(frontend, request);
    if (!http_request_id(request)[0] && exchange->generation.request_id)
        http_request_set_id(request, exchange->generation.request_id);
    make_id(frontend, request);
    snprintf(exchange->client_id, sizeof exchange->client_id, "%s", http_request_id(request));
    http_request_set_user(request, exchange);
}

/* All of it or nothing: what was sent before a failure is cancelled with the exchange. */
static void send_generation(frontend_t *frontend, exchange_t *exchange)
{
    qn_send_outcome_t outcome = QN_SEND_OK;
    for (uint32_t i = 0; i < exchange->generation.prompt_count && outcome == QN_SEND_OK; i++)
        outcome = frontend_send_facts(frontend, exchange, i);
    for (uint32_t i = 0; i < exchange->choice_count && outcome == QN_SEND_OK; i++)
        outcome = frontend_send_encode(frontend, &exchange->choices[i]);
    if (outcome == QN_SEND_OK) return;
    http_error_t error;
    set_full(&error, outcome, "tokenizer");
    frontend_fail(frontend, exchange, &error);
}

static void route_generation(frontend_t *frontend, http_request_t *request, route_t route)
{
    generation_api_t api = route == ROUTE_COMPLETIONS ? GENERATION_COMPLETIONS : GENERATION_GENERATE;
    generation_limits_t limits = limits_of(frontend);
    generation_t generation = {0};
    http_error_t error;
    size_t bytes;
    const char *body = http_request_body(request, &bytes);
    bool good = check_content_type(request, &error) &&
                generation_parse(api, body, bytes, &limits, &generation, &error) &&
                check_service(frontend, QN_SERVICE_TOKENIZER, &error);
    if (good && !generation.seed_given) generation.seed = frontend_random(frontend);
    exchange_t *exchange = good ? request_table_open_generation(frontend->table, &generation) : NULL;
    if (!exchange) {
        if (good) set_busy(&error, frontend);
        generation_fini(&generation);
        make_id(frontend, request);
        frontend_reply_error(frontend, request, route, &error);
        return;
    }
    exchange->route = route;
    attach(frontend, exchange, request);
    send_generation(frontend, exchange);
}

/* ---- queries ---- */

static exchange_t *open_query(frontend_t *frontend, http_request_t *request, route_t route, qn_service_t service)
{
    http_error_t error;
    exchange_t *exchange = NULL;
    if (check_service(frontend, service, &error) && !(exchange = request_table_open_query(frontend->table, route)))
        set_busy(&error, frontend);
    if (!exchange) {
        frontend_reply_error(frontend, request, route, &error);
        return NULL;
    }
    attach(frontend, exchange, request);
    exchange->deadline_ns = exchange->received_ns + FRONTEND_QUERY_NS;
    return exchange;
}

static void sent_query(frontend_t *frontend, exchange_t *exchange, qn_service_t service, qn_send_outcome_t outcome)
{
    if (outcome == QN_SEND_OK) return;
    http_error_t error;
    set_full(&error, outcome, qn_service_enum.names[service]);
    frontend_fail(frontend, exchange, &error);
}

typedef struct {
    bool add_special, with_pieces, skip_special;
} tokenize_fields_t;

static const json_field_t tokenize_fields[] = {
    {"add_special_tokens", JSON_FIELD_FLAG, offsetof(tokenize_fields_t, add_special), 0, 0, 0},
    {"return_token_strs", JSON_FIELD_FLAG, offsetof(tokenize_fields_t, with_pieces), 0, 0, 0},
    {"skip_special_tokens", JSON_FIELD_FLAG, offsetof(tokenize_fields_t, skip_special), 0, 0, 0},
};

/* False: *ret_error. */
static bool parse_tokenize(const frontend_t *frontend, const json_t *root, tokenize_fields_t *ret_fields,
                           http_error_t *ret_error)
{
    *ret_fields = (tokenize_fields_t){.add_special = true};
    return generation_check_model(root, frontend->model.id, ret_error) &&
           json_fields_read(root, "", tokenize_fields, sizeof tokenize_fields / sizeof tokenize_fields[0], ret_fields,
                            ret_error);
}

/* Parses the body of a query; NULL: replied with the error already. Returns owned. */
static json_t *query_body(frontend_t *frontend, http_request_t *request, route_t route, tokenize_fields_t *ret_fields)
{
    http_error_t error;
    size_t bytes;
    const char *body = http_request_body(request, &bytes);
    json_t *root = check_content_type(request, &error) ? json_fields_parse(body, bytes, &error) : NULL;
    if (root && parse_tokenize(frontend, root, ret_fields, &error)) return root;
    json_decref(root);
    frontend_reply_error(frontend, request, route, &error);
    return NULL;
}

static void route_tokenize(frontend_t *frontend, http_request_t *request)
{
    tokenize_fields_t fields;
    json_t *root = query_body(frontend, request, ROUTE_TOKENIZE, &fields);
    if (!root) return;
    const json_t *prompt = json_object_get(root, "prompt");
    http_error_t error;
    exchange_t *exchange;
    if (!json_is_string(prompt)) {
        http_error_set(&error, 400, "prompt", "prompt must be a string (messages are not supported).");
        frontend_reply_error(frontend, request, ROUTE_TOKENIZE, &error);
    } else if ((exchange = open_query(frontend, request, ROUTE_TOKENIZE, QN_SERVICE_TOKENIZER))) {
        exchange->want_pieces = fields.with_pieces;
        sent_query(frontend, exchange, QN_SERVICE_TOKENIZER,
                   frontend_send_tokenize(frontend, exchange->first_id, json_string_value(prompt),
                                          json_string_length(prompt), fields.add_special, fields.with_pieces));
    }
    json_decref(root);
}

static void route_detokenize(frontend_t *frontend, http_request_t *request)
{
    tokenize_fields_t fields;
    json_t *root = query_body(frontend, request, ROUTE_DETOKENIZE, &fields);
    if (!root) return;
    http_error_t error;
    const uint32_t *ids = NULL;
    uint32_t count = 0;
    exchange_t *exchange;
    qn_arena_t arena;
    qn_arena_init(&arena, 4096);
    if (!generation_parse_ids(json_object_get(root, "tokens"), "tokens", frontend->model.vocab_size, &arena, &ids,
                              &count, &error)) {
        frontend_reply_error(frontend, request, ROUTE_DETOKENIZE, &error);
    } else if ((exchange = open_query(frontend, request, ROUTE_DETOKENIZE, QN_SERVICE_TOKENIZER))) {
        sent_query(frontend, exchange, QN_SERVICE_TOKENIZER,
                   frontend_send_detokenize(frontend, exchange->first_id, ids, count, fields.skip_special));
    }
    qn_arena_fini(&arena);
    json_decref(root);
}

static void route_memory(frontend_t *frontend, http_request_t *request, route_t route)
{
    exchange_t *exchange = open_query(frontend, request, route, QN_SERVICE_MEMORY);
    if (!exchange) return;
    sent_query(frontend, exchange, QN_SERVICE_MEMORY,
               route == ROUTE_FLUSH_CACHE ? frontend_send_flush(frontend, exchange->first_id)
                                          : frontend_send_cache_query(frontend, exchange->first_id));
}

/* ---- abort ---- */

/* {"rid": ...} (SGLang), {"request_id": ...} (vLLM), {"abort_all": true}; or ?rid=. False: *ret_error. */
static bool read_abort(const http_request_t *request, const json_t *root, const char **ret_id, http_error_t *ret_error)
{
    *ret_id = http_request_query(request, "rid");
    if (!*ret_id) *ret_id = http_request_query(request, "request_id");
    if (*ret_id) return true;
    const char *const names[] = {"rid", "request_id"};
    for (size_t i = 0; i < 2; i++) {
        const json_t *value = json_object_get(root, names[i]);
        if (!value || json_is_null(value)) continue;
        *ret_id = json_string_value(value);
        if (*ret_id && (*ret_id)[0]) return true;
        if (!*ret_id) http_error_set(ret_error, 400, names[i], "%s must be a string.", names[i]);
        if (!*ret_id) return false;
    }
    *ret_id = NULL;
    if (json_is_true(json_object_get(root, "abort_all"))) return true;
    http_error_set(ret_error, 400, "rid",
                   "rid (or request_id) is missing: the x-request-id of the request to end; or "
                   "\"abort_all\": true.");
    return false;
}

static void route_abort(frontend_t *frontend, http_request_t *request)
{
    http_error_t error;
    size_t bytes;
    const char *body = http_request_body(request, &bytes), *id = NULL;
    json_t *root = NULL;
    bool good = bytes == 0 || (check_content_type(request, &error) && (root = json_fields_parse(body, bytes, &error)));
    if (!good || !read_abort(request, root, &id, &error)) {
        json_decref(root);
        frontend_reply_error(frontend, request, ROUTE_ABORT_REQUEST, &error);
        return;
    }
    reply_buffer_t reply = {0};
    reply_buffer_printf(&reply, "{\"aborted\":%u}", frontend_abort(frontend, id));
    json_decref(root);
    frontend_reply_json(frontend, request, ROUTE_ABORT_REQUEST, 200, &reply);
}

/* ---- entry ---- */

static void take_request(frontend_t *frontend, http_request_t *request)
{
    router_match_t match;
    router_outcome_t outcome = router_find(http_request_method(request), http_request_path(request), &match);
    /* Generation may take its id from the body: attach() makes it. */
    size_t bytes;
    const char *body = http_request_body(request, &bytes);
    if (QN_FAILPOINT_TEXT(QN_FAILPOINT_FRONTEND_REQUEST, body, bytes))
        qn_daemon_fail(frontend->daemon, qn_fail(QN_ERR_INVALID, "a failpoint failed a request"));
    bool generates = match.route == ROUTE_COMPLETIONS || match.route == ROUTE_GENERATE;
    if (!generates) make_id(frontend, request);
    if (outcome != ROUTER_FOUND) {
        reply_no_route(frontend, request, outcome, match.allow);
        return;
    }
    switch (match.route) {
    case ROUTE_COMPLETIONS:
    case ROUTE_GENERATE: route_generation(frontend, request, match.route); break;
    case ROUTE_TOKENIZE: route_tokenize(frontend, request); break;
    case ROUTE_DETOKENIZE: route_detokenize(frontend, request); break;
    case ROUTE_CACHE_STATS:
    case ROUTE_FLUSH_CACHE: route_memory(frontend, request, match.route); break;
    case ROUTE_ABORT_REQUEST: route_abort(frontend, request); break;
    default: frontend_status_route(frontend, request, &match);
    }
}

/* Of a body and where it was sent to; 0 without a body. */
static uint64_t key_of(const http_request_t *request)
{
    size_t bytes;
    const char *path = http_request_path(request), *body = http_request_body(request, &bytes);
    return bytes > 0 ? qn_in_hand_key(qn_in_hand_key(0, path, strlen(path)), body, bytes) : 0;
}

/* A body that made the frontend crash twice: refused, and kept. */
static bool refuse_known(frontend_t *frontend, http_request_t *request, uint64_t key)
{
    http_error_t error;
    size_t bytes;
    const char *path = http_request_path(request), *body = http_request_body(request, &bytes);
    if (!qn_in_hand_refuses(frontend->hand, key)) return false;
    qn_in_hand_record(frontend->hand, key,
                      json_pack("{s:o,s:o}", "path", qn_quarantine_text(path, strlen(path)), "body",
                                qn_quarantine_text(body, bytes)));
    http_error_set(&error, 500, NULL, "%s", QN_IN_HAND_TEXT);
    make_id(frontend, request);
    frontend_reply_error(frontend, request, ROUTE_NONE, &error);
    return true;
}

void frontend_request(void *context, http_request_t *request)
{
    frontend_t *frontend = context;
    uint64_t key = key_of(request);
    if (refuse_known(frontend, request, key)) return;
    uint64_t before = qn_in_hand_take(frontend->hand, key);
    take_request(frontend, request);
    qn_in_hand_take(frontend->hand, before);
}
