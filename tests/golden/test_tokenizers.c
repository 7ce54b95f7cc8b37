/* Real vocabularies (byte-level, byte-fallback) over 635 texts: ids and decodings equal the reference
 * library's, token by token as well as whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "services/tokenizer/decode/detokenizer.h"
#include "services/tokenizer/tokenizer.h"

#define FOLDER "tests/golden/tokenizers/"

typedef struct {
    const char *name;
    tokenizer_t *tokenizer;
    tokenizer_scratch_t *scratch;
    tokenizer_tokens_t tokens;
    text_buffer_t text;
    size_t text_count;
} case_t;

static json_t *load(const char *name, const char *suffix)
{
    char path[256];
    snprintf(path, sizeof path, FOLDER "%s%s", name, suffix);
    json_error_t error;
    json_t *json = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (!json) fail_msg("%s: %s", path, error.text);
    return json;
}

static void check_ids(case_t *c, const char *text, size_t bytes, const json_t *ids)
{
    assert_int_equal(tokenizer_encode(c->tokenizer, c->scratch, text, bytes, TOKENIZER_PARSE_SPECIAL, &c->tokens),
                     QN_OK);
    bool is_same = c->tokens.count == json_array_size(ids);
    for (size_t i = 0; is_same && i < c->tokens.count; i++)
        is_same = c->tokens.ids[i] == (uint32_t)json_integer_value(json_array_get(ids, i));
    if (!is_same) fail_msg("%s: ids of \"%.60s\" differ", c->name, text);
}

/* The spans of the tokens cover the text in order, and the ids are the same with and without them. */
static void check_spans(case_t *c, const char *text, size_t bytes)
{
    tokenizer_tokens_t spanned = {0};
    unsigned flags = TOKENIZER_PARSE_SPECIAL | TOKENIZER_WITH_SPANS;
    assert_int_equal(tokenizer_encode(c->tokenizer, c->scratch, text, bytes, flags, &spanned), QN_OK);
    assert_int_equal(spanned.count, c->tokens.count);
    for (size_t i = 0; i < spanned.count; i++) {
        assert_int_equal(spanned.ids[i], c->tokens.ids[i]);
        assert_true(spanned.spans[i].start <= spanned.spans[i].end && spanned.spans[i].end <= bytes);
        if (i > 0) assert_true(spanned.spans[i].start >= spanned.spans[i - 1].start);
    }
    if (spanned.count > 0) assert_int_equal(spanned.spans[spanned.count - 1].end, bytes);
    tokenizer_tokens_fini(&spanned);
}

static void check_decoding(case_t *c, const char *want, size_t bytes, unsigned flags)
{
    c->text.length = 0;
    tokenizer_decode(c->tokenizer, c->tokens.ids, c->tokens.count, flags, &c->text);
    if (c->text.length != bytes || (bytes && memcmp(c->text.bytes, want, bytes) != 0))
        fail_msg("%s: decoding is \"%.*s\", expected \"%.60s\"", c->name, (int)c->text.length,
                 (const char *)c->text.bytes, want);
}

/* Cut after every id: what was released so far never changes and is a prefix of the whole. */
static void check_incremental(case_t *c, unsigned flags)
{
    detokenizer_t d;
    text_buffer_t released = {0};
    detokenizer_init(&d, c->tokenizer, flags);
    for (size_t i = 0; i < c->tokens.count; i++) {
        detokenizer_push(&d, c->tokens.ids[i], &released);
        assert_true(released.length <= c->text.length);
        if (released.length) assert_memory_equal(released.bytes, c->text.bytes, released.length);
    }
    detokenizer_flush(&d, &released);
    assert_int_equal(released.length, c->text.length);
    if (released.length) assert_memory_equal(released.bytes, c->text.bytes, released.length);
    detokenizer_fini(&d);
    text_buffer_fini(&released);
}

static void check_text(case_t *c, const json_t *text, const json_t *expected, size_t index)
{
    const char *bytes = json_string_value(text);
    size_t length = json_string_length(text);
    check_ids(c, bytes, length, json_array_get(json_object_get(expected, "ids"), index));
    check_spans(c, bytes, length);
    static const struct {
        const char *key;
        unsigned flags;
    } kinds[] = {{"decoded_skip_special", TOKENIZER_SKIP_SPECIAL}, {"decoded", 0}};
    for (size_t k = 0; k < 2; k++) {
        const json_t *decoded = json_object_get(expected, kinds[k].key);
        if (json_array_size(decoded) == 0) continue; /* the reference has none of this kind */
        const json_t *want = json_array_get(decoded, index);
        if (!json_is_string(want)) want = text;
        check_decoding(c, json_string_value(want), json_string_length(want), kinds[k].flags);
        check_incremental(c, kinds[k].flags);
    }
    c->text_count++;
}

static void check_tokenizer(const char *name)
{
    case_t c = {.name = name};
    char path[256];
    snprintf(path, sizeof path, FOLDER "%s.tokenizer.json", name);
    if (tokenizer_open(path, &c.tokenizer) != QN_OK) fail_msg("%s", qn_err_text());
    c.scratch = tokenizer_scratch_open(c.tokenizer);
    json_t *texts = load("texts", ".json"), *golden = load(name, ".golden.json");
    const char *group;
    json_t *list;
    json_object_foreach(texts, group, list)
    {
        for (size_t i = 0; i < json_array_size(list); i++)
            check_text(&c, json_array_get(list, i), json_object_get(golden, group), i);
    }
    assert_int_equal(c.text_count, 635);
    json_decref(texts);
    json_decref(golden);
    text_buffer_fini(&c.text);
    tokenizer_tokens_fini(&c.tokens);
    tokenizer_scratch_close(&c.scratch);
    tokenizer_close(&c.tokenizer);
}

static void test_tokenizers_gpt2_equals_reference(void **state)
{
    (void)state;
    check_tokenizer("gpt2");
}

static void test_tokenizers_default_equals_reference(void **state)
{
    (void)state;
    check_tokenizer("default");
}

static void test_tokenizers_byte_fallback_equals_reference(void **state)
{
    (void)state;
    check_tokenizer("llama2like");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizers_gpt2_equals_reference),
        cmocka_unit_test(test_tokenizers_default_equals_reference),
        cmocka_unit_test(test_tokenizers_byte_fallback_equals_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
