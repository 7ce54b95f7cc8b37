/* What is this?      The network of the Llama family as a list of launches.
 * State owned:       none.
 * Must never:        look at a value the device computed; depend on how the batch is made up.
 * Read next:         kernels/kernels.h (each launch), common/model_tensors.h (the weights' shapes). */
#include "services/compute/forward.h"

#include <math.h>

/* Adds the time since *since to *sum and moves *since on. On a CPU launches are done when they return. */
static void lap(const forward_t *f, uint64_t *since, uint64_t *sum)
{
    uint64_t now = f->now_ns();
    *sum += now - *since;
    *since = now;
}

static void norm(const forward_t *f, const float *x, qn_weight_t weight, uint32_t rows, uint32_t width, float *out)
{
    qn_launch(&f->kernels, QN_OP_RMSNORM, f->stream, &(qn_rmsnorm_t){
        .x = x, .weight = weight, .rows = rows, .width = width, .eps = f->model->config.norm_eps, .out = out });
}

/* out = x Wᵀ (+ bias) (+ residual) */
static qn_matmul_part_t part(const model_layer_t *layer, qn_tensor_role_t weight, qn_tensor_role_t bias,
                             uint32_t outputs, float *out, const float *residual)
{
    return (qn_matmul_part_t){ .weight = layer->weights[weight], .bias = layer->weights[bias], .outputs = outputs,
                               .out = out, .residual = residual };
}

static void project_qkv(const forward_t *f, const model_layer_t *layer, uint32_t tokens)
{
    const qn_model_config_t *config = &f->model->config;
    const scratch_t *s = f->scratch;
    uint32_t q_width = config->heads * config->head_dim, kv_width = config->kv_heads * config->head_dim;
    qn_launch(&f->kernels, QN_OP_MATMUL, f->stream, &(qn_matmul_t){
        .x = s->normed, .tokens = tokens, .inputs = config->hidden, .part_count = 3,
        .parts = { part(layer, QN_TENSOR_Q, QN_TENSOR_Q_BIAS, q_width, s->q, NULL),
                   part(layer, QN_TENSOR_K, QN_TENSOR_K_BIAS, kv_width, s->k, NULL),
                   part(layer, QN_TENSOR_V, QN_TENSOR_V_BIAS, kv_width, s->v, NULL) } });
    if (config->qk_norm) {
        norm(f, s->q, layer->weights[QN_TENSOR_Q_NORM], tokens * config->heads, config->head_dim, s->q);
        norm(f, s->k, layer->weights[QN_TENSOR_K_NORM], tokens * config->kv_heads, config->head_dim, s->k);
    }
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
        .window = config->layer_slides[layer] ? config->sliding_window : 0,
        .scale = 1 / sqrtf((float)config->head_dim), .q = s->q, .out = s->attended };
    attention.runs = s->prefill_runs;
    attention.run_count = batch->prefill_runs;
    if (batch->prefill_runs) qn_launch(&f->kernels, QN_OP_ATTENTION_PREFILL, f->stream, &attention);
    attention.runs = s->decode_runs;
    attention.run_count = batch->decode_runs;
    if (batch->decode_runs) qn_launch(&f->kernels, QN_OP_ATTENTION_DECODE, f->stream, &attention);
}

static void attention_block(const forward_t *f, uint32_t index, const forward_batch_t *batch)
{
    const qn_model_config_t *config = &f->model->config;
    const model_layer_t *layer = &f->model->layers[index];
    const scratch_t *s = f->scratch;
    norm(f, s->x, layer->weights[QN_TENSOR_ATTENTION_NORM], batch->tokens, config->hidden, s->normed);
    project_qkv(f, layer, batch->tokens);
    attend(f, index, batch);
    qn_launch(&f->kernels, QN_OP_MATMUL, f->stream, &(qn_matmul_t){
        .x = s->attended, .tokens = batch->tokens, .inputs = config->heads * config->head_dim, .part_count = 1,
        .parts = { part(layer, QN_TENSOR_OUTPUT, QN_TENSOR_OUTPUT_BIAS, config->hidden, s->x, s->x) } });
}

static void mlp_block(const forward_t *f, uint32_t index, const forward_batch_t *batch)
{
    const qn_model_config_t *config = &f->model->config;
    const model_layer_t *layer = &f->model->layers[index];
    const scratch_t *s = f->scratch;
    norm(f, s->x, layer->weights[QN_TENSOR_MLP_NORM], batch->tokens, config->hidden, s->normed);
    qn_launch(&f->kernels, QN_OP_MATMUL, f->stream, &(qn_matmul_t){
        .x = s->normed, .tokens = batch->tokens, .inputs = config->hidden, .part_count = 2,
        .parts = { part(layer, QN_TENSOR_GATE, QN_TENSOR_GATE_BIAS, config->intermediate, s->gate, NULL),
                   part(layer, QN_TENSOR_UP, QN_TENSOR_UP_BIAS, config->intermediate, s->up, NULL) } });
    qn_launch(&f->kernels, QN_OP_ACTIVATION, f->stream, &(qn_activate_t){
        .gate = s->gate, .up = s->up, .tokens = batch->tokens, .width = config->intermediate, .out = s->gate });
    qn_launch(&f->kernels, QN_OP_MATMUL, f->stream, &(qn_matmul_t){
        .x = s->gate, .tokens = batch->tokens, .inputs = config->intermediate, .part_count = 1,
        .parts = { part(layer, QN_TENSOR_DOWN, QN_TENSOR_DOWN_BIAS, config->hidden, s->x, s->x) } });
}

static void embed(const forward_t *f, uint32_t tokens)
{
    const qn_model_config_t *config = &f->model->config;
    const scratch_t *s = f->scratch;
    qn_launch(&f->kernels, QN_OP_EMBEDDING, f->stream, &(qn_embedding_t){
        .table = f->model->embedding, .ids = s->token_ids, .tokens = tokens, .width = config->hidden, .out = s->x });
    qn_launch(&f->kernels, QN_OP_ROPE_ANGLES, f->stream, &(qn_rope_angles_t){
        .positions = s->positions, .frequencies = s->frequencies, .scale = (float)config->rope.attention_factor,
        .tokens = tokens, .head_dim = config->head_dim, .out = s->angles });
}

void forward_layers(const forward_t *forward, const forward_batch_t *batch, step_times_t *times)
{
    uint64_t since = forward->now_ns();
    embed(forward, batch->tokens);
    lap(forward, &since, &times->input_ns);
    for (uint32_t layer = 0; layer < forward->model->config.layers; layer++) {
        attention_block(forward, layer, batch);
        lap(forward, &since, &times->attention_ns);
        mlp_block(forward, layer, batch);
        lap(forward, &since, &times->mlp_ns);
    }
}

void forward_logits(const forward_t *forward, const float *source, uint32_t count, step_times_t *times)
{
    const qn_model_config_t *config = &forward->model->config;
    const scratch_t *s = forward->scratch;
    uint64_t since = forward->now_ns();
    qn_launch(&forward->kernels, QN_OP_GATHER_ROWS, forward->stream, &(qn_gather_rows_t){
        .x = source, .rows = s->rows, .row_count = count, .width = config->hidden, .out = s->picked });
    norm(forward, s->picked, forward->model->final_norm, count, config->hidden, s->picked);
    qn_launch(&forward->kernels, QN_OP_MATMUL, forward->stream, &(qn_matmul_t){
        .x = s->picked, .tokens = count, .inputs = config->hidden, .part_count = 1,
        .parts = { { .weight = forward->model->head, .outputs = config->vocab, .out = s->logits } } });
    lap(forward, &since, &times->output_ns);
}
