/* The files beside a tokenizer.json that decide ids too: tokenizer_config.json, special_tokens_map.json,
 * added_tokens.json, and config.json where it names the class. They are read together, as transformers 4.57 does
 * (which is what vLLM loads); with none of them there, tokenizer.json stands alone.
 *
 * Used while a tokenizer is opened: the four calls below come in the order they stand in. */
#ifndef QN_TOKENIZER_JSON_SIDE_FILES_H
#define QN_TOKENIZER_JSON_SIDE_FILES_H

#include <jansson.h>

#include "services/tokenizer/json/added_vocabulary.h"
#include "services/tokenizer/json/component_json.h"
#include "services/tokenizer/json/tokenizer_class.h"

/* A special token or an added one, as a file gives it. */
typedef struct {
    const char *content; /* view into the parsed file, or a literal; NULL: there is none */
    size_t bytes;
    bool is_object;    /* an AddedToken with flags, not only a string */
    bool is_default;   /* of the class: no file names it */
    bool is_late;      /* an object of tokenizer_config.json: does not make added_tokens.json's special */
    int8_t normalized; /* -1: not said, which is the opposite of special */
    bool single_word, left_strip, right_strip, special;
} side_token_t;

typedef enum {
    SIDE_BOS,
    SIDE_EOS,
    SIDE_UNK,
    SIDE_SEP,
    SIDE_PAD,
    SIDE_CLS,
    SIDE_MASK,
    SIDE_TOKENS,
} side_token_kind_t;

struct side_files {
    json_t *config, *special_map, *added, *model_config; /* owned; NULL: absent */
    const json_t *padding;                               /* of tokenizer.json, borrowed */
    const tokenizer_class_t *class;                      /* NULL: tokenizer.json stands alone */
    bool class_is_guess;                                 /* by model_type, without a tokenizer_config.json */
    bool is_remade; /* as from the sentencepiece model: what tokenizer.json adds to that is not there at first */
    side_token_t tokens[SIDE_TOKENS];
    side_token_t *extra; /* [extra_count] additional special tokens, owned */
    size_t extra_count, extra_capacity;
    size_t listed_count; /* those of additional_special_tokens, which come first */
};

/* Parses the files and finds the class. Fails with QN_ERR_INVALID, which names file and member. On failure and after
 * use: side_files_fini. */
qn_err_t side_files_open(const tokenizer_files_t *files, tokenizer_t *t, side_files_t *ret);
void side_files_fini(side_files_t *side);

/* Changes the parsed components of tokenizer.json where add_prefix_space and legacy say so. */
void side_files_edit(side_files_t *side, tokenizer_t *t, json_t **normalizer, json_t **pretokenizer, json_t **decoder);
/* Adds what the files add to the vocabulary, behind tokenizer.json's own `list`. */
qn_err_t side_files_add_tokens(side_files_t *side, tokenizer_t *t, const json_t *list, added_vocabulary_t *added);
/* With the vocabulary complete: the template where the class makes it, and t->info. */
qn_err_t side_files_finish(const side_files_t *side, tokenizer_t *t);

#endif
