/* What is this?      The table of CPU implementations, and what this machine can run of it.
 * State owned:       none.
 * Must never:        list a row that is wrong for a shape it accepts.
 * Read next:         kernels.h; kernels/registry.c (the choice); a file of this folder per operation. */
#include "kernels/cpu/cpu.h"

/* Vector attention keeps the partial results of a few chunks per head, D + 18 floats each, in the stream's shared memory. */
static bool heads_fit_shared_memory(const qn_kernel_case_t *shape)
{
    return shape->heads * ((size_t)shape->head_dim + 18) * sizeof(float) <= QN_SHARED_BYTES / 4;
}

static const qn_kernel_t KERNELS[] = {
#define QN_CPU_KERNEL(operation, name, isa, rank, accepts, function) \
    {QN_OP_##operation, name, isa, rank, accepts, qn_cpu_##function},
#include "kernels/cpu/kernels.def"
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

/* norm_matmul=vnni computes what matmul=vnni, rmsnorm=avx512 and activation=avx512 compute one after the other. Is each of
 * these the chosen implementation of its operation? */
static bool fused_as_chosen(const qn_kernel_set_t *set)
{
    return set->chosen[QN_OP_MATMUL]->launch == qn_cpu_matmul_vnni &&
           set->chosen[QN_OP_RMSNORM]->launch == qn_cpu_rmsnorm_avx512 &&
           set->chosen[QN_OP_ACTIVATION]->launch == qn_cpu_activation_avx512;
}

/* The fused product is taken only when it equals what was chosen for its parts: who names another implementation of one of
 * them in compute.kernels gets that one. */
qn_err_t qn_kernels_choose(const char *choice, const qn_kernel_case_t *shape, uint32_t isa, qn_kernel_set_t *ret_set)
{
    qn_err_t err = qn_kernels_choose_from(KERNELS, KERNEL_COUNT, choice, shape, isa, ret_set);
    if (!err && !strstr(choice, "norm_matmul=") && !fused_as_chosen(ret_set)) ret_set->chosen[QN_OP_NORM_MATMUL] = NULL;
    return err;
}
