/* Units of services/tokenizer/decode/detokenizer.c and decoder.c: every decoder, whole and cut after every token. */
#include "tests/unit/tokenizer_case.h"

/* Ids 0.. in the order written. "Ġ" is the byte-level space, Ã Å Ã the bytes C3 .. of two-byte characters. */
static const char vocab[] =
    "{\"<s>\":0,\"</s>\":1,\"a\":2,\"Ġb\":3,\"Ã\":4,\"©\":5,\"â\":6,\"Ĥ\":7,\"¬\":8,\"▁x\":9,\"▁\":10,"
    "\"<0xC3>\":11,\"<0xA9>\":12,\"<0xFF>\":13,\"<0x41>\":14,\"lo</w>\":15,\"日\":16,\" \":17,\"aa\":18,"
    "\"<0x+F>\":19,\"ab\":20,\"ð\":21}";
static const char added[] = "[{\"id\":0,\"content\":\"<s>\",\"special\":true,\"normalized\":false},"
                            "{\"id\":1,\"content\":\"</s>\",\"special\":true,\"normalized\":false}]";

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true}"
#define LLAMA2                                                                                   \
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"▁\"}," \
    "\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"                        \
    "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}"
#define METASPACE(scheme) \
    "{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"" scheme "\",\"split\":true}"
#define AFTER_FUSE(stage) "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"}," stage "]}"
#define REPLACE(kind, pattern, content) \
    "{\"type\":\"Replace\",\"pattern\":{\"" kind "\":\"" pattern "\"},\"content\":\"" content "\"}"
#define STRIP(start, stop) "{\"type\":\"Strip\",\"content\":\"a\",\"start\":" start ",\"stop\":" stop "}"

typedef struct {
    const char *decoder;
    uint32_t ids[8];
    size_t count;
    const char *text;
    unsigned flags;
} row_t;

static const row_t rows[] = {
    {NULL, {2, 3, 2}, 3, "a Ġb a", 0},
    {NULL, {0, 2}, 2, "a", TOKENIZER_SKIP_SPECIAL},
    {BYTE_LEVEL, {2, 3}, 2, "a b", 0},
    {BYTE_LEVEL, {4, 5}, 2, "é", 0},
    {BYTE_LEVEL, {6, 7, 8, 2}, 4, "€a", 0},
    {BYTE_LEVEL,
     {4, 2},
     2,
     "\xEF\xBF\xBD"
     "a",
     0},
    {BYTE_LEVEL, {6, 7}, 2, "\xEF\xBF\xBD", 0},
    {BYTE_LEVEL, {5}, 1, "\xEF\xBF\xBD", 0},
    {BYTE_LEVEL, {6, 6, 7, 8}, 4, "\xEF\xBF\xBD€", 0},
    {BYTE_LEVEL, {21, 5}, 2, "\xEF\xBF\xBD", 0}, /* one subpart of a character */
    {BYTE_LEVEL, {21, 4}, 2, "\xEF\xBF\xBD\xEF\xBF\xBD", 0},
    {BYTE_LEVEL, {0, 2, 16, 1}, 4, "<s>a日</s>", 0},
    {BYTE_LEVEL, {0, 2, 1, 999}, 4, "a", TOKENIZER_SKIP_SPECIAL},
    {LLAMA2, {9, 9}, 2, "x x", 0},
    {LLAMA2, {10, 10, 9}, 3, "  x", 0},
    {LLAMA2, {9, 11, 12, 2}, 4, "xéa", 0},
    {LLAMA2, {9, 11, 12}, 3, "xé", 0},
    {LLAMA2, {9, 11}, 2, "x\xEF\xBF\xBD", 0},
    {LLAMA2,
     {14, 14, 13, 14, 2},
     5,
     "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"
     "a",
     0}, /* one bad byte spoils the run */
    {LLAMA2, {14, 2, 13}, 3, "Aa\xEF\xBF\xBD", 0},
    {LLAMA2, {19}, 1, "\x0F", 0},
    {LLAMA2, {0, 9}, 2, "x", TOKENIZER_SKIP_SPECIAL},
    {METASPACE("always"), {9, 9}, 2, "x x", 0},
    {METASPACE("first"), {10, 9}, 2, " x", 0},
    {METASPACE("never"), {9, 9}, 2, " x x", 0},
    {"{\"type\":\"BPEDecoder\",\"suffix\":\"</w>\"}", {2, 15, 15}, 3, "alo lo", 0},
    {"{\"type\":\"BPEDecoder\",\"suffix\":\"</w>\"}", {2}, 0, "", 0},
    {STRIP("1", "1"), {18, 2, 20}, 3, "b", 0},
    {AFTER_FUSE(STRIP("1", "2")), {18, 20, 20, 2, 18}, 5, "aababa", 0},
    {AFTER_FUSE(STRIP("9", "9")), {18, 18}, 2, "", 0},
    {AFTER_FUSE(REPLACE("String", "aba", "_")), {20, 20, 20, 2}, 4, "_b_", 0},
    {AFTER_FUSE(REPLACE("String", "aab", "_")), {18, 18, 20, 18, 20}, 5, "aaa_a_", 0},
    {AFTER_FUSE(REPLACE("Regex", "a+", "_")), {18, 18, 20, 2}, 4, "_b_", 0},
    {REPLACE("Regex", "a+", "_"), {18, 18, 20}, 3, "___b", 0},
    {AFTER_FUSE("{\"type\":\"ByteFallback\"}"), {14}, 1, "A", 0},
    {AFTER_FUSE("{\"type\":\"ByteFallback\"}"), {14, 2}, 2, "<0x41>a", 0},
    {AFTER_FUSE(BYTE_LEVEL), {4, 5, 3}, 3, "é b", 0},
    {AFTER_FUSE(BYTE_LEVEL), {4, 16}, 2, "Ã日", 0}, /* one unmapped character: all stays */
};

static tokenizer_t *open_row(const row_t *row)
{
    return case_opened((case_json_t){.vocab = vocab, .added_tokens = added, .decoder = row->decoder});
}

static void assert_text(const row_t *row, size_t index, const text_buffer_t *text)
{
    bool is_same =
        text->length == strlen(row->text) && (!text->length || !memcmp(text->bytes, row->text, text->length));
    if (!is_same)
        fail_msg("row %zu: \"%.*s\", expected \"%s\"", index, (int)text->length, (const char *)text->bytes, row->text);
}

static void test_detokenizer_whole_equals_expected(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tokenizer_t *t = open_row(&rows[i]);
        text_buffer_t text = {0};
        tokenizer_decode(t, rows[i].ids, rows[i].count, rows[i].flags, &text);
        assert_text(&rows[i], i, &text);
        text_buffer_fini(&text);
        tokenizer_close(&t);
    }
}

/* Every push releases whole characters; one that is primed with a prompt goes on where its text ends. */
static void check_cut(const tokenizer_t *t, const uint32_t *ids, size_t count, size_t cut, unsigned flags,
                      text_buffer_t *text)
{
    detokenizer_t prompt, answer;
    text_buffer_t work = {0};
    text->length = 0;
    detokenizer_init(&prompt, t, flags);
    for (size_t k = 0; k < cut; k++) {
        detokenizer_push(&prompt, ids[k], text);
        assert_int_equal(unicode_valid_prefix(text->bytes, text->length), text->length);
    }
    size_t before = text->length;
    detokenizer_init(&answer, t, flags);
    detokenizer_prime(&answer, ids, cut, &work);
    assert_int_equal(answer.byte_count, 0);
    for (size_t k = cut; k < count; k++)
        detokenizer_push(&answer, ids[k], text);
    detokenizer_flush(&answer, text);
    assert_int_equal(answer.byte_count, text->length - before);
    detokenizer_fini(&prompt);
    detokenizer_fini(&answer);
    text_buffer_fini(&work);
}

static void test_detokenizer_every_cut_equals_whole(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tokenizer_t *t = open_row(&rows[i]);
        text_buffer_t text = {0};
        for (size_t cut = 0; cut <= rows[i].count; cut++) {
            check_cut(t, rows[i].ids, rows[i].count, cut, rows[i].flags, &text);
            assert_text(&rows[i], i, &text);
        }
        text_buffer_fini(&text);
        tokenizer_close(&t);
    }
}

/* An id of one of the kinds that meet at seams: bytes, special tokens, spaces, anything. */
static uint32_t random_id(const tokenizer_t *t, uint64_t *seed)
{
    *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
    uint32_t draw = (uint32_t)(*seed >> 33), limit = tokenizer_id_limit(t);
    switch (draw % 4) {
    case 0: return draw / 4 % 4;              /* special ones */
    case 1: return draw / 4 % 260 % limit;    /* single bytes */
    case 2: return limit - 1 - draw / 4 % 16; /* added ones */
    default: return draw / 4 % (limit + 2);   /* some name no token */
    }
}

/* Prompt and answer together are what the whole sequence is, wherever it is cut. */
static void test_detokenizer_random_cuts_equal_whole(void **state)
{
    (void)state;
    static const char *const paths[] = {"deploy/models/default", "tests/golden/tokenizers/llama2like.tokenizer.json",
                                        "tests/golden/tokenizers/gpt2.tokenizer.json"};
    uint64_t seed = 20;
    for (size_t p = 0; p < sizeof paths / sizeof *paths; p++) {
        tokenizer_t *t = NULL;
        assert_int_equal(tokenizer_open(paths[p], &t), QN_OK);
        text_buffer_t whole = {0}, text = {0};
        for (int round = 0; round < 2000; round++) {
            uint32_t ids[24];
            unsigned flags = round % 2 ? TOKENIZER_SKIP_SPECIAL : 0;
            size_t count = 1 + (size_t)round % 24;
            for (size_t i = 0; i < count; i++)
                ids[i] = random_id(t, &seed);
            whole.length = 0;
            tokenizer_decode(t, ids, count, flags, &whole);
            size_t cut = (size_t)(seed >> 40) % (count + 1);
            check_cut(t, ids, count, cut, flags, &text);
            if (text.length != whole.length || (whole.length && memcmp(text.bytes, whole.bytes, whole.length) != 0))
                fail_msg("%s, round %d, cut %zu of %zu: \"%.*s\", expected \"%.*s\"", paths[p], round, cut, count,
                         (int)text.length, (const char *)text.bytes, (int)whole.length, (const char *)whole.bytes);
        }
        text_buffer_fini(&whole);
        text_buffer_fini(&text);
        tokenizer_close(&t);
    }
}

static void test_detokenizer_half_character_is_held(void **state)
{
    (void)state;
    tokenizer_t *t = open_row(&(row_t){.decoder = BYTE_LEVEL});
    detokenizer_t d;
    text_buffer_t text = {0};
    detokenizer_init(&d, t, 0);
    assert_int_equal(detokenizer_push(&d, 2, &text), 1);
    assert_int_equal(detokenizer_push(&d, 6, &text), 0);
    assert_int_equal(detokenizer_push(&d, 7, &text), 0);
    assert_int_equal(detokenizer_push(&d, 8, &text), 3);
    assert_int_equal(detokenizer_push(&d, 4, &text), 0);
    assert_int_equal(detokenizer_flush(&d, &text), 3);
    assert_int_equal(d.byte_count, 7);
    assert_int_equal(d.token_count, 5);
    detokenizer_fini(&d);
    text_buffer_fini(&text);
    tokenizer_close(&t);
}

static void test_detokenizer_fallback_run_is_held_until_it_ends(void **state)
{
    (void)state;
    tokenizer_t *t = open_row(&(row_t){.decoder = LLAMA2});
    detokenizer_t d;
    text_buffer_t text = {0};
    detokenizer_init(&d, t, 0);
    assert_int_equal(detokenizer_push(&d, 9, &text), 1);
    assert_int_equal(detokenizer_push(&d, 11, &text), 0);
    assert_int_equal(detokenizer_push(&d, 12, &text), 0);
    assert_int_equal(detokenizer_push(&d, 2, &text), 3); /* é and a */
    assert_int_equal(detokenizer_push(&d, 14, &text), 0);
    assert_int_equal(detokenizer_push(&d, 13, &text), 6); /* now it is lost, and so is what follows */
    assert_int_equal(detokenizer_push(&d, 14, &text), 3);
    detokenizer_fini(&d);
    text_buffer_fini(&text);
    tokenizer_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_detokenizer_whole_equals_expected),
        cmocka_unit_test(test_detokenizer_every_cut_equals_whole),
        cmocka_unit_test(test_detokenizer_random_cuts_equal_whole),
        cmocka_unit_test(test_detokenizer_half_character_is_held),
        cmocka_unit_test(test_detokenizer_fallback_run_is_held_until_it_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
