#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "services/frontend/http/listen_address.h"

static void test_listen_address_forms_are_understood(void **state)
{
    (void)state;
    static const struct {
        const char *text, *host, *port, *path;
    } cases[] = {
        {"127.0.0.1:8000", "127.0.0.1", "8000", ""},
        {"localhost:0", "localhost", "0", ""},
        {":65535", "", "65535", ""},
        {"[::1]:80", "::1", "80", ""},
        {"[::]:80", "::", "80", ""},
        {"unix:/tmp/x", "", "", "/tmp/x"},
        {"unix:x:1", "", "", "x:1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        listen_address_t address;
        assert_int_equal(listen_address_parse(cases[i].text, &address), QN_OK);
        assert_string_equal(address.host, cases[i].host);
        assert_string_equal(address.port, cases[i].port);
        assert_string_equal(address.path, cases[i].path);
        assert_int_equal(address.is_unix, cases[i].path[0] != '\0');
    }
}

static void test_listen_address_bad_forms_are_refused(void **state)
{
    (void)state;
    char long_path[128] = "unix:/";
    memset(long_path + 6, 'a', 107);
    const char *const cases[] = {"",      "8000",  "host", "host:", "host:x", "host:65536", "host:123456", "::1:80",
                                 "[::1]", "[]x:1", "[:1",  "unix:", "a:1:2",  "a:-1",       long_path};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        listen_address_t address;
        if (listen_address_parse(cases[i], &address) != QN_ERR_CONFIG) fail_msg("accepted: %s", cases[i]);
    }
}

static int open_text(const char *text)
{
    listen_address_t address;
    int fd = -1;
    assert_int_equal(listen_address_parse(text, &address), QN_OK);
    return listen_address_open(&address, &fd) == QN_OK ? fd : -1;
}

static void test_listen_address_port_zero_gets_a_real_port(void **state)
{
    (void)state;
    char shown[64];
    int fd = open_text("127.0.0.1:0");
    assert_true(fd >= 0);
    listen_address_of(fd, shown, sizeof shown);
    assert_int_equal(strncmp(shown, "127.0.0.1:", 10), 0);
    assert_true(atoi(shown + 10) > 0);
    assert_int_equal(open_text(shown), -1); /* in use */
    close(fd);
    fd = open_text(":0");
    assert_true(fd >= 0);
    close(fd);
}

static void test_listen_address_stale_unix_socket_is_replaced_a_live_one_not(void **state)
{
    (void)state;
    char folder[] = "/tmp/qn-listen-XXXXXX", path[64], text[80], shown[80];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/http", folder);
    snprintf(text, sizeof text, "unix:%s", path);
    int first = open_text(text);
    assert_true(first >= 0);
    listen_address_of(first, shown, sizeof shown);
    assert_string_equal(shown, text);
    assert_int_equal(open_text(text), -1); /* it lives */
    close(first);
    int second = open_text(text); /* its path is left behind */
    assert_true(second >= 0);
    close(second);
    unlink(path);
    FILE *file = fopen(path, "w");
    fclose(file);
    assert_int_equal(open_text(text), -1); /* no socket: not ours to remove */
    assert_int_equal(access(path, F_OK), 0);
    unlink(path);
    rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_listen_address_forms_are_understood),
        cmocka_unit_test(test_listen_address_bad_forms_are_refused),
        cmocka_unit_test(test_listen_address_port_zero_gets_a_real_port),
        cmocka_unit_test(test_listen_address_stale_unix_socket_is_replaced_a_live_one_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
