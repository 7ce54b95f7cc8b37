/* What is this?      Literal and regular expression search with the results of Oniguruma's find_iter.
 * State owned:       the compiled expression.
 * Must never:        run without bounds on a user's text; read an expression differently without saying so.
 * Read next:         pretokenizer.h and normalizer.h (who search), scanner.h (the usual patterns, by hand). */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "services/tokenizer/split/pattern.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "services/tokenizer/text_buffer.h"
#include "services/tokenizer/split/unicode_classes.h"

#define PATTERN_BYTES_MAX 65536      /* the longest published expression has 2 KiB */
#define PATTERN_MATCH_LIMIT 50000000 /* backtracking steps of one search: about a second */
#define PATTERN_JIT_STACK_BYTES (1u << 20)

struct pattern {
    uint8_t *literal; /* owned; NULL for an expression */
    size_t literal_bytes;
    pcre2_code *code; /* owned */
};

void pattern_work_fini(pattern_work_t *work)
{
    pcre2_match_data_free(work->match_data);
    pcre2_match_context_free(work->match_context);
    pcre2_jit_stack_free(work->jit_stack);
    *work = (pattern_work_t){0};
}

/* Rewriting of Oniguruma's Ruby syntax. `in_class`: between [ and ]. */
typedef struct {
    const char *text;
    size_t bytes, at;
    bool in_class;
    const char *where;
    text_buffer_t out;
} rewrite_t;

static void put(rewrite_t *r, const char *text) { text_buffer_append(&r->out, text, strlen(text)); }

#define WORD_IN_CLASS                                                           \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}" \
    "\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
#define WORD_MEMBERS WORD_IN_CLASS "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"

/* Oniguruma's \s is White_Space; \w is letters, marks, digits, connectors and some symbols, outside of []
 * also superscripts and fractions of Latin-1 (PCRE2 adds U+180E to the one and leaves marks out of the
 * other); \b goes with \w; \h is a hexadecimal digit. */
static bool put_shorthand(rewrite_t *r, char letter)
{
    if (!r->in_class && (letter == 'b' || letter == 'B')) {
        put(r, letter == 'b'
                   ? "(?:(?<=[" WORD_MEMBERS "])(?![" WORD_MEMBERS "])|(?<![" WORD_MEMBERS "])(?=[" WORD_MEMBERS "]))"
                   : "(?:(?<=[" WORD_MEMBERS "])(?=[" WORD_MEMBERS "])|(?<![" WORD_MEMBERS "])(?![" WORD_MEMBERS "]))");
        return true;
    }
    static const struct {
        char letter;
        const char *members;
    } positive[] = {
        {'s', "\\t-\\r\\x{85}\\p{Z}"},
        {'w', WORD_MEMBERS},
        {'h', "0-9a-fA-F"},
    };
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++) {
        bool is_negated = letter == positive[i].letter - 'a' + 'A';
        if (letter != positive[i].letter && !is_negated) continue;
        if (is_negated && r->in_class) return false; /* PCRE2's own reading, nearly the same */
        if (!r->in_class) put(r, is_negated ? "[^" : "[");
        put(r, r->in_class && letter == 'w' ? WORD_IN_CLASS : positive[i].members);
        if (!r->in_class) put(r, "]");
        return true;
    }
    return false;
}

static void rewrite_escape(rewrite_t *r)
{
    if (r->at + 1 < r->bytes && put_shorthand(r, r->text[r->at + 1])) {
        r->at += 2;
        return;
    }
    size_t take = r->bytes - r->at < 2 ? r->bytes - r->at : 2;
    text_buffer_append(&r->out, r->text + r->at, take);
    r->at += take;
}

/* Ruby's (?m) lets the dot match newlines, which is (?s) elsewhere. */
static void rewrite_group(rewrite_t *r)
{
    size_t at = r->at + 2;
    while (at < r->bytes && strchr("imx-", r->text[at]) && r->text[at] != '\0')
        at++;
    bool is_option = at < r->bytes && (r->text[at] == ':' || r->text[at] == ')');
    put(r, "(?");
    r->at += 2;
    if (!is_option) return;
    for (; r->at < at; r->at++) {
        char c = r->text[r->at] == 'm' ? 's' : r->text[r->at];
        text_buffer_append(&r->out, &c, 1);
    }
}

static qn_err_t rewrite_class_character(rewrite_t *r)
{
    char c = r->text[r->at];
    bool is_set_operation = c == '&' && r->at + 1 < r->bytes && r->text[r->at + 1] == '&';
    bool is_nested = c == '[' && !(r->at + 1 < r->bytes && r->text[r->at + 1] == ':');
    if (is_set_operation || is_nested)
        return qn_fail(QN_ERR_UNSUPPORTED,
                       "%s: the expression uses %s inside [] at byte %zu, which this build "
                       "does not read; rewrite it with a lookahead",
                       r->where, is_nested ? "a nested class" : "the set operation &&", r->at);
    if (c == '[') { /* [:alpha:] */
        const char *end = memmem(r->text + r->at, r->bytes - r->at, ":]", 2);
        size_t take = end ? (size_t)(end - (r->text + r->at)) + 2 : 1;
        text_buffer_append(&r->out, r->text + r->at, take);
        r->at += take;
        return QN_OK;
    }
    if (c == ']') r->in_class = false;
    text_buffer_append(&r->out, &c, 1);
    r->at++;
    return QN_OK;
}

static void rewrite_class_open(rewrite_t *r)
{
    r->in_class = true;
    put(r, "[");
    r->at++;
    if (r->at < r->bytes && r->text[r->at] == '^') {
        put(r, "^");
        r->at++;
    }
    if (r->at < r->bytes && r->text[r->at] == ']') { /* a literal one in first place */
        put(r, "\\]");
        r->at++;
    }
}

static qn_err_t rewrite(rewrite_t *r)
{
    while (r->at < r->bytes) {
        char c = r->text[r->at];
        if (c == '\\') {
            rewrite_escape(r);
        } else if (r->in_class) {
            qn_err_t err = rewrite_class_character(r);
            if (err) return err;
        } else if (c == '[') {
            rewrite_class_open(r);
        } else if (c == '(' && r->at + 1 < r->bytes && r->text[r->at + 1] == '?') {
            rewrite_group(r);
        } else {
            text_buffer_append(&r->out, &c, 1);
            r->at++;
        }
    }
    return QN_OK;
}

static qn_err_t compile(const char *text, size_t bytes, const char *where, pattern_t *pattern)
{
    rewrite_t r = {.text = text, .bytes = bytes, .where = where};
    qn_err_t err = rewrite(&r);
    if (!err) {
        int code = 0;
        PCRE2_SIZE offset = 0;
        /* Ruby's ^ and $ always work by line. */
        pattern->code =
            pcre2_compile(r.out.length ? r.out.bytes : (const uint8_t *)"", r.out.length,
                          PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &offset, NULL);
        if (!pattern->code) {
            char reason[120];
            pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason);
            err = qn_fail(QN_ERR_INVALID, "%s: the regular expression does not compile: %s (at byte %zu of %.*s)",
                          where, reason, (size_t)offset, (int)(r.out.length < 200 ? r.out.length : 200),
                          (const char *)r.out.bytes);
        }
    }
    if (pattern->code) pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE); /* only faster; may be forbidden */
    text_buffer_fini(&r.out);
    return err;
}

qn_err_t pattern_open(const char *text, size_t bytes, bool is_regex, const char *where, pattern_t **ret)
{
    if (bytes > PATTERN_BYTES_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s: the pattern has %zu bytes, at most %d are allowed", where, bytes,
                       PATTERN_BYTES_MAX);
    pattern_t *pattern = calloc(1, sizeof *pattern);
    QN_ASSERT(pattern != NULL);
    if (is_regex || bytes == 0) { /* the empty literal matches everywhere, as the empty expression does */
        qn_err_t err = compile(text, bytes, where, pattern);
        if (err) {
            free(pattern);
            return err;
        }
    } else {
        pattern->literal = malloc(bytes);
        QN_ASSERT(pattern->literal != NULL);
        memcpy(pattern->literal, text, bytes);
        pattern->literal_bytes = bytes;
    }
    *ret = pattern;
    return QN_OK;
}

void pattern_close(pattern_t **pattern)
{
    if (!*pattern) return;
    pcre2_code_free((*pattern)->code);
    free((*pattern)->literal);
    free(*pattern);
    *pattern = NULL;
}

const uint8_t *pattern_literal(const pattern_t *pattern, size_t *ret_bytes)
{
    *ret_bytes = pattern->literal_bytes;
    return pattern->literal;
}

static bool find_literal(const pattern_t *pattern, pattern_walk_t *walk, size_t *ret_start, size_t *ret_end)
{
    if (walk->next >= walk->length) return false;
    const uint8_t *hit =
        memmem(walk->text + walk->next, walk->length - walk->next, pattern->literal, pattern->literal_bytes);
    if (!hit) return false;
    *ret_start = (size_t)(hit - walk->text);
    *ret_end = *ret_start + pattern->literal_bytes;
    walk->next = *ret_end;
    return true;
}

static void work_prepare(pattern_work_t *work)
{
    if (work->match_data) return;
    work->match_data = pcre2_match_data_create(1, NULL);
    work->match_context = pcre2_match_context_create(NULL);
    work->jit_stack = pcre2_jit_stack_create(32 * 1024, PATTERN_JIT_STACK_BYTES, NULL);
    QN_ASSERT(work->match_data && work->match_context && work->jit_stack);
    pcre2_set_match_limit(work->match_context, PATTERN_MATCH_LIMIT);
    pcre2_jit_stack_assign(work->match_context, NULL, work->jit_stack);
}

qn_err_t pattern_next(const pattern_t *pattern, pattern_work_t *work, pattern_walk_t *walk, bool *ret_found,
                      size_t *ret_start, size_t *ret_end)
{
    if (pattern->literal) {
        *ret_found = find_literal(pattern, walk, ret_start, ret_end);
        return QN_OK;
    }
    work_prepare(work);
    *ret_found = false;
    while (walk->next <= walk->length) {
        int count = pcre2_match(pattern->code, walk->text, walk->length, walk->next, PCRE2_NO_UTF_CHECK,
                                work->match_data, work->match_context);
        if (count == PCRE2_ERROR_NOMATCH) return QN_OK;
        if (count < 0) {
            char reason[120];
            pcre2_get_error_message(count, (PCRE2_UCHAR *)reason, sizeof reason);
            return qn_fail(QN_ERR_LIMIT, "text: the tokenizer's regular expression gave up near byte %zu: %s",
                           walk->next, reason);
        }
        const PCRE2_SIZE *found = pcre2_get_ovector_pointer(work->match_data);
        size_t start = found[0] < found[1] ? found[0] : found[1], end = found[1]; /* \K may reverse them */
        if (start == end && end == walk->last_match_end) {
            walk->next += walk->next < walk->length ? unicode_lead_bytes(walk->text[walk->next]) : 1;
            continue;
        }
        walk->next = walk->last_match_end = end;
        *ret_found = true;
        *ret_start = start;
        *ret_end = end;
        return QN_OK;
    }
    return QN_OK;
}
