/* What is this?      Tests of the reader of server-sent events.
 * State owned:       the events of one test, joined.
 * Must never:        depend on how bytes were cut into pieces: every case runs with every cut.
 * Read next:         tools/client/sse_reader.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/client/sse_reader.h"

typedef struct {
    char text[256]; /* "<one><two>" */
    size_t used;
    int stop_after; /* events; 0: never */
} events_t;

static bool collect(void *context, const char *data, size_t bytes)
{
    events_t *events = context;
    assert_int_equal(strlen(data), bytes);
    events->used += (size_t)snprintf(events->text + events->used, sizeof events->text - events->used, "<%s>", data);
    return !events->stop_after || --events->stop_after;
}

static const struct {
    const char *bytes, *events;
} cases[] = {
    {"data: one\n\n", "<one>"},
    {"data:one\n\n", "<one>"},
    {"data:  one\n\n", "< one>"},
    {"data: one\ndata: two\n\n", "<one\ntwo>"},
    {"data: one\n\ndata: two\n\n", "<one><two>"},
    {"data: one\r\n\r\ndata: two\r\n\r\n", "<one><two>"},
    {"data: one\r\rdata: two\r\r", "<one><two>"},
    {": ping\n\ndata: one\n\n", "<one>"},
    {"event: x\nid: 5\nretry: 1\ndata: one\n\n", "<one>"},
    {"data\n\n", "<>"},
    {"data:\n\n", "<>"},
    {"data:\ndata:\n\n", "<\n>"},
    {"database: no\n\n", ""},
    {"dat: no\n\n\n\n", ""},
    {"data: never ended", ""},
    {"data: never ended\n", ""},
    {"", ""},
    {"data: {\"a\": 1}\n\ndata: [DONE]\n\n", "<{\"a\": 1}><[DONE]>"},
};

static void test_sse_reader_every_cut_gives_the_same_events(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t bytes = strlen(cases[i].bytes);
        for (size_t cut = 0; cut <= bytes; cut++) {
            events_t events = {.used = 0};
            sse_reader_t reader = {.event = collect, .context = &events};
            assert_int_equal(sse_reader_push(&reader, cases[i].bytes, cut), QN_OK);
            assert_int_equal(sse_reader_push(&reader, cases[i].bytes + cut, bytes - cut), QN_OK);
            sse_reader_fini(&reader);
            assert_string_equal(events.text, cases[i].events);
        }
    }
}

static void test_sse_reader_callback_says_stop_nothing_more_is_taken(void **state)
{
    (void)state;
    events_t events = {.stop_after = 1};
    sse_reader_t reader = {.event = collect, .context = &events};
    const char *bytes = "data: one\n\ndata: two\n\n";
    assert_int_equal(sse_reader_push(&reader, bytes, strlen(bytes)), QN_ERR_CANCELLED);
    assert_int_equal(sse_reader_push(&reader, bytes, strlen(bytes)), QN_ERR_CANCELLED);
    assert_string_equal(events.text, "<one>");
    sse_reader_fini(&reader);
}

static size_t longest;
static bool measure(void *context, const char *data, size_t bytes)
{
    (void)context;
    (void)data;
    longest = bytes;
    return true;
}

static void test_sse_reader_event_length_both_sides_of_the_limit(void **state)
{
    (void)state;
    /* The limit holds for a line, which has "data:" before the data. */
    for (size_t extra = 0; extra < 2; extra++) {
        size_t bytes = SSE_EVENT_BYTES_MAX - 5 + extra;
        char *line = malloc(bytes);
        memset(line, 'x', bytes);
        sse_reader_t reader = {.event = measure};
        longest = 0;
        assert_int_equal(sse_reader_push(&reader, "data:", 5), QN_OK);
        qn_err_t err = sse_reader_push(&reader, line, bytes);
        assert_int_equal(err, extra ? QN_ERR_LIMIT : QN_OK);
        if (!err) assert_int_equal(sse_reader_push(&reader, "\n\n", 2), QN_OK);
        assert_int_equal(longest, extra ? 0 : bytes);
        sse_reader_fini(&reader);
        free(line);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sse_reader_every_cut_gives_the_same_events),
        cmocka_unit_test(test_sse_reader_callback_says_stop_nothing_more_is_taken),
        cmocka_unit_test(test_sse_reader_event_length_both_sides_of_the_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
