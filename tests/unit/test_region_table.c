/* The regions memory owns: one per name, kept, replaced when too small, bounded. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "services/memory/region_table.h"

static int setup(void **state)
{
    return region_table_create(QN_SHARE_MEMFD, -1, 4, "/run/x/memory.fds", true, (region_table_t **)state);
}

static int teardown(void **state)
{
    region_table_destroy((region_table_t **)state);
    return *state ? -1 : 0;
}

static qn_err_t reserve(region_table_t *table, qn_region_kind_t kind, const char *name, uint64_t bytes,
                        const qn_mapping_t **ret_region, bool *ret_fresh)
{
    qn_mapping_t *old = NULL;
    qn_err_t err = region_table_reserve(table, kind, name, strlen(name), bytes, ret_region, ret_fresh, &old);
    if (old) { /* what was replaced is smaller, and nobody finds it any more */
        assert_true(!err && *ret_fresh && qn_region_bytes(old) < qn_region_bytes(*ret_region));
        assert_string_equal(qn_region_name(old), name);
        assert_null(region_table_find(table, qn_region_id(old), qn_region_epoch(old)));
    }
    qn_region_close(&old);
    return err;
}

static void test_region_table_same_name_is_the_same_region(void **state)
{
    const qn_mapping_t *first, *again;
    bool fresh;
    assert_int_equal(reserve(*state, QN_REGION_KIND_STATE, "slots", 100, &first, &fresh), QN_OK);
    assert_true(fresh);
    ((uint8_t *)qn_region_pointer(first))[99] = 5;
    uint64_t id = qn_region_id(first);
    assert_int_equal(reserve(*state, QN_REGION_KIND_STATE, "slots", 100, &again, &fresh), QN_OK);
    assert_false(fresh);
    assert_ptr_equal(again, first);
    assert_int_equal(((uint8_t *)qn_region_pointer(again))[99], 5);
    assert_int_equal(reserve(*state, QN_REGION_KIND_STATE, "slots", 101, &again, &fresh), QN_OK);
    assert_true(fresh);
    assert_int_not_equal(qn_region_id(again), id);
    assert_int_equal(region_table_count(*state), 1);
    assert_null(region_table_find(*state, id, 4));
    assert_ptr_equal(region_table_find(*state, qn_region_id(again), 4), again);
    assert_null(region_table_find(*state, qn_region_id(again), 5));
    assert_ptr_equal(region_table_find_name(*state, "slots"), again);
    assert_null(region_table_find_name(*state, "slot"));
}

static void test_region_table_names_are_judged(void **state)
{
    static const char long_name[] = "123456789012345678901234567890123456789012345678901234567890123"; /* 63 */
    static const struct {
        const char *name;
        size_t bytes;
        bool good;
    } names[] = {
        {"a", 1, true},         {"A-z_0.9", 7, true},   {long_name, 63, true}, {"", 0, false},
        {long_name, 64, false}, {"a b", 3, false},      {"a:b", 3, false},     {"a/b", 3, false},
        {"a\0b", 3, false},     {"\xc3\xa4", 2, false}, {"a\n", 2, false},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const qn_mapping_t *region;
        qn_mapping_t *old;
        bool fresh;
        qn_err_t err =
            region_table_reserve(*state, QN_REGION_KIND_TAP, names[i].name, names[i].bytes, 1, &region, &fresh, &old);
        if (err != (names[i].good ? QN_OK : QN_ERR_INVALID)) fail_msg("name %zu: %d", i, err);
    }
}

static void test_region_table_another_kind_is_refused(void **state)
{
    const qn_mapping_t *region;
    bool fresh;
    assert_int_equal(reserve(*state, QN_REGION_KIND_STATE, "x", 100, &region, &fresh), QN_OK);
    assert_int_equal(reserve(*state, QN_REGION_KIND_TAP, "x", 100, &region, &fresh), QN_ERR_INVALID);
}

static void test_region_table_is_bounded(void **state)
{
    const qn_mapping_t *region;
    bool fresh;
    char name[16];
    for (int i = 0; i <= REGION_TABLE_MAX; i++) {
        snprintf(name, sizeof name, "r%d", i);
        assert_int_equal(reserve(*state, QN_REGION_KIND_TAP, name, 1, &region, &fresh),
                         i < REGION_TABLE_MAX ? QN_OK : QN_ERR_LIMIT);
    }
    /* replacing needs no room */
    assert_int_equal(reserve(*state, QN_REGION_KIND_TAP, "r0", 2, &region, &fresh), QN_OK);
    assert_int_equal(region_table_bytes(*state, QN_REGION_KIND_TAP), REGION_TABLE_MAX + 1);
    assert_int_equal(region_table_bytes(*state, QN_REGION_KIND_KV), 0);
    qn_mapping_t *one_more;
    assert_int_equal(region_table_make(*state, 1, QN_REGION_KIND_KV, "kv", 1, &one_more), QN_OK);
    assert_int_equal(region_table_add(*state, &one_more), QN_ERR_LIMIT);
    qn_region_close(&one_more);
}

static void test_region_table_more_than_half_of_free_memory_is_refused(void **state)
{
    const qn_mapping_t *region;
    bool fresh;
    uint64_t free_bytes;
    assert_int_equal(qn_region_free_bytes(QN_SHARE_MEMFD, -1, &free_bytes), QN_OK);
    assert_int_equal(reserve(*state, QN_REGION_KIND_STATE, "x", free_bytes, &region, &fresh), QN_ERR_LIMIT);
    /* a quarter is given (and never touched here) */
    assert_int_equal(reserve(*state, QN_REGION_KIND_STATE, "x", free_bytes / 4, &region, &fresh), QN_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_region_table_same_name_is_the_same_region, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_table_names_are_judged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_table_another_kind_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_table_is_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_region_table_more_than_half_of_free_memory_is_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
