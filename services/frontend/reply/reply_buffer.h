/* A growing byte string: reply bodies, stream data, accumulated output text. What grows it is bounded by its owner
 * (limits.h); running out of host memory ends the process, as with arenas. */
#ifndef QN_FRONTEND_REPLY_REPLY_BUFFER_H
#define QN_FRONTEND_REPLY_REPLY_BUFFER_H

#include <stddef.h>

/* A zeroed buffer is empty and ready. `data` is not NUL-terminated. */
typedef struct {
    char *data; /* owned; NULL while nothing was ever appended */
    size_t bytes, capacity;
} reply_buffer_t;

void reply_buffer_append(reply_buffer_t *buffer, const void *data, size_t bytes);
void reply_buffer_text(reply_buffer_t *buffer, const char *text);
/* Appends printf-formatted text of any length. */
void reply_buffer_printf(reply_buffer_t *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Drops the first `bytes` bytes. */
void reply_buffer_consume(reply_buffer_t *buffer, size_t bytes);
/* Returns owned the content (never NULL); the buffer is empty afterwards. */
char *reply_buffer_take(reply_buffer_t *buffer, size_t *ret_bytes);
/* Frees the content; the buffer may be used again. */
void reply_buffer_fini(reply_buffer_t *buffer);

#endif
