/* A growing run of bytes, reused between calls so that a warm caller allocates nothing. Embedded by its
 * owner; a zeroed one is empty and valid. Growth that the host refuses ends the process: every user is
 * bounded by limits.h and tokenizer.h. */
#ifndef QN_TOKENIZER_TEXT_BUFFER_H
#define QN_TOKENIZER_TEXT_BUFFER_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

typedef struct {
    uint8_t *bytes; /* owned; not NUL-terminated */
    size_t length;
    size_t capacity;
} text_buffer_t;

/* Makes room for `more` further bytes; contents and length stay. */
static inline void text_buffer_reserve(text_buffer_t *buffer, size_t more)
{
    if (buffer->capacity - buffer->length >= more) return;
    QN_ASSERT(more < SIZE_MAX / 4 && buffer->length < SIZE_MAX / 4);
    size_t capacity = buffer->capacity ? buffer->capacity : 64;
    while (capacity < buffer->length + more)
        capacity *= 2;
    buffer->bytes = realloc(buffer->bytes, capacity);
    QN_ASSERT(buffer->bytes != NULL);
    buffer->capacity = capacity;
}

static inline void text_buffer_append(text_buffer_t *buffer, const void *bytes, size_t length)
{
    if (length == 0) return;
    text_buffer_reserve(buffer, length);
    memcpy(buffer->bytes + buffer->length, bytes, length);
    buffer->length += length;
}

/* Removes the first `count` bytes. */
static inline void text_buffer_drop(text_buffer_t *buffer, size_t count)
{
    QN_ASSERT(count <= buffer->length);
    if (count == 0) return;
    memmove(buffer->bytes, buffer->bytes + count, buffer->length - count);
    buffer->length -= count;
}

static inline void text_buffer_fini(text_buffer_t *buffer)
{
    free(buffer->bytes);
    *buffer = (text_buffer_t){0};
}

#endif
