/* The table of running detokenisations, on the bundled vocabulary. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "services/tokenizer/streams.h"

static tokenizer_t *tokenizer;
static tokenizer_scratch_t *scratch;
static streams_t *streams;
static tokenizer_tokens_t tokens;
static text_buffer_t out;

static int setup(void **state)
{
    (void)state;
    if (tokenizer_open("deploy/models/default", &tokenizer) != QN_OK) return -1;
    scratch = tokenizer_scratch_open(tokenizer);
    streams = streams_create(64);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    streams_destroy(&streams);
    tokenizer_scratch_close(&scratch);
    tokenizer_close(&tokenizer);
    tokenizer_tokens_fini(&tokens);
    text_buffer_fini(&out);
    return 0;
}

static void encode(const char *text)
{
    assert_int_equal(tokenizer_encode(tokenizer, scratch, text, strlen(text), TOKENIZER_PARSE_SPECIAL, &tokens), QN_OK);
    assert_true(tokens.count > 2);
    out.length = 0;
}

static stream_t *open_stream(uint64_t request, const char *stop, uint32_t min_tokens)
{
    size_t stop_bytes = stop ? strlen(stop) : 0;
    detokenizer_t detokenizer;
    detokenizer_init(&detokenizer, tokenizer, TOKENIZER_SKIP_SPECIAL);
    stream_spec_t spec = {.request = request,
                          .stop = &stop,
                          .stop_bytes = &stop_bytes,
                          .stop_count = stop ? 1 : 0,
                          .detokenizer = &detokenizer,
                          .min_tokens = min_tokens};
    stream_t *stream = NULL;
    assert_int_equal(streams_open(streams, &spec, &stream), STREAM_OPENED);
    return stream;
}

static void assert_out(const char *expected)
{
    assert_int_equal(out.length, strlen(expected));
    assert_memory_equal(out.bytes, expected, out.length);
}

static void test_streams_text_comes_back_whole_and_once(void **state)
{
    (void)state;
    const char *text = "The SELECT statement: na\xc3\xafve \xe2\x82\xac 5";
    encode(text);
    stream_t *stream = open_stream(7, NULL, 0);
    for (uint32_t i = 0; i < tokens.count; i++) {
        assert_int_equal(stream_push(stream, i, tokens.ids[i], &out), STREAM_TOKEN_TAKEN);
        assert_int_equal(stream_push(stream, i, tokens.ids[i], &out), STREAM_TOKEN_REPEATED);
    }
    stream_finish(stream, &out);
    assert_out(text);
    assert_int_equal(stream->text_bytes, strlen(text));
    streams_close(streams, stream);
}

static void test_streams_missing_token_is_a_gap(void **state)
{
    (void)state;
    encode("one two three four");
    stream_t *stream = open_stream(8, NULL, 0);
    assert_int_equal(stream_push(stream, 0, tokens.ids[0], &out), STREAM_TOKEN_TAKEN);
    assert_int_equal(stream_push(stream, 2, tokens.ids[2], &out), STREAM_TOKEN_GAP);
    assert_int_equal(stream_push(stream, 1, tokens.ids[1], &out), STREAM_TOKEN_TAKEN);
    streams_close(streams, stream);
}

static void test_streams_stop_string_ends_the_text(void **state)
{
    (void)state;
    encode("alpha beta gamma delta epsilon");
    stream_t *stream = open_stream(9, " gam", 0);
    uint32_t i = 0;
    for (; i < tokens.count && !stream->stopped; i++)
        stream_push(stream, i, tokens.ids[i], &out);
    assert_true(stream->stopped);
    assert_true(i < tokens.count);
    assert_int_equal(stream->stopped_tokens, i);
    assert_int_equal(stream_push(stream, i, tokens.ids[i], &out), STREAM_TOKEN_REPEATED);
    stream_finish(stream, &out);
    assert_out("alpha beta");
    streams_close(streams, stream);
}

static void test_streams_stop_string_waits_for_min_tokens(void **state)
{
    (void)state;
    encode("alpha beta gamma delta epsilon");
    stream_t *stream = open_stream(10, " gam", (uint32_t)tokens.count);
    for (uint32_t i = 0; i < tokens.count; i++)
        stream_push(stream, i, tokens.ids[i], &out);
    stream_finish(stream, &out);
    assert_false(stream->stopped);
    assert_out("alpha beta gamma delta epsilon");
    streams_close(streams, stream);
}

static void test_streams_table_is_bounded_and_survives_churn(void **state)
{
    (void)state;
    stream_t *stream;
    stream_spec_t spec = {.request = 5};
    for (uint64_t round = 0; round < 50; round++) {
        for (uint64_t i = 0; i < 64; i++) {
            spec.request = round * 1000000007ull + i * 64;
            assert_int_equal(streams_open(streams, &spec, &stream), STREAM_OPENED);
            assert_int_equal(streams_open(streams, &spec, &stream), STREAM_EXISTS);
        }
        spec.request = UINT64_MAX;
        assert_int_equal(streams_open(streams, &spec, &stream), STREAM_NO_ROOM);
        for (uint64_t i = 0; i < 64; i++) { /* an order unlike that of the places */
            uint64_t request = round * 1000000007ull + (i * 37 % 64) * 64;
            stream = streams_find(streams, request);
            assert_non_null(stream);
            streams_close(streams, stream);
            assert_null(streams_find(streams, request));
        }
        assert_int_equal(streams_count(streams), 0);
    }
}

static void test_streams_without_tokenizer_count_tokens(void **state)
{
    (void)state;
    streams_t *plain = streams_create(4);
    stream_t *stream;
    stream_spec_t spec = {.request = 1};
    out.length = 0;
    assert_int_equal(streams_open(plain, &spec, &stream), STREAM_OPENED);
    assert_int_equal(stream_push(stream, 0, 12, &out), STREAM_TOKEN_TAKEN);
    assert_int_equal(stream_push(stream, 2, 12, &out), STREAM_TOKEN_GAP);
    stream_finish(stream, &out);
    assert_int_equal(out.length, 0);
    streams_close(plain, stream);
    streams_destroy(&plain);
}

/* Where a token begins does not depend on what a stop string holds back. */
static void test_streams_characters_count_what_is_held(void **state)
{
    (void)state;
    encode("caf\xc3\xa9 one two");
    for (int with_stop = 0; with_stop < 2; with_stop++) {
        stream_t *stream = open_stream(9, with_stop ? " one two three" : NULL, 0);
        uint32_t characters = 0;
        out.length = 0;
        for (uint32_t i = 0; i < tokens.count; i++) {
            assert_true(stream->characters >= characters);
            characters = stream->characters;
            stream_push(stream, i, tokens.ids[i], &out);
        }
        assert_int_equal(stream->characters, 12);
        if (with_stop) assert_int_equal(stream->text_bytes, 5);
        stream_finish(stream, &out);
        assert_out("caf\xc3\xa9 one two");
        streams_close(streams, stream);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams_text_comes_back_whole_and_once),
        cmocka_unit_test(test_streams_missing_token_is_a_gap),
        cmocka_unit_test(test_streams_characters_count_what_is_held),
        cmocka_unit_test(test_streams_stop_string_ends_the_text),
        cmocka_unit_test(test_streams_stop_string_waits_for_min_tokens),
        cmocka_unit_test(test_streams_table_is_bounded_and_survives_churn),
        cmocka_unit_test(test_streams_without_tokenizer_count_tokens),
    };
    return cmocka_run_group_tests_name("streams", tests, setup, teardown);
}
