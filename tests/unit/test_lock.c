/* One life of a service per run directory, counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/daemon/lock.h"

static char directory[64];

static int setup(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/qn-lock-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/memory.lock", directory);
    unlink(path);
    return rmdir(directory);
}

static void test_lock_counts_boots(void **state)
{
    (void)state;
    qn_lock_t lock;
    for (uint32_t boot = 1; boot <= 3; boot++) {
        assert_int_equal(qn_lock_take(directory, "memory", &lock), QN_OK);
        assert_int_equal(lock.epoch, boot);
        qn_lock_release(&lock);
    }
}

static void test_lock_refuses_a_duplicate_and_names_it(void **state)
{
    (void)state;
    qn_lock_t first, second;
    char pid[32];
    snprintf(pid, sizeof pid, "(pid %d)", (int)getpid());
    assert_int_equal(qn_lock_take(directory, "memory", &first), QN_OK);
    assert_int_equal(qn_lock_take(directory, "memory", &second), QN_ERR_EXISTS);
    assert_non_null(strstr(qn_err_text(), pid));
    qn_lock_release(&first);
    assert_int_equal(qn_lock_take(directory, "memory", &second), QN_OK);
    assert_int_equal(second.epoch, 2); /* the refused start was no boot */
    qn_lock_release(&second);
}

static void test_lock_is_free_after_the_holder_died(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        qn_lock_t lock;
        _exit(qn_lock_take(directory, "memory", &lock) == QN_OK ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    qn_lock_t lock;
    assert_int_equal(qn_lock_take(directory, "memory", &lock), QN_OK);
    assert_int_equal(lock.epoch, 2);
    qn_lock_release(&lock);
}

static void test_lock_refuses_a_foreign_file(void **state)
{
    (void)state;
    char path[128];
    qn_lock_t lock;
    snprintf(path, sizeof path, "%s/memory.lock", directory);
    FILE *file = fopen(path, "w");
    fputs("precious data", file);
    fclose(file);
    assert_int_equal(qn_lock_take(directory, "memory", &lock), QN_ERR_INVALID);
}

static void test_lock_without_directory_fails(void **state)
{
    (void)state;
    qn_lock_t lock;
    assert_int_equal(qn_lock_take("/nonexistent/run", "memory", &lock), QN_ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_lock_counts_boots, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lock_refuses_a_duplicate_and_names_it, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lock_is_free_after_the_holder_died, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lock_refuses_a_foreign_file, setup, teardown),
        cmocka_unit_test(test_lock_without_directory_fails),
    };
    return cmocka_run_group_tests_name("lock", tests, NULL, NULL);
}
