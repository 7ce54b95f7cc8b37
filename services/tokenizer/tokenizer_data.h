/* What a tokenizer_t is made of: written by tokenizer_json.c while opening, read by tokenizer.c and
 * detokenizer.c afterwards. Private to these files and their tests. */
#ifndef QN_TOKENIZER_TOKENIZER_DATA_H
#define QN_TOKENIZER_TOKENIZER_DATA_H

#include <jansson.h>

#include "common/arena.h"
#include "services/tokenizer/split/added_tokens.h"
#include "services/tokenizer/bpe/bpe.h"
#include "services/tokenizer/decode/decoder.h"
#include "services/tokenizer/split/normalizer.h"
#include "services/tokenizer/split/pretokenizer.h"
#include "services/tokenizer/tokenizer.h"
#include "services/tokenizer/split/unicode_classes.h"
#include "services/tokenizer/bpe/vocabulary.h"

/* The post-processor as one list: ids, with TEXT where the encoded text goes. */
#define TEMPLATE_TEXT UINT32_MAX
#define TOKENIZER_NOTES_MAX 16
#define TEMPLATE_ITEMS_MAX 256 /* published templates have at most 4 */

typedef struct {
    uint32_t items[TEMPLATE_ITEMS_MAX];
    size_t count;
} token_template_t;

struct tokenizer {
    unicode_classes_t classes;
    vocabulary_t raw_pieces; /* byte-level models: pieces as written; else empty, bpe.pieces has them */
    bpe_t bpe;
    vocabulary_t added;       /* contents of added tokens */
    vocabulary_t added_texts; /* by id: what added tokens decode to (their normalized form) */
    added_tokens_t plain_set; /* looked for before normalizing */
    added_tokens_t normalized_set;
    uint64_t *special; /* bit per id below id_limit, owned */
    uint32_t id_limit;
    normalizer_t normalizer;
    pretokenizer_t pretokenizer;
    scanner_fn *scan; /* the whole pre-tokenizer is this scanner over bytes; else NULL */
    token_template_t template;
    decoder_t decoder;
    text_buffer_t decoded;  /* with a byte-level decoder: bytes of all ids in a row … */
    uint32_t *decoded_ends; /* … [id_limit], owned; else NULL */
    tokenizer_info_t info;
    qn_arena_t strings; /* of info and notes */
    const char **notes; /* [note_count], owned */
    size_t note_count;
    bool splits_special; /* special tokens in a text are not looked for */
};

struct tokenizer_scratch {
    bpe_scratch_t *bpe;
    normalizer_work_t normalizer;
    pretokenizer_work_t pretokenizer;
};

static inline const vocabulary_t *tokenizer_raw_pieces(const tokenizer_t *t)
{
    return t->bpe.is_byte ? &t->raw_pieces : &t->bpe.pieces;
}

static inline bool tokenizer_id_is_special(const tokenizer_t *t, uint32_t id)
{
    return id < t->id_limit && (t->special[id >> 6] >> (id & 63) & 1);
}

typedef struct side_files side_files_t;

/* Reads the parts of a tokenizer.json into a zeroed `t`, with what the files beside it change; on failure t is half
 * built and may be freed. */
qn_err_t tokenizer_json_load(tokenizer_t *t, const char *json, size_t bytes, side_files_t *side);
/* Reads chat template, class and length of a parsed tokenizer_config.json into t->info. */
void tokenizer_config_tell(tokenizer_t *t, const json_t *config);
/* Keeps a sentence for tokenizer_note(); more than TOKENIZER_NOTES_MAX are counted in the last one. */
void tokenizer_add_note(tokenizer_t *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
