/* The tokens of one sequence as a reply shows them: ids, log-probabilities, bytes, alternatives. */
#ifndef QN_FRONTEND_REPLY_TOKEN_LOG_H
#define QN_FRONTEND_REPLY_TOKEN_LOG_H

#include <stdint.h>

#include "services/frontend/reply/reply_buffer.h"

typedef struct {
    uint32_t id;
    float logprob;         /* natural log; NaN: has none (the first token of a prompt) */
    uint32_t piece_offset; /* into `pieces` */
    uint16_t piece_bytes;
} token_entry_t;

typedef struct {
    token_entry_t token;
    uint32_t text_end;   /* characters of output text with this token's */
    uint32_t top_offset; /* into `tops`: alternatives, most likely first */
    uint8_t top_count;
} token_row_t;

/* A zeroed log is empty and ready. */
typedef struct {
    token_row_t *rows; /* owned */
    uint32_t count, capacity;
    token_entry_t *tops; /* owned */
    uint32_t top_count, top_capacity;
    reply_buffer_t pieces;
} token_log_t;

/* Appends a token; `piece` is copied (NULL with 0 bytes: not asked for). */
void token_log_add(token_log_t *log, uint32_t id, float logprob, uint32_t text_end, const void *piece,
                   uint16_t piece_bytes);
/* Appends an alternative to the last token. */
void token_log_add_top(token_log_t *log, uint32_t id, float logprob, const void *piece, uint16_t piece_bytes);
/* Returns view of an entry's bytes. */
const char *token_log_piece(const token_log_t *log, const token_entry_t *entry);
/* Mean log-probability of all tokens; -infinity when there are none. */
double token_log_mean(const token_log_t *log);
void token_log_fini(token_log_t *log);

#endif
