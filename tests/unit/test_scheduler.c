/* Units of services/scheduler/scheduler.c: requests before the model, bounds, clients that come and go, restarts. */
#include "common/name_hash.h"
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

static void restart(case_t *c)
{
    ledger_replay_t replay;
    scheduler_destroy(&c->scheduler);
    assert_int_equal(scheduler_create(&c->options, ++c->now_ns, &c->scheduler, &replay), QN_OK);
    case_up(c);
}

static scheduler_submit_outcome_t submit_for(case_t *c, uint64_t id, uint32_t epoch, admission_refusal_t *ret_refusal)
{
    uint32_t ids[5] = {10, 11, 12, 13, 14}; /* as case_submit's */
    ledger_submission_t submission = {.id = id,
                                      .client = {.epoch = epoch, .service = 2},
                                      .sampling = {.max_tokens = 9, .repetition_penalty = 1},
                                      .prompt_ids = ids,
                                      .prompt_tokens = 5};
    return scheduler_submit(c->scheduler, &submission, c->now_ns, ret_refusal);
}

/* The clock of an orphan runs from the first moment without a client, over the deaths of the scheduler since. */
static void test_scheduler_orphans_clock_is_not_started_again_by_another_death(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options);
    case_up(&c);
    case_submit(&c, 1, 5, 9);
    uint64_t gone_ns = c.now_ns;
    scheduler_client_gone(c.scheduler, case_client, gone_ns);
    for (int death = 0; death < 3; death++) {
        c.now_ns += SCHEDULER_ORPHAN_NS / 4;
        restart(&c);
        assert_int_equal(case_request(&c, 1)->orphaned_ns, gone_ns);
        assert_true(scheduler_tidy(c.scheduler, c.now_ns) == gone_ns + SCHEDULER_ORPHAN_NS);
    }
    scheduler_tidy(c.scheduler, gone_ns + SCHEDULER_ORPHAN_NS);
    assert_null(case_request(&c, 1));
    case_close(&c);
}

/* One that had a client when the scheduler died has it again as soon as that client shows. */
static void test_scheduler_restart_with_the_client_alive_leaves_no_orphan(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options);
    case_up(&c);
    case_submit(&c, 1, 5, 9);
    restart(&c);
    assert_true(request_is_orphan(case_request(&c, 1)));
    scheduler_client_up(c.scheduler, case_client);
    assert_false(request_is_orphan(case_request(&c, 1)));
    assert_true(scheduler_tidy(c.scheduler, c.now_ns + 2 * SCHEDULER_ORPHAN_NS) == UINT64_MAX);
    assert_non_null(case_request(&c, 1));
    case_close(&c);
}

static void test_scheduler_orphans_yield_slots_to_who_has_a_client(void **state)
{
    (void)state;
    scheduler_options_t with = options;
    with.max_sequences = 2;
    case_t c;
    case_open(&c, with);
    case_up(&c);
    case_submit(&c, 1, 5, 9);
    case_submit(&c, 2, 5, 9);
    case_lease_all(&c);
    assert_true(case_plan(&c));
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    scheduler_client_gone(c.scheduler, case_client, c.now_ns);
    case_traffic(&c);
    assert_int_equal(case_sequence(&c, 1)->phase, SEQUENCE_RUNNING); /* nobody else wants the slots */
    assert_int_equal(case_sequence(&c, 2)->phase, SEQUENCE_RUNNING);
    admission_refusal_t refusal;
    assert_int_equal(submit_for(&c, 3, 9, &refusal), SCHEDULER_ACCEPTED);
    case_lease_all(&c);
    assert_int_equal(case_sequence(&c, 3)->phase, SEQUENCE_RUNNING); /* in the same turn */
    assert_int_equal(case_sequence(&c, 1)->phase, SEQUENCE_RUNNING); /* the last to arrive gave way */
    assert_int_not_equal(case_sequence(&c, 2)->phase, SEQUENCE_RUNNING);
    assert_int_equal(case_request(&c, 2)->preemptions, 1);
    /* Its client comes back: it goes on where it was. */
    assert_int_equal(submit_for(&c, 2, 10, &refusal), SCHEDULER_RESUMED);
    case_lease_all(&c); /* gives back what it held */
    case_lease_all(&c);
    assert_int_equal(case_sequence(&c, 2)->phase, SEQUENCE_RUNNING);
    assert_int_not_equal(case_sequence(&c, 1)->phase, SEQUENCE_RUNNING); /* the other orphan's */
    assert_int_equal(case_request(&c, 2)->generated_tokens, 1);
    case_close(&c);
}

static void test_scheduler_full_queue_ends_an_old_orphan_for_who_is_there(void **state)
{
    (void)state;
    scheduler_options_t with = options;
    with.queue_limit = 2;
    case_t c;
    case_open(&c, with);
    case_up(&c);
    case_submit(&c, 1, 5, 9);
    case_submit(&c, 2, 5, 9);
    scheduler_client_gone(c.scheduler, case_client, c.now_ns);
    admission_refusal_t refusal;
    assert_int_equal(submit_for(&c, 3, 9, &refusal), SCHEDULER_REFUSED); /* its client may just be starting again */
    assert_int_equal(refusal.status, 429);
    c.now_ns += SCHEDULER_ORPHAN_OLD_NS;
    assert_int_equal(submit_for(&c, 3, 9, &refusal), SCHEDULER_ACCEPTED);
    scheduler_tidy(c.scheduler, c.now_ns);
    assert_null(case_request(&c, 1));
    assert_non_null(case_request(&c, 2));
    case_close(&c);
}

/* Its client left while no scheduler was there to be told: what the tokenizer submits no more, nobody waits for. */
static void test_scheduler_what_its_client_does_not_submit_again_is_cancelled(void **state)
{
    (void)state;
    scheduler_options_t with = options;
    with.queue_limit = 8;
    case_t c;
    case_open(&c, with);
    case_up(&c);
    admission_refusal_t refusal;
    case_submit(&c, 1, 5, 9);
    case_submit(&c, 2, 5, 9);
    assert_int_equal(submit_for(&c, 3, 9, &refusal), SCHEDULER_ACCEPTED); /* of another tokenizer, not back yet */
    restart(&c);
    scheduler_client_up(c.scheduler, case_client);
    request_sampling_t sampling = {.max_tokens = 9};
    assert_int_equal(case_submit_as(&c, 2, 5, sampling, &refusal), SCHEDULER_RESUMED);
    case_submit(&c, 4, 5, 9);
    scheduler_client_replayed(c.scheduler, case_client);
    scheduler_tidy(c.scheduler, c.now_ns);
    assert_null(case_request(&c, 1));
    assert_int_equal(case_request(&c, 2)->finish, REQUEST_UNFINISHED);
    assert_int_equal(case_request(&c, 3)->finish, REQUEST_UNFINISHED);
    assert_int_equal(case_request(&c, 4)->finish, REQUEST_UNFINISHED);
    scheduler_client_replayed(c.scheduler, case_client); /* said again, it says nothing new */
    assert_int_equal(case_request(&c, 2)->finish, REQUEST_UNFINISHED);
    case_close(&c);
}

/* A forged or confused client used an id: whoever has it next gets the answer to its own prompt. */
static void test_scheduler_same_id_with_another_prompt_is_another_request(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options);
    case_up(&c);
    admission_refusal_t refusal;
    case_submit(&c, 1, 7, 9); /* waits */
    assert_int_equal(submit_for(&c, 1, 9, &refusal), SCHEDULER_ACCEPTED);
    assert_int_equal(case_request(&c, 1)->prompt_tokens, 5);
    assert_int_equal(submit_for(&c, 1, 9, &refusal), SCHEDULER_RESUMED);
    case_lease_all(&c);
    assert_true(case_plan(&c));
    request_sampling_t sampling = {.max_tokens = 9};
    assert_int_equal(case_submit_as(&c, 1, 7, sampling, &refusal), SCHEDULER_REFUSED); /* it runs: once it has ended */
    assert_int_equal(refusal.status, 503);
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    case_traffic(&c);
    scheduler_tidy(c.scheduler, c.now_ns);
    assert_int_equal(case_submit_as(&c, 1, 7, sampling, &refusal), SCHEDULER_ACCEPTED);
    assert_int_equal(case_request(&c, 1)->prompt_tokens, 7);
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

static void bad_admit(const qn_policy_memory_t *memory, const qn_policy_view_t *view, uint32_t most,
                      qn_policy_admit_t *ret_admit)
{
    (void)memory, (void)view, (void)most;
    ret_admit->count = 1;
    ret_admit->admissions[0].id = 4711;
}

static void test_scheduler_policy_that_breaks_a_rule_is_withdrawn_and_nobody_waits_for_it(void **state)
{
    (void)state;
    qn_policy_t bad = policy_fcfs;
    bad.head.name = "bad";
    bad.admit = bad_admit;
    scheduler_options_t with = options;
    with.policy_functions = &bad;
    case_t c;
    case_open(&c, with);
    case_up(&c);
    case_submit(&c, 1, 5, 9);
    case_traffic(&c);
    assert_int_equal(c.traffic.lease_count, 1); /* the one before it decided in its place */
    assert_string_equal(scheduler_policy_name(c.scheduler), "fcfs");
    assert_non_null(strstr(scheduler_policy_withdrawn(c.scheduler), "policy bad"));
    assert_non_null(strstr(scheduler_policy_withdrawn(c.scheduler), "4711"));
    case_close(&c);
}

static qn_policy_seat_t *seat_of(const case_t *c, qn_policy_kind_t kind)
{
    return policies_seat(scheduler_policies(c->scheduler), kind);
}

static void test_scheduler_what_was_chosen_live_outlives_it_unless_the_configuration_says_another_word(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options);
    assert_int_equal(qn_policy_seat_set(seat_of(&c, QN_POLICY_SCHEDULING), "fair"), QN_OK);
    assert_int_equal(qn_policy_seat_set_shadow(seat_of(&c, QN_POLICY_SCHEDULING), "priority"), QN_OK);
    assert_int_equal(qn_policy_seat_set(seat_of(&c, QN_POLICY_ADMISSION), "user_share"), QN_OK);
    for (int life = 0; life < 3; life++) {
        scheduler_destroy(&c.scheduler);
        ledger_replay_t replay;
        if (life == 2) c.options.policy = "shortest_job";
        assert_int_equal(scheduler_create(&c.options, 1, &c.scheduler, &replay), QN_OK);
        assert_string_equal(scheduler_policy_name(c.scheduler), life == 2 ? "shortest_job" : "fair");
        assert_int_equal(qn_policy_seat_shadow(seat_of(&c, QN_POLICY_SCHEDULING)) != NULL, life < 2);
        assert_string_equal(qn_policy_seat_name(seat_of(&c, QN_POLICY_ADMISSION)), "user_share");
    }
    case_close(&c);
}

/* However often somebody chooses, every plan is there when it would have been: no step waits for a switch. */
static void test_scheduler_switches_between_steps_delay_no_plan(void **state)
{
    (void)state;
    static const char *const names[] = {"fcfs", "priority", "shortest_job", "prefix", "fair"};
    uint64_t steps[2], generated[2];
    for (int switches = 0; switches < 2; switches++) {
        case_t c;
        case_open(&c, options);
        case_up(&c);
        for (uint64_t id = 1; id <= 3; id++)
            case_submit(&c, id, 9, 9);
        case_lease_all(&c);
        for (steps[switches] = 0; case_plan(&c); steps[switches]++) { /* a plan for every result, none is missing */
            if (switches)
                assert_int_equal(qn_policy_seat_set(seat_of(&c, QN_POLICY_SCHEDULING), names[steps[1] % 5]), QN_OK);
            assert_int_equal(case_result(&c, 7, false), QN_OK);
            case_lease_all(&c);
            if (c.traffic.lookup_count == 0) continue;
            plan_prefix_hit_t none = {.sequence = c.traffic.lookups[0].sequence};
            scheduler_prefix_hits(c.scheduler, c.traffic.lookup_batch, &none, 1);
            case_lease_all(&c);
        }
        generated[switches] = 0;
        for (uint64_t id = 1; id <= 3; id++)
            generated[switches] += case_request(&c, id)->generated_tokens;
        case_close(&c);
    }
    assert_int_equal(steps[0], steps[1]);
    assert_int_equal(generated[0], 27);
    assert_int_equal(generated[1], 27);
}

static void test_scheduler_admission_is_asked_of_new_requests_only(void **state)
{
    (void)state;
    scheduler_options_t with = options;
    with.queue_limit = 4;
    with.admission = "user_share";
    for (int replayed = 0; replayed < 2; replayed++) {
        case_t c;
        admission_refusal_t refusal;
        request_sampling_t sampling = {.max_tokens = 4, .repetition_penalty = 1};
        uint32_t ids[3] = {10, 11, 12};
        case_open(&c, with);
        scheduler_client_up(c.scheduler, case_client);
        if (replayed) scheduler_client_replayed(c.scheduler, case_client);
        uint64_t users[4] = {7, 7, 8, 7}; /* two users: two of four places for each */
        for (uint32_t i = 0; i < 4; i++) {
            ledger_submission_t submission = {.id = i + 1,
                                              .client = case_client,
                                              .sampling = sampling,
                                              .prompt_ids = ids,
                                              .prompt_tokens = 3,
                                              .user = users[i],
                                              .user_name = users[i] == 7 ? "ada" : "bob"};
            bool refused = replayed && i == 3;
            assert_int_equal(scheduler_submit(c.scheduler, &submission, 1, &refusal),
                             refused ? SCHEDULER_REFUSED : SCHEDULER_ACCEPTED);
            if (refused) {
                assert_int_equal(refusal.status, 429);
                assert_int_equal(refusal.retry_after_ms, 1000);
                assert_non_null(strstr(refusal.text, "ada"));
            }
        }
        case_close(&c);
    }
}

static void test_scheduler_another_model_is_refused_by_name(void **state)
{
    (void)state;
    case_t c;
    admission_refusal_t refusal;
    uint32_t ids[3] = {10, 11, 12};
    case_open(&c, options);
    scheduler_model_t model = {
        .name = "tiny", .vocab_size = 1000, .max_model_len = 64, .block_tokens = 4, .block_count = 64};
    assert_int_equal(scheduler_memory_up(c.scheduler, &model), QN_OK);
    ledger_submission_t submission = {.id = 1,
                                      .client = case_client,
                                      .sampling = {.max_tokens = 4, .repetition_penalty = 1},
                                      .prompt_ids = ids,
                                      .prompt_tokens = 3,
                                      .model = qn_name_hash(qn_text("tiny"))};
    assert_int_equal(scheduler_submit(c.scheduler, &submission, 1, &refusal), SCHEDULER_ACCEPTED);
    submission.id = 2;
    submission.model = qn_name_hash(qn_text("huge"));
    assert_int_equal(scheduler_submit(c.scheduler, &submission, 1, &refusal), SCHEDULER_REFUSED);
    assert_int_equal(refusal.status, 404);
    assert_string_equal(refusal.param, "model");
    case_close(&c);
}

static void test_scheduler_prefixes_are_looked_up_once_and_only_for_a_policy_that_wants_them(void **state)
{
    (void)state;
    case_t c;
    scheduler_options_t with = options;
    with.max_sequences = 1;
    case_open(&c, with);
    case_up(&c);
    for (uint64_t id = 1; id <= 3; id++)
        case_submit(&c, id, 9, 9);
    case_lease_all(&c);
    case_traffic(&c);
    assert_int_equal(c.traffic.lookup_count, 0);
    assert_int_equal(qn_policy_seat_set(seat_of(&c, QN_POLICY_SCHEDULING), "prefix"), QN_OK);
    case_traffic(&c);
    assert_int_equal(c.traffic.lookup_count, 2); /* who runs is not asked about */
    assert_int_equal(c.traffic.lookups[1].sequence, 3);
    assert_int_equal(c.traffic.lookups[1].ids_count, 9);
    uint64_t batch = c.traffic.lookup_batch;
    plan_prefix_hit_t hits[2] = {{.sequence = 2, .tokens = 0}, {.sequence = 3, .tokens = 8}};
    case_traffic(&c);
    assert_int_equal(c.traffic.lookup_count, 0); /* one question at a time */
    scheduler_prefix_hits(c.scheduler, batch, hits, 2);
    case_traffic(&c);
    assert_int_equal(c.traffic.lookup_count, 0);
    scheduler_cancel(c.scheduler, 1, REQUEST_CANCELLED);
    case_traffic(&c);
    assert_int_equal(c.traffic.lease_count, 1);
    assert_int_equal(c.traffic.leases[0].sequence, 3); /* before 2, which came first */
    const planner_decision_t *decision = scheduler_decision(c.scheduler, 3, 0);
    assert_string_equal(decision->policy, "prefix");
    assert_non_null(strstr(decision->reason, "8 of its 9"));
    assert_null(scheduler_decision(c.scheduler, 2, 0));
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
        cmocka_unit_test(test_scheduler_orphans_clock_is_not_started_again_by_another_death),
        cmocka_unit_test(test_scheduler_restart_with_the_client_alive_leaves_no_orphan),
        cmocka_unit_test(test_scheduler_orphans_yield_slots_to_who_has_a_client),
        cmocka_unit_test(test_scheduler_full_queue_ends_an_old_orphan_for_who_is_there),
        cmocka_unit_test(test_scheduler_what_its_client_does_not_submit_again_is_cancelled),
        cmocka_unit_test(test_scheduler_same_id_with_another_prompt_is_another_request),
        cmocka_unit_test(test_scheduler_drain_refuses_new_and_may_cancel_the_waiting),
        cmocka_unit_test(test_scheduler_policy_that_breaks_a_rule_is_withdrawn_and_nobody_waits_for_it),
        cmocka_unit_test(test_scheduler_what_was_chosen_live_outlives_it_unless_the_configuration_says_another_word),
        cmocka_unit_test(test_scheduler_switches_between_steps_delay_no_plan),
        cmocka_unit_test(test_scheduler_admission_is_asked_of_new_requests_only),
        cmocka_unit_test(test_scheduler_another_model_is_refused_by_name),
        cmocka_unit_test(test_scheduler_prefixes_are_looked_up_once_and_only_for_a_policy_that_wants_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
