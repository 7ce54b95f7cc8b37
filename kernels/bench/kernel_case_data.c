/* What is this?      Memory, random numbers and packed weights for the cases of `quintet bench kernels`.
 * State owned:       none; a case owns what is made here.
 * Must never:        give two runs different numbers.
 * Read next:         kernel_cases.c. */
#include "kernels/bench/kernel_case_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "kernels/weight_layout.h"

/* ---- memory and numbers ---- */

static void *hold(kernel_case_t *c, size_t bytes, kernel_memory_kind_t kind)
{
    size_t padded = (bytes + 127) / 64 * 64;
    bool fits = !c->target.memory_max || c->memory_bytes + padded <= c->target.memory_max;
    void *memory = fits && c->memory_count < KERNEL_CASE_MEMORY_MAX ? aligned_alloc(64, padded) : NULL;
    c->memory_bytes += padded;
    if (memory)
        c->memory[c->memory_count++] = (kernel_memory_t){memory, padded, kind};
    else
        c->no_memory = true;
    return memory;
}

void *case_hold(kernel_case_t *c, size_t bytes) { return hold(c, bytes, KERNEL_MEMORY_PLAIN); }

void *case_hold_zero(kernel_case_t *c, size_t bytes)
{
    void *memory = case_hold(c, bytes);
    if (memory) memset(memory, 0, bytes);
    return memory;
}

float case_next_number(uint64_t *state)
{
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    return (float)(*state >> 40) * 0x1p-23f - 1;
}

void case_fill(float *values, size_t count, uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; values && i < count; i++)
        values[i] = case_next_number(&state);
}

float *case_floats(kernel_case_t *c, size_t count, uint64_t seed)
{
    float *values = case_hold(c, count * sizeof *values);
    case_fill(values, count, seed);
    return values;
}

static float to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits &= 0xffff0000u;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

float *case_activations(kernel_case_t *c, size_t count, uint64_t seed)
{
    float *values = hold(c, count * sizeof *values, KERNEL_MEMORY_ACTIVATIONS);
    case_fill(values, count, seed);
    for (size_t i = 0; values && c->target.activations == QN_SCALAR_BF16 && i < count; i++)
        values[i] = to_bf16(values[i]);
    return values;
}

double case_activation_bytes(const kernel_case_t *c) { return qn_scalar_bytes(c->target.activations); }

float *case_copy_activations(kernel_case_t *c, const float *from, size_t count)
{
    float *values = hold(c, count * sizeof *values, KERNEL_MEMORY_ACTIVATIONS);
    if (values && from) memcpy(values, from, count * sizeof *values);
    return values;
}

uint32_t *case_ids(kernel_case_t *c, size_t count, uint32_t limit)
{
    uint32_t *ids = case_hold(c, count * sizeof *ids);
    for (size_t i = 0; ids && i < count; i++)
        ids[i] = (uint32_t)(i * 2654435761u >> 4) % limit;
    return ids;
}

void *case_copy(kernel_case_t *c, const void *from, size_t bytes)
{
    void *to = case_hold(c, bytes);
    if (to && from) memcpy(to, from, bytes);
    return to;
}

void case_add_output(kernel_case_t *c, const void *tested, const void *exact, size_t count, bool is_id)
{
    QN_ASSERT(c->output_count < KERNEL_CASE_OUTPUTS_MAX);
    c->outputs[c->output_count++] = (kernel_output_t){tested, exact, count, is_id};
}

static case_pair_t output_pair(kernel_case_t *c, size_t count, size_t checked, kernel_memory_kind_t kind)
{
    size_t bytes = count * sizeof(float), skipped = count - checked;
    case_pair_t pair = {hold(c, bytes, kind), hold(c, bytes, kind)};
    if (pair.tested) memset(pair.tested, 0, bytes);
    if (pair.exact) memset(pair.exact, 0, bytes);
    if (pair.tested && pair.exact) case_add_output(c, pair.tested + skipped, pair.exact + skipped, checked, false);
    return pair;
}

case_pair_t case_output_pair(kernel_case_t *c, size_t count, size_t checked)
{
    return output_pair(c, count, checked, KERNEL_MEMORY_ACTIVATIONS);
}

case_pair_t case_float_pair(kernel_case_t *c, size_t count, size_t checked)
{
    return output_pair(c, count, checked, KERNEL_MEMORY_PLAIN);
}

void case_rotate(kernel_case_t *c, double bytes, size_t most)
{
    double copies = (double)c->target.rotated_bytes / bytes + 1;
    if (c->target.memory_max && copies * bytes > (double)c->target.memory_max)
        copies = (double)c->target.memory_max / bytes;
    c->copies = copies < 1 ? 1 : copies < (double)most ? (size_t)copies : most;
}

/* ---- weights ---- */

uint64_t case_matrix_bytes(const kernel_case_t *c, qn_scalar_t scalar, uint64_t outputs, uint64_t inputs)
{
    uint64_t bytes = 0;
    qn_layout_t layout = c->target.device ? QN_LAYOUT_ROWS : QN_LAYOUT_PANELS;
    qn_err_t err = qn_weight_bytes(scalar, layout, 32, outputs, inputs, &bytes);
    QN_ASSERT(!err);
    return bytes;
}

/* Random numbers of `scalar` in [-scale, scale). */
static void fill_scalars(void *data, qn_scalar_t scalar, size_t count, float scale, uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; data && i < count; i++) {
        float value = case_next_number(&state) * scale;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (scalar == QN_SCALAR_F32)
            ((float *)data)[i] = value;
        else
            ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
    }
}

static void fill_panels(kernel_case_t *c, qn_weight_t *weight, char *data, uint64_t outputs, uint64_t inputs,
                        float scale, uint64_t seed)
{
    weight->layout = QN_LAYOUT_PANELS;
    weight->group = weight->scalar == QN_SCALAR_INT4 ? 32 : 0;
    float *rows = malloc(QN_PANEL_ROWS * inputs * sizeof *rows);
    if (!rows) c->no_memory = true;
    for (uint64_t p = 0; rows && data && p < qn_panel_count(outputs); p++) {
        case_fill(rows, QN_PANEL_ROWS * inputs, seed + p);
        for (uint64_t i = 0; i < QN_PANEL_ROWS * inputs; i++)
            rows[i] *= scale;
        qn_weight_pack(weight->scalar, weight->group, outputs, inputs, p, 1, rows,
                       data + p * qn_panel_bytes(weight->scalar, weight->group, inputs));
    }
    free(rows);
}

qn_weight_t case_matrix(kernel_case_t *c, qn_scalar_t scalar, uint64_t outputs, uint64_t inputs, uint64_t seed)
{
    char *data = hold(c, case_matrix_bytes(c, scalar, outputs, inputs), KERNEL_MEMORY_ROTATED);
    qn_weight_t weight = {.data = data, .scalar = scalar};
    float scale = 1 / sqrtf((float)inputs);
    if (c->target.device)
        fill_scalars(data, scalar, outputs * inputs, scale, seed);
    else
        fill_panels(c, &weight, data, outputs, inputs, scale, seed);
    return weight;
}

qn_weight_t *case_weight_list(kernel_case_t *c, uint32_t count, qn_weight_t all, uint64_t bytes)
{
    qn_weight_t *list = hold(c, count * sizeof *list, KERNEL_MEMORY_WEIGHT_LIST);
    for (uint32_t i = 0; list && i < count; i++) {
        list[i] = all;
        list[i].data = (const char *)all.data + i * bytes;
    }
    if (list) c->memory[c->memory_count - 1].bytes = count * sizeof *list;
    return list;
}

qn_weight_t case_vector(kernel_case_t *c, uint32_t count, uint64_t seed)
{
    qn_weight_t vector = {.scalar = c->target.activations};
    void *data = case_hold(c, count * qn_scalar_bytes(vector.scalar));
    fill_scalars(data, vector.scalar, count, 1, seed);
    vector.data = data;
    return vector;
}

/* ---- KV ---- */

uint32_t case_block_tokens(const case_row_t *row) { return row->model->block_tokens ? row->model->block_tokens : 16; }

qn_kv_t case_cache(kernel_case_t *c, const case_row_t *row, uint32_t blocks, bool is_random)
{
    const kernel_shape_t *m = row->model;
    qn_kv_t kv = {.scalar = row->scalar,
                  .layers = 1,
                  .blocks = blocks,
                  .block_tokens = case_block_tokens(row),
                  .kv_heads = m->kv_heads,
                  .head_dim = m->head_dim};
    size_t count = (size_t)2 * blocks * case_block_tokens(row) * m->kv_heads * m->head_dim;
    kv.data = hold(c, count * qn_scalar_bytes(row->scalar), KERNEL_MEMORY_ROTATED);
    if (is_random)
        fill_scalars(kv.data, row->scalar, count, 1, 99);
    else if (kv.data)
        memset(kv.data, 0, count * qn_scalar_bytes(row->scalar));
    return kv;
}

static uint32_t blocks_of_sequence(const case_row_t *row)
{
    return (row->context + case_block_tokens(row) - 1) / case_block_tokens(row);
}

qn_run_t *case_runs(kernel_case_t *c, const case_row_t *row, uint32_t *ret_sequences)
{
    uint32_t chunks = row->sequences ? row->sequences : 1;
    uint32_t sequences = row->op == QN_OP_ATTENTION_PREFILL ? chunks : row->tokens, each = row->tokens / sequences;
    qn_run_t *runs = case_hold_zero(c, sequences * sizeof *runs);
    for (uint32_t i = 0; runs && i < sequences; i++)
        runs[i] = (qn_run_t){.slot = i, .position = row->context - each, .tokens = each, .first = i * each};
    *ret_sequences = sequences;
    return runs;
}

qn_slot_tables_t case_tables(kernel_case_t *c, const case_row_t *row, uint32_t sequences)
{
    uint32_t each = blocks_of_sequence(row), blocks = each * sequences;
    uint32_t *tables = case_hold(c, blocks * sizeof *tables);
    for (uint32_t i = 0; tables && i < blocks; i++)
        tables[i] = blocks - 1 - i;
    return (qn_slot_tables_t){.rows = case_hold_zero(c, sequences * sizeof(qn_slot_row_t)),
                              .block_tables = tables,
                              .slots = sequences,
                              .table_blocks = each,
                              .vocab = row->model->vocab};
}

uint32_t case_checked_rows(const case_row_t *row, double row_operations)
{
    double rows = 3e8 / row_operations; /* a second at most */
    return rows >= row->tokens ? row->tokens : rows < 1 ? 1 : (uint32_t)rows;
}
