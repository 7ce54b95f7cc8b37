/* What is this?      Rewrites what Python's json module accepts beyond JSON into JSON, and has it parsed.
 * State owned:       none.
 * Must never:        make a number of what has no value; accept what Python would refuse.
 * Read next:         model_config.c, which reads model files with it. */
#include "common/model/python_json.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* `out` has room for all that `text` can become: GROWTH times its bytes. */
#define GROWTH 2
#define ROOM_BYTES 16

typedef struct {
    const char *text;
    size_t bytes, at;
    char *out;
    size_t used;
} rewriter_t;

#define REPLACEMENT "\\ufffd"

static void put(rewriter_t *r, const char *bytes, size_t count)
{
    memcpy(r->out + r->used, bytes, count);
    r->used += count;
}

/* The code unit of a \uXXXX at `at`; -1: there is none. */
static long escape_at(const rewriter_t *r, size_t at)
{
    char digits[5] = "";
    if (r->bytes - at < 6 || r->text[at] != '\\' || r->text[at + 1] != 'u') return -1;
    memcpy(digits, r->text + at + 2, 4);
    return strspn(digits, "0123456789abcdefABCDEF") == 4 ? strtol(digits, NULL, 16) : -1;
}

static void rewrite_escape(rewriter_t *r)
{
    long unit = escape_at(r, r->at);
    size_t length = unit < 0 ? 2 : 6;
    if (length > r->bytes - r->at) length = r->bytes - r->at;
    bool lone = unit == 0 || (unit >= 0xdc00 && unit <= 0xdfff);
    if (unit >= 0xd800 && unit <= 0xdbff) {
        long next = escape_at(r, r->at + 6);
        lone = next < 0xdc00 || next > 0xdfff;
        if (!lone) length = 12;
    }
    if (lone)
        put(r, REPLACEMENT, strlen(REPLACEMENT));
    else
        put(r, r->text + r->at, length);
    r->at += length;
}

static void rewrite_string(rewriter_t *r)
{
    put(r, &r->text[r->at++], 1);
    while (r->at < r->bytes) {
        char c = r->text[r->at];
        if (c == '\\') {
            rewrite_escape(r);
            continue;
        }
        put(r, &c, 1);
        r->at++;
        if (c == '"') return;
    }
}

static void put_name(rewriter_t *r, const char *name) { r->used += (size_t)sprintf(r->out + r->used, "\"%s\"", name); }

/* A word outside strings: a number, a literal, or what the parser will refuse. */
static void rewrite_word(rewriter_t *r)
{
    const char *word = r->text + r->at;
    size_t length = 0;
    while (r->at + length < r->bytes && word[length] && !strchr(" \t\r\n,:[]{}\"", word[length]))
        length++;
    r->at += length;
    static const char *const NAMES[] = {"NaN", "Infinity", "-Infinity"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        if (length == strlen(NAMES[i]) && memcmp(word, NAMES[i], length) == 0) {
            put_name(r, NAMES[i]);
            return;
        }
    size_t begin = r->used;
    put(r, word, length);
    r->out[r->used] = '\0';
    const char *copy = r->out + begin;
    if (strspn(copy, "-+.0123456789eE") != length) return;
    double value = strtod(copy, NULL);
    bool whole = strspn(copy, "-0123456789") == length;
    errno = 0;
    if (isinf(value)) {
        r->used = begin;
        put_name(r, value < 0 ? "-Infinity" : "Infinity");
    } else if (whole && (strtoll(copy, NULL, 10), errno == ERANGE)) {
        put(r, "e0", 2);
    }
}

static void rewrite(rewriter_t *r)
{
    while (r->at < r->bytes) {
        char c = r->text[r->at];
        if (c == '"') {
            rewrite_string(r);
        } else if (c && strchr("+-.0123456789NI", c)) {
            rewrite_word(r);
        } else {
            put(r, &c, 1);
            r->at++;
        }
    }
}

json_t *qn_python_json_load(const char *text, size_t bytes, json_error_t *ret_error)
{
    rewriter_t r = {.text = text, .bytes = bytes, .out = malloc(GROWTH * bytes + ROOM_BYTES)};
    if (!r.out) {
        *ret_error = (json_error_t){.line = -1, .text = "no memory"};
        return NULL;
    }
    rewrite(&r);
    json_t *root = json_loadb(r.out, r.used, 0, ret_error);
    free(r.out);
    return root;
}
