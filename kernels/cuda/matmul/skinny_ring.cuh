/* The ring of matmul_skinny.cu: one warp copies stages of weight rows to shared memory, SPLIT warps take them. Copies are
 * the copy engine's where there is one (sm_90): a row is one instruction, which waits for nobody, so that the loads of
 * the other warps do not stand behind it. Barriers in shared memory (PTX mbarrier) say when a stage is full, and when
 * all have given it back. For matmul_skinny.cu only. */
#ifndef QN_KERNELS_CUDA_MATMUL_SKINNY_RING_CUH
#define QN_KERNELS_CUDA_MATMUL_SKINNY_RING_CUH

#include "kernels/cuda/barrier.cuh"

#define SPLIT 8 /* warps that multiply */
#define THREADS ((SPLIT + 1) * WARP)
#define ROWS 16 /* weight rows of one product, and of a stage */
#define HALF 8u
#define STAGE_INPUTS 1024u               /* of each row */
#define STAGE_STRIDE (STAGE_INPUTS + 32) /* 64 bytes more: the quads of two rows read different banks */
#define STAGE_BYTES (ROWS * STAGE_STRIDE * sizeof(bf16))
#define DEPTH_MAX 6   /* stages */
#define RING_HEAD 128 /* barriers */
#define RING_BYTES(depth) ((depth) * STAGE_BYTES + RING_HEAD)

/* ---- the ring ---- */

/* The warps that multiply; their lanes may come apart, as those do that wait for a stage. */
static __device__ __forceinline__ void meet()
{
    __syncwarp();
    asm volatile("barrier.sync 1, %0;" ::"n"(SPLIT * WARP) : "memory");
}

/* The weight rows of one tile: two runs of at most HALF rows that lie `stride` bytes apart. */
typedef struct {
    const bf16 *from[2];
    uint32_t count[2];
    size_t stride;
} rows_t;

#if __CUDA_ARCH__ >= 900
#define FULL_ARRIVALS 1
#else
#define FULL_ARRIVALS WARP
#endif

/* Each thread has its own: where it is in the ring. */
struct ring_t {
    char *stages;
    uint32_t barriers; /* address in shared memory: full of each stage, then empty of each */
    uint32_t depth, slot, parity;

    __device__ __forceinline__ ring_t(char *shared, uint32_t depth_)
        : stages(shared + RING_HEAD), barriers((uint32_t)__cvta_generic_to_shared(shared)), depth(depth_), slot(0),
          parity(0)
    {
        static_assert(2 * DEPTH_MAX * 8 <= RING_HEAD, "two barriers a stage");
    }

    /* By the warp that fills, before anything: it need not wait for the others to begin. */
    __device__ __forceinline__ void open()
    {
        uint32_t lane = threadIdx.x % WARP;
        if (lane < depth) {
            barrier_make(full(lane), FULL_ARRIVALS), barrier_make(empty(lane), SPLIT * WARP);
#if __CUDA_ARCH__ >= 900
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
        }
        __syncwarp();
        asm volatile("barrier.arrive 2, %0;" ::"n"(THREADS) : "memory");
    }

    /* By the others, before the first stage. */
    __device__ __forceinline__ void join() { asm volatile("barrier.sync 2, %0;" ::"n"(THREADS) : "memory"); }

    __device__ __forceinline__ uint32_t full(uint32_t i) const { return barriers + i * 8; }
    __device__ __forceinline__ uint32_t empty(uint32_t i) const { return barriers + (DEPTH_MAX + i) * 8; }

    __device__ __forceinline__ void step()
    {
        if (++slot == depth) slot = 0, parity ^= 1;
    }

    /* By one warp: copies `inputs` inputs of each of the rows to the next stage, beginning at input m. Rows that are
     * not there leave what was in the stage. */
    __device__ __forceinline__ void fill(const rows_t &rows, uint32_t m, uint32_t inputs)
    {
        uint32_t bytes = inputs * sizeof(bf16), barrier = full(slot);
        uint32_t to = (uint32_t)__cvta_generic_to_shared(stages + slot * STAGE_BYTES);
        constexpr uint32_t STRIDE = STAGE_STRIDE * sizeof(bf16);
        barrier_wait(empty(slot), parity ^ 1); /* at once in the first round */
#if __CUDA_ARCH__ >= 900
        /* One lane: a copy's operands are the warp's, and lanes with copies of their own would take turns. */
        if (elected()) {
            barrier_expect(barrier, bytes * (rows.count[0] + rows.count[1]));
#pragma unroll 1
            for (uint32_t half = 0; half < 2; half++) {
                const char *from = (const char *)((half ? rows.from[1] : rows.from[0]) + m);
                uint32_t count = half ? rows.count[1] : rows.count[0];
#pragma unroll 1
                for (uint32_t r = 0; r < count; r++)
                    copy_row(to + (half * HALF + r) * STRIDE, from + r * rows.stride, bytes, barrier);
            }
        }
        __syncwarp();
#else
        for (uint32_t r = 0; r < ROWS; r++) {
            if (r % HALF >= rows.count[r / HALF]) continue;
            const char *from = (const char *)(rows.from[r / HALF] + m) + r % HALF * rows.stride;
            for (uint32_t i = threadIdx.x % WARP * 16; i < bytes; i += WARP * 16)
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + r * STRIDE + i), "l"(from + i)
                             : "memory");
        }
        asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
#endif
        step();
    }

    /* By the others: the next stage, when it is full. */
    __device__ __forceinline__ const bf16 *take() const
    {
        barrier_wait(full(slot), parity);
        return (const bf16 *)(stages + slot * STAGE_BYTES);
    }

    /* This thread has read it. Its loads may still be on their way when later instructions are issued, and the copy
     * engine does not wait for them without the fence. */
    __device__ __forceinline__ void give()
    {
#if __CUDA_ARCH__ >= 900
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
        barrier_arrive(empty(slot));
        step();
    }
};

#endif
