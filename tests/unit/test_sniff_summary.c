/* What is this?      Tests of the sniffer's one-line summaries.
 * State owned:       none.
 * Must never:        let bytes of a wire through unescaped.
 * Read next:         tools/sniff/sniff_summary.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/wire_examples.h"
#include "tools/sniff/sniff_summary.h"

static void summarize(qn_message_type_t type, const void *content, sniff_line_t *line)
{
    qn_capture_message_t message = {.type = type, .content = content};
    *line = (sniff_line_t){.bytes = 0};
    sniff_summary_add(line, &message);
}

static void test_summary_every_example_is_printable(void **state)
{
    (void)state;
    for (unsigned type = 1; type < QN_MESSAGE_COUNT; type++) {
        qn_arena_t arena;
        qn_arena_init(&arena, 0);
        sniff_line_t line;
        summarize((qn_message_type_t)type, example_message(qn_wire_type((qn_message_type_t)type), &arena), &line);
        assert_int_equal(strlen(line.text), line.bytes);
        for (size_t i = 0; i < line.bytes; i++)
            assert_true((unsigned char)line.text[i] >= 0x20 && line.text[i] != 0x7f);
        qn_arena_fini(&arena);
    }
}

static void test_summary_step_plan_says_what_the_policy_decided(void **state)
{
    (void)state;
    static const qn_slot_run_t runs[] = {{.token_count = 12}, {.token_count = 1}, {.token_count = 1}};
    static const qn_slot_set_t sets[1];
    qn_text_t reasons[] = {qn_text("admit 7 (fcfs: oldest\nwaiting)"), qn_text("hold 8")};
    qn_step_plan_t plan = {.step = 9,
                           .runs = runs,
                           .runs_count = 3,
                           .sets = sets,
                           .sets_count = 1,
                           .reasons = reasons,
                           .reasons_count = 2};
    sniff_line_t line;
    summarize(QN_MESSAGE_STEP_PLAN, &plan, &line);
    assert_string_equal(line.text, "step 9, 3 runs, 14 tokens, sets 1: admit 7 (fcfs: oldest?waiting); hold 8");
}

static void test_summary_text_is_cut_between_characters_and_escaped(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t max;
        const char *shown;
    } cases[] = {
        {"plain", 60, "\"plain\""},
        {"a\nb\tc\x1b[2J", 60, "\"a\\nb\\x09c\\x1b[2J\""},
        {"say \"hi\" \\", 60, "\"say \\\"hi\\\" \\\\\""},
        {"abcdef", 3, "\"abc\"... (6 bytes)"},
        {"ab\xc3\xa9", 3, "\"ab\"... (4 bytes)"},
        {"ab\xc3\xa9", 4, "\"ab\xc3\xa9\""},
        {"", 3, "\"\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sniff_line_t line = {.bytes = 0};
        sniff_line_add_text(&line, qn_text(cases[i].text), cases[i].max);
        assert_string_equal(line.text, cases[i].shown);
    }
}

static void test_summary_line_too_long_is_cut(void **state)
{
    (void)state;
    sniff_line_t line = {.bytes = 0};
    for (int i = 0; i < 200; i++)
        sniff_line_add(&line, "0123456789");
    assert_int_equal(strlen(line.text), sizeof line.text - 1);
    assert_string_equal(line.text + sizeof line.text - 4, "...");
    sniff_line_add(&line, "more");
    assert_int_equal(line.bytes, sizeof line.text - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_summary_every_example_is_printable),
        cmocka_unit_test(test_summary_step_plan_says_what_the_policy_decided),
        cmocka_unit_test(test_summary_text_is_cut_between_characters_and_escaped),
        cmocka_unit_test(test_summary_line_too_long_is_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
