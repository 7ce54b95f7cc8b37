/* What is this?      The translation between messages and the frontend's nouns; the only file that knows both.
 * State owned:       none; what arrives is recorded in the request table.
 * Must never:        answer a client: it marks exchanges, the tick looks at them.
 * Read next:         request_table.h, exchange_reply.c, schemas/encode.fbs, schemas/text_delta.fbs */
#include "services/frontend/handlers.h"

#include <stdio.h>
#include <string.h>

#include "common/watch/log.h"
#include "services/frontend/methods/call.h"

/* ---- what came ------------------------------------------------------------------------------------------------- */

static void bad_message(const char *type, const char *what)
{
    qn_log_warning("%s dropped: %s; the peer's build does not match this one", type, what);
}

static void fail_gap(frontend_t *frontend, exchange_t *exchange)
{
    http_error_t error;
    http_error_set(&error, 500, NULL, "Part of the output was lost between services. Send the request again.");
    frontend_count(frontend, FRONTEND_STAT_GAPS, 1);
    frontend_fail(frontend, exchange, &error);
}

/* A token without bytes may come in a message without pieces. */
static const uint8_t *piece_at(const uint8_t *pieces, uint64_t offset, uint16_t bytes)
{
    return bytes ? pieces + offset : NULL;
}

/* Where each token's bytes begin in `pieces`; NULL when the lengths do not add up. */
static const uint32_t *piece_offsets(frontend_t *frontend, const qn_text_delta_t *delta)
{
    uint32_t *offsets = qn_arena_zalloc(&frontend->scratch, (size_t)delta->tokens_count + 1, sizeof *offsets);
    uint64_t used = 0;
    for (uint32_t i = 0; i < delta->tokens_count; i++) {
        offsets[i] = (uint32_t)used;
        used += delta->tokens[i].piece_bytes;
    }
    return used <= delta->pieces_count ? offsets : NULL;
}

/* Takes the tokens of one delta, each followed by its alternatives. False: the message is broken. */
static bool take_tokens(frontend_t *frontend, choice_t *choice, const qn_text_delta_t *message, const qn_delta_t *delta,
                        const uint32_t *offsets, choice_outcome_t *ret_outcome)
{
    uint64_t at = delta->token_offset;
    for (uint32_t i = 0; i < delta->token_count; i++) {
        if (at >= message->tokens_count || at + message->tokens[at].top_count >= message->tokens_count) return false;
        const qn_text_token_t *token = &message->tokens[at];
        choice_outcome_t outcome = choice_expect_token(choice, delta->token_position + i);
        if (outcome == CHOICE_GAP) {
            *ret_outcome = outcome;
            return true;
        }
        if (outcome == CHOICE_REPEATED) frontend_count(frontend, FRONTEND_STAT_REPEATED, 1);
        if (outcome == CHOICE_NEW)
            token_log_add(&choice->tokens, token->id, token->logprob, token->text_end,
                          piece_at(message->pieces, offsets[at], token->piece_bytes), token->piece_bytes);
        for (uint8_t j = 1; outcome == CHOICE_NEW && j <= token->top_count; j++)
            token_log_add_top(&choice->tokens, token[j].id, token[j].logprob,
                              piece_at(message->pieces, offsets[at + j], token[j].piece_bytes), token[j].piece_bytes);
        at += 1u + token->top_count;
    }
    return true;
}

static void take_delta(frontend_t *frontend, const qn_text_delta_t *message, const qn_delta_t *delta,
                       const uint32_t *offsets)
{
    reference_t found = request_table_find(frontend->table, delta->request);
    if (found.kind != REFERENCE_CHOICE) {
        frontend_count(frontend, FRONTEND_STAT_UNKNOWN, 1); /* late: the client left */
        return;
    }
    choice_t *choice = &found.exchange->choices[found.index];
    qn_in_hand_take(frontend->hand, found.exchange->hand_key);
    if ((uint64_t)delta->text_offset + delta->text_bytes > message->text.bytes) {
        bad_message("TextDelta", "a delta points outside the text");
        return;
    }
    const char *text = message->text.data ? message->text.data + delta->text_offset : "";
    choice_outcome_t outcome = choice_add_text(choice, delta->text_position, text, delta->text_bytes);
    if (outcome != CHOICE_GAP && !take_tokens(frontend, choice, message, delta, offsets, &outcome)) {
        bad_message("TextDelta", "a delta points outside the tokens");
        return;
    }
    if (outcome == CHOICE_GAP) fail_gap(frontend, found.exchange);
    request_table_mark(frontend->table, found.exchange);
}

static choice_finish_t finish_of(qn_finish_t finish)
{
    switch (finish) {
    case QN_FINISH_STOP: return CHOICE_STOP;
    case QN_FINISH_LENGTH: return CHOICE_LENGTH;
    case QN_FINISH_CANCELLED: return CHOICE_CANCELLED;
    case QN_FINISH_NONE:
    case QN_FINISH_ERROR: break;
    }
    return CHOICE_FAILED;
}

static void take_end(frontend_t *frontend, const qn_sequence_end_t *end)
{
    reference_t found = request_table_find(frontend->table, end->request);
    if (found.kind != REFERENCE_CHOICE) return;
    choice_end_t last = {
        .prompt_tokens = end->prompt_tokens,
        .cached_tokens = end->cached_tokens,
        .generated_tokens = end->generated_tokens,
        .finish = finish_of(end->finish),
        .by_stop_id = end->by_stop_id,
        .by_stop_string = end->by_stop_string,
        .stop_id = end->stop_id,
        .stop_string = end->stop_string,
    };
    choice_end(&found.exchange->choices[found.index], &last);
    frontend_choice_ended(frontend, found.exchange);
    request_table_mark(frontend->table, found.exchange);
}

static void take_read(frontend_t *frontend, const qn_sequence_read_t *read)
{
    reference_t found = request_table_find(frontend->table, read->request);
    if (found.kind != REFERENCE_CHOICE || read->all == 0) return;
    found.exchange->choices[found.index].kv_read_share = (double)read->read / (double)read->all;
}

static void take_timeline(frontend_t *frontend, const qn_timeline_t *timeline)
{
    reference_t found = request_table_find(frontend->table, timeline->request);
    if (found.kind != REFERENCE_CHOICE) return;
    const uint64_t stages[STAGE_COUNT] = {
        [STAGE_RECEIVED] = timeline->received_ns,       [STAGE_ENCODE_BEGIN] = timeline->encode_begin_ns,
        [STAGE_SUBMITTED] = timeline->submitted_ns,     [STAGE_QUEUED] = timeline->queued_ns,
        [STAGE_PLANNED] = timeline->planned_ns,         [STAGE_EXECUTED] = timeline->executed_ns,
        [STAGE_COMPUTED] = timeline->computed_ns,       [STAGE_RESULTED] = timeline->resulted_ns,
        [STAGE_DETOKENIZED] = timeline->detokenized_ns,
    };
    uint64_t *known = found.exchange->choices[found.index].stages;
    for (unsigned i = 0; i < STAGE_COUNT; i++) /* a scheduler that was restarted tells it again */
        if (!known[i]) known[i] = stages[i];
}

static void handle_text_delta(void *state, qn_peer_t from, const void *message)
{
    (void)from;
    frontend_t *frontend = state;
    const qn_text_delta_t *delta = message;
    qn_arena_reset(&frontend->scratch);
    const uint32_t *offsets = piece_offsets(frontend, delta);
    if (!offsets) {
        bad_message("TextDelta", "pieces are shorter than their lengths");
        return;
    }
    for (uint32_t i = 0; i < delta->deltas_count; i++)
        take_delta(frontend, delta, &delta->deltas[i], offsets);
    qn_in_hand_take(frontend->hand, 0);
    for (uint32_t i = 0; i < delta->timelines_count; i++)
        take_timeline(frontend, &delta->timelines[i]);
    for (uint32_t i = 0; i < delta->reads_count; i++)
        take_read(frontend, &delta->reads[i]);
    for (uint32_t i = 0; i < delta->ends_count; i++)
        take_end(frontend, &delta->ends[i]);
}

/* Lengths of the vectors agree with each other, so that they may be walked together. */
static bool is_whole(const qn_prompt_logprobs_t *message)
{
    uint64_t entries = (uint64_t)message->ids_count + message->top_count, pieces = 0;
    for (uint32_t i = 0; i < message->piece_bytes_count; i++)
        pieces += message->piece_bytes[i];
    return message->logprobs_count == message->ids_count &&
           message->top_count == (uint64_t)message->ids_count * message->top_per_token &&
           (message->piece_bytes_count == 0 || message->piece_bytes_count == entries) &&
           pieces <= message->pieces_count;
}

static void take_prompt_token(choice_t *choice, const qn_prompt_logprobs_t *message, uint32_t index,
                              const uint32_t *offsets)
{
    const uint16_t *lengths =
        message->piece_bytes_count ? message->piece_bytes : NULL; /* of tokens, then alternatives */
    uint16_t bytes = lengths ? lengths[index] : 0;
    token_log_add(&choice->prompt, message->ids[index], message->logprobs[index], 0,
                  piece_at(message->pieces, bytes ? offsets[index] : 0, bytes), bytes);
    for (uint32_t i = 0; i < message->top_per_token; i++) {
        uint32_t top = index * message->top_per_token + i, piece = message->ids_count + top;
        bytes = lengths ? lengths[piece] : 0;
        token_log_add_top(&choice->prompt, message->top[top].id, message->top[top].logprob,
                          piece_at(message->pieces, bytes ? offsets[piece] : 0, bytes), bytes);
    }
}

static void handle_prompt_logprobs(void *state, qn_peer_t from, const void *message)
{
    (void)from;
    frontend_t *frontend = state;
    const qn_prompt_logprobs_t *logprobs = message;
    reference_t found = request_table_find(frontend->table, logprobs->head.request);
    if (found.kind != REFERENCE_CHOICE) return;
    if (!is_whole(logprobs)) {
        bad_message("PromptLogprobs", "its vectors do not fit together");
        return;
    }
    qn_arena_reset(&frontend->scratch);
    uint32_t *offsets = qn_arena_zalloc(&frontend->scratch, (size_t)logprobs->piece_bytes_count + 1, sizeof *offsets);
    for (uint32_t i = 0; i < logprobs->piece_bytes_count; i++)
        offsets[i + 1] = offsets[i] + logprobs->piece_bytes[i];
    choice_t *choice = &found.exchange->choices[found.index];
    for (uint32_t i = 0; i < logprobs->ids_count; i++) {
        choice_outcome_t outcome = choice_expect_prompt(choice, logprobs->position + i);
        if (outcome == CHOICE_NEW) take_prompt_token(choice, logprobs, i, offsets);
        if (outcome == CHOICE_GAP) {
            fail_gap(frontend, found.exchange);
            return;
        }
    }
}

/* ---- answers to questions ---- */

static void fact_came(frontend_t *frontend, exchange_t *exchange, bool *has)
{
    if (*has) return;
    *has = true;
    exchange->facts_missing--;
    request_table_mark(frontend->table, exchange);
}

static void answered(frontend_t *frontend, exchange_t *exchange)
{
    exchange->answered = true;
    request_table_mark(frontend->table, exchange);
}

static bool pieces_fit(const qn_tokenized_t *message)
{
    uint64_t bytes = 0;
    if (message->piece_bytes_count == 0) return true;
    if (message->piece_bytes_count != message->ids_count) return false;
    for (uint32_t i = 0; i < message->ids_count; i++)
        bytes += message->piece_bytes[i];
    return bytes <= message->pieces_count;
}

/* Copies ids and pieces from `first` on. False: the message is broken. */
static bool copy_tokens(const qn_tokenized_t *message, uint32_t first, token_log_t *ret_log)
{
    uint64_t offset = 0;
    bool pieces = message->piece_bytes_count > 0;
    if (pieces && message->piece_bytes_count != message->ids_count) return false;
    for (uint32_t i = 0; i < message->ids_count; i++) {
        uint16_t bytes = pieces ? message->piece_bytes[i] : 0;
        if (offset + bytes > message->pieces_count) return false;
        if (i >= first) token_log_add(ret_log, message->ids[i], 0, 0, piece_at(message->pieces, offset, bytes), bytes);
        offset += bytes;
    }
    return true;
}

static void handle_tokenized(void *state, qn_peer_t from, const void *message)
{
    (void)from;
    frontend_t *frontend = state;
    const qn_tokenized_t *tokenized = message;
    reference_t found = request_table_find(frontend->table, tokenized->head.request);
    if (found.kind == REFERENCE_IDS && found.exchange->facts[found.index].wants_ids) {
        prompt_facts_t *facts = &found.exchange->facts[found.index];
        uint32_t keep = found.exchange->generation.truncate_prompt_tokens;
        uint32_t first = keep && keep < tokenized->ids_count ? tokenized->ids_count - keep : 0;
        if (facts->has_ids) return;
        if (!copy_tokens(tokenized, first, &facts->ids)) bad_message("Tokenized", "its vectors do not fit together");
        reply_buffer_append(&facts->offsets, tokenized->offsets, tokenized->offsets_count * sizeof(uint32_t));
        fact_came(frontend, found.exchange, &facts->has_ids);
    } else if (found.kind == REFERENCE_QUERY && found.exchange->route == ROUTE_TOKENIZE && !found.exchange->answered) {
        if (tokenized->ids_count > REPLY_INLINE_TOKENS && pieces_fit(tokenized)) {
            frontend_write_tokens(frontend, tokenized, found.exchange->want_pieces);
            return;
        }
        token_log_t tokens = {0};
        if (!copy_tokens(tokenized, 0, &tokens)) bad_message("Tokenized", "its vectors do not fit together");
        reply_query_tokens(&tokens, frontend->model.max_model_len, found.exchange->want_pieces, &found.exchange->body);
        token_log_fini(&tokens);
        answered(frontend, found.exchange);
    }
}

static void handle_detokenized(void *state, qn_peer_t from, const void *message)
{
    (void)from;
    frontend_t *frontend = state;
    const qn_detokenized_t *detokenized = message;
    reference_t found = request_table_find(frontend->table, detokenized->head.request);
    if (found.kind == REFERENCE_QUERY && found.exchange->route == ROUTE_DETOKENIZE && !found.exchange->answered) {
        reply_query_text(detokenized->text.data, detokenized->text.bytes, &found.exchange->body);
        answered(frontend, found.exchange);
        return;
    }
    if (found.kind != REFERENCE_TEXT && found.kind != REFERENCE_FIRST) return;
    prompt_facts_t *facts = &found.exchange->facts[found.index];
    bool is_text = found.kind == REFERENCE_TEXT;
    if (is_text ? !facts->wants_text || facts->has_text : !facts->wants_first || facts->has_first) return;
    reply_buffer_append(is_text ? &facts->text : &facts->first, detokenized->text.data, detokenized->text.bytes);
    if (is_text)
        reply_buffer_append(&facts->offsets, detokenized->offsets, detokenized->offsets_count * sizeof(uint32_t));
    fact_came(frontend, found.exchange, is_text ? &facts->has_text : &facts->has_first);
}

static void handle_cache_stats(void *state, qn_peer_t from, const void *message)
{
    (void)from;
    frontend_t *frontend = state;
    const qn_cache_stats_t *stats = message;
    reference_t found = request_table_find(frontend->table, stats->head.request);
    if (found.kind != REFERENCE_QUERY || found.exchange->route != ROUTE_CACHE_STATS || found.exchange->answered) return;
    cache_figures_t figures = {
        .block_tokens = stats->block_tokens,
        .total_blocks = stats->total_blocks,
        .used_blocks = stats->used_blocks,
        .cached_blocks = stats->cached_blocks,
        .free_blocks = stats->free_blocks,
        .sequences = stats->sequences,
        .block_bytes = stats->block_bytes,
        .pins = stats->pins,
        .pinned_blocks = stats->pinned_blocks,
        .lookups = stats->lookups,
        .hits = stats->hits < stats->lookups ? stats->hits : stats->lookups,
        .lookup_tokens = stats->lookup_tokens,
        .hit_tokens = stats->hit_tokens,
        .evictions = stats->evictions,
        .grants = stats->grants,
        .grants_short = stats->grants_short,
        .flushes = stats->flushes,
        .policy = stats->policy.data,
    };
    reply_query_cache(&figures, &found.exchange->body);
    answered(frontend, found.exchange);
}

static void handle_flushed(void *state, qn_peer_t from, const void *message)
{
    (void)from;
    frontend_t *frontend = state;
    const qn_flushed_t *flushed = message;
    reference_t found = request_table_find(frontend->table, flushed->head.request);
    if (found.kind != REFERENCE_QUERY || found.exchange->route != ROUTE_FLUSH_CACHE || found.exchange->answered) return;
    reply_query_flushed(flushed->freed_blocks, &found.exchange->body);
    answered(frontend, found.exchange);
}

static void handle_model_description(void *state, qn_peer_t from, const void *message)
{
    (void)from;
    frontend_t *frontend = state;
    const qn_model_description_t *description = message;
    served_model_t *model = &frontend->model;
    snprintf(model->id, sizeof model->id, "%s", description->model.data);
    snprintf(model->architecture, sizeof model->architecture, "%s",
             description->architecture.data ? description->architecture.data : "");
    model->kv_dtype = qn_dtype_enum.names[description->kv_dtype];
    model->described = true;
    model->vocab_size = description->vocab_size;
    model->max_model_len = description->max_model_len;
    model->block_tokens = description->block_tokens;
    model->block_count = description->block_count;
    model->bos_id = description->bos_id;
    model->layers = description->layers;
    model->heads = description->heads;
    model->weights_bytes = description->weights_bytes;
    const qn_sampling_t *sampling = &description->default_sampling;
    model->defaults = (qn_generation_config_t){.temperature = sampling->temperature,
                                               .top_p = sampling->top_p,
                                               .min_p = sampling->min_p,
                                               .repetition_penalty = sampling->repetition_penalty,
                                               .top_k = sampling->top_k,
                                               .max_tokens = sampling->max_tokens};
    model->warnings = (qn_model_warnings_t){0};
    for (uint32_t i = 0; i < description->warnings_count; i++)
        qn_model_warn(&model->warnings, "%.*s", (int)description->warnings[i].bytes, description->warnings[i].data);
    model->eos_id_count = description->eos_ids_count;
    if (description->eos_ids_count)
        memcpy(model->eos_ids, description->eos_ids, description->eos_ids_count * sizeof *model->eos_ids);
}

/* A question about a prompt that the tokenizer cannot answer (no vocabulary) leaves the text empty; anything else that
 * is refused, an answer that would be too large (413) too, fails the request it belongs to. */
static void handle_refusal(void *state, qn_peer_t from, const void *message)
{
    (void)from;
    frontend_t *frontend = state;
    const qn_refusal_t *refusal = message;
    if (frontend_refuse_call(frontend, refusal)) return;
    reference_t found = request_table_find(frontend->table, refusal->head.request);
    const char *text = refusal->text.data ? refusal->text.data : "refused without a reason";
    if (found.kind == REFERENCE_NONE) {
        if (refusal->head.request == 0)
            qn_log_warning("%s refused a frame: %s", qn_service_enum.names[from.service], text);
        return;
    }
    bool of_ids = found.kind == REFERENCE_TEXT || found.kind == REFERENCE_FIRST;
    if (of_ids && refusal->status != 413) {
        prompt_facts_t *facts = &found.exchange->facts[found.index];
        bool is_text = found.kind == REFERENCE_TEXT;
        if (is_text ? facts->wants_text : facts->wants_first)
            fact_came(frontend, found.exchange, is_text ? &facts->has_text : &facts->has_first);
        return;
    }
    http_error_t error;
    const char *param = of_ids ? "prompt" : refusal->param.data;
    if (found.exchange->kind == EXCHANGE_GENERATION) param = generation_field_name(&found.exchange->generation, param);
    http_error_set(&error, refusal->status, param, "%s", text);
    if (refusal->retry_after_ms) error.retry_after_s = (refusal->retry_after_ms + 999) / 1000;
    frontend_fail(frontend, found.exchange, &error);
}

const qn_handler_t frontend_handlers[] = {
    {QN_MESSAGE_TEXT_DELTA, handle_text_delta},
    {QN_MESSAGE_PROMPT_LOGPROBS, handle_prompt_logprobs},
    {QN_MESSAGE_TOKENIZED, handle_tokenized},
    {QN_MESSAGE_DETOKENIZED, handle_detokenized},
    {QN_MESSAGE_CACHE_STATS, handle_cache_stats},
    {QN_MESSAGE_FLUSHED, handle_flushed},
    {QN_MESSAGE_MODEL_DESCRIPTION, handle_model_description},
    {QN_MESSAGE_REFUSAL, handle_refusal},
    {QN_MESSAGE_NONE, NULL},
};

/* ---- what goes ------------------------------------------------------------------------------------------------- */

static qn_send_outcome_t send_to(frontend_t *frontend, qn_service_t service, qn_message_type_t type,
                                 const void *message)
{
    qn_peer_t peer = qn_daemon_peer(frontend->daemon, service);
    return peer.epoch ? qn_daemon_send(frontend->daemon, peer, type, message) : QN_SEND_GONE;
}

static qn_sampling_t sampling_of(const generation_t *whole, const generation_t *generation, uint32_t choice)
{
    int32_t tops =
        generation->logprobs > generation->prompt_logprobs ? generation->logprobs : generation->prompt_logprobs;
    if (whole->api == GENERATION_COMPLETIONS && generation->logprob_id_count) tops = generation->prompt_logprobs;
    return (qn_sampling_t){
        .seed = (generation->seed_given ? generation->seed : whole->seed) + choice,
        .temperature = generation->temperature,
        .top_p = generation->top_p,
        .min_p = generation->min_p,
        .repetition_penalty = generation->repetition_penalty,
        .presence_penalty = generation->presence_penalty,
        .frequency_penalty = generation->frequency_penalty,
        .top_k = generation->top_k,
        .max_tokens = generation->max_tokens,
        .min_tokens = generation->min_tokens,
        .ignore_eos = generation->ignore_eos,
        .logprobs = generation->logprobs != GENERATION_NONE || whole->best_of > whole->n,
        .prompt_logprobs = generation->prompt_logprobs != GENERATION_NONE,
        .top_logprobs = tops > 0 ? (uint8_t)tops : 0,
    };
}

static qn_text_t text_of(generation_text_t text)
{
    return (qn_text_t){.data = text.data, .bytes = (uint32_t)text.bytes};
}

qn_send_outcome_t frontend_send_encode(frontend_t *frontend, const choice_t *choice)
{
    const exchange_t *exchange = choice->exchange;
    const generation_t *whole = &exchange->generation, *generation = generation_for(whole, choice_prompt(choice));
    const generation_prompt_t *prompt = &whole->prompts[choice_prompt(choice)];
    qn_text_t stop[QN_STOP_STRINGS_MAX], bad_words[GENERATION_BAD_WORDS_MAX];
    for (uint32_t i = 0; i < generation->bad_word_count; i++)
        bad_words[i] = text_of(generation->bad_words[i]);
    for (uint32_t i = 0; i < generation->stop_count; i++)
        stop[i] = text_of(generation->stop[i]);
    qn_arena_reset(&frontend->scratch);
    qn_logit_bias_t *bias = qn_arena_zalloc(&frontend->scratch, generation->bias_count + 1, sizeof *bias);
    for (uint32_t i = 0; i < generation->bias_count; i++)
        bias[i] = (qn_logit_bias_t){.id = generation->bias[i].id, .bias = generation->bias[i].bias};
    qn_encode_t message = QN_ENCODE_INIT;
    message.head.request = choice->request;
    message.client_request = qn_text(exchange->client_id);
    message.prompt = text_of(prompt->text);
    message.prompt_ids = prompt->ids;
    message.prompt_ids_count = prompt->id_count;
    message.sampling = sampling_of(whole, generation, choice->index % whole->best_of);
    message.stop = generation->stop_count ? stop : NULL;
    message.stop_count = generation->stop_count;
    message.stop_ids = generation->stop_id_count ? generation->stop_ids : NULL;
    message.stop_ids_count = generation->stop_id_count;
    message.bias = generation->bias_count ? bias : NULL;
    message.bias_count = generation->bias_count;
    message.allow_only = generation->allow_only;
    message.bad_words = generation->bad_word_count ? bad_words : NULL;
    message.bad_words_count = generation->bad_word_count;
    message.logprob_ids = generation->logprob_id_count ? generation->logprob_ids : NULL;
    message.logprob_ids_count = generation->logprob_id_count;
    message.add_special = generation->add_special;
    message.skip_special = generation->skip_special;
    message.include_stop = generation->include_stop;
    message.want_pieces = generation->logprobs != GENERATION_NONE || generation->prompt_logprobs != GENERATION_NONE;
    message.truncate_prompt_tokens = generation->truncate_prompt_tokens;
    message.priority = whole->priority;
    message.cache_salt = text_of(whole->cache_salt);
    message.user = text_of(whole->user);
    message.deadline_ms = whole->deadline_ms;
    message.model = text_of(whole->model);
    message.adapter = text_of(whole->adapter);
    message.masks = whole->mask_count ? whole->masks : NULL;
    message.masks_count = whole->mask_count;
    message.own_masks = whole->own_masks;
    message.taps = whole->patch_count ? whole->patches : NULL;
    message.taps_count = whole->patch_count;
    message.tap_values = whole->patch_value_count ? whole->patch_values : NULL;
    message.tap_values_count = whole->patch_value_count;
    message.received_ns = exchange->received_ns;
    return send_to(frontend, QN_SERVICE_TOKENIZER, QN_MESSAGE_ENCODE, &message);
}

qn_send_outcome_t frontend_send_tokenize(frontend_t *frontend, uint64_t id, const char *text, size_t bytes,
                                         bool add_special, bool want_pieces)
{
    qn_tokenize_t message = {
        .head.request = id,
        .text = {.data = text, .bytes = (uint32_t)bytes},
        .add_special = add_special,
        .want_pieces = want_pieces,
    };
    return send_to(frontend, QN_SERVICE_TOKENIZER, QN_MESSAGE_TOKENIZE, &message);
}

qn_send_outcome_t frontend_send_detokenize(frontend_t *frontend, uint64_t id, const uint32_t *ids, uint32_t count,
                                           bool skip_special)
{
    qn_detokenize_t message = {.head.request = id, .ids = ids, .ids_count = count, .skip_special = skip_special};
    return send_to(frontend, QN_SERVICE_TOKENIZER, QN_MESSAGE_DETOKENIZE, &message);
}

/* The ids of a prompt given as text, with their bytes, and where each begins when an echo shows that. */
static qn_send_outcome_t send_ids_fact(frontend_t *frontend, const exchange_t *exchange, uint32_t prompt)
{
    const generation_t *generation = &exchange->generation;
    const generation_text_t *text = &generation->prompts[prompt].text;
    qn_tokenize_t message = {
        .head.request = exchange_facts_id(exchange, prompt, REFERENCE_IDS),
        .text = {.data = text->data, .bytes = (uint32_t)text->bytes},
        .add_special = generation->add_special,
        .want_pieces = true,
        .want_offsets = exchange_shows_offsets(exchange),
    };
    return send_to(frontend, QN_SERVICE_TOKENIZER, QN_MESSAGE_TOKENIZE, &message);
}

/* The text of a prompt given as ids. An echo shows all that was given, as vLLM's does; a character that the answer may
 * finish is left to the answer. */
static qn_send_outcome_t send_text_fact(frontend_t *frontend, const exchange_t *exchange, uint32_t prompt)
{
    const generation_prompt_t *given = &exchange->generation.prompts[prompt];
    qn_detokenize_t message = {
        .head.request = exchange_facts_id(exchange, prompt, REFERENCE_TEXT),
        .ids = given->ids,
        .ids_count = given->id_count,
        .want_offsets = exchange_shows_offsets(exchange),
        .is_open = !exchange->generation.discard_output,
    };
    return send_to(frontend, QN_SERVICE_TOKENIZER, QN_MESSAGE_DETOKENIZE, &message);
}

qn_send_outcome_t frontend_send_facts(frontend_t *frontend, const exchange_t *exchange, uint32_t prompt)
{
    const generation_prompt_t *given = &exchange->generation.prompts[prompt];
    const prompt_facts_t *facts = &exchange->facts[prompt];
    qn_send_outcome_t outcome = QN_SEND_OK;
    if (facts->wants_ids) outcome = send_ids_fact(frontend, exchange, prompt);
    if (outcome == QN_SEND_OK && facts->wants_text) outcome = send_text_fact(frontend, exchange, prompt);
    if (outcome == QN_SEND_OK && facts->wants_first)
        outcome = frontend_send_detokenize(frontend, exchange_facts_id(exchange, prompt, REFERENCE_FIRST), given->ids,
                                           1, false);
    return outcome;
}

qn_send_outcome_t frontend_send_cache_query(frontend_t *frontend, uint64_t id)
{
    qn_cache_query_t message = {.head.request = id};
    return send_to(frontend, QN_SERVICE_MEMORY, QN_MESSAGE_CACHE_QUERY, &message);
}

qn_send_outcome_t frontend_send_flush(frontend_t *frontend, uint64_t id)
{
    qn_flush_cache_t message = {.head.request = id};
    return send_to(frontend, QN_SERVICE_MEMORY, QN_MESSAGE_FLUSH_CACHE, &message);
}

qn_send_outcome_t frontend_send_describe(frontend_t *frontend, qn_peer_t memory)
{
    qn_describe_t message = {.want_tensors = false};
    return qn_daemon_send(frontend->daemon, memory, QN_MESSAGE_DESCRIBE, &message);
}

qn_send_outcome_t frontend_send_replay_complete(frontend_t *frontend, qn_peer_t tokenizer)
{
    qn_replay_complete_t message = {0};
    return qn_daemon_send(frontend->daemon, tokenizer, QN_MESSAGE_REPLAY_COMPLETE, &message);
}

/* To the tokenizer, which passes it on; to the scheduler itself while there is no tokenizer to ask. */
qn_send_outcome_t frontend_send_cancel(frontend_t *frontend, uint64_t id, qn_cancel_reason_t reason)
{
    qn_cancel_t message = {.head.request = id, .reason = reason};
    qn_send_outcome_t outcome = send_to(frontend, QN_SERVICE_TOKENIZER, QN_MESSAGE_CANCEL, &message);
    return outcome == QN_SEND_GONE ? send_to(frontend, QN_SERVICE_SCHEDULER, QN_MESSAGE_CANCEL, &message) : outcome;
}
