/* A tokenizer.json with random files beside it: ids and decodings equal those of transformers' AutoTokenizer. With a
 * path as argument the cases of that file are tried instead (side_files/make_golden.py --out). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "common/watch/log.h"
#include "services/tokenizer/tokenizer.h"

static const char *cases_path = "tests/golden/side_files/cases.json";

typedef struct {
    size_t index;
    const json_t *json;
    tokenizer_t *tokenizer;
    tokenizer_scratch_t *scratch;
    tokenizer_tokens_t tokens;
    unsigned wrong;
} case_t;

static void report(case_t *c, const char *what, const json_t *text, const json_t *want, const char *got)
{
    char *files = json_dumps(json_object_get(c->json, "files"), JSON_ENSURE_ASCII);
    char *expected = json_dumps(want, JSON_ENCODE_ANY);
    if (c->wrong++ == 0)
        print_error("case %zu, base %s: %s\n", c->index, json_string_value(json_object_get(c->json, "base")), files);
    print_error("  %s of \"%s\": %s, expected %s\n", what, json_string_value(text), got, expected);
    free(files);
    free(expected);
}

static void check_ids(case_t *c, const json_t *text, const json_t *want, unsigned flags, const char *what)
{
    assert_int_equal(tokenizer_encode(c->tokenizer, c->scratch, json_string_value(text), json_string_length(text),
                                      flags | TOKENIZER_PARSE_SPECIAL, &c->tokens),
                     QN_OK);
    json_t *got = json_array();
    for (size_t i = 0; i < c->tokens.count; i++)
        json_array_append_new(got, json_integer(c->tokens.ids[i]));
    if (!json_equal(got, want)) {
        char *shown = json_dumps(got, 0);
        report(c, what, text, want, shown);
        free(shown);
    }
    json_decref(got);
}

/* The ids of the text with its special tokens stand in c->tokens. */
static void check_decoding(case_t *c, const json_t *text, const json_t *want, unsigned flags, const char *what)
{
    text_buffer_t decoded = {0};
    tokenizer_decode(c->tokenizer, c->tokens.ids, c->tokens.count, flags, &decoded);
    text_buffer_append(&decoded, "", 1);
    if (strcmp((const char *)decoded.bytes, json_string_value(want)) != 0)
        report(c, what, text, want, (const char *)decoded.bytes);
    text_buffer_fini(&decoded);
}

static void check_texts(case_t *c)
{
    const json_t *texts = json_object_get(c->json, "texts");
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const json_t *text = json_array_get(texts, i);
        check_ids(c, text, json_array_get(json_object_get(c->json, "plain"), i), 0, "plain");
        check_ids(c, text, json_array_get(json_object_get(c->json, "ids"), i), TOKENIZER_ADD_SPECIAL, "ids");
        if (c->wrong || json_array_size(json_object_get(c->json, "shown")) == 0) continue;
        check_decoding(c, text, json_array_get(json_object_get(c->json, "decoded"), i), 0, "decoded");
        check_decoding(c, text, json_array_get(json_object_get(c->json, "shown"), i), TOKENIZER_SKIP_SPECIAL, "shown");
    }
}

static tokenizer_file_t file_of(const json_t *json)
{
    char *text = json ? json_dumps(json, 0) : NULL;
    return (tokenizer_file_t){text, text ? strlen(text) : 0};
}

static void check_case(case_t *c, const json_t *bases)
{
    const json_t *files = json_object_get(c->json, "files");
    tokenizer_files_t all = {.tokenizer =
                                 file_of(json_object_get(bases, json_string_value(json_object_get(c->json, "base")))),
                             .config = file_of(json_object_get(files, "tokenizer_config.json")),
                             .special_tokens_map = file_of(json_object_get(files, "special_tokens_map.json")),
                             .added_tokens = file_of(json_object_get(files, "added_tokens.json")),
                             .model_config = file_of(json_object_get(files, "config.json"))};
    qn_err_t err = tokenizer_open_memory(&all, &c->tokenizer);
    bool refused = json_is_true(json_object_get(c->json, "refused"));
    if (refused != (err != QN_OK)) report(c, "opening", NULL, json_object_get(c->json, "refused"), qn_err_text());
    if (err == QN_OK && !refused) {
        c->scratch = tokenizer_scratch_open(c->tokenizer);
        check_texts(c);
        tokenizer_scratch_close(&c->scratch);
    }
    tokenizer_tokens_fini(&c->tokens);
    tokenizer_close(&c->tokenizer);
    const tokenizer_file_t *each = &all.tokenizer;
    for (size_t i = 0; i < sizeof all / sizeof *each; i++)
        free((void *)each[i].bytes);
}

static void test_side_files_equal_transformers(void **state)
{
    (void)state;
    json_error_t error;
    json_t *golden = json_load_file(cases_path, JSON_ALLOW_NUL, &error);
    if (!golden) fail_msg("%s: %s (line %d)", cases_path, error.text, error.line);
    const json_t *cases = json_object_get(golden, "cases");
    size_t wrong = 0;
    assert_true(json_array_size(cases) >= 100);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        case_t c = {.index = i, .json = json_array_get(cases, i)};
        check_case(&c, json_object_get(golden, "bases"));
        wrong += c.wrong > 0;
    }
    if (wrong) fail_msg("%zu of %zu cases differ", wrong, json_array_size(cases));
    json_decref(golden);
}

int main(int count, char **arguments)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_side_files_equal_transformers),
    };
    if (count > 1) cases_path = arguments[1];
    qn_log_set_level(QN_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
