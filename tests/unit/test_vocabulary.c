/* Units of services/tokenizer/bpe/vocabulary.c: finding both ways, growing, pieces and ids given twice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "services/tokenizer/bpe/vocabulary.h"

static void test_vocabulary_many_pieces_are_found_both_ways(void **state)
{
    (void)state;
    vocabulary_t v;
    vocabulary_init(&v, 0); /* grows from the smallest table */
    char piece[32];
    for (uint32_t i = 0; i < 20000; i++)
        vocabulary_add(&v, piece, (size_t)snprintf(piece, sizeof piece, "p%u", i * 7), i);
    assert_int_equal(v.count, 20000);
    assert_int_equal(v.id_limit, 20000);
    for (uint32_t i = 0; i < 20000; i++) {
        size_t bytes, length = (size_t)snprintf(piece, sizeof piece, "p%u", i * 7);
        assert_int_equal(vocabulary_find(&v, piece, length), i);
        assert_memory_equal(vocabulary_piece(&v, i, &bytes), piece, length);
        assert_int_equal(bytes, length);
    }
    assert_int_equal(vocabulary_find(&v, "p1", 2), VOCABULARY_NO_ID);
    size_t bytes;
    assert_null(vocabulary_piece(&v, 20000, &bytes));
    vocabulary_fini(&v);
}

static void test_vocabulary_empty_and_odd_pieces_are_pieces(void **state)
{
    (void)state;
    vocabulary_t v;
    size_t bytes = 9;
    vocabulary_init(&v, 4);
    assert_int_equal(vocabulary_find(&v, "", 0), VOCABULARY_NO_ID);
    vocabulary_add(&v, "", 0, 5);
    vocabulary_add(&v, "a\0b", 3, 3);
    assert_int_equal(vocabulary_find(&v, "", 0), 5);
    assert_int_equal(vocabulary_find(&v, "a\0b", 3), 3);
    assert_int_equal(vocabulary_find(&v, "a\0c", 3), VOCABULARY_NO_ID);
    assert_non_null(vocabulary_piece(&v, 5, &bytes));
    assert_int_equal(bytes, 0);
    assert_null(vocabulary_piece(&v, 4, &bytes));
    vocabulary_fini(&v);
}

static void test_vocabulary_last_of_equals_counts(void **state)
{
    (void)state;
    vocabulary_t v;
    size_t bytes;
    vocabulary_init(&v, 4);
    vocabulary_add(&v, "x", 1, 1);
    vocabulary_add(&v, "x", 1, 2);
    vocabulary_add(&v, "y", 1, 1);
    assert_int_equal(v.count, 2);
    assert_int_equal(vocabulary_find(&v, "x", 1), 2);
    assert_memory_equal(vocabulary_piece(&v, 1, &bytes), "y", 1);
    vocabulary_fini(&v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vocabulary_many_pieces_are_found_both_ways),
        cmocka_unit_test(test_vocabulary_empty_and_odd_pieces_are_pieces),
        cmocka_unit_test(test_vocabulary_last_of_equals_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
