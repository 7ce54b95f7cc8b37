/* Walks over JSON text without building a tree: vocabularies have hundreds of thousands of members, and
 * of most of them only the bytes are wanted. Small parts are handed to a JSON library as slices.
 *
 * Strict for what it reads (RFC 8259, UTF-8, no lone surrogates); what it skips is only balanced. Every
 * function returns false on broken text; `at` then stands where it broke. */
#ifndef QN_TOKENIZER_JSON_JSON_CURSOR_H
#define QN_TOKENIZER_JSON_JSON_CURSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "services/tokenizer/text_buffer.h"

#define JSON_CURSOR_DEPTH_MAX 64

typedef struct {
    const char *text; /* borrowed */
    size_t length;
    size_t at;
} json_cursor_t;

typedef struct {
    const char *text; /* view into the cursor's text; NULL: absent */
    size_t length;
} json_slice_t;

static inline json_cursor_t json_cursor(json_slice_t slice) { return (json_cursor_t){slice.text, slice.length, 0}; }

/* The next byte that is not white space, without taking it; '\0' at the end. */
char json_cursor_peek(json_cursor_t *cursor);
/* Takes one punctuation character. */
bool json_cursor_take(json_cursor_t *cursor, char c);
/* Nothing but white space is left. */
bool json_cursor_at_end(json_cursor_t *cursor);

/* Reads a string, appending its bytes to `out`. */
bool json_cursor_string(json_cursor_t *cursor, text_buffer_t *out);
/* The same, as a view where it has no escapes (then `out` stays as it is), else of what was appended. */
bool json_cursor_string_view(json_cursor_t *cursor, text_buffer_t *out, const char **ret, size_t *ret_bytes);
/* Reads a whole number from 0 to UINT32_MAX. */
bool json_cursor_uint32(json_cursor_t *cursor, uint32_t *ret);
/* Skips one value and writes the slice it has. */
bool json_cursor_value(json_cursor_t *cursor, json_slice_t *ret);

/* Walks over the members of an object or the items of an array: call with *is_first true before the
 * first; *ret_more says whether one follows; `close` is '}' or ']'. The opening bracket is taken before. */
bool json_cursor_more(json_cursor_t *cursor, char close, bool *is_first, bool *ret_more);

#endif
