/* Figures of a load. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tools/bench/load_record.h"

#define assert_near(a, b) assert_true(fabs((a) - (b)) < 1e-6)

static void test_load_percentile_is_the_nearest_rank(void **state)
{
    (void)state;
    double values[100];
    for (size_t i = 0; i < 100; i++)
        values[i] = (double)(i + 1);
    assert_true(load_percentile(values, 100, 50) == 50 && load_percentile(values, 100, 99) == 99);
    assert_true(load_percentile(values, 100, 100) == 100 && load_percentile(values, 100, 0) == 1);
    assert_true(load_percentile(values, 5, 50) == 3 && load_percentile(values, 5, 90) == 5);
    assert_true(load_percentile(values, 4, 50) == 2 && load_percentile(values, 1, 99) == 1);
    assert_true(load_percentile(values, 0, 50) == 0);
}

/* Sent at 1, first token at 1.5, five tokens in all, the last at 2.3, ended at 2.4. */
static load_record_t good_record(void)
{
    return (load_record_t){.due_s = 1,
                           .sent_s = 1.001,
                           .first_s = 1.501,
                           .last_s = 2.301,
                           .end_s = 2.401,
                           .first_tokens = 1,
                           .output_tokens = 5,
                           .prompt_tokens = 7,
                           .arrival_s = 0.5};
}
static const load_gap_t GAPS[] = {{.seconds = 0.6f, .tokens = 3}, {.seconds = 0.2f, .tokens = 1}};

static void test_load_stats_count_tokens_not_events(void **state)
{
    (void)state;
    load_stats_t stats = {0};
    load_record_t record = good_record();
    assert_int_equal(load_stats_add(&stats, &record, GAPS, 2), QN_OK);
    load_figure_t itl = load_stats_itl(&stats), tpot = load_series_figure(&stats.tpot);
    assert_int_equal(itl.count, 4);
    assert_near(itl.p50, 0.2);
    assert_near(itl.mean, 0.2);
    assert_near(tpot.mean, 0.2);
    assert_near(load_series_figure(&stats.ttft).max, 0.5);
    assert_near(load_series_figure(&stats.e2e).max, 1.4);
    assert_near(load_series_figure(&stats.longest).max, 0.6);
    assert_near(load_series_figure(&stats.late).max, 0.001);
    assert_true(stats.ok == 1 && stats.output_tokens == 5 && stats.prompt_tokens == 7 && stats.waited == 1);
    assert_near(stats.end_s, 2.401);
    load_stats_fini(&stats);
}

static void test_load_stats_itl_percentile_weighs_gaps_by_tokens(void **state)
{
    (void)state;
    load_stats_t stats = {0};
    load_record_t record = good_record();
    /* 1 token of 1 s, 99 of 0.1 s: the 99th of 100 is 0.1, the mean is of tokens. */
    const load_gap_t gaps[] = {{.seconds = 1, .tokens = 1}, {.seconds = 9.9f, .tokens = 99}};
    assert_int_equal(load_stats_add(&stats, &record, gaps, 2), QN_OK);
    load_figure_t itl = load_stats_itl(&stats);
    assert_near(itl.p99, 0.1);
    assert_near(itl.max, 1);
    assert_near(itl.mean, 0.109);
    load_stats_fini(&stats);
}

static void test_load_stats_failures_are_kept_apart_with_their_first_message(void **state)
{
    (void)state;
    load_stats_t stats = {0};
    const struct {
        load_outcome_t outcome;
        long status;
        const char *message;
    } ends[] = {{LOAD_HTTP, 429, "first"},
                {LOAD_HTTP, 503, "other"},
                {LOAD_HTTP, 429, "second"},
                {LOAD_BROKEN, 0, "gone"},
                {LOAD_STREAM, 503, "late"}};
    for (size_t i = 0; i < 5; i++) {
        load_record_t record = {.outcome = ends[i].outcome, .status = ends[i].status, .first_s = -1};
        snprintf(record.message, sizeof record.message, "%s", ends[i].message);
        assert_int_equal(load_stats_add(&stats, &record, NULL, 0), QN_OK);
    }
    load_record_t taken_back = {.outcome = LOAD_INTERRUPTED, .first_s = -1};
    assert_int_equal(load_stats_add(&stats, &taken_back, NULL, 0), QN_OK);
    assert_true(stats.ok == 0 && stats.failed == 5 && stats.interrupted == 1);
    assert_int_equal(stats.failure_count, 4);
    assert_int_equal(stats.failures[0].count, 2);
    assert_string_equal(stats.failures[0].message, "first");
    assert_int_equal(stats.ttft.count, 0);
    assert_int_equal(load_stats_itl(&stats).count, 0);
    load_stats_fini(&stats);
}

static void test_load_stats_more_kinds_than_kept_are_counted_with_the_last(void **state)
{
    (void)state;
    load_stats_t stats = {0};
    for (long status = 0; status < LOAD_FAILURES_MAX + 3; status++) {
        load_record_t record = {.outcome = LOAD_HTTP, .status = 400 + status, .first_s = -1};
        assert_int_equal(load_stats_add(&stats, &record, NULL, 0), QN_OK);
    }
    assert_int_equal(stats.failure_count, LOAD_FAILURES_MAX);
    assert_int_equal(stats.failures[LOAD_FAILURES_MAX - 1].count, 4);
    load_stats_fini(&stats);
}

static void test_load_stats_answer_without_tokens_has_no_ttft(void **state)
{
    (void)state;
    load_stats_t stats = {0};
    load_record_t record = {.outcome = LOAD_OK, .status = 200, .first_s = -1, .sent_s = 1, .end_s = 2};
    assert_int_equal(load_stats_add(&stats, &record, NULL, 0), QN_OK);
    assert_int_equal(load_series_figure(&stats.ttft).count, 0);
    assert_int_equal(load_series_figure(&stats.e2e).count, 1);
    assert_true(load_record_tpot(&record) < 0);
    load_stats_fini(&stats);
}

static void test_load_slo_both_sides_of_each_objective(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool met;
    } cases[] = {{"ttft=501", true},
                 {"ttft=499", false},
                 {"itl=201", true},
                 {"itl=199", false},
                 {"gap=601", true},
                 {"gap=599", false},
                 {"e2e=1401", true},
                 {"e2e=1399", false},
                 {"ttft=501,e2e=1399", false},
                 {"e2e=1401,gap=601,itl=201,ttft=501", true}};
    load_record_t record = good_record();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        load_slo_t slo;
        assert_int_equal(load_slo_parse(cases[i].text, &slo), QN_OK);
        if (load_slo_is_met(&slo, &record, 0.6) != cases[i].met) fail_msg("%s", cases[i].text);
    }
    load_slo_t slo;
    record.outcome = LOAD_BROKEN;
    assert_int_equal(load_slo_parse("ttft=1e6", &slo), QN_OK);
    assert_false(load_slo_is_met(&slo, &record, 0.6));
    static const char *const bad[] = {"",        "ttft",     "ttft=",         "ttft=0",
                                      "ttft=-1", "ttft=5,",  "ttft=5,ttft=6", "tpot=5",
                                      "ttft=5 ", "ttft=nan", "ttft=5;itl=5"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(load_slo_parse(bad[i], &slo), QN_ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_percentile_is_the_nearest_rank),
        cmocka_unit_test(test_load_stats_count_tokens_not_events),
        cmocka_unit_test(test_load_stats_itl_percentile_weighs_gaps_by_tokens),
        cmocka_unit_test(test_load_stats_failures_are_kept_apart_with_their_first_message),
        cmocka_unit_test(test_load_stats_more_kinds_than_kept_are_counted_with_the_last),
        cmocka_unit_test(test_load_stats_answer_without_tokens_has_no_ttft),
        cmocka_unit_test(test_load_slo_both_sides_of_each_objective),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
