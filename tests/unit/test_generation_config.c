/* Sampling defaults of generation_config.json: what is taken, what is neutral, what is refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "common/model/generation_config.h"

static qn_err_t parse(const char *text, qn_generation_config_t *ret_config)
{
    return qn_generation_config_parse(text, text ? strlen(text) : 0, ret_config);
}

static void test_generation_config_without_file_or_fields_is_neutral(void **state)
{
    (void)state;
    const char *texts[] = {NULL, "{}", "{\"temperature\":null,\"top_k\":null,\"do_sample\":true}"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        qn_generation_config_t config;
        assert_int_equal(parse(texts[i], &config), QN_OK);
        assert_true(config.temperature == 1 && config.top_p == 1 && config.min_p == 0);
        assert_true(config.repetition_penalty == 1 && config.top_k == 0 && config.max_tokens == 0);
    }
}

/* As Qwen2.5 and Llama 3.1 publish them. */
static void test_generation_config_of_published_models_is_taken(void **state)
{
    (void)state;
    qn_generation_config_t config;
    assert_int_equal(parse("{\"bos_token_id\":151643,\"do_sample\":true,\"eos_token_id\":[151645,151643],"
                           "\"repetition_penalty\":1.05,\"temperature\":0.7,\"top_p\":0.8,\"top_k\":20}",
                           &config),
                     QN_OK);
    assert_true(config.repetition_penalty == 1.05f && config.temperature == 0.7f && config.top_p == 0.8f);
    assert_int_equal(config.top_k, 20);
    assert_int_equal(parse("{\"max_new_tokens\":2048,\"min_p\":0.1,\"temperature\":0}", &config), QN_OK);
    assert_int_equal(config.max_tokens, 2048);
    assert_true(config.min_p == 0.1f && config.temperature == 0);
}

static void test_generation_config_nonsense_is_refused_by_name(void **state)
{
    (void)state;
    const struct {
        const char *text, *named;
    } cases[] = {
        {"[]", "object"},
        {"{", "JSON"},
        {"{\"temperature\":\"hot\"}", "\"temperature\""},
        {"{\"temperature\":-1}", "\"temperature\""},
        {"{\"top_p\":1.5}", "\"top_p\""},
        {"{\"min_p\":-0.1}", "\"min_p\""},
        {"{\"repetition_penalty\":0}", "\"repetition_penalty\""},
        {"{\"top_k\":-2}", "\"top_k\""},
        {"{\"top_k\":NaN}", "\"top_k\""},
        {"{\"top_k\":\"50\"}", "\"top_k\""},
        {"{\"temperature\":Infinity}", "\"temperature\""},
        {"{\"top_k\":1.5}", "\"top_k\""},
        {"{\"max_new_tokens\":true}", "\"max_new_tokens\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        qn_generation_config_t config;
        assert_int_equal(parse(cases[i].text, &config), QN_ERR_INVALID);
        if (!strstr(qn_err_text(), cases[i].named)) fail_msg("%s: %s", cases[i].text, qn_err_text());
    }
}

/* What other servers and Python's json module write. */
static void test_generation_config_of_other_servers_is_taken(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint32_t top_k, max_tokens;
    } cases[] = {
        {"{\"top_k\":-1,\"max_new_tokens\":-1}", 0, 0},
        {"{\"top_k\":-1.0}", 0, 0},
        {"{\"top_k\":50.0,\"temperature\":1}", 50, 0},
        {"{\"top_k\":1e30}", 0, 0},
        {"{\"top_k\":99999999999999999999}", 0, 0},
        {"{\"top_k\":1048575}", 1048575, 0},
        {"{\"top_k\":null,\"top_p\":null,\"temperature\":null,\"max_new_tokens\":null,\"min_p\":null}", 0, 0},
        {"{\"top_k\":7,\"top_k\":8,\"max_time\":Infinity,\"x\":[NaN,-Infinity,1e999,\"\\ud800\"]}", 8, 0},
        {"{\"max_new_tokens\":1e9}", 0, 1u << 20},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        qn_generation_config_t config;
        if (parse(cases[i].text, &config)) fail_msg("%s: %s", cases[i].text, qn_err_text());
        assert_int_equal(config.top_k, cases[i].top_k);
        assert_int_equal(config.max_tokens, cases[i].max_tokens);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generation_config_without_file_or_fields_is_neutral),
        cmocka_unit_test(test_generation_config_of_published_models_is_taken),
        cmocka_unit_test(test_generation_config_of_other_servers_is_taken),
        cmocka_unit_test(test_generation_config_nonsense_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
