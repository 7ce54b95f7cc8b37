/* What QUINTET_FAILPOINTS says, what is refused, and when a point fires. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/failpoint.h"
#include "common/watch/log.h"

#define POINT QN_FAILPOINT_SCHEDULER_AFTER_RESULT

static char directory[64];

static int setup(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/qn-failpoint-XXXXXX");
    qn_log_set_level(QN_LOG_ERROR);
    return mkdtemp(directory) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    char path[128];
    qn_failpoints_arm(NULL, directory);
    snprintf(path, sizeof path, "%s/failpoints", directory);
    unlink(path);
    return rmdir(directory);
}

static void arm(const char *text) { assert_int_equal(qn_failpoints_arm(text, directory), QN_OK); }

static void test_failpoint_bad_text_is_refused_with_its_reason(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"compute.nothing:1:crash", "there are frontend.request"},
        {"compute.before_step", "is not NAME"},
        {"compute.before_step:1", "is not NAME"},
        {"compute.before_step:0:crash", "the count 0"},
        {"compute.before_step:-1:crash", "the count -1"},
        {"compute.before_step:1x:crash", "the count 1x"},
        {"compute.before_step:1:burn", "no action burn"},
        {"compute.before_step:1:exit=256", "no action exit=256"},
        {"compute.before_step:1:exit=", "no action exit="},
        {"compute.before_step:1:crash:0", "the times 0"},
        {"compute.before_step:1:crash:1:1", "too many fields"},
        {"compute.before_step@word:1:crash", "matches a token id"},
        {"compute.before_step@:1:crash", "the match"},
        {"frontend.event@word:1:crash", "takes no @MATCH"},
        {"compute.before_step:1:crash,", "is not NAME"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(qn_failpoints_arm(cases[i][0], directory), QN_ERR_CONFIG);
        if (!strstr(qn_err_text(), cases[i][1])) fail_msg("%s: %s", cases[i][0], qn_err_text());
        assert_false(qn_failpoints_armed);
    }
}

static void test_failpoint_nothing_armed_never_fires(void **state)
{
    (void)state;
    arm("");
    assert_false(QN_FAILPOINT(POINT));
    arm(NULL);
    assert_false(QN_FAILPOINT(POINT));
}

static void test_failpoint_fires_at_its_count_and_once(void **state)
{
    (void)state;
    arm("scheduler.after_result:3:error");
    for (int hit = 1; hit <= 6; hit++) {
        assert_false(QN_FAILPOINT(QN_FAILPOINT_SCHEDULER_LEDGER_APPEND));
        assert_int_equal(QN_FAILPOINT(POINT), hit == 3);
    }
}

static void test_failpoint_match_counts_only_what_it_names(void **state)
{
    (void)state;
    const uint32_t with[] = {4, 77}, without[] = {4, 78};
    arm("compute.before_step@77:2:error,tokenizer.before_encode@boom:1:error");
    assert_false(QN_FAILPOINT_IDS(QN_FAILPOINT_COMPUTE_BEFORE_STEP, with, 2));
    assert_false(QN_FAILPOINT_IDS(QN_FAILPOINT_COMPUTE_BEFORE_STEP, without, 2));
    assert_false(QN_FAILPOINT_IDS(QN_FAILPOINT_COMPUTE_BEFORE_STEP, with, 1));
    assert_true(QN_FAILPOINT_IDS(QN_FAILPOINT_COMPUTE_BEFORE_STEP, with, 2));
    assert_false(QN_FAILPOINT_TEXT(QN_FAILPOINT_TOKENIZER_BEFORE_ENCODE, "boo", 3));
    assert_false(QN_FAILPOINT_TEXT(QN_FAILPOINT_TOKENIZER_BEFORE_ENCODE, NULL, 0));
    assert_true(QN_FAILPOINT_TEXT(QN_FAILPOINT_TOKENIZER_BEFORE_ENCODE, "a boom", 6));
}

static void test_failpoint_times_hold_over_lives(void **state)
{
    (void)state;
    for (int life = 1; life <= 4; life++) {
        arm("scheduler.after_result:1:error:2");
        assert_int_equal(QN_FAILPOINT(POINT), life <= 2);
    }
}

/* How a child ends that hits the point. */
static int status_of(const char *text)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGABRT, SIG_DFL);
        arm(text);
        alarm(20);
        _exit(QN_FAILPOINT(POINT) ? 3 : 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void test_failpoint_actions_end_the_process_as_they_say(void **state)
{
    (void)state;
    int status = status_of("scheduler.after_result:1:crash");
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    status = status_of("scheduler.after_result:1:kill");
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    status = status_of("scheduler.after_result:1:exit=71");
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 71);
    status = status_of("scheduler.after_result:2:crash");
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_failpoint_bad_text_is_refused_with_its_reason, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failpoint_nothing_armed_never_fires, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failpoint_fires_at_its_count_and_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failpoint_match_counts_only_what_it_names, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failpoint_times_hold_over_lives, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failpoint_actions_end_the_process_as_they_say, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
