/* Units of services/tokenizer/json/json_cursor.c: what is read, what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "services/tokenizer/json/json_cursor.h"

static json_cursor_t over(const char *text) { return json_cursor((json_slice_t){text, strlen(text)}); }

static void test_json_cursor_strings(void **state)
{
    (void)state;
    static const struct {
        const char *json, *text; /* NULL: refused */
    } table[] = {
        {"\"\"", ""},
        {" \"abc\"", "abc"},
        {"\"a\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "a\"\\/\b\f\n\r\t"},
        {"\"\\u00e9\\u65E5\"", "é日"},
        {"\"\\ud83d\\ude00\"", "😀"},
        {"\"é\"", "é"},
        {"\"\\ud83d\"", NULL},
        {"\"\\ud83dx\"", NULL},
        {"\"\\ud83d\\u0041\"", NULL},
        {"\"\\ude00\"", NULL},
        {"\"\\u00g0\"", NULL},
        {"\"\\u00", NULL},
        {"\"\\x\"", NULL},
        {"\"a\nb\"", NULL},
        {"\"abc", NULL},
        {"\"\xFF\"", NULL},
        {"abc", NULL},
        {"", NULL},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        json_cursor_t cursor = over(table[i].json);
        text_buffer_t out = {0};
        bool ok = json_cursor_string(&cursor, &out);
        if (ok != (table[i].text != NULL)) fail_msg("%s", table[i].json);
        if (ok) {
            assert_int_equal(out.length, strlen(table[i].text));
            if (out.length) assert_memory_equal(out.bytes, table[i].text, out.length);
            assert_true(json_cursor_at_end(&cursor));
        }
        text_buffer_fini(&out);
    }
}

static void test_json_cursor_numbers_both_sides(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        bool ok;
        uint32_t value;
    } table[] = {
        {"0", true, 0},   {" 42 ", true, 42}, {"4294967295", true, UINT32_MAX},      {"4294967296", false, 0},
        {"01", false, 0}, {"-1", false, 0},   {"99999999999999999999999", false, 0}, {"x", false, 0},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        json_cursor_t cursor = over(table[i].json);
        uint32_t value = 7;
        assert_int_equal(json_cursor_uint32(&cursor, &value), table[i].ok);
        if (table[i].ok) assert_int_equal(value, table[i].value);
    }
}

static void test_json_cursor_skips_whole_values(void **state)
{
    (void)state;
    static const char *const values[] = {"1", "\"a]\\\"}\"", "[1,[2,{}],\"]\"]", "{\"a\":[\"}\"]}", "null"};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        char text[64];
        json_slice_t slice;
        strcpy(text, values[i]);
        strcat(text, ",1]");
        json_cursor_t cursor = over(text);
        assert_true(json_cursor_value(&cursor, &slice));
        assert_int_equal(slice.length, strlen(values[i]));
        assert_memory_equal(slice.text, values[i], slice.length);
        assert_int_equal(json_cursor_peek(&cursor), ',');
    }
}

static void test_json_cursor_depth_both_sides(void **state)
{
    (void)state;
    char text[2 * JSON_CURSOR_DEPTH_MAX + 4];
    for (size_t depth = JSON_CURSOR_DEPTH_MAX; depth <= JSON_CURSOR_DEPTH_MAX + 1; depth++) {
        json_slice_t slice;
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        text[2 * depth] = '\0';
        json_cursor_t cursor = over(text);
        assert_int_equal(json_cursor_value(&cursor, &slice), depth == JSON_CURSOR_DEPTH_MAX);
    }
}

static void test_json_cursor_lists(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        int count; /* -1: refused */
    } table[] = {{"[]", 0}, {"[ 1 , 2 ]", 2}, {"[1", -1}, {"[1 2]", -1}, {"[,1]", -1}, {"[1,]", -1}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        json_cursor_t cursor = over(table[i].json);
        bool first = true, more = true, ok = json_cursor_take(&cursor, '[');
        int count = 0;
        uint32_t value;
        while (ok && (ok = json_cursor_more(&cursor, ']', &first, &more)) && more) {
            ok = json_cursor_uint32(&cursor, &value);
            count++;
        }
        assert_int_equal(ok ? count : -1, table[i].count);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_cursor_strings),
        cmocka_unit_test(test_json_cursor_numbers_both_sides),
        cmocka_unit_test(test_json_cursor_skips_whole_values),
        cmocka_unit_test(test_json_cursor_depth_both_sides),
        cmocka_unit_test(test_json_cursor_lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
