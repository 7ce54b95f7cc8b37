/* Units of services/tokenizer/split/unicode_classes.c and byte_level.c: classes of chosen characters, UTF-8 both ways. */
#include "tests/unit/tokenizer_case.h"

#include "services/tokenizer/bpe/byte_level.h"

static void test_unicode_classes_chosen_characters(void **state)
{
    (void)state;
    static const struct {
        uint32_t code;
        unsigned mask;
    } table[] = {
        {'A', UNICODE_UPPER | UNICODE_WORD},
        {'a', UNICODE_LOWER | UNICODE_WORD},
        {'7', UNICODE_NUMBER | UNICODE_WORD},
        {'_', UNICODE_PUNCTUATION | UNICODE_WORD},
        {'$', 0},
        {' ', UNICODE_SPACE},
        {0, 0},
        {0x85, UNICODE_SPACE},
        {0xA0, UNICODE_SPACE},
        {0x180E, 0},                                  /* a format character since Unicode 6.3 */
        {0x1C5, UNICODE_UPPER | UNICODE_WORD},        /* title case */
        {0x2B0, UNICODE_OTHER_LETTER | UNICODE_WORD}, /* modifier letter */
        {0x301, UNICODE_MARK | UNICODE_WORD | UNICODE_NFC_UNSAFE | UNICODE_JOINS_BEFORE},
        {0xBD, UNICODE_NUMBER},
        {0x2167, UNICODE_NUMBER | UNICODE_WORD},
        {0x24B6, UNICODE_WORD}, /* alphabetic symbol */
        {0x1161, UNICODE_OTHER_LETTER | UNICODE_WORD | UNICODE_NFC_UNSAFE | UNICODE_JOINS_BEFORE},
        {0x2126, UNICODE_UPPER | UNICODE_WORD | UNICODE_NFC_UNSAFE},
        {0xFF9E, UNICODE_OTHER_LETTER | UNICODE_WORD | UNICODE_JOINS_BEFORE},
        {0x4E00, UNICODE_OTHER_LETTER | UNICODE_WORD},
        {0x10FFFF, 0},
    };
    unicode_classes_t classes;
    unicode_classes_init(&classes);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (unicode_class(&classes, table[i].code) != table[i].mask)
            fail_msg("U+%04X: %x, expected %x", table[i].code, unicode_class(&classes, table[i].code), table[i].mask);
    assert_int_equal(classes.bytes['A'], UNICODE_UPPER | UNICODE_WORD);
    assert_int_equal(classes.bytes[0x80], UNICODE_NOT_ASCII);
    unicode_classes_fini(&classes);
}

static void test_unicode_classes_every_scalar_value_round_trips(void **state)
{
    (void)state;
    for (uint32_t code = 0; code < UNICODE_CODE_POINTS; code++) {
        uint8_t bytes[4];
        unsigned size = unicode_encode(code, bytes), bad, decoded;
        bool is_surrogate = code >= 0xD800 && code <= 0xDFFF;
        assert_int_equal(unicode_check(bytes, size, &bad), is_surrogate ? 0 : size);
        if (is_surrogate) continue;
        assert_int_equal(unicode_decode(bytes, &decoded), code);
        assert_int_equal(decoded, size);
        assert_int_equal(unicode_lead_bytes(bytes[0]), size);
        for (unsigned cut = 1; cut < size; cut++) {
            assert_int_equal(unicode_check(bytes, cut, &bad), 0);
            assert_int_equal(bad, 0);
        }
    }
}

static void test_unicode_classes_ill_formed_subparts(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t valid;
        unsigned bad; /* of what stands after the valid prefix; 0: a proper prefix of a character */
    } table[] = {
        {"abc\x80", 3, 1},
        {"\xC0\x80", 0, 1},
        {"\xC1\xBF", 0, 1},
        {"\xE0\x80\x80", 0, 1},
        {"\xE0\xA0", 0, 0},
        {"\xE0\xA0"
         "a",
         0, 2},
        {"\xED\xA0\x80", 0, 1},
        {"\xF0\x90\x80", 0, 0},
        {"\xF0\x90\x80"
         "a",
         0, 3},
        {"\xF0\x80\x80\x80", 0, 1},
        {"\xF4\x90\x80\x80", 0, 1},
        {"\xF5\x80\x80\x80", 0, 1},
        {"0123456789\xC3\xA9xyz\xC3", 15, 0},
        {"01234567ab\x80"
         "cdefghijkl",
         10, 1},
        {"0\xE3\x81\x82"
         "1234567890abc\xFF"
         "defghij",
         17, 1},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const uint8_t *bytes = (const uint8_t *)table[i].bytes;
        size_t length = strlen(table[i].bytes);
        unsigned bad = 9;
        assert_int_equal(unicode_valid_prefix(bytes, length), table[i].valid);
        assert_int_equal(unicode_check(bytes + table[i].valid, length - table[i].valid, &bad), 0);
        assert_int_equal(bad, table[i].bad);
    }
}

static void test_byte_level_every_byte_round_trips(void **state)
{
    (void)state;
    text_buffer_t out = {0};
    for (unsigned byte = 0; byte < 256; byte++) {
        uint8_t piece[4];
        out.length = 0;
        assert_int_equal(byte_level_byte(byte_level_character((uint8_t)byte)), byte);
        assert_true(byte_level_map(piece, unicode_encode(byte_level_character((uint8_t)byte), piece), &out));
        assert_int_equal(out.length, 1);
        assert_int_equal(out.bytes[0], byte);
    }
    assert_int_equal(byte_level_character(' '), 0x120);
    assert_int_equal(byte_level_byte(0x144), -1);
    assert_int_equal(byte_level_byte(' '), -1);
    out.length = 0;
    assert_false(byte_level_map((const uint8_t *)"a b", 3, &out)); /* one unmapped character: as it is */
    assert_memory_equal(out.bytes, "a b", 3);
    text_buffer_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unicode_classes_chosen_characters),
        cmocka_unit_test(test_unicode_classes_every_scalar_value_round_trips),
        cmocka_unit_test(test_unicode_classes_ill_formed_subparts),
        cmocka_unit_test(test_byte_level_every_byte_round_trips),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
