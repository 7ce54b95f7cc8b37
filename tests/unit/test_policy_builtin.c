/* Units of the built-in policies: policy_builtin.c, policy_fair.c, policy_batching.c, policy_admission.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "services/scheduler/policy/policy.h"

static const qn_policy_sequence_t four[] = {
    {.id = 11,
     .arrival = 1,
     .prefill_tokens = 10,
     .max_tokens = 50,
     .priority = 0,
     .blocks = 4,
     .user = 1,
     .user_name = "a"},
    {.id = 12, .arrival = 2, .prefill_tokens = 3, .max_tokens = 9, .priority = -5, .blocks = 2, .user_name = ""},
    {.id = 13, .arrival = 3, .prefill_tokens = 40, .prefix_tokens = 32, .priority = 2, .blocks = 9, .user_name = ""},
    {.id = 14,
     .arrival = 4,
     .prefill_tokens = 40,
     .prefix_tokens = 16,
     .deadline_ns = 9,
     .blocks = 1,
     .user = 1,
     .user_name = "a"},
};
static const qn_policy_view_t view = {.now_ns = 5000000,
                                      .sequences = four,
                                      .sequence_count = 4,
                                      .waiting_count = 4,
                                      .running_count = 4,
                                      .block_tokens = 16};

static qn_policy_seat_t *open_seat(qn_policy_kind_t kind, const char *name)
{
    qn_policy_seat_t *seat = NULL;
    qn_policy_catalogue_t catalogue = policy_catalogue(kind, "");
    assert_int_equal(qn_policy_seat_open(&catalogue, name, NULL, &seat), QN_OK);
    return seat;
}

static void test_policy_builtin_admits_in_its_order(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t most, count;
        uint64_t ids[4];
    } table[] = {
        {"fcfs", 1, 1, {11}},
        {"fcfs", 3, 3, {11, 12, 13}},
        {"fcfs", 32, 4, {11, 12, 13, 14}},
        {"priority", 1, 1, {12}},
        {"priority", 32, 4, {12, 14, 11, 13}}, /* of equal ones the one with a deadline */
        {"shortest_job", 32, 4, {12, 13, 14, 11}},
        {"prefix", 32, 4, {13, 14, 11, 12}},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        qn_policy_seat_t *seat = open_seat(QN_POLICY_SCHEDULING, table[i].name);
        qn_policy_admit_t admit;
        policy_admit(seat, &view, table[i].most, &admit);
        assert_int_equal(admit.count, table[i].count);
        for (uint32_t k = 0; k < admit.count; k++) {
            assert_int_equal(admit.admissions[k].id, table[i].ids[k]);
            assert_non_null(strstr(admit.admissions[k].reason, table[i].name));
        }
        qn_policy_seat_close(&seat);
    }
}

static void test_policy_builtin_shares_the_budget_in_order_and_by_chunks(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t budget, chunk, count;
        qn_policy_part_t parts[4];
    } table[] = {
        {"fcfs", 1, 16, 1, {{11, 1}}},
        {"fcfs", 12, 16, 2, {{11, 10}, {12, 2}}},
        {"fcfs", 64, 16, 4, {{11, 10}, {12, 3}, {13, 16}, {14, 16}}},
        {"priority", 12, 16, 2, {{12, 3}, {14, 9}}},
        {"priority", 1000, 100, 4, {{12, 3}, {14, 40}, {11, 10}, {13, 40}}},
        {"shortest_job", 30, 16, 3, {{12, 3}, {13, 16}, {14, 11}}},
        {"prefix", 30, 16, 2, {{13, 16}, {14, 14}}},
        {"fair", 12, 16, 3, {{11, 6}, {12, 3}, {13, 3}}}, /* two users: six tokens each, the rest to the first */
        {"fair", 1, 16, 1, {{11, 1}}},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        qn_policy_seat_t *seat = open_seat(QN_POLICY_SCHEDULING, table[i].name);
        qn_policy_part_t parts[4], room[4];
        qn_policy_share_t share = {.parts = parts};
        uint32_t dealt = 0;
        policy_share(seat, &view, table[i].budget, table[i].chunk, true, room, &share);
        for (uint32_t k = 0; k < share.count; k++)
            dealt += parts[k].tokens;
        assert_true(dealt <= table[i].budget && share.reason[0] != '\0');
        for (uint32_t k = 0; k < table[i].count && strcmp(table[i].name, "fair") != 0; k++) {
            assert_int_equal(share.count, table[i].count);
            assert_int_equal(parts[k].id, table[i].parts[k].id);
            assert_int_equal(parts[k].tokens, table[i].parts[k].tokens);
        }
        assert_string_equal(qn_policy_seat_withdrawn(seat), "");
        qn_policy_seat_close(&seat);
    }
}

static void test_policy_builtin_preempts_the_last_in_order(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t victim;
    } table[] = {{"fcfs", 14}, {"priority", 13}, {"shortest_job", 11}, {"prefix", 12}, {"fair", 13}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        qn_policy_seat_t *seat = open_seat(QN_POLICY_SCHEDULING, table[i].name);
        qn_policy_preempt_t preempt;
        policy_preempt(seat, &view, 11, &preempt);
        assert_int_equal(preempt.id, table[i].victim);
        assert_non_null(strstr(preempt.reason, table[i].name));
        qn_policy_seat_close(&seat);
    }
}

/* ---- fair ---- */

#define CROWD 40u

/* A crowd of requests of user 1 before one each of users 2 and 3. */
static void test_policy_builtin_fair_lets_nobody_wait_behind_a_crowd(void **state)
{
    (void)state;
    qn_policy_seat_t *seat = open_seat(QN_POLICY_SCHEDULING, "fair");
    qn_policy_sequence_t crowd[CROWD + 2];
    for (uint32_t i = 0; i < CROWD + 2; i++)
        crowd[i] = (qn_policy_sequence_t){.id = 100 + i,
                                          .arrival = i + 1,
                                          .prefill_tokens = 10,
                                          .max_tokens = 10,
                                          .user = i < CROWD ? 1 : 2 + (i - CROWD),
                                          .user_name = ""};
    qn_policy_view_t shown = {.sequences = crowd, .sequence_count = CROWD + 2, .waiting_count = CROWD + 2};
    bool seen[2] = {false, false};
    for (uint32_t turn = 0; turn < 3; turn++) { /* one slot at a time */
        qn_policy_admit_t admit;
        policy_admit(seat, &shown, 1, &admit);
        assert_int_equal(admit.count, 1);
        for (uint32_t i = 0; i < shown.sequence_count; i++)
            if (crowd[i].id == admit.admissions[0].id) {
                if (crowd[i].user > 1) seen[crowd[i].user - 2] = true;
                memmove(crowd + i, crowd + i + 1, (shown.sequence_count - i - 1) * sizeof *crowd);
                shown.sequence_count--;
                break;
            }
    }
    assert_true(seen[0] && seen[1]);
    qn_policy_seat_close(&seat);
}

/* Tokens are what is shared, not requests: small jobs of one user against large ones of another. */
static void test_policy_builtin_fair_shares_tokens_not_requests(void **state)
{
    (void)state;
    qn_policy_seat_t *seat = open_seat(QN_POLICY_SCHEDULING, "fair");
    qn_policy_sequence_t jobs[200];
    uint64_t work[2] = {0, 0};
    for (uint32_t i = 0; i < 200; i++)
        jobs[i] = (qn_policy_sequence_t){
            .id = 1 + i, .arrival = i + 1, .prefill_tokens = i % 2 == 0 ? 10 : 100, .user = 1 + i % 2, .user_name = ""};
    qn_policy_view_t shown = {.sequences = jobs, .sequence_count = 200, .waiting_count = 200};
    for (uint32_t turn = 0; turn < 50; turn++) {
        qn_policy_admit_t admit;
        policy_admit(seat, &shown, 1, &admit);
        for (uint32_t i = 0; i < shown.sequence_count; i++)
            if (jobs[i].id == admit.admissions[0].id) {
                work[jobs[i].user - 1] += jobs[i].prefill_tokens;
                memmove(jobs + i, jobs + i + 1, (shown.sequence_count - i - 1) * sizeof *jobs);
                shown.sequence_count--;
                break;
            }
    }
    uint64_t apart = work[0] > work[1] ? work[0] - work[1] : work[1] - work[0];
    assert_true(apart <= 200); /* two of the largest */
    qn_policy_seat_close(&seat);
}

static void test_policy_builtin_fair_goes_on_with_more_users_than_it_keeps(void **state)
{
    (void)state;
    static qn_policy_sequence_t jobs[300];
    qn_policy_seat_t *seat = open_seat(QN_POLICY_SCHEDULING, "fair");
    for (uint32_t i = 0; i < 300; i++)
        jobs[i] = (qn_policy_sequence_t){.id = 1 + i,
                                         .arrival = i + 1,
                                         .prefill_tokens = 1 + i,
                                         .user = (i + 1) * 0x9e3779b97f4a7c15ull,
                                         .user_name = ""};
    qn_policy_view_t shown = {.sequences = jobs, .sequence_count = 300, .waiting_count = 300};
    while (shown.sequence_count > 0) {
        qn_policy_admit_t admit;
        policy_admit(seat, &shown, 32, &admit);
        assert_true(admit.count > 0);
        for (uint32_t k = 0; k < admit.count; k++)
            for (uint32_t i = 0; i < shown.sequence_count; i++)
                if (jobs[i].id == admit.admissions[k].id) {
                    memmove(jobs + i, jobs + i + 1, (shown.sequence_count - i - 1) * sizeof *jobs);
                    shown.sequence_count--;
                    break;
                }
    }
    assert_string_equal(qn_policy_seat_withdrawn(seat), "");
    qn_policy_seat_close(&seat);
}

/* ---- batching ---- */

static void test_policy_builtin_batching_sizes(void **state)
{
    (void)state;
    qn_policy_load_t load = {.decode_tokens = 10,
                             .step_tokens_max = 110,
                             .chunk_tokens_max = 64,
                             .total_blocks = 400,
                             .available_blocks = 400,
                             .block_tokens = 16};
    static const struct {
        const char *name;
        uint32_t available, shorts, step_tokens, chunk_tokens;
    } table[] = {
        {"fixed", 0, 3, 110, 64},    {"pressure", 400, 0, 110, 64}, {"pressure", 100, 0, 110, 64},
        {"pressure", 50, 0, 68, 58}, {"pressure", 0, 0, 26, 16},    {"pressure", 400, 1, 26, 16},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        qn_policy_seat_t *seat = open_seat(QN_POLICY_BATCHING, table[i].name);
        qn_policy_size_t size;
        load.available_blocks = table[i].available;
        load.short_count = table[i].shorts;
        policy_size(seat, &load, &size);
        assert_int_equal(size.step_tokens, table[i].step_tokens);
        assert_int_equal(size.chunk_tokens, table[i].chunk_tokens);
        assert_non_null(strstr(size.reason, table[i].name));
        qn_policy_seat_close(&seat);
    }
}

/* ---- admission ---- */

static void test_policy_builtin_admission_verdicts(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t requests, users, of_user;
        bool accept;
    } table[] = {
        {"queue", 0, 0, 0, true},         {"queue", 99, 0, 0, true},         {"user_share", 49, 1, 49, true},
        {"user_share", 99, 1, 99, true}, /* alone it may fill the queue */
        {"user_share", 60, 4, 24, true},  {"user_share", 60, 4, 25, false},  {"user_share", 49, 4, 40, true},
        {"user_share", 99, 500, 0, true}, {"user_share", 99, 500, 1, false},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        qn_policy_seat_t *seat = open_seat(QN_POLICY_ADMISSION, table[i].name);
        qn_policy_verdict_t verdict;
        qn_policy_arrival_t arrival = {.id = 5,
                                       .user_name = "ada",
                                       .request_count = table[i].requests,
                                       .queue_limit = 100,
                                       .user_requests = table[i].of_user,
                                       .user_count = table[i].users};
        policy_judge(seat, &arrival, &verdict);
        assert_int_equal(verdict.accept, table[i].accept);
        assert_non_null(strstr(verdict.reason, table[i].name));
        qn_policy_seat_close(&seat);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_policy_builtin_admits_in_its_order),
        cmocka_unit_test(test_policy_builtin_shares_the_budget_in_order_and_by_chunks),
        cmocka_unit_test(test_policy_builtin_preempts_the_last_in_order),
        cmocka_unit_test(test_policy_builtin_fair_lets_nobody_wait_behind_a_crowd),
        cmocka_unit_test(test_policy_builtin_fair_shares_tokens_not_requests),
        cmocka_unit_test(test_policy_builtin_fair_goes_on_with_more_users_than_it_keeps),
        cmocka_unit_test(test_policy_builtin_batching_sizes),
        cmocka_unit_test(test_policy_builtin_admission_verdicts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
