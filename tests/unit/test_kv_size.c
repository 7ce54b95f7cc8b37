/* The size of the KV cache, both sides of every bound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "services/memory/kv_size.h"

#define KIB UINT64_C(1024)

/* Blocks of 1 KiB and 16 tokens, up to 10 sequences of 100 tokens (7 blocks each), 1 MiB free: a quarter is 256
 * blocks. */
static kv_size_request_t plain(void)
{
    return (kv_size_request_t){ .block_bytes = KIB, .block_tokens = 16, .max_model_len = 100, .max_sequences = 10,
                                .free_bytes = 1024 * KIB };
}

static const struct {
    const char *what;
    kv_size_request_t change;  /* fields that are not 0 replace those of plain() */
    qn_err_t err;
    uint32_t blocks, length;
} cases[] = {
    { "enough for all sequences", { 0 }, QN_OK, 70, 100 },
    { "exactly a quarter of free memory", { .free_bytes = 4 * 70 * KIB }, QN_OK, 70, 100 },
    { "a byte less than that", { .free_bytes = 4 * 70 * KIB - 1 }, QN_OK, 69, 100 },
    { "exactly one sequence", { .free_bytes = 4 * 7 * KIB }, QN_OK, 7, 100 },
    { "less than one sequence: shorter ones", { .free_bytes = 4 * 6 * KIB }, QN_OK, 6, 96 },
    { "less than one sequence of a length that was asked for",
      { .free_bytes = 4 * 6 * KIB, .max_model_len_asked = true }, QN_ERR_CONFIG, 0, 0 },
    { "one sequence of a length that was asked for",
      { .free_bytes = 4 * 7 * KIB, .max_model_len_asked = true }, QN_OK, 7, 100 },
    { "not one block", { .free_bytes = 4 * KIB - 1 }, QN_ERR_CONFIG, 0, 0 },
    { "asked: more than auto would take", { .asked_bytes = 1024 * KIB }, QN_OK, 1024, 100 },
    { "asked: more than is free", { .asked_bytes = 1024 * KIB + 1 }, QN_ERR_LIMIT, 0, 0 },
    { "asked: a part of a block is left over", { .asked_bytes = 8 * KIB - 1 }, QN_OK, 7, 100 },
    { "asked: too little for a length nobody asked for", { .asked_bytes = 7 * KIB - 1 }, QN_OK, 6, 96 },
    { "asked: too little for one block", { .asked_bytes = KIB - 1 }, QN_ERR_CONFIG, 0, 0 },
    { "a length of whole blocks", { .max_model_len = 112 }, QN_OK, 70, 112 },
    { "a token more", { .max_model_len = 113 }, QN_OK, 80, 113 },
    { "block numbers end at 2^28",
      { .block_bytes = 1, .asked_bytes = UINT64_C(1) << 30, .free_bytes = UINT64_C(1) << 31 },
      QN_OK, KV_SIZE_BLOCKS_MAX, 100 },
};

static void test_kv_size_cases(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kv_size_request_t request = plain();
        const kv_size_request_t *change = &cases[i].change;
        kv_size_t size = { 0 };
        if (change->block_bytes) request.block_bytes = change->block_bytes;
        if (change->max_model_len) request.max_model_len = change->max_model_len;
        if (change->free_bytes) request.free_bytes = change->free_bytes;
        request.max_model_len_asked = change->max_model_len_asked;
        request.asked_bytes = change->asked_bytes;
        qn_err_t err = kv_size_decide(&request, &size);
        if (err != cases[i].err || size.block_count != cases[i].blocks || size.max_model_len != cases[i].length)
            fail_msg("%s: %d, %u blocks, length %u", cases[i].what, err, size.block_count, size.max_model_len);
        assert_true(size.bytes == size.block_count * request.block_bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_kv_size_cases) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
