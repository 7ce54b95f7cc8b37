/* What is this?      The tables of cases, cases by wish, and how far an output may be off.
 * State owned:       none; a made case owns its memory.
 * Must never:        list a shape without saying which model has it.
 * Read next:         kernels/kernels.h; kernel_case_products.c and its like, which make them; tools/bench/bench_kernels.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "kernels/bench/kernel_case_data.h"

static const kernel_shape_t BUNDLED = {"bundled", 4, 2, 64, 256, 768, 4096, 0, 0, 0, 16};
static const kernel_shape_t QWEN = {"qwen2.5-0.5b", 14, 2, 64, 896, 4864, 151936, 64, 8, 768, 16};
static const kernel_shape_t SMALL = {"llama-3.2-1b", 32, 8, 64, 2048, 8192, 128256, 0, 0, 0, 16};
static const kernel_shape_t LARGE = {"llama-3.1-8b", 32, 8, 128, 4096, 14336, 128256, 0, 0, 0, 16};
static const kernel_shape_t EXPERTS = {"qwen3-30b-a3b", 32, 4, 128, 2048, 768, 151936, 128, 8, 768, 16};

/* ---- of a host ---- */

#define FORMATS3(m, t, part)                                                 \
    {QN_OP_MATMUL, &m, t, 0, QN_SCALAR_BF16, part, case_make_matmul, 0},     \
        {QN_OP_MATMUL, &m, t, 0, QN_SCALAR_INT8, part, case_make_matmul, 0}, \
        {QN_OP_MATMUL, &m, t, 0, QN_SCALAR_INT4, part, case_make_matmul, 0}
#define PRODUCTS(m, t) \
    FORMATS3(m, t, "qkv"), FORMATS3(m, t, "output"), FORMATS3(m, t, "gate_up"), FORMATS3(m, t, "down")
#define ROWS3(op, m, scalar, make)                                                \
    {op, &m, 1, 0, scalar, NULL, make, 0}, {op, &m, 8, 0, scalar, NULL, make, 0}, \
        {op, &m, 512, 0, scalar, NULL, make, 0}
#define ATTENTION(m, scalar)                                                         \
    {QN_OP_ATTENTION_PREFILL, &m, 512, 512, scalar, NULL, case_make_attention, 0},   \
        {QN_OP_ATTENTION_DECODE, &m, 1, 256, scalar, NULL, case_make_attention, 0},  \
        {QN_OP_ATTENTION_DECODE, &m, 1, 4096, scalar, NULL, case_make_attention, 0}, \
        {QN_OP_ATTENTION_DECODE, &m, 8, 256, scalar, NULL, case_make_attention, 0},  \
        {QN_OP_ATTENTION_DECODE, &m, 8, 2048, scalar, NULL, case_make_attention, 0}

static const case_row_t HOST[] = {
    PRODUCTS(BUNDLED, 1),
    PRODUCTS(BUNDLED, 8),
    PRODUCTS(BUNDLED, 512),
    FORMATS3(BUNDLED, 1, "head"),
    {QN_OP_MATMUL, &BUNDLED, 8, 0, QN_SCALAR_F32, "gate_up", case_make_matmul, 0},
    {QN_OP_MATMUL, &QWEN, 1, 0, QN_SCALAR_F32, "gate_up", case_make_matmul, 0},
    {QN_OP_MATMUL, &QWEN, 512, 0, QN_SCALAR_F32, "gate_up", case_make_matmul, 0},
    PRODUCTS(QWEN, 1),
    PRODUCTS(QWEN, 8),
    PRODUCTS(QWEN, 512),
    FORMATS3(QWEN, 1, "head"),
    FORMATS3(QWEN, 8, "head"),
    {QN_OP_NORM_MATMUL, &QWEN, 1, 0, QN_SCALAR_INT8, "gate_up", case_make_norm_matmul, 0},
    {QN_OP_NORM_MATMUL, &QWEN, 8, 0, QN_SCALAR_INT8, "gate_up", case_make_norm_matmul, 0},
    {QN_OP_NORM_MATMUL, &QWEN, 512, 0, QN_SCALAR_INT8, "gate_up", case_make_norm_matmul, 0},
    ROWS3(QN_OP_EMBEDDING, QWEN, QN_SCALAR_INT8, case_make_embedding),
    ROWS3(QN_OP_RMSNORM, QWEN, QN_SCALAR_F32, case_make_rmsnorm),
    ROWS3(QN_OP_LAYERNORM, QWEN, QN_SCALAR_F32, case_make_layernorm),
    ROWS3(QN_OP_ROPE_ANGLES, QWEN, QN_SCALAR_F32, case_make_angles),
    ROWS3(QN_OP_ROPE, QWEN, QN_SCALAR_F32, case_make_rope),
    ROWS3(QN_OP_KV_WRITE, QWEN, QN_SCALAR_BF16, case_make_kv_write),
    ATTENTION(BUNDLED, QN_SCALAR_F32),
    ATTENTION(QWEN, QN_SCALAR_F32),
    ATTENTION(QWEN, QN_SCALAR_BF16),
    ROWS3(QN_OP_ACTIVATION, QWEN, QN_SCALAR_F32, case_make_activation),
    {QN_OP_ACTIVATION, &QWEN, 512, 0, QN_SCALAR_F32, "gelu", case_make_activation, 0},
    ROWS3(QN_OP_MOE_ROUTE, QWEN, QN_SCALAR_F32, case_make_route),
    {QN_OP_EXPERT_MATMUL, &QWEN, 1, 0, QN_SCALAR_BF16, NULL, case_make_expert, 0},
    {QN_OP_EXPERT_MATMUL, &QWEN, 1, 0, QN_SCALAR_INT8, NULL, case_make_expert, 0},
    {QN_OP_EXPERT_MATMUL, &QWEN, 64, 0, QN_SCALAR_BF16, NULL, case_make_expert, 0},
    {QN_OP_EXPERT_MATMUL, &QWEN, 64, 0, QN_SCALAR_INT8, NULL, case_make_expert, 0},
    ROWS3(QN_OP_MOE_COMBINE, QWEN, QN_SCALAR_F32, case_make_combine),
    {QN_OP_SOFTCAP, &QWEN, 1, 0, QN_SCALAR_F32, NULL, case_make_softcap, 0},
    {QN_OP_GATHER_ROWS, &QWEN, 8, 0, QN_SCALAR_F32, NULL, case_make_gather, 0},
    {QN_OP_LOGPROBS, &QWEN, 1, 0, QN_SCALAR_F32, NULL, case_make_logprobs, 0},
    {QN_OP_LOGPROBS, &QWEN, 8, 0, QN_SCALAR_F32, NULL, case_make_logprobs, 0},
    {QN_OP_SAMPLER, &QWEN, 1, 0, QN_SCALAR_F32, NULL, case_make_sampler, 0},
    {QN_OP_SAMPLER, &QWEN, 8, 0, QN_SCALAR_F32, NULL, case_make_sampler, 0},
    {QN_OP_SAMPLER, &QWEN, 1, 0, QN_SCALAR_F32, "top-k 50, top-p 0.9", case_make_sampler, 0},
    {QN_OP_SAMPLER, &QWEN, 8, 0, QN_SCALAR_F32, "top-k 50, top-p 0.9", case_make_sampler, 0},
};

/* ---- of a device ---- */

#define BF16(op, m, t, context, part, make) {op, &m, t, context, QN_SCALAR_BF16, part, make, 0}
#define PRODUCTS4(m, t)                                                                                            \
    BF16(QN_OP_MATMUL, m, t, 0, "qkv", case_make_matmul), BF16(QN_OP_MATMUL, m, t, 0, "output", case_make_matmul), \
        BF16(QN_OP_MATMUL, m, t, 0, "gate_up", case_make_matmul),                                                  \
        BF16(QN_OP_MATMUL, m, t, 0, "down", case_make_matmul)
#define FUSED3(m, t)                                                        \
    BF16(QN_OP_NORM_MATMUL, m, t, 0, "qkv", case_make_norm_matmul),         \
        BF16(QN_OP_NORM_MATMUL, m, t, 0, "gate_up", case_make_norm_matmul), \
        BF16(QN_OP_NORM_MATMUL, m, t, 0, "head", case_make_norm_matmul)
#define DECODE(m, t, context)                                               \
    BF16(QN_OP_ATTENTION_DECODE, m, t, context, NULL, case_make_attention), \
        BF16(QN_OP_DECODE_ATTENTION, m, t, context, NULL, case_make_decode_attention)
#define PREFILL(m, t, context) BF16(QN_OP_ATTENTION_PREFILL, m, t, context, NULL, case_make_attention)
#define DECODES(m)                                                                                       \
    DECODE(m, 1, 128), DECODE(m, 1, 1024), DECODE(m, 1, 8192), DECODE(m, 1, 65536), DECODE(m, 16, 1024), \
        DECODE(m, 64, 1024), DECODE(m, 256, 200), DECODE(m, 256, 1024), DECODE(m, 32, 8192)
#define SMALLS(op, make) \
    BF16(op, LARGE, 1, 0, NULL, make), BF16(op, LARGE, 256, 0, NULL, make), BF16(op, LARGE, 8192, 0, NULL, make)
#define EXPERTS4(op, make)                                                                                           \
    BF16(op, EXPERTS, 1, 0, NULL, make), BF16(op, EXPERTS, 8, 0, NULL, make), BF16(op, EXPERTS, 256, 0, NULL, make), \
        BF16(op, EXPERTS, 4096, 0, NULL, make)
#define SAMPLERS(part)                                         \
    BF16(QN_OP_SAMPLER, LARGE, 1, 0, part, case_make_sampler), \
        BF16(QN_OP_SAMPLER, LARGE, 64, 0, part, case_make_sampler)

static const case_row_t DEVICE[] = {
    BF16(QN_OP_SLOT_UPDATE, LARGE, 1, 64, NULL, case_make_slot_update),
    BF16(QN_OP_SLOT_UPDATE, LARGE, 256, 64, NULL, case_make_slot_update),
    BF16(QN_OP_BLOCK_COPY, LARGE, 1, 0, NULL, case_make_block_copy),
    BF16(QN_OP_BLOCK_COPY, LARGE, 256, 0, NULL, case_make_block_copy),
    BF16(QN_OP_STEP_INPUT, LARGE, 1, 1024, NULL, case_make_step_input),
    BF16(QN_OP_STEP_INPUT, LARGE, 256, 1024, NULL, case_make_step_input),
    SMALLS(QN_OP_EMBEDDING, case_make_embedding),
    SMALLS(QN_OP_RMSNORM, case_make_rmsnorm),
    SMALLS(QN_OP_LAYERNORM, case_make_layernorm),
    PRODUCTS4(SMALL, 1),
    PRODUCTS4(SMALL, 8),
    PRODUCTS4(SMALL, 64),
    PRODUCTS4(SMALL, 256),
    PRODUCTS4(SMALL, 1024),
    PRODUCTS4(LARGE, 1),
    PRODUCTS4(LARGE, 4),
    PRODUCTS4(LARGE, 8),
    PRODUCTS4(LARGE, 16),
    PRODUCTS4(LARGE, 32),
    PRODUCTS4(LARGE, 64),
    PRODUCTS4(LARGE, 128),
    PRODUCTS4(LARGE, 256),
    PRODUCTS4(LARGE, 1024),
    PRODUCTS4(LARGE, 8192),
    FUSED3(SMALL, 1),
    FUSED3(SMALL, 8),
    FUSED3(LARGE, 1),
    FUSED3(LARGE, 8),
    FUSED3(LARGE, 64),
    FUSED3(LARGE, 256),
    SMALLS(QN_OP_ROPE_ANGLES, case_make_angles),
    SMALLS(QN_OP_ROPE, case_make_rope),
    SMALLS(QN_OP_KV_WRITE, case_make_kv_write),
    DECODES(SMALL),
    DECODES(LARGE),
    PREFILL(SMALL, 2048, 2048),
    PREFILL(SMALL, 8192, 8192),
    PREFILL(LARGE, 512, 512),
    PREFILL(LARGE, 2048, 2048),
    PREFILL(LARGE, 8192, 8192),
    PREFILL(LARGE, 1024, 8192),
    SMALLS(QN_OP_ACTIVATION, case_make_activation),
    BF16(QN_OP_ACTIVATION, LARGE, 8192, 0, "gelu", case_make_activation),
    EXPERTS4(QN_OP_MOE_ROUTE, case_make_route),
    EXPERTS4(QN_OP_EXPERT_MATMUL, case_make_expert),
    EXPERTS4(QN_OP_MOE_COMBINE, case_make_combine),
    BF16(QN_OP_SOFTCAP, LARGE, 1, 0, NULL, case_make_softcap),
    BF16(QN_OP_SOFTCAP, LARGE, 64, 0, NULL, case_make_softcap),
    BF16(QN_OP_GATHER_ROWS, LARGE, 64, 0, NULL, case_make_gather),
    BF16(QN_OP_LOGPROBS, LARGE, 1, 0, NULL, case_make_logprobs),
    BF16(QN_OP_LOGPROBS, LARGE, 64, 0, NULL, case_make_logprobs),
    SAMPLERS(NULL),
    SAMPLERS("temperature"),
    SAMPLERS("top-k 50, top-p 0.9"),
    SAMPLERS("top-p 0.999 of a flat row"),
};

/* ---- the cases ---- */

size_t kernel_case_count(bool device) { return device ? sizeof DEVICE / sizeof *DEVICE : sizeof HOST / sizeof *HOST; }

static const case_row_t *row_at(bool device, size_t index)
{
    QN_ASSERT(index < kernel_case_count(device));
    return device ? &DEVICE[index] : &HOST[index];
}

qn_op_t kernel_case_op(bool device, size_t index) { return row_at(device, index)->op; }

static void describe(kernel_case_t *c, const case_row_t *row)
{
    char context[32] = "";
    if (row->context) snprintf(context, sizeof context, " context %u", row->context);
    snprintf(c->shape, sizeof c->shape, "%.40s T %u%s %s%s%.24s", row->model->name, row->tokens, context,
             qn_scalar_name(row->scalar), row->part ? " " : "", row->part ? row->part : "");
}

static qn_err_t make(const case_row_t *row, const kernel_case_target_t *target, kernel_case_t *ret_case)
{
    const kernel_shape_t *m = row->model;
    *ret_case = (kernel_case_t){.op = row->op,
                                .scalar = row->scalar,
                                .copies = 1,
                                .target = *target,
                                .needs = {.heads = m->heads,
                                          .kv_heads = m->kv_heads,
                                          .head_dim = m->head_dim,
                                          .hidden = m->hidden,
                                          .intermediate = m->intermediate,
                                          .vocab = m->vocab,
                                          .block_tokens = case_block_tokens(row),
                                          .kv_scalar = row->scalar == QN_SCALAR_BF16 ? QN_SCALAR_BF16 : QN_SCALAR_F32,
                                          .activations = target->activations}};
    describe(ret_case, row);
    row->make(ret_case, row);
    return ret_case->no_memory ? qn_fail(QN_ERR_NO_MEMORY, "no memory for %s %s", qn_op_name(row->op), ret_case->shape)
                               : QN_OK;
}

qn_err_t kernel_case_make(size_t index, const kernel_case_target_t *target, kernel_case_t *ret_case)
{
    return make(row_at(target->device, index), target, ret_case);
}

static void (*const MAKERS[QN_OP_COUNT])(kernel_case_t *c, const case_row_t *row) = {
    [QN_OP_SLOT_UPDATE] = case_make_slot_update,
    [QN_OP_BLOCK_COPY] = case_make_block_copy,
    [QN_OP_STEP_INPUT] = case_make_step_input,
    [QN_OP_EMBEDDING] = case_make_embedding,
    [QN_OP_RMSNORM] = case_make_rmsnorm,
    [QN_OP_LAYERNORM] = case_make_layernorm,
    [QN_OP_MATMUL] = case_make_matmul,
    [QN_OP_ROPE_ANGLES] = case_make_angles,
    [QN_OP_ROPE] = case_make_rope,
    [QN_OP_KV_WRITE] = case_make_kv_write,
    [QN_OP_ATTENTION_PREFILL] = case_make_attention,
    [QN_OP_ATTENTION_DECODE] = case_make_attention,
    [QN_OP_ACTIVATION] = case_make_activation,
    [QN_OP_MOE_ROUTE] = case_make_route,
    [QN_OP_EXPERT_MATMUL] = case_make_expert,
    [QN_OP_MOE_COMBINE] = case_make_combine,
    [QN_OP_SOFTCAP] = case_make_softcap,
    [QN_OP_GATHER_ROWS] = case_make_gather,
    [QN_OP_LOGPROBS] = case_make_logprobs,
    [QN_OP_SAMPLER] = case_make_sampler,
    [QN_OP_NORM_MATMUL] = case_make_norm_matmul,
    [QN_OP_DECODE_ATTENTION] = case_make_decode_attention,
};

bool kernel_op_has_cases(qn_op_t op) { return op < QN_OP_COUNT && MAKERS[op] != NULL; }

qn_err_t kernel_case_make_wish(const kernel_wish_t *wish, const kernel_case_target_t *target, kernel_case_t *ret_case)
{
    case_row_t row = {.op = wish->op,
                      .model = wish->shape,
                      .tokens = wish->tokens,
                      .context = wish->context,
                      .sequences = wish->sequences,
                      .scalar = wish->scalar,
                      .part = wish->part,
                      .make = MAKERS[wish->op]};
    QN_ASSERT(kernel_op_has_cases(wish->op));
    return make(&row, target, ret_case);
}

void kernel_case_free(kernel_case_t *made)
{
    for (size_t i = 0; i < made->memory_count; i++)
        free(made->memory[i].data);
    made->memory_count = 0;
}

/* ---- what came of it ---- */

static double float_error(const kernel_output_t *output)
{
    const float *tested = output->tested, *exact = output->exact;
    double difference = 0, total = 0;
    for (size_t i = 0; i < output->count; i++) {
        double d = (double)tested[i] - (double)exact[i];
        difference += d * d;
        total += (double)exact[i] * (double)exact[i];
    }
    double error = difference == 0 ? 0 : sqrt(difference / total);
    return isfinite(error) ? error : INFINITY;
}

double kernel_case_error(const kernel_case_t *made)
{
    double most = 0;
    for (size_t i = 0; i < made->output_count; i++) {
        const kernel_output_t *output = &made->outputs[i];
        double error = !output->is_id                                             ? float_error(output)
                       : memcmp(output->tested, output->exact, output->count * 4) ? INFINITY
                                                                                  : 0;
        if (error > most) most = error;
    }
    return most;
}

double kernel_tolerance(const kernel_case_t *made)
{
    bool product = made->op == QN_OP_MATMUL || made->op == QN_OP_EXPERT_MATMUL || made->op == QN_OP_NORM_MATMUL;
    bool coarse = made->scalar == QN_SCALAR_INT8 || made->scalar == QN_SCALAR_INT4;
    if (made->target.activations == QN_SCALAR_BF16) return 1e-2; /* every output is rounded to it */
    return product && coarse ? 2e-2 : 1e-5;
}
