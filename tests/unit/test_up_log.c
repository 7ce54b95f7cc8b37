/* Lines of services: cutting, parsing, formatting, and a reader that does not read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tools/up/up_log.h"

typedef struct {
    char lines[8][UP_LINE_BYTES_MAX + 1];
    size_t count;
} taken_t;

static void take(void *context, char *line)
{
    taken_t *taken = context;
    assert_true(taken->count < 8);
    snprintf(taken->lines[taken->count++], UP_LINE_BYTES_MAX + 1, "%s", line);
}

static void feed(up_lines_t *lines, taken_t *taken, const char *text)
{
    up_lines_feed(lines, text, strlen(text), take, taken);
}

static void test_up_lines_come_whole_however_they_are_cut(void **state)
{
    (void)state;
    static const char text[] = "one\n\nthree\nfour";
    for (size_t piece = 1; piece <= sizeof text; piece++) {
        up_lines_t *lines = calloc(1, sizeof *lines);
        taken_t *taken = calloc(1, sizeof *taken);
        for (size_t at = 0; at < sizeof text - 1; at += piece) {
            size_t length = sizeof text - 1 - at < piece ? sizeof text - 1 - at : piece;
            up_lines_feed(lines, text + at, length, take, taken);
        }
        assert_int_equal(taken->count, 3);
        up_lines_end(lines, take, taken);
        up_lines_end(lines, take, taken);
        assert_int_equal(taken->count, 4);
        assert_string_equal(taken->lines[0], "one");
        assert_string_equal(taken->lines[1], "");
        assert_string_equal(taken->lines[2], "three");
        assert_string_equal(taken->lines[3], "four");
        free(lines);
        free(taken);
    }
}

static void test_up_lines_overlong_line_is_cut_and_marked(void **state)
{
    (void)state;
    char *text = calloc(1, UP_LINE_BYTES_MAX + 100);
    up_lines_t *lines = calloc(1, sizeof *lines);
    taken_t *taken = calloc(1, sizeof *taken);
    memset(text, 'x', UP_LINE_BYTES_MAX);
    feed(lines, taken, text);
    feed(lines, taken, "\n");
    assert_int_equal(strlen(taken->lines[0]), UP_LINE_BYTES_MAX);
    assert_int_equal(taken->lines[0][UP_LINE_BYTES_MAX - 1], 'x');
    feed(lines, taken, text);
    feed(lines, taken, "y\nnext\n");
    assert_int_equal(strlen(taken->lines[1]), UP_LINE_BYTES_MAX);
    assert_string_equal(taken->lines[1] + UP_LINE_BYTES_MAX - 4, "x...");
    assert_string_equal(taken->lines[2], "next");
    free(text);
    free(lines);
    free(taken);
}

static void test_up_log_parse_finds_priority_and_source(void **state)
{
    (void)state;
    static const struct {
        const char *line, *source, *text;
        int priority;
    } cases[] = {
        {"<3>scheduler: no slot", "scheduler", "no slot", 3},
        {"<7>memory: x", "memory", "x", 7},
        {"plain words", "own", "plain words", 6},
        {"<2>bug: a.c:1", "own", "bug: a.c:1", 2},
        {"compute: without a level", "compute", "without a level", 6},
        {"<8>scheduler: x", "own", "<8>scheduler: x", 6},
        {"<3", "own", "<3", 6},
        {"<3>", "own", "", 3},
        {"schedulers: x", "own", "schedulers: x", 6},
        {"", "own", "", 6},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char line[64];
        const char *source = "own";
        int priority;
        snprintf(line, sizeof line, "%s", cases[i].line);
        assert_string_equal(up_log_parse(line, &source, &priority), cases[i].text);
        assert_string_equal(source, cases[i].source);
        assert_int_equal(priority, cases[i].priority);
    }
}

static void test_up_log_format_has_three_styles_and_no_control_characters(void **state)
{
    (void)state;
    static const struct {
        up_style_t style;
        int priority;
        const char *text, *line;
    } cases[] = {
        {UP_STYLE_PLAIN, UP_LOG_INFO, "hello", "12:00:00.001 memory    hello\n"},
        {UP_STYLE_PLAIN, UP_LOG_ERROR, "no", "12:00:00.001 memory    error: no\n"},
        {UP_STYLE_PLAIN, UP_LOG_WARNING, "hm", "12:00:00.001 memory    warning: hm\n"},
        {UP_STYLE_PLAIN, 7, "x", "12:00:00.001 memory    debug: x\n"},
        {UP_STYLE_PLAIN, UP_LOG_INFO, "a\033[2Jb\rc\td\x7f", "12:00:00.001 memory    a?[2Jb?c d?\n"},
        {UP_STYLE_JOURNAL, UP_LOG_ERROR, "no", "<3>memory: no\n"},
        {UP_STYLE_COLOUR, UP_LOG_ERROR, "no",
         "\033[2m12:00:00.001\033[0m \033[33mmemory   \033[0m \033[31merror: no\033[0m\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char line[256];
        size_t length = up_log_format(line, sizeof line, cases[i].style, "12:00:00.001", "memory", cases[i].priority,
                                      cases[i].text);
        assert_int_equal(length, strlen(cases[i].line));
        assert_memory_equal(line, cases[i].line, length);
    }
}

static void test_up_log_without_reader_drops_lines_and_says_so(void **state)
{
    (void)state;
    int ends[2];
    char *text = calloc(1, UP_LINE_BYTES_MAX + 1), bytes[4096];
    memset(text, 'x', UP_LINE_BYTES_MAX);
    assert_int_equal(pipe(ends), 0);
    up_log_t log = {.fd = ends[1], .style = UP_STYLE_PLAIN};
    for (int i = 0; i < 200; i++)
        up_log_write(&log, "memory", UP_LOG_INFO, text); /* 600 KB into a pipe of 64 KiB */
    assert_true(log.dropped > 100);
    uint64_t dropped = log.dropped, left = 200 - dropped;
    for (uint64_t i = 0; i < left * (UP_LINE_BYTES_MAX + strlen("12:00:00.001 memory    \n"));) {
        ssize_t length = read(ends[0], bytes, sizeof bytes);
        assert_true(length > 0);
        i += (uint64_t)length;
    }
    up_log_write(&log, "memory", UP_LOG_INFO, "again");
    ssize_t length = read(ends[0], bytes, sizeof bytes - 1);
    assert_true(length > 0);
    bytes[length] = '\0';
    char note[96];
    snprintf(note, sizeof note, "up        warning: %llu lines were dropped because nobody read them\n",
             (unsigned long long)dropped);
    assert_non_null(strstr(bytes, note));
    assert_non_null(strstr(bytes, "memory    again\n"));
    assert_int_equal(log.dropped, 0);
    close(ends[0]);
    close(ends[1]);
    free(text);
}

static void test_up_log_debug_lines_show_only_when_asked_for(void **state)
{
    (void)state;
    int ends[2];
    char bytes[256];
    assert_int_equal(pipe(ends), 0);
    up_log_t log = {.fd = ends[1], .style = UP_STYLE_JOURNAL};
    up_log_write(&log, "up", UP_LOG_DEBUG, "hidden");
    log.debug = true;
    up_log_write(&log, "up", UP_LOG_DEBUG, "shown");
    ssize_t length = read(ends[0], bytes, sizeof bytes);
    assert_int_equal(length, strlen("<7>up: shown\n"));
    assert_memory_equal(bytes, "<7>up: shown\n", (size_t)length);
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_up_lines_come_whole_however_they_are_cut),
        cmocka_unit_test(test_up_lines_overlong_line_is_cut_and_marked),
        cmocka_unit_test(test_up_log_parse_finds_priority_and_source),
        cmocka_unit_test(test_up_log_format_has_three_styles_and_no_control_characters),
        cmocka_unit_test(test_up_log_without_reader_drops_lines_and_says_so),
        cmocka_unit_test(test_up_log_debug_lines_show_only_when_asked_for),
    };
    return cmocka_run_group_tests_name("up_log", tests, NULL, NULL);
}
