/* Where `quintet tokenize` and `quintet detokenize` get their answers: a running server, or a tokenizer.json without
 * one. Calls print what went wrong themselves and return an exit status, EX_OK when all went well. */
#ifndef QN_TOOLS_CLIENT_TOKEN_SOURCE_H
#define QN_TOOLS_CLIENT_TOKEN_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct token_source token_source_t;

/* A growing list, reused between calls; a zeroed one is empty. */
typedef struct {
    uint32_t *items; /* owned */
    size_t count, capacity;
} token_ids_t;

/* `tokenizer` (a tokenizer.json or a directory with one) NULL: the server at `url` (NULL: the default). Returns
 * owned. */
int token_source_open(const char *tokenizer, const char *url, token_source_t **ret_source);
void token_source_close(token_source_t **source);
/* Replaces the content of `ids`. */
int token_source_encode(token_source_t *source, const char *text, size_t bytes, bool add_special, token_ids_t *ids);
/* *ret_text is NUL-terminated and a view until the next call. */
int token_source_decode(token_source_t *source, const token_ids_t *ids, bool skip_special, const char **ret_text,
                        size_t *ret_bytes);

void token_ids_add(token_ids_t *ids, uint32_t id);
/* Adds the ids in one argument: "464", "464,3797", "[464, 3797]". EX_OK, or the status of a usage error. */
int token_ids_parse(const char *argument, token_ids_t *ids);
void token_ids_fini(token_ids_t *ids);

#endif
