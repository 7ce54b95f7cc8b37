/* The leases of the workspace: bounds, owners, deadlines, and a list that outlives its reader. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "services/memory/workspace.h"

#define BYTES (WORKSPACE_HEAD_BYTES + 65536u)

static const workspace_owner_t FRONTEND = {.epoch = 7, .service = 1}, OTHER = {.epoch = 8, .service = 1};
static uint64_t memory[BYTES / 8];

static int setup(void **state)
{
    memset(memory, 0, sizeof memory);
    return workspace_create(memory, BYTES, (workspace_t **)state);
}

static int teardown(void **state)
{
    workspace_destroy((workspace_t **)state);
    return 0;
}

static uint32_t count(const workspace_t *workspace)
{
    uint32_t leases;
    workspace_leases(workspace, &leases);
    return leases;
}

static void test_workspace_sizes_both_sides_of_each_limit(void **state)
{
    static const struct {
        uint64_t bytes;
        workspace_outcome_t outcome;
        uint64_t leased;
    } CASES[] = {{0, WORKSPACE_TOO_BIG, 0},         {1, WORKSPACE_OK, 64},        {64, WORKSPACE_OK, 64},
                 {65, WORKSPACE_OK, 128},           {65536, WORKSPACE_OK, 65536}, {65537, WORKSPACE_TOO_BIG, 0},
                 {UINT64_MAX, WORKSPACE_TOO_BIG, 0}};
    assert_int_equal(workspace_capacity(*state), 65536);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        workspace_lease_t lease = {0};
        assert_int_equal(workspace_lease(*state, FRONTEND, CASES[i].bytes, 10, &lease), CASES[i].outcome);
        assert_int_equal(lease.bytes, CASES[i].leased);
        if (CASES[i].outcome != WORKSPACE_OK) continue;
        assert_int_equal(lease.offset, WORKSPACE_HEAD_BYTES);
        assert_int_equal(workspace_release(*state, FRONTEND, lease.id), WORKSPACE_OK);
    }
}

static void test_workspace_gap_between_leases_is_used_again(void **state)
{
    workspace_lease_t a, b, c, again;
    assert_int_equal(workspace_lease(*state, FRONTEND, 1024, 10, &a), WORKSPACE_OK);
    assert_int_equal(workspace_lease(*state, FRONTEND, 1024, 10, &b), WORKSPACE_OK);
    assert_int_equal(workspace_lease(*state, FRONTEND, 65536 - 2048, 10, &c), WORKSPACE_OK);
    assert_int_equal(workspace_lease(*state, FRONTEND, 1, 10, &again), WORKSPACE_FULL);
    assert_int_equal(workspace_release(*state, FRONTEND, b.id), WORKSPACE_OK);
    assert_int_equal(workspace_lease(*state, FRONTEND, 1025, 10, &again), WORKSPACE_FULL);
    assert_int_equal(workspace_lease(*state, FRONTEND, 1024, 10, &again), WORKSPACE_OK);
    assert_int_equal(again.offset, b.offset);
    assert_true(again.id > c.id);
}

static void test_workspace_leases_are_bounded(void **state)
{
    workspace_lease_t lease;
    for (uint32_t i = 0; i < WORKSPACE_LEASES_MAX; i++)
        assert_int_equal(workspace_lease(*state, FRONTEND, 64, 10, &lease), WORKSPACE_OK);
    assert_int_equal(workspace_lease(*state, FRONTEND, 64, 10, &lease), WORKSPACE_FULL);
    assert_int_equal(workspace_release_owner(*state, OTHER), 0);
    assert_int_equal(workspace_release_owner(*state, FRONTEND), WORKSPACE_LEASES_MAX);
    assert_int_equal(count(*state), 0);
}

static void test_workspace_other_owners_lease_is_not_ours_to_end(void **state)
{
    workspace_lease_t lease, none;
    assert_int_equal(workspace_lease(*state, FRONTEND, 64, 10, &lease), WORKSPACE_OK);
    assert_int_equal(workspace_release(*state, OTHER, lease.id), WORKSPACE_UNKNOWN);
    assert_int_equal(workspace_renew(*state, OTHER, lease.id, 99, &none), WORKSPACE_UNKNOWN);
    assert_int_equal(workspace_release(*state, FRONTEND, lease.id + 1), WORKSPACE_UNKNOWN);
    assert_int_equal(count(*state), 1);
}

static void test_workspace_deadline_ends_a_lease_unless_renewed(void **state)
{
    workspace_lease_t early, late, renewed;
    assert_int_equal(workspace_expire(*state, 1000), UINT64_MAX);
    assert_int_equal(workspace_lease(*state, FRONTEND, 64, 10, &early), WORKSPACE_OK);
    assert_int_equal(workspace_lease(*state, FRONTEND, 64, 20, &late), WORKSPACE_OK);
    assert_int_equal(workspace_expire(*state, 9), 10);
    assert_int_equal(workspace_renew(*state, FRONTEND, early.id, 30, &renewed), WORKSPACE_OK);
    assert_int_equal(renewed.offset, early.offset);
    assert_int_equal(workspace_expire(*state, 20), 30);
    assert_int_equal(workspace_release(*state, FRONTEND, late.id), WORKSPACE_UNKNOWN);
    assert_int_equal(workspace_expire(*state, 30), UINT64_MAX);
    assert_int_equal(count(*state), 0);
}

/* Another life of memory has the same bytes: its leases go on and their ids are not given again. */
static void test_workspace_list_outlives_its_reader(void **state)
{
    workspace_lease_t lease, next;
    workspace_t *reborn;
    assert_int_equal(workspace_lease(*state, FRONTEND, 100, 10, &lease), WORKSPACE_OK);
    assert_int_equal(workspace_create(memory, BYTES, &reborn), QN_OK);
    assert_int_equal(count(reborn), 1);
    assert_int_equal(workspace_lease(reborn, FRONTEND, 100, 10, &next), WORKSPACE_OK);
    assert_true(next.id > lease.id && next.offset >= lease.offset + lease.bytes);
    assert_int_equal(workspace_release(reborn, FRONTEND, lease.id), WORKSPACE_OK);
    workspace_destroy(&reborn);
}

/* What a kill, or anybody who maps the region, may have left there is no reason to lease a byte twice or to end. */
static void test_workspace_damaged_list_is_left_out(void **state)
{
    workspace_lease_t lease;
    workspace_t *reborn;
    for (int i = 0; i < 4; i++)
        assert_int_equal(workspace_lease(*state, FRONTEND, 64, 10, &lease), WORKSPACE_OK);
    uint32_t leases;
    workspace_lease_t *list = (workspace_lease_t *)(uintptr_t)workspace_leases(*state, &leases);
    list[1] = list[0];      /* twice the same */
    list[2].offset = BYTES; /* beyond the end */
    list[3].bytes = UINT64_MAX - 63;
    assert_int_equal(workspace_create(memory, BYTES, &reborn), QN_OK);
    assert_int_equal(count(reborn), 1);
    workspace_destroy(&reborn);
    assert_int_equal(workspace_create(memory, BYTES - 64, &reborn), QN_OK); /* another size: begun anew */
    assert_int_equal(count(reborn), 0);
    workspace_destroy(&reborn);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_workspace_sizes_both_sides_of_each_limit),
        TEST(test_workspace_gap_between_leases_is_used_again),
        TEST(test_workspace_leases_are_bounded),
        TEST(test_workspace_other_owners_lease_is_not_ours_to_end),
        TEST(test_workspace_deadline_ends_a_lease_unless_renewed),
        TEST(test_workspace_list_outlives_its_reader),
        TEST(test_workspace_damaged_list_is_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
