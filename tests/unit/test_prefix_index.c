/* Units of services/memory/prefix_index.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "services/memory/prefix_index.h"

static const uint32_t A[] = {1, 2}, B[] = {3, 4}, C[] = {5, 6};

static prefix_index_t *make(void)
{
    prefix_index_t *index = NULL;
    assert_int_equal(prefix_index_create(8, 2, &index), QN_OK);
    return index;
}

static void check(const prefix_index_t *index, uint32_t count)
{
    assert_null(prefix_index_check(index));
    assert_int_equal(prefix_index_count(index), count);
}

/* blocks 0: A, 1: A B, 2: A C, 3: A B C */
static prefix_index_t *make_tree(void)
{
    prefix_index_t *index = make();
    prefix_index_insert(index, 0, PREFIX_ROOT, 0, A);
    prefix_index_insert(index, 1, prefix_index_place(index, 0), 0, B);
    prefix_index_insert(index, 2, prefix_index_place(index, 0), 0, C);
    prefix_index_insert(index, 3, prefix_index_place(index, 1), 0, C);
    check(index, 4);
    return index;
}

static void test_prefix_index_find_needs_parent_salt_and_ids(void **state)
{
    (void)state;
    prefix_index_t *index = make_tree();
    assert_int_equal(prefix_index_find(index, PREFIX_ROOT, 0, A), 0);
    assert_int_equal(prefix_index_find(index, PREFIX_ROOT, 1, A), PREFIX_INDEX_NONE);
    assert_int_equal(prefix_index_find(index, PREFIX_ROOT, 0, B), PREFIX_INDEX_NONE);
    assert_int_equal(prefix_index_find(index, prefix_index_place(index, 0), 0, B), 1);
    assert_int_equal(prefix_index_find(index, prefix_index_place(index, 0), 0, C), 2);
    assert_int_equal(prefix_index_find(index, prefix_index_place(index, 1), 0, C), 3);
    assert_int_equal(prefix_index_find(index, prefix_index_place(index, 2), 0, C), PREFIX_INDEX_NONE);
    assert_int_equal(prefix_index_depth(index, 0), 0);
    assert_int_equal(prefix_index_depth(index, 3), 2);
    prefix_index_destroy(&index);
}

static void test_prefix_index_root_salt_equal_to_a_content_number_is_no_child(void **state)
{
    (void)state;
    prefix_index_t *index = make();
    prefix_index_insert(index, 0, PREFIX_ROOT, 0, A);
    prefix_place_t place = prefix_index_place(index, 0);
    prefix_index_insert(index, 1, place, 0, B);
    assert_int_equal(prefix_index_find(index, PREFIX_ROOT, place.content, B), PREFIX_INDEX_NONE);
    prefix_index_insert(index, 2, PREFIX_ROOT, place.content, B);
    assert_int_equal(prefix_index_find(index, place, 0, B), 1);
    assert_int_equal(prefix_index_find(index, PREFIX_ROOT, place.content, B), 2);
    check(index, 3);
    prefix_index_destroy(&index);
}

static void test_prefix_index_remove_takes_the_whole_subtree(void **state)
{
    (void)state;
    prefix_index_t *index = make_tree();
    prefix_place_t stale = prefix_index_place(index, 1);
    const uint32_t *removed;
    assert_int_equal(prefix_index_remove(index, 1, &removed), 2);
    assert_int_equal(removed[0], 1);
    assert_int_equal(removed[1], 3);
    check(index, 2);
    assert_false(prefix_index_valid(index, stale));
    prefix_index_insert(index, 1, prefix_index_place(index, 0), 0,
                        B); /* the same block, the same ids: another content */
    assert_false(prefix_index_valid(index, stale));
    assert_int_equal(prefix_index_remove(index, 0, &removed), 3);
    check(index, 0);
    assert_true(prefix_index_valid(index, PREFIX_ROOT));
    prefix_index_destroy(&index);
}

static void test_prefix_index_replace_moves_content_and_followers(void **state)
{
    (void)state;
    prefix_index_t *index = make_tree();
    prefix_place_t before = prefix_index_place(index, 0);
    prefix_index_replace(index, 0, 7);
    check(index, 4);
    assert_false(prefix_index_contains(index, 0));
    assert_int_equal(prefix_index_find(index, PREFIX_ROOT, 0, A), 7);
    assert_int_equal(prefix_index_find(index, prefix_index_place(index, 7), 0, B), 1);
    assert_int_equal(prefix_index_place(index, 7).content, before.content);
    const uint32_t *removed;
    assert_int_equal(prefix_index_remove(index, 7, &removed), 4);
    check(index, 0);
    prefix_index_destroy(&index);
}

static void test_prefix_index_many_entries_in_few_buckets_are_told_apart(void **state)
{
    (void)state;
    prefix_index_t *index = NULL;
    assert_int_equal(prefix_index_create(512, 1, &index), QN_OK);
    for (uint32_t i = 0; i < 512; i++) {
        uint32_t id = i;
        prefix_index_insert(index, i, PREFIX_ROOT, i % 3, &id);
    }
    check(index, 512);
    for (uint32_t i = 0; i < 512; i++)
        for (uint64_t salt = 0; salt < 3; salt++)
            assert_int_equal(prefix_index_find(index, PREFIX_ROOT, salt, &i), salt == i % 3 ? i : PREFIX_INDEX_NONE);
    const uint32_t *removed;
    for (uint32_t i = 0; i < 512; i += 2)
        assert_int_equal(prefix_index_remove(index, i, &removed), 1);
    check(index, 256);
    prefix_index_destroy(&index);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefix_index_find_needs_parent_salt_and_ids),
        cmocka_unit_test(test_prefix_index_root_salt_equal_to_a_content_number_is_no_child),
        cmocka_unit_test(test_prefix_index_remove_takes_the_whole_subtree),
        cmocka_unit_test(test_prefix_index_replace_moves_content_and_followers),
        cmocka_unit_test(test_prefix_index_many_entries_in_few_buckets_are_told_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
