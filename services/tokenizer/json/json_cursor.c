/* What is this?      A pull reader for JSON.
 * State owned:       none.
 * Must never:        read past the end; recurse.
 * Read next:         tokenizer_json.c. */
#include "services/tokenizer/json/json_cursor.h"

#include <string.h>

#include "services/tokenizer/split/unicode_classes.h"

char json_cursor_peek(json_cursor_t *cursor)
{
    while (cursor->at < cursor->length) {
        char c = cursor->text[cursor->at];
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return c;
        cursor->at++;
    }
    return '\0';
}

bool json_cursor_take(json_cursor_t *cursor, char c)
{
    if (json_cursor_peek(cursor) != c || cursor->at >= cursor->length) return false;
    cursor->at++;
    return true;
}

bool json_cursor_at_end(json_cursor_t *cursor)
{
    json_cursor_peek(cursor);
    return cursor->at == cursor->length;
}

static bool read_hex4(json_cursor_t *cursor, uint32_t *ret)
{
    uint32_t value = 0;
    if (cursor->length - cursor->at < 4) return false;
    for (int i = 0; i < 4; i++) {
        char c = cursor->text[cursor->at++];
        uint32_t digit = c >= '0' && c <= '9'   ? (uint32_t)(c - '0')
                         : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a' + 10)
                         : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A' + 10)
                                                : 16;
        if (digit == 16) return false;
        value = value << 4 | digit;
    }
    *ret = value;
    return true;
}

/* After "\u": one code point, from two escapes when it is a surrogate pair. */
static bool read_code_point(json_cursor_t *cursor, text_buffer_t *out)
{
    uint32_t code, low;
    if (!read_hex4(cursor, &code)) return false;
    if (code >= 0xDC00 && code <= 0xDFFF) return false;
    if (code >= 0xD800 && code <= 0xDBFF) {
        if (cursor->length - cursor->at < 2 || memcmp(cursor->text + cursor->at, "\\u", 2) != 0) return false;
        cursor->at += 2;
        if (!read_hex4(cursor, &low) || low < 0xDC00 || low > 0xDFFF) return false;
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    uint8_t bytes[4];
    text_buffer_append(out, bytes, unicode_encode(code, bytes));
    return true;
}

static bool read_escape(json_cursor_t *cursor, text_buffer_t *out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (cursor->at >= cursor->length) return false;
    char c = cursor->text[cursor->at++];
    if (c == 'u') return read_code_point(cursor, out);
    const char *found = c ? strchr(from, c) : NULL;
    if (!found) return false;
    text_buffer_append(out, to + (found - from), 1);
    return true;
}

/* Length of the plain bytes from `at`: up to a quote, a backslash, a control character or the end. */
static size_t plain_run(const json_cursor_t *cursor)
{
    size_t at = cursor->at;
    while (at < cursor->length) {
        unsigned char c = (unsigned char)cursor->text[at];
        if (c == '"' || c == '\\' || c < 0x20) break;
        at++;
    }
    return at - cursor->at;
}

bool json_cursor_string_view(json_cursor_t *cursor, text_buffer_t *out, const char **ret, size_t *ret_bytes)
{
    if (!json_cursor_take(cursor, '"')) return false;
    size_t begin = out->length;
    for (bool is_plain = true;; is_plain = false) {
        const char *run = cursor->text + cursor->at;
        size_t bytes = plain_run(cursor);
        if (unicode_valid_prefix((const uint8_t *)run, bytes) != bytes) return false;
        cursor->at += bytes;
        if (cursor->at >= cursor->length) return false;
        char c = cursor->text[cursor->at++];
        if (c == '"' && is_plain) {
            *ret = run;
            *ret_bytes = bytes;
            return true;
        }
        text_buffer_append(out, run, bytes);
        if (c == '"') break;
        if (c != '\\' || !read_escape(cursor, out)) return false;
    }
    *ret = (const char *)out->bytes + begin;
    *ret_bytes = out->length - begin;
    return true;
}

bool json_cursor_string(json_cursor_t *cursor, text_buffer_t *out)
{
    const char *text;
    size_t bytes, length = out->length;
    if (!json_cursor_string_view(cursor, out, &text, &bytes)) return false;
    if (out->length == length) text_buffer_append(out, text, bytes);
    return true;
}

bool json_cursor_uint32(json_cursor_t *cursor, uint32_t *ret)
{
    char first = json_cursor_peek(cursor);
    if (first < '0' || first > '9') return false;
    uint64_t value = 0;
    size_t begin = cursor->at;
    while (cursor->at < cursor->length && cursor->text[cursor->at] >= '0' && cursor->text[cursor->at] <= '9') {
        value = value * 10 + (uint64_t)(cursor->text[cursor->at++] - '0');
        if (value > UINT32_MAX) return false;
    }
    if (first == '0' && cursor->at - begin > 1) return false;
    *ret = (uint32_t)value;
    return true;
}

static bool skip_string(json_cursor_t *cursor)
{
    cursor->at++;
    while (cursor->at < cursor->length) {
        char c = cursor->text[cursor->at++];
        if (c == '"') return true;
        if (c == '\\' && cursor->at < cursor->length) cursor->at++;
    }
    return false;
}

bool json_cursor_value(json_cursor_t *cursor, json_slice_t *ret)
{
    json_cursor_peek(cursor);
    size_t begin = cursor->at;
    int depth = 0;
    while (cursor->at < cursor->length) {
        char c = cursor->text[cursor->at];
        if (depth == 0 && (c == ',' || c == '}' || c == ']')) break;
        if (c == '"') {
            if (!skip_string(cursor)) return false;
        } else {
            cursor->at++;
            if ((c == '{' || c == '[') && ++depth > JSON_CURSOR_DEPTH_MAX) return false;
            if (c == '}' || c == ']') depth--;
        }
    }
    *ret = (json_slice_t){cursor->text + begin, cursor->at - begin};
    return depth == 0 && ret->length > 0;
}

bool json_cursor_more(json_cursor_t *cursor, char close, bool *is_first, bool *ret_more)
{
    *ret_more = !json_cursor_take(cursor, close);
    if (*ret_more && !*is_first && !json_cursor_take(cursor, ',')) return false;
    *is_first = false;
    return cursor->at <= cursor->length;
}
