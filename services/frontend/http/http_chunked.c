/* What is this?      The decoder of chunked bodies.
 * State owned:       none beyond http_chunked_t.
 * Must never:        take a byte behind the body's end.
 * Read next:         http_head.c, which says that a body is chunked. */
#include "services/frontend/http/http_chunked.h"

#include <stdbool.h>

enum { SIZE, EXTENSION, SIZE_LF, DATA, DATA_CR, DATA_LF, TRAILER, TRAILER_FIELD, TRAILER_LF, END_LF };

static bool take_digit(http_chunked_t *chunked, char c)
{
    int digit = c >= '0' && c <= '9' ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : -1;
    if (digit < 0 || ++chunked->digits > 15) return false; /* below 2^60: sums do not overflow */
    chunked->left = chunked->left * 16 + (uint64_t)digit;
    return true;
}

static bool is_control(char c) { return ((unsigned char)c < 0x20 && c != '\t') || c == 0x7F; }

/* Size lines and trailer; false: not allowed here. */
static bool step(http_chunked_t *chunked, char c)
{
    if (chunked->state != DATA_CR && chunked->state != DATA_LF && ++chunked->line > HTTP_CHUNK_LINE_MAX) return false;
    switch (chunked->state) {
    case SIZE:
        if (c != '\r' && c != ';') return take_digit(chunked, c);
        chunked->state = c == ';' ? EXTENSION : SIZE_LF;
        return chunked->digits > 0;
    case EXTENSION:
        if (c == '\r') chunked->state = SIZE_LF;
        return c == '\r' || !is_control(c);
    case SIZE_LF:
        chunked->state = chunked->left ? DATA : TRAILER;
        chunked->line = 0;
        return c == '\n';
    case DATA_CR: chunked->state = DATA_LF; return c == '\r';
    case DATA_LF: {
        bool good = c == '\n';
        *chunked = (http_chunked_t){.state = SIZE};
        return good;
    }
    case TRAILER:
        chunked->state = c == '\r' ? END_LF : TRAILER_FIELD;
        return c == '\r' || (!is_control(c) && c != ' ' && c != '\t' && c != ':');
    case TRAILER_FIELD:
        if (c == '\r') chunked->state = TRAILER_LF;
        return c == '\r' || !is_control(c);
    case TRAILER_LF: chunked->state = TRAILER; return c == '\n';
    default: return c == '\n'; /* END_LF */
    }
}

http_chunked_outcome_t http_chunked_take(http_chunked_t *chunked, const char *data, size_t bytes, size_t *ret_used,
                                         size_t *ret_piece)
{
    *ret_piece = 0;
    for (size_t at = 0; at < bytes; at++) {
        if (chunked->state == DATA) {
            size_t piece = bytes - at < chunked->left ? bytes - at : (size_t)chunked->left;
            chunked->left -= piece;
            if (chunked->left == 0) chunked->state = DATA_CR;
            *ret_used = at + piece;
            *ret_piece = piece;
            return HTTP_CHUNKED_DATA;
        }
        bool ends = chunked->state == END_LF;
        *ret_used = at + 1;
        if (!step(chunked, data[at])) return HTTP_CHUNKED_BAD;
        if (ends) return HTTP_CHUNKED_END;
    }
    *ret_used = bytes;
    return HTTP_CHUNKED_MORE;
}
