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
    char name[QN_NAME_MAX + 32];
    char help[QN_REASON_MAX];
    qn_stat_kind_t kind;
    reply_buffer_t samples;
} family_t;

struct prometheus {
    char model_label[2 * QN_NAME_MAX + 256 + 32]; /* ",model_name=\"...\"" */
    family_t *families;
    size_t count;
};

/* Backslash, quote and newline are escaped, as the format wants it. A name too long for its place is cut. */
static void write_model_label(const char *model_name, char *ret_label, size_t room)
{
    size_t used = (size_t)snprintf(ret_label, room, ",model_name=\"");
    for (; *model_name && used + 4 < room; model_name++) {
        if (strchr("\\\"\n", *model_name)) ret_label[used++] = '\\';
        ret_label[used++] = *model_name == '\n' ? 'n' : *model_name;
    }
    snprintf(ret_label + used, room - used, "\"");
}

prometheus_t *prometheus_create(const char *model_name)
{
    prometheus_t *page = calloc(1, sizeof *page);
    QN_ASSERT(page != NULL);
    page->families = calloc(FAMILIES_MAX, sizeof *page->families);
    QN_ASSERT(page->families != NULL);
    write_model_label(model_name, page->model_label, sizeof page->model_label);
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

/* What one unit of a row is in seconds; 0: it is no time. */
static double seconds_of(const qn_stat_row_t *row)
{
    if (row->kind == QN_STAT_HISTOGRAM_NS) return 0;
    if (row->unit && strcmp(row->unit, "nanoseconds") == 0) return 1e-9;
    return row->unit && strcmp(row->unit, "milliseconds") == 0 ? 1e-3 : 0;
}

/* quintet_<name> with the endings of its unit and kind, without labels. */
static void family_name(const qn_stat_row_t *row, char *ret_name, size_t room)
{
    bool in_seconds = row->kind == QN_STAT_HISTOGRAM_NS || seconds_of(row) > 0;
    int length = snprintf(ret_name, room, "quintet_%.*s", (int)strcspn(row->name, "{"), row->name);
    if (in_seconds && !ends_with(ret_name, "_seconds"))
        length += snprintf(ret_name + length, room - (size_t)length, "_seconds");
    if (row->kind == QN_STAT_COUNTER && !ends_with(ret_name, "_total"))
        snprintf(ret_name + length, room - (size_t)length, "_total");
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

/* The labels of a row's samples up to the model's: service="x",code="200". */
static void write_labels(const char *service, const qn_stat_row_t *row, char *ret_labels, size_t room)
{
    const char *own = strchr(row->name, '{');
    int length = own ? (int)strcspn(own + 1, "}") : 0;
    snprintf(ret_labels, room, "service=\"%s\"%s%.*s", service, own ? "," : "", length, own ? own + 1 : "");
}

static void add_histogram(const prometheus_t *page, family_t *family, const char *labels, const qn_stat_row_t *row)
{
    uint64_t total = 0;
    reply_buffer_t *out = &family->samples;
    for (int i = 0; i < QN_STAT_BUCKETS - 1; i++) {
        total += row->buckets[i];
        reply_buffer_printf(out, "%s_bucket{%s,le=\"%.9g\"%s} %" PRIu64 "\n", family->name, labels,
                            1e-6 * (double)(1ull << i), page->model_label, total);
    }
    total += row->buckets[QN_STAT_BUCKETS - 1]; /* the sum, not row->value: a reader may see them a moment apart */
    reply_buffer_printf(out, "%s_bucket{%s,le=\"+Inf\"%s} %" PRIu64 "\n", family->name, labels, page->model_label,
                        total);
    reply_buffer_printf(out, "%s_sum{%s%s} %.9f\n", family->name, labels, page->model_label, (double)row->sum_ns / 1e9);
    reply_buffer_printf(out, "%s_count{%s%s} %" PRIu64 "\n", family->name, labels, page->model_label, total);
}

void prometheus_add(prometheus_t *page, const char *service, const qn_stat_row_t *row)
{
    if (row->name[0] == '\0') return; /* not named yet */
    family_t *family = find_family(page, row);
    if (!family) return;
    char labels[QN_NAME_MAX + QN_STAT_NAME_MAX + 16];
    write_labels(service, row, labels, sizeof labels);
    double seconds = seconds_of(row);
    if (row->kind == QN_STAT_HISTOGRAM_NS)
        add_histogram(page, family, labels, row);
    else if (row->kind == QN_STAT_NUMBER)
        reply_buffer_printf(&family->samples, "%s{%s%s} %.9g\n", family->name, labels, page->model_label,
                            qn_stat_number(row));
    else if (seconds > 0)
        reply_buffer_printf(&family->samples, "%s{%s%s} %.9f\n", family->name, labels, page->model_label,
                            (double)row->value * seconds);
    else
        reply_buffer_printf(&family->samples, "%s{%s%s} %" PRIu64 "\n", family->name, labels, page->model_label,
                            row->value);
}

void prometheus_write(const prometheus_t *page, reply_buffer_t *out)
{
    static const char *const types[] = {
        [QN_STAT_COUNTER] = "counter",
        [QN_STAT_GAUGE] = "gauge",
        [QN_STAT_HISTOGRAM_NS] = "histogram",
        [QN_STAT_NUMBER] = "gauge",
    };
    for (size_t i = 0; i < page->count; i++) {
        const family_t *family = &page->families[i];
        reply_buffer_printf(out, "# HELP %s %s\n# TYPE %s %s\n", family->name, family->help, family->name,
                            types[family->kind]);
        reply_buffer_append(out, family->samples.data, family->samples.bytes);
    }
}
