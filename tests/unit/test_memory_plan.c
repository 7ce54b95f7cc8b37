/* Units of services/memory/plan.c: what fits, what is missing, tiers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "services/memory/plan.h"

static const memory_plan_request_t base = {.device_bytes = 1000,
                                           .weights_bytes = 300,
                                           .activations_bytes = 100,
                                           .block_bytes = 10,
                                           .block_tokens = 4,
                                           .max_model_len = 41,
                                           .sequence_tokens = 9};

static void test_memory_plan_both_sides_of_each_limit(void **state)
{
    (void)state;
    static const struct {
        uint64_t device, kv;
        bool fits;
        uint64_t missing, blocks, longest, sequences;
    } table[] = {
        {1000, 0, true, 0, 60, 41, 20}, /* all that is left; 41 tokens take 11 blocks, 9 take 3 */
        {1000, 110, true, 0, 11, 41, 3},  {1000, 109, false, 10, 10, 40, 3}, /* of 109 bytes 10 blocks come */
        {1000, 600, true, 0, 60, 41, 20}, {1000, 601, false, 1, 60, 41, 20}, {510, 0, true, 0, 11, 41, 3},
        {509, 0, false, 1, 10, 40, 3},    {399, 0, false, 111, 0, 0, 0},     {0, 0, false, 510, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        memory_plan_request_t request = base;
        memory_plan_t plan;
        request.device_bytes = table[i].device;
        request.kv_bytes = table[i].kv;
        memory_plan_decide(&request, &plan);
        assert_int_equal(plan.fits, table[i].fits);
        assert_int_equal(plan.missing_bytes, table[i].missing);
        assert_int_equal(plan.block_count, table[i].blocks);
        assert_int_equal(plan.longest_tokens, table[i].longest);
        assert_int_equal(plan.sequences, table[i].sequences);
        assert_true(strlen(plan.reason) > 10);
    }
}

static void test_memory_plan_tiers_hold_whole_blocks(void **state)
{
    (void)state;
    memory_plan_request_t request = base;
    memory_plan_t plan;
    request.tier_count = 2;
    request.tier_bytes[0] = 29;
    request.tier_bytes[1] = 65;
    memory_plan_decide(&request, &plan);
    assert_int_equal(plan.tier_blocks[0], 2);
    assert_int_equal(plan.tier_sequences[0], 0);
    assert_int_equal(plan.tier_blocks[1], 6);
    assert_int_equal(plan.tier_sequences[1], 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_plan_both_sides_of_each_limit),
        cmocka_unit_test(test_memory_plan_tiers_hold_whole_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
