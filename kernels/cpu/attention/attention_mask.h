/* Which positions a row of attention.probed sees: what its masks leave of causality and the model's window. Shared by the
 * reference and the vector kernels, which differ in how they compute a score and a sum.
 *
 * Two kinds of rules. Those by position (window, sink_window) are known before any key is read: the positions they leave are
 * the candidates. Those by score look at all candidates' scores, each for itself, and what all of them keep is seen:
 *   top_k        the k greatest scores; of equal ones those of lower positions
 *   ratio        the greatest ceil((1 - r) n) of n candidates, which is a top_k
 *   threshold    whose share of the softmax over the candidates is at least t
 *   block_top_k  what lies in the k blocks of the cache with the greatest score in them
 * The greatest score is kept by each, so a row is never empty. */
#ifndef QN_KERNELS_CPU_ATTENTION_ATTENTION_MASK_H
#define QN_KERNELS_CPU_ATTENTION_ATTENTION_MASK_H

#include <math.h>

#include "kernels/cpu/attention/attention.h"

_Static_assert(2 * sizeof(float) * QN_MASK_POSITIONS_MAX <= QN_WORKSPACE_BYTES, "a row's scores and its blocks'");

/* The rules that hold for one row. */
typedef struct {
    struct {
        uint32_t sinks, from; /* p is a candidate if p < sinks or p >= from */
    } spans[QN_MASKS_MAX];
    uint32_t span_count;
    uint32_t most;   /* greatest scores kept; UINT32_MAX: all */
    uint32_t blocks; /* blocks kept; UINT32_MAX: all */
    double dropped;  /* r */
    float threshold; /* 0: none */
} row_mask_t;

static inline uint32_t mask_smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

static inline bool mask_applies(const qn_mask_t *mask, uint32_t layer, uint32_t head)
{
    return layer >= mask->layer_from && layer < mask->layer_to && head >= mask->head_from && head < mask->head_to;
}

static inline row_mask_t mask_of_row(const qn_probed_attention_t *a, const qn_query_t *query, uint32_t head)
{
    row_mask_t row = {.most = UINT32_MAX, .blocks = UINT32_MAX};
    for (uint32_t i = 0; i < a->mask_count; i++) {
        const qn_mask_t *mask = &a->masks[i];
        if (!mask_applies(mask, a->attention.layer, head)) continue;
        switch (mask->kind) {
        case QN_MASK_WINDOW:
        case QN_MASK_SINK_WINDOW:
            row.spans[row.span_count].sinks = mask->kind == QN_MASK_SINK_WINDOW ? mask->sinks : 0;
            row.spans[row.span_count++].from = query->end > mask->window ? query->end - mask->window : 0;
            break;
        case QN_MASK_TOP_K: row.most = mask_smaller(row.most, mask->k); break;
        case QN_MASK_BLOCK_TOP_K: row.blocks = mask_smaller(row.blocks, mask->k); break;
        case QN_MASK_RATIO: row.dropped = mask->value > row.dropped ? (double)mask->value : row.dropped; break;
        case QN_MASK_THRESHOLD: row.threshold = mask->value > row.threshold ? mask->value : row.threshold; break;
        }
    }
    return row;
}

static inline bool mask_reads_scores(const row_mask_t *row)
{
    return row->most != UINT32_MAX || row->blocks != UINT32_MAX || row->dropped > 0 || row->threshold > 0;
}

/* The first candidate at or after p: positions in between are never looked at. */
static inline uint32_t mask_next(const row_mask_t *row, uint32_t p)
{
    for (uint32_t i = 0; i < row->span_count; i++) {
        if (p < row->spans[i].sinks || p >= row->spans[i].from) continue;
        p = row->spans[i].from;
        i = UINT32_MAX; /* the others judge anew */
    }
    return p;
}

/* Floats as integers of the same order. */
static inline uint32_t mask_key(float score)
{
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The k-th greatest of `count` scores, 1 <= k <= count, as a key, and how many equal to it are among the k greatest: a
 * radix select over 11, 11 and 10 bits. */
static inline uint32_t mask_select(const float *scores, uint32_t count, uint32_t k, uint32_t *ret_equal)
{
    static const unsigned SHIFTS[] = {21, 10, 0};
    uint32_t prefix = 0, known = 0;
    for (unsigned pass = 0; pass < 3; pass++) {
        uint32_t histogram[2048] = {0}, width = pass == 2 ? 1024 : 2048, bin = width;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t key = mask_key(scores[i]);
            if ((key & known) == prefix) histogram[key >> SHIFTS[pass] & (width - 1)]++;
        }
        while (histogram[--bin] < k)
            k -= histogram[bin];
        prefix |= bin << SHIFTS[pass];
        known |= (width - 1) << SHIFTS[pass];
    }
    *ret_equal = k;
    return prefix;
}

/* Whether the next score, in order, is among those selected. */
static inline bool mask_takes(uint32_t key, uint32_t kth, uint32_t *equal)
{
    if (key != kth) return key > kth;
    return *equal && (*equal)--;
}

/* Of `count` candidates from position `begin` on: which block each is in, and the greatest score of each block. Then blocks
 * that are not among the best become -infinity. Returns how many blocks there are. */
static inline void mask_choose_blocks(const row_mask_t *row, uint32_t begin, uint32_t end, uint32_t block_tokens,
                                      const float *scores, float *blocks)
{
    uint32_t count = 0, last = UINT32_MAX, equal, i = 0;
    for (uint32_t p = mask_next(row, begin); p < end; p = mask_next(row, p + 1), i++) {
        if (p / block_tokens != last) blocks[count++] = scores[i];
        last = p / block_tokens;
        if (scores[i] > blocks[count - 1]) blocks[count - 1] = scores[i];
    }
    if (row->blocks >= count) return;
    uint32_t kth = mask_select(blocks, count, row->blocks, &equal);
    for (uint32_t b = 0; b < count; b++)
        if (!mask_takes(mask_key(blocks[b]), kth, &equal)) blocks[b] = -INFINITY;
}

static inline uint32_t mask_most(const row_mask_t *row, uint32_t count)
{
    uint32_t most = mask_smaller(row->most, count);
    /* 1e-6: a ratio is a float, and 0.7 must drop 7 of 10. */
    if (row->dropped > 0) most = mask_smaller(most, (uint32_t)ceil((1 - row->dropped) * count * (1 - 1e-6)));
    return most ? most : 1;
}

/* Sets the scores that no rule may see to -infinity. `scores`: of the candidates in order of position; `blocks`: as many
 * floats of space. */
static inline void mask_scores(const row_mask_t *row, uint32_t begin, uint32_t end, uint32_t block_tokens,
                               float *scores, uint32_t count, float *blocks)
{
    uint32_t most = mask_most(row, count), equal = 0, kth = 0, i = 0, block = UINT32_MAX, last = UINT32_MAX;
    float best = -INFINITY;
    double total = 0;
    for (uint32_t c = 0; c < count; c++)
        best = scores[c] > best ? scores[c] : best;
    for (uint32_t c = 0; row->threshold > 0 && c < count; c++)
        total += exp((double)scores[c] - best);
    if (most < count) kth = mask_select(scores, count, most, &equal);
    if (row->blocks != UINT32_MAX) mask_choose_blocks(row, begin, end, block_tokens, scores, blocks);
    for (uint32_t p = mask_next(row, begin); p < end; p = mask_next(row, p + 1), i++) {
        bool seen = most == count || mask_takes(mask_key(scores[i]), kth, &equal);
        if (row->threshold > 0 && scores[i] < best && exp((double)scores[i] - best) < row->threshold * total)
            seen = false;
        if (row->blocks != UINT32_MAX) {
            if (p / block_tokens != last) block++;
            last = p / block_tokens;
            if (blocks[block] == -INFINITY) seen = false;
        }
        if (!seen) scores[i] = -INFINITY;
    }
}

/* Positions that the masks left: their values count as read, also where a weight is too small for its number format. */
static inline uint32_t mask_left(const float *scores, uint32_t count)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < count; i++)
        left += scores[i] > -INFINITY;
    return left;
}

/* Adds to the counts of run `index`: rows of keys and values read, and rows there would be without masks. */
static inline void mask_count(const qn_probed_attention_t *a, uint32_t index, uint64_t read, uint64_t all)
{
    if (!a->ret_read) return;
    __atomic_fetch_add(&a->ret_read[2 * (size_t)index], read, __ATOMIC_RELAXED);
    __atomic_fetch_add(&a->ret_read[2 * (size_t)index + 1], all, __ATOMIC_RELAXED);
}

/* The run of query `index` of the launch. */
static inline uint32_t mask_run_of(const qn_attention_t *a, size_t index)
{
    uint32_t i = 0;
    while (index >= a->runs[i].tokens)
        index -= a->runs[i++].tokens;
    return i;
}

#endif
