/* The size of the KV cache, both sides of every bound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "services/compute/executor/scratch.h"
#include "services/memory/kv_size.h"

#define KIB UINT64_C(1024)

/* Blocks of 1 KiB and 16 tokens, up to 10 sequences of 100 tokens (7 blocks each), 1 MiB free: a quarter is 256
 * blocks. */
static kv_size_request_t plain(void)
{
    return (kv_size_request_t){
        .block_bytes = KIB, .block_tokens = 16, .max_model_len = 100, .max_sequences = 10, .free_bytes = 1024 * KIB};
}

static const struct {
    const char *what;
    kv_size_request_t change; /* fields that are not 0 replace those of plain() */
    qn_err_t err;
    uint32_t blocks, length;
} cases[] = {
    {"enough for all sequences", {0}, QN_OK, 70, 100},
    {"exactly a quarter of free memory", {.free_bytes = 4 * 70 * KIB}, QN_OK, 70, 100},
    {"a byte less than that", {.free_bytes = 4 * 70 * KIB - 1}, QN_OK, 69, 100},
    {"exactly one sequence", {.free_bytes = 4 * 7 * KIB}, QN_OK, 7, 100},
    {"less than one sequence: shorter ones", {.free_bytes = 4 * 6 * KIB}, QN_OK, 6, 96},
    {"less than one sequence of a length that was asked for",
     {.free_bytes = 4 * 6 * KIB, .max_model_len_asked = true},
     QN_ERR_CONFIG,
     0,
     0},
    {"one sequence of a length that was asked for",
     {.free_bytes = 4 * 7 * KIB, .max_model_len_asked = true},
     QN_OK,
     7,
     100},
    {"not one block", {.free_bytes = 4 * KIB - 1}, QN_ERR_CONFIG, 0, 0},
    {"asked: more than auto would take", {.asked_bytes = 1024 * KIB}, QN_OK, 1024, 100},
    {"asked: more than is free", {.asked_bytes = 1024 * KIB + 1}, QN_ERR_LIMIT, 0, 0},
    {"asked: a part of a block is left over", {.asked_bytes = 8 * KIB - 1}, QN_OK, 7, 100},
    {"asked: too little for a length nobody asked for", {.asked_bytes = 7 * KIB - 1}, QN_OK, 6, 96},
    {"asked: too little for one block", {.asked_bytes = KIB - 1}, QN_ERR_CONFIG, 0, 0},
    {"a length of whole blocks", {.max_model_len = 112}, QN_OK, 70, 112},
    {"a token more", {.max_model_len = 113}, QN_OK, 80, 113},
    {"block numbers end at 2^28",
     {.block_bytes = 1, .asked_bytes = UINT64_C(1) << 30, .free_bytes = UINT64_C(1) << 31},
     QN_OK,
     KV_SIZE_BLOCKS_MAX,
     100},
    {"device: all that is free, when the sequences need it", {.device = true, .free_bytes = 70 * KIB}, QN_OK, 70, 100},
    {"device: a byte less than that", {.device = true, .free_bytes = 70 * KIB - 1}, QN_OK, 69, 100},
    {"device: more than the sequences need", {.device = true}, QN_OK, 70, 100},
    {"device: what is kept back for compute is not free",
     {.device = true, .free_bytes = 80 * KIB, .reserve_bytes = 20 * KIB},
     QN_OK,
     60,
     100},
    {"device: all is kept back",
     {.device = true, .free_bytes = 80 * KIB, .reserve_bytes = 81 * KIB},
     QN_ERR_CONFIG,
     0,
     0},
    {"device: no region may be larger", {.device = true, .largest_bytes = 50 * KIB}, QN_OK, 50, 100},
    {"device: asked for all but what is kept back",
     {.device = true, .reserve_bytes = 24 * KIB, .asked_bytes = 1000 * KIB},
     QN_OK,
     1000,
     100},
    {"device: asked for a byte more",
     {.device = true, .reserve_bytes = 24 * KIB, .asked_bytes = 1000 * KIB + 1},
     QN_ERR_LIMIT,
     0,
     0},
    {"device: asked for the largest region",
     {.device = true, .largest_bytes = 500 * KIB, .asked_bytes = 500 * KIB},
     QN_OK,
     500,
     100},
    {"device: asked for a byte more than that",
     {.device = true, .largest_bytes = 500 * KIB, .asked_bytes = 500 * KIB + 1},
     QN_ERR_LIMIT,
     0,
     0},
};

static void test_kv_size_cases(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kv_size_request_t request = plain();
        const kv_size_request_t *change = &cases[i].change;
        kv_size_t size = {0};
        if (change->block_bytes) request.block_bytes = change->block_bytes;
        if (change->max_model_len) request.max_model_len = change->max_model_len;
        if (change->free_bytes) request.free_bytes = change->free_bytes;
        request.max_model_len_asked = change->max_model_len_asked;
        request.asked_bytes = change->asked_bytes;
        request.device = change->device;
        request.reserve_bytes = change->reserve_bytes;
        request.largest_bytes = change->largest_bytes;
        qn_err_t err = kv_size_decide(&request, &size);
        if (err != cases[i].err || size.block_count != cases[i].blocks || size.max_model_len != cases[i].length)
            fail_msg("%s: %d, %u blocks, length %u", cases[i].what, err, size.block_count, size.max_model_len);
        assert_true(size.bytes == size.block_count * request.block_bytes);
    }
}

/* Shapes of published models: what compute really reserves fits into what is kept back for it, beside a context, and
 * that is not out of all proportion. */
static const qn_model_config_t published[] = {
    {.layers = 16,
     .hidden = 2048,
     .heads = 32,
     .kv_heads = 8,
     .head_dim = 64,
     .intermediate = 8192,
     .vocab = 128256,
     .max_positions = 131072,
     .gated_mlp = true},
    {.layers = 32,
     .hidden = 4096,
     .heads = 32,
     .kv_heads = 8,
     .head_dim = 128,
     .intermediate = 14336,
     .vocab = 128256,
     .max_positions = 131072,
     .gated_mlp = true},
    {.layers = 42,
     .hidden = 3584,
     .heads = 16,
     .kv_heads = 8,
     .head_dim = 256,
     .intermediate = 14336,
     .vocab = 256000,
     .max_positions = 8192,
     .gated_mlp = true},
    {.layers = 32,
     .hidden = 4096,
     .heads = 32,
     .kv_heads = 8,
     .head_dim = 128,
     .vocab = 32000,
     .max_positions = 32768,
     .experts = 8,
     .experts_per_token = 2,
     .expert_intermediate = 14336,
     .gated_mlp = true,
     .layer_is_sparse = {true}},
    {.layers = 48,
     .hidden = 2048,
     .heads = 32,
     .kv_heads = 4,
     .head_dim = 128,
     .vocab = 151936,
     .max_positions = 40960,
     .experts = 128,
     .experts_per_token = 8,
     .expert_intermediate = 768,
     .gated_mlp = true,
     .layer_is_sparse = {true}},
};

static void test_kv_size_keeps_back_what_compute_reserves(void **state)
{
    (void)state;
    static const struct {
        uint32_t tokens, sequences;
    } steps[] = {{512, 64}, {8192, 256}, {16384, 1024}};
    const uint64_t context = UINT64_C(1) << 30;
    for (size_t i = 0; i < sizeof published / sizeof *published * 3; i++) {
        const qn_model_config_t *config = &published[i / 3];
        uint32_t tokens = steps[i % 3].tokens, sequences = steps[i % 3].sequences;
        step_limits_t limits = step_limits_make(sequences, tokens, config->max_positions, 16, 100000, config->vocab);
        limits.logit_rows = sequences;
        scratch_sizes_t sizes;
        assert_int_equal(scratch_measure(config, &limits, &sizes), QN_OK);
        uint64_t reserved = sizes.activations_bytes + sizes.state_bytes + sizes.step_io_bytes;
        uint64_t kept = kv_size_compute_bytes(config, tokens, sequences);
        if (kept < context + reserved || kept > 3 * context + 2 * reserved)
            fail_msg("model %zu, %u tokens: %llu for %llu", i / 3, tokens, (unsigned long long)kept,
                     (unsigned long long)reserved);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kv_size_cases),
                                       cmocka_unit_test(test_kv_size_keeps_back_what_compute_reserves)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
