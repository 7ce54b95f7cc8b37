/* Products of a warpgroup (PTX wgmma, sm_90a; bf16, sums in f32): 64 rows by N columns, 16 inputs at a time. Operands
 * come from shared memory as the copy engine's 128-byte swizzle leaves it, or A from registers. For files in
 * kernels/cuda/ only.
 *
 * Panels: an operand in shared memory is cut into panels of 64 elements of its contiguous dimension: rows of 128 bytes
 * whose 16-byte pieces c lie at c ^ (row % 8). A panel begins at a multiple of 1024 bytes.
 *
 * Sums: thread t of the warpgroup has rows t / 32 * 16 + t % 32 / 4 (and 8 more), and of every 8 columns the two at
 * t % 4 * 2: sums[n * 4 + i] is row + i / 2 * 8, column n * 8 + t % 4 * 2 + i % 2. Fragment A of registers is the same
 * for 16 columns, in pairs: {row, row + 8} of the first 8, then of the second. */
#ifndef QN_KERNELS_CUDA_WGMMA_CUH
#define QN_KERNELS_CUDA_WGMMA_CUH

#include "kernels/cuda/device.cuh"

#define TEAM (4 * WARP)   /* threads of a warpgroup */
#define PANEL_WIDTH 64    /* elements */
#define PANEL_STRIDE 128u /* bytes of a row of a panel */

/* A place in shared memory as wgmma is told it. Rows of 8 follow each other at 1024 bytes; `leading` is from panel to
 * panel where the contiguous dimension is not the one that is summed over. */
static __device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t leading)
{
    return (address >> 4) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

/* `bytes` further, still inside shared memory. */
static __device__ __forceinline__ uint64_t operand_at(uint64_t operand, uint32_t bytes)
{
    return operand + (bytes >> 4);
}

/* Byte of piece `piece` (of 16 bytes) of row `row` of a panel. */
static __device__ __forceinline__ uint32_t panel_at(uint32_t row, uint32_t piece)
{
    return row * PANEL_STRIDE + ((piece ^ row % 8) << 4);
}

/* The compiler moves no use of these registers across this place: to it, a product ends with its instruction. */
template <int N> static __device__ __forceinline__ void pin(float (&values)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(values[i])::"memory");
}

template <int N> static __device__ __forceinline__ void pin(uint32_t (&values)[N][4])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(values[i][0]), "+r"(values[i][1]), "+r"(values[i][2]), "+r"(values[i][3])::"memory");
}

#if __CUDA_ARCH_FEAT_SM90_ALL

/* After this thread's writes to registers that products use. */
static __device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ __forceinline__ void products_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* Until at most LEFT of the committed groups are under way. */
template <int LEFT> static __device__ __forceinline__ void products_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

#define EIGHT_SUMS(s, i)                                                                                        \
    "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]), \
        "+f"(s[i + 7])
#define SUMS_32(s) EIGHT_SUMS(s, 0), EIGHT_SUMS(s, 8), EIGHT_SUMS(s, 16), EIGHT_SUMS(s, 24)
#define SUMS_64(s) SUMS_32(s), EIGHT_SUMS(s, 32), EIGHT_SUMS(s, 40), EIGHT_SUMS(s, 48), EIGHT_SUMS(s, 56)
#define NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_32 \
    NAMES_16     \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64                                                                         \
    NAMES_32                                                                             \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/* sums = a bᵀ, or sums += a bᵀ with `add`: both are contiguous in the dimension that is summed over. */
static __device__ __forceinline__ void multiply_rows(float (&sums)[64], uint64_t a, uint64_t b, bool add)
{
    asm volatile("{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %66, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64 "}, %64, %65, add, 1, 1, 0, 0;\n\t}"
                 : SUMS_64(sums)
                 : "l"(a), "l"(b), "r"((uint32_t)add));
}

static __device__ __forceinline__ void multiply_rows(float (&sums)[32], uint64_t a, uint64_t b, bool add)
{
    asm volatile("{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %34, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, %32, %33, add, 1, 1, 0, 0;\n\t}"
                 : SUMS_32(sums)
                 : "l"(a), "l"(b), "r"((uint32_t)add));
}

static __device__ __forceinline__ void multiply_rows(float (&sums)[16], uint64_t a, uint64_t b, bool add)
{
    asm volatile("{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %18, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" NAMES_16 "}, %16, %17, add, 1, 1, 0, 0;\n\t}"
                 : EIGHT_SUMS(sums, 0), EIGHT_SUMS(sums, 8)
                 : "l"(a), "l"(b), "r"((uint32_t)add));
}

/* sums += a b: a from registers, b contiguous in N. */
static __device__ __forceinline__ void multiply_columns(float (&sums)[64], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n\t.reg .pred add;\n\tsetp.eq.u32 add, 0, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64 "}, {%64, %65, %66, %67}, %68, "
                 "add, 1, 1, 1;\n\t}"
                 : SUMS_64(sums)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

static __device__ __forceinline__ void multiply_columns(float (&sums)[32], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n\t.reg .pred add;\n\tsetp.eq.u32 add, 0, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, {%32, %33, %34, %35}, %36, "
                 "add, 1, 1, 1;\n\t}"
                 : SUMS_32(sums)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* Registers of each thread of the warpgroup from here on; a multiple of 8. */
template <int COUNT> static __device__ __forceinline__ void registers_give()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> static __device__ __forceinline__ void registers_take()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

#endif
#endif
