/* The link protocol's rules: numbering, credit, liveness. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/limits.h"
#include "common/daemon/links/peer.h"

static qn_peer_link_t greeted(uint32_t own_window, uint32_t peer_window)
{
    qn_peer_link_t link;
    qn_peer_link_greet(&link, own_window, peer_window, 1000);
    return link;
}

static void test_peer_send_stops_at_the_grant(void **state)
{
    (void)state;
    qn_peer_link_t link = greeted(8, 2);
    assert_true(qn_peer_link_may_send(&link, qn_peer_link_next_number(&link)));
    assert_true(qn_peer_link_may_send(&link, qn_peer_link_next_number(&link)));
    uint64_t third = qn_peer_link_next_number(&link);
    assert_false(qn_peer_link_may_send(&link, third));
    qn_peer_link_granted(&link, 3);
    assert_true(qn_peer_link_may_send(&link, third));
    qn_peer_link_granted(&link, 1); /* late: must not take credit back */
    assert_true(qn_peer_link_may_send(&link, third));
}

static void test_peer_control_needs_greeting_but_no_credit(void **state)
{
    (void)state;
    qn_peer_link_t link = greeted(8, 1);
    assert_true(qn_peer_link_may_send(&link, 0));
    assert_false(qn_peer_link_may_send(&(qn_peer_link_t){0}, 0));
}

static void test_peer_take_tells_next_gap_repeat_overrun(void **state)
{
    (void)state;
    static const struct {
        uint64_t number;
        qn_peer_data_t expected;
    } rows[] = {
        {1, QN_PEER_DATA_NEXT},    {2, QN_PEER_DATA_NEXT}, {2, QN_PEER_DATA_REPEATED}, {1, QN_PEER_DATA_REPEATED},
        {5, QN_PEER_DATA_OVERRUN}, {4, QN_PEER_DATA_GAP},  {3, QN_PEER_DATA_REPEATED}, {0, QN_PEER_DATA_REPEATED},
    };
    qn_peer_link_t link = greeted(4, 4);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(qn_peer_link_take(&link, rows[i].number), rows[i].expected);
}

static void test_peer_credit_is_due_at_half_the_window(void **state)
{
    (void)state;
    qn_peer_link_t link = greeted(8, 8);
    for (uint64_t number = 1; number <= 3; number++)
        qn_peer_link_take(&link, number);
    assert_int_equal(qn_peer_link_credit_due(&link), 0);
    qn_peer_link_take(&link, 4);
    assert_int_equal(qn_peer_link_credit_due(&link), 12);
    assert_int_equal(qn_peer_link_grant(&link), 12);
    assert_int_equal(qn_peer_link_credit_due(&link), 0);
    assert_int_equal(qn_peer_link_take(&link, 12), QN_PEER_DATA_GAP); /* the last one granted */
    assert_int_equal(qn_peer_link_take(&link, 13), QN_PEER_DATA_OVERRUN);
}

static void test_peer_silence_suspects_once_and_a_word_resumes(void **state)
{
    (void)state;
    qn_peer_link_t link = greeted(8, 8);
    uint64_t limit_ns = 1000 + QN_LIVENESS * QN_HEARTBEAT_NS;
    assert_false(qn_peer_link_falls_silent(&link, limit_ns - 1));
    assert_true(qn_peer_link_falls_silent(&link, limit_ns));
    assert_false(qn_peer_link_falls_silent(&link, limit_ns + 1));
    assert_true(qn_peer_link_heard(&link, limit_ns + 2));
    assert_false(qn_peer_link_heard(&link, limit_ns + 3));
    assert_false(qn_peer_link_falls_silent(&link, limit_ns + 4));
}

static void test_peer_beats_every_period(void **state)
{
    (void)state;
    qn_peer_link_t link = greeted(8, 8);
    assert_false(qn_peer_link_beat_due(&link, 1000 + QN_HEARTBEAT_NS - 1));
    assert_true(qn_peer_link_beat_due(&link, 1000 + QN_HEARTBEAT_NS));
    assert_false(qn_peer_link_beat_due(&(qn_peer_link_t){0}, UINT64_MAX));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_peer_send_stops_at_the_grant),
        cmocka_unit_test(test_peer_control_needs_greeting_but_no_credit),
        cmocka_unit_test(test_peer_take_tells_next_gap_repeat_overrun),
        cmocka_unit_test(test_peer_credit_is_due_at_half_the_window),
        cmocka_unit_test(test_peer_silence_suspects_once_and_a_word_resumes),
        cmocka_unit_test(test_peer_beats_every_period),
    };
    return cmocka_run_group_tests_name("peer", tests, NULL, NULL);
}
