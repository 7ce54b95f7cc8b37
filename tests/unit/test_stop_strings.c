/* Units of services/tokenizer/decode/stop_strings.c: what is held, what matches, and that cuts do not matter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "services/tokenizer/decode/stop_strings.h"

typedef struct {
    const char *stops[3];
    bool include;
    const char *text;
    const char *released;
    int match; /* index, -1: none */
    unsigned match_start;
} row_t;

static const row_t rows[] = {
    {{"END"}, false, "abcENDdef", "abc", 0, 3},
    {{"END"}, true, "abcENDdef", "abcEND", 0, 3},
    {{"END"}, false, "abcEN", "abcEN", -1, 0},
    {{"END"}, false, "END", "", 0, 0},
    {{"END"}, false, "ENEND", "EN", 0, 2},
    {{"aab"}, false, "aaaab", "aa", 0, 2},
    {{"abab"}, false, "abaabab", "aba", 0, 3},
    {{"abc", "b"}, false, "xabcb", "x", 0, 1},  /* starts first, though the other ends first */
    {{"abc", "b"}, false, "xabd", "xa", 1, 2},  /* the first one did not come */
    {{"abc", "b"}, false, "xab", "xa", 1, 2},   /* nor before the end */
    {{"ab", "abc"}, true, "xabc", "xab", 0, 1}, /* the shorter of two at one place */
    {{"abc", "ab"}, true, "xabc", "xab", 1, 1},
    {{"\n\n", "\n"}, true, "a\n\nb", "a\n", 1, 1},
    {{"é"}, false, "caf\xC3\xA9!", "caf", 0, 3},
    {{"x"}, false, "", "", -1, 0},
    {{NULL}, false, "anything", "anything", -1, 0},
};

static void open_row(stop_strings_t *s, const row_t *row)
{
    size_t lengths[3] = {0}, count = 0;
    while (count < 3 && row->stops[count]) {
        lengths[count] = strlen(row->stops[count]);
        count++;
    }
    assert_int_equal(stop_strings_init(s, row->stops, lengths, count, row->include), QN_OK);
}

/* Feeds the text in two pieces cut at `cut`, the second byte by byte. */
static void check_cut(const row_t *row, size_t cut)
{
    stop_strings_t s;
    text_buffer_t out = {0};
    open_row(&s, row);
    stop_strings_push(&s, row->text, cut, &out);
    for (size_t i = cut; i < strlen(row->text); i++) {
        stop_strings_push(&s, row->text + i, 1, &out);
        assert_int_equal(s.byte_count, out.length);
    }
    bool matched = stop_strings_flush(&s, &out);
    assert_int_equal(matched, row->match >= 0);
    assert_int_equal(out.length, strlen(row->released));
    if (out.length) assert_memory_equal(out.bytes, row->released, out.length);
    if (matched) {
        assert_int_equal(s.match_index, row->match);
        assert_int_equal(s.match_start, row->match_start);
    }
    stop_strings_fini(&s);
    text_buffer_fini(&out);
}

static void test_stop_strings_any_cut_gives_the_same(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t cut = 0; cut <= strlen(rows[i].text); cut++)
            check_cut(&rows[i], cut);
}

static void test_stop_strings_holds_only_a_possible_beginning(void **state)
{
    (void)state;
    stop_strings_t s;
    text_buffer_t out = {0};
    open_row(&s, &(row_t){.stops = {"stop"}});
    assert_false(stop_strings_push(&s, "do not st", 9, &out));
    assert_int_equal(out.length, 7);
    assert_false(stop_strings_push(&s, "ay", 2, &out));
    assert_int_equal(out.length, 11);
    assert_true(stop_strings_push(&s, "stop here", 9, &out));
    assert_true(stop_strings_push(&s, "more", 4, &out));
    assert_int_equal(out.length, 11);
    stop_strings_fini(&s);
    text_buffer_fini(&out);
}

static void test_stop_strings_limits_both_sides(void **state)
{
    (void)state;
    static char long_string[QN_STOP_STRING_BYTES_MAX + 2];
    const char *strings[QN_STOP_STRINGS_MAX + 1];
    size_t lengths[QN_STOP_STRINGS_MAX + 1];
    memset(long_string, 'x', sizeof long_string - 1);
    for (size_t i = 0; i <= QN_STOP_STRINGS_MAX; i++) {
        strings[i] = long_string;
        lengths[i] = QN_STOP_STRING_BYTES_MAX;
    }
    stop_strings_t s;
    assert_int_equal(stop_strings_init(&s, strings, lengths, QN_STOP_STRINGS_MAX, false), QN_OK);
    stop_strings_fini(&s);
    assert_int_equal(stop_strings_init(&s, strings, lengths, QN_STOP_STRINGS_MAX + 1, false), QN_ERR_LIMIT);
    lengths[1] = QN_STOP_STRING_BYTES_MAX + 1;
    assert_int_equal(stop_strings_init(&s, strings, lengths, 2, false), QN_ERR_LIMIT);
    lengths[1] = 0;
    assert_int_equal(stop_strings_init(&s, strings, lengths, 2, false), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "stop[1]"));
    stop_strings_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_strings_any_cut_gives_the_same),
        cmocka_unit_test(test_stop_strings_holds_only_a_possible_beginning),
        cmocka_unit_test(test_stop_strings_limits_both_sides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
