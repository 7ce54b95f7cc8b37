/* The slot book: a correct conversation passes; every broken rule is refused with the field at fault and changes
 * nothing. Limits: 4 slots, 8 tokens a step, sequences of 20, blocks of 4 (so tables of 5), 10 blocks, a vocabulary of
 * 50. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "services/compute/slot_book.h"

static const step_sampling_t PLAIN = {.top_p = 1, .repetition_penalty = 1};

static slot_book_t *make_book(void)
{
    step_limits_t limits = step_limits_make(4, 8, 20, 4, 10, 50);
    slot_book_t *book = NULL;
    assert_int_equal(slot_book_create(&limits, &book), QN_OK);
    return book;
}

static const uint32_t IDS[32] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

/* Slot 1: prompt of 6, two blocks; runs 5 tokens, then the last with a sample. */
static void start(slot_book_t *book)
{
    const char *param;
    step_set_t set = {.request = 9, .slot = 1, .prompt_tokens = 6, .sampling = PLAIN};
    qn_table_entry_t blocks[] = {{1, 0, 7}, {1, 1, 2}};
    step_run_t run = {.slot = 1, .tokens = 5};
    step_plan_t plan = {.sets = &set,
                        .set_count = 1,
                        .blocks = blocks,
                        .block_count = 2,
                        .runs = &run,
                        .run_count = 1,
                        .ids = IDS,
                        .id_count = 5};
    assert_int_equal(slot_book_admit(book, &plan, &param), QN_OK);
    run = (step_run_t){.slot = 1, .position = 5, .tokens = 1, .sample = true};
    plan = (step_plan_t){.runs = &run, .run_count = 1, .ids = IDS, .id_count = 1};
    assert_int_equal(slot_book_admit(book, &plan, &param), QN_OK);
    assert_int_equal(slot_book_used(book), 1);
}

static void test_slot_book_a_whole_life_is_admitted(void **state)
{
    (void)state;
    const char *param;
    slot_book_t *book = make_book();
    start(book);
    step_run_t run = {.slot = 1, .position = 6, .tokens = 1, .from_slot = true, .sample = true};
    step_plan_t plan = {.runs = &run, .run_count = 1};
    assert_int_equal(slot_book_admit(book, &plan, &param), QN_OK);
    run.position = 7;
    assert_int_equal(slot_book_admit(book, &plan, &param), QN_OK);
    /* Position 8 needs the third block, which comes in the same plan. */
    qn_table_entry_t third = {1, 2, 9};
    run.position = 8;
    plan.blocks = &third, plan.block_count = 1;
    assert_int_equal(slot_book_admit(book, &plan, &param), QN_OK);
    /* Retired and set again at once. */
    uint32_t retire = 1;
    step_set_t set = {.request = 10, .slot = 1, .prompt_tokens = 20, .sampling = PLAIN};
    step_plan_t again = {.retire = &retire, .retire_count = 1, .sets = &set, .set_count = 1};
    assert_int_equal(slot_book_admit(book, &again, &param), QN_OK);
    assert_int_equal(slot_book_used(book), 1);
    step_plan_t end = {.retire = &retire, .retire_count = 1};
    assert_int_equal(slot_book_admit(book, &end, &param), QN_OK);
    assert_int_equal(slot_book_used(book), 0);
    slot_book_destroy(&book);
    assert_null(book);
}

static void test_slot_book_a_prefix_hit_may_begin_anywhere(void **state)
{
    (void)state;
    const char *param;
    slot_book_t *book = make_book();
    step_set_t set = {.slot = 0, .prompt_tokens = 10, .sampling = PLAIN, .history_offset = 0, .history_count = 8};
    qn_table_entry_t blocks[] = {{0, 0, 1}, {0, 1, 2}, {0, 2, 3}};
    step_run_t run = {.slot = 0, .position = 8, .tokens = 2, .ids_offset = 8, .sample = true};
    step_plan_t plan = {.sets = &set,
                        .set_count = 1,
                        .blocks = blocks,
                        .block_count = 3,
                        .runs = &run,
                        .run_count = 1,
                        .ids = IDS,
                        .id_count = 10};
    assert_int_equal(slot_book_admit(book, &plan, &param), QN_OK);
    slot_book_destroy(&book);
}

/* A plan that would pass, for the rows below to break. */
typedef struct {
    uint32_t retire[5], ids[40], stop_ids[40];
    step_set_t sets[5];
    qn_table_entry_t blocks[8];
    qn_copy_t copies[2];
    step_run_t runs[5];
    qn_bias_entry_t bias[2];
    step_plan_t plan;
} draft_t;

static void make_draft(draft_t *d)
{
    memset(d, 0, sizeof *d);
    d->sets[0] = (step_set_t){
        .slot = 2, .prompt_tokens = 4, .sampling = PLAIN, .stop_count = 1, .bias_count = 1, .history_count = 1};
    d->blocks[0] = (qn_table_entry_t){2, 0, 3};
    d->runs[0] = (step_run_t){.slot = 1, .position = 6, .tokens = 1, .from_slot = true, .sample = true};
    d->runs[1] = (step_run_t){.slot = 2, .tokens = 4, .ids_offset = 1};
    d->plan = (step_plan_t){.retire = d->retire,
                            .sets = d->sets,
                            .set_count = 1,
                            .blocks = d->blocks,
                            .block_count = 1,
                            .copies = d->copies,
                            .copy_count = 1,
                            .runs = d->runs,
                            .run_count = 2,
                            .ids = d->ids,
                            .id_count = 5,
                            .stop_ids = d->stop_ids,
                            .stop_id_count = 1,
                            .bias = d->bias,
                            .bias_count = 1};
}

static const uint32_t OUTSIDE[] = {50 | QN_SEQUENCE_END};

#define BREAK(name, code) \
    static void name(draft_t *d) { code; }
BREAK(retire_empty, (d->retire[0] = 3, d->plan.retire_count = 1))
BREAK(retire_outside, (d->retire[0] = 4, d->plan.retire_count = 1))
BREAK(retire_twice, (d->retire[0] = d->retire[1] = 1, d->plan.retire_count = 2))
BREAK(retire_many, d->plan.retire_count = 5)
BREAK(set_outside, d->sets[0].slot = 4)
BREAK(set_used, d->sets[0].slot = 1)
BREAK(set_no_prompt, d->sets[0].prompt_tokens = 0)
BREAK(set_long_prompt, d->sets[0].prompt_tokens = 21)
BREAK(set_stop_beyond, d->sets[0].stop_count = 2)
BREAK(set_stop_wraps, (d->sets[0].stop_offset = UINT32_MAX))
BREAK(set_bias_beyond, d->sets[0].bias_offset = 1)
BREAK(set_history_beyond, d->sets[0].history_count = 6)
BREAK(set_history_wraps, d->sets[0].history_offset = UINT32_MAX)
BREAK(set_nan, d->sets[0].sampling.temperature = NAN)
BREAK(set_cold, d->sets[0].sampling.temperature = -1)
BREAK(set_top_p, d->sets[0].sampling.top_p = 1.5f)
BREAK(set_penalty, d->sets[0].sampling.repetition_penalty = 0)
BREAK(set_top_logprobs, d->sets[0].sampling.top_logprobs = 21)
BREAK(set_lists_beyond, (d->sets[0].bad_count = 1))
BREAK(set_lists_wrap, (d->sets[0].logprob_offset = UINT32_MAX, d->sets[0].logprob_count = 1))
BREAK(set_bad_open, (d->plan.list_ids = d->ids, d->plan.list_id_count = 2, d->sets[0].bad_count = 2))
BREAK(list_outside, (d->plan.list_ids = OUTSIDE, d->plan.list_id_count = 1))
BREAK(block_unset, d->blocks[0].slot = 3)
BREAK(block_slot_outside, d->blocks[0].slot = 1000)
BREAK(block_outside, d->blocks[0].block = 10)
BREAK(block_hole, d->blocks[0].index = 1)
BREAK(block_index_outside, d->blocks[0].index = 5)
BREAK(copy_from, d->copies[0].from = 10)
BREAK(copy_to, d->copies[0].to = 10)
BREAK(run_unset, d->runs[1].slot = 3)
BREAK(run_unsorted, (d->runs[2] = d->runs[0], d->runs[0] = d->runs[1], d->runs[1] = d->runs[2]))
BREAK(run_twice, d->runs[0].slot = 2)
BREAK(run_gap, d->runs[0].position = 7)
BREAK(run_back, d->runs[0].position = 5)
BREAK(run_empty, d->runs[1].tokens = 0)
BREAK(run_wraps, d->runs[1].position = UINT32_MAX)
BREAK(run_unblocked, (d->runs[1].tokens = 5, d->runs[1].ids_offset = 0))
BREAK(run_ids_beyond, d->runs[1].ids_offset = 2)
BREAK(run_ids_wrap, d->runs[1].ids_offset = UINT32_MAX)
BREAK(run_from_slot_unsampled, (d->runs[1].from_slot = true, d->runs[1].tokens = 1))
BREAK(run_from_slot_two, d->runs[0].tokens = 2)
BREAK(ids_outside, d->ids[3] = 50)
BREAK(stop_outside, d->stop_ids[0] = 50)
BREAK(bias_outside, d->bias[0].id = 50)
BREAK(bias_nan, d->bias[0].bias = NAN)

static const struct {
    void (*damage)(draft_t *);
    const char *param, *part;
} RULES[] = {
    {retire_empty, "retire", "slot 3"},
    {retire_outside, "retire", "slot 4"},
    {retire_twice, "retire", "slot 1"},
    {retire_many, "retire", "at most 4"},
    {set_outside, "sets", "slot 4"},
    {set_used, "sets", "in use"},
    {set_no_prompt, "sets", "prompt of 0"},
    {set_long_prompt, "sets", "prompt of 21"},
    {set_stop_beyond, "sets", "stop ids"},
    {set_stop_wraps, "sets", "stop ids"},
    {set_bias_beyond, "sets", "biases"},
    {set_history_beyond, "sets", "history"},
    {set_history_wraps, "sets", "history"},
    {set_nan, "sets", "temperature"},
    {set_cold, "sets", "temperature"},
    {set_top_p, "sets", "top_p 1.5"},
    {set_penalty, "sets", "repetition_penalty 0"},
    {set_top_logprobs, "sets", "top_logprobs 21"},
    {set_lists_beyond, "sets", "the plan has 0"},
    {set_lists_wrap, "sets", "the plan has 0"},
    {set_bad_open, "sets", "not sequences"},
    {list_outside, "list_ids", "listed id 50"},
    {block_unset, "blocks", "slot 3"},
    {block_slot_outside, "blocks", "slot 1000"},
    {block_outside, "blocks", "block 10"},
    {block_hole, "blocks", "entry 1"},
    {block_index_outside, "blocks", "entry 5"},
    {copy_from, "copies", "block 10"},
    {copy_to, "copies", "to 10"},
    {run_unset, "runs", "slot 3"},
    {run_unsorted, "runs", "sorted"},
    {run_twice, "runs", ""},
    {run_gap, "runs", "begins at 7"},
    {run_back, "runs", "begins at 5"},
    {run_empty, "runs", "0 tokens"},
    {run_wraps, "runs", "positions end"},
    {run_unblocked, "runs", "block table entry 1"},
    {run_ids_beyond, "runs", "ids at 2"},
    {run_ids_wrap, "runs", "ids at"},
    {run_from_slot_unsampled, "runs", "no sample"},
    {run_from_slot_two, "runs", "from_slot with 2"},
    {ids_outside, "ids", "50"},
    {stop_outside, "stop_ids", "50"},
    {bias_outside, "bias", "50"},
    {bias_nan, "bias", "not a number"},
};

static void test_slot_book_every_broken_rule_is_refused_and_changes_nothing(void **state)
{
    (void)state;
    draft_t d;
    for (size_t i = 0; i < sizeof RULES / sizeof RULES[0]; i++) {
        slot_book_t *book = make_book();
        const char *param = NULL;
        start(book);
        make_draft(&d);
        RULES[i].damage(&d);
        qn_err_t err = slot_book_admit(book, &d.plan, &param);
        if (err != QN_ERR_INVALID || strcmp(param, RULES[i].param) != 0 || !strstr(qn_err_text(), RULES[i].part))
            fail_msg("rule %zu: %s, param %s, text %s", i, qn_err_name(err), param, err ? qn_err_text() : "");
        assert_int_equal(slot_book_used(book), 1);
        make_draft(&d);
        assert_int_equal(slot_book_admit(book, &d.plan, &param), QN_OK);
        assert_int_equal(slot_book_used(book), 2);
        slot_book_destroy(&book);
    }
}

static void test_slot_book_token_budget_has_two_sides(void **state)
{
    (void)state;
    for (uint32_t tokens = 8; tokens <= 9; tokens++) {
        slot_book_t *book = make_book();
        const char *param;
        step_set_t set = {.slot = 0, .prompt_tokens = 20, .sampling = PLAIN};
        qn_table_entry_t blocks[] = {{0, 0, 1}, {0, 1, 2}, {0, 2, 3}};
        step_run_t run = {.slot = 0, .tokens = tokens};
        step_plan_t plan = {.sets = &set,
                            .set_count = 1,
                            .blocks = blocks,
                            .block_count = 3,
                            .runs = &run,
                            .run_count = 1,
                            .ids = IDS,
                            .id_count = 12};
        assert_int_equal(slot_book_admit(book, &plan, &param), tokens == 8 ? QN_OK : QN_ERR_INVALID);
        slot_book_destroy(&book);
    }
}

static void test_slot_book_clear_forgets_all(void **state)
{
    (void)state;
    slot_book_t *book = make_book();
    const char *param;
    start(book);
    slot_book_clear(book);
    assert_int_equal(slot_book_used(book), 0);
    step_run_t run = {.slot = 1, .position = 6, .tokens = 1, .from_slot = true};
    step_plan_t plan = {.runs = &run, .run_count = 1};
    assert_int_equal(slot_book_admit(book, &plan, &param), QN_ERR_INVALID);
    start(book);
    slot_book_destroy(&book);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slot_book_a_whole_life_is_admitted),
        cmocka_unit_test(test_slot_book_a_prefix_hit_may_begin_anywhere),
        cmocka_unit_test(test_slot_book_every_broken_rule_is_refused_and_changes_nothing),
        cmocka_unit_test(test_slot_book_token_budget_has_two_sides),
        cmocka_unit_test(test_slot_book_clear_forgets_all),
    };
    return cmocka_run_group_tests_name("slot_book", tests, NULL, NULL);
}
