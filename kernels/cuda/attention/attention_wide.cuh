/* The copying half of attention_wgmma.cu: what lies in shared memory, who waits for whom, and how items, queries, keys and
 * values get there. For that file only.
 *
 * Four warps copy. The first takes items and, with the second, copies their queries (any number of heads a kv head); one
 * thread of the third asks the copy engine for keys, one of the fourth for values: a box of up to 128 positions of one
 * block and 64 elements of a head each, which lands in a panel as wgmma wants it. A barrier `full` tells that something
 * is there, `empty` that all warpgroups have done with it. */
#ifndef QN_KERNELS_CUDA_ATTENTION_ATTENTION_WIDE_CUH
#define QN_KERNELS_CUDA_ATTENTION_ATTENTION_WIDE_CUH

#include <cuda.h>

#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/wgmma.cuh"

#define KEYS 128 /* positions of a tile */
#define TEAM_ROWS 64
#define PANEL_BYTES (KEYS * PANEL_STRIDE)
#define QUERY_PANEL_BYTES (TEAM_ROWS * PANEL_STRIDE)
#define QUERY_BUFFERS 2
#define ITEMS 4 /* announced at once; twice the buffers: who works on one may still read it when the next but one is */
#define BLOCK_TOKENS_MIN 8 /* rows of the swizzle's pattern */

#define TEAM_BARRIER 1 /* the first of the warpgroups' named barriers */

/* Shape of one instantiation. */
template <int D_, int TEAMS_, bool CAP_> struct wide_shape {
    static constexpr int D = D_;
    static constexpr int TEAMS = TEAMS_; /* warpgroups that multiply */
    static constexpr bool CAP = CAP_;    /* with a soft cap */
    static constexpr bool DECODE = false;
    static constexpr int ROWS = TEAMS * TEAM_ROWS;
    static constexpr int PANELS = D / PANEL_WIDTH;
    static constexpr int STAGES = D == 128 ? 2 : 4;
    static constexpr int THREADS = (TEAMS + 1) * TEAM;
    static constexpr uint32_t TILE_BYTES = PANELS * PANEL_BYTES;
    static constexpr uint32_t QUERY_BYTES = ROWS * D * sizeof(bf16);
    static constexpr int COPY_REGISTERS = TEAMS == 2 ? 56 : 32, TEAM_REGISTERS = TEAMS == 2 ? 224 : 160;
    static_assert(QUERY_BYTES % 1024 == 0 && TILE_BYTES % 1024 == 0, "panels begin at multiples of the pattern");
};

/* Tiles of keys, or of values, on their way from the copy engine to the warpgroups. */
template <class S> struct wide_ring_t {
    char stages[S::STAGES][S::TILE_BYTES];
    uint64_t full[S::STAGES], empty[S::STAGES];
    char pad[1024 - 16 * S::STAGES];
};

/* In shared memory, at a multiple of 1024 bytes. */
template <class S> struct wide_room_t {
    char queries[QUERY_BUFFERS][S::QUERY_BYTES]; /* [team][panel] */
    wide_ring_t<S> rings[2];                     /* keys, values */
    attention_item_t items[ITEMS];               /* first_row NO_ROW: no more */
    uint2 seen[S::ROWS];                         /* begin and end of what a row sees; a thread reads what it wrote */
    uint64_t items_full[ITEMS], queries_full[QUERY_BUFFERS], queries_empty[QUERY_BUFFERS];
    uint64_t ending; /* one tile of keys of an item is left to copy */
};
template <class S> constexpr size_t WIDE_SHARED = sizeof(wide_room_t<S>) + 1024;

typedef struct {
    uint32_t taken, done;
} wide_count_t;

typedef struct {
    qn_attention_t a;
    wide_count_t *count;
    uint32_t box; /* rows of the cache that one copy brings */
} wide_t;

/* Where a thread is in a ring of stages. */
template <int STAGES> struct place_t {
    uint32_t slot = 0, parity = 0;
    __device__ __forceinline__ void step()
    {
        if (++slot == STAGES) slot = 0, parity ^= 1;
    }
};

#if __CUDA_ARCH_FEAT_SM90_ALL

static __device__ __forceinline__ uint32_t shared_address(const void *at)
{
    return (uint32_t)__cvta_generic_to_shared(at);
}

static __device__ __forceinline__ void wait_alone(const uint64_t *barrier, uint32_t parity)
{
    barrier_wait(shared_address(barrier), parity);
}

/* The lanes of a warp may come apart while they wait; products want them together. */
static __device__ __forceinline__ void wait_for(const uint64_t *barrier, uint32_t parity)
{
    wait_alone(barrier, parity);
    __syncwarp();
}

/* Of lane 0, so that the compiler knows that the warp has one: products must not stand where lanes could come apart. */
static __device__ __forceinline__ uint32_t same(uint32_t value) { return __shfl_sync(ALL_LANES, value, 0); }

/* By whole warps, each of which counts once. */
static __device__ __forceinline__ void give_back(const uint64_t *barrier)
{
    __syncwarp();
    if (elected()) barrier_arrive(shared_address(barrier));
}

/* All of a warpgroup. */
static __device__ __forceinline__ void meet(uint32_t team)
{
    __syncwarp();
    asm volatile("barrier.sync %0, %1;" ::"r"(TEAM_BARRIER + team), "n"(TEAM) : "memory");
    __syncwarp();
}

/* ---- items ---- */

/* Where find_next() is in the list of runs; indices only grow. */
typedef struct {
    uint32_t run, before; /* items of earlier runs */
} cursor_t;

/* Item `index` of all runs; first_row is NO_ROW when there are fewer. */
template <class S>
static __device__ attention_item_t find_next(const qn_attention_t &a, uint32_t index, cursor_t &cursor)
{
    uint32_t group = a.heads / a.kv.kv_heads, unused;
    attention_item_t item = {};
    item.group = group, item.first_row = NO_ROW;
    for (; cursor.run < a.run_count; cursor.run++) {
        item.run = a.runs[cursor.run];
        uint32_t tiles = (item.run.tokens * group + S::ROWS - 1) / S::ROWS, at = index - cursor.before;
        if (at >= tiles * a.kv.kv_heads) {
            cursor.before += tiles * a.kv.kv_heads;
            continue;
        }
        item.table = a.tables.block_tables + (size_t)item.run.slot * a.tables.table_blocks;
        item.kv_head = at % a.kv.kv_heads;
        item.first_row = (tiles - 1 - at / a.kv.kv_heads) * S::ROWS;
        row_range<S>(a, item, item.first_row, item.begin, unused);
        row_range<S>(a, item, item.first_row + S::ROWS - 1, unused, item.end);
        break;
    }
    return item;
}

/* ---- copying ---- */

/* One box of keys or values: `box` positions of one head, 64 elements each, into rows of a panel. */
static __device__ __forceinline__ void copy_box(const CUtensorMap &map, uint32_t to, uint32_t element, uint32_t head,
                                                uint32_t row, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %3, %4}], [%5];" ::"r"(to),
                 "l"(&map), "r"(element), "r"(head), "r"(row), "r"(barrier)
                 : "memory");
}

#define BOXES 8 /* whose places are asked for at once */

/* Cache rows (block * P + offset) of the boxes from position `first` on; NO_ROW where the item needs none. */
static __device__ __forceinline__ void find_boxes(const wide_t &w, const attention_item_t &item, uint32_t first,
                                                  uint32_t (&rows)[BOXES])
{
    uint32_t P = w.a.kv.block_tokens, shift = __ffs(P) - 1;
#pragma unroll
    for (uint32_t i = 0; i < BOXES; i++) {
        uint32_t position = first + i * w.box;
        bool inside = i * w.box < KEYS && position < item.end && position + w.box > item.begin;
        rows[i] = inside ? (item.table[position >> shift] << shift) + (position & (P - 1)) : NO_ROW;
    }
}

/* Keys or values of an item's tiles, by one thread; arrives at `ending`, unless it is NULL, when one tile is left. */
template <class S>
static __device__ __forceinline__ void copy_tiles(const wide_t &w, const CUtensorMap &map, const attention_item_t &item,
                                                  uint32_t plane, wide_ring_t<S> *ring, place_t<S::STAGES> &at,
                                                  const uint64_t *ending)
{
    uint32_t bytes = w.box * PANEL_STRIDE, span = min(BOXES * w.box, (uint32_t)KEYS), rows[BOXES];
    uint32_t first = item.begin / KEYS * KEYS;
    find_boxes(w, item, first, rows);
    for (; first < item.end; first += KEYS, at.step()) {
        uint32_t begin = max(first, item.begin) / w.box, end = (min(first + KEYS, item.end) - 1) / w.box + 1;
        uint32_t barrier = shared_address(&ring->full[at.slot]);
        if (ending && first + KEYS >= item.end) barrier_arrive(shared_address(ending));
        wait_alone(&ring->empty[at.slot], at.parity ^ 1);
        barrier_expect(barrier, (end - begin) * S::PANELS * bytes);
        for (uint32_t part = 0; part < KEYS; part += span) {
            uint32_t to = shared_address(ring->stages[at.slot]) + part * PANEL_STRIDE;
#pragma unroll
            for (uint32_t i = 0; i < BOXES; i++)
                if (rows[i] != NO_ROW)
#pragma unroll
                    for (uint32_t panel = 0; panel < S::PANELS; panel++)
                        copy_box(map, to + panel * PANEL_BYTES + i * bytes, panel * PANEL_WIDTH, item.kv_head,
                                 rows[i] + plane, barrier);
            find_boxes(w, item, first + part + span, rows); /* on its way while the next stage is not empty yet */
        }
    }
}

/* By one thread: the keys of each item (which 0), or the values (1). */
template <class S>
static __device__ __forceinline__ void copy_cache(const wide_t &w, const CUtensorMap &map, wide_room_t<S> *room,
                                                  uint32_t which)
{
    uint32_t plane = (w.a.layer * 2 + which) * w.a.kv.blocks * w.a.kv.block_tokens;
    place_t<ITEMS> turn;
    place_t<S::STAGES> at;
    for (;; turn.step()) {
        wait_alone(&room->items_full[turn.slot], turn.parity);
        attention_item_t item = room->items[turn.slot];
        if (item.first_row == NO_ROW) return;
        copy_tiles<S>(w, map, item, plane, &room->rings[which], at, which ? NULL : &room->ending);
    }
}

/* Half of an item's queries, by one of two warps; rows that the run does not have become zero. */
template <class S>
static __device__ __forceinline__ void copy_queries(const qn_attention_t &a, const attention_item_t &item,
                                                    char *queries, uint32_t half)
{
    constexpr uint32_t PIECES = S::D / 8, IN_PANEL = PANEL_WIDTH / 8, STEP = 2 * WARP / PIECES;
    uint32_t group = item.group, piece = threadIdx.x % WARP % PIECES;
    uint32_t r = half * STEP / 2 + threadIdx.x % WARP / PIECES, row = item.first_row + r,
             rows = item.run.tokens * group;
    uint32_t token = row / group, head = row % group, tokens = STEP / group, heads = STEP % group;
    size_t width = (size_t)a.heads * S::D;
    const bf16 *from = (const bf16 *)a.q + item.run.first * width + (size_t)item.kv_head * group * S::D + piece * 8;
    uint32_t to = shared_address(queries) + piece / IN_PANEL * QUERY_PANEL_BYTES;
#pragma unroll 4
    for (; r < S::ROWS; r += STEP, row += STEP) {
        bool inside = row < rows;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                         to + r / TEAM_ROWS * S::PANELS * QUERY_PANEL_BYTES +
                         panel_at(r % TEAM_ROWS, piece % IN_PANEL)),
                     "l"(from + (inside ? token * width + head * S::D : 0)), "r"(inside ? 16 : 0)
                     : "memory");
        token += tokens, head += heads;
        if (head >= group) head -= group, token++;
    }
}

/* By one warp: takes the next item when the last is about to end, and announces it. */
template <class S>
static __device__ __forceinline__ attention_item_t take_item(const wide_t &w, wide_room_t<S> *room, uint32_t count,
                                                             cursor_t &cursor)
{
    uint32_t index = blockIdx.x;
    if (count) {
        wait_for(&room->ending, (count - 1) % 2);
        if (threadIdx.x % WARP == 0) index = atomicAdd(&w.count->taken, 1) + gridDim.x;
        index = same(index);
    }
    attention_item_t item = find_next<S>(w.a, index, cursor);
    wait_for(&room->queries_empty[count % QUERY_BUFFERS], count / QUERY_BUFFERS % 2 ^ 1);
    if (threadIdx.x % WARP == 0) {
        room->items[count % ITEMS] = item;
        barrier_arrive(shared_address(&room->items_full[count % ITEMS]));
    }
    return item;
}

/* By two warps, of which the first takes the items: the queries of each. */
template <class S> static __device__ __forceinline__ void lead(const wide_t &w, wide_room_t<S> *room, uint32_t half)
{
    cursor_t cursor = {};
    for (uint32_t count = 0;; count++) {
        attention_item_t item;
        if (half == 0) {
            item = take_item<S>(w, room, count, cursor);
        } else {
            wait_for(&room->items_full[count % ITEMS], count / ITEMS % 2);
            item = room->items[count % ITEMS];
        }
        if (item.first_row != NO_ROW) copy_queries<S>(w.a, item, room->queries[count % QUERY_BUFFERS], half);
        asm volatile("cp.async.wait_all;\n\tfence.proxy.async.shared::cta;" ::: "memory");
        barrier_arrive(shared_address(&room->queries_full[count % QUERY_BUFFERS]));
        if (item.first_row == NO_ROW) break;
    }
    if (half || threadIdx.x % WARP) return;
    __threadfence();
    if (atomicAdd(&w.count->done, 1) == gridDim.x - 1) w.count->taken = w.count->done = 0;
}

#endif
#endif
