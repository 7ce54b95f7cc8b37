/* What is this?      Timing by repetition, and quantiles.
 * State owned:       the times of the measurement at hand.
 * Must never:        allocate while it measures.
 * Read next:         bench_time.h. */
#include "kernels/bench/bench_time.h"

#include <stdint.h>
#include <stdlib.h>

#include "common/clock.h"

static int compare_numbers(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

double bench_quantile(double *values, size_t count, double q)
{
    if (count == 0) return 0;
    qsort(values, count, sizeof *values, compare_numbers);
    return values[(size_t)((double)(count - 1) * q + 0.5)];
}

bench_time_t bench_time(void (*body)(void *context), void *context, double seconds)
{
    static double taken[BENCH_ROUNDS_MAX];
    unsigned rounds = 0;
    body(context);
    uint64_t begin = qn_clock_now_ns(), before = begin;
    while (rounds < BENCH_ROUNDS_MAX && (rounds < 3 || (double)(before - begin) < seconds * 1e9)) {
        body(context);
        uint64_t now = qn_clock_now_ns();
        taken[rounds++] = (double)(now - before) * 1e-9;
        before = now;
    }
    bench_time_t time = {.median_s = bench_quantile(taken, rounds, 0.5), .rounds = rounds};
    time.best_s = taken[0];
    return time;
}
