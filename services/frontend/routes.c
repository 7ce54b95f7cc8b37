/* What is this?      What happens when a request came: route, check, admit, send.
 * State owned:       none beyond the frontend's; admitted requests become exchanges.
 * Must never:        wait for an answer; it comes through handlers.c and exchange_reply.c.
 * Read next:         generation.h for what is accepted, routes_status.c for routes that ask nobody. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/failpoint.h"
#include "common/watch/quarantine.h"
#include "services/frontend/access.h"
#include "services/frontend/handlers.h"
#include "services/frontend/methods/call.h"
#include "services/frontend/research/forms.h"

#define SEND_BYTES (2u << 20) /* of prompts, per turn and request */

/* What the request itself says; NULL: nothing. *ret_param: where. */
static const char *asked_mode(const http_request_t *request, const char **ret_param)
{
    const char *mode = http_request_query(request, *ret_param = "mode");
    return mode ? mode : http_request_header(request, *ret_param = "x-quintet-mode");
}

bool frontend_wants_research(const frontend_t *frontend, const http_request_t *request)
{
    const char *param, *mode = asked_mode(request, &param);
    return strcmp(mode ? mode : frontend->config->frontend.mode, "research") == 0;
}

static bool check_mode(const http_request_t *request, http_error_t *ret_error)
{
    const char *param, *mode = asked_mode(request, &param);
    if (!mode || strcmp(mode, "research") == 0 || strcmp(mode, "production") == 0) return true;
    http_error_set(ret_error, 400, param, "%s is \"%.64s\"; it is production or research.", param, mode);
    return false;
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

void frontend_refuse(void *context, http_request_t *request, int status, const char *param, const char *reason,
                     reply_buffer_t *out)
{
    frontend_t *frontend = context;
    http_error_t error;
    if (status == 413)
        http_error_set(&error, status, NULL,
                       "The body is larger than %llu bytes (frontend.max_body_bytes). Send less, or "
                       "split the prompts over several requests.",
                       (unsigned long long)frontend->config->frontend.max_body_bytes);
    else
        http_error_set(&error, status, param, "%s", reason);
    http_error_write(&error, out);
    frontend_count_status(frontend, ROUTE_NONE, status);
    if (error.retry_after_s) http_request_add_header(request, "Retry-After", "1");
    make_id(frontend, request);
}

static void reply_no_route(frontend_t *frontend, http_request_t *request, router_outcome_t outcome, const char *allow)
{
    http_error_t error;
    reply_buffer_t body = {0};
    if (outcome == ROUTER_NO_METHOD) http_request_add_header(request, "Allow", allow);
    if (outcome == ROUTER_NO_METHOD)
        http_error_set(&error, 405, NULL, "%.16s is not allowed for %.128s; allowed: %s.", http_request_method(request),
                       http_request_path(request), allow);
    else
        http_error_set(&error, 404, NULL, "There is no %.128s here.", http_request_path(request));
    http_error_write(&error, &body);
    frontend_count_status(frontend, ROUTE_NONE, error.status);
    http_request_reply(request, error.status, "application/json", &body);
}

static bool is_type(const char *type, const char *name)
{
    size_t length = strlen(name);
    return strcspn(type, "; \t") == length && strncasecmp(type, name, length) == 0;
}

/* JSON by name, or nothing said, or what `curl -d` says unasked. A web page can send that to any address without asking
 * (no preflight), but never without Origin. */
bool frontend_check_content_type(const http_request_t *request, http_error_t *ret_error)
{
    const char *type = http_request_header(request, "content-type");
    const char *coding = http_request_header(request, "content-encoding");
    if (coding && strcasecmp(coding, "identity") != 0) {
        http_error_set(ret_error, 415, "content-encoding", "The body is encoded as %.32s; send it as it is.", coding);
        return false;
    }
    if (!type) return true;
    size_t length = strcspn(type, "; \t");
    if (is_type(type, "application/json") || (length > 5 && strncasecmp(type + length - 5, "+json", 5) == 0))
        return true;
    if (is_type(type, "application/x-www-form-urlencoded") && !http_request_header(request, "origin")) return true;
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

static void set_unsent(http_error_t *ret_error, qn_send_outcome_t outcome, const char *service)
{
    if (outcome == QN_SEND_INVALID)
        http_error_set(ret_error, 400, NULL, "The request is larger than one message may be: %.300s. Send less.",
                       qn_err_text());
    else
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
        .strict = frontend->config->frontend.strict_fields,
        .eos_ids = frontend->model.eos_ids,
        .eos_id_count = frontend->model.eos_id_count,
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

/* Question or choice `part`; *ret_bytes: how large it is. */
static qn_send_outcome_t send_part(frontend_t *frontend, const exchange_t *exchange, uint32_t part, size_t *ret_bytes)
{
    const generation_t *generation = &exchange->generation;
    bool asks = part < generation->prompt_count;
    uint32_t place = asks ? 0 : part - generation->prompt_count;
    const choice_t *choice = asks ? NULL : &exchange->choices[exchange->batch ? exchange->batch->order[place] : place];
    const generation_prompt_t *prompt = &generation->prompts[asks ? part : choice_prompt(choice)];
    *ret_bytes = prompt->text.bytes + prompt->id_count * sizeof *prompt->ids;
    return asks ? frontend_send_facts(frontend, exchange, part) : frontend_send_encode(frontend, choice);
}

/* A batch with a window: whether another choice may be in flight. */
static bool may_send(const exchange_t *exchange)
{
    uint32_t asked = exchange->generation.prompt_count;
    return !exchange->batch || exchange->sent_parts < asked ||
           exchange->sent_parts - asked - exchange->ended_count < exchange->batch->window;
}

/* Sends until all is sent or the turn has done enough, or until a choice of a batch has ended; all of it or nothing: what was sent before a failure is
 * cancelled with the exchange. True: nothing is left. */
static bool send_generation(frontend_t *frontend, exchange_t *exchange)
{
    size_t sent_bytes = 0;
    while (exchange->sent_parts < exchange->generation.prompt_count + exchange->choice_count) {
        if (!may_send(exchange)) return true;      /* when one ends: frontend_choice_ended */
        if (sent_bytes > SEND_BYTES) return false; /* running streams first */
        size_t bytes;
        qn_send_outcome_t outcome = send_part(frontend, exchange, exchange->sent_parts++, &bytes);
        sent_bytes += bytes;
        if (outcome == QN_SEND_OK) continue;
        http_error_t error;
        set_unsent(&error, outcome, "tokenizer");
        frontend_fail(frontend, exchange, &error);
        return true;
    }
    return true;
}

void frontend_send_rest(frontend_t *frontend)
{
    uint32_t left = 0;
    for (uint32_t i = 0; frontend->unsent && i < request_table_count(frontend->table); i++) {
        exchange_t *exchange = request_table_at(frontend->table, i);
        bool unsent = exchange->kind == EXCHANGE_GENERATION && !exchange->failed &&
                      exchange->sent_parts < exchange->generation.prompt_count + exchange->choice_count;
        if (unsent && (left > 0 || !send_generation(frontend, exchange))) left++; /* one of them per turn */
    }
    frontend->unsent = left;
}

void frontend_choice_ended(frontend_t *frontend, const exchange_t *exchange)
{
    if (exchange->batch) frontend->unsent++; /* the next turn looks whether something may follow */
}

/* Takes the body's generation and `batch` (may be NULL). */
static void begin_generation(frontend_t *frontend, body_t *body, exchange_batch_t *batch)
{
    http_request_t *request = body->request;
    generation_t *generation = &body->generation;
    frontend_warn_unknown(frontend, request, body->route, &generation->unknown);
    if (!generation->seed_given) generation->seed = frontend_random(frontend);
    exchange_t *exchange = NULL;
    if (check_service(frontend, QN_SERVICE_TOKENIZER, &body->error) &&
        !(exchange = request_table_open_generation(frontend->table, generation)))
        set_busy(&body->error, frontend);
    if (!exchange) {
        frontend_reply_error(frontend, request, body->route, &body->error);
        if (batch) reply_buffer_fini(&batch->members);
        free(batch);
        return;
    }
    exchange->batch = batch;
    exchange->route = body->route;
    attach(frontend, exchange, request);
    if (!send_generation(frontend, exchange)) frontend->unsent++;
}

void frontend_begin_batch(frontend_t *frontend, http_request_t *request, route_t route, const json_t *json,
                          exchange_batch_t *batch)
{
    char *text = json_dumps(json, JSON_COMPACT);
    QN_ASSERT(text != NULL);
    body_t body = {.request = request, .route = route, .limits = limits_of(frontend)};
    if (generation_parse(GENERATION_BATCH, text, strlen(text), &body.limits, &body.generation, &body.error)) {
        begin_generation(frontend, &body, batch);
        generation_fini(&body.generation); /* what was not taken */
    } else {
        frontend_reply_error(frontend, request, route, &body.error);
        reply_buffer_fini(&batch->members);
        free(batch);
    }
    free(text);
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
    set_unsent(&error, outcome, qn_service_enum.names[service]);
    frontend_fail(frontend, exchange, &error);
}

static void begin_query(frontend_t *frontend, body_t *body)
{
    const query_body_t *query = &body->query;
    exchange_t *exchange = open_query(frontend, body->request, body->route, QN_SERVICE_TOKENIZER);
    if (!exchange) return;
    exchange->want_pieces = query->with_pieces;
    qn_send_outcome_t outcome =
        body->route == ROUTE_TOKENIZE
            ? frontend_send_tokenize(frontend, exchange->first_id, query->text.data, query->text.bytes,
                                     query->add_special, query->with_pieces)
            : frontend_send_detokenize(frontend, exchange->first_id, query->ids, query->id_count, query->skip_special);
    sent_query(frontend, exchange, QN_SERVICE_TOKENIZER, outcome);
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

/* By the body, or ?rid= and ?request_id=. */
static void abort_named(frontend_t *frontend, body_t *body)
{
    const char *id = http_request_query(body->request, "rid");
    if (!id) id = http_request_query(body->request, "request_id");
    if (!id) id = body->query.abort_id;
    if (!id && !body->query.abort_all) {
        http_error_set(&body->error, 400, "rid",
                       "rid (or request_id) is missing: the x-request-id of the request to end; or "
                       "\"abort_all\": true.");
        frontend_reply_error(frontend, body->request, ROUTE_ABORT_REQUEST, &body->error);
        return;
    }
    if (!id && !access_allows(frontend, body->request, ACCESS_ADMIN, &body->error)) {
        if (body->error.status == 404) /* the route is here, and this is not a user's to ask */
            http_error_set(&body->error, 403, "abort_all", "abort_all ends what others run: it is an administrator's.");
        access_refuse(frontend, body->request, ROUTE_ABORT_REQUEST, &body->error);
        return;
    }
    reply_buffer_t reply = {0};
    reply_buffer_printf(&reply, "{\"aborted\":%u}", frontend_abort(frontend, id));
    frontend_reply_json(frontend, body->request, ROUTE_ABORT_REQUEST, 200, &reply);
}

/* ---- entry ---- */

void frontend_body(frontend_t *frontend, body_t *body)
{
    bool generates = router_generates(body->route);
    if (!body->good) {
        make_id(frontend, body->request);
        frontend_reply_error(frontend, body->request, body->route, &body->error);
        return;
    }
    if (generates) {
        begin_generation(frontend, body, NULL);
        return;
    }
    if (body->method.method) {
        frontend_method_body(frontend, body);
        return;
    }
    if (form_of(body->route)) {
        frontend_form_body(frontend, body);
        return;
    }
    frontend_warn_unknown(frontend, body->request, body->route, &body->query.unknown);
    if (body->route == ROUTE_ABORT_REQUEST)
        abort_named(frontend, body);
    else
        begin_query(frontend, body);
}

/* What can be refused without looking into the body. */
static void route_body(frontend_t *frontend, http_request_t *request, route_t route)
{
    http_error_t error;
    generation_limits_t limits = limits_of(frontend);
    size_t bytes;
    http_request_body(request, &bytes);
    bool needs_type = bytes > 0 || route != ROUTE_ABORT_REQUEST;
    if (needs_type && !frontend_check_content_type(request, &error)) {
        make_id(frontend, request);
        frontend_reply_error(frontend, request, route, &error);
        return;
    }
    frontend_take_body(frontend, request, route, NULL, &limits);
}

static void take_request(frontend_t *frontend, http_request_t *request)
{
    router_match_t match;
    router_outcome_t outcome = router_find(http_request_method(request), http_request_path(request), &match);
    /* Generation may take its id from the body: attach() makes it. */
    size_t bytes;
    const char *body = http_request_body(request, &bytes);
    if (QN_FAILPOINT_TEXT(QN_FAILPOINT_FRONTEND_REQUEST, body, bytes))
        qn_daemon_fail(frontend->daemon, qn_fail(QN_ERR_INVALID, "a failpoint failed a request"));
    bool generates = router_generates(match.route);
    if (!generates) make_id(frontend, request);
    http_error_t error;
    if (outcome != ROUTER_NO_PATH && !access_allows(frontend, request, match.access, &error)) {
        make_id(frontend, request);
        access_refuse(frontend, request, match.route, &error);
        return;
    }
    if (outcome != ROUTER_FOUND) {
        reply_no_route(frontend, request, outcome, match.allow);
        return;
    }
    if (!check_mode(request, &error)) {
        make_id(frontend, request);
        frontend_reply_error(frontend, request, match.route, &error);
        return;
    }
    bool changes = match.route == ROUTE_FLUSH_CACHE || match.route == ROUTE_ABORT_REQUEST;
    if (changes && !frontend_is_from_here(frontend, request, match.route)) return;
    switch (match.route) {
    case ROUTE_COMPLETIONS:
    case ROUTE_GENERATE:
    case ROUTE_BATCH_GENERATE:
    case ROUTE_TOKENIZE:
    case ROUTE_DETOKENIZE:
    case ROUTE_ABORT_REQUEST: route_body(frontend, request, match.route); break;
    case ROUTE_CACHE_STATS:
    case ROUTE_FLUSH_CACHE: route_memory(frontend, request, match.route); break;
    case ROUTE_METHOD: frontend_method_route(frontend, request, &match); break;
    default:
        if (form_of(match.route))
            frontend_form_route(frontend, request, &match);
        else
            frontend_status_route(frontend, request, &match);
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
