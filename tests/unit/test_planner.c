/* Units of services/scheduler/planner*.c: what is planned, what is asked of memory. */
#include "tests/unit/scheduler_case.h"

static scheduler_options_t options(uint32_t slots, uint32_t step_tokens, uint32_t chunk, uint32_t lookahead)
{
    return (scheduler_options_t){.planner = {.max_step_tokens = step_tokens,
                                             .prefill_chunk_tokens = chunk,
                                             .lookahead = lookahead},
                                 .max_sequences = slots,
                                 .queue_limit = 16};
}

static void test_planner_create_options_out_of_range_refused(void **state)
{
    (void)state;
    const struct {
        uint32_t slots, step_tokens, chunk, lookahead;
        qn_err_t err;
    } table[] = {
        {4, 4, 1, 0, QN_OK},
        {4, 3, 1, 0, QN_ERR_CONFIG},
        {4, QN_STEP_TOKENS_MAX, 1, 1, QN_OK},
        {4, QN_STEP_TOKENS_MAX + 1, 1, 1, QN_ERR_CONFIG},
        {4, 4, 0, 0, QN_ERR_CONFIG},
        {4, 4, 1, 2, QN_ERR_CONFIG},
        {0, 4, 1, 0, QN_ERR_CONFIG},
        {QN_SLOTS_MAX + 1, 4096, 1, 0, QN_ERR_CONFIG},
    };
    uint8_t *mapping = calloc(1, 2 << 20);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        scheduler_options_t tried = options(table[i].slots, table[i].step_tokens, table[i].chunk, table[i].lookahead);
        tried.policy = "fcfs";
        tried.ledger_base = mapping;
        tried.ledger_bytes = 2 << 20;
        scheduler_t *scheduler = NULL;
        ledger_replay_t replay;
        assert_int_equal(scheduler_create(&tried, 0, &scheduler, &replay), table[i].err);
        scheduler_destroy(&scheduler);
    }
    free(mapping);
}

static void test_planner_prompt_runs_in_chunks_and_samples_once(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options(2, 16, 5, 0));
    case_up(&c);
    case_submit(&c, 1, 12, 4);
    assert_false(case_plan(&c)); /* no blocks yet */
    case_lease_all(&c);
    assert_int_equal(c.traffic.lease_count, 1);
    assert_true(c.traffic.leases[0].open);
    assert_int_equal(c.traffic.leases[0].ids_count, 12);
    assert_int_equal(c.traffic.leases[0].tokens, 15); /* its run limit */
    static const struct {
        uint32_t position, tokens;
        bool sample;
    } runs[] = {{0, 5, false}, {5, 5, false}, {10, 2, true}};
    for (size_t i = 0; i < 3; i++) {
        assert_true(case_plan(&c));
        assert_int_equal(c.plan.run_count, 1);
        assert_int_equal(c.plan.set_count, i == 0);
        assert_int_equal(c.plan.block_count, i == 0 ? 4 : 0);
        assert_int_equal(c.plan.runs[0].position, runs[i].position);
        assert_int_equal(c.plan.runs[0].token_count, runs[i].tokens);
        assert_int_equal(c.plan.runs[0].sample, runs[i].sample);
        assert_int_equal(c.plan.ids[c.plan.runs[0].ids_offset], 10 + runs[i].position);
        assert_false(case_plan(&c)); /* lookahead 0: one at a time */
        assert_int_equal(case_result(&c, 500, false), QN_OK);
    }
    assert_int_equal(case_request(&c, 1)->generated_tokens, 1);
    case_close(&c);
}

static void test_planner_lookahead_plans_a_decode_before_its_input_is_known(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options(2, 16, 16, 1));
    case_up(&c);
    case_submit(&c, 1, 3, 3);
    case_lease_all(&c);
    assert_true(case_plan(&c));
    assert_true(case_plan(&c));
    assert_true(c.plan.runs[0].from_slot && c.plan.runs[0].sample);
    assert_int_equal(c.plan.runs[0].position, 3);
    assert_int_equal(c.plan.id_count, 0);
    assert_false(case_plan(&c)); /* two are without a result */
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    assert_true(case_plan(&c)); /* token 2 of 3: the last run */
    assert_int_equal(case_result(&c, 501, false), QN_OK);
    assert_false(case_plan(&c)); /* never past max_tokens */
    assert_int_equal(case_result(&c, 502, false), QN_OK);
    assert_int_equal(case_request(&c, 1)->finish, REQUEST_LENGTH);
    case_close(&c);
}

static void test_planner_stop_masks_the_step_ahead_and_releases_after_it(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options(2, 16, 16, 1));
    case_up(&c);
    case_submit(&c, 1, 5, 9);
    case_lease_all(&c);
    assert_true(case_plan(&c));
    assert_int_equal(c.plan.stop_id_count, 1); /* the model's own */
    assert_int_equal(c.plan.stop_ids[0], 2);
    assert_true(case_plan(&c));
    assert_int_equal(case_result(&c, 2, true), QN_OK);
    assert_int_equal(case_request(&c, 1)->finish, REQUEST_STOP);
    case_traffic(&c);
    assert_int_equal(c.traffic.release_count, 0); /* the step ahead may still touch its blocks */
    assert_int_equal(c.traffic.commit_count, 1);
    assert_int_equal(c.traffic.commits[0].ids_count, 4);
    assert_int_equal(case_result(&c, 0, false), QN_OK);
    case_traffic(&c);
    assert_int_equal(c.traffic.release_count, 1);
    assert_int_equal(case_request(&c, 1)->generated_tokens, 1);
    case_close(&c);
}

static void test_planner_decodes_come_first_and_prompts_share_the_rest(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options(4, 10, 6, 0));
    case_up(&c);
    case_submit(&c, 1, 3, 9);
    case_lease_all(&c);
    assert_true(case_plan(&c));
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    case_submit(&c, 2, 20, 9);
    case_submit(&c, 3, 20, 9);
    case_lease_all(&c);
    assert_true(case_plan(&c));
    assert_int_equal(c.plan.run_count, 3);
    assert_int_equal(c.plan.runs[0].token_count, 1); /* the decode */
    assert_int_equal(c.plan.runs[1].token_count, 6); /* a chunk */
    assert_int_equal(c.plan.runs[2].token_count, 3); /* what is left of 10 */
    assert_int_equal(c.plan.token_count, 10);
    assert_true(c.plan.reason_count >= 2);
    case_close(&c);
}

static void test_planner_prefix_hit_is_not_run_again(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options(2, 32, 32, 0));
    case_up(&c);
    request_sampling_t sampling = {.max_tokens = 4, .repetition_penalty = 1.5f};
    admission_refusal_t refusal;
    assert_int_equal(case_submit_as(&c, 1, 11, sampling, &refusal), SCHEDULER_ACCEPTED);
    case_traffic(&c);
    case_grant(&c, &c.traffic.leases[0], c.traffic.lease_batch, BATCH_GRANTED, 8);
    assert_true(case_plan(&c));
    assert_int_equal(c.plan.runs[0].position, 8);
    assert_int_equal(c.plan.runs[0].token_count, 3);
    assert_int_equal(c.plan.sets[0].history_count, 8); /* penalties count what is not run */
    assert_int_equal(c.plan.ids[c.plan.sets[0].history_offset + 7], 17);
    assert_int_equal(case_request(&c, 1)->cached_tokens, 8);
    case_close(&c);
}

static void test_planner_prompt_scores_share_no_prefix_and_nothing_to_generate_runs_the_prompt(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options(2, 32, 32, 0));
    case_up(&c);
    request_sampling_t sampling = {.max_tokens = 0, .prompt_logprobs = 1};
    admission_refusal_t refusal;
    assert_int_equal(case_submit_as(&c, 1, 6, sampling, &refusal), SCHEDULER_ACCEPTED);
    case_lease_all(&c);
    assert_int_equal(c.traffic.leases[0].ids_count, 0);
    assert_true(case_plan(&c));
    assert_int_equal(c.plan.runs[0].token_count, 6);
    assert_false(c.plan.runs[0].sample);
    assert_int_equal(case_result(&c, 0, false), QN_OK);
    assert_int_equal(case_request(&c, 1)->finish, REQUEST_LENGTH);
    case_close(&c);
}

/* As many stop ids as a request may have, and as many end tokens as a model may have: a slot is told of all. */
static void test_planner_request_stop_ids_push_out_no_end_token(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options(1, 32, 32, 0));
    scheduler_model_t model = {.vocab_size = 1000, .max_model_len = 64, .block_tokens = 4, .block_count = 64};
    for (; model.eos_count < PLANNER_EOS_MAX; model.eos_count++)
        model.eos_ids[model.eos_count] = 500 + model.eos_count;
    assert_int_equal(scheduler_memory_up(c.scheduler, &model), QN_OK);
    scheduler_compute_up(c.scheduler);
    uint32_t ids[2] = {1, 2}, stop_ids[QN_STOP_IDS_MAX];
    for (uint32_t i = 0; i < QN_STOP_IDS_MAX; i++)
        stop_ids[i] = 700 + i;
    ledger_submission_t submission = {.id = 1,
                                      .client = case_client,
                                      .sampling = {.max_tokens = 4, .repetition_penalty = 1},
                                      .prompt_ids = ids,
                                      .prompt_tokens = 2,
                                      .stop_ids = stop_ids,
                                      .stop_count = QN_STOP_IDS_MAX};
    admission_refusal_t refusal;
    assert_int_equal(scheduler_submit(c.scheduler, &submission, 1, &refusal), SCHEDULER_ACCEPTED);
    case_lease_all(&c);
    assert_true(case_plan(&c));
    assert_int_equal(c.plan.sets[0].stop_count, QN_STOP_IDS_MAX + PLANNER_EOS_MAX);
    assert_int_equal(c.plan.stop_ids[QN_STOP_IDS_MAX - 1], 700 + QN_STOP_IDS_MAX - 1);
    assert_int_equal(c.plan.stop_ids[QN_STOP_IDS_MAX], 500);
    assert_int_equal(c.plan.stop_ids[QN_STOP_IDS_MAX + PLANNER_EOS_MAX - 1], 500 + PLANNER_EOS_MAX - 1);
    case_close(&c);
}

static void test_planner_extends_ahead_and_starving_preempts_the_last(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options(2, 32, 32, 0));
    case_up(&c);
    case_submit(&c, 1, 4, 40);
    case_submit(&c, 2, 4, 40);
    case_lease_all(&c);
    assert_int_equal(c.traffic.leases[0].tokens, 12); /* 4 known and 8 ahead */
    assert_true(case_plan(&c));
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    case_traffic(&c); /* 8 of 12 left: enough */
    assert_int_equal(c.traffic.lease_count, 0);
    assert_true(case_plan(&c));
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    case_traffic(&c); /* 7 left: who came first asks first */
    assert_int_equal(c.traffic.lease_count, 2);
    assert_int_equal(c.traffic.leases[0].sequence, 1);
    plan_lease_t leases[2] = {c.traffic.leases[0], c.traffic.leases[1]};
    for (int i = 0; i < 2; i++)
        case_grant(&c, &leases[i], c.traffic.lease_batch, BATCH_SHORT, 0);
    while (case_plan(&c)) { /* they run on in what they have */
        assert_int_equal(case_result(&c, 500, false), QN_OK);
        if (case_sequence(&c, 1)->planned < 12) case_traffic(&c);
    }
    assert_int_equal(case_sequence(&c, 1)->planned, 12);
    case_traffic(&c);
    assert_int_equal(case_sequence(&c, 2)->phase, SEQUENCE_WAITING); /* gave its blocks back, nothing ran ahead */
    assert_int_equal(c.traffic.release_count, 1);
    assert_int_equal(c.traffic.releases[0], 2);
    assert_int_equal(c.traffic.lease_count, 1); /* 1 asks again; 2 is not admitted meanwhile */
    assert_int_equal(c.traffic.leases[0].sequence, 1);
    assert_false(c.traffic.leases[0].open);
    case_grant(&c, &c.traffic.leases[0], c.traffic.lease_batch, BATCH_GRANTED, 0);
    assert_true(case_plan(&c));
    assert_int_equal(c.plan.retire_count, 1);
    assert_true(c.plan.reason_count >= 1);
    assert_non_null(strstr(c.plan.reasons[0], "2 came last"));
    case_close(&c);
}

static void test_planner_compute_restart_sets_all_slots_again_at_the_proven_position(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options(2, 32, 4, 1));
    case_up(&c);
    case_submit(&c, 1, 3, 9);
    case_submit(&c, 2, 11, 9);
    case_lease_all(&c);
    assert_true(case_plan(&c));
    assert_true(case_plan(&c));
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    scheduler_compute_lost(c.scheduler);
    assert_false(case_plan(&c));
    scheduler_compute_up(c.scheduler);
    assert_true(case_plan(&c));
    assert_int_equal(c.plan.retire_count, 0); /* the new one holds nothing */
    assert_int_equal(c.plan.set_count, 2);
    assert_int_equal(c.plan.runs[0].position, 3);
    assert_false(c.plan.runs[0].from_slot); /* the token is in the ledger */
    assert_int_equal(c.plan.ids[c.plan.runs[0].ids_offset], 500);
    assert_int_equal(c.plan.runs[1].position, 4);
    assert_int_equal(c.plan.block_count, case_sequence(&c, 1)->block_count + case_sequence(&c, 2)->block_count);
    case_close(&c);
}

static void test_planner_memory_restart_leases_everything_again(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options(2, 32, 32, 0));
    case_up(&c);
    case_submit(&c, 1, 3, 9);
    case_lease_all(&c);
    assert_true(case_plan(&c));
    assert_int_equal(case_result(&c, 500, false), QN_OK);
    scheduler_memory_lost(c.scheduler);
    case_traffic(&c);
    assert_int_equal(c.traffic.lease_count + c.traffic.release_count, 0);
    case_up(&c);
    case_lease_all(&c);
    assert_int_equal(c.traffic.lease_count, 1);
    assert_int_equal(c.traffic.leases[0].ids_count, 4); /* with what it has generated */
    assert_true(case_plan(&c));
    assert_int_equal(c.plan.runs[0].position, 0);
    assert_int_equal(c.plan.runs[0].token_count, 4);
    assert_true(c.plan.runs[0].sample);
    case_close(&c);
}

static void test_planner_admission_waits_after_a_refusal_until_blocks_come_back(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options(3, 32, 32, 0));
    case_up(&c);
    case_submit(&c, 1, 3, 2);
    case_lease_all(&c);
    case_submit(&c, 2, 3, 2);
    case_traffic(&c);
    case_grant(&c, &c.traffic.leases[0], c.traffic.lease_batch, BATCH_SHORT, 0);
    assert_int_equal(case_sequence(&c, 2)->phase, SEQUENCE_WAITING);
    case_traffic(&c);
    assert_int_equal(c.traffic.lease_count, 0);
    for (int i = 0; i < 2; i++) {
        assert_true(case_plan(&c));
        assert_int_equal(case_result(&c, 500, false), QN_OK);
    }
    case_traffic(&c);
    assert_int_equal(c.traffic.release_count, 1);
    assert_int_equal(c.traffic.lease_count, 1);
    assert_int_equal(c.traffic.leases[0].sequence, 2);
    case_close(&c);
}

static void test_planner_refused_with_nothing_running_asks_again_later(void **state)
{
    (void)state;
    case_t c;
    case_open(&c, options(1, 32, 32, 0));
    case_up(&c);
    case_submit(&c, 1, 3, 2);
    case_traffic(&c);
    case_grant(&c, &c.traffic.leases[0], c.traffic.lease_batch, BATCH_SHORT, 0);
    case_traffic(&c);
    assert_int_equal(c.traffic.lease_count, 0);
    assert_true(c.traffic.again_ns > c.now_ns && c.traffic.again_ns < c.now_ns + 100000000);
    c.now_ns = c.traffic.again_ns;
    case_traffic(&c);
    assert_int_equal(c.traffic.lease_count, 1);
    case_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_planner_create_options_out_of_range_refused),
        cmocka_unit_test(test_planner_prompt_runs_in_chunks_and_samples_once),
        cmocka_unit_test(test_planner_lookahead_plans_a_decode_before_its_input_is_known),
        cmocka_unit_test(test_planner_stop_masks_the_step_ahead_and_releases_after_it),
        cmocka_unit_test(test_planner_decodes_come_first_and_prompts_share_the_rest),
        cmocka_unit_test(test_planner_prefix_hit_is_not_run_again),
        cmocka_unit_test(test_planner_prompt_scores_share_no_prefix_and_nothing_to_generate_runs_the_prompt),
        cmocka_unit_test(test_planner_request_stop_ids_push_out_no_end_token),
        cmocka_unit_test(test_planner_extends_ahead_and_starving_preempts_the_last),
        cmocka_unit_test(test_planner_compute_restart_sets_all_slots_again_at_the_proven_position),
        cmocka_unit_test(test_planner_memory_restart_leases_everything_again),
        cmocka_unit_test(test_planner_admission_waits_after_a_refusal_until_blocks_come_back),
        cmocka_unit_test(test_planner_refused_with_nothing_running_asks_again_later),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
