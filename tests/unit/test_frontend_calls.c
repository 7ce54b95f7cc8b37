/* Method calls through the frontend: out, back, refused, too late, nobody there, too many. */
#include "tests/unit/frontend_case.h"

#include "qn_methods.h"
#include "services/frontend/frontend.h"

static void reply_usage(case_t *test, uint64_t request, uint32_t free_blocks)
{
    qn_memory_usage_reply_t reply = {.head = {.request = request, .epoch = 14, .sent_ns = 9000},
                                     .began_ns = 5000,
                                     .free_blocks = free_blocks};
    qn_frontend_daemon.reply(test->frontend, test->daemon.peers[QN_SERVICE_MEMORY], QN_MESSAGE_MEMORY_USAGE_REPLY,
                             &reply);
}

static uint64_t sent_usage(case_t *test, client_t *client)
{
    return ((const qn_memory_usage_t *)take_sent(test, client, QN_MESSAGE_MEMORY_USAGE))->head.request;
}

static void test_frontend_call_reply_is_shown_bare_and_late_ones_are_dropped(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/services/memory/usage", "", "");
    uint64_t request = sent_usage(test, &client);
    reply_usage(test, request + 1, 1); /* nobody's */
    reply_usage(test, request, 7);
    reply_usage(test, request, 8); /* it is over */
    expect_reply(test, client, 200, "\"free_blocks\":7,");
}

static void test_frontend_call_research_shows_the_service_and_its_hops(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/services/memory/usage?mode=research", "", "");
    reply_usage(test, sent_usage(test, &client), 7);
    expect_reply(test, client, 200,
                 "\"metadata\":{\"service\":\"memory\",\"method\":\"usage\",\"execution_time_us\":4,\"hops\":[");
}

static void test_frontend_call_refusal_becomes_an_error_with_its_param(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/services/memory/lookup", "", "{\"ids\":[1]}");
    uint64_t request = ((const qn_memory_lookup_t *)take_sent(test, &client, QN_MESSAGE_MEMORY_LOOKUP))->head.request;
    qn_refusal_t refusal = {.head.request = request,
                            .status = 503,
                            .retry_after_ms = 2000,
                            .param = qn_text("ids"),
                            .text = qn_text("still loading")};
    deliver(test, QN_MESSAGE_REFUSAL, &refusal);
    wait_for_text(test, &client, "Retry-After: 2\r\n");
    expect_reply(test, client, 503,
                 "\"message\":\"still loading\",\"type\":\"service_unavailable_error\",\"param\":\"ids\"");
}

static void test_frontend_call_that_nobody_answers_ends_at_its_deadline(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/services/memory/usage", "", "");
    sent_usage(test, &client);
    test->ahead_ns = 9000000000ull;
    pump(test, &client);
    assert_int_equal(client.in.bytes, 0);
    test->ahead_ns = 11000000000ull;
    expect_reply(test, client, 504, "memory.usage did not answer within 10 s");
}

static void test_frontend_call_of_a_service_that_is_down_or_dies_is_503(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t held = client_post(test, "/services/memory/usage", "", "");
    client_t other = client_post(test, "/services/scheduler/queue", "", "");
    sent_usage(test, &held);
    take_sent(test, &other, QN_MESSAGE_SCHEDULER_QUEUE);
    peer_event(test, QN_SERVICE_MEMORY, 14, QN_PEER_GONE);
    expect_reply(test, held, 503, "The memory service ended while it held this call");
    assert_int_equal(other.in.bytes, 0);
    client_close(&other);
    client_t next = client_post(test, "/services/memory/usage", "", "");
    wait_for_text(test, &next, "Retry-After: 1\r\n");
    expect_reply(test, next, 503, "The memory service is not there");
}

static void test_frontend_call_more_than_the_table_holds_are_503(void **state)
{
    case_t *test = *state;
    frontend_t *frontend = test->frontend;
    skip_describe(test);
    for (call_t *call; (call = calls_open(&frontend->calls));) {
        call->method = &qn_methods[QN_METHOD_MEMORY_USAGE];
        call->deadline_ns = UINT64_MAX;
    }
    client_t client = client_post(test, "/services/memory/usage", "", "");
    wait_for_text(test, &client, "Retry-After: 1\r\n");
    expect_reply(test, client, 503, "256 calls of methods wait");
    calls_init(&frontend->calls, 1); /* these had no function to end them with */
}

static void test_frontend_call_of_a_client_that_left_is_dropped(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    client_t client = client_post(test, "/services/memory/usage", "", "");
    uint64_t request = sent_usage(test, &client);
    client_close(&client);
    for (int i = 0; i < 5; i++)
        pump(test, NULL);
    reply_usage(test, request, 7);
    client_t next = client_get(test, "/ping");
    expect_reply(test, next, 200, "ok");
}

static void test_frontend_call_peer_that_takes_nothing_is_503(void **state)
{
    case_t *test = *state;
    skip_describe(test);
    test->daemon.outcome = QN_SEND_FULL;
    expect_reply(test, client_post(test, "/services/memory/usage", "", ""), 503, "The memory service is behind");
    test->daemon.outcome = QN_SEND_OK;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_frontend_call_reply_is_shown_bare_and_late_ones_are_dropped, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_frontend_call_research_shows_the_service_and_its_hops, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_call_refusal_becomes_an_error_with_its_param, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_call_that_nobody_answers_ends_at_its_deadline, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_call_of_a_service_that_is_down_or_dies_is_503, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_call_more_than_the_table_holds_are_503, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_call_of_a_client_that_left_is_dropped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frontend_call_peer_that_takes_nothing_is_503, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
