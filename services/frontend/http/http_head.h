/* The head of an HTTP/1.1 request (RFC 9112), read strictly: what two readers could understand differently is refused,
 * so that no proxy in front of Quintet and Quintet ever disagree on where a request ends. Pure: bytes in, fields out. */
#ifndef QN_FRONTEND_HTTP_HTTP_HEAD_H
#define QN_FRONTEND_HTTP_HTTP_HEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_HEAD_BYTES_MAX (64u << 10) /* request line and header fields */
#define HTTP_TARGET_BYTES_MAX (8u << 10)
#define HTTP_METHOD_BYTES_MAX 32
#define HTTP_FIELDS_MAX 100
#define HTTP_QUERY_MAX 32 /* pairs after the "?" */

typedef struct {
    const char *name, *value; /* views of the text that was parsed */
} http_field_t;

typedef enum {
    HTTP_HEAD_INCOMPLETE, /* more bytes are needed */
    HTTP_HEAD_COMPLETE,
    HTTP_HEAD_BAD, /* status and reason are set; where the next request begins is not known */
} http_head_outcome_t;

typedef struct {
    const char *method; /* views of the text that was parsed */
    const char *path;   /* decoded; "*" for OPTIONS * */
    http_field_t fields[HTTP_FIELDS_MAX];
    uint32_t field_count;
    http_field_t query[HTTP_QUERY_MAX]; /* decoded */
    uint32_t query_count;
    bool is_http_1_0;
    bool keep_alive;
    bool chunked;
    bool expects_continue;
    uint64_t content_length; /* 0 when chunked */
    int status;              /* when bad: 400, 414, 417, 431, 501 or 505 */
    const char *reason;      /* a sentence, static */
} http_head_t;

/* Where the head that begins at `text` ends (its empty line included), or 0 while that is not there. `*scanned`: bytes
 * already looked at, kept between calls so that a head that trickles in costs no more than one that comes at once. */
size_t http_head_end(const char *text, size_t bytes, size_t *scanned);
/* Parses a head of `bytes` bytes, which http_head_end found; `text` is changed (NULs, decoded parts) and must live as
 * long as ret_head is used. Never HTTP_HEAD_INCOMPLETE. */
http_head_outcome_t http_head_parse(char *text, size_t bytes, http_head_t *ret_head);
/* The value of the first field of this name, any case; NULL: none. */
const char *http_head_field(const http_head_t *head, const char *name);

#endif
