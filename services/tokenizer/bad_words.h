/* Words that may not be generated, as ids that get a bias against them. */
#ifndef QN_TOKENIZER_BAD_WORDS_H
#define QN_TOKENIZER_BAD_WORDS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/wire/wire.h"
#include "services/tokenizer/tokenizer.h"

/* Adds a forbidding row to bias[0 .. *count) for each id that a word of encode->bad_words is, at the beginning of a text
 * and in its middle (with a space before it), as vLLM does. `bias` has room for QN_LOGIT_BIAS_MAX rows. False: a word is
 * several tokens (forbidding these would forbid more than the word), or there is no room; `ret_text` says which. */
bool bad_words_forbid(const tokenizer_t *tokenizer, tokenizer_scratch_t *scratch, const qn_encode_t *encode,
                      qn_logit_bias_t *bias, uint32_t *count, char *ret_text, size_t room);

#endif
