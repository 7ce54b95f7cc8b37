/* What is this?      bad_words: from words to forbidden ids.
 * State owned:       none.
 * Must never:        forbid less than the word in silence: what does not fit is refused.
 * Read next:         handlers.c, which asks; kernels/cpu/sampling/sampler.c, which obeys. */
#include "services/tokenizer/bad_words.h"

#include <stdio.h>
#include <string.h>

#include "common/limits.h"

#define WORD_BYTES_MAX (QN_STOP_STRING_BYTES_MAX + 1)

/* False: no room. */
static bool forbid(uint32_t id, bool allow_only, bad_words_t *words)
{
    for (uint32_t i = 0; i < words->bias_count; i++) {
        if (words->bias[i].id != id) continue;
        words->bias[i].bias = QN_LOGIT_FORBIDDEN;
        return true;
    }
    if (allow_only) return true; /* it is out already */
    if (words->bias_count == QN_LOGIT_BIAS_MAX) return false;
    words->bias[words->bias_count++] = (qn_logit_bias_t){.id = id, .bias = QN_LOGIT_FORBIDDEN};
    return true;
}

/* The ids of a word, with a space before it or without; false: it is no text. */
static bool encode_word(const tokenizer_t *tokenizer, const qn_text_t *word, bool space, tokenizer_scratch_t *scratch,
                        tokenizer_tokens_t *tokens)
{
    char text[WORD_BYTES_MAX + 1];
    uint32_t skip = 0;
    while (skip < word->bytes && strchr(" \t\r\n", word->data[skip]) && word->data[skip])
        skip++;
    size_t bytes = word->bytes - skip;
    if (bytes == 0 || bytes > QN_STOP_STRING_BYTES_MAX) return false;
    text[0] = ' ';
    memcpy(text + space, word->data + skip, bytes);
    return tokenizer_encode(tokenizer, scratch, text, bytes + space, 0, tokens) == QN_OK && tokens->count > 0;
}

/* False: no room. */
static bool forbid_tokens(const tokenizer_tokens_t *tokens, bool allow_only, bad_words_t *words, char *ret_text,
                          size_t room)
{
    if (tokens->count == 1) {
        if (forbid(tokens->ids[0], allow_only, words)) return true;
        snprintf(ret_text, room, "logit_bias and bad_words of one token name more than %d ids together",
                 QN_LOGIT_BIAS_MAX);
        return false;
    }
    if (tokens->count > QN_BAD_IDS_MAX - words->id_count) {
        snprintf(ret_text, room, "words of several tokens, with and without a space before, have more than %d together",
                 QN_BAD_IDS_MAX);
        return false;
    }
    memcpy(words->ids + words->id_count, tokens->ids, tokens->count * sizeof *words->ids);
    words->id_count += (uint32_t)tokens->count;
    words->ids[words->id_count - 1] |= QN_SEQUENCE_END;
    return true;
}

static bool forbid_word(const tokenizer_t *tokenizer, const qn_encode_t *encode, uint32_t index,
                        tokenizer_scratch_t *scratch, tokenizer_tokens_t *tokens, bad_words_t *words, char *ret_text,
                        size_t room)
{
    const qn_text_t *word = &encode->bad_words[index];
    if (!encode_word(tokenizer, word, false, scratch, tokens)) {
        snprintf(ret_text, room, "bad_words[%u] is no word", index);
        return false;
    }
    if (tokens->count > QN_BAD_SEQUENCE_TOKENS_MAX) {
        snprintf(ret_text, room, "bad_words[%u] is %zu tokens of this model; at most %d are possible", index,
                 tokens->count, QN_BAD_SEQUENCE_TOKENS_MAX);
        return false;
    }
    uint32_t first = tokens->ids[0];
    size_t count = tokens->count;
    if (!forbid_tokens(tokens, encode->allow_only, words, ret_text, room)) return false;
    /* In the middle of a text it may be other tokens. */
    bool other =
        encode_word(tokenizer, word, true, scratch, tokens) && tokens->count == count && tokens->ids[0] != first;
    return !other || forbid_tokens(tokens, encode->allow_only, words, ret_text, room);
}

bool bad_words_forbid(const tokenizer_t *tokenizer, tokenizer_scratch_t *scratch, const qn_encode_t *encode,
                      bad_words_t *words, char *ret_text, size_t room)
{
    tokenizer_tokens_t tokens = {0};
    bool good = true;
    for (uint32_t i = 0; good && i < encode->bad_words_count; i++)
        good = forbid_word(tokenizer, encode, i, scratch, &tokens, words, ret_text, room);
    tokenizer_tokens_fini(&tokens);
    return good;
}
