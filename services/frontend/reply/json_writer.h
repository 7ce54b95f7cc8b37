/* Writes JSON straight into a reply buffer: the stream chunks of every token pass here, so there is no tree. Places
 * commas by itself; the caller opens, closes and names members in the right order (a wrong order is a bug, found by
 * the unit tests, which parse all output with jansson).
 *
 * What is written is always valid JSON: bytes that are not UTF-8 become U+FFFD, NaN and infinities become null. */
#ifndef QN_FRONTEND_REPLY_JSON_WRITER_H
#define QN_FRONTEND_REPLY_JSON_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "services/frontend/reply/reply_buffer.h"

typedef struct {
    reply_buffer_t *out; /* borrowed */
    bool comma;          /* the next value or member is not the first of its container */
} json_writer_t;

static inline json_writer_t json_writer_on(reply_buffer_t *out) { return (json_writer_t){.out = out}; }

/* `bracket` is '{' or '['. */
void json_put_open(json_writer_t *writer, char bracket);
/* `bracket` is '}' or ']'. */
void json_put_close(json_writer_t *writer, char bracket);
/* `key` is a C string that needs no escaping. */
void json_put_key(json_writer_t *writer, const char *key);
/* A member's name from foreign text. */
void json_put_key_text(json_writer_t *writer, const char *text, size_t bytes);
void json_put_text(json_writer_t *writer, const char *text, size_t bytes);
/* NULL becomes null. */
void json_put_string(json_writer_t *writer, const char *text);
void json_put_unsigned(json_writer_t *writer, uint64_t value);
void json_put_signed(json_writer_t *writer, int64_t value);
void json_put_number(json_writer_t *writer, double value);
/* Shortest text that reads back as the same float: equal floats give equal text. */
void json_put_float(json_writer_t *writer, float value);
void json_put_bool(json_writer_t *writer, bool value);
void json_put_null(json_writer_t *writer);
/* A value that is JSON already. */
void json_put_raw(json_writer_t *writer, const char *json, size_t bytes);

/* A key and its value in one call. */
void json_put_member_string(json_writer_t *writer, const char *key, const char *text);
void json_put_member_unsigned(json_writer_t *writer, const char *key, uint64_t value);
void json_put_member_signed(json_writer_t *writer, const char *key, int64_t value);
void json_put_member_bool(json_writer_t *writer, const char *key, bool value);
void json_put_member_null(json_writer_t *writer, const char *key);

/* Length of the valid UTF-8 character at `text` (1 to 4), or 0 when there is none; `bytes` ≥ 1 are readable. Overlong
 * forms, surrogates and values above U+10FFFF are not valid (RFC 3629). */
size_t json_utf8_length(const char *text, size_t bytes);
bool json_utf8_valid(const char *text, size_t bytes);
/* Characters of UTF-8 text (bytes that do not continue one). */
uint32_t json_utf8_characters(const char *text, size_t bytes);

#endif
