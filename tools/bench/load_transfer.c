/* What is this?      One request of a load: events of its stream counted and timed.
 * State owned:       a libcurl handle and what came so far.
 * Must never:        count events for tokens where the server counts tokens.
 * Read next:         load_engine.c, which drives many; sse_reader.h. */
#include "tools/bench/load_transfer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/clock.h"

static double since_begin(const load_transfer_t *transfer, uint64_t now_ns)
{
    return (double)(now_ns - transfer->begin_ns) * 1e-9;
}

static void set_failure(load_transfer_t *transfer, load_outcome_t outcome, long status, const char *message)
{
    load_record_t *record = &transfer->record;
    if (record->outcome != LOAD_OK) return; /* the first is the cause */
    record->outcome = outcome;
    record->status = status;
    int length = snprintf(record->message, sizeof record->message, "%s", message);
    /* What is cut ends between two characters. */
    size_t end = strlen(record->message);
    while ((size_t)length > end && end && ((unsigned char)message[end] & 0xc0) == 0x80)
        record->message[--end] = '\0';
}

/* ---- events ---- */

static bool add_gap(load_transfer_t *transfer, double seconds, uint32_t tokens)
{
    if (transfer->gap_count == transfer->gap_capacity) {
        size_t capacity = transfer->gap_capacity ? transfer->gap_capacity * 2 : 128;
        load_gap_t *grown = realloc(transfer->gaps, capacity * sizeof *grown);
        if (!grown) return false;
        transfer->gaps = grown;
        transfer->gap_capacity = capacity;
    }
    transfer->gaps[transfer->gap_count++] = (load_gap_t){.seconds = (float)seconds, .tokens = tokens};
    return true;
}

/* Tokens of one event. What one read of the socket brings came at once, in however many events. */
static bool note_tokens(load_transfer_t *transfer, uint32_t tokens)
{
    load_record_t *record = &transfer->record;
    double now_s = since_begin(transfer, transfer->now_ns), before_s = record->last_s;
    bool is_first = record->first_s < 0, at_once = !is_first && now_s <= before_s;
    record->output_tokens += tokens;
    record->last_s = now_s;
    if (is_first) record->first_s = now_s;
    if (is_first || (at_once && !transfer->gap_count)) {
        record->first_tokens += tokens;
        return true;
    }
    if (at_once) {
        transfer->gaps[transfer->gap_count - 1].tokens += tokens;
        return true;
    }
    return add_gap(transfer, now_s - before_s, tokens);
}

static uint32_t count_of(const json_t *object, const char *name, uint32_t otherwise)
{
    const json_t *value = json_object_get(object, name);
    json_int_t count = json_integer_value(value);
    return json_is_integer(value) && count >= 0 && count <= UINT32_MAX ? (uint32_t)count : otherwise;
}

static bool has_tokens(const json_t *choices)
{
    for (size_t i = 0; i < json_array_size(choices); i++) {
        const json_t *choice = json_array_get(choices, i);
        if (json_string_length(json_object_get(choice, "text")) ||
            json_array_size(json_object_get(choice, "token_ids")))
            return true;
    }
    return false;
}

static void keep_ids(load_transfer_t *transfer, const json_t *choices)
{
    for (size_t i = 0; transfer->ids && i < json_array_size(choices); i++) {
        json_t *ids = json_object_get(json_array_get(choices, i), "token_ids");
        if (json_is_array(ids)) json_array_extend(transfer->ids, ids);
    }
}

static void take_usage(load_record_t *record, const json_t *usage)
{
    record->prompt_tokens = count_of(usage, "prompt_tokens", record->prompt_tokens);
    const json_t *details = json_object_get(usage, "prompt_tokens_details");
    if (!json_is_integer(json_object_get(details, "cached_tokens"))) return;
    record->cached_told = true;
    record->cached_tokens = count_of(details, "cached_tokens", 0);
}

/* Counts what an event brings: by the server's count, else as one token where there is text. */
static bool take_chunk(load_transfer_t *transfer, const json_t *chunk)
{
    load_record_t *record = &transfer->record;
    const json_t *usage = json_object_get(chunk, "usage"), *choices = json_object_get(chunk, "choices");
    bool is_last_count = !json_array_size(choices);
    keep_ids(transfer, choices);
    if (json_is_object(usage)) {
        uint32_t total = count_of(usage, "completion_tokens", record->output_tokens);
        take_usage(record, usage);
        if (is_last_count) {
            record->output_tokens = total;
            return true;
        }
        return total <= record->output_tokens || note_tokens(transfer, total - record->output_tokens);
    }
    if (is_last_count || !has_tokens(choices)) return true;
    record->events_only = true;
    return note_tokens(transfer, 1);
}

static void take_error(load_transfer_t *transfer, const json_t *error)
{
    const char *message = json_string_value(json_is_string(error) ? error : json_object_get(error, "message"));
    const json_t *code = json_object_get(error, "code");
    set_failure(transfer, LOAD_STREAM, json_is_integer(code) ? (long)json_integer_value(code) : 500,
                message ? message : "the stream ended with an error that gives no reason");
}

static bool take_event(void *context, const char *data, size_t bytes)
{
    load_transfer_t *transfer = context;
    if (bytes == 6 && !memcmp(data, "[DONE]", 6)) {
        transfer->ended = true;
        return true;
    }
    json_t *event = json_loadb(data, bytes, 0, NULL);
    bool good = json_is_object(event);
    const json_t *error = json_object_get(event, "error");
    if (!good)
        set_failure(transfer, LOAD_PROTOCOL, 200, "the server sent an event that is no JSON object");
    else if (error && !json_is_null(error))
        take_error(transfer, error);
    else
        good = take_chunk(transfer, event);
    json_decref(event);
    return good;
}

/* ---- bytes ---- */

/* Knows the kind of reply at the first byte of its body. */
static void begin_body(load_transfer_t *transfer)
{
    const char *type = NULL;
    curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &transfer->record.status);
    curl_easy_getinfo(transfer->easy, CURLINFO_CONTENT_TYPE, &type);
    transfer->is_stream = transfer->record.status == 200 && type && !strncasecmp(type, "text/event-stream", 17);
}

static size_t take_body(char *bytes, size_t size, size_t count, void *context)
{
    load_transfer_t *transfer = context;
    size_t total = size * count;
    transfer->now_ns = qn_clock_now_ns();
    if (!transfer->record.status) begin_body(transfer);
    if (transfer->is_stream) {
        if (!sse_reader_push(&transfer->sse, bytes, total)) return total;
        set_failure(transfer, LOAD_PROTOCOL, 200, qn_err_text());
        return 0;
    }
    size_t room = LOAD_REFUSAL_BYTES - transfer->refusal_bytes, kept = total < room ? total : room;
    memcpy(transfer->refusal + transfer->refusal_bytes, bytes, kept);
    transfer->refusal_bytes += kept;
    return total;
}

/* ---- begin and end ---- */

static void set_options(load_transfer_t *transfer, const load_transfer_options_t *options)
{
    CURL *easy = transfer->easy;
    curl_easy_reset(easy);
    http_client_apply(options->client, easy, "/v1/completions");
    curl_easy_setopt(easy, CURLOPT_PRIVATE, transfer);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, options->headers);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, transfer->error);
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, options->timeout_ms);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer);
    curl_easy_setopt(easy, CURLOPT_POST, 1L);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)transfer->request.bytes);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDS, transfer->request.body);
}

qn_err_t load_transfer_begin(load_transfer_t *transfer, const load_transfer_options_t *options, load_request_t *request,
                             uint64_t begin_ns)
{
    free(transfer->request.body);
    transfer->request = *request;
    *request = (load_request_t){0};
    if (!transfer->easy) transfer->easy = curl_easy_init();
    json_decref(transfer->ids);
    transfer->ids = options->keeps_ids ? json_array() : NULL;
    sse_reader_fini(&transfer->sse);
    if (!transfer->easy || (options->keeps_ids && !transfer->ids))
        return qn_fail(QN_ERR_NO_MEMORY, "no memory for a request");
    transfer->sse = (sse_reader_t){.event = take_event, .context = transfer};
    transfer->record = (load_record_t){.prompt_tokens = transfer->request.prompt_tokens,
                                       .clipped = transfer->request.clipped,
                                       .first_s = -1};
    transfer->begin_ns = begin_ns;
    transfer->gap_count = transfer->refusal_bytes = 0;
    transfer->is_stream = transfer->ended = false;
    transfer->error[0] = '\0';
    set_options(transfer, options);
    return QN_OK;
}

/* A reply that is no stream: a refusal as OpenAI's servers word it, or what else there is. */
static void explain_reply(load_transfer_t *transfer)
{
    long status = transfer->record.status;
    transfer->refusal[transfer->refusal_bytes] = '\0';
    json_t *reply = json_loadb(transfer->refusal, transfer->refusal_bytes, 0, NULL);
    const json_t *error = json_object_get(reply, "error");
    const char *message = json_string_value(json_object_get(error ? error : reply, "message"));
    if (!message) message = transfer->refusal_bytes ? transfer->refusal : "the reply is empty";
    char text[LOAD_REFUSAL_BYTES + 64];
    snprintf(text, sizeof text, "%s%s", status == 200 ? "the answer is no stream of events: " : "", message);
    set_failure(transfer, status == 200 ? LOAD_PROTOCOL : LOAD_HTTP, status, text);
    json_decref(reply);
}

static load_outcome_t outcome_of(CURLcode code)
{
    switch (code) {
    case CURLE_COULDNT_CONNECT:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY: return LOAD_REFUSED;
    case CURLE_OPERATION_TIMEDOUT: return LOAD_TIMEOUT;
    default: return LOAD_BROKEN;
    }
}

static void complete(load_transfer_t *transfer, uint64_t now_ns)
{
    load_record_t *record = &transfer->record;
    struct curl_header *header;
    record->end_s = since_begin(transfer, now_ns);
    if (!record->status) curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &record->status);
    if (!curl_easy_header(transfer->easy, "x-request-id", 0, CURLH_HEADER, -1, &header))
        snprintf(record->request_id, sizeof record->request_id, "%s", header->value);
}

void load_transfer_end(load_transfer_t *transfer, CURLcode code, uint64_t now_ns)
{
    load_record_t *record = &transfer->record;
    complete(transfer, now_ns);
    if (record->outcome != LOAD_OK) return;
    /* Whoever has read the end has the whole answer, however the connection ends. */
    if (transfer->is_stream && transfer->ended) return;
    if (code)
        set_failure(transfer, outcome_of(code), record->status,
                    transfer->error[0] ? transfer->error : curl_easy_strerror(code));
    else if (transfer->is_stream)
        set_failure(transfer, LOAD_INCOMPLETE, record->status, "the stream stops without [DONE]");
    else
        explain_reply(transfer);
}

void load_transfer_interrupt(load_transfer_t *transfer, uint64_t now_ns)
{
    complete(transfer, now_ns);
    set_failure(transfer, LOAD_INTERRUPTED, transfer->record.status, "taken back at the end of the run");
}

void load_transfer_fini(load_transfer_t *transfer)
{
    curl_easy_cleanup(transfer->easy);
    free(transfer->request.body);
    free(transfer->gaps);
    json_decref(transfer->ids);
    sse_reader_fini(&transfer->sse);
    *transfer = (load_transfer_t){0};
}
