/* What is this?      What the loop does not do itself: large bodies, and replies with very many tokens.
 * State owned:       frontend_t.bodies, the bodies being parsed; what the worker holds.
 * Must never:        touch the frontend from the worker's thread; answer twice.
 * Read next:         worker.h; routes.c, which acts on what was parsed. */
#include "services/frontend/bodies.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/watch/log.h"
#include "services/frontend/frontend.h"
#include "services/frontend/request/json_fields.h"

#define TRIM_BYTES (256u << 10)      /* a larger body leaves a heap worth giving back */
#define WARN_AGAIN_NS 10000000000ull /* of unknown fields in the log */

/* ---- bodies ---- */

static void run_body(work_t *work)
{
    body_t *body = (body_t *)work;
    const char *text = body->text.bytes ? body->text.data : "";
    size_t bytes = body->text.bytes;
    qn_in_hand_take_beside(body->beside, body->hand_key);
    if (router_generates(body->route)) {
        generation_api_t api = body->route == ROUTE_COMPLETIONS      ? GENERATION_COMPLETIONS
                               : body->route == ROUTE_BATCH_GENERATE ? GENERATION_BATCH
                                                                     : GENERATION_GENERATE;
        body->good = generation_parse(api, text, bytes, &body->limits, &body->generation, &body->error);
    } else if (body->method.method) {
        body->good = method_body_parse(&body->method, text, bytes, &body->error);
    } else if (body->route > ROUTE_FORMS) {
        body->json = bytes ? json_fields_parse(text, bytes, &body->error) : json_object();
        body->good = body->json != NULL;
    } else {
        body->good = query_body_parse(body->route, text, bytes, &body->limits, &body->query, &body->error);
    }
    qn_in_hand_take_beside(body->beside, 0);
    reply_buffer_fini(&body->text);
    if (bytes > TRIM_BYTES) malloc_trim(0);
}

static void body_free(frontend_t *frontend, body_t *body)
{
    if (body->previous)
        body->previous->next = body->next;
    else
        frontend->bodies = body->next;
    if (body->next) body->next->previous = body->previous;
    frontend->waiting_bytes -= body->waiting_bytes;
    reply_buffer_fini(&body->text);
    generation_fini(&body->generation);
    query_body_fini(&body->query);
    method_body_fini(&body->method);
    json_decref(body->json);
    free(body);
}

static void finish_body(frontend_t *frontend, body_t *body)
{
    if (body->request) {
        http_request_set_user(body->request, NULL);
        frontend_body(frontend, body);
    }
    body_free(frontend, body);
}

void frontend_take_body(frontend_t *frontend, http_request_t *request, route_t route, const qn_method_t *method,
                        const generation_limits_t *limits)
{
    body_t *body = calloc(1, sizeof *body);
    QN_ASSERT(body != NULL);
    *body = (body_t){.work.run = run_body, .request = request, .route = route, .limits = *limits};
    body->method.method = method;
    body->hand_key = qn_in_hand_now(frontend->hand);
    snprintf(body->model, sizeof body->model, "%s", limits->model);
    if (limits->eos_id_count) memcpy(body->eos_ids, limits->eos_ids, limits->eos_id_count * sizeof *limits->eos_ids);
    body->limits.model = body->model; /* what memory says of the model may change meanwhile */
    body->limits.eos_ids = body->eos_ids;
    body->next = frontend->bodies;
    if (body->next) body->next->previous = body;
    frontend->bodies = body;
    http_request_take_body(request, &body->text);
    if (frontend->waiting_bytes > BODIES_WAITING_BYTES) {
        http_error_set(&body->error, 503, NULL, "Too many large bodies wait to be read. Try again.");
        finish_body(frontend, body);
        return;
    }
    if (body->text.bytes > BODY_INLINE_BYTES) {
        body->beside = frontend->hand;
        body->waiting_bytes = body->text.bytes;
        frontend->waiting_bytes += body->waiting_bytes;
        worker_give(frontend->worker, &body->work);
        return;
    }
    run_body(&body->work);
    finish_body(frontend, body);
}

bool frontend_forget_body(frontend_t *frontend, const http_request_t *request)
{
    for (body_t *body = frontend->bodies; body; body = body->next) {
        if (body->request != request) continue;
        body->request = NULL; /* the worker may have it; what it finds is thrown away */
        return true;
    }
    return false;
}

/* ---- replies with very many tokens ---- */

typedef struct {
    work_t work;
    uint64_t id;          /* of the query */
    uint64_t hand_key;    /* of its body, see in_hand.h */
    qn_in_hand_t *beside; /* borrowed */
    bool with_pieces;
    uint32_t max_model_len, id_count;
    uint32_t *ids;
    uint16_t *piece_bytes; /* NULL: no pieces */
    char *pieces;
    reply_buffer_t body;
} token_reply_t;

static void run_reply(work_t *work)
{
    token_reply_t *reply = (token_reply_t *)work;
    token_log_t tokens = {0};
    size_t offset = 0;
    qn_in_hand_take_beside(reply->beside, reply->hand_key);
    for (uint32_t i = 0; i < reply->id_count; i++) {
        uint16_t bytes = reply->piece_bytes ? reply->piece_bytes[i] : 0;
        token_log_add(&tokens, reply->ids[i], 0, 0, bytes ? (const uint8_t *)reply->pieces + offset : NULL, bytes);
        offset += bytes;
    }
    reply_query_tokens(&tokens, reply->max_model_len, reply->with_pieces, &reply->body);
    token_log_fini(&tokens);
    qn_in_hand_take_beside(reply->beside, 0);
    malloc_trim(0);
}

static void reply_free(token_reply_t *reply)
{
    free(reply->ids);
    free(reply->piece_bytes);
    free(reply->pieces);
    reply_buffer_fini(&reply->body);
    free(reply);
}

static void *copy_of(const void *data, size_t bytes)
{
    if (bytes == 0) return NULL;
    void *copy = malloc(bytes);
    QN_ASSERT(copy != NULL);
    return memcpy(copy, data, bytes);
}

void frontend_write_tokens(frontend_t *frontend, const qn_tokenized_t *message, bool with_pieces)
{
    reference_t found = request_table_find(frontend->table, message->head.request);
    token_reply_t *reply = calloc(1, sizeof *reply);
    QN_ASSERT(reply != NULL);
    *reply = (token_reply_t){
        .work.run = run_reply,
        .id = message->head.request,
        .hand_key = found.exchange ? found.exchange->hand_key : 0,
        .beside = frontend->hand,
        .with_pieces = with_pieces,
        .max_model_len = frontend->model.max_model_len,
        .id_count = message->ids_count,
        .ids = copy_of(message->ids, message->ids_count * sizeof *message->ids),
        .piece_bytes = copy_of(message->piece_bytes, message->piece_bytes_count * sizeof *message->piece_bytes),
        .pieces = copy_of(message->pieces, message->pieces_count),
    };
    worker_give(frontend->worker, &reply->work);
}

static void finish_reply(frontend_t *frontend, token_reply_t *reply)
{
    reference_t found = request_table_find(frontend->table, reply->id); /* the client may have left */
    if (found.kind == REFERENCE_QUERY && !found.exchange->answered) {
        found.exchange->body = reply->body;
        reply->body = (reply_buffer_t){0};
        found.exchange->answered = true;
        request_table_mark(frontend->table, found.exchange);
    }
    reply_free(reply);
}

/* ---- what is done ---- */

void frontend_take_work(frontend_t *frontend)
{
    for (work_t *work; (work = worker_take(frontend->worker));) {
        uint64_t before = qn_in_hand_now(frontend->hand);
        if (work->run == run_body) {
            qn_in_hand_take(frontend->hand, ((body_t *)work)->hand_key);
            finish_body(frontend, (body_t *)work);
        } else {
            qn_in_hand_take(frontend->hand, ((token_reply_t *)work)->hand_key);
            finish_reply(frontend, (token_reply_t *)work);
        }
        qn_in_hand_take(frontend->hand, before);
    }
}

void frontend_end_bodies(frontend_t *frontend, const http_error_t *error)
{
    worker_stop(frontend->worker);
    for (work_t *work; (work = worker_take(frontend->worker));) {
        if (work->run == run_reply) reply_free((token_reply_t *)work);
    }
    for (body_t *next, *body = frontend->bodies; body; body = next) {
        next = body->next;
        if (body->request) frontend_reply_error(frontend, body->request, body->route, error);
        body_free(frontend, body);
    }
}

/* ---- unknown fields ---- */

void frontend_warn_unknown(frontend_t *frontend, http_request_t *request, route_t route,
                           const unknown_fields_t *unknown)
{
    if (unknown->count == 0) return;
    char text[sizeof unknown->names + 32];
    snprintf(text, sizeof text, "unknown fields ignored: %s", unknown->names);
    http_request_add_header(request, "x-quintet-warning", text);
    frontend_count(frontend, FRONTEND_STAT_UNKNOWN_FIELDS, unknown->count);
    uint64_t now_ns = qn_clock_now_ns();
    if (frontend->warned_ns && now_ns - frontend->warned_ns < WARN_AGAIN_NS) {
        frontend->warned_silent++;
        return;
    }
    qn_log_warning("%s: %s (%llu more requests with such fields since the last line)", router_name(route), text,
                   (unsigned long long)frontend->warned_silent);
    frontend->warned_ns = now_ns;
    frontend->warned_silent = 0;
}
