/* What is this?      The attention of one layer: projections, norms of q and k, rotation, cache, attention, output.
 * State owned:       none.
 * Must never:        write KV rows but those of this step's tokens.
 * Read next:         forward_mlp.c. */
#include "services/compute/forward/forward_internal.h"

static void project_qkv(const forward_t *f, const model_layer_t *layer, uint32_t tokens)
{
    const qn_model_config_t *config = &f->model->config;
    const scratch_t *s = f->scratch;
    uint32_t q_width = config->heads * config->head_dim, kv_width = config->kv_heads * config->head_dim;
    qn_norm_matmul_t launch = {
        .matmul = {.x = s->normed,
                   .tokens = tokens,
                   .inputs = config->hidden,
                   .part_count = 3,
                   .scratch = s->products,
                   .parts = {forward_part(layer, QN_TENSOR_Q, QN_TENSOR_Q_BIAS, q_width, s->q, NULL),
                             forward_part(layer, QN_TENSOR_K, QN_TENSOR_K_BIAS, kv_width, s->k, NULL),
                             forward_part(layer, QN_TENSOR_V, QN_TENSOR_V_BIAS, kv_width, s->v, NULL)}}};
    forward_normed_product(f, s->x, layer->weights[QN_TENSOR_ATTENTION_NORM],
                           layer->weights[QN_TENSOR_ATTENTION_NORM_BIAS], &launch);
}

/* RMSNorm over each head, in place (Qwen3). */
static qn_rmsnorm_t head_norm(const forward_t *f, qn_weight_t weight, uint32_t rows, void *x)
{
    const qn_model_config_t *config = &f->model->config;
    return (qn_rmsnorm_t){.x = x,
                          .weight = weight,
                          .rows = rows,
                          .width = config->head_dim,
                          .eps = config->norm_eps,
                          .weight_offset = config->norm_weight_offset,
                          .out = x};
}

/* From the projections to the heads' outputs, of `batch`'s runs of one token. */
static qn_decode_attention_t describe(const forward_t *f, uint32_t layer, const forward_batch_t *batch)
{
    const qn_model_config_t *config = &f->model->config;
    const qn_weight_t *weights = f->model->layers[layer].weights;
    const scratch_t *s = f->scratch;
    qn_decode_attention_t whole = {
        .write = {.kv = f->kv, .layer = layer, .tokens = batch->tokens, .k = s->k, .v = s->v, .kv_rows = s->kv_rows},
        .attention = {.kv = f->kv,
                      .tables = s->tables,
                      .layer = layer,
                      .heads = config->heads,
                      .window = config->layer_slides[layer] ? config->sliding_window : 0,
                      .softcap = config->attention_softcap,
                      .scale = config->attention_scale / (config->attention_scale_by_layer ? (float)(layer + 1) : 1),
                      .q = s->q,
                      .out = s->attended,
                      .runs = s->in.decode_runs,
                      .run_count = batch->decode_runs}};
    if (config->qk_norm) {
        whole.q_norm = head_norm(f, weights[QN_TENSOR_Q_NORM], batch->tokens * config->heads, s->q);
        whole.k_norm = head_norm(f, weights[QN_TENSOR_K_NORM], batch->tokens * config->kv_heads, s->k);
    }
    if (config->rope.type != QN_ROPE_NONE)
        whole.rope = (qn_rope_t){.angles = s->angles,
                                 .q = s->q,
                                 .k = s->k,
                                 .tokens = batch->tokens,
                                 .heads = config->heads,
                                 .kv_heads = config->kv_heads,
                                 .head_dim = config->head_dim};
    return whole;
}

/* Prompts: as chunks, or token by token, at most as many at once as a step may decode. */
static void attend_prompts(const forward_t *f, const forward_batch_t *batch, const qn_attention_t *from)
{
    qn_attention_t attention = *from;
    uint32_t most = f->scratch->tables.slots - 2; /* but the null slot and that of tasks */
    if (!batch->token_runs) {
        attention.runs = f->scratch->in.prefill_runs;
        attention.run_count = batch->prefill_runs;
        qn_launch(&f->kernels, QN_OP_ATTENTION_PREFILL, f->stream, &attention);
    }
    for (uint32_t done = 0; done < batch->token_runs; done += attention.run_count) {
        attention.runs = f->scratch->in.token_runs + done;
        attention.run_count = step_smaller(batch->token_runs - done, most);
        qn_launch(&f->kernels, QN_OP_ATTENTION_DECODE, f->stream, &attention);
    }
}

/* As qn_enter_attention, with q, k and v looked at before the cache has them. */
static void enter_tapped(const forward_t *f, uint32_t layer, const qn_decode_attention_t *whole)
{
    const qn_model_config_t *config = &f->model->config;
    const scratch_t *s = f->scratch;
    if (whole->q_norm.x) qn_launch(&f->kernels, QN_OP_RMSNORM, f->stream, &whole->q_norm);
    if (whole->k_norm.x) qn_launch(&f->kernels, QN_OP_RMSNORM, f->stream, &whole->k_norm);
    if (whole->rope.angles) qn_launch(&f->kernels, QN_OP_ROPE, f->stream, &whole->rope);
    forward_tap_rows(f, QN_TAP_SITE_ATTN_Q, layer, s->q, config->heads * config->head_dim);
    forward_tap_rows(f, QN_TAP_SITE_ATTN_K, layer, s->k, config->kv_heads * config->head_dim);
    forward_tap_rows(f, QN_TAP_SITE_ATTN_V, layer, s->v, config->kv_heads * config->head_dim);
    qn_launch(&f->kernels, QN_OP_KV_WRITE, f->stream, &whole->write);
}

/* A launch for all of it reads the cache as earlier steps left it, so it is for steps without prompts. */
static void attend(const forward_t *f, uint32_t layer, const forward_batch_t *batch)
{
    qn_decode_attention_t whole = describe(f, layer, batch);
    if (!f->probe && !batch->prefill_runs && f->kernels.chosen[QN_OP_DECODE_ATTENTION]) {
        qn_launch(&f->kernels, QN_OP_DECODE_ATTENTION, f->stream, &whole);
        return;
    }
    if (f->probe)
        enter_tapped(f, layer, &whole);
    else
        qn_enter_attention(&f->kernels, f->stream, &whole);
    if (forward_probes_attention(f, layer)) {
        forward_attend_probed(f, &whole.attention, batch->decode_runs + batch->prefill_runs);
        return;
    }
    if (batch->prefill_runs) attend_prompts(f, batch, &whole.attention);
    if (batch->decode_runs) qn_launch(&f->kernels, QN_OP_ATTENTION_DECODE, f->stream, &whole.attention);
}

void forward_attention(const forward_t *f, uint32_t layer, const forward_batch_t *batch)
{
    const qn_model_config_t *config = &f->model->config;
    const model_layer_t *from = &f->model->layers[layer];
    project_qkv(f, from, batch->tokens);
    attend(f, layer, batch);
    forward_add(f, f->scratch->attended, config->heads * config->head_dim, layer, QN_TENSOR_OUTPUT,
                QN_TENSOR_OUTPUT_BIAS, QN_TENSOR_POST_ATTENTION_NORM, QN_TAP_SITE_ATTN_OUT, batch->tokens);
}
