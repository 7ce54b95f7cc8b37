/* The restart rule of `quintet up`. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sysexits.h>

#include <cmocka.h>

#include "tools/up/up_restart.h"

#define EXITED(status) ((status) << 8)
#define KILLED 9
#define SECOND 1000000000ull

static void test_up_restart_delay_doubles_to_its_bound_and_starts_over(void **state)
{
    (void)state;
    static const struct {
        uint64_t lived_ns, delay_ns;
        bool ready;
    } lives[] = {
        {SECOND / 10, 0, true},
        {SECOND / 10, 50000000, true},
        {SECOND / 10, 100000000, true},
        {UP_RESTART_HEALTHY_NS - 1, 200000000, true},
        {UP_RESTART_HEALTHY_NS, 400000000, false},
        {SECOND / 10, 800000000, true},
        {SECOND / 10, 1000000000, true},
        {SECOND / 10, 1000000000, true},
        {UP_RESTART_HEALTHY_NS, 0, true},
        {SECOND / 10, 50000000, true},
    };
    up_restart_t restart = {0};
    uint64_t now_ns = 77;
    for (size_t i = 0; i < sizeof lives / sizeof lives[0]; i++) {
        uint64_t at_ns = 0;
        up_restart_started(&restart, now_ns);
        if (lives[i].ready) up_restart_ready(&restart);
        now_ns += lives[i].lived_ns;
        assert_int_equal(up_restart_died(&restart, KILLED, now_ns, &at_ns), UP_VERDICT_RESTART);
        assert_int_equal(at_ns - now_ns, lives[i].delay_ns);
        now_ns = at_ns;
    }
}

static void test_up_restart_mistake_before_first_ready_gives_up(void **state)
{
    (void)state;
    static const struct {
        int wait_status;
        up_verdict_t before, after;
    } cases[] = {
        {EXITED(EX_USAGE), UP_VERDICT_GIVE_UP, UP_VERDICT_RESTART},
        {EXITED(EX_DATAERR), UP_VERDICT_GIVE_UP, UP_VERDICT_RESTART},
        {EXITED(EX_NOINPUT), UP_VERDICT_GIVE_UP, UP_VERDICT_RESTART},
        {EXITED(EX_UNAVAILABLE), UP_VERDICT_GIVE_UP, UP_VERDICT_RESTART},
        {EXITED(EX_CONFIG), UP_VERDICT_GIVE_UP, UP_VERDICT_RESTART},
        {EXITED(126), UP_VERDICT_GIVE_UP, UP_VERDICT_RESTART},
        {EXITED(127), UP_VERDICT_GIVE_UP, UP_VERDICT_RESTART},
        {EXITED(EX_SOFTWARE), UP_VERDICT_RESTART, UP_VERDICT_RESTART},
        {EXITED(EX_IOERR), UP_VERDICT_RESTART, UP_VERDICT_RESTART},
        {EXITED(0), UP_VERDICT_RESTART, UP_VERDICT_RESTART},
        {KILLED, UP_VERDICT_RESTART, UP_VERDICT_RESTART},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t at_ns;
        up_restart_t young = {0}, proven = {0};
        up_restart_ready(&proven);
        assert_int_equal(up_restart_died(&young, cases[i].wait_status, SECOND, &at_ns), cases[i].before);
        assert_int_equal(up_restart_died(&proven, cases[i].wait_status, SECOND, &at_ns), cases[i].after);
    }
}

static void test_up_restart_never_ready_gives_up_after_its_tries(void **state)
{
    (void)state;
    up_restart_t restart = {0};
    uint64_t at_ns;
    for (int i = 1; i < UP_RESTART_TRIES_MAX; i++) {
        assert_int_equal(up_restart_died(&restart, KILLED, SECOND, &at_ns), UP_VERDICT_RESTART);
    }
    assert_int_equal(up_restart_died(&restart, KILLED, SECOND, &at_ns), UP_VERDICT_GIVE_UP);
}

static void test_up_restart_exit_status_is_never_success(void **state)
{
    (void)state;
    assert_int_equal(up_restart_exit_status(EXITED(EX_CONFIG)), EX_CONFIG);
    assert_int_equal(up_restart_exit_status(EXITED(0)), EX_SOFTWARE);
    assert_int_equal(up_restart_exit_status(KILLED), EX_SOFTWARE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_up_restart_delay_doubles_to_its_bound_and_starts_over),
        cmocka_unit_test(test_up_restart_mistake_before_first_ready_gives_up),
        cmocka_unit_test(test_up_restart_never_ready_gives_up_after_its_tries),
        cmocka_unit_test(test_up_restart_exit_status_is_never_success),
    };
    return cmocka_run_group_tests_name("up_restart", tests, NULL, NULL);
}
