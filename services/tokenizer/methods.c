/* What is this?      The tokenizer's methods: its vocabulary, text to ids and back, for people.
 * State owned:       none; the service's.
 * Must never:        hold up the loop: what is long is bounded in schemas/tokenizer/.
 * Read next:         common/daemon/calls.h, tokenizer.h. */
#include "services/tokenizer/methods.h"

#include <string.h>

#include "services/tokenizer/handlers.h"

#define SPECIAL_TOKENS 4

static void add_special(qn_special_token_t *rows, qn_tokenizer_info_reply_t *reply, const char *role, const char *text,
                        int64_t id)
{
    if (!text || id < 0) return;
    rows[reply->special_tokens_count++] =
        (qn_special_token_t){.role = qn_text(role), .id = (uint32_t)id, .text = qn_text(text)};
}

static void show_notes(const tokenizer_t *tokenizer, qn_arena_t *arena, qn_tokenizer_info_reply_t *reply)
{
    size_t count = tokenizer_note_count(tokenizer);
    if (count > QN_TOKENIZER_INFO_REPLY_NOTES_MAX) count = QN_TOKENIZER_INFO_REPLY_NOTES_MAX;
    qn_text_t *notes = qn_arena_zalloc(arena, count + 1, sizeof *notes);
    for (size_t i = 0; i < count; i++) {
        notes[i] = qn_text(tokenizer_note(tokenizer, i));
        if (notes[i].bytes > QN_TOKENIZER_INFO_REPLY_NOTES_BYTES_MAX)
            notes[i].bytes = QN_TOKENIZER_INFO_REPLY_NOTES_BYTES_MAX;
    }
    reply->notes = notes;
    reply->notes_count = (uint32_t)count;
}

static qn_call_outcome_t method_info(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)message;
    const tokenizer_service_t *service = state;
    qn_tokenizer_info_reply_t *reply = ret_reply;
    qn_special_token_t *rows = qn_arena_zalloc(call->arena, SPECIAL_TOKENS, sizeof *rows);
    reply->special_tokens = rows;
    reply->streams = (uint32_t)streams_count(service->streams);
    reply->waiting_texts = (uint32_t)text_worker_count(service->worker);
    if (!service->tokenizer) return QN_CALL_DONE;
    const tokenizer_info_t *info = tokenizer_info(service->tokenizer);
    reply->text = true;
    reply->vocab_size = (uint32_t)tokenizer_vocab_size(service->tokenizer);
    reply->id_limit = tokenizer_id_limit(service->tokenizer);
    reply->class_name = qn_text(info->tokenizer_class);
    reply->chat_template = info->chat_template != NULL;
    reply->model_max_length = info->model_max_length > 0 ? (uint64_t)info->model_max_length : 0;
    add_special(rows, reply, "bos", info->bos_token, info->bos_id);
    add_special(rows, reply, "eos", info->eos_token, info->eos_id);
    add_special(rows, reply, "pad", info->pad_token, info->pad_id);
    add_special(rows, reply, "unk", info->unk_token, info->unk_id);
    show_notes(service->tokenizer, call->arena, reply);
    return QN_CALL_DONE;
}

/* ---- texts ---- */

static text_job_t *job_of(const qn_call_t *call, text_job_kind_t kind, const char *input)
{
    text_job_t *job = text_job_create(kind, call->from, call->id);
    job->is_call = true;
    job->call = *call;
    job->input = input;
    return job;
}

static qn_call_outcome_t method_encode(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    const qn_tokenizer_encode_t *asked = message;
    text_job_t *job = job_of(call, TEXT_JOB_TOKENIZE, "text");
    job->text = asked->text.data;
    job->text_bytes = asked->text.bytes;
    job->flags = TOKENIZER_WITH_SPANS | (asked->add_special_tokens ? TOKENIZER_ADD_SPECIAL : 0) |
                 (asked->parse_special_tokens ? TOKENIZER_PARSE_SPECIAL : 0);
    tokenizer_take_job(state, job);
    return QN_CALL_LATER;
}

static qn_call_outcome_t method_decode(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    (void)ret_reply;
    const qn_tokenizer_decode_t *asked = message;
    text_job_t *job = job_of(call, TEXT_JOB_DETOKENIZE, "ids");
    job->ids = asked->ids;
    job->id_count = asked->ids_count;
    job->flags = asked->skip_special_tokens ? TOKENIZER_SKIP_SPECIAL : 0;
    tokenizer_take_job(state, job);
    return QN_CALL_LATER;
}

static qn_text_t piece_of(const tokenizer_t *tokenizer, uint32_t id)
{
    size_t bytes = 0;
    const char *text = tokenizer_token_text(tokenizer, id, &bytes);
    return (qn_text_t){.data = text ? text : "", .bytes = text ? (uint32_t)bytes : 0};
}

static void answer_encode(tokenizer_service_t *service, const text_job_t *job)
{
    uint32_t count = (uint32_t)job->tokens.count;
    qn_arena_t arena;
    if (count > QN_TOKENIZER_ENCODE_REPLY_IDS_MAX) {
        qn_call_fail(&job->call, 413, "text", "text: it has %u tokens, %u can be shown; send less", count,
                     QN_TOKENIZER_ENCODE_REPLY_IDS_MAX);
        return;
    }
    qn_arena_init(&arena, 0);
    qn_text_t *tokens = qn_arena_zalloc(&arena, (size_t)count + 1, sizeof *tokens);
    uint32_t *begins = qn_arena_zalloc(&arena, (size_t)count + 1, sizeof *begins);
    uint32_t *ends = qn_arena_zalloc(&arena, (size_t)count + 1, sizeof *ends);
    for (uint32_t i = 0; i < count; i++) {
        tokens[i] = piece_of(service->tokenizer, job->tokens.ids[i]);
        begins[i] = job->tokens.spans[i].start;
        ends[i] = job->tokens.spans[i].end;
    }
    qn_tokenizer_encode_reply_t reply = {
        .count = count,
        .ids = job->tokens.ids,
        .ids_count = count,
        .tokens = tokens,
        .tokens_count = count,
        .begins = begins,
        .begins_count = count,
        .ends = ends,
        .ends_count = count,
    };
    qn_call_finish(&job->call, &reply);
    qn_arena_fini(&arena);
}

void tokenizer_answer_call(tokenizer_service_t *service, const text_job_t *job)
{
    if (job->kind == TEXT_JOB_TOKENIZE) {
        answer_encode(service, job);
        return;
    }
    uint32_t bytes = (uint32_t)job->decoded.length;
    qn_tokenizer_decode_reply_t reply = {
        .text = {.data = bytes ? (const char *)job->decoded.bytes : "", .bytes = bytes},
        .bytes = bytes,
    };
    qn_call_finish(&job->call, &reply);
}

/* ---- the vocabulary ---- */

static bool has_part(qn_text_t piece, qn_text_t part)
{
    return part.bytes == 0 || memmem(piece.data, piece.bytes, part.data, part.bytes) != NULL;
}

static qn_call_outcome_t method_vocabulary(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    const tokenizer_service_t *service = state;
    const qn_tokenizer_vocabulary_t *asked = message;
    qn_tokenizer_vocabulary_reply_t *reply = ret_reply;
    qn_vocabulary_token_t *rows = qn_arena_zalloc(call->arena, asked->limit, sizeof *rows);
    reply->tokens = rows;
    if (!service->tokenizer) return QN_CALL_DONE;
    reply->id_limit = tokenizer_id_limit(service->tokenizer);
    for (uint32_t id = asked->offset; id < reply->id_limit; id++) {
        qn_text_t piece = piece_of(service->tokenizer, id);
        if (!has_part(piece, asked->contains)) continue;
        if (reply->tokens_count == asked->limit) {
            reply->next = id;
            break;
        }
        rows[reply->tokens_count++] =
            (qn_vocabulary_token_t){.id = id, .text = piece, .special = tokenizer_is_special(service->tokenizer, id)};
    }
    return QN_CALL_DONE;
}

const qn_method_row_t tokenizer_methods[] = {
    {QN_METHOD_TOKENIZER_INFO, method_info},
    {QN_METHOD_TOKENIZER_ENCODE, method_encode},
    {QN_METHOD_TOKENIZER_DECODE, method_decode},
    {QN_METHOD_TOKENIZER_VOCABULARY, method_vocabulary},
    {QN_METHOD_TOKENIZER_LATENCY, tokenizer_method_latency},
    {QN_METHOD_NONE, NULL},
};
