/* Barriers in shared memory (PTX mbarrier) and the copy engine, which arrives at them. For files in kernels/cuda/ only.
 * A barrier's phases have parities 0, 1, 0, ...; a wait for parity 1 of a barrier that nobody has used is over at once. */
#ifndef QN_KERNELS_CUDA_BARRIER_CUH
#define QN_KERNELS_CUDA_BARRIER_CUH

#include "kernels/cuda/device.cuh"

static __device__ __forceinline__ void barrier_make(uint32_t barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint32_t barrier)
{
    asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.shared.b64 state, [%0];\n\t}" ::"r"(barrier) : "memory");
}

/* Until the phase of this parity is over. */
static __device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n\t.reg .pred over;\n\tagain:\n\t"
                 "mbarrier.try_wait.parity.shared.b64 over, [%0], %1;\n\t@!over bra again;\n\t}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
#else
    asm volatile("{\n\t.reg .pred over;\n\tagain:\n\t"
                 "mbarrier.test_wait.parity.shared.b64 over, [%0], %1;\n\t@!over bra again;\n\t}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
#endif
}

#if __CUDA_ARCH__ >= 900
/* One arrival; the phase is over when copies have brought `bytes` more, too. */
static __device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.expect_tx.shared.b64 state, [%0], %1;\n\t}" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ void copy_row(uint32_t to, const char *from, uint32_t bytes, uint32_t barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}
#endif

/* True in one lane of a whole warp; ptxas makes use of it that it is one. */
static __device__ __forceinline__ bool elected()
{
#if __CUDA_ARCH__ >= 900
    uint32_t yes;
    asm volatile("{\n\t.reg .pred one;\n\telect.sync _|one, 0xffffffff;\n\tselp.u32 %0, 1, 0, one;\n\t}" : "=r"(yes));
    return yes;
#else
    return threadIdx.x % WARP == 0;
#endif
}

#endif
