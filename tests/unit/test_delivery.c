/* Units of services/scheduler/delivery.c: every token once and in order, the end last, nothing lost on a full outbox.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "services/scheduler/delivery.h"

typedef struct {
    uint8_t *mapping;
    ledger_t *ledger;
    delivery_t *delivery;
} case_t;

static case_t make(void)
{
    case_t c = {.mapping = calloc(1, 1 << 20)};
    ledger_replay_t replay;
    assert_int_equal(ledger_open(c.mapping, 1 << 20, 8, &c.ledger, &replay), QN_OK);
    assert_int_equal(delivery_create(c.ledger, &c.delivery), QN_OK);
    return c;
}

static void destroy(case_t *c)
{
    delivery_destroy(&c->delivery);
    ledger_close(&c->ledger);
    free(c->mapping);
}

static request_t *submit(case_t *c, uint64_t id, uint32_t epoch, uint8_t top, bool scores)
{
    uint32_t prompt[4] = {1, 2, 3, 4};
    ledger_submission_t submission = {.id = id,
                                      .client = {.epoch = epoch, .service = 2},
                                      .sampling = {.max_tokens = 50, .top_logprobs = top, .prompt_logprobs = scores},
                                      .prompt_ids = prompt,
                                      .prompt_tokens = 4,
                                      .generated_max = 50};
    request_t *request = NULL;
    assert_int_equal(ledger_submit(c->ledger, &submission, &request), LEDGER_ACCEPTED);
    delivery_restart(c->delivery, request->index);
    return request;
}

static void generate(case_t *c, request_t *request, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = request->generated_tokens;
        request_alternative_t top[QN_TOP_LOGPROBS_MAX] = {0};
        for (uint32_t k = 0; k < request->sampling.top_logprobs; k++)
            top[k].id = 10 * at + k;
        ledger_token_t token = {.index = request->index,
                                .position = request_known_tokens(request),
                                .id = 100 + at,
                                .top = top,
                                .top_count = request->sampling.top_logprobs};
        ledger_append(c->ledger, &token, 1);
    }
    delivery_note(c->delivery, request->index);
}

static void test_delivery_tokens_once_in_order_with_alternatives(void **state)
{
    (void)state;
    case_t c = make();
    request_t *one = submit(&c, 1, 5, 2, false), *two = submit(&c, 2, 5, 0, false);
    delivery_message_t message;
    delivery_begin(c.delivery);
    assert_false(delivery_next(c.delivery, &message));
    generate(&c, one, 2);
    generate(&c, two, 1);
    delivery_begin(c.delivery);
    assert_true(delivery_next(c.delivery, &message));
    assert_int_equal(message.client.epoch, 5);
    assert_int_equal(message.token_count, 3);
    assert_int_equal(message.first_count, 2);
    assert_int_equal(message.top_count, 4);
    assert_int_equal(message.top[3].id, 11);
    assert_int_equal(message.tokens[1].position, 1);
    assert_int_equal(message.tokens[1].id, 101);
    assert_int_equal(message.tokens[2].top_count, 0);
    delivery_sent(c.delivery);
    assert_false(delivery_next(c.delivery, &message));
    generate(&c, one, 1);
    delivery_begin(c.delivery);
    assert_true(delivery_next(c.delivery, &message));
    assert_int_equal(message.token_count, 1);
    assert_int_equal(message.tokens[0].position, 2);
    assert_int_equal(message.first_count, 0);
    delivery_sent(c.delivery);
    assert_false(delivery_pending(c.delivery));
    destroy(&c);
}

static void test_delivery_refused_client_keeps_what_it_is_owed_and_others_go_on(void **state)
{
    (void)state;
    case_t c = make();
    request_t *one = submit(&c, 1, 5, 0, false), *two = submit(&c, 2, 6, 0, false);
    generate(&c, one, 1);
    generate(&c, two, 1);
    delivery_message_t message;
    delivery_begin(c.delivery);
    assert_true(delivery_next(c.delivery, &message));
    assert_int_equal(message.client.epoch, 5);
    delivery_refused(c.delivery);
    assert_true(delivery_next(c.delivery, &message));
    assert_int_equal(message.client.epoch, 6);
    delivery_sent(c.delivery);
    assert_false(delivery_next(c.delivery, &message));
    assert_true(delivery_pending(c.delivery));
    generate(&c, one, 1);
    delivery_begin(c.delivery);
    assert_true(delivery_next(c.delivery, &message));
    assert_int_equal(message.token_count, 2);
    assert_int_equal(message.tokens[0].position, 0);
    delivery_sent(c.delivery);
    destroy(&c);
}

static void test_delivery_end_comes_with_or_after_the_last_token_once(void **state)
{
    (void)state;
    case_t c = make();
    request_t *one = submit(&c, 1, 5, 0, false);
    delivery_message_t message;
    generate(&c, one, 1);
    ledger_finish(c.ledger, one, REQUEST_STOP);
    delivery_begin(c.delivery);
    assert_true(delivery_next(c.delivery, &message));
    assert_int_equal(message.end_count, 1);
    assert_int_equal(message.ends[0]->id, 1);
    assert_false(delivery_done(c.delivery, one->index));
    delivery_sent(c.delivery);
    assert_true(delivery_done(c.delivery, one->index));
    delivery_note(c.delivery, one->index);
    delivery_begin(c.delivery);
    assert_false(delivery_next(c.delivery, &message));
    delivery_restart(c.delivery, one->index); /* its client forgot: all of it again */
    delivery_begin(c.delivery);
    assert_true(delivery_next(c.delivery, &message));
    assert_int_equal(message.token_count, 1);
    assert_int_equal(message.end_count, 1);
    destroy(&c);
}

static void test_delivery_prompt_scores_come_before_tokens(void **state)
{
    (void)state;
    case_t c = make();
    request_t *one = submit(&c, 1, 5, 1, true);
    for (uint32_t i = 1; i < 4; i++)
        one->prompt.top_counts[i] = i == 3 ? 0 : 1; /* rows of equal length go together */
    one->prompt.known = 4;
    generate(&c, one, 1);
    ledger_finish(c.ledger, one, REQUEST_LENGTH);
    delivery_message_t message;
    delivery_begin(c.delivery);
    assert_true(delivery_next(c.delivery, &message));
    assert_ptr_equal(message.scores, one);
    assert_int_equal(message.scores_begin, 1);
    assert_int_equal(message.scores_end, 3);
    assert_int_equal(message.scores_top_count, 1);
    delivery_sent(c.delivery);
    assert_true(delivery_next(c.delivery, &message));
    assert_int_equal(message.scores_begin, 3);
    assert_int_equal(message.scores_end, 4);
    delivery_sent(c.delivery);
    assert_true(delivery_next(c.delivery, &message));
    assert_null(message.scores);
    assert_int_equal(message.token_count, 1);
    assert_int_equal(message.end_count, 1);
    delivery_sent(c.delivery);
    assert_false(delivery_next(c.delivery, &message));
    destroy(&c);
}

static void test_delivery_held_request_is_silent_until_let_go_or_dropped(void **state)
{
    (void)state;
    case_t c = make();
    request_t *one = submit(&c, 1, 5, 0, false);
    delivery_message_t message;
    generate(&c, one, 1);
    delivery_hold(c.delivery, one->index, true);
    delivery_begin(c.delivery);
    assert_false(delivery_next(c.delivery, &message));
    assert_false(delivery_pending(c.delivery));
    delivery_hold(c.delivery, one->index, false);
    assert_true(delivery_next(c.delivery, &message));
    delivery_hold(c.delivery, one->index, true);
    ledger_finish(c.ledger, one, REQUEST_CANCELLED);
    delivery_drop(c.delivery, one->index);
    assert_true(delivery_done(c.delivery, one->index));
    delivery_begin(c.delivery);
    assert_false(delivery_next(c.delivery, &message));
    destroy(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_delivery_tokens_once_in_order_with_alternatives),
        cmocka_unit_test(test_delivery_refused_client_keeps_what_it_is_owed_and_others_go_on),
        cmocka_unit_test(test_delivery_end_comes_with_or_after_the_last_token_once),
        cmocka_unit_test(test_delivery_prompt_scores_come_before_tokens),
        cmocka_unit_test(test_delivery_held_request_is_silent_until_let_go_or_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
