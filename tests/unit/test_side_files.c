/* The files beside tokenizer.json: what is refused, and what is told because it is not followed. That the ids are
 * right is shown by tests/golden/test_side_files.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "services/tokenizer/tokenizer.h"

static const char tokenizer_json[] =
    "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
    "\"model\":{\"vocab\":{\"<s>\":0,\"a\":1,\"\xC4\xA0\":2},\"merges\":[]}}";

static qn_err_t open_with(const char *config, const char *map, const char *added, const char *model, tokenizer_t **ret)
{
    tokenizer_files_t files = {.tokenizer = {tokenizer_json, strlen(tokenizer_json)},
                               .config = {config, config ? strlen(config) : 0},
                               .special_tokens_map = {map, map ? strlen(map) : 0},
                               .added_tokens = {added, added ? strlen(added) : 0},
                               .model_config = {model, model ? strlen(model) : 0}};
    return tokenizer_open_memory(&files, ret);
}

static void test_side_files_broken_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *config, *map, *added, *reason;
    } rows[] = {
        {"[]", NULL, NULL, "tokenizer_config.json: must be a JSON object"},
        {NULL, "3", NULL, "special_tokens_map.json: must be a JSON object"},
        {NULL, NULL, "{\"<x>\":", "added_tokens.json: must be a JSON object"},
        {NULL, NULL, "{\"<x>\":\"5\"}", "added_tokens.json: \"<x>\": must be a token id"},
        {"{\"bos_token\":5}", NULL, NULL, "tokenizer_config.json: bos_token: must be a string or an object"},
        {"{\"bos_token\":{\"text\":\"a\"}}", NULL, NULL, "tokenizer_config.json: bos_token.content: must be a string"},
        {"{\"eos_token\":{\"content\":\"a\",\"lstrip\":1}}", NULL, NULL, "eos_token.lstrip: must be true or false"},
        {NULL, "{\"pad_token\":[]}", NULL, "special_tokens_map.json: pad_token: must be a string or an object"},
        {"{\"added_tokens_decoder\":[]}", NULL, NULL, "added_tokens_decoder: must be an object"},
        {"{\"added_tokens_decoder\":{\"x\":{\"content\":\"a\"}}}", NULL, NULL, "the key must be a token id"},
        {"{\"added_tokens_decoder\":{\"5\":\"a\"}}", NULL, NULL, "[\"5\"]: must be an object with content"},
        {"{\"additional_special_tokens\":\"<x>\"}", NULL, NULL, "additional_special_tokens: must be a list of tokens"},
        {"{\"additional_special_tokens\":[7]}", NULL, NULL, "must be a string or an object"},
        {"{\"tokenizer_class\":\"GemmaTokenizer\",\"bos_token\":null}", NULL, NULL,
         "add_bos_token is true, but there is no bos_token"},
        {"{\"tokenizer_class\":\"GPTNeoXTokenizerFast\",\"eos_token\":null,\"add_eos_token\":true}", NULL, NULL,
         "add_eos_token is true, but there is no eos_token"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tokenizer_t *t = NULL;
        assert_int_equal(open_with(rows[i].config, rows[i].map, rows[i].added, NULL, &t), QN_ERR_INVALID);
        if (!strstr(qn_err_text(), rows[i].reason)) fail_msg("row %zu: %s", i, qn_err_text());
    }
}

static void test_side_files_not_followed_are_told(void **state)
{
    (void)state;
    static const struct {
        const char *config, *model, *note;
    } rows[] = {
        {"{\"tokenizer_class\":\"MyTokenizer\",\"add_prefix_space\":true}", NULL,
         "tokenizer_class: what \"MyTokenizer\""},
        {"{\"add_bos_token\":true,\"add_prefix_space\":true}", NULL, "add_bos_token: true is not followed"},
        {"{\"clean_up_tokenization_spaces\":true,\"add_prefix_space\":true}", NULL, "clean_up_tokenization_spaces: "},
        {"{}", NULL, "add_prefix_space: tokenizer.json says true"},
        {"{\"tokenizer_class\":\"GPT2Tokenizer\",\"add_prefix_space\":true}", NULL,
         "bos_token: GPT2Tokenizer uses \"<|endoftext|>\", which the vocabulary lacks: it gets the new id 3"},
        {NULL, "{\"model_type\":\"gemma\"}", "the bos_token of GemmaTokenizer is not in the vocabulary"},
        {"{\"add_prefix_space\":true}", "{\"model_type\":\"unheard\"}", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tokenizer_t *t = NULL;
        assert_int_equal(open_with(rows[i].config, NULL, NULL, rows[i].model, &t), QN_OK);
        bool found = rows[i].note == NULL && tokenizer_note_count(t) == 0;
        for (size_t n = 0; rows[i].note && n < tokenizer_note_count(t); n++)
            found |= strstr(tokenizer_note(t, n), rows[i].note) != NULL;
        if (!found)
            fail_msg("row %zu: %zu notes, first: %s", i, tokenizer_note_count(t),
                     tokenizer_note_count(t) ? tokenizer_note(t, 0) : "none");
        tokenizer_close(&t);
    }
}

static void test_side_files_absent_leave_tokenizer_json_alone(void **state)
{
    (void)state;
    tokenizer_t *t = NULL;
    assert_int_equal(open_with(NULL, NULL, NULL, NULL, &t), QN_OK);
    tokenizer_scratch_t *scratch = tokenizer_scratch_open(t);
    tokenizer_tokens_t tokens = {0};
    assert_int_equal(tokenizer_encode(t, scratch, "a", 1, TOKENIZER_PARSE_SPECIAL, &tokens), QN_OK);
    assert_int_equal(tokens.count, 2); /* the space of add_prefix_space, and a */
    assert_int_equal(tokenizer_note_count(t), 0);
    tokenizer_tokens_fini(&tokens);
    tokenizer_scratch_close(&scratch);
    tokenizer_close(&t);
}

static void test_side_files_many_notes_are_bounded(void **state)
{
    (void)state;
    tokenizer_t *t = NULL;
    assert_int_equal(
        open_with("{\"tokenizer_class\":\"BloomTokenizerFast\",\"add_bos_token\":true,\"add_eos_token\":true,"
                  "\"clean_up_tokenization_spaces\":true}",
                  NULL, NULL, NULL, &t),
        QN_OK);
    assert_in_range(tokenizer_note_count(t), 5, 16);
    tokenizer_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_side_files_broken_are_refused_by_name),
        cmocka_unit_test(test_side_files_not_followed_are_told),
        cmocka_unit_test(test_side_files_absent_leave_tokenizer_json_alone),
        cmocka_unit_test(test_side_files_many_notes_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
