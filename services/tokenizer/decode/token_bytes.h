/* The bytes one token stands for inside a text: what `bytes` and `tokens` of log-probabilities show. They need not be
 * whole UTF-8 characters. */
#ifndef QN_TOKENIZER_DECODE_TOKEN_BYTES_H
#define QN_TOKENIZER_DECODE_TOKEN_BYTES_H

#include "services/tokenizer/tokenizer.h"

/* Appends them (at most TOKENIZER_PIECE_BYTES_MAX) and returns how many; 0 for an id that names no token. Special
 * tokens give their content. */
size_t tokenizer_token_bytes(const tokenizer_t *t, uint32_t id, text_buffer_t *out);

#endif
