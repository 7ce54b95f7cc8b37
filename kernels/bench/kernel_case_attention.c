/* What is this?      The cases of the KV cache and of attention.
 * State owned:       none; a made case owns its memory.
 * Must never:        give the tested and the exact side different inputs.
 * Read next:         kernels/kernels.h, kernel_cases.c. */
#include <math.h>

#include "kernels/fused.h"
#include "kernels/bench/kernel_case_data.h"

#define ROTATED_COPIES 16

void case_make_kv_write(kernel_case_t *c, const case_row_t *row)
{
    const kernel_shape_t *m = row->model;
    uint32_t blocks = (row->tokens + case_block_tokens(row) - 1) / case_block_tokens(row);
    size_t width = (size_t)m->kv_heads * m->head_dim, count = row->tokens * width;
    int64_t *rows = case_hold(c, row->tokens * sizeof *rows);
    for (uint32_t i = 0; rows && i < row->tokens; i++)
        rows[i] = i;
    qn_kv_write_t a = {.kv = case_cache(c, row, blocks, false),
                       .tokens = row->tokens,
                       .k = case_activations(c, count, 1),
                       .v = case_activations(c, count, 2),
                       .kv_rows = rows},
                  b = a;
    b.kv = case_cache(c, row, blocks, false);
    size_t words = (size_t)2 * blocks * case_block_tokens(row) * width * qn_scalar_bytes(row->scalar) / 4;
    case_add_output(c, a.kv.data, b.kv.data, words, true);
    CASE_TAKE(c, qn_kv_write_t, a, b);
    c->bytes = 2.0 * (double)count * (case_activation_bytes(c) + qn_scalar_bytes(row->scalar));
}

/* Both kinds of attention, of `tokens` sequences of one token or of a few that share them; the exact side computes the last
 * rows alone. */
static void make_attention(kernel_case_t *c, const case_row_t *row, qn_attention_t *tested, qn_attention_t *exact)
{
    const kernel_shape_t *m = row->model;
    uint32_t sequences, checked = case_checked_rows(row, 4.0 * row->context * m->heads * m->head_dim);
    size_t each = (size_t)m->heads * m->head_dim, width = row->tokens * each;
    qn_run_t *runs = case_runs(c, row, &sequences), *last = case_hold(c, sizeof *last);
    qn_slot_tables_t tables = case_tables(c, row, sequences);
    uint32_t each_tokens = row->tokens / sequences;
    if (sequences < row->tokens && checked > each_tokens) checked = each_tokens;
    case_pair_t out = case_output_pair(c, width, checked * each);
    *tested = (qn_attention_t){.kv = case_cache(c, row, sequences * tables.table_blocks, true),
                               .tables = tables,
                               .runs = runs,
                               .run_count = sequences,
                               .heads = m->heads,
                               .scale = 1 / sqrtf((float)m->head_dim),
                               .q = case_activations(c, width, 1),
                               .out = out.tested};
    *exact = *tested;
    exact->out = out.exact;
    if (sequences == row->tokens) {
        exact->runs = runs ? runs + sequences - checked : NULL, exact->run_count = checked;
    } else if (last) {
        *last = (qn_run_t){.slot = sequences - 1,
                           .position = row->context - checked,
                           .tokens = checked,
                           .first = row->tokens - checked};
        exact->runs = last, exact->run_count = 1;
    }
    double seen = sequences == row->tokens ? row->context : row->context - (each_tokens - 1) / 2.0;
    double cached = 2.0 * sequences * row->context * m->kv_heads * m->head_dim * qn_scalar_bytes(row->scalar);
    c->bytes = cached + 2 * case_activation_bytes(c) * (double)width;
    c->operations = 4.0 * row->tokens * seen * m->heads * m->head_dim;
    if (c->target.device && sequences == row->tokens) case_rotate(c, cached, ROTATED_COPIES);
}

void case_make_attention(kernel_case_t *c, const case_row_t *row)
{
    qn_attention_t a, b;
    make_attention(c, row, &a, &b);
    CASE_TAKE(c, qn_attention_t, a, b);
}

/* The exact side rotates and writes into arrays of its own: all rows of q and k, the cache. */
void case_make_decode_attention(kernel_case_t *c, const case_row_t *row)
{
    const kernel_shape_t *m = row->model;
    qn_decode_attention_t a = {.attention = {.heads = 0}}, b = a;
    make_attention(c, row, &a.attention, &b.attention);
    size_t q = (size_t)row->tokens * m->heads * m->head_dim, k = (size_t)row->tokens * m->kv_heads * m->head_dim;
    int64_t *rows = case_hold(c, row->tokens * sizeof *rows);
    for (uint32_t i = 0; rows && a.attention.runs && a.attention.tables.block_tables && i < row->tokens; i++) {
        uint32_t position = a.attention.runs[i].position, table = i * a.attention.tables.table_blocks;
        rows[i] = (int64_t)a.attention.tables.block_tables[table + position / case_block_tokens(row)] *
                      case_block_tokens(row) +
                  position % case_block_tokens(row);
    }
    a.rope = (qn_rope_t){.angles = case_angles(c, row->tokens, m->head_dim),
                         .q = (void *)(uintptr_t)a.attention.q,
                         .k = case_activations(c, k, 2),
                         .tokens = row->tokens,
                         .heads = m->heads,
                         .kv_heads = m->kv_heads,
                         .head_dim = m->head_dim};
    a.write = (qn_kv_write_t){
        .kv = a.attention.kv, .tokens = row->tokens, .k = a.rope.k, .v = case_activations(c, k, 3), .kv_rows = rows};
    b.rope = a.rope;
    b.rope.q = case_copy_activations(c, a.rope.q, q);
    b.rope.k = case_copy_activations(c, a.rope.k, k);
    b.write = a.write;
    b.write.k = b.rope.k;
    b.write.kv = case_cache(c, row, a.attention.kv.blocks, true);
    b.attention.kv = b.write.kv;
    b.attention.q = b.rope.q;
    CASE_TAKE(c, qn_decode_attention_t, a, b);
    c->bytes += case_activation_bytes(c) * (double)(2 * k) + 2.0 * (double)k * qn_scalar_bytes(row->scalar);
}

/* Blocks of 16 positions, each to another place. */
void case_make_block_copy(kernel_case_t *c, const case_row_t *row)
{
    const kernel_shape_t *m = row->model;
    uint32_t blocks = 2 * row->tokens;
    qn_copy_t *copies = case_hold(c, row->tokens * sizeof *copies);
    for (uint32_t i = 0; copies && i < row->tokens; i++)
        copies[i] = (qn_copy_t){i, blocks - 1 - i};
    qn_block_copy_args_t a = {.kv = case_cache(c, row, blocks, true), .copies = copies, .copy_count = row->tokens},
                         b = a;
    b.kv = case_cache(c, row, blocks, true);
    size_t each = (size_t)case_block_tokens(row) * m->kv_heads * m->head_dim * qn_scalar_bytes(row->scalar);
    case_add_output(c, a.kv.data, b.kv.data, 2 * blocks * each / 4, true);
    CASE_TAKE(c, qn_block_copy_args_t, a, b);
    c->bytes = 4.0 * row->tokens * (double)each;
}
