/* What is this?      The attention of one layer: projections, norms of q and k, rotation, cache, attention, output.
 * State owned:       none.
 * Must never:        write KV rows but those of this step's tokens.
 * Read next:         forward_mlp.c. */
#include "services/compute/forward_internal.h"

/* RMSNorm over each head (Qwen3). */
static void norm_heads(const forward_t *f, qn_weight_t weight, uint32_t rows, float *x)
{
    const qn_model_config_t *config = &f->model->config;
    qn_launch(&f->kernels, QN_OP_RMSNORM, f->stream, &(qn_rmsnorm_t){
        .x = x, .weight = weight, .rows = rows, .width = config->head_dim, .eps = config->norm_eps,
        .weight_offset = config->norm_weight_offset, .out = x });
}

static void project_qkv(const forward_t *f, const model_layer_t *layer, uint32_t tokens)
{
    const qn_model_config_t *config = &f->model->config;
    const scratch_t *s = f->scratch;
    uint32_t q_width = config->heads * config->head_dim, kv_width = config->kv_heads * config->head_dim;
    qn_launch(&f->kernels, QN_OP_MATMUL, f->stream, &(qn_matmul_t){
        .x = s->normed, .tokens = tokens, .inputs = config->hidden, .part_count = 3, .scratch = s->products,
        .parts = { forward_part(layer, QN_TENSOR_Q, QN_TENSOR_Q_BIAS, q_width, s->q, NULL),
                   forward_part(layer, QN_TENSOR_K, QN_TENSOR_K_BIAS, kv_width, s->k, NULL),
                   forward_part(layer, QN_TENSOR_V, QN_TENSOR_V_BIAS, kv_width, s->v, NULL) } });
    if (config->qk_norm) {
        norm_heads(f, layer->weights[QN_TENSOR_Q_NORM], tokens * config->heads, s->q);
        norm_heads(f, layer->weights[QN_TENSOR_K_NORM], tokens * config->kv_heads, s->k);
    }
    if (config->rope.type != QN_ROPE_NONE)
        qn_launch(&f->kernels, QN_OP_ROPE, f->stream, &(qn_rope_t){
            .angles = s->angles, .q = s->q, .k = s->k, .tokens = tokens, .heads = config->heads,
            .kv_heads = config->kv_heads, .head_dim = config->head_dim });
}

static void attend(const forward_t *f, uint32_t layer, const forward_batch_t *batch)
{
    const qn_model_config_t *config = &f->model->config;
    const scratch_t *s = f->scratch;
    qn_launch(&f->kernels, QN_OP_KV_WRITE, f->stream, &(qn_kv_write_t){
        .kv = f->kv, .layer = layer, .tokens = batch->tokens, .k = s->k, .v = s->v, .kv_rows = s->kv_rows });
    qn_attention_t attention = {
        .kv = f->kv, .tables = s->tables, .layer = layer, .heads = config->heads,
        .window = config->layer_slides[layer] ? config->sliding_window : 0, .softcap = config->attention_softcap,
        .scale = config->attention_scale / (config->attention_scale_by_layer ? (float)(layer + 1) : 1),
        .q = s->q, .out = s->attended };
    attention.runs = s->io.prefill_runs;
    attention.run_count = batch->prefill_runs;
    if (batch->prefill_runs) qn_launch(&f->kernels, QN_OP_ATTENTION_PREFILL, f->stream, &attention);
    attention.runs = s->io.decode_runs;
    attention.run_count = batch->decode_runs;
    if (batch->decode_runs) qn_launch(&f->kernels, QN_OP_ATTENTION_DECODE, f->stream, &attention);
}

void forward_attention(const forward_t *f, uint32_t layer, const forward_batch_t *batch)
{
    const qn_model_config_t *config = &f->model->config;
    const model_layer_t *from = &f->model->layers[layer];
    const scratch_t *s = f->scratch;
    forward_norm(f, s->x, from->weights[QN_TENSOR_ATTENTION_NORM], from->weights[QN_TENSOR_ATTENTION_NORM_BIAS], NULL,
                 batch->tokens, s->normed);
    project_qkv(f, from, batch->tokens);
    attend(f, layer, batch);
    forward_add(f, s->attended, config->heads * config->head_dim, layer, QN_TENSOR_OUTPUT, QN_TENSOR_OUTPUT_BIAS,
                QN_TENSOR_POST_ATTENTION_NORM, batch->tokens);
}
