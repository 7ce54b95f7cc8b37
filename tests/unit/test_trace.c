/* A capture made by hand as a timeline: slices, arrows, and what is no frame. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/capture/capture_file.h"
#include "common/capture/trace.h"

#define BASE_NS 5000000000000ull

static char path[64];

static int setup(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/qn-trace-XXXXXX");
    int fd = mkstemp(path);
    close(fd);
    return fd < 0;
}

static int teardown(void **state)
{
    (void)state;
    return unlink(path);
}

static void put(qn_capture_t *capture, qn_tap_header_t header, const void *frame, size_t bytes)
{
    header.version = QN_TAP_VERSION;
    header.boot_ns = header.boot_ns ? header.boot_ns : 1;
    header.frame_bytes = (uint32_t)bytes;
    snprintf(header.service, sizeof header.service, "any");
    qn_capture_message_t *message = qn_capture_message_new(&header, frame, bytes, 0);
    assert_int_equal(qn_capture_write(capture, message), QN_OK);
    free(message);
}

/* The frontend sends an Encode of request 7. */
static void put_encode(qn_capture_t *capture, uint64_t sent_ns)
{
    qn_arena_t arena;
    const uint8_t *frame;
    size_t bytes;
    qn_arena_init(&arena, 0);
    qn_encode_t encode = QN_ENCODE_INIT;
    encode.head = (qn_head_t){.schema = QN_PROTOCOL,
                              .src = QN_SERVICE_FRONTEND,
                              .dst = QN_SERVICE_TOKENIZER,
                              .epoch = 3,
                              .request = 7,
                              .sequence = 11,
                              .sent_ns = sent_ns};
    encode.prompt = qn_text("x");
    encode.sampling.repetition_penalty = 1;
    encode.sampling.top_p = 1;
    assert_int_equal(qn_encode_encode(&encode, &arena, &frame, &bytes), QN_OK);
    qn_tap_header_t header = {.source = QN_SERVICE_FRONTEND, .now_ns = sent_ns};
    memcpy(header.type, frame + 4, 4);
    put(capture, header, frame, bytes);
    qn_arena_fini(&arena);
}

static void put_span(qn_capture_t *capture, uint8_t service, qn_tap_span_t span)
{
    qn_tap_header_t header = {.direction = QN_TAP_SPAN, .source = service, .now_ns = span.end_ns};
    put(capture, header, &span, sizeof span);
}

static json_t *trace(qn_trace_figures_t *ret_figures)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_int_equal(qn_trace_write(path, out, ret_figures), QN_OK);
    fclose(out);
    assert_int_equal(bytes, ret_figures->bytes);
    json_t *value = json_loads(text, 0, NULL);
    assert_non_null(value);
    free(text);
    return value;
}

static const json_t *find(const json_t *value, const char *phase, const char *name)
{
    size_t i;
    json_t *event;
    json_array_foreach(json_object_get(value, "traceEvents"), i, event)
    {
        const char *is = json_string_value(json_object_get(event, "name"));
        if (!strcmp(json_string_value(json_object_get(event, "ph")), phase) && is && !strcmp(is, name)) return event;
    }
    return NULL;
}

static double time_of(const json_t *event) { return json_number_value(json_object_get(event, "ts")); }

static void test_trace_message_is_an_arrow_from_its_turn_to_its_handling(void **state)
{
    (void)state;
    qn_capture_t *capture = NULL;
    qn_trace_figures_t figures;
    assert_int_equal(qn_capture_create(path, 0, &capture), QN_OK);
    put_span(capture, QN_SERVICE_FRONTEND,
             (qn_tap_span_t){.kind = QN_TAP_TURN, .begin_ns = BASE_NS, .end_ns = BASE_NS + 9000});
    put_encode(capture, BASE_NS + 4000);
    qn_tap_span_t handled = {.kind = QN_TAP_HANDLED,
                             .from = QN_SERVICE_FRONTEND,
                             .type = {'Q', 'E', 'N', 'C'},
                             .epoch = 3,
                             .sequence = 11,
                             .request = 7,
                             .begin_ns = BASE_NS + 20000,
                             .end_ns = BASE_NS + 25500};
    put_span(capture, QN_SERVICE_TOKENIZER, handled);
    assert_int_equal(qn_capture_close(&capture), QN_OK);
    json_t *value = trace(&figures);
    assert_int_equal(figures.hops, 1);
    assert_int_equal(figures.requests, 1);
    const json_t *slice = find(value, "X", "Encode"), *begin = find(value, "s", "message"),
                 *end = find(value, "f", "message");
    assert_true(slice && begin && end && find(value, "X", "turn"));
    assert_true(time_of(slice) == 20 && json_number_value(json_object_get(slice, "dur")) == 5.5);
    assert_true(time_of(begin) == 4 && time_of(end) == 20);
    assert_int_equal(json_integer_value(json_object_get(begin, "pid")), QN_SERVICE_FRONTEND);
    assert_int_equal(json_integer_value(json_object_get(end, "pid")), QN_SERVICE_TOKENIZER);
    assert_true(json_equal(json_object_get(begin, "id"), json_object_get(end, "id")));
    assert_true(time_of(find(value, "s", "request")) == 4 && time_of(find(value, "f", "request")) == 20);
    json_decref(value);
}

static void test_trace_message_that_nobody_handled_has_no_arrow(void **state)
{
    (void)state;
    qn_capture_t *capture = NULL;
    qn_trace_figures_t figures;
    assert_int_equal(qn_capture_create(path, 0, &capture), QN_OK);
    put_encode(capture, BASE_NS);
    assert_int_equal(qn_capture_close(&capture), QN_OK);
    json_t *value = trace(&figures);
    assert_non_null(find(value, "i", "Encode"));
    assert_null(find(value, "s", "message"));
    assert_null(find(value, "s", "request"));
    json_decref(value);
}

static void test_trace_what_is_no_frame_and_no_span_is_left_out(void **state)
{
    (void)state;
    qn_capture_t *capture = NULL;
    qn_trace_figures_t figures;
    assert_int_equal(qn_capture_create(path, 0, &capture), QN_OK);
    put(capture, (qn_tap_header_t){.direction = QN_TAP_SPAN, .source = 1, .now_ns = BASE_NS}, "short", 5);
    put(capture, (qn_tap_header_t){.direction = QN_TAP_SPAN, .source = 200, .now_ns = BASE_NS}, "", 0);
    put(capture, (qn_tap_header_t){.source = 2, .now_ns = BASE_NS, .type = "QENC"}, "\1\2\3\4QENC\"\\\n", 11);
    put_span(capture, 3, (qn_tap_span_t){.kind = QN_TAP_TURN, .begin_ns = 20, .end_ns = 10});
    put_span(capture, 3, (qn_tap_span_t){.kind = QN_TAP_HANDLED, .begin_ns = 10, .end_ns = 20});
    assert_int_equal(qn_capture_close(&capture), QN_OK);
    json_t *value = trace(&figures);
    assert_non_null(find(value, "i", "broken frame"));
    assert_null(find(value, "X", "turn"));
    assert_non_null(find(value, "X", "unknown"));
    json_decref(value);
}

static void test_trace_of_nothing_is_whole(void **state)
{
    (void)state;
    qn_capture_t *capture = NULL;
    qn_trace_figures_t figures;
    assert_int_equal(qn_capture_create(path, 0, &capture), QN_OK);
    assert_int_equal(qn_capture_close(&capture), QN_OK);
    json_t *value = trace(&figures);
    assert_int_equal(json_array_size(json_object_get(value, "traceEvents")), 0);
    json_decref(value);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_trace_message_is_an_arrow_from_its_turn_to_its_handling),
        TEST(test_trace_message_that_nobody_handled_has_no_arrow),
        TEST(test_trace_what_is_no_frame_and_no_span_is_left_out),
        TEST(test_trace_of_nothing_is_whole),
    };
    return cmocka_run_group_tests_name("trace", tests, NULL, NULL);
}
