/* API keys: which lines are keys, which are refused and how, and what a key opens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "services/frontend/http/api_keys.h"

#define USER_KEY "user-key-0123456789"
#define ADMIN_KEY "admin-key-0123456789"

static api_keys_t *parse(const char *text)
{
    api_keys_t *keys = NULL;
    assert_int_equal(api_keys_parse("keys", text, strlen(text), &keys), QN_OK);
    return keys;
}

static void test_api_keys_scope_of_what_is_given(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        access_t scope;
    } cases[] = {
        {NULL, ACCESS_PUBLIC},
        {"", ACCESS_PUBLIC},
        {"Bearer", ACCESS_PUBLIC},
        {"Bearer ", ACCESS_PUBLIC},
        {USER_KEY, ACCESS_PUBLIC},
        {"Basic " USER_KEY, ACCESS_PUBLIC},
        {"Bearer " USER_KEY, ACCESS_USER},
        {"bearer   " USER_KEY, ACCESS_USER},
        {"Bearer " USER_KEY "x", ACCESS_PUBLIC},
        {"Bearer user-key-012345678", ACCESS_PUBLIC},
        {"Bearer " ADMIN_KEY, ACCESS_ADMIN},
        {"Bearer " ADMIN_KEY " ", ACCESS_ADMIN},
    };
    api_keys_t *keys = parse("# who\n\n alice user " USER_KEY "\r\n\troot\tadmin\t" ADMIN_KEY);
    assert_int_equal(api_keys_count(keys), 2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (api_keys_scope(keys, cases[i].header) != cases[i].scope) fail_msg("case %zu", i);
    api_keys_destroy(&keys);
    assert_null(keys);
}

static void test_api_keys_longest_key_is_compared_whole(void **state)
{
    (void)state;
    char text[400], header[400], key[API_KEY_BYTES_MAX + 2];
    memset(key, 'k', sizeof key);
    key[API_KEY_BYTES_MAX] = '\0';
    snprintf(text, sizeof text, "a user %s\n", key);
    api_keys_t *keys = parse(text);
    snprintf(header, sizeof header, "Bearer %s", key);
    assert_int_equal(api_keys_scope(keys, header), ACCESS_USER);
    header[strlen(header) - 1] = 'x';
    assert_int_equal(api_keys_scope(keys, header), ACCESS_PUBLIC);
    snprintf(header, sizeof header, "Bearer %sk", key);
    assert_int_equal(api_keys_scope(keys, header), ACCESS_PUBLIC);
    api_keys_destroy(&keys);
    snprintf(text, sizeof text, "a user %sk\n", key);
    assert_int_equal(api_keys_parse("keys", text, strlen(text), &keys), QN_ERR_CONFIG);
}

static void test_api_keys_refusals_name_the_line_and_never_the_key(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"", "no key in the file"},
        {"# nothing\n", "no key in the file"},
        {"alice user\n", "keys:1"},
        {"\nalice owner " USER_KEY "\n", "keys:2"},
        {"alice owner " USER_KEY "\n", "user or admin"},
        {"al/ice user " USER_KEY "\n", "the name"},
        {"alice user short\n", "16 to 256"},
        {"alice user " USER_KEY " more\n", "nothing behind"},
        {"alice user " USER_KEY "\xc3\xa4\n", "visible ASCII"},
        {"alice user " USER_KEY "\nalice user " ADMIN_KEY "\n", "keys:2"},
        {"alice user " USER_KEY "\nbob admin " USER_KEY "\n", "this key stands above"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        api_keys_t *keys = NULL;
        assert_int_equal(api_keys_parse("keys", cases[i].text, strlen(cases[i].text), &keys), QN_ERR_CONFIG);
        assert_null(keys);
        assert_non_null(strstr(qn_err_text(), cases[i].words));
        assert_null(strstr(qn_err_text(), "key-0123"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_api_keys_scope_of_what_is_given),
        cmocka_unit_test(test_api_keys_longest_key_is_compared_whole),
        cmocka_unit_test(test_api_keys_refusals_name_the_line_and_never_the_key),
    };
    return cmocka_run_group_tests_name("api_keys", tests, NULL, NULL);
}
