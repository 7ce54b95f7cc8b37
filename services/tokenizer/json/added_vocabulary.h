/* The added tokens of a tokenizer while it is being opened, by the rules of the `tokenizers` library: they come in
 * batches (tokenizer.json's own, then what the files beside it add); a token that is declared again keeps its id
 * and takes the new flags; a string that was ever special stays special. */
#ifndef QN_TOKENIZER_JSON_ADDED_VOCABULARY_H
#define QN_TOKENIZER_JSON_ADDED_VOCABULARY_H

#include "services/tokenizer/tokenizer_data.h"

/* A token as a file declares it. */
typedef struct {
    const char *content; /* borrowed for the call */
    size_t bytes;
    bool single_word, left_strip, right_strip, normalized, special;
} added_spec_t;

typedef struct {
    added_spec_t *versions; /* [count] as declared, contents in `pool`; owned */
    size_t *content_at;     /* [count] offsets of the contents, owned */
    bool *is_pattern;       /* [count] looked for in texts, owned */
    size_t count, capacity;
    uint32_t *latest; /* [latest_limit] by id: version + 1, 0: none; owned */
    size_t latest_limit;
    uint32_t *before; /* [before_limit] latest, as it was when the batch began; owned */
    size_t before_limit;
    text_buffer_t pool;
    vocabulary_t special_contents; /* contents that were ever special */
} added_vocabulary_t;

void added_vocabulary_init(added_vocabulary_t *added);
void added_vocabulary_fini(added_vocabulary_t *added);

/* True when a token of this content was added (it need not be special). */
bool added_vocabulary_has(const tokenizer_t *t, const char *content, size_t bytes);
/* Begins a batch: its special ones are marked before any of it is added, and a token is left out when it stands there
 * already with the same flags, as the library does. */
void added_vocabulary_begin(added_vocabulary_t *added, const added_spec_t *specs, size_t count);
/* Adds one token of the batch to t->added and writes its id: that of the same string, added or in the model, else
 * the next free one. The empty string is left out (VOCABULARY_NO_ID). Fails with QN_ERR_LIMIT beyond QN_VOCAB_MAX
 * or TOKENIZER_ADDED_TOKENS_MAX; `where` names the token. */
qn_err_t added_vocabulary_add(added_vocabulary_t *added, tokenizer_t *t, const added_spec_t *spec, const char *where,
                              uint32_t *ret_id);
/* After the last batch: fills the sets that are searched, the texts by id and the special bits of `t`. */
qn_err_t added_vocabulary_finish(added_vocabulary_t *added, tokenizer_t *t);

#endif
