/* What is this?      The writer of the Prometheus text format.
 * State owned:       families and their samples, until written.
 * Must never:        emit a family twice, or a name or text that breaks a line.
 * Read next:         common/watch/stats.h, where rows come from. */
#include "services/frontend/reply/prometheus.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"

#define SERVICES_MAX 8
#define FAMILIES_MAX (SERVICES_MAX * QN_METRICS_MAX)

typedef struct {
    char name[QN_NAME_MAX + 24];
    char help[QN_REASON_MAX];
    qn_stat_kind_t kind;
    reply_buffer_t samples;
} family_t;

struct prometheus {
    family_t *families;
    size_t count;
};

prometheus_t *prometheus_create(void)
{
    prometheus_t *page = calloc(1, sizeof *page);
    QN_ASSERT(page != NULL);
    page->families = calloc(FAMILIES_MAX, sizeof *page->families);
    QN_ASSERT(page->families != NULL);
    return page;
}

void prometheus_destroy(prometheus_t **page)
{
    if (!*page) return;
    for (size_t i = 0; i < (*page)->count; i++)
        reply_buffer_fini(&(*page)->families[i].samples);
    free((*page)->families);
    free(*page);
    *page = NULL;
}

static bool ends_with(const char *text, const char *tail)
{
    size_t length = strlen(text), tail_length = strlen(tail);
    return length >= tail_length && strcmp(text + length - tail_length, tail) == 0;
}

/* quintet_<name> with the ending of its kind. */
static void family_name(const qn_stat_row_t *row, char *ret_name, size_t room)
{
    const char *ending = row->kind == QN_STAT_COUNTER ? "_total" : row->kind == QN_STAT_HISTOGRAM_NS ? "_seconds" : "";
    snprintf(ret_name, room, "quintet_%.*s%s", QN_NAME_MAX, row->name, ends_with(row->name, ending) ? "" : ending);
    for (char *at = ret_name; *at; at++) {
        if (!isalnum((unsigned char)*at) && *at != '_') *at = '_';
    }
}

static family_t *find_family(prometheus_t *page, const qn_stat_row_t *row)
{
    char name[sizeof page->families->name];
    family_name(row, name, sizeof name);
    for (size_t i = 0; i < page->count; i++) {
        family_t *family = &page->families[i];
        if (strcmp(family->name, name) == 0) return family->kind == row->kind ? family : NULL;
    }
    if (page->count == FAMILIES_MAX) return NULL;
    family_t *family = &page->families[page->count++];
    memcpy(family->name, name, sizeof name);
    snprintf(family->help, sizeof family->help, "%s", row->help);
    for (char *at = family->help; *at; at++) {
        if (*at == '\n' || *at == '\\') *at = ' ';
    }
    family->kind = row->kind;
    return family;
}

static void add_histogram(family_t *family, const char *service, const qn_stat_row_t *row)
{
    uint64_t total = 0;
    for (int i = 0; i < QN_STAT_BUCKETS - 1; i++) {
        total += row->buckets[i];
        reply_buffer_printf(&family->samples, "%s_bucket{service=\"%s\",le=\"%.9g\"} %" PRIu64 "\n", family->name,
                            service, 1e-6 * (double)(1ull << i), total);
    }
    total += row->buckets[QN_STAT_BUCKETS - 1]; /* the sum, not row->value: a reader may see them a moment apart */
    reply_buffer_printf(&family->samples, "%s_bucket{service=\"%s\",le=\"+Inf\"} %" PRIu64 "\n", family->name, service,
                        total);
    reply_buffer_printf(&family->samples, "%s_sum{service=\"%s\"} %.9f\n", family->name, service,
                        (double)row->sum_ns / 1e9);
    reply_buffer_printf(&family->samples, "%s_count{service=\"%s\"} %" PRIu64 "\n", family->name, service, total);
}

void prometheus_add(prometheus_t *page, const char *service, const qn_stat_row_t *row)
{
    family_t *family = find_family(page, row);
    if (!family) return;
    if (row->kind == QN_STAT_HISTOGRAM_NS)
        add_histogram(family, service, row);
    else
        reply_buffer_printf(&family->samples, "%s{service=\"%s\"} %" PRIu64 "\n", family->name, service, row->value);
}

void prometheus_write(const prometheus_t *page, reply_buffer_t *out)
{
    static const char *const types[] = {
        [QN_STAT_COUNTER] = "counter",
        [QN_STAT_GAUGE] = "gauge",
        [QN_STAT_HISTOGRAM_NS] = "histogram",
    };
    for (size_t i = 0; i < page->count; i++) {
        const family_t *family = &page->families[i];
        reply_buffer_printf(out, "# HELP %s %s\n# TYPE %s %s\n", family->name, family->help, family->name,
                            types[family->kind]);
        reply_buffer_append(out, family->samples.data, family->samples.bytes);
    }
}
