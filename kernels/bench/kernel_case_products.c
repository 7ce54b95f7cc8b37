/* What is this?      The cases of matrix products: alone, with a norm before and an activation after, and of experts.
 * State owned:       none; a made case owns its memory.
 * Must never:        give the tested and the exact side different inputs.
 * Read next:         kernels/kernels.h, kernel_cases.c. */
#include "kernels/fused.h"
#include "kernels/bench/kernel_case_data.h"

#define ROTATED_TOKENS 256 /* more of them are not limited by how fast weights arrive */

typedef struct {
    uint32_t inputs, outputs[QN_MATMUL_PARTS], parts;
} product_t;

static product_t product_of(const case_row_t *row)
{
    const kernel_shape_t *m = row->model;
    uint32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    switch (row->part[0]) {
    case 'q': return (product_t){m->hidden, {q, kv, kv}, 3};
    case 'o': return (product_t){q, {m->hidden}, 1};
    case 'g': return (product_t){m->hidden, {m->intermediate, m->intermediate}, 2};
    case 'd': return (product_t){m->intermediate, {m->hidden}, 1};
    default: return (product_t){m->hidden, {m->vocab}, 1};
    }
}

static double outputs_of(const product_t *product)
{
    double sum = 0;
    for (uint32_t p = 0; p < product->parts; p++)
        sum += product->outputs[p];
    return sum;
}

/* Counts and copies; `written`: outputs that leave the launch, of `scalar`. */
static void count_product(kernel_case_t *c, const case_row_t *row, const product_t *product, double written,
                          qn_scalar_t scalar)
{
    uint64_t weights = 0;
    for (uint32_t p = 0; p < product->parts; p++)
        weights += case_matrix_bytes(c, row->scalar, product->outputs[p], product->inputs);
    c->bytes = (double)weights + row->tokens * case_activation_bytes(c) * product->inputs +
               row->tokens * qn_scalar_bytes(scalar) * written;
    c->operations = 2.0 * row->tokens * product->inputs * outputs_of(product);
    if (row->tokens <= ROTATED_TOKENS) case_rotate(c, (double)weights, KERNEL_CASE_COPIES_MAX);
}

/* The last rows of the same product for the exact side; outputs of both without being compared. */
static void make_product(kernel_case_t *c, const case_row_t *row, const product_t *product, qn_matmul_t *tested,
                         qn_matmul_t *exact)
{
    size_t scratch = qn_matmul_scratch_bytes(row->tokens, product->inputs);
    *tested = (qn_matmul_t){.x = case_activations(c, (size_t)row->tokens * product->inputs, 1),
                            .tokens = row->tokens,
                            .inputs = product->inputs,
                            .part_count = product->parts,
                            .scratch = c->target.device ? NULL : case_hold(c, scratch)};
    for (uint32_t p = 0; p < product->parts; p++)
        tested->parts[p] =
            (qn_matmul_part_t){.weight = case_matrix(c, row->scalar, product->outputs[p], product->inputs, 100 + p),
                               .outputs = product->outputs[p]};
    *exact = *tested;
    exact->tokens = case_checked_rows(row, 2 * product->inputs * outputs_of(product));
    exact->x = (const float *)tested->x + (size_t)(row->tokens - exact->tokens) * product->inputs;
}

void case_make_matmul(kernel_case_t *c, const case_row_t *row)
{
    product_t product = product_of(row);
    qn_matmul_t a, b;
    make_product(c, row, &product, &a, &b);
    for (uint32_t p = 0; p < product.parts; p++) {
        size_t outputs = product.outputs[p], skipped = (row->tokens - b.tokens) * outputs;
        case_pair_t out = case_output_pair(c, row->tokens * outputs, b.tokens * outputs);
        a.parts[p].out = out.tested;
        b.parts[p].out = out.exact ? out.exact + skipped : NULL;
    }
    CASE_TAKE(c, qn_matmul_t, a, b);
    count_product(c, row, &product, outputs_of(&product), c->target.activations);
}

/* "gate_up" with the activation after it, "head" with f32 outputs; each with the norm before it. What passes between
 * the parts is compared with nothing. */
void case_make_norm_matmul(kernel_case_t *c, const case_row_t *row)
{
    product_t product = product_of(row);
    bool gated = row->part[0] == 'g', logits = row->part[0] == 'h';
    qn_norm_matmul_t a = {.logits = logits}, b = a;
    make_product(c, row, &product, &a.matmul, &b.matmul);
    const float *x = a.matmul.x;
    size_t normed = (size_t)row->tokens * product.inputs, rows = b.matmul.tokens;
    a.norm = (qn_rmsnorm_t){.x = x,
                            .weight = case_vector(c, product.inputs, 3),
                            .rows = row->tokens,
                            .width = product.inputs,
                            .eps = 1e-6f,
                            .out = case_activations(c, normed, 4)};
    b.norm = a.norm;
    b.norm.x = b.matmul.x, b.norm.rows = b.matmul.tokens;
    b.norm.out = case_activations(c, normed, 4);
    a.matmul.x = a.norm.out, b.matmul.x = b.norm.out;
    for (uint32_t p = 0; p < product.parts; p++) {
        size_t outputs = product.outputs[p], count = row->tokens * outputs;
        case_pair_t out = gated    ? (case_pair_t){case_activations(c, count, 5), case_activations(c, count, 5)}
                          : logits ? case_float_pair(c, count, rows * outputs)
                                   : case_output_pair(c, count, rows * outputs);
        a.matmul.parts[p].out = out.tested;
        b.matmul.parts[p].out = out.exact ? out.exact + (gated ? 0 : (row->tokens - rows) * outputs) : NULL;
    }
    if (gated) {
        size_t width = product.outputs[0];
        case_pair_t out = case_output_pair(c, row->tokens * width, rows * width);
        a.activation = (qn_activate_t){.gate = a.matmul.parts[0].out,
                                       .up = a.matmul.parts[1].out,
                                       .tokens = row->tokens,
                                       .width = (uint32_t)width,
                                       .kind = QN_ACTIVATION_SILU,
                                       .out = out.tested};
        b.activation = a.activation;
        b.activation.gate = b.matmul.parts[0].out, b.activation.up = b.matmul.parts[1].out;
        b.activation.tokens = (uint32_t)rows;
        b.activation.out = out.exact ? out.exact + (row->tokens - rows) * width : NULL;
    }
    CASE_TAKE(c, qn_norm_matmul_t, a, b);
    count_product(c, row, &product, gated ? product.outputs[0] : outputs_of(&product),
                  logits ? QN_SCALAR_F32 : c->target.activations);
}

/* ---- experts ---- */

/* Where each expert's places begin, spread evenly, without the first `skipped` places. */
static uint32_t *even_offsets(kernel_case_t *c, uint32_t experts, uint32_t places, uint32_t skipped)
{
    uint32_t *offsets = case_hold(c, (experts + 1) * sizeof *offsets);
    for (uint32_t e = 0; offsets && e <= experts; e++) {
        uint32_t at = (uint32_t)((uint64_t)places * e / experts);
        offsets[e] = at > skipped ? at - skipped : 0;
    }
    return offsets;
}

void case_make_expert(kernel_case_t *c, const case_row_t *row)
{
    const kernel_shape_t *m = row->model;
    uint32_t inputs = m->hidden, outputs = m->expert_width, places = row->tokens * m->experts_per_token;
    qn_weight_t all = case_matrix(c, row->scalar, (uint64_t)m->experts * outputs, inputs, 30);
    uint64_t bytes = case_matrix_bytes(c, row->scalar, outputs, inputs);
    uint32_t checked = case_checked_rows(row, 2.0 * inputs * outputs) * (places / row->tokens);
    uint32_t skipped = places - checked, used = places < m->experts ? places : m->experts;
    case_pair_t out = case_output_pair(c, (size_t)places * outputs, (size_t)checked * outputs);
    float *x = case_activations(c, (size_t)places * inputs, 1);
    size_t scratch = qn_matmul_scratch_bytes(places, inputs);
    qn_expert_matmul_t a = {.x = x,
                            .offsets = even_offsets(c, m->experts, places, 0),
                            .places = places,
                            .inputs = inputs,
                            .experts = m->experts,
                            .outputs = outputs,
                            .weights = {case_weight_list(c, m->experts, all, bytes)},
                            .out = {out.tested},
                            .part_count = 1,
                            .scratch = c->target.device ? NULL : case_hold(c, scratch),
                            .scalar = row->scalar},
                       b = a;
    b.x = x ? x + (size_t)skipped * inputs : NULL;
    b.offsets = even_offsets(c, m->experts, places, skipped);
    b.places = checked;
    b.out[0] = out.exact ? out.exact + (size_t)skipped * outputs : NULL;
    CASE_TAKE(c, qn_expert_matmul_t, a, b);
    c->bytes = (double)bytes * used + case_activation_bytes(c) * places * (inputs + outputs);
    c->operations = 2.0 * places * inputs * outputs;
    if (c->target.device && row->tokens <= ROTATED_TOKENS) case_rotate(c, (double)bytes * used, 8);
}
