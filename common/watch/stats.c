/* What is this?      The statistics page: a mapped file with a table of rows, written in place.
 * State owned:       the mapping.
 * Must never:        block, allocate after create, or trust a page it reads.
 * Read next:         daemon.c (the skeleton's rows), services/frontend (the reader). */
#include "common/watch/stats.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/assert.h"

#define STATS_MAGIC 0x32305441545351ull /* "QSTAT02" */
#define STATS_TABLES_MAX 4

typedef struct {
    char name[QN_STAT_NAME_MAX];
    char unit[16];
    char help[128];
    uint32_t kind;
    uint32_t reserved;
    _Atomic uint64_t value;
    _Atomic uint64_t sum_ns;
    _Atomic uint64_t buckets[QN_STAT_BUCKETS];
} stats_row_t;

typedef struct {
    uint64_t magic;
    uint32_t epoch;
    uint32_t row_count;
    stats_row_t rows[];
} stats_page_t;

struct qn_stats {
    stats_page_t *page;
    size_t bytes;
    size_t first_row[STATS_TABLES_MAX];
    size_t counts[STATS_TABLES_MAX];
    size_t table_count;
};

struct qn_stats_view {
    const stats_page_t *page;
    size_t bytes;
};

static void stats_fill(stats_page_t *page, size_t first, const qn_stat_spec_t *specs, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        stats_row_t *row = &page->rows[first + i];
        snprintf(row->name, sizeof row->name, "%s", specs[i].name);
        snprintf(row->unit, sizeof row->unit, "%s", specs[i].unit);
        snprintf(row->help, sizeof row->help, "%s", specs[i].help);
        row->kind = (uint32_t)specs[i].kind;
    }
}

static qn_err_t stats_map(const char *path, size_t bytes, stats_page_t **ret_page)
{
    char temporary[QN_PATH_MAX + 16];
    snprintf(temporary, sizeof temporary, "%s.%d", path, (int)getpid());
    int fd = open(temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return qn_fail(QN_ERR_IO, "cannot create %s: %s", temporary, strerror(errno));
    void *page = MAP_FAILED;
    /* Its pages are taken now: one that a full file system cannot give later is a SIGBUS at the first write. */
    errno = posix_fallocate(fd, 0, (off_t)bytes);
    if (errno == 0) page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int failed = errno;
    close(fd);
    errno = failed;
    if (page == MAP_FAILED && failed == ENOSPC) {
        unlink(temporary);
        return qn_fail(QN_ERR_IO,
                       "the run directory is full: no room for the statistics page %s of %zu bytes; free "
                       "some, or choose another --run-dir",
                       path, bytes);
    }
    if (page == MAP_FAILED || rename(temporary, path) != 0) {
        qn_err_t err = qn_fail(QN_ERR_IO, "cannot make the statistics page %s: %s", path, strerror(errno));
        if (page != MAP_FAILED) munmap(page, bytes);
        unlink(temporary);
        return err;
    }
    *ret_page = page;
    return QN_OK;
}

qn_err_t qn_stats_create(const char *run_dir, const char *service, uint32_t epoch, const qn_stat_spec_t *const *tables,
                         const size_t *counts, size_t table_count, qn_stats_t **ret_stats)
{
    QN_ASSERT(table_count <= STATS_TABLES_MAX);
    char path[QN_PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s.stats", run_dir, service) >= (int)sizeof path)
        return qn_fail(QN_ERR_LIMIT, "run_dir is too long: %s", run_dir);
    qn_stats_t *stats = calloc(1, sizeof *stats);
    if (!stats) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the statistics of %s", service);
    size_t rows = 0;
    for (size_t i = 0; i < table_count; i++) {
        stats->first_row[i] = rows;
        stats->counts[i] = counts[i];
        rows += counts[i];
    }
    QN_ASSERT(rows <= QN_METRICS_MAX);
    stats->table_count = table_count;
    stats->bytes = sizeof(stats_page_t) + rows * sizeof(stats_row_t);
    qn_err_t err = stats_map(path, stats->bytes, &stats->page);
    if (err != QN_OK) {
        free(stats);
        return err;
    }
    for (size_t i = 0; i < table_count; i++)
        stats_fill(stats->page, stats->first_row[i], tables[i], counts[i]);
    stats->page->epoch = epoch;
    stats->page->row_count = (uint32_t)rows;
    atomic_thread_fence(memory_order_release);
    stats->page->magic = STATS_MAGIC; /* last: a reader that sees it sees the rows */
    *ret_stats = stats;
    return QN_OK;
}

void qn_stats_destroy(qn_stats_t **stats)
{
    if (!*stats) return;
    munmap((*stats)->page, (*stats)->bytes);
    free(*stats);
    *stats = NULL;
}

static stats_row_t *stats_row(qn_stats_t *stats, unsigned table, unsigned index)
{
    QN_ASSERT(table < stats->table_count && index < stats->counts[table]);
    return &stats->page->rows[stats->first_row[table] + index];
}

void qn_stats_add(qn_stats_t *stats, unsigned table, unsigned index, uint64_t amount)
{
    atomic_fetch_add_explicit(&stats_row(stats, table, index)->value, amount, memory_order_relaxed);
}

void qn_stats_set(qn_stats_t *stats, unsigned table, unsigned index, uint64_t value)
{
    atomic_store_explicit(&stats_row(stats, table, index)->value, value, memory_order_relaxed);
}

void qn_stats_set_number(qn_stats_t *stats, unsigned table, unsigned index, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    qn_stats_set(stats, table, index, bits);
}

double qn_stat_number(const qn_stat_row_t *row)
{
    double value;
    memcpy(&value, &row->value, sizeof value);
    return value;
}

void qn_stats_name(qn_stats_t *stats, unsigned table, unsigned index, const char *name)
{
    stats_row_t *row = stats_row(stats, table, index);
    size_t length = strnlen(name, sizeof row->name - 1);
    if (strncmp(row->name, name, sizeof row->name) == 0) return;
    row->name[0] = '\0'; /* hidden while it is written */
    atomic_thread_fence(memory_order_release);
    memset(row->name + 1, 0, sizeof row->name - 1);
    if (length > 0) memcpy(row->name + 1, name + 1, length - 1);
    atomic_thread_fence(memory_order_release);
    row->name[0] = name[0];
}

static unsigned stats_bucket(uint64_t ns)
{
    unsigned bucket = 0;
    while (bucket < QN_STAT_BUCKETS - 1 && ns > (1000ull << bucket))
        bucket++;
    return bucket;
}

void qn_stats_observe_ns(qn_stats_t *stats, unsigned table, unsigned index, uint64_t ns)
{
    stats_row_t *row = stats_row(stats, table, index);
    atomic_fetch_add_explicit(&row->buckets[stats_bucket(ns)], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&row->sum_ns, ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&row->value, 1, memory_order_relaxed);
}

static qn_err_t stats_check(const stats_page_t *page, size_t bytes, const char *path)
{
    if (page->magic != STATS_MAGIC || page->row_count > QN_METRICS_MAX ||
        bytes != sizeof *page + page->row_count * sizeof(stats_row_t))
        return qn_fail(QN_ERR_INVALID, "%s is not a statistics page of this version", path);
    for (uint32_t i = 0; i < page->row_count; i++) {
        const stats_row_t *row = &page->rows[i];
        if (!memchr(row->name, 0, sizeof row->name) || !memchr(row->unit, 0, sizeof row->unit) ||
            !memchr(row->help, 0, sizeof row->help) || row->kind > QN_STAT_NUMBER)
            return qn_fail(QN_ERR_INVALID, "%s: row %u is damaged", path, i);
    }
    return QN_OK;
}

qn_err_t qn_stats_open(const char *run_dir, const char *service, qn_stats_view_t **ret_view)
{
    char path[QN_PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s.stats", run_dir, service) >= (int)sizeof path)
        return qn_fail(QN_ERR_LIMIT, "run_dir is too long: %s", run_dir);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return qn_fail(errno == ENOENT ? QN_ERR_NOT_FOUND : QN_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    struct stat status;
    const stats_page_t *page = MAP_FAILED;
    if (fstat(fd, &status) == 0 && (size_t)status.st_size >= sizeof *page)
        page = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED) return qn_fail(QN_ERR_INVALID, "%s is not a statistics page", path);
    size_t bytes = (size_t)status.st_size;
    qn_err_t err = stats_check(page, bytes, path);
    qn_stats_view_t *view = err == QN_OK ? calloc(1, sizeof *view) : NULL;
    if (!view) {
        munmap((void *)page, bytes);
        return err != QN_OK ? err : qn_fail(QN_ERR_NO_MEMORY, "no memory to read %s", path);
    }
    *view = (qn_stats_view_t){.page = page, .bytes = bytes};
    *ret_view = view;
    return QN_OK;
}

void qn_stats_close(qn_stats_view_t **view)
{
    if (!*view) return;
    munmap((void *)(*view)->page, (*view)->bytes);
    free(*view);
    *view = NULL;
}

uint32_t qn_stats_epoch(const qn_stats_view_t *view) { return view->page->epoch; }

size_t qn_stats_row_count(const qn_stats_view_t *view) { return view->page->row_count; }

void qn_stats_read_row(const qn_stats_view_t *view, size_t index, qn_stat_row_t *ret_row)
{
    QN_ASSERT(index < view->page->row_count);
    const stats_row_t *row = &view->page->rows[index];
    *ret_row = (qn_stat_row_t){
        .name = row->name,
        .unit = row->unit,
        .help = row->help,
        .kind = (qn_stat_kind_t)row->kind,
        .value = atomic_load_explicit(&row->value, memory_order_relaxed),
        .sum_ns = atomic_load_explicit(&row->sum_ns, memory_order_relaxed),
    };
    for (unsigned i = 0; i < QN_STAT_BUCKETS; i++)
        ret_row->buckets[i] = atomic_load_explicit(&row->buckets[i], memory_order_relaxed);
}

uint64_t qn_stat_quantile_ns(const qn_stat_row_t *row, double quantile)
{
    uint64_t total = 0, below = 0;
    for (unsigned i = 0; i < QN_STAT_BUCKETS; i++)
        total += row->buckets[i];
    if (total == 0) return 0;
    double wanted = quantile * (double)total;
    for (unsigned i = 0; i < QN_STAT_BUCKETS; i++) {
        if (row->buckets[i] && (double)(below + row->buckets[i]) >= wanted) {
            double low = i == 0 ? 0.0 : 1000.0 * (double)(1ull << (i - 1)), high = 1000.0 * (double)(1ull << i);
            double inside = (wanted - (double)below) / (double)row->buckets[i];
            return (uint64_t)(low + (high - low) * (inside < 0 ? 0 : inside));
        }
        below += row->buckets[i];
    }
    return 1000ull << (QN_STAT_BUCKETS - 1);
}
