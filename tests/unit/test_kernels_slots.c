/* The slot tables: what a step's input kernel reads from them and from the plan. */
#include "tests/unit/kernel_check.h"

enum { SLOTS = 3, TABLE_BLOCKS = 4, VOCAB = 10, BLOCK_TOKENS = 4, TOKENS = 6 };

typedef struct {
    qn_slot_row_t rows[SLOTS];
    uint32_t block_tables[SLOTS * TABLE_BLOCKS], stop_ids[SLOTS * QN_SLOT_STOP_IDS_MAX], counts[SLOTS * VOCAB];
    qn_bias_entry_t bias[SLOTS * QN_LOGIT_BIAS_MAX];
    uint32_t logprob_ids[SLOTS * QN_LOGPROB_IDS_MAX], bad_ids[SLOTS * QN_BAD_IDS_MAX];
    uint32_t recent[SLOTS * QN_BAD_SEQUENCE_TOKENS_MAX];
    qn_slot_tables_t tables;
} slots_t;

/* Slot 0 has a prompt of 3 tokens and penalties, slot 1 one of 9, slot 2 is done. */
static slots_t *make_slots(qn_stream_t *stream)
{
    static const uint32_t STOPS[2] = {8, 9};
    static const qn_bias_entry_t BIAS[1] = {{5, 1.5f}};
    static const qn_table_entry_t ENTRIES[] = {{0, 0, 20}, {0, 1, 7}, {1, 0, 30}, {1, 1, 31}, {1, 2, 2}};
    const qn_slot_start_t starts[] = {
        {.slot = 0, .row = {.prompt_tokens = 3, .stop_count = 2, .penalties = 1}},
        {.slot = 1, .row = {.prompt_tokens = 9, .bias_count = 1}},
    };
    slots_t *s = calloc(1, sizeof *s);
    s->tables = (qn_slot_tables_t){.rows = s->rows,
                                   .block_tables = s->block_tables,
                                   .stop_ids = s->stop_ids,
                                   .bias = s->bias,
                                   .counts = s->counts,
                                   .logprob_ids = s->logprob_ids,
                                   .bad_ids = s->bad_ids,
                                   .recent = s->recent,
                                   .slots = SLOTS,
                                   .table_blocks = TABLE_BLOCKS,
                                   .vocab = VOCAB};
    check_kernel(QN_OP_SLOT_UPDATE, "reference")
        ->launch(stream, &(qn_slot_update_t){.tables = s->tables,
                                             .retire = (const uint32_t[]){2},
                                             .retire_count = 1,
                                             .starts = starts,
                                             .start_count = 2,
                                             .entries = ENTRIES,
                                             .entry_count = 5,
                                             .stop_ids = STOPS,
                                             .bias = BIAS});
    return s;
}

static void test_slot_update_fills_the_named_rows(void **state)
{
    (void)state;
    qn_stream_t *stream = check_stream(1);
    slots_t *s = make_slots(stream);
    assert_int_equal(s->rows[0].prompt_tokens, 3);
    assert_int_equal(s->rows[2].done, 1);
    assert_int_equal(s->stop_ids[1], 9);
    assert_true(s->bias[QN_LOGIT_BIAS_MAX].id == 5 && s->bias[QN_LOGIT_BIAS_MAX].bias == 1.5f);
    assert_int_equal(s->block_tables[1 * TABLE_BLOCKS + 2], 2);
    free(s);
    qn_stream_destroy(&stream);
}

/* Ids from the plan or the slot, rows through the block table, and the length that a dynamic rope goes by: the
 * prompt's until the sequence has outgrown it. A slot that is done gets no KV row. */
static void test_step_input_gives_each_token_its_id_row_and_length(void **state)
{
    (void)state;
    static const uint32_t PLAN_IDS[] = {99, 4, 6, 4};
    static const qn_run_t RUNS[] = {
        {.slot = 0, .position = 1, .tokens = 3, .first = 0, .ids_offset = 1},
        {.slot = 1, .position = 8, .tokens = 1, .first = 3, .from_slot = 1},
        {.slot = 2, .position = 5, .tokens = 1, .first = 4, .from_slot = 1},
        {.slot = 1, .position = 9, .tokens = 1, .first = 5, .from_slot = 1},
    };
    static const uint32_t IDS[TOKENS] = {4, 6, 4, 3, 0, 3}, POSITIONS[TOKENS] = {1, 2, 3, 8, 5, 9};
    static const uint32_t LENGTHS[TOKENS] = {3, 3, 4, 9, 6, 10};
    static const int64_t ROWS[TOKENS] = {81, 82, 83, 8, -1, 9};
    qn_stream_t *stream = check_stream(1);
    slots_t *s = make_slots(stream);
    s->rows[1].last_token = 3;
    for (int with_lengths = 0; with_lengths < 2; with_lengths++) {
        uint32_t ids[TOKENS], positions[TOKENS], lengths[TOKENS] = {0};
        int64_t rows[TOKENS];
        check_kernel(QN_OP_STEP_INPUT, "reference")
            ->launch(stream, &(qn_step_input_t){.tables = s->tables,
                                                .runs = RUNS,
                                                .run_count = 4,
                                                .ids = PLAN_IDS,
                                                .block_tokens = BLOCK_TOKENS,
                                                .ret_ids = ids,
                                                .ret_positions = positions,
                                                .ret_lengths = with_lengths ? lengths : NULL,
                                                .ret_kv_rows = rows});
        assert_memory_equal(ids, IDS, sizeof ids);
        assert_memory_equal(positions, POSITIONS, sizeof positions);
        assert_memory_equal(rows, ROWS, sizeof rows);
        if (with_lengths) assert_memory_equal(lengths, LENGTHS, sizeof lengths);
    }
    /* Of slot 0: 4 and 6 are in the prompt, 4 was generated once, though the run came twice. */
    assert_int_equal(s->counts[4], QN_COUNT_PROMPT + 1);
    assert_int_equal(s->counts[6], QN_COUNT_PROMPT);
    assert_int_equal(s->rows[0].counted, 4);
    free(s);
    qn_stream_destroy(&stream);
}

/* Bad words look at generated tokens: those of the history, then those that runs put in; nothing of the prompt. */
static void test_slots_remember_recent_generated_tokens_of_slots_with_bad_words(void **state)
{
    (void)state;
    enum { KEPT = QN_BAD_SEQUENCE_TOKENS_MAX, PROMPT = 3, HISTORY = 5, RUN = KEPT + 2 };
    static const uint32_t LIST[] = {4, 1, 2 | QN_SEQUENCE_END};
    uint32_t plan_ids[HISTORY + RUN], ids[RUN], positions[RUN];
    int64_t rows[RUN];
    for (uint32_t i = 0; i < HISTORY + RUN; i++)
        plan_ids[i] = 100 + i;
    qn_stream_t *stream = check_stream(1);
    slots_t *s = make_slots(stream);
    const qn_slot_start_t start = {.slot = 2,
                                   .history_count = HISTORY,
                                   .logprob_offset = 0,
                                   .bad_offset = 1,
                                   .row = {.prompt_tokens = PROMPT, .logprob_id_count = 1, .bad_id_count = 2}};
    check_kernel(QN_OP_SLOT_UPDATE, "reference")
        ->launch(stream, &(qn_slot_update_t){.tables = s->tables,
                                             .starts = &start,
                                             .start_count = 1,
                                             .ids = plan_ids,
                                             .stop_ids = LIST,
                                             .bias = s->bias,
                                             .list_ids = LIST});
    const uint32_t *recent = s->recent + 2 * KEPT;
    assert_int_equal(s->logprob_ids[2 * QN_LOGPROB_IDS_MAX], 4);
    assert_int_equal(s->bad_ids[2 * QN_BAD_IDS_MAX + 1], 2 | QN_SEQUENCE_END);
    for (uint32_t i = 0; i < KEPT; i++)
        assert_int_equal(recent[i], i >= PROMPT && i < HISTORY ? 100 + i : 0);
    const qn_run_t run = {.slot = 2, .position = HISTORY, .tokens = RUN, .ids_offset = HISTORY};
    check_kernel(QN_OP_STEP_INPUT, "reference")
        ->launch(stream, &(qn_step_input_t){.tables = s->tables,
                                            .runs = &run,
                                            .run_count = 1,
                                            .ids = plan_ids,
                                            .block_tokens = 64,
                                            .ret_ids = ids,
                                            .ret_positions = positions,
                                            .ret_kv_rows = rows});
    for (uint32_t position = HISTORY + RUN - KEPT; position < HISTORY + RUN; position++)
        assert_int_equal(recent[position % KEPT], 100 + position);
    for (uint32_t i = 0; i < 2 * KEPT; i++)
        assert_int_equal(s->recent[i], 0);
    free(s);
    qn_stream_destroy(&stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slot_update_fills_the_named_rows),
        cmocka_unit_test(test_step_input_gives_each_token_its_id_row_and_length),
        cmocka_unit_test(test_slots_remember_recent_generated_tokens_of_slots_with_bad_words),
    };
    return cmocka_run_group_tests_name("kernels_slots", tests, NULL, NULL);
}
