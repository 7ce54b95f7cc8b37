/* What is this?      The table of CPU implementations, and the choice of one per operation.
 * State owned:       none.
 * Must never:        fall back silently from what was asked for by name.
 * Read next:         kernels.h; a file of this folder per operation. */
#include <stdio.h>

#include "common/suggest.h"
#include "kernels/cpu/cpu.h"

#define REFERENCE "reference"

static const char *const OP_NAMES[QN_OP_COUNT] = {
    [QN_OP_SLOT_UPDATE] = "slot_update", [QN_OP_BLOCK_COPY] = "block_copy", [QN_OP_STEP_INPUT] = "step_input",
    [QN_OP_EMBEDDING] = "embedding", [QN_OP_RMSNORM] = "rmsnorm", [QN_OP_LAYERNORM] = "layernorm",
    [QN_OP_MATMUL] = "matmul", [QN_OP_ROPE_ANGLES] = "rope_angles", [QN_OP_ROPE] = "rope",
    [QN_OP_KV_WRITE] = "kv_write", [QN_OP_ATTENTION_PREFILL] = "attention.prefill",
    [QN_OP_ATTENTION_DECODE] = "attention.decode", [QN_OP_ACTIVATION] = "activation", [QN_OP_MOE_ROUTE] = "moe_route",
    [QN_OP_EXPERT_MATMUL] = "expert_matmul", [QN_OP_MOE_COMBINE] = "moe_combine", [QN_OP_SOFTCAP] = "softcap",
    [QN_OP_GATHER_ROWS] = "gather_rows", [QN_OP_LOGPROBS] = "logprobs", [QN_OP_SAMPLER] = "sampler",
};

/* The vector decode keeps what a few chunks gave every head in the stream's shared memory. */
static bool heads_fit_shared_memory(const qn_kernel_case_t *shape)
{
    return shape->heads * ((size_t)shape->head_dim + 18) * sizeof(float) <= QN_SHARED_BYTES / 4;
}

static const qn_kernel_t KERNELS[] = {
    { QN_OP_SLOT_UPDATE, REFERENCE, 0, 0, NULL, qn_cpu_slot_update },
    { QN_OP_BLOCK_COPY, REFERENCE, 0, 0, NULL, qn_cpu_block_copy },
    { QN_OP_STEP_INPUT, REFERENCE, 0, 0, NULL, qn_cpu_step_input },
    { QN_OP_EMBEDDING, REFERENCE, 0, 0, NULL, qn_cpu_embedding },
    { QN_OP_RMSNORM, REFERENCE, 0, 0, NULL, qn_cpu_rmsnorm },
    { QN_OP_RMSNORM, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_rmsnorm_avx2 },
    { QN_OP_RMSNORM, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_rmsnorm_avx512 },
    { QN_OP_LAYERNORM, REFERENCE, 0, 0, NULL, qn_cpu_layernorm },
    { QN_OP_LAYERNORM, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_layernorm_avx2 },
    { QN_OP_LAYERNORM, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_layernorm_avx512 },
    { QN_OP_MATMUL, REFERENCE, 0, 0, NULL, qn_cpu_matmul },
    { QN_OP_MATMUL, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_matmul_avx2 },
    { QN_OP_MATMUL, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_matmul_avx512 },
    { QN_OP_MATMUL, "avx512bf16", QN_ISA_AVX512 | QN_ISA_AVX512_BF16, 1, NULL, qn_cpu_matmul_avx512bf16 },
    { QN_OP_MATMUL, "vnni", QN_ISA_AVX512 | QN_ISA_AVX512_VNNI, 4, NULL, qn_cpu_matmul_vnni },
    { QN_OP_ROPE_ANGLES, REFERENCE, 0, 0, NULL, qn_cpu_rope_angles },
    { QN_OP_ROPE, REFERENCE, 0, 0, NULL, qn_cpu_rope },
    { QN_OP_ROPE, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_rope_avx2 },
    { QN_OP_ROPE, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_rope_avx512 },
    { QN_OP_KV_WRITE, REFERENCE, 0, 0, NULL, qn_cpu_kv_write },
    { QN_OP_KV_WRITE, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_kv_write_avx2 },
    { QN_OP_KV_WRITE, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_kv_write_avx512 },
    { QN_OP_ATTENTION_PREFILL, REFERENCE, 0, 0, NULL, qn_cpu_attention },
    { QN_OP_ATTENTION_PREFILL, "avx2", QN_ISA_AVX2, 1, heads_fit_shared_memory, qn_cpu_attention_prefill_avx2 },
    { QN_OP_ATTENTION_PREFILL, "avx512", QN_ISA_AVX512, 2, heads_fit_shared_memory, qn_cpu_attention_prefill_avx512 },
    { QN_OP_ATTENTION_DECODE, REFERENCE, 0, 0, NULL, qn_cpu_attention },
    { QN_OP_ATTENTION_DECODE, "avx2", QN_ISA_AVX2, 1, heads_fit_shared_memory, qn_cpu_attention_decode_avx2 },
    { QN_OP_ATTENTION_DECODE, "avx512", QN_ISA_AVX512, 2, heads_fit_shared_memory, qn_cpu_attention_decode_avx512 },
    { QN_OP_ACTIVATION, REFERENCE, 0, 0, NULL, qn_cpu_activation },
    { QN_OP_ACTIVATION, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_activation_avx2 },
    { QN_OP_ACTIVATION, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_activation_avx512 },
    { QN_OP_MOE_ROUTE, REFERENCE, 0, 0, NULL, qn_cpu_moe_route },
    { QN_OP_EXPERT_MATMUL, REFERENCE, 0, 0, NULL, qn_cpu_expert_matmul },
    { QN_OP_EXPERT_MATMUL, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_expert_matmul_avx2 },
    { QN_OP_EXPERT_MATMUL, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_expert_matmul_avx512 },
    { QN_OP_EXPERT_MATMUL, "avx512bf16", QN_ISA_AVX512 | QN_ISA_AVX512_BF16, 1, NULL,
      qn_cpu_expert_matmul_avx512bf16 },
    { QN_OP_EXPERT_MATMUL, "vnni", QN_ISA_AVX512 | QN_ISA_AVX512_VNNI, 4, NULL, qn_cpu_expert_matmul_vnni },
    { QN_OP_MOE_COMBINE, REFERENCE, 0, 0, NULL, qn_cpu_moe_combine },
    { QN_OP_MOE_COMBINE, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_moe_combine_avx2 },
    { QN_OP_MOE_COMBINE, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_moe_combine_avx512 },
    { QN_OP_SOFTCAP, REFERENCE, 0, 0, NULL, qn_cpu_softcap },
    { QN_OP_SOFTCAP, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_softcap_avx2 },
    { QN_OP_SOFTCAP, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_softcap_avx512 },
    { QN_OP_GATHER_ROWS, REFERENCE, 0, 0, NULL, qn_cpu_gather_rows },
    { QN_OP_LOGPROBS, REFERENCE, 0, 0, NULL, qn_cpu_logprobs },
    { QN_OP_LOGPROBS, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_logprobs_avx2 },
    { QN_OP_LOGPROBS, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_logprobs_avx512 },
    { QN_OP_SAMPLER, REFERENCE, 0, 0, NULL, qn_cpu_sampler },
    { QN_OP_SAMPLER, "avx2", QN_ISA_AVX2, 1, NULL, qn_cpu_sampler_avx2 },
    { QN_OP_SAMPLER, "avx512", QN_ISA_AVX512, 2, NULL, qn_cpu_sampler_avx512 },
};
#define KERNEL_COUNT (sizeof KERNELS / sizeof KERNELS[0])

const char *qn_op_name(qn_op_t op) { return op < QN_OP_COUNT ? OP_NAMES[op] : "unknown"; }

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
    if ((isa & QN_ISA_AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        isa |= QN_ISA_AVX512;
    if ((isa & QN_ISA_AVX512) && __builtin_cpu_supports("avx512vnni")) isa |= QN_ISA_AVX512_VNNI;
    if ((isa & QN_ISA_AVX512) && __builtin_cpu_supports("avx512bf16")) isa |= QN_ISA_AVX512_BF16;
    return isa;
}

static bool fits(const qn_kernel_t *kernel, const qn_kernel_case_t *shape, uint32_t isa)
{
    return (kernel->isa & ~isa) == 0 && (!kernel->accepts || kernel->accepts(shape));
}

static void choose_best(const qn_kernel_case_t *shape, uint32_t isa, qn_kernel_set_t *set)
{
    *set = (qn_kernel_set_t){ 0 };
    for (size_t i = 0; i < KERNEL_COUNT; i++) {
        const qn_kernel_t *now = set->chosen[KERNELS[i].op];
        if (fits(&KERNELS[i], shape, isa) && (!now || KERNELS[i].rank > now->rank))
            set->chosen[KERNELS[i].op] = &KERNELS[i];
    }
}

static const qn_kernel_t *find_kernel(qn_op_t op, const char *name)
{
    for (size_t i = 0; i < KERNEL_COUNT; i++)
        if (KERNELS[i].op == op && strcmp(KERNELS[i].name, name) == 0) return &KERNELS[i];
    return NULL;
}

/* ---- suggestions ---- */

static qn_err_t unknown_op(const char *word)
{
    const char *nearest = OP_NAMES[0];
    for (unsigned op = 1; op < QN_OP_COUNT; op++)
        if (qn_edit_distance(word, OP_NAMES[op]) < qn_edit_distance(word, nearest)) nearest = OP_NAMES[op];
    return qn_fail(QN_ERR_CONFIG, "compute.kernels: no operation \"%s\"; did you mean \"%s\"?", word, nearest);
}

static qn_err_t unknown_kernel(qn_op_t op, const char *word)
{
    char names[128] = "";
    for (size_t i = 0; i < KERNEL_COUNT; i++) {
        if (KERNELS[i].op != op) continue;
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", KERNELS[i].name);
    }
    return qn_fail(QN_ERR_CONFIG, "compute.kernels: no implementation \"%s\" of \"%s\"; there are %s", word,
                   OP_NAMES[op], names);
}

/* ---- the choice ---- */

static qn_err_t apply_item(char *item, const qn_kernel_case_t *shape, uint32_t isa, qn_kernel_set_t *set)
{
    char *name = strchr(item, '=');
    if (!name)
        return qn_fail(QN_ERR_CONFIG, "compute.kernels: \"%s\" is not op=name; write for example matmul=reference",
                       item);
    *name++ = '\0';
    unsigned op = 0;
    while (op < QN_OP_COUNT && strcmp(OP_NAMES[op], item) != 0) op++;
    if (op == QN_OP_COUNT) return unknown_op(item);
    const qn_kernel_t *kernel = find_kernel((qn_op_t)op, name);
    if (!kernel) return unknown_kernel((qn_op_t)op, name);
    if (kernel->isa & ~isa)
        return qn_fail(QN_ERR_CONFIG, "compute.kernels: this machine cannot run %s=%s; leave it out", item, name);
    if (kernel->accepts && !kernel->accepts(shape))
        return qn_fail(QN_ERR_CONFIG, "compute.kernels: %s=%s does not take this model's shape (%u heads, head_dim "
                       "%u)", item, name, shape->heads, shape->head_dim);
    set->chosen[op] = kernel;
    return QN_OK;
}

qn_err_t qn_kernels_choose(const char *choice, const qn_kernel_case_t *shape, uint32_t isa, qn_kernel_set_t *ret_set)
{
    qn_kernel_set_t set;
    bool reference = strcmp(choice, REFERENCE) == 0;
    choose_best(shape, reference ? 0 : isa, &set);
    for (const char *at = reference ? "" : choice; *at;) {
        size_t length = strcspn(at, ",");
        char item[QN_NAME_MAX];
        if (length >= sizeof item)
            return qn_fail(QN_ERR_CONFIG, "compute.kernels: \"%.40s...\" is too long for op=name", at);
        memcpy(item, at, length);
        item[length] = '\0';
        qn_err_t err = apply_item(item, shape, isa, &set);
        if (err) return err;
        at += length + (at[length] == ',');
    }
    *ret_set = set;
    return QN_OK;
}
