/* The manager's end of sd_notify, against libsystemd's own senders. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/up/up_notify.h"

static char directory[] = "/tmp/quintet-test-notify-XXXXXX";
static char path[64];
static int notify_fd;

static int open_socket(void **state)
{
    (void)state;
    if (!mkdtemp(directory)) return -1;
    snprintf(path, sizeof path, "%s/s", directory);
    setenv("NOTIFY_SOCKET", path, 1);
    return up_notify_open(path, &notify_fd) == QN_OK ? 0 : -1;
}

static int close_socket(void **state)
{
    (void)state;
    close(notify_fd);
    unlink(path);
    return rmdir(directory);
}

static size_t open_fd_count(void)
{
    size_t count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void test_up_notice_lines_are_read_and_foreign_ones_skipped(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool ready, stopping, store, remove;
        const char *status, *name;
    } cases[] = {
        {"READY=1", true, false, false, false, NULL, ""},
        {"READY=1\n", true, false, false, false, NULL, ""},
        {"READY=0", false, false, false, false, NULL, ""},
        {"READY=10", false, false, false, false, NULL, ""},
        {"READY", false, false, false, false, NULL, ""},
        {"XREADY=1", false, false, false, false, NULL, ""},
        {"WATCHDOG=1\nSTOPPING=1\nERRNO=2", false, true, false, false, NULL, ""}, /* alive: by its text, below */
        {"STATUS=loading\x1b[2J 5 %\nREADY=1", true, false, false, false, "loading?[2J 5 %", ""},
        {"STATUS=", false, false, false, false, "", ""},
        {"FDSTORE=1\nFDNAME=ledger", false, false, true, false, NULL, "ledger"},
        {"FDSTORE=1\nFDNAME=a:b", false, false, true, false, NULL, ""},
        {"FDSTOREREMOVE=1\nFDNAME=kv", false, false, false, true, NULL, "kv"},
        {"", false, false, false, false, NULL, ""},
        {"\n\n=\n", false, false, false, false, NULL, ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        up_notice_t notice;
        up_notice_parse(cases[i].text, strlen(cases[i].text), &notice);
        assert_int_equal(notice.ready, cases[i].ready);
        assert_int_equal(notice.stopping, cases[i].stopping);
        assert_int_equal(notice.alive, strstr(cases[i].text, "WATCHDOG=1") != NULL);
        assert_int_equal(notice.fd_store, cases[i].store);
        assert_int_equal(notice.fd_store_remove, cases[i].remove);
        assert_int_equal(notice.has_status, cases[i].status != NULL);
        assert_string_equal(notice.status, cases[i].status ? cases[i].status : "");
        assert_string_equal(notice.fd_name, cases[i].name);
    }
}

static void test_up_notice_long_values_are_bounded(void **state)
{
    (void)state;
    char text[QN_REASON_MAX + 200];
    up_notice_t notice;
    memset(text, 'a', sizeof text);
    memcpy(text, "STATUS=", 7);
    up_notice_parse(text, sizeof text, &notice);
    assert_int_equal(strlen(notice.status), QN_REASON_MAX - 1);
    memcpy(text, "FDNAME=", 7);
    up_notice_parse(text, 7 + UP_FD_NAME_MAX, &notice);
    assert_string_equal(notice.fd_name, "");
    up_notice_parse(text, 7 + UP_FD_NAME_MAX - 1, &notice);
    assert_int_equal(strlen(notice.fd_name), UP_FD_NAME_MAX - 1);
}

static void test_up_notify_takes_what_libsystemd_sends(void **state)
{
    (void)state;
    up_notice_t notice;
    int fds[UP_STORE_FDS_MAX];
    size_t count = 99;
    assert_false(up_notify_take(notify_fd, &notice, fds, &count));
    assert_int_equal(sd_notify(0, "READY=1\nSTATUS=here"), 1);
    assert_true(up_notify_take(notify_fd, &notice, fds, &count));
    assert_true(notice.ready);
    assert_string_equal(notice.status, "here");
    assert_int_equal(count, 0);
    assert_false(up_notify_take(notify_fd, &notice, fds, &count));
}

static void test_up_notify_store_hands_over_the_same_files(void **state)
{
    (void)state;
    up_notice_t notice;
    int sent[2] = {memfd_create("a", 0), memfd_create("b", 0)}, fds[UP_STORE_FDS_MAX];
    size_t count;
    struct stat mine, theirs;
    assert_int_equal(sd_pid_notify_with_fds(0, 0, "FDSTORE=1\nFDNAME=ledger", sent, 2), 1);
    assert_true(up_notify_take(notify_fd, &notice, fds, &count));
    assert_int_equal(count, 2);
    assert_string_equal(notice.fd_name, "ledger");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(fstat(sent[i], &mine) | fstat(fds[i], &theirs), 0);
        assert_int_equal(mine.st_ino, theirs.st_ino);
        assert_int_not_equal(fcntl(fds[i], F_GETFD) & FD_CLOEXEC, 0);
        close(sent[i]);
        close(fds[i]);
    }
}

static void test_up_notify_uninvited_fds_are_closed(void **state)
{
    (void)state;
    up_notice_t notice;
    int sent = memfd_create("a", 0), fds[UP_STORE_FDS_MAX];
    size_t count, before = open_fd_count();
    assert_int_equal(sd_pid_notify_with_fds(0, 0, "STATUS=look", &sent, 1), 1);
    assert_true(up_notify_take(notify_fd, &notice, fds, &count));
    assert_int_equal(count, 0);
    assert_int_equal(open_fd_count(), before);
    close(sent);
}

static void test_up_notify_barrier_is_answered_by_closing(void **state)
{
    (void)state;
    up_notice_t notice;
    int ends[2], fds[UP_STORE_FDS_MAX];
    size_t count;
    char byte;
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(sd_pid_notify_with_fds(0, 0, "BARRIER=1", &ends[1], 1), 1);
    close(ends[1]);
    assert_true(up_notify_take(notify_fd, &notice, fds, &count));
    assert_int_equal(read(ends[0], &byte, 1), 0); /* end of file: the other side let go */
    close(ends[0]);
}

static void test_up_notify_more_fds_than_fit_leak_nothing(void **state)
{
    (void)state;
    up_notice_t notice;
    int sent[UP_STORE_FDS_MAX + 8], fds[UP_STORE_FDS_MAX];
    size_t count, before = open_fd_count();
    for (size_t i = 0; i < UP_STORE_FDS_MAX + 8; i++)
        sent[i] = memfd_create("a", 0);
    assert_int_equal(sd_pid_notify_with_fds(0, 0, "FDSTORE=1", sent, UP_STORE_FDS_MAX + 8), 1);
    for (size_t i = 0; i < UP_STORE_FDS_MAX + 8; i++)
        close(sent[i]);
    assert_true(up_notify_take(notify_fd, &notice, fds, &count));
    assert_int_equal(count, UP_STORE_FDS_MAX);
    for (size_t i = 0; i < count; i++)
        close(fds[i]);
    assert_int_equal(open_fd_count(), before);
}

static void test_up_notify_open_refuses_a_path_that_does_not_fit(void **state)
{
    (void)state;
    char long_path[120];
    int fd = -1;
    memset(long_path, 'a', sizeof long_path);
    long_path[108] = '\0';
    assert_int_equal(up_notify_open(long_path, &fd), QN_ERR_LIMIT);
    assert_int_equal(fd, -1);
    assert_int_equal(up_notify_open("/nonexistent/socket", &fd), QN_ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_up_notice_lines_are_read_and_foreign_ones_skipped),
        cmocka_unit_test(test_up_notice_long_values_are_bounded),
        cmocka_unit_test(test_up_notify_takes_what_libsystemd_sends),
        cmocka_unit_test(test_up_notify_store_hands_over_the_same_files),
        cmocka_unit_test(test_up_notify_uninvited_fds_are_closed),
        cmocka_unit_test(test_up_notify_barrier_is_answered_by_closing),
        cmocka_unit_test(test_up_notify_more_fds_than_fit_leak_nothing),
        cmocka_unit_test(test_up_notify_open_refuses_a_path_that_does_not_fit),
    };
    return cmocka_run_group_tests_name("up_notify", tests, open_socket, close_socket);
}
