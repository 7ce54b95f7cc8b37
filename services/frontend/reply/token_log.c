/* What is this?      A growing record of tokens.
 * State owned:       its rows, alternatives and bytes.
 * Must never:        decide what is shown; the reply writers do.
 * Read next:         request_table.h, whose choices hold two of these. */
#include "services/frontend/reply/token_log.h"

#include <math.h>
#include <stdlib.h>

#include "common/assert.h"
#include "common/limits.h"

static void *grow(void *items, uint32_t count, uint32_t *capacity, size_t item_bytes)
{
    if (count < *capacity) return items;
    *capacity = *capacity ? *capacity * 2 : 16;
    QN_ASSERT(*capacity <= 2u * QN_PROMPT_TOKENS_MAX * (QN_ALTERNATIVES_MAX + 1));
    items = realloc(items, (size_t)*capacity * item_bytes);
    QN_ASSERT(items != NULL);
    return items;
}

static token_entry_t make_entry(token_log_t *log, uint32_t id, float logprob, const void *piece, uint16_t piece_bytes)
{
    token_entry_t entry = {.id = id,
                           .logprob = logprob,
                           .piece_offset = (uint32_t)log->pieces.bytes,
                           .piece_bytes = piece_bytes};
    reply_buffer_append(&log->pieces, piece, piece_bytes);
    return entry;
}

void token_log_add(token_log_t *log, uint32_t id, float logprob, uint32_t text_end, const void *piece,
                   uint16_t piece_bytes)
{
    log->rows = grow(log->rows, log->count, &log->capacity, sizeof *log->rows);
    log->rows[log->count++] = (token_row_t){
        .token = make_entry(log, id, logprob, piece, piece_bytes),
        .text_end = text_end,
        .top_offset = log->top_count,
    };
}

void token_log_add_top(token_log_t *log, uint32_t id, float logprob, const void *piece, uint16_t piece_bytes)
{
    QN_ASSERT(log->count > 0);
    log->tops = grow(log->tops, log->top_count, &log->top_capacity, sizeof *log->tops);
    log->tops[log->top_count++] = make_entry(log, id, logprob, piece, piece_bytes);
    log->rows[log->count - 1].top_count++;
}

const char *token_log_piece(const token_log_t *log, const token_entry_t *entry)
{
    return entry->piece_bytes ? log->pieces.data + entry->piece_offset : "";
}

double token_log_mean(const token_log_t *log)
{
    if (log->count == 0) return -INFINITY;
    double sum = 0;
    for (uint32_t i = 0; i < log->count; i++)
        sum += log->rows[i].token.logprob;
    return sum / log->count;
}

void token_log_fini(token_log_t *log)
{
    free(log->rows);
    free(log->tops);
    reply_buffer_fini(&log->pieces);
    *log = (token_log_t){0};
}
