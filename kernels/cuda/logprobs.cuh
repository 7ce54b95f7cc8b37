/* Parts of the log-probability kernel that the sampler uses too: one row by a block of SELECT_THREADS threads. For
 * files in kernels/cuda/ only. */
#ifndef QN_KERNELS_CUDA_LOGPROBS_CUH
#define QN_KERNELS_CUDA_LOGPROBS_CUH

#include "kernels/cuda/select.cuh"

/* log(sum(exp(logits))). Threads add their exponentials in float in order of ids, blocks in double. */
static __device__ float log_sum_exp(const float *logits, uint32_t vocab, select_room_t &room)
{
    float best = -INFINITY;
    for_each_value(logits, vocab, [&](uint32_t, float value) { best = fmaxf(best, value); });
    best = block_max(best, -INFINITY, (float *)room.words);
    float sum = 0;
    for_each_value(logits, vocab, [&](uint32_t, float value) { sum += expf(value - best); });
    return best + (float)log(block_sum((double)sum, (double *)room.words));
}

/* The `count` most probable ids, best first; ties of the rounded log-probability go to the lower id. */
static __device__ void top_logprobs(const float *logits, uint32_t vocab, float log_sum, uint32_t count,
                                    select_room_t &room, qn_top_entry_t *ret_top)
{
    count = min(count, vocab);
    if (!count) return;
    uint32_t own = 0;
    for_each_value(logits, vocab, [&](uint32_t, float value) { own = max(own, sort_key(value - log_sum)); });
    uint32_t bound = key_bound(own, count);
    auto value_of = [&](uint32_t i) { return logits[i] - log_sum; };
    auto wants = [&](float value, uint32_t) { return sort_key(value) >= bound; };
    candidates_t list;
    bool listed = make_list(vocab, value_of, wants, room, list);
    unsigned long long below = ~0ull;
    for (uint32_t n = 0; n < count; n++) {
        unsigned long long best = 0;
        for_each(listed ? list.count : vocab, [&](uint32_t i) {
            unsigned long long word = listed ? pack(list.values[i], list.ids[i]) : pack(value_of(i), i);
            if (word < below) best = max(best, word);
        });
        below = block_max(best, 0ull, room.words);
        uint32_t id = packed_id(below);
        if (threadIdx.x == 0) ret_top[n] = { id, logits[id] - log_sum };
    }
}

#endif
