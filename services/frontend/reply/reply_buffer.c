/* What is this?      A growing byte string.
 * State owned:       its bytes.
 * Must never:        know what the bytes mean.
 * Read next:         json_writer.h, which writes JSON into it. */
#include "services/frontend/reply/reply_buffer.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

static void reserve(reply_buffer_t *buffer, size_t more)
{
    QN_ASSERT(more < SIZE_MAX / 4 && buffer->bytes < SIZE_MAX / 4);
    size_t need = buffer->bytes + more;
    if (need <= buffer->capacity) return;
    size_t capacity = buffer->capacity ? buffer->capacity : 256;
    while (capacity < need)
        capacity *= 2;
    buffer->data = realloc(buffer->data, capacity);
    QN_ASSERT(buffer->data != NULL);
    buffer->capacity = capacity;
}

void reply_buffer_append(reply_buffer_t *buffer, const void *data, size_t bytes)
{
    if (bytes == 0) return;
    reserve(buffer, bytes);
    memcpy(buffer->data + buffer->bytes, data, bytes);
    buffer->bytes += bytes;
}

void reply_buffer_text(reply_buffer_t *buffer, const char *text) { reply_buffer_append(buffer, text, strlen(text)); }

void reply_buffer_printf(reply_buffer_t *buffer, const char *format, ...)
{
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    QN_ASSERT(length >= 0);
    reserve(buffer, (size_t)length + 1); /* vsnprintf writes a NUL after the text */
    vsnprintf(buffer->data + buffer->bytes, (size_t)length + 1, format, again);
    va_end(again);
    buffer->bytes += (size_t)length;
}

void reply_buffer_consume(reply_buffer_t *buffer, size_t bytes)
{
    QN_ASSERT(bytes <= buffer->bytes);
    if (bytes == 0) return;
    memmove(buffer->data, buffer->data + bytes, buffer->bytes - bytes);
    buffer->bytes -= bytes;
}

char *reply_buffer_take(reply_buffer_t *buffer, size_t *ret_bytes)
{
    reserve(buffer, 1);
    char *data = buffer->data;
    *ret_bytes = buffer->bytes;
    *buffer = (reply_buffer_t){0};
    return data;
}

void reply_buffer_fini(reply_buffer_t *buffer)
{
    free(buffer->data);
    *buffer = (reply_buffer_t){0};
}
