/* bad_words: which ids a word becomes, and which words are refused. */
#include "tests/unit/tokenizer_case.h"

#include "services/tokenizer/bad_words.h"

/* "a" 0, "b" 1, "ab" 3, " " 4, " a" 5: "ab" and " a" are one token each, " ab" is two. */
static tokenizer_t *open_small(void)
{
    return case_opened((case_json_t){.vocab = "{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\" \":4,\" a\":5}",
                                     .merges = "[\"a b\",[\" \",\"a\"]]"});
}

static bool forbid(const char *const *words, uint32_t count, qn_encode_t *encode, bad_words_t *found, char *text)
{
    tokenizer_t *tokenizer = open_small();
    tokenizer_scratch_t *scratch = tokenizer_scratch_open(tokenizer);
    qn_text_t texts[64];
    for (uint32_t i = 0; i < count; i++)
        texts[i] = qn_text(words[i]);
    encode->bad_words = texts;
    encode->bad_words_count = count;
    bool good = bad_words_forbid(tokenizer, scratch, encode, found, text, QN_ERR_TEXT_MAX);
    tokenizer_scratch_close(&scratch);
    tokenizer_close(&tokenizer);
    return good;
}

static void test_bad_words_are_found_with_and_without_a_space(void **state)
{
    (void)state;
    qn_encode_t encode = QN_ENCODE_INIT;
    bad_words_t found = {.bias = {{.id = 3, .bias = 7}}, .bias_count = 1};
    char text[QN_ERR_TEXT_MAX] = "";
    assert_true(forbid((const char *const[]){"  a", "ab"}, 2, &encode, &found, text));
    assert_int_equal(found.bias_count, 3);
    assert_true(found.bias[0].id == 3 && found.bias[0].bias == QN_LOGIT_FORBIDDEN); /* it had a bias already */
    assert_true(found.bias[1].id == 0 && found.bias[1].bias == QN_LOGIT_FORBIDDEN);
    assert_true(found.bias[2].id == 5 && found.bias[2].bias == QN_LOGIT_FORBIDDEN);
    assert_int_equal(found.id_count, 0); /* " ab" is two tokens and "ab" one: vLLM leaves it */
}

static void test_bad_words_among_allowed_ids_add_none(void **state)
{
    (void)state;
    qn_encode_t encode = QN_ENCODE_INIT;
    bad_words_t found = {.bias = {{.id = 5}, {.id = 1}}, .bias_count = 2};
    char text[QN_ERR_TEXT_MAX] = "";
    encode.allow_only = true;
    assert_true(forbid((const char *const[]){"a"}, 1, &encode, &found, text));
    assert_int_equal(found.bias_count, 2);
    assert_true(found.bias[0].bias == QN_LOGIT_FORBIDDEN && found.bias[1].bias == 0);
}

static void test_bad_words_of_several_tokens_become_sequences(void **state)
{
    (void)state;
    qn_encode_t encode = QN_ENCODE_INIT;
    bad_words_t found = {0};
    char text[QN_ERR_TEXT_MAX] = "";
    /* "abc" is 3 2, with a space 4 3 2: of another length. "ac" is 0 2, with a space 5 2: both count. "ca" is 2 0,
     * with a space 4 2 0. */
    static const uint32_t want[] = {3, 2 | QN_SEQUENCE_END, 0, 2 | QN_SEQUENCE_END,
                                    5, 2 | QN_SEQUENCE_END, 2, 0 | QN_SEQUENCE_END};
    assert_true(forbid((const char *const[]){"abc", " ac", "ca"}, 3, &encode, &found, text));
    assert_int_equal(found.bias_count, 0);
    assert_int_equal(found.id_count, sizeof want / sizeof want[0]);
    assert_memory_equal(found.ids, want, sizeof want);
}

static void test_bad_words_that_are_none_or_too_much_are_refused(void **state)
{
    (void)state;
    static const char *const most = "cbcbcbcbcbcbcbcb"; /* 16 tokens */
    const char *words[64];
    qn_encode_t encode = QN_ENCODE_INIT;
    bad_words_t found = {0};
    char text[QN_ERR_TEXT_MAX] = "";
    assert_false(forbid((const char *const[]){"   "}, 1, &encode, &found, text));
    assert_non_null(strstr(text, "no word"));
    assert_false(forbid((const char *const[]){"cbcbcbcbcbcbcbcbc"}, 1, &encode, &found, text));
    assert_non_null(strstr(text, "17 tokens"));
    for (size_t i = 0; i < 64; i++)
        words[i] = most;
    assert_true(forbid(words, QN_BAD_IDS_MAX / 16, &encode, &found, text));
    assert_int_equal(found.id_count, QN_BAD_IDS_MAX);
    found.id_count = 0;
    assert_false(forbid(words, QN_BAD_IDS_MAX / 16 + 1, &encode, &found, text));
    assert_non_null(strstr(text, "512"));
}

static void test_bad_words_beyond_the_rows_of_a_slot_are_refused(void **state)
{
    (void)state;
    qn_encode_t encode = QN_ENCODE_INIT;
    bad_words_t found = {.bias_count = QN_LOGIT_BIAS_MAX};
    char text[QN_ERR_TEXT_MAX] = "";
    for (uint32_t i = 0; i < found.bias_count; i++)
        found.bias[i] = (qn_logit_bias_t){.id = 1000 + i};
    assert_false(forbid((const char *const[]){"a"}, 1, &encode, &found, text));
    assert_non_null(strstr(text, "300"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_words_are_found_with_and_without_a_space),
        cmocka_unit_test(test_bad_words_among_allowed_ids_add_none),
        cmocka_unit_test(test_bad_words_of_several_tokens_become_sequences),
        cmocka_unit_test(test_bad_words_that_are_none_or_too_much_are_refused),
        cmocka_unit_test(test_bad_words_beyond_the_rows_of_a_slot_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
