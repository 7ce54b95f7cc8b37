/* Durations of the last minute: means, quantiles, and what is forgotten. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>

#include "common/watch/window.h"

#define SECOND 1000000000ull

static qn_window_t window;

static int clear(void **state)
{
    (void)state;
    window = (qn_window_t){0};
    return 0;
}

static void assert_near(uint64_t value, uint64_t wanted)
{
    assert_true(fabs((double)value - (double)wanted) <= 0.035 * (double)wanted + QN_WINDOW_UNIT_NS);
}

static void test_window_nothing_observed_is_zero(void **state)
{
    (void)state;
    qn_window_figures_t figures;
    qn_window_read(&window, 500 * SECOND, &figures);
    assert_int_equal(figures.count, 0);
    assert_true(figures.mean_ns == 0 && figures.p50_ns == 0 && figures.p99_ns == 0);
}

static void test_window_quantiles_are_within_three_percent(void **state)
{
    (void)state;
    static const uint64_t scales[] = {100, 1000, 50000, 3000000, 777777777};
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++) {
        qn_window_figures_t figures;
        window = (qn_window_t){0};
        for (uint64_t i = 1; i <= 1000; i++)
            qn_window_observe(&window, 100 * SECOND, i * scales[s]);
        qn_window_read(&window, 100 * SECOND, &figures);
        assert_int_equal(figures.count, 1000);
        assert_true(figures.mean_ns == 500.5 * (double)scales[s]);
        assert_near(figures.p50_ns, 500 * scales[s]);
        assert_near(figures.p99_ns, 990 * scales[s]);
    }
}

static void test_window_extremes_have_a_bucket(void **state)
{
    (void)state;
    qn_window_figures_t figures;
    qn_window_observe(&window, 0, 0);
    qn_window_observe(&window, 0, UINT64_MAX / 4);
    qn_window_read(&window, 0, &figures);
    assert_int_equal(figures.count, 2);
    assert_true(figures.p50_ns < QN_WINDOW_UNIT_NS);
    assert_true(figures.p99_ns > 1000 * SECOND);
}

static void test_window_forgets_after_a_minute(void **state)
{
    (void)state;
    qn_window_figures_t figures;
    qn_window_observe(&window, 100 * SECOND, 1000);
    qn_window_observe(&window, 130 * SECOND, 3000);
    qn_window_read(&window, 160 * SECOND, &figures); /* to the last nanosecond of its minute */
    assert_int_equal(figures.count, 2);
    qn_window_read(&window, 165 * SECOND, &figures);
    assert_int_equal(figures.count, 1);
    assert_true(figures.mean_ns == 3000);
    qn_window_read(&window, 1000 * SECOND, &figures);
    assert_int_equal(figures.count, 0);
}

static void test_window_place_of_an_old_slice_is_used_again(void **state)
{
    (void)state;
    qn_window_figures_t figures;
    qn_window_observe(&window, 0, 1000);
    qn_window_observe(&window, QN_WINDOW_SLICES * QN_WINDOW_SLICE_NS, 5000);
    qn_window_read(&window, QN_WINDOW_SLICES * QN_WINDOW_SLICE_NS, &figures);
    assert_int_equal(figures.count, 1);
    assert_true(figures.mean_ns == 5000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_window_nothing_observed_is_zero, clear),
        cmocka_unit_test_setup(test_window_quantiles_are_within_three_percent, clear),
        cmocka_unit_test_setup(test_window_extremes_have_a_bucket, clear),
        cmocka_unit_test_setup(test_window_forgets_after_a_minute, clear),
        cmocka_unit_test_setup(test_window_place_of_an_old_slice_is_used_again, clear),
    };
    return cmocka_run_group_tests_name("window", tests, NULL, NULL);
}
