/* The descriptors that `quintet up` keeps. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/up/up_store.h"

static int make_file(void)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static bool is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

static void test_up_store_keeps_names_in_order(void **state)
{
    (void)state;
    up_store_t store = {0};
    char names[256];
    up_store_names(&store, names, sizeof names);
    assert_string_equal(names, "");
    assert_int_equal(up_store_add(&store, make_file(), "ledger"), UP_STORE_KEPT);
    assert_int_equal(up_store_add(&store, make_file(), ""), UP_STORE_KEPT);
    assert_int_equal(up_store_add(&store, make_file(), "ledger"), UP_STORE_KEPT);
    assert_int_equal(up_store_add(&store, make_file(), "a:b"), UP_STORE_KEPT);
    up_store_names(&store, names, sizeof names);
    assert_string_equal(names, "ledger:stored:ledger:stored");
    up_store_clear(&store);
    assert_int_equal(store.count, 0);
}

static void test_up_store_same_file_is_kept_once(void **state)
{
    (void)state;
    up_store_t store = {0};
    int fd = make_file(), again = dup(fd);
    assert_int_equal(up_store_add(&store, fd, "ledger"), UP_STORE_KEPT);
    assert_int_equal(up_store_add(&store, again, "other"), UP_STORE_KNOWN);
    assert_false(is_open(again));
    assert_true(is_open(fd));
    assert_int_equal(store.count, 1);
    up_store_clear(&store);
    assert_false(is_open(fd));
}

static void test_up_store_socket_is_kept_once_but_pipe_ends_both(void **state)
{
    (void)state;
    up_store_t store = {0};
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), ends[2], events[2] = {eventfd(0, 0), eventfd(0, 0)};
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(up_store_add(&store, dup(listener), "http"), UP_STORE_KEPT);
    assert_int_equal(up_store_add(&store, listener, "http"), UP_STORE_KNOWN);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(up_store_add(&store, ends[i], "pipe"), UP_STORE_KEPT);
        assert_int_equal(up_store_add(&store, events[i], "event"), UP_STORE_KEPT);
    }
    assert_int_equal(store.count, 5);
    up_store_clear(&store);
}

static void test_up_store_full_closes_what_comes(void **state)
{
    (void)state;
    up_store_t store = {0};
    for (int i = 0; i < UP_STORE_FDS_MAX; i++)
        assert_int_equal(up_store_add(&store, make_file(), "x"), UP_STORE_KEPT);
    int fd = make_file();
    assert_int_equal(up_store_add(&store, fd, "x"), UP_STORE_FULL);
    assert_false(is_open(fd));
    assert_int_equal(store.count, UP_STORE_FDS_MAX);
    up_store_clear(&store);
}

static void test_up_store_remove_closes_all_of_a_name(void **state)
{
    (void)state;
    up_store_t store = {0};
    int a = make_file(), b = make_file(), c = make_file();
    up_store_add(&store, a, "one");
    up_store_add(&store, b, "two");
    up_store_add(&store, c, "one");
    assert_int_equal(up_store_remove(&store, "none"), 0);
    assert_int_equal(up_store_remove(&store, "one"), 2);
    assert_false(is_open(a) || is_open(c));
    assert_true(is_open(b));
    assert_int_equal(store.count, 1);
    assert_string_equal(store.items[0].name, "two");
    up_store_clear(&store);
}

static void test_up_store_name_follows_the_protocol(void **state)
{
    (void)state;
    char longest[UP_FD_NAME_MAX + 1];
    memset(longest, 'a', sizeof longest);
    longest[UP_FD_NAME_MAX] = '\0';
    assert_false(up_store_name_is_valid(longest));
    longest[UP_FD_NAME_MAX - 1] = '\0';
    assert_true(up_store_name_is_valid(longest));
    assert_true(up_store_name_is_valid("kv region 0"));
    assert_false(up_store_name_is_valid(""));
    assert_false(up_store_name_is_valid("a:b"));
    assert_false(up_store_name_is_valid("a\nb"));
    assert_false(up_store_name_is_valid("\xc3\xa9"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_up_store_keeps_names_in_order),
        cmocka_unit_test(test_up_store_same_file_is_kept_once),
        cmocka_unit_test(test_up_store_socket_is_kept_once_but_pipe_ends_both),
        cmocka_unit_test(test_up_store_full_closes_what_comes),
        cmocka_unit_test(test_up_store_remove_closes_all_of_a_name),
        cmocka_unit_test(test_up_store_name_follows_the_protocol),
    };
    return cmocka_run_group_tests_name("up_store", tests, NULL, NULL);
}
