/* The copying half of matmul_wide.cu: its shapes, which part of the product a block has, and how weights and x get to
 * shared memory. For that file only.
 *
 * A block takes a tile of 128 weight rows and all tokens, and one of `segments` equal shares of the inputs: those of a
 * tile are a cluster. Two warpgroups multiply stages of 64 inputs; one of their threads asks the copy engine for them (a
 * warp of its own would leave each thread fewer registers than 160 tokens take). */
#ifndef QN_KERNELS_CUDA_MATMUL_MATMUL_WIDE_CUH
#define QN_KERNELS_CUDA_MATMUL_MATMUL_WIDE_CUH

#include <cuda.h>

#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/matmul/matmul.cuh"
#include "kernels/cuda/wgmma.cuh"

#define TEAMS 2 /* warpgroups that multiply */
#define TEAM_ROWS 64
#define TILE_ROWS (TEAMS * TEAM_ROWS)
#define WIDE_THREADS (TEAMS * TEAM)
#define TEAM_BYTES (TEAM_ROWS * PANEL_STRIDE)
#define SUM_STRIDE (TILE_ROWS + 4) /* floats of a token's sums: no bank conflicts */
#define SEGMENTS_MAX QN_CUDA_CLUSTER_MAX
#define SEGMENTS_MAX_BESIDE 4 /* with two blocks a processor more were no faster */
#define PANEL_ALIGN 1024
#define READ_ONCE 0x12F0000000000000ull /* a policy of the copy engine: first to leave the second-level cache */

/* Stages, in shared memory from its beginning on, which lies at a multiple of 1024 bytes; later the block's sums. */
template <class S> struct wide_room_t {
    char stages[S::STAGES][S::STAGE_BYTES];
    uint64_t full[S::STAGES], empty[S::STAGES]; /* barriers: a stage is there; all warps have read it */
};

/* Shape of one instantiation: N tokens at most, and how many blocks a processor has room for. */
template <int N_, int BLOCKS_> struct wide_shape {
    static constexpr int N = N_, BLOCKS = BLOCKS_;
    static constexpr uint32_t STAGE_BYTES = TEAMS * TEAM_BYTES + N * PANEL_STRIDE;
    static constexpr int STAGES = (BLOCKS == 1 ? 216 : 112) * 1024 / STAGE_BYTES;
    static_assert(STAGE_BYTES % PANEL_ALIGN == 0, "panels begin at multiples of the pattern");
    static_assert(N * SUM_STRIDE * sizeof(float) <= STAGES * STAGE_BYTES, "room for the sums");
};

typedef struct {
    CUtensorMap weights[QN_MATMUL_PARTS]; /* [O, M] in boxes of 64 rows and 64 inputs */
    CUtensorMap x;                        /* [T, M] in boxes of N tokens and 64 inputs */
    qn_matmul_part_t parts[QN_MATMUL_PARTS];
    uint32_t tile_ends[QN_MATMUL_PARTS], tiles;
    uint32_t tokens, chunks; /* of 64 inputs */
    uint32_t segments;       /* blocks of a cluster */
    bf16 *gated;             /* not NULL: f(part 0) * part 1; a tile has 64 rows of each */
    qn_activation_t kind;    /* f */
    bool logits;             /* out is f32 */
} wide_t;

#if __CUDA_ARCH_FEAT_SM90_ALL

/* What a block has of the product. */
struct share_t {
    uint32_t part, row; /* the tile's first, in its part */
    uint32_t segment;
    uint32_t begin, count; /* chunks */

    __device__ __forceinline__ explicit share_t(const wide_t &w)
    {
        uint32_t tile = blockIdx.x / w.segments, before = 0;
        segment = blockIdx.x % w.segments;
        for (part = 0; tile >= w.tile_ends[part]; part++)
            before = w.tile_ends[part];
        row = (tile - before) * (w.gated ? TEAM_ROWS : TILE_ROWS);
        begin = w.chunks * segment / w.segments, count = w.chunks * (segment + 1) / w.segments - begin;
    }

    /* The first input of this block's chunk `index`. */
    __device__ __forceinline__ uint32_t input(uint32_t index) const { return (begin + index) * PANEL_WIDTH; }
};

static __device__ __forceinline__ uint32_t shared_address(const void *at)
{
    return (uint32_t)__cvta_generic_to_shared(at);
}

static __device__ __forceinline__ void copy_weights(const CUtensorMap *map, uint32_t to, uint32_t barrier,
                                                    uint32_t input, uint32_t row)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
                 "[%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(input), "r"(row), "r"(barrier), "l"(READ_ONCE)
                 : "memory");
}

static __device__ __forceinline__ void copy_x(const CUtensorMap *map, uint32_t to, uint32_t barrier, uint32_t input)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
                 "[%4];" ::"r"(to),
                 "l"(map), "r"(input), "r"(0), "r"(barrier)
                 : "memory");
}

/* The thread that copies. */
template <class S> struct copier_t {
    const wide_t &w;
    const share_t &share;
    wide_room_t<S> &room;

    __device__ __forceinline__ void open() const
    {
        for (uint32_t i = 0; i < S::STAGES; i++) {
            barrier_make(shared_address(&room.full[i]), 1);
            barrier_make(shared_address(&room.empty[i]), WIDE_THREADS / WARP);
        }
        asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
    }

    __device__ __forceinline__ void weights(uint32_t index, uint32_t slot) const
    {
        uint32_t full = shared_address(&room.full[slot]), to = shared_address(room.stages[slot]);
        barrier_expect(full, S::STAGE_BYTES);
#pragma unroll
        for (uint32_t team = 0; team < TEAMS; team++)
            copy_weights(&w.weights[w.gated ? team : share.part], to + team * TEAM_BYTES, full, share.input(index),
                         share.row + (w.gated ? 0 : team * TEAM_ROWS));
    }

    __device__ __forceinline__ void x(uint32_t index, uint32_t slot) const
    {
        copy_x(&w.x, shared_address(room.stages[slot] + TEAMS * TEAM_BYTES), shared_address(&room.full[slot]),
               share.input(index));
    }

    /* As many as the ring holds: weights, which are constant, before what stands before this launch is done. */
    __device__ __forceinline__ void begin_weights() const
    {
        for (uint32_t i = 0; i < min(share.count, (uint32_t)S::STAGES); i++)
            weights(i, i);
    }

    __device__ __forceinline__ void begin_x() const
    {
        asm volatile("fence.proxy.async;" ::: "memory"); /* the copy engine reads what other kernels have written */
        for (uint32_t i = 0; i < min(share.count, (uint32_t)S::STAGES); i++)
            x(i, i);
    }

    /* What comes to the place of chunk `index`, as soon as all warps have read that. */
    __device__ __forceinline__ void follow(uint32_t index, uint32_t slot, uint32_t parity) const
    {
        uint32_t next = index + S::STAGES;
        if (next >= share.count) return;
        barrier_wait(shared_address(&room.empty[slot]), parity);
        weights(next, slot);
        x(next, slot);
    }
};

#endif
#endif
