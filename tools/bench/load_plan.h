/* When requests of a load arrive and how long they are: numbers from a seed, so that a load can be had again. What the
 * request number `index` gets depends on the seed and the index alone, not on what other requests got. */
#ifndef QN_TOOLS_BENCH_LOAD_PLAN_H
#define QN_TOOLS_BENCH_LOAD_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

/* ---- random numbers (splitmix64) ---- */

typedef struct {
    uint64_t state;
} load_random_t;

/* What the numbers are for; two purposes share none. */
typedef enum {
    LOAD_FOR_ARRIVALS,
    LOAD_FOR_PREFIX,
    LOAD_FOR_REQUESTS,
    LOAD_FOR_WARMUP,
} load_purpose_t;

load_random_t load_random(uint64_t seed, load_purpose_t purpose, uint64_t index);
uint64_t load_random_next(load_random_t *random);
/* Above 0, at most 1: its logarithm is a number. */
double load_random_unit(load_random_t *random);
/* 0 .. `count` - 1; `count` above 0. */
uint32_t load_random_below(load_random_t *random, uint32_t count);

/* ---- lengths in tokens ---- */

typedef enum {
    LOAD_LENGTH_FIXED,       /* "N" */
    LOAD_LENGTH_UNIFORM,     /* "A-B", both included */
    LOAD_LENGTH_LOGNORMAL,   /* "lognormal:MEDIAN:SIGMA", SIGMA of the logarithm */
    LOAD_LENGTH_EXPONENTIAL, /* "exp:MEAN" */
} load_length_kind_t;

typedef struct {
    load_length_kind_t kind;
    double first, second; /* N; A and B; MEDIAN and SIGMA; MEAN */
} load_length_t;

/* QN_ERR_INVALID with a text that says what is understood. */
qn_err_t load_length_parse(const char *text, load_length_t *ret_length);
/* The longest that may be drawn; 0: there is no bound. */
uint32_t load_length_longest(const load_length_t *length);
/* 1 .. `most`; *ret_clipped (written in both cases) says that more was drawn. */
uint32_t load_length_draw(const load_length_t *length, load_random_t *random, uint32_t most, bool *ret_clipped);

/* ---- arrivals ---- */

#define LOAD_BURST_DEFAULT 8
#define LOAD_BURST_MAX 4096

typedef enum {
    LOAD_ARRIVALS_POISSON, /* gaps are exponential */
    LOAD_ARRIVALS_UNIFORM, /* gaps are equal */
    LOAD_ARRIVALS_BURST,   /* `burst` at once, then nothing until the rate is met */
} load_arrivals_kind_t;

typedef struct {
    load_arrivals_kind_t kind;
    double rate; /* requests per second, above 0 */
    uint32_t burst;
    load_random_t random;
    uint64_t drawn;
    double last_s;
} load_arrivals_t;

/* Takes "poisson", "uniform", "burst" or "burst:N". QN_ERR_INVALID otherwise. */
qn_err_t load_arrivals_parse(const char *text, double rate, uint64_t seed, load_arrivals_t *ret_arrivals);
/* The next arrival, in seconds since the load began; never before the one before. */
double load_arrivals_next(load_arrivals_t *arrivals);

#endif
