/* What is this?      attention.prefill for Hopper: one block a processor, of which a few warps copy queries, keys and
 *                    values to shared memory, and two or three warpgroups with 64 rows each multiply (wgmma).
 * State owned:       two words of the stream's counters: items that were taken, blocks that are done.
 * Must never:        let a row's result depend on how a prompt was cut into runs.
 * Read next:         wgmma.cuh and barrier.cuh (the instructions), attention.cuh (rows and items).
 *
 * FlashAttention-3 (Shah et al. 2024), paged. Keys come in tiles of 128 positions that begin at multiples of 128 from
 * position 0, so that a row's additions depend on its position and window alone. A warpgroup has its values added while
 * it turns the next tile's scores into weights, and the other warpgroups' products run beside; nothing orders them (that
 * they take turns, as in FlashAttention-3, cost 2 to 4 % here).
 *
 * The launch does not know how many tokens the runs have (they are on the device, so that a launch can be captured):
 * blocks take items, the last and longest tile of a run first, until there are none. */
#include "kernels/cuda/attention/attention_wide.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

/* What a thread of a warpgroup works with. */
template <class S> struct team_t {
    static constexpr int N = KEYS / 8;
    const qn_attention_t &a;
    wide_room_t<S> *room;
    const attention_item_t *item;   /* in shared memory */
    uint32_t team, begin, end;      /* of the item's positions */
    uint32_t keys;                  /* tiles of keys so far */
    uint32_t last_begin, first_end; /* of what the warpgroup's rows see */
    float scale, best[2], total[2], keep[2];
    float scores[KEYS / 2], out[S::D / 2];
    uint32_t weights[KEYS / 16][4];

    __device__ __forceinline__ team_t(const qn_attention_t &a_, wide_room_t<S> *room_)
        : a(a_), room(room_), team(same(threadIdx.x / TEAM)), keys(0), scale(S::CAP ? LOG2_E : a_.scale * LOG2_E)
    {
    }

    /* The first of the two, counted from the item's first. */
    __device__ __forceinline__ uint32_t row_of_thread() const
    {
        return team * TEAM_ROWS + threadIdx.x % TEAM / WARP * 16 + threadIdx.x % WARP / 4;
    }

    /* Returns how many tiles this warpgroup's rows see. */
    __device__ __forceinline__ uint32_t begin_item()
    {
        uint32_t first_row = item->first_row + team * TEAM_ROWS, unused, last_end;
        begin = same(item->begin), end = same(item->end);
        row_range<S>(a, *item, first_row, unused, first_end);
        row_range<S>(a, *item, first_row + TEAM_ROWS - 1, last_begin, last_end);
        first_end = same(first_end), last_begin = same(last_begin);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint2 range;
            row_range<S>(a, *item, item->first_row + row_of_thread() + r * 8, range.x, range.y);
            room->seen[row_of_thread() + r * 8] = range;
        }
        best[0] = best[1] = -INFINITY, total[0] = total[1] = 0;
#pragma unroll
        for (int i = 0; i < S::D / 2; i++)
            out[i] = 0;
        bool any = first_row < item->run.tokens * item->group;
        return same(any ? (last_end - 1) / KEYS + 1 - begin / KEYS : 0);
    }

    /* Where tile `tile` of all that this block has seen lies in the rings. */
    static __device__ __forceinline__ uint32_t slot_of(uint32_t tile) { return tile % S::STAGES; }
    static __device__ __forceinline__ uint32_t parity_of(uint32_t tile) { return tile / S::STAGES % 2; }
    __device__ __forceinline__ void wait_keys() { wait_for(&room->rings[0].full[slot_of(keys)], parity_of(keys)); }
    __device__ __forceinline__ void give_keys() { give_back(&room->rings[0].empty[slot_of(keys++)]); }
    /* Values are those of the tile before `keys`. */
    __device__ __forceinline__ void wait_values()
    {
        wait_for(&room->rings[1].full[slot_of(keys - 1)], parity_of(keys - 1));
    }

    __device__ __forceinline__ void score(uint32_t buffer)
    {
        uint64_t query = operand(shared_address(room->queries[buffer]) + team * S::PANELS * QUERY_PANEL_BYTES, 16);
        uint64_t key = operand(shared_address(room->rings[0].stages[slot_of(keys)]), 16);
#pragma unroll
        for (int step = 0; step < S::D / 16; step++) {
            uint32_t panel = step * 16 / PANEL_WIDTH, inside = step * 16 % PANEL_WIDTH * sizeof(bf16);
            multiply_rows(scores, operand_at(query, panel * QUERY_PANEL_BYTES + inside),
                          operand_at(key, panel * PANEL_BYTES + inside), step > 0);
        }
        products_commit();
    }

    __device__ __forceinline__ void add_values()
    {
        uint64_t value = operand(shared_address(room->rings[1].stages[slot_of(keys - 1)]), PANEL_BYTES);
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++)
            multiply_columns(out, weights[step], operand_at(value, step * 16 * PANEL_STRIDE));
        products_commit();
    }

    /* Positions that the copies left out hold anything, NaN included, and the weight 0 does not help against that. */
    __device__ __forceinline__ void clear_values(uint32_t first)
    {
        if (first >= begin && first + KEYS <= end) return;
        uint32_t row = threadIdx.x % TEAM, position = first + row;
        if (position < begin || position >= end)
#pragma unroll
            for (uint32_t i = 0; i < S::PANELS * PANEL_STRIDE / 16; i++)
                *(uint4 *)(room->rings[1].stages[slot_of(keys - 1)] + i / 8 * PANEL_BYTES + row * PANEL_STRIDE +
                           i % 8 * 16) = make_uint4(0, 0, 0, 0);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        meet(team);
    }

    __device__ __forceinline__ void mask(uint32_t first)
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint2 range = room->seen[row_of_thread() + r * 8];
            int from = (int)(range.x - first - threadIdx.x % 4 * 2), to = (int)(range.y - first - threadIdx.x % 4 * 2);
#pragma unroll
            for (int i = 0; i < N * 2; i++) {
                int position = i / 2 * 8 + i % 2;
                if (position < from || position >= to) scores[i / 2 * 4 + r * 2 + i % 2] = -INFINITY;
            }
        }
    }

    /* Turns the scores of the tile at `first` into weights, in place. */
    __device__ __forceinline__ void weigh(uint32_t first)
    {
        if constexpr (S::CAP) {
            float inner = 2 * LOG2_E * a.scale / a.softcap;
#pragma unroll
            for (int i = 0; i < N * 4; i++)
                scores[i] = a.softcap - __fdividef(2 * a.softcap, power_of_two(scores[i] * inner) + 1);
        }
        if (first < last_begin || first + KEYS > first_end) mask(first);
        float base[2], sums[2][2] = {};
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float high = -INFINITY;
#pragma unroll
            for (int n = 0; n < N; n++)
                high = fmaxf(high, fmaxf(scores[n * 4 + r * 2], scores[n * 4 + r * 2 + 1]));
            high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 1));
            high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 2));
            high = fmaxf(high * scale, best[r]);
            base[r] = high == -INFINITY ? 0 : high; /* nothing seen yet: all weights 0, not NaN */
            keep[r] = power_of_two(best[r] - base[r]);
            best[r] = high;
        }
#pragma unroll
        for (int i = 0; i < N * 4; i++) {
            scores[i] = power_of_two(fmaf(scores[i], scale, -base[i / 2 % 2]));
            sums[i / 2 % 2][i % 2] += scores[i];
        }
#pragma unroll
        for (int r = 0; r < 2; r++)
            total[r] = total[r] * keep[r] + (sums[r][0] + sums[r][1]);
    }

    /* The layout of 16 columns of scores is that of a fragment A. */
    __device__ __forceinline__ void pack()
    {
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                weights[step][i] = pack_bf16(scores[step * 8 + i * 2], scores[step * 8 + i * 2 + 1]);
    }

    __device__ __forceinline__ void shrink()
    {
#pragma unroll
        for (int i = 0; i < S::D / 2; i++)
            out[i] *= keep[i / 2 % 2];
    }

    /* The products with the values of the tile before are over. */
    __device__ __forceinline__ void end_values(uint32_t tile)
    {
        products_wait<0>();
        pin(out), pin(weights), pin(scores);
        give_back(&room->rings[1].empty[slot_of(tile)]);
    }

    /* The weights of the item's first tile, at `first`. */
    __device__ __forceinline__ void open(uint32_t first, uint32_t buffer)
    {
        wait_keys();
        products_begin();
        score(buffer);
        products_wait<0>();
        pin(scores);
        give_keys();
        weigh(first);
        pack();
    }

    /* Adds the values of the tile at `first` and weighs the tile after it. The branch between weighing and waiting is
     * what keeps the compiler from waiting first. */
    __device__ __forceinline__ void advance(uint32_t first, uint32_t buffer, bool last)
    {
        wait_keys();
        wait_values();
        clear_values(first);
        pin(out), pin(weights), pin(scores);
        products_begin();
        score(buffer);
        add_values();
        products_wait<1>();
        pin(scores);
        give_keys();
        weigh(first + KEYS);
        if (last) give_back(&room->queries_empty[buffer]);
        end_values(keys - 2);
        shrink();
        pack();
    }

    /* Adds the values of the item's last tile. */
    __device__ __forceinline__ void close(uint32_t first)
    {
        wait_values();
        clear_values(first);
        pin(out), pin(weights);
        products_begin();
        add_values();
        end_values(keys - 1);
    }

    /* This warpgroup's rows over `own` tiles of the item's `tiles`. */
    __device__ __forceinline__ void attend(uint32_t own, uint32_t tiles, uint32_t buffer)
    {
        uint32_t first = begin / KEYS * KEYS;
        if (own) open(first, buffer);
        if (own <= 1) give_back(&room->queries_empty[buffer]);
        for (uint32_t done = 1; done < own; done++, first += KEYS)
            advance(first, buffer, done + 1 == own);
        if (own) close(first);
#pragma unroll 1
        for (uint32_t done = own; done < tiles; done++) { /* others see more */
            wait_keys();
            give_keys();
            wait_values();
            give_back(&room->rings[1].empty[slot_of(keys - 1)]);
        }
    }

    __device__ __forceinline__ void store()
    {
        uint32_t rows = item->run.tokens * item->group;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            total[r] += __shfl_xor_sync(ALL_LANES, total[r], 1);
            total[r] += __shfl_xor_sync(ALL_LANES, total[r], 2);
            uint32_t row = item->first_row + row_of_thread() + r * 8;
            if (row >= rows) continue;
            bf16 *to = (bf16 *)a.out + out_at<S>(a, *item, row) + threadIdx.x % 4 * 2;
            float share = 1 / total[r];
#pragma unroll
            for (int d = 0; d < S::D / 8; d++)
                *(uint32_t *)(to + d * 8) = pack_bf16(out[d * 4 + r * 2] * share, out[d * 4 + r * 2 + 1] * share);
        }
    }

    __device__ __forceinline__ void run()
    {
        for (uint32_t count = 0;; count++) {
            uint32_t buffer = count % QUERY_BUFFERS;
            wait_for(&room->queries_full[buffer], count / QUERY_BUFFERS % 2);
            item = &room->items[count % ITEMS];
            if (same(item->first_row) == NO_ROW) return;
            uint32_t own = begin_item();
            attend(own, (end - 1) / KEYS + 1 - begin / KEYS, buffer);
            store();
        }
    }
};

/* ---- the kernel ---- */

template <class S> static __device__ void make_barriers(wide_room_t<S> *room)
{
    constexpr uint32_t WARPS = S::TEAMS * TEAM / WARP;
    for (int i = 0; i < ITEMS; i++)
        barrier_make(shared_address(&room->items_full[i]), 1);
    for (int i = 0; i < QUERY_BUFFERS; i++) {
        barrier_make(shared_address(&room->queries_full[i]), 2 * WARP);
        barrier_make(shared_address(&room->queries_empty[i]), WARPS);
    }
    for (int i = 0; i < 2 * S::STAGES; i++) {
        wide_ring_t<S> *ring = &room->rings[i / S::STAGES];
        barrier_make(shared_address(&ring->full[i % S::STAGES]), 1);
        barrier_make(shared_address(&ring->empty[i % S::STAGES]), WARPS);
    }
    barrier_make(shared_address(&room->ending), 1);
    asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
}
#endif

template <class S>
static __global__ void __launch_bounds__(S::THREADS, 1)
    attend_wide(const __grid_constant__ wide_t w, const __grid_constant__ CUtensorMap map)
{
#if __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ char shared[];
    wide_room_t<S> *room = (wide_room_t<S> *)(shared + (0u - shared_address(shared)) % 1024);
    if (threadIdx.x == 0) make_barriers(room);
    grid_begin();
    __syncthreads();
    if (threadIdx.x / TEAM == S::TEAMS) {
        registers_give<S::COPY_REGISTERS>();
        asm volatile("fence.proxy.async;" ::: "memory"); /* the copy engine reads what other kernels have written */
        uint32_t warp = same(threadIdx.x % TEAM / WARP);
        if (warp < 2)
            lead<S>(w, room, warp);
        else if (elected())
            copy_cache<S>(w, map, room, warp - 2);
    } else {
        registers_take<S::TEAM_REGISTERS>();
        team_t<S>(w.a, room).run();
    }
#endif
}

/* ---- the launch ---- */

/* The cache as the copy engine is told it: [rows of all layers, K and V; K heads; D], in boxes of 64 elements of one head
 * of `box` rows. */
static CUresult describe_cache(const qn_stream_t *stream, const qn_kv_t *kv, uint32_t box, CUtensorMap *map)
{
    cuuint64_t sizes[3] = {kv->head_dim, kv->kv_heads, (cuuint64_t)kv->layers * 2 * kv->blocks * kv->block_tokens};
    cuuint64_t strides[2] = {kv->head_dim * sizeof(bf16), (cuuint64_t)kv->kv_heads * kv->head_dim * sizeof(bf16)};
    cuuint32_t boxes[3] = {PANEL_WIDTH, 1, box}, steps[3] = {1, 1, 1};
    auto encode = (decltype(&cuTensorMapEncodeTiled))stream->encode_map;
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, kv->data, sizes, strides, boxes, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

template <class S> static void start(qn_stream_t *stream, const qn_attention_t *a)
{
    wide_t w = {*a, (wide_count_t *)stream->counters, a->kv.block_tokens < KEYS ? a->kv.block_tokens : KEYS};
    CUtensorMap map;
    if (describe_cache(stream, &a->kv, w.box, &map) != CUDA_SUCCESS)
        return qn_cuda_check(stream, cudaErrorInvalidValue, "attention.prefill, the cache's tensor map");
    qn_cuda_start(stream, "attention.prefill", attend_wide<S>, stream->processors, S::THREADS, WIDE_SHARED<S>, w, map);
}

/* Calls with the shape for the cache's; other head dimensions are attention_prefill.cu's. */
template <class F> static void with_wide_shape(uint32_t head_dim, bool capped, F call)
{
    if (head_dim == 64 && capped)
        call(wide_shape<64, 2, true>()); /* a cap takes registers */
    else if (head_dim == 64)
        call(wide_shape<64, 3, false>());
    else if (head_dim == 128 && capped)
        call(wide_shape<128, 2, true>());
    else if (head_dim == 128)
        call(wide_shape<128, 2, false>());
}

/* A box must not leave a block, nor a block begin inside the swizzle's pattern; rows of the cache are numbered in 31 bits. */
extern "C" bool qn_cuda_wide_takes(uint32_t head_dim, uint32_t block_tokens)
{
    return (head_dim == 64 || head_dim == 128) && block_tokens >= BLOCK_TOKENS_MIN &&
           (block_tokens & (block_tokens - 1)) == 0;
}

bool qn_cuda_wide_fits(const qn_stream_t *stream, const qn_attention_t *a)
{
    const qn_kv_t *kv = &a->kv;
    return stream->capability >= 90 && attention_fits(stream, a) &&
           qn_cuda_wide_takes(kv->head_dim, kv->block_tokens) &&
           (uint64_t)kv->layers * 2 * kv->blocks * kv->block_tokens <= INT32_MAX;
}

cudaError_t qn_cuda_prepare_wide(void)
{
    cudaError_t error = cudaSuccess;
    for (int i = 0; i < 4; i++)
        with_wide_shape(i % 2 ? 64 : 128, i / 2, [&](auto shape) {
            using S = decltype(shape);
            if (!error)
                error =
                    cudaFuncSetAttribute(attend_wide<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, WIDE_SHARED<S>);
        });
    return error;
}

extern "C" void qn_cuda_attention_wgmma(qn_stream_t *stream, const void *arguments)
{
    const qn_attention_t *a = (const qn_attention_t *)arguments;
    if (!a->run_count) return;
    QN_ASSERT(qn_cuda_wide_fits(stream, a));
    with_wide_shape(a->kv.head_dim, a->softcap > 0, [&](auto shape) { start<decltype(shape)>(stream, a); });
}
