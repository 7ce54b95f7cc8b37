/* What is this?      The cases of `quintet bench kernels`.
 * State owned:       the table; a made case owns its memory.
 * Must never:        give the tested and the exact side different inputs.
 * Read next:         kernels/kernels.h, bench_kernels.c. */
#include "tools/kernel_case_data.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "kernels/weight_layout.h"

#define BLOCK_TOKENS 16
#define CHECKED_ROWS 4   /* of a large product: the reference takes seconds for all */
#define EXPERTS 64
#define EXPERTS_PER_TOKEN 8
#define EXPERT_WIDTH 768

typedef struct {
    const char *name;
    uint32_t heads, kv_heads, head_dim, hidden, intermediate, vocab;
} shape_t;

static const shape_t BUNDLED = { "bundled", 4, 2, 64, 256, 768, 4096 };
static const shape_t QWEN = { "qwen2.5-0.5b", 14, 2, 64, 896, 4864, 151936 };

typedef struct row {
    qn_op_t op;
    const shape_t *model;
    uint32_t tokens;             /* T, rows or sequences */
    uint32_t context;            /* attention */
    qn_scalar_t scalar;          /* of weights or KV */
    const char *part;            /* which product */
    void (*make)(kernel_case_t *c, const struct row *row, uint64_t cache_bytes);
} row_t;

/* The same arguments for both sides but for what the caller changes in `exact`. */
#define TAKE(c, type, tested_value, exact_value) \
    do { \
        const type tested_ = tested_value, exact_ = exact_value; \
        (c)->arguments[0] = case_copy((c), &tested_, sizeof tested_); \
        (c)->exact_arguments = case_copy((c), &exact_, sizeof exact_); \
        (c)->copies = 1; \
    } while (0)

/* ---- matmul ---- */

typedef struct { uint32_t inputs, outputs[QN_MATMUL_PARTS], parts; } product_t;

static product_t product_of(const row_t *row)
{
    const shape_t *m = row->model;
    uint32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    switch (row->part[0]) {
    case 'q': return (product_t){ m->hidden, { q, kv, kv }, 3 };
    case 'o': return (product_t){ q, { m->hidden }, 1 };
    case 'g': return (product_t){ m->hidden, { m->intermediate, m->intermediate }, 2 };
    case 'd': return (product_t){ m->intermediate, { m->hidden }, 1 };
    default: return (product_t){ m->hidden, { m->vocab }, 1 };
    }
}

/* Copy `index` of the arguments: its own weights, the outputs of all. */
static const qn_matmul_t *copy_product(kernel_case_t *c, const qn_matmul_t *first, qn_scalar_t scalar, size_t index)
{
    qn_matmul_t *again = case_copy(c, first, sizeof *first);
    for (uint32_t p = 0; again && index && p < first->part_count; p++)
        again->parts[p].weight.data = case_copy(c, first->parts[p].weight.data,
                                           case_weight_bytes(scalar, first->parts[p].outputs, first->inputs));
    return again;
}

/* The last rows of the same product, into outputs of its own. */
static void make_exact_product(kernel_case_t *c, const qn_matmul_t *tested)
{
    qn_matmul_t *exact = case_copy(c, tested, sizeof *tested);
    if (!exact) return;
    exact->tokens = tested->tokens < CHECKED_ROWS ? tested->tokens : CHECKED_ROWS;
    size_t skipped = tested->tokens - exact->tokens;
    exact->x = (const float *)tested->x + skipped * tested->inputs;
    for (uint32_t p = 0; p < tested->part_count; p++) {
        size_t count = (size_t)exact->tokens * tested->parts[p].outputs;
        exact->parts[p].out = case_hold_zero(c, count * sizeof(float));
        case_add_output(c, (float *)tested->parts[p].out + skipped * tested->parts[p].outputs, exact->parts[p].out,
                        count, false);
    }
    c->exact_arguments = exact;
}

static void make_matmul(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    product_t product = product_of(row);
    qn_matmul_t first = { .x = case_floats(c, (size_t)row->tokens * product.inputs, 1), .tokens = row->tokens,
                          .inputs = product.inputs, .part_count = product.parts };
    uint64_t weights = 0, moved = (uint64_t)row->tokens * product.inputs * 4;
    first.scratch = case_hold(c, qn_matmul_scratch_bytes(row->tokens, product.inputs));
    for (uint32_t p = 0; p < product.parts; p++) {
        first.parts[p] = (qn_matmul_part_t){
            .weight = case_panels(c, row->scalar, product.outputs[p], product.inputs, 100 + p),
            .out = case_hold_zero(c, (size_t)row->tokens * product.outputs[p] * 4), .outputs = product.outputs[p] };
        weights += case_weight_bytes(row->scalar, product.outputs[p], product.inputs);
        moved += (uint64_t)row->tokens * product.outputs[p] * 4;
        c->operations += 2.0 * row->tokens * product.inputs * product.outputs[p];
    }
    c->bytes = (double)(weights + moved);
    size_t copies = row->tokens > 64 ? 1 : (size_t)(3 * cache_bytes / weights) + 1;
    size_t room = (KERNEL_CASE_MEMORY_MAX - 32) / (product.parts + 1);
    c->copies = copies < room ? copies : room;
    if (c->copies > KERNEL_CASE_COPIES_MAX) c->copies = KERNEL_CASE_COPIES_MAX;
    for (size_t i = 0; i < c->copies && !c->no_memory; i++) c->arguments[i] = copy_product(c, &first, row->scalar, i);
    make_exact_product(c, &first);
}

/* ---- rows ---- */

static void make_embedding(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    uint32_t width = row->model->hidden, vocab = row->model->vocab;
    case_pair_t out = case_output_pair(c, (size_t)row->tokens * width);
    qn_embedding_t a = { .table = case_panels(c, row->scalar, vocab, width, 7), .ids = case_ids(c, row->tokens, vocab),
                         .tokens = row->tokens, .width = width, .multiplier = 1, .out = out.tested }, b = a;
    b.out = out.exact;
    TAKE(c, qn_embedding_t, a, b);
    c->bytes = 8.0 * row->tokens * width;
}

static void make_rmsnorm(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    uint32_t width = row->model->hidden;
    case_pair_t out = case_output_pair(c, (size_t)row->tokens * width);
    qn_rmsnorm_t a = { .x = case_floats(c, (size_t)row->tokens * width, 1), .weight = case_vector(c, width, 2),
                       .rows = row->tokens, .width = width, .eps = 1e-6f, .out = out.tested }, b = a;
    b.out = out.exact;
    TAKE(c, qn_rmsnorm_t, a, b);
    c->bytes = 8.0 * row->tokens * width;
    c->operations = 4.0 * row->tokens * width;
}

static void make_layernorm(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    uint32_t width = row->model->hidden;
    case_pair_t out = case_output_pair(c, (size_t)row->tokens * width);
    qn_layernorm_t a = { .x = case_floats(c, (size_t)row->tokens * width, 1), .weight = case_vector(c, width, 2),
                         .bias = case_vector(c, width, 3), .rows = row->tokens, .width = width, .eps = 1e-5f,
                         .out = out.tested }, b = a;
    b.out = out.exact;
    TAKE(c, qn_layernorm_t, a, b);
    c->bytes = 8.0 * row->tokens * width;
    c->operations = 7.0 * row->tokens * width;
}

static void make_activation(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    size_t count = (size_t)row->tokens * row->model->intermediate;
    case_pair_t out = case_output_pair(c, count);
    qn_activate_t a = { .gate = case_floats(c, count, 1), .up = case_floats(c, count, 2), .tokens = row->tokens,
                        .width = row->model->intermediate, .kind = QN_ACTIVATION_SILU, .out = out.tested }, b = a;
    if (row->part) a.kind = b.kind = QN_ACTIVATION_GELU_TANH;
    b.out = out.exact;
    TAKE(c, qn_activate_t, a, b);
    c->bytes = 12.0 * (double)count;
}

static void make_softcap(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    size_t count = (size_t)row->tokens * row->model->vocab;
    float *tested = case_floats(c, count, 5), *exact = case_copy(c, tested, count * sizeof *exact);
    case_add_output(c, tested, exact, count, false);
    qn_softcap_t a = { .x = tested, .rows = row->tokens, .width = row->model->vocab, .cap = 30 }, b = a;
    b.x = exact;
    TAKE(c, qn_softcap_t, a, b);
    c->bytes = 8.0 * (double)count;
}

static void make_gather(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    uint32_t width = row->model->hidden;
    case_pair_t out = case_output_pair(c, (size_t)row->tokens * width);
    qn_gather_rows_t a = { .x = case_floats(c, (size_t)512 * width, 1), .rows = case_ids(c, row->tokens, 512),
                           .row_count = row->tokens, .width = width, .out = out.tested }, b = a;
    b.out = out.exact;
    TAKE(c, qn_gather_rows_t, a, b);
    c->bytes = 8.0 * row->tokens * width;
}

/* ---- positions ---- */

static float *frequencies(kernel_case_t *c, uint32_t head_dim)
{
    float *values = case_hold(c, head_dim / 2 * sizeof *values);
    for (uint32_t i = 0; values && i < head_dim / 2; i++)
        values[i] = powf(10000, -2 * (float)i / (float)head_dim);
    return values;
}

static uint32_t *positions(kernel_case_t *c, uint32_t tokens)
{
    uint32_t *values = case_hold(c, tokens * sizeof *values);
    for (uint32_t i = 0; values && i < tokens; i++) values[i] = 100 + i;
    return values;
}

static void make_angles(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    uint32_t width = row->model->head_dim;
    case_pair_t out = case_output_pair(c, (size_t)row->tokens * width);
    qn_rope_angles_t a = { .positions = positions(c, row->tokens), .frequencies = frequencies(c, width), .scale = 1,
                           .tokens = row->tokens, .head_dim = width, .out = out.tested }, b = a;
    b.out = out.exact;
    TAKE(c, qn_rope_angles_t, a, b);
    c->bytes = 4.0 * row->tokens * width;
}

static void make_rope(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    const shape_t *m = row->model;
    size_t q = (size_t)row->tokens * m->heads * m->head_dim, k = (size_t)row->tokens * m->kv_heads * m->head_dim;
    float *angles = case_floats(c, (size_t)row->tokens * m->head_dim, 3);
    for (size_t i = 0; angles && i < (size_t)row->tokens * m->head_dim; i++) {
        double angle = (double)(i / m->head_dim * 7 + i % (m->head_dim / 2));
        angles[i] = (float)(i % m->head_dim < m->head_dim / 2 ? cos(angle) : sin(angle));
    }
    qn_rope_t a = { .angles = angles, .q = case_floats(c, q, 1), .k = case_floats(c, k, 2), .tokens = row->tokens,
                    .heads = m->heads, .kv_heads = m->kv_heads, .head_dim = m->head_dim }, b = a;
    b.q = case_copy(c, a.q, q * sizeof(float));
    b.k = case_copy(c, a.k, k * sizeof(float));
    case_add_output(c, a.q, b.q, q, false);
    case_add_output(c, a.k, b.k, k, false);
    TAKE(c, qn_rope_t, a, b);
    c->bytes = 8.0 * (double)(q + k);
    c->operations = 3.0 * (double)(q + k);
}

/* ---- KV and attention ---- */

static qn_kv_t make_cache(kernel_case_t *c, const row_t *row, uint32_t blocks, bool is_random)
{
    const shape_t *m = row->model;
    qn_kv_t kv = { .scalar = row->scalar, .layers = 1, .blocks = blocks, .block_tokens = BLOCK_TOKENS,
                   .kv_heads = m->kv_heads, .head_dim = m->head_dim };
    size_t count = (size_t)2 * blocks * BLOCK_TOKENS * m->kv_heads * m->head_dim;
    kv.data = case_hold_zero(c, count * qn_scalar_bytes(row->scalar));
    uint64_t state = 99;
    for (size_t i = 0; kv.data && is_random && i < count; i++) {
        float value = case_next_number(&state);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (row->scalar == QN_SCALAR_F32) ((float *)kv.data)[i] = value;
        else ((uint16_t *)kv.data)[i] = (uint16_t)(bits >> 16);
    }
    return kv;
}

static void make_kv_write(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    const shape_t *m = row->model;
    uint32_t blocks = (row->tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    size_t width = (size_t)m->kv_heads * m->head_dim;
    int64_t *rows = case_hold(c, row->tokens * sizeof *rows);
    for (uint32_t i = 0; rows && i < row->tokens; i++) rows[i] = i;
    qn_kv_write_t a = { .kv = make_cache(c, row, blocks, false), .tokens = row->tokens,
                        .k = case_floats(c, row->tokens * width, 1), .v = case_floats(c, row->tokens * width, 2),
                        .kv_rows = rows }, b = a;
    b.kv = make_cache(c, row, blocks, false);
    size_t words = (size_t)2 * blocks * BLOCK_TOKENS * width * qn_scalar_bytes(row->scalar) / 4;
    case_add_output(c, a.kv.data, b.kv.data, words, true);
    TAKE(c, qn_kv_write_t, a, b);
    c->bytes = 2.0 * row->tokens * (double)width * (4 + qn_scalar_bytes(row->scalar));
}

/* decode: `tokens` sequences of one token; prefill: one sequence of them. */
static void make_attention(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    const shape_t *m = row->model;
    bool decode = row->op == QN_OP_ATTENTION_DECODE;
    uint32_t sequences = decode ? row->tokens : 1, each = row->tokens / sequences;
    uint32_t table = (row->context + BLOCK_TOKENS - 1) / BLOCK_TOKENS, blocks = table * sequences;
    uint32_t *tables = case_hold(c, blocks * sizeof *tables);
    qn_run_t *runs = case_hold_zero(c, sequences * sizeof *runs);
    for (uint32_t i = 0; tables && i < blocks; i++) tables[i] = blocks - 1 - i;
    for (uint32_t i = 0; runs && i < sequences; i++)
        runs[i] = (qn_run_t){ .slot = i, .position = row->context - each, .tokens = each, .first = i * each };
    size_t width = (size_t)row->tokens * m->heads * m->head_dim;
    case_pair_t out = case_output_pair(c, width);
    qn_attention_t a = { .kv = make_cache(c, row, blocks, true),
                         .tables = { .rows = case_hold_zero(c, sequences * sizeof(qn_slot_row_t)),
                                     .block_tables = tables, .slots = sequences, .table_blocks = table, .vocab = m->vocab },
                         .runs = runs, .run_count = sequences, .heads = m->heads,
                         .scale = 1 / sqrtf((float)m->head_dim), .q = case_floats(c, width, 1),
                         .out = out.tested }, b = a;
    b.out = out.exact;
    TAKE(c, qn_attention_t, a, b);
    c->bytes = 2.0 * sequences * row->context * m->kv_heads * m->head_dim * qn_scalar_bytes(row->scalar)
        + 8.0 * (double)width;
    double seen = decode ? row->context : row->context - (row->tokens - 1) / 2.0;
    c->operations = 4.0 * row->tokens * seen * m->heads * m->head_dim;
}

/* ---- experts ---- */

static qn_moe_route_t route_of(kernel_case_t *c, const row_t *row)
{
    size_t places = (size_t)row->tokens * EXPERTS_PER_TOKEN;
    return (qn_moe_route_t){
        .logits = case_floats(c, (size_t)row->tokens * EXPERTS, 4), .tokens = row->tokens, .experts = EXPERTS,
        .per_token = EXPERTS_PER_TOKEN, .normalise = true, .ret_weights = case_hold_zero(c, places * sizeof(float)),
        .ret_places = case_hold_zero(c, places * 4), .ret_rows = case_hold_zero(c, places * 4),
        .ret_offsets = case_hold_zero(c, (EXPERTS + 1) * sizeof(uint32_t)) };
}

static void make_route(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    qn_moe_route_t a = route_of(c, row), b = route_of(c, row);
    size_t places = (size_t)row->tokens * EXPERTS_PER_TOKEN;
    case_add_output(c, a.ret_weights, b.ret_weights, places, false);
    case_add_output(c, a.ret_rows, b.ret_rows, places, true);
    case_add_output(c, a.ret_places, b.ret_places, places, true);
    TAKE(c, qn_moe_route_t, a, b);
    c->bytes = 4.0 * row->tokens * EXPERTS + 12.0 * (double)places;
}

/* Places spread evenly over the experts, the first ones one more. */
static uint32_t *even_offsets(kernel_case_t *c, uint32_t places)
{
    uint32_t *offsets = case_hold(c, (EXPERTS + 1) * sizeof *offsets);
    for (uint32_t e = 0; offsets && e <= EXPERTS; e++) offsets[e] = (uint32_t)((uint64_t)places * e / EXPERTS);
    return offsets;
}

static void make_expert(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    uint32_t width = row->model->hidden, places = row->tokens * EXPERTS_PER_TOKEN;
    qn_weight_t *weights = case_hold(c, EXPERTS * sizeof *weights);
    qn_weight_t all = case_panels(c, row->scalar, (uint64_t)EXPERTS * EXPERT_WIDTH, width, 30);
    uint64_t bytes = case_weight_bytes(row->scalar, EXPERT_WIDTH, width);
    for (uint32_t e = 0; weights && e < EXPERTS; e++) {
        weights[e] = all;
        weights[e].data = (const char *)all.data + e * bytes;
    }
    case_pair_t out = case_output_pair(c, (size_t)places * EXPERT_WIDTH);
    qn_expert_matmul_t a = { .x = case_floats(c, (size_t)places * width, 1), .offsets = even_offsets(c, places),
                             .places = places, .inputs = width, .experts = EXPERTS, .outputs = EXPERT_WIDTH,
                             .weights = { weights }, .out = { out.tested }, .part_count = 1,
                             .scratch = case_hold(c, qn_matmul_scratch_bytes(places, width)),
                             .scalar = row->scalar }, b = a;
    b.out[0] = out.exact;
    TAKE(c, qn_expert_matmul_t, a, b);
    c->bytes = (double)bytes * (places < EXPERTS ? places : EXPERTS) + 4.0 * places * (width + EXPERT_WIDTH);
    c->operations = 2.0 * places * width * EXPERT_WIDTH;
}

static void make_combine(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    uint32_t width = row->model->hidden, places = row->tokens * EXPERTS_PER_TOKEN;
    case_pair_t out = case_output_pair(c, (size_t)row->tokens * width);
    uint32_t *order = case_hold(c, places * sizeof *order);
    for (uint32_t i = 0; order && i < places; i++) order[i] = places - 1 - i;
    qn_moe_combine_t a = { .x = case_floats(c, (size_t)places * width, 1), .weights = case_floats(c, places, 2),
                           .places = order, .residual = case_floats(c, (size_t)row->tokens * width, 3),
                           .tokens = row->tokens, .per_token = EXPERTS_PER_TOKEN, .width = width,
                           .out = out.tested }, b = a;
    b.out = out.exact;
    TAKE(c, qn_moe_combine_t, a, b);
    c->bytes = 4.0 * (places + 2.0 * row->tokens) * width;
    c->operations = 2.0 * places * width;
}

/* ---- the end of a step ---- */

static float *logits_of(kernel_case_t *c, const row_t *row)
{
    size_t count = (size_t)row->tokens * row->model->vocab;
    float *logits = case_floats(c, count, 8);
    for (size_t i = 0; logits && i < count; i++) logits[i] *= 8;
    return logits;
}

static void make_logprobs(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    uint32_t vocab = row->model->vocab;
    case_pair_t out = case_output_pair(c, row->tokens);
    size_t top = (size_t)row->tokens * QN_TOP_LOGPROBS_MAX * sizeof(qn_top_entry_t);
    uint32_t *counts = case_hold(c, row->tokens * sizeof *counts);
    for (uint32_t i = 0; counts && i < row->tokens; i++) counts[i] = 5;
    qn_logprobs_t a = { .logits = logits_of(c, row), .targets = case_ids(c, row->tokens, vocab), .top_counts = counts,
                        .rows = row->tokens, .vocab = vocab, .ret_logprobs = out.tested,
                        .ret_top = case_hold_zero(c, top) },
                  b = a;
    b.ret_logprobs = out.exact;
    b.ret_top = case_hold_zero(c, top);
    TAKE(c, qn_logprobs_t, a, b);
    c->bytes = 4.0 * row->tokens * vocab;
}

/* Results have the id in their first word; the others are the same on both sides. */
static void make_sampler(kernel_case_t *c, const row_t *row, uint64_t cache_bytes)
{
    (void)cache_bytes;
    uint32_t vocab = row->model->vocab, rows = row->tokens;
    qn_sample_t *samples = case_hold(c, rows * sizeof *samples);
    qn_slot_row_t *slots = case_hold_zero(c, rows * sizeof *slots);
    for (uint32_t i = 0; samples && slots && i < rows; i++) {
        samples[i] = (qn_sample_t){ i, 20 };
        slots[i] = (qn_slot_row_t){ .seed = i, .prompt_tokens = 10, .top_p = 1, .repetition_penalty = 1 };
        if (row->part) slots[i].temperature = 0.8f, slots[i].top_k = 50, slots[i].top_p = 0.9f;
    }
    qn_sampler_t a = { .tables = { .rows = slots, .slots = rows, .vocab = vocab }, .samples = samples,
                       .sample_count = rows, .logits = logits_of(c, row),
                       .scratch = case_hold(c, (size_t)rows * 2 * vocab * sizeof(float)),
                       .ret_results = case_hold_zero(c, rows * sizeof(qn_sample_result_t)) }, b = a;
    b.tables.rows = case_copy(c, slots, rows * sizeof *slots);
    b.ret_results = case_hold_zero(c, rows * sizeof(qn_sample_result_t));
    case_add_output(c, a.ret_results, b.ret_results, rows * sizeof(qn_sample_result_t) / 4, true);
    TAKE(c, qn_sampler_t, a, b);
    c->bytes = 4.0 * rows * vocab;
}

/* ---- the table ---- */

#define FORMATS3(m, t, part) \
    { QN_OP_MATMUL, &m, t, 0, QN_SCALAR_BF16, part, make_matmul }, \
    { QN_OP_MATMUL, &m, t, 0, QN_SCALAR_INT8, part, make_matmul }, \
    { QN_OP_MATMUL, &m, t, 0, QN_SCALAR_INT4, part, make_matmul }
#define PRODUCTS(m, t) \
    FORMATS3(m, t, "qkv"), FORMATS3(m, t, "output"), FORMATS3(m, t, "gate_up"), FORMATS3(m, t, "down")
#define ROWS3(op, m, scalar, make) \
    { op, &m, 1, 0, scalar, NULL, make }, { op, &m, 8, 0, scalar, NULL, make }, { op, &m, 512, 0, scalar, NULL, make }
#define ATTENTION(m, scalar) \
    { QN_OP_ATTENTION_PREFILL, &m, 512, 512, scalar, NULL, make_attention }, \
    { QN_OP_ATTENTION_DECODE, &m, 1, 256, scalar, NULL, make_attention }, \
    { QN_OP_ATTENTION_DECODE, &m, 1, 4096, scalar, NULL, make_attention }, \
    { QN_OP_ATTENTION_DECODE, &m, 8, 256, scalar, NULL, make_attention }, \
    { QN_OP_ATTENTION_DECODE, &m, 8, 2048, scalar, NULL, make_attention }

static const row_t ROWS[] = {
    PRODUCTS(BUNDLED, 1), PRODUCTS(BUNDLED, 8), PRODUCTS(BUNDLED, 512), FORMATS3(BUNDLED, 1, "head"),
    { QN_OP_MATMUL, &BUNDLED, 8, 0, QN_SCALAR_F32, "gate_up", make_matmul },
    { QN_OP_MATMUL, &QWEN, 1, 0, QN_SCALAR_F32, "gate_up", make_matmul },
    { QN_OP_MATMUL, &QWEN, 512, 0, QN_SCALAR_F32, "gate_up", make_matmul },
    PRODUCTS(QWEN, 1), PRODUCTS(QWEN, 8), PRODUCTS(QWEN, 512), FORMATS3(QWEN, 1, "head"), FORMATS3(QWEN, 8, "head"),
    ROWS3(QN_OP_EMBEDDING, QWEN, QN_SCALAR_INT8, make_embedding),
    ROWS3(QN_OP_RMSNORM, QWEN, QN_SCALAR_F32, make_rmsnorm),
    ROWS3(QN_OP_LAYERNORM, QWEN, QN_SCALAR_F32, make_layernorm),
    ROWS3(QN_OP_ROPE_ANGLES, QWEN, QN_SCALAR_F32, make_angles), ROWS3(QN_OP_ROPE, QWEN, QN_SCALAR_F32, make_rope),
    ROWS3(QN_OP_KV_WRITE, QWEN, QN_SCALAR_BF16, make_kv_write),
    ATTENTION(BUNDLED, QN_SCALAR_F32), ATTENTION(QWEN, QN_SCALAR_F32), ATTENTION(QWEN, QN_SCALAR_BF16),
    ROWS3(QN_OP_ACTIVATION, QWEN, QN_SCALAR_F32, make_activation),
    { QN_OP_ACTIVATION, &QWEN, 512, 0, QN_SCALAR_F32, "gelu", make_activation },
    ROWS3(QN_OP_MOE_ROUTE, QWEN, QN_SCALAR_F32, make_route),
    { QN_OP_EXPERT_MATMUL, &QWEN, 1, 0, QN_SCALAR_BF16, NULL, make_expert },
    { QN_OP_EXPERT_MATMUL, &QWEN, 1, 0, QN_SCALAR_INT8, NULL, make_expert },
    { QN_OP_EXPERT_MATMUL, &QWEN, 64, 0, QN_SCALAR_BF16, NULL, make_expert },
    { QN_OP_EXPERT_MATMUL, &QWEN, 64, 0, QN_SCALAR_INT8, NULL, make_expert },
    ROWS3(QN_OP_MOE_COMBINE, QWEN, QN_SCALAR_F32, make_combine),
    { QN_OP_SOFTCAP, &QWEN, 1, 0, QN_SCALAR_F32, NULL, make_softcap },
    { QN_OP_GATHER_ROWS, &QWEN, 8, 0, QN_SCALAR_F32, NULL, make_gather },
    { QN_OP_LOGPROBS, &QWEN, 1, 0, QN_SCALAR_F32, NULL, make_logprobs },
    { QN_OP_LOGPROBS, &QWEN, 8, 0, QN_SCALAR_F32, NULL, make_logprobs },
    { QN_OP_SAMPLER, &QWEN, 1, 0, QN_SCALAR_F32, NULL, make_sampler },
    { QN_OP_SAMPLER, &QWEN, 8, 0, QN_SCALAR_F32, NULL, make_sampler },
    { QN_OP_SAMPLER, &QWEN, 1, 0, QN_SCALAR_F32, "top-k 50, top-p 0.9", make_sampler },
    { QN_OP_SAMPLER, &QWEN, 8, 0, QN_SCALAR_F32, "top-k 50, top-p 0.9", make_sampler },
};

size_t kernel_case_count(void) { return sizeof ROWS / sizeof *ROWS; }

qn_op_t kernel_case_op(size_t index)
{
    QN_ASSERT(index < kernel_case_count());
    return ROWS[index].op;
}

static const char *scalar_word(qn_scalar_t scalar)
{
    static const char *const WORDS[] = { "f32", "bf16", "int8", "int4" };
    return WORDS[scalar];
}

static void describe(kernel_case_t *c, const row_t *row)
{
    char context[32] = "";
    if (row->context) snprintf(context, sizeof context, " context %u", row->context);
    snprintf(c->shape, sizeof c->shape, "%s T %u%s %s%s%s", row->model->name, row->tokens, context,
             scalar_word(row->scalar), row->part ? " " : "", row->part ? row->part : "");
}

qn_err_t kernel_case_make(size_t index, uint64_t cache_bytes, kernel_case_t *ret_case)
{
    QN_ASSERT(index < kernel_case_count());
    const row_t *row = &ROWS[index];
    const shape_t *m = row->model;
    *ret_case = (kernel_case_t){ .op = row->op, .scalar = row->scalar, .needs = {
        .heads = m->heads, .kv_heads = m->kv_heads, .head_dim = m->head_dim, .hidden = m->hidden,
        .intermediate = m->intermediate, .vocab = m->vocab, .block_tokens = BLOCK_TOKENS,
        .kv_scalar = row->scalar == QN_SCALAR_BF16 ? QN_SCALAR_BF16 : QN_SCALAR_F32 } };
    describe(ret_case, row);
    row->make(ret_case, row, cache_bytes);
    return ret_case->no_memory ? qn_fail(QN_ERR_NO_MEMORY, "no memory for %s %s", qn_op_name(row->op), ret_case->shape)
                               : QN_OK;
}

void kernel_case_free(kernel_case_t *made)
{
    for (size_t i = 0; i < made->memory_count; i++) free(made->memory[i]);
    made->memory_count = 0;
}
