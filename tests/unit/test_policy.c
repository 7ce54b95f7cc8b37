/* Units of services/scheduler/policy/policy.c: finding, loading, and the check of every decision. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "services/scheduler/policy/policy.h"

static const qn_policy_sequence_t three[] = {
    {.id = 1, .arrival = 1, .prefill_tokens = 10, .max_tokens = 30},
    {.id = 2, .arrival = 2, .prefill_tokens = 5, .max_tokens = 10, .priority = -1},
    {.id = 3, .arrival = 3, .prefill_tokens = 20, .max_tokens = 20, .priority = 1},
};
static const qn_policy_view_t view = {
    .sequences = three, .sequence_count = 3, .waiting_count = 3, .running_count = 3, .block_tokens = 16};

/* ---- a policy that does what a test tells it ---- */

static qn_policy_admit_t told_admit;
static qn_policy_part_t told_parts[4];
static uint32_t told_part_count;
static uint64_t told_victim;

static void puppet_admit(const qn_policy_view_t *shown, uint32_t most, qn_policy_admit_t *ret_admit)
{
    (void)shown;
    (void)most;
    *ret_admit = told_admit;
}

static void puppet_share(const qn_policy_view_t *shown, uint32_t budget, uint32_t chunk, uint32_t parts_max, int must,
                         qn_policy_share_t *ret_share)
{
    (void)shown, (void)budget, (void)chunk, (void)must, (void)parts_max;
    ret_share->count = told_part_count;
    for (uint32_t i = 0; i < told_part_count && i < 4; i++)
        ret_share->parts[i] = told_parts[i];
    memset(ret_share->reason, 'x', sizeof ret_share->reason); /* without an end */
}

static void puppet_preempt(const qn_policy_view_t *shown, uint64_t needy, qn_policy_preempt_t *ret_preempt)
{
    (void)shown;
    (void)needy;
    ret_preempt->id = told_victim;
}

static const qn_policy_t puppet = {.version = QN_POLICY_ABI_VERSION,
                                   .name = "puppet",
                                   .admit = puppet_admit,
                                   .share = puppet_share,
                                   .preempt = puppet_preempt};

static policy_t *open_puppet(void)
{
    policy_t *policy = NULL;
    assert_int_equal(policy_wrap(&puppet, &policy), QN_OK);
    return policy;
}

static void expect_blame(qn_err_t err, const char *rule)
{
    assert_int_equal(err, QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "puppet"));
    assert_non_null(strstr(qn_err_text(), rule));
}

static void test_policy_open_by_name_or_with_a_list_of_names(void **state)
{
    (void)state;
    policy_t *policy = NULL;
    assert_int_equal(policy_open("fcfs", &policy), QN_OK);
    assert_string_equal(policy_name(policy), "fcfs");
    policy_close(&policy);
    assert_null(policy);
    assert_int_equal(policy_open("priority", &policy), QN_OK);
    policy_close(&policy);
    assert_int_equal(policy_open("lifo", &policy), QN_ERR_CONFIG);
    assert_non_null(strstr(qn_err_text(), "fcfs"));
    assert_int_equal(policy_open("/nonexistent/policy.so", &policy), QN_ERR_CONFIG);
    assert_int_equal(policy_open("nonexistent.so", &policy), QN_ERR_CONFIG);
    assert_null(policy);
}

static void test_policy_wrap_incomplete_or_other_abi_refused(void **state)
{
    (void)state;
    qn_policy_t bad[5] = {puppet, puppet, puppet, puppet, puppet};
    char long_name[80];
    memset(long_name, 'n', sizeof long_name);
    long_name[79] = '\0';
    bad[0].version++;
    bad[1].name = NULL;
    bad[2].name = long_name;
    bad[3].admit = NULL;
    bad[4].preempt = NULL;
    for (size_t i = 0; i < 5; i++) {
        policy_t *policy = NULL;
        assert_int_equal(policy_wrap(&bad[i], &policy), QN_ERR_CONFIG);
        assert_null(policy);
    }
}

static void test_policy_open_shared_object_decides(void **state)
{
    (void)state;
    static const char *const paths[] = {"build/policies/example_policy.so", "build/asan/policies/example_policy.so",
                                        "build/tsan/policies/example_policy.so"};
    size_t i = 0;
    while (i < 3 && access(paths[i], R_OK) != 0)
        i++;
    if (i == 3) {
        print_message("build/policies/example_policy.so is not built: make all\n");
        skip();
    }
    policy_t *policy = NULL;
    qn_policy_admit_t admit;
    assert_int_equal(policy_open(paths[i], &policy), QN_OK);
    assert_string_equal(policy_name(policy), "shortest_job");
    assert_int_equal(policy_admit(policy, &view, 2, &admit), QN_OK);
    assert_int_equal(admit.count, 2);
    assert_int_equal(admit.admissions[0].id, 2); /* 15 tokens of work; then 40 of both: who came first */
    assert_int_equal(admit.admissions[1].id, 1);
    assert_true(admit.admissions[0].reason[0] != '\0');
    policy_close(&policy);
}

static void test_policy_admit_nonsense_is_blamed(void **state)
{
    (void)state;
    policy_t *policy = open_puppet();
    qn_policy_admit_t admit;
    told_admit = (qn_policy_admit_t){.count = 2, .admissions = {{.id = 3}, {.id = 1}}};
    assert_int_equal(policy_admit(policy, &view, 2, &admit), QN_OK);
    expect_blame(policy_admit(policy, &view, 1, &admit), "more than it may");
    told_admit.admissions[1].id = 3;
    expect_blame(policy_admit(policy, &view, 2, &admit), "twice");
    told_admit.admissions[1].id = 4;
    expect_blame(policy_admit(policy, &view, 2, &admit), "not waiting");
    told_admit.count = UINT32_MAX;
    expect_blame(policy_admit(policy, &view, 2, &admit), "more than it may");
    policy_close(&policy);
}

static void test_policy_share_nonsense_is_blamed(void **state)
{
    (void)state;
    static const struct {
        qn_policy_part_t parts[2];
        uint32_t count;
        const char *rule;
    } table[] = {
        {{{1, 8}, {3, 4}}, 2, NULL},       {{{1, 8}, {3, 5}}, 2, "than the step has"},
        {{{1, 9}}, 1, "more tokens"},      {{{2, 6}}, 1, "more tokens"},
        {{{2, 0}}, 1, "or none"},          {{{4, 1}}, 1, "no prompt tokens"},
        {{{1, 1}, {1, 1}}, 2, "twice"},    {{{0, 0}}, 0, "deals nothing"},
        {{{1, 1}}, 4, "more than it may"},
    };
    policy_t *policy = open_puppet();
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        qn_policy_part_t parts[4];
        qn_policy_share_t share = {.parts = parts};
        memcpy(told_parts, table[i].parts, sizeof table[i].parts);
        told_part_count = table[i].count;
        qn_err_t err = policy_share(policy, &view, 12, 8, true, &share);
        if (table[i].rule == NULL) {
            assert_int_equal(err, QN_OK);
            assert_int_equal(strlen(share.reason), QN_POLICY_REASON_MAX - 1);
        } else {
            expect_blame(err, table[i].rule);
        }
    }
    told_part_count = 0;
    qn_policy_part_t parts[4];
    qn_policy_share_t share = {.parts = parts};
    assert_int_equal(policy_share(policy, &view, 12, 8, false, &share), QN_OK); /* others run: it may wait */
    policy_close(&policy);
}

static void test_policy_preempt_outside_the_view_is_blamed(void **state)
{
    (void)state;
    policy_t *policy = open_puppet();
    qn_policy_preempt_t preempt;
    told_victim = 2;
    assert_int_equal(policy_preempt(policy, &view, 1, &preempt), QN_OK);
    assert_int_equal(preempt.id, 2);
    told_victim = 9;
    expect_blame(policy_preempt(policy, &view, 1, &preempt), "may not be preempted");
    policy_close(&policy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_policy_open_by_name_or_with_a_list_of_names),
        cmocka_unit_test(test_policy_wrap_incomplete_or_other_abi_refused),
        cmocka_unit_test(test_policy_open_shared_object_decides),
        cmocka_unit_test(test_policy_admit_nonsense_is_blamed),
        cmocka_unit_test(test_policy_share_nonsense_is_blamed),
        cmocka_unit_test(test_policy_preempt_outside_the_view_is_blamed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
