/* The JSON writer against jansson: what is written parses, and parses to what was meant. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "services/frontend/reply/json_writer.h"

static json_t *parse(const reply_buffer_t *out)
{
    json_error_t error;
    json_t *root = json_loadb(out->data, out->bytes, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!root) fail_msg("%s in %.*s", error.text, (int)out->bytes, out->data);
    return root;
}

static void test_json_writer_every_byte_reads_back(void **state)
{
    (void)state;
    char text[256];
    for (int i = 0; i < 256; i++)
        text[i] = (char)i;
    reply_buffer_t out = {0};
    json_writer_t writer = json_writer_on(&out);
    json_put_text(&writer, text, 128);
    json_t *value = parse(&out);
    assert_int_equal(json_string_length(value), 128);
    assert_memory_equal(json_string_value(value), text, 128);
    json_decref(value);
    reply_buffer_fini(&out);
}

static void test_json_writer_bad_utf8_becomes_replacement(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *expected;
    } cases[] = {
        {"\xff", "\xEF\xBF\xBD"},
        {"a\xC3", "a\xEF\xBF\xBD"},                                               /* cut off */
        {"\xC0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD"},                                 /* overlong */
        {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},                 /* surrogate */
        {"\xF4\x90\x80\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"}, /* above U+10FFFF */
        {"\xE2\x82\xAC"
         "b",
         "\xE2\x82\xAC"
         "b"},
        {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80"},
        {"\xED\x9F\xBF", "\xED\x9F\xBF"},         /* last before the surrogates */
        {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF"}, /* U+10FFFF */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        reply_buffer_t out = {0};
        json_writer_t writer = json_writer_on(&out);
        json_put_text(&writer, cases[i].text, strlen(cases[i].text));
        json_t *value = parse(&out);
        assert_string_equal(json_string_value(value), cases[i].expected);
        json_decref(value);
        reply_buffer_fini(&out);
    }
}

static void test_json_writer_nested_containers_place_commas(void **state)
{
    (void)state;
    reply_buffer_t out = {0};
    json_writer_t writer = json_writer_on(&out);
    json_put_open(&writer, '{');
    json_put_member_string(&writer, "a", "x");
    json_put_key(&writer, "b");
    json_put_open(&writer, '[');
    json_put_unsigned(&writer, 1);
    json_put_open(&writer, '[');
    json_put_close(&writer, ']');
    json_put_null(&writer);
    json_put_close(&writer, ']');
    json_put_key_text(&writer, "q\"\n", 3);
    json_put_signed(&writer, -7);
    json_put_member_bool(&writer, "d", false);
    json_put_close(&writer, '}');
    const char *expected = "{\"a\":\"x\",\"b\":[1,[],null],\"q\\\"\\n\":-7,\"d\":false}";
    assert_int_equal(out.bytes, strlen(expected));
    assert_memory_equal(out.data, expected, out.bytes);
    reply_buffer_fini(&out);
}

static void test_json_writer_numbers_are_json_and_exact(void **state)
{
    (void)state;
    static const float floats[] = {0.0f, -1.5f, 0.1f, 1e-30f, 3.4028235e38f, -9999.0f, -0.69314718f, 16777217.0f};
    for (size_t i = 0; i < sizeof floats / sizeof floats[0]; i++) {
        reply_buffer_t out = {0};
        json_writer_t writer = json_writer_on(&out);
        json_put_float(&writer, floats[i]);
        json_t *value = parse(&out);
        assert_true((float)json_number_value(value) == floats[i]);
        json_decref(value);
        reply_buffer_fini(&out);
    }
    reply_buffer_t out = {0};
    json_writer_t writer = json_writer_on(&out);
    json_put_open(&writer, '[');
    json_put_float(&writer, NAN);
    json_put_number(&writer, INFINITY);
    json_put_number(&writer, -INFINITY);
    json_put_unsigned(&writer, UINT64_MAX);
    json_put_signed(&writer, INT64_MIN);
    json_put_close(&writer, ']');
    assert_memory_equal(out.data, "[null,null,null,18446744073709551615,-9223372036854775808]", out.bytes);
    reply_buffer_fini(&out);
}

static void test_reply_buffer_grows_consumes_and_is_taken(void **state)
{
    (void)state;
    reply_buffer_t out = {0};
    for (int i = 0; i < 1000; i++)
        reply_buffer_printf(&out, "%03d", i);
    assert_int_equal(out.bytes, 3000);
    reply_buffer_consume(&out, 2994);
    assert_memory_equal(out.data, "998999", 6);
    size_t bytes;
    char *data = reply_buffer_take(&out, &bytes);
    assert_int_equal(bytes, 6);
    assert_null(out.data);
    free(data);
    data = reply_buffer_take(&out, &bytes); /* empty, and still not NULL */
    assert_non_null(data);
    assert_int_equal(bytes, 0);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_writer_every_byte_reads_back),
        cmocka_unit_test(test_json_writer_bad_utf8_becomes_replacement),
        cmocka_unit_test(test_json_writer_nested_containers_place_commas),
        cmocka_unit_test(test_json_writer_numbers_are_json_and_exact),
        cmocka_unit_test(test_reply_buffer_grows_consumes_and_is_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
