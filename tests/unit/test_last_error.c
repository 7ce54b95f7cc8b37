/* The file in which a daemon says why it ended. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/watch/last_error.h"

static char run_dir[64];

static int make_run_dir(void **state)
{
    (void)state;
    snprintf(run_dir, sizeof run_dir, "/tmp/quintet-error-XXXXXX");
    return mkdtemp(run_dir) ? 0 : -1;
}

static int remove_run_dir(void **state)
{
    (void)state;
    return rmdir(run_dir);
}

static const char *read_of(const char *service)
{
    static char text[128];
    qn_last_error_read(run_dir, service, text, sizeof text);
    return text;
}

static void test_last_error_is_one_line_until_it_is_cleared(void **state)
{
    (void)state;
    assert_string_equal(read_of("memory"), "");
    qn_last_error_begin(run_dir, "memory");
    qn_last_error_write("the first");
    qn_last_error_write("no room\nand more");
    assert_string_equal(read_of("memory"), "no room");
    assert_string_equal(read_of("compute"), "");
    char small[4];
    qn_last_error_read(run_dir, "memory", small, sizeof small);
    assert_string_equal(small, "no ");
    qn_last_error_clear();
    assert_string_equal(read_of("memory"), "");
}

static void *other_daemon(void *unused)
{
    (void)unused;
    qn_last_error_begin(run_dir, "compute");
    qn_last_error_write("of compute");
    return NULL;
}

static void test_last_error_each_daemon_of_a_composition_has_its_own(void **state)
{
    (void)state;
    qn_last_error_begin(run_dir, "memory");
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, other_daemon, NULL), 0);
    pthread_join(thread, NULL);
    qn_last_error_write("of memory");
    assert_string_equal(read_of("compute"), "of compute");
    assert_string_equal(read_of("memory"), "of memory");
    qn_last_error_clear();
    qn_last_error_begin(run_dir, "compute");
    qn_last_error_clear();
}

static void test_last_error_of_an_assertion_outlives_the_process(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        qn_last_error_begin(run_dir, "scheduler");
        QN_ASSERT(1 + 1 == 3);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_non_null(strstr(read_of("scheduler"), "assertion failed: 1 + 1 == 3"));
    qn_last_error_begin(run_dir, "scheduler");
    qn_last_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_last_error_is_one_line_until_it_is_cleared, make_run_dir, remove_run_dir),
        cmocka_unit_test_setup_teardown(test_last_error_each_daemon_of_a_composition_has_its_own, make_run_dir,
                                        remove_run_dir),
        cmocka_unit_test_setup_teardown(test_last_error_of_an_assertion_outlives_the_process, make_run_dir,
                                        remove_run_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
