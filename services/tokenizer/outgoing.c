/* What is this?      What goes out: the deltas of one turn, a box per frontend; replies; what the scheduler is told.
 * State owned:       the boxes; their buffers are kept from turn to turn.
 * Must never:        exceed the bounds of a message, or know how text is made.
 * Read next:         handlers.c, schemas/text_delta.fbs */
#include "services/tokenizer/outgoing.h"

#include <inttypes.h>
#include <string.h>
#include <stdlib.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/watch/log.h"
#include "services/tokenizer/decode/token_bytes.h"
#include "qn_limits.h"

struct tokenizer_outgoing {
    outgoing_box_t boxes[QN_PEERS_MAX];
};

tokenizer_outgoing_t *tokenizer_outgoing_create(void)
{
    tokenizer_outgoing_t *outgoing = calloc(1, sizeof *outgoing);
    QN_ASSERT(outgoing);
    return outgoing;
}

static void box_empty(outgoing_box_t *box)
{
    text_buffer_t *parts[] = {&box->deltas, &box->text,      &box->tokens, &box->pieces,
                              &box->ends,   &box->timelines, &box->reads};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        parts[i]->length = 0;
}

static void box_free(outgoing_box_t *box)
{
    text_buffer_t *parts[] = {&box->deltas, &box->text,      &box->tokens, &box->pieces,
                              &box->ends,   &box->timelines, &box->reads};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        text_buffer_fini(parts[i]);
    box->frontend = (qn_peer_t){0};
}

void tokenizer_outgoing_destroy(tokenizer_outgoing_t **outgoing)
{
    if (!*outgoing) return;
    for (size_t i = 0; i < QN_PEERS_MAX; i++)
        box_free(&(*outgoing)->boxes[i]);
    free(*outgoing);
    *outgoing = NULL;
}

static outgoing_box_t *outgoing_find(tokenizer_outgoing_t *outgoing, qn_peer_t frontend)
{
    outgoing_box_t *unused = NULL;
    for (size_t i = 0; i < QN_PEERS_MAX; i++) {
        outgoing_box_t *box = &outgoing->boxes[i];
        if (qn_peer_equal(box->frontend, frontend)) return box;
        if (box->frontend.epoch == 0 && !unused) unused = box;
    }
    QN_ASSERT(unused); /* a box per peer at most, freed when the peer is gone */
    unused->frontend = frontend;
    return unused;
}

static qn_send_outcome_t box_send(tokenizer_service_t *service, const outgoing_box_t *box)
{
    qn_text_delta_t delta = {
        .deltas = (const void *)box->deltas.bytes,
        .deltas_count = (uint32_t)(box->deltas.length / sizeof(qn_delta_t)),
        .text = {.data = box->text.length ? (const char *)box->text.bytes : "", .bytes = (uint32_t)box->text.length},
        .tokens = (const void *)box->tokens.bytes,
        .tokens_count = (uint32_t)(box->tokens.length / sizeof(qn_text_token_t)),
        .pieces = box->pieces.bytes,
        .pieces_count = (uint32_t)box->pieces.length,
        .ends = (const void *)box->ends.bytes,
        .ends_count = (uint32_t)(box->ends.length / sizeof(qn_sequence_end_t)),
        .timelines = (const void *)box->timelines.bytes,
        .timelines_count = (uint32_t)(box->timelines.length / sizeof(qn_timeline_t)),
        .reads = (const void *)box->reads.bytes,
        .reads_count = (uint32_t)(box->reads.length / sizeof(qn_sequence_read_t)),
    };
    uint64_t now_ns = qn_clock_now_ns();
    for (uint32_t i = 0; i < delta.timelines_count; i++)
        ((qn_timeline_t *)box->timelines.bytes)[i].detokenized_ns = now_ns;
    return qn_daemon_send(service->daemon, box->frontend, QN_MESSAGE_TEXT_DELTA, &delta);
}

bool tokenizer_outgoing_flush(tokenizer_service_t *service)
{
    bool all = true;
    for (size_t i = 0; i < QN_PEERS_MAX; i++) {
        outgoing_box_t *box = &service->outgoing->boxes[i];
        if (box->frontend.epoch == 0 || (box->deltas.length == 0 && box->ends.length == 0)) continue;
        if (box_send(service, box) == QN_SEND_FULL)
            all = false;
        else
            box_empty(box); /* sent, or nobody is there to read it; after QN_SEND_INVALID the frontend sees a gap */
    }
    return all;
}

static bool box_is_full(const outgoing_box_t *box)
{
    size_t bytes = box->deltas.length + box->text.length + box->tokens.length + box->pieces.length + box->ends.length +
                   box->timelines.length;
    return bytes > QN_FRAME_BYTES_MAX / 2 || /* one token with its alternatives adds less than the other half */
           box->timelines.length / sizeof(qn_timeline_t) >= QN_TEXT_DELTA_TIMELINES_MAX ||
           box->deltas.length / sizeof(qn_delta_t) >= QN_TEXT_DELTA_DELTAS_MAX ||
           box->ends.length / sizeof(qn_sequence_end_t) >= QN_TEXT_DELTA_ENDS_MAX ||
           box->tokens.length / sizeof(qn_text_token_t) + QN_ALTERNATIVES_MAX + 1 > QN_TEXT_DELTA_TOKENS_MAX ||
           box->text.length > QN_TEXT_BYTES_MAX / 2 || box->pieces.length > QN_TEXT_BYTES_MAX / 2;
}

outgoing_box_t *tokenizer_outgoing_box(tokenizer_service_t *service, qn_peer_t frontend)
{
    outgoing_box_t *box = outgoing_find(service->outgoing, frontend);
    if (!box_is_full(box)) return box;
    if (box_send(service, box) == QN_SEND_FULL)
        qn_log_error("frontend epoch %u takes nothing any more: its text is dropped", frontend.epoch);
    box_empty(box);
    return box;
}

void tokenizer_outgoing_forget(tokenizer_outgoing_t *outgoing, qn_peer_t frontend)
{
    for (size_t i = 0; i < QN_PEERS_MAX; i++)
        if (qn_peer_equal(outgoing->boxes[i].frontend, frontend)) box_free(&outgoing->boxes[i]);
}

/* ---- replies --------------------------------------------------------------------------------------------------- */

uint16_t tokenizer_add_piece(const tokenizer_service_t *service, text_buffer_t *pieces, uint32_t id)
{
    if (!service->tokenizer) return 0;
    size_t before = pieces->length;
    tokenizer_token_bytes(service->tokenizer, id, pieces);
    if (pieces->length - before > UINT16_MAX) pieces->length = before + UINT16_MAX;
    return (uint16_t)(pieces->length - before);
}

/* Ids, strings and places may each be within bounds and together beyond those of a message. */
static void send_answer(tokenizer_service_t *service, const text_job_t *job, qn_message_type_t type,
                        const void *message, const char *param)
{
    switch (qn_daemon_send(service->daemon, job->from, type, message)) {
    case QN_SEND_OK:
    case QN_SEND_GONE: break;
    case QN_SEND_FULL:
        qn_log_warning("frontend epoch %u is behind: a %s reply was dropped", job->from.epoch, qn_message_name(type));
        break;
    case QN_SEND_INVALID:
        qn_daemon_refuse(service->daemon, job->from, job->request, 413, param,
                         "the answer is larger than one message may be; send less at a time");
        break;
    }
}

static void send_tokenized(tokenizer_service_t *service, const text_job_t *job)
{
    qn_tokenized_t reply = {.head.request = job->request,
                            .ids = job->tokens.ids,
                            .ids_count = (uint32_t)job->tokens.count,
                            .piece_bytes = (const void *)job->lengths.bytes,
                            .piece_bytes_count = (uint32_t)(job->lengths.length / sizeof(uint16_t)),
                            .pieces = job->pieces.bytes,
                            .pieces_count = (uint32_t)job->pieces.length,
                            .offsets = (const void *)job->offsets.bytes,
                            .offsets_count = (uint32_t)(job->offsets.length / sizeof(uint32_t))};
    send_answer(service, job, QN_MESSAGE_TOKENIZED, &reply, "prompt");
}

static void send_detokenized(tokenizer_service_t *service, const text_job_t *job)
{
    qn_detokenized_t reply = {.head.request = job->request,
                              .text = {.data = job->decoded.length ? (const char *)job->decoded.bytes : "",
                                       .bytes = (uint32_t)job->decoded.length},
                              .offsets = (const void *)job->offsets.bytes,
                              .offsets_count = (uint32_t)(job->offsets.length / sizeof(uint32_t))};
    send_answer(service, job, QN_MESSAGE_DETOKENIZED, &reply, "tokens");
}

void tokenizer_send_reply(tokenizer_service_t *service, const text_job_t *job)
{
    if (job->kind == TEXT_JOB_TOKENIZE)
        send_tokenized(service, job);
    else
        send_detokenized(service, job);
}

/* The scheduler gives ids; their bytes are added on the way to the frontend. Rows [begin, end) of the message; those
 * whose pieces would not fit into one message go in halves. */
static void send_rows(tokenizer_service_t *service, const request_t *owner, const qn_prompt_logprobs_t *all,
                      uint32_t begin, uint32_t end)
{
    uint32_t top = all->top_per_token, rows = end - begin;
    qn_prompt_logprobs_t part = {
        .head.request = all->head.request,
        .position = all->position + begin,
        .ids = all->ids + begin,
        .ids_count = rows,
        .logprobs = all->logprobs + begin,
        .logprobs_count = rows,
        .top_per_token = all->top_per_token,
        .top = top ? all->top + (size_t)begin * top : NULL,
        .top_count = rows * top,
    };
    text_buffer_t lengths = {0};
    service->text.length = 0;
    for (uint32_t i = 0; owner->want_pieces && i < part.ids_count + part.top_count; i++) {
        uint32_t id = i < rows ? part.ids[i] : part.top[i - rows].id;
        uint16_t piece_bytes = tokenizer_add_piece(service, &service->text, id);
        text_buffer_append(&lengths, &piece_bytes, sizeof piece_bytes);
        if (service->text.length <= QN_TEXT_BYTES_MAX || rows == 1) continue;
        text_buffer_fini(&lengths);
        send_rows(service, owner, all, begin, begin + rows / 2);
        send_rows(service, owner, all, begin + rows / 2, end);
        return;
    }
    part.piece_bytes = (const void *)lengths.bytes;
    part.piece_bytes_count = (uint32_t)(lengths.length / sizeof(uint16_t));
    part.pieces = service->text.bytes;
    part.pieces_count = (uint32_t)service->text.length;
    if (qn_daemon_send(service->daemon, owner->frontend, QN_MESSAGE_PROMPT_LOGPROBS, &part) == QN_SEND_FULL)
        qn_log_warning("frontend epoch %u is behind: prompt log-probabilities were dropped", owner->frontend.epoch);
    text_buffer_fini(&lengths);
}

void tokenizer_send_prompt_logprobs(tokenizer_service_t *service, const request_t *request,
                                    const qn_prompt_logprobs_t *scores)
{
    send_rows(service, request, scores, 0, scores->ids_count);
}

/* ---- to the scheduler ------------------------------------------------------------------------------------------ */

qn_send_outcome_t tokenizer_send_submit(tokenizer_service_t *service, const qn_submit_t *submit)
{
    qn_peer_t scheduler = qn_daemon_peer(service->daemon, QN_SERVICE_SCHEDULER);
    return scheduler.epoch ? qn_daemon_send(service->daemon, scheduler, QN_MESSAGE_SUBMIT, submit) : QN_SEND_GONE;
}

void tokenizer_send_cancel(tokenizer_service_t *service, uint64_t request, qn_cancel_reason_t reason)
{
    for (uint32_t i = 0; i < service->cancel_count; i++)
        if (service->cancels[i].request == request) return;
    if (service->cancel_count == TOKENIZER_CANCELS_MAX) {
        qn_log_warning("request %" PRIu64 " could not be cancelled: the scheduler takes nothing", request);
        return;
    }
    service->cancels[service->cancel_count++] = (tokenizer_cancel_t){.request = request, .reason = reason};
}

bool tokenizer_send_cancels(tokenizer_service_t *service)
{
    qn_peer_t scheduler = qn_daemon_peer(service->daemon, QN_SERVICE_SCHEDULER);
    uint32_t sent = 0;
    qn_send_outcome_t outcome = QN_SEND_OK;
    for (; scheduler.epoch && sent < service->cancel_count; sent++) {
        qn_cancel_t cancel = {.head.request = service->cancels[sent].request, .reason = service->cancels[sent].reason};
        outcome = qn_daemon_send(service->daemon, scheduler, QN_MESSAGE_CANCEL, &cancel);
        if (outcome != QN_SEND_OK) break;
    }
    service->cancel_count -= sent;
    memmove(service->cancels, service->cancels + sent, service->cancel_count * sizeof *service->cancels);
    return outcome != QN_SEND_FULL;
}
