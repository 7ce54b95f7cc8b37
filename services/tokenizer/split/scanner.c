/* What is this?      One function per well-known boundary expression.
 * State owned:       none.
 * Must never:        differ from its expression on any text: pattern.c is the judge (test_scanner.c).
 * Read next:         pretokenizer.h. */
#include "services/tokenizer/split/scanner.h"

#include <stdbool.h>
#include <string.h>

enum {
    LETTER = UNICODE_LETTER,
    NUMBER = UNICODE_NUMBER,
    SPACE = UNICODE_SPACE,
    NOT_OTHER = UNICODE_LETTER | UNICODE_NUMBER | UNICODE_SPACE,   /* [\s\p{L}\p{N}] */
    CAPITAL = UNICODE_UPPER | UNICODE_OTHER_LETTER | UNICODE_MARK, /* [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] */
    SMALL = UNICODE_LOWER | UNICODE_OTHER_LETTER | UNICODE_MARK,   /* [\p{Ll}\p{Lm}\p{Lo}\p{M}] */
};

typedef struct {
    const unicode_classes_t *classes;
    const uint8_t *text;
    size_t length;
} source_t;

/* Class of the character at `at` (< length) and its size. */
static inline unsigned class_at(const source_t *s, size_t at, unsigned *ret_bytes)
{
    unsigned class = s->classes->bytes[s->text[at]];
    *ret_bytes = 1;
    if (__builtin_expect(class != UNICODE_NOT_ASCII, 1)) return class;
    return unicode_class(s->classes, unicode_decode(s->text + at, ret_bytes));
}

/* End of the run of characters in `mask` from `at`. */
static inline size_t run_in(const source_t *s, size_t at, unsigned mask)
{
    for (;;) {
        while (at < s->length && (s->classes->bytes[s->text[at]] & mask))
            at++;
        if (at == s->length || s->text[at] < 0x80) return at;
        unsigned bytes;
        if (!(unicode_class(s->classes, unicode_decode(s->text + at, &bytes)) & mask)) return at;
        at += bytes;
    }
}

/* End of the run of characters outside `mask` from `at`. */
static inline size_t run_outside(const source_t *s, size_t at, unsigned mask)
{
    for (;;) {
        while (at < s->length && !(s->classes->bytes[s->text[at]] & (mask | UNICODE_NOT_ASCII)))
            at++;
        if (at == s->length || s->text[at] < 0x80) return at;
        unsigned bytes;
        if (unicode_class(s->classes, unicode_decode(s->text + at, &bytes)) & mask) return at;
        at += bytes;
    }
}

/* The common tail of all expressions, \s+(?!\S)|\s+ : a run of spaces leaves its last character to the
 * word behind it, unless that is all there is. */
static inline size_t spaces_end(const source_t *s, size_t at, size_t run_end)
{
    if (run_end == s->length) return run_end;
    size_t last = unicode_step_back(s->text, run_end);
    return last > at ? last : run_end;
}

/* 's|'t|'re|'ve|'m|'ll|'d at an apostrophe: the end, or `at` when there is none. */
static inline size_t contraction_end(const source_t *s, size_t at)
{
    if (at + 1 >= s->length) return at;
    uint8_t first = s->text[at + 1];
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
    if (at + 2 >= s->length) return at;
    uint8_t second = s->text[at + 2];
    bool is_pair = (second == 'e' && (first == 'r' || first == 'v')) || (first == 'l' && second == 'l');
    return is_pair ? at + 3 : at;
}

/* The same with (?i:…): U+017F folds to s. */
static inline size_t contraction_end_caseless(const source_t *s, size_t at)
{
    if (at + 1 >= s->length) return at;
    uint8_t first = s->text[at + 1] | 0x20;
    if (s->text[at + 1] < 0x80) {
        if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
        if (at + 2 >= s->length) return at;
        uint8_t second = s->text[at + 2] | 0x20;
        bool is_pair = (second == 'e' && (first == 'r' || first == 'v')) || (first == 'l' && second == 'l');
        return is_pair && s->text[at + 2] < 0x80 ? at + 3 : at;
    }
    bool is_long_s = at + 2 < s->length && s->text[at + 1] == 0xC5 && s->text[at + 2] == 0xBF;
    return is_long_s ? at + 3 : at;
}

static inline size_t gpt2_end(const source_t *s, size_t at)
{
    unsigned bytes;
    unsigned class = class_at(s, at, &bytes);
    if (s->text[at] == '\'') {
        size_t end = contraction_end(s, at);
        if (end > at) return end;
    }
    size_t word = at;
    if (s->text[at] == ' ' && at + 1 < s->length) { /* the optional space in front of a run */
        unsigned next = class_at(s, at + 1, &bytes);
        if (!(next & SPACE)) {
            class = next;
            word = at + 1;
        }
    }
    if (class & LETTER) return run_in(s, word, LETTER);
    if (class & NUMBER) return run_in(s, word, NUMBER);
    if (!(class & SPACE)) return run_outside(s, word, NOT_OTHER);
    return spaces_end(s, at, run_in(s, at, SPACE));
}

static inline bool is_newline(uint8_t byte) { return byte == '\n' || byte == '\r'; }

/* " ?[^\s\p{L}\p{N}]+[\r\n]*", the last class also '/' with `slash`: the end, or `at` for no match. */
static inline size_t other_end(const source_t *s, size_t at, bool slash)
{
    size_t word = at + (s->text[at] == ' ');
    size_t end = run_outside(s, word, NOT_OTHER);
    if (end == word) return at;
    while (end < s->length && (is_newline(s->text[end]) || (slash && s->text[end] == '/')))
        end++;
    return end;
}

/* "\s*[\r\n]+|\s+(?!\S)|\s+" at a space character. */
static inline size_t lines_end(const source_t *s, size_t at)
{
    size_t run_end = run_in(s, at, SPACE);
    for (size_t end = run_end; end > at; end--)
        if (is_newline(s->text[end - 1])) return end;
    return spaces_end(s, at, run_end);
}

/* \p{N}{1,most} */
static inline size_t number_end(const source_t *s, size_t at, unsigned most)
{
    unsigned bytes;
    for (unsigned i = 0; i < most && at < s->length && (class_at(s, at, &bytes) & NUMBER); i++)
        at += bytes;
    return at;
}

/* The family of cl100k: Llama 3 with three digits, Qwen2 with one. */
static inline size_t cl100k_end(const source_t *s, size_t at, unsigned digits)
{
    unsigned bytes, next_bytes;
    unsigned class = class_at(s, at, &bytes);
    if (class & LETTER) return run_in(s, at, LETTER);
    if (class & NUMBER) return number_end(s, at, digits);
    if (s->text[at] == '\'') {
        size_t end = contraction_end_caseless(s, at);
        if (end > at) return end;
    }
    size_t next = at + bytes;
    if (!is_newline(s->text[at]) && next < s->length && (class_at(s, next, &next_bytes) & LETTER))
        return run_in(s, next + next_bytes, LETTER);
    size_t end = other_end(s, at, false);
    return end > at ? end : lines_end(s, at);
}

static inline size_t optional_contraction(const source_t *s, size_t at)
{
    return at < s->length && s->text[at] == '\'' ? contraction_end_caseless(s, at) : at;
}

/* CAPITAL*SMALL+ from `at` with the optional contraction: the end, or `at` for no match. Capitals are
 * taken greedily; when no small letter follows they give back up to the last one that is in both. */
static size_t small_word_end(const source_t *s, size_t at)
{
    unsigned bytes;
    size_t capitals = run_in(s, at, CAPITAL);
    if (capitals < s->length && (class_at(s, capitals, &bytes) & SMALL))
        return optional_contraction(s, run_in(s, capitals, SMALL));
    for (size_t end = capitals; end > at;) {
        size_t start = unicode_step_back(s->text, end);
        if (class_at(s, start, &bytes) & SMALL) return optional_contraction(s, end);
        end = start;
    }
    return at;
}

/* CAPITAL+SMALL* with the optional contraction, where small_word_end found nothing: only capitals. */
static size_t capital_word_end(const source_t *s, size_t at)
{
    size_t capitals = run_in(s, at, CAPITAL);
    return capitals > at ? optional_contraction(s, capitals) : at;
}

/* The first two alternatives of o200k: with the optional leading character first, then without. */
static size_t o200k_word_end(const source_t *s, size_t at, unsigned class, unsigned bytes)
{
    bool may_lead = !(class & (LETTER | NUMBER)) && !is_newline(s->text[at]);
    size_t next = at + bytes, end;
    if (may_lead && (end = small_word_end(s, next)) > next) return end;
    if ((end = small_word_end(s, at)) > at) return end;
    if (may_lead && (end = capital_word_end(s, next)) > next) return end;
    return capital_word_end(s, at);
}

static inline size_t o200k_end(const source_t *s, size_t at)
{
    unsigned bytes;
    unsigned class = class_at(s, at, &bytes);
    size_t end = o200k_word_end(s, at, class, bytes);
    if (end > at) return end;
    if (class & NUMBER) return number_end(s, at, 3);
    end = other_end(s, at, true);
    return end > at ? end : lines_end(s, at);
}

#define SCAN_WITH(end_of_piece)                \
    source_t source = {classes, text, length}; \
    size_t count = 0, at = *position;          \
    while (count < max && at < length) {       \
        at = end_of_piece;                     \
        ret_ends[count++] = (uint32_t)at;      \
    }                                          \
    *position = at;                            \
    return count

size_t scanner_gpt2(const unicode_classes_t *classes, const uint8_t *text, size_t length, size_t *position,
                    uint32_t *ret_ends, size_t max)
{
    SCAN_WITH(gpt2_end(&source, at));
}

static size_t scanner_llama3(const unicode_classes_t *classes, const uint8_t *text, size_t length, size_t *position,
                             uint32_t *ret_ends, size_t max)
{
    SCAN_WITH(cl100k_end(&source, at, 3));
}

static size_t scanner_qwen2(const unicode_classes_t *classes, const uint8_t *text, size_t length, size_t *position,
                            uint32_t *ret_ends, size_t max)
{
    SCAN_WITH(cl100k_end(&source, at, 1));
}

static size_t scanner_o200k(const unicode_classes_t *classes, const uint8_t *text, size_t length, size_t *position,
                            uint32_t *ret_ends, size_t max)
{
    SCAN_WITH(o200k_end(&source, at));
}

static const struct {
    scanner_fn *scan;
    const char *expression;
} known[] = {
    {scanner_gpt2, "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {scanner_gpt2, "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {scanner_llama3, "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
                     " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {scanner_qwen2, "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
                    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {scanner_o200k, "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
                    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
                    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
                    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|"
                    "\\s+(?!\\S)|\\s+"},
};

scanner_fn *scanner_for_expression(const char *expression, size_t bytes)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].expression) == bytes && memcmp(known[i].expression, expression, bytes) == 0)
            return known[i].scan;
    return NULL;
}
