/* What is this?      The network as a list of launches; what differs between families is in the configuration.
 * State owned:       none.
 * Must never:        look at a value the device computed; depend on how the batch is made up.
 * Read next:         forward_attention.c, forward_mlp.c, forward_moe.c; kernels/kernels.h (each launch),
 *                    common/model/model_tensors.h (the weights' shapes). */
#include "services/compute/forward/forward.h"

#include "services/compute/forward/forward_internal.h"

void forward_norm(const forward_t *f, const void *x, qn_weight_t weight, qn_weight_t bias, const void *residual,
                  uint32_t tokens, void *out)
{
    const qn_model_config_t *config = &f->model->config;
    if (config->norm == QN_NORM_LAYER)
        qn_launch(&f->kernels, QN_OP_LAYERNORM, f->stream,
                  &(qn_layernorm_t){.x = x,
                                    .weight = weight,
                                    .bias = bias,
                                    .rows = tokens,
                                    .width = config->hidden,
                                    .eps = config->norm_eps,
                                    .out = out});
    else
        qn_launch(&f->kernels, QN_OP_RMSNORM, f->stream,
                  &(qn_rmsnorm_t){.x = x,
                                  .weight = weight,
                                  .residual = residual,
                                  .rows = tokens,
                                  .width = config->hidden,
                                  .eps = config->norm_eps,
                                  .weight_offset = config->norm_weight_offset,
                                  .out = out});
}

void forward_normed_product(const forward_t *f, const void *x, qn_weight_t weight, qn_weight_t bias,
                            qn_norm_matmul_t *launch)
{
    const qn_model_config_t *config = &f->model->config;
    void *normed = (void *)(uintptr_t)launch->matmul.x;
    if (config->norm == QN_NORM_LAYER)
        forward_norm(f, x, weight, bias, NULL, launch->matmul.tokens, normed);
    else
        launch->norm = (qn_rmsnorm_t){.x = x,
                                      .weight = weight,
                                      .rows = launch->matmul.tokens,
                                      .width = config->hidden,
                                      .eps = config->norm_eps,
                                      .weight_offset = config->norm_weight_offset,
                                      .out = normed};
    if (f->kernels.chosen[QN_OP_NORM_MATMUL])
        qn_launch(&f->kernels, QN_OP_NORM_MATMUL, f->stream, launch);
    else
        qn_norm_matmul_parts(&f->kernels, f->stream, launch);
}

void forward_add(const forward_t *f, const void *x, uint32_t inputs, uint32_t layer, qn_tensor_role_t weight,
                 qn_tensor_role_t bias, qn_tensor_role_t post_norm, uint32_t tokens)
{
    const qn_model_config_t *config = &f->model->config;
    const model_layer_t *from = &f->model->layers[layer];
    const scratch_t *s = f->scratch;
    void *out = config->post_norms ? s->normed : s->x;
    qn_launch(&f->kernels, QN_OP_MATMUL, f->stream,
              &(qn_matmul_t){.x = x,
                             .tokens = tokens,
                             .inputs = inputs,
                             .part_count = 1,
                             .scratch = s->products,
                             .parts = {forward_part(from, weight, bias, config->hidden, out,
                                                    config->post_norms ? NULL : s->x)}});
    if (config->post_norms) forward_norm(f, s->normed, from->weights[post_norm], (qn_weight_t){0}, s->x, tokens, s->x);
}

/* Dynamic scaling goes by each sequence's length; the other kinds have frequencies of their own. */
static void make_angles(const forward_t *f, uint32_t tokens)
{
    const qn_model_config_t *config = &f->model->config;
    const scratch_t *s = f->scratch;
    bool dynamic = config->rope.type == QN_ROPE_DYNAMIC;
    qn_launch(&f->kernels, QN_OP_ROPE_ANGLES, f->stream,
              &(qn_rope_angles_t){.positions = s->positions,
                                  .lengths = dynamic ? s->lengths : NULL,
                                  .frequencies = s->frequencies,
                                  .theta = (float)config->rope.theta,
                                  .factor = (float)config->rope.factor,
                                  .original_positions = config->rope.original_max_positions,
                                  .scale = (float)config->rope.attention_factor,
                                  .tokens = tokens,
                                  .head_dim = config->head_dim,
                                  .out = s->angles});
}

static void embed(const forward_t *f, uint32_t tokens)
{
    const qn_model_config_t *config = &f->model->config;
    const qn_weight_t *outer = f->model->outer.weights;
    const scratch_t *s = f->scratch;
    qn_launch(&f->kernels, QN_OP_EMBEDDING, f->stream,
              &(qn_embedding_t){.table = outer[QN_TENSOR_EMBEDDING],
                                .position_table = outer[QN_TENSOR_POSITIONS],
                                .ids = s->token_ids,
                                .positions = s->positions,
                                .tokens = tokens,
                                .width = config->hidden,
                                .multiplier = config->embedding_multiplier,
                                .out = s->x});
    if (config->rope.type != QN_ROPE_NONE) make_angles(f, tokens);
}

void forward_layers(const forward_t *forward, const forward_batch_t *batch, step_times_t *times)
{
    const qn_model_config_t *config = &forward->model->config;
    uint64_t since = forward_begin(forward);
    embed(forward, batch->tokens);
    forward_lap(forward, &since, &times->input_ns);
    for (uint32_t layer = 0; layer < config->layers; layer++) {
        forward_attention(forward, layer, batch);
        forward_lap(forward, &since, &times->attention_ns);
        if (config->layer_is_sparse[layer])
            forward_moe(forward, layer, batch->tokens);
        else
            forward_mlp(forward, layer, batch->tokens);
        forward_lap(forward, &since, &times->mlp_ns);
    }
}

void forward_logits(const forward_t *forward, const void *source, const uint32_t *rows, uint32_t count,
                    step_times_t *times)
{
    const qn_model_config_t *config = &forward->model->config;
    const qn_weight_t *outer = forward->model->outer.weights;
    const scratch_t *s = forward->scratch;
    uint64_t since = forward_begin(forward);
    const void *x = rows ? s->picked : source;
    if (rows)
        qn_launch(&forward->kernels, QN_OP_GATHER_ROWS, forward->stream,
                  &(qn_gather_rows_t){
                      .x = source, .rows = rows, .row_count = count, .width = config->hidden, .out = s->picked});
    qn_norm_matmul_t head = {
        .matmul = {.x = s->picked,
                   .tokens = count,
                   .inputs = config->hidden,
                   .part_count = 1,
                   .scratch = s->products,
                   .parts = {{.weight = outer[QN_TENSOR_HEAD], .outputs = config->vocab, .out = s->logits}}},
        .logits = true};
    forward_normed_product(forward, x, outer[QN_TENSOR_FINAL_NORM], outer[QN_TENSOR_FINAL_NORM_BIAS], &head);
    if (config->logit_softcap > 0)
        qn_launch(&forward->kernels, QN_OP_SOFTCAP, forward->stream,
                  &(qn_softcap_t){.x = s->logits, .rows = count, .width = config->vocab, .cap = config->logit_softcap});
    forward_lap(forward, &since, &times->output_ns);
}
