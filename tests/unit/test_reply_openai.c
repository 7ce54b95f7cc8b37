#include "services/frontend/reply/reply_openai.h"
#include "tests/unit/reply_case.h"

static void test_openai_reply_has_every_member(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *exchange = reply_case(table, GENERATION_COMPLETIONS, "{\"prompt\":\"hi\"}");
    reply_case_token(&exchange->choices[0], 5, -0.5f, " the");
    reply_case_token(&exchange->choices[0], 6, -0.25f, "re\n");
    reply_case_end(&exchange->choices[0], CHOICE_LENGTH, 3);
    reply_buffer_t out = {0};
    reply_openai_write(exchange, "m", &out);
    json_t *root = reply_case_parse(&out);
    reply_case_expect(root, "id", "\"cmpl-abc\"");
    reply_case_expect(root, "object", "\"text_completion\"");
    reply_case_expect(root, "created", "1700000000");
    reply_case_expect(root, "model", "\"m\"");
    reply_case_expect(root, "choices",
                      "[{\"index\":0,\"text\":\" there\\n\",\"logprobs\":null,\"finish_reason\":\"length\","
                      "\"stop_reason\":null}]");
    reply_case_expect(root, "usage",
                      "{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5,"
                      "\"prompt_tokens_details\":{\"cached_tokens\":0}}");
    json_decref(root);
    request_table_destroy(&table);
}

static void test_openai_finish_reasons(void **state)
{
    (void)state;
    static const struct {
        choice_end_t end;
        const char *finish, *reason;
    } cases[] = {
        {{.finish = CHOICE_STOP, .by_stop_string = true, .stop_string = 1}, "\"stop\"", "\"END\""},
        {{.finish = CHOICE_STOP, .by_stop_string = true, .stop_string = 9}, "\"stop\"", "null"},
        {{.finish = CHOICE_STOP, .by_stop_id = true, .stop_id = 7}, "\"stop\"", "7"},
        {{.finish = CHOICE_STOP, .by_stop_id = true, .stop_id = 2}, "\"stop\"", "null"}, /* the model's own end */
        {{.finish = CHOICE_LENGTH}, "\"length\"", "null"},
        {{.finish = CHOICE_CANCELLED}, "\"abort\"", "null"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        request_table_t *table = request_table_create(1, 8);
        exchange_t *exchange = reply_case(table, GENERATION_COMPLETIONS,
                                          "{\"prompt\":\"hi\",\"stop\":[\"x\",\"END\"],\"stop_token_ids\":[7]}");
        choice_end(&exchange->choices[0], &cases[i].end);
        reply_buffer_t out = {0};
        reply_openai_write(exchange, "m", &out);
        json_t *root = reply_case_parse(&out);
        reply_case_expect(root, "choices.0.finish_reason", cases[i].finish);
        reply_case_expect(root, "choices.0.stop_reason", cases[i].reason);
        json_decref(root);
        request_table_destroy(&table);
    }
}

static void test_openai_logprobs_of_echo_cover_prompt_and_output(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *exchange =
        reply_case(table, GENERATION_COMPLETIONS, "{\"prompt\":[1,2],\"echo\":true,\"logprobs\":2,\"max_tokens\":2}");
    prompt_facts_t *facts = &exchange->facts[0];
    reply_buffer_text(&facts->text, "\xC3\xA9y");
    reply_buffer_text(&facts->first, "\xC3\xA9");
    facts->has_text = facts->has_first = true;
    choice_t *choice = &exchange->choices[0];
    assert_int_equal(choice_expect_prompt(choice, 1), CHOICE_NEW);
    token_log_add(&choice->prompt, 2, -2, 0, "y", 1);
    token_log_add_top(&choice->prompt, 9, -0.5f, "n", 1);
    token_log_add_top(&choice->prompt, 8, -1, "m", 1);
    reply_case_token(choice, 3, -0.5f, "\xE2\x82\xAC"); /* the chosen one is among the likeliest */
    token_log_add_top(&choice->tokens, 3, -0.5000001f, "\xE2\x82\xAC", 3);
    token_log_add_top(&choice->tokens, 4, -3, "\xE2", 1); /* not UTF-8 by itself */
    reply_case_token(choice, 5, -4, "z");                 /* not among them: one entry more */
    token_log_add_top(&choice->tokens, 6, -0.125f, "a", 1);
    token_log_add_top(&choice->tokens, 7, -0.25f, "a", 1); /* looks the same: the likelier one stays */
    reply_case_end(choice, CHOICE_LENGTH, 2);
    reply_buffer_t out = {0};
    reply_openai_write(exchange, "m", &out);
    json_t *root = reply_case_parse(&out);
    reply_case_expect(root, "choices.0.text", "\"\xC3\xA9y\xE2\x82\xACz\"");
    reply_case_expect(root, "choices.0.logprobs.tokens", "[\"\xC3\xA9\",\"y\",\"\xE2\x82\xAC\",\"z\"]");
    reply_case_expect(root, "choices.0.logprobs.token_logprobs", "[null,-2,-0.5,-4]");
    reply_case_expect(
        root, "choices.0.logprobs.top_logprobs",
        "[null,{\"n\":-0.5,\"m\":-1,\"y\":-2},{\"\xE2\x82\xAC\":-0.5,\"bytes:\\\\xe2\":-3},{\"a\":-0.125,\"z\":-4}]");
    reply_case_expect(root, "choices.0.logprobs.text_offset", "[0,1,2,3]");
    json_decref(root);
    request_table_destroy(&table);
}

static void test_openai_minus_infinity_is_shown_as_a_number(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *exchange = reply_case(table, GENERATION_COMPLETIONS, "{\"prompt\":\"a\",\"logprobs\":1}");
    reply_case_token(&exchange->choices[0], 1, -__builtin_inff(), "a");
    token_log_add_top(&exchange->choices[0].tokens, 2, __builtin_nanf(""), "b", 1);
    reply_case_end(&exchange->choices[0], CHOICE_LENGTH, 1);
    reply_buffer_t out = {0};
    reply_openai_write(exchange, "m", &out);
    json_t *root = reply_case_parse(&out);
    reply_case_expect(root, "choices.0.logprobs.token_logprobs", "[-9999]");
    reply_case_expect(root, "choices.0.logprobs.top_logprobs", "[{\"b\":-9999,\"a\":-9999}]");
    json_decref(root);
    request_table_destroy(&table);
}

static void test_openai_token_ids_and_prompt_logprobs(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *exchange =
        reply_case(table, GENERATION_COMPLETIONS,
                   "{\"prompt\":\"ab\",\"return_token_ids\":true,\"prompt_logprobs\":1,\"logprobs\":0,"
                   "\"return_tokens_as_token_ids\":true}");
    prompt_facts_t *facts = &exchange->facts[0];
    token_log_add(&facts->ids, 11, 0, 0, "a", 1);
    token_log_add(&facts->ids, 12, 0, 0, "b", 1);
    facts->has_ids = true;
    choice_t *choice = &exchange->choices[0];
    assert_int_equal(choice_expect_prompt(choice, 1), CHOICE_NEW);
    token_log_add(&choice->prompt, 12, -2, 0, "b", 1);
    token_log_add_top(&choice->prompt, 13, -1, "c", 1);
    reply_case_token(choice, 14, -1, "d");
    reply_case_end(choice, CHOICE_LENGTH, 2);
    reply_buffer_t out = {0};
    reply_openai_write(exchange, "m", &out);
    json_t *root = reply_case_parse(&out);
    reply_case_expect(root, "choices.0.token_ids", "[14]");
    reply_case_expect(root, "choices.0.prompt_token_ids", "[11,12]");
    reply_case_expect(root, "choices.0.prompt_logprobs",
                      "[null,{\"13\":{\"logprob\":-1,\"rank\":1,\"decoded_token\":\"c\"},"
                      "\"12\":{\"logprob\":-2,\"rank\":null,\"decoded_token\":\"b\"}}]");
    reply_case_expect(root, "choices.0.logprobs.tokens", "[\"token_id:14\"]");
    reply_case_expect(root, "choices.0.logprobs.top_logprobs", "[{\"token_id:14\":-1}]");
    json_decref(root);
    request_table_destroy(&table);
}

static void test_openai_chunks_add_up_to_the_whole(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *exchange =
        reply_case(table, GENERATION_COMPLETIONS,
                   "{\"prompt\":\"ab\",\"stream\":true,\"echo\":true,\"stream_options\":{\"include_usage\":true}}");
    choice_t *choice = &exchange->choices[0];
    reply_buffer_t out = {0};
    assert_false(reply_openai_chunk(choice, "m", &out)); /* nothing before the first token */
    token_log_add(&choice->tokens, 4, -1, 0, "\xE2", 1); /* ends inside a character: held back */
    assert_false(reply_openai_chunk(choice, "m", &out));
    assert_int_equal(out.bytes, 0);
    reply_case_token(choice, 5, -1, "x");
    assert_true(reply_openai_chunk(choice, "m", &out));
    json_t *root = reply_case_parse(&out);
    reply_case_expect(root, "choices.0.text", "\"abx\"");
    reply_case_expect(root, "choices.0.finish_reason", "null");
    reply_case_expect(root, "usage", "null");
    json_decref(root);
    assert_false(reply_openai_chunk(choice, "m", &out));
    reply_case_token(choice, 6, -1, "y");
    reply_case_end(choice, CHOICE_STOP, 2);
    assert_true(reply_openai_chunk(choice, "m", &out));
    root = reply_case_parse(&out);
    reply_case_expect(root, "choices.0.text", "\"y\"");
    reply_case_expect(root, "choices.0.finish_reason", "\"stop\"");
    json_decref(root);
    assert_false(reply_openai_chunk(choice, "m", &out)); /* the end is shown once */
    reply_openai_usage_chunk(exchange, "m", &out);
    root = reply_case_parse(&out);
    reply_case_expect(root, "choices", "[]");
    reply_case_expect(root, "usage.total_tokens", "5");
    reply_case_expect(root, "id", "\"cmpl-abc\"");
    json_decref(root);
    request_table_destroy(&table);
}

static void test_openai_chunk_offsets_continue(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *exchange =
        reply_case(table, GENERATION_COMPLETIONS, "{\"prompt\":\"ab\",\"stream\":true,\"logprobs\":0}");
    choice_t *choice = &exchange->choices[0];
    static const char *const expected[] = {"[0]", "[1]", "[3]"};
    static const char *const pieces[] = {"\xC3\xA9", "xy", "z"};
    for (int i = 0; i < 3; i++) {
        reply_buffer_t out = {0};
        reply_case_token(choice, 5, -1, pieces[i]);
        assert_true(reply_openai_chunk(choice, "m", &out));
        json_t *root = reply_case_parse(&out);
        reply_case_expect(root, "choices.0.logprobs.text_offset", expected[i]);
        json_decref(root);
    }
    request_table_destroy(&table);
}

/* A model without tokenizer.json: every token would be "", and alternatives one key. */
static void test_openai_tokens_without_bytes_are_named_by_id(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *exchange = reply_case(table, GENERATION_COMPLETIONS, "{\"prompt\":[1],\"logprobs\":2}");
    choice_t *choice = &exchange->choices[0];
    reply_buffer_t out = {0};
    token_log_add(&choice->tokens, 7, -1, 0, NULL, 0);
    token_log_add_top(&choice->tokens, 7, -1, NULL, 0);
    token_log_add_top(&choice->tokens, 9, -2, NULL, 0);
    reply_case_end(choice, CHOICE_LENGTH, 1);
    reply_openai_write(exchange, "m", &out);
    json_t *root = reply_case_parse(&out);
    reply_case_expect(root, "choices.0.logprobs.tokens", "[\"token_id:7\"]");
    reply_case_expect(root, "choices.0.logprobs.top_logprobs", "[{\"token_id:7\":-1,\"token_id:9\":-2}]");
    json_decref(root);
    request_table_destroy(&table);
}

static void test_openai_choices_are_indexed_and_best_shown(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *exchange =
        reply_case(table, GENERATION_COMPLETIONS, "{\"prompt\":[\"p\",\"q\"],\"n\":1,\"best_of\":2}");
    static const char *const texts[] = {"bad", "good", "first", "second"};
    static const float logprobs[] = {-5, -1, -1, -1};
    for (uint32_t i = 0; i < 4; i++) {
        reply_case_token(&exchange->choices[i], i, logprobs[i], texts[i]);
        reply_case_end(&exchange->choices[i], CHOICE_LENGTH, 10);
    }
    reply_buffer_t out = {0};
    reply_openai_write(exchange, "m", &out);
    json_t *root = reply_case_parse(&out);
    assert_int_equal(json_array_size(reply_case_at(root, "choices")), 2);
    reply_case_expect(root, "choices.0.text", "\"good\"");
    reply_case_expect(root, "choices.1.text", "\"first\"");
    reply_case_expect(root, "choices.1.index", "1");
    reply_case_expect(root, "usage.prompt_tokens", "20");    /* once per prompt */
    reply_case_expect(root, "usage.completion_tokens", "4"); /* all that were generated */
    json_decref(root);
    request_table_destroy(&table);
}

static void test_openai_zero_tokens_show_none(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *exchange =
        reply_case(table, GENERATION_COMPLETIONS, "{\"prompt\":\"ab\",\"max_tokens\":0,\"echo\":true}");
    reply_case_token(&exchange->choices[0], 1, -1, "never");
    reply_case_end(&exchange->choices[0], CHOICE_STOP, 2);
    reply_buffer_t out = {0};
    reply_openai_write(exchange, "m", &out);
    json_t *root = reply_case_parse(&out);
    reply_case_expect(root, "choices.0.text", "\"ab\"");
    reply_case_expect(root, "choices.0.finish_reason", "\"length\"");
    reply_case_expect(root, "usage.completion_tokens", "0");
    json_decref(root);
    request_table_destroy(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_openai_reply_has_every_member),
        cmocka_unit_test(test_openai_finish_reasons),
        cmocka_unit_test(test_openai_logprobs_of_echo_cover_prompt_and_output),
        cmocka_unit_test(test_openai_minus_infinity_is_shown_as_a_number),
        cmocka_unit_test(test_openai_token_ids_and_prompt_logprobs),
        cmocka_unit_test(test_openai_chunks_add_up_to_the_whole),
        cmocka_unit_test(test_openai_chunk_offsets_continue),
        cmocka_unit_test(test_openai_tokens_without_bytes_are_named_by_id),
        cmocka_unit_test(test_openai_choices_are_indexed_and_best_shown),
        cmocka_unit_test(test_openai_zero_tokens_show_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
