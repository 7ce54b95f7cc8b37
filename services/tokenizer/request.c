/* What is this?      The decisions about one Encode.
 * State owned:       copies of what the message said.
 * Must never:        send, or keep a view into a message.
 * Read next:         text_job.h (the encoding itself), handlers.c. */
#include "services/tokenizer/request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/limits.h"
#include "services/tokenizer/bad_words.h"

static bool refuse(request_refusal_t *ret, uint16_t status, const char *param, const char *text)
{
    ret->status = status;
    ret->param = param;
    snprintf(ret->text, sizeof ret->text, "%s", text);
    return false;
}

bool request_check(const qn_encode_t *encode, request_refusal_t *ret)
{
    if ((encode->prompt.data != NULL) == (encode->prompt_ids != NULL))
        return refuse(ret, 400, "prompt", "give the prompt as text or as token ids, one of them");
    return true;
}

static void *copy_of(const void *data, size_t bytes)
{
    if (bytes == 0) return NULL;
    void *copy = malloc(bytes);
    QN_ASSERT(copy);
    return memcpy(copy, data, bytes);
}

static char *copy_text(qn_text_t text) { return text.bytes ? copy_of(text.data, (size_t)text.bytes + 1) : NULL; }

static void copy_stops(request_t *request, const qn_encode_t *encode)
{
    size_t bytes = 0, at = 0;
    for (uint32_t i = 0; i < encode->stop_count; i++)
        bytes += encode->stop[i].bytes;
    request->stop_bytes = calloc(bytes + 1, 1);
    QN_ASSERT(request->stop_bytes && encode->stop_count <= QN_STOP_STRINGS_MAX);
    for (uint32_t i = 0; i < encode->stop_count; i++) {
        if (encode->stop[i].bytes) memcpy(request->stop_bytes + at, encode->stop[i].data, encode->stop[i].bytes);
        request->stop[i] = request->stop_bytes + at;
        request->stop_lengths[i] = encode->stop[i].bytes;
        at += encode->stop[i].bytes;
    }
    request->stop_count = encode->stop_count;
}

request_t *request_create(const qn_encode_t *encode, qn_peer_t frontend, uint64_t begin_ns)
{
    request_t *request = calloc(1, sizeof *request);
    QN_ASSERT(request);
    request->frontend = frontend;
    request->want_pieces = encode->want_pieces;
    request->skip_special = encode->skip_special;
    request->include_stop = encode->include_stop;
    request->keep_ids = encode->truncate_prompt_tokens;
    request->salt = copy_text(encode->cache_salt);
    request->user = copy_text(encode->user);
    request->model = copy_text(encode->model);
    request->adapter = copy_text(encode->adapter);
    copy_stops(request, encode);
    request->submit = (qn_submit_t){
        .head.request = encode->head.request,
        .sampling = encode->sampling,
        .stop_ids = copy_of(encode->stop_ids, encode->stop_ids_count * sizeof *encode->stop_ids),
        .stop_ids_count = encode->stop_ids_count,
        .bias = copy_of(encode->bias, encode->bias_count * sizeof *encode->bias),
        .bias_count = encode->bias_count,
        .allow_only = encode->allow_only,
        .logprob_ids = copy_of(encode->logprob_ids, encode->logprob_ids_count * sizeof *encode->logprob_ids),
        .logprob_ids_count = encode->logprob_ids_count,
        .masks = copy_of(encode->masks, encode->masks_count * sizeof *encode->masks),
        .masks_count = encode->masks_count,
        .own_masks = encode->own_masks,
        .taps = copy_of(encode->taps, encode->taps_count * sizeof *encode->taps),
        .taps_count = encode->taps_count,
        .tap_values = copy_of(encode->tap_values, encode->tap_values_count * sizeof *encode->tap_values),
        .tap_values_count = encode->tap_values_count,
        .workspace = encode->workspace,
        .workspace_epoch = encode->workspace_epoch,
        .workspace_until_ns = encode->workspace_until_ns,
        .priority = encode->priority,
        .cache_salt = qn_text(request->salt),
        .user = qn_text(request->user),
        .deadline_ms = encode->deadline_ms,
        .model = qn_text(request->model),
        .adapter = qn_text(request->adapter),
        .timeline = {.request = encode->head.request, .received_ns = encode->received_ns, .encode_begin_ns = begin_ns},
    };
    return request;
}

bool request_forbid_words(request_t *request, const qn_encode_t *encode, const tokenizer_t *tokenizer,
                          tokenizer_scratch_t *scratch, request_refusal_t *ret)
{
    bad_words_t words = {.bias_count = encode->bias_count};
    char text[QN_REASON_MAX];
    if (encode->bad_words_count == 0) return true;
    if (!tokenizer)
        return refuse(ret, 400, "bad_words", "this model has no tokenizer.json: bad words are not in its vocabulary");
    if (encode->bias_count) memcpy(words.bias, encode->bias, encode->bias_count * sizeof *words.bias);
    if (!bad_words_forbid(tokenizer, scratch, encode, &words, text, sizeof text))
        return refuse(ret, 400, "bad_words", text);
    free((void *)request->submit.bias);
    request->submit.bias = copy_of(words.bias, words.bias_count * sizeof *words.bias);
    request->submit.bias_count = words.bias_count;
    request->submit.bad_ids = copy_of(words.ids, words.id_count * sizeof *words.ids);
    request->submit.bad_ids_count = words.id_count;
    return true;
}

void request_destroy(request_t **request)
{
    if (!*request) return;
    free((void *)(*request)->submit.prompt_ids);
    free((void *)(*request)->submit.stop_ids);
    free((void *)(*request)->submit.bias);
    free((void *)(*request)->submit.logprob_ids);
    free((void *)(*request)->submit.bad_ids);
    free((void *)(*request)->submit.masks);
    free((void *)(*request)->submit.taps);
    free((void *)(*request)->submit.tap_values);
    free((*request)->salt);
    free((*request)->user);
    free((*request)->model);
    free((*request)->adapter);
    free((*request)->stop_bytes);
    free(*request);
    *request = NULL;
}

text_job_t *request_job(request_t *request, const qn_encode_t *encode)
{
    text_job_t *job = text_job_create(TEXT_JOB_PROMPT, request->frontend, request->submit.head.request);
    job->text = encode->prompt.data;
    job->text_bytes = encode->prompt.data ? encode->prompt.bytes : 0;
    job->ids = encode->prompt_ids;
    job->id_count = encode->prompt_ids ? encode->prompt_ids_count : 0;
    job->flags = TOKENIZER_PARSE_SPECIAL | (encode->add_special ? TOKENIZER_ADD_SPECIAL : 0) |
                 (encode->skip_special ? TOKENIZER_SKIP_SPECIAL : 0);
    job->keep_ids = request->keep_ids;
    job->owner = request;
    return job;
}

void request_take_prompt(request_t *request, text_job_t *job)
{
    request->submit.prompt_ids = copy_of(job->tokens.ids, job->tokens.count * sizeof *job->tokens.ids);
    request->submit.prompt_ids_count = (uint32_t)job->tokens.count;
    request->submit.timeline.submitted_ns = qn_clock_now_ns();
}

stream_spec_t request_stream_spec(const request_t *request, text_job_t *job, bool has_text)
{
    return (stream_spec_t){
        .request = request->submit.head.request,
        .include_stop = request->include_stop,
        .min_tokens = request->submit.sampling.min_tokens,
        .stop = request->stop,
        .stop_bytes = request->stop_lengths,
        .stop_count = has_text ? request->stop_count : 0,
        .stop_ids = request->submit.stop_ids,
        .stop_id_count = request->submit.stop_ids_count,
        .detokenizer = has_text ? &job->detokenizer : NULL,
    };
}

void request_stream_refusal(stream_open_t outcome, request_refusal_t *ret)
{
    switch (outcome) {
    case STREAM_OPENED: break;
    case STREAM_EXISTS: refuse(ret, 400, "request", "this request id runs already"); break;
    case STREAM_NO_ROOM: refuse(ret, 429, NULL, "the tokenizer holds as many requests as it may; try again"); break;
    case STREAM_BAD_STOP: refuse(ret, 400, "stop", qn_err_text()); break;
    }
}
