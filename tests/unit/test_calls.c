#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "qn_methods.h"
#include "services/frontend/methods/calls.h"

static calls_t *make(void)
{
    static calls_t calls;
    calls_init(&calls, 3);
    return &calls;
}

static call_t *open_of(calls_t *calls, qn_method_id_t method, uint64_t deadline_ns)
{
    call_t *call = calls_open(calls);
    call->method = &qn_methods[method];
    call->deadline_ns = deadline_ns;
    return call;
}

static void test_calls_holds_its_bound_and_finds_each_by_its_id(void **state)
{
    (void)state;
    calls_t *calls = make();
    uint64_t ids[CALLS_MAX];
    for (int i = 0; i < CALLS_MAX; i++) {
        call_t *call = calls_open(calls);
        assert_non_null(call);
        ids[i] = call->id;
        assert_true(call->id > 1ull << 62 && call->id < 1ull << 63);
    }
    assert_null(calls_open(calls));
    assert_int_equal(calls->count, CALLS_MAX);
    for (int i = 0; i < CALLS_MAX; i++)
        assert_int_equal(calls_find(calls, ids[i])->id, ids[i]);
}

static void test_calls_closed_id_is_never_found_again(void **state)
{
    (void)state;
    calls_t *calls = make();
    call_t *first = calls_open(calls);
    uint64_t id = first->id;
    calls_close(calls, first);
    assert_null(calls_find(calls, id));
    call_t *next = calls_open(calls); /* the same place */
    assert_ptr_equal(next, first);
    assert_int_not_equal(next->id, id);
    assert_null(calls_find(calls, id));
    assert_null(calls_find(calls, 0));
    assert_null(calls_find(calls, 7));
}

static void test_calls_overdue_gives_those_past_their_deadline(void **state)
{
    (void)state;
    calls_t *calls = make();
    call_t *late = open_of(calls, QN_METHOD_MEMORY_USAGE, 100);
    open_of(calls, QN_METHOD_MEMORY_USAGE, 200);
    assert_null(calls_overdue(calls, 99));
    assert_ptr_equal(calls_overdue(calls, 100), late);
    calls_close(calls, late);
    assert_null(calls_overdue(calls, 199));
    assert_non_null(calls_overdue(calls, 200));
}

static void test_calls_of_service_gives_that_services_only(void **state)
{
    (void)state;
    calls_t *calls = make();
    open_of(calls, QN_METHOD_MEMORY_USAGE, 1);
    call_t *queue = open_of(calls, QN_METHOD_SCHEDULER_QUEUE, 1);
    assert_ptr_equal(calls_of_service(calls, QN_SERVICE_SCHEDULER), queue);
    assert_null(calls_of_service(calls, QN_SERVICE_COMPUTE));
}

static void test_calls_forget_takes_the_client_out_and_leaves_the_call(void **state)
{
    (void)state;
    calls_t *calls = make();
    int one, two;
    call_t *first = open_of(calls, QN_METHOD_MEMORY_USAGE, 1), *second = open_of(calls, QN_METHOD_MEMORY_USAGE, 1);
    first->request = &one;
    second->request = &two;
    assert_int_equal(calls_for_clients(calls), 2);
    assert_true(calls_forget(calls, &one));
    assert_false(calls_forget(calls, &one));
    assert_null(first->request);
    assert_int_equal(calls_for_clients(calls), 1);
    assert_int_equal(calls->count, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calls_holds_its_bound_and_finds_each_by_its_id),
        cmocka_unit_test(test_calls_closed_id_is_never_found_again),
        cmocka_unit_test(test_calls_overdue_gives_those_past_their_deadline),
        cmocka_unit_test(test_calls_of_service_gives_that_services_only),
        cmocka_unit_test(test_calls_forget_takes_the_client_out_and_leaves_the_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
