/* Units of services/tokenizer/split/normalizer.c: what each component makes of a text. The expected texts are
 * those of the reference library. */
#include "tests/unit/tokenizer_case.h"

#include <jansson.h>

#include "services/tokenizer/json/component_json.h"

typedef struct {
    const char *json, *text, *normalized;
} row_t;

static const row_t rows[] = {
    {"{\"type\":\"NFC\"}",
     "e\xCC\x81"
     " a\xCC\xA3"
     "\xCC\x82"
     " \xE1\x84\x80"
     "\xE1\x85\xA1"
     "\xE1\x86\xA8"
     " ﬁ",
     "é ậ 각 ﬁ"},
    {"{\"type\":\"NFD\"}", "é한ﬁ",
     "e\xCC\x81"
     "ᄒ\xE1\x85\xA1"
     "ᆫﬁ"},
    {"{\"type\":\"NFKC\"}",
     "ﬁ½①e\xCC\x81"
     " ﾊﾞ…",
     "fi1⁄21é バ..."},
    {"{\"type\":\"NFKD\"}", "ﬁé½",
     "fie\xCC\x81"
     "1⁄2"},
    {"{\"type\":\"Lowercase\"}", "AÉİΣS",
     "aéi\xCC\x87"
     "σs"},
    {"{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}",
     " \xE3\x80\x80"
     "a b\n",
     "a b"},
    {"{\"type\":\"Strip\",\"strip_left\":false,\"strip_right\":true}", " a ", " a"},
    {"{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":false}", " a ", "a "},
    {"{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFD\"},{\"type\":\"StripAccents\"}]}", "éàç日", "eac日"},
    {"{\"type\":\"Prepend\",\"prepend\":\"▁\"}", "ab", "▁ab"},
    {"{\"type\":\"Prepend\",\"prepend\":\"▁\"}", "", ""},
    {"{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"▁\"}", " a  b", "▁a▁▁b"},
    {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"\\\\s{2,}\"},\"content\":\"\"}", "a  b c", "ab c"},
    {"{\"type\":\"Replace\",\"pattern\":{\"String\":\"aa\"},\"content\":\"b\"}", "aaaaa", "bba"},
    {"{\"type\":\"ByteLevel\"}", "a é\n", "aĠÃ©Ċ"},
    {"{\"type\":\"Nmt\"}",
     "a\xE2\x80\x8B"
     "b\x01"
     "c\td",
     "a bc d"},
    {"{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"▁\"},{\"type\":\"Replace\","
     "\"pattern\":{\"String\":\" \"},\"content\":\"▁\"}]}",
     " a b", "▁▁a▁b"},
    {"{\"type\":\"Sequence\",\"normalizers\":[]}", "Ab", "Ab"},
};

static void run_row(const row_t *row, bool is_aligned)
{
    normalizer_t normalizer = {.count = 0};
    normalizer_work_t work = {0};
    unicode_classes_t classes;
    json_t *json = json_loads(row->json, 0, NULL);
    text_view_t view = {(const uint8_t *)row->text, strlen(row->text), NULL, 100};
    unicode_classes_init(&classes);
    if (normalizer_json_load(json, &normalizer) != QN_OK) fail_msg("%s", qn_err_text());
    assert_int_equal(normalizer_run(&normalizer, &classes, &work, view, is_aligned, &view), QN_OK);
    if (view.length != strlen(row->normalized) || memcmp(view.bytes, row->normalized, view.length) != 0)
        fail_msg("%s on \"%s\": \"%.*s\", expected \"%s\"", row->json, row->text, (int)view.length,
                 (const char *)view.bytes, row->normalized);
    for (size_t i = 0; is_aligned && i < view.length; i++) { /* each byte came from somewhere in the text */
        tokenizer_span_t span = text_view_span(&view, i);
        assert_true(span.start >= 100 && span.start <= span.end && span.end <= 100 + strlen(row->text));
    }
    json_decref(json);
    normalizer_work_fini(&work);
    normalizer_fini(&normalizer);
    unicode_classes_fini(&classes);
}

static void test_normalizer_components_give_expected_text(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        run_row(&rows[i], false);
        run_row(&rows[i], true);
    }
}

static void test_normalizer_growing_text_is_refused(void **state)
{
    (void)state;
    normalizer_t normalizer = {.count = 0};
    normalizer_work_t work = {0};
    unicode_classes_t classes;
    enum { LENGTH = 1 << 20 };
    uint8_t *text = malloc(LENGTH);
    text_view_t view = {text, LENGTH, NULL, 0};
    json_t *json = json_pack("{s:s,s:{s:s},s:s}", "type", "Replace", "pattern", "String", "a", "content",
                             "0123456789012345678901234567890123456789012345678901234567890123456789");
    memset(text, 'a', LENGTH);
    unicode_classes_init(&classes);
    assert_int_equal(normalizer_json_load(json, &normalizer), QN_OK);
    assert_int_equal(normalizer_run(&normalizer, &classes, &work, view, false, &view), QN_ERR_LIMIT);
    view.length /= 2; /* 35 MiB of result: allowed */
    assert_int_equal(normalizer_run(&normalizer, &classes, &work, view, false, &view), QN_OK);
    assert_int_equal(view.length, LENGTH / 2 * 70);
    json_decref(json);
    free(text);
    normalizer_work_fini(&work);
    normalizer_fini(&normalizer);
    unicode_classes_fini(&classes);
}

static void test_normalizer_bad_component_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        qn_err_t err;
        const char *text;
    } bad[] = {
        {"{\"type\":\"Precompiled\"}", QN_ERR_UNSUPPORTED, "normalizer: normalizer type \"Precompiled\""},
        {"{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"X\"}]}", QN_ERR_UNSUPPORTED,
         "normalizer.normalizers[1]"},
        {"{\"type\":\"Prepend\"}", QN_ERR_INVALID, "normalizer.prepend"},
        {"{\"type\":\"Strip\",\"strip_left\":1}", QN_ERR_INVALID, "normalizer.strip_left"},
        {"{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"}}", QN_ERR_INVALID, "normalizer.content"},
        {"3", QN_ERR_INVALID, "normalizer.type"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        normalizer_t normalizer = {.count = 0};
        json_t *json = json_loads(bad[i].json, JSON_DECODE_ANY, NULL);
        assert_int_equal(normalizer_json_load(json, &normalizer), bad[i].err);
        if (!strstr(qn_err_text(), bad[i].text)) fail_msg("%s: does not say %s", qn_err_text(), bad[i].text);
        normalizer_fini(&normalizer);
        json_decref(json);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_normalizer_components_give_expected_text),
        cmocka_unit_test(test_normalizer_growing_text_is_refused),
        cmocka_unit_test(test_normalizer_bad_component_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
