/* One token as bytes: byte-level pieces and half characters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "services/tokenizer/decode/token_bytes.h"

/* The bytes of a text's tokens in a row are the text, also where a token ends inside a character. */
static void test_token_bytes_concatenate_to_the_text(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "plain words, twice twice",
        "caf\xc3\xa9 \xe2\x82\xac\xf0\x9f\x8e\xb2\xe4\xb8\xad",
        "  tabs\t\n\n and spaces   ",
        "x",
    };
    tokenizer_t *tokenizer;
    assert_int_equal(tokenizer_open("deploy/models/default", &tokenizer), QN_OK);
    tokenizer_scratch_t *scratch = tokenizer_scratch_open(tokenizer);
    tokenizer_tokens_t tokens = {0};
    text_buffer_t out = {0};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        assert_int_equal(tokenizer_encode(tokenizer, scratch, texts[i], strlen(texts[i]), 0, &tokens), QN_OK);
        out.length = 0;
        size_t bytes = 0;
        for (size_t j = 0; j < tokens.count; j++)
            bytes += tokenizer_token_bytes(tokenizer, tokens.ids[j], &out);
        assert_int_equal(bytes, strlen(texts[i]));
        assert_int_equal(out.length, bytes);
        assert_memory_equal(out.bytes, texts[i], bytes);
    }
    assert_int_equal(tokenizer_token_bytes(tokenizer, UINT32_MAX, &out), 0);
    text_buffer_fini(&out);
    tokenizer_tokens_fini(&tokens);
    tokenizer_scratch_close(&scratch);
    tokenizer_close(&tokenizer);
}

/* Byte fallback and Metaspace as in Llama 2: a leading space is a space, a byte token is its byte. */
static void test_token_bytes_of_a_fallback_vocabulary(void **state)
{
    (void)state;
    static const char json[] =
        "{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":null,\"post_processor\":null,"
        "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xe2\x96\x81\"},"
        "\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"
        "\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"unk_token\":\"<unk>\",\"vocab\":{\"<unk>\":0,\"<0xE2>\":1,"
        "\"\xe2\x96\x81hi\":2,\"hi\":3},\"merges\":[]}}";
    static const struct {
        uint32_t id;
        const char *expected;
    } rows[] = {{1, "\xe2"}, {2, " hi"}, {3, "hi"}};
    tokenizer_t *tokenizer;
    text_buffer_t out = {0};
    assert_int_equal(tokenizer_open_memory(&(tokenizer_files_t){.tokenizer = {json, sizeof json - 1}}, &tokenizer),
                     QN_OK);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        out.length = 0;
        assert_int_equal(tokenizer_token_bytes(tokenizer, rows[i].id, &out), strlen(rows[i].expected));
        assert_memory_equal(out.bytes, rows[i].expected, out.length);
    }
    text_buffer_fini(&out);
    tokenizer_close(&tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_token_bytes_concatenate_to_the_text),
        cmocka_unit_test(test_token_bytes_of_a_fallback_vocabulary),
    };
    return cmocka_run_group_tests_name("token_bytes", tests, NULL, NULL);
}
