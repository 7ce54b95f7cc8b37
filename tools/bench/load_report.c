/* What is this?      Figures of a load as JSON.
 * State owned:       none.
 * Must never:        show a figure that has no value as 0.
 * Read next:         load_table.c, which shows it to people; load_record.h, where each figure is defined. */
#include "tools/bench/load_report.h"

#include <string.h>

#include "tools/cli.h"

/* The load itself is what was measured when its requests were late by so much on the average, and by that share of the
 * time to first token, or when it had no processor left. */
#define LATE_S 1e-3
#define LATE_SHARE 0.1
#define CPU_SHARE 0.9

static json_t *figure_json(const load_figure_t *figure)
{
    if (!figure->count) return json_null();
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:I}", "mean", figure->mean * 1e3, "p50", figure->p50 * 1e3, "p90",
                     figure->p90 * 1e3, "p99", figure->p99 * 1e3, "max", figure->max * 1e3, "count",
                     (json_int_t)figure->count);
}

static json_t *rate_json(uint64_t count, double seconds)
{
    return seconds > 0 ? json_real((double)count / seconds) : json_null();
}

static json_t *failures_json(const load_stats_t *stats)
{
    json_t *failures = json_array();
    for (size_t i = 0; i < stats->failure_count; i++) {
        const load_failure_t *failure = &stats->failures[i];
        json_array_append_new(failures,
                              json_pack("{s:s, s:o, s:I, s:o}", "kind", load_outcome_name(failure->outcome), "status",
                                        failure->status ? json_integer(failure->status) : json_null(), "count",
                                        (json_int_t)failure->count, "message", cli_text_json(failure->message)));
    }
    return failures;
}

static json_t *goodput_json(const load_result_t *result)
{
    const load_stats_t *stats = result->stats;
    const struct {
        const char *name;
        double seconds;
    } objectives[] = {{"ttft_ms", stats->slo.ttft_s},
                      {"itl_ms", stats->slo.itl_s},
                      {"gap_ms", stats->slo.gap_s},
                      {"e2e_ms", stats->slo.e2e_s}};
    json_t *asked = json_object();
    for (size_t i = 0; i < sizeof objectives / sizeof *objectives; i++)
        if (objectives[i].seconds > 0)
            json_object_set_new(asked, objectives[i].name, json_real(objectives[i].seconds * 1e3));
    if (!json_object_size(asked)) {
        json_decref(asked);
        return json_null();
    }
    uint64_t ended = stats->ok + stats->failed;
    return json_pack("{s:o, s:I, s:o, s:o}", "slo", asked, "met", (json_int_t)stats->met, "share",
                     ended ? json_real((double)stats->met / (double)ended) : json_null(), "per_s",
                     rate_json(stats->met, result->duration_s));
}

static json_t *generator_json(const load_result_t *result, const load_figure_t *late, const load_figure_t *ttft)
{
    double share = result->duration_s > 0 ? result->cpu_s / result->duration_s : 0;
    bool is_late = late->mean > LATE_S && ttft->count && late->mean > LATE_SHARE * ttft->mean;
    return json_pack("{s:o, s:f, s:b, s:I}", "late_ms", figure_json(late), "cpu_share", share, "bottleneck",
                     (int)(is_late || share > CPU_SHARE), "waited", (json_int_t)result->stats->waited);
}

json_t *load_report_json(const load_result_t *result)
{
    static const char *const ends[] = {"requests", "seconds", "interrupt", "limit"};
    load_stats_t *stats = result->stats;
    double seconds = result->duration_s;
    load_figure_t ttft = load_series_figure(&stats->ttft), late = load_series_figure(&stats->late);
    load_figure_t e2e = load_series_figure(&stats->e2e), tpot = load_series_figure(&stats->tpot);
    load_figure_t longest = load_series_figure(&stats->longest), itl = load_stats_itl(stats);
    json_t *report = json_pack("{s:i, s:{s:o, s:o}, s:O, s:s, s:f}", "version", LOAD_REPORT_VERSION, "server", "url",
                               cli_text_json(result->url), "model", cli_text_json(result->model), "load", result->load,
                               "ended_by", ends[result->end], "duration_s", seconds);
    json_object_set_new(report, "requests",
                        json_pack("{s:I, s:I, s:I, s:I, s:I}", "sent",
                                  (json_int_t)(stats->ok + stats->failed + stats->interrupted), "ok",
                                  (json_int_t)stats->ok, "failed", (json_int_t)stats->failed, "interrupted",
                                  (json_int_t)stats->interrupted, "clipped", (json_int_t)stats->clipped));
    json_object_set_new(report, "failures", failures_json(stats));
    json_object_set_new(report, "prompt_tokens", json_integer((json_int_t)stats->prompt_tokens));
    json_object_set_new(report, "output_tokens", json_integer((json_int_t)stats->output_tokens));
    json_object_set_new(report, "cached_tokens",
                        stats->cached_told ? json_integer((json_int_t)stats->cached_tokens) : json_null());
    json_object_set_new(report, "tokens_counted_by",
                        stats->ok ? json_string(stats->events_only ? "events" : "usage") : json_null());
    json_object_set_new(report, "requests_per_s", rate_json(stats->ok, seconds));
    json_object_set_new(report, "prompt_tokens_per_s", rate_json(stats->prompt_tokens, seconds));
    json_object_set_new(report, "output_tokens_per_s", rate_json(stats->output_tokens, seconds));
    json_object_set_new(report, "ttft_ms", figure_json(&ttft));
    json_object_set_new(report, "itl_ms", figure_json(&itl));
    json_object_set_new(report, "tpot_ms", figure_json(&tpot));
    json_object_set_new(report, "longest_gap_ms", figure_json(&longest));
    json_object_set_new(report, "e2e_ms", figure_json(&e2e));
    json_object_set_new(report, "goodput", goodput_json(result));
    json_object_set_new(report, "generator", generator_json(result, &late, &ttft));
    json_object_set_new(report, "compared", json_null());
    return report;
}

/* ---- comparing ---- */

static json_t *ratio(const json_t *now, const json_t *before)
{
    double divisor = json_number_value(before);
    return json_is_number(now) && divisor > 0 ? json_real(json_number_value(now) / divisor) : json_null();
}

static json_t *figure_ratios(const json_t *now, const json_t *before)
{
    static const char *const names[] = {"mean", "p50", "p90", "p99", "max"};
    if (!json_is_object(now) || !json_is_object(before)) return json_null();
    json_t *ratios = json_object();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        json_object_set_new(ratios, names[i], ratio(json_object_get(now, names[i]), json_object_get(before, names[i])));
    return ratios;
}

qn_err_t load_report_compare(json_t *report, const json_t *before, const char *path)
{
    static const char *const rates[] = {"requests_per_s", "prompt_tokens_per_s", "output_tokens_per_s"};
    static const char *const figures[] = {"ttft_ms", "itl_ms", "tpot_ms", "longest_gap_ms", "e2e_ms"};
    const json_t *version = json_object_get(before, "version");
    if (json_integer_value(version) != LOAD_REPORT_VERSION || !json_object_get(before, "requests_per_s"))
        return qn_fail(QN_ERR_INVALID, "--compare: %s is no result of quintet bench serve -j of version %d", path,
                       LOAD_REPORT_VERSION);
    json_t *compared = json_pack("{s:o, s:b}", "with", cli_text_json(path), "same_load",
                                 json_equal(json_object_get(report, "load"), json_object_get(before, "load")));
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++)
        json_object_set_new(compared, rates[i],
                            ratio(json_object_get(report, rates[i]), json_object_get(before, rates[i])));
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        json_object_set_new(compared, figures[i],
                            figure_ratios(json_object_get(report, figures[i]), json_object_get(before, figures[i])));
    json_object_set_new(report, "compared", compared);
    return QN_OK;
}

/* ---- one request ---- */

static json_t *ms_between(double from_s, double to_s)
{
    return to_s >= from_s && to_s >= 0 ? json_real((to_s - from_s) * 1e3) : json_null();
}

json_t *load_report_record(const load_record_t *record, const load_gap_t *gaps, size_t gap_count, const json_t *ids)
{
    json_t *line =
        json_pack("{s:I, s:s, s:o, s:o, s:o, s:f, s:f, s:o, s:o, s:o}", "index", (json_int_t)record->index, "outcome",
                  load_outcome_name(record->outcome), "status",
                  record->status ? json_integer(record->status) : json_null(), "message",
                  record->message[0] ? cli_text_json(record->message) : json_null(), "request_id",
                  record->request_id[0] ? cli_text_json(record->request_id) : json_null(), "arrival_s",
                  record->arrival_s, "sent_s", record->sent_s, "late_ms", ms_between(record->due_s, record->sent_s),
                  "ttft_ms", record->first_s < 0 ? json_null() : ms_between(record->sent_s, record->first_s), "e2e_ms",
                  ms_between(record->sent_s, record->end_s));
    json_object_set_new(line, "prompt_tokens", json_integer(record->prompt_tokens));
    json_object_set_new(line, "output_tokens", json_integer(record->output_tokens));
    json_object_set_new(line, "cached_tokens", record->cached_told ? json_integer(record->cached_tokens) : json_null());
    json_object_set_new(line, "first_tokens", json_integer(record->first_tokens));
    json_t *pairs = json_array();
    for (size_t i = 0; i < gap_count; i++)
        json_array_append_new(pairs, json_pack("[f, I]", (double)gaps[i].seconds * 1e3, (json_int_t)gaps[i].tokens));
    json_object_set_new(line, "gaps", pairs);
    if (ids) json_object_set(line, "ids", (json_t *)(uintptr_t)ids);
    return line;
}
