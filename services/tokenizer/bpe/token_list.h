/* A growing list of token ids with, on request, the bytes of the text each stands for. Embedded by its
 * owner and reused; a zeroed one is empty and valid. */
#ifndef QN_TOKENIZER_BPE_TOKEN_LIST_H
#define QN_TOKENIZER_BPE_TOKEN_LIST_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "common/assert.h"

/* Bytes [start, end) of the input text a token stands for. {0, 0} belongs to tokens the post-processor
 * added. Where a normalizer changed the text, spans are those of the changed run as a whole. */
typedef struct {
    uint32_t start, end;
} tokenizer_span_t;

typedef struct {
    uint32_t *ids;           /* [count], owned; room for 4 more is always there after reserve */
    tokenizer_span_t *spans; /* [count] when asked for, owned */
    size_t count;
    size_t capacity;
    size_t span_capacity;
} tokenizer_tokens_t;

/* Makes room for `more` further ids and 4 words of slack that a wide store may overwrite. */
static inline void token_list_reserve(tokenizer_tokens_t *tokens, size_t more)
{
    size_t need = tokens->count + more + 4;
    if (tokens->capacity >= need) return;
    QN_ASSERT(need < SIZE_MAX / 16);
    size_t capacity = tokens->capacity ? tokens->capacity : 256;
    while (capacity < need)
        capacity *= 2;
    tokens->ids = realloc(tokens->ids, capacity * sizeof *tokens->ids);
    QN_ASSERT(tokens->ids != NULL);
    tokens->capacity = capacity;
}

static inline void token_list_append(tokenizer_tokens_t *tokens, uint32_t id)
{
    token_list_reserve(tokens, 1);
    tokens->ids[tokens->count++] = id;
}

/* Appends id with its span. A list has spans for all of its ids or for none. */
static inline void token_list_append_span(tokenizer_tokens_t *tokens, uint32_t id, tokenizer_span_t span)
{
    if (tokens->span_capacity <= tokens->count) {
        size_t capacity = tokens->span_capacity ? tokens->span_capacity * 2 : 256;
        QN_ASSERT(capacity < SIZE_MAX / 16);
        tokens->spans = realloc(tokens->spans, capacity * sizeof *tokens->spans);
        QN_ASSERT(tokens->spans != NULL);
        tokens->span_capacity = capacity;
    }
    tokens->spans[tokens->count] = span;
    token_list_append(tokens, id);
}

static inline void tokenizer_tokens_fini(tokenizer_tokens_t *tokens)
{
    free(tokens->ids);
    free(tokens->spans);
    *tokens = (tokenizer_tokens_t){0};
}

#endif
