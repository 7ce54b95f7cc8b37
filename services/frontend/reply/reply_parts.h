/* What both APIs show of a choice: its visible text and tokens, the prompt's tokens, token texts. Views of an exchange;
 * nothing here allocates. */
#ifndef QN_FRONTEND_REPLY_REPLY_PARTS_H
#define QN_FRONTEND_REPLY_REPLY_PARTS_H

#include <stdbool.h>
#include <stdint.h>

#include "services/frontend/reply/json_writer.h"
#include "services/frontend/request/request_table.h"

/* A token to show, of the prompt or of the output. */
typedef struct {
    uint32_t id;
    bool has_logprob;
    float logprob; /* finite; what is below -9999 is -9999, as in vLLM */
    const char *piece;
    size_t piece_bytes;
    const token_log_t *log; /* of the alternatives */
    const token_entry_t *tops;
    uint32_t top_count;
    const token_entry_t *by_id; /* those asked for by id */
    uint32_t by_id_count;
} reply_token_t;

/* How much of a choice is shown: nothing when max_tokens was 0, though one token was made. */
uint32_t reply_visible_tokens(const choice_t *choice);
uint32_t reply_visible_text(const choice_t *choice);
uint32_t reply_generated_tokens(const choice_t *choice);
/* "stop", "length", "abort". Only for ended choices. */
const char *reply_finish(const choice_t *choice);
/* The prompt's text for echo. */
generation_text_t reply_echo(const choice_t *choice);
/* Characters of it before each of its tokens; view. */
const uint32_t *reply_prompt_offsets(const choice_t *choice, uint32_t *ret_count);

/* Ids of the prompt when they are known (given so, or asked for): count, and one id. */
uint32_t reply_prompt_ids(const choice_t *choice);
uint32_t reply_prompt_id(const choice_t *choice, uint32_t index);

/* Generated token `index`, with at most `tops` alternatives. */
reply_token_t reply_output_token(const choice_t *choice, uint32_t index, uint32_t tops);
/* Prompt tokens with log-probabilities. */
uint32_t reply_prompt_rows(const choice_t *choice);
reply_token_t reply_prompt_token(const choice_t *choice, uint32_t index, uint32_t tops);
/* The token with the ids that were asked for as its alternatives, instead of the likeliest. */
reply_token_t reply_by_id(reply_token_t token);
/* Alternative `index` of a token. The chosen token's own entry has the chosen token's number. */
reply_token_t reply_alternative(const reply_token_t *token, uint32_t index);

/* Text of a token for a log-probability list: its bytes, "bytes:\xe2\x80" when they are not UTF-8 by themselves, or
 * "token_id:7". As a value, or as the name of a member. */
void reply_put_token(json_writer_t *writer, const reply_token_t *token, bool as_id);
void reply_put_token_key(json_writer_t *writer, const reply_token_t *token, bool as_id);

/* Sums over an exchange. */
typedef struct {
    uint32_t prompt_tokens, completion_tokens, cached_tokens;
} reply_usage_t;
reply_usage_t reply_usage(const exchange_t *exchange);

#endif
