/* What is this?      The table of CUDA implementations.
 * State owned:       none.
 * Must never:        list a row that this folder cannot run for every shape it accepts.
 * Read next:         cuda.h; a file of this folder per operation. */
#include "kernels/cuda/cuda.h"

static bool has_tensor_shape(const qn_kernel_case_t *shape)
{
    uint32_t dim = shape->head_dim;
    return shape->kv_scalar == QN_SCALAR_BF16 && (dim == 32 || dim == 64 || dim == 96 || dim == 128 || dim == 256);
}

/* By name only: others of this folder take every type, in their own way. */
static bool has_tensor_types(const qn_kernel_case_t *shape)
{
    return has_tensor_shape(shape) && shape->activations == QN_SCALAR_BF16;
}

static bool has_bf16_activations(const qn_kernel_case_t *shape) { return shape->activations == QN_SCALAR_BF16; }

static bool has_wide_shape(const qn_kernel_case_t *shape)
{
    return has_tensor_types(shape) && qn_cuda_wide_takes(shape->head_dim, shape->block_tokens);
}

static const qn_kernel_t KERNELS[] = {
    {QN_OP_SLOT_UPDATE, "cuda", 0, 0, NULL, qn_cuda_slot_update},
    {QN_OP_BLOCK_COPY, "cuda", 0, 0, NULL, qn_cuda_block_copy},
    {QN_OP_STEP_INPUT, "cuda", 0, 0, NULL, qn_cuda_step_input},
    {QN_OP_EMBEDDING, "cuda", 0, 0, NULL, qn_cuda_embedding},
    {QN_OP_RMSNORM, "cuda", 0, 0, NULL, qn_cuda_rmsnorm},
    {QN_OP_LAYERNORM, "cuda", 0, 0, NULL, qn_cuda_layernorm},
    {QN_OP_MATMUL, "reference", 0, 0, NULL, qn_cuda_matmul_plain},
    {QN_OP_MATMUL, "wide", QN_ISA_SM90, 1, has_bf16_activations, qn_cuda_matmul_wide},
    {QN_OP_MATMUL, "cuda", 0, 2, NULL, qn_cuda_matmul},
    {QN_OP_ROPE_ANGLES, "cuda", 0, 0, NULL, qn_cuda_rope_angles},
    {QN_OP_ROPE, "cuda", 0, 0, NULL, qn_cuda_rope},
    {QN_OP_KV_WRITE, "cuda", 0, 0, NULL, qn_cuda_kv_write},
    {QN_OP_ATTENTION_PREFILL, "reference", 0, 0, NULL, qn_cuda_attention_plain},
    {QN_OP_ATTENTION_PREFILL, "mma", 0, 1, has_tensor_types, qn_cuda_attention_mma},
    {QN_OP_ATTENTION_PREFILL, "wgmma", QN_ISA_SM90, 1, has_wide_shape, qn_cuda_attention_wgmma},
    {QN_OP_ATTENTION_PREFILL, "cuda", 0, 2, has_tensor_shape, qn_cuda_attention_prefill},
    {QN_OP_ATTENTION_DECODE, "reference", 0, 0, NULL, qn_cuda_attention_plain},
    {QN_OP_ATTENTION_DECODE, "splits", 0, 1, has_tensor_shape, qn_cuda_attention_splits},
    {QN_OP_ATTENTION_DECODE, "resident", 0, 1, qn_cuda_resident_accepts, qn_cuda_attention_resident},
    {QN_OP_ATTENTION_DECODE, "cuda", 0, 2, has_tensor_shape, qn_cuda_attention_decode},
    {QN_OP_ACTIVATION, "cuda", 0, 0, NULL, qn_cuda_activation},
    {QN_OP_MOE_ROUTE, "cuda", 0, 0, NULL, qn_cuda_moe_route},
    {QN_OP_EXPERT_MATMUL, "cuda", 0, 0, NULL, qn_cuda_expert_matmul},
    {QN_OP_MOE_COMBINE, "cuda", 0, 0, NULL, qn_cuda_moe_combine},
    {QN_OP_SOFTCAP, "cuda", 0, 0, NULL, qn_cuda_softcap},
    {QN_OP_GATHER_ROWS, "cuda", 0, 0, NULL, qn_cuda_gather_rows},
    {QN_OP_LOGPROBS, "cuda", 0, 0, NULL, qn_cuda_logprobs},
    {QN_OP_SAMPLER, "cuda", 0, 0, NULL, qn_cuda_sampler},
    {QN_OP_NORM_MATMUL, "reference", 0, 0, NULL, qn_cuda_norm_matmul_plain},
    {QN_OP_NORM_MATMUL, "wide", QN_ISA_SM90, 1, has_bf16_activations, qn_cuda_norm_matmul_wide},
    {QN_OP_NORM_MATMUL, "cuda", 0, 2, NULL, qn_cuda_norm_matmul},
    {QN_OP_DECODE_ATTENTION, "splits", 0, 1, has_tensor_shape, qn_cuda_decode_attention_splits},
    {QN_OP_DECODE_ATTENTION, "resident", 0, 1, qn_cuda_resident_accepts, qn_cuda_decode_attention_resident},
    {QN_OP_DECODE_ATTENTION, "cuda", 0, 2, has_tensor_shape, qn_cuda_decode_attention},
};

const qn_kernel_t *qn_cuda_kernels(size_t *ret_count)
{
    *ret_count = sizeof KERNELS / sizeof KERNELS[0];
    return KERNELS;
}
