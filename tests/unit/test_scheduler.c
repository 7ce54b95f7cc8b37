/* Units of services/scheduler/scheduler.c: requests before the model, bounds, clients that come and go, restarts. */
#include "tests/unit/scheduler_case.h"

static const scheduler_options_t options = {.planner = {.max_step_tokens = 32,
                                                        .prefill_chunk_tokens = 32,
                                                        .lookahead = 1},
                                            .max_sequences = 2,
                                            .queue_limit = 3};

/* Tells the client all it is owed; returns how many ends were among it. */
static uint32_t deliver(case_t *self)
{
    delivery_t *delivery = scheduler_delivery(self->scheduler);
    delivery_message_t message;
    uint32_t ends = 0;
    delivery_begin(delivery);
    while (delivery_next(delivery, &message)) {
        ends += message.end_count;
        delivery_sent(delivery);
    }
    return ends;
}

static void reopen(case_t *self)
{
    ledger_replay_t replay;
    scheduler_destroy(&self->scheduler);
    assert_int_equal(scheduler_create(&self->options, self->now_ns, &self->scheduler, &replay), QN_OK);
}

static void test_scheduler_request_before_the_model_waits_then_is_judged(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options);
    case_submit(&c, 1, 5, 500);
    uint32_t foreign = 1000; /* the vocabulary will have 1000 ids */
    ledger_submission_t bad = {
        .id = 2, .client = case_client, .sampling = {.max_tokens = 1}, .prompt_ids = &foreign, .prompt_tokens = 1};
    admission_refusal_t refusal;
    assert_int_equal(scheduler_submit(c.scheduler, &bad, 1, &refusal), SCHEDULER_ACCEPTED);
    uint64_t request;
    request_client_t client;
    assert_false(scheduler_next_refusal(c.scheduler, &request, &client, &refusal));
    case_up(&c);
    assert_true(scheduler_next_refusal(c.scheduler, &request, &client, &refusal));
    assert_int_equal(request, 2);
    assert_int_equal(client.epoch, case_client.epoch);
    assert_int_equal(refusal.status, 400);
    assert_string_equal(refusal.param, "prompt");
    assert_false(scheduler_next_refusal(c.scheduler, &request, &client, &refusal));
    scheduler_tidy(c.scheduler, c.now_ns);
    assert_null(case_request(&c, 2));
    assert_int_equal(case_request(&c, 1)->generated_max, 59); /* clipped to 64 - 5 */
    assert_int_equal(deliver(&c), 0);                         /* the refusal was the end of 2 */
    case_close(&c);
}

static void test_scheduler_queue_limit_refuses_with_429_until_one_ends(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options);
    case_up(&c);
    for (uint64_t id = 1; id <= 3; id++)
        case_submit(&c, id, 5, 5);
    admission_refusal_t refusal;
    request_sampling_t sampling = {.max_tokens = 5};
    assert_int_equal(case_submit_as(&c, 4, 5, sampling, &refusal), SCHEDULER_REFUSED);
    assert_int_equal(refusal.status, 429);
    assert_true(refusal.retry_after_ms > 0);
    assert_int_equal(case_submit_as(&c, 2, 5, sampling, &refusal), SCHEDULER_RESUMED); /* not a new one */
    scheduler_cancel(c.scheduler, 1, REQUEST_CANCELLED);
    assert_int_equal(case_submit_as(&c, 4, 5, sampling, &refusal), SCHEDULER_ACCEPTED);
    case_close(&c);
}

static void test_scheduler_nothing_to_generate_ends_without_a_run(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options);
    case_up(&c);
    case_submit(&c, 1, 5, 0);
    case_traffic(&c);
    assert_int_equal(c.traffic.lease_count, 0);
    assert_int_equal(deliver(&c), 1);
    scheduler_tidy(c.scheduler, c.now_ns);
    assert_null(case_request(&c, 1));
    case_close(&c);
}

static void test_scheduler_restart_goes_on_where_the_ledger_ends(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options);
    case_up(&c);
    case_submit(&c, 1, 5, 9);
    case_submit(&c, 2, 5, 1);
    case_lease_all(&c);
    assert_true(case_plan(&c));
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    assert_int_equal(case_request(&c, 2)->finish, REQUEST_LENGTH);
    reopen(&c);
    assert_int_equal(case_request(&c, 1)->generated_tokens, 1);
    assert_int_equal(deliver(&c), 0); /* their client has not shown yet */
    scheduler_client_up(c.scheduler, case_client);
    assert_int_equal(deliver(&c), 1); /* request 2 ended before; its end is told again */
    case_up(&c);
    uint64_t request;
    request_client_t client;
    admission_refusal_t refusal;
    assert_false(scheduler_next_refusal(c.scheduler, &request, &client, &refusal));
    case_lease_all(&c);
    assert_int_equal(c.traffic.lease_count, 1);
    assert_int_equal(c.traffic.leases[0].ids_count, 6);
    assert_true(case_plan(&c));
    assert_int_equal(case_result(&c, 501, false), QN_OK);
    assert_int_equal(case_request(&c, 1)->ids[6], 501);
    case_close(&c);
}

static void test_scheduler_orphans_are_cancelled_after_the_grace_and_not_before(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options);
    case_up(&c);
    case_submit(&c, 1, 5, 9);
    case_submit(&c, 2, 5, 9);
    uint64_t gone_ns = c.now_ns;
    scheduler_client_gone(c.scheduler, case_client, gone_ns);
    assert_true(scheduler_tidy(c.scheduler, gone_ns) == gone_ns + SCHEDULER_ORPHAN_NS);
    request_sampling_t sampling = {.max_tokens = 9};
    admission_refusal_t refusal;
    assert_int_equal(case_submit_as(&c, 2, 5, sampling, &refusal), SCHEDULER_RESUMED); /* somebody asks for it again */
    scheduler_tidy(c.scheduler, gone_ns + SCHEDULER_ORPHAN_NS - 1);
    assert_non_null(case_request(&c, 1));
    assert_true(scheduler_tidy(c.scheduler, gone_ns + SCHEDULER_ORPHAN_NS) == UINT64_MAX);
    assert_null(case_request(&c, 1));
    assert_non_null(case_request(&c, 2));
    case_close(&c);
}

static void test_scheduler_drain_refuses_new_and_may_cancel_the_waiting(void **state)
{
    (void)state;
    for (int cancel = 0; cancel < 2; cancel++) {
        case_t c;
        case_open(&c, options);
        case_up(&c);
        case_submit(&c, 1, 5, 9);
        case_lease_all(&c);
        case_submit(&c, 2, 5, 9);
        scheduler_drain(c.scheduler, cancel);
        request_sampling_t sampling = {.max_tokens = 9};
        admission_refusal_t refusal;
        assert_int_equal(case_submit_as(&c, 3, 5, sampling, &refusal), SCHEDULER_REFUSED);
        assert_int_equal(refusal.status, 503);
        assert_int_equal(case_request(&c, 1)->finish, REQUEST_UNFINISHED);
        assert_int_equal(case_request(&c, 2)->finish, cancel ? REQUEST_CANCELLED : REQUEST_UNFINISHED);
        case_close(&c);
    }
}

static void bad_admit(const qn_policy_view_t *view, uint32_t most, qn_policy_admit_t *ret_admit)
{
    (void)view;
    (void)most;
    ret_admit->count = 1;
    ret_admit->admissions[0].id = 4711;
}

static void test_scheduler_policy_that_breaks_a_rule_is_a_failure_with_its_name(void **state)
{
    (void)state;
    qn_policy_t bad = policy_fcfs;
    bad.name = "bad";
    bad.admit = bad_admit;
    scheduler_options_t with = options;
    with.policy_functions = &bad;
    case_t c;
    case_open(&c, with);
    case_up(&c);
    case_submit(&c, 1, 5, 9);
    assert_int_equal(scheduler_traffic(c.scheduler, 1, &c.traffic), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "policy bad"));
    assert_non_null(strstr(qn_err_text(), "4711"));
    case_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scheduler_request_before_the_model_waits_then_is_judged),
        cmocka_unit_test(test_scheduler_queue_limit_refuses_with_429_until_one_ends),
        cmocka_unit_test(test_scheduler_nothing_to_generate_ends_without_a_run),
        cmocka_unit_test(test_scheduler_restart_goes_on_where_the_ledger_ends),
        cmocka_unit_test(test_scheduler_orphans_are_cancelled_after_the_grace_and_not_before),
        cmocka_unit_test(test_scheduler_drain_refuses_new_and_may_cancel_the_waiting),
        cmocka_unit_test(test_scheduler_policy_that_breaks_a_rule_is_a_failure_with_its_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
