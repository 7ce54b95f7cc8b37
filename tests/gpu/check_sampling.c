/* What is this?      Slot tables, log-probabilities and the sampler on the GPU against the reference.
 * State owned:       none.
 * Must never:        demand the same token where float32 logits put a draw within rounding of a boundary: such rows
 *                    are counted and must stay rare.
 * Read next:         kernels/cuda/sampling/sampler.cu. */
#include "tests/gpu/check.h"

/* Tables of both sides with the same content. */
static void make_tables(check_t *check, uint32_t slots, uint32_t table_blocks, uint32_t vocab, qn_slot_tables_t *host,
                        qn_slot_tables_t *device)
{
    *host = (qn_slot_tables_t){.slots = slots, .table_blocks = table_blocks, .vocab = vocab};
    host->rows = hold(&check->held, slots * sizeof *host->rows);
    host->block_tables = hold(&check->held, (size_t)slots * table_blocks * sizeof *host->block_tables);
    host->stop_ids = hold(&check->held, slots * QN_SLOT_STOP_IDS_MAX * sizeof *host->stop_ids);
    host->bias = hold(&check->held, slots * QN_LOGIT_BIAS_MAX * sizeof *host->bias);
    host->counts = hold(&check->held, (size_t)slots * vocab * sizeof *host->counts);
    host->logprob_ids = hold(&check->held, slots * QN_LOGPROB_IDS_MAX * sizeof *host->logprob_ids);
    host->bad_ids = hold(&check->held, slots * QN_BAD_IDS_MAX * sizeof *host->bad_ids);
    host->recent = hold(&check->held, slots * QN_BAD_SEQUENCE_TOKENS_MAX * sizeof *host->recent);
    *device = *host;
}

static void push_tables(check_t *check, const qn_slot_tables_t *host, qn_slot_tables_t *device)
{
    size_t slots = host->slots;
    device->rows = push(&check->arena, host->rows, slots * sizeof *host->rows);
    device->block_tables = push(&check->arena, host->block_tables, slots * host->table_blocks * 4);
    device->stop_ids = push(&check->arena, host->stop_ids, slots * QN_SLOT_STOP_IDS_MAX * 4);
    device->bias = push(&check->arena, host->bias, slots * QN_LOGIT_BIAS_MAX * sizeof *host->bias);
    device->counts = push(&check->arena, host->counts, slots * host->vocab * 4);
    device->logprob_ids = push(&check->arena, host->logprob_ids, slots * QN_LOGPROB_IDS_MAX * 4);
    device->bad_ids = push(&check->arena, host->bad_ids, slots * QN_BAD_IDS_MAX * 4);
    device->recent = push(&check->arena, host->recent, slots * QN_BAD_SEQUENCE_TOKENS_MAX * 4);
}

static void same_bytes(check_t *check, const void *device, const void *want, size_t bytes, const char *what)
{
    must_ok(qn_cuda_stream_wait(check->gpu));
    void *got = hold(&check->held, bytes);
    pull(got, device, bytes);
    check->cases++;
    if (memcmp(got, want, bytes) != 0) check_failed(check, what);
}

static void same_tables(check_t *check, const qn_slot_tables_t *host, const qn_slot_tables_t *device)
{
    size_t slots = host->slots;
    same_bytes(check, device->rows, host->rows, slots * sizeof *host->rows, "slot rows differ");
    same_bytes(check, device->block_tables, host->block_tables, slots * host->table_blocks * 4, "block tables differ");
    same_bytes(check, device->stop_ids, host->stop_ids, slots * QN_SLOT_STOP_IDS_MAX * 4, "stop ids differ");
    same_bytes(check, device->bias, host->bias, slots * QN_LOGIT_BIAS_MAX * sizeof *host->bias, "biases differ");
    same_bytes(check, device->counts, host->counts, slots * host->vocab * 4, "counts differ");
    same_bytes(check, device->logprob_ids, host->logprob_ids, slots * QN_LOGPROB_IDS_MAX * 4, "logprob ids differ");
    same_bytes(check, device->bad_ids, host->bad_ids, slots * QN_BAD_IDS_MAX * 4, "bad ids differ");
    same_bytes(check, device->recent, host->recent, slots * QN_BAD_SEQUENCE_TOKENS_MAX * 4, "recent tokens differ");
}

/* ---- slot_update and step_input ---- */

#define SLOTS 6
#define TABLE_BLOCKS 8
#define VOCAB 1000
#define BLOCK 16

static void update(check_t *check, const qn_slot_tables_t *host, const qn_slot_tables_t *device)
{
    static const uint32_t RETIRE[] = {1, 3}, STOP[] = {7, 8, 9};
    static const qn_bias_entry_t BIAS[] = {{5, 1.5f}, {6, -2}};
    static const uint32_t LIST[] = {11, 12, 13, 14 | QN_SEQUENCE_END, 15 | QN_SEQUENCE_END};
    uint32_t ids[40];
    for (uint32_t i = 0; i < 40; i++)
        ids[i] = random_below(&check->random, VOCAB / 20);
    qn_slot_start_t starts[] = {
        {.slot = 1,
         .stop_offset = 1,
         .history_offset = 3,
         .history_count = 30,
         .logprob_offset = 1,
         .bad_offset = 2,
         .row = {.seed = 9,
                 .prompt_tokens = 12, /* the ring is full before the end */
                 .logprob_id_count = 2,
                 .bad_id_count = 3,
                 .stop_count = 2,
                 .temperature = 1,
                 .top_p = 1,
                 .penalties = 1,
                 .repetition_penalty = 1.1f}},
        {.slot = 4, .bias_offset = 0, .row = {.prompt_tokens = 5, .bias_count = 2, .last_token = 77}},
        {.slot = 5, .bad_offset = 3, .row = {.prompt_tokens = 5, .bad_id_count = 2, .last_token = 78}},
    };
    qn_table_entry_t entries[] = {{1, 0, 12}, {1, 1, 3}, {4, 0, 5}, {4, 7, 6}, {0, 2, 1}};
    qn_slot_update_t a = {.tables = *host,
                          .retire = RETIRE,
                          .retire_count = 2,
                          .starts = starts,
                          .start_count = 3,
                          .entries = entries,
                          .entry_count = 5,
                          .ids = ids,
                          .stop_ids = STOP,
                          .bias = BIAS,
                          .list_ids = LIST};
    qn_cpu_slot_update(check->cpu, &a);
    a.tables = *device;
    a.retire = push(&check->arena, RETIRE, sizeof RETIRE);
    a.starts = push(&check->arena, starts, sizeof starts);
    a.entries = push(&check->arena, entries, sizeof entries);
    a.ids = push(&check->arena, ids, sizeof ids);
    a.stop_ids = push(&check->arena, STOP, sizeof STOP);
    a.bias = push(&check->arena, BIAS, sizeof BIAS);
    a.list_ids = push(&check->arena, LIST, sizeof LIST);
    qn_cuda_slot_update(check->gpu, &a);
}

static void read_inputs(check_t *check, const qn_slot_tables_t *host, const qn_slot_tables_t *device)
{
    enum { T = 49 };
    uint32_t ids[T], want_ids[T], want_positions[T], want_lengths[T];
    int64_t want_rows[T];
    for (uint32_t i = 0; i < T; i++)
        ids[i] = random_below(&check->random, VOCAB);
    /* slot 1 counts from 30 on: the run begins before; slot 3 is done; slots 4 and 5 take their last token, which slot 5
     * remembers; slot 1 has more generated tokens in one run than it remembers. */
    qn_run_t runs[] = {
        {1, 27, 29, 0, 2, 0}, {3, 4, 3, 29, 0, 0}, {4, 6, 1, 32, 0, 1}, {0, 33, 15, 33, 7, 0}, {5, 6, 1, 48, 0, 1}};
    qn_step_input_t a = {.tables = *host,
                         .runs = runs,
                         .run_count = 5,
                         .ids = ids,
                         .block_tokens = BLOCK,
                         .ret_ids = want_ids,
                         .ret_positions = want_positions,
                         .ret_lengths = want_lengths,
                         .ret_kv_rows = want_rows};
    qn_cpu_step_input(check->cpu, &a);
    a.tables = *device;
    a.runs = push(&check->arena, runs, sizeof runs);
    a.ids = push(&check->arena, ids, sizeof ids);
    a.ret_ids = check_poison(check, sizeof want_ids);
    a.ret_positions = check_poison(check, sizeof want_positions);
    a.ret_lengths = check_poison(check, sizeof want_lengths);
    a.ret_kv_rows = check_poison(check, sizeof want_rows);
    qn_cuda_step_input(check->gpu, &a);
    same_bytes(check, a.ret_ids, want_ids, sizeof want_ids, "ids differ");
    same_bytes(check, a.ret_positions, want_positions, sizeof want_positions, "positions differ");
    same_bytes(check, a.ret_lengths, want_lengths, sizeof want_lengths, "lengths differ");
    same_bytes(check, a.ret_kv_rows, want_rows, sizeof want_rows, "kv rows differ");
}

unsigned check_slots(void)
{
    check_t check = check_begin("slots", QN_SCALAR_BF16, false);
    qn_slot_tables_t host, device;
    make_tables(&check, SLOTS, TABLE_BLOCKS, VOCAB, &host, &device);
    for (uint32_t i = 0; i < SLOTS * TABLE_BLOCKS; i++)
        host.block_tables[i] = 100 + i;
    for (uint32_t i = 0; i < SLOTS * VOCAB; i++)
        host.counts[i] = i % 3;
    push_tables(&check, &host, &device);
    update(&check, &host, &device);
    same_tables(&check, &host, &device);
    read_inputs(&check, &host, &device);
    same_tables(&check, &host, &device);
    return check_end(&check);
}

/* ---- log-probabilities ---- */

/* The log of the sum may round otherwise, and with it which of two neighbouring logits become a tie: another id at a
 * place must have the same logit but for that. */
static void same_top(check_t *check, const float *logits, const qn_top_entry_t *got, const qn_top_entry_t *want,
                     uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        float magnitude = fabsf(want[i].logprob) + fabsf(logits[want[i].id]), tolerance = 2e-5f + 5e-7f * magnitude;
        if (fabsf(got[i].logprob - want[i].logprob) <= tolerance &&
            fabsf(logits[got[i].id] - logits[want[i].id]) <= tolerance)
            continue;
        check_failed(check, "the best ids differ");
        return;
    }
}

static void check_logprob_rows(check_t *check, uint32_t rows, uint32_t vocab, float deviation)
{
    snprintf(check->label, sizeof check->label, "rows %u V %u", rows, vocab);
    float *logits = check_values(check, (size_t)rows * vocab, deviation, 2000, QN_SCALAR_BF16); /* many ties */
    uint32_t *targets = hold(&check->held, rows * 4), *counts = hold(&check->held, rows * 4);
    uint32_t *slots = hold(&check->held, rows * 4);
    qn_slot_tables_t host, device;
    make_tables(check, 2, 1, vocab, &host, &device);
    host.rows[1].logprob_id_count = QN_LOGPROB_IDS_MAX;
    for (uint32_t i = 0; i < QN_LOGPROB_IDS_MAX; i++)
        host.logprob_ids[QN_LOGPROB_IDS_MAX + i] = random_below(&check->random, vocab);
    push_tables(check, &host, &device);
    for (uint32_t i = 0; i < rows; i++) {
        targets[i] = random_below(&check->random, vocab);
        counts[i] = i % (QN_TOP_LOGPROBS_MAX + 1);
        slots[i] = i % 2;
    }
    size_t top_bytes = (size_t)rows * QN_ALTERNATIVES_MAX * sizeof(qn_top_entry_t);
    qn_top_entry_t *want_top = hold(&check->held, top_bytes), *got_top = hold(&check->held, top_bytes);
    float *want = hold(&check->held, rows * 4);
    qn_logprobs_t a = {.logits = logits,
                       .targets = targets,
                       .top_counts = counts,
                       .slots = slots,
                       .tables = host,
                       .rows = rows,
                       .vocab = vocab,
                       .ret_logprobs = want,
                       .ret_top = want_top};
    qn_cpu_logprobs(check->cpu, &a);
    a.logits = push(&check->arena, logits, (size_t)rows * vocab * 4);
    a.targets = push(&check->arena, targets, rows * 4);
    a.top_counts = push(&check->arena, counts, rows * 4);
    a.slots = push(&check->arena, slots, rows * 4);
    a.tables = device;
    a.ret_logprobs = check_poison(check, rows * 4);
    a.ret_top = check_poison(check, top_bytes);
    qn_cuda_logprobs(check->gpu, &a);
    check_compare(check, a.ret_logprobs, QN_SCALAR_F32, want, rows, 2e-6, 2e-5);
    pull(got_top, a.ret_top, top_bytes);
    for (uint32_t i = 0; i < rows; i++)
        same_top(check, logits + (size_t)i * vocab, got_top + i * QN_ALTERNATIVES_MAX,
                 want_top + i * QN_ALTERNATIVES_MAX,
                 (counts[i] < vocab ? counts[i] : vocab) + host.rows[slots[i]].logprob_id_count);
    check_next(check);
}

unsigned check_logprobs(void)
{
    check_t check = check_begin("logprobs", QN_SCALAR_BF16, false);
    check_logprob_rows(&check, 3, 7, 1);
    check_logprob_rows(&check, 25, 1000, 3);
    check_logprob_rows(&check, 25, 32003, 3);
    check_logprob_rows(&check, 25, 128256, 2);
    check_logprob_rows(&check, 22, 128256, 0); /* all equal: no short list, ties by id */
    return check_end(&check);
}

/* ---- the sampler ---- */

static const qn_slot_row_t ROWS[] = {
    {.temperature = 0, .top_p = 1},
    {.temperature = 0, .top_p = 1, .logprobs = 1, .top_logprobs = 20},
    {.temperature = 1, .top_p = 1},
    {.temperature = 0.7f, .top_p = 1, .top_k = 50},
    {.temperature = 0.7f, .top_p = 1, .top_k = 1},
    {.temperature = 1, .top_p = 0.9f},
    {.temperature = 1.3f, .top_p = 0.999f},
    {.temperature = 0.8f, .top_p = 0.95f, .top_k = 40, .logprobs = 1},
    {.temperature = 1, .top_p = 1, .top_k = 3000},
    {.temperature = 1, .top_p = 1, .min_p = 0.05f},
    {.temperature = 1, .top_p = 0.9f, .top_k = 100, .min_p = 0.2f},
    {.temperature = 0, .top_p = 1, .bias_count = 3},
    {.temperature = 1, .top_p = 0.8f, .bias_count = 3, .stop_count = 2, .min_tokens = 100},
    {.temperature = 0,
     .top_p = 1,
     .penalties = 1,
     .repetition_penalty = 1.3f,
     .presence_penalty = 0.5f,
     .frequency_penalty = 0.25f},
    {.temperature = 0.9f,
     .top_p = 0.9f,
     .penalties = 1,
     .repetition_penalty = 0.8f,
     .presence_penalty = -0.5f,
     .frequency_penalty = 0.1f,
     .logprobs = 1,
     .top_logprobs = 5},
    {.temperature = 1, .top_p = 1, .done = 1},
    {.temperature = 0, .top_p = 1, .stop_count = 32},
    {.temperature = 0, .top_p = 1, .bias_count = 3, .allow_only = 1},
    {.temperature = 1, .top_p = 0.9f, .top_k = 2, .bias_count = 3, .allow_only = 1, .logprobs = 1, .top_logprobs = 5},
    {.temperature = 0, .top_p = 1, .logprob_id_count = 20},
    {.temperature = 1, .top_p = 1, .top_logprobs = 20, .logprob_id_count = 7},
    {.temperature = 0, .top_p = 1, .bad_id_count = QN_BAD_IDS_MAX},
    {.temperature = 0.8f, .top_p = 0.9f, .bad_id_count = 40, .bias_count = 3, .allow_only = 1},
};
#define KINDS (sizeof ROWS / sizeof ROWS[0])

static void fill_slots(check_t *check, const qn_slot_tables_t *host)
{
    for (uint32_t s = 0; s < host->slots; s++) {
        qn_slot_row_t *row = &host->rows[s];
        *row = ROWS[s % KINDS];
        if (!row->repetition_penalty) row->repetition_penalty = 1;
        row->seed = 1000003u * s + 17;
        row->prompt_tokens = row->counted = 10;
        for (uint32_t i = 0; i < QN_SLOT_STOP_IDS_MAX; i++)
            host->stop_ids[s * QN_SLOT_STOP_IDS_MAX + i] = random_below(&check->random, host->vocab);
        for (uint32_t i = 0; i < 3; i++)
            host->bias[s * QN_LOGIT_BIAS_MAX + i] =
                (qn_bias_entry_t){random_below(&check->random, host->vocab), random_normal(&check->random, 10)};
        for (uint32_t i = 0; i < QN_LOGPROB_IDS_MAX; i++)
            host->logprob_ids[s * QN_LOGPROB_IDS_MAX + i] = random_below(&check->random, host->vocab);
        for (uint32_t i = 0; i < QN_BAD_SEQUENCE_TOKENS_MAX; i++)
            host->recent[s * QN_BAD_SEQUENCE_TOKENS_MAX + i] = random_below(&check->random, 2);
        for (uint32_t v = 0; v < host->vocab && row->penalties; v++)
            host->counts[(size_t)s * host->vocab + v] =
                random_below(&check->random, 8)
                    ? 0
                    : random_below(&check->random, 3) | (random_below(&check->random, 2) ? QN_COUNT_PROMPT : 0);
    }
}

/* Sequences of one to five of few ids, so that many match what the slot remembers, with the row's greatest ids at their
 * ends: a greedy choice changes with each that does. */
static void fill_bad_ids(check_t *check, const qn_slot_tables_t *host, uint32_t slot, const float *logits)
{
    uint32_t *ids = host->bad_ids + slot * QN_BAD_IDS_MAX, count = host->rows[slot].bad_id_count;
    uint32_t best = 0;
    for (uint32_t v = 1; v < host->vocab; v++)
        if (logits[v] > logits[best]) best = v;
    for (uint32_t at = 0; at < count;) {
        uint32_t length = 1 + random_below(&check->random, count - at < 5 ? count - at : 5);
        for (uint32_t i = 0; i + 1 < length; i++)
            ids[at + i] = random_below(&check->random, 2);
        ids[at + length - 1] = (at % 3 ? random_below(&check->random, host->vocab) : best) | QN_SEQUENCE_END;
        at += length;
    }
}

/* Both sides sample; returns how many rows chose otherwise. */
static unsigned sample(check_t *check, uint32_t rows, uint32_t vocab, float deviation, qn_scalar_t logit_scalar)
{
    qn_slot_tables_t host, device;
    make_tables(check, rows, 1, vocab, &host, &device);
    fill_slots(check, &host);
    qn_sample_t *samples = hold(&check->held, rows * sizeof *samples);
    for (uint32_t i = 0; i < rows; i++)
        samples[i] = (qn_sample_t){.slot = rows - 1 - i, .position = 50 + i};
    float *logits = check_values(check, (size_t)rows * vocab, deviation, 5000, logit_scalar);
    for (uint32_t i = 0; i < rows; i++)
        fill_bad_ids(check, &host, samples[i].slot, logits + (size_t)i * vocab);
    push_tables(check, &host, &device);
    size_t result_bytes = rows * sizeof(qn_sample_result_t);
    size_t top_bytes = rows * QN_ALTERNATIVES_MAX * sizeof(qn_top_entry_t);
    qn_sample_result_t *want = hold(&check->held, result_bytes), *got = hold(&check->held, result_bytes);
    qn_top_entry_t *want_top = hold(&check->held, top_bytes), *got_top = hold(&check->held, top_bytes);
    qn_sampler_t a = {.tables = host,
                      .samples = samples,
                      .sample_count = rows,
                      .logits = logits,
                      .scratch = hold(&check->held, (size_t)rows * 2 * vocab * 4),
                      .ret_results = want,
                      .ret_top = want_top};
    qn_cpu_sampler(check->cpu, &a);
    a = (qn_sampler_t){.tables = device,
                       .samples = push(&check->arena, samples, rows * sizeof *samples),
                       .sample_count = rows,
                       .logits = push(&check->arena, logits, (size_t)rows * vocab * 4),
                       .scratch = check_poison(check, (size_t)rows * 2 * vocab * 4),
                       .ret_results = check_poison(check, result_bytes),
                       .ret_top = check_poison(check, top_bytes)};
    qn_cuda_sampler(check->gpu, &a);
    must_ok(qn_cuda_stream_wait(check->gpu));
    pull(got, a.ret_results, result_bytes);
    pull(got_top, a.ret_top, top_bytes);
    unsigned other = 0;
    for (uint32_t i = 0; i < rows; i++) {
        const qn_slot_row_t *row = &host.rows[samples[i].slot];
        uint32_t top = (row->top_logprobs < vocab ? row->top_logprobs : vocab) + row->logprob_id_count;
        check->cases++;
        same_top(check, logits + (size_t)i * vocab, got_top + i * QN_ALTERNATIVES_MAX,
                 want_top + i * QN_ALTERNATIVES_MAX, got[i].masked ? 0 : top);
        if (got[i].masked != want[i].masked) check_failed(check, "a masked row");
        if (got[i].id != want[i].id)
            other++;
        else if (got[i].stopped != want[i].stopped || !(fabsf(got[i].logprob - want[i].logprob) <= 1e-4f))
            check_failed(check, "stop or log-probability");
        if (got[i].id != want[i].id && host.rows[samples[i].slot].temperature == 0)
            check_failed(check, "a greedy choice");
    }
    if (!other) same_tables(check, &host, &device);
    check_next(check);
    return other;
}

unsigned check_sampler(void)
{
    check_t check = check_begin("sampler", QN_SCALAR_BF16, false);
    unsigned other = sample(&check, 170, 1000, 2, QN_SCALAR_F32);
    other += sample(&check, 34, 5, 1, QN_SCALAR_F32);
    other += sample(&check, 170, 32003, 3, QN_SCALAR_F32);
    other += sample(&check, 170, 32003, 3, QN_SCALAR_BF16);
    other += sample(&check, 68, 128256, 2.5f, QN_SCALAR_F32);
    other += sample(&check, 34, 128256, 0.1f, QN_SCALAR_BF16); /* flat, with ties: no short list */
    snprintf(check.label, sizeof check.label, "%u of %u rows drew another token", other, check.cases);
    if (other * 200 > check.cases)
        check_failed(&check, "more than rounding explains");
    else if (other)
        printf("  sampler: %s\n", check.label);
    return check_end(&check);
}
