/* Request heads and chunked bodies: what RFC 9112 allows is read, all else is refused with a reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "services/frontend/http/http_chunked.h"
#include "services/frontend/http/http_head.h"

static char text[HTTP_HEAD_BYTES_MAX];

/* A copy with exactly its bytes, so that reading behind them is seen. */
static http_head_outcome_t parse(const char *head, size_t bytes, http_head_t *ret_head)
{
    memcpy(text, head, bytes);
    return http_head_parse(text, bytes, ret_head);
}

static void test_http_head_usual_request_is_read(void **state)
{
    (void)state;
    const char *head = "POST /v1/completions?mode=research&a=b%20c+d&empty HTTP/1.1\r\nHost: localhost:8000\r\n"
                       "Content-Length: 12\r\nX-Thing:  two words \t\r\nConnection: Keep-Alive\r\n\r\n";
    http_head_t read;
    size_t scanned = 0;
    assert_int_equal(http_head_end(head, strlen(head) - 1, &scanned), 0);
    assert_int_equal(http_head_end(head, strlen(head), &scanned), strlen(head));
    assert_int_equal(parse(head, strlen(head), &read), HTTP_HEAD_COMPLETE);
    assert_string_equal(read.method, "POST");
    assert_string_equal(read.path, "/v1/completions");
    assert_int_equal(read.query_count, 3);
    assert_string_equal(read.query[1].value, "b c d");
    assert_string_equal(read.query[2].value, "");
    assert_string_equal(http_head_field(&read, "x-thing"), "two words");
    assert_null(http_head_field(&read, "x-other"));
    assert_int_equal(read.content_length, 12);
    assert_true(read.keep_alive && !read.chunked && !read.is_http_1_0);
}

static void test_http_head_variants_are_taken(void **state)
{
    (void)state;
    static const struct {
        const char *head;
        bool keep_alive, chunked, expects;
    } cases[] = {
        {"GET / HTTP/1.0\r\n\r\n", false, false, false},
        {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true, false, false},
        {"GET / HTTP/1.1\r\nhost:\r\nConnection: x, close\r\n\r\n", false, false, false},
        {"GET http://h/p HTTP/1.1\r\nHost: h\r\n\r\n", true, false, false},
        {"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", true, false, false},
        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\nExpect: 100-Continue\r\n\r\n", true, true, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        http_head_t read;
        if (parse(cases[i].head, strlen(cases[i].head), &read) != HTTP_HEAD_COMPLETE)
            fail_msg("case %zu: %s", i, read.reason);
        assert_int_equal(read.keep_alive, cases[i].keep_alive);
        assert_int_equal(read.chunked, cases[i].chunked);
        assert_int_equal(read.expects_continue, cases[i].expects);
    }
}

#define WITH(fields) "POST / HTTP/1.1\r\nHost: h\r\n" fields "\r\n"

static void test_http_head_what_two_readers_may_read_differently_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *head;
        int status;
    } cases[] = {
        {WITH("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), 400},
        {WITH("Content-Length: 1\r\nContent-Length: 2\r\n"), 400},
        {WITH("Content-Length: 1\r\nContent-Length: 1\r\n"), 400},
        {WITH("Content-Length: 1, 1\r\n"), 400},
        {WITH("Content-Length: +1\r\n"), 400},
        {WITH("Content-Length: -1\r\n"), 400},
        {WITH("Content-Length: 0x10\r\n"), 400},
        {WITH("Content-Length:\r\n"), 400},
        {WITH("Content-Length: 9999999999999999999999\r\n"), 400},
        {WITH("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400},
        {WITH("Transfer-Encoding: gzip, chunked\r\n"), 400},
        {WITH("Transfer-Encoding: identity\r\n"), 400},
        {WITH("Transfer-Encoding: xchunked\r\n"), 400},
        {WITH("Transfer-Encoding : chunked\r\n"), 400},
        {WITH("Content-Length : 5\r\n"), 400},
        {WITH("X: a\r\n folded\r\n"), 400},
        {WITH(" X: a\r\n"), 400},
        {WITH("X: a\rY: b\r\n"), 400},
        {WITH("X: a\nY: b\r\n"), 400},
        {WITH("X: a\001b\r\n"), 400},
        {WITH("X y: a\r\n"), 400},
        {WITH(": a\r\n"), 400},
        {WITH("no colon\r\n"), 400},
        {WITH("Host: h\r\n"), 400},
        {WITH("Expect: more\r\n"), 417},
        {"POST / HTTP/1.1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400},
        {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        {"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505},
        {"GET / HTTP/1.11\r\nHost: h\r\n\r\n", 400},
        {"GET / http/1.1\r\nHost: h\r\n\r\n", 400},
        {"GET /\r\nHost: h\r\n\r\n", 400},
        {"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
        {"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400},
        {"G(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
        {"GET health HTTP/1.1\r\nHost: h\r\n\r\n", 400},
        {"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
        {"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", 400},
        {"GET /health%00x HTTP/1.1\r\nHost: h\r\n\r\n", 400},
        {"GET /health%0 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
        {"GET /health%zz HTTP/1.1\r\nHost: h\r\n\r\n", 400},
        {"GET /?a=%00 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
        {"GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        http_head_t read;
        if (parse(cases[i].head, strlen(cases[i].head), &read) != HTTP_HEAD_BAD) fail_msg("taken: %s", cases[i].head);
        if (read.status != cases[i].status) fail_msg("%s: %d (%s)", cases[i].head, read.status, read.reason);
        assert_true(strlen(read.reason) > 10);
    }
    http_head_t read;
    assert_int_equal(parse("GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n", 29, &read), HTTP_HEAD_BAD);
}

static void test_http_head_limits_are_kept(void **state)
{
    (void)state;
    http_head_t read;
    char *head = malloc(HTTP_HEAD_BYTES_MAX);
    int bytes = sprintf(head, "GET / HTTP/1.1\r\nHost: h\r\n");
    for (int i = 1; i < HTTP_FIELDS_MAX; i++)
        bytes += sprintf(head + bytes, "A%d: b\r\n", i);
    sprintf(head + bytes, "\r\n");
    assert_int_equal(parse(head, strlen(head), &read), HTTP_HEAD_COMPLETE);
    sprintf(head + bytes, "B: b\r\n\r\n");
    assert_int_equal(parse(head, strlen(head), &read), HTTP_HEAD_BAD);
    assert_int_equal(read.status, 431);
    for (int extra = 0; extra < 2; extra++) {
        bytes = sprintf(head, "GET /%0*d HTTP/1.1\r\nHost: h\r\n\r\n", (int)HTTP_TARGET_BYTES_MAX - 1 + extra, 0);
        assert_int_equal(parse(head, (size_t)bytes, &read), extra ? HTTP_HEAD_BAD : HTTP_HEAD_COMPLETE);
    }
    assert_int_equal(read.status, 414);
    free(head);
}

static void test_http_head_bare_line_feed_is_seen_at_once(void **state)
{
    (void)state;
    size_t scanned = 0;
    const char *head = "GET / HTTP/1.1\nHost: h\n\n";
    size_t bytes = http_head_end(head, strlen(head), &scanned);
    http_head_t read;
    assert_int_equal(bytes, 15);
    assert_int_equal(parse(head, bytes, &read), HTTP_HEAD_BAD);
}

/* ---- chunked ---- */

/* Decodes `bytes` bytes given in pieces of `step`; returns the last outcome, the body in `out`. */
static http_chunked_outcome_t decode(const char *data, size_t bytes, size_t step, char *out, size_t *ret_used)
{
    http_chunked_t chunked = {0};
    http_chunked_outcome_t outcome = HTTP_CHUNKED_MORE;
    size_t at = 0;
    out[0] = '\0';
    while (at < bytes) {
        size_t room = bytes - at < step ? bytes - at : step, used = 0, piece = 0;
        outcome = http_chunked_take(&chunked, data + at, room, &used, &piece);
        assert_true(used <= room && piece <= used);
        strncat(out, data + at + used - piece, piece);
        at += used;
        if (outcome == HTTP_CHUNKED_END || outcome == HTTP_CHUNKED_BAD) break;
    }
    *ret_used = at;
    return outcome;
}

static void test_http_chunked_body_is_put_together_however_it_comes(void **state)
{
    (void)state;
    const char *data = "5;name=\"v\"\r\nhello\r\n1\r\n \r\n00B\r\nworld, here\r\n0\r\nTrailer: x\r\n\r\nNEXT";
    for (size_t step = 1; step <= strlen(data); step++) {
        char out[128];
        size_t used;
        assert_int_equal(decode(data, strlen(data), step, out, &used), HTTP_CHUNKED_END);
        assert_string_equal(out, "hello world, here");
        assert_string_equal(data + used, "NEXT");
    }
}

static void test_http_chunked_anything_else_is_refused(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "\r\n",
        "g\r\n",
        "-1\r\n",
        "0x5\r\nhello\r\n",
        " 5\r\nhello\r\n",
        "5 \r\nhello\r\n",
        "5\nhello\n",
        "5\r\nhello0\r\n",
        "5\r\nhello\n",
        "5\r\nhello\r\r\n",
        "1000000000000000\r\n",
        "0\r\n\n",
        "0\r\n folded: x\r\n\r\n",
        "0\r\n: x\r\n",
        "5;a\001\r\n",
        "0\r\nA: b\nC: d\r\n",
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[64];
        size_t used;
        if (decode(cases[i], strlen(cases[i]), 3, out, &used) != HTTP_CHUNKED_BAD) fail_msg("taken: %s", cases[i]);
    }
    http_chunked_t chunked = {0};
    char line[HTTP_CHUNK_LINE_MAX + 2];
    size_t used, piece;
    memset(line, 'a', sizeof line);
    memcpy(line, "5;", 2);
    assert_int_equal(http_chunked_take(&chunked, line, sizeof line, &used, &piece), HTTP_CHUNKED_BAD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_http_head_usual_request_is_read),
        cmocka_unit_test(test_http_head_variants_are_taken),
        cmocka_unit_test(test_http_head_what_two_readers_may_read_differently_is_refused),
        cmocka_unit_test(test_http_head_limits_are_kept),
        cmocka_unit_test(test_http_head_bare_line_feed_is_seen_at_once),
        cmocka_unit_test(test_http_chunked_body_is_put_together_however_it_comes),
        cmocka_unit_test(test_http_chunked_anything_else_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
