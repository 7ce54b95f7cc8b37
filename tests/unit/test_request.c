/* The decisions about one Encode: what is refused, what is copied, what the scheduler and the stream get. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "services/tokenizer/request.h"

static const qn_peer_t frontend = {.epoch = 4, .service = QN_SERVICE_FRONTEND};

static void test_request_prompt_is_text_or_ids(void **state)
{
    (void)state;
    uint32_t ids[] = {1, 2};
    request_refusal_t refusal;
    const struct {
        qn_encode_t encode;
        bool good;
    } rows[] = {
        {{.prompt = qn_text("a")}, true},
        {{.prompt = qn_text("")}, true}, /* a template may make tokens of it */
        {{.prompt_ids = ids, .prompt_ids_count = 2}, true},
        {{.prompt = qn_text("a"), .prompt_ids = ids, .prompt_ids_count = 2}, false},
        {{.prompt_ids = NULL}, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(request_check(&rows[i].encode, &refusal), rows[i].good);
        if (rows[i].good) continue;
        assert_int_equal(refusal.status, 400);
        assert_string_equal(refusal.param, "prompt");
    }
}

/* Everything is a copy: the message is written over before it is looked at. */
static void test_request_outlives_its_message(void **state)
{
    (void)state;
    char prompt[] = "hello", salt[] = "salt", stop[] = "stop";
    uint32_t stop_ids[] = {7, 8}, ids[] = {1, 2, 3, 4};
    qn_text_t stops[] = {{.data = stop, .bytes = 4}, {.data = stop + 1, .bytes = 2}};
    qn_logit_bias_t bias[] = {{.id = 5, .bias = 1.5f}};
    qn_encode_t encode = {.head.request = 11,
                          .prompt = {.data = prompt, .bytes = 5},
                          .cache_salt = {.data = salt, .bytes = 4},
                          .stop = stops,
                          .stop_count = 2,
                          .stop_ids = stop_ids,
                          .stop_ids_count = 2,
                          .bias = bias,
                          .bias_count = 1,
                          .sampling.min_tokens = 3,
                          .include_stop = true,
                          .skip_special = true,
                          .add_special = true,
                          .truncate_prompt_tokens = 2,
                          .priority = -1,
                          .received_ns = 100};
    request_t *request = request_create(&encode, frontend, 200);
    text_job_t *job = request_job(request, &encode);
    assert_int_equal(job->kind, TEXT_JOB_PROMPT);
    assert_int_equal(job->flags, TOKENIZER_PARSE_SPECIAL | TOKENIZER_ADD_SPECIAL | TOKENIZER_SKIP_SPECIAL);
    assert_int_equal(job->keep_ids, 2);
    text_job_own(job);
    memset(prompt, 'x', sizeof prompt);
    memset(salt, 'x', 4);
    memset(stop, 'x', 4);
    memset(stop_ids, 0, sizeof stop_ids);
    memset(bias, 0, sizeof bias);
    assert_memory_equal(job->text, "hello", 5);
    token_list_reserve(&job->tokens, 4);
    memcpy(job->tokens.ids, ids, sizeof ids);
    job->tokens.count = 4;
    request_take_prompt(request, job);
    stream_spec_t spec = request_stream_spec(request, job, true);
    text_job_destroy(&job);
    const qn_submit_t *submit = &request->submit;
    assert_int_equal(submit->head.request, 11);
    assert_int_equal(submit->prompt_ids_count, 4);
    assert_memory_equal(submit->prompt_ids, ids, sizeof ids);
    assert_int_equal(submit->stop_ids[1], 8);
    assert_float_equal(submit->bias[0].bias, 1.5f, 0);
    assert_string_equal(submit->cache_salt.data, "salt");
    assert_int_equal(submit->priority, -1);
    assert_int_equal(submit->timeline.received_ns, 100);
    assert_int_equal(submit->timeline.encode_begin_ns, 200);
    assert_int_equal(spec.stop_count, 2);
    assert_memory_equal(spec.stop[0], "stop", 4);
    assert_int_equal(spec.stop_bytes[1], 2);
    assert_memory_equal(spec.stop[1], "to", 2);
    assert_true(spec.include_stop);
    assert_int_equal(spec.min_tokens, 3);
    assert_int_equal(request_stream_spec(request, &(text_job_t){0}, false).stop_count, 0); /* no text to look in */
    request_destroy(&request);
    assert_null(request);
}

static void test_request_streams_that_cannot_open_are_refused(void **state)
{
    (void)state;
    static const struct {
        stream_open_t outcome;
        uint16_t status;
        const char *param;
    } rows[] = {{STREAM_EXISTS, 400, "request"}, {STREAM_NO_ROOM, 429, NULL}, {STREAM_BAD_STOP, 400, "stop"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        request_refusal_t refusal = {0};
        request_stream_refusal(rows[i].outcome, &refusal);
        assert_int_equal(refusal.status, rows[i].status);
        if (rows[i].param)
            assert_string_equal(refusal.param, rows[i].param);
        else
            assert_null(refusal.param);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request_prompt_is_text_or_ids),
        cmocka_unit_test(test_request_outlives_its_message),
        cmocka_unit_test(test_request_streams_that_cannot_open_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
