/* What is this?      The cases of a step's beginning and end: slots, input tokens, log-probabilities, sampling.
 * State owned:       none; a made case owns its memory.
 * Must never:        give the tested and the exact side different inputs.
 * Read next:         kernels/kernels.h, kernel_cases.c. */
#include <string.h>

#include "kernels/bench/kernel_case_data.h"

/* ---- the beginning ---- */

static uint32_t *id_pair(kernel_case_t *c, size_t words, uint32_t **ret_exact)
{
    uint32_t *tested = case_hold_zero(c, words * 4);
    *ret_exact = case_hold_zero(c, words * 4);
    case_add_output(c, tested, *ret_exact, words, true);
    return tested;
}

void case_make_step_input(kernel_case_t *c, const case_row_t *row)
{
    uint32_t sequences, *rows;
    qn_run_t *runs = case_runs(c, row, &sequences);
    for (uint32_t i = 0; runs && i < sequences; i++)
        runs[i].ids_offset = i;
    qn_step_input_t a = {.tables = case_tables(c, row, sequences),
                         .runs = runs,
                         .run_count = sequences,
                         .ids = case_ids(c, row->tokens, row->model->vocab),
                         .block_tokens = case_block_tokens(row)},
                    b = a;
    a.ret_ids = id_pair(c, row->tokens, &b.ret_ids);
    a.ret_positions = id_pair(c, row->tokens, &b.ret_positions);
    a.ret_kv_rows = (int64_t *)(void *)id_pair(c, (size_t)2 * row->tokens, &rows);
    b.ret_kv_rows = (int64_t *)(void *)rows;
    CASE_TAKE(c, qn_step_input_t, a, b);
    c->bytes = row->tokens * (sizeof(qn_run_t) + 4.0 + 4 + 4 + 8);
}

static qn_slot_tables_t empty_tables(kernel_case_t *c, const case_row_t *row)
{
    qn_slot_tables_t tables = {.slots = row->tokens, .table_blocks = row->context, .vocab = row->model->vocab};
    tables.rows = case_hold_zero(c, row->tokens * sizeof *tables.rows);
    tables.block_tables = case_hold_zero(c, (size_t)row->tokens * row->context * 4);
    tables.stop_ids = case_hold_zero(c, (size_t)row->tokens * QN_SLOT_STOP_IDS_MAX * 4);
    tables.bias = case_hold_zero(c, (size_t)row->tokens * QN_LOGIT_BIAS_MAX * sizeof *tables.bias);
    return tables;
}

/* Every slot starts with one stop id and is given its whole table. */
void case_make_slot_update(kernel_case_t *c, const case_row_t *row)
{
    uint32_t count = row->tokens, entries = count * row->context;
    qn_slot_start_t *starts = case_hold_zero(c, count * sizeof *starts);
    qn_table_entry_t *list = case_hold(c, entries * sizeof *list);
    for (uint32_t i = 0; starts && i < count; i++)
        starts[i] =
            (qn_slot_start_t){.slot = count - 1 - i, .stop_offset = i, .row = {.seed = i, .stop_count = 1, .top_p = 1}};
    for (uint32_t i = 0; list && i < entries; i++)
        list[i] = (qn_table_entry_t){i / row->context, i % row->context, entries - i};
    qn_slot_update_t a = {.tables = empty_tables(c, row),
                          .starts = starts,
                          .start_count = count,
                          .entries = list,
                          .entry_count = entries,
                          .stop_ids = case_ids(c, count, row->model->vocab),
                          .bias = case_hold_zero(c, sizeof(qn_bias_entry_t))},
                     b = a;
    b.tables = empty_tables(c, row);
    case_add_output(c, a.tables.rows, b.tables.rows, count * sizeof *a.tables.rows / 4, true);
    case_add_output(c, a.tables.block_tables, b.tables.block_tables, entries, true);
    case_add_output(c, a.tables.stop_ids, b.tables.stop_ids, (size_t)count * QN_SLOT_STOP_IDS_MAX, true);
    CASE_TAKE(c, qn_slot_update_t, a, b);
    c->bytes = count * (sizeof *starts + sizeof *a.tables.rows + 8.0) + entries * (sizeof *list + 4.0);
}

/* ---- the end ---- */

static float *logits_of(kernel_case_t *c, const case_row_t *row)
{
    size_t count = (size_t)row->tokens * row->model->vocab;
    float *logits = case_floats(c, count, 8);
    for (size_t i = 0; logits && i < count; i++)
        logits[i] *= 8;
    return logits;
}

void case_make_logprobs(kernel_case_t *c, const case_row_t *row)
{
    uint32_t vocab = row->model->vocab;
    case_pair_t out = case_float_pair(c, row->tokens, row->tokens);
    size_t top = (size_t)row->tokens * QN_ALTERNATIVES_MAX * sizeof(qn_top_entry_t);
    uint32_t *counts = case_hold(c, row->tokens * sizeof *counts);
    for (uint32_t i = 0; counts && i < row->tokens; i++)
        counts[i] = 5;
    qn_logprobs_t a = {.logits = logits_of(c, row),
                       .targets = case_ids(c, row->tokens, vocab),
                       .top_counts = counts,
                       .rows = row->tokens,
                       .vocab = vocab,
                       .ret_logprobs = out.tested,
                       .ret_top = case_hold_zero(c, top)},
                  b = a;
    b.ret_logprobs = out.exact;
    b.ret_top = case_hold_zero(c, top);
    CASE_TAKE(c, qn_logprobs_t, a, b);
    c->bytes = 4.0 * row->tokens * vocab;
}

/* What `part` names: "temperature", "top-k 50, top-p 0.9", "top-p 0.999 of a flat row"; NULL: greedy. */
static void set_parameters(qn_slot_row_t *slot, const char *part)
{
    if (!part) return;
    slot->temperature = strstr(part, "flat") ? 3 : 0.8f;
    if (strstr(part, "top-k 50")) slot->top_k = 50;
    if (strstr(part, "top-p")) slot->top_p = strstr(part, "0.999") ? 0.999f : 0.9f;
}

/* Results have the id in their first word; the others are the same on both sides. */
void case_make_sampler(kernel_case_t *c, const case_row_t *row)
{
    uint32_t vocab = row->model->vocab, rows = row->tokens;
    qn_sample_t *samples = case_hold(c, rows * sizeof *samples);
    qn_slot_row_t *slots = case_hold_zero(c, rows * sizeof *slots);
    for (uint32_t i = 0; samples && slots && i < rows; i++) {
        samples[i] = (qn_sample_t){i, 20};
        slots[i] = (qn_slot_row_t){.seed = i, .prompt_tokens = 10, .top_p = 1, .repetition_penalty = 1};
        set_parameters(&slots[i], row->part);
    }
    qn_sampler_t a = {.tables = {.rows = slots,
                                 .slots = rows,
                                 .vocab = vocab,
                                 .stop_ids = case_hold_zero(c, (size_t)rows * QN_SLOT_STOP_IDS_MAX * 4)},
                      .samples = samples,
                      .sample_count = rows,
                      .logits = logits_of(c, row),
                      .scratch = case_hold(c, (size_t)rows * 2 * vocab * sizeof(float)),
                      .ret_results = case_hold_zero(c, rows * sizeof(qn_sample_result_t)),
                      .ret_top = case_hold_zero(c, (size_t)rows * QN_ALTERNATIVES_MAX * sizeof(qn_top_entry_t))},
                 b = a;
    b.tables.rows = case_copy(c, slots, rows * sizeof *slots);
    b.ret_results = case_hold_zero(c, rows * sizeof(qn_sample_result_t));
    case_add_output(c, a.ret_results, b.ret_results, rows * sizeof(qn_sample_result_t) / 4, true);
    CASE_TAKE(c, qn_sampler_t, a, b);
    c->bytes = 4.0 * rows * vocab;
}
