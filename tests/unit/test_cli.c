/* What is this?      Tests of the option parser of the quintet command.
 * State owned:       the values one parse fills in.
 * Must never:        print help to a person: output is not looked at here.
 * Read next:         tools/cli.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>
#include <sysexits.h>

#include "tools/cli.h"

static bool flag, other;
static const char *text;
static uint64_t count;
static double number;
static bool number_given;
static cli_texts_t texts;

static const cli_option_t options[] = {
    {"flag", 'f', CLI_FLAG, &flag, NULL, NULL, "a flag", 0, 0},
    {"other", 'o', CLI_FLAG, &other, NULL, NULL, "another", 0, 0},
    {"text", 't', CLI_TEXT, &text, NULL, "TEXT", "a text", 0, 0},
    {"count", 'c', CLI_COUNT, &count, NULL, "N", "a count", 1, 10},
    {"number", 'n', CLI_NUMBER, &number, &number_given, "X", "a number", 0, 1},
    {"texts", 0, CLI_TEXTS, &texts, NULL, "TEXT", "texts", 0, 0},
};
static const cli_command_t command = {.name = "test",
                                      .arguments = "",
                                      .summary = "Tests.",
                                      .options = options,
                                      .option_count = sizeof options / sizeof *options};

/* Splits `line` at blanks and parses it; the words left are joined in `ret_rest`. */
static int parse(const char *line, char ret_rest[128])
{
    static char buffer[512];
    char *argv[64] = {"test"};
    int argc = 1;
    flag = other = number_given = false;
    text = NULL;
    count = 5;
    number = 0.5;
    texts = (cli_texts_t){.count = 0};
    strcpy(buffer, line);
    for (char *word = strtok(buffer, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    int status = cli_parse(&command, &argc, argv);
    ret_rest[0] = '\0';
    for (int i = 1; i < argc; i++)
        strcat(strcat(ret_rest, i > 1 ? " " : ""), argv[i]);
    assert_null(argv[argc]);
    return status;
}

static void test_cli_parse_values_and_rest(void **state)
{
    (void)state;
    static const struct {
        const char *line, *rest;
        bool flag, other;
        const char *text;
        uint64_t count;
        double number;
    } cases[] = {
        {"", "", false, false, NULL, 5, 0.5},
        {"one two", "one two", false, false, NULL, 5, 0.5},
        {"-f one --other two", "one two", true, true, NULL, 5, 0.5},
        {"-fo", "", true, true, NULL, 5, 0.5},
        {"-fot x", "", true, true, "x", 5, 0.5},
        {"-tx -c7", "", false, false, "x", 7, 0.5},
        {"--text x --count 1 --number 1", "", false, false, "x", 1, 1},
        {"--text=x --count=10 --number=0", "", false, false, "x", 10, 0},
        {"--text= y", "y", false, false, "", 5, 0.5},
        {"--text --flag", "", false, false, "--flag", 5, 0.5},
        {"-n 1e-1 -", "-", false, false, NULL, 5, 0.1},
        {"-f -- -o --text x", "-o --text x", true, false, NULL, 5, 0.5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char rest[128];
        assert_int_equal(parse(cases[i].line, rest), -1);
        assert_string_equal(rest, cases[i].rest);
        assert_int_equal(flag, cases[i].flag);
        assert_int_equal(other, cases[i].other);
        assert_int_equal(text != NULL, cases[i].text != NULL);
        if (text) assert_string_equal(text, cases[i].text);
        assert_int_equal(count, cases[i].count);
        assert_true(number == cases[i].number);
    }
}

static void test_cli_parse_wrong_use_is_refused(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "--falg",        "--fla",         "-z",           "-fz",          "--text",        "-t",          "--flag=x",
        "--count 0",     "--count 11",    "--count x",    "--count -1",   "--count +1",    "--count 1.5", "--count=",
        "--number 1.01", "--number -0.1", "--number nan", "--number inf", "--number 0.5x", "--texts",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char rest[128];
        if (parse(lines[i], rest) != EX_USAGE) fail_msg("\"%s\" is taken", lines[i]);
    }
    char rest[128];
    assert_int_equal(parse("--help --nonsense", rest), EX_OK);
    assert_int_equal(parse("-h", rest), EX_OK);
}

static void test_cli_parse_repeated_texts_both_sides_of_the_limit(void **state)
{
    (void)state;
    char line[512] = "", rest[128];
    for (int i = 0; i < CLI_TEXTS_MAX; i++)
        strcat(line, "--texts a ");
    assert_int_equal(parse(line, rest), -1);
    assert_int_equal(texts.count, CLI_TEXTS_MAX);
    strcat(line, "--texts a");
    assert_int_equal(parse(line, rest), EX_USAGE);
}

static void test_cli_parse_given_tells_a_default_from_a_value(void **state)
{
    (void)state;
    char rest[128];
    parse("", rest);
    assert_false(number_given);
    parse("--number 0.5", rest);
    assert_true(number_given);
}

static void test_cli_nearest_suggests_near_words_only(void **state)
{
    (void)state;
    static const char *const words[] = {"generate", "tokenize", "up", "sniff"};
    static const struct {
        const char *word, *nearest;
    } cases[] = {
        {"generate", "generate"},
        {"genrate", "generate"},
        {"tokenise", "tokenize"},
        {"snif", "sniff"},
        {"xy", NULL},
        {"", NULL},
        {"completely-different", NULL},
        {"u", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *nearest = cli_nearest(cases[i].word, words, 4);
        if (!cases[i].nearest)
            assert_null(nearest);
        else
            assert_string_equal(nearest, cases[i].nearest);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cli_parse_values_and_rest),
        cmocka_unit_test(test_cli_parse_wrong_use_is_refused),
        cmocka_unit_test(test_cli_parse_repeated_texts_both_sides_of_the_limit),
        cmocka_unit_test(test_cli_parse_given_tells_a_default_from_a_value),
        cmocka_unit_test(test_cli_nearest_suggests_near_words_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
