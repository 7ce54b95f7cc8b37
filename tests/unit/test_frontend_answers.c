/* What a client gets for a prompt: whole answers, streams, facts about the prompt, errors; and what becomes of one that
 * leaves. */
#include "tests/unit/frontend_case.h"

static void test_frontend_completion_crosses_and_comes_back(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(
        test, "/v1/completions", "x-request-id: mine\r\n",
        "{\"model\":\"tiny\",\"prompt\":\"hi\",\"max_tokens\":2,\"stop\":[\"x\"],\"seed\":5,\"logit_bias\":{\"3\":1},"
        "\"n\":2,\"temperature\":0.5,\"cache_salt\":\"salt\",\"priority\":-1}");
    const qn_encode_t *first = take_sent(test, &client, QN_MESSAGE_ENCODE);
    const qn_encode_t *second = take_sent(test, &client, QN_MESSAGE_ENCODE);
    assert_int_equal(first->head.request, 2000000000001ull); /* two boots before this one */
    assert_int_equal(second->head.request, first->head.request + 1);
    assert_string_equal(first->client_request.data, "mine");
    assert_string_equal(first->prompt.data, "hi");
    assert_null(first->prompt_ids);
    assert_int_equal(first->sampling.seed, 5);
    assert_int_equal(second->sampling.seed, 6);
    assert_true(first->sampling.temperature == 0.5f);
    assert_int_equal(first->sampling.max_tokens, 2);
    assert_int_equal(first->stop_count, 1);
    assert_int_equal(first->bias_count, 1);
    assert_int_equal(first->priority, -1);
    assert_true(first->received_ns > 0 && !first->want_pieces && first->add_special);
    send_text(test, second->head.request, 0, "B", 0, 8);
    send_text(test, first->head.request, 0, "A", 0, 7);
    send_text(test, first->head.request, 0, "A", 0, 7); /* repeated: dropped */
    send_text(test, first->head.request, 1, "a", 1, 9);
    send_end(test, second->head.request, QN_FINISH_STOP, 1);
    send_end(test, first->head.request, QN_FINISH_LENGTH, 2);
    expect_reply(
        test, client, 200,
        "\"model\":\"tiny\",\"choices\":[{\"index\":0,\"text\":\"Aa\",\"logprobs\":null,\"finish_reason\":\"length\","
        "\"stop_reason\":null},{\"index\":1,\"text\":\"B\",\"logprobs\":null,\"finish_reason\":\"stop\","
        "\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":3,\"total_tokens\":6,"
        "\"prompt_tokens_details\":{\"cached_tokens\":1}}}");
}

static void test_frontend_stream_begins_with_the_first_token(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "x-request-id: s\r\n",
                                  "{\"prompt\":\"hi\",\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    for (int i = 0; i < 5; i++)
        pump(test, &client);
    assert_int_equal(client.in.bytes, 0);
    send_text(test, request, 0, "one\n", 0, 1);
    wait_for_text(test, &client, "\"text\":\"one\\n\"");
    assert_non_null(strstr(client_text(&client), "text/event-stream"));
    assert_null(strstr(client_text(&client), "two"));
    send_text(test, request, 4, "two", 1, 2);
    send_end(test, request, QN_FINISH_LENGTH, 2);
    wait_for_text(test, &client, "data: [DONE]\n\n");
    const char *text = client_text(&client);
    assert_non_null(strstr(text, "\"text\":\"two\",\"logprobs\":null,\"finish_reason\":\"length\""));
    assert_non_null(
        strstr(text, "\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5"));
    wait_for_text(test, &client, "\r\n0\r\n\r\n"); /* the body ends; the connection stays */
    assert_false(client.closed);
    const char *again = "GET /ping HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_int_equal(write(client.fd, again, strlen(again)), (ssize_t)strlen(again));
    wait_for_text(test, &client, "{\"status\":\"ok\"}");
    client_close(&client);
}

static void test_frontend_client_that_leaves_is_cancelled(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    static const char *const bodies[] = {"{\"prompt\":\"hi\",\"n\":2}", "{\"prompt\":\"hi\",\"n\":2,\"stream\":true}"};
    for (int i = 0; i < 4; i++) { /* waiting for a whole answer, for a stream's begin, amid a stream */
        client_t client = client_post(test, "/v1/completions", "", bodies[i != 0]);
        uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
        take_sent(test, &client, QN_MESSAGE_ENCODE);
        if (i >= 2) {
            send_text(test, request, 0, "one", 0, 1);
            wait_for_text(test, &client, "one");
        }
        if (i == 3) send_end(test, request, QN_FINISH_STOP, 1); /* what has ended needs no cancelling */
        client_close(&client);
        for (uint64_t choice = i == 3; choice < 2; choice++) {
            const qn_cancel_t *cancel = take_sent(test, NULL, QN_MESSAGE_CANCEL);
            assert_int_equal(cancel->head.request, request + choice);
            assert_int_equal(cancel->reason, QN_CANCEL_REASON_CLIENT_GONE);
        }
        send_text(test, request, 3, "late", 1, 2); /* dropped */
        send_end(test, request, QN_FINISH_CANCELLED, 2);
        tick(test);
        assert_int_equal(test->daemon.taken, test->daemon.sent_count);
        assert_true(qn_frontend_daemon.drained(test->frontend));
    }
}

static void test_frontend_full_outbox_keeps_cancels(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"hi\"}");
    take_sent(test, &client, QN_MESSAGE_ENCODE);
    test->daemon.outcome = QN_SEND_FULL;
    client_close(&client);
    for (int i = 0; i < 20; i++)
        pump(test, NULL);
    assert_int_equal(test->daemon.taken, test->daemon.sent_count);
    client = client_post(test, "/v1/completions", "", "{\"prompt\":\"hi\"}");
    expect_reply(test, client, 503, "Retry-After: 1");
    test->daemon.outcome = QN_SEND_OK;
    take_sent(test, NULL, QN_MESSAGE_CANCEL);
}

static void test_frontend_refusals_become_errors(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    static const struct {
        uint16_t status;
        uint32_t retry_ms;
        const char *param, *part;
    } cases[] = {
        {400, 0, "prompt", "\"param\":\"prompt\""},
        {429, 2500, NULL, "Retry-After: 3"},
        {503, 0, NULL, "Retry-After: 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"n\":2}");
        uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
        take_sent(test, &client, QN_MESSAGE_ENCODE);
        qn_refusal_t refusal = {.head.request = request + 1,
                                .status = cases[i].status,
                                .retry_after_ms = cases[i].retry_ms,
                                .param = qn_text(cases[i].param),
                                .text = qn_text("too long by 7 tokens")};
        deliver(test, QN_MESSAGE_REFUSAL, &refusal);
        expect_reply(test, client, cases[i].status, cases[i].part);
        take_sent(test, NULL, QN_MESSAGE_CANCEL);
        take_sent(test, NULL, QN_MESSAGE_CANCEL);
    }
}

static void test_frontend_failed_sequence_and_gap_are_errors(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    send_end(test, request, QN_FINISH_ERROR, 0);
    expect_reply(test, client, 500, "server_error");
    client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    send_text(test, request, 5, "x", 0, 1);
    expect_reply(test, client, 500, "lost");
    take_sent(test, NULL, QN_MESSAGE_CANCEL);
}

static void test_frontend_broken_deltas_are_dropped(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"logprobs\":1}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    qn_text_token_t token = {.id = 1, .top_count = 5, .piece_bytes = 0};
    static const struct {
        uint32_t text_offset, text_bytes, token_offset, token_count;
        uint16_t piece_bytes;
    } cases[] = {
        {0, 9, 0, 0, 0}, {UINT32_MAX, UINT32_MAX, 0, 0, 0},
        {0, 0, 1, 1, 0}, {0, 0, UINT32_MAX, UINT32_MAX, 0},
        {0, 0, 0, 1, 0}, {0, 0, 0, 0, 7},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        qn_delta_t delta = {.request = request,
                            .text_offset = cases[i].text_offset,
                            .text_bytes = cases[i].text_bytes,
                            .token_offset = cases[i].token_offset,
                            .token_count = cases[i].token_count};
        token.piece_bytes = cases[i].piece_bytes;
        qn_text_delta_t message = {
            .deltas = &delta, .deltas_count = 1, .text = qn_text("abc"), .tokens = &token, .tokens_count = 1};
        deliver(test, QN_MESSAGE_TEXT_DELTA, &message);
        tick(test);
    }
    send_text(test, request, 0, "ok", 0, 1);
    send_end(test, request, QN_FINISH_LENGTH, 1);
    expect_reply(test, client, 200, "\"text\":\"ok\"");
}

static void test_frontend_echo_logprobs_wait_for_the_prompts_facts(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "",
                                  "{\"prompt\":[7,8],\"echo\":true,\"logprobs\":1,\"max_tokens\":1,\"temperature\":0}");
    const qn_detokenize_t *text = take_sent(test, &client, QN_MESSAGE_DETOKENIZE);
    const qn_detokenize_t *first = take_sent(test, &client, QN_MESSAGE_DETOKENIZE);
    const qn_encode_t *encode = take_sent(test, &client, QN_MESSAGE_ENCODE);
    assert_int_equal(text->ids_count, 2);
    assert_int_equal(first->ids_count, 1);
    assert_true(encode->want_pieces && encode->sampling.prompt_logprobs && encode->sampling.logprobs);
    assert_int_equal(encode->sampling.top_logprobs, 1);
    uint32_t ids[] = {8};
    float logprobs[] = {-2};
    qn_token_logprob_t top[] = {{.id = 9, .logprob = -1}};
    uint16_t piece_bytes[] = {1, 2};
    qn_prompt_logprobs_t prompt = {.head.request = encode->head.request,
                                   .position = 1,
                                   .ids = ids,
                                   .ids_count = 1,
                                   .logprobs = logprobs,
                                   .logprobs_count = 1,
                                   .top_per_token = 1,
                                   .top = top,
                                   .top_count = 1,
                                   .piece_bytes = piece_bytes,
                                   .piece_bytes_count = 2,
                                   .pieces = (const uint8_t *)"bcc",
                                   .pieces_count = 3};
    deliver(test, QN_MESSAGE_PROMPT_LOGPROBS, &prompt);
    qn_delta_t delta = {.request = encode->head.request, .text_bytes = 1, .token_count = 1};
    qn_text_token_t tokens[] = {{.id = 5, .logprob = -0.5f, .text_end = 1, .piece_bytes = 1, .top_count = 1},
                                {.id = 6, .logprob = -3, .piece_bytes = 2}};
    qn_text_delta_t message = {.deltas = &delta,
                               .deltas_count = 1,
                               .text = qn_text("z"),
                               .tokens = tokens,
                               .tokens_count = 2,
                               .pieces = (const uint8_t *)"zyy",
                               .pieces_count = 3};
    deliver(test, QN_MESSAGE_TEXT_DELTA, &message);
    send_end(test, encode->head.request, QN_FINISH_LENGTH, 1);
    for (int i = 0; i < 5; i++)
        pump(test, &client);
    assert_int_equal(client.in.bytes, 0);
    qn_detokenized_t answer = {.head.request = text->head.request, .text = qn_text("ab")};
    deliver(test, QN_MESSAGE_DETOKENIZED, &answer);
    qn_refusal_t refusal = {.head.request = first->head.request, .status = 400, .text = qn_text("no vocabulary")};
    deliver(test, QN_MESSAGE_REFUSAL, &refusal); /* then the first token has no text */
    expect_reply(
        test, client, 200,
        "\"text\":\"abz\",\"logprobs\":{\"tokens\":[\"token_id:7\",\"b\",\"z\"],\"token_logprobs\":[null,-2,-0.5],"
        "\"top_logprobs\":[null,{\"cc\":-1,\"b\":-2},{\"yy\":-3,\"z\":-0.5}],\"text_offset\":[0,0,2]}");
}

static void test_frontend_sglang_stream_is_cumulative(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(
        test, "/generate", "",
        "{\"input_ids\":[1,2,3],\"rid\":\"r1\",\"stream\":true,\"sampling_params\":{\"max_new_tokens\":2}}");
    const qn_encode_t *encode = take_sent(test, &client, QN_MESSAGE_ENCODE);
    assert_string_equal(encode->client_request.data, "r1");
    assert_int_equal(encode->prompt_ids_count, 3);
    send_text(test, encode->head.request, 0, "a", 0, 10);
    wait_for_text(test, &client,
                  "data: {\"text\":\"a\",\"output_ids\":[10],\"meta_info\":{\"id\":\"r1\",\"finish_reason\":null,"
                  "\"prompt_tokens\":3,\"completion_tokens\":1");
    send_text(test, encode->head.request, 1, "b", 1, 11);
    send_end(test, encode->head.request, QN_FINISH_LENGTH, 2);
    wait_for_text(test, &client,
                  "data: {\"text\":\"ab\",\"output_ids\":[10,11],\"meta_info\":{\"id\":\"r1\","
                  "\"finish_reason\":{\"type\":\"length\",\"length\":2}");
    wait_for_text(test, &client, "data: [DONE]\n\n");
    assert_non_null(strstr(client_text(&client), "x-request-id: r1\r\n"));
    client_close(&client);
}

static void test_frontend_silent_stream_is_pinged(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"stream\":true}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    test->ahead_ns = 14000000000ull;
    for (int i = 0; i < 5; i++)
        pump(test, &client);
    assert_int_equal(client.in.bytes, 0);
    test->ahead_ns = 16000000000ull;
    wait_for_text(test, &client, "\r\n: ping\n\n");
    send_text(test, request, 0, "a", 0, 1);
    send_end(test, request, QN_FINISH_STOP, 1);
    wait_for_text(test, &client, "data: [DONE]");
    client_close(&client);
}

static void test_frontend_research_mode_shows_hops(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    for (int stream = 0; stream < 2; stream++) {
        client_t client = client_post(test, "/v1/completions", "x-quintet-mode: research\r\n",
                                      stream ? "{\"prompt\":\"a\",\"stream\":true}" : "{\"prompt\":\"a\"}");
        uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
        send_text(test, request, 0, "a", 0, 1);
        send_end(test, request, QN_FINISH_STOP, 1);
        wait_for_text(test, &client,
                      "\"hops\":[{\"from\":\"frontend\",\"to\":\"tokenizer\",\"us\":1},"
                      "{\"from\":\"tokenizer\",\"to\":\"tokenizer\",\"us\":2},{\"from\":\"tokenizer\",\"to\":"
                      "\"scheduler\",\"us\":1},");
        assert_non_null(
            strstr(client_text(&client), stream ? "\"choices\":[],\"metadata\":{" : "{\"data\":{\"id\":\"cmpl-"));
        assert_non_null(strstr(client_text(&client),
                               "\"algorithm_reasoning\":[\"sequence 1 of 1: stop after 1 tokens; 1 of 3 prompt "
                               "tokens were cached\""));
        if (stream) wait_for_text(test, &client, "data: [DONE]");
        client_close(&client);
    }
}

static void test_frontend_slow_reader_loses_nothing(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client =
        client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"stream\":true,\"max_tokens\":5000}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    for (uint32_t i = 0; i < 5000; i++) { /* more than the socket holds, while nobody reads */
        char text[9];
        snprintf(text, sizeof text, "<%06u>", i);
        send_text(test, request, i * 8, text, i, 1);
        tick(test);
    }
    send_end(test, request, QN_FINISH_LENGTH, 5000);
    wait_for_text(test, &client, "data: [DONE]");
    const char *at = client_text(&client);
    for (uint32_t i = 0; i < 5000; i++) {
        char text[16];
        snprintf(text, sizeof text, "<%06u>", i);
        at = strstr(at, text);
        if (!at) fail_msg("%s is missing", text);
    }
    client_close(&client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_frontend_completion_crosses_and_comes_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_stream_begins_with_the_first_token, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_client_that_leaves_is_cancelled, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_full_outbox_keeps_cancels, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_refusals_become_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_failed_sequence_and_gap_are_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_broken_deltas_are_dropped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_echo_logprobs_wait_for_the_prompts_facts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_sglang_stream_is_cumulative, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_silent_stream_is_pinged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_research_mode_shows_hops, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_slow_reader_loses_nothing, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
