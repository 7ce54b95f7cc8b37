/* Units of services/scheduler/policy/policy.c: the check of every decision, and what a shadow sees. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "services/scheduler/policy/policy.h"

static const qn_policy_sequence_t three[] = {
    {.id = 1, .arrival = 1, .prefill_tokens = 10, .max_tokens = 30, .user_name = ""},
    {.id = 2, .arrival = 2, .prefill_tokens = 5, .max_tokens = 10, .priority = -1, .user_name = ""},
    {.id = 3, .arrival = 3, .prefill_tokens = 20, .max_tokens = 20, .priority = 1, .user_name = ""},
};
static const qn_policy_view_t view = {
    .sequences = three, .sequence_count = 3, .waiting_count = 3, .running_count = 3, .block_tokens = 16};

/* ---- policies that do what a test tells them ---- */

static qn_policy_admit_t told_admit;
static qn_policy_part_t told_parts[4];
static uint32_t told_part_count;
static uint64_t told_victim;
static qn_policy_size_t told_size;
static qn_policy_verdict_t told_verdict;

static void puppet_admit(const qn_policy_memory_t *memory, const qn_policy_view_t *shown, uint32_t most,
                         qn_policy_admit_t *ret_admit)
{
    (void)memory, (void)shown, (void)most;
    *ret_admit = told_admit;
}

static void puppet_share(const qn_policy_memory_t *memory, const qn_policy_view_t *shown, uint32_t budget,
                         uint32_t chunk, uint32_t parts_max, int must, qn_policy_share_t *ret_share)
{
    (void)memory, (void)shown, (void)budget, (void)chunk, (void)must, (void)parts_max;
    ret_share->count = told_part_count;
    for (uint32_t i = 0; i < told_part_count && i < 4; i++)
        ret_share->parts[i] = told_parts[i];
    memset(ret_share->reason, 'x', sizeof ret_share->reason); /* without an end */
}

static void puppet_preempt(const qn_policy_memory_t *memory, const qn_policy_view_t *shown, uint64_t needy,
                           qn_policy_preempt_t *ret_preempt)
{
    (void)memory, (void)shown, (void)needy;
    ret_preempt->id = told_victim;
}

static void puppet_size(const qn_policy_memory_t *memory, const qn_policy_load_t *load, qn_policy_size_t *ret_size)
{
    (void)memory, (void)load;
    *ret_size = told_size;
}

static void puppet_judge(const qn_policy_memory_t *memory, const qn_policy_arrival_t *arrival,
                         qn_policy_verdict_t *ret_verdict)
{
    (void)memory, (void)arrival;
    *ret_verdict = told_verdict;
}

static const qn_policy_t puppet = {.head = {.version = QN_POLICY_ABI_VERSION,
                                            .kind = QN_POLICY_SCHEDULING,
                                            .name = "puppet"},
                                   .admit = puppet_admit,
                                   .share = puppet_share,
                                   .preempt = puppet_preempt};
static const qn_batching_policy_t batching_puppet = {
    .head = {.version = QN_POLICY_ABI_VERSION, .kind = QN_POLICY_BATCHING, .name = "puppet"}, .size = puppet_size};
static const qn_admission_policy_t admission_puppet = {
    .head = {.version = QN_POLICY_ABI_VERSION, .kind = QN_POLICY_ADMISSION, .name = "puppet"}, .judge = puppet_judge};

static qn_policy_seat_t *open_puppet(qn_policy_kind_t kind)
{
    static const qn_policy_head_t *const heads[] = {[QN_POLICY_SCHEDULING] = &puppet.head,
                                                    [QN_POLICY_BATCHING] = &batching_puppet.head,
                                                    [QN_POLICY_ADMISSION] = &admission_puppet.head};
    qn_policy_catalogue_t catalogue = policy_catalogue(kind, "");
    qn_policy_seat_t *seat = NULL;
    assert_int_equal(qn_policy_seat_wrap(&catalogue, heads[kind], &seat), QN_OK);
    return seat;
}

/* It stands, or is withdrawn with these words, and the last resort has decided. */
static void expect(qn_policy_seat_t **seat, const char *rule)
{
    qn_policy_counts_t counts;
    qn_policy_seat_counts(*seat, &counts);
    assert_int_equal(counts.decisions, 1);
    assert_int_equal(counts.withdrawals, rule != NULL);
    if (rule == NULL) {
        assert_string_equal(qn_policy_seat_name(*seat), "puppet");
    } else {
        assert_string_not_equal(qn_policy_seat_name(*seat), "puppet");
        assert_non_null(strstr(qn_policy_seat_withdrawn(*seat), "puppet"));
        assert_non_null(strstr(qn_policy_seat_withdrawn(*seat), rule));
    }
    qn_policy_seat_close(seat);
}

static void test_policy_admit_nonsense_is_withdrawn_and_decided_by_another(void **state)
{
    (void)state;
    static const struct {
        uint32_t most, count;
        uint64_t ids[2];
        const char *rule;
    } table[] = {
        {2, 2, {3, 1}, NULL},          {1, 2, {3, 1}, "more than it may"},          {2, 2, {3, 3}, "twice"},
        {2, 2, {3, 4}, "not waiting"}, {2, UINT32_MAX, {3, 1}, "more than it may"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        qn_policy_seat_t *seat = open_puppet(QN_POLICY_SCHEDULING);
        qn_policy_admit_t admit;
        told_admit = (qn_policy_admit_t){.count = table[i].count,
                                         .admissions = {{.id = table[i].ids[0]}, {.id = table[i].ids[1]}}};
        policy_admit(seat, &view, table[i].most, &admit);
        assert_int_equal(admit.count, table[i].most);
        assert_int_equal(admit.admissions[0].id, table[i].rule == NULL ? 3 : 1);
        expect(&seat, table[i].rule);
    }
}

static void test_policy_share_nonsense_is_withdrawn_and_decided_by_another(void **state)
{
    (void)state;
    static const struct {
        qn_policy_part_t parts[2];
        uint32_t count;
        const char *rule;
    } table[] = {
        {{{1, 8}, {3, 4}}, 2, NULL},       {{{1, 8}, {3, 5}}, 2, "than the budget has"},
        {{{1, 9}}, 1, "a chunk may have"}, {{{2, 6}}, 1, "than are left"},
        {{{2, 0}}, 1, "0 tokens"},         {{{4, 1}}, 1, "nothing to prefill"},
        {{{1, 1}, {1, 1}}, 2, "twice"},    {{{0, 0}}, 0, "deals nothing"},
        {{{1, 1}}, 4, "more than it may"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        qn_policy_seat_t *seat = open_puppet(QN_POLICY_SCHEDULING);
        qn_policy_part_t parts[4], room[4];
        qn_policy_share_t share = {.parts = parts};
        memcpy(told_parts, table[i].parts, sizeof table[i].parts);
        told_part_count = table[i].count;
        policy_share(seat, &view, 12, 8, true, room, &share);
        assert_true(share.count > 0 && share.parts == parts);
        assert_true(strlen(share.reason) < QN_POLICY_REASON_MAX);
        expect(&seat, table[i].rule);
    }
    told_part_count = 0;
    qn_policy_seat_t *seat = open_puppet(QN_POLICY_SCHEDULING);
    qn_policy_part_t parts[4], room[4];
    qn_policy_share_t share = {.parts = parts};
    policy_share(seat, &view, 12, 8, false, room, &share); /* others run: it may wait */
    assert_int_equal(share.count, 0);
    expect(&seat, NULL);
}

static void test_policy_preempt_outside_the_view_is_withdrawn_and_decided_by_another(void **state)
{
    (void)state;
    for (int outside = 0; outside < 2; outside++) {
        qn_policy_seat_t *seat = open_puppet(QN_POLICY_SCHEDULING);
        qn_policy_preempt_t preempt;
        told_victim = outside ? 9 : 2;
        policy_preempt(seat, &view, 1, &preempt);
        assert_int_equal(preempt.id, outside ? 3 : 2);
        expect(&seat, outside ? "may not be preempted" : NULL);
    }
}

static void test_policy_size_outside_its_range_is_withdrawn_and_decided_by_another(void **state)
{
    (void)state;
    static const struct {
        uint32_t decode, step, chunk;
        const char *rule;
    } table[] = {
        {4, 4, 1, NULL},
        {4, 64, 64, NULL},
        {4, 3, 8, "fewer tokens than decode"},
        {4, 65, 8, "or more than"},
        {0, 0, 8, "nothing decodes"},
        {4, 20, 0, "a chunk"},
        {4, 20, 65, "a chunk"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        qn_policy_seat_t *seat = open_puppet(QN_POLICY_BATCHING);
        qn_policy_load_t load = {.decode_tokens = table[i].decode, .step_tokens_max = 64, .chunk_tokens_max = 32};
        qn_policy_size_t size;
        told_size = (qn_policy_size_t){.step_tokens = table[i].step, .chunk_tokens = table[i].chunk};
        policy_size(seat, &load, &size);
        assert_int_equal(size.step_tokens, table[i].rule == NULL ? table[i].step : 64);
        expect(&seat, table[i].rule);
    }
}

static void test_policy_verdict_without_reason_or_sense_is_withdrawn_and_decided_by_another(void **state)
{
    (void)state;
    static const struct {
        qn_policy_verdict_t verdict;
        const char *rule;
    } table[] = {
        {{.accept = 1}, NULL},
        {{.accept = 0, .retry_after_ms = 5, .reason = "no"}, NULL},
        {{.accept = 2}, "neither"},
        {{.accept = 0, .retry_after_ms = 0, .reason = "no"}, "less than 1 ms"},
        {{.accept = 0, .retry_after_ms = 3600001, .reason = "no"}, "an hour"},
        {{.accept = 0, .retry_after_ms = 5}, "no reason"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        qn_policy_seat_t *seat = open_puppet(QN_POLICY_ADMISSION);
        qn_policy_arrival_t arrival = {.id = 1, .queue_limit = 4, .user_name = ""};
        qn_policy_verdict_t verdict;
        told_verdict = table[i].verdict;
        policy_judge(seat, &arrival, &verdict);
        assert_int_equal(verdict.accept, table[i].rule == NULL ? table[i].verdict.accept : 1);
        expect(&seat, table[i].rule);
    }
}

/* ---- shadow ---- */

static void test_policy_shadow_differences_are_kept_with_both_reasons(void **state)
{
    (void)state;
    qn_policy_catalogue_t catalogue = policy_catalogue(QN_POLICY_SCHEDULING, "");
    qn_policy_seat_t *seat = NULL;
    qn_policy_admit_t admit;
    qn_policy_counts_t counts;
    assert_int_equal(qn_policy_seat_open(&catalogue, "fcfs", NULL, &seat), QN_OK);
    assert_int_equal(qn_policy_seat_set_shadow(seat, "priority"), QN_OK);
    policy_admit(seat, &view, 1, &admit);
    assert_int_equal(admit.admissions[0].id, 1); /* the live one decides */
    const qn_policy_difference_t *one = qn_policy_seat_difference(seat, 0);
    assert_string_equal(one->function, "admit");
    assert_string_equal(one->by_live.words, "1");
    assert_string_equal(one->by_shadow.words, "2");
    assert_non_null(strstr(one->by_live.reason, "fcfs"));
    assert_non_null(strstr(one->by_shadow.reason, "priority"));
    qn_policy_view_t alone = view;
    alone.sequence_count = 1;
    policy_admit(seat, &alone, 1, &admit); /* both the same */
    for (int i = 0; i < 2 * QN_POLICY_DIFFERENCES_MAX; i++)
        policy_admit(seat, &view, 1, &admit);
    qn_policy_seat_counts(seat, &counts);
    assert_int_equal(counts.shadow_decisions, 2 + 2 * QN_POLICY_DIFFERENCES_MAX);
    assert_int_equal(counts.shadow_differences, 1 + 2 * QN_POLICY_DIFFERENCES_MAX);
    assert_non_null(qn_policy_seat_difference(seat, QN_POLICY_DIFFERENCES_MAX - 1));
    assert_null(qn_policy_seat_difference(seat, QN_POLICY_DIFFERENCES_MAX));
    assert_int_equal(qn_policy_seat_set_shadow(seat, NULL), QN_OK);
    policy_admit(seat, &view, 1, &admit);
    qn_policy_seat_counts(seat, &counts);
    assert_int_equal(counts.shadow_decisions, 0);
    assert_null(qn_policy_seat_difference(seat, 0));
    qn_policy_seat_close(&seat);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_policy_admit_nonsense_is_withdrawn_and_decided_by_another),
        cmocka_unit_test(test_policy_share_nonsense_is_withdrawn_and_decided_by_another),
        cmocka_unit_test(test_policy_preempt_outside_the_view_is_withdrawn_and_decided_by_another),
        cmocka_unit_test(test_policy_size_outside_its_range_is_withdrawn_and_decided_by_another),
        cmocka_unit_test(test_policy_verdict_without_reason_or_sense_is_withdrawn_and_decided_by_another),
        cmocka_unit_test(test_policy_shadow_differences_are_kept_with_both_reasons),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
