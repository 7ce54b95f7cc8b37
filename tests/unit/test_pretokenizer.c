/* Units of services/tokenizer/split/pretokenizer.c: what each component makes of a text. The expected words are
 * those of the reference library. */
#include "tests/unit/tokenizer_case.h"

#include <jansson.h>

#include "services/tokenizer/json/component_json.h"

typedef struct {
    const char *json, *text, *words;
} row_t;

static const row_t rows[] = {
    {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"Removed\",\"invert\":false}",
     "the-final--countdown", "|the|final|countdown"},
    {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"Removed\",\"invert\":true}",
     "the-final--countdown", "|-|-|-"},
    {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"Isolated\",\"invert\":false}",
     "the-final--countdown", "|the|-|final|-|-|countdown"},
    {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"Isolated\",\"invert\":true}",
     "the-final--countdown", "|the|-|final|-|-|countdown"},
    {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"MergedWithPrevious\",\"invert\":false}",
     "the-final--countdown", "|the-|final-|-|countdown"},
    {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"MergedWithPrevious\",\"invert\":true}",
     "the-final--countdown", "|the|-final|-|-countdown"},
    {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"MergedWithNext\",\"invert\":false}",
     "the-final--countdown", "|the|-final|-|-countdown"},
    {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"MergedWithNext\",\"invert\":true}",
     "the-final--countdown", "|the-|final-|-|countdown"},
    {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"Contiguous\",\"invert\":false}",
     "the-final--countdown", "|the|-|final|--|countdown"},
    {"{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"Contiguous\",\"invert\":true}",
     "the-final--countdown", "|the|-|final|--|countdown"},
    {"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"-+\"},\"behavior\":\"Isolated\",\"invert\":false}",
     "the-final--countdown", "|the|-|final|--|countdown"},
    {"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?=o)\"},\"behavior\":\"Isolated\",\"invert\":false}",
     "the-final--countdown", "|the-final--c|ountd|own"},
    {"{\"type\":\"Split\",\"pattern\":{\"String\":\"\"},\"behavior\":\"Isolated\",\"invert\":false}", "aéb", "|a|é|b"},
    {"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w+\"},\"behavior\":\"Removed\",\"invert\":true}", "a_b ²c-ก็ d",
     "|a_b|²c|ก็|d"},
    {"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[\\\\h]+\"},\"behavior\":\"Isolated\",\"invert\":false}",
     "xyz12fG h", "|xyz|12f|G h"},
    {"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"^\\\\w\"},\"behavior\":\"Isolated\",\"invert\":false}", "ab\ncd",
     "|a|b\n|c|d"},
    {"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?m:a.b)\"},\"behavior\":\"Isolated\",\"invert\":false}", "xa\nbx",
     "|x|a\nb|x"},
    {"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s+\"},\"behavior\":\"Removed\",\"invert\":false}",
     "a \xE3\x80\x80"
     "\n b\xC2\xA0"
     "",
     "|a|b"},
    {"{\"type\":\"Digits\",\"individual_digits\":true}", "a12b٣½ 3", "|a|1|2|b|٣|½| |3"},
    {"{\"type\":\"Digits\",\"individual_digits\":false}", "a12b٣½ 3", "|a|12|b|٣½| |3"},
    {"{\"type\":\"Punctuation\",\"behavior\":\"Isolated\"}", "Hi!! (a)$ «b»", "|Hi|!|!| |(|a|)|$| |«|b|»"},
    {"{\"type\":\"Punctuation\",\"behavior\":\"Contiguous\"}", "Hi!! (a)$ «b»", "|Hi|!!| |(|a|)$| |«|b|»"},
    {"{\"type\":\"Punctuation\",\"behavior\":\"Removed\"}", "Hi!! (a)$ «b»", "|Hi| |a| |b"},
    {"{\"type\":\"Whitespace\"}",
     "Hey, you_2! \xC2\xA0"
     "ok…",
     "|Hey|,|you_2|!|ok|…"},
    {"{\"type\":\"WhitespaceSplit\"}",
     " a  b\n\xE3\x80\x80"
     "c ",
     "|a|b|c"},
    {"{\"type\":\"BertPreTokenizer\"}", "Hi, you!", "|Hi|,|you|!"},
    {"{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"a\"}", "bananas", "|b|n|n|s"},
    {"{\"type\":\"FixedLength\",\"length\":3}", "aébcdefg", "|aéb|cde|fg"},
    {"{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"always\",\"split\":true}", "Hey  my▁friend ",
     "|▁Hey|▁|▁my|▁friend|▁"},
    {"{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"always\",\"split\":false}", "Hey  my▁friend ",
     "|▁Hey▁▁my▁friend▁"},
    {"{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"first\",\"split\":true}", "Hey  my▁friend ",
     "|▁Hey|▁|▁my|▁friend|▁"},
    {"{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"first\",\"split\":false}", "Hey  my▁friend ",
     "|▁Hey▁▁my▁friend▁"},
    {"{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"never\",\"split\":true}", "Hey  my▁friend ",
     "|Hey|▁|▁my|▁friend|▁"},
    {"{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"never\",\"split\":false}", "Hey  my▁friend ",
     "|Hey▁▁my▁friend▁"},
    {"{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"always\",\"split\":true}", " Hey", "|▁Hey"},
    {"{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"WhitespaceSplit\"},{\"type\":\"Metaspace\","
     "\"replacement\":\"▁\",\"prepend_scheme\":\"first\",\"split\":true}]}",
     "Hey my", "|▁Hey|my"},
    {"{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true}", "Hé y's 1",
     "|ĠHÃ©|Ġy|'s|Ġ1"},
    {"{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":false}", "Hé y's 1",
     "|ĠHÃ©Ġy'sĠ1"},
    {"{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}", "Hé y's 1",
     "|HÃ©|Ġy|'s|Ġ1"},
    {"{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false}", "Hé y's 1",
     "|HÃ©Ġy'sĠ1"},
    {"{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true},"
     "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false}]}",
     "a1 é", "|a|1|ĠÃ©"},
};

/* Words with a '|' before each. */
static void run_row(const row_t *row, bool is_aligned, char *line, size_t line_bytes)
{
    pretokenizer_t pretokenizer = {.count = 0};
    pretokenizer_work_t work = {0};
    unicode_classes_t classes;
    json_t *json = json_loads(row->json, 0, NULL);
    text_view_t view = {(const uint8_t *)row->text, strlen(row->text), NULL, 0}, text;
    const pretokenizer_words_t *words;
    unicode_classes_init(&classes);
    if (pretokenizer_json_load(json, &pretokenizer) != QN_OK) fail_msg("%s", qn_err_text());
    assert_int_equal(pretokenizer_run(&pretokenizer, &classes, &work, view, is_aligned, &text, &words), QN_OK);
    size_t length = 0;
    line[0] = '\0';
    for (size_t i = 0; i < words->count; i++) {
        pretokenizer_word_t word = words->words[i];
        length += (size_t)snprintf(line + length, line_bytes - length, "|%.*s", (int)(word.end - word.start),
                                   (const char *)text.bytes + word.start);
        assert_true(length < line_bytes);
        if (is_aligned) assert_true(text_view_span(&text, word.end - 1).end <= strlen(row->text));
    }
    json_decref(json);
    pretokenizer_work_fini(&work);
    pretokenizer_fini(&pretokenizer);
    unicode_classes_fini(&classes);
}

static void test_pretokenizer_components_give_expected_words(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int is_aligned = 0; is_aligned < 2; is_aligned++) {
            /* "first" needs to know where a word came from when an earlier step changed the text; alone it does not. */
            char line[512];
            run_row(&rows[i], is_aligned, line, sizeof line);
            if (strcmp(line, rows[i].words) != 0)
                fail_msg("%s on \"%s\": %s, expected %s", rows[i].json, rows[i].text, line, rows[i].words);
        }
    }
}

static void test_pretokenizer_bad_component_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        qn_err_t err;
        const char *text;
    } bad[] = {
        {"{\"type\":\"UnicodeScripts\"}", QN_ERR_UNSUPPORTED, "pre_tokenizer: pre-tokenizer type \"UnicodeScripts\""},
        {"{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Whitespace\"},{\"type\":\"X\"}]}", QN_ERR_UNSUPPORTED,
         "pre_tokenizer.pretokenizers[1]"},
        {"{\"type\":\"Sequence\"}", QN_ERR_INVALID, "pre_tokenizer.pretokenizers"},
        {"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}", QN_ERR_INVALID,
         "pre_tokenizer.pattern"},
        {"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"},\"behavior\":\"Isolated\"}", QN_ERR_UNSUPPORTED,
         "set operation"},
        {"{\"type\":\"Split\",\"pattern\":{},\"behavior\":\"Isolated\"}", QN_ERR_INVALID, "pre_tokenizer.pattern"},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Kept\"}", QN_ERR_INVALID,
         "pre_tokenizer.behavior"},
        {"{\"type\":\"Metaspace\",\"replacement\":\"ab\"}", QN_ERR_INVALID, "pre_tokenizer.replacement"},
        {"{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}", QN_ERR_INVALID,
         "pre_tokenizer.prepend_scheme"},
        {"{\"type\":\"FixedLength\",\"length\":0}", QN_ERR_INVALID, "pre_tokenizer.length"},
        {"{}", QN_ERR_INVALID, "pre_tokenizer.type"},
        {"[]", QN_ERR_INVALID, "pre_tokenizer.type"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pretokenizer_t pretokenizer = {.count = 0};
        json_t *json = json_loads(bad[i].json, 0, NULL);
        assert_int_equal(pretokenizer_json_load(json, &pretokenizer), bad[i].err);
        if (!strstr(qn_err_text(), bad[i].text)) fail_msg("%s: does not say %s", qn_err_text(), bad[i].text);
        pretokenizer_fini(&pretokenizer);
        json_decref(json);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pretokenizer_components_give_expected_words),
        cmocka_unit_test(test_pretokenizer_bad_component_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
