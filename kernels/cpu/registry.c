/* What is this?      The table of CPU implementations, and what this machine can run of it.
 * State owned:       none.
 * Must never:        list a row that is wrong for a shape it accepts.
 * Read next:         kernels.h; kernels/registry.c (the choice); a file of this folder per operation. */
#include "kernels/cpu/cpu.h"

#define REFERENCE "reference"

/* The vector decode keeps what a few chunks gave every head in the stream's shared memory. */
static bool heads_fit_shared_memory(const qn_kernel_case_t *shape)
{
    return shape->heads * ((size_t)shape->head_dim + 18) * sizeof(float) <= QN_SHARED_BYTES / 4;
}

static const qn_kernel_t KERNELS[] = {
    {QN_OP_SLOT_UPDATE, REFERENCE, 0, 0, NULL, qn_cpu_slot_update},
    {QN_OP_BLOCK_COPY, REFERENCE, 0, 0, NULL, qn_cpu_block_copy},
    {QN_OP_STEP_INPUT, REFERENCE, 0, 0, NULL, qn_cpu_step_input},
    {QN_OP_EMBEDDING, REFERENCE, 0, 0, NULL, qn_cpu_embedding},
    {QN_OP_RMSNORM, REFERENCE, 0, 0, NULL, qn_cpu_rmsnorm},
    {QN_OP_RMSNORM, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_rmsnorm_avx2},
    {QN_OP_RMSNORM, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_rmsnorm_avx512},
    {QN_OP_LAYERNORM, REFERENCE, 0, 0, NULL, qn_cpu_layernorm},
    {QN_OP_LAYERNORM, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_layernorm_avx2},
    {QN_OP_LAYERNORM, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_layernorm_avx512},
    {QN_OP_MATMUL, REFERENCE, 0, 0, NULL, qn_cpu_matmul},
    {QN_OP_MATMUL, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_matmul_avx2},
    {QN_OP_MATMUL, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_matmul_avx512},
    {QN_OP_MATMUL, "avx512bf16", QN_ISA_AVX512 | QN_ISA_AVX512_BF16, 1, NULL, qn_cpu_matmul_avx512bf16},
    {QN_OP_MATMUL, "vnni", QN_ISA_AVX512 | QN_ISA_AVX512_VNNI, 4, NULL, qn_cpu_matmul_vnni},
    {QN_OP_NORM_MATMUL, "vnni", QN_ISA_AVX512 | QN_ISA_AVX512_VNNI, 4, NULL, qn_cpu_norm_matmul_vnni},
    {QN_OP_ROPE_ANGLES, REFERENCE, 0, 0, NULL, qn_cpu_rope_angles},
    {QN_OP_ROPE, REFERENCE, 0, 0, NULL, qn_cpu_rope},
    {QN_OP_ROPE, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_rope_avx2},
    {QN_OP_ROPE, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_rope_avx512},
    {QN_OP_KV_WRITE, REFERENCE, 0, 0, NULL, qn_cpu_kv_write},
    {QN_OP_KV_WRITE, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_kv_write_avx2},
    {QN_OP_KV_WRITE, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_kv_write_avx512},
    {QN_OP_ATTENTION_PREFILL, REFERENCE, 0, 0, NULL, qn_cpu_attention},
    {QN_OP_ATTENTION_PREFILL, "avx2", QN_ISA_AVX2, 1, heads_fit_shared_memory, qn_cpu_attention_prefill_avx2},
    {QN_OP_ATTENTION_PREFILL, "avx512", QN_ISA_AVX512, 2, heads_fit_shared_memory, qn_cpu_attention_prefill_avx512},
    {QN_OP_ATTENTION_DECODE, REFERENCE, 0, 0, NULL, qn_cpu_attention},
    {QN_OP_ATTENTION_DECODE, "avx2", QN_ISA_AVX2, 1, heads_fit_shared_memory, qn_cpu_attention_decode_avx2},
    {QN_OP_ATTENTION_DECODE, "avx512", QN_ISA_AVX512, 2, heads_fit_shared_memory, qn_cpu_attention_decode_avx512},
    {QN_OP_ACTIVATION, REFERENCE, 0, 0, NULL, qn_cpu_activation},
    {QN_OP_ACTIVATION, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_activation_avx2},
    {QN_OP_ACTIVATION, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_activation_avx512},
    {QN_OP_MOE_ROUTE, REFERENCE, 0, 0, NULL, qn_cpu_moe_route},
    {QN_OP_EXPERT_MATMUL, REFERENCE, 0, 0, NULL, qn_cpu_expert_matmul},
    {QN_OP_EXPERT_MATMUL, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_expert_matmul_avx2},
    {QN_OP_EXPERT_MATMUL, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_expert_matmul_avx512},
    {QN_OP_EXPERT_MATMUL, "avx512bf16", QN_ISA_AVX512 | QN_ISA_AVX512_BF16, 1, NULL, qn_cpu_expert_matmul_avx512bf16},
    {QN_OP_EXPERT_MATMUL, "vnni", QN_ISA_AVX512 | QN_ISA_AVX512_VNNI, 4, NULL, qn_cpu_expert_matmul_vnni},
    {QN_OP_MOE_COMBINE, REFERENCE, 0, 0, NULL, qn_cpu_moe_combine},
    {QN_OP_MOE_COMBINE, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_moe_combine_avx2},
    {QN_OP_MOE_COMBINE, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_moe_combine_avx512},
    {QN_OP_SOFTCAP, REFERENCE, 0, 0, NULL, qn_cpu_softcap},
    {QN_OP_SOFTCAP, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_softcap_avx2},
    {QN_OP_SOFTCAP, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_softcap_avx512},
    {QN_OP_GATHER_ROWS, REFERENCE, 0, 0, NULL, qn_cpu_gather_rows},
    {QN_OP_LOGPROBS, REFERENCE, 0, 0, NULL, qn_cpu_logprobs},
    {QN_OP_LOGPROBS, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_logprobs_avx2},
    {QN_OP_LOGPROBS, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_logprobs_avx512},
    {QN_OP_SAMPLER, REFERENCE, 0, 0, NULL, qn_cpu_sampler},
    {QN_OP_SAMPLER, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_sampler_avx2},
    {QN_OP_SAMPLER, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_sampler_avx512},
};
#define KERNEL_COUNT (sizeof KERNELS / sizeof KERNELS[0])

const qn_kernel_t *qn_kernels(size_t *ret_count)
{
    *ret_count = KERNEL_COUNT;
    return KERNELS;
}

uint32_t qn_kernels_isa(void)
{
    uint32_t isa = 0;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isa |= QN_ISA_AVX2;
    if ((isa & QN_ISA_AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        isa |= QN_ISA_AVX512;
    if ((isa & QN_ISA_AVX512) && __builtin_cpu_supports("avx512vnni")) isa |= QN_ISA_AVX512_VNNI;
    if ((isa & QN_ISA_AVX512) && __builtin_cpu_supports("avx512bf16")) isa |= QN_ISA_AVX512_BF16;
    return isa;
}

/* Whether the parts that the fused product stands for are those that were chosen. */
static bool fused_as_chosen(const qn_kernel_set_t *set)
{
    return set->chosen[QN_OP_MATMUL]->launch == qn_cpu_matmul_vnni &&
           set->chosen[QN_OP_RMSNORM]->launch == qn_cpu_rmsnorm_avx512 &&
           set->chosen[QN_OP_ACTIVATION]->launch == qn_cpu_activation_avx512;
}

/* Who asks for another part gets it. */
qn_err_t qn_kernels_choose(const char *choice, const qn_kernel_case_t *shape, uint32_t isa, qn_kernel_set_t *ret_set)
{
    qn_err_t err = qn_kernels_choose_from(KERNELS, KERNEL_COUNT, choice, shape, isa, ret_set);
    if (!err && !strstr(choice, "norm_matmul=") && !fused_as_chosen(ret_set)) ret_set->chosen[QN_OP_NORM_MATMUL] = NULL;
    return err;
}
