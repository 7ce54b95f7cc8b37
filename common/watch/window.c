/* What is this?      Histograms of the last minute, a slice per five seconds.
 * State owned:       the caller's window.
 * Must never:        allocate, or read a clock.
 * Read next:         window.h; common/watch/stats.h for what is counted since the start. */
#include "common/watch/window.h"

#include <string.h>

#define SUBS 16 /* buckets of an octave */

/* Below SUBS units a bucket each; then 16 buckets for every doubling. */
static unsigned bucket_of(uint64_t duration_ns)
{
    uint64_t units = duration_ns / QN_WINDOW_UNIT_NS;
    if (units < SUBS) return (unsigned)units;
    unsigned octave = 63 - (unsigned)__builtin_clzll(units);
    unsigned bucket = (octave - 3) * SUBS + (unsigned)((units >> (octave - 4)) & (SUBS - 1));
    return bucket < QN_WINDOW_BUCKETS ? bucket : QN_WINDOW_BUCKETS - 1;
}

static uint64_t middle_of(unsigned bucket)
{
    if (bucket < SUBS) return bucket * QN_WINDOW_UNIT_NS + QN_WINDOW_UNIT_NS / 2;
    unsigned octave = bucket / SUBS + 3;
    uint64_t width = 1ull << (octave - 4), low = (1ull << octave) + (bucket % SUBS) * width;
    return low * QN_WINDOW_UNIT_NS + width * QN_WINDOW_UNIT_NS / 2;
}

void qn_window_observe(qn_window_t *window, uint64_t now_ns, uint64_t duration_ns)
{
    uint64_t number = now_ns / QN_WINDOW_SLICE_NS + 1;
    qn_window_slice_t *slice = &window->slices[number % QN_WINDOW_SLICES];
    if (slice->number != number) {
        memset(slice, 0, sizeof *slice);
        slice->number = number;
    }
    slice->count++;
    slice->sum_ns += duration_ns;
    slice->buckets[bucket_of(duration_ns)]++;
}

/* The value below which `rank` of all observations lie, counted from 1. */
static uint64_t value_at(const uint64_t *buckets, uint64_t rank)
{
    uint64_t seen = 0;
    for (unsigned i = 0; i < QN_WINDOW_BUCKETS; i++) {
        seen += buckets[i];
        if (seen >= rank) return middle_of(i);
    }
    return 0;
}

static uint64_t rank_of(uint64_t count, unsigned percent) { return (count * percent + 99) / 100; }

void qn_window_read(const qn_window_t *window, uint64_t now_ns, qn_window_figures_t *ret_figures)
{
    uint64_t newest = now_ns / QN_WINDOW_SLICE_NS + 1, sum_ns = 0, buckets[QN_WINDOW_BUCKETS] = {0};
    *ret_figures = (qn_window_figures_t){0};
    for (unsigned i = 0; i < QN_WINDOW_SLICES; i++) {
        const qn_window_slice_t *slice = &window->slices[i];
        if (slice->number == 0 || slice->number > newest || newest - slice->number >= QN_WINDOW_SLICES) continue;
        ret_figures->count += slice->count;
        sum_ns += slice->sum_ns;
        for (unsigned b = 0; b < QN_WINDOW_BUCKETS; b++)
            buckets[b] += slice->buckets[b];
    }
    if (ret_figures->count == 0) return;
    ret_figures->mean_ns = (double)sum_ns / (double)ret_figures->count;
    ret_figures->p50_ns = value_at(buckets, rank_of(ret_figures->count, 50));
    ret_figures->p99_ns = value_at(buckets, rank_of(ret_figures->count, 99));
}
