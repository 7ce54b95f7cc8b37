/* The one clock: CLOCK_MONOTONIC in nanoseconds, the same on every process of a host. Decision code
 * takes the time as an argument; only loops and I/O code call this. */
#ifndef QN_COMMON_CLOCK_H
#define QN_COMMON_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t qn_clock_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

#endif
