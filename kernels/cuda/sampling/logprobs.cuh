/* Parts of the log-probability kernel that the sampler uses too: one row by its blocks (select.cuh). For files in
 * kernels/cuda/ only. */
#ifndef QN_KERNELS_CUDA_SAMPLING_LOGPROBS_CUH
#define QN_KERNELS_CUDA_SAMPLING_LOGPROBS_CUH

#include "kernels/cuda/sampling/select.cuh"

/* log(sum(exp(logits))) of the row; `logits` is this block's slice. Threads add their exponentials in float in order of
 * ids; blocks' sums are rounded to a multiple of 2^-40, whose sum no order changes. */
static __device__ float log_sum_exp(row_t &row, const float *logits)
{
    uint32_t own = 0;
    for_each_value(logits, row.count, [&](uint32_t, float value) { own = max(own, sort_key(value)); });
    float best = key_value((uint32_t)row_max(row, own)), sum = 0;
    for_each_value(logits, row.count, [&](uint32_t, float value) { sum += expf(value - best); });
    unsigned long long fixed = (unsigned long long)((double)sum * 0x1p40);
    return best + (float)log((double)row_sum(row, fixed) * 0x1p-40);
}

/* The greatest word below `below` among this thread's own values of the slice. */
static __device__ unsigned long long own_best_below(const row_t &row, unsigned long long below)
{
    unsigned long long best = 0;
    for_each_value(row.values, row.count, [&](uint32_t i, float value) {
        unsigned long long word = pack(value, row.first + i);
        if (word < below && word > best) best = word;
    });
    return best;
}

/* The `count` most probable ids, best first, by the row's first block; ties of the rounded log-probability go to the
 * lower id. Uses the row's values. */
static __device__ void top_logprobs(row_t &row, const float *logits, float log_sum, uint32_t count,
                                    qn_top_entry_t *ret_top)
{
    row_room_t &room = *row.room;
    count = min(count, row.vocab);
    if (!count) return;
    __syncthreads();
    for_each_value(logits, row.count, [&](uint32_t i, float value) { row.values[i] = value - log_sum; });
    __syncthreads();
    /* The best of the slice: a thread looks again only when its own best was taken. */
    unsigned long long own = own_best_below(row, ~0ull);
    for (uint32_t n = 0; n < count; n++) {
        unsigned long long best = block_max(own, 0ull, room.words);
        if (threadIdx.x == 0) room.packs[n] = best;
        if (own == best && best) own = own_best_below(row, best);
    }
    row_barrier(row);
    if (row.rank == 0) {
        uint32_t all = count * row.ranks; /* at most 160: one each */
        own = 0;
        if (threadIdx.x < all)
            own = row.ranks > 1 ? cluster_load_word(&room.packs[threadIdx.x % count], threadIdx.x / count)
                                : room.packs[threadIdx.x];
        for (uint32_t n = 0; n < count; n++) {
            unsigned long long best = block_max(own, 0ull, room.words);
            if (own == best) own = 0;
            if (threadIdx.x == 0) ret_top[n] = {packed_id(best), packed_value(best)};
        }
    }
    row_barrier(row); /* the lists may be written again */
}

/* Behind the likeliest `count`: the ids that the slot asks for. `logits` are the whole row. */
static __device__ void add_logprob_ids(const row_t &row, const qn_slot_tables_t &tables, uint32_t slot,
                                       const float *logits, float log_sum, uint32_t count, qn_top_entry_t *ret_top)
{
    const uint32_t *ids = tables.logprob_ids + (size_t)slot * QN_LOGPROB_IDS_MAX;
    ret_top += min(count, row.vocab);
    if (row.rank == 0 && threadIdx.x < tables.rows[slot].logprob_id_count)
        ret_top[threadIdx.x] = {ids[threadIdx.x], logits[ids[threadIdx.x]] - log_sum};
}

#endif
