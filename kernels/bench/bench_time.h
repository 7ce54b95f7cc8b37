/* How long something takes: the best and the median of many calls. */
#ifndef QN_KERNELS_BENCH_BENCH_TIME_H
#define QN_KERNELS_BENCH_BENCH_TIME_H

#include <stddef.h>

#define BENCH_ROUNDS_MAX 4096

typedef struct {
    double best_s, median_s; /* of one call */
    unsigned rounds;
} bench_time_t;

/* Calls `body` once for nothing, then until `seconds` are over, at least three times and at most BENCH_ROUNDS_MAX. One
 * thread at a time. */
bench_time_t bench_time(void (*body)(void *context), void *context, double seconds);

/* Sorts `values`; the q-quantile (0 .. 1) of them, 0 when there are none. */
double bench_quantile(double *values, size_t count, double q);

#endif
