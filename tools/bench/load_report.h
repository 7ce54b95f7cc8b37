/* The result of a load: as JSON, which --compare reads again, and as a table. */
#ifndef QN_TOOLS_BENCH_LOAD_REPORT_H
#define QN_TOOLS_BENCH_LOAD_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "tools/bench/load_engine.h"
#include "tools/bench/load_record.h"

/* Number of the result's form; raised when a member changes its meaning or goes. */
#define LOAD_REPORT_VERSION 1

typedef struct {
    load_stats_t *stats; /* borrowed; its values are sorted */
    load_end_t end;
    double duration_s, cpu_s;
    const char *url, *model; /* borrowed */
    json_t *load;            /* borrowed; what was asked for, for the reader */
} load_result_t;

/* Returns owned. Times in milliseconds but for duration_s; figures without a value are null. */
json_t *load_report_json(const load_result_t *result);
/* Puts "compared" into `report`: each figure of it by that of `before`. Borrows both. QN_ERR_INVALID: `before` is no
 * result of this form. `path` is for the message. */
qn_err_t load_report_compare(json_t *report, const json_t *before, const char *path);
/* One record as a line of --save. Returns owned. */
json_t *load_report_record(const load_record_t *record, const load_gap_t *gaps, size_t gap_count, const json_t *ids);
/* For people. What spoils the figures stands first. */
void load_report_print(const json_t *report, FILE *out);

#endif
