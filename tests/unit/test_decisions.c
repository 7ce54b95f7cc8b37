#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "services/scheduler/decisions.h"

static void test_decisions_newest_first_and_bounded(void **state)
{
    (void)state;
    static decisions_t decisions;
    assert_null(decisions_at(&decisions, 0));
    for (int i = 0; i < DECISIONS_MAX + 3; i++) {
        char text[32];
        snprintf(text, sizeof text, "decision %d", i);
        decisions_add(&decisions, (uint64_t)i, 10u * (unsigned)i, text);
    }
    assert_int_equal(decisions_at(&decisions, 0)->step, DECISIONS_MAX + 2);
    assert_int_equal(decisions_at(&decisions, DECISIONS_MAX - 1)->step, 3);
    assert_null(decisions_at(&decisions, DECISIONS_MAX));
}

static void test_decision_names_whole_numbers_only(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool names_7;
    } cases[] = {
        {"fcfs: admit 7, first of 2", true},
        {"7", true},
        {"admit 70, then 7", true},
        {"admit 17", false},
        {"admit 71", false},
        {"after 0.7 ms", false},
        {"after 7.5 ms", false},
        {"", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        decision_t decision;
        snprintf(decision.text, sizeof decision.text, "%s", cases[i].text);
        if (decision_names(&decision, 7) != cases[i].names_7) fail_msg("%s", cases[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decisions_newest_first_and_bounded),
        cmocka_unit_test(test_decision_names_whole_numbers_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
