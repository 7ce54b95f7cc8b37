#include "services/frontend/reply/reply_sglang.h"
#include "tests/unit/reply_case.h"

static void test_sglang_reply_has_every_member(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *exchange = reply_case(
        table, GENERATION_GENERATE,
        "{\"text\":\"hi\",\"return_logprob\":true,\"top_logprobs_num\":1,\"logprob_start_len\":0,\"rid\":\"abc\"}");
    prompt_facts_t *facts = &exchange->facts[0];
    token_log_add(&facts->ids, 11, 0, 0, "h", 1);
    token_log_add(&facts->ids, 12, 0, 0, "i", 1);
    facts->has_ids = true;
    choice_t *choice = &exchange->choices[0];
    exchange->received_ns = 1000000000;
    choice_expect_prompt(choice, 1);
    token_log_add(&choice->prompt, 12, -2, 0, "i", 1);
    token_log_add_top(&choice->prompt, 13, -1, "j", 1);
    reply_case_token(choice, 5, -0.5f, "x");
    token_log_add_top(&choice->tokens, 5, -0.5f, "x", 1);
    choice_end_t end = {.finish = CHOICE_STOP,
                        .by_stop_id = true,
                        .stop_id = 5,
                        .prompt_tokens = 2,
                        .generated_tokens = 1,
                        .cached_tokens = 1};
    choice_end(choice, &end);
    reply_buffer_t out = {0};
    reply_sglang_write(exchange, 1500000000, &out);
    json_t *root = reply_case_parse(&out);
    reply_case_expect(root, "text", "\"x\"");
    reply_case_expect(root, "output_ids", "[5]");
    reply_case_expect(
        root, "meta_info",
        "{\"id\":\"abc\",\"finish_reason\":{\"type\":\"stop\",\"matched\":5},\"prompt_tokens\":2,\"completion_tokens\":"
        "1,"
        "\"cached_tokens\":1,\"e2e_latency\":0.5,\"input_token_logprobs\":[[null,11,\"h\"],[-2,12,\"i\"]],"
        "\"output_token_logprobs\":[[-0.5,5,\"x\"]],\"input_top_logprobs\":[null,[[-1,13,\"j\"]]],"
        "\"output_top_logprobs\":[[[-0.5,5,\"x\"]]]}");
    json_decref(root);
    request_table_destroy(&table);
}

static void test_sglang_finish_reasons(void **state)
{
    (void)state;
    static const struct {
        choice_end_t end;
        const char *expected;
    } cases[] = {
        {{.finish = CHOICE_LENGTH, .generated_tokens = 4}, "{\"type\":\"length\",\"length\":4}"},
        {{.finish = CHOICE_STOP, .by_stop_string = true}, "{\"type\":\"stop\",\"matched\":\"END\"}"},
        {{.finish = CHOICE_STOP}, "{\"type\":\"stop\"}"},
        {{.finish = CHOICE_CANCELLED}, "{\"type\":\"abort\",\"message\":\"aborted\"}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        request_table_t *table = request_table_create(1, 8);
        exchange_t *exchange =
            reply_case(table, GENERATION_GENERATE, "{\"text\":\"a\",\"sampling_params\":{\"stop\":\"END\"}}");
        choice_end(&exchange->choices[0], &cases[i].end);
        reply_buffer_t out = {0};
        reply_sglang_write(exchange, 0, &out);
        json_t *root = reply_case_parse(&out);
        reply_case_expect(root, "meta_info.finish_reason", cases[i].expected);
        json_decref(root);
        request_table_destroy(&table);
    }
}

static void test_sglang_lists_answer_lists(void **state)
{
    (void)state;
    static const struct {
        const char *body;
        size_t count;
        const char *ids[4];
    } cases[] = {
        {"{\"text\":[\"a\"]}", 1, {"\"abc\""}},
        {"{\"text\":[\"a\",\"b\"],\"rid\":[\"r\",\"s\"]}", 2, {"\"r\"", "\"s\""}},
        {"{\"text\":\"a\",\"sampling_params\":{\"n\":2}}", 2, {"\"abc_0\"", "\"abc_1\""}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        request_table_t *table = request_table_create(1, 8);
        exchange_t *exchange = reply_case(table, GENERATION_GENERATE, cases[i].body);
        for (uint32_t j = 0; j < exchange->choice_count; j++)
            reply_case_end(&exchange->choices[j], CHOICE_LENGTH, 1);
        reply_buffer_t out = {0};
        reply_sglang_write(exchange, 0, &out);
        json_t *root = reply_case_parse(&out);
        assert_true(json_is_array(root));
        assert_int_equal(json_array_size(root), cases[i].count);
        for (size_t j = 0; j < cases[i].count; j++)
            reply_case_expect(json_array_get(root, j), "meta_info.id", cases[i].ids[j]);
        json_decref(root);
        request_table_destroy(&table);
    }
}

static void test_sglang_events_are_cumulative(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *exchange = reply_case(table, GENERATION_GENERATE, "{\"text\":[\"a\",\"b\"],\"stream\":true}");
    choice_t *choice = &exchange->choices[1];
    reply_buffer_t out = {0};
    assert_false(reply_sglang_event(choice, 0, &out));
    reply_case_token(choice, 1, -1, "x");
    assert_true(reply_sglang_event(choice, 0, &out));
    json_t *root = reply_case_parse(&out);
    reply_case_expect(root, "text", "\"x\"");
    reply_case_expect(root, "index", "1");
    reply_case_expect(root, "meta_info.finish_reason", "null");
    json_decref(root);
    assert_false(reply_sglang_event(choice, 0, &out));
    reply_case_token(choice, 2, -1, "y");
    reply_case_end(choice, CHOICE_LENGTH, 1);
    assert_true(reply_sglang_event(choice, 0, &out));
    root = reply_case_parse(&out);
    reply_case_expect(root, "text", "\"xy\"");
    reply_case_expect(root, "output_ids", "[1,2]");
    reply_case_expect(root, "meta_info.finish_reason.type", "\"length\"");
    json_decref(root);
    assert_false(reply_sglang_event(choice, 0, &out));
    request_table_destroy(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sglang_reply_has_every_member),
        cmocka_unit_test(test_sglang_finish_reasons),
        cmocka_unit_test(test_sglang_lists_answer_lists),
        cmocka_unit_test(test_sglang_events_are_cumulative),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
