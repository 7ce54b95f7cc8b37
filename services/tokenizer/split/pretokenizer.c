/* What is this?      The cutting steps: what is found, and what becomes of it.
 * State owned:       patterns; the word lists and texts of a thread.
 * Must never:        lose or repeat a byte, except where the behaviour is Removed.
 * Read next:         scanner.h (the fast way for the usual expressions), bpe.h (what happens to words). */
#include "services/tokenizer/split/pretokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "services/tokenizer/bpe/byte_level.h"

/* A stretch of a word, and whether the pattern matched it. The stretches of a word cover it. */
struct pretokenizer_match {
    uint32_t start, end;
    bool is_match;
};

typedef struct pretokenizer_match match_t;

void pretokenizer_fini(pretokenizer_t *pretokenizer)
{
    for (size_t i = 0; i < pretokenizer->count; i++)
        pattern_close(&pretokenizer->steps[i].pattern);
    *pretokenizer = (pretokenizer_t){0};
}

void pretokenizer_work_fini(pretokenizer_work_t *work)
{
    for (int i = 0; i < 2; i++) {
        aligned_text_fini(&work->texts[i]);
        free(work->lists[i].words);
    }
    free(work->matches);
    pattern_work_fini(&work->pattern_work);
    *work = (pretokenizer_work_t){0};
}

static void add_word(pretokenizer_words_t *list, size_t start, size_t end)
{
    if (start == end) return;
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? list->capacity * 2 : 256;
        list->words = realloc(list->words, list->capacity * sizeof *list->words);
        QN_ASSERT(list->words != NULL);
    }
    list->words[list->count++] = (pretokenizer_word_t){(uint32_t)start, (uint32_t)end};
}

static void add_match(pretokenizer_work_t *work, size_t start, size_t end, bool is_match)
{
    if (work->match_count == work->match_capacity) {
        work->match_capacity = work->match_capacity ? work->match_capacity * 2 : 256;
        work->matches = realloc(work->matches, work->match_capacity * sizeof *work->matches);
        QN_ASSERT(work->matches != NULL);
    }
    work->matches[work->match_count++] = (match_t){(uint32_t)start, (uint32_t)end, is_match};
}

/* ---- finding ---- */

typedef struct {
    const pretokenizer_step_t *step;
    const unicode_classes_t *classes;
    pretokenizer_work_t *work;
    const uint8_t *text; /* of the whole view */
    size_t start, end;   /* the word */
} search_t;

static void find_by_scanner(const search_t *s)
{
    size_t at = 0, previous = 0, count;
    uint32_t ends[64];
    while ((count = s->step->scan(s->classes, s->text + s->start, s->end - s->start, &at, ends, 64)) > 0) {
        for (size_t i = 0; i < count; i++) {
            add_match(s->work, s->start + previous, s->start + ends[i], true);
            previous = ends[i];
        }
    }
}

static qn_err_t find_by_pattern(const search_t *s)
{
    pattern_walk_t walk = pattern_walk(s->text + s->start, s->end - s->start);
    size_t previous = 0;
    for (;;) {
        bool found;
        size_t start, end;
        qn_err_t err = pattern_next(s->step->pattern, &s->work->pattern_work, &walk, &found, &start, &end);
        if (err) return err;
        if (!found) break;
        if (previous != start) add_match(s->work, s->start + previous, s->start + start, false);
        add_match(s->work, s->start + start, s->start + end, true);
        previous = end;
    }
    if (s->start + previous != s->end) add_match(s->work, s->start + previous, s->end, false);
    return QN_OK;
}

static bool is_ascii_punctuation(uint32_t code)
{
    return (code >= '!' && code <= '/') || (code >= ':' && code <= '@') || (code >= '[' && code <= '`') ||
           (code >= '{' && code <= '~');
}

static void find_by_class(const search_t *s)
{
    size_t previous = s->start;
    unsigned bytes;
    for (size_t at = s->start; at < s->end; at += bytes) {
        uint32_t code = unicode_decode(s->text + at, &bytes);
        bool is_match = (unicode_class(s->classes, code) & s->step->mask) ||
                        (s->step->with_ascii_punctuation && is_ascii_punctuation(code));
        if (!is_match) continue;
        if (previous < at) add_match(s->work, previous, at, false);
        add_match(s->work, at, at + bytes, true);
        previous = at + bytes;
    }
    if (previous < s->end) add_match(s->work, previous, s->end, false);
}

/* 0: white space, 1: word character, 2: anything else. */
static int word_kind(const search_t *s, size_t at, unsigned *ret_bytes)
{
    unsigned class = unicode_class(s->classes, unicode_decode(s->text + at, ret_bytes));
    return class & UNICODE_WORD ? 1 : class & UNICODE_SPACE ? 0 : 2;
}

static void find_words(const search_t *s)
{
    unsigned bytes;
    for (size_t at = s->start; at < s->end;) {
        int kind = word_kind(s, at, &bytes);
        size_t end = at + bytes;
        while (end < s->end && word_kind(s, end, &bytes) == kind)
            end += bytes;
        add_match(s->work, at, end, kind != 0);
        at = end;
    }
}

static qn_err_t find_matches(const search_t *s)
{
    s->work->match_count = 0;
    switch (s->step->find) {
    case PRETOKENIZER_FIND_SCANNER: find_by_scanner(s); break;
    case PRETOKENIZER_FIND_PATTERN: return find_by_pattern(s);
    case PRETOKENIZER_FIND_CLASS: find_by_class(s); break;
    case PRETOKENIZER_FIND_WORDS: find_words(s); break;
    }
    return QN_OK;
}

/* ---- cutting ---- */

/* Contiguous: neighbours of one kind belong together. MergedWithPrevious: a match joins what is before it,
 * unless that is a match too. */
static void cut_forward(const search_t *s, pretokenizer_words_t *out)
{
    bool is_contiguous = s->step->behavior == PRETOKENIZER_CONTIGUOUS;
    bool previous = false;
    size_t start = s->start, end = s->start;
    for (size_t i = 0; i < s->work->match_count; i++) {
        match_t match = s->work->matches[i];
        bool is_match = match.is_match != s->step->invert;
        bool joins = is_contiguous ? is_match == previous : is_match && !previous;
        if (!joins) {
            add_word(out, start, end);
            start = match.start;
        }
        end = match.end;
        previous = is_match;
    }
    add_word(out, start, end);
}

/* The same seen from the end; words come out backwards and are turned round. */
static void cut_merged_with_next(const search_t *s, pretokenizer_words_t *out)
{
    size_t first = out->count;
    bool previous = false;
    size_t start = s->end, end = s->end;
    for (size_t i = s->work->match_count; i-- > 0;) {
        match_t match = s->work->matches[i];
        bool is_match = match.is_match != s->step->invert;
        if (!(is_match && !previous)) {
            add_word(out, start, end);
            end = match.end;
        }
        start = match.start;
        previous = is_match;
    }
    add_word(out, start, end);
    for (size_t low = first, high = out->count; low + 1 < high; low++, high--) {
        pretokenizer_word_t word = out->words[low];
        out->words[low] = out->words[high - 1];
        out->words[high - 1] = word;
    }
}

static void cut(const search_t *s, pretokenizer_words_t *out)
{
    switch (s->step->behavior) {
    case PRETOKENIZER_ISOLATED:
    case PRETOKENIZER_REMOVED:
        for (size_t i = 0; i < s->work->match_count; i++) {
            match_t match = s->work->matches[i];
            bool is_removed = s->step->behavior == PRETOKENIZER_REMOVED && match.is_match != s->step->invert;
            if (!is_removed) add_word(out, match.start, match.end);
        }
        break;
    case PRETOKENIZER_MERGED_WITH_NEXT: cut_merged_with_next(s, out); break;
    case PRETOKENIZER_MERGED_WITH_PREVIOUS:
    case PRETOKENIZER_CONTIGUOUS: cut_forward(s, out); break;
    }
}

static qn_err_t run_split(const pretokenizer_step_t *step, const unicode_classes_t *classes, pretokenizer_work_t *work,
                          const text_view_t *view, const pretokenizer_words_t *words, pretokenizer_words_t *out)
{
    for (size_t i = 0; i < words->count; i++) {
        search_t search = {step, classes, work, view->bytes, words->words[i].start, words->words[i].end};
        qn_err_t err = find_matches(&search);
        if (err) return err;
        cut(&search, out);
    }
    return QN_OK;
}

static void run_fixed_length(const pretokenizer_step_t *step, const text_view_t *view,
                             const pretokenizer_words_t *words, pretokenizer_words_t *out)
{
    for (size_t i = 0; i < words->count; i++) {
        size_t start = words->words[i].start, count = 0;
        for (size_t at = start; at < words->words[i].end;) {
            at += unicode_lead_bytes(view->bytes[at]);
            if (++count < step->length && at < words->words[i].end) continue;
            add_word(out, start, at);
            start = at;
            count = 0;
        }
    }
}

/* ---- steps that change the text ---- */

static tokenizer_span_t first_character_span(const text_view_t *view, size_t at)
{
    size_t last = at + unicode_lead_bytes(view->bytes[at]) - 1;
    return (tokenizer_span_t){text_view_span(view, at).start, text_view_span(view, last).end};
}

static void run_prefix_space(const text_view_t *view, const pretokenizer_words_t *words, aligned_text_t *text,
                             pretokenizer_words_t *out)
{
    for (size_t i = 0; i < words->count; i++) {
        pretokenizer_word_t word = words->words[i];
        size_t start = text->text.length;
        if (view->bytes[word.start] != ' ') aligned_text_put(text, " ", 1, first_character_span(view, word.start));
        aligned_text_copy(text, view, word.start, word.end);
        add_word(out, start, text->text.length);
    }
}

static void run_byte_level(const text_view_t *view, const pretokenizer_words_t *words, aligned_text_t *text,
                           pretokenizer_words_t *out)
{
    for (size_t i = 0; i < words->count; i++) {
        size_t start = text->text.length;
        tokenizer_span_t span = {0, 0}; /* all bytes of a character come from the whole of it */
        for (size_t at = words->words[i].start; at < words->words[i].end; at++) {
            uint8_t character[4];
            if ((view->bytes[at] & 0xC0) != 0x80) span = first_character_span(view, at);
            unsigned size = unicode_encode(byte_level_character(view->bytes[at]), character);
            aligned_text_put(text, character, size, span);
        }
        add_word(out, start, text->text.length);
    }
}

static bool begins_with(const pretokenizer_step_t *step, const uint8_t *at, size_t available)
{
    return available >= step->literal_bytes && memcmp(at, step->literal, step->literal_bytes) == 0;
}

static bool metaspace_prepends(const pretokenizer_step_t *step, const text_view_t *view, pretokenizer_word_t word)
{
    const uint8_t *first = view->bytes + word.start;
    if (step->prepend == PRETOKENIZER_PREPEND_NEVER) return false;
    if (*first == ' ' || begins_with(step, first, word.end - word.start)) return false;
    return step->prepend == PRETOKENIZER_PREPEND_ALWAYS || text_view_span(view, word.start).start == 0;
}

/* Each replacement begins a word, except in the first place; several in a row are a word each. */
static void cut_before_literal(const pretokenizer_step_t *step, const uint8_t *text, size_t start, size_t end,
                               pretokenizer_words_t *out)
{
    for (size_t at = start + unicode_lead_bytes(text[start]); at < end; at += unicode_lead_bytes(text[at])) {
        if (!begins_with(step, text + at, end - at)) continue;
        add_word(out, start, at);
        start = at;
    }
    add_word(out, start, end);
}

static void run_metaspace(const pretokenizer_step_t *step, const text_view_t *view, const pretokenizer_words_t *words,
                          aligned_text_t *text, pretokenizer_words_t *out)
{
    for (size_t i = 0; i < words->count; i++) {
        pretokenizer_word_t word = words->words[i];
        size_t start = text->text.length;
        if (metaspace_prepends(step, view, word))
            aligned_text_put(text, step->literal, step->literal_bytes, first_character_span(view, word.start));
        for (size_t at = word.start; at < word.end;) {
            const uint8_t *space = memchr(view->bytes + at, ' ', word.end - at);
            size_t stop = space ? (size_t)(space - view->bytes) : word.end;
            aligned_text_copy(text, view, at, stop);
            if (space) aligned_text_put(text, step->literal, step->literal_bytes, text_view_span(view, stop));
            at = stop + (space != NULL);
        }
        if (step->splits)
            cut_before_literal(step, text->text.bytes, start, text->text.length, out);
        else
            add_word(out, start, text->text.length);
    }
}

/* ---- the chain ---- */

static bool changes_text(const pretokenizer_step_t *step)
{
    return step->kind == PRETOKENIZER_PREFIX_SPACE || step->kind == PRETOKENIZER_BYTE_LEVEL ||
           step->kind == PRETOKENIZER_METASPACE;
}

static qn_err_t run_step(const pretokenizer_step_t *step, const unicode_classes_t *classes, pretokenizer_work_t *work,
                         const text_view_t *view, const pretokenizer_words_t *words, aligned_text_t *text,
                         pretokenizer_words_t *out)
{
    switch (step->kind) {
    case PRETOKENIZER_SPLIT: return run_split(step, classes, work, view, words, out);
    case PRETOKENIZER_FIXED_LENGTH: run_fixed_length(step, view, words, out); break;
    case PRETOKENIZER_PREFIX_SPACE: run_prefix_space(view, words, text, out); break;
    case PRETOKENIZER_BYTE_LEVEL: run_byte_level(view, words, text, out); break;
    case PRETOKENIZER_METASPACE: run_metaspace(step, view, words, text, out); break;
    }
    return QN_OK;
}

qn_err_t pretokenizer_run(const pretokenizer_t *pretokenizer, const unicode_classes_t *classes,
                          pretokenizer_work_t *work, text_view_t view, bool is_aligned, text_view_t *ret_text,
                          const pretokenizer_words_t **ret_words)
{
    size_t text_target = 0, from = 0, base = view.base;
    work->lists[from].count = 0;
    add_word(&work->lists[from], 0, view.length);
    for (size_t i = 0; i < pretokenizer->count; i++) {
        const pretokenizer_step_t *step = &pretokenizer->steps[i];
        aligned_text_t *text = &work->texts[text_target];
        pretokenizer_words_t *out = &work->lists[1 - from];
        out->count = 0;
        if (changes_text(step)) aligned_text_reset(text, is_aligned);
        qn_err_t err = run_step(step, classes, work, &view, &work->lists[from], text, out);
        if (err) return err;
        if (changes_text(step)) {
            view = aligned_text_view(text, base);
            text_target = 1 - text_target;
        }
        from = 1 - from;
    }
    *ret_text = view;
    *ret_words = &work->lists[from];
    return QN_OK;
}
