/* Token ids to text, one at a time, for a stream.
 *
 * Each push gives the bytes that became final: always whole UTF-8 characters, never to be taken back.
 * What could still change (half a character, a run of byte-fallback tokens, a space that may be stripped)
 * is held. For every sequence of ids, the concatenation of all pushes and one flush is byte for byte what
 * tokenizer_decode gives for the whole sequence. A run of byte-fallback tokens is decoded as one: valid
 * text is released when the run ends, because a later broken byte would turn all of it into U+FFFD.
 *
 * State is a function of the ids pushed so far. One thread at a time. */
#ifndef QN_TOKENIZER_DECODE_DETOKENIZER_H
#define QN_TOKENIZER_DECODE_DETOKENIZER_H

#include "services/tokenizer/decode/decoder.h"
#include "services/tokenizer/tokenizer.h"

typedef struct {
    const tokenizer_t *tokenizer; /* borrowed */
    unsigned flags;               /* TOKENIZER_SKIP_SPECIAL or 0 */
    uint64_t token_count;         /* ids pushed since init */
    uint64_t byte_count;          /* bytes released since init: absolute position of the next byte */
    decoder_state_t state;        /* owned */
} detokenizer_t;

/* Embedded by the caller; `t` must outlive it. Allocates nothing. */
void detokenizer_init(detokenizer_t *d, const tokenizer_t *t, unsigned flags);
/* Frees what is held; accepts a zeroed one. */
void detokenizer_fini(detokenizer_t *d);

/* Appends the bytes that are final now to `out` (possibly none) and returns how many. */
size_t detokenizer_push(detokenizer_t *d, uint32_t id, text_buffer_t *out);
/* The sequence ends here: appends what was held, broken characters as U+FFFD; returns how many bytes.
 * Afterwards only fini or a new init is allowed. */
size_t detokenizer_flush(detokenizer_t *d, text_buffer_t *out);

/* Makes a new detokenizer go on behind a prompt: what is pushed and flushed afterwards is what those ids add to the
 * text of the prompt before them, a character that the prompt left unfinished included. Positions stay 0. `scratch` is
 * emptied. Takes as long as decoding the prompt, but for byte-level decoders, which look at its end alone. */
void detokenizer_prime(detokenizer_t *d, const uint32_t *ids, size_t count, text_buffer_t *scratch);

#endif
