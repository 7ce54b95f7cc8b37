/* Durations of the last minute: count, mean and quantiles, without a sample kept. Time is cut into slices of five
 * seconds, each a histogram; a slice whose minute is over is emptied when its place is needed again. Buckets are 1/16 of
 * an octave wide, so a quantile is off by at most 3 %; the mean is exact. About 40 KiB, whatever is observed.
 *
 * Pure: time is an argument. One thread. */
#ifndef QN_COMMON_WATCH_WINDOW_H
#define QN_COMMON_WATCH_WINDOW_H

#include <stdint.h>

#define QN_WINDOW_NS 60000000000ull
#define QN_WINDOW_SLICE_NS 5000000000ull
#define QN_WINDOW_SLICES 13  /* twelve whole ones and the one that is being filled */
#define QN_WINDOW_UNIT_NS 64 /* what is shorter lies in the first bucket */
#define QN_WINDOW_BUCKETS 592

typedef struct {
    uint64_t number; /* of the slice since the clock began, plus 1; 0: never used */
    uint64_t count, sum_ns;
    uint32_t buckets[QN_WINDOW_BUCKETS];
} qn_window_slice_t;

/* A zeroed one is empty. */
typedef struct {
    qn_window_slice_t slices[QN_WINDOW_SLICES];
} qn_window_t;

typedef struct {
    uint64_t count;
    double mean_ns;          /* 0 when nothing was observed, as the quantiles */
    uint64_t p50_ns, p99_ns; /* middle of their bucket */
} qn_window_figures_t;

void qn_window_observe(qn_window_t *window, uint64_t now_ns, uint64_t duration_ns);
/* What was observed from now_ns - 60 s on; the oldest slice counts as a whole, so it may be up to 65 s. */
void qn_window_read(const qn_window_t *window, uint64_t now_ns, qn_window_figures_t *ret_figures);

#endif
