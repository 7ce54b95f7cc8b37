/* What is this?      Rings of ended requests and of restarts.
 * State owned:       the rings.
 * Must never:        keep a prompt or an answer.
 * Read next:         request_log.h, research/debug_requests.c (who shows them). */
#include "services/frontend/request/request_log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

#define SERVICES_MAX 16

struct request_log {
    logged_request_t requests[REQUEST_LOG_MAX];
    logged_restart_t restarts[REQUEST_LOG_RESTARTS_MAX];
    uint64_t request_count, restart_count; /* so far */
    uint32_t epochs[SERVICES_MAX];         /* last seen of each service; 0: none */
};

request_log_t *request_log_create(void)
{
    request_log_t *log = calloc(1, sizeof *log);
    QN_ASSERT(log != NULL);
    return log;
}

void request_log_destroy(request_log_t **log)
{
    free(*log);
    *log = NULL;
}

/* ---- what happens ---- */

static void describe_choice(const choice_t *choice, logged_choice_t *ret_choice)
{
    *ret_choice = (logged_choice_t){.request = choice->request,
                                    .last_ns = choice->last_ns,
                                    .tokens = choice->tokens.count,
                                    .ended = choice->ended,
                                    .end = choice->end};
    memcpy(ret_choice->stages, choice->stages, sizeof ret_choice->stages);
}

static void describe(const exchange_t *exchange, logged_request_t *ret_request)
{
    *ret_request = (logged_request_t){.route = exchange->route,
                                      .stream = exchange->generation.stream,
                                      .live = true,
                                      .created_s = exchange->created_s,
                                      .received_ns = exchange->received_ns,
                                      .first_token_ns = exchange->first_token_ns,
                                      .choice_count = exchange->choice_count};
    memcpy(ret_request->client_id, exchange->client_id, sizeof ret_request->client_id);
    if (exchange->failed) ret_request->error = exchange->error;
    uint32_t kept = exchange->choice_count;
    if (kept > REQUEST_LOG_CHOICES_MAX) kept = REQUEST_LOG_CHOICES_MAX;
    for (uint32_t i = 0; i < kept; i++)
        describe_choice(&exchange->choices[i], &ret_request->choices[i]);
    ret_request->kept_count = kept;
}

void request_log_end(request_log_t *log, const exchange_t *exchange, uint64_t now_ns)
{
    if (!log || exchange->kind != EXCHANGE_GENERATION) return;
    logged_request_t *request = &log->requests[log->request_count++ % REQUEST_LOG_MAX];
    describe(exchange, request);
    request->live = false;
    request->ended_ns = now_ns;
}

void request_log_meet(request_log_t *log, uint8_t service, uint32_t epoch, uint64_t now_ns)
{
    QN_ASSERT(service < SERVICES_MAX);
    uint32_t before = log->epochs[service];
    log->epochs[service] = epoch;
    if (before == 0 || before == epoch) return;
    log->restarts[log->restart_count++ % REQUEST_LOG_RESTARTS_MAX] =
        (logged_restart_t){.time_ns = now_ns, .service = service, .epoch = epoch};
}

/* ---- questions ---- */

/* The id of a reply names the request, too. */
static const char *bare_id(const char *id)
{
    static const char *const prefixes[] = {"cmpl-", "chatcmpl-"};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (strncmp(id, prefixes[i], strlen(prefixes[i])) == 0) return id + strlen(prefixes[i]);
    return id;
}

static bool is_named(const char *client_id, const char *id)
{
    return client_id[0] && (strcmp(client_id, id) == 0 || strcmp(client_id, bare_id(id)) == 0);
}

bool request_log_find(const request_log_t *log, const request_table_t *table, const char *id,
                      logged_request_t *ret_request)
{
    for (uint32_t i = request_table_count(table); i-- > 0;) {
        const exchange_t *exchange = request_table_at(table, i);
        if (exchange->kind != EXCHANGE_GENERATION || !is_named(exchange->client_id, id)) continue;
        describe(exchange, ret_request);
        return true;
    }
    uint64_t kept = log->request_count < REQUEST_LOG_MAX ? log->request_count : REQUEST_LOG_MAX;
    for (uint64_t i = 1; i <= kept; i++) {
        const logged_request_t *request = &log->requests[(log->request_count - i) % REQUEST_LOG_MAX];
        if (!is_named(request->client_id, id)) continue;
        *ret_request = *request;
        return true;
    }
    return false;
}

const logged_restart_t *request_log_restart(const request_log_t *log, uint32_t index)
{
    uint64_t kept = log->restart_count < REQUEST_LOG_RESTARTS_MAX ? log->restart_count : REQUEST_LOG_RESTARTS_MAX;
    return index < kept ? &log->restarts[(log->restart_count - kept + index) % REQUEST_LOG_RESTARTS_MAX] : NULL;
}
