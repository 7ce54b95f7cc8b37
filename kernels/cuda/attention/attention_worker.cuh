/* A warp of attention_resident.cu: what it copies, what it multiplies, what it leaves and what it adds up. For
 * attention_resident.cu only.
 *
 * Memory that is kept busy answers late: blocks are looked up a piece ahead and queries fetched a (sequence, kv head)
 * ahead, and two tiles a warp are under way, since more made the processors' shares of the memory unequal. */
#ifndef QN_KERNELS_CUDA_ATTENTION_ATTENTION_WORKER_CUH
#define QN_KERNELS_CUDA_ATTENTION_ATTENTION_WORKER_CUH

#include "kernels/cuda/attention/attention_resident.cuh"

/* Unnormalised sums of a warp: dimensions in rows, heads 2t and 2t+1 in this thread's columns (t = lane % 4). */
template <int D> struct columns_t {
    float best[2], total[2];
    float out[D / 16][4];

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int j = 0; j < 2; j++)
            best[j] = -INFINITY, total[j] = 0;
#pragma unroll
        for (int d = 0; d < D / 16; d++)
            out[d][0] = out[d][1] = out[d][2] = out[d][3] = 0;
    }

    /* What `next` sums comes after what this does. */
    __device__ __forceinline__ void add(const columns_t &next)
    {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float greatest = fmaxf(best[j], next.best[j]), base = greatest == -INFINITY ? 0 : greatest;
            float keep = power_of_two(best[j] - base), take = power_of_two(next.best[j] - base);
            best[j] = greatest;
            total[j] = fmaf(next.total[j], take, total[j] * keep);
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                out[d][j] = fmaf(next.out[d][j], take, out[d][j] * keep);
                out[d][2 + j] = fmaf(next.out[d][2 + j], take, out[d][2 + j] * keep);
            }
        }
    }
};

/* ---- one warp's work ---- */

template <class S> struct worker_t {
    const resident_t &r;
    const qn_attention_t &a;
    common_t &common;
    float *merged;  /* [warp, G, STRIDE] in shared memory */
    bf16 *queries;  /* [2, G, QUERY] there, this warp's own */
    uint32_t query; /* which of the two is fetched next */
    uint32_t warp, lane;
    uint32_t ring, full;   /* addresses in shared memory */
    uint32_t slot, parity; /* of the tile that is read next */
    /* The tile that is copied next: part `part` of a piece, whose blocks lane i knows for box i. */
    bool more;
    uint32_t part, at, head, block;
    span_t span;
    /* The piece after it. */
    bool next_more;
    uint32_t next_part, next_run, next_cell, next_at, next_head, next_block;
    span_t next_span;
    const uint32_t *next_table;

    __device__ __forceinline__ worker_t(const resident_t &r_, common_t &common_, float *merged_, bf16 *queries_,
                                        uint32_t ring_)
        : r(r_), a(r_.a), common(common_), merged(merged_)
    {
        warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        ring = ring_ + warp * S::DEPTH * TILE_BYTES, full = shared_address(common.full[warp]);
        queries = queries_ + warp * 2 * r.group * S::QUERY;
        slot = parity = query = 0;
    }

    /* By each warp for itself. */
    __device__ __forceinline__ void open() const
    {
#if __CUDA_ARCH__ >= 900
        if (lane < S::DEPTH) {
            asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(full + lane * 8) : "memory");
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        }
        __syncwarp();
#endif
    }

    /* ---- copying ---- */

    __device__ __forceinline__ void enter_sequence()
    {
        if (next_run >= a.run_count) return;
        next_span = span_at(a, next_run);
        next_table = a.tables.block_tables + (size_t)__ldg(&a.runs[next_run].slot) * a.tables.table_blocks;
    }

    __device__ __forceinline__ void enter_part()
    {
        if (next_part == common.part_count) return;
        const cut_t &from = common.parts[next_part].from;
        next_run = from.run, next_head = from.head;
        enter_sequence();
        next_cell = from.cell ? from.cell : next_span.first;
    }

    /* Moves on to this warp's next piece and asks for its blocks. */
    __device__ __forceinline__ void find_piece()
    {
        for (;;) {
            next_more = next_part < common.part_count;
            if (!next_more) return;
            const cut_t &to = common.parts[next_part].to;
            if (next_run == to.run && next_head == to.head && next_cell >= to.cell) {
                next_part++, enter_part();
                continue;
            }
            if (next_cell >= next_span.stop) {
                if (++next_head == a.kv.kv_heads) next_head = 0, next_run++, enter_sequence();
                next_cell = next_span.first;
                continue;
            }
            next_at = next_cell++ * CELL + warp * PIECE;
            if (next_at < next_span.end && next_at + PIECE > next_span.begin) break;
        }
        uint32_t position = next_at + lane * r.box;
        next_block = 0;
        if (lane * r.box < PIECE && position < next_span.end && position + r.box > next_span.begin)
            next_block = __ldg(next_table + (position >> r.shift));
    }

    __device__ __forceinline__ void take_piece()
    {
        more = next_more, part = 0;
        if (!more) return;
        at = next_at, head = next_head, block = next_block, span = next_span;
        find_piece();
    }

    __device__ __forceinline__ void begin_copies()
    {
        next_part = 0;
        enter_part();
        find_piece();
        take_piece();
    }

    /* Copies the next tile to slot `to_slot` and moves on. */
    __device__ __forceinline__ void copy_tile(uint32_t to_slot)
    {
        uint32_t boxes = S::POSITIONS / r.box, value = part / S::CHUNKS, half = part % S::CHUNKS;
        uint32_t first = at + half * S::POSITIONS, barrier = full + to_slot * 8, tile = ring + to_slot * TILE_BYTES;
        uint32_t blocks[S::POSITIONS / 16], count = 0;
#pragma unroll
        for (uint32_t i = 0; i < S::POSITIONS / 16; i++) {
            uint32_t position = first + i * r.box;
            blocks[i] = __shfl_sync(ALL_LANES, block, (half * boxes + i) % WARP);
            count += i < boxes && position < span.end && position + r.box > span.begin;
        }
        if (lane == 0) {
            uint32_t plane = (a.layer * 2 + value) * a.kv.blocks;
            expect_bytes(barrier, count * r.box * S::CHUNKS * CHUNK_BYTES);
#pragma unroll
            for (uint32_t i = 0; i < S::POSITIONS / 16; i++) {
                uint32_t position = first + i * r.box;
                if (i >= boxes || position >= span.end || position + r.box <= span.begin) continue;
#pragma unroll
                for (uint32_t c = 0; c < S::CHUNKS; c++)
                    copy_box(tile + (c * S::POSITIONS + i * r.box) * CHUNK_BYTES, &r.map, barrier, c * 64, head,
                             position & ((1u << r.shift) - 1), plane + blocks[i]);
            }
        }
        __syncwarp();
        if (++part == S::TILES) take_piece();
    }

    /* Fills the ring: as far as no row of this step is met where `settled` has not been waited for. */
    __device__ __forceinline__ uint32_t fill(uint32_t filled, bool waited)
    {
        while (filled < S::DEPTH && more && (waited || span.end > at + PIECE))
            copy_tile(filled++);
        return filled;
    }

    /* ---- arithmetic ---- */

    /* The next tile, when it is there. */
    __device__ __forceinline__ uint32_t take_tile()
    {
        full_wait(full + slot * 8, parity);
        return ring + slot * TILE_BYTES;
    }

    /* All lanes have read it: the next one may come in its place. The copy engine does not wait for loads that are
     * on their way without the fence. */
    __device__ __forceinline__ void give_tile()
    {
#if __CUDA_ARCH__ >= 900
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
        __syncwarp();
        if (more) copy_tile(slot);
        if (++slot == S::DEPTH) slot = 0, parity ^= 1;
    }

    __device__ __forceinline__ static void load_keys(uint32_t (&to)[4], uint32_t from)
    {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(from)
                     : "memory");
    }

    __device__ __forceinline__ static void load_values(uint32_t (&to)[4], uint32_t from)
    {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(from)
                     : "memory");
    }

    __device__ __forceinline__ static uint32_t transposed(uint32_t pair)
    {
        uint32_t result;
        asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
        return result;
    }

    /* 16 bytes `chunk` of row `row` of a tile: the copy engine exchanges them within 8 rows. */
    __device__ __forceinline__ static uint32_t swizzled(uint32_t tile, uint32_t row, uint32_t chunk)
    {
        return tile + ((chunk / 8) * S::POSITIONS + row) * CHUNK_BYTES + ((chunk % 8 ^ row % 8) << 4);
    }

    /* Begins to copy the queries of a kv head's heads: memory that is kept busy answers late. */
    __device__ __forceinline__ void fetch_queries(const walk_t &walk) const
    {
        constexpr uint32_t EACH = S::D / 8;
        const bf16 *from =
            (const bf16 *)a.q + ((size_t)__ldg(&a.runs[walk.run].first) * a.heads + walk.head * r.group) * S::D;
        for (uint32_t i = lane; i < r.group * EACH; i += WARP)
            copy_async(queries + (query * r.group + i / EACH) * S::QUERY + i % EACH * 8, from + i * 8, true);
        copy_commit();
    }

    /* Those that were fetched last, as fragments B: a row of eight is a head, those beyond the group are zero. */
    __device__ __forceinline__ void take_queries(uint32_t (&to)[S::D / 16][2])
    {
        uint32_t row = lane % 8 < r.group ? lane % 8 : 0, mine = lane / 4 < r.group ? ALL_LANES : 0;
        uint32_t from = shared_address(queries + (query * r.group + row) * S::QUERY + lane / 8 * 8);
        copy_wait<0>();
        __syncwarp();
#pragma unroll
        for (int i = 0; i < S::D / 16; i += 2) {
            uint32_t four[4];
            load_keys(four, from + i * 32);
            to[i][0] = four[0] & mine, to[i][1] = four[1] & mine;
            to[i + 1][0] = four[2] & mine, to[i + 1][1] = four[3] & mine;
        }
        query ^= 1;
    }

    __device__ __forceinline__ void score(const uint32_t (&queries)[S::D / 16][2], float (&scores)[PIECE / 16][4])
    {
        constexpr int ROWS = S::POSITIONS / 16;
#pragma unroll
        for (int part = 0; part < S::CHUNKS; part++) {
            uint32_t tile = take_tile();
#pragma unroll
            for (int m = 0; m < ROWS; m++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    scores[part * ROWS + m][j] = 0;
#pragma unroll
            for (int i = 0; i < S::D / 16; i++) /* row tile by row tile: products that do not wait for each other */
#pragma unroll
                for (int m = 0; m < ROWS; m++) {
                    uint32_t keys[4];
                    load_keys(keys, swizzled(tile, m * 16 + lane % 16, i * 2 + lane / 16));
                    mma(scores[part * ROWS + m], keys, queries[i][0], queries[i][1]);
                }
            give_tile();
        }
    }

    /* Positions that are not seen score -infinity. */
    __device__ __forceinline__ void hide(uint32_t first, span_t seen, float (&scores)[PIECE / 16][4]) const
    {
#pragma unroll
        for (int m = 0; m < PIECE / 16; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t position = first + m * 16 + lane / 4 + i / 2 * 8;
                if (position < seen.begin || position >= seen.end) scores[m][i] = -INFINITY;
            }
    }

    /* Turns scores into weights, fragments B of 16 positions each, and shrinks what was summed before. */
    __device__ __forceinline__ void weigh(float (&scores)[PIECE / 16][4], float scale, columns_t<S::D> &sums,
                                          uint32_t (&weights)[PIECE / 16][2]) const
    {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float best = -INFINITY;
#pragma unroll
            for (int m = 0; m < PIECE / 16; m++)
                best = fmaxf(best, fmaxf(scores[m][j], scores[m][2 + j]));
#pragma unroll
            for (int step = 4; step < WARP; step *= 2)
                best = fmaxf(best, __shfl_xor_sync(ALL_LANES, best, step));
            best = fmaxf(best * scale, sums.best[j]);
            float base = best == -INFINITY ? 0 : best, keep = power_of_two(sums.best[j] - base), total = 0;
            sums.best[j] = best;
#pragma unroll
            for (int m = 0; m < PIECE / 16; m++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float weight = power_of_two(fmaf(scores[m][i * 2 + j], scale, -base));
                    scores[m][i * 2 + j] = weight;
                    total += weight;
                }
            sums.total[j] = fmaf(sums.total[j], keep, total);
#pragma unroll
            for (int d = 0; d < S::D / 16; d++)
                sums.out[d][j] *= keep, sums.out[d][2 + j] *= keep;
        }
#pragma unroll
        for (int m = 0; m < PIECE / 16; m++) {
            weights[m][0] = transposed(pack_bf16(scores[m][0], scores[m][1]));
            weights[m][1] = transposed(pack_bf16(scores[m][2], scores[m][3]));
        }
    }

    /* Which of positions `first` and `first` + 1 are seen, as a mask of two halves: what lies in the others' values
     * may be anything, and 0 times that is not 0. */
    __device__ __forceinline__ static uint32_t seen_pair(uint32_t first, span_t seen)
    {
        return (first >= seen.begin && first < seen.end ? 0xffffu : 0) |
               (first + 1 >= seen.begin && first + 1 < seen.end ? 0xffff0000u : 0);
    }

    __device__ __forceinline__ void add_values(const uint32_t (&weights)[PIECE / 16][2], uint32_t first, span_t seen,
                                               bool whole, columns_t<S::D> &sums)
    {
        constexpr int ROWS = S::POSITIONS / 16;
#pragma unroll
        for (int part = 0; part < S::CHUNKS; part++) {
            uint32_t tile = take_tile();
#pragma unroll
            for (int m = 0; m < ROWS; m++) {
                const uint32_t(&weight)[2] = weights[part * ROWS + m];
                uint32_t position = first + (part * ROWS + m) * 16 + lane % 4 * 2;
                uint32_t low = whole ? ALL_LANES : seen_pair(position, seen);
                uint32_t high = whole ? ALL_LANES : seen_pair(position + 8, seen);
#pragma unroll
                for (int d = 0; d < S::D / 16; d++) {
                    uint32_t values[4];
                    load_values(values, swizzled(tile, m * 16 + lane % 8 + lane / 16 * 8, d * 2 + lane / 8 % 2));
                    if (!whole) values[0] &= low, values[1] &= low, values[2] &= high, values[3] &= high;
                    mma(sums.out[d], values, weight[0], weight[1]);
                }
            }
            give_tile();
        }
    }

    __device__ __forceinline__ void attend_piece(uint32_t first, span_t seen, const uint32_t (&queries)[S::D / 16][2],
                                                 columns_t<S::D> &sums)
    {
        float scores[PIECE / 16][4];
        uint32_t weights[PIECE / 16][2];
        bool whole = first >= seen.begin && first + PIECE <= seen.end;
        score(queries, scores);
        if (a.softcap > 0) cap(scores, a.scale, a.softcap);
        if (!whole) hide(first, seen, scores);
        weigh(scores, a.softcap > 0 ? LOG2_E : a.scale * LOG2_E, sums, weights);
        add_values(weights, first, seen, whole, sums);
    }

    /* ---- what is left in memory ---- */

    /* This warp's part of split `split` of the (sequence, kv head) whose place this is: a line per register. */
    __device__ __forceinline__ float *partial_at(uint32_t place, uint32_t split) const
    {
        uint32_t columns = (r.group + 1) / 2, width = columns * 8;
        size_t index = ((size_t)place * SPLIT_COUNT + split) * RESIDENT_WARPS + warp;
        return r.partial + index * LINES<S::D> * width + lane / 4 * columns + lane % 4;
    }

    /* Sums from `split` up to before `next`. */
    __device__ __forceinline__ void store(uint32_t place, uint32_t split, uint32_t next,
                                          const columns_t<S::D> &sums) const
    {
        uint32_t columns = (r.group + 1) / 2, width = columns * 8;
        float *to_lines = partial_at(place, split);
        if (lane % 4 >= columns) return;
#pragma unroll
        for (int i = 0; i < S::D / 16 * 4; i++)
            to_lines[i * width] = sums.out[i / 4][i % 4];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            to_lines[(LINES<S::D> - 5 + j) * width] = sums.best[j];
            to_lines[(LINES<S::D> - 3 + j) * width] = sums.total[j];
        }
        to_lines[(LINES<S::D> - 1) * width] = __uint_as_float(next);
    }

    __device__ __forceinline__ uint32_t load(uint32_t place, uint32_t split, columns_t<S::D> &sums) const
    {
        uint32_t columns = (r.group + 1) / 2, width = columns * 8, next = 0;
        const float *lines = partial_at(place, split);
        sums.clear();
        if (lane % 4 < columns) {
#pragma unroll
            for (int i = 0; i < S::D / 16 * 4; i++)
                sums.out[i / 4][i % 4] = __ldcg(lines + i * width);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                sums.best[j] = __ldcg(lines + (LINES<S::D> - 5 + j) * width);
                sums.total[j] = __ldcg(lines + (LINES<S::D> - 3 + j) * width);
            }
            next = __float_as_uint(__ldcg(lines + (LINES<S::D> - 1) * width));
        }
        return __shfl_sync(ALL_LANES, next, 0);
    }

    /* True in all threads of the block that brings the last of `count` splits. */
    __device__ __forceinline__ bool is_last(uint32_t pair, uint32_t brought, uint32_t count) const
    {
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence(); /* of what all threads stored before the barrier */
            uint32_t now = atomicAdd(&r.counters[pair], brought) + brought;
            common.last = now == count;
            if (now == count) r.counters[pair] = 0;
            __threadfence();
        }
        __syncthreads();
        return common.last;
    }

    /* ---- the end of a (sequence, kv head) ---- */

    /* Adds up the four warps and stores the heads' outputs. */
    __device__ __forceinline__ void finish(uint32_t run, uint32_t kv_head, const columns_t<S::D> &sums) const
    {
        __syncthreads(); /* the last one's readers are done */
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint32_t column = lane % 4 * 2 + j;
            if (column >= r.group) continue;
            float *rows = merged + (warp * r.group + column) * S::STRIDE + lane / 4;
#pragma unroll
            for (int d = 0; d < S::D / 16; d++)
                rows[d * 16] = sums.out[d][j], rows[d * 16 + 8] = sums.out[d][2 + j];
            if (lane < 4) common.bests[warp][column] = sums.best[j], common.totals[warp][column] = sums.total[j];
        }
        __syncthreads();
        bf16 *out = (bf16 *)a.out + ((size_t)__ldg(&a.runs[run].first) * a.heads + kv_head * r.group) * S::D;
        for (uint32_t i = threadIdx.x * 2; i < r.group * S::D; i += RESIDENT_THREADS * 2) {
            uint32_t column = i / S::D, d = i % S::D;
            float best = -INFINITY, total = 0, low = 0, high = 0;
#pragma unroll
            for (int w = 0; w < RESIDENT_WARPS; w++)
                best = fmaxf(best, common.bests[w][column]);
#pragma unroll
            for (int w = 0; w < RESIDENT_WARPS; w++) {
                float share = power_of_two(common.bests[w][column] - best);
                float2 pair = *(const float2 *)(merged + (w * r.group + column) * S::STRIDE + d);
                total = fmaf(share, common.totals[w][column], total);
                low = fmaf(share, pair.x, low), high = fmaf(share, pair.y, high);
            }
            *(uint32_t *)(out + i) = pack_bf16(low / total, high / total);
        }
    }

    /* Totals of a thread are of the rows it has; from here on of all. */
    __device__ __forceinline__ static void close(columns_t<S::D> &sums)
    {
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int step = 4; step < WARP; step *= 2)
                sums.total[j] += __shfl_xor_sync(ALL_LANES, sums.total[j], step);
    }

    /* The cells of one (sequence, kv head). */
    __device__ __forceinline__ void attend_cells(const walk_t &walk, const uint32_t (&fragments)[S::D / 16][2])
    {
        const span_t &seen = walk.span;
        uint32_t first = split_of(seen.first), stop = walk.stop;
        uint32_t place = place_of(walk.before + walk.head * pieces_of(seen), gridDim.x, common.all);
        bool whole = walk.cell == seen.first; /* from its beginning: sums go on from split to split */
        columns_t<S::D> sums, split;
        sums.clear(), split.clear();
        for (uint32_t cell = walk.cell; cell < stop; cell++) {
            uint32_t position = cell * CELL + warp * PIECE;
            if (position < seen.end && position + PIECE > seen.begin) attend_piece(position, seen, fragments, split);
            uint32_t now = split_of(cell);
            if (cell + 1 < stop && split_of(cell + 1) == now) continue;
            close(split);
            if (whole)
                sums.add(split);
            else
                store(place, now - first, now - first + 1, split);
            split.clear();
        }
        uint32_t count = split_of(seen.stop - 1) - first + 1, upto = split_of(stop - 1) - first + 1;
        if (!whole || stop != seen.stop) {
            if (whole) store(place, 0, upto, sums);
            if (!is_last(walk.run * a.kv.kv_heads + walk.head, upto - (split_of(walk.cell) - first), count)) return;
            for (uint32_t at_split = load(place, 0, sums); at_split < count;) {
                at_split = load(place, at_split, split);
                sums.add(split);
            }
        }
        finish(walk.run, walk.head, sums);
    }

    __device__ __forceinline__ void work()
    {
        walk_t walk(a, common), ahead(a, common);
        if (ahead.more) fetch_queries(ahead);
        for (; walk.more; walk.next()) {
            uint32_t fragments[S::D / 16][2];
            take_queries(fragments);
            ahead.next();
            if (ahead.more) fetch_queries(ahead);
            attend_cells(walk, fragments);
        }
    }
};

#endif
