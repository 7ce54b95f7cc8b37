/* What is this?      The views of an exchange that replies are written from.
 * State owned:       none.
 * Must never:        decide the shape of a reply.
 * Read next:         reply_openai.c, reply_sglang.c. */
#include "services/frontend/reply/reply_parts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define LOGPROB_FLOOR (-9999.0f) /* JSON has no -infinity; vLLM's stand-in */

static const generation_t *generation_of(const choice_t *choice)
{
    return generation_for(&choice->exchange->generation, choice_prompt(choice));
}

uint32_t reply_visible_tokens(const choice_t *choice)
{
    return generation_of(choice)->discard_output ? 0 : choice->tokens.count;
}

uint32_t reply_visible_text(const choice_t *choice)
{
    return generation_of(choice)->discard_output ? 0 : (uint32_t)choice->text.bytes;
}

uint32_t reply_generated_tokens(const choice_t *choice)
{
    if (generation_of(choice)->discard_output) return 0;
    return choice->ended ? choice->end.generated_tokens : choice->tokens.count;
}

const char *reply_finish(const choice_t *choice)
{
    if (choice->end.finish == CHOICE_CANCELLED) return "abort";
    if (generation_of(choice)->discard_output) return "length";
    return choice->end.finish == CHOICE_STOP ? "stop" : "length";
}

generation_text_t reply_echo(const choice_t *choice)
{
    uint32_t index = choice_prompt(choice);
    const prompt_facts_t *facts = &choice->exchange->facts[index];
    if (facts->wants_text) return (generation_text_t){.data = facts->text.data, .bytes = facts->text.bytes};
    if (generation_of(choice)->truncate_prompt_tokens) /* the kept tokens' bytes, one after the other */
        return (generation_text_t){.data = facts->ids.pieces.data, .bytes = facts->ids.pieces.bytes};
    return generation_of(choice)->prompts[index].text;
}

const uint32_t *reply_prompt_offsets(const choice_t *choice, uint32_t *ret_count)
{
    const reply_buffer_t *offsets = &choice->exchange->facts[choice_prompt(choice)].offsets;
    *ret_count = (uint32_t)(offsets->bytes / sizeof(uint32_t));
    return (const uint32_t *)(const void *)offsets->data;
}

uint32_t reply_prompt_ids(const choice_t *choice)
{
    uint32_t index = choice_prompt(choice);
    const prompt_facts_t *facts = &choice->exchange->facts[index];
    return facts->has_ids ? facts->ids.count : generation_of(choice)->prompts[index].id_count;
}

uint32_t reply_prompt_id(const choice_t *choice, uint32_t index)
{
    uint32_t prompt = choice_prompt(choice);
    const prompt_facts_t *facts = &choice->exchange->facts[prompt];
    return facts->has_ids ? facts->ids.rows[index].token.id : generation_of(choice)->prompts[prompt].ids[index];
}

static float shown_logprob(float logprob) { return logprob >= LOGPROB_FLOOR ? logprob : LOGPROB_FLOOR; }

/* The last `ids` of a row's alternatives were asked for by id. */
static reply_token_t row_view(const token_log_t *log, uint32_t index, uint32_t tops, uint32_t ids)
{
    const token_row_t *row = &log->rows[index];
    uint32_t by_id = row->top_count < ids ? 0 : ids, likeliest = row->top_count - by_id;
    return (reply_token_t){
        .id = row->token.id,
        .has_logprob = true,
        .logprob = shown_logprob(row->token.logprob),
        .piece = token_log_piece(log, &row->token),
        .piece_bytes = row->token.piece_bytes,
        .log = log,
        .tops = row->top_count ? log->tops + row->top_offset : NULL,
        .top_count = likeliest < tops ? likeliest : tops,
        .by_id = by_id ? log->tops + row->top_offset + likeliest : NULL,
        .by_id_count = by_id,
    };
}

reply_token_t reply_output_token(const choice_t *choice, uint32_t index, uint32_t tops)
{
    return row_view(&choice->tokens, index, tops, generation_of(choice)->logprob_id_count);
}

uint32_t reply_prompt_rows(const choice_t *choice)
{
    return choice->prompt.count ? choice->prompt.count : reply_prompt_ids(choice) ? 1 : 0;
}

/* The first token has no log-probability and messages may leave it out: its id and bytes are facts about the prompt. */
static reply_token_t first_token(const choice_t *choice)
{
    const prompt_facts_t *facts = &choice->exchange->facts[choice_prompt(choice)];
    reply_token_t token = {.id = reply_prompt_id(choice, 0), .piece = ""};
    if (facts->has_ids) {
        token.piece = token_log_piece(&facts->ids, &facts->ids.rows[0].token);
        token.piece_bytes = facts->ids.rows[0].token.piece_bytes;
    } else if (facts->has_first && facts->first.bytes) {
        token.piece = facts->first.data;
        token.piece_bytes = facts->first.bytes;
    }
    return token;
}

reply_token_t reply_prompt_token(const choice_t *choice, uint32_t index, uint32_t tops)
{
    if (index == 0) return first_token(choice);
    return row_view(&choice->prompt, index, tops, generation_of(choice)->logprob_id_count);
}

reply_token_t reply_by_id(reply_token_t token)
{
    token.tops = token.by_id;
    token.top_count = token.by_id_count;
    return token;
}

reply_token_t reply_alternative(const reply_token_t *token, uint32_t index)
{
    const token_entry_t *entry = &token->tops[index];
    return (reply_token_t){
        .id = entry->id,
        .has_logprob = true,
        .logprob = entry->id == token->id ? token->logprob : shown_logprob(entry->logprob),
        .piece = token_log_piece(token->log, entry),
        .piece_bytes = entry->piece_bytes,
    };
}

/* Calls `put` with the token's text. A piece has at most 65535 bytes, so a broken one is shown by its first bytes. */
static void put_with(json_writer_t *writer, const reply_token_t *token, bool as_id,
                     void (*put)(json_writer_t *, const char *, size_t))
{
    char text[512];
    size_t used;
    if (as_id || token->piece_bytes == 0) { /* without tokenizer.json there are no bytes, and keys must differ */
        used = (size_t)snprintf(text, sizeof text, "token_id:%u", token->id);
    } else if (json_utf8_valid(token->piece, token->piece_bytes)) {
        put(writer, token->piece, token->piece_bytes);
        return;
    } else {
        used = (size_t)snprintf(text, sizeof text, "bytes:");
        for (size_t i = 0; i < token->piece_bytes && used + 5 < sizeof text; i++)
            used += (size_t)snprintf(text + used, sizeof text - used, "\\x%02x", (unsigned char)token->piece[i]);
    }
    put(writer, text, used);
}

void reply_put_token(json_writer_t *writer, const reply_token_t *token, bool as_id)
{
    put_with(writer, token, as_id, json_put_text);
}

void reply_put_token_key(json_writer_t *writer, const reply_token_t *token, bool as_id)
{
    put_with(writer, token, as_id, json_put_key_text);
}

reply_usage_t reply_usage(const exchange_t *exchange)
{
    reply_usage_t usage = {0};
    for (uint32_t i = 0; i < exchange->choice_count; i++) {
        const choice_t *choice = &exchange->choices[i];
        usage.completion_tokens += reply_generated_tokens(choice);
        if (i % exchange->generation.best_of != 0) continue; /* choices of one prompt share it */
        usage.prompt_tokens += choice_prompt_tokens(choice);
        usage.cached_tokens += choice->ended ? choice->end.cached_tokens : 0;
    }
    return usage;
}
