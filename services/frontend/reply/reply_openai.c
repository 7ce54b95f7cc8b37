/* What is this?      The OpenAI shape of a completion.
 * State owned:       none; a choice remembers what its stream has shown.
 * Must never:        show a byte twice, or a token before its text is known.
 * Read next:         reply_parts.h; exchange_reply.c, which calls this. */
#include "services/frontend/reply/reply_openai.h"

#include <stdio.h>
#include <string.h>

#include "services/frontend/reply/reply_parts.h"

/* Part of a choice that one reply or chunk shows. */
typedef struct {
    const choice_t *choice;
    bool echo;                   /* the prompt comes first */
    uint32_t text_from, text_to; /* bytes of the output */
    uint32_t token_from, token_to;
    bool end; /* with finish_reason */
} part_t;

static void put_head(json_writer_t *writer, const exchange_t *exchange, const char *model)
{
    char id[QN_CLIENT_REQUEST_MAX + 8];
    snprintf(id, sizeof id, "cmpl-%s", exchange->client_id);
    json_put_open(writer, '{');
    json_put_member_string(writer, "id", id);
    json_put_member_string(writer, "object", "text_completion");
    json_put_member_signed(writer, "created", exchange->created_s);
    json_put_member_string(writer, "model", model);
}

static void put_usage(json_writer_t *writer, const exchange_t *exchange)
{
    reply_usage_t usage = reply_usage(exchange);
    json_put_key(writer, "usage");
    json_put_open(writer, '{');
    json_put_member_unsigned(writer, "prompt_tokens", usage.prompt_tokens);
    json_put_member_unsigned(writer, "completion_tokens", usage.completion_tokens);
    json_put_member_unsigned(writer, "total_tokens", (uint64_t)usage.prompt_tokens + usage.completion_tokens);
    json_put_key(writer, "prompt_tokens_details");
    json_put_open(writer, '{');
    json_put_member_unsigned(writer, "cached_tokens", usage.cached_tokens);
    json_put_close(writer, '}');
    json_put_close(writer, '}');
}

/* ---- logprobs ---- */

static bool same_piece(const reply_token_t *a, const reply_token_t *b)
{
    return a->id == b->id ||
           (a->piece_bytes > 0 && a->piece_bytes == b->piece_bytes && memcmp(a->piece, b->piece, a->piece_bytes) == 0);
}

/* {token: logprob}: member names must differ, so of tokens that look the same the chosen one, else the likeliest,
 * stays. The chosen token is always there, so there may be one more entry than asked for. */
static void put_top(json_writer_t *writer, const reply_token_t *token, bool as_ids)
{
    bool chosen_shown = false;
    json_put_open(writer, '{');
    for (uint32_t i = 0; i < token->top_count; i++) {
        reply_token_t shown = reply_alternative(token, i);
        bool repeated = false;
        for (uint32_t j = 0; j < i && !repeated; j++) {
            reply_token_t before = reply_alternative(token, j);
            repeated = as_ids ? before.id == shown.id : same_piece(&before, &shown);
        }
        bool is_chosen = as_ids ? shown.id == token->id : same_piece(&shown, token);
        if (repeated) continue;
        if (is_chosen) chosen_shown = true;
        reply_put_token_key(writer, &shown, as_ids);
        json_put_float(writer, is_chosen ? token->logprob : shown.logprob);
    }
    if (!chosen_shown) {
        reply_put_token_key(writer, token, as_ids);
        json_put_float(writer, token->logprob);
    }
    json_put_close(writer, '}');
}

/* Calls `put` for every token of the part, the echoed prompt first. */
static void each_token(json_writer_t *writer, const char *key, const part_t *part,
                       void (*put)(json_writer_t *, const reply_token_t *, bool))
{
    const generation_t *generation = &part->choice->exchange->generation;
    uint32_t tops = (uint32_t)generation->logprobs;
    json_put_key(writer, key);
    json_put_open(writer, '[');
    for (uint32_t i = 0; part->echo && i < reply_prompt_rows(part->choice); i++) {
        reply_token_t token = reply_prompt_token(part->choice, i, tops);
        put(writer, &token, generation->tokens_as_ids);
    }
    for (uint32_t i = part->token_from; i < part->token_to; i++) {
        reply_token_t token = reply_output_token(part->choice, i, tops);
        if (generation->logprob_id_count) token = reply_by_id(token); /* instead of the likeliest, as vLLM */
        put(writer, &token, generation->tokens_as_ids);
    }
    json_put_close(writer, ']');
}

static void put_logprob(json_writer_t *writer, const reply_token_t *token, bool as_ids)
{
    (void)as_ids;
    if (token->has_logprob)
        json_put_float(writer, token->logprob);
    else
        json_put_null(writer);
}

static void put_top_or_null(json_writer_t *writer, const reply_token_t *token, bool as_ids)
{
    if (token->has_logprob)
        put_top(writer, token, as_ids);
    else
        json_put_null(writer);
}

static uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Of the prompt's tokens: as the tokenizer says; of a prompt that was cut, whose echo is the tokens' bytes, as these add
 * up. */
static void put_prompt_offsets(json_writer_t *writer, const part_t *part, uint32_t base)
{
    const choice_t *choice = part->choice;
    uint32_t count, before = 0;
    const uint32_t *offsets = reply_prompt_offsets(choice, &count);
    for (uint32_t i = 0; i < reply_prompt_rows(choice); i++) {
        reply_token_t token = reply_prompt_token(choice, i, 0);
        json_put_unsigned(writer, smaller(i < count ? offsets[i] : before, base));
        before += json_utf8_characters(token.piece, token.piece_bytes);
    }
}

/* Characters before each token's text, the echoed prompt included; Python counts characters. */
static void put_offsets(json_writer_t *writer, const part_t *part)
{
    const choice_t *choice = part->choice;
    generation_text_t prompt = reply_echo(choice);
    bool echoed = choice->exchange->generation.echo;
    uint32_t base = echoed ? json_utf8_characters(prompt.data, prompt.bytes) : 0;
    /* A stop string may have cut the text that tokens stood for: they point at its end. */
    uint32_t most = choice->ended ? json_utf8_characters(choice->text.data, choice->text.bytes) : UINT32_MAX - base;
    json_put_key(writer, "text_offset");
    json_put_open(writer, '[');
    if (part->echo) put_prompt_offsets(writer, part, base);
    for (uint32_t i = part->token_from; i < part->token_to; i++)
        json_put_unsigned(writer, base + smaller(i > 0 ? choice->tokens.rows[i - 1].text_end : 0, most));
    json_put_close(writer, ']');
}

static void put_logprobs(json_writer_t *writer, const part_t *part)
{
    json_put_key(writer, "logprobs");
    if (part->choice->exchange->generation.logprobs == GENERATION_NONE) {
        json_put_null(writer);
        return;
    }
    json_put_open(writer, '{');
    each_token(writer, "tokens", part, reply_put_token);
    each_token(writer, "token_logprobs", part, put_logprob);
    each_token(writer, "top_logprobs", part, put_top_or_null);
    put_offsets(writer, part);
    json_put_close(writer, '}');
}

/* ---- vLLM's additions ---- */

/* {"7": {"logprob", "rank", "decoded_token"}}; the rank of a chosen token outside the alternatives is not known. */
static void put_ranked(json_writer_t *writer, const reply_token_t *token, uint32_t rank)
{
    char id[16];
    snprintf(id, sizeof id, "%u", token->id);
    json_put_key(writer, id);
    json_put_open(writer, '{');
    json_put_key(writer, "logprob");
    json_put_float(writer, token->logprob);
    json_put_key(writer, "rank");
    if (rank)
        json_put_unsigned(writer, rank);
    else
        json_put_null(writer);
    json_put_key(writer, "decoded_token");
    reply_put_token(writer, token, false);
    json_put_close(writer, '}');
}

static void put_prompt_logprobs(json_writer_t *writer, const choice_t *choice)
{
    uint32_t tops = (uint32_t)choice->exchange->generation.prompt_logprobs;
    json_put_key(writer, "prompt_logprobs");
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < reply_prompt_rows(choice); i++) {
        reply_token_t token = reply_prompt_token(choice, i, tops);
        if (!token.has_logprob) {
            json_put_null(writer);
            continue;
        }
        bool chosen_shown = false;
        json_put_open(writer, '{');
        for (uint32_t j = 0; j < token.top_count; j++) {
            reply_token_t shown = reply_alternative(&token, j);
            put_ranked(writer, &shown, j + 1);
            chosen_shown |= shown.id == token.id;
        }
        if (!chosen_shown) put_ranked(writer, &token, 0);
        json_put_close(writer, '}');
    }
    json_put_close(writer, ']');
}

static void put_ids(json_writer_t *writer, const part_t *part, bool with_prompt)
{
    json_put_key(writer, "token_ids");
    json_put_open(writer, '[');
    for (uint32_t i = part->token_from; i < part->token_to; i++)
        json_put_unsigned(writer, part->choice->tokens.rows[i].token.id);
    json_put_close(writer, ']');
    json_put_key(writer, "prompt_token_ids");
    if (!with_prompt) {
        json_put_null(writer);
        return;
    }
    json_put_open(writer, '[');
    uint32_t count = reply_prompt_ids(part->choice);
    for (uint32_t i = 0; i < count; i++)
        json_put_unsigned(writer, reply_prompt_id(part->choice, i));
    json_put_close(writer, ']');
}

/* The stop string, or a stop id of the request; the model's own end token is no reason to name. */
static void put_stop_reason(json_writer_t *writer, const choice_t *choice)
{
    const generation_t *generation = &choice->exchange->generation;
    json_put_key(writer, "stop_reason");
    if (choice->end.by_stop_string && choice->end.stop_string < generation->stop_count) {
        const generation_text_t *stop = &generation->stop[choice->end.stop_string];
        json_put_text(writer, stop->data, stop->bytes);
        return;
    }
    for (uint32_t i = 0; choice->end.by_stop_id && i < generation->stop_id_count; i++) {
        if (generation->stop_ids[i] != choice->end.stop_id) continue;
        json_put_unsigned(writer, choice->end.stop_id);
        return;
    }
    json_put_null(writer);
}

/* ---- choices ---- */

static void put_text(json_writer_t *writer, const part_t *part)
{
    const choice_t *choice = part->choice;
    const char *text = part->text_to > part->text_from ? choice->text.data + part->text_from : "";
    json_put_key(writer, "text");
    if (!part->echo) {
        json_put_text(writer, text, part->text_to - part->text_from);
        return;
    }
    generation_text_t prompt = reply_echo(choice);
    reply_buffer_t both = {0};
    reply_buffer_append(&both, prompt.data, prompt.bytes);
    reply_buffer_append(&both, text, part->text_to - part->text_from);
    json_put_text(writer, both.bytes ? both.data : "", both.bytes);
    reply_buffer_fini(&both);
}

static void put_choice(json_writer_t *writer, const part_t *part, uint32_t index, bool is_first)
{
    const choice_t *choice = part->choice;
    const generation_t *generation = &choice->exchange->generation;
    json_put_open(writer, '{');
    json_put_member_unsigned(writer, "index", index);
    put_text(writer, part);
    put_logprobs(writer, part);
    json_put_member_string(writer, "finish_reason", part->end ? reply_finish(choice) : NULL);
    if (part->end)
        put_stop_reason(writer, choice);
    else
        json_put_member_null(writer, "stop_reason");
    if (generation->show_prompt_logprobs) put_prompt_logprobs(writer, choice);
    if (generation->return_token_ids) put_ids(writer, part, is_first);
    json_put_close(writer, '}');
}

void reply_openai_write(const exchange_t *exchange, const char *model, reply_buffer_t *out)
{
    const generation_t *generation = &exchange->generation;
    json_writer_t writer = json_writer_on(out);
    put_head(&writer, exchange, model);
    json_put_key(&writer, "choices");
    json_put_open(&writer, '[');
    for (uint32_t prompt = 0; prompt < generation->prompt_count; prompt++) {
        uint32_t order[QN_CHOICES_MAX];
        exchange_rank(exchange, prompt, order);
        for (uint32_t i = 0; i < generation->n; i++) {
            const choice_t *choice = &exchange->choices[prompt * generation->best_of + order[i]];
            part_t part = {.choice = choice,
                           .echo = generation->echo,
                           .text_to = reply_visible_text(choice),
                           .token_to = reply_visible_tokens(choice),
                           .end = true};
            put_choice(&writer, &part, prompt * generation->n + i, true);
        }
    }
    json_put_close(&writer, ']');
    put_usage(&writer, exchange);
    json_put_close(&writer, '}');
}

/* Whether the part says anything; a token that ends inside a character has no text yet. */
static bool is_worth_a_chunk(const part_t *part)
{
    const generation_t *generation = &part->choice->exchange->generation;
    bool shows_tokens = generation->logprobs != GENERATION_NONE || generation->return_token_ids;
    return part->end || part->text_to > part->text_from || (shows_tokens && part->token_to > part->token_from);
}

bool reply_openai_chunk(choice_t *choice, const char *model, reply_buffer_t *out)
{
    const exchange_t *exchange = choice->exchange;
    part_t part = {
        .choice = choice,
        .echo = exchange->generation.echo && !choice->opened,
        .text_from = choice->shown_text,
        .text_to = reply_visible_text(choice),
        .token_from = choice->shown_tokens,
        .token_to = reply_visible_tokens(choice),
        .end = choice->ended,
    };
    if (choice->shown_end || !is_worth_a_chunk(&part)) return false;
    json_writer_t writer = json_writer_on(out);
    put_head(&writer, exchange, model);
    json_put_key(&writer, "choices");
    json_put_open(&writer, '[');
    put_choice(&writer, &part, choice->index, !choice->opened);
    json_put_close(&writer, ']');
    if (exchange->generation.continuous_usage)
        put_usage(&writer, exchange);
    else if (exchange->generation.include_usage)
        json_put_member_null(&writer, "usage");
    json_put_close(&writer, '}');
    choice->shown_text = part.text_to;
    choice->shown_tokens = part.token_to;
    choice->opened = true;
    choice->shown_end = part.end;
    return true;
}

json_writer_t reply_openai_open_chunk(const exchange_t *exchange, const char *model, reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    put_head(&writer, exchange, model);
    json_put_key(&writer, "choices");
    json_put_open(&writer, '[');
    json_put_close(&writer, ']');
    return writer;
}

void reply_openai_usage_chunk(const exchange_t *exchange, const char *model, reply_buffer_t *out)
{
    json_writer_t writer = reply_openai_open_chunk(exchange, model, out);
    put_usage(&writer, exchange);
    json_put_close(&writer, '}');
}
