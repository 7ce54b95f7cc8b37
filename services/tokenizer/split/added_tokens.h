/* The added tokens of a tokenizer.json: whole strings that are cut out of the text before the model sees
 * it. Those with `normalized: false` are looked for in the text as it came, the others in the normalized
 * text. Of several that start at one place the longest counts; matches do not overlap.
 *
 * Immutable once finished; any number of threads may search. */
#ifndef QN_TOKENIZER_SPLIT_ADDED_TOKENS_H
#define QN_TOKENIZER_SPLIT_ADDED_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "services/tokenizer/split/unicode_classes.h"
#include "services/tokenizer/bpe/vocabulary.h"

typedef struct {
    uint32_t id;
    bool single_word; /* only where no word character touches it */
    bool left_strip;  /* takes the spaces before it along */
    bool right_strip; /* and those after it */
    bool special;
} added_token_t;

typedef struct {
    uint32_t child;   /* first node of the next level, 0: none */
    uint32_t sibling; /* next node of this level, 0: none */
    uint32_t token;   /* index + 1 into tokens, 0: none ends here */
    uint8_t byte;
} added_node_t;

/* One set of strings as a trie. */
typedef struct {
    added_token_t *tokens; /* owned */
    size_t token_count;
    added_node_t *nodes; /* owned; nodes[0] is unused */
    size_t node_count, node_capacity;
    uint32_t roots[256]; /* first nodes by byte */
    int only_first;      /* the byte all strings begin with, -1: several, -2: no strings */
} added_tokens_t;

void added_tokens_init(added_tokens_t *set);
void added_tokens_fini(added_tokens_t *set);
/* Adds a string of bytes > 0 bytes; of equal strings the first stays. */
void added_tokens_add(added_tokens_t *set, const void *content, size_t bytes, added_token_t token);

/* Position in the search for all matches of one text. */
typedef struct {
    size_t next;     /* where the search goes on */
    size_t consumed; /* end of the last match, with stripped spaces */
} added_walk_t;

/* Finds the next match from walk on, with `skip_special` ignoring special ones. Writes the token and the
 * range it takes; false when there is none. */
bool added_tokens_next(const added_tokens_t *set, const unicode_classes_t *classes, const uint8_t *text, size_t length,
                       bool skip_special, added_walk_t *walk, const added_token_t **ret_token, size_t *ret_start,
                       size_t *ret_end);

#endif
