/* What is this?      The tokenizer's methods: its vocabulary, text to ids and back, for people.
 * State owned:       none; the service's.
 * Must never:        hold up the loop: what is long is bounded in schemas/tokenizer/.
 * Read next:         common/daemon/calls.h, tokenizer.h. */
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

const qn_method_row_t tokenizer_methods[] = {
    {QN_METHOD_TOKENIZER_INFO, method_info},
    {QN_METHOD_NONE, NULL},
};
