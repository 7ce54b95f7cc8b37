/* What is this?      From what arrived to what the client sees: replies, stream events, errors, ends.
 * State owned:       none beyond the frontend's; exchanges end here.
 * Must never:        wait, or touch a connection after its answer is complete.
 * Read next:         reply_openai.c and reply_sglang.c for the shapes, http_server.h for the rules of answering. */
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/failpoint.h"
#include "common/watch/log.h"
#include "services/frontend/handlers.h"
#include "services/frontend/reply/reply_openai.h"
#include "services/frontend/reply/reply_sglang.h"
#include "services/frontend/research.h"
#include "services/frontend/http/sse.h"

#define JSON_CONTENT_TYPE "application/json"

/* ---- whole replies ---- */

static unsigned code_row(int status)
{
    static const int codes[] = {
#define CODE(code) [FRONTEND_CODE_##code] = (code),
        FRONTEND_CODES(CODE)
#undef CODE
    };
    for (unsigned i = 0; i < sizeof codes / sizeof codes[0]; i++)
        if (codes[i] == status) return i;
    return FRONTEND_CODE_OTHER;
}

void frontend_count_status(frontend_t *frontend, route_t route, int status)
{
    unsigned group = FRONTEND_GROUP_OTHER;
    if (route == ROUTE_COMPLETIONS) group = FRONTEND_GROUP_COMPLETIONS;
    if (route == ROUTE_GENERATE || route == ROUTE_BATCH_GENERATE) group = FRONTEND_GROUP_GENERATE;
    if (route == ROUTE_TOKENIZE || route == ROUTE_DETOKENIZE) group = FRONTEND_GROUP_TOKENIZE;
    frontend_count(frontend, FRONTEND_STAT_REQUESTS + group * FRONTEND_CODE_COUNT + code_row(status), 1);
}

void frontend_reply_json(frontend_t *frontend, http_request_t *request, route_t route, int status, reply_buffer_t *body)
{
    frontend_count_status(frontend, route, status);
    http_request_reply(request, status, JSON_CONTENT_TYPE, body);
}

void frontend_reply_error(frontend_t *frontend, http_request_t *request, route_t route, const http_error_t *error)
{
    char seconds[16];
    snprintf(seconds, sizeof seconds, "%u", error->retry_after_s);
    if (error->retry_after_s) http_request_add_header(request, "Retry-After", seconds);
    reply_buffer_t body = {0};
    http_error_write(error, &body);
    frontend_count_status(frontend, route, error->status);
    http_request_reply(request, error->status, JSON_CONTENT_TYPE, &body);
}

static research_t research_of(const frontend_t *frontend, route_t route, uint64_t received_ns,
                              const exchange_t *exchange, const char *reason)
{
    return (research_t){
        .method = router_name(route),
        .received_ns = received_ns,
        .now_ns = qn_clock_now_ns(),
        .epoch = qn_daemon_epoch(frontend->daemon),
        .reason = reason,
        .exchange = exchange,
    };
}

void frontend_reply_data(frontend_t *frontend, http_request_t *request, route_t route, int status, bool research,
                         uint64_t received_ns, const exchange_t *exchange, const char *reason, reply_buffer_t *body)
{
    if (research) {
        reply_buffer_t wrapped = {0};
        research_t metadata = research_of(frontend, route, received_ns, exchange, reason);
        reply_buffer_text(&wrapped, "{\"data\":");
        reply_buffer_append(&wrapped, body->data, body->bytes);
        reply_buffer_text(&wrapped, ",\"metadata\":");
        json_writer_t writer = json_writer_on(&wrapped);
        research_write(&metadata, &writer);
        reply_buffer_text(&wrapped, "}");
        reply_buffer_fini(body);
        *body = wrapped;
    }
    frontend_reply_json(frontend, request, route, status, body);
}

/* ---- ends ---- */

/* All that is left of it is what may be asked about it. */
static void close_exchange(frontend_t *frontend, exchange_t *exchange)
{
    request_log_end(frontend->log, exchange, qn_clock_now_ns());
    request_table_close(frontend->table, &exchange);
}

/* Asks for the end of what still runs; sent by the tick, so that a full outbox loses nothing. */
static void cancel(frontend_t *frontend, const choice_t *choice, qn_cancel_reason_t reason)
{
    if (choice->ended) return;
    if (frontend->cancel_count == FRONTEND_CANCELS_MAX) {
        qn_log_warning("request %lu could not be cancelled: the tokenizer takes nothing",
                       (unsigned long)choice->request);
        return;
    }
    frontend->cancels[frontend->cancel_count++] = (frontend_cancel_t){.request = choice->request, .reason = reason};
    frontend_count(frontend, FRONTEND_STAT_CANCELS, 1);
}

void frontend_forget(frontend_t *frontend, exchange_t *exchange, qn_cancel_reason_t reason)
{
    for (uint32_t i = 0; i < exchange->choice_count; i++)
        cancel(frontend, &exchange->choices[i], reason);
    close_exchange(frontend, exchange);
}

static bool matches(const exchange_t *exchange, uint32_t prompt, const char *id)
{
    const char *rid = exchange->generation.prompts[prompt].rid;
    const char *bare = strncmp(id, "cmpl-", 5) == 0 ? id + 5 : id; /* the id of the reply names it too */
    return strcmp(exchange->client_id, id) == 0 || strcmp(exchange->client_id, bare) == 0 ||
           (rid && strcmp(rid, id) == 0);
}

uint32_t frontend_abort(frontend_t *frontend, const char *id)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < request_table_count(frontend->table); i++) {
        exchange_t *exchange = request_table_at(frontend->table, i);
        for (uint32_t j = 0; j < exchange->choice_count; j++) {
            choice_t *choice = &exchange->choices[j];
            if (choice->ended || (id && !matches(exchange, choice_prompt(choice), id))) continue;
            cancel(frontend, choice, QN_CANCEL_REASON_CLIENT_ASKED);
            count++;
        }
    }
    return count;
}

void frontend_fail(frontend_t *frontend, exchange_t *exchange, const http_error_t *error)
{
    exchange_fail(exchange, error);
    request_table_mark(frontend->table, exchange);
}

/* ---- streams ---- */

static void fail_by_failpoint(frontend_t *frontend)
{
    qn_daemon_fail(frontend->daemon, qn_fail(QN_ERR_INVALID, "a failpoint failed an answer"));
}

/* Sends what is in frontend->text. False: the client reads too slowly and was dropped; the exchange is gone. */
static bool write_stream(frontend_t *frontend, exchange_t *exchange, uint64_t now_ns)
{
    http_request_t *connection = exchange->connection;
    if ((!exchange->stream_begun && QN_FAILPOINT(QN_FAILPOINT_FRONTEND_FIRST_BYTE)) ||
        QN_FAILPOINT(QN_FAILPOINT_FRONTEND_EVENT))
        fail_by_failpoint(frontend);
    if (!exchange->stream_begun) {
        exchange->stream_begun = true;
        frontend_count_status(frontend, exchange->route, 200);
        http_request_begin_stream(connection, SSE_CONTENT_TYPE);
    }
    exchange->written_ns = now_ns;
    bool room = http_request_write(connection, frontend->text.data, frontend->text.bytes);
    frontend->text.bytes = 0;
    if (room) return true;
    http_request_drop(connection);
    frontend_count(frontend, FRONTEND_STAT_DISCONNECTS, 1);
    frontend_forget(frontend, exchange, QN_CANCEL_REASON_CLIENT_GONE);
    return false;
}

static void put_stream_metadata(frontend_t *frontend, const exchange_t *exchange)
{
    research_t metadata = research_of(frontend, exchange->route, exchange->received_ns, exchange, NULL);
    sse_begin(&frontend->text);
    json_writer_t writer = json_writer_on(&frontend->text);
    if (exchange->route == ROUTE_COMPLETIONS)
        writer = reply_openai_open_chunk(exchange, frontend->model.id, &frontend->text);
    else
        json_put_open(&writer, '{');
    json_put_key(&writer, "metadata");
    research_write(&metadata, &writer);
    json_put_close(&writer, '}');
    sse_end(&frontend->text);
}

/* Appends the events of everything that is new. */
static void put_events(frontend_t *frontend, exchange_t *exchange, uint64_t now_ns)
{
    reply_buffer_t *out = &frontend->text;
    for (uint32_t i = 0; i < exchange->choice_count; i++) {
        choice_t *choice = &exchange->choices[i];
        size_t before = out->bytes;
        sse_begin(out);
        bool shown = exchange->route == ROUTE_COMPLETIONS ? reply_openai_chunk(choice, frontend->model.id, out)
                                                          : reply_sglang_event(choice, now_ns, out);
        if (shown)
            sse_end(out);
        else
            out->bytes = before;
    }
}

static void count_finished(frontend_t *frontend, const exchange_t *exchange, uint64_t now_ns);

static void look_at_stream(frontend_t *frontend, exchange_t *exchange, uint64_t now_ns)
{
    put_events(frontend, exchange, now_ns);
    bool complete = exchange_is_complete(exchange);
    if (complete) {
        if (exchange->generation.include_usage) {
            sse_begin(&frontend->text);
            reply_openai_usage_chunk(exchange, frontend->model.id, &frontend->text);
            sse_end(&frontend->text);
        }
        if (exchange->research) put_stream_metadata(frontend, exchange);
        sse_done(&frontend->text);
    }
    if (frontend->text.bytes == 0 || !write_stream(frontend, exchange, now_ns) || !complete) return;
    count_finished(frontend, exchange, now_ns);
    http_request_end_stream(exchange->connection);
    close_exchange(frontend, exchange);
}

/* ---- looking ---- */

static void observe(frontend_t *frontend, unsigned row, uint64_t ns)
{
    qn_stats_observe_ns(qn_daemon_stats(frontend->daemon), QN_DAEMON_STATS_TABLE, row, ns);
}

/* Times tokens when they are seen here: what the client can see at best. */
static void time_tokens(frontend_t *frontend, exchange_t *exchange, uint64_t now_ns)
{
    for (uint32_t i = 0; i < exchange->choice_count; i++) {
        choice_t *choice = &exchange->choices[i];
        if (choice->tokens.count == choice->timed_tokens) continue;
        uint32_t new_tokens = choice->tokens.count - choice->timed_tokens;
        for (uint32_t j = 0; choice->last_ns && j < new_tokens; j++)
            observe(frontend, FRONTEND_STAT_INTER_TOKEN, (now_ns - choice->last_ns) / new_tokens);
        for (uint32_t j = 0; choice->last_ns && j < new_tokens; j++)
            qn_window_observe(&frontend->latency.inter_token, now_ns, (now_ns - choice->last_ns) / new_tokens);
        if (!choice->last_ns) latency_observe_way(&frontend->latency, choice, now_ns);
        if (exchange->first_token_ns == 0) {
            exchange->first_token_ns = now_ns;
            observe(frontend, FRONTEND_STAT_TTFT, now_ns - exchange->received_ns);
            qn_window_observe(&frontend->latency.first_token, now_ns, now_ns - exchange->received_ns);
        }
        choice->last_ns = now_ns;
        choice->timed_tokens = choice->tokens.count;
    }
}

static void count_finished(frontend_t *frontend, const exchange_t *exchange, uint64_t now_ns)
{
    uint32_t prompt = 0, generated = 0;
    for (uint32_t i = 0; i < exchange->choice_count; i++) {
        generated += exchange->choices[i].end.generated_tokens;
        if (i % exchange->generation.best_of == 0) prompt += exchange->choices[i].end.prompt_tokens;
    }
    frontend_count(frontend, FRONTEND_STAT_PROMPT_TOKENS, prompt);
    frontend_count(frontend, FRONTEND_STAT_GENERATED_TOKENS, generated);
    observe(frontend, FRONTEND_STAT_LATENCY, now_ns - exchange->received_ns);
    qn_window_observe(&frontend->latency.total, now_ns, now_ns - exchange->received_ns);
}

static void finish_failed(frontend_t *frontend, exchange_t *exchange, uint64_t now_ns)
{
    if (!exchange->stream_begun) {
        frontend_reply_error(frontend, exchange->connection, exchange->route, &exchange->error);
    } else {
        sse_begin(&frontend->text);
        http_error_write(&exchange->error, &frontend->text);
        sse_end(&frontend->text);
        sse_done(&frontend->text);
        if (!write_stream(frontend, exchange, now_ns)) return;
        http_request_end_stream(exchange->connection);
    }
    frontend_forget(frontend, exchange, QN_CANCEL_REASON_CLIENT_GONE);
}

static void check_choices(exchange_t *exchange)
{
    for (uint32_t i = 0; i < exchange->choice_count; i++) {
        if (!exchange->choices[i].ended || exchange->choices[i].end.finish != CHOICE_FAILED) continue;
        http_error_t error;
        http_error_set(&error, 500, NULL,
                       "The model could not run this request; the log of quintet-compute or "
                       "quintet-scheduler says why.");
        exchange_fail(exchange, &error);
    }
}

static void look(frontend_t *frontend, exchange_t *exchange, uint64_t now_ns)
{
    if (exchange->kind == EXCHANGE_GENERATION) check_choices(exchange);
    if (exchange->failed) {
        finish_failed(frontend, exchange, now_ns);
        return;
    }
    reply_buffer_t body = {0};
    if (exchange->kind == EXCHANGE_QUERY) {
        if (!exchange->answered) return;
        frontend_reply_data(frontend, exchange->connection, exchange->route, 200, exchange->research,
                            exchange->received_ns, exchange, "answered by the service that knows", &exchange->body);
        close_exchange(frontend, exchange);
        return;
    }
    time_tokens(frontend, exchange, now_ns);
    if (exchange->facts_missing > 0) return;
    if (exchange->generation.stream) {
        look_at_stream(frontend, exchange, now_ns);
        return;
    }
    if (!exchange_is_complete(exchange)) return;
    if (QN_FAILPOINT(QN_FAILPOINT_FRONTEND_FIRST_BYTE)) fail_by_failpoint(frontend);
    if (exchange->route == ROUTE_COMPLETIONS)
        reply_openai_write(exchange, frontend->model.id, &body);
    else
        reply_sglang_write(exchange, now_ns, &body);
    count_finished(frontend, exchange, now_ns);
    frontend_reply_data(frontend, exchange->connection, exchange->route, 200, exchange->research, exchange->received_ns,
                        exchange, NULL, &body);
    close_exchange(frontend, exchange);
}

bool frontend_look(frontend_t *frontend, uint64_t now_ns)
{
    bool any = false;
    exchange_t *exchange;
    while ((exchange = request_table_take_dirty(frontend->table))) {
        uint64_t before = qn_in_hand_take(frontend->hand, exchange->hand_key);
        look(frontend, exchange, now_ns);
        qn_in_hand_take(frontend->hand, before);
        any = true;
    }
    return any;
}

/* Downwards: an exchange that ends moves those behind it. */
void frontend_scan(frontend_t *frontend, uint64_t now_ns)
{
    for (uint32_t i = request_table_count(frontend->table); i-- > 0;) {
        exchange_t *exchange = request_table_at(frontend->table, i);
        if (now_ns >= exchange->deadline_ns) {
            http_error_t error;
            http_error_set(&error, 504, NULL, "The service that knows did not answer within %llu s; see GET /services.",
                           FRONTEND_QUERY_NS / 1000000000ull);
            frontend_fail(frontend, exchange, &error);
        }
        uint64_t heard_ns = exchange->written_ns ? exchange->written_ns : exchange->received_ns;
        if (!exchange->generation.stream || exchange->failed || now_ns - heard_ns < FRONTEND_PING_NS) continue;
        sse_ping(&frontend->text);
        write_stream(frontend, exchange, now_ns);
    }
}
