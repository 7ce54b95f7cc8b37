/* Units of services/scheduler/progress.c: how long a step may take, and what follows when it takes longer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "services/scheduler/progress.h"

#define MS 1000000ull
#define S 1000000000ull

static void took(progress_t *progress, uint64_t step, uint32_t tokens, uint64_t ns)
{
    progress_watch(progress, step, tokens, 1);
    progress_result(progress, 1 + ns);
}

static void test_progress_bound_follows_the_slowest_recent_step_of_the_size(void **state)
{
    (void)state;
    progress_t progress = {0};
    assert_true(progress_bound_ns(&progress, 1) == PROGRESS_FIRST_NS);
    took(&progress, 1, 1, 2 * MS);
    assert_true(progress_bound_ns(&progress, 1) == PROGRESS_LEAST_NS);
    took(&progress, 2, 1, 200 * MS);
    assert_true(progress_bound_ns(&progress, 1) == 20 * 200 * MS);
    assert_true(progress_bound_ns(&progress, 4) == 4 * 20 * 200 * MS);   /* not seen: in proportion */
    assert_true(progress_bound_ns(&progress, 512) == PROGRESS_FIRST_NS); /* but not for ever */
    took(&progress, 3, 512, 3 * S);
    assert_true(progress_bound_ns(&progress, 700) == 60 * S); /* same power of two */
    for (uint64_t i = 0; i < PROGRESS_RECENT; i++)
        took(&progress, 4 + i, 1, 2 * MS);
    assert_true(progress_bound_ns(&progress, 1) == PROGRESS_LEAST_NS); /* the slow one is no longer recent */
}

static void test_progress_long_step_is_asked_for_again_and_again_and_left_alone(void **state)
{
    (void)state;
    progress_t progress = {0};
    uint64_t again, now = 1000 * S;
    took(&progress, 1, 1, 2 * MS);
    progress_watch(&progress, 2, 1, now);
    assert_int_equal(progress_look(&progress, now + S - 1, &again), PROGRESS_FINE);
    assert_true(again == now + S);
    for (uint64_t at = now + S; at < now + 1000 * S; at = again) {
        assert_int_equal(progress_look(&progress, at, &again), PROGRESS_ASK);
        assert_int_equal(progress_look(&progress, at + 1, &again), PROGRESS_FINE); /* once */
        progress_answer(&progress, 1, false, at + 2);                              /* about another step */
        progress_answer(&progress, 2, true, at + MS);
        assert_int_equal(progress_look(&progress, at + 2 * MS, &again), PROGRESS_FINE);
        assert_true(again - now >= 2 * (at - now));
        assert_true(progress.overdue);
    }
    progress_result(&progress, now + 2000 * S);
    progress_watch(&progress, 0, 0, now + 2000 * S);
    assert_int_equal(progress_look(&progress, now + 9000 * S, &again), PROGRESS_FINE);
    assert_true(again == UINT64_MAX);
}

static void test_progress_step_that_compute_does_not_have_is_renewed_at_once(void **state)
{
    (void)state;
    progress_t progress = {0};
    uint64_t again;
    took(&progress, 1, 1, 2 * MS);
    progress_watch(&progress, 2, 1, 5 * S);
    assert_int_equal(progress_look(&progress, 6 * S, &again), PROGRESS_ASK);
    progress_answer(&progress, 2, false, 6 * S + MS);
    assert_int_equal(progress_look(&progress, 6 * S + MS, &again), PROGRESS_RENEW);
}

static void test_progress_no_answer_is_renewed_and_each_time_later(void **state)
{
    (void)state;
    progress_t progress = {0};
    uint64_t again, now = 5 * S, last = 0;
    took(&progress, 1, 1, 2 * MS);
    for (uint64_t step = 2; step < 12; step++) {
        progress_watch(&progress, step, 1, now);
        progress_look(&progress, now, &again);
        uint64_t wait = again - now;
        assert_true(wait >= last && wait <= PROGRESS_LEAST_NS << PROGRESS_RENEWALS_MAX);
        last = wait;
        now = again;
        assert_int_equal(progress_look(&progress, now, &again), PROGRESS_ASK);
        assert_true(again == now + PROGRESS_ANSWER_NS);
        now = again;
        assert_int_equal(progress_look(&progress, now, &again), PROGRESS_RENEW);
        progress_watch(&progress, 0, 0, now);
    }
    assert_true(last == PROGRESS_LEAST_NS << PROGRESS_RENEWALS_MAX);
    progress_watch(&progress, 20, 1, now);
    progress_result(&progress, now + MS); /* it is back */
    progress_watch(&progress, 21, 1, now + MS);
    progress_look(&progress, now + MS, &again);
    assert_true(again == now + MS + PROGRESS_LEAST_NS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_progress_bound_follows_the_slowest_recent_step_of_the_size),
        cmocka_unit_test(test_progress_long_step_is_asked_for_again_and_again_and_left_alone),
        cmocka_unit_test(test_progress_step_that_compute_does_not_have_is_renewed_at_once),
        cmocka_unit_test(test_progress_no_answer_is_renewed_and_each_time_later),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
