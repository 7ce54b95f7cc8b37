/* Units of the built-in policies: policy_fcfs.c and policy_priority.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "services/scheduler/policy/policy.h"

static const qn_policy_sequence_t four[] = {
    {.id = 11, .arrival = 1, .prefill_tokens = 10, .priority = 0, .blocks = 4},
    {.id = 12, .arrival = 2, .prefill_tokens = 3, .priority = -5, .blocks = 2},
    {.id = 13, .arrival = 3, .prefill_tokens = 40, .priority = 2, .blocks = 9},
    {.id = 14, .arrival = 4, .prefill_tokens = 40, .priority = 0, .blocks = 1},
};
static const qn_policy_view_t view = {.now_ns = 5000000,
                                      .sequences = four,
                                      .sequence_count = 4,
                                      .waiting_count = 4,
                                      .running_count = 4,
                                      .block_tokens = 16};

static void test_policy_admit_order(void **state)
{
    (void)state;
    static const struct {
        const qn_policy_t *functions;
        uint32_t most, count;
        uint64_t ids[4];
    } table[] = {
        {&policy_fcfs, 1, 1, {11}},
        {&policy_fcfs, 3, 3, {11, 12, 13}},
        {&policy_fcfs, 32, 4, {11, 12, 13, 14}},
        {&policy_priority, 1, 1, {12}},
        {&policy_priority, 32, 4, {12, 11, 14, 13}},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        policy_t *policy = NULL;
        qn_policy_admit_t admit;
        assert_int_equal(policy_wrap(table[i].functions, &policy), QN_OK);
        assert_int_equal(policy_admit(policy, &view, table[i].most, &admit), QN_OK);
        assert_int_equal(admit.count, table[i].count);
        for (uint32_t k = 0; k < admit.count; k++) {
            assert_int_equal(admit.admissions[k].id, table[i].ids[k]);
            assert_non_null(strstr(admit.admissions[k].reason, table[i].functions->name));
        }
        policy_close(&policy);
    }
}

static void test_policy_share_fills_the_budget_in_order_and_by_chunks(void **state)
{
    (void)state;
    static const struct {
        const qn_policy_t *functions;
        uint32_t budget, chunk, count;
        qn_policy_part_t parts[4];
    } table[] = {
        {&policy_fcfs, 1, 16, 1, {{11, 1}}},
        {&policy_fcfs, 12, 16, 2, {{11, 10}, {12, 2}}},
        {&policy_fcfs, 64, 16, 4, {{11, 10}, {12, 3}, {13, 16}, {14, 16}}},
        {&policy_priority, 12, 16, 2, {{12, 3}, {11, 9}}},
        {&policy_priority, 1000, 100, 4, {{12, 3}, {11, 10}, {14, 40}, {13, 40}}},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        policy_t *policy = NULL;
        qn_policy_part_t parts[4];
        qn_policy_share_t share = {.parts = parts};
        assert_int_equal(policy_wrap(table[i].functions, &policy), QN_OK);
        assert_int_equal(policy_share(policy, &view, table[i].budget, table[i].chunk, true, &share), QN_OK);
        assert_int_equal(share.count, table[i].count);
        for (uint32_t k = 0; k < share.count; k++) {
            assert_int_equal(parts[k].id, table[i].parts[k].id);
            assert_int_equal(parts[k].tokens, table[i].parts[k].tokens);
        }
        assert_true(share.reason[0] != '\0');
        policy_close(&policy);
    }
}

static void test_policy_preempt_takes_the_last_in_order(void **state)
{
    (void)state;
    static const struct {
        const qn_policy_t *functions;
        uint64_t victim;
    } table[] = {{&policy_fcfs, 14}, {&policy_priority, 13}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        policy_t *policy = NULL;
        qn_policy_preempt_t preempt;
        assert_int_equal(policy_wrap(table[i].functions, &policy), QN_OK);
        assert_int_equal(policy_preempt(policy, &view, 11, &preempt), QN_OK);
        assert_int_equal(preempt.id, table[i].victim);
        assert_non_null(strstr(preempt.reason, "11"));
        policy_close(&policy);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_policy_admit_order),
        cmocka_unit_test(test_policy_share_fills_the_budget_in_order_and_by_chunks),
        cmocka_unit_test(test_policy_preempt_takes_the_last_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
