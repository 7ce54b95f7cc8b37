/* What is this?      The dense MLP of one layer: down(f(gate x) * up x), or down(f(up x)) where there is no gate.
 * State owned:       none.
 * Must never:        be run for a layer of experts.
 * Read next:         forward_moe.c. */
#include "services/compute/forward_internal.h"

void forward_mlp(const forward_t *f, uint32_t layer, uint32_t tokens)
{
    const qn_model_config_t *config = &f->model->config;
    const model_layer_t *from = &f->model->layers[layer];
    const scratch_t *s = f->scratch;
    uint32_t width = config->intermediate;
    forward_norm(f, s->x, from->weights[QN_TENSOR_MLP_NORM], from->weights[QN_TENSOR_MLP_NORM_BIAS], NULL, tokens,
                 s->normed);
    qn_launch(&f->kernels, QN_OP_MATMUL, f->stream, &(qn_matmul_t){
        .x = s->normed, .tokens = tokens, .inputs = config->hidden, .part_count = config->gated_mlp ? 2 : 1,
        .scratch = s->products,
        .parts = { forward_part(from, QN_TENSOR_UP, QN_TENSOR_UP_BIAS, width, s->up, NULL),
                   forward_part(from, QN_TENSOR_GATE, QN_TENSOR_GATE_BIAS, width, s->gate, NULL) } });
    qn_launch(&f->kernels, QN_OP_ACTIVATION, f->stream, &(qn_activate_t){
        .gate = config->gated_mlp ? s->gate : s->up, .up = config->gated_mlp ? s->up : NULL, .tokens = tokens,
        .width = width, .kind = config->activation, .out = s->gate });
    forward_add(f, s->gate, width, layer, QN_TENSOR_DOWN, QN_TENSOR_DOWN_BIAS, QN_TENSOR_POST_MLP_NORM, tokens);
}
