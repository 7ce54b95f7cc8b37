/* One row of V values, by a cluster of ROW_BLOCKS blocks (one block where a device has no clusters): block r holds the
 * r-th slice of ids, in shared memory where it fits. What is common here: sums and maxima over the row, and choosing
 * the best candidates until a count or a mass is reached. For files in kernels/cuda/ only.
 *
 * Values are ordered by (value, lower id first), packed into one 64-bit word. Masses are fixed-point numbers: their
 * sums are exact, so no order of additions, and no way to the same set, can change a choice.
 *
 * Every function below that takes a row_t is called by all threads of all of the row's blocks, and what decides its
 * way through a barrier is the same in all of them. */
#ifndef QN_KERNELS_CUDA_SAMPLING_SELECT_CUH
#define QN_KERNELS_CUDA_SAMPLING_SELECT_CUH

#include "kernels/cuda/device.cuh"

#define ROW_BLOCKS 8
#define ROW_THREADS 512
#define ROW_WARPS (ROW_THREADS / WARP)
#define BINS 2048
#define MEMBERS_MAX 2048                       /* of one bin, in the whole row */
#define OWN_MEMBERS (MEMBERS_MAX / ROW_BLOCKS) /* of one bin, in one block's slice */

typedef struct {
    unsigned long long words[WARP]; /* of sums over the block */
    unsigned long long slots[2];    /* what the row's other blocks read, two in turn */
    uint32_t counts[BINS];          /* of candidates, by how far they are below the best */
    unsigned long long masses[BINS];
    uint32_t own_count, ids[OWN_MEMBERS]; /* of the bin at hand, in this slice */
    float values[OWN_MEMBERS];
    unsigned long long packs[MEMBERS_MAX]; /* the same of all slices */
    unsigned long long found;
} row_room_t;

typedef struct {
    float *values; /* of ids first .. first + count */
    uint32_t vocab, first, count;
    uint32_t rank, ranks, turn;
    row_room_t *room;
} row_t;

/* ---- order ---- */

/* Orders floats like unsigned integers; NaN below everything. */
static __device__ __forceinline__ uint32_t sort_key(float value)
{
    uint32_t bits = __float_as_uint(value);
    if (value != value) return 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float key_value(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

static __device__ __forceinline__ unsigned long long pack(float value, uint32_t id)
{
    return (unsigned long long)sort_key(value) << 32 | ~id;
}

static __device__ __forceinline__ uint32_t packed_id(unsigned long long word) { return ~(uint32_t)word; }
static __device__ __forceinline__ float packed_value(unsigned long long word)
{
    return key_value((uint32_t)(word >> 32));
}

/* ---- going over a slice ---- */

/* Each warp has a contiguous range, its lanes take turns: ranges are in the order of ids. Calls visit(index, value)
 * with BATCH loads on their way at once, also where visit() writes to the row. */
#define BATCH 8
template <class F> static __device__ __forceinline__ void for_each_value(const float *values, uint32_t count, F visit)
{
    uint32_t share = (count + ROW_THREADS - 1) / ROW_THREADS * WARP, first = threadIdx.x / WARP * share;
    uint32_t end = min(first + share, count);
    for (uint32_t i = first + threadIdx.x % WARP; i < end; i += BATCH * WARP) {
        float batch[BATCH];
#pragma unroll
        for (uint32_t j = 0; j < BATCH; j++)
            batch[j] = i + j * WARP < end ? values[i + j * WARP] : 0;
#pragma unroll
        for (uint32_t j = 0; j < BATCH; j++)
            if (i + j * WARP < end) visit(i + j * WARP, batch[j]);
    }
}

/* ---- over the row ---- */

static __device__ __forceinline__ void row_barrier(const row_t &row)
{
    if (row.ranks > 1)
        cluster_barrier();
    else
        __syncthreads();
}

/* Each block's word, added up or compared in the order of ranks and given to all. */
template <class F> static __device__ unsigned long long across(row_t &row, unsigned long long own, F combine)
{
    if (row.ranks == 1) return own;
    unsigned long long *slot = &row.room->slots[row.turn];
    row.turn ^= 1; /* a slot is written again only after the next barrier: all have read it */
    if (threadIdx.x == 0) *slot = own;
    cluster_barrier();
    unsigned long long words[ROW_BLOCKS];
#pragma unroll
    for (uint32_t r = 0; r < ROW_BLOCKS; r++)
        words[r] = cluster_load_word(slot, r);
#pragma unroll
    for (uint32_t r = 1; r < ROW_BLOCKS; r++)
        words[0] = combine(words[0], words[r], r);
    return words[0];
}

static __device__ unsigned long long row_sum(row_t &row, unsigned long long own)
{
    return across(row, block_sum(own, row.room->words),
                  [](unsigned long long a, unsigned long long b, uint32_t) { return a + b; });
}

static __device__ unsigned long long row_max(row_t &row, unsigned long long own)
{
    return across(row, block_max(own, 0ull, row.room->words),
                  [](unsigned long long a, unsigned long long b, uint32_t) { return a > b ? a : b; });
}

/* The blocks' words: what lies before this block's, and which block's holds the `target`-th (from 1) unit. */
typedef struct {
    unsigned long long before, owner_before;
    uint32_t owner;
} place_t;

static __device__ place_t find_owner(row_t &row, unsigned long long own, unsigned long long target)
{
    place_t place = {0, 0, 0};
    if (row.ranks == 1) return place;
    unsigned long long sum = 0;
    bool found = false;
    auto note = [&](unsigned long long word, uint32_t r) {
        if (r == row.rank) place.before = sum;
        if (!found && sum + word >= target) found = true, place.owner = r, place.owner_before = sum;
        sum += word;
    };
    unsigned long long *slot = &row.room->slots[row.turn];
    row.turn ^= 1;
    if (threadIdx.x == 0) *slot = own;
    cluster_barrier();
    unsigned long long words[ROW_BLOCKS];
#pragma unroll
    for (uint32_t r = 0; r < ROW_BLOCKS; r++)
        words[r] = cluster_load_word(slot, r);
#pragma unroll
    for (uint32_t r = 0; r < ROW_BLOCKS; r++)
        note(words[r], r);
    return place;
}

/* What block `owner` left in room->found, given to all. */
static __device__ unsigned long long from_owner(row_t &row, uint32_t owner)
{
    row_barrier(row);
    unsigned long long word = row.ranks > 1 ? cluster_load_word(&row.room->found, owner) : row.room->found;
    row_barrier(row); /* it may be written again */
    return word;
}

/* A running best of one thread that sees ids in ascending order; NaN never wins, the lower id wins ties. */
typedef struct {
    float value;
    uint32_t id;
} best_t;

static __device__ __forceinline__ void take_better(best_t &best, float value, uint32_t id)
{
    if (value > best.value || best.id == 0xffffffffu) best = {value == value ? value : -INFINITY, id};
}

static __device__ __forceinline__ unsigned long long pack_best(const best_t &best)
{
    return best.id == 0xffffffffu ? 0 : pack(best.value + 0.0f, best.id); /* 0 and -0 tie */
}

/* The greatest of `values`, which are this block's slice; ties to the lower id. */
static __device__ uint32_t greatest(row_t &row, const float *values)
{
    best_t best = {-INFINITY, 0xffffffffu};
    for_each_value(values, row.count, [&](uint32_t i, float value) { take_better(best, value, row.first + i); });
    return packed_id(row_max(row, pack_best(best)));
}

/* ---- the best until a count or a mass is reached ---- */

/* How candidates are sorted into bins: by how far a value is below the best, which all candidates with a mass are by
 * at most `range`. Subtraction and product are monotone in the value, so bins are in the order of values. */
typedef struct {
    float best, scale;
} bins_t;

static __device__ __forceinline__ uint32_t bin_of(const bins_t &bins, float value)
{
    return min((uint32_t)((bins.best - value) * bins.scale), (uint32_t)BINS - 1);
}

/* Counts and masses of all bins. Afterwards block r has the whole row's of its BINS / ranks bins, the r-th such part,
 * in its own arrays. */
template <class F> static __device__ void fill_bins(row_t &row, const bins_t &bins, F mass_of)
{
    row_room_t &room = *row.room;
    for (uint32_t b = threadIdx.x; b < BINS; b += ROW_THREADS)
        room.counts[b] = 0, room.masses[b] = 0;
    __syncthreads();
    for_each_value(row.values, row.count, [&](uint32_t, float value) {
        unsigned long long mass = mass_of(value);
        if (!mass) return;
        uint32_t b = bin_of(bins, value);
        atomicAdd(&room.counts[b], 1);
        atomicAdd(&room.masses[b], mass);
    });
    row_barrier(row);
    if (row.ranks == 1) return;
    /* Only this block reads and writes its part of the bins: its own may be overwritten with the sums. */
    for (uint32_t i = threadIdx.x; i < BINS / ROW_BLOCKS; i += ROW_THREADS) {
        uint32_t b = row.rank * (BINS / ROW_BLOCKS) + i, count = 0;
        unsigned long long mass = 0;
#pragma unroll
        for (uint32_t r = 0; r < ROW_BLOCKS; r++) {
            count += cluster_load_half(&room.counts[b], r);
            mass += cluster_load_word(&room.masses[b], r);
        }
        room.counts[b] = count, room.masses[b] = mass;
    }
    __syncthreads();
}

/* What is counted: candidates or their mass. */
typedef enum { BY_COUNT, BY_MASS } measure_t;

/* The first bin at which the sum over it and all before it reaches `target`; `before`: the sum before it. The whole
 * row must reach it. */
static __device__ uint32_t find_bin(row_t &row, measure_t measure, unsigned long long target,
                                    unsigned long long &ret_before)
{
    row_room_t &room = *row.room;
    uint32_t part = BINS / row.ranks, first = row.rank * part, each = (part + ROW_THREADS - 1) / ROW_THREADS;
    auto size_of = [&](uint32_t i) {
        if (i >= part) return 0ull;
        return measure == BY_MASS ? room.masses[first + i] : (unsigned long long)room.counts[first + i];
    };
    unsigned long long own = 0;
    for (uint32_t i = 0; i < each; i++)
        own += size_of(threadIdx.x * each + i);
    /* where this thread's bins begin: warps before, lanes before */
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    unsigned long long upto = own;
    for (uint32_t step = 1; step < WARP; step *= 2) {
        unsigned long long other = __shfl_up_sync(ALL_LANES, upto, step);
        if (lane >= step) upto += other;
    }
    __syncthreads();
    if (lane == WARP - 1) room.words[warp] = upto;
    __syncthreads();
    unsigned long long block = 0, before = upto - own;
    for (uint32_t w = 0; w < ROW_WARPS; w++) {
        if (w < warp) before += room.words[w];
        block += room.words[w];
    }
    place_t place = find_owner(row, block, target);
    before += place.before;
    __shared__ unsigned long long sum_before;
    if (place.owner == row.rank && before < target && target <= before + own) {
        uint32_t i = threadIdx.x * each;
        for (; before + size_of(i) < target; i++)
            before += size_of(i);
        room.found = first + i;
        sum_before = before;
    }
    __syncthreads();
    uint32_t bin = (uint32_t)from_owner(row, place.owner);
    if (threadIdx.x == 0 && place.owner == row.rank) room.found = sum_before;
    __syncthreads();
    ret_before = from_owner(row, place.owner);
    return bin;
}

/* Collects the packed candidates of a bin from all slices; their number, or more than MEMBERS_MAX when they are too
 * many. */
template <class F> static __device__ uint32_t collect_members(row_t &row, const bins_t &bins, uint32_t bin, F mass_of)
{
    row_room_t &room = *row.room;
    if (threadIdx.x == 0) room.own_count = 0;
    __syncthreads();
    uint32_t most = row.ranks == 1 ? MEMBERS_MAX : OWN_MEMBERS;
    for_each_value(row.values, row.count, [&](uint32_t i, float value) {
        if (!(value <= bins.best) || bin_of(bins, value) != bin || !mass_of(value)) return;
        uint32_t at = atomicAdd(&room.own_count, 1);
        if (at >= most) return;
        if (row.ranks == 1)
            room.packs[at] = pack(value, i);
        else
            room.values[at] = value, room.ids[at] = row.first + i;
    });
    row_barrier(row);
    if (row.ranks == 1) return room.own_count;
    uint32_t total = 0;
    bool over = false;
    for (uint32_t r = 0; r < ROW_BLOCKS; r++) {
        uint32_t count = cluster_load_half(&room.own_count, r);
        over = over || count > OWN_MEMBERS;
        for (uint32_t i = threadIdx.x; i < min(count, (uint32_t)OWN_MEMBERS); i += ROW_THREADS)
            room.packs[total + i] = pack(cluster_load(&room.values[i], r), cluster_load_half(&room.ids[i], r));
        total += min(count, (uint32_t)OWN_MEMBERS);
    }
    row_barrier(row); /* the lists may be written again */
    return over ? MEMBERS_MAX + 1 : total;
}

/* Among `count` packed members: the word of the one at which the sum of sizes, greatest word first, reaches `target`.
 * size_of(word) may be 0. All blocks find the same. */
template <class F>
static __device__ unsigned long long find_member(row_t &row, uint32_t count, unsigned long long target, F size_of)
{
    row_room_t &room = *row.room;
    if (count <= ROW_THREADS) {
        unsigned long long own = threadIdx.x < count ? room.packs[threadIdx.x] : 0, sum = 0;
        unsigned long long size = threadIdx.x < count ? size_of(own) : 0;
        __shared__ unsigned long long sizes[ROW_THREADS], chosen;
        sizes[threadIdx.x] = size;
        __syncthreads();
        for (uint32_t i = 0; i < count; i++)
            sum += room.packs[i] >= own ? sizes[i] : 0;
        if (size && sum >= target && sum - size < target) chosen = own;
        __syncthreads();
        unsigned long long word = chosen;
        __syncthreads();
        return word;
    }
    unsigned long long limit = 0;
    for (int bit = 63; bit >= 0; bit--) {
        unsigned long long trial = limit | 1ull << bit, sum = 0;
        for (uint32_t i = threadIdx.x; i < count; i += ROW_THREADS)
            if (room.packs[i] >= trial) sum += size_of(room.packs[i]);
        if (block_sum(sum, room.words) >= target) limit = trial;
    }
    return limit;
}

/* The slow way, for rows whose values are too much alike: the largest word L such that the sizes of values with a word
 * >= L sum to at least `target`. */
template <class F> static __device__ unsigned long long find_limit(row_t &row, unsigned long long target, F size_of)
{
    unsigned long long limit = 0;
    int id_bits = 32 - __clz(row.vocab);
    for (int bit = 63; bit >= 0; bit--) {
        if (bit == 31) {
            /* The high bits of every ~id are ones. */
            bit = id_bits - 1;
            limit |= 0xffffffffull >> id_bits << id_bits;
        }
        unsigned long long trial = limit | 1ull << bit, sum = 0;
        for_each_value(row.values, row.count, [&](uint32_t i, float value) {
            if (pack(value, row.first + i) >= trial) sum += size_of(value);
        });
        if (row_sum(row, sum) >= target) limit = trial;
    }
    return limit;
}

/* The word of the candidate at which the sum of sizes, best first, reaches `target`, which the whole row must reach.
 * Candidates are values with mass_of(value) > 0 and a word of at least `least`; fill_bins() has counted them (without
 * regard to `least`, which must be a word that was reached before: what lies above it is not touched by it). */
template <class F>
static __device__ unsigned long long reach(row_t &row, const bins_t &bins, measure_t measure, unsigned long long target,
                                           unsigned long long least, F mass_of)
{
    unsigned long long before;
    uint32_t bin = find_bin(row, measure, target, before), count = collect_members(row, bins, bin, mass_of);
    auto size_of = [&](float value) -> unsigned long long {
        unsigned long long mass = mass_of(value);
        return measure == BY_MASS ? mass : mass > 0;
    };
    if (count > MEMBERS_MAX) {
        unsigned long long limit = find_limit(row, target, size_of);
        return limit > least ? limit : least;
    }
    return find_member(row, count, target - before,
                       [&](unsigned long long word) { return word < least ? 0ull : size_of(packed_value(word)); });
}

/* ---- setting up ---- */

/* Bytes of shared memory that a row's block is launched with; slices that are longer stay in memory. */
#define SLICE_MAX 40960
static inline uint32_t slice_length(uint32_t vocab, uint32_t ranks)
{
    return (vocab + ranks * 4 - 1) / (ranks * 4) * 4;
}

static inline size_t row_bytes(uint32_t vocab, uint32_t ranks)
{
    uint32_t slice = slice_length(vocab, ranks);
    return sizeof(row_room_t) + (ranks > 1 && slice <= SLICE_MAX ? slice * sizeof(float) : 0);
}

/* This block's part of row blockIdx.y. `shared`: row_bytes() of it; `scratch`: [V] in memory. */
static __device__ row_t begin_row(uint32_t vocab, char *shared, float *scratch)
{
    row_t row = {};
    uint32_t slice = (vocab + gridDim.x * 4 - 1) / (gridDim.x * 4) * 4;
    row.vocab = vocab, row.rank = blockIdx.x, row.ranks = gridDim.x;
    row.first = min(row.rank * slice, vocab);
    row.count = min(slice, vocab - row.first);
    row.room = (row_room_t *)shared;
    row.values = row.ranks > 1 && slice <= SLICE_MAX ? (float *)(shared + sizeof(row_room_t)) : scratch + row.first;
    return row;
}

/* Nobody leaves while others may read its shared memory. */
static __device__ void end_row(const row_t &row) { row_barrier(row); }

#endif
