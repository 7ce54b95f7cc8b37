/* What is this?      The deltas of one turn, a box per frontend.
 * State owned:       the boxes; their buffers are kept from turn to turn.
 * Must never:        exceed the bounds of a TextDelta, or know how text is made.
 * Read next:         handlers.c, schemas/text_delta.fbs */
#include "services/tokenizer/outgoing.h"

#include <stdlib.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/watch/log.h"
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
    text_buffer_t *parts[] = {&box->deltas, &box->text, &box->tokens, &box->pieces, &box->ends, &box->timelines};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        parts[i]->length = 0;
}

static void box_free(outgoing_box_t *box)
{
    text_buffer_t *parts[] = {&box->deltas, &box->text, &box->tokens, &box->pieces, &box->ends, &box->timelines};
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
            box_empty(box); /* sent, or nobody is there to read it */
    }
    return all;
}

static bool box_is_full(const outgoing_box_t *box)
{
    return box->deltas.length / sizeof(qn_delta_t) >= QN_TEXT_DELTA_DELTAS_MAX ||
           box->ends.length / sizeof(qn_sequence_end_t) >= QN_TEXT_DELTA_ENDS_MAX ||
           box->tokens.length / sizeof(qn_text_token_t) + QN_TOP_LOGPROBS_MAX + 1 > QN_TEXT_DELTA_TOKENS_MAX ||
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
