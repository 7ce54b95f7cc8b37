/* Bodies of a load's requests. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench/load_prompts.h"

static load_prompts_t random_prompts(const char *prompt, const char *output)
{
    load_prompts_t prompts = {
        .seed = 1, .vocab_size = 8, .max_model_len = 100, .special_ids = {0, 3, 7}, .special_count = 3};
    assert_int_equal(load_length_parse(prompt, &prompts.prompt), QN_OK);
    assert_int_equal(load_length_parse(output, &prompts.output), QN_OK);
    return prompts;
}

static json_t *make(const load_prompts_t *prompts, load_purpose_t purpose, uint64_t index, load_request_t *request)
{
    assert_int_equal(load_prompts_make(prompts, purpose, index, request), QN_OK);
    assert_int_equal(strlen(request->body), request->bytes);
    json_t *body = json_loadb(request->body, request->bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
    assert_non_null(body);
    free(request->body);
    return body;
}

static void test_load_prompts_ids_are_in_the_vocabulary_and_not_special(void **state)
{
    (void)state;
    load_prompts_t prompts = random_prompts("1-60", "1-40");
    bool seen[8] = {false};
    assert_int_equal(load_prompts_check(&prompts), QN_OK);
    for (uint64_t i = 0; i < 200; i++) {
        load_request_t request;
        json_t *body = make(&prompts, LOAD_FOR_REQUESTS, i, &request), *ids = json_object_get(body, "prompt");
        assert_int_equal(json_array_size(ids), request.prompt_tokens);
        assert_int_equal(json_integer_value(json_object_get(body, "max_tokens")), request.max_tokens);
        assert_in_range(request.prompt_tokens + request.max_tokens, 2, 100);
        for (size_t at = 0; at < json_array_size(ids); at++) {
            json_int_t id = json_integer_value(json_array_get(ids, at));
            assert_in_range(id, 1, 6);
            seen[id] = true;
        }
        json_decref(body);
    }
    for (size_t id = 0; id < 8; id++)
        assert_int_equal(seen[id], id != 0 && id != 3 && id != 7);
}

static void test_load_prompts_same_seed_and_number_same_body(void **state)
{
    (void)state;
    load_prompts_t prompts = random_prompts("30", "5");
    load_request_t first, again;
    json_t *a = make(&prompts, LOAD_FOR_REQUESTS, 4, &first), *b = make(&prompts, LOAD_FOR_REQUESTS, 4, &again);
    json_t *warm = make(&prompts, LOAD_FOR_WARMUP, 4, &again), *other = make(&prompts, LOAD_FOR_REQUESTS, 5, &again);
    prompts.seed = 2;
    json_t *seeded = make(&prompts, LOAD_FOR_REQUESTS, 4, &again);
    assert_true(json_equal(a, b));
    assert_false(json_equal(a, warm) || json_equal(a, other) || json_equal(a, seeded));
    json_decref(a);
    json_decref(b);
    json_decref(warm);
    json_decref(other);
    json_decref(seeded);
}

/* How many of 400 prompts begin as the first that has the prefix. */
static unsigned count_prefixed(load_prompts_t *prompts)
{
    unsigned count = 0;
    for (uint64_t i = 0; i < 400; i++) {
        load_request_t request;
        json_t *body = make(prompts, LOAD_FOR_REQUESTS, i, &request);
        assert_int_equal(json_array_size(json_object_get(body, "prompt")), request.prompt_tokens);
        assert_true(request.prompt_tokens == 10 || request.prompt_tokens == 50);
        count += request.prompt_tokens == 50;
        json_decref(body);
    }
    return count;
}

static void test_load_prompts_prefix_is_shared_by_its_share(void **state)
{
    (void)state;
    load_prompts_t prompts = random_prompts("10", "5");
    prompts.prefix_tokens = 40;
    assert_int_equal(count_prefixed(&prompts), 0);
    prompts.prefix_share = 0.5;
    assert_in_range(count_prefixed(&prompts), 150, 250);
    prompts.prefix_share = 1;
    assert_int_equal(count_prefixed(&prompts), 400);
    load_request_t request;
    json_t *a = make(&prompts, LOAD_FOR_REQUESTS, 0, &request), *b = make(&prompts, LOAD_FOR_WARMUP, 1, &request);
    json_t *left = json_object_get(a, "prompt"), *right = json_object_get(b, "prompt");
    for (size_t i = 0; i < 40; i++)
        assert_true(json_equal(json_array_get(left, i), json_array_get(right, i)));
    json_decref(a);
    json_decref(b);
}

static void test_load_prompts_lengths_both_sides_of_the_model(void **state)
{
    (void)state;
    static const struct {
        const char *prompt, *output;
        uint32_t prefix;
        bool fits;
    } cases[] = {{"90", "10", 0, true},      {"90", "11", 0, false},      {"50", "10", 40, true},
                 {"50", "10", 41, false},    {"1-90", "10", 0, true},     {"1-91", "10", 0, false},
                 {"exp:500", "99", 0, true}, {"exp:500", "100", 0, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        load_prompts_t prompts = random_prompts(cases[i].prompt, cases[i].output);
        prompts.prefix_tokens = cases[i].prefix;
        prompts.prefix_share = 1;
        assert_int_equal(load_prompts_check(&prompts), cases[i].fits ? QN_OK : QN_ERR_INVALID);
    }
    load_prompts_t prompts = random_prompts("exp:500", "exp:500");
    unsigned clipped = 0;
    for (uint64_t i = 0; i < 100; i++) {
        load_request_t request;
        json_decref(make(&prompts, LOAD_FOR_REQUESTS, i, &request));
        assert_in_range(request.prompt_tokens + request.max_tokens, 2, 100);
        clipped += request.clipped;
    }
    assert_true(clipped > 50);
    prompts.vocab_size = 3;
    assert_int_equal(load_prompts_check(&prompts), QN_ERR_INVALID);
}

static void test_load_prompts_fields_and_users_stand_in_the_body(void **state)
{
    (void)state;
    load_prompts_t prompts = random_prompts("3", "2");
    json_t *fields = json_pack("{s:f, s:b, s:[s]}", "temperature", 0.5, "ignore_eos", 0, "stop", "\"x");
    prompts.fields = fields;
    prompts.user_count = 3;
    load_request_t request;
    json_t *body = make(&prompts, LOAD_FOR_REQUESTS, 4, &request);
    assert_string_equal(json_string_value(json_object_get(body, "user")), "u1");
    assert_true(json_real_value(json_object_get(body, "temperature")) == 0.5);
    assert_true(json_is_false(json_object_get(body, "ignore_eos")));
    assert_true(json_equal(json_object_get(body, "stop"), json_object_get(fields, "stop")));
    json_decref(body);
    json_decref(fields);
    prompts.fields = fields = json_object();
    body = make(&prompts, LOAD_FOR_REQUESTS, 4, &request);
    assert_int_equal(json_integer_value(json_object_get(body, "temperature")), 0);
    assert_true(json_is_true(json_object_get(body, "ignore_eos")));
    json_decref(body);
    json_decref(fields);
}

static void test_load_lines_prompts_come_in_turn_with_their_lengths(void **state)
{
    (void)state;
    static const char text[] = "\"plain \\\"text\\u0000\"\n\n{\"text\": \"t\", \"max_tokens\": 9}\r\n"
                               "{\"input_ids\": [1, 2, 4294967295]}\n{\"prompt_tokens\": 12, \"max_tokens\": 4}";
    load_prompts_t prompts = random_prompts("3", "2");
    assert_int_equal(load_lines_parse("f", text, strlen(text), false, &prompts.lines), QN_OK);
    assert_int_equal(prompts.lines.count, 4);
    assert_int_equal(load_prompts_check(&prompts), QN_OK);
    static const uint32_t max_tokens[] = {2, 9, 2, 4}, lengths[] = {0, 0, 3, 12};
    for (uint64_t i = 0; i < 8; i++) {
        load_request_t request;
        json_t *body = make(&prompts, LOAD_FOR_REQUESTS, i, &request), *prompt = json_object_get(body, "prompt");
        assert_int_equal(request.max_tokens, max_tokens[i % 4]);
        assert_int_equal(request.prompt_tokens, lengths[i % 4]);
        assert_int_equal(json_array_size(prompt), lengths[i % 4]);
        json_decref(body);
    }
    load_lines_fini(&prompts.lines);
}

static void test_load_lines_bad_lines_are_refused_with_their_number(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool is_trace;
    } bad[] = {{"", false},
               {"\n \n", false},
               {"5", false},
               {"{", false},
               {"{}", false},
               {"{\"prompt\": []}", false},
               {"{\"prompt\": [-1]}", false},
               {"{\"prompt\": [4294967296]}", false},
               {"{\"prompt\": [1.0]}", false},
               {"{\"prompt\": 5}", false},
               {"{\"prompt\": \"a\", \"text\": \"b\"}", false},
               {"{\"prompt\": \"a\", \"prompt_tokens\": 3}", false},
               {"{\"prompt_tokens\": 0}", false},
               {"{\"prompt\": \"a\", \"max_tokens\": 1048577}", false},
               {"{\"prompt\": \"a\", \"max_tokens\": \"5\"}", false},
               {"{\"prompt\": \"a\", \"other\": 1}", false},
               {"{\"prompt\": \"a\", \"arrival\": 1}", false},
               {"{\"prompt\": \"a\"}", true},
               {"\"a\"", true},
               {"{\"prompt\": \"a\", \"arrival\": -1}", true},
               {"{\"prompt\": \"a\", \"arrival\": 1e99}", true},
               {"{\"prompt\": \"a\", \"arrival\": 2}\n{\"prompt\": \"a\", \"arrival\": 1}", true}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        load_lines_t lines = {0};
        if (load_lines_parse("f", bad[i].text, strlen(bad[i].text), bad[i].is_trace, &lines) != QN_ERR_INVALID)
            fail_msg("%s is taken", bad[i].text);
        load_lines_fini(&lines);
    }
    load_lines_t lines = {0};
    assert_int_equal(load_lines_parse("f.jsonl", "\"a\"\n\n[]", 7, false, &lines), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "f.jsonl, line 3"));
    load_lines_fini(&lines);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_prompts_ids_are_in_the_vocabulary_and_not_special),
        cmocka_unit_test(test_load_prompts_same_seed_and_number_same_body),
        cmocka_unit_test(test_load_prompts_prefix_is_shared_by_its_share),
        cmocka_unit_test(test_load_prompts_lengths_both_sides_of_the_model),
        cmocka_unit_test(test_load_prompts_fields_and_users_stand_in_the_body),
        cmocka_unit_test(test_load_lines_prompts_come_in_turn_with_their_lengths),
        cmocka_unit_test(test_load_lines_bad_lines_are_refused_with_their_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
