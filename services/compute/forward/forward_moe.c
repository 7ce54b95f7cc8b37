/* What is this?      A layer of experts: each token goes through the few that its router chooses, and what they say is
 *                    added up by the router's weights.
 * State owned:       none.
 * Must never:        know on the host which experts were chosen.
 * Read next:         kernels/kernels.h (moe_route's order), kernels/cpu/moe.c. */
#include "services/compute/forward/forward_internal.h"

static void route(const forward_t *f, const model_layer_t *layer, uint32_t tokens)
{
    const qn_model_config_t *config = &f->model->config;
    const scratch_t *s = f->scratch;
    qn_launch(&f->kernels, QN_OP_MATMUL, f->stream,
              &(qn_matmul_t){.x = s->normed,
                             .tokens = tokens,
                             .inputs = config->hidden,
                             .part_count = 1,
                             .scratch = s->products,
                             .parts = {{.weight = layer->weights[QN_TENSOR_ROUTER],
                                        .outputs = config->experts,
                                        .out = s->router}}});
    qn_launch(&f->kernels, QN_OP_MOE_ROUTE, f->stream,
              &(qn_moe_route_t){.logits = s->router,
                                .tokens = tokens,
                                .experts = config->experts,
                                .per_token = config->experts_per_token,
                                .normalise = config->normalise_experts,
                                .ret_weights = s->expert_weights,
                                .ret_places = s->expert_places,
                                .ret_rows = s->expert_rows,
                                .ret_offsets = s->expert_offsets});
    qn_launch(&f->kernels, QN_OP_GATHER_ROWS, f->stream,
              &(qn_gather_rows_t){.x = s->normed,
                                  .rows = s->expert_rows,
                                  .row_count = tokens * config->experts_per_token,
                                  .width = config->hidden,
                                  .out = s->expert_x});
}

static const qn_weight_t *experts(const forward_t *f, uint32_t layer, model_expert_part_t part)
{
    return f->scratch->experts + model_expert_at(&f->model->config, layer, part);
}

static qn_scalar_t scalar_of(const forward_t *f, uint32_t layer, model_expert_part_t part)
{
    return f->model->experts[model_expert_at(&f->model->config, layer, part)].scalar;
}

static void ask_experts(const forward_t *f, uint32_t layer, uint32_t places)
{
    const qn_model_config_t *config = &f->model->config;
    const scratch_t *s = f->scratch;
    uint32_t width = config->expert_intermediate;
    qn_launch(&f->kernels, QN_OP_EXPERT_MATMUL, f->stream,
              &(qn_expert_matmul_t){.x = s->expert_x,
                                    .offsets = s->expert_offsets,
                                    .places = places,
                                    .inputs = config->hidden,
                                    .experts = config->experts,
                                    .outputs = width,
                                    .part_count = 2,
                                    .scratch = s->products,
                                    .weights = {experts(f, layer, MODEL_EXPERT_GATE),
                                                experts(f, layer, MODEL_EXPERT_UP)},
                                    .out = {s->gate, s->up},
                                    .scalar = scalar_of(f, layer, MODEL_EXPERT_GATE)});
    qn_launch(&f->kernels, QN_OP_ACTIVATION, f->stream,
              &(qn_activate_t){.gate = s->gate,
                               .up = s->up,
                               .tokens = places,
                               .width = width,
                               .kind = config->activation,
                               .out = s->gate});
    qn_launch(&f->kernels, QN_OP_EXPERT_MATMUL, f->stream,
              &(qn_expert_matmul_t){.x = s->gate,
                                    .offsets = s->expert_offsets,
                                    .places = places,
                                    .inputs = width,
                                    .experts = config->experts,
                                    .outputs = config->hidden,
                                    .part_count = 1,
                                    .scratch = s->products,
                                    .weights = {experts(f, layer, MODEL_EXPERT_DOWN)},
                                    .out = {s->expert_x},
                                    .scalar = scalar_of(f, layer, MODEL_EXPERT_DOWN)});
}

void forward_moe(const forward_t *f, uint32_t layer, uint32_t tokens)
{
    const qn_model_config_t *config = &f->model->config;
    const model_layer_t *from = &f->model->layers[layer];
    const scratch_t *s = f->scratch;
    forward_norm(f, s->x, from->weights[QN_TENSOR_MLP_NORM], from->weights[QN_TENSOR_MLP_NORM_BIAS], NULL, tokens,
                 s->normed);
    route(f, from, tokens);
    ask_experts(f, layer, tokens * config->experts_per_token);
    const qn_moe_combine_t combine = {.x = s->expert_x,
                                      .weights = s->expert_weights,
                                      .places = s->expert_places,
                                      .residual = s->x,
                                      .tokens = tokens,
                                      .per_token = config->experts_per_token,
                                      .width = config->hidden,
                                      .out = s->x};
    if (forward_has_tap(f, QN_TAP_SITE_MLP_OUT, layer)) {
        forward_begin_added(f, tokens);
        qn_launch(&f->kernels, QN_OP_MOE_COMBINE, f->stream, &combine);
        if (forward_end_added(f, QN_TAP_SITE_MLP_OUT, layer, tokens)) return;
    }
    qn_launch(&f->kernels, QN_OP_MOE_COMBINE, f->stream, &combine);
}
