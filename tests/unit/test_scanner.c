/* Units of services/tokenizer/split/scanner.c: each scanner against its expression on the regular expression
 * engine, and a few cuts written out. */
#include "tests/unit/tokenizer_case.h"

#include <stdlib.h>

#include "services/tokenizer/split/pattern.h"
#include "services/tokenizer/split/scanner.h"

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define TAIL "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define O200K_CAPITAL "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define O200K_SMALL "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"

static const char *const expressions[] = {
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL,
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL,
    "[^\\r\\n\\p{L}\\p{N}]?" O200K_CAPITAL "*" O200K_SMALL "+" CONTRACTIONS "?|"
    "[^\\r\\n\\p{L}\\p{N}]?" O200K_CAPITAL "+" O200K_SMALL "*" CONTRACTIONS "?|"
    "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" TAIL,
};

/* Characters of every class the expressions tell apart, doubled where boundaries are likely. */
static const char *const alphabet[] = {
    " ",
    " ",
    " ",
    "\n",
    "\r",
    "\t",
    "a",
    "b",
    "Z",
    "É",
    "é",
    "ß",
    "ǅ",
    "ʰ",
    "日",
    "한",
    "\xCC\x81",
    "ำ",
    "1",
    "2",
    "²",
    "½",
    "Ⅷ",
    "٣",
    "'",
    "'",
    "s",
    "S",
    "ſ",
    "t",
    "re",
    "VE",
    "ll",
    "!",
    "/",
    "-",
    "👍",
    "\xE2\x80\x8D",
    "\xC2\xA0",
    "\xE2\x80\xA8",
    "\xE3\x80\x80",
    "\xE1\xA0\x8E",
    "İ",
    "K",
};

static void check_text(const unicode_classes_t *classes, const char *expression, const pattern_t *pattern,
                       const char *text, size_t length)
{
    uint32_t ends[3]; /* small, so that scanners stop in the middle */
    pattern_work_t work = {0};
    pattern_walk_t walk = pattern_walk((const uint8_t *)text, length);
    scanner_fn *scan = scanner_for_expression(expression, strlen(expression));
    size_t position = 0, count;
    while ((count = scan(classes, (const uint8_t *)text, length, &position, ends, 3)) > 0) {
        for (size_t i = 0; i < count; i++) {
            bool found = false;
            size_t start = 0, end = 0;
            assert_int_equal(pattern_next(pattern, &work, &walk, &found, &start, &end), QN_OK);
            if (!found || end != ends[i])
                fail_msg("\"%.*s\" with %.20s…: piece ends at %u, expected %zu", (int)length, text, expression, ends[i],
                         end);
        }
    }
    assert_int_equal(position, length);
    pattern_work_fini(&work);
}

static void test_scanner_random_text_cut_as_by_expression(void **state)
{
    (void)state;
    unicode_classes_t classes;
    unicode_classes_init(&classes);
    unsigned seed = 20240608;
    print_message("seed %u\n", seed);
    for (size_t e = 0; e < sizeof expressions / sizeof *expressions; e++) {
        pattern_t *pattern = NULL;
        assert_int_equal(pattern_open(expressions[e], strlen(expressions[e]), true, "test", &pattern), QN_OK);
        assert_non_null(scanner_for_expression(expressions[e], strlen(expressions[e])));
        for (int round = 0; round < 20000; round++) {
            char text[256];
            size_t length = 0, characters = (size_t)(rand_r(&seed) % 24);
            for (size_t i = 0; i < characters; i++) {
                const char *c = alphabet[(size_t)rand_r(&seed) % (sizeof alphabet / sizeof *alphabet)];
                memcpy(text + length, c, strlen(c));
                length += strlen(c);
            }
            check_text(&classes, expressions[e], pattern, text, length);
        }
        pattern_close(&pattern);
    }
    unicode_classes_fini(&classes);
}

static void test_scanner_other_expressions_have_none(void **state)
{
    (void)state;
    assert_null(scanner_for_expression("\\s+", 3));
    assert_null(scanner_for_expression(expressions[0], strlen(expressions[0]) - 1));
    assert_ptr_equal(scanner_for_expression(expressions[0], strlen(expressions[0])), scanner_gpt2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scanner_random_text_cut_as_by_expression),
        cmocka_unit_test(test_scanner_other_expressions_have_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
