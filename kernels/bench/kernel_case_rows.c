/* What is this?      The cases of operations on rows, each on its own: norms, positions, activations, experts' choice.
 * State owned:       none; a made case owns its memory.
 * Must never:        give the tested and the exact side different inputs.
 * Read next:         kernels/kernels.h, kernel_cases.c. */
#include <math.h>
#include <string.h>

#include "kernels/bench/kernel_case_data.h"

void case_make_embedding(kernel_case_t *c, const case_row_t *row)
{
    uint32_t width = row->model->hidden, vocab = row->model->vocab;
    size_t count = (size_t)row->tokens * width;
    case_pair_t out = case_output_pair(c, count, count);
    qn_embedding_t a = {.table = case_matrix(c, row->scalar, vocab, width, 7),
                        .ids = case_ids(c, row->tokens, vocab),
                        .tokens = row->tokens,
                        .width = width,
                        .multiplier = 1,
                        .out = out.tested},
                   b = a;
    b.out = out.exact;
    CASE_TAKE(c, qn_embedding_t, a, b);
    c->bytes = 2 * case_activation_bytes(c) * (double)count;
}

void case_make_rmsnorm(kernel_case_t *c, const case_row_t *row)
{
    uint32_t width = row->model->hidden;
    size_t count = (size_t)row->tokens * width;
    case_pair_t out = case_output_pair(c, count, count);
    qn_rmsnorm_t a = {.x = case_activations(c, count, 1),
                      .weight = case_vector(c, width, 2),
                      .rows = row->tokens,
                      .width = width,
                      .eps = 1e-6f,
                      .out = out.tested},
                 b = a;
    b.out = out.exact;
    CASE_TAKE(c, qn_rmsnorm_t, a, b);
    c->bytes = 2 * case_activation_bytes(c) * (double)count;
    c->operations = 4.0 * (double)count;
}

void case_make_layernorm(kernel_case_t *c, const case_row_t *row)
{
    uint32_t width = row->model->hidden;
    size_t count = (size_t)row->tokens * width;
    case_pair_t out = case_output_pair(c, count, count);
    qn_layernorm_t a = {.x = case_activations(c, count, 1),
                        .weight = case_vector(c, width, 2),
                        .bias = case_vector(c, width, 3),
                        .rows = row->tokens,
                        .width = width,
                        .eps = 1e-5f,
                        .out = out.tested},
                   b = a;
    b.out = out.exact;
    CASE_TAKE(c, qn_layernorm_t, a, b);
    c->bytes = 2 * case_activation_bytes(c) * (double)count;
    c->operations = 7.0 * (double)count;
}

void case_make_activation(kernel_case_t *c, const case_row_t *row)
{
    size_t count = (size_t)row->tokens * row->model->intermediate;
    case_pair_t out = case_output_pair(c, count, count);
    qn_activate_t a = {.gate = case_activations(c, count, 1),
                       .up = case_activations(c, count, 2),
                       .tokens = row->tokens,
                       .width = row->model->intermediate,
                       .kind = QN_ACTIVATION_SILU,
                       .out = out.tested},
                  b = a;
    if (row->part) a.kind = b.kind = QN_ACTIVATION_GELU_TANH;
    b.out = out.exact;
    CASE_TAKE(c, qn_activate_t, a, b);
    c->bytes = 3 * case_activation_bytes(c) * (double)count;
}

void case_make_softcap(kernel_case_t *c, const case_row_t *row)
{
    size_t count = (size_t)row->tokens * row->model->vocab;
    float *tested = case_floats(c, count, 5), *exact = case_copy(c, tested, count * sizeof *exact);
    case_add_output(c, tested, exact, count, false);
    qn_softcap_t a = {.x = tested, .rows = row->tokens, .width = row->model->vocab, .cap = 30}, b = a;
    b.x = exact;
    CASE_TAKE(c, qn_softcap_t, a, b);
    c->bytes = 8.0 * (double)count;
}

void case_make_gather(kernel_case_t *c, const case_row_t *row)
{
    uint32_t width = row->model->hidden;
    size_t count = (size_t)row->tokens * width;
    case_pair_t out = case_output_pair(c, count, count);
    qn_gather_rows_t a = {.x = case_activations(c, (size_t)512 * width, 1),
                          .rows = case_ids(c, row->tokens, 512),
                          .row_count = row->tokens,
                          .width = width,
                          .out = out.tested},
                     b = a;
    b.out = out.exact;
    CASE_TAKE(c, qn_gather_rows_t, a, b);
    c->bytes = 2 * case_activation_bytes(c) * (double)count;
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
    for (uint32_t i = 0; values && i < tokens; i++)
        values[i] = 100 + i;
    return values;
}

void case_make_angles(kernel_case_t *c, const case_row_t *row)
{
    uint32_t width = row->model->head_dim;
    size_t count = (size_t)row->tokens * width;
    case_pair_t out = case_float_pair(c, count, count);
    qn_rope_angles_t a = {.positions = positions(c, row->tokens),
                          .frequencies = frequencies(c, width),
                          .scale = 1,
                          .tokens = row->tokens,
                          .head_dim = width,
                          .out = out.tested},
                     b = a;
    b.out = out.exact;
    CASE_TAKE(c, qn_rope_angles_t, a, b);
    c->bytes = 4.0 * (double)count;
}

float *case_angles(kernel_case_t *c, uint32_t tokens, uint32_t head_dim)
{
    float *angles = case_hold(c, (size_t)tokens * head_dim * sizeof *angles);
    for (size_t i = 0; angles && i < (size_t)tokens * head_dim; i++) {
        size_t position = i / head_dim, pair = i % (head_dim / 2);
        double angle = (double)position * 7 + pair;
        angles[i] = (float)(i % head_dim < head_dim / 2 ? cos(angle) : sin(angle));
    }
    return angles;
}

void case_make_rope(kernel_case_t *c, const case_row_t *row)
{
    const kernel_shape_t *m = row->model;
    size_t q = (size_t)row->tokens * m->heads * m->head_dim, k = (size_t)row->tokens * m->kv_heads * m->head_dim;
    qn_rope_t a = {.angles = case_angles(c, row->tokens, m->head_dim),
                   .q = case_activations(c, q, 1),
                   .k = case_activations(c, k, 2),
                   .tokens = row->tokens,
                   .heads = m->heads,
                   .kv_heads = m->kv_heads,
                   .head_dim = m->head_dim},
              b = a;
    b.q = case_copy_activations(c, a.q, q);
    b.k = case_copy_activations(c, a.k, k);
    case_add_output(c, a.q, b.q, q, false);
    case_add_output(c, a.k, b.k, k, false);
    CASE_TAKE(c, qn_rope_t, a, b);
    c->bytes = 2 * case_activation_bytes(c) * (double)(q + k);
    c->operations = 3.0 * (double)(q + k);
}

/* ---- the choice of experts, and the sum of what they say ---- */

static qn_moe_route_t route_of(kernel_case_t *c, const case_row_t *row, const float *logits)
{
    const kernel_shape_t *m = row->model;
    size_t places = (size_t)row->tokens * m->experts_per_token;
    return (qn_moe_route_t){.logits = logits,
                            .tokens = row->tokens,
                            .experts = m->experts,
                            .per_token = m->experts_per_token,
                            .normalise = true,
                            .ret_weights = case_hold_zero(c, places * sizeof(float)),
                            .ret_places = case_hold_zero(c, places * 4),
                            .ret_rows = case_hold_zero(c, places * 4),
                            .ret_offsets = case_hold_zero(c, (m->experts + 1) * sizeof(uint32_t))};
}

void case_make_route(kernel_case_t *c, const case_row_t *row)
{
    const kernel_shape_t *m = row->model;
    size_t places = (size_t)row->tokens * m->experts_per_token;
    float *logits = case_activations(c, (size_t)row->tokens * m->experts, 4);
    qn_moe_route_t a = route_of(c, row, logits), b = route_of(c, row, logits);
    case_add_output(c, a.ret_weights, b.ret_weights, places, false);
    case_add_output(c, a.ret_rows, b.ret_rows, places, true);
    case_add_output(c, a.ret_places, b.ret_places, places, true);
    CASE_TAKE(c, qn_moe_route_t, a, b);
    c->bytes = case_activation_bytes(c) * row->tokens * m->experts + 12.0 * (double)places;
}

void case_make_combine(kernel_case_t *c, const case_row_t *row)
{
    uint32_t width = row->model->hidden, each = row->model->experts_per_token, places = row->tokens * each;
    size_t count = (size_t)row->tokens * width;
    case_pair_t out = case_output_pair(c, count, count);
    uint32_t *order = case_hold(c, places * sizeof *order);
    for (uint32_t i = 0; order && i < places; i++)
        order[i] = places - 1 - i;
    qn_moe_combine_t a = {.x = case_activations(c, (size_t)places * width, 1),
                          .weights = case_floats(c, places, 2),
                          .places = order,
                          .residual = case_activations(c, count, 3),
                          .tokens = row->tokens,
                          .per_token = each,
                          .width = width,
                          .out = out.tested},
                     b = a;
    b.out = out.exact;
    CASE_TAKE(c, qn_moe_combine_t, a, b);
    c->bytes = case_activation_bytes(c) * (places + 2.0 * row->tokens) * width;
    c->operations = 2.0 * places * width;
}
