/* What is this?      The slot tables' upkeep at the start of a step: rows, block tables, counts, input tokens.
 * State owned:       none; the tables are in the state region.
 * Must never:        write a KV row for a sequence that has ended.
 * Read next:         sampler.cu, which writes last_token and done. */
#include "kernels/cuda/device.cuh"

#define THREADS 256
#define START_THREADS 1024

/* Position `position` of the slot holds `id`. Flag and count are apart, so the order of atomics does not matter. */
static __device__ void count_token(const qn_slot_tables_t &tables, uint32_t slot, uint32_t prompt_tokens,
                                   uint32_t position, uint32_t id)
{
    uint32_t *count = &tables.counts[(size_t)slot * tables.vocab + id];
    if (position < prompt_tokens)
        atomicOr(count, QN_COUNT_PROMPT);
    else
        atomicAdd(count, 1);
}

/* Generated tokens are what bad words look back at: of those before `end` the last, so that each entry has one writer. */
static __device__ void keep_recent(const qn_slot_tables_t &tables, uint32_t slot, uint32_t prompt_tokens, uint32_t end,
                                   uint32_t position, uint32_t id)
{
    if (position < prompt_tokens || end - position > QN_BAD_SEQUENCE_TOKENS_MAX) return;
    tables.recent[(size_t)slot * QN_BAD_SEQUENCE_TOKENS_MAX + position % QN_BAD_SEQUENCE_TOKENS_MAX] = id;
}

/* Retired rows and block-table entries: different tables, so one launch. */
static __global__ void retire_and_fill(qn_slot_update_t a)
{
    grid_begin();
    uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    if (i < a.retire_count) {
        qn_slot_row_t row = {};
        row.done = 1;
        a.tables.rows[a.retire[i]] = row;
    }
    if (i >= a.entry_count) return;
    qn_table_entry_t entry = a.entries[i];
    a.tables.block_tables[(size_t)entry.slot * a.tables.table_blocks + entry.index] = entry.block;
}

/* A block per started slot. */
static __global__ void __launch_bounds__(START_THREADS) start_slots(qn_slot_update_t a)
{
    grid_begin();
    const qn_slot_start_t &start = a.starts[blockIdx.x];
    const qn_slot_row_t &row = start.row;
    size_t slot = start.slot;
    for (uint32_t i = threadIdx.x; i < row.stop_count; i += blockDim.x)
        a.tables.stop_ids[slot * QN_SLOT_STOP_IDS_MAX + i] = a.stop_ids[start.stop_offset + i];
    for (uint32_t i = threadIdx.x; i < row.bias_count; i += blockDim.x)
        a.tables.bias[slot * QN_LOGIT_BIAS_MAX + i] = a.bias[start.bias_offset + i];
    for (uint32_t i = threadIdx.x; i < row.logprob_id_count; i += blockDim.x)
        a.tables.logprob_ids[slot * QN_LOGPROB_IDS_MAX + i] = a.list_ids[start.logprob_offset + i];
    for (uint32_t i = threadIdx.x; i < row.bad_id_count; i += blockDim.x)
        a.tables.bad_ids[slot * QN_BAD_IDS_MAX + i] = a.list_ids[start.bad_offset + i];
    for (uint32_t i = threadIdx.x; row.bad_id_count && i < start.history_count; i += blockDim.x)
        keep_recent(a.tables, start.slot, row.prompt_tokens, start.history_count, i, a.ids[start.history_offset + i]);
    if (threadIdx.x == 0) {
        qn_slot_row_t fresh = row;
        if (row.penalties && start.history_count > row.counted) fresh.counted = start.history_count;
        a.tables.rows[slot] = fresh;
    }
    if (!row.penalties) return;
    for (uint32_t v = threadIdx.x; v < a.tables.vocab; v += blockDim.x)
        a.tables.counts[slot * a.tables.vocab + v] = 0;
    __syncthreads();
    for (uint32_t i = row.counted + threadIdx.x; i < start.history_count; i += blockDim.x)
        count_token(a.tables, start.slot, row.prompt_tokens, i, a.ids[start.history_offset + i]);
}

extern "C" void qn_cuda_slot_update(qn_stream_t *stream, const void *arguments)
{
    const qn_slot_update_t *a = (const qn_slot_update_t *)arguments;
    uint32_t items = a->retire_count > a->entry_count ? a->retire_count : a->entry_count;
    if (items) qn_cuda_start(stream, "slot_update", retire_and_fill, divide_up(items, THREADS), THREADS, 0, *a);
    if (a->start_count) qn_cuda_start(stream, "slot_update", start_slots, a->start_count, START_THREADS, 0, *a);
}

/* All blocks together: 16 bytes a thread. */
static __device__ __forceinline__ void copy_arrays(const qn_step_input_t &a)
{
#pragma unroll
    for (int i = 0; i < QN_STEP_ARRAYS; i++)
        for (uint32_t at = (blockIdx.x * THREADS + threadIdx.x) * 16; at < a.arrays[i].bytes;
             at += gridDim.x * THREADS * 16)
            *(uint4 *)((char *)a.arrays[i].to + at) = __ldcv((const uint4 *)((const char *)a.arrays[i].from + at));
}

/* A block per run. Rows are read before the barrier and written after it.
 *
 * No grid_release(): what follows may read the arrays before its own predecessors have ended, so it may not begin until
 * they are there. */
static __global__ void read_inputs(const __grid_constant__ qn_step_input_t a)
{
    constexpr uint32_t WORDS = sizeof(qn_run_t) / sizeof(uint32_t);
    __shared__ uint32_t words[WORDS];
    if (threadIdx.x < WORDS) words[threadIdx.x] = __ldcv((const uint32_t *)(a.runs + blockIdx.x) + threadIdx.x);
    copy_arrays(a);
    __threadfence();
    __syncthreads();
    const qn_run_t &run = *(const qn_run_t *)words;
    qn_slot_row_t *row = &a.tables.rows[run.slot];
    bool done = row->done, count = row->penalties && !done, keep = row->bad_id_count && !done;
    uint32_t last = row->last_token, prompt_tokens = row->prompt_tokens, counted = row->counted;
    const uint32_t *table = a.tables.block_tables + (size_t)run.slot * a.tables.table_blocks;
    for (uint32_t i = threadIdx.x; i < run.tokens; i += blockDim.x) {
        uint32_t position = run.position + i, id = run.from_slot ? last : a.ids[run.ids_offset + i];
        if (count && position >= counted) count_token(a.tables, run.slot, prompt_tokens, position, id);
        if (keep) keep_recent(a.tables, run.slot, prompt_tokens, run.position + run.tokens, position, id);
        a.ret_ids[run.first + i] = done ? 0 : id;
        a.ret_positions[run.first + i] = position;
        if (a.ret_lengths) a.ret_lengths[run.first + i] = max(prompt_tokens, position + 1);
        a.ret_kv_rows[run.first + i] =
            done ? -1 : (int64_t)table[position / a.block_tokens] * a.block_tokens + position % a.block_tokens;
    }
    __syncthreads();
    if (threadIdx.x == 0 && count && run.position + run.tokens > counted) row->counted = run.position + run.tokens;
}

extern "C" void qn_cuda_step_input(qn_stream_t *stream, const void *arguments)
{
    const qn_step_input_t *a = (const qn_step_input_t *)arguments;
    /* Alone: all that was launched before a step's input is done when it begins, so that what follows may read the
     * slot tables and the cache's earlier positions before its own predecessors have ended (attention_decode.cu). */
    if (a->run_count)
        qn_cuda_start_as(stream, "step_input", {.alone = true, .cluster = 1}, read_inputs, a->run_count, THREADS, 0,
                         *a);
}
