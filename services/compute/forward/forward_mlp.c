/* What is this?      The dense MLP of one layer: down(f(gate x) * up x), or down(f(up x)) where there is no gate.
 * State owned:       none.
 * Must never:        be run for a layer of experts.
 * Read next:         forward_moe.c. */
#include "services/compute/forward/forward_internal.h"

void forward_mlp(const forward_t *f, uint32_t layer, uint32_t tokens)
{
    const qn_model_config_t *config = &f->model->config;
    const model_layer_t *from = &f->model->layers[layer];
    const scratch_t *s = f->scratch;
    uint32_t width = config->intermediate;
    qn_norm_matmul_t enter = {.matmul = {.x = s->normed,
                                         .tokens = tokens,
                                         .inputs = config->hidden,
                                         .scratch = s->products,
                                         .part_count = config->gated_mlp ? 2 : 1},
                              .activation = {.gate = s->gate,
                                             .up = config->gated_mlp ? s->up : NULL,
                                             .tokens = tokens,
                                             .width = width,
                                             .kind = config->activation,
                                             .out = s->gate}};
    qn_matmul_part_t *parts = enter.matmul.parts;
    parts[0] = config->gated_mlp ? forward_part(from, QN_TENSOR_GATE, QN_TENSOR_GATE_BIAS, width, s->gate, NULL)
                                 : forward_part(from, QN_TENSOR_UP, QN_TENSOR_UP_BIAS, width, s->gate, NULL);
    if (config->gated_mlp) parts[1] = forward_part(from, QN_TENSOR_UP, QN_TENSOR_UP_BIAS, width, s->up, NULL);
    forward_normed_product(f, s->x, from->weights[QN_TENSOR_MLP_NORM], from->weights[QN_TENSOR_MLP_NORM_BIAS], &enter);
    forward_add(f, s->gate, width, layer, QN_TENSOR_DOWN, QN_TENSOR_DOWN_BIAS, QN_TENSOR_POST_MLP_NORM,
                QN_TAP_SITE_MLP_OUT, tokens);
}
