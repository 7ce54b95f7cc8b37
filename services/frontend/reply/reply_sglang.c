/* What is this?      The SGLang shape of generated text.
 * State owned:       none; a choice remembers what its stream has shown.
 * Must never:        differ between a stream's last event and the whole answer.
 * Read next:         reply_parts.h; exchange_reply.c, which calls this. */
#include "services/frontend/reply/reply_sglang.h"

#include "services/frontend/reply/reply_batch.h"

#include <stdio.h>

#include "services/frontend/reply/reply_parts.h"

/* [logprob, id, text] */
static void put_triple(json_writer_t *writer, const reply_token_t *token, bool with_text)
{
    json_put_open(writer, '[');
    if (token->has_logprob)
        json_put_float(writer, token->logprob);
    else
        json_put_null(writer);
    json_put_unsigned(writer, token->id);
    if (with_text)
        reply_put_token(writer, token, false);
    else
        json_put_null(writer);
    json_put_close(writer, ']');
}

static void put_alternatives(json_writer_t *writer, const reply_token_t *token, bool with_text)
{
    if (!token->has_logprob) {
        json_put_null(writer);
        return;
    }
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < token->top_count; i++) {
        reply_token_t shown = reply_alternative(token, i);
        put_triple(writer, &shown, with_text);
    }
    json_put_close(writer, ']');
}

static void put_by_id(json_writer_t *writer, const reply_token_t *token, bool with_text)
{
    reply_token_t by_id = reply_by_id(*token);
    put_alternatives(writer, &by_id, with_text);
}

typedef void (*put_token_t)(json_writer_t *, const reply_token_t *, bool);

static void put_output(json_writer_t *writer, const char *key, const choice_t *choice, put_token_t put)
{
    const generation_t *generation = generation_for(&choice->exchange->generation, choice_prompt(choice));
    json_put_key(writer, key);
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < reply_visible_tokens(choice); i++) {
        reply_token_t token = reply_output_token(choice, i, (uint32_t)generation->logprobs);
        put(writer, &token, generation->text_in_logprobs);
    }
    json_put_close(writer, ']');
}

static void put_input(json_writer_t *writer, const char *key, const choice_t *choice, put_token_t put)
{
    const generation_t *generation = generation_for(&choice->exchange->generation, choice_prompt(choice));
    json_put_key(writer, key);
    json_put_open(writer, '[');
    for (uint32_t i = 0; generation->logprob_start >= 0 && i < reply_prompt_rows(choice); i++) {
        if (i < (uint32_t)generation->logprob_start) continue;
        reply_token_t token = reply_prompt_token(choice, i, (uint32_t)generation->logprobs);
        put(writer, &token, generation->text_in_logprobs);
    }
    json_put_close(writer, ']');
}

static void put_logprobs(json_writer_t *writer, const choice_t *choice)
{
    put_input(writer, "input_token_logprobs", choice, put_triple);
    put_output(writer, "output_token_logprobs", choice, put_triple);
    const generation_t *generation = generation_for(&choice->exchange->generation, choice_prompt(choice));
    if (generation->logprobs > 0) {
        put_input(writer, "input_top_logprobs", choice, put_alternatives);
        put_output(writer, "output_top_logprobs", choice, put_alternatives);
    }
    if (generation->logprob_id_count > 0) {
        put_input(writer, "input_token_ids_logprobs", choice, put_by_id);
        put_output(writer, "output_token_ids_logprobs", choice, put_by_id);
    }
}

/* {"type": "stop", "matched": "\n"}, {"type": "length", "length": 16}, {"type": "abort", "message": ...} or null. */
static void put_finish(json_writer_t *writer, const choice_t *choice)
{
    const generation_t *generation = generation_for(&choice->exchange->generation, choice_prompt(choice));
    json_put_key(writer, "finish_reason");
    if (!choice->ended) {
        json_put_null(writer);
        return;
    }
    json_put_open(writer, '{');
    json_put_member_string(writer, "type", reply_finish(choice));
    if (choice->end.finish == CHOICE_CANCELLED) {
        json_put_member_string(writer, "message", "aborted");
    } else if (choice->end.finish == CHOICE_LENGTH || generation->discard_output) {
        json_put_member_unsigned(writer, "length", reply_generated_tokens(choice));
    } else if (choice->end.by_stop_string && choice->end.stop_string < generation->stop_count) {
        const generation_text_t *stop = &generation->stop[choice->end.stop_string];
        json_put_key(writer, "matched");
        json_put_text(writer, stop->data, stop->bytes);
    } else if (choice->end.by_stop_id) {
        json_put_member_unsigned(writer, "matched", choice->end.stop_id);
    }
    json_put_close(writer, '}');
}

static void put_id(json_writer_t *writer, const choice_t *choice)
{
    const exchange_t *exchange = choice->exchange;
    const char *rid = exchange->generation.prompts[choice_prompt(choice)].rid;
    char id[QN_CLIENT_REQUEST_MAX + 16];
    if (rid)
        snprintf(id, sizeof id, "%s", rid);
    else if (exchange->choice_count > 1)
        snprintf(id, sizeof id, "%s_%u", exchange->client_id, choice->index);
    else
        snprintf(id, sizeof id, "%s", exchange->client_id);
    json_put_member_string(writer, "id", id);
}

static void put_meta(json_writer_t *writer, const choice_t *choice, uint64_t now_ns)
{
    const exchange_t *exchange = choice->exchange;
    uint64_t waited_ns = now_ns > exchange->received_ns ? now_ns - exchange->received_ns : 0;
    json_put_key(writer, "meta_info");
    json_put_open(writer, '{');
    put_id(writer, choice);
    put_finish(writer, choice);
    json_put_member_unsigned(writer, "prompt_tokens", choice_prompt_tokens(choice));
    json_put_member_unsigned(writer, "completion_tokens", reply_generated_tokens(choice));
    json_put_member_unsigned(writer, "cached_tokens", choice->ended ? choice->end.cached_tokens : 0);
    json_put_key(writer, "e2e_latency");
    json_put_number(writer, (double)waited_ns / 1e9);
    if (generation_for(&exchange->generation, choice_prompt(choice))->logprobs != GENERATION_NONE)
        put_logprobs(writer, choice);
    json_put_close(writer, '}');
}

static void put_choice(json_writer_t *writer, const choice_t *choice, bool with_index, uint64_t now_ns)
{
    json_put_open(writer, '{');
    json_put_key(writer, "text");
    uint32_t bytes = reply_visible_text(choice);
    json_put_text(writer, bytes ? choice->text.data : "", bytes);
    json_put_key(writer, "output_ids");
    json_put_open(writer, '[');
    for (uint32_t i = 0; i < reply_visible_tokens(choice); i++)
        json_put_unsigned(writer, choice->tokens.rows[i].token.id);
    json_put_close(writer, ']');
    put_meta(writer, choice, now_ns);
    if (with_index) json_put_member_unsigned(writer, "index", choice->index);
    json_put_close(writer, '}');
}

void reply_sglang_write(const exchange_t *exchange, uint64_t now_ns, reply_buffer_t *out)
{
    json_writer_t writer = json_writer_on(out);
    bool is_list = exchange->generation.is_list || exchange->choice_count > 1;
    bool wrapped = exchange->generation.api == GENERATION_BATCH; /* {"outputs": [...]} */
    if (wrapped) json_put_open(&writer, '{');
    if (wrapped) json_put_key(&writer, "outputs");
    if (is_list) json_put_open(&writer, '[');
    for (uint32_t i = 0; i < exchange->choice_count; i++)
        put_choice(&writer, &exchange->choices[i], false, now_ns);
    if (is_list) json_put_close(&writer, ']');
    if (exchange->batch) reply_batch_members(exchange, &writer);
    if (wrapped) json_put_close(&writer, '}');
}

bool reply_sglang_event(choice_t *choice, uint64_t now_ns, reply_buffer_t *out)
{
    uint32_t text = reply_visible_text(choice), tokens = reply_visible_tokens(choice);
    bool is_new = text > choice->shown_text || tokens > choice->shown_tokens || choice->ended;
    if (choice->shown_end || !is_new) return false;
    json_writer_t writer = json_writer_on(out);
    put_choice(&writer, choice, choice->exchange->choice_count > 1 || choice->exchange->generation.is_list, now_ns);
    choice->shown_text = text;
    choice->shown_tokens = tokens;
    choice->shown_end = choice->ended;
    choice->opened = true;
    return true;
}
