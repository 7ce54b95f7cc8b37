/* What is this?      Tests of the sniffer's reorder window.
 * State owned:       none.
 * Must never:        read a clock: times are arguments.
 * Read next:         common/capture/capture_order.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "common/capture/capture_order.h"

static void put(qn_capture_order_t *order, uint64_t time_ns, uint64_t mark)
{
    qn_tap_header_t header = {.direction = QN_TAP_DROPPED, .now_ns = time_ns, .number = mark};
    qn_capture_order_put(order, qn_capture_message_new(&header, NULL, 0, 0));
}

/* Takes one at `now_ns`: its mark, or 0 when none is due. */
static uint64_t take(qn_capture_order_t *order, uint64_t now_ns)
{
    qn_capture_message_t *message = qn_capture_order_take(order, now_ns);
    uint64_t mark = message ? message->header.number : 0;
    free(message);
    return mark;
}

static void test_order_message_waits_for_its_window(void **state)
{
    (void)state;
    qn_capture_order_t order;
    qn_capture_order_init(&order, 20);
    assert_true(qn_capture_order_due_ns(&order) == UINT64_MAX);
    assert_int_equal(take(&order, UINT64_MAX), 0);
    put(&order, 100, 1);
    assert_int_equal(qn_capture_order_due_ns(&order), 120);
    assert_int_equal(take(&order, 119), 0);
    assert_int_equal(take(&order, 120), 1);
    qn_capture_order_fini(&order);
}

static void test_order_late_message_overtakes(void **state)
{
    (void)state;
    qn_capture_order_t order;
    qn_capture_order_init(&order, 20);
    put(&order, 105, 2);
    put(&order, 100, 1);
    put(&order, 110, 3);
    assert_int_equal(take(&order, 120), 1);
    assert_int_equal(take(&order, 120), 0);
    assert_int_equal(take(&order, 130), 2);
    assert_int_equal(take(&order, 130), 3);
    qn_capture_order_fini(&order);
}

static void test_order_equal_times_stay_in_order_of_arrival(void **state)
{
    (void)state;
    qn_capture_order_t order;
    qn_capture_order_init(&order, 0);
    for (uint64_t mark = 1; mark <= 100; mark++)
        put(&order, 7, mark);
    for (uint64_t mark = 1; mark <= 100; mark++)
        assert_int_equal(take(&order, 7), mark);
    qn_capture_order_fini(&order);
}

static void test_order_random_times_come_out_sorted(void **state)
{
    (void)state;
    const unsigned seed = 20240817;
    print_message("[ seed     ] %u\n", seed);
    srand(seed);
    qn_capture_order_t order;
    qn_capture_order_init(&order, 0);
    for (int i = 0; i < 5000; i++)
        put(&order, 1 + (uint64_t)(rand() % 1000), 1);
    uint64_t last = 0;
    qn_capture_message_t *message;
    int count = 0;
    for (; (message = qn_capture_order_take(&order, UINT64_MAX)) != NULL; count++) {
        assert_true(message->time_ns >= last);
        last = message->time_ns;
        free(message);
    }
    assert_int_equal(count, 5000);
    assert_int_equal(order.bytes, 0);
    qn_capture_order_fini(&order);
}

static void test_order_full_window_lets_the_earliest_go(void **state)
{
    (void)state;
    qn_capture_order_t order;
    qn_capture_order_init(&order, 1000000);
    for (uint64_t i = 1; i < QN_CAPTURE_ORDER_MESSAGES_MAX; i++)
        put(&order, i, i);
    assert_int_equal(take(&order, 1), 0);
    put(&order, QN_CAPTURE_ORDER_MESSAGES_MAX, QN_CAPTURE_ORDER_MESSAGES_MAX);
    assert_int_equal(take(&order, 1), 1);
    assert_int_equal(take(&order, 1), 0);
    qn_capture_order_fini(&order);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_message_waits_for_its_window),
        cmocka_unit_test(test_order_late_message_overtakes),
        cmocka_unit_test(test_order_equal_times_stay_in_order_of_arrival),
        cmocka_unit_test(test_order_random_times_come_out_sorted),
        cmocka_unit_test(test_order_full_window_lets_the_earliest_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
