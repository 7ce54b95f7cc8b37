#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "common/checksum.h"

static void test_checksum_crc32c_known_answers(void **state)
{
    (void)state;
    uint8_t zeros[32] = {0};
    assert_int_equal(qn_crc32c(0, "123456789", 9), 0xe3069283u);
    assert_int_equal(qn_crc32c(0, zeros, 32), 0x8a9136aau); /* RFC 3720, B.4 */
    assert_int_equal(qn_crc32c(qn_crc32c(0, "1234", 4), "56789", 5), 0xe3069283u);
}

static void test_checksum_fingerprint_known_answers(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t seed, hash;
    } known[] = {
        {"", 0, 0xef46db3751d8e999u},           {"a", 0, 0xd24ec4f1a98c6e5bu},
        {"abc", 0, 0x44bc2cf5ad770999u},        {"Nobody inspects the spammish repetition", 0, 0xfbcea83c8a378bf1u},
        {"", 2654435761u, 0xac75fda2929b17efu},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_true(qn_fingerprint(known[i].text, strlen(known[i].text), known[i].seed) == known[i].hash);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checksum_crc32c_known_answers),
        cmocka_unit_test(test_checksum_fingerprint_known_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
