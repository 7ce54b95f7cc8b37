/* Units of services/tokenizer/tokenizer.c and tokenizer_json.c: opening, refusing, templates, spans, several
 * threads on one tokenizer. */
#include "tests/unit/tokenizer_case.h"

#include <pthread.h>

#include "common/limits.h"

#define DEFAULT "deploy/models/default"

static void test_tokenizer_directory_and_file_open_alike(void **state)
{
    (void)state;
    static const char *const paths[] = {DEFAULT, DEFAULT "/tokenizer.json"};
    for (size_t i = 0; i < 2; i++) {
        tokenizer_t *t = NULL;
        if (tokenizer_open(paths[i], &t) != QN_OK) fail_msg("%s", qn_err_text());
        const tokenizer_info_t *info = tokenizer_info(t);
        assert_int_equal(tokenizer_vocab_size(t), 4096);
        assert_string_equal(info->bos_token, "<|endoftext|>");
        assert_int_equal(info->bos_id, 0);
        assert_int_equal(info->eos_id, 0);
        assert_int_equal(info->pad_id, 3);
        assert_int_equal(info->unk_id, -1);
        assert_null(info->unk_token);
        assert_int_equal(info->model_max_length, 2048);
        assert_non_null(strstr(info->chat_template, "add_generation_prompt"));
        assert_string_equal(case_encode(t, "Hi<|im_end|>", TOKENIZER_PARSE_SPECIAL), "|H|i|<|im_end|>");
        tokenizer_close(&t);
        assert_null(t);
        tokenizer_close(&t);
    }
}

static void test_tokenizer_missing_file_is_not_found(void **state)
{
    (void)state;
    tokenizer_t *t = NULL;
    assert_int_equal(tokenizer_open("tests/golden/nothing", &t), QN_ERR_NOT_FOUND);
    assert_int_equal(tokenizer_open("tests/unit", &t), QN_ERR_NOT_FOUND);
    assert_null(t);
}

static void test_tokenizer_config_kinds_are_read(void **state)
{
    (void)state;
    static const char json[] = "{\"model\":{\"vocab\":{\"<s>\":0,\"a\":1},\"merges\":[]}}";
    static const char config[] = "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":null,\"unk_token\":\"nowhere\","
                                 "\"model_max_length\":1000000000000000019884624838656,"
                                 "\"chat_template\":[{\"name\":\"tool\",\"template\":\"T\"},"
                                 "{\"name\":\"default\",\"template\":\"D\"}]}";
    tokenizer_t *t = NULL;
    assert_int_equal(tokenizer_open_memory(&(tokenizer_files_t){.tokenizer = {json, strlen(json)}, .config = {"[]", 2}},
                                           &t),
                     QN_ERR_INVALID);
    assert_int_equal(tokenizer_open_memory(&(tokenizer_files_t){.tokenizer = {json, strlen(json)},
                                                                .config = {config, strlen(config)}},
                                           &t),
                     QN_OK);
    const tokenizer_info_t *info = tokenizer_info(t);
    assert_int_equal(info->bos_id, 0);
    assert_null(info->eos_token);
    assert_int_equal(info->unk_id, 2); /* not in the vocabulary: added, as transformers does */
    assert_int_equal(info->model_max_length, -1);
    assert_string_equal(info->chat_template, "D");
    tokenizer_close(&t);
}

static const struct {
    case_json_t json;
    qn_err_t err;
    const char *text;
} refused[] = {
    {{.model = "\"type\":\"WordPiece\","}, QN_ERR_UNSUPPORTED, "model.type: model type \"WordPiece\""},
    {{.model = "\"type\":7,"}, QN_ERR_INVALID, "model.type"},
    {{.model = "\"dropout\":0.1,"}, QN_ERR_UNSUPPORTED, "model.dropout"},
    {{.model = "\"fuse_unk\":1,"}, QN_ERR_INVALID, "model.fuse_unk"},
    {{.model = "\"unk_token\":1,"}, QN_ERR_INVALID, "model.unk_token"},
    {{.vocab = "{\"a\":-1}"}, QN_ERR_INVALID, "model.vocab"},
    {{.vocab = "{\"a\":1.5}"}, QN_ERR_INVALID, "model.vocab"},
    {{.vocab = "{\"a\":1048576}"}, QN_ERR_LIMIT, "model.vocab[\"a\"]"},
    {{.vocab = "{\"\\ud800\":1}"}, QN_ERR_INVALID, "model.vocab"},
    {{.vocab = "{\"\xFF\":1}"}, QN_ERR_INVALID, "model.vocab"},
    {{.vocab = "[]"}, QN_ERR_INVALID, "model.vocab"},
    {{.vocab = "{\"a\":0}", .merges = "[\"a b\"]"}, QN_ERR_INVALID, "model.merges[0]: \"a\" + \"b\""},
    {{.vocab = "{\"a\":0}", .merges = "[\"aa\"]"}, QN_ERR_INVALID, "model.merges[0]"},
    {{.vocab = "{\"a\":0,\"aa\":1}", .merges = "[\"a a\",[\"a\"]]"}, QN_ERR_INVALID, "model.merges[1]"},
    {{.added_tokens = "[{\"id\":0}]"}, QN_ERR_INVALID, "added_tokens[0].content"},
    {{.added_tokens = "{}"}, QN_ERR_INVALID, "added_tokens"},
    {{.decoder = "{\"type\":\"CTC\"}"}, QN_ERR_UNSUPPORTED, "decoder: decoder type \"CTC\""},
    {{.decoder = "{\"type\":\"Strip\",\"content\":\"\",\"start\":0,\"stop\":0}"}, QN_ERR_INVALID, "decoder.content"},
    {{.post_processor = "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"B\"}}]}"},
     QN_ERR_INVALID,
     "special_tokens[\"B\"].ids"},
    {{.post_processor = "{\"type\":\"RobertaProcessing\",\"cls\":[\"c\",5],\"sep\":[\"s\",6]}"},
     QN_ERR_INVALID,
     "post_processor"},
    {{.post_processor = "{\"type\":\"Other\"}"}, QN_ERR_UNSUPPORTED, "post_processor"},
};

static void test_tokenizer_bad_file_is_refused_with_its_place(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        tokenizer_t *t = NULL;
        qn_err_t err = case_open(refused[i].json, &t);
        if (err != refused[i].err || !strstr(qn_err_text(), refused[i].text))
            fail_msg("row %zu: %s \"%s\", expected \"%s\"", i, qn_err_name(err), qn_err_text(), refused[i].text);
        assert_null(t);
    }
}

/* A file cut off anywhere is refused; so is one with a second value behind it. */
static void test_tokenizer_truncated_file_is_refused(void **state)
{
    (void)state;
    static const char json[] =
        "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":2,\"content\":\"<\\u0073>\",\"special\":true}],"
        "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":null,\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,"
        "\"aa\":1},\"merges\":[[\"a\",\"\\u0061\"]]}}";
    tokenizer_t *t = NULL;
    for (size_t length = 0; length < sizeof json - 1; length++) {
        char *exact = malloc(length ? length : 1); /* so that a read past the end is seen */
        memcpy(exact, json, length);
        assert_int_not_equal(tokenizer_open_memory(&(tokenizer_files_t){.tokenizer = {exact, length}}, &t), QN_OK);
        free(exact);
    }
    assert_int_equal(tokenizer_open_memory(&(tokenizer_files_t){.tokenizer = {json, sizeof json - 1}}, &t), QN_OK);
    assert_string_equal(case_encode(t, "aaa<s>", TOKENIZER_PARSE_SPECIAL), "|aa|a|<s>");
    tokenizer_close(&t);
    assert_int_equal(tokenizer_open_memory(&(tokenizer_files_t){.tokenizer = {"{} {}", 5}}, &t), QN_ERR_INVALID);
}

#define PIECE(kind, id) "{\"" kind "\":{\"id\":\"" id "\",\"type_id\":0}}"

static void test_tokenizer_template_surrounds_the_text(void **state)
{
    (void)state;
    static const char template[] =
        "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":\"TemplateProcessing\",\"single\":[" PIECE(
            "SpecialToken",
            "B") "," PIECE("Sequence",
                           "A") "," PIECE("SpecialToken",
                                          "E") "],\"pair\":[],"
                                               "\"special_tokens\":{\"B\":{\"id\":\"B\",\"ids\":[1]},\"E\":{\"id\":\"E\",\"ids\":[2,1]}}}]}";
    tokenizer_t *t = case_opened((case_json_t){.vocab = "{\"a\":0,\"B\":1,\"E\":2}", .post_processor = template});
    assert_string_equal(case_encode(t, "aa", TOKENIZER_ADD_SPECIAL), "|B|a|a|E|B");
    assert_string_equal(case_encode(t, "", TOKENIZER_ADD_SPECIAL), "|B|E|B");
    assert_string_equal(case_encode(t, "aa", 0), "|a|a");
    tokenizer_close(&t);
}

static void test_tokenizer_spans_name_the_bytes(void **state)
{
    (void)state;
    tokenizer_t *t = NULL;
    if (tokenizer_open(DEFAULT, &t) != QN_OK) fail_msg("%s", qn_err_text());
    tokenizer_scratch_t *scratch = tokenizer_scratch_open(t);
    tokenizer_tokens_t tokens = {0};
    static const char text[] = "The caf\xC3\xA9 <|im_end|>\n\n  日本";
    unsigned flags = TOKENIZER_PARSE_SPECIAL | TOKENIZER_WITH_SPANS;
    assert_int_equal(tokenizer_encode(t, scratch, text, strlen(text), flags, &tokens), QN_OK);
    uint32_t end = 0;
    for (size_t i = 0; i < tokens.count; i++) { /* without a normalizer the tokens tile the text */
        assert_int_equal(tokens.spans[i].start, end);
        end = tokens.spans[i].end;
    }
    assert_int_equal(end, strlen(text));
    tokenizer_tokens_fini(&tokens);
    tokenizer_scratch_close(&scratch);
    tokenizer_close(&t);
}

static void test_tokenizer_text_limits_both_sides(void **state)
{
    (void)state;
    tokenizer_t *t = case_opened((case_json_t){.vocab = "{\"a\":0}"});
    tokenizer_scratch_t *scratch = tokenizer_scratch_open(t);
    tokenizer_tokens_t tokens = {0};
    char *text = malloc(QN_TEXT_BYTES_MAX + 1);
    memset(text, 'a', QN_TEXT_BYTES_MAX + 1);
    assert_int_equal(tokenizer_encode(t, scratch, text, QN_TEXT_BYTES_MAX + 1, 0, &tokens), QN_ERR_LIMIT);
    assert_int_equal(tokens.count, 0);
    assert_int_equal(tokenizer_encode(t, scratch, text, QN_TEXT_BYTES_MAX, 0, &tokens), QN_OK);
    assert_int_equal(tokens.count, QN_TEXT_BYTES_MAX);
    assert_int_equal(tokenizer_encode(t, scratch, "a\xC3", 2, 0, &tokens), QN_ERR_INVALID);
    assert_non_null(strstr(qn_err_text(), "byte 1"));
    assert_int_equal(tokens.count, 0);
    assert_int_equal(tokenizer_encode(t, scratch, "", 0, 0, &tokens), QN_OK);
    assert_int_equal(tokens.count, 0);
    free(text);
    tokenizer_tokens_fini(&tokens);
    tokenizer_scratch_close(&scratch);
    tokenizer_close(&t);
}

typedef struct {
    const tokenizer_t *t;
    unsigned seed;
    bool ok;
} thread_t;

static void *encode_and_decode(void *argument)
{
    thread_t *own = argument;
    tokenizer_scratch_t *scratch = tokenizer_scratch_open(own->t);
    tokenizer_tokens_t tokens = {0};
    text_buffer_t text = {0};
    own->ok = true;
    for (int round = 0; round < 200; round++) {
        char line[200];
        for (size_t i = 0; i < sizeof line; i++)
            line[i] = (char)(' ' + rand_r(&own->seed) % 95);
        own->ok &= tokenizer_encode(own->t, scratch, line, sizeof line, 0, &tokens) == QN_OK;
        text.length = 0;
        tokenizer_decode(own->t, tokens.ids, tokens.count, 0, &text);
        own->ok &= text.length == sizeof line && memcmp(text.bytes, line, sizeof line) == 0;
    }
    text_buffer_fini(&text);
    tokenizer_tokens_fini(&tokens);
    tokenizer_scratch_close(&scratch);
    return NULL;
}

static void test_tokenizer_threads_share_one(void **state)
{
    (void)state;
    tokenizer_t *t = NULL;
    if (tokenizer_open(DEFAULT, &t) != QN_OK) fail_msg("%s", qn_err_text());
    pthread_t threads[4];
    thread_t owns[4];
    for (unsigned i = 0; i < 4; i++) {
        owns[i] = (thread_t){t, i + 1, false};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_and_decode, &owns[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_true(owns[i].ok);
    }
    tokenizer_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_directory_and_file_open_alike),
        cmocka_unit_test(test_tokenizer_missing_file_is_not_found),
        cmocka_unit_test(test_tokenizer_config_kinds_are_read),
        cmocka_unit_test(test_tokenizer_bad_file_is_refused_with_its_place),
        cmocka_unit_test(test_tokenizer_truncated_file_is_refused),
        cmocka_unit_test(test_tokenizer_template_surrounds_the_text),
        cmocka_unit_test(test_tokenizer_spans_name_the_bytes),
        cmocka_unit_test(test_tokenizer_text_limits_both_sides),
        cmocka_unit_test(test_tokenizer_threads_share_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
