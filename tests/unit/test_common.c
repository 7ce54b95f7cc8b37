/* The small ones: arena, failure record, endpoints. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/arena.h"
#include "common/daemon/descriptors.h"
#include "common/daemon/links/endpoint.h"
#include "common/err.h"

static void test_arena_pieces_are_aligned_apart_and_reused(void **state)
{
    (void)state;
    qn_arena_t arena;
    qn_arena_init(&arena, 256);
    unsigned char *pieces[200];
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < 200; i++) {
            size_t align = (size_t)1 << (i % 8);
            pieces[i] = qn_arena_alloc(&arena, i + 1, align);
            assert_int_equal((uintptr_t)pieces[i] % align, 0);
            memset(pieces[i], (int)i, i + 1);
        }
        for (size_t i = 0; i < 200; i++)
            for (size_t j = 0; j <= i; j++)
                assert_int_equal(pieces[i][j], (unsigned char)i);
        qn_arena_reset(&arena);
    }
    qn_arena_fini(&arena);
    qn_arena_fini(&arena);
}

static void test_err_keeps_the_text_even_when_it_quotes_itself(void **state)
{
    (void)state;
    assert_int_equal(qn_fail(QN_ERR_IO, "inner %d", 1), QN_ERR_IO);
    assert_int_equal(qn_fail(QN_ERR_INVALID, "outer: %s", qn_err_text()), QN_ERR_INVALID);
    assert_string_equal(qn_err_text(), "outer: inner 1");
    assert_non_null(strstr(qn_err_origin(), "test_common.c:"));
}

static void test_endpoint_forms(void **state)
{
    (void)state;
    qn_config_values_t config = {0};
    char endpoint[QN_ENDPOINT_MAX], deep[200];
    config.scheduler.endpoint = (char *)"ipc";
    assert_int_equal(qn_endpoint_outer(&config, "/run/q", QN_SERVICE_SCHEDULER, endpoint), QN_OK);
    assert_string_equal(endpoint, "ipc:///run/q/scheduler.sock");
    config.scheduler.endpoint = (char *)"tcp://127.0.0.1:5555";
    assert_int_equal(qn_endpoint_outer(&config, "/run/q", QN_SERVICE_SCHEDULER, endpoint), QN_OK);
    assert_string_equal(endpoint, "tcp://127.0.0.1:5555");
    config.scheduler.endpoint = (char *)"udp://x";
    assert_int_equal(qn_endpoint_outer(&config, "/run/q", QN_SERVICE_SCHEDULER, endpoint), QN_ERR_CONFIG);
    config.scheduler.endpoint = (char *)"ipc";
    memset(deep, 'd', sizeof deep);
    deep[0] = '/';
    deep[107 - 15] = '\0'; /* sun_path holds 107 bytes, "/scheduler.sock" is 15 */
    assert_int_equal(qn_endpoint_outer(&config, deep, QN_SERVICE_SCHEDULER, endpoint), QN_OK);
    deep[107 - 15] = 'd';
    deep[107 - 14] = '\0';
    assert_int_equal(qn_endpoint_outer(&config, deep, QN_SERVICE_SCHEDULER, endpoint), QN_ERR_LIMIT);
    assert_int_equal(qn_endpoint_inner("/run/q", QN_SERVICE_MEMORY, endpoint), QN_OK);
    assert_string_equal(endpoint, "inproc:///run/q/memory");
}

static void *fail_elsewhere(void *failure)
{
    qn_failure_keep(failure, qn_fail_at(QN_ERR_DEVICE, "dir/elsewhere.cu", 7, "it is %s", "hot"));
    return NULL;
}

static void test_failure_of_another_thread_is_raised_with_text_and_origin(void **state)
{
    (void)state;
    qn_failure_t failure = {0};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &failure), 0);
    pthread_join(thread, NULL);
    qn_fail(QN_ERR_IO, "another one");
    assert_int_equal(qn_failure_raise(&failure), QN_ERR_DEVICE);
    assert_string_equal(qn_err_text(), "it is hot");
    assert_string_equal(qn_err_origin(), "elsewhere.cu:7");
}

static void test_endpoint_open_is_what_other_hosts_reach(void **state)
{
    (void)state;
    static const struct {
        const char *endpoint;
        bool open;
    } table[] = {
        {"tcp://0.0.0.0:5000", true},
        {"tcp://*:5000", true},
        {"tcp://10.0.0.7:5000", true},
        {"tcp://[::]:5000", true},
        {"tcp://worker:5000", true},
        {"tcp://127.0.0.1:5000", false},
        {"tcp://127.1.2.3:5000", false},
        {"tcp://[::1]:5000", false},
        {"tcp://localhost:5000", false},
        {"tcp://localhost.example.org:5000", true},
        {"ipc:///run/quintet/memory.sock", false},
        {"inproc://x/memory", false},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (qn_endpoint_is_open(table[i].endpoint) != table[i].open) fail_msg("%s", table[i].endpoint);
}

static void test_descriptors_needed_follow_the_configuration(void **state)
{
    (void)state;
    qn_config_values_t small = {.frontend.max_connections = 10}, large = {.frontend.max_connections = 1000};
    unsigned frontend = 1u << QN_SERVICE_FRONTEND, memory = 1u << QN_SERVICE_MEMORY;
    assert_int_equal(qn_descriptors_needed(frontend, &large) - qn_descriptors_needed(frontend, &small), 990);
    assert_int_equal(qn_descriptors_needed(memory, &large), qn_descriptors_needed(memory, &small));
    assert_int_equal(qn_descriptors_needed(memory | frontend, &large),
                     qn_descriptors_needed(memory, &large) + qn_descriptors_needed(frontend, &large));
    large.frontend.max_connections = 1u << 30; /* no process may have as many */
    assert_int_equal(qn_descriptors_ensure(frontend, &large), QN_ERR_CONFIG);
    assert_non_null(strstr(qn_err_text(), "lower frontend.max_connections"));
    assert_int_equal(qn_descriptors_ensure(memory, &large), QN_OK);
}

static void test_common_failure_that_quotes_control_characters_is_printable(void **state)
{
    (void)state;
    assert_int_equal(qn_fail(QN_ERR_INVALID, "not \"a\x1b[2J\a\x7f\tb\nc\""), QN_ERR_INVALID);
    assert_string_equal(qn_err_text(), "not \"a?[2J??\tb\nc\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arena_pieces_are_aligned_apart_and_reused),
        cmocka_unit_test(test_err_keeps_the_text_even_when_it_quotes_itself),
        cmocka_unit_test(test_endpoint_forms),
        cmocka_unit_test(test_failure_of_another_thread_is_raised_with_text_and_origin),
        cmocka_unit_test(test_endpoint_open_is_what_other_hosts_reach),
        cmocka_unit_test(test_descriptors_needed_follow_the_configuration),
        cmocka_unit_test(test_common_failure_that_quotes_control_characters_is_printable),
    };
    return cmocka_run_group_tests_name("common", tests, NULL, NULL);
}
