/* Who is suspected after a crash, who runs apart, who is quarantined, and what a former scheduler's evidence says. */
#include "tests/unit/scheduler_case.h"

static const scheduler_options_t options = {.planner = {.max_step_tokens = 32,
                                                        .prefill_chunk_tokens = 32,
                                                        .lookahead = 1},
                                            .max_sequences = 4,
                                            .queue_limit = 8};

/* Requests 1 to `count` of 5 tokens run; the first plan, with all of them, is out. */
static void open_running(case_t *self, uint32_t count)
{
    case_open(self, options);
    case_up(self);
    for (uint32_t id = 1; id <= count; id++)
        case_submit(self, id, 5, 20);
    case_lease_all(self);
    assert_true(case_plan(self));
    assert_int_equal(self->plan.run_count, count);
}

static uint32_t suspects(const case_t *self)
{
    scheduler_counts_t counts;
    scheduler_counts(self->scheduler, &counts);
    return counts.suspects;
}

/* It is gone, then the next one starts. */
static void compute_ends(case_t *self, bool crash)
{
    scheduler_compute_lost(self->scheduler);
    scheduler_compute_lost(self->scheduler);
    if (crash)
        scheduler_peer_crashed(self->scheduler, SUSPECTS_COMPUTE);
    else
        scheduler_peer_survived(self->scheduler, SUSPECTS_COMPUTE);
    scheduler_compute_up(self->scheduler);
}

/* The next life of the scheduler on the same ledger. */
static void restart(case_t *self, bool crashed)
{
    ledger_replay_t replay;
    scheduler_destroy(&self->scheduler);
    self->options.former_crashed = crashed;
    assert_int_equal(scheduler_create(&self->options, ++self->now_ns, &self->scheduler, &replay), QN_OK);
    scheduler_client_up(self->scheduler, case_client);
    case_up(self);
}

static uint64_t guilty(case_t *self)
{
    suspects_peer_t peer;
    const request_t *request = scheduler_next_guilty(self->scheduler, &peer);
    uint64_t id = request != NULL ? request->id : 0;
    if (request != NULL) assert_null(scheduler_next_guilty(self->scheduler, &peer));
    return id;
}

static void answer_all(case_t *self)
{
    while (scheduler_batch(self->scheduler)->step_count > 0)
        assert_int_equal(case_result(self, 500, false), QN_OK);
}

static void test_suspects_after_a_kill_there_are_none(void **state)
{
    (void)state;
    case_t c;
    open_running(&c, 3);
    compute_ends(&c, false);
    assert_int_equal(suspects(&c), 0);
    assert_true(case_plan(&c));
    assert_int_equal(c.plan.run_count, 3);
    assert_true(c.plan.opens);
    case_close(&c);
}

static void test_suspects_run_one_at_a_time_until_they_have_proven_what_they_ran(void **state)
{
    (void)state;
    case_t c;
    open_running(&c, 3);
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    case_submit(&c, 4, 5, 20); /* came later: waits until they are done */
    assert_true(case_plan(&c));
    compute_ends(&c, true);
    assert_int_equal(suspects(&c), 3);
    for (uint32_t left = 3; left > 0; left--) {
        assert_true(case_plan(&c));
        assert_int_equal(c.plan.run_count, 1);
        case_traffic(&c);
        for (uint32_t i = 0; i < c.traffic.lease_count; i++)
            assert_int_not_equal(c.traffic.leases[i].sequence, 4);
        answer_all(&c);
        assert_int_equal(suspects(&c), left); /* decided in the next turn */
        case_lease_all(&c);
        assert_int_equal(suspects(&c), left - 1);
    }
    assert_true(case_plan(&c));
    assert_int_equal(c.plan.run_count, 4);
    assert_int_equal(guilty(&c), 0);
    case_close(&c);
}

static void test_suspects_who_was_alone_at_the_second_crash_is_quarantined(void **state)
{
    (void)state;
    case_t c;
    open_running(&c, 3);
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    assert_true(case_plan(&c));
    compute_ends(&c, true);
    assert_int_equal(guilty(&c), 0);
    assert_true(case_plan(&c));
    uint64_t alone =
        scheduler_batch(c.scheduler)->sequences[scheduler_batch(c.scheduler)->steps[0].runs[0].index].request->id;
    compute_ends(&c, true);
    assert_int_equal(guilty(&c), alone);
    assert_int_equal(case_request(&c, alone)->finish, REQUEST_ERROR);
    assert_int_equal(suspects(&c), 3); /* the guilty one until it is looked at */
    const request_t *untold = scheduler_next_untold(c.scheduler, NULL);
    assert_non_null(untold);
    assert_int_equal(untold->id, alone);
    scheduler_told(c.scheduler, untold);
    assert_null(scheduler_next_untold(c.scheduler, NULL));
    for (int i = 0; i < 4; i++) { /* the others prove themselves */
        case_plan(&c);
        answer_all(&c);
        case_traffic(&c);
    }
    assert_int_equal(suspects(&c), 0);
    assert_true(case_plan(&c));
    assert_int_equal(c.plan.run_count, 2);
    admission_refusal_t refusal; /* the same id again */
    scheduler_tidy(c.scheduler, ++c.now_ns);
    assert_int_equal(case_submit_as(&c, alone, 5, (request_sampling_t){.max_tokens = 5}, &refusal), SCHEDULER_REFUSED);
    assert_int_equal(refusal.status, 500);
    case_close(&c);
}

static void test_suspects_a_request_alone_in_the_engine_takes_two_crashes(void **state)
{
    (void)state;
    case_t c;
    open_running(&c, 1);
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    assert_true(case_plan(&c));
    compute_ends(&c, true);
    assert_int_equal(guilty(&c), 0);
    assert_int_equal(case_request(&c, 1)->crashes, 1);
    for (int i = 0; i < 3; i++) { /* it proves itself, but the count stays */
        case_plan(&c);
        answer_all(&c);
        case_traffic(&c);
    }
    assert_int_equal(suspects(&c), 0);
    assert_true(case_plan(&c));
    compute_ends(&c, true);
    assert_int_equal(guilty(&c), 1);
    case_close(&c);
}

static void test_suspects_before_compute_answered_nobody_was_alone(void **state)
{
    (void)state;
    case_t c;
    open_running(&c, 1); /* a plan of a former scheduler may still have been running */
    compute_ends(&c, true);
    assert_int_equal(case_request(&c, 1)->crashes, 0);
    assert_int_equal(suspects(&c), 1);
    assert_true(case_plan(&c));
    compute_ends(&c, true);
    assert_int_equal(guilty(&c), 1);
    case_close(&c);
}

static void test_suspects_a_cancelled_request_may_have_been_it(void **state)
{
    (void)state;
    case_t c;
    open_running(&c, 2);
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    for (int crash = 0; crash < 2; crash++) {
        assert_true(case_plan(&c));
        if (crash == 0) scheduler_cancel(c.scheduler, 2, REQUEST_CANCELLED);
        compute_ends(&c, true);
        assert_int_equal(guilty(&c), crash == 0 ? 0 : 1);
        if (crash == 0) assert_int_equal(case_request(&c, 1)->crashes, 0);
    }
    case_close(&c);
}

static void test_suspects_survive_the_scheduler(void **state)
{
    (void)state;
    case_t c;
    open_running(&c, 3);
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    assert_true(case_plan(&c));
    compute_ends(&c, true);
    restart(&c, false); /* killed */
    assert_int_equal(suspects(&c), 3);
    case_traffic(&c);
    assert_int_equal(c.traffic.lease_count, 1); /* one at a time */
    case_close(&c);
}

static void test_suspects_of_a_scheduler_crash_are_those_that_held_slots(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options);
    case_up(&c);
    for (uint32_t id = 1; id <= 6; id++)
        case_submit(&c, id, 5, 20);
    case_lease_all(&c); /* four slots */
    restart(&c, true);
    assert_int_equal(suspects(&c), 4);
    case_lease_all(&c);
    assert_int_equal(c.traffic.lease_count, 1);
    uint64_t apart = c.traffic.leases[0].sequence;
    restart(&c, true); /* it ran apart */
    assert_int_equal(guilty(&c), apart);
    assert_int_equal(case_request(&c, 6)->finish, REQUEST_UNFINISHED);
    case_close(&c);
}

static void test_suspects_message_in_hand_is_blamed_alone(void **state)
{
    (void)state;
    case_t c;
    admission_refusal_t refusal;
    open_running(&c, 2);
    for (int crash = 0; crash < 2; crash++) { /* its Submit never gets as far as the ledger */
        assert_false(scheduler_is_quarantined(c.scheduler, 9));
        scheduler_take_in_hand(c.scheduler, 9);
        restart(&c, true);
        assert_int_equal(suspects(&c), 0);
    }
    assert_true(scheduler_is_quarantined(c.scheduler, 9));
    assert_true(scheduler_record_once(c.scheduler, 9));
    assert_false(scheduler_record_once(c.scheduler, 9));
    assert_int_equal(case_submit_as(&c, 9, 5, (request_sampling_t){.max_tokens = 5}, &refusal), SCHEDULER_REFUSED);
    assert_int_equal(refusal.status, 500);
    restart(&c, false);
    assert_true(scheduler_is_quarantined(c.scheduler, 9));
    case_close(&c);
}

static void test_suspects_memory_that_crashes_twice_over_one_lease(void **state)
{
    (void)state;
    case_t c;
    open_running(&c, 2);
    case_submit(&c, 7, 5, 5);
    case_traffic(&c);
    assert_int_equal(c.traffic.leases[0].sequence, 7);
    scheduler_memory_lost(c.scheduler);
    scheduler_peer_crashed(c.scheduler, SUSPECTS_MEMORY);
    assert_int_equal(guilty(&c), 0);
    assert_int_equal(case_request(&c, 7)->crashes, 1);
    case_up(&c);
    case_traffic(&c);
    assert_int_equal(c.traffic.lease_count, 1); /* it asks apart */
    assert_int_equal(c.traffic.leases[0].sequence, 7);
    scheduler_memory_lost(c.scheduler);
    scheduler_peer_crashed(c.scheduler, SUSPECTS_MEMORY);
    assert_int_equal(guilty(&c), 7);
    case_close(&c);
}

static void test_suspects_who_runs_behind_a_step_that_was_given_up_was_not_alone(void **state)
{
    (void)state;
    case_t c;
    open_running(&c, 1);
    answer_all(&c);
    assert_true(case_plan(&c));
    scheduler_renew(c.scheduler); /* compute lives, and may be at it */
    assert_true(case_plan(&c));
    compute_ends(&c, true);
    assert_int_equal(suspects(&c), 1);
    assert_int_equal(case_request(&c, 1)->crashes, 0);
    assert_int_equal(guilty(&c), 0);
    assert_true(case_plan(&c));
    compute_ends(&c, true);
    assert_int_equal(guilty(&c), 1); /* now it was, and a suspect before */
    case_close(&c);
}

static void test_suspects_who_leases_behind_a_lease_that_was_left_was_not_alone(void **state)
{
    (void)state;
    case_t c;
    open_running(&c, 1);
    case_submit(&c, 7, 5, 5);
    case_traffic(&c);
    assert_int_equal(c.traffic.leases[0].sequence, 7);
    scheduler_cancel(c.scheduler, 7, REQUEST_CANCELLED);
    case_traffic(&c);
    assert_int_equal(c.traffic.release_count, 1);
    case_submit(&c, 8, 5, 5);
    case_traffic(&c);
    assert_int_equal(c.traffic.leases[0].sequence, 8);
    scheduler_memory_lost(c.scheduler);
    scheduler_peer_crashed(c.scheduler, SUSPECTS_MEMORY);
    assert_int_equal(case_request(&c, 8)->crashes, 0);
    assert_int_equal(suspects(&c), 1);
    case_close(&c);
}

static void test_suspects_an_answer_that_does_not_fit_begins_a_new_session(void **state)
{
    (void)state;
    case_t c;
    const batch_step_t *step;
    open_running(&c, 2);
    for (int fault = 0; fault < 2; fault++) {
        batch_result_t nonsense = {.step = scheduler_batch(c.scheduler)->steps[0].step};
        assert_int_equal(scheduler_result(c.scheduler, &nonsense, ++c.now_ns, &step), QN_ERR_PEER);
        scheduler_compute_failed(c.scheduler);
        assert_true(case_plan(&c));
        assert_true(c.plan.opens);
        assert_int_equal(c.plan.run_count, 1);
    }
    assert_true(guilty(&c) > 0); /* two nonsensical answers; the other one goes on */
    assert_int_equal(suspects(&c), 1);
    answer_all(&c);
    case_plan(&c);
    answer_all(&c);
    case_traffic(&c);
    assert_int_equal(suspects(&c), 0);
    case_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_suspects_after_a_kill_there_are_none),
        cmocka_unit_test(test_suspects_run_one_at_a_time_until_they_have_proven_what_they_ran),
        cmocka_unit_test(test_suspects_who_was_alone_at_the_second_crash_is_quarantined),
        cmocka_unit_test(test_suspects_a_request_alone_in_the_engine_takes_two_crashes),
        cmocka_unit_test(test_suspects_before_compute_answered_nobody_was_alone),
        cmocka_unit_test(test_suspects_a_cancelled_request_may_have_been_it),
        cmocka_unit_test(test_suspects_survive_the_scheduler),
        cmocka_unit_test(test_suspects_of_a_scheduler_crash_are_those_that_held_slots),
        cmocka_unit_test(test_suspects_message_in_hand_is_blamed_alone),
        cmocka_unit_test(test_suspects_memory_that_crashes_twice_over_one_lease),
        cmocka_unit_test(test_suspects_who_runs_behind_a_step_that_was_given_up_was_not_alone),
        cmocka_unit_test(test_suspects_who_leases_behind_a_lease_that_was_left_was_not_alone),
        cmocka_unit_test(test_suspects_an_answer_that_does_not_fit_begins_a_new_session),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
