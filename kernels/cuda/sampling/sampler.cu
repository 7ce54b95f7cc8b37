/* What is this?      The sampler: from logits to the next token, a cluster of blocks per row.
 * State owned:       none; it writes last_token, done, counts and recent of the row's slot.
 * Must never:        depend on another row, a clock or an address: only logits, parameters, seed, position, counts.
 * Read next:         kernels/cpu/sampling/sampler.c, the reference; select.cuh. */
#include "kernels/cuda/sampling/logprobs.cuh"
#include "kernels/cuda/sampling/philox.cuh"

#define GREEDY_TEMPERATURE 1e-5f
#define MASS_ONE 8796093022208.0f /* 2^43: masses of 2^20 ids fit in 64 bits */
#define MASS_RANGE 30.0f          /* what is further below the best has no mass: e^-30 < 2^-43 */

/* One row on its way to a token. */
typedef struct {
    const qn_sampler_t *a;
    const qn_sample_t *sample;
    const qn_slot_row_t *slot; /* as it was before */
} draw_t;

/* ---- changes to the logits ---- */

static __device__ bool below_min_tokens(const qn_slot_row_t &slot, uint32_t position)
{
    return position < slot.prompt_tokens + (unsigned long long)slot.min_tokens;
}

/* Operations are rounded one by one, as in the reference. */
static __device__ float penalise(const qn_slot_row_t &slot, float value, uint32_t count)
{
    if (!count) return value;
    uint32_t generated = count & ~QN_COUNT_PROMPT;
    value = value > 0 ? __fdiv_rn(value, slot.repetition_penalty) : __fmul_rn(value, slot.repetition_penalty);
    if (!generated) return value;
    return value - __fadd_rn(__fmul_rn(slot.frequency_penalty, (float)generated), slot.presence_penalty);
}

/* Bias and forbidden ids of one slot that lie in the slice; few, so one thread keeps the order of equal ids. */
static __device__ void change_some(const draw_t &d, const row_t &row, const float *logits)
{
    const qn_slot_tables_t &tables = d.a->tables;
    const qn_bias_entry_t *bias = tables.bias + (size_t)d.sample->slot * QN_LOGIT_BIAS_MAX;
    const uint32_t *stop = tables.stop_ids + (size_t)d.sample->slot * QN_SLOT_STOP_IDS_MAX;
    for (uint32_t i = 0; i < d.slot->bias_count; i++)
        if (bias[i].id - row.first < row.count)
            row.values[bias[i].id - row.first] = logits[bias[i].id - row.first] + bias[i].bias;
    if (!below_min_tokens(*d.slot, d.sample->position)) return;
    for (uint32_t i = 0; i < d.slot->stop_count; i++)
        if (stop[i] - row.first < row.count) row.values[stop[i] - row.first] = -INFINITY;
}

/* A word is complete with its last token: that one is out when the others were just generated. A thread per last id;
 * several may write the same value. */
static __device__ void forbid_words(const draw_t &d, const row_t &row)
{
    const uint32_t *ids = d.a->tables.bad_ids + (size_t)d.sample->slot * QN_BAD_IDS_MAX;
    const uint32_t *recent = d.a->tables.recent + (size_t)d.sample->slot * QN_BAD_SEQUENCE_TOKENS_MAX;
    uint32_t position = d.sample->position, generated = position - d.slot->prompt_tokens;
    for (uint32_t i = threadIdx.x; i < d.slot->bad_id_count; i += blockDim.x) {
        uint32_t id = ids[i] & ~QN_SEQUENCE_END, before = 0;
        if (!(ids[i] & QN_SEQUENCE_END) || id - row.first >= row.count) continue;
        bool same = true;
        for (; before < i && !(ids[i - 1 - before] & QN_SEQUENCE_END); before++)
            same = same && before < generated &&
                   recent[(position - 1 - before) % QN_BAD_SEQUENCE_TOKENS_MAX] == ids[i - 1 - before];
        if (same) row.values[id - row.first] = fminf(row.values[id - row.first], QN_LOGIT_FORBIDDEN);
    }
}

static __device__ void change_logits(const draw_t &d, const row_t &row, const float *logits)
{
    bool allow_only = d.slot->allow_only;
    for_each_value(logits, row.count, [&](uint32_t i, float value) { row.values[i] = allow_only ? -INFINITY : value; });
    __syncthreads();
    if (threadIdx.x == 0) change_some(d, row, logits);
    __syncthreads();
    if (d.slot->bad_id_count) forbid_words(d, row);
    __syncthreads();
    if (!d.slot->penalties) return;
    const uint32_t *counts = d.a->tables.counts + (size_t)d.sample->slot * row.vocab + row.first;
    for_each_value(row.values, row.count,
                   [&](uint32_t i, float value) { row.values[i] = penalise(*d.slot, value, counts[i]); });
    __syncthreads();
}

/* ---- the draw ---- */

typedef struct {
    float best, min_p;
} weights_t;

/* Unnormalised probability in fixed point; the best has MASS_ONE; 0: not a candidate. Also drops NaN. */
static __device__ __forceinline__ unsigned long long mass_of(const weights_t &w, float value)
{
    float weight = expf(value - w.best);
    return weight >= w.min_p ? __float2ull_rz(weight * MASS_ONE) : 0;
}

/* Mass of candidates that are not below `limit`. */
static __device__ unsigned long long total_mass(row_t &row, const weights_t &w, unsigned long long limit)
{
    unsigned long long sum = 0;
    for_each_value(row.values, row.count, [&](uint32_t i, float value) {
        if (!limit || pack(value, row.first + i) >= limit) sum += mass_of(w, value);
    });
    return row_sum(row, sum);
}

/* The first id, ascending, at which the kept mass is above `target`. Given to all threads. */
static __device__ uint32_t walk(row_t &row, const weights_t &w, unsigned long long limit, unsigned long long target)
{
    row_room_t &room = *row.room;
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    auto kept = [&](uint32_t i, float value) {
        return !limit || pack(value, row.first + i) >= limit ? mass_of(w, value) : 0ull;
    };
    unsigned long long sum = 0, block = 0, before = 0;
    for_each_value(row.values, row.count, [&](uint32_t i, float value) { sum += kept(i, value); });
    sum = warp_sum(sum);
    __syncthreads();
    if (lane == 0) room.words[warp] = sum;
    __syncthreads();
    for (uint32_t i = 0; i < ROW_WARPS; i++) {
        before += i < warp ? room.words[i] : 0;
        block += room.words[i];
    }
    place_t place = find_owner(row, block, target + 1);
    before += place.before;
    if (place.owner == row.rank && target >= before && target < before + sum) {
        uint32_t share = (row.count + ROW_THREADS - 1) / ROW_THREADS * WARP, i = warp * share + lane;
        for (;; i += WARP) {
            unsigned long long mass = i < row.count ? kept(i, row.values[i]) : 0, upto = mass;
            for (int step = 1; step < WARP; step *= 2) {
                unsigned long long other = __shfl_up_sync(ALL_LANES, upto, step);
                if (lane >= (uint32_t)step) upto += other;
            }
            uint32_t lanes = __ballot_sync(ALL_LANES, before + upto > target);
            if (lanes) {
                if (lane == (uint32_t)__ffs(lanes) - 1) room.found = row.first + i;
                break;
            }
            before += __shfl_sync(ALL_LANES, upto, WARP - 1);
        }
    }
    return (uint32_t)from_owner(row, place.owner);
}

/* top-k and top-p: the word of the last candidate that is kept; 0: all are. `mass` becomes that of the kept. */
static __device__ unsigned long long keep_best(row_t &row, const draw_t &d, const weights_t &w, const bins_t &bins,
                                               unsigned long long &mass)
{
    auto mass_at = [&](float value) { return mass_of(w, value); };
    uint32_t top_k = d.slot->top_k && d.slot->top_k < row.vocab ? d.slot->top_k : 0, own = 0;
    unsigned long long limit = 0;
    fill_bins(row, bins, mass_at);
    if (top_k) {
        for_each_value(row.values, row.count, [&](uint32_t, float value) { own += mass_at(value) > 0; });
        if (row_sum(row, own) > top_k) limit = reach(row, bins, BY_COUNT, top_k, 0, mass_at);
        if (limit) mass = total_mass(row, w, limit);
    }
    if (d.slot->top_p >= 1) return limit;
    unsigned long long target = (unsigned long long)ceil((double)d.slot->top_p * (double)mass);
    if (target < 1) target = 1;
    if (target >= mass) return limit; /* all of them */
    limit = reach(row, bins, BY_MASS, target, limit, mass_at);
    mass = total_mass(row, w, limit);
    return limit;
}

static __device__ uint32_t draw(row_t &row, const draw_t &d)
{
    uint32_t own = 0, own_least = 0;
    float temperature = d.slot->temperature;
    for_each_value(row.values, row.count, [&](uint32_t i, float value) {
        value = __fdiv_rn(value, temperature);
        row.values[i] = value;
        own = max(own, sort_key(value));
        if (value > -INFINITY) own_least = max(own_least, ~sort_key(value));
    });
    weights_t w = {key_value((uint32_t)row_max(row, own)), d.slot->min_p};
    unsigned long long limit = 0, mass = total_mass(row, w, 0);
    if (!mass) return greatest(row, row.values);
    if ((d.slot->top_k && d.slot->top_k < row.vocab) || d.slot->top_p < 1) {
        float range = fminf(w.best - key_value(~(uint32_t)row_max(row, own_least)), MASS_RANGE);
        bins_t bins = {w.best, (BINS - 1) / fmaxf(range, 1e-20f)};
        limit = keep_best(row, d, w, bins, mass);
    }
    unsigned long long target = (unsigned long long)(philox_uniform(d.slot->seed, d.sample->position) * (double)mass);
    return walk(row, w, limit, min(target, mass - 1));
}

/* ---- a row ---- */

/* The greatest raw logit is wanted. */
static __device__ bool is_plain(const qn_slot_row_t &slot, uint32_t position)
{
    return slot.temperature < GREEDY_TEMPERATURE && !slot.bias_count && !slot.bad_id_count && !slot.penalties &&
           !below_min_tokens(slot, position);
}

static __device__ uint32_t choose(row_t &row, const draw_t &d, const float *logits)
{
    if (is_plain(*d.slot, d.sample->position)) return greatest(row, logits);
    change_logits(d, row, logits);
    return d.slot->temperature < GREEDY_TEMPERATURE ? greatest(row, row.values) : draw(row, d);
}

static __device__ bool stops(const qn_slot_tables_t &tables, uint32_t slot, uint32_t count, uint32_t id)
{
    const uint32_t *stop = tables.stop_ids + (size_t)slot * QN_SLOT_STOP_IDS_MAX;
    for (uint32_t i = 0; i < count; i++)
        if (stop[i] == id) return true;
    return false;
}

/* By one thread, after all blocks have read the tables. */
static __device__ void record(const draw_t &d, uint32_t id, bool stopped)
{
    const qn_slot_tables_t &tables = d.a->tables;
    qn_slot_row_t *row = &tables.rows[d.sample->slot];
    row->last_token = id;
    row->done = stopped;
    if (row->bad_id_count)
        tables.recent[(size_t)d.sample->slot * QN_BAD_SEQUENCE_TOKENS_MAX +
                      d.sample->position % QN_BAD_SEQUENCE_TOKENS_MAX] = id;
    if (!row->penalties || d.sample->position < row->counted) return;
    tables.counts[(size_t)d.sample->slot * tables.vocab + id]++;
    row->counted = d.sample->position + 1;
}

/* blockIdx: x slice, y row. */
static __global__ void __launch_bounds__(ROW_THREADS, 2) sample_rows(const __grid_constant__ qn_sampler_t a)
{
    extern __shared__ __align__(16) char shared[];
    __shared__ qn_slot_row_t slot;
    grid_begin();
    size_t index = blockIdx.y;
    uint32_t vocab = a.tables.vocab;
    const qn_sample_t *sample = &a.samples[index];
    if (threadIdx.x == 0) slot = a.tables.rows[sample->slot];
    __syncthreads();
    row_t row = begin_row(vocab, shared, a.scratch + index * 2 * vocab);
    const float *logits = a.logits + index * vocab;
    draw_t d = {&a, sample, &slot};
    qn_sample_result_t result = {};
    bool first = row.rank == 0 && threadIdx.x == 0;
    if (slot.done) {
        result.masked = 1;
        if (first) a.ret_results[index] = result;
        /* The row's other blocks read `done` too, which nobody changes. */
        return;
    }
    result.id = choose(row, d, logits + row.first);
    if (slot.logprobs || slot.top_logprobs || slot.logprob_id_count) {
        float log_sum = log_sum_exp(row, logits + row.first);
        result.logprob = logits[result.id] - log_sum;
        qn_top_entry_t *top = a.ret_top + index * QN_ALTERNATIVES_MAX;
        top_logprobs(row, logits + row.first, log_sum, slot.top_logprobs, top);
        add_logprob_ids(row, a.tables, sample->slot, logits, log_sum, slot.top_logprobs, top);
    }
    end_row(row);
    if (!first) return;
    result.stopped = stops(a.tables, sample->slot, slot.stop_count, result.id);
    a.ret_results[index] = result;
    record(d, result.id, result.stopped);
}

cudaError_t qn_cuda_prepare_sampler(void)
{
    return cudaFuncSetAttribute(sample_rows, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)row_bytes(SLICE_MAX * ROW_BLOCKS, ROW_BLOCKS));
}

extern "C" void qn_cuda_sampler(qn_stream_t *stream, const void *arguments)
{
    const qn_sampler_t *a = (const qn_sampler_t *)arguments;
    if (!a->sample_count) return;
    uint32_t ranks = stream->capability >= 90 ? ROW_BLOCKS : 1;
    qn_cuda_start_as(stream, "sampler", {false, ranks}, sample_rows, dim3(ranks, a->sample_count), ROW_THREADS,
                     row_bytes(a->tables.vocab, ranks), *a);
}
