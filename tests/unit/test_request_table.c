#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "services/frontend/request/request_table.h"

static generation_t parse(generation_api_t api, const char *body)
{
    generation_limits_t limits = {.requests_max = 4096, .defaults = QN_GENERATION_CONFIG_NEUTRAL};
    generation_t generation;
    http_error_t error;
    if (!generation_parse(api, body, strlen(body), &limits, &generation, &error)) fail_msg("%s", error.message);
    return generation;
}

static exchange_t *open_with(request_table_t *table, const char *body)
{
    generation_t generation = parse(GENERATION_COMPLETIONS, body);
    exchange_t *exchange = request_table_open_generation(table, &generation);
    generation_fini(&generation);
    return exchange;
}

static void test_request_table_finds_every_id_of_an_exchange(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(101, 100);
    exchange_t *first = open_with(table, "{\"prompt\":[\"a\",\"b\"],\"n\":2,\"best_of\":3}");
    exchange_t *query = request_table_open_query(table, ROUTE_TOKENIZE);
    assert_int_equal(first->choice_count, 6);
    assert_int_equal(request_table_active(table), 7);
    assert_int_equal(request_table_find(table, 100).kind, REFERENCE_NONE);
    for (uint32_t i = 0; i < 6; i++) {
        reference_t found = request_table_find(table, 101 + i);
        assert_int_equal(found.kind, REFERENCE_CHOICE);
        assert_ptr_equal(found.exchange, first);
        assert_int_equal(found.index, i);
        assert_int_equal(choice_prompt(&first->choices[i]), i / 3);
    }
    static const reference_kind_t kinds[] = {REFERENCE_TEXT, REFERENCE_IDS, REFERENCE_FIRST};
    for (uint32_t prompt = 0; prompt < 2; prompt++) {
        for (size_t k = 0; k < 3; k++) {
            reference_t found = request_table_find(table, exchange_facts_id(first, prompt, kinds[k]));
            assert_int_equal(found.kind, kinds[k]);
            assert_int_equal(found.index, prompt);
        }
    }
    assert_int_equal(request_table_find(table, query->first_id).kind, REFERENCE_QUERY);
    assert_int_equal(request_table_find(table, query->first_id + 1).kind, REFERENCE_NONE);
    request_table_close(table, &first);
    assert_null(first);
    assert_int_equal(request_table_find(table, 101).kind, REFERENCE_NONE);
    assert_int_equal(request_table_find(table, query->first_id).kind, REFERENCE_QUERY);
    assert_int_equal(request_table_active(table), 1);
    request_table_destroy(&table);
}

static void test_request_table_random_opens_and_closes_keep_order(void **state)
{
    (void)state;
    enum { LIVE = 64 };
    request_table_t *table = request_table_create(1, LIVE);
    exchange_t *live[LIVE] = {0};
    unsigned seed = 12345;
    print_message("seed %u\n", seed);
    for (int i = 0; i < 20000; i++) {
        exchange_t **at = &live[(unsigned)rand_r(&seed) % LIVE];
        if (*at)
            request_table_close(table, at);
        else
            *at = request_table_open_query(table, ROUTE_TOKENIZE);
        uint64_t last = 0;
        for (uint32_t j = 0; j < request_table_count(table); j++) {
            exchange_t *exchange = request_table_at(table, j);
            assert_true(exchange->first_id > last);
            last = exchange->first_id;
            assert_ptr_equal(request_table_find(table, last).exchange, exchange);
        }
    }
    request_table_destroy(&table);
}

static void test_request_table_capacity_is_kept(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 3);
    exchange_t *two = open_with(table, "{\"prompt\":\"a\",\"n\":2}");
    assert_non_null(two);
    assert_null(open_with(table, "{\"prompt\":\"a\",\"n\":2}"));
    assert_non_null(request_table_open_query(table, ROUTE_TOKENIZE));
    assert_null(request_table_open_query(table, ROUTE_TOKENIZE));
    request_table_close(table, &two);
    assert_non_null(request_table_open_query(table, ROUTE_TOKENIZE));
    request_table_destroy(&table);
}

static void test_request_table_dirty_list_survives_closing(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *items[4];
    for (int i = 0; i < 4; i++)
        items[i] = request_table_open_query(table, ROUTE_TOKENIZE);
    static const int order[] = {2, 0, 3, 1, 0}; /* 0 twice: marked once */
    for (size_t i = 0; i < 5; i++)
        request_table_mark(table, items[order[i]]);
    request_table_close(table, &items[0]);
    request_table_close(table, &items[1]); /* the last one marked */
    assert_ptr_equal(request_table_take_dirty(table), items[2]);
    request_table_mark(table, items[2]);
    assert_ptr_equal(request_table_take_dirty(table), items[3]);
    assert_ptr_equal(request_table_take_dirty(table), items[2]);
    assert_null(request_table_take_dirty(table));
    request_table_destroy(&table);
}

static void test_choice_text_positions_drop_and_detect(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    choice_t *choice = &open_with(table, "{\"prompt\":\"a\"}")->choices[0];
    assert_int_equal(choice_add_text(choice, 0, "abc", 3), CHOICE_NEW);
    assert_int_equal(choice_add_text(choice, 0, "abc", 3), CHOICE_REPEATED);
    assert_int_equal(choice_add_text(choice, 3, "", 0), CHOICE_REPEATED);
    assert_int_equal(choice_add_text(choice, 1, "bcde", 4), CHOICE_NEW); /* half known */
    assert_int_equal(choice_add_text(choice, 6, "g", 1), CHOICE_GAP);
    assert_int_equal(choice->text.bytes, 5);
    assert_memory_equal(choice->text.data, "abcde", 5);
    assert_int_equal(choice_expect_token(choice, 0), CHOICE_NEW);
    assert_int_equal(choice_expect_token(choice, 1), CHOICE_GAP);
    token_log_add(&choice->tokens, 7, -1, 3, NULL, 0);
    assert_int_equal(choice_expect_token(choice, 0), CHOICE_REPEATED);
    assert_int_equal(choice_expect_token(choice, 1), CHOICE_NEW);
    request_table_destroy(&table);
}

static void test_choice_prompt_rows_may_leave_the_first_out(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    choice_t *choice = &open_with(table, "{\"prompt\":\"a\"}")->choices[0];
    assert_int_equal(choice_expect_prompt(choice, 2), CHOICE_GAP);
    assert_int_equal(choice_expect_prompt(choice, 1), CHOICE_NEW);
    token_log_add(&choice->prompt, 5, -1, 0, "x", 1);
    assert_int_equal(choice_expect_prompt(choice, 1), CHOICE_REPEATED);
    assert_int_equal(choice_expect_prompt(choice, 2), CHOICE_NEW);
    assert_int_equal(choice->prompt.rows[1].token.id, 5);
    request_table_destroy(&table);
}

static void test_exchange_facts_are_asked_only_when_shown(void **state)
{
    (void)state;
    static const struct {
        const char *body;
        bool text, ids, first;
    } cases[] = {
        {"{\"prompt\":\"a\"}", false, false, false},
        {"{\"prompt\":\"a\",\"echo\":true}", false, false, false},
        {"{\"prompt\":\"a\",\"echo\":true,\"logprobs\":1}", false, true, false},
        {"{\"prompt\":\"a\",\"logprobs\":1}", false, false, false},
        {"{\"prompt\":\"a\",\"return_token_ids\":true}", false, true, false},
        {"{\"prompt\":\"a\",\"echo\":true,\"truncate_prompt_tokens\":4}", false, true, false},
        {"{\"prompt\":\"a\",\"stream\":true,\"stream_options\":{\"continuous_usage_stats\":true}}", false, true, false},
        {"{\"prompt\":[1]}", false, false, false},
        {"{\"prompt\":[1],\"echo\":true}", true, false, false},
        {"{\"prompt\":[1],\"echo\":true,\"logprobs\":1}", true, false, true},
        {"{\"prompt\":[1],\"prompt_logprobs\":0}", false, false, true},
        {"{\"prompt\":[1],\"return_token_ids\":true}", false, false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        request_table_t *table = request_table_create(1, 8);
        exchange_t *exchange = open_with(table, cases[i].body);
        assert_int_equal(exchange->facts[0].wants_text, cases[i].text);
        assert_int_equal(exchange->facts[0].wants_ids, cases[i].ids);
        assert_int_equal(exchange->facts[0].wants_first, cases[i].first);
        assert_int_equal(exchange->facts_missing, cases[i].text + cases[i].ids + cases[i].first);
        request_table_destroy(&table);
    }
}

static void test_exchange_rank_puts_best_mean_first(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *exchange = open_with(table, "{\"prompt\":\"a\",\"n\":2,\"best_of\":4}");
    static const float means[] = {-3, -1, -2, -1};
    for (uint32_t i = 0; i < 4; i++) {
        for (uint32_t j = 0; j <= i; j++)
            token_log_add(&exchange->choices[i].tokens, 1, means[i], 0, NULL, 0);
    }
    uint32_t order[QN_CHOICES_MAX];
    exchange_rank(exchange, 0, order);
    static const uint32_t expected[] = {1, 3, 2, 0};
    assert_memory_equal(order, expected, sizeof expected);
    request_table_close(table, &exchange);
    exchange = open_with(table, "{\"prompt\":\"a\",\"n\":2}"); /* all are shown: in their own order */
    token_log_add(&exchange->choices[0].tokens, 1, -9, 0, NULL, 0);
    token_log_add(&exchange->choices[1].tokens, 1, -1, 0, NULL, 0);
    exchange_rank(exchange, 0, order);
    assert_int_equal(order[0], 0);
    assert_int_equal(order[1], 1);
    request_table_destroy(&table);
}

static void test_exchange_ends_once_per_choice(void **state)
{
    (void)state;
    request_table_t *table = request_table_create(1, 8);
    exchange_t *exchange = open_with(table, "{\"prompt\":\"a\",\"n\":2}");
    choice_end_t end = {.finish = CHOICE_LENGTH, .generated_tokens = 4}, other = {.finish = CHOICE_FAILED};
    choice_end(&exchange->choices[0], &end);
    choice_end(&exchange->choices[0], &other);
    assert_int_equal(exchange->choices[0].end.finish, CHOICE_LENGTH);
    assert_false(exchange_is_complete(exchange));
    choice_end(&exchange->choices[1], &end);
    assert_true(exchange_is_complete(exchange));
    request_table_destroy(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request_table_finds_every_id_of_an_exchange),
        cmocka_unit_test(test_request_table_random_opens_and_closes_keep_order),
        cmocka_unit_test(test_request_table_capacity_is_kept),
        cmocka_unit_test(test_request_table_dirty_list_survives_closing),
        cmocka_unit_test(test_choice_text_positions_drop_and_detect),
        cmocka_unit_test(test_choice_prompt_rows_may_leave_the_first_out),
        cmocka_unit_test(test_exchange_facts_are_asked_only_when_shown),
        cmocka_unit_test(test_exchange_rank_puts_best_mean_first),
        cmocka_unit_test(test_exchange_ends_once_per_choice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
