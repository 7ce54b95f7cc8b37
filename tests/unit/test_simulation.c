/* Units of services/scheduler/simulation: the real scheduler in a world of formulas. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "services/scheduler/simulation/simulation.h"

static const simulation_options_t options = {.max_sequences = 2,
                                             .max_step_tokens = 64,
                                             .prefill_chunk_tokens = 32,
                                             .queue_limit = 100,
                                             .block_tokens = 4,
                                             .block_count = 100,
                                             .step_ns = 1000000,
                                             .token_ns = 1000,
                                             .steps_kept = 100};

static simulation_t *simulate(simulation_options_t with, const simulation_request_t *requests, uint32_t count)
{
    simulation_t *simulation = NULL;
    assert_int_equal(simulation_create(&with, requests, count, &simulation), QN_OK);
    for (int turns = 0; !simulation_run(simulation, 3); turns++)
        assert_true(turns < 100000);
    return simulation;
}

static void test_simulation_steps_and_latencies_are_those_of_the_formula(void **state)
{
    (void)state;
    simulation_request_t one = {.prompt_tokens = 40, .max_tokens = 3};
    simulation_t *simulation = simulate(options, &one, 1);
    uint32_t count;
    const simulation_step_t *steps = simulation_steps(simulation, &count);
    const simulation_run_t *runs = simulation_runs(simulation);
    assert_int_equal(count, 4); /* 32 + 8 of the prompt, then two decodes: the first token came with the prompt's end */
    static const uint32_t tokens[] = {32, 8, 1, 1};
    uint64_t now_ns = 0;
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(steps[i].tokens, tokens[i]);
        assert_int_equal(steps[i].begin_ns, now_ns);
        now_ns += 1000000 + tokens[i] * 1000;
        assert_int_equal(steps[i].end_ns, now_ns);
        assert_int_equal(runs[steps[i].first_run].prefill, i < 2);
    }
    assert_true(steps[0].reason_count >= 2); /* admitted, dealt */
    assert_non_null(strstr(simulation_reasons(simulation)[steps[0].first_reason], "fcfs"));
    assert_int_equal(simulation_outcome(simulation, 0)->first_token_ns, steps[1].end_ns);
    assert_int_equal(simulation_outcome(simulation, 0)->end_ns, now_ns);
    simulation_summary_t summary;
    simulation_summary(simulation, &summary);
    assert_int_equal(summary.generated_tokens, 3);
    assert_true(summary.ttft.mean == (double)steps[1].end_ns / 1e6 && summary.latency.p99 == (double)now_ns / 1e6);
    simulation_destroy(&simulation);
}

static void test_simulation_policies_order_as_they_say(void **state)
{
    (void)state;
    simulation_options_t with = options;
    with.max_sequences = 1;
    const simulation_request_t three[] = {
        {.prompt_tokens = 20, .max_tokens = 30, .priority = 2, .user = 1, .user_name = "a"},
        {.prompt_tokens = 20, .max_tokens = 20, .priority = 1, .prefix_tokens = 16, .user = 1, .user_name = "a"},
        {.prompt_tokens = 20, .max_tokens = 5, .priority = 3, .user = 2, .user_name = "b"},
    };
    static const struct {
        const char *policy;
        uint32_t first, last;
    } table[] = {{"fcfs", 0, 2}, {"priority", 1, 2}, {"shortest_job", 2, 0}, {"prefix", 1, 2}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        with.policy = table[i].policy;
        simulation_t *simulation = simulate(with, three, 3);
        for (uint32_t k = 0; k < 3; k++) {
            const simulation_outcome_t *one = simulation_outcome(simulation, k);
            assert_true(one->end_ns > 0 && strstr(one->reason, table[i].policy) != NULL);
            assert_true(one->end_ns <= simulation_outcome(simulation, table[i].last)->end_ns);
        }
        assert_int_equal(simulation_outcome(simulation, table[i].first)->first_run_ns, 1);
        simulation_destroy(&simulation);
    }
}

static void test_simulation_is_the_same_every_time_and_loses_nobody(void **state)
{
    (void)state;
    simulation_request_t many[60];
    static const char *const policies[] = {"fcfs", "priority", "shortest_job", "prefix", "fair"};
    for (uint32_t i = 0; i < 60; i++)
        many[i] = (simulation_request_t){.arrival_ns = i * 300000ull,
                                         .prompt_tokens = 1 + i * 37 % 90,
                                         .max_tokens = 1 + i * 53 % 70,
                                         .priority = (int32_t)(i % 3),
                                         .user = 1 + i % 4,
                                         .user_name = "u",
                                         .deadline_ns = i % 2 * 20000000ull};
    simulation_options_t with = options;
    with.max_sequences = 8;
    with.block_count = 60; /* full: somebody is preempted */
    for (size_t i = 0; i < 5; i++) {
        with.policy = policies[i];
        with.batching = i % 2 == 0 ? "fixed" : "pressure";
        simulation_summary_t first, second;
        for (int again = 0; again < 2; again++) {
            simulation_t *simulation = simulate(with, many, 60);
            simulation_summary(simulation, again ? &second : &first);
            for (uint32_t k = 0; k < 60; k++)
                assert_true(simulation_outcome(simulation, k)->end_ns > 0);
            simulation_destroy(&simulation);
        }
        assert_memory_equal(&first, &second, sizeof first);
        assert_int_equal(first.refused, 0);
        assert_string_equal(first.withdrawn, "");
    }
}

static void test_simulation_what_can_never_run_is_refused_by_place(void **state)
{
    (void)state;
    static const struct {
        simulation_request_t request;
        const char *words;
    } table[] = {
        {{.prompt_tokens = 0, .max_tokens = 1}, "request 1"},
        {{.prompt_tokens = 1, .max_tokens = 0}, "request 1"},
        {{.prompt_tokens = 390, .max_tokens = 11}, "all blocks hold 400"},
        {{.prompt_tokens = 1u << 20, .max_tokens = 1}, "request 1"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        simulation_request_t two[2] = {{.prompt_tokens = 1, .max_tokens = 1}, table[i].request};
        simulation_t *simulation = NULL;
        assert_int_equal(simulation_create(&options, two, 2, &simulation), QN_ERR_INVALID);
        assert_non_null(strstr(qn_err_text(), table[i].words));
        assert_null(simulation);
    }
    simulation_options_t with = options;
    simulation_t *simulation = NULL;
    with.policy = "lifo";
    assert_int_equal(simulation_create(&with, NULL, 0, &simulation), QN_ERR_CONFIG);
    assert_null(simulation);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_simulation_steps_and_latencies_are_those_of_the_formula),
        cmocka_unit_test(test_simulation_policies_order_as_they_say),
        cmocka_unit_test(test_simulation_is_the_same_every_time_and_loses_nobody),
        cmocka_unit_test(test_simulation_what_can_never_run_is_refused_by_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
