/* The statistics page, written here, read as another process would. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/watch/stats.h"

static const qn_stat_spec_t first_table[] = {{"requests", QN_STAT_COUNTER, "requests", "Requests"},
                                             {"waiting", QN_STAT_GAUGE, "requests", "Waiting"}};
static const qn_stat_spec_t second_table[] = {{"step", QN_STAT_HISTOGRAM_NS, "seconds", "Step time"}};
static const qn_stat_spec_t *const tables[] = {first_table, second_table};
static const size_t counts[] = {2, 1};
static char directory[64];

static int setup(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/qn-stats-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/compute.stats", directory);
    unlink(path);
    return rmdir(directory);
}

static void test_stats_reader_sees_what_was_written(void **state)
{
    (void)state;
    qn_stats_t *stats;
    qn_stats_view_t *view;
    qn_stat_row_t row;
    assert_int_equal(qn_stats_create(directory, "compute", 7, tables, counts, 2, &stats), QN_OK);
    assert_int_equal(qn_stats_open(directory, "compute", &view), QN_OK);
    assert_int_equal(qn_stats_epoch(view), 7);
    assert_int_equal(qn_stats_row_count(view), 3);
    qn_stats_add(stats, 0, 0, 5);
    qn_stats_add(stats, 0, 0, 6);
    qn_stats_set(stats, 0, 1, 3);
    qn_stats_set(stats, 0, 1, 2);
    qn_stats_observe_ns(stats, 1, 0, 1000); /* first bucket, inclusive bound */
    qn_stats_observe_ns(stats, 1, 0, 1001); /* second */
    qn_stats_observe_ns(stats, 1, 0, UINT64_MAX / 2);
    qn_stats_read_row(view, 0, &row);
    assert_string_equal(row.name, "requests");
    assert_int_equal(row.value, 11);
    qn_stats_read_row(view, 1, &row);
    assert_int_equal(row.value, 2);
    qn_stats_read_row(view, 2, &row);
    assert_int_equal(row.value, 3);
    assert_int_equal(row.buckets[0], 1);
    assert_int_equal(row.buckets[1], 1);
    assert_int_equal(row.buckets[QN_STAT_BUCKETS - 1], 1);
    qn_stats_close(&view);
    qn_stats_destroy(&stats);
}

static void test_stats_page_outlives_its_writer_and_is_replaced(void **state)
{
    (void)state;
    qn_stats_t *stats;
    qn_stats_view_t *old, *fresh;
    qn_stat_row_t row;
    assert_int_equal(qn_stats_create(directory, "compute", 1, tables, counts, 2, &stats), QN_OK);
    qn_stats_add(stats, 0, 0, 9);
    qn_stats_destroy(&stats);
    assert_int_equal(qn_stats_open(directory, "compute", &old), QN_OK);
    qn_stats_read_row(old, 0, &row);
    assert_int_equal(row.value, 9);
    assert_int_equal(qn_stats_create(directory, "compute", 2, tables, counts, 2, &stats), QN_OK);
    assert_int_equal(qn_stats_open(directory, "compute", &fresh), QN_OK);
    qn_stats_read_row(fresh, 0, &row);
    assert_int_equal(row.value, 0);
    qn_stats_close(&old);
    qn_stats_close(&fresh);
    qn_stats_destroy(&stats);
}

static void test_stats_row_is_named_later_and_holds_any_number(void **state)
{
    (void)state;
    static const qn_stat_spec_t rows[] = {{"", QN_STAT_NUMBER, "", "Later"}};
    const qn_stat_spec_t *later[] = {rows};
    size_t count = 1;
    char long_name[2 * QN_STAT_NAME_MAX];
    qn_stats_t *stats;
    qn_stats_view_t *view;
    qn_stat_row_t row;
    memset(long_name, 'n', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    assert_int_equal(qn_stats_create(directory, "compute", 1, later, &count, 1, &stats), QN_OK);
    assert_int_equal(qn_stats_open(directory, "compute", &view), QN_OK);
    static const char *const names[] = {"policy_metric{policy=\"a\"}", "b", "", "policy_metric{policy=\"c\"}"};
    for (size_t i = 0; i < 4; i++) {
        qn_stats_name(stats, 0, 0, names[i]);
        qn_stats_set_number(stats, 0, 0, -1.5 * (double)i);
        qn_stats_read_row(view, 0, &row);
        assert_string_equal(row.name, names[i]);
        assert_true(qn_stat_number(&row) == -1.5 * (double)i);
    }
    qn_stats_name(stats, 0, 0, long_name);
    qn_stats_read_row(view, 0, &row);
    assert_int_equal(strlen(row.name), QN_STAT_NAME_MAX - 1);
    qn_stats_close(&view);
    qn_stats_destroy(&stats);
}

static void test_stats_quantile_lies_in_the_right_bucket(void **state)
{
    (void)state;
    qn_stat_row_t row = {0};
    assert_int_equal(qn_stat_quantile_ns(&row, 0.5), 0);
    row.buckets[2] = 98; /* 2..4 us */
    row.buckets[10] = 2; /* 512..1024 us */
    uint64_t median = qn_stat_quantile_ns(&row, 0.5), p99 = qn_stat_quantile_ns(&row, 0.99);
    assert_true(median > 2000 && median <= 4000);
    assert_true(p99 > 512000 && p99 <= 1024000);
}

static void test_stats_reader_refuses_what_is_no_page(void **state)
{
    (void)state;
    char path[128];
    qn_stats_view_t *view;
    assert_int_equal(qn_stats_open(directory, "compute", &view), QN_ERR_NOT_FOUND);
    snprintf(path, sizeof path, "%s/compute.stats", directory);
    FILE *file = fopen(path, "w");
    for (int i = 0; i < 4096; i++)
        fputc('x', file);
    fclose(file);
    assert_int_equal(qn_stats_open(directory, "compute", &view), QN_ERR_INVALID);
    assert_int_equal(truncate(path, 3), 0);
    assert_int_equal(qn_stats_open(directory, "compute", &view), QN_ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_stats_reader_sees_what_was_written, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stats_page_outlives_its_writer_and_is_replaced, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stats_row_is_named_later_and_holds_any_number, setup, teardown),
        cmocka_unit_test(test_stats_quantile_lies_in_the_right_bucket),
        cmocka_unit_test_setup_teardown(test_stats_reader_refuses_what_is_no_page, setup, teardown),
    };
    return cmocka_run_group_tests_name("stats", tests, NULL, NULL);
}
