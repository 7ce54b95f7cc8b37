/* Words that may not be generated, as ids: one token gets a bias against it, several are a sequence that the sampler does
 * not complete. */
#ifndef QN_TOKENIZER_BAD_WORDS_H
#define QN_TOKENIZER_BAD_WORDS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/limits.h"
#include "common/wire/wire.h"
#include "services/tokenizer/tokenizer.h"

typedef struct {
    qn_logit_bias_t bias[QN_LOGIT_BIAS_MAX]; /* of words of one token, behind the request's own rows */
    uint32_t bias_count;
    uint32_t ids[QN_BAD_IDS_MAX]; /* of words of several tokens, as bad_ids of schemas/submit.fbs */
    uint32_t id_count;
} bad_words_t;

/* Adds what encode->bad_words stand for at the beginning of a text and in its middle (with a space before them), as vLLM
 * finds it: the second way counts when it has as many tokens and another first one. False: a word is too long, or there
 * is no room; `ret_text` says which. */
bool bad_words_forbid(const tokenizer_t *tokenizer, tokenizer_scratch_t *scratch, const qn_encode_t *encode,
                      bad_words_t *words, char *ret_text, size_t room);

#endif
