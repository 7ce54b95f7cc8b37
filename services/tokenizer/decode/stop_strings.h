/* Finds stop strings in a stream of text.
 *
 * Text arrives in pieces of any size; the matcher says which bytes may be shown to the client. A suffix
 * that could be the beginning of a stop string is held until that is decided. The match is the one that
 * starts first in the text; of several that start there, the shortest. The outcome depends on the
 * text only, never on how it was cut into pieces. Pure; one thread at a time. */
#ifndef QN_TOKENIZER_DECODE_STOP_STRINGS_H
#define QN_TOKENIZER_DECODE_STOP_STRINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/limits.h"
#include "services/tokenizer/text_buffer.h"

typedef struct {
    size_t count;
    bool include_stop; /* release the stop string itself too */
    bool matched;
    uint32_t match_index; /* which string, in the order given to init */
    uint64_t match_start; /* absolute byte offset of the match in the stream */
    uint64_t byte_count;  /* bytes released so far */
    uint16_t lengths[QN_STOP_STRINGS_MAX];
    text_buffer_t strings; /* owned: all of them in a row */
    text_buffer_t held;    /* owned: at most the longest string less one byte */
} stop_strings_t;

/* Copies `count` strings of `lengths` bytes. Fails with QN_ERR_INVALID on an empty string and QN_ERR_LIMIT
 * beyond QN_STOP_STRINGS_MAX or QN_STOP_STRING_BYTES_MAX; `s` is then zeroed. count 0: everything passes. */
qn_err_t stop_strings_init(stop_strings_t *s, const char *const *strings, const size_t *lengths, size_t count,
                           bool include_stop);
void stop_strings_fini(stop_strings_t *s);

/* Takes the next piece of text, appends to `out` what may be released, returns true when a stop string
 * was found (then and earlier); after that all further text is swallowed. */
bool stop_strings_push(stop_strings_t *s, const char *text, size_t bytes, text_buffer_t *out);

/* The text ends here: what was held cannot become longer. Appends the rest to `out`; returns true when a
 * stop string was found in it (one that had waited for a longer one starting earlier) or before. */
bool stop_strings_flush(stop_strings_t *s, text_buffer_t *out);

#endif
