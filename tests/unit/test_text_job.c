/* Text work and the thread beside the loop: bounds, offsets, the same result wherever it runs, order and cancelling. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/limits.h"
#include "services/tokenizer/text_worker.h"

static tokenizer_t *tokenizer;
static tokenizer_scratch_t *scratch;

static int setup(void **state)
{
    (void)state;
    if (tokenizer_open("deploy/models/default", &tokenizer) != QN_OK) return -1;
    scratch = tokenizer_scratch_open(tokenizer);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_scratch_close(&scratch);
    tokenizer_close(&tokenizer);
    return 0;
}

static text_job_t *job_of(text_job_kind_t kind, uint64_t request, const char *text, size_t bytes)
{
    text_job_t *job = text_job_create(kind, (qn_peer_t){.epoch = 3}, request);
    job->text = text;
    job->text_bytes = bytes;
    job->flags = TOKENIZER_PARSE_SPECIAL;
    return job;
}

static const uint32_t *offsets_of(const text_job_t *job) { return (const uint32_t *)(const void *)job->offsets.bytes; }

static void test_text_job_offsets_are_characters_of_the_text(void **state)
{
    (void)state;
    const char *text = "na\xc3\xafve \xe2\x82\xac \xf0\x9f\x98\x80 end";
    text_job_t *job = job_of(TEXT_JOB_TOKENIZE, 1, text, strlen(text));
    job->want_offsets = job->want_pieces = true;
    text_job_run(job, tokenizer, scratch);
    assert_int_equal(job->err, QN_OK);
    assert_int_equal(job->offsets.length, job->tokens.count * sizeof(uint32_t));
    for (size_t i = 0; i < job->tokens.count; i++) {
        text_buffer_t before = {0};
        uint32_t characters = 0;
        tokenizer_decode(tokenizer, job->tokens.ids, i, 0, &before);
        for (size_t at = 0; at < before.length; at++)
            characters += (before.bytes[at] & 0xC0) != 0x80;
        /* a token that begins inside a character is where that begins: decoding shows a replacement there */
        assert_in_range(offsets_of(job)[i], characters > 0 ? characters - 1 : 0, characters);
        text_buffer_fini(&before);
    }
    assert_int_equal(offsets_of(job)[0], 0);
    text_job_t *back = text_job_create(TEXT_JOB_DETOKENIZE, job->from, 2);
    back->ids = job->tokens.ids;
    back->id_count = job->tokens.count;
    back->want_offsets = true;
    text_job_run(back, tokenizer, scratch);
    assert_int_equal(back->decoded.length, strlen(text));
    assert_memory_equal(back->offsets.bytes, job->offsets.bytes, job->offsets.length);
    text_job_destroy(&back);
    text_job_destroy(&job);
}

static void test_text_job_open_text_leaves_half_a_character(void **state)
{
    (void)state;
    tokenizer_tokens_t tokens = {0};
    assert_int_equal(tokenizer_encode(tokenizer, scratch, "a\xf0\x9f\x98\x80", 5, 0, &tokens), QN_OK);
    assert_true(tokens.count > 2); /* the character is more than one token */
    for (int is_open = 0; is_open < 2; is_open++) {
        text_job_t *job = text_job_create(TEXT_JOB_DETOKENIZE, (qn_peer_t){.epoch = 3}, 1);
        job->ids = tokens.ids;
        job->id_count = tokens.count - 1;
        job->is_open = is_open == 1;
        text_job_run(job, tokenizer, scratch);
        assert_int_equal(job->decoded.length, is_open ? 1 : 4);
        text_job_destroy(&job);
    }
    tokenizer_tokens_fini(&tokens);
}

static void test_text_job_beyond_bounds_is_refused_by_name(void **state)
{
    (void)state;
    size_t bytes = 2u << 20;
    char *text = malloc(bytes);
    memset(text, 'a', bytes);
    text_job_t *job = job_of(TEXT_JOB_TOKENIZE, 1, text, bytes);
    text_job_run(job, tokenizer, scratch);
    assert_int_equal(job->status, 413);
    assert_string_equal(job->param, "prompt");
    text_job_destroy(&job);
    job = job_of(TEXT_JOB_PROMPT, 1, "", 0);
    text_job_run(job, tokenizer, scratch);
    assert_int_equal(job->status, 400);
    text_job_destroy(&job);
    uint32_t outside = UINT32_MAX;
    job = text_job_create(TEXT_JOB_DETOKENIZE, (qn_peer_t){.epoch = 3}, 1);
    job->ids = &outside;
    job->id_count = 1;
    text_job_run(job, tokenizer, scratch);
    assert_int_equal(job->status, 400);
    assert_non_null(strstr(job->error_text, "tokens[0] is 4294967295"));
    text_job_destroy(&job);
    job = job_of(TEXT_JOB_PROMPT, 1, "a", 1);
    text_job_run(job, NULL, NULL);
    assert_non_null(strstr(job->error_text, "no tokenizer.json"));
    text_job_destroy(&job);
    free(text);
}

/* The next finished job, as the loop takes it. */
static text_job_t *await(text_worker_t *worker)
{
    struct pollfd fd = {.fd = text_worker_fd(worker), .events = POLLIN};
    assert_int_equal(poll(&fd, 1, 60000), 1);
    text_job_t *job = text_worker_finished(worker);
    assert_non_null(job);
    return job;
}

static void no_owner(text_job_t *job) { assert_null(job->owner); }

static void test_text_worker_result_equals_the_loops(void **state)
{
    (void)state;
    static const char *const parts[] = {" ", "a", "\n", "hello world ", "\xe4\xb8\xad", "1234-", "  x"};
    text_worker_t *worker = NULL;
    assert_int_equal(text_worker_start(tokenizer, &worker), QN_OK);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t part = strlen(parts[i]), bytes = 50000 / part * part;
        char *text = malloc(bytes);
        for (size_t at = 0; at < bytes; at++)
            text[at] = parts[i][at % part];
        text_job_t *here = job_of(TEXT_JOB_TOKENIZE, 1, text, bytes),
                   *there = job_of(TEXT_JOB_TOKENIZE, 1, text, bytes);
        text_job_run(here, tokenizer, scratch);
        assert_true(text_worker_submit(worker, &there));
        memset(text, 'z', bytes); /* the worker has its own copy */
        there = await(worker);
        assert_int_equal(there->tokens.count, here->tokens.count);
        assert_memory_equal(there->tokens.ids, here->tokens.ids, here->tokens.count * sizeof *here->tokens.ids);
        text_job_destroy(&here);
        text_job_destroy(&there);
        free(text);
    }
    assert_int_equal(text_worker_count(worker), 0);
    text_worker_stop(&worker, no_owner);
}

/* While a long job runs others come: the shortest is next, but none is passed over for ever. */
static void test_text_worker_short_ones_first_and_none_for_ever(void **state)
{
    (void)state;
    size_t long_bytes = 1u << 20;
    char *text = calloc(long_bytes, 1);
    memset(text, ' ', long_bytes);
    text_worker_t *worker = NULL;
    assert_int_equal(text_worker_start(tokenizer, &worker), QN_OK);
    text_job_t *job = job_of(TEXT_JOB_TOKENIZE, 1, text, long_bytes); /* occupies the worker */
    assert_true(text_worker_submit(worker, &job));
    job = job_of(TEXT_JOB_TOKENIZE, 2, text, long_bytes / 2);
    assert_true(text_worker_submit(worker, &job));
    for (uint64_t request = 3; request < 3 + 2 * TEXT_WORKER_PATIENCE; request++) {
        job = job_of(TEXT_JOB_TOKENIZE, request, text, 100);
        assert_true(text_worker_submit(worker, &job));
    }
    unsigned before_second = 0, seen = 0;
    for (unsigned i = 0; i < 2 + 2 * TEXT_WORKER_PATIENCE; i++) {
        job = await(worker);
        if (job->request == 2) before_second = seen;
        seen += job->request > 2;
        text_job_destroy(&job);
    }
    assert_in_range(before_second, 1, TEXT_WORKER_PATIENCE);
    free(text);
    text_worker_stop(&worker, no_owner);
}

static void test_text_worker_cancelled_comes_back_unrun(void **state)
{
    (void)state;
    size_t bytes = 1u << 20;
    char *text = calloc(bytes, 1);
    memset(text, ' ', bytes);
    text_worker_t *worker = NULL;
    assert_int_equal(text_worker_start(tokenizer, &worker), QN_OK);
    for (uint64_t request = 1; request <= 3; request++) {
        text_job_t *job = job_of(TEXT_JOB_TOKENIZE, request, text, bytes);
        assert_true(text_worker_submit(worker, &job));
    }
    assert_true(text_worker_has(worker, 3));
    assert_true(text_worker_cancel(worker, 3));
    assert_false(text_worker_has(worker, 3));
    assert_false(text_worker_cancel(worker, 3));
    text_worker_cancel_peer(worker, (qn_peer_t){.epoch = 3});
    for (int i = 0; i < 3; i++) {
        text_job_t *job = await(worker);
        assert_true(job->cancelled);
        if (job->request == 3) assert_int_equal(job->tokens.count, 0);
        text_job_destroy(&job);
    }
    free(text);
    text_worker_stop(&worker, no_owner);
}

static void test_text_worker_queue_is_bounded(void **state)
{
    (void)state;
    char *text = calloc(QN_TEXT_BYTES_MAX, 1);
    text_worker_t *worker = NULL;
    assert_int_equal(text_worker_start(NULL, &worker), QN_OK); /* each is refused at once: no tokenizer */
    unsigned taken = 0;
    text_job_t *job;
    for (;; taken++) {
        job = job_of(TEXT_JOB_TOKENIZE, taken, text, QN_TEXT_BYTES_MAX);
        if (!text_worker_submit(worker, &job)) break;
    }
    assert_int_equal(taken, TEXT_WORKER_BYTES_MAX / QN_TEXT_BYTES_MAX);
    assert_non_null(job);
    text_job_destroy(&job);
    free(text);
    text_worker_stop(&worker, no_owner);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_job_offsets_are_characters_of_the_text),
        cmocka_unit_test(test_text_job_open_text_leaves_half_a_character),
        cmocka_unit_test(test_text_job_beyond_bounds_is_refused_by_name),
        cmocka_unit_test(test_text_worker_result_equals_the_loops),
        cmocka_unit_test(test_text_worker_short_ones_first_and_none_for_ever),
        cmocka_unit_test(test_text_worker_cancelled_comes_back_unrun),
        cmocka_unit_test(test_text_worker_queue_is_bounded),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
