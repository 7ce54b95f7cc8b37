/* What is this?      The sampler: from logits to the next token, a block per row.
 * State owned:       none; it writes last_token, done and counts of the row's slot.
 * Must never:        depend on another row, a clock or an address: only logits, parameters, seed, position, counts.
 * Read next:         kernels/cpu/sampler.c, the reference; select.cuh. */
#include "kernels/cuda/logprobs.cuh"
#include "kernels/cuda/philox.cuh"

#define GREEDY_TEMPERATURE 1e-5f
#define SCAN_THREADS 256
#define SCAN_PARTS_MAX 32            /* blocks that read one greedy row */
#define SCAN_VALUES 4096             /* of one such block, at least */
#define LIST_RANK 512                /* the short list holds the best few hundred ids; see key_bound */
#define MASS_ONE 8796093022208.0f    /* 2^43: masses of 2^20 ids fit in 64 bits */

/* One row on its way to a token. */
typedef struct {
    const qn_sampler_t *a;
    const qn_sample_t *sample;
    qn_slot_row_t *row;
    float *values;                   /* [V], scratch */
    uint32_t vocab;
} draw_t;

/* ---- changes to the logits ---- */

static __device__ bool below_min_tokens(const qn_slot_row_t &row, uint32_t position)
{
    return position < row.prompt_tokens + (unsigned long long)row.min_tokens;
}

/* Operations are rounded one by one, as in the reference. */
static __device__ float penalise(const qn_slot_row_t &row, float value, uint32_t count)
{
    if (!count) return value;
    uint32_t generated = count & ~QN_COUNT_PROMPT;
    value = value > 0 ? __fdiv_rn(value, row.repetition_penalty) : __fmul_rn(value, row.repetition_penalty);
    if (!generated) return value;
    return value - __fadd_rn(__fmul_rn(row.frequency_penalty, (float)generated), row.presence_penalty);
}

/* Bias and forbidden ids of one slot; few, so one thread keeps the order of equal ids. */
static __device__ void change_some(const draw_t &d)
{
    const qn_slot_tables_t &tables = d.a->tables;
    const qn_bias_entry_t *bias = tables.bias + (size_t)d.sample->slot * QN_LOGIT_BIAS_MAX;
    const uint32_t *stop = tables.stop_ids + (size_t)d.sample->slot * QN_STOP_IDS_MAX;
    for (uint32_t i = 0; i < d.row->bias_count; i++) d.values[bias[i].id] += bias[i].bias;
    if (!below_min_tokens(*d.row, d.sample->position)) return;
    for (uint32_t i = 0; i < d.row->stop_count; i++) d.values[stop[i]] = -INFINITY;
}

static __device__ void change_logits(const draw_t &d, const float *logits)
{
    for_each_value(logits, d.vocab, [&](uint32_t i, float value) { d.values[i] = value; });
    __syncthreads();
    if (threadIdx.x == 0) change_some(d);
    __syncthreads();
    if (!d.row->penalties) return;
    const uint32_t *counts = d.a->tables.counts + (size_t)d.sample->slot * d.vocab;
    for_each_value(d.values, d.vocab, [&](uint32_t i, float value) {
        d.values[i] = penalise(*d.row, value, counts[i]);
    });
    __syncthreads();
}

/* ---- the draw ---- */

typedef struct { float best, min_p; } weights_t;

/* Unnormalised probability; the best weighs 1; 0: not a candidate. Also drops NaN. */
static __device__ __forceinline__ float weight_of(const weights_t &w, float value)
{
    float weight = expf(value - w.best);
    return weight >= w.min_p ? weight : 0;
}

static __device__ __forceinline__ unsigned long long mass_of(const weights_t &w, float value)
{
    return __float2ull_rz(weight_of(w, value) * MASS_ONE);
}

/* Mass of candidates that are not below `limit`. */
static __device__ unsigned long long total_mass(const candidates_t &c, const weights_t &w, unsigned long long limit,
                                                select_room_t &room)
{
    unsigned long long sum = 0;
    for_each_value(c.values, c.count, [&](uint32_t i, float value) {
        if (!limit || pack(value, c.ids ? c.ids[i] : i) >= limit) sum += mass_of(w, value);
    });
    return block_sum(sum, room.words);
}

static __device__ unsigned long long total_count(const candidates_t &c, const weights_t &w, select_room_t &room)
{
    unsigned long long sum = 0;
    for_each(c.count, [&](uint32_t i) { sum += weight_of(w, c.values[i]) > 0; });
    return block_sum(sum, room.words);
}

/* The first id, ascending, at which the kept mass is above `target`. Given to all threads. */
static __device__ uint32_t walk(const candidates_t &c, const weights_t &w, unsigned long long limit,
                                unsigned long long target, select_room_t &room)
{
    __shared__ unsigned long long befores[SELECT_WARPS];
    __shared__ uint32_t chosen;
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    auto kept = [&](uint32_t i, float value) {
        return !limit || pack(value, c.ids ? c.ids[i] : i) >= limit ? mass_of(w, value) : 0ull;
    };
    unsigned long long sum = 0;
    for_each_value(c.values, c.count, [&](uint32_t i, float value) { sum += kept(i, value); });
    sum = warp_sum(sum);
    __syncthreads();
    if (lane == 0) befores[warp] = sum;
    __syncthreads();
    unsigned long long before = 0;
    for (uint32_t i = 0; i < warp; i++) before += befores[i];
    if (target >= before && target < before + sum) {
        uint32_t share = (c.count + SELECT_THREADS - 1) / SELECT_THREADS * WARP, i = warp * share + lane;
        for (;; i += WARP) {
            unsigned long long mass = i < c.count ? kept(i, c.values[i]) : 0, upto = mass;
            for (int step = 1; step < WARP; step *= 2) {
                unsigned long long other = __shfl_up_sync(ALL_LANES, upto, step);
                if (lane >= (uint32_t)step) upto += other;
            }
            uint32_t lanes = __ballot_sync(ALL_LANES, before + upto > target);
            if (lanes) {
                if (lane == (uint32_t)__ffs(lanes) - 1) chosen = c.ids ? c.ids[i] : i;
                break;
            }
            before += __shfl_sync(ALL_LANES, upto, WARP - 1);
        }
    }
    __syncthreads();
    return chosen;
}

/* top-k and top-p on `c`, which must hold whatever they keep: the limit of what is kept. */
static __device__ unsigned long long keep_best(const draw_t &d, const candidates_t &c, const weights_t &w,
                                               unsigned long long mass, select_room_t &room)
{
    unsigned long long limit = 0;
    if (d.row->top_k && d.row->top_k < d.vocab) {
        limit = select_limit(c, d.vocab, [&](float value) { return weight_of(w, value) > 0 ? 1ull : 0ull; },
                             d.row->top_k, room);
        mass = total_mass(c, w, limit, room);
    }
    if (d.row->top_p >= 1) return limit;
    unsigned long long target = (unsigned long long)ceil((double)d.row->top_p * (double)mass);
    unsigned long long by_mass = select_limit(c, d.vocab, [&](float value) { return mass_of(w, value); }, target, room);
    return by_mass > limit ? by_mass : limit;
}

/* Whether the short list holds all that top-k, or else top-p, keeps. */
static __device__ bool suffices(const draw_t &d, const candidates_t &list, const weights_t &w,
                                unsigned long long mass, select_room_t &room)
{
    if (d.row->top_k && d.row->top_k < d.vocab) return total_count(list, w, room) >= d.row->top_k;
    return (double)total_mass(list, w, 0, room) >= ceil((double)d.row->top_p * (double)mass);
}

static __device__ uint32_t draw(const draw_t &d, select_room_t &room)
{
    float own = -INFINITY;
    float temperature = d.row->temperature;
    for_each_value(d.values, d.vocab, [&](uint32_t i, float value) {
        value = __fdiv_rn(value, temperature);
        d.values[i] = value;
        own = fmaxf(own, value);
    });
    weights_t w = { block_max(own, -INFINITY, (float *)room.words), d.row->min_p };
    candidates_t c = { d.values, NULL, d.vocab };
    unsigned long long limit = 0, mass = total_mass(c, w, 0, room);
    if (!mass) return greatest(d.values, d.vocab, room);
    if ((d.row->top_k && d.row->top_k < d.vocab) || d.row->top_p < 1) {
        uint32_t bound = key_bound(sort_key(own), LIST_RANK);
        candidates_t list;
        bool listed = make_list(d.vocab, [&](uint32_t i) { return d.values[i]; },
                                [&](float value, uint32_t) { return sort_key(value) >= bound; }, room, list);
        if (listed && suffices(d, list, w, mass, room)) c = list;
        limit = keep_best(d, c, w, mass, room);
        mass = total_mass(c, w, limit, room);
    }
    unsigned long long target = (unsigned long long)(philox_uniform(d.row->seed, d.sample->position) * (double)mass);
    return walk(c, w, limit, min(target, mass - 1), room);
}

/* ---- a row ---- */

static __device__ bool is_greedy(const qn_slot_row_t &row) { return row.temperature < GREEDY_TEMPERATURE; }

/* The greatest raw logit is wanted: scan_rows() has looked already. */
static __device__ bool is_scanned(const qn_slot_row_t &row, uint32_t position)
{
    return is_greedy(row) && !row.bias_count && !row.penalties && !below_min_tokens(row, position);
}

/* Where a row's scan leaves the best of each of its blocks. */
static __device__ unsigned long long *scan_results(const qn_sampler_t &a, size_t index)
{
    return (unsigned long long *)(a.scratch + index * 2 * a.tables.vocab);
}

/* blockIdx: x part of the row, y row. A greedy row is read by many blocks: one would take ten times as long. */
static __global__ void __launch_bounds__(SCAN_THREADS) scan_rows(const __grid_constant__ qn_sampler_t a, uint32_t part)
{
    __shared__ unsigned long long room[WARP];
    grid_begin();
    const qn_sample_t &sample = a.samples[blockIdx.y];
    const qn_slot_row_t &row = a.tables.rows[sample.slot];
    if (row.done || !is_scanned(row, sample.position)) return;
    const float *logits = a.logits + (size_t)blockIdx.y * a.tables.vocab;
    uint32_t first = blockIdx.x * part, end = min(first + part, a.tables.vocab);
    best_t best = { -INFINITY, 0xffffffffu };
#pragma unroll 8
    for (uint32_t i = first + threadIdx.x; i < end; i += SCAN_THREADS) take_better(best, logits[i], i);
    unsigned long long word = block_max(pack_best(best), 0ull, room);
    if (threadIdx.x == 0) scan_results(a, blockIdx.y)[blockIdx.x] = word;
}

/* The best of a scanned row's parts. */
static __device__ uint32_t scanned(const qn_sampler_t &a, size_t index, uint32_t parts, select_room_t &room)
{
    unsigned long long word = threadIdx.x < parts ? scan_results(a, index)[threadIdx.x] : 0;
    return packed_id(block_max(word, 0ull, room.words));
}

static __device__ uint32_t choose(const draw_t &d, const float *logits, uint32_t scan_parts, select_room_t &room)
{
    if (is_scanned(*d.row, d.sample->position)) return scanned(*d.a, blockIdx.x, scan_parts, room);
    change_logits(d, logits);
    return is_greedy(*d.row) ? greatest(d.values, d.vocab, room) : draw(d, room);
}

static __device__ bool stops(const qn_slot_tables_t &tables, uint32_t slot, uint32_t id)
{
    const uint32_t *stop = tables.stop_ids + (size_t)slot * QN_STOP_IDS_MAX;
    for (uint32_t i = 0; i < tables.rows[slot].stop_count; i++)
        if (stop[i] == id) return true;
    return false;
}

/* By one thread, after the others have read the row. */
static __device__ void record(const draw_t &d, uint32_t id, bool stopped)
{
    qn_slot_row_t *row = d.row;
    row->last_token = id;
    row->done = stopped;
    if (!row->penalties || d.sample->position < row->counted) return;
    d.a->tables.counts[(size_t)d.sample->slot * d.vocab + id]++;
    row->counted = d.sample->position + 1;
}

static __global__ void __launch_bounds__(SELECT_THREADS, 1)
sample_rows(const __grid_constant__ qn_sampler_t a, uint32_t scan_parts)
{
    __shared__ select_room_t room;
    grid_begin();
    size_t index = blockIdx.x;
    uint32_t vocab = a.tables.vocab;
    const qn_sample_t *sample = &a.samples[index];
    const float *logits = a.logits + index * vocab;
    draw_t d = { &a, sample, &a.tables.rows[sample->slot], a.scratch + index * 2 * vocab, vocab };
    qn_sample_result_t result = {};
    if (d.row->done) {
        result.masked = 1;
        if (threadIdx.x == 0) a.ret_results[index] = result;
        return;
    }
    result.id = choose(d, logits, scan_parts, room);
    result.stopped = stops(a.tables, sample->slot, result.id);
    if (d.row->logprobs || d.row->top_logprobs) {
        float log_sum = log_sum_exp(logits, vocab, room);
        result.logprob = logits[result.id] - log_sum;
        top_logprobs(logits, vocab, log_sum, d.row->top_logprobs, room, a.ret_top + index * QN_TOP_LOGPROBS_MAX);
    }
    __syncthreads();
    if (threadIdx.x) return;
    a.ret_results[index] = result;
    record(d, result.id, result.stopped);
}

extern "C" void qn_cuda_sampler(qn_stream_t *stream, const void *arguments)
{
    const qn_sampler_t *a = (const qn_sampler_t *)arguments;
    if (!a->sample_count) return;
    uint32_t parts = divide_up(a->tables.vocab, SCAN_VALUES);
    if (parts > SCAN_PARTS_MAX) parts = SCAN_PARTS_MAX;
    qn_cuda_start(stream, "sampler", scan_rows, dim3(parts, a->sample_count), SCAN_THREADS, 0, *a,
                  divide_up(a->tables.vocab, parts));
    qn_cuda_start(stream, "sampler", sample_rows, a->sample_count, SELECT_THREADS, 0, *a, parts);
}
