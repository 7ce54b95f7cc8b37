/* What is known of each request of a load, and the figures of all of them. Times are seconds since the load began. */
#ifndef QN_TOOLS_BENCH_LOAD_RECORD_H
#define QN_TOOLS_BENCH_LOAD_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define LOAD_MESSAGE_MAX 512
#define LOAD_FAILURES_MAX 32      /* kinds told apart; the last takes all others */
#define LOAD_GAPS_MAX (64u << 20) /* of all requests: 512 MiB */

/* How a request ended. */
typedef enum {
    LOAD_OK,
    LOAD_HTTP,        /* another status than 200 */
    LOAD_STREAM,      /* an error event in the stream */
    LOAD_INCOMPLETE,  /* the stream stopped without its end */
    LOAD_PROTOCOL,    /* the answer is no stream of events */
    LOAD_REFUSED,     /* no connection */
    LOAD_BROKEN,      /* the connection broke */
    LOAD_TIMEOUT,     /* --timeout */
    LOAD_INTERRUPTED, /* taken back at Ctrl-C: neither good nor a failure */
} load_outcome_t;

/* "ok", "http", ... */
const char *load_outcome_name(load_outcome_t outcome);

/* What came at once: `tokens` tokens, `seconds` after those before. */
typedef struct {
    float seconds;
    uint32_t tokens;
} load_gap_t;

typedef struct {
    uint64_t index;
    double arrival_s; /* when the plan has it */
    double due_s;     /* when it could be sent: not before a connection of --concurrency was free */
    double sent_s, end_s;
    double first_s, last_s; /* first and last tokens; first_s below 0: none came */
    uint32_t prompt_tokens, output_tokens;
    uint32_t first_tokens; /* that came first, at once */
    uint32_t cached_tokens;
    bool cached_told; /* cached_tokens is what the server said */
    bool events_only; /* the server did not count tokens while it streamed: each event with text counts as one */
    bool clipped;     /* its lengths were bounded by the model's */
    load_outcome_t outcome;
    long status; /* HTTP, or of the error event; 0: none */
    char message[LOAD_MESSAGE_MAX];
    char request_id[128];
} load_record_t;

/* Mean time per token after the first ones, in seconds; below 0: there was none. */
double load_record_tpot(const load_record_t *record);

/* ---- figures ---- */

typedef struct {
    double mean, p50, p90, p99, max;
    uint64_t count; /* of values; 0: all others are 0 */
} load_figure_t;

/* The nearest rank: the smallest value that at least `percent` % of the values do not exceed. `sorted` ascends. */
double load_percentile(const double *sorted, size_t count, unsigned percent);

typedef struct {
    double *values; /* owned */
    size_t count, capacity;
} load_series_t;

/* Sorts. */
load_figure_t load_series_figure(load_series_t *series);

/* What a request must meet, in seconds; 0: not asked. */
typedef struct {
    double ttft_s, itl_s, gap_s, e2e_s;
} load_slo_t;

/* Takes "ttft=MS,itl=MS,gap=MS,e2e=MS", each at most once. QN_ERR_INVALID otherwise. */
qn_err_t load_slo_parse(const char *text, load_slo_t *ret_slo);
bool load_slo_is_met(const load_slo_t *slo, const load_record_t *record, double longest_gap_s);

typedef struct {
    load_outcome_t outcome;
    long status;
    uint64_t count;
    char message[LOAD_MESSAGE_MAX]; /* the first */
} load_failure_t;

/* Embedded, zeroed but for `slo`. Free with load_stats_fini. */
typedef struct {
    load_slo_t slo;
    uint64_t ok, failed, interrupted, clipped, waited, events_only, met;
    uint64_t prompt_tokens, output_tokens, cached_tokens, cached_told; /* of good requests */
    double end_s;                                                      /* of the last one */
    load_series_t ttft, e2e, tpot, longest, late;
    load_gap_t *gaps; /* owned; of all good requests */
    size_t gap_count, gap_capacity;
    load_failure_t failures[LOAD_FAILURES_MAX];
    size_t failure_count;
} load_stats_t;

/* Adds a request that ended. QN_ERR_LIMIT: LOAD_GAPS_MAX is reached, the request is counted without its gaps;
 * QN_ERR_NO_MEMORY. */
qn_err_t load_stats_add(load_stats_t *stats, const load_record_t *record, const load_gap_t *gaps, size_t gap_count);
/* Inter-token latency: each token of a gap took the gap divided by its tokens. Sorts. */
load_figure_t load_stats_itl(load_stats_t *stats);
void load_stats_fini(load_stats_t *stats);

#endif
