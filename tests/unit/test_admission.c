/* Units of services/scheduler/planner/admission.c: both sides of each limit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "services/scheduler/planner/admission.h"

static const admission_model_t model = {.vocab_size = 100, .max_model_len = 32, .pool_tokens = 1000};

static void test_admission_lengths_clip_or_refuse(void **state)
{
    (void)state;
    static const struct {
        uint32_t prompt, max_tokens, pool;
        bool accepted;
        uint32_t generated_max;
    } table[] = {
        {1, 1, 1000, true, 1},  {1, 31, 1000, true, 31}, {1, 32, 1000, true, 31}, {31, 1, 1000, true, 1},
        {31, 9, 1000, true, 1}, {32, 1, 1000, false, 0}, {32, 0, 1000, true, 0},  {33, 0, 1000, false, 0},
        {16, 100, 16, true, 1}, {16, 100, 20, true, 5},  {17, 1, 16, false, 0},   {16, 100, 1000, true, 16},
    };
    uint32_t ids[64] = {0};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        admission_model_t limits = model;
        limits.pool_tokens = table[i].pool;
        ledger_submission_t submission = {.prompt_ids = ids,
                                          .prompt_tokens = table[i].prompt,
                                          .sampling.max_tokens = table[i].max_tokens};
        uint32_t generated_max = 0;
        admission_refusal_t refusal = {0};
        bool accepted = admission_check(&limits, &submission, &generated_max, &refusal);
        assert_int_equal(accepted, table[i].accepted);
        assert_int_equal(generated_max, table[i].generated_max);
        if (accepted) continue;
        assert_int_equal(refusal.status, 400);
        assert_string_equal(refusal.param, "prompt");
        assert_int_equal(refusal.retry_after_ms, 0);
    }
}

static void test_admission_ids_outside_the_vocabulary_name_the_field(void **state)
{
    (void)state;
    uint32_t good[2] = {0, 99}, bad[2] = {5, 100};
    request_bias_t bias = {.id = 100}, allowed = {.id = 99};
    const struct {
        ledger_submission_t submission;
        const char *param;
    } table[] = {
        {{.prompt_ids = good, .prompt_tokens = 2, .stop_ids = good, .stop_count = 2, .bias = &allowed, .bias_count = 1},
         NULL},
        {{.prompt_ids = bad, .prompt_tokens = 2}, "prompt"},
        {{.prompt_ids = good, .prompt_tokens = 2, .stop_ids = bad, .stop_count = 2}, "stop_token_ids"},
        {{.prompt_ids = good, .prompt_tokens = 2, .bias = &bias, .bias_count = 1}, "logit_bias"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        uint32_t generated_max;
        admission_refusal_t refusal;
        bool accepted = admission_check(&model, &table[i].submission, &generated_max, &refusal);
        assert_int_equal(accepted, table[i].param == NULL);
        if (!accepted) assert_string_equal(refusal.param, table[i].param);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_admission_lengths_clip_or_refuse),
        cmocka_unit_test(test_admission_ids_outside_the_vocabulary_name_the_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
