/* A daemon's statistics page: a shared file in the run directory, one writer, kept over restarts of the readers,
 * self-describing, so that the frontend can render every daemon's figures while that daemon is down.
 * File: <run_dir>/<service>.stats. Values are 64-bit and written with relaxed atomics; a reader may see one
 * counter a moment older than another, never a torn value. */
#ifndef QN_COMMON_WATCH_STATS_H
#define QN_COMMON_WATCH_STATS_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/limits.h"

typedef enum {
    QN_STAT_COUNTER,
    QN_STAT_GAUGE,
    QN_STAT_HISTOGRAM_NS,
    QN_STAT_NUMBER, /* a gauge whose value is any number: qn_stats_set_number, qn_stat_number */
} qn_stat_kind_t;

#define QN_STAT_NAME_MAX 160 /* with labels, NUL included */

/* Static table of a module's metrics; the index in the table is the handle within that table. */
typedef struct {
    /* Prometheus style, without the quintet_ prefix and _total: "scheduler_waiting_requests". Rows of one metric that
     * differ in labels have them in braces: "frontend_requests{route=\"generate\",code=\"200\"}". "": a row that is
     * shown once it is named (qn_stats_name). */
    const char *name;
    qn_stat_kind_t kind;
    /* "requests", "bytes", "tokens", ...; times are kept in "nanoseconds" or "milliseconds" and shown in seconds,
     * histograms take ns */
    const char *unit;
    const char *help;
} qn_stat_spec_t;

/* Buckets of a histogram: upper bounds 1 µs · 2^i, i = 0..QN_STAT_BUCKETS-2, the last is +Inf. */
#define QN_STAT_BUCKETS 28

typedef struct qn_stats qn_stats_t;           /* writer */
typedef struct qn_stats_view qn_stats_view_t; /* reader */

/* Creates or replaces the page atomically (rename): counters start at 0. `tables[i]` has `counts[i]` rows. Handles are
 * (table, index). At most QN_METRICS_MAX rows in all. Returns owned. */
qn_err_t qn_stats_create(const char *run_dir, const char *service, uint32_t epoch, const qn_stat_spec_t *const *tables,
                         const size_t *counts, size_t table_count, qn_stats_t **ret_stats);
void qn_stats_destroy(qn_stats_t **stats);
/* Never fail, never block, a few ns. */
void qn_stats_add(qn_stats_t *stats, unsigned table, unsigned index, uint64_t amount);
void qn_stats_set(qn_stats_t *stats, unsigned table, unsigned index, uint64_t value);
void qn_stats_set_number(qn_stats_t *stats, unsigned table, unsigned index, double value);
/* Another name from now on; "" hides the row. A reader in this very moment may see parts of both. */
void qn_stats_name(qn_stats_t *stats, unsigned table, unsigned index, const char *name);
void qn_stats_observe_ns(qn_stats_t *stats, unsigned table, unsigned index, uint64_t ns);

/* One row as a reader sees it; strings are views valid until the view is closed. */
typedef struct {
    const char *name, *unit, *help;
    qn_stat_kind_t kind;
    uint64_t value;                    /* counter, gauge; histogram: count */
    uint64_t sum_ns;                   /* histogram */
    uint64_t buckets[QN_STAT_BUCKETS]; /* histogram, not cumulative */
} qn_stat_row_t;

/* Maps the page of `service`. QN_ERR_NOT_FOUND: it never ran here. The page is checked (magic, version, sizes). */
qn_err_t qn_stats_open(const char *run_dir, const char *service, qn_stats_view_t **ret_view);
void qn_stats_close(qn_stats_view_t **view);
uint32_t qn_stats_epoch(const qn_stats_view_t *view);
size_t qn_stats_row_count(const qn_stats_view_t *view);
void qn_stats_read_row(const qn_stats_view_t *view, size_t index, qn_stat_row_t *ret_row);
/* The value of a QN_STAT_NUMBER. */
double qn_stat_number(const qn_stat_row_t *row);
/* Quantile (0..1) of a histogram row in ns, linear inside its bucket; 0 when empty. */
uint64_t qn_stat_quantile_ns(const qn_stat_row_t *row, double quantile);

#endif
