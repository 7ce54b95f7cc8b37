/* The pre-tokenizers of a tokenizer.json: text to words. A chain of steps; each cuts the words it gets
 * into smaller ones, and some change the text on the way (Metaspace, ByteLevel). Immutable once loaded. */
#ifndef QN_TOKENIZER_SPLIT_PRETOKENIZER_H
#define QN_TOKENIZER_SPLIT_PRETOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "services/tokenizer/split/aligned_text.h"
#include "services/tokenizer/split/pattern.h"
#include "services/tokenizer/split/scanner.h"
#include "services/tokenizer/split/unicode_classes.h"

#define PRETOKENIZER_STEPS_MAX 32 /* DeepSeek has 4 */

typedef enum {
    PRETOKENIZER_SPLIT,        /* cut at what `find` finds, as `behavior` says */
    PRETOKENIZER_PREFIX_SPACE, /* a space before each word that has none; changes the text */
    PRETOKENIZER_BYTE_LEVEL,   /* bytes to their printable stand-ins; changes the text */
    PRETOKENIZER_METASPACE,    /* spaces to `literal`, one in front, cut there; changes the text */
    PRETOKENIZER_FIXED_LENGTH, /* `length` characters each */
} pretokenizer_kind_t;

typedef enum {
    PRETOKENIZER_FIND_SCANNER, /* pieces of a known expression: all of the text matches */
    PRETOKENIZER_FIND_PATTERN,
    PRETOKENIZER_FIND_CLASS, /* each character of the classes in `mask` */
    PRETOKENIZER_FIND_WORDS, /* \w+|[^\w\s]+ */
} pretokenizer_find_t;

typedef enum {
    PRETOKENIZER_REMOVED,
    PRETOKENIZER_ISOLATED,
    PRETOKENIZER_MERGED_WITH_PREVIOUS,
    PRETOKENIZER_MERGED_WITH_NEXT,
    PRETOKENIZER_CONTIGUOUS,
} pretokenizer_behavior_t;

typedef enum {
    PRETOKENIZER_PREPEND_NEVER,
    PRETOKENIZER_PREPEND_ALWAYS,
    PRETOKENIZER_PREPEND_FIRST, /* only before a word at the start of the input */
} pretokenizer_prepend_t;

typedef struct {
    pretokenizer_kind_t kind;
    pretokenizer_find_t find;
    pretokenizer_behavior_t behavior;
    bool invert; /* SPLIT: what does not match counts as the match */
    scanner_fn *scan;
    pattern_t *pattern; /* owned */
    unsigned mask;
    bool with_ascii_punctuation; /* FIND_CLASS: also $+<=>^`|~ */
    pretokenizer_prepend_t prepend;
    bool splits;        /* METASPACE: cut before each replacement */
    uint8_t literal[4]; /* METASPACE: the replacement character */
    uint8_t literal_bytes;
    size_t length;
} pretokenizer_step_t;

typedef struct {
    pretokenizer_step_t steps[PRETOKENIZER_STEPS_MAX];
    size_t count;
    bool needs_spans; /* a step asks where a word came from although the text was changed before */
} pretokenizer_t;

void pretokenizer_fini(pretokenizer_t *pretokenizer);

typedef struct {
    uint32_t start, end;
} pretokenizer_word_t;

/* Words over one text; a list of one thread. */
typedef struct {
    pretokenizer_word_t *words; /* [count], owned */
    size_t count, capacity;
} pretokenizer_words_t;

/* Buffers of one thread; a zeroed one is valid. */
typedef struct {
    aligned_text_t texts[2];
    pretokenizer_words_t lists[2];
    struct pretokenizer_match *matches; /* owned */
    size_t match_count, match_capacity;
    pattern_work_t pattern_work;
} pretokenizer_work_t;

void pretokenizer_work_fini(pretokenizer_work_t *work);

/* Cuts `view` into words. *ret_text is the text they lie in (view itself when no step changes it),
 * *ret_words a view of the list; both valid until the next call with this work. Empty words are left out.
 * Fails with QN_ERR_LIMIT when a regular expression gives up. */
qn_err_t pretokenizer_run(const pretokenizer_t *pretokenizer, const unicode_classes_t *classes,
                          pretokenizer_work_t *work, text_view_t view, bool is_aligned, text_view_t *ret_text,
                          const pretokenizer_words_t **ret_words);

#endif
