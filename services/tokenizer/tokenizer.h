/* Text to token ids and back, as the `tokenizer.json` of a Hugging Face model directory says, with the
 * results of the `tokenizers` library (0.23): added tokens, normalizer, pre-tokenizer, BPE model,
 * post-processor, decoder.
 *
 * A tokenizer_t is immutable once open: any number of threads may use one at the same time, each with a
 * tokenizer_scratch_t of its own (work space and the cache of recently seen words). Nothing here blocks
 * except tokenizer_open, which reads files.
 *
 * Text is UTF-8 with a length; NUL bytes are ordinary. Ids are below tokenizer_id_limit(). */
#ifndef QN_TOKENIZER_TOKENIZER_H
#define QN_TOKENIZER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "services/tokenizer/text_buffer.h"
#include "services/tokenizer/bpe/token_list.h"

#define TOKENIZER_JSON_BYTES_MAX (256u << 20)      /* the largest published ones have 35 MB */
#define TOKENIZER_NORMALIZED_BYTES_MAX (64u << 20) /* text after a normalizer that lengthens it */
#define TOKENIZER_ADDED_TOKENS_MAX 65536
#define TOKENIZER_PIECE_BYTES_MAX 65535

typedef struct tokenizer tokenizer_t;
typedef struct tokenizer_scratch tokenizer_scratch_t;

/* Results of encode are a tokenizer_tokens_t (token_list.h): ids, count and, when asked for, spans. */

enum {
    TOKENIZER_ADD_SPECIAL = 1 << 0,   /* run the post-processor's template (bos, eos …) */
    TOKENIZER_PARSE_SPECIAL = 1 << 1, /* special tokens written in the text become their ids; the usual
                                         choice. Without it they are encoded as plain text. */
    TOKENIZER_WITH_SPANS = 1 << 2,    /* fill tokens->spans; slower: bypasses the word cache */
    TOKENIZER_SKIP_SPECIAL = 1 << 3,  /* decoding: leave special tokens out */
};

/* Reads a tokenizer.json, or the one in a directory, and what stands beside it: tokenizer_config.json,
 * special_tokens_map.json, added_tokens.json, config.json (for the class) and chat_template.jinja. Together they
 * give the ids that transformers 4.57 gives for the directory. Fails with QN_ERR_NOT_FOUND, QN_ERR_IO,
 * QN_ERR_INVALID (what is wrong, with its JSON path), QN_ERR_UNSUPPORTED (a component type this build
 * does not have, with its JSON path) or QN_ERR_LIMIT. Returns owned. */
qn_err_t tokenizer_open(const char *path, tokenizer_t **ret);

/* A file in memory; bytes NULL: there is none. */
typedef struct {
    const void *bytes;
    size_t length;
} tokenizer_file_t;

typedef struct {
    tokenizer_file_t tokenizer; /* tokenizer.json, the only one that must be there */
    tokenizer_file_t config;    /* tokenizer_config.json */
    tokenizer_file_t special_tokens_map, added_tokens;
    tokenizer_file_t model_config; /* config.json */
} tokenizer_files_t;

/* The same from memory; the files are borrowed for the call. With tokenizer.json alone the ids are those of the
 * tokenizers library. */
qn_err_t tokenizer_open_memory(const tokenizer_files_t *files, tokenizer_t **ret);

/* What the files ask for and is not followed, one sentence each, beginning with the member's name. Views that live as
 * long as t. */
size_t tokenizer_note_count(const tokenizer_t *t);
const char *tokenizer_note(const tokenizer_t *t, size_t index);

/* Closes *t and sets it to NULL; accepts NULL. No scratch of it may be in use. */
void tokenizer_close(tokenizer_t **t);

/* Work space of one thread for `t` (about 2 MB); keeps no reference that outlives t. Never fails. */
tokenizer_scratch_t *tokenizer_scratch_open(const tokenizer_t *t);
void tokenizer_scratch_close(tokenizer_scratch_t **scratch);
/* Forgets the cached words: the next encode is cold. For measurements. */
void tokenizer_scratch_forget(tokenizer_scratch_t *scratch);

/* Encodes `bytes` bytes of text. `tokens` is emptied first. Fails with QN_ERR_INVALID when the text is not
 * UTF-8 (the offset is named), QN_ERR_LIMIT when it is longer than QN_TEXT_BYTES_MAX or grows beyond
 * TOKENIZER_NORMALIZED_BYTES_MAX; `tokens` is then empty. */
qn_err_t tokenizer_encode(const tokenizer_t *t, tokenizer_scratch_t *scratch, const char *text, size_t bytes,
                          unsigned flags, tokenizer_tokens_t *tokens);

/* Appends the text of ids to `text`. Ids that name no token add nothing. The result is valid UTF-8:
 * broken sequences became U+FFFD. */
void tokenizer_decode(const tokenizer_t *t, const uint32_t *ids, size_t count, unsigned flags, text_buffer_t *text);

/* Number of different tokens, added ones included. */
size_t tokenizer_vocab_size(const tokenizer_t *t);
/* One more than the largest id. */
uint32_t tokenizer_id_limit(const tokenizer_t *t);
/* Raw piece ("Ġworld", "▁the", "<|im_end|>"), a view that lives as long as t; NULL when id names none. */
const char *tokenizer_token_text(const tokenizer_t *t, uint32_t id, size_t *ret_bytes);
/* Writes the id of a raw piece; false when there is none. */
bool tokenizer_id_of(const tokenizer_t *t, const char *piece, size_t bytes, uint32_t *ret_id);
bool tokenizer_is_special(const tokenizer_t *t, uint32_t id);

/* What the files beside tokenizer.json say; NULL or -1 where it says nothing. Views that live as long as t. */
typedef struct {
    const char *bos_token, *eos_token, *pad_token, *unk_token;
    int64_t bos_id, eos_id, pad_id, unk_id;
    const char *chat_template; /* Jinja source; the one named "default" when there are several */
    const char *tokenizer_class;
    int64_t model_max_length; /* in tokens; -1 when absent or absurdly large */
} tokenizer_info_t;

const tokenizer_info_t *tokenizer_info(const tokenizer_t *t);

#endif
