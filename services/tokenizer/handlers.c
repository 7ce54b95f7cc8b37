/* What is this?      What comes in: messages to the tokenizer's nouns.
 * State owned:       none; service.h has it.
 * Must never:        tokenise or detokenise itself; decide what request.c can; send text twice.
 * Read next:         request.h, text_job.h, streams.h, outgoing.h */
#include "services/tokenizer/handlers.h"

#include <string.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/failpoint.h"
#include "common/limits.h"
#include "common/watch/log.h"
#include "common/watch/quarantine.h"
#include "services/tokenizer/methods.h"
#include "services/tokenizer/outgoing.h"

/* A text of more bytes is the worker's: at the slowest it takes the loop about a millisecond. */
#define LOOP_BYTES_MAX 8192
/* So are all texts of a turn in which texts took this long: tokens wait behind them. */
#define TURN_WORK_NS 2000000ull

static void count(tokenizer_service_t *service, unsigned row, uint64_t amount)
{
    qn_stats_add(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, row, amount);
}

static void observe(tokenizer_service_t *service, unsigned row, uint64_t duration_ns)
{
    qn_stats_observe_ns(qn_daemon_stats(service->daemon), QN_DAEMON_STATS_TABLE, row, duration_ns);
}

static void refuse(tokenizer_service_t *service, qn_peer_t to, uint64_t request, uint16_t status, const char *param,
                   const char *text)
{
    qn_daemon_refuse(service->daemon, to, request, status, param, text);
}

/* ---- text jobs ------------------------------------------------------------------------------------------------- */

static void request_close(tokenizer_service_t *service, stream_t *stream)
{
    request_t *request = stream->owner;
    request_destroy(&request);
    streams_close(service->streams, stream);
}

static void fail(tokenizer_service_t *service, const char *why)
{
    qn_daemon_fail(service->daemon, qn_fail(QN_ERR_INVALID, "%s", why));
}

/* The prompt is encoded: the stream is opened and the scheduler told. With no scheduler it waits: tokenizer_submit_all
 * sends it when one is up. */
static void begin_request(tokenizer_service_t *service, text_job_t *job)
{
    request_t *request = job->owner;
    request_refusal_t refusal;
    stream_t *stream;
    if (QN_FAILPOINT_IDS(QN_FAILPOINT_TOKENIZER_AFTER_ENCODE, job->tokens.ids, job->tokens.count))
        fail(service, "a failpoint failed an Encode that was done");
    stream_spec_t spec = request_stream_spec(request, job, service->tokenizer != NULL);
    stream_open_t opened = streams_open(service->streams, &spec, &stream);
    if (opened != STREAM_OPENED) {
        request_stream_refusal(opened, &refusal);
        refuse(service, request->frontend, spec.request, refusal.status, refusal.param, refusal.text);
        return;
    }
    request_take_prompt(request, job);
    request->key = job->key;
    job->owner = NULL;
    stream->owner = request;
    if (tokenizer_send_submit(service, &request->submit) == QN_SEND_FULL) {
        refuse(service, request->frontend, spec.request, 503, NULL, "the scheduler is behind; try again");
        request_close(service, stream);
    }
}

static void note_work(tokenizer_service_t *service, const text_job_t *job)
{
    if (job->kind == TEXT_JOB_DETOKENIZE || !job->text || job->err) return;
    count(service, TOKENIZER_STAT_ENCODED_BYTES, job->text_bytes);
    count(service, TOKENIZER_STAT_ENCODED_TOKENS, job->tokens.count);
    observe(service, TOKENIZER_STAT_ENCODE_TIME, job->run_ns);
    qn_window_observe(&service->encodes, qn_clock_now_ns(), job->run_ns);
}

static void drop_owner(text_job_t *job)
{
    request_t *request = job->owner;
    request_destroy(&request);
    job->owner = NULL;
}

static void finish_job(tokenizer_service_t *service, text_job_t *job)
{
    if (job->cancelled) {
        drop_owner(job);
    } else {
        note_work(service, job);
        if (job->err)
            refuse(service, job->from, job->request, job->status, job->param, job->error_text);
        else if (job->kind == TEXT_JOB_PROMPT)
            begin_request(service, job);
        else if (job->is_call)
            tokenizer_answer_call(service, job);
        else
            tokenizer_send_reply(service, job);
        drop_owner(job);
    }
    text_job_destroy(&job);
}

/* In the loop when it is short, beside it when not: the result is the same. */
static void start_job(tokenizer_service_t *service, text_job_t *job)
{
    bool is_short = text_job_bytes(job) <= LOOP_BYTES_MAX && service->turn_work_ns < TURN_WORK_NS;
    if (!is_short && text_worker_submit(service->worker, &job)) return;
    if (!is_short) {
        refuse(service, job->from, job->request, 503, NULL, "the tokenizer has too many long texts waiting; try again");
        drop_owner(job);
        text_job_destroy(&job);
        return;
    }
    text_job_run(job, service->tokenizer, service->scratch);
    service->turn_work_ns += job->run_ns;
    finish_job(service, job);
}

/* Takes the input in hand. False: it made this daemon crash twice; it is refused and kept, and the job is gone. */
static bool take_in_hand(tokenizer_service_t *service, text_job_t *job)
{
    job->hand = service->hand;
    job->key = job->text ? qn_in_hand_key(0, job->text, job->text_bytes)
                         : qn_in_hand_key(1, job->ids, job->id_count * sizeof *job->ids);
    if (!qn_in_hand_refuses(service->hand, job->key)) {
        qn_in_hand_take(service->hand, job->key);
        return true;
    }
    qn_in_hand_record(service->hand, job->key,
                      job->text ? json_pack("{s:o}", "text", qn_quarantine_text(job->text, job->text_bytes))
                                : json_pack("{s:o}", "ids", qn_quarantine_ids(job->ids, job->id_count)));
    refuse(service, job->from, job->request, 500, "prompt", QN_IN_HAND_TEXT);
    tokenizer_send_cancel(service, job->request, QN_CANCEL_REASON_CLIENT_GONE); /* a scheduler may still hold it */
    drop_owner(job);
    text_job_destroy(&job);
    return false;
}

void tokenizer_take_job(tokenizer_service_t *service, text_job_t *job)
{
    const char *text = job->text;
    size_t bytes = job->text_bytes;
    if (!take_in_hand(service, job)) return;
    if (text && QN_FAILPOINT_TEXT(QN_FAILPOINT_TOKENIZER_BEFORE_ENCODE, text, bytes))
        fail(service, "a failpoint failed a text");
    start_job(service, job);
    qn_in_hand_take(service->hand, 0);
}

bool tokenizer_take_finished(tokenizer_service_t *service)
{
    uint64_t begin_ns = qn_clock_now_ns();
    for (text_job_t *job; (job = text_worker_finished(service->worker));) {
        qn_in_hand_take(service->hand, job->key);
        finish_job(service, job);
        qn_in_hand_take(service->hand, 0);
        if (qn_clock_now_ns() - begin_ns > TURN_WORK_NS) return true;
    }
    return false;
}

static void handle_encode(void *state, qn_peer_t from, const void *message)
{
    tokenizer_service_t *service = state;
    const qn_encode_t *encode = message;
    uint64_t id = encode->head.request;
    request_refusal_t refusal;
    bool runs = streams_find(service->streams, id) || text_worker_has(service->worker, id);
    if (runs) request_stream_refusal(STREAM_EXISTS, &refusal);
    if (runs || !request_check(encode, &refusal)) {
        refuse(service, from, id, refusal.status, refusal.param, refusal.text);
        return;
    }
    request_t *request = request_create(encode, from, qn_clock_now_ns());
    if (!request_forbid_words(request, encode, service->tokenizer, service->scratch, &refusal)) {
        refuse(service, from, id, refusal.status, refusal.param, refusal.text);
        request_destroy(&request);
        return;
    }
    tokenizer_take_job(service, request_job(request, encode));
}

static void handle_tokenize(void *state, qn_peer_t from, const void *message)
{
    const qn_tokenize_t *tokenize = message;
    text_job_t *job = text_job_create(TEXT_JOB_TOKENIZE, from, tokenize->head.request);
    job->text = tokenize->text.data;
    job->text_bytes = tokenize->text.bytes;
    job->flags = TOKENIZER_PARSE_SPECIAL | (tokenize->add_special ? TOKENIZER_ADD_SPECIAL : 0);
    job->want_pieces = tokenize->want_pieces;
    job->want_offsets = tokenize->want_offsets;
    tokenizer_take_job(state, job);
}

static void handle_detokenize(void *state, qn_peer_t from, const void *message)
{
    const qn_detokenize_t *detokenize = message;
    text_job_t *job = text_job_create(TEXT_JOB_DETOKENIZE, from, detokenize->head.request);
    job->ids = detokenize->ids;
    job->id_count = detokenize->ids_count;
    job->flags = detokenize->skip_special ? TOKENIZER_SKIP_SPECIAL : 0;
    job->want_offsets = detokenize->want_offsets;
    job->is_open = detokenize->is_open;
    tokenizer_take_job(state, job);
}

/* ---- requests ------------------------------------------------------------------------------------------------- */

void tokenizer_close_all(tokenizer_service_t *service)
{
    size_t cursor = 0;
    for (stream_t *stream; (stream = streams_next(service->streams, &cursor)); cursor = 0)
        request_close(service, stream);
    text_worker_stop(&service->worker, drop_owner);
}

/* Of a stream that stays until the scheduler has said its end. */
static void cancel_stream(tokenizer_service_t *service, const stream_t *stream, qn_cancel_reason_t reason)
{
    request_t *request = stream->owner;
    request->cancelled = true;
    request->cancel_reason = reason;
    tokenizer_send_cancel(service, stream->request, reason);
}

void tokenizer_submit_all(tokenizer_service_t *service, qn_peer_t scheduler)
{
    size_t cursor = 0;
    for (stream_t *stream; (stream = streams_next(service->streams, &cursor));) {
        const request_t *request = stream->owner;
        qn_daemon_send(service->daemon, scheduler, QN_MESSAGE_SUBMIT, &request->submit);
        if (request->cancelled) tokenizer_send_cancel(service, stream->request, request->cancel_reason);
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
    const request_t *owner = stream->owner;
    text_buffer_append(&tokenizer_outgoing_box(service, owner->frontend)->ends, &end, sizeof end);
}

/* A request whose prompt waits for the worker is known to nobody else. */
static bool cancel_waiting(tokenizer_service_t *service, qn_peer_t frontend, uint64_t request)
{
    if (!text_worker_cancel(service->worker, request)) return false;
    qn_sequence_end_t end = {.request = request, .finish = QN_FINISH_CANCELLED};
    text_buffer_append(&tokenizer_outgoing_box(service, frontend)->ends, &end, sizeof end);
    return true;
}

static void handle_cancel(void *state, qn_peer_t from, const void *message)
{
    tokenizer_service_t *service = state;
    const qn_cancel_t *cancel = message;
    stream_t *stream = streams_find(service->streams, cancel->head.request);
    if (!stream) {
        if (!cancel_waiting(service, from, cancel->head.request)) /* of a tokenizer before this one: in the ledger? */
            tokenizer_send_cancel(service, cancel->head.request, cancel->reason);
        return;
    }
    if (qn_daemon_peer(service->daemon, QN_SERVICE_SCHEDULER).epoch) {
        cancel_stream(service, stream, cancel->reason);
        return;
    }
    tokenizer_send_cancel(service, stream->request, cancel->reason); /* the next scheduler finds it in the ledger */
    const request_t *request = stream->owner;
    add_end(service, stream,
            (qn_sequence_end_t){.request = stream->request,
                                .prompt_tokens = request->submit.prompt_ids_count,
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
    text_worker_cancel_peer(service->worker, frontend);
    for (stream_t *stream; (stream = streams_next(service->streams, &cursor));) {
        if (!qn_peer_equal(((const request_t *)stream->owner)->frontend, frontend)) continue;
        tokenizer_send_cancel(service, stream->request, QN_CANCEL_REASON_CLIENT_GONE);
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
        .text_end = stream->characters,
        .top_count = top_count,
        .piece_bytes =
            ((const request_t *)stream->owner)->want_pieces ? tokenizer_add_piece(service, &box->pieces, id) : 0,
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
    const request_t *owner = stream->owner;
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
    outgoing_box_t *box = tokenizer_outgoing_box(service, ((const request_t *)stream->owner)->frontend);
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
        qn_in_hand_take(service->hand, stream ? ((const request_t *)stream->owner)->key : 0);
        if (QN_FAILPOINT_IDS(QN_FAILPOINT_TOKENIZER_TOKEN, &token->id, 1)) fail(service, "a failpoint failed a token");
        if (stream)
            take_token(service, stream, token, batch->top + top);
        else if (knows_all(service) && !text_worker_has(service->worker, token->request))
            tokenizer_send_cancel(service, token->request, QN_CANCEL_REASON_CLIENT_GONE); /* it runs for nobody */
        top += token->top_count;
    }
    qn_in_hand_take(service->hand, 0);
    for (uint32_t i = 0; i < batch->timelines_count; i++) {
        const stream_t *stream = streams_find(service->streams, batch->timelines[i].request);
        if (!stream) continue;
        outgoing_box_t *box = tokenizer_outgoing_box(service, ((const request_t *)stream->owner)->frontend);
        text_buffer_append(&box->timelines, &batch->timelines[i], sizeof batch->timelines[i]);
    }
    for (uint32_t i = 0; i < batch->ends_count; i++)
        take_end(service, &batch->ends[i]);
    count(service, TOKENIZER_STAT_DETOKENIZED_TOKENS, batch->tokens_count);
    uint64_t end_ns = qn_clock_now_ns();
    observe(service, TOKENIZER_STAT_DETOKENIZE_TIME, end_ns - begin_ns);
    qn_window_observe(&service->decodes, end_ns, end_ns - begin_ns);
    if (batch->head.sent_ns > begin_ns) return; /* another host's clock says nothing */
    observe(service, TOKENIZER_STAT_WAIT_TIME, end_ns - batch->head.sent_ns);
    qn_window_observe(&service->waits, end_ns, end_ns - batch->head.sent_ns);
}

static void handle_prompt_logprobs(void *state, qn_peer_t from, const void *message)
{
    tokenizer_service_t *service = state;
    const qn_prompt_logprobs_t *scores = message;
    const stream_t *stream = streams_find(service->streams, scores->head.request);
    if (!stream || scores->ids_count == 0) return;
    if (scores->logprobs_count != scores->ids_count ||
        scores->top_count != (uint64_t)scores->ids_count * scores->top_per_token) {
        qn_log_error("PromptLogprobs of scheduler epoch %u dropped: its vectors do not fit together", from.epoch);
        return;
    }
    qn_in_hand_take(service->hand, ((const request_t *)stream->owner)->key);
    tokenizer_send_prompt_logprobs(service, stream->owner, scores);
    qn_in_hand_take(service->hand, 0);
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
    qn_daemon_send(service->daemon, ((const request_t *)stream->owner)->frontend, QN_MESSAGE_REFUSAL, refusal);
    request_close(service, stream);
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
