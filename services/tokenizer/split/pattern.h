/* What to look for in a text: a literal string or a regular expression, as `{"String": …}` and
 * `{"Regex": …}` of a tokenizer.json say.
 *
 * Regular expressions are written for Oniguruma (Ruby syntax) and run on PCRE2 with UTF and UCP; what the
 * two read differently (\h, \s, \w, ^, $, (?m)) is rewritten, what PCRE2 lacks (set operations inside [])
 * is refused. Immutable after open; each thread brings its own pattern_work_t. */
#ifndef QN_TOKENIZER_SPLIT_PATTERN_H
#define QN_TOKENIZER_SPLIT_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

typedef struct pattern pattern_t;

/* Matching space of one thread; a zeroed one is valid. */
typedef struct {
    void *match_data;    /* pcre2_match_data, owned */
    void *match_context; /* pcre2_match_context, owned */
    void *jit_stack;     /* pcre2_jit_stack, owned */
} pattern_work_t;

void pattern_work_fini(pattern_work_t *work);

/* Compiles. `where` names the JSON path in failures: QN_ERR_INVALID for a broken expression,
 * QN_ERR_UNSUPPORTED for one that only Oniguruma reads. Returns owned. */
qn_err_t pattern_open(const char *text, size_t bytes, bool is_regex, const char *where, pattern_t **ret);
void pattern_close(pattern_t **pattern);

/* View of the literal, NULL for a regular expression. */
const uint8_t *pattern_literal(const pattern_t *pattern, size_t *ret_bytes);

/* A walk over the matches in one text. */
typedef struct {
    const uint8_t *text; /* valid UTF-8 */
    size_t length;
    size_t next;           /* where the next search starts */
    size_t last_match_end; /* SIZE_MAX: none yet */
} pattern_walk_t;

static inline pattern_walk_t pattern_walk(const uint8_t *text, size_t length)
{
    return (pattern_walk_t){text, length, 0, SIZE_MAX};
}

/* Finds the next match: *ret_found says whether, [*ret_start, *ret_end) where. Matches do not overlap; an
 * empty match directly after a match does not count. Fails with QN_ERR_LIMIT when an expression takes too
 * many steps on this text. */
qn_err_t pattern_next(const pattern_t *pattern, pattern_work_t *work, pattern_walk_t *walk, bool *ret_found,
                      size_t *ret_start, size_t *ret_end);

#endif
