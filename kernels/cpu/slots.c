/* What is this?      The slot tables' upkeep at the start of a step: rows, block tables, counts, input tokens.
 * State owned:       none; the tables are in the state region.
 * Must never:        write a KV row for a sequence that has ended.
 * Read next:         sampler.c, which writes last_token and done. */
#include "kernels/cpu/cpu.h"

/* Position `position` of the slot holds `id`: counted once, however often it is run. */
static void count_token(const qn_slot_tables_t *tables, uint32_t slot, uint32_t position, uint32_t id)
{
    qn_slot_row_t *row = &tables->rows[slot];
    if (!row->penalties || position < row->counted) return;
    uint32_t *count = &tables->counts[(size_t)slot * tables->vocab + id];
    if (position < row->prompt_tokens)
        *count |= QN_COUNT_PROMPT;
    else
        *count += 1;
    row->counted = position + 1;
}

/* Generated tokens are what bad words look back at. Writing one twice changes nothing. */
static void keep_recent(const qn_slot_tables_t *tables, uint32_t slot, uint32_t position, uint32_t id)
{
    const qn_slot_row_t *row = &tables->rows[slot];
    if (!row->bad_id_count || position < row->prompt_tokens) return;
    tables->recent[(size_t)slot * QN_BAD_SEQUENCE_TOKENS_MAX + position % QN_BAD_SEQUENCE_TOKENS_MAX] = id;
}

static void start_lists(const qn_slot_update_t *a, const qn_slot_start_t *start)
{
    const qn_slot_tables_t *tables = &a->tables;
    size_t slot = start->slot;
    memcpy(tables->stop_ids + slot * QN_SLOT_STOP_IDS_MAX, a->stop_ids + start->stop_offset,
           start->row.stop_count * sizeof *a->stop_ids);
    memcpy(tables->bias + slot * QN_LOGIT_BIAS_MAX, a->bias + start->bias_offset,
           start->row.bias_count * sizeof *a->bias);
    if (start->row.logprob_id_count)
        memcpy(tables->logprob_ids + slot * QN_LOGPROB_IDS_MAX, a->list_ids + start->logprob_offset,
               start->row.logprob_id_count * sizeof *a->list_ids);
    if (start->row.bad_id_count)
        memcpy(tables->bad_ids + slot * QN_BAD_IDS_MAX, a->list_ids + start->bad_offset,
               start->row.bad_id_count * sizeof *a->list_ids);
}

static void start_slot(const qn_slot_update_t *a, const qn_slot_start_t *start)
{
    const qn_slot_tables_t *tables = &a->tables;
    size_t slot = start->slot;
    tables->rows[slot] = start->row;
    start_lists(a, start);
    if (start->row.penalties) memset(tables->counts + slot * tables->vocab, 0, tables->vocab * sizeof *tables->counts);
    for (uint32_t i = 0; i < start->history_count; i++) {
        count_token(tables, start->slot, i, a->ids[start->history_offset + i]);
        keep_recent(tables, start->slot, i, a->ids[start->history_offset + i]);
    }
}

void qn_cpu_slot_update(qn_stream_t *stream, const void *arguments)
{
    (void)stream;
    const qn_slot_update_t *a = arguments;
    for (uint32_t i = 0; i < a->retire_count; i++)
        a->tables.rows[a->retire[i]] = (qn_slot_row_t){.done = 1};
    for (uint32_t i = 0; i < a->start_count; i++)
        start_slot(a, &a->starts[i]);
    for (uint32_t i = 0; i < a->entry_count; i++) {
        const qn_table_entry_t *entry = &a->entries[i];
        a->tables.block_tables[(size_t)entry->slot * a->tables.table_blocks + entry->index] = entry->block;
    }
}

static int64_t kv_row(const qn_step_input_t *a, uint32_t slot, uint32_t position)
{
    size_t entry = (size_t)slot * a->tables.table_blocks + position / a->block_tokens;
    return (int64_t)a->tables.block_tables[entry] * a->block_tokens + position % a->block_tokens;
}

static void input_run(const qn_step_input_t *a, const qn_run_t *run)
{
    const qn_slot_row_t *row = &a->tables.rows[run->slot];
    for (uint32_t i = 0; i < run->tokens; i++) {
        uint32_t id = run->from_slot ? row->last_token : a->ids[run->ids_offset + i];
        uint32_t position = run->position + i;
        if (!row->done) {
            count_token(&a->tables, run->slot, position, id);
            keep_recent(&a->tables, run->slot, position, id);
        }
        a->ret_ids[run->first + i] = row->done ? 0 : id;
        a->ret_positions[run->first + i] = position;
        if (a->ret_lengths)
            a->ret_lengths[run->first + i] = row->prompt_tokens > position ? row->prompt_tokens : position + 1;
        a->ret_kv_rows[run->first + i] = row->done ? -1 : kv_row(a, run->slot, position);
    }
}

void qn_cpu_step_input(qn_stream_t *stream, const void *arguments)
{
    (void)stream;
    const qn_step_input_t *a = arguments;
    for (unsigned i = 0; i < QN_STEP_ARRAYS; i++)
        if (a->arrays[i].bytes) memcpy(a->arrays[i].to, a->arrays[i].from, a->arrays[i].bytes);
    for (uint32_t i = 0; i < a->run_count; i++)
        input_run(a, &a->runs[i]);
}
