/* bad_words: which ids a word becomes, and which words are refused. */
#include "tests/unit/tokenizer_case.h"

#include "services/tokenizer/bad_words.h"

/* "a" 0, "b" 1, "ab" 3, " " 4, " a" 5: "ab" and " a" are one token each, " ab" is two. */
static tokenizer_t *open_small(void)
{
    return case_opened((case_json_t){.vocab = "{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\" \":4,\" a\":5}",
                                     .merges = "[\"a b\",[\" \",\"a\"]]"});
}

static bool forbid(const char *const *words, uint32_t count, qn_encode_t *encode, qn_logit_bias_t *bias,
                   uint32_t *bias_count, char *text)
{
    tokenizer_t *tokenizer = open_small();
    tokenizer_scratch_t *scratch = tokenizer_scratch_open(tokenizer);
    qn_text_t texts[8];
    for (uint32_t i = 0; i < count; i++)
        texts[i] = qn_text(words[i]);
    encode->bad_words = texts;
    encode->bad_words_count = count;
    bool good = bad_words_forbid(tokenizer, scratch, encode, bias, bias_count, text, QN_ERR_TEXT_MAX);
    tokenizer_scratch_close(&scratch);
    tokenizer_close(&tokenizer);
    return good;
}

static void test_bad_words_are_found_with_and_without_a_space(void **state)
{
    (void)state;
    qn_encode_t encode = QN_ENCODE_INIT;
    qn_logit_bias_t bias[QN_LOGIT_BIAS_MAX] = {{.id = 3, .bias = 7}};
    uint32_t count = 1;
    char text[QN_ERR_TEXT_MAX] = "";
    assert_true(forbid((const char *const[]){"  a", "ab"}, 2, &encode, bias, &count, text));
    assert_int_equal(count, 3);
    assert_true(bias[0].id == 3 && bias[0].bias == QN_LOGIT_FORBIDDEN); /* it had a bias already */
    assert_true(bias[1].id == 0 && bias[1].bias == QN_LOGIT_FORBIDDEN);
    assert_true(bias[2].id == 5 && bias[2].bias == QN_LOGIT_FORBIDDEN);
}

static void test_bad_words_among_allowed_ids_add_none(void **state)
{
    (void)state;
    qn_encode_t encode = QN_ENCODE_INIT;
    qn_logit_bias_t bias[QN_LOGIT_BIAS_MAX] = {{.id = 5}, {.id = 1}};
    uint32_t count = 2;
    char text[QN_ERR_TEXT_MAX] = "";
    encode.allow_only = true;
    assert_true(forbid((const char *const[]){"a"}, 1, &encode, bias, &count, text));
    assert_int_equal(count, 2);
    assert_true(bias[0].bias == QN_LOGIT_FORBIDDEN && bias[1].bias == 0);
}

static void test_bad_words_of_several_tokens_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *word, *says;
    } cases[] = {{"abc", "2 tokens"}, {"   ", "no word"}, {"ca", "one token"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        qn_encode_t encode = QN_ENCODE_INIT;
        qn_logit_bias_t bias[QN_LOGIT_BIAS_MAX];
        uint32_t count = 0;
        char text[QN_ERR_TEXT_MAX] = "";
        assert_false(forbid(&cases[i].word, 1, &encode, bias, &count, text));
        if (!strstr(text, cases[i].says)) fail_msg("%s: %s", cases[i].word, text);
    }
}

static void test_bad_words_beyond_the_rows_of_a_slot_are_refused(void **state)
{
    (void)state;
    qn_encode_t encode = QN_ENCODE_INIT;
    qn_logit_bias_t bias[QN_LOGIT_BIAS_MAX];
    uint32_t count = QN_LOGIT_BIAS_MAX;
    char text[QN_ERR_TEXT_MAX] = "";
    for (uint32_t i = 0; i < count; i++)
        bias[i] = (qn_logit_bias_t){.id = 1000 + i};
    assert_false(forbid((const char *const[]){"a"}, 1, &encode, bias, &count, text));
    assert_non_null(strstr(text, "300"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_words_are_found_with_and_without_a_space),
        cmocka_unit_test(test_bad_words_among_allowed_ids_add_none),
        cmocka_unit_test(test_bad_words_of_several_tokens_are_refused),
        cmocka_unit_test(test_bad_words_beyond_the_rows_of_a_slot_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
