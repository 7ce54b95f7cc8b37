/* Tokenizers written down in a test: parts of a tokenizer.json in, a tokenizer_t out. */
#ifndef QN_TESTS_UNIT_TOKENIZER_CASE_H
#define QN_TESTS_UNIT_TOKENIZER_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "services/tokenizer/decode/detokenizer.h"
#include "services/tokenizer/tokenizer.h"
#include "services/tokenizer/split/unicode_classes.h"

/* Members of the file; NULL: left out, or null. */
typedef struct {
    const char *normalizer, *pre_tokenizer, *post_processor, *decoder, *added_tokens;
    const char *model; /* members of the model besides vocab and merges, with a comma behind */
    const char *vocab, *merges;
} case_json_t;

static inline const char *case_or(const char *text, const char *fallback) { return text ? text : fallback; }

static inline qn_err_t case_open(case_json_t c, tokenizer_t **ret)
{
    static char json[1 << 16];
    int length =
        snprintf(json, sizeof json,
                 "{\"version\":\"1.0\",\"added_tokens\":%s,\"normalizer\":%s,\"pre_tokenizer\":%s,"
                 "\"post_processor\":%s,\"decoder\":%s,"
                 "\"model\":{\"type\":\"BPE\",%s\"vocab\":%s,\"merges\":%s}}",
                 case_or(c.added_tokens, "[]"), case_or(c.normalizer, "null"), case_or(c.pre_tokenizer, "null"),
                 case_or(c.post_processor, "null"), case_or(c.decoder, "null"), case_or(c.model, ""),
                 case_or(c.vocab, "{}"), case_or(c.merges, "[]"));
    assert_true(length > 0 && (size_t)length < sizeof json);
    return tokenizer_open_memory(&(tokenizer_files_t){.tokenizer = {json, (size_t)length}}, ret);
}

static inline tokenizer_t *case_opened(case_json_t c)
{
    tokenizer_t *t = NULL;
    if (case_open(c, &t) != QN_OK) fail_msg("%s", qn_err_text());
    return t;
}

/* Encodes and writes the raw pieces with a '|' before each into a static buffer. */
static inline const char *case_encode(const tokenizer_t *t, const char *text, unsigned flags)
{
    static char line[4096];
    tokenizer_scratch_t *scratch = tokenizer_scratch_open(t);
    tokenizer_tokens_t tokens = {0}, again = {0};
    size_t length = 0;
    assert_int_equal(tokenizer_encode(t, scratch, text, strlen(text), flags, &tokens), QN_OK);
    /* From the cache, and past it, comes the same. */
    assert_int_equal(tokenizer_encode(t, scratch, text, strlen(text), flags, &again), QN_OK);
    assert_int_equal(tokens.count, again.count);
    if (tokens.count) assert_memory_equal(tokens.ids, again.ids, tokens.count * sizeof *tokens.ids);
    assert_int_equal(tokenizer_encode(t, scratch, text, strlen(text), flags | TOKENIZER_WITH_SPANS, &again), QN_OK);
    assert_int_equal(tokens.count, again.count);
    if (tokens.count) assert_memory_equal(tokens.ids, again.ids, tokens.count * sizeof *tokens.ids);
    line[0] = '\0';
    for (size_t i = 0; i < tokens.count; i++) {
        size_t bytes = 0;
        const char *piece = tokenizer_token_text(t, tokens.ids[i], &bytes);
        assert_non_null(piece);
        length += (size_t)snprintf(line + length, sizeof line - length, "|%.*s", (int)bytes, piece);
        assert_true(length < sizeof line);
    }
    tokenizer_tokens_fini(&tokens);
    tokenizer_tokens_fini(&again);
    tokenizer_scratch_close(&scratch);
    return line;
}

#endif
