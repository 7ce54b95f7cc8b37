/* The bounded ring of held frames. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "common/limits.h"
#include "common/daemon/links/outbox.h"

static void test_outbox_keeps_order_and_copies(void **state)
{
    (void)state;
    qn_outbox_t box = {0};
    char text[] = "one";
    assert_null(qn_outbox_first(&box));
    assert_true(qn_outbox_push(&box, 1, text, sizeof text));
    memcpy(text, "two", sizeof text);
    assert_true(qn_outbox_push(&box, 2, text, sizeof text));
    assert_string_equal((const char *)qn_outbox_first(&box)->data, "one");
    qn_outbox_pop(&box);
    assert_string_equal((const char *)qn_outbox_first(&box)->data, "two");
    assert_int_equal(qn_outbox_first(&box)->number, 2);
    qn_outbox_clear(&box);
    assert_null(qn_outbox_first(&box));
}

static void test_outbox_refuses_beyond_its_bound_and_wraps(void **state)
{
    (void)state;
    qn_outbox_t box = {0};
    for (uint64_t number = 1; number <= QN_OUTBOX_MAX; number++)
        assert_true(qn_outbox_push(&box, number, "x", 1));
    assert_false(qn_outbox_push(&box, QN_OUTBOX_MAX + 1, "x", 1));
    qn_outbox_pop(&box);
    assert_true(qn_outbox_push(&box, QN_OUTBOX_MAX + 1, "y", 1));
    for (uint64_t number = 2; number <= QN_OUTBOX_MAX + 1; number++, qn_outbox_pop(&box))
        assert_int_equal(qn_outbox_first(&box)->number, number);
    assert_null(qn_outbox_first(&box));
    qn_outbox_clear(&box);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outbox_keeps_order_and_copies),
        cmocka_unit_test(test_outbox_refuses_beyond_its_bound_and_wraps),
    };
    return cmocka_run_group_tests_name("outbox", tests, NULL, NULL);
}
