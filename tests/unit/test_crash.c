/* What is a crash, and whose life it ended. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/daemon/crash.h"
#include "common/daemon/lock.h"

#define EXITED(status) ((status) << 8)

static char directory[64];

static int setup(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/qn-crash-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    static const char *const names[] = {"compute.lock", "compute.crash"};
    char path[128];
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        unlink(path);
    }
    return rmdir(directory);
}

static void test_crash_is_an_end_the_program_brought_about_itself(void **state)
{
    (void)state;
    const struct {
        int wait_status;
        bool counts;
    } table[] = {
        {EXITED(0), false}, {EXITED(1), true}, {EXITED(70), true}, {EXITED(78), true},
        {SIGSEGV, true},    {SIGABRT, true},   {SIGBUS, true},     {SIGFPE, true},
        {SIGILL, true},     {SIGKILL, false},  {SIGTERM, false},   {SIGINT, false},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (qn_crash_counts(table[i].wait_status) != table[i].counts) fail_msg("row %zu", i);
}

static void test_crash_record_is_of_the_life_that_ended_and_no_other(void **state)
{
    (void)state;
    qn_lock_t lock;
    qn_crash_t crash;
    char text[32];
    assert_int_equal(qn_crash_write(directory, "compute", getpid(), SIGSEGV), QN_ERR_NOT_FOUND); /* it never ran */
    assert_int_equal(qn_lock_take(directory, "compute", &lock), QN_OK);
    qn_lock_release(&lock);
    assert_int_equal(qn_crash_write(directory, "compute", getpid() + 1, SIGSEGV), QN_ERR_NOT_FOUND);
    assert_false(qn_crash_read(directory, "compute", 1, &crash));
    assert_int_equal(qn_crash_write(directory, "compute", getpid(), SIGSEGV), QN_OK);
    assert_true(qn_crash_read(directory, "compute", 1, &crash));
    assert_int_equal(crash.pid, getpid());
    assert_true(crash.at_s > 1700000000);
    assert_string_equal(qn_crash_describe(&crash, text, sizeof text), "SIGSEGV");
    assert_false(qn_crash_read(directory, "compute", 2, &crash));
    assert_false(qn_crash_read(directory, "compute", 0, &crash));
    assert_int_equal(qn_lock_take(directory, "compute", &lock), QN_OK);
    qn_lock_release(&lock);
    assert_int_equal(qn_crash_write(directory, "compute", getpid(), EXITED(70)), QN_OK);
    assert_false(qn_crash_read(directory, "compute", 1, &crash));
    assert_true(qn_crash_read(directory, "compute", 2, &crash));
    assert_string_equal(qn_crash_describe(&crash, text, sizeof text), "status 70");
}

static void test_crash_of_a_unit_is_known_by_its_invocation(void **state)
{
    (void)state;
    qn_lock_t lock;
    qn_crash_t crash;
    setenv("INVOCATION_ID", "00112233445566778899aabbccddeeff", 1);
    assert_int_equal(qn_lock_take(directory, "compute", &lock), QN_OK);
    qn_lock_release(&lock);
    assert_int_equal(qn_crash_write(directory, "compute", 0, SIGABRT), QN_OK);
    assert_true(qn_crash_read(directory, "compute", 1, &crash));
    setenv("INVOCATION_ID", "ffeeddccbbaa99887766554433221100", 1); /* another start, which ended before it had begun */
    assert_int_equal(qn_crash_write(directory, "compute", 0, SIGABRT), QN_ERR_NOT_FOUND);
    unsetenv("INVOCATION_ID");
    assert_int_equal(qn_crash_write(directory, "compute", 0, SIGABRT), QN_ERR_NOT_FOUND);
}

static void test_crash_record_that_is_no_record_is_none(void **state)
{
    (void)state;
    static const char *const contents[] = {"", "epoch 1\n", "epoch 1\npid x\n", "nonsense",
                                           "epoch 1\npid 2\nsignal 3\n"};
    qn_crash_t crash;
    char path[128];
    snprintf(path, sizeof path, "%s/compute.crash", directory);
    for (size_t i = 0; i < sizeof contents / sizeof contents[0]; i++) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fputs(contents[i], file);
        fclose(file);
        assert_false(qn_crash_read(directory, "compute", 1, &crash));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_crash_is_an_end_the_program_brought_about_itself, setup, teardown),
        cmocka_unit_test_setup_teardown(test_crash_record_is_of_the_life_that_ended_and_no_other, setup, teardown),
        cmocka_unit_test_setup_teardown(test_crash_of_a_unit_is_known_by_its_invocation, setup, teardown),
        cmocka_unit_test_setup_teardown(test_crash_record_that_is_no_record_is_none, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
