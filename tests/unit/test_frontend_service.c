/* The frontend as a service: routes, queries, status, limits, the death of a peer, stopping. */
#include "tests/unit/frontend_case.h"

static void test_frontend_request_id_is_echoed_or_made(void **state)
{
    case_t *test = *state;
    client_t client = client_open(test, "GET /ping HTTP/1.1\r\nHost: x\r\nX-Request-Id: a.b-c\r\n\r\n");
    expect_reply(test, client, 200, "x-request-id: a.b-c\r\n");
    client = client_get(test, "/ping");
    wait_for_reply(test, &client, 200);
    const char *id = strstr(client_text(&client), "x-request-id: ");
    assert_non_null(id);
    assert_int_equal(strspn(id + 14, "0123456789abcdef"), 32);
    client_close(&client);
    client = client_open(test, "GET /ping HTTP/1.1\r\nHost: x\r\nX-Request-Id: a b\r\n\r\n");
    expect_reply(test, client, 400, "\"param\":\"x-request-id\"");
}

static void test_frontend_dead_tokenizer_fails_what_it_held(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t whole = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    take_sent(test, &whole, QN_MESSAGE_ENCODE);
    client_t stream = client_post(test, "/generate", "", "{\"text\":\"b\",\"stream\":true}");
    uint64_t facts = ((const qn_tokenize_t *)take_sent(test, &stream, QN_MESSAGE_TOKENIZE))->head.request;
    uint64_t request = ((const qn_encode_t *)take_sent(test, &stream, QN_MESSAGE_ENCODE))->head.request;
    uint32_t ids[] = {1, 2};
    qn_tokenized_t tokenized = {.head.request = facts, .ids = ids, .ids_count = 2};
    deliver(test, QN_MESSAGE_TOKENIZED, &tokenized);
    send_text(test, request, 0, "x", 0, 1);
    wait_for_text(test, &stream, "\"text\":\"x\"");
    client_t memory = client_get(test, "/cache/stats"); /* not the tokenizer's */
    take_sent(test, &memory, QN_MESSAGE_CACHE_QUERY);
    peer_event(test, QN_SERVICE_TOKENIZER, 12, QN_PEER_GONE);
    expect_reply(test, whole, 503, "Retry-After: 1");
    wait_for_text(test, &stream, "data: {\"error\":{");
    wait_for_text(test, &stream, "data: [DONE]");
    client_close(&stream);
    client_t next = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    expect_reply(test, next, 503, "tokenizer");
    assert_int_equal(memory.in.bytes, 0);
    peer_event(test, QN_SERVICE_MEMORY, 14, QN_PEER_GONE);
    expect_reply(test, memory, 503, "memory");
    take_sent(test, NULL, QN_MESSAGE_CANCEL); /* to the scheduler, since the tokenizer is gone */
    assert_int_equal(test->daemon.sent[test->daemon.taken - 1].to, QN_SERVICE_SCHEDULER);
}

/* The ledger may hold the request: the scheduler that comes hears of it, whoever is down when the client leaves. */
static void test_frontend_cancel_waits_for_somebody_to_tell(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"stream\":true}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    test->daemon.peers[QN_SERVICE_SCHEDULER] = (qn_peer_t){0};
    peer_event(test, QN_SERVICE_TOKENIZER, 12, QN_PEER_GONE);
    wait_for_text(test, &client, "503");
    client_close(&client);
    for (int i = 0; i < 3; i++)
        tick(test);
    assert_int_equal(test->daemon.sent_count, test->daemon.taken); /* nobody is there */
    peer_event(test, QN_SERVICE_SCHEDULER, 93, QN_PEER_UP);
    const qn_cancel_t *cancel = take_sent(test, NULL, QN_MESSAGE_CANCEL);
    assert_int_equal(cancel->head.request, request);
    assert_int_equal(test->daemon.sent[test->daemon.taken - 1].to, QN_SERVICE_SCHEDULER);
}

static void test_frontend_abort_ends_by_name(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client =
        client_post(test, "/v1/completions", "x-request-id: job\r\n", "{\"prompt\":\"a\",\"stream\":true}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    send_text(test, request, 0, "a", 0, 10);
    wait_for_text(test, &client, "\"text\":\"a\"");
    expect_reply(test, client_post(test, "/abort_request", "", "{\"rid\":\"other\"}"), 200, "{\"aborted\":0}");
    expect_reply(test, client_post(test, "/abort_request", "", "{\"request_id\":\"cmpl-job\"}"), 200,
                 "{\"aborted\":1}");
    const qn_cancel_t *cancel = take_sent(test, &client, QN_MESSAGE_CANCEL);
    assert_int_equal(cancel->head.request, request);
    assert_int_equal(cancel->reason, QN_CANCEL_REASON_CLIENT_ASKED);
    send_end(test, request, QN_FINISH_CANCELLED, 1);
    wait_for_text(test, &client, "\"finish_reason\":\"abort\"");
    wait_for_text(test, &client, "data: [DONE]");
    client_close(&client);
    expect_reply(test, client_post(test, "/abort_request", "", "{}"), 400, "\"param\":\"rid\"");
    expect_reply(test, client_post(test, "/abort_request", "", "{\"abort_all\":true}"), 200, "{\"aborted\":0}");
}

static void test_frontend_queries_ask_and_answer(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/tokenize", "",
                                  "{\"prompt\":\"ab\",\"return_token_strs\":true,\"add_special_tokens\":false}");
    const qn_tokenize_t *tokenize = take_sent(test, &client, QN_MESSAGE_TOKENIZE);
    assert_true(!tokenize->add_special && tokenize->want_pieces);
    uint32_t ids[] = {5, 6};
    uint16_t lengths[] = {1, 1};
    qn_tokenized_t tokenized = {.head.request = tokenize->head.request,
                                .ids = ids,
                                .ids_count = 2,
                                .piece_bytes = lengths,
                                .piece_bytes_count = 2,
                                .pieces = (const uint8_t *)"ab",
                                .pieces_count = 2};
    deliver(test, QN_MESSAGE_TOKENIZED, &tokenized);
    expect_reply(test, client, 200,
                 "{\"count\":2,\"max_model_len\":2048,\"tokens\":[5,6],\"token_strs\":[\"a\",\"b\"]}");
    client = client_post(test, "/detokenize", "", "{\"tokens\":[5,6]}");
    const qn_detokenize_t *detokenize = take_sent(test, &client, QN_MESSAGE_DETOKENIZE);
    assert_false(detokenize->skip_special);
    qn_detokenized_t detokenized = {.head.request = detokenize->head.request, .text = qn_text("ab")};
    deliver(test, QN_MESSAGE_DETOKENIZED, &detokenized);
    expect_reply(test, client, 200, "{\"prompt\":\"ab\"}");
    client = client_get(test, "/cache/stats?mode=research");
    const qn_cache_query_t *query = take_sent(test, &client, QN_MESSAGE_CACHE_QUERY);
    qn_cache_stats_t stats = {.head.request = query->head.request,
                              .total_blocks = 9,
                              .lookup_tokens = 8,
                              .hit_tokens = 2,
                              .policy = qn_text("lru")};
    deliver(test, QN_MESSAGE_CACHE_STATS, &stats);
    expect_reply(test, client, 200, "\"hit_rate\":0.25");
    client = client_post(test, "/flush_cache", "", "");
    const qn_flush_cache_t *flush = take_sent(test, &client, QN_MESSAGE_FLUSH_CACHE);
    qn_flushed_t flushed = {.head.request = flush->head.request, .freed_blocks = 4};
    deliver(test, QN_MESSAGE_FLUSHED, &flushed);
    expect_reply(test, client, 200, "{\"freed_blocks\":4}");
}

static void test_frontend_query_without_answer_times_out(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_get(test, "/cache/stats");
    take_sent(test, &client, QN_MESSAGE_CACHE_QUERY);
    test->ahead_ns = 11000000000ull;
    expect_reply(test, client, 504, "\"timeout\"");
}

static void test_frontend_status_routes_answer(void **state)
{
    case_t *test = *state;
    static const struct {
        const char *path;
        int status;
        const char *part;
    } cases[] = {
        {"/health", 200, "\"status\":\"ok\""},
        {"/ready", 200, "{\"name\":\"compute\",\"state\":\"ready\""},
        {"/version", 200, "\"protocol\":1"},
        {"/v1/models", 200, "\"object\":\"list\",\"data\":[{\"id\":\"tiny\""},
        {"/v1/models/tiny", 200, "\"max_model_len\":2048"},
        {"/v1/models/org/none", 404, "model_not_found"},
        {"/model_info", 200, "\"vocab_size\":1000"},
        {"/server_info", 200, "\"queue_limit\":1024"},
        {"/services", 200,
         "{\"name\":\"memory\",\"pid\":1004,\"epoch\":14,\"build\":\"test\",\"state\":\"ready\",\"uptime_s\":1.5,"
         "\"restarts\":0,\"transport\":\"ipc\""},
        {"/services", 200, "{\"name\":\"frontend\",\"pid\":1,\"epoch\":77"},
        {"/nowhere", 404, "\"code\":\"not_found\""},
        {"/v1/models?mode=research", 200,
         "\"metadata\":{\"service\":\"frontend\",\"method\":\"models\",\"execution_time_us\":"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_reply(test, client_get(test, cases[i].path), cases[i].status, cases[i].part);
    peer_event(test, QN_SERVICE_COMPUTE, 15, QN_PEER_GONE);
    expect_reply(test, client_get(test, "/health"), 503, "{\"name\":\"compute\",\"state\":\"down\"");
    client_t client = client_get(test, "/metrics");
    wait_for_reply(test, &client, 200);
    assert_non_null(strstr(client_text(&client), "text/plain; version=0.0.4"));
    assert_non_null(strstr(client_text(&client), "quintet_service_up{service=\"compute\",model_name=\"tiny\"} 0\n"));
    assert_non_null(
        strstr(client_text(&client),
               "quintet_frontend_requests_total{service=\"frontend\",route=\"other\",code=\"200\",model_name="));
    client_close(&client);
}

static void test_frontend_bad_http_is_refused_with_the_reason(void **state)
{
    case_t *test = *state;
    expect_reply(test, client_get(test, "/v1/completions"), 405, "Allow: POST\r\n");
    expect_reply(test,
                 client_open(test, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
                                   "Content-Length: 2\r\n\r\n{}"),
                 415, "application/json");
    expect_reply(test, client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"n\":0}"), 400, "\"param\":\"n\"");
    expect_reply(test, client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"model\":\"x\"}"), 404,
                 "model_not_found");
    expect_reply(test, client_post(test, "/v1/completions", "", ""), 400, "empty");
    char body[1200] = "{\"prompt\":\"";
    memset(body + 11, 'a', 1100);
    strcpy(body + 1111, "\"}");
    expect_reply(test, client_post(test, "/v1/completions", "", body), 413, "1024 bytes");
    expect_reply(test, client_open(test, "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"),
                 413, "max_body_bytes");
}

static void test_frontend_full_queue_says_429(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t first = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"n\":2}");
    take_sent(test, &first, QN_MESSAGE_ENCODE);
    take_sent(test, &first, QN_MESSAGE_ENCODE);
    expect_reply(test, client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}"), 429, "Retry-After: 1");
    expect_reply(test, client_post(test, "/v1/completions", "", "{\"prompt\":\"a\",\"n\":3}"), 400, "queue_limit");
    expect_reply(test, client_get(test, "/cache/stats"), 429, "rate_limit");
    client_close(&first);
    take_sent(test, NULL, QN_MESSAGE_CANCEL);
    take_sent(test, NULL, QN_MESSAGE_CANCEL);
    client_t next = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    take_sent(test, &next, QN_MESSAGE_ENCODE);
    client_close(&next);
}

static void test_frontend_drain_finishes_and_refuses(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/v1/completions", "", "{\"prompt\":\"a\"}");
    uint64_t request = ((const qn_encode_t *)take_sent(test, &client, QN_MESSAGE_ENCODE))->head.request;
    client_t idle = client_get(test, "/ping");
    wait_for_text(test, &idle, "ok");
    qn_frontend_daemon.drain(test->frontend);
    assert_int_equal(test->daemon.state, QN_STATE_DRAINING);
    assert_false(qn_frontend_daemon.drained(test->frontend));
    const char *more = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{\"text\":\"a\"}";
    assert_int_equal(write(idle.fd, more, strlen(more)), (ssize_t)strlen(more));
    wait_for_text(test, &idle, "The server is stopping");
    send_text(test, request, 0, "a", 0, 1);
    send_end(test, request, QN_FINISH_STOP, 1);
    expect_reply(test, client, 200, "\"text\":\"a\"");
    assert_true(qn_frontend_daemon.drained(test->frontend));
    client_close(&idle);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_frontend_request_id_is_echoed_or_made, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_dead_tokenizer_fails_what_it_held, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_cancel_waits_for_somebody_to_tell, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_abort_ends_by_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_queries_ask_and_answer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_query_without_answer_times_out, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_status_routes_answer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_bad_http_is_refused_with_the_reason, setup_small, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_full_queue_says_429, setup_small, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_drain_finishes_and_refuses, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
