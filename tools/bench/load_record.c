/* What is this?      Records of a load's requests, and their figures.
 * State owned:       the values of a load_stats_t.
 * Must never:        read a clock or a socket.
 * Read next:         load_transfer.c (who fills records), load_report.c (who shows the figures). */
#include "tools/bench/load_record.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLO_MS_MAX 1e9

const char *load_outcome_name(load_outcome_t outcome)
{
    static const char *const names[] = {"ok",      "http",   "stream",  "incomplete", "protocol",
                                        "refused", "broken", "timeout", "interrupted"};
    return names[outcome];
}

double load_record_tpot(const load_record_t *record)
{
    if (record->first_s < 0 || record->output_tokens <= record->first_tokens) return -1;
    return (record->last_s - record->first_s) / (record->output_tokens - record->first_tokens);
}

/* ---- figures ---- */

double load_percentile(const double *sorted, size_t count, unsigned percent)
{
    if (!count) return 0;
    size_t rank = (count * percent + 99) / 100;
    return sorted[rank ? rank - 1 : 0];
}

static int compare_numbers(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

load_figure_t load_series_figure(load_series_t *series)
{
    load_figure_t figure = {.count = series->count};
    if (!series->count) return figure;
    qsort(series->values, series->count, sizeof *series->values, compare_numbers);
    double sum = 0;
    for (size_t i = 0; i < series->count; i++)
        sum += series->values[i];
    figure.mean = sum / (double)series->count;
    figure.p50 = load_percentile(series->values, series->count, 50);
    figure.p90 = load_percentile(series->values, series->count, 90);
    figure.p99 = load_percentile(series->values, series->count, 99);
    figure.max = series->values[series->count - 1];
    return figure;
}

static qn_err_t push(load_series_t *series, double value)
{
    if (series->count == series->capacity) {
        size_t capacity = series->capacity ? series->capacity * 2 : 1024;
        double *grown = realloc(series->values, capacity * sizeof *grown);
        if (!grown) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the figures of %zu requests", capacity);
        series->values = grown;
        series->capacity = capacity;
    }
    series->values[series->count++] = value;
    return QN_OK;
}

static qn_err_t push_gaps(load_stats_t *stats, const load_gap_t *gaps, size_t count)
{
    if (count > LOAD_GAPS_MAX - stats->gap_count)
        return qn_fail(QN_ERR_LIMIT, "more than %u pieces of answers came: the figures end here", LOAD_GAPS_MAX);
    if (stats->gap_count + count > stats->gap_capacity) {
        size_t capacity = stats->gap_capacity ? stats->gap_capacity : 4096;
        while (capacity < stats->gap_count + count)
            capacity *= 2;
        load_gap_t *grown = realloc(stats->gaps, capacity * sizeof *grown);
        if (!grown) return qn_fail(QN_ERR_NO_MEMORY, "no memory for the figures of %zu pieces of answers", capacity);
        stats->gaps = grown;
        stats->gap_capacity = capacity;
    }
    if (count) memcpy(stats->gaps + stats->gap_count, gaps, count * sizeof *gaps);
    stats->gap_count += count;
    return QN_OK;
}

static double per_token(const load_gap_t *gap) { return (double)gap->seconds / gap->tokens; }

static int compare_gaps(const void *a, const void *b)
{
    double left = per_token(a), right = per_token(b);
    return (left > right) - (left < right);
}

/* load_percentile over tokens instead of gaps. */
static double gap_percentile(const load_stats_t *stats, uint64_t tokens, unsigned percent)
{
    uint64_t rank = (tokens * percent + 99) / 100, seen = 0;
    for (size_t i = 0; i < stats->gap_count; i++) {
        seen += stats->gaps[i].tokens;
        if (seen >= rank) return per_token(&stats->gaps[i]);
    }
    return 0;
}

load_figure_t load_stats_itl(load_stats_t *stats)
{
    load_figure_t figure = {0};
    if (!stats->gap_count) return figure;
    qsort(stats->gaps, stats->gap_count, sizeof *stats->gaps, compare_gaps);
    double sum = 0;
    for (size_t i = 0; i < stats->gap_count; i++) {
        sum += (double)stats->gaps[i].seconds;
        figure.count += stats->gaps[i].tokens;
    }
    figure.mean = sum / (double)figure.count;
    figure.p50 = gap_percentile(stats, figure.count, 50);
    figure.p90 = gap_percentile(stats, figure.count, 90);
    figure.p99 = gap_percentile(stats, figure.count, 99);
    figure.max = per_token(&stats->gaps[stats->gap_count - 1]);
    return figure;
}

/* ---- objectives ---- */

qn_err_t load_slo_parse(const char *text, load_slo_t *ret_slo)
{
    load_slo_t slo = {0};
    const struct {
        const char *name;
        double *seconds;
    } objectives[] = {{"ttft=", &slo.ttft_s}, {"itl=", &slo.itl_s}, {"gap=", &slo.gap_s}, {"e2e=", &slo.e2e_s}};
    for (const char *at = text;; at++) {
        size_t i = 0;
        while (i < 4 && strncmp(at, objectives[i].name, strlen(objectives[i].name)) != 0)
            i++;
        char *end = NULL;
        const char *number = i < 4 ? at + strlen(objectives[i].name) : at;
        double ms = i < 4 && *number >= '0' && *number <= '9' ? strtod(number, &end) : 0;
        if (!(ms > 0 && ms <= SLO_MS_MAX) || (*end && *end != ',') || *objectives[i].seconds > 0)
            return qn_fail(QN_ERR_INVALID,
                           "wants ttft=MS,itl=MS,gap=MS,e2e=MS, each at most once and above 0, not \"%.80s\"", text);
        *objectives[i].seconds = ms / 1000;
        at = end;
        if (!*at) break;
    }
    *ret_slo = slo;
    return QN_OK;
}

bool load_slo_is_met(const load_slo_t *slo, const load_record_t *record, double longest_gap_s)
{
    if (record->outcome != LOAD_OK) return false;
    if (slo->ttft_s > 0 && !(record->first_s >= 0 && record->first_s - record->sent_s <= slo->ttft_s)) return false;
    if (slo->itl_s > 0 && load_record_tpot(record) > slo->itl_s) return false;
    if (slo->gap_s > 0 && longest_gap_s > slo->gap_s) return false;
    return !(slo->e2e_s > 0 && record->end_s - record->sent_s > slo->e2e_s);
}

/* ---- all requests ---- */

static void add_failure(load_stats_t *stats, const load_record_t *record)
{
    size_t i = 0;
    while (i < stats->failure_count &&
           (stats->failures[i].outcome != record->outcome || stats->failures[i].status != record->status))
        i++;
    if (i == LOAD_FAILURES_MAX) i--;
    load_failure_t *failure = &stats->failures[i];
    if (i == stats->failure_count) {
        *failure = (load_failure_t){.outcome = record->outcome, .status = record->status};
        snprintf(failure->message, sizeof failure->message, "%s", record->message);
        stats->failure_count++;
    }
    failure->count++;
}

static qn_err_t add_good(load_stats_t *stats, const load_record_t *record, const load_gap_t *gaps, size_t gap_count)
{
    float longest = 0;
    for (size_t i = 0; i < gap_count; i++)
        if (gaps[i].seconds > longest) longest = gaps[i].seconds;
    stats->prompt_tokens += record->prompt_tokens;
    stats->output_tokens += record->output_tokens;
    stats->cached_tokens += record->cached_tokens;
    stats->cached_told += record->cached_told;
    stats->events_only += record->events_only;
    stats->met += load_slo_is_met(&stats->slo, record, (double)longest);
    double tpot = load_record_tpot(record);
    qn_err_t err = push(&stats->e2e, record->end_s - record->sent_s);
    if (!err && record->first_s >= 0) err = push(&stats->ttft, record->first_s - record->sent_s);
    if (!err && tpot >= 0) err = push(&stats->tpot, tpot);
    if (!err && gap_count) err = push(&stats->longest, (double)longest);
    return err ? err : push_gaps(stats, gaps, gap_count);
}

qn_err_t load_stats_add(load_stats_t *stats, const load_record_t *record, const load_gap_t *gaps, size_t gap_count)
{
    if (record->end_s > stats->end_s) stats->end_s = record->end_s;
    stats->clipped += record->clipped;
    stats->waited += record->due_s > record->arrival_s;
    qn_err_t err = push(&stats->late, record->sent_s - record->due_s);
    if (err) return err;
    switch (record->outcome) {
    case LOAD_OK: stats->ok++; return add_good(stats, record, gaps, gap_count);
    case LOAD_INTERRUPTED: stats->interrupted++; return QN_OK;
    default:
        stats->failed++;
        add_failure(stats, record);
        return QN_OK;
    }
}

void load_stats_fini(load_stats_t *stats)
{
    load_series_t *series[] = {&stats->ttft, &stats->e2e, &stats->tpot, &stats->longest, &stats->late};
    for (size_t i = 0; i < sizeof series / sizeof *series; i++)
        free(series[i]->values);
    free(stats->gaps);
    *stats = (load_stats_t){0};
}
