/* JSON beyond JSON: what Python's json module accepts is accepted, and what it refuses is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/model/python_json.h"

/* What comes out, compact; "" when it is refused. Released by the next call. */
static const char *read_json(const char *text, size_t bytes)
{
    static char *dump;
    json_error_t error;
    free(dump);
    json_t *root = qn_python_json_load(text, bytes, &error);
    dump = root ? json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(6)) : strdup("");
    json_decref(root);
    return dump;
}

static void test_python_json_what_python_writes_is_read(void **state)
{
    (void)state;
    static const struct {
        const char *text, *wanted;
    } ROWS[] = {
        {"{\"a\":1,\"b\":[true,false,null,-2.5,\"x\"]}", "{\"a\":1,\"b\":[true,false,null,-2.5,\"x\"]}"},
        {"[NaN, Infinity ,-Infinity]", "[\"NaN\",\"Infinity\",\"-Infinity\"]"},
        {"[1e999,-1e999,1e-999]", "[\"Infinity\",\"-Infinity\",0.0]"},
        {"[9223372036854775807,9223372036854775808,-9223372036854775809]",
         "[9223372036854775807,9.22337e18,-9.22337e18]"},
        {"[\"NaN 1e999 \\\" Infinity\"]", "[\"NaN 1e999 \\\" Infinity\"]"},
        {"[\"\\ud83d\\ude00\"]", "[\"\xf0\x9f\x98\x80\"]"},
        {"[\"\\ud83d\",\"\\ude00\",\"\\ud83dx\",\"\\ud83d\\u0041\",\"a\\u0000b\"]",
         "[\"\xef\xbf\xbd\",\"\xef\xbf\xbd\",\"\xef\xbf\xbdx\",\"\xef\xbf\xbd"
         "A\",\"a\xef\xbf\xbd"
         "b\"]"},
        {"{\"a\\u0000\":1}", "{\"a\xef\xbf\xbd\":1}"},
        {"{\"a\":1,\"a\":2}", "{\"a\":2}"},
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++)
        assert_string_equal(read_json(ROWS[i].text, strlen(ROWS[i].text)), ROWS[i].wanted);
}

static void test_python_json_what_python_refuses_is_refused(void **state)
{
    (void)state;
    static const char *const TEXTS[] = {
        "",          "{",
        "[1,]",      "[nan]",
        "[inf]",     "[+Infinity]",
        "[NaN1]",    "[--1]",
        "[1..2]",    "[01]",
        "[1e]",      "[.5]",
        "[1.]",      "[\"\\",
        "[\"\\u12",  "[\"\\ud83d",
        "[\"",       "[0x10]",
        "[1]x",      "'a'",
        "[\"\n\"]",  "[\"\xff\"]",
        "[\"\\x\"]", "[\"\\uzzzz\"]",
        "[-NaN]",    "[InfinityInfinity]",
    };
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++)
        if (read_json(TEXTS[i], strlen(TEXTS[i]))[0]) fail_msg("%s was read", TEXTS[i]);
}

static void test_python_json_binary_and_cut_texts_do_no_harm(void **state)
{
    (void)state;
    static const char TEXT[] = "{\"a\":[NaN,\"\\ud83d\\ude00\\u0000\",1e999,99999999999999999999],\"b\":-Infinity}";
    char *copy = malloc(sizeof TEXT);
    for (size_t bytes = 0; bytes < sizeof TEXT - 1; bytes++) {
        char *cut = malloc(bytes + 1); /* so that a read beyond is seen */
        memcpy(cut, TEXT, bytes);
        assert_string_equal(read_json(cut, bytes), "");
        free(cut);
        for (int value = 0; value < 256; value += 51) {
            memcpy(copy, TEXT, sizeof TEXT);
            copy[bytes] = (char)value;
            read_json(copy, sizeof TEXT - 1);
        }
    }
    free(copy);
    read_json("", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_python_json_what_python_writes_is_read),
        cmocka_unit_test(test_python_json_what_python_refuses_is_refused),
        cmocka_unit_test(test_python_json_binary_and_cut_texts_do_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
