/* What is this?      Encoding, decoding and their bounds, without a message in sight.
 * State owned:       a job's input (once owned) and output.
 * Must never:        depend on the thread it runs on; give more than one message can carry.
 * Read next:         text_worker.h (the thread), handlers.c (who makes jobs). */
#include "services/tokenizer/text_job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/limits.h"
#include "services/tokenizer/decode/token_bytes.h"
#include "services/tokenizer/split/unicode_classes.h"

text_job_t *text_job_create(text_job_kind_t kind, qn_peer_t from, uint64_t request)
{
    text_job_t *job = calloc(1, sizeof *job);
    QN_ASSERT(job != NULL);
    job->kind = kind;
    job->from = from;
    job->request = request;
    job->input = kind == TEXT_JOB_DETOKENIZE ? "tokens" : "prompt";
    return job;
}

static void *copy_of(const void *data, size_t bytes)
{
    void *copy = malloc(bytes + 1);
    QN_ASSERT(copy != NULL);
    if (bytes) memcpy(copy, data, bytes);
    return copy;
}

void text_job_own(text_job_t *job)
{
    if (job->owns_input) return;
    if (job->text) job->text = copy_of(job->text, job->text_bytes);
    if (job->ids) job->ids = copy_of(job->ids, job->id_count * sizeof *job->ids);
    job->owns_input = true;
}

void text_job_destroy(text_job_t **job)
{
    text_job_t *old = *job;
    if (!old) return;
    if (old->owns_input) {
        free((void *)old->text);
        free((void *)old->ids);
    }
    detokenizer_fini(&old->detokenizer);
    tokenizer_tokens_fini(&old->tokens);
    text_buffer_fini(&old->decoded);
    text_buffer_fini(&old->pieces);
    text_buffer_fini(&old->lengths);
    text_buffer_fini(&old->offsets);
    free(old);
    *job = NULL;
}

size_t text_job_bytes(const text_job_t *job) { return job->text_bytes + job->id_count * sizeof *job->ids; }

static void refuse(text_job_t *job, uint16_t status, const char *param, const char *text)
{
    job->err = QN_ERR_INVALID;
    job->status = status;
    job->param = param;
    snprintf(job->error_text, sizeof job->error_text, "%s", text);
}

static void encode(text_job_t *job, const tokenizer_t *tokenizer, tokenizer_scratch_t *scratch)
{
    if (!tokenizer) {
        refuse(job, 400, job->input,
               job->kind == TEXT_JOB_PROMPT ? "this model has no tokenizer.json: send the prompt as token ids"
                                            : "this model has no tokenizer.json");
        return;
    }
    unsigned flags = job->flags | (job->want_offsets ? TOKENIZER_WITH_SPANS : 0);
    if (tokenizer_encode(tokenizer, scratch, job->text, job->text_bytes, flags, &job->tokens) != QN_OK)
        refuse(job, 400, job->input, qn_err_text());
    else if (job->tokens.count > QN_PROMPT_TOKENS_MAX)
        refuse(job, 413, job->input, "the prompt has more than 1048576 tokens; send less text");
}

/* Bytes each token stands for when it is alone. */
static void add_pieces(text_job_t *job, const tokenizer_t *tokenizer)
{
    for (size_t i = 0; i < job->tokens.count && job->pieces.length <= QN_TEXT_BYTES_MAX; i++) {
        uint16_t bytes = (uint16_t)tokenizer_token_bytes(tokenizer, job->tokens.ids[i], &job->pieces);
        text_buffer_append(&job->lengths, &bytes, sizeof bytes);
    }
    if (job->pieces.length > QN_TEXT_BYTES_MAX)
        refuse(
            job, 413, "return_token_strs",
            "the strings of the tokens are larger than 8 MiB in all; send less text, or leave return_token_strs out");
}

static uint32_t count_characters(const void *text, size_t from, size_t to)
{
    uint32_t count = 0;
    for (const uint8_t *at = (const uint8_t *)text + from, *end = (const uint8_t *)text + to; at < end; at++)
        count += (*at & 0xC0) != 0x80;
    return count;
}

/* Where in the text each token begins, in characters. A token that the template put there is where the text before it
 * ends; one that shares a character with the token before begins where that character does. */
static void add_text_offsets(text_job_t *job)
{
    size_t bytes = 0;
    uint32_t characters = 0;
    const tokenizer_tokens_t *tokens = &job->tokens;
    for (size_t i = 0; i < tokens->count; i++) {
        tokenizer_span_t span = tokens->spans[i];
        size_t start = span.end > span.start ? span.start : i > 0 ? tokens->spans[i - 1].end : 0;
        while (start > 0 && start < job->text_bytes && ((uint8_t)job->text[start] & 0xC0) == 0x80)
            start--;
        if (start > bytes) {
            characters += count_characters(job->text, bytes, start);
            bytes = start;
        }
        text_buffer_append(&job->offsets, &characters, sizeof characters);
    }
}

/* ---- prompts ---- */

static void take_ids(text_job_t *job)
{
    job->tokens.count = 0;
    token_list_reserve(&job->tokens, job->id_count);
    if (job->id_count) memcpy(job->tokens.ids, job->ids, job->id_count * sizeof *job->ids);
    job->tokens.count = job->id_count;
}

static void run_prompt(text_job_t *job, const tokenizer_t *tokenizer, tokenizer_scratch_t *scratch)
{
    tokenizer_tokens_t *tokens = &job->tokens;
    if (job->text)
        encode(job, tokenizer, scratch);
    else
        take_ids(job);
    if (job->err) return;
    if (tokens->count == 0) refuse(job, 400, "prompt", "the prompt has no tokens; give at least one");
    if (tokens->count > QN_PROMPT_TOKENS_MAX)
        refuse(job, 413, "prompt", "the prompt has more than 1048576 tokens; send less text");
    if (job->err) return;
    if (job->keep_ids && job->keep_ids < tokens->count) {
        memmove(tokens->ids, tokens->ids + tokens->count - job->keep_ids, job->keep_ids * sizeof *tokens->ids);
        tokens->count = job->keep_ids;
    }
    if (!tokenizer) return;
    detokenizer_init(&job->detokenizer, tokenizer, job->flags & TOKENIZER_SKIP_SPECIAL);
    detokenizer_prime(&job->detokenizer, tokens->ids, tokens->count, &job->decoded);
}

/* ---- decoding ---- */

static bool check_decodable(text_job_t *job, const tokenizer_t *tokenizer)
{
    if (!tokenizer) {
        refuse(job, 400, job->input, "this model has no tokenizer.json");
        return false;
    }
    for (size_t i = 0; i < job->id_count; i++) {
        if (job->ids[i] < tokenizer_id_limit(tokenizer)) continue;
        char text[QN_REASON_MAX];
        snprintf(text, sizeof text, "%s[%zu] is %u; ids of this model are below %u", job->input, i, job->ids[i],
                 tokenizer_id_limit(tokenizer));
        refuse(job, 400, job->input, text);
        return false;
    }
    return true;
}

static void run_detokenize(text_job_t *job, const tokenizer_t *tokenizer)
{
    detokenizer_t detokenizer;
    text_buffer_t *out = &job->decoded;
    uint32_t characters = 0;
    if (!check_decodable(job, tokenizer)) return;
    detokenizer_init(&detokenizer, tokenizer, job->flags);
    for (size_t i = 0; i < job->id_count && out->length <= QN_TEXT_BYTES_MAX; i++) {
        size_t before = out->length;
        if (job->want_offsets) text_buffer_append(&job->offsets, &characters, sizeof characters);
        detokenizer_push(&detokenizer, job->ids[i], out);
        if (job->want_offsets) characters += count_characters(out->bytes, before, out->length);
    }
    if (!job->is_open) detokenizer_flush(&detokenizer, out);
    detokenizer_fini(&detokenizer);
    if (out->length > QN_TEXT_BYTES_MAX)
        refuse(job, 413, job->input, "the text of these tokens is larger than 8 MiB; send fewer at a time");
}

void text_job_run(text_job_t *job, const tokenizer_t *tokenizer, tokenizer_scratch_t *scratch)
{
    uint64_t begin_ns = qn_clock_now_ns();
    switch (job->kind) {
    case TEXT_JOB_PROMPT: run_prompt(job, tokenizer, scratch); break;
    case TEXT_JOB_TOKENIZE:
        encode(job, tokenizer, scratch);
        if (!job->err && job->want_offsets) add_text_offsets(job);
        if (!job->err && job->want_pieces) add_pieces(job, tokenizer);
        break;
    case TEXT_JOB_DETOKENIZE: run_detokenize(job, tokenizer); break;
    }
    job->run_ns = qn_clock_now_ns() - begin_ns;
}
