/* The life of requests: steps in order, what outlives an end, what the rings forget. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "services/scheduler/history.h"

#define REQUESTS 8

static history_t *history;
static request_t requests[REQUESTS];
static sequence_t sequences[REQUESTS];
static batch_t batch = {.sequences = sequences};

static int setup(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < REQUESTS; i++) {
        requests[i] = (request_t){.id = 100 + i, .index = i, .arrival = i + 1, .prompt_tokens = 5};
        sequences[i] = (sequence_t){.request = &requests[i], .block_count = i + 1};
    }
    return history_create(REQUESTS, &history);
}

static int teardown(void **state)
{
    (void)state;
    history_destroy(&history);
    return 0;
}

/* A step of one run. */
static void plan(uint64_t step, uint32_t index, uint32_t position, uint32_t tokens)
{
    batch_run_t run = {.index = index, .position = position, .token_count = tokens};
    batch_step_t planned = {.step = step, .sent_ns = step * 10, .run_count = 1, .token_count = tokens, .runs = &run};
    history_plan(history, &batch, &planned);
}

static void test_history_runs_come_oldest_first_and_of_one_request(void **state)
{
    (void)state;
    history_run_t runs[4];
    plan(1, 0, 0, 5);
    plan(2, 1, 0, 5);
    plan(3, 0, 5, 1);
    plan(4, 0, 6, 1);
    assert_int_equal(history_runs(history, 100, 4, runs), 3);
    assert_int_equal(runs[0].step, 1);
    assert_int_equal(runs[0].tokens, 5);
    assert_int_equal(runs[2].position, 6);
    assert_int_equal(history_runs(history, 100, 2, runs), 2); /* the latest */
    assert_int_equal(runs[0].step, 3);
    assert_int_equal(history_runs(history, 0, 4, runs), 4);
    assert_int_equal(history_runs(history, 999, 4, runs), 0);
}

static void test_history_result_belongs_to_its_step(void **state)
{
    (void)state;
    plan(7, 0, 0, 5);
    history_result(history, 7, 71, 79, 80);
    history_result(history, 7 + HISTORY_STEPS, 1, 2, 3); /* shares its place, was never planned */
    const history_step_t *step = history_step(history, 7);
    assert_non_null(step);
    assert_int_equal(step->begin_ns, 71);
    assert_int_equal(step->result_ns, 80);
    assert_null(history_step(history, 7 + HISTORY_STEPS));
    assert_null(history_step(history, 0));
}

static void test_history_ended_request_keeps_its_figures(void **state)
{
    (void)state;
    plan(1, 3, 0, 5);
    sequences[3].block_count = 9;
    plan(2, 3, 5, 1);
    sequences[3].block_count = 0; /* given back */
    assert_non_null(history_live(history, 3, 103));
    requests[3].generated_tokens = 2;
    requests[3].preemptions = 1;
    requests[3].finish = REQUEST_LENGTH;
    history_end(history, &requests[3], 500);
    assert_null(history_live(history, 3, 103));
    const history_life_t *life = history_ended(history, 103);
    assert_non_null(life);
    assert_int_equal(life->steps, 2);
    assert_int_equal(life->first_step, 1);
    assert_int_equal(life->last_step, 2);
    assert_int_equal(life->blocks_most, 9);
    assert_int_equal(life->generated_tokens, 2);
    assert_int_equal(life->preemptions, 1);
    assert_int_equal(life->ended_ns, 500);
}

static void test_history_end_sent_twice_is_one_end(void **state)
{
    (void)state;
    plan(1, 2, 0, 5);
    history_end(history, &requests[2], 500);
    history_end(history, &requests[2], 900);
    assert_int_equal(history_ended(history, 102)->steps, 1);
    assert_int_equal(history_ended(history, 102)->ended_ns, 500);
}

static void test_history_place_of_an_ended_request_is_anothers(void **state)
{
    (void)state;
    plan(1, 0, 0, 5);
    requests[0].id = 777; /* the ledger's entry is used again without an end having been sent */
    plan(2, 0, 0, 5);
    assert_null(history_live(history, 0, 100));
    assert_int_equal(history_live(history, 0, 777)->steps, 1);
}

static void test_history_forgets_the_oldest_end(void **state)
{
    (void)state;
    for (uint32_t i = 0; i <= HISTORY_LIVES; i++) {
        request_t request = {.id = 1000 + i, .index = 0, .arrival = 10 + i};
        history_end(history, &request, i + 1);
    }
    assert_null(history_ended(history, 1000));
    assert_non_null(history_ended(history, 1001));
    assert_non_null(history_ended(history, 1000 + HISTORY_LIVES));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_history_runs_come_oldest_first_and_of_one_request), TEST(test_history_result_belongs_to_its_step),
        TEST(test_history_ended_request_keeps_its_figures),           TEST(test_history_end_sent_twice_is_one_end),
        TEST(test_history_place_of_an_ended_request_is_anothers),     TEST(test_history_forgets_the_oldest_end),
    };
    return cmocka_run_group_tests_name("history", tests, NULL, NULL);
}
