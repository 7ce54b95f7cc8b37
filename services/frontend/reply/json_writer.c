/* What is this?      A JSON writer without a tree.
 * State owned:       none beyond the comma flag.
 * Must never:        emit invalid UTF-8, NaN, or an unescaped control character.
 * Read next:         reply_openai.c, its hottest user. */
#include "services/frontend/reply/json_writer.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void separate(json_writer_t *writer)
{
    if (writer->comma) reply_buffer_append(writer->out, ",", 1);
    writer->comma = true;
}

void json_put_open(json_writer_t *writer, char bracket)
{
    separate(writer);
    reply_buffer_append(writer->out, &bracket, 1);
    writer->comma = false;
}

void json_put_close(json_writer_t *writer, char bracket)
{
    reply_buffer_append(writer->out, &bracket, 1);
    writer->comma = true;
}

size_t json_utf8_length(const char *text, size_t bytes)
{
    const unsigned char *at = (const unsigned char *)text;
    if (at[0] < 0x80) return 1;
    /* The table of RFC 3629 §4: the first byte decides the length and narrows the second. */
    unsigned low = 0x80, high = 0xBF;
    size_t length;
    if (at[0] >= 0xC2 && at[0] <= 0xDF)
        length = 2;
    else if (at[0] >= 0xE0 && at[0] <= 0xEF)
        length = 3;
    else if (at[0] >= 0xF0 && at[0] <= 0xF4)
        length = 4;
    else
        return 0;
    if (at[0] == 0xE0) low = 0xA0;
    if (at[0] == 0xED) high = 0x9F;
    if (at[0] == 0xF0) low = 0x90;
    if (at[0] == 0xF4) high = 0x8F;
    if (bytes < length || at[1] < low || at[1] > high) return 0;
    for (size_t i = 2; i < length; i++) {
        if ((at[i] & 0xC0) != 0x80) return 0;
    }
    return length;
}

bool json_utf8_valid(const char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        size_t length = json_utf8_length(text + at, bytes - at);
        if (length == 0) return false;
        at += length;
    }
    return true;
}

uint32_t json_utf8_characters(const char *text, size_t bytes)
{
    uint32_t count = 0;
    for (size_t i = 0; i < bytes; i++)
        count += ((unsigned char)text[i] & 0xC0) != 0x80;
    return count;
}

/* What stands for a byte below 0x80 that may not stand for itself. */
static void put_escape(reply_buffer_t *out, unsigned char byte)
{
    switch (byte) {
    case '"': reply_buffer_append(out, "\\\"", 2); return;
    case '\\': reply_buffer_append(out, "\\\\", 2); return;
    case '\n': reply_buffer_append(out, "\\n", 2); return;
    case '\r': reply_buffer_append(out, "\\r", 2); return;
    case '\t': reply_buffer_append(out, "\\t", 2); return;
    default: reply_buffer_printf(out, "\\u%04x", byte);
    }
}

static void put_quoted(reply_buffer_t *out, const char *text, size_t bytes)
{
    reply_buffer_append(out, "\"", 1);
    size_t plain = 0; /* start of the run that is copied as it stands */
    for (size_t at = 0; at < bytes;) {
        unsigned char byte = (unsigned char)text[at];
        size_t length = byte < 0x80 ? 1 : json_utf8_length(text + at, bytes - at);
        bool escape = length == 0 || byte < 0x20 || byte == '"' || byte == '\\' || byte == 0x7F;
        if (escape) {
            reply_buffer_append(out, text + plain, at - plain);
            if (length == 0)
                reply_buffer_append(out, "\xEF\xBF\xBD", 3);
            else
                put_escape(out, byte);
            plain = at + 1;
        }
        at += length ? length : 1;
    }
    if (bytes > plain) reply_buffer_append(out, text + plain, bytes - plain);
    reply_buffer_append(out, "\"", 1);
}

void json_put_key_text(json_writer_t *writer, const char *text, size_t bytes)
{
    separate(writer);
    put_quoted(writer->out, text, bytes);
    reply_buffer_append(writer->out, ":", 1);
    writer->comma = false;
}

void json_put_key(json_writer_t *writer, const char *key) { json_put_key_text(writer, key, strlen(key)); }

void json_put_text(json_writer_t *writer, const char *text, size_t bytes)
{
    separate(writer);
    put_quoted(writer->out, text, bytes);
}

void json_put_raw(json_writer_t *writer, const char *json, size_t bytes)
{
    separate(writer);
    reply_buffer_append(writer->out, json, bytes);
}

void json_put_string(json_writer_t *writer, const char *text)
{
    if (text)
        json_put_text(writer, text, strlen(text));
    else
        json_put_null(writer);
}

static void put_word(json_writer_t *writer, const char *word)
{
    separate(writer);
    reply_buffer_text(writer->out, word);
}

void json_put_unsigned(json_writer_t *writer, uint64_t value)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRIu64, value);
    put_word(writer, digits);
}

void json_put_signed(json_writer_t *writer, int64_t value)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRId64, value);
    put_word(writer, digits);
}

void json_put_number(json_writer_t *writer, double value)
{
    if (!isfinite(value)) {
        json_put_null(writer);
        return;
    }
    char digits[40];
    snprintf(digits, sizeof digits, "%.15g", value);
    put_word(writer, digits);
}

void json_put_float(json_writer_t *writer, float value)
{
    if (!isfinite(value)) {
        json_put_null(writer);
        return;
    }
    char digits[40];
    for (int precision = 6; precision <= 9; precision++) { /* 9 digits name every float exactly */
        snprintf(digits, sizeof digits, "%.*g", precision, (double)value);
        if (strtof(digits, NULL) == value) break;
    }
    put_word(writer, digits);
}

void json_put_bool(json_writer_t *writer, bool value) { put_word(writer, value ? "true" : "false"); }

void json_put_null(json_writer_t *writer) { put_word(writer, "null"); }

void json_put_member_string(json_writer_t *writer, const char *key, const char *text)
{
    json_put_key(writer, key);
    json_put_string(writer, text);
}

void json_put_member_unsigned(json_writer_t *writer, const char *key, uint64_t value)
{
    json_put_key(writer, key);
    json_put_unsigned(writer, value);
}

void json_put_member_signed(json_writer_t *writer, const char *key, int64_t value)
{
    json_put_key(writer, key);
    json_put_signed(writer, value);
}

void json_put_member_bool(json_writer_t *writer, const char *key, bool value)
{
    json_put_key(writer, key);
    json_put_bool(writer, value);
}

void json_put_member_null(json_writer_t *writer, const char *key)
{
    json_put_key(writer, key);
    json_put_null(writer);
}
