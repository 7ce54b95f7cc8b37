/* What is this?      The result of a load as a table for people.
 * State owned:       none.
 * Must never:        compute: all is in the result.
 * Read next:         load_report.c. */
#include <stdbool.h>
#include <string.h>

#include "tools/bench/load_report.h"

/* Prefix hits of more than one in so many tokens are worth a word. */
#define SEEN_PARTS 20

static double number(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

static long long whole(const json_t *object, const char *name)
{
    return (long long)json_integer_value(json_object_get(object, name));
}

static const char *text(const json_t *object, const char *name)
{
    const char *value = json_string_value(json_object_get(object, name));
    return value ? value : "";
}

/* Random prompts have nothing in common but what was asked for: hits are those of an earlier run with the same seed. */
static bool has_seen_prompts(const json_t *report)
{
    const json_t *load = json_object_get(report, "load");
    return json_is_null(json_object_get(load, "file")) && json_is_null(json_object_get(load, "shared_prefix")) &&
           whole(report, "cached_tokens") * SEEN_PARTS > whole(report, "prompt_tokens");
}

/* What a reader has to know before the figures. */
static void print_warnings(const json_t *report, FILE *out)
{
    const json_t *generator = json_object_get(report, "generator"), *requests = json_object_get(report, "requests");
    const json_t *compared = json_object_get(report, "compared");
    if (json_is_true(json_object_get(generator, "bottleneck")))
        fprintf(
            out,
            "WARNING: THE LOAD ITSELF WAS THE BOTTLENECK, these are not the server's figures: its requests were %.1f ms "
            "late on the average,\n         and it used %.0f %% of one processor. Give it a processor of its own, or "
            "share the load between several.\n",
            number(json_object_get(generator, "late_ms"), "mean"), number(generator, "cpu_share") * 100);
    if (has_seen_prompts(report))
        fputs("note: the server had seen these prompts before: empty its prefix cache, or give another --seed\n", out);
    if (!strcmp(text(report, "tokens_counted_by"), "events"))
        fputs("note: the server does not count tokens while it streams (continuous_usage_stats): each event with text "
              "is taken for one token\n",
              out);
    if (whole(requests, "clipped"))
        fprintf(out, "note: %lld requests were made shorter, for the model's length\n", whole(requests, "clipped"));
    if (whole(generator, "waited"))
        fprintf(out, "note: %lld requests waited for one of the requests at once to end (--concurrency)\n",
                whole(generator, "waited"));
    if (!strcmp(text(report, "ended_by"), "limit")) fputs("note: the run was ended early: more is not kept\n", out);
    if (json_is_object(compared) && !json_is_true(json_object_get(compared, "same_load")))
        fprintf(out, "note: the load of %s was another\n", text(compared, "with"));
}

static void print_failures(const json_t *report, FILE *out)
{
    const json_t *failures = json_object_get(report, "failures");
    for (size_t i = 0; i < json_array_size(failures); i++) {
        const json_t *failure = json_array_get(failures, i);
        char status[32] = "";
        if (json_is_integer(json_object_get(failure, "status")))
            snprintf(status, sizeof status, " %lld", whole(failure, "status"));
        fprintf(out, "  %lld %s%s, the first: ", whole(failure, "count"), text(failure, "kind"), status);
        /* From a wire: control characters are shown, not obeyed. */
        for (const char *at = text(failure, "message"); *at; at++)
            fputc((unsigned char)*at < 0x20 || *at == 0x7f ? '?' : *at, out);
        fputc('\n', out);
    }
}

/* " (x1.03)" where there is something to compare with. */
static void print_ratio(const json_t *ratios, const char *name, FILE *out)
{
    const json_t *value = json_object_get(ratios, name);
    if (json_is_number(value)) fprintf(out, " (x%.2f)", json_number_value(value));
}

static void print_rate(const json_t *report, const char *name, const char *label, FILE *out)
{
    if (!json_is_number(json_object_get(report, name))) return;
    fprintf(out, "%-18s %.2f", label, number(report, name));
    print_ratio(json_object_get(report, "compared"), name, out);
    fputc('\n', out);
}

static void print_figure(const json_t *figure, const char *label, const char *format, FILE *out)
{
    static const char *const columns[] = {"mean", "p50", "p90", "p99", "max"};
    fprintf(out, "%-18s", label);
    for (size_t i = 0; i < 5; i++) {
        char cell[32] = "-";
        const json_t *value = json_object_get(figure, columns[i]);
        if (json_is_number(value)) snprintf(cell, sizeof cell, format, json_number_value(value));
        fprintf(out, "%12s", cell);
    }
    fputc('\n', out);
}

static void print_figures(const json_t *report, FILE *out)
{
    static const char *const names[][2] = {{"ttft_ms", "TTFT"},
                                           {"itl_ms", "ITL"},
                                           {"tpot_ms", "TPOT"},
                                           {"longest_gap_ms", "longest gap"},
                                           {"e2e_ms", "E2E"}};
    const json_t *compared = json_object_get(report, "compared");
    fprintf(out, "\n%-18s%12s%12s%12s%12s%12s\n", "ms", "mean", "p50", "p90", "p99", "max");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        print_figure(json_object_get(report, names[i][0]), names[i][1], "%.2f", out);
        if (json_is_object(compared)) print_figure(json_object_get(compared, names[i][0]), "", "x%.2f", out);
    }
    print_figure(json_object_get(json_object_get(report, "generator"), "late_ms"), "sent late", "%.2f", out);
}

static void print_goodput(const json_t *report, FILE *out)
{
    const json_t *goodput = json_object_get(report, "goodput");
    if (!json_is_object(goodput)) return;
    fprintf(out, "%-18s %.2f requests/s, %lld requests, %.1f %%\n", "goodput", number(goodput, "per_s"),
            whole(goodput, "met"), number(goodput, "share") * 100);
}

void load_report_print(const json_t *report, FILE *out)
{
    const json_t *requests = json_object_get(report, "requests");
    print_warnings(report, out);
    fprintf(out, "%-18s %lld ok, %lld failed", "requests", whole(requests, "ok"), whole(requests, "failed"));
    if (whole(requests, "interrupted")) fprintf(out, ", %lld taken back", whole(requests, "interrupted"));
    fputc('\n', out);
    print_failures(report, out);
    fprintf(out, "%-18s %.2f s\n", "duration", number(report, "duration_s"));
    fprintf(out, "%-18s %lld prompt, %lld output", "tokens", whole(report, "prompt_tokens"),
            whole(report, "output_tokens"));
    if (json_is_integer(json_object_get(report, "cached_tokens")) && whole(report, "prompt_tokens"))
        fprintf(out, "; %lld of the prompts from the prefix cache (%.1f %%)", whole(report, "cached_tokens"),
                100.0 * (double)whole(report, "cached_tokens") / (double)whole(report, "prompt_tokens"));
    fputc('\n', out);
    print_rate(report, "requests_per_s", "requests/s", out);
    print_rate(report, "prompt_tokens_per_s", "prompt tok/s", out);
    print_rate(report, "output_tokens_per_s", "output tok/s", out);
    print_goodput(report, out);
    print_figures(report, out);
}
