/* What is this?      The translation between messages and the tokenizer's nouns; the only file that knows both.
 * State owned:       per request, what a new scheduler must hear again.
 * Must never:        tokenise or detokenise itself; send text twice.
 * Read next:         streams.h, outgoing.h, schemas/encode.fbs, schemas/text_delta.fbs */
#include "services/tokenizer/handlers.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/failpoint.h"
#include "common/limits.h"
#include "common/watch/log.h"
#include "services/tokenizer/outgoing.h"
#include "services/tokenizer/decode/token_bytes.h"

/* Ids at the end of the prompt that place the first generated piece (spaces, byte runs); vLLM takes 5. */
#define CONTEXT_TOKENS 6

/* What belongs to one request beside its stream. */
typedef struct {
    qn_peer_t frontend;
    bool want_pieces, skip_special;
    bool cancelled; /* a new scheduler has to hear of that too */
    qn_cancel_reason_t cancel_reason;
    qn_submit_t submit; /* ids, stop ids, bias and salt are owned copies */
    char *salt;
} owner_t;

static void count(tokenizer_service_t *service, unsigned row, uint64_t amount)
{
    qn_stats_add(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, row, amount);
}

static void observe(tokenizer_service_t *service, unsigned row, uint64_t begin_ns)
{
    qn_stats_observe_ns(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, row, qn_clock_now_ns() - begin_ns);
}

/* Bytes a token stands for when it is alone. */
static uint16_t add_piece(const tokenizer_service_t *service, text_buffer_t *pieces, uint32_t id)
{
    if (!service->tokenizer) return 0;
    size_t before = pieces->length;
    tokenizer_token_bytes(service->tokenizer, id, pieces);
    return (uint16_t)(pieces->length - before);
}

/* ---- requests ------------------------------------------------------------------------------------------------- */

static void *copy_of(const void *data, size_t bytes)
{
    if (bytes == 0) return NULL;
    void *copy = malloc(bytes);
    QN_ASSERT(copy);
    return memcpy(copy, data, bytes);
}

static void owner_free(owner_t *owner)
{
    free((void *)owner->submit.prompt_ids);
    free((void *)owner->submit.stop_ids);
    free((void *)owner->submit.bias);
    free(owner->salt);
    free(owner);
}

static void request_close(tokenizer_service_t *service, stream_t *stream)
{
    owner_free(stream->owner);
    streams_close(service->streams, stream);
}

void tokenizer_close_all(tokenizer_service_t *service)
{
    size_t cursor = 0;
    for (stream_t *stream; (stream = streams_next(service->streams, &cursor)); cursor = 0)
        request_close(service, stream);
}

static void refuse(tokenizer_service_t *service, qn_peer_t to, uint64_t request, uint16_t status, const char *param,
                   const char *text)
{
    qn_daemon_refuse(service->daemon, to, request, status, param, text);
}

/* Ids of the prompt in service->tokens; false: refused already. */
static bool encode_prompt(tokenizer_service_t *service, qn_peer_t from, const qn_encode_t *encode)
{
    uint64_t request = encode->head.request, begin_ns = qn_clock_now_ns();
    tokenizer_tokens_t *tokens = &service->tokens;
    if ((encode->prompt.data != NULL) == (encode->prompt_ids != NULL)) {
        refuse(service, from, request, 400, "prompt", "give the prompt as text or as token ids, one of them");
        return false;
    }
    if (encode->prompt_ids) {
        tokens->count = 0;
        token_list_reserve(tokens, encode->prompt_ids_count);
        memcpy(tokens->ids, encode->prompt_ids, encode->prompt_ids_count * sizeof *tokens->ids);
        tokens->count = encode->prompt_ids_count;
    } else if (!service->tokenizer) {
        refuse(service, from, request, 400, "prompt", "this model has no tokenizer.json: send the prompt as token ids");
        return false;
    } else {
        unsigned flags = TOKENIZER_PARSE_SPECIAL | (encode->add_special ? TOKENIZER_ADD_SPECIAL : 0);
        if (tokenizer_encode(service->tokenizer, service->scratch, encode->prompt.data, encode->prompt.bytes, flags,
                             tokens) != QN_OK) {
            refuse(service, from, request, 400, "prompt", qn_err_text());
            return false;
        }
        count(service, TOKENIZER_STAT_ENCODED_BYTES, encode->prompt.bytes);
        count(service, TOKENIZER_STAT_ENCODED_TOKENS, tokens->count);
        observe(service, TOKENIZER_STAT_ENCODE_TIME, begin_ns);
    }
    if (tokens->count == 0 || tokens->count > QN_PROMPT_TOKENS_MAX) {
        refuse(service, from, request, 400, "prompt",
               tokens->count == 0 ? "the prompt has no tokens; give at least one"
                                  : "the prompt has more than 1048576 tokens");
        return false;
    }
    return true;
}

static bool open_stream(tokenizer_service_t *service, qn_peer_t from, const qn_encode_t *encode, const uint32_t *ids,
                        size_t id_count, stream_t **ret_stream)
{
    const char *stop[QN_STOP_STRINGS_MAX];
    size_t stop_bytes[QN_STOP_STRINGS_MAX];
    for (uint32_t i = 0; i < encode->stop_count; i++) {
        stop[i] = encode->stop[i].data;
        stop_bytes[i] = encode->stop[i].bytes;
    }
    size_t context = id_count < CONTEXT_TOKENS ? id_count : CONTEXT_TOKENS;
    stream_spec_t spec = {
        .request = encode->head.request,
        .skip_special = encode->skip_special,
        .include_stop = encode->include_stop,
        .min_tokens = encode->sampling.min_tokens,
        .stop = stop,
        .stop_bytes = stop_bytes,
        .stop_count = service->tokenizer ? encode->stop_count : 0,
        .stop_ids = encode->stop_ids,
        .stop_id_count = encode->stop_ids_count,
        .context_ids = ids + id_count - context,
        .context_count = context,
    };
    switch (streams_open(service->streams, &spec, ret_stream)) {
    case STREAM_OPENED: return true;
    case STREAM_EXISTS: refuse(service, from, spec.request, 400, "request", "this request id runs already"); break;
    case STREAM_NO_ROOM:
        refuse(service, from, spec.request, 429, NULL, "the tokenizer holds as many requests as it may; try again");
        break;
    case STREAM_BAD_STOP: refuse(service, from, spec.request, 400, "stop", qn_err_text()); break;
    }
    return false;
}

static void fail(tokenizer_service_t *service, const char *why)
{
    qn_daemon_fail(service->daemon, qn_fail(QN_ERR_INVALID, "%s", why));
}

static void handle_encode(void *state, qn_peer_t from, const void *message)
{
    tokenizer_service_t *service = state;
    const qn_encode_t *encode = message;
    uint64_t begin_ns = qn_clock_now_ns();
    stream_t *stream;
    if (QN_FAILPOINT_TEXT(QN_FAILPOINT_TOKENIZER_BEFORE_ENCODE, encode->prompt.data, encode->prompt.bytes))
        fail(service, "a failpoint failed an Encode");
    if (!encode_prompt(service, from, encode)) return;
    if (QN_FAILPOINT_IDS(QN_FAILPOINT_TOKENIZER_AFTER_ENCODE, service->tokens.ids, service->tokens.count))
        fail(service, "a failpoint failed an Encode that was done");
    const uint32_t *ids = service->tokens.ids;
    size_t id_count = service->tokens.count;
    if (encode->truncate_prompt_tokens && encode->truncate_prompt_tokens < id_count) {
        ids += id_count - encode->truncate_prompt_tokens;
        id_count = encode->truncate_prompt_tokens;
    }
    qn_peer_t scheduler = qn_daemon_peer(service->daemon, QN_SERVICE_SCHEDULER);
    if (!open_stream(service, from, encode, ids, id_count, &stream)) return;
    owner_t *owner = calloc(1, sizeof *owner);
    QN_ASSERT(owner);
    owner->frontend = from;
    owner->want_pieces = encode->want_pieces;
    owner->skip_special = encode->skip_special;
    owner->salt =
        encode->cache_salt.bytes ? copy_of(encode->cache_salt.data, (size_t)encode->cache_salt.bytes + 1) : NULL;
    owner->submit = (qn_submit_t){
        .head.request = encode->head.request,
        .prompt_ids = copy_of(ids, id_count * sizeof *ids),
        .prompt_ids_count = (uint32_t)id_count,
        .sampling = encode->sampling,
        .stop_ids = copy_of(encode->stop_ids, encode->stop_ids_count * sizeof *encode->stop_ids),
        .stop_ids_count = encode->stop_ids_count,
        .bias = copy_of(encode->bias, encode->bias_count * sizeof *encode->bias),
        .bias_count = encode->bias_count,
        .priority = encode->priority,
        .cache_salt = qn_text(owner->salt),
        .timeline = {.request = encode->head.request,
                     .received_ns = encode->received_ns,
                     .encode_begin_ns = begin_ns,
                     .submitted_ns = qn_clock_now_ns()},
    };
    stream->owner = owner;
    /* With no scheduler it waits: tokenizer_submit_all sends it when one is up. */
    if (scheduler.epoch &&
        qn_daemon_send(service->daemon, scheduler, QN_MESSAGE_SUBMIT, &owner->submit) == QN_SEND_FULL) {
        refuse(service, from, encode->head.request, 503, NULL, "the scheduler is behind; try again");
        request_close(service, stream);
    }
}

/* ---- cancels --------------------------------------------------------------------------------------------------- */

/* It is sent by the tick, to the scheduler that lives then: none is lost for want of room or of a scheduler. Saying it
 * twice harms nothing. */
static void send_cancel(tokenizer_service_t *service, uint64_t request, qn_cancel_reason_t reason)
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

/* Of a stream that stays until the scheduler has said its end. */
static void cancel_stream(tokenizer_service_t *service, const stream_t *stream, qn_cancel_reason_t reason)
{
    owner_t *owner = stream->owner;
    owner->cancelled = true;
    owner->cancel_reason = reason;
    send_cancel(service, stream->request, reason);
}

void tokenizer_submit_all(tokenizer_service_t *service, qn_peer_t scheduler)
{
    size_t cursor = 0;
    for (stream_t *stream; (stream = streams_next(service->streams, &cursor));) {
        const owner_t *owner = stream->owner;
        qn_daemon_send(service->daemon, scheduler, QN_MESSAGE_SUBMIT, &owner->submit);
        if (owner->cancelled) send_cancel(service, stream->request, owner->cancel_reason);
    }
    qn_replay_complete_t complete = {0};
    qn_daemon_send(service->daemon, scheduler, QN_MESSAGE_REPLAY_COMPLETE, &complete);
}

static void add_end(tokenizer_service_t *service, const stream_t *stream, qn_sequence_end_t end)
{
    if (stream->stopped) { /* later tokens, and why the scheduler stopped, are no concern of the client */
        end.finish = QN_FINISH_STOP;
        end.by_stop_id = false;
        end.by_stop_string = true;
        end.stop_string = (uint16_t)stream->stop.match_index;
        end.generated_tokens = stream->stopped_tokens;
    }
    const owner_t *owner = stream->owner;
    text_buffer_append(&tokenizer_outgoing_box(service, owner->frontend)->ends, &end, sizeof end);
}

static void handle_cancel(void *state, qn_peer_t from, const void *message)
{
    (void)from;
    tokenizer_service_t *service = state;
    const qn_cancel_t *cancel = message;
    stream_t *stream = streams_find(service->streams, cancel->head.request);
    if (!stream) { /* of a tokenizer before this one: the ledger may hold it */
        send_cancel(service, cancel->head.request, cancel->reason);
        return;
    }
    if (qn_daemon_peer(service->daemon, QN_SERVICE_SCHEDULER).epoch) {
        cancel_stream(service, stream, cancel->reason);
        return;
    }
    send_cancel(service, stream->request, cancel->reason); /* the next scheduler finds it in the ledger */
    const owner_t *owner = stream->owner;
    add_end(service, stream,
            (qn_sequence_end_t){.request = stream->request,
                                .prompt_tokens = owner->submit.prompt_ids_count,
                                .generated_tokens = stream->token_count,
                                .finish = QN_FINISH_CANCELLED});
    request_close(service, stream);
}

void tokenizer_meet_frontend(tokenizer_service_t *service) { service->frontend_count++; }

static void forget_replay(tokenizer_service_t *service, qn_peer_t frontend)
{
    for (uint32_t i = 0; i < service->replayed_count; i++)
        if (qn_peer_equal(service->frontends[i], frontend))
            service->frontends[i--] = service->frontends[--service->replayed_count];
}

static void handle_replay_complete(void *state, qn_peer_t from, const void *message)
{
    tokenizer_service_t *service = state;
    (void)message;
    forget_replay(service, from);
    if (from.service == QN_SERVICE_FRONTEND && service->replayed_count < QN_PEERS_MAX)
        service->frontends[service->replayed_count++] = from;
}

/* Whether a request that is not here is nobody's: a tokenizer that just came back knows nobody yet. */
static bool knows_all(const tokenizer_service_t *service)
{
    return service->frontend_count > 0 && service->replayed_count == service->frontend_count;
}

void tokenizer_drop_frontend(tokenizer_service_t *service, qn_peer_t frontend)
{
    service->frontend_count--;
    forget_replay(service, frontend);
    size_t cursor = 0;
    for (stream_t *stream; (stream = streams_next(service->streams, &cursor));) {
        if (!qn_peer_equal(((const owner_t *)stream->owner)->frontend, frontend)) continue;
        send_cancel(service, stream->request, QN_CANCEL_REASON_CLIENT_GONE);
        request_close(service, stream);
        cursor = 0;
    }
    tokenizer_outgoing_forget(service->outgoing, frontend);
}

/* ---- generated tokens ----------------------------------------------------------------------------------------- */

static void add_text_token(tokenizer_service_t *service, outgoing_box_t *box, const stream_t *stream, uint32_t id,
                           float logprob, uint8_t top_count)
{
    qn_text_token_t token = {
        .id = id,
        .logprob = logprob,
        .text_end = (uint32_t)stream->text_bytes,
        .top_count = top_count,
        .piece_bytes = ((const owner_t *)stream->owner)->want_pieces ? add_piece(service, &box->pieces, id) : 0,
    };
    text_buffer_append(&box->tokens, &token, sizeof token);
}

/* One Delta per request and turn: extends the last one when it is of the same request. */
static void add_delta(outgoing_box_t *box, const stream_t *stream, uint32_t text_bytes, uint32_t token_entries)
{
    qn_delta_t *last = box->deltas.length ? (qn_delta_t *)(box->deltas.bytes + box->deltas.length) - 1 : NULL;
    uint32_t tokens = token_entries ? 1 : 0;
    if (last && last->request == stream->request) {
        last->text_bytes += text_bytes;
        last->token_count += tokens;
        return;
    }
    qn_delta_t delta = {
        .request = stream->request,
        .text_position = (uint32_t)stream->text_bytes - text_bytes,
        .text_offset = (uint32_t)box->text.length - text_bytes,
        .text_bytes = text_bytes,
        .token_position = stream->token_count - tokens,
        .token_offset = (uint32_t)(box->tokens.length / sizeof(qn_text_token_t)) - token_entries,
        .token_count = tokens,
    };
    text_buffer_append(&box->deltas, &delta, sizeof delta);
}

static void take_token(tokenizer_service_t *service, stream_t *stream, const qn_sampled_token_t *token,
                       const qn_token_logprob_t *top)
{
    const owner_t *owner = stream->owner;
    outgoing_box_t *box = tokenizer_outgoing_box(service, owner->frontend);
    size_t before = box->text.length;
    bool was_stopped = stream->stopped;
    switch (stream_push(stream, token->position, token->id, &box->text)) {
    case STREAM_TOKEN_REPEATED: return;
    case STREAM_TOKEN_GAP:
        qn_log_error("request %lu: token %u came, %u was next; the request is cancelled",
                     (unsigned long)stream->request, token->position, stream->token_count);
        cancel_stream(service, stream, QN_CANCEL_REASON_CLIENT_GONE);
        return;
    case STREAM_TOKEN_TAKEN: break;
    }
    add_text_token(service, box, stream, token->id, token->logprob, token->top_count);
    for (uint8_t i = 0; i < token->top_count; i++)
        add_text_token(service, box, stream, top[i].id, top[i].logprob, 0);
    add_delta(box, stream, (uint32_t)(box->text.length - before), 1u + token->top_count);
    if (stream->stopped && !was_stopped) {
        count(service, TOKENIZER_STAT_STOP_STRINGS, 1);
        cancel_stream(service, stream, QN_CANCEL_REASON_STOP_STRING);
    }
}

static void take_end(tokenizer_service_t *service, const qn_sequence_end_t *end)
{
    stream_t *stream = streams_find(service->streams, end->request);
    if (!stream) return;
    outgoing_box_t *box = tokenizer_outgoing_box(service, ((const owner_t *)stream->owner)->frontend);
    size_t before = box->text.length;
    stream_finish(stream, &box->text);
    if (box->text.length > before) add_delta(box, stream, (uint32_t)(box->text.length - before), 0);
    add_end(service, stream, *end);
    request_close(service, stream);
}

static void handle_token_batch(void *state, qn_peer_t from, const void *message)
{
    (void)from;
    tokenizer_service_t *service = state;
    const qn_token_batch_t *batch = message;
    uint64_t begin_ns = qn_clock_now_ns();
    uint32_t top = 0;
    if (QN_FAILPOINT(QN_FAILPOINT_TOKENIZER_BEFORE_TOKENS)) fail(service, "a failpoint failed a TokenBatch");
    for (uint32_t i = 0; i < batch->tokens_count; i++) {
        const qn_sampled_token_t *token = &batch->tokens[i];
        if (batch->top_count - top < token->top_count) {
            qn_log_error("TokenBatch of step %lu has too few alternatives; the rest is dropped",
                         (unsigned long)batch->step);
            break;
        }
        stream_t *stream = streams_find(service->streams, token->request);
        if (stream)
            take_token(service, stream, token, batch->top + top);
        else if (knows_all(service)) /* it would be run to its end for nobody */
            send_cancel(service, token->request, QN_CANCEL_REASON_CLIENT_GONE);
        top += token->top_count;
    }
    for (uint32_t i = 0; i < batch->timelines_count; i++) {
        const stream_t *stream = streams_find(service->streams, batch->timelines[i].request);
        if (!stream) continue;
        outgoing_box_t *box = tokenizer_outgoing_box(service, ((const owner_t *)stream->owner)->frontend);
        text_buffer_append(&box->timelines, &batch->timelines[i], sizeof batch->timelines[i]);
    }
    for (uint32_t i = 0; i < batch->ends_count; i++)
        take_end(service, &batch->ends[i]);
    count(service, TOKENIZER_STAT_DETOKENIZED_TOKENS, batch->tokens_count);
    observe(service, TOKENIZER_STAT_DETOKENIZE_TIME, begin_ns);
}

/* The scheduler gives ids; their bytes are added on the way to the frontend. */
static void handle_prompt_logprobs(void *state, qn_peer_t from, const void *message)
{
    (void)from;
    tokenizer_service_t *service = state;
    qn_prompt_logprobs_t reply = *(const qn_prompt_logprobs_t *)message;
    const stream_t *stream = streams_find(service->streams, reply.head.request);
    if (!stream) return;
    const owner_t *owner = stream->owner;
    text_buffer_t lengths = {0};
    service->text.length = 0;
    for (uint32_t i = 0; owner->want_pieces && i < reply.ids_count + reply.top_count; i++) {
        uint32_t id = i < reply.ids_count ? reply.ids[i] : reply.top[i - reply.ids_count].id;
        uint16_t piece_bytes = add_piece(service, &service->text, id);
        text_buffer_append(&lengths, &piece_bytes, sizeof piece_bytes);
    }
    reply.piece_bytes = (const void *)lengths.bytes;
    reply.piece_bytes_count = (uint32_t)(lengths.length / sizeof(uint16_t));
    reply.pieces = service->text.bytes;
    reply.pieces_count = (uint32_t)service->text.length;
    if (qn_daemon_send(service->daemon, owner->frontend, QN_MESSAGE_PROMPT_LOGPROBS, &reply) == QN_SEND_FULL)
        qn_log_warning("frontend epoch %u is behind: prompt log-probabilities were dropped", owner->frontend.epoch);
    text_buffer_fini(&lengths);
}

static void handle_refusal(void *state, qn_peer_t from, const void *message)
{
    tokenizer_service_t *service = state;
    const qn_refusal_t *refusal = message;
    stream_t *stream = streams_find(service->streams, refusal->head.request);
    if (!stream || from.service != QN_SERVICE_SCHEDULER) {
        qn_log_warning("refused by peer: %.*s", (int)refusal->text.bytes, refusal->text.data ? refusal->text.data : "");
        return;
    }
    qn_daemon_send(service->daemon, ((const owner_t *)stream->owner)->frontend, QN_MESSAGE_REFUSAL, refusal);
    request_close(service, stream);
}

/* ---- without a request ---------------------------------------------------------------------------------------- */

static void handle_tokenize(void *state, qn_peer_t from, const void *message)
{
    tokenizer_service_t *service = state;
    const qn_tokenize_t *tokenize = message;
    if (!service->tokenizer) {
        refuse(service, from, tokenize->head.request, 400, "prompt", "this model has no tokenizer.json");
        return;
    }
    unsigned flags = TOKENIZER_PARSE_SPECIAL | (tokenize->add_special ? TOKENIZER_ADD_SPECIAL : 0);
    if (tokenizer_encode(service->tokenizer, service->scratch, tokenize->text.data, tokenize->text.bytes, flags,
                         &service->tokens) != QN_OK) {
        refuse(service, from, tokenize->head.request, 400, "prompt", qn_err_text());
        return;
    }
    const tokenizer_tokens_t *tokens = &service->tokens;
    qn_tokenized_t reply = {.head.request = tokenize->head.request,
                            .ids = tokens->ids,
                            .ids_count = (uint32_t)tokens->count};
    text_buffer_t lengths = {0};
    service->text.length = 0;
    for (size_t i = 0; tokenize->want_pieces && i < tokens->count; i++) {
        uint16_t piece_bytes = add_piece(service, &service->text, tokens->ids[i]);
        text_buffer_append(&lengths, &piece_bytes, sizeof piece_bytes);
    }
    reply.piece_bytes = (const void *)lengths.bytes;
    reply.piece_bytes_count = (uint32_t)(lengths.length / sizeof(uint16_t));
    reply.pieces = service->text.bytes;
    reply.pieces_count = (uint32_t)service->text.length;
    if (qn_daemon_send(service->daemon, from, QN_MESSAGE_TOKENIZED, &reply) == QN_SEND_FULL)
        qn_log_warning("frontend epoch %u is behind: a Tokenized reply was dropped", from.epoch);
    text_buffer_fini(&lengths);
}

static void handle_detokenize(void *state, qn_peer_t from, const void *message)
{
    tokenizer_service_t *service = state;
    const qn_detokenize_t *detokenize = message;
    if (!service->tokenizer) {
        refuse(service, from, detokenize->head.request, 400, "tokens", "this model has no tokenizer.json");
        return;
    }
    for (uint32_t i = 0; i < detokenize->ids_count; i++) {
        if (detokenize->ids[i] < tokenizer_id_limit(service->tokenizer)) continue;
        char text[QN_REASON_MAX];
        snprintf(text, sizeof text, "tokens[%u] is %u; ids of this model are below %u", i, detokenize->ids[i],
                 tokenizer_id_limit(service->tokenizer));
        refuse(service, from, detokenize->head.request, 400, "tokens", text);
        return;
    }
    service->text.length = 0;
    tokenizer_decode(service->tokenizer, detokenize->ids, detokenize->ids_count,
                     detokenize->skip_special ? TOKENIZER_SKIP_SPECIAL : 0, &service->text);
    qn_detokenized_t reply = {
        .head.request = detokenize->head.request,
        .text = {.data = service->text.length ? (const char *)service->text.bytes : "",
                 .bytes = (uint32_t)service->text.length},
    };
    if (qn_daemon_send(service->daemon, from, QN_MESSAGE_DETOKENIZED, &reply) == QN_SEND_FULL)
        qn_log_warning("frontend epoch %u is behind: a Detokenized reply was dropped", from.epoch);
}

const qn_handler_t tokenizer_handlers[] = {
    {QN_MESSAGE_ENCODE, handle_encode},
    {QN_MESSAGE_CANCEL, handle_cancel},
    {QN_MESSAGE_TOKEN_BATCH, handle_token_batch},
    {QN_MESSAGE_PROMPT_LOGPROBS, handle_prompt_logprobs},
    {QN_MESSAGE_REPLAY_COMPLETE, handle_replay_complete},
    {QN_MESSAGE_REFUSAL, handle_refusal},
    {QN_MESSAGE_TOKENIZE, handle_tokenize},
    {QN_MESSAGE_DETOKENIZE, handle_detokenize},
    {QN_MESSAGE_NONE, NULL},
};
