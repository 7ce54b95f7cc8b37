/* The frontend's HTTP server: limits, time, framing, draining; nobody is left without an answer. */
#include <fcntl.h>
#include <sys/resource.h>

#include "tests/unit/frontend_case.h"

static int setup_two_connections(void **state)
{
    static const char *const sets[] = {"frontend.max_connections=2"};
    return setup_with(state, sets, 1);
}

static void wait_for_close(case_t *test, client_t *client)
{
    for (int i = 0; i < PUMPS_MAX && !client->closed; i++)
        pump(test, client);
    assert_true(client->closed);
    client_close(client);
}

static void test_http_connection_beyond_the_limit_is_told(void **state)
{
    case_t *test = *state;
    client_t first = client_open(test, ""), second = client_open(test, "");
    pump(test, NULL);
    client_t third = client_get(test, "/health");
    wait_for_text(test, &third, "Retry-After: 1\r\n");
    expect_reply(test, third, 503, "frontend.max_connections");
    client_close(&first);
    pump(test, NULL);
    expect_reply(test, client_get(test, "/ping"), 200, "ok");
    client_close(&second);
}

static void test_http_no_descriptor_left_is_told(void **state)
{
    case_t *test = *state;
    struct rlimit before, none;
    pump(test, NULL);
    client_t clients[3];
    for (int i = 0; i < 3; i++)
        clients[i] = client_get(test, "/ping");
    int next = dup(0);
    close(next);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = (rlim_t)next;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    for (int i = 0; i < 3; i++)
        expect_reply(test, clients[i], 503, "descriptor");
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    expect_reply(test, client_get(test, "/ping"), 200, "ok");
}

static void test_http_head_and_body_that_trickle_in_end(void **state)
{
    case_t *test = *state;
    client_t head = client_open(test, "GET /ping HTTP/1.1\r\nHost: x\r\nX-A");
    client_t body = client_open(test, "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{");
    client_t idle = client_open(test, "");
    pump(test, NULL); /* accepts */
    pump(test, NULL); /* reads */
    test->ahead_ns = 20000000000ull;
    assert_int_equal(write(head.fd, ": b\r\nX-B", 8), 8); /* a byte now and then changes nothing */
    pump(test, NULL);
    test->ahead_ns = 31000000000ull;
    expect_reply(test, head, 408, "within 30 s");
    expect_reply(test, body, 408, "too slowly");
    test->ahead_ns = 76000000000ull;
    wait_for_close(test, &idle);
}

static void test_http_bad_framing_is_answered_in_json_and_ends_the_connection(void **state)
{
    case_t *test = *state;
    static const char *const requests[] = {
        "GET /ping HTTP/1.1\r\n\r\n",
        "GET /ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length : 2\r\n\r\n{}",
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "GET /ping HTTP/1.1\nHost: a\n\n",
        "GET /ping%00x HTTP/1.1\r\nHost: a\r\n\r\n",
        "\x16\x03\x01\x02",
    };
    for (size_t i = 0; i < sizeof requests / sizeof requests[0]; i++) {
        client_t client = client_open(test, requests[i]);
        wait_for_reply(test, &client, 400);
        assert_non_null(strstr(client_text(&client), "Connection: close\r\n"));
        assert_non_null(strstr(client_text(&client), "x-request-id: "));
        json_t *root = json_loads(strstr(client_text(&client), "\r\n\r\n") + 4, 0, NULL);
        assert_non_null(root);
        json_decref(root);
        wait_for_close(test, &client);
    }
}

static void test_http_pipelined_requests_are_answered_in_order(void **state)
{
    case_t *test = *state;
    client_t client = client_open(test, "GET /version HTTP/1.1\r\nHost: x\r\nx-request-id: one\r\n\r\n"
                                        "HEAD /ping HTTP/1.1\r\nHost: x\r\nx-request-id: two\r\n\r\n"
                                        "POST /ping HTTP/1.1\r\nHost: x\r\nx-request-id: three\r\n"
                                        "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
                                        "GET /nowhere HTTP/1.0\r\nx-request-id: four\r\n\r\n");
    wait_for_text(test, &client, "not_found");
    const char *text = client_text(&client), *one = strstr(text, "one\r\n"), *two = strstr(text, "two\r\n"),
               *three = strstr(text, "three\r\n"), *four = strstr(text, "four\r\n");
    assert_true(one && one < two && two < three && three < four);
    const char *body = strstr(two, "\r\n\r\n") + 4;
    assert_memory_equal(body, "HTTP/1.1 200", 12); /* HEAD has none */
    wait_for_close(test, &client);
}

static void test_http_expectation_is_met(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_open(test, "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n"
                                        "Expect: 100-continue\r\n\r\n");
    wait_for_text(test, &client, "HTTP/1.1 100 Continue\r\n\r\n");
    assert_int_equal(write(client.fd, "{\"prompt\":\"a\"}", 14), 14);
    const qn_tokenize_t *sent = take_sent(test, &client, QN_MESSAGE_TOKENIZE);
    assert_string_equal(sent->text.data, "a");
    client_close(&client);
}

static void test_http_every_method_that_a_path_has_not_is_405(void **state)
{
    case_t *test = *state;
    static const char *const methods[] = {"GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"};
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        char text[128];
        snprintf(text, sizeof text, "%s /tokenize HTTP/1.1\r\nHost: x\r\n\r\n", methods[i]);
        expect_reply(test, client_open(test, text), 405, "Allow: POST\r\n");
    }
    expect_reply(test, client_get(test, "/flush_cache"), 405, "Allow: POST\r\n"); /* GET changes nothing */
}

/* A body of `bytes` bytes, written while the frontend reads. */
static client_t post_large(case_t *test, const char *path, size_t bytes, bool whole)
{
    char head[256];
    char *body = malloc(bytes);
    memset(body, ' ', bytes);
    memcpy(body, "{\"prompt\":\"a\"", 13);
    body[bytes - 1] = '}';
    snprintf(head, sizeof head,
             "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", path,
             bytes);
    client_t client = client_open(test, head);
    for (size_t sent = 0; sent < (whole ? bytes : bytes / 2);) {
        ssize_t now = write(client.fd, body + sent, bytes - sent);
        if (now > 0) sent += (size_t)now;
        pump(test, &client);
    }
    free(body);
    return client;
}

static void test_http_large_body_is_parsed_beside_the_loop(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = post_large(test, "/v1/completions", 3000000, true);
    const qn_encode_t *encode = take_sent(test, &client, QN_MESSAGE_ENCODE);
    assert_string_equal(encode->prompt.data, "a");
    client_close(&client);
    take_sent(test, NULL, QN_MESSAGE_CANCEL);
    for (int i = 0; i < 20; i++) { /* leaves before, while or after it is parsed */
        client = post_large(test, "/tokenize", 300000, i % 2);
        client_close(&client);
    }
    expect_reply(test, client_get(test, "/ping"), 200, "ok");
}

static void test_http_choices_of_a_large_prompt_go_in_turns(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    size_t prompt = 900000, bytes = prompt + 32;
    char *body = malloc(bytes);
    int head = sprintf(body, "{\"n\":16,\"prompt\":\"");
    memset(body + head, 'a', prompt);
    strcpy(body + (size_t)head + prompt, "\"}");
    char text[256];
    snprintf(text, sizeof text, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n",
             strlen(body));
    client_t client = client_open(test, text);
    for (size_t sent = 0, all = strlen(body); sent < all; pump(test, &client)) {
        ssize_t now = write(client.fd, body + sent, all - sent);
        if (now > 0) sent += (size_t)now;
    }
    for (int i = 0; i < PUMPS_MAX && test->daemon.sent_count == test->daemon.taken; i++)
        pump(test, &client);
    assert_in_range(test->daemon.sent_count - test->daemon.taken, 1, 4); /* the first turn's */
    for (int i = 0; i < 16; i++)
        take_sent(test, &client, QN_MESSAGE_ENCODE);
    client_close(&client);
    free(body);
}

static void test_http_many_tokens_are_written_beside_the_loop(void **state)
{
    case_t *test = *state;
    enum { COUNT = 100000 };
    skip_describe(test);
    client_t client = client_post(test, "/tokenize", "", "{\"prompt\":\"ab\",\"return_token_strs\":true}");
    const qn_tokenize_t *sent = take_sent(test, &client, QN_MESSAGE_TOKENIZE);
    uint32_t *ids = calloc(COUNT, sizeof *ids);
    uint16_t *lengths = calloc(COUNT, sizeof *lengths);
    uint8_t *pieces = malloc(COUNT);
    memset(pieces, 'x', COUNT);
    for (int i = 0; i < COUNT; i++)
        lengths[i] = 1;
    qn_tokenized_t tokenized = {.head.request = sent->head.request,
                                .ids = ids,
                                .ids_count = COUNT,
                                .piece_bytes = lengths,
                                .piece_bytes_count = COUNT,
                                .pieces = pieces,
                                .pieces_count = COUNT};
    deliver(test, QN_MESSAGE_TOKENIZED, &tokenized);
    expect_reply(test, client, 200, "{\"count\":100000,");
    free(ids);
    free(lengths);
    free(pieces);
}

static void test_http_drain_answers_those_who_come(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t running = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &running, QN_MESSAGE_ENCODE))->head.request;
    client_t waiting = client_get(test, "/ping"); /* the kernel has it, the frontend not yet */
    qn_frontend_daemon.drain(test->frontend);
    wait_for_text(test, &waiting, "Retry-After: 1\r\n");
    expect_reply(test, waiting, 503, "stopping");
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%s/http", test->daemon.folder);
    int late = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(late, (struct sockaddr *)&name, sizeof name), -1);
    close(late);
    send_text(test, request, 0, "a", 0, 1);
    send_end(test, request, QN_FINISH_STOP, 1);
    expect_reply(test, running, 200, "\"text\":\"a\"");
}

static void test_http_what_still_runs_at_the_end_is_told(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t whole = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    take_sent(test, &whole, QN_MESSAGE_ENCODE);
    client_t stream = client_post(test, "/v1/completions", "", "{\"prompt\":\"b\",\"stream\":true}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &stream, QN_MESSAGE_ENCODE))->head.request;
    send_text(test, request, 0, "x", 0, 1);
    wait_for_text(test, &stream, "\"text\":\"x\"");
    qn_frontend_daemon.drain(test->frontend);
    assert_false(qn_frontend_daemon.drained(test->frontend));
    qn_frontend_daemon.fini(&test->frontend);
    client_read(&whole);
    client_read(&stream);
    assert_memory_equal(client_text(&whole), "HTTP/1.1 503 ", 13);
    assert_non_null(strstr(client_text(&stream), "data: {\"error\":{\"message\":\"The server stopped"));
    assert_non_null(strstr(client_text(&stream), "0\r\n\r\n"));
    client_close(&whole);
    client_close(&stream);
}

static void test_http_unknown_fields_are_in_a_header(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"temprature\":0}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    send_text(test, request, 0, "a", 0, 1);
    send_end(test, request, QN_FINISH_STOP, 1);
    expect_reply(test, client, 200, "x-quintet-warning: unknown fields ignored: temprature\r\n");
    expect_reply(test, client_post(test, "/abort_request", "", "{\"rid\":\"x\",\"all\":1}"), 200,
                 "x-quintet-warning: unknown fields ignored: all\r\n");
}

static void test_http_refusals_of_others_name_the_fields_of_the_route(void **state)
{
    case_t *test = *state;
    static const struct {
        const char *body, *param, *shown;
    } cases[] = {
        {"{\"text\":\"a\"}", "prompt", "\"param\":\"text\""},
        {"{\"input_ids\":[1]}", "prompt", "\"param\":\"input_ids\""},
        {"{\"text\":\"a\"}", "stop_token_ids", "\"param\":\"sampling_params.stop_token_ids\""},
        {"{\"text\":\"a\"}", "bad_words", "\"param\":\"sampling_params.bad_words\""},
    };
    skip_describe(test);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        client_t client = client_post(test, "/generate", "", cases[i].body);
        uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
        qn_refusal_t refusal = {.head.request = request,
                                .status = 400,
                                .param = qn_text(cases[i].param),
                                .text = qn_text("no, for a reason")};
        deliver(test, QN_MESSAGE_REFUSAL, &refusal);
        expect_reply(test, client, 400, cases[i].shown);
        take_sent(test, NULL, QN_MESSAGE_CANCEL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_http_connection_beyond_the_limit_is_told, setup_two_connections, teardown),
        cmocka_unit_test_setup_teardown(test_http_no_descriptor_left_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(test_http_head_and_body_that_trickle_in_end, setup, teardown),
        cmocka_unit_test_setup_teardown(test_http_bad_framing_is_answered_in_json_and_ends_the_connection, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_http_pipelined_requests_are_answered_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_http_expectation_is_met, setup, teardown),
        cmocka_unit_test_setup_teardown(test_http_every_method_that_a_path_has_not_is_405, setup, teardown),
        cmocka_unit_test_setup_teardown(test_http_large_body_is_parsed_beside_the_loop, setup, teardown),
        cmocka_unit_test_setup_teardown(test_http_choices_of_a_large_prompt_go_in_turns, setup, teardown),
        cmocka_unit_test_setup_teardown(test_http_many_tokens_are_written_beside_the_loop, setup, teardown),
        cmocka_unit_test_setup_teardown(test_http_drain_answers_those_who_come, setup, teardown),
        cmocka_unit_test_setup_teardown(test_http_what_still_runs_at_the_end_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(test_http_unknown_fields_are_in_a_header, setup, teardown),
        cmocka_unit_test_setup_teardown(test_http_refusals_of_others_name_the_fields_of_the_route, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
