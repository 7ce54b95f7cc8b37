/* Units of services/scheduler/batch/batch.c: what peers say is checked, stale answers are ignored, ends are found. */
#include <math.h>

#include "tests/unit/scheduler_case.h"

static const scheduler_options_t options = {.planner = {.max_step_tokens = 32,
                                                        .prefill_chunk_tokens = 32,
                                                        .lookahead = 1},
                                            .max_sequences = 2,
                                            .queue_limit = 8};

/* Request 1 of 5 tokens runs; its first plan is out. */
static void open_running(case_t *self)
{
    case_open(self, options);
    case_up(self);
    case_submit(self, 1, 5, 9);
    case_lease_all(self);
    assert_true(case_plan(self));
}

static qn_err_t give(case_t *self, batch_result_t result)
{
    const batch_step_t *done;
    return scheduler_result(self->scheduler, &result, ++self->now_ns, &done);
}

static void test_batch_result_that_does_not_fit_its_plan_is_refused(void **state)
{
    (void)state;
    const batch_token_t good = {.request = 1, .slot = 0, .position = 5, .id = 7};
    batch_token_t bad[7] = {good, good, good, good, good, good, good};
    bad[0].request = 2;
    bad[1].slot = 1;
    bad[2].slot = 99;
    bad[3].position = 4;
    bad[4].top_count = 1; /* and no alternative */
    bad[5].id = 1000;     /* the vocabulary ends there */
    bad[6].logprob = NAN;
    for (size_t i = 0; i < 7; i++) {
        case_t c;
        open_running(&c);
        assert_int_equal(give(&c, (batch_result_t){.step = 1, .tokens = &bad[i], .token_count = 1}), QN_ERR_PEER);
        case_close(&c);
    }
    case_t c;
    open_running(&c);
    batch_token_t twice[2] = {good, good};
    assert_int_equal(give(&c, (batch_result_t){.step = 2, .tokens = &good, .token_count = 1}), QN_ERR_PEER);
    assert_int_equal(give(&c, (batch_result_t){.step = 1}), QN_ERR_PEER);
    assert_int_equal(give(&c, (batch_result_t){.step = 1, .tokens = twice, .token_count = 2}), QN_ERR_PEER);
    batch_prompt_token_t score = {.request = 1, .position = 1};
    assert_int_equal(case_request(&c, 1)->generated_tokens, 0);
    assert_int_equal(give(&c, (batch_result_t){.step = 1, .tokens = &good, .token_count = 1}), QN_OK);
    assert_int_equal(case_request(&c, 1)->generated_tokens, 1);
    assert_true(case_plan(&c));
    batch_token_t masked = {.request = 1, .slot = 0, .masked = true};
    assert_int_equal(give(&c, (batch_result_t){.step = 2, .tokens = &masked, .token_count = 1}),
                     QN_ERR_PEER); /* it lives */
    case_close(&c);
    open_running(&c); /* scores nobody asked for */
    assert_int_equal(
        give(&c, (batch_result_t){.step = 1, .tokens = &good, .token_count = 1, .prompt = &score, .prompt_count = 1}),
        QN_ERR_PEER);
    case_close(&c);
}

/* Two prompts of 10 and 9 tokens with scores run in chunks of 4, both in each step. */
static void open_scoring(case_t *self)
{
    scheduler_options_t chunked = options;
    chunked.planner.prefill_chunk_tokens = 4;
    chunked.planner.lookahead = 0;
    request_sampling_t sampling = {.max_tokens = 1, .prompt_logprobs = 1};
    admission_refusal_t refusal;
    case_open(self, chunked);
    case_up(self);
    assert_int_equal(case_submit_as(self, 1, 10, sampling, &refusal), SCHEDULER_ACCEPTED);
    assert_int_equal(case_submit_as(self, 2, 9, sampling, &refusal), SCHEDULER_ACCEPTED);
    case_lease_all(self);
    assert_true(case_plan(self));
    assert_int_equal(self->plan.run_count, 2);
}

/* Gives the scores of the oldest step in one of several orders. */
static qn_err_t give_scores(case_t *self, uint32_t order)
{
    batch_prompt_token_t turned[64];
    const batch_step_t *step = &scheduler_batch(self->scheduler)->steps[0];
    uint32_t count = case_scores(self, step, turned);
    for (uint32_t i = count; i > 1; i--) {
        uint32_t other = (i * 7 + order * 5) % i;
        batch_prompt_token_t one = turned[i - 1];
        turned[i - 1] = turned[other];
        turned[other] = one;
    }
    batch_token_t tokens[2];
    uint32_t token_count = 0;
    for (uint32_t i = 0; i < step->run_count; i++)
        if (step->runs[i].sample)
            tokens[token_count++] =
                (batch_token_t){.request = scheduler_batch(self->scheduler)->sequences[step->runs[i].index].request->id,
                                .slot = step->runs[i].slot,
                                .position = step->runs[i].position + step->runs[i].token_count,
                                .id = 7};
    return give(self, (batch_result_t){.step = step->step,
                                       .tokens = tokens,
                                       .token_count = token_count,
                                       .prompt = turned,
                                       .prompt_count = count});
}

static void test_batch_prompt_scores_of_several_prompts_come_in_any_order(void **state)
{
    (void)state;
    for (uint32_t order = 0; order < 12; order++) {
        case_t c;
        open_scoring(&c);
        for (int step = 0; step < 3; step++) {
            assert_int_equal(give_scores(&c, order), QN_OK);
            assert_int_equal(case_request(&c, 1)->prompt.known, step == 2 ? 10 : 4 * (step + 1));
            assert_int_equal(case_plan(&c), step < 2);
        }
        for (uint64_t id = 1; id <= 2; id++) {
            const request_t *request = case_request(&c, id);
            assert_int_equal(request->prompt.known, request->prompt_tokens);
            for (uint32_t at = 1; at < request->prompt_tokens; at++)
                assert_true(request->prompt.logprobs[at] == -(float)at);
            assert_int_equal(request->finish, REQUEST_LENGTH);
        }
        case_close(&c);
    }
}

static void test_batch_prompt_scores_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    const struct {
        const char *what;
        batch_prompt_token_t score;
        uint32_t at, count; /* replaces this one; how many are given */
    } table[] = {
        {"one is missing", {.request = 2, .position = 3, .id = 13}, 5, 5},
        {"one comes twice", {.request = 1, .position = 1, .id = 11}, 1, 6},
        {"of a request that is not there", {.request = 3, .position = 1, .id = 11}, 0, 6},
        {"of the first token", {.request = 1, .position = 0, .id = 10}, 0, 6},
        {"past what was run", {.request = 1, .position = 4, .id = 14}, 0, 6},
        {"past the prompt", {.request = 1, .position = 4000000000u, .id = 14}, 0, 6},
        {"of another token", {.request = 1, .position = 1, .id = 12}, 0, 6},
        {"not a number", {.request = 1, .position = 1, .id = 11, .logprob = NAN}, 0, 6},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        case_t c;
        batch_prompt_token_t scores[64];
        open_scoring(&c);
        assert_int_equal(case_scores(&c, &scheduler_batch(c.scheduler)->steps[0], scores), 6);
        scores[table[i].at] = table[i].score;
        if (give(&c, (batch_result_t){.step = 1, .prompt = scores, .prompt_count = table[i].count}) != QN_ERR_PEER)
            fail_msg("%s: taken", table[i].what);
        assert_int_equal(case_request(&c, 1)->prompt.known, 1);
        assert_int_equal(give_scores(&c, 0), QN_OK); /* nothing was changed by it */
        case_close(&c);
    }
}

static void test_batch_result_of_a_voided_step_is_ignored(void **state)
{
    (void)state;
    case_t c;
    open_running(&c);
    batch_token_t token = {.request = 1, .slot = 0, .position = 5, .id = 7};
    scheduler_compute_lost(c.scheduler);
    scheduler_compute_up(c.scheduler);
    assert_int_equal(give(&c, (batch_result_t){.step = 1, .tokens = &token, .token_count = 1}), QN_OK);
    assert_int_equal(case_request(&c, 1)->generated_tokens, 0);
    assert_true(case_plan(&c));
    assert_int_equal(c.plan.step, 2);
    assert_int_equal(give(&c, (batch_result_t){.step = 2, .tokens = &token, .token_count = 1}), QN_OK);
    assert_int_equal(case_request(&c, 1)->generated_tokens, 1);
    case_close(&c);
}

static void test_batch_grant_that_does_not_fit_its_lease_is_given_back(void **state)
{
    (void)state;
    uint32_t blocks[20] = {0};
    blocks[3] = 64; /* there are 64 */
    const struct {
        uint32_t first, count, cached;
        bool fits;
    } table[] = {
        {0, 3, 0, true},   {0, 3, 4, true},  {0, 2, 0, false}, {1, 3, 0, false},
        {0, 17, 0, false}, {0, 4, 0, false}, {0, 3, 3, false}, {0, 3, 8, false},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        case_t c;
        case_open(&c, options);
        case_up(&c);
        case_submit(&c, 1, 5, 6); /* run limit 10: three blocks */
        case_traffic(&c);
        assert_int_equal(c.traffic.leases[0].tokens, 10);
        batch_grant_t grant = {.lease_batch = c.traffic.lease_batch,
                               .sequence = 1,
                               .first_block = table[i].first,
                               .block_count = table[i].count,
                               .cached_tokens = table[i].cached,
                               .blocks = blocks};
        assert_int_equal(scheduler_grant(c.scheduler, &grant, 1, 0), table[i].fits ? 0 : 1);
        if (!table[i].fits) { /* once more, and it is ended */
            case_traffic(&c);
            assert_int_equal(c.traffic.release_count, 1);
            case_traffic(&c);
            assert_int_equal(c.traffic.lease_count, 1);
            grant.lease_batch = c.traffic.lease_batch;
            assert_int_equal(scheduler_grant(c.scheduler, &grant, 1, 0), 1);
            assert_int_equal(case_request(&c, 1)->finish, REQUEST_ERROR);
        }
        case_close(&c);
    }
}

static void test_batch_grant_of_another_batch_or_request_is_ignored(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options);
    case_up(&c);
    case_submit(&c, 1, 5, 6);
    case_traffic(&c);
    uint32_t blocks[3] = {1, 2, 3};
    batch_grant_t grant = {.lease_batch = c.traffic.lease_batch + 1, .sequence = 1, .block_count = 3, .blocks = blocks};
    assert_int_equal(scheduler_grant(c.scheduler, &grant, 1, 0), QN_OK);
    assert_int_equal(case_sequence(&c, 1)->phase, SEQUENCE_LEASING);
    grant.sequence = 77;
    grant.lease_batch--;
    assert_int_equal(scheduler_grant(c.scheduler, &grant, 1, 0), QN_OK);
    grant.sequence = 1;
    assert_int_equal(scheduler_grant(c.scheduler, &grant, 1, 0), QN_OK);
    assert_int_equal(case_sequence(&c, 1)->phase, SEQUENCE_RUNNING);
    assert_int_equal(scheduler_grant(c.scheduler, &grant, 1, 0), QN_OK); /* again: nobody waits for it */
    assert_int_equal(case_sequence(&c, 1)->block_count, 3);
    case_close(&c);
}

static void test_batch_grant_unknown_or_already_open_gives_back_and_asks_anew(void **state)
{
    (void)state;
    for (int outcome = BATCH_UNKNOWN; outcome <= BATCH_ALREADY_OPEN; outcome++) {
        case_t c;
        case_open(&c, options);
        case_up(&c);
        case_submit(&c, 1, 5, 6);
        case_traffic(&c);
        case_grant(&c, &c.traffic.leases[0], c.traffic.lease_batch, (batch_grant_outcome_t)outcome, 0);
        case_traffic(&c);
        assert_int_equal(c.traffic.release_count, 1);
        assert_int_equal(c.traffic.lease_count, 1);
        assert_true(c.traffic.leases[0].open);
        case_close(&c);
    }
}

static void test_batch_cancel_in_every_phase_returns_blocks_once(void **state)
{
    (void)state;
    for (int phase = 0; phase < 4; phase++) { /* waiting, leasing, running, with a step without a result */
        case_t c;
        case_open(&c, options);
        case_up(&c);
        case_submit(&c, 1, 5, 6);
        if (phase >= 1) case_traffic(&c);
        if (phase >= 2) case_grant(&c, &c.traffic.leases[0], c.traffic.lease_batch, BATCH_GRANTED, 0);
        if (phase >= 3) assert_true(case_plan(&c));
        scheduler_cancel(c.scheduler, 1, REQUEST_CANCELLED);
        scheduler_cancel(c.scheduler, 1, REQUEST_STOP); /* too late */
        case_traffic(&c);
        assert_int_equal(c.traffic.release_count, phase == 1 || phase == 2);
        assert_int_equal(c.traffic.lease_count, 0);
        if (phase == 3) {
            assert_int_equal(case_result(&c, 500, false), QN_OK);
            case_traffic(&c);
            assert_int_equal(c.traffic.release_count, 1);
        }
        assert_int_equal(case_request(&c, 1)->finish, REQUEST_CANCELLED);
        assert_int_equal(case_request(&c, 1)->generated_tokens, 0);
        case_close(&c);
    }
}

static void test_batch_slot_is_used_again_before_its_last_step_has_a_result(void **state)
{
    (void)state;
    case_t c;
    scheduler_options_t one = options;
    one.max_sequences = 1;
    case_open(&c, one);
    case_up(&c);
    case_submit(&c, 1, 5, 6);
    case_lease_all(&c);
    assert_true(case_plan(&c));
    case_submit(&c, 2, 5, 6);
    scheduler_cancel(c.scheduler, 1, REQUEST_CANCELLED);
    case_lease_all(&c);
    assert_true(case_plan(&c)); /* in the same plan: slot 0 is retired, then set */
    assert_int_equal(c.plan.retire_count, 1);
    assert_int_equal(c.plan.set_count, 1);
    assert_int_equal(c.plan.sets[0].request->id, 2);
    assert_int_equal(case_result(&c, 500, false), QN_OK); /* of request 1: nobody cares */
    assert_int_equal(case_result(&c, 501, false), QN_OK);
    assert_int_equal(case_request(&c, 2)->ids[5], 501);
    case_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_result_that_does_not_fit_its_plan_is_refused),
        cmocka_unit_test(test_batch_prompt_scores_of_several_prompts_come_in_any_order),
        cmocka_unit_test(test_batch_prompt_scores_that_do_not_fit_are_refused),
        cmocka_unit_test(test_batch_result_of_a_voided_step_is_ignored),
        cmocka_unit_test(test_batch_grant_that_does_not_fit_its_lease_is_given_back),
        cmocka_unit_test(test_batch_grant_of_another_batch_or_request_is_ignored),
        cmocka_unit_test(test_batch_grant_unknown_or_already_open_gives_back_and_asks_anew),
        cmocka_unit_test(test_batch_cancel_in_every_phase_returns_blocks_once),
        cmocka_unit_test(test_batch_slot_is_used_again_before_its_last_step_has_a_result),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
