/* Units of services/tokenizer/split/added_tokens.c through whole tokenizers: every flag, with and without parsing of
 * special tokens. The expected tokens are those of the reference library. */
#include "tests/unit/tokenizer_case.h"

static const char vocab[] =
    "{\"a\":0,\"b\":1,\"c\":2,\"d\":3,\"e\":4,\"h\":5,\"k\":6,\" \":7,\"x\":8,\"é\":9,\"<\":10,\">\":11,\"/\":12,\"s\":13,"
    "\"|\":14,\"!\":15,\"▁\":16,\"A\":17,\"B\":18}";

typedef struct {
    const char *added, *normalizer, *text, *parsed, *plain;
} row_t;

static const row_t rows[] = {
    {"[{\"content\":\"<s>\",\"normalized\":false,\"special\":true}]", "null", "a<s>b", "|a|<s>|b", "|a|<|s|>|b"},
    {"[{\"content\":\"<s>\",\"normalized\":false,\"special\":true}]", "null", "<s><s>", "|<s>|<s>", "|<|s|>|<|s|>"},
    {"[{\"content\":\"ab\",\"normalized\":false},{\"content\":\"abc\",\"normalized\":false}]", "null", "abcab",
     "|abc|ab", "|abc|ab"},
    {"[{\"content\":\"ab\",\"single_word\":true,\"normalized\":false}]", "null", "ab xab ab! é ab",
     "|ab| |x|a|b| |ab|!| |é| |ab", "|ab| |x|a|b| |ab|!| |é| |ab"},
    {"[{\"content\":\"ab\",\"single_word\":true,\"normalized\":false}]", "null", "éab abé ab", "|é|a|b| |a|b|é| |ab",
     "|é|a|b| |a|b|é| |ab"},
    {"[{\"content\":\"ab\",\"lstrip\":true,\"normalized\":false}]", "null", "x  ab b", "|x|ab| |b", "|x|ab| |b"},
    {"[{\"content\":\"ab\",\"rstrip\":true,\"normalized\":false}]", "null", "xab  b", "|x|ab|b", "|x|ab|b"},
    {"[{\"content\":\"ab\",\"lstrip\":true,\"rstrip\":true,\"normalized\":false}]", "null", "ab  ab ab", "|ab|ab|ab",
     "|ab|ab|ab"},
    {"[{\"content\":\" \",\"lstrip\":true,\"rstrip\":true,\"normalized\":false}]", "null", "a   b", "|a| |b", "|a| |b"},
    {"[{\"content\":\"AB\",\"normalized\":true}]", "{\"type\":\"Lowercase\"}", "xabAB", "|x|ab|ab", "|x|ab|ab"},
    {"[{\"content\":\"AB\",\"normalized\":false}]", "{\"type\":\"Lowercase\"}", "xabAB", "|x|a|b|AB", "|x|a|b|AB"},
    {"[{\"content\":\"ab\",\"normalized\":true}]", "null", "abab", "|ab|ab", "|ab|ab"},
    {"[{\"content\":\"A\",\"normalized\":true},{\"content\":\"<s>\",\"normalized\":false,\"special\":true}]",
     "{\"type\":\"Lowercase\"}", "a<s>A<S>", "|a|<s>|a|<|s|>", "|a|<|s|>|a|<|s|>"},
    {"[{\"content\":\"a\",\"normalized\":true}]", "{\"type\":\"Prepend\",\"prepend\":\"▁\"}", "ab ba", "|▁a|b| |b|▁a",
     "|▁a|b| |b|▁a"},
    {"[{\"content\":\"é\",\"normalized\":false}]", "null", "aéb", "|a|é|b", "|a|é|b"},
    {"[]", "null", "ab", "|a|b", "|a|b"},
};

static void check(const row_t *row, unsigned flags, const char *want)
{
    tokenizer_t *t =
        case_opened((case_json_t){.vocab = vocab, .added_tokens = row->added, .normalizer = row->normalizer});
    const char *got = case_encode(t, row->text, flags);
    if (strcmp(got, want) != 0)
        fail_msg("%s %s on \"%s\": %s, expected %s", row->added, row->normalizer, row->text, got, want);
    tokenizer_close(&t);
}

static void test_added_tokens_flags_give_expected_tokens(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check(&rows[i], TOKENIZER_PARSE_SPECIAL, rows[i].parsed);
        check(&rows[i], 0, rows[i].plain);
    }
}

static void test_added_tokens_new_ids_follow_the_vocabulary(void **state)
{
    (void)state;
    tokenizer_t *t = case_opened(
        (case_json_t){.vocab = "{\"a\":0,\"b\":1}",
                      .added_tokens = "[{\"id\":1,\"content\":\"b\",\"special\":true},{\"id\":2,\"content\":\"<x>\"},"
                                      "{\"id\":3,\"content\":\"<y>\",\"special\":true}]"});
    uint32_t id = 99;
    size_t bytes;
    assert_int_equal(tokenizer_vocab_size(t), 4);
    assert_int_equal(tokenizer_id_limit(t), 4);
    assert_true(tokenizer_id_of(t, "<y>", 3, &id));
    assert_int_equal(id, 3);
    assert_false(tokenizer_id_of(t, "<z>", 3, &id));
    assert_true(tokenizer_is_special(t, 1) && tokenizer_is_special(t, 3));
    assert_false(tokenizer_is_special(t, 0) || tokenizer_is_special(t, 2) || tokenizer_is_special(t, 4));
    assert_memory_equal(tokenizer_token_text(t, 2, &bytes), "<x>", 3);
    assert_null(tokenizer_token_text(t, 4, &bytes));
    tokenizer_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_added_tokens_flags_give_expected_tokens),
        cmocka_unit_test(test_added_tokens_new_ids_follow_the_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
