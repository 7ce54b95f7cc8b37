/* Arrivals and lengths of a load. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/limits.h"
#include "tools/bench/load_plan.h"

#define DRAWS 20000

static void test_load_length_parse_knows_four_forms_and_refuses_the_rest(void **state)
{
    (void)state;
    char limit[32], beyond[32];
    snprintf(limit, sizeof limit, "%u", QN_PROMPT_TOKENS_MAX);
    snprintf(beyond, sizeof beyond, "%u", QN_PROMPT_TOKENS_MAX + 1);
    const struct {
        const char *text;
        uint32_t longest; /* 0: no bound */
    } good[] = {{"1", 1},           {"128", 128},         {"5-5", 5},
                {"100-1024", 1024}, {"exp:30", 0},        {"lognormal:200:0.5", 0},
                {"exp:1", 0},       {"lognormal:1:0", 0}, {limit, QN_PROMPT_TOKENS_MAX}};
    load_length_t length;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(load_length_parse(good[i].text, &length), QN_OK);
        assert_int_equal(load_length_longest(&length), good[i].longest);
    }
    const char *const bad[] = {"",
                               "0",
                               "-1",
                               "1.5",
                               "a",
                               "10-",
                               "10-5",
                               "0-5",
                               "1-2-3",
                               "1 ",
                               " 1",
                               "0x10",
                               "nan",
                               "inf",
                               "1e9",
                               "exp:",
                               "exp:0.5",
                               "exp:nan",
                               "exp:5x",
                               "normal:5",
                               "lognormal:5",
                               "lognormal:5:-1",
                               "lognormal:5:11",
                               beyond};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (load_length_parse(bad[i], &length) != QN_ERR_INVALID) fail_msg("\"%s\" is taken", bad[i]);
}

static double mean_of(const char *text, uint32_t most, uint32_t *ret_least, uint32_t *ret_longest)
{
    load_length_t length;
    assert_int_equal(load_length_parse(text, &length), QN_OK);
    double sum = 0;
    *ret_least = UINT32_MAX;
    *ret_longest = 0;
    for (uint32_t i = 0; i < DRAWS; i++) {
        load_random_t random = load_random(7, LOAD_FOR_REQUESTS, i);
        bool clipped;
        uint32_t drawn = load_length_draw(&length, &random, most, &clipped);
        assert_true(!clipped || drawn == most);
        if (drawn < *ret_least) *ret_least = drawn;
        if (drawn > *ret_longest) *ret_longest = drawn;
        sum += drawn;
    }
    return sum / DRAWS;
}

static void test_load_length_draws_have_the_mean_and_the_bounds(void **state)
{
    (void)state;
    uint32_t least, longest;
    assert_true(mean_of("64", 100000, &least, &longest) == 64);
    assert_true(fabs(mean_of("10-20", 100000, &least, &longest) - 15) < 0.2);
    assert_int_equal(least, 10);
    assert_int_equal(longest, 20);
    assert_true(fabs(mean_of("exp:200", 100000, &least, &longest) - 200) < 10);
    assert_true(least >= 1 && longest > 1000);
    /* The mean of a log-normal is MEDIAN exp(SIGMA^2 / 2). */
    assert_true(fabs(mean_of("lognormal:100:0.5", 100000, &least, &longest) - 100 * exp(0.125)) < 3);
    mean_of("exp:200", 150, &least, &longest);
    assert_int_equal(longest, 150);
}

static void test_load_random_same_seed_same_numbers_and_purposes_apart(void **state)
{
    (void)state;
    load_random_t a = load_random(3, LOAD_FOR_REQUESTS, 5), b = load_random(3, LOAD_FOR_REQUESTS, 5);
    uint64_t first = load_random_next(&a);
    assert_true(first == load_random_next(&b));
    load_random_t others[] = {load_random(4, LOAD_FOR_REQUESTS, 5), load_random(3, LOAD_FOR_WARMUP, 5),
                              load_random(3, LOAD_FOR_REQUESTS, 6)};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_true(first != load_random_next(&others[i]));
    for (uint32_t i = 0; i < DRAWS; i++) {
        double unit = load_random_unit(&a);
        assert_true(unit > 0 && unit <= 1);
        assert_true(load_random_below(&a, 3) < 3);
        assert_int_equal(load_random_below(&a, 1), 0);
    }
}

static void test_load_arrivals_meet_the_rate_in_order(void **state)
{
    (void)state;
    static const char *const kinds[] = {"poisson", "uniform", "burst", "burst:50"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        load_arrivals_t arrivals, again;
        assert_int_equal(load_arrivals_parse(kinds[i], 100, 11, &arrivals), QN_OK);
        assert_int_equal(load_arrivals_parse(kinds[i], 100, 11, &again), QN_OK);
        double before = 0;
        for (uint32_t n = 0; n < DRAWS; n++) {
            double now = load_arrivals_next(&arrivals);
            assert_true(now >= before);
            assert_true(now == load_arrivals_next(&again));
            before = now;
        }
        assert_true(fabs(before - DRAWS / 100.0) < 6);
    }
    load_arrivals_t arrivals;
    assert_int_equal(load_arrivals_parse("burst:3", 10, 0, &arrivals), QN_OK);
    static const double wanted[] = {0, 0, 0, 0.3, 0.3, 0.3, 0.6};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        assert_true(fabs(load_arrivals_next(&arrivals) - wanted[i]) < 1e-12);
    static const char *const bad[] = {"", "gamma", "burst:", "burst:0", "burst:1.5", "burst:4097", "poisson:2"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(load_arrivals_parse(bad[i], 1, 0, &arrivals), QN_ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_length_parse_knows_four_forms_and_refuses_the_rest),
        cmocka_unit_test(test_load_length_draws_have_the_mean_and_the_bounds),
        cmocka_unit_test(test_load_random_same_seed_same_numbers_and_purposes_apart),
        cmocka_unit_test(test_load_arrivals_meet_the_rate_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
