/* The chunked transfer coding (RFC 9112 7.1), decoded as it arrives. Strict: CR LF only, no blanks in sizes; extensions
 * and trailer fields are checked for length and dropped. Pure. */
#ifndef QN_FRONTEND_HTTP_HTTP_CHUNKED_H
#define QN_FRONTEND_HTTP_HTTP_CHUNKED_H

#include <stddef.h>
#include <stdint.h>

#define HTTP_CHUNK_LINE_MAX 1024 /* bytes of a size line, and of all trailer fields of a body */

typedef enum {
    HTTP_CHUNKED_MORE, /* all bytes were taken; the body goes on */
    HTTP_CHUNKED_DATA, /* a piece of the body */
    HTTP_CHUNKED_END,  /* the body is complete */
    HTTP_CHUNKED_BAD,
} http_chunked_outcome_t;

typedef struct {
    uint64_t left;   /* of the present chunk */
    uint32_t line;   /* bytes of the present size line or the trailer */
    uint32_t digits; /* of the present size */
    uint8_t state;   /* http_chunked.c */
} http_chunked_t;    /* zeroed: at the start of a body */

/* Takes the next piece from `bytes` bytes at `data`. *ret_used: how many were taken, for every outcome; with
 * HTTP_CHUNKED_DATA the piece is the last *ret_piece of these. Call again with the rest. */
http_chunked_outcome_t http_chunked_take(http_chunked_t *chunked, const char *data, size_t bytes, size_t *ret_used,
                                         size_t *ret_piece);

#endif
