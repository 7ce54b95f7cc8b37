/* What is this?      The way of tokens from the ledger to the clients.
 * State owned:       per request, how far its client was told; the buffers of one message.
 * Must never:        tell a token twice to a client that took it, or an end before the last token.
 * Read next:         scheduler.c (who notes), handlers.c (who sends). */
#include "services/scheduler/delivery.h"

#include <stdlib.h>
#include <string.h>

#define CLIENTS_MAX (2 * QN_PEERS_MAX) /* refused in one round: the living, and some that just died */

typedef struct {
    uint32_t tokens;         /* generated tokens told */
    uint32_t scores;         /* prompt positions told, from 1 */
    uint32_t sending_tokens; /* what both will be when the message is sent */
    bool queued, held, ended, sending_end;
} told_t;

struct delivery {
    const ledger_t *ledger;
    told_t *told;    /* [requests_max] */
    uint32_t *queue; /* [requests_max] */
    uint32_t queue_count;
    request_client_t refused[CLIENTS_MAX];
    uint32_t refused_count;
    delivery_message_t message;
    delivery_token_t *tokens;
    request_alternative_t *top;
    const request_t **ends, **firsts;
};

qn_err_t delivery_create(const ledger_t *ledger, delivery_t **ret_delivery)
{
    delivery_t *delivery = calloc(1, sizeof *delivery);
    if (delivery == NULL) return qn_fail(QN_ERR_NO_MEMORY, "delivery: out of memory");
    uint32_t requests = ledger_requests_max(ledger);
    delivery->ledger = ledger;
    delivery->told = calloc(requests, sizeof *delivery->told);
    delivery->queue = calloc(requests, sizeof *delivery->queue);
    delivery->tokens = calloc(QN_TOKEN_BATCH_TOKENS_MAX, sizeof *delivery->tokens);
    delivery->top = calloc(QN_TOKEN_BATCH_TOP_MAX, sizeof *delivery->top);
    delivery->ends = calloc(QN_TOKEN_BATCH_ENDS_MAX, sizeof *delivery->ends);
    delivery->firsts = calloc(QN_TOKEN_BATCH_ENDS_MAX, sizeof *delivery->firsts);
    if (!delivery->told || !delivery->queue || !delivery->tokens || !delivery->top || !delivery->ends ||
        !delivery->firsts) {
        delivery_destroy(&delivery);
        return qn_fail(QN_ERR_NO_MEMORY, "delivery: no memory for %u requests", requests);
    }
    *ret_delivery = delivery;
    return QN_OK;
}

void delivery_destroy(delivery_t **delivery)
{
    if (*delivery == NULL) return;
    free((*delivery)->told);
    free((*delivery)->queue);
    free((*delivery)->tokens);
    free((*delivery)->top);
    free((*delivery)->ends);
    free((*delivery)->firsts);
    free(*delivery);
    *delivery = NULL;
}

/* ---- what is owed ---- */

static bool owes_scores(const told_t *told, const request_t *request)
{
    return request->prompt.logprobs != NULL && told->scores < request->prompt.known;
}

static bool owes(const told_t *told, const request_t *request)
{
    return owes_scores(told, request) || told->tokens < request->generated_tokens ||
           (request->finish != REQUEST_UNFINISHED && !told->ended);
}

void delivery_note(delivery_t *delivery, uint32_t index)
{
    told_t *told = &delivery->told[index];
    if (told->queued) return;
    told->queued = true;
    delivery->queue[delivery->queue_count++] = index;
}

void delivery_restart(delivery_t *delivery, uint32_t index)
{
    told_t *told = &delivery->told[index];
    told->tokens = 0;
    told->scores = 1;
    told->ended = false;
    delivery_note(delivery, index);
}

void delivery_hold(delivery_t *delivery, uint32_t index, bool held) { delivery->told[index].held = held; }

void delivery_drop(delivery_t *delivery, uint32_t index)
{
    told_t *told = &delivery->told[index];
    const request_t *request = ledger_at(delivery->ledger, index);
    told->tokens = request->generated_tokens;
    told->scores = request->prompt.known;
    told->ended = true;
    told->held = false;
}

bool delivery_done(const delivery_t *delivery, uint32_t index) { return delivery->told[index].ended; }

/* ---- messages ---- */

static bool same_client(request_client_t a, request_client_t b)
{
    return a.epoch == b.epoch && a.service == b.service && a.instance == b.instance;
}

static bool is_refused(const delivery_t *delivery, request_client_t client)
{
    for (uint32_t i = 0; i < delivery->refused_count; i++)
        if (same_client(delivery->refused[i], client)) return true;
    return delivery->refused_count == CLIENTS_MAX;
}

/* Takes entries out of the queue that owe nothing, or whose request has left the ledger. */
static void tidy_queue(delivery_t *delivery)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < delivery->queue_count; i++) {
        uint32_t index = delivery->queue[i];
        const request_t *request = ledger_at(delivery->ledger, index);
        if (request != NULL && owes(&delivery->told[index], request))
            delivery->queue[kept++] = index;
        else
            delivery->told[index].queued = false;
    }
    delivery->queue_count = kept;
}

void delivery_begin(delivery_t *delivery)
{
    delivery->refused_count = 0;
    tidy_queue(delivery);
}

/* A row of positions with equally many alternatives, as long as a message takes. */
static void fill_scores(delivery_t *delivery, const request_t *request)
{
    delivery_message_t *message = &delivery->message;
    const request_prompt_scores_t *prompt = &request->prompt;
    uint32_t begin = delivery->told[request->index].scores;
    uint8_t top_count = prompt->top_counts[begin];
    uint32_t end = begin;
    while (end < prompt->known && end - begin < QN_TOKEN_BATCH_TOKENS_MAX && prompt->top_counts[end] == top_count)
        end++;
    message->scores = request;
    message->scores_begin = begin;
    message->scores_end = end;
    message->scores_top_count = top_count;
}

static bool add_token(delivery_t *delivery, const request_t *request, uint32_t position)
{
    delivery_message_t *message = &delivery->message;
    uint8_t top_count = request->top_counts != NULL ? request->top_counts[position] : 0;
    if (message->token_count == QN_TOKEN_BATCH_TOKENS_MAX || message->top_count + top_count > QN_TOKEN_BATCH_TOP_MAX)
        return false;
    delivery->tokens[message->token_count++] = (delivery_token_t){
        .request = request->id,
        .position = position,
        .id = request->ids[request->prompt_tokens + position],
        .logprob = request->logprobs[position],
        .top_count = top_count,
    };
    if (top_count > 0)
        memcpy(delivery->top + message->top_count, request->top + (size_t)position * request_alternatives(request),
               top_count * sizeof *request->top);
    message->top_count += top_count;
    return true;
}

static void fill_request(delivery_t *delivery, const request_t *request)
{
    delivery_message_t *message = &delivery->message;
    told_t *told = &delivery->told[request->index];
    uint32_t position = told->tokens;
    bool room = message->first_count < QN_TOKEN_BATCH_ENDS_MAX && message->end_count < QN_TOKEN_BATCH_ENDS_MAX;
    while (room && position < request->generated_tokens && add_token(delivery, request, position)) {
        if (position == 0) delivery->firsts[message->first_count++] = request;
        position++;
    }
    told->sending_tokens = position;
    told->sending_end = room && position == request->generated_tokens && request->finish != REQUEST_UNFINISHED;
    if (told->sending_end) delivery->ends[message->end_count++] = request;
}

/* The queue's first request whose client takes messages; it decides whose message this is. */
static const request_t *choose(const delivery_t *delivery)
{
    for (uint32_t i = 0; i < delivery->queue_count; i++) {
        const request_t *request = ledger_at(delivery->ledger, delivery->queue[i]);
        const told_t *told = &delivery->told[delivery->queue[i]];
        if (!told->held && owes(told, request) && !is_refused(delivery, request->client)) return request;
    }
    return NULL;
}

bool delivery_next(delivery_t *delivery, delivery_message_t *ret_message)
{
    const request_t *first = choose(delivery);
    if (first == NULL) return false;
    delivery->message = (delivery_message_t){
        .client = first->client,
        .tokens = delivery->tokens,
        .top = delivery->top,
        .ends = delivery->ends,
        .firsts = delivery->firsts,
    };
    if (owes_scores(&delivery->told[first->index], first)) {
        fill_scores(delivery, first);
    } else {
        for (uint32_t i = 0; i < delivery->queue_count; i++) {
            const request_t *request = ledger_at(delivery->ledger, delivery->queue[i]);
            told_t *told = &delivery->told[request->index];
            told->sending_tokens = told->tokens;
            told->sending_end = false;
            if (!told->held && same_client(request->client, first->client) && !owes_scores(told, request) &&
                !told->ended)
                fill_request(delivery, request);
        }
    }
    *ret_message = delivery->message;
    return true;
}

void delivery_sent(delivery_t *delivery)
{
    const delivery_message_t *message = &delivery->message;
    if (message->scores != NULL) {
        delivery->told[message->scores->index].scores = message->scores_end;
    } else {
        for (uint32_t i = 0; i < delivery->queue_count; i++) {
            told_t *told = &delivery->told[delivery->queue[i]];
            told->tokens = told->sending_tokens;
            told->ended = told->ended || told->sending_end;
        }
    }
    tidy_queue(delivery);
}

void delivery_refused(delivery_t *delivery)
{
    if (delivery->refused_count < CLIENTS_MAX) delivery->refused[delivery->refused_count++] = delivery->message.client;
}

bool delivery_pending(const delivery_t *delivery)
{
    for (uint32_t i = 0; i < delivery->queue_count; i++)
        if (!delivery->told[delivery->queue[i]].held) return true;
    return false;
}
