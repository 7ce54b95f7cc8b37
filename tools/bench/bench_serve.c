/* What is this?      quintet bench serve: load on a running server, and what its clients see.
 * State owned:       the run: engine, figures, the file of --save.
 * Must never:        report a figure of the warmup.
 * Read next:         serve_options.h (what is asked for), load_engine.h (who sends), load_report.h (what is told). */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "tools/bench/bench.h"
#include "tools/bench/load_report.h"
#include "tools/bench/serve_options.h"
#include "tools/cli.h"

/* Longest result that --compare reads. */
#define RESULT_BYTES_MAX (16u << 20)

typedef struct {
    serve_options_t options;
    http_client_t *client; /* owned */
    load_server_t server;
    load_engine_t *engine; /* owned */
    load_stats_t stats;    /* of the run that goes on */
    FILE *save;            /* owned; NULL: not asked for, or the warmup */
    json_t *before;        /* owned; of --compare */
    qn_err_t err;          /* of ended() */
} serve_t;

/* ---- what the engine calls ---- */

static void save_record(serve_t *serve, const load_record_t *record, const load_gap_t *gaps, size_t gap_count,
                        const json_t *ids)
{
    json_t *line = load_report_record(record, gaps, gap_count, ids);
    json_dumpf(line, serve->save, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(line);
    if (fputc('\n', serve->save) == EOF && !serve->err)
        serve->err = qn_fail(QN_ERR_IO, "--save: cannot write %s: %s", serve->options.save, strerror(errno));
}

static bool ended(void *context, const load_record_t *record, const load_gap_t *gaps, size_t gap_count,
                  const json_t *ids)
{
    serve_t *serve = context;
    if (serve->save) save_record(serve, record, gaps, gap_count, ids);
    qn_err_t err = load_stats_add(&serve->stats, record, gaps, gap_count);
    if (err && err != QN_ERR_LIMIT && !serve->err) serve->err = err;
    return !err && !serve->err;
}

static void progress(void *context, double seconds, uint32_t busy)
{
    const load_stats_t *stats = &((const serve_t *)context)->stats;
    bench_progress("%.1f s: %llu answered, %llu failed, %u under way, %.0f output tok/s", seconds,
                   (unsigned long long)stats->ok, (unsigned long long)stats->failed, busy,
                   (double)stats->output_tokens / seconds);
}

/* ---- before ---- */

static int read_before(serve_t *serve)
{
    const char *path = serve->options.compare;
    size_t bytes;
    char *text = cli_read_all(path, RESULT_BYTES_MAX, &bytes);
    if (!text) return cli_fail(EX_NOINPUT, "--compare: %s", qn_err_text());
    json_error_t why;
    serve->before = json_loadb(text, bytes, 0, &why);
    free(text);
    if (!serve->before) return cli_fail(EX_DATAERR, "--compare: %s is no JSON: %s", path, why.text);
    json_t *nothing = json_object();
    qn_err_t err = load_report_compare(nothing, serve->before, path);
    json_decref(nothing);
    return err ? cli_fail(EX_DATAERR, "%s", qn_err_text()) : EX_OK;
}

static int open_all(serve_t *serve)
{
    const serve_options_t *o = &serve->options;
    int interrupt_fd = cli_interrupt_fd();
    /* A connection that the server closed is a failed request, with TLS, too, where libcurl leaves the signal alone. */
    signal(SIGPIPE, SIG_IGN);
    if (http_client_open(o->url, interrupt_fd, &serve->client)) return cli_usage("--url: %s", qn_err_text());
    int status = o->compare ? read_before(serve) : EX_OK;
    if (!status) status = load_server_ask(serve->client, &serve->server);
    if (!status) status = serve_options_complete(&serve->options, &serve->server);
    if (status) return status;
    load_engine_options_t engine = {.client = serve->client,
                                    .prompts = &o->prompts,
                                    .concurrency = o->run.concurrency,
                                    .timeout_ms = (long)(o->timeout_s * 1e3),
                                    .interrupt_fd = interrupt_fd,
                                    .keeps_ids = o->ids,
                                    .ended = ended,
                                    .progress = isatty(STDERR_FILENO) ? progress : NULL,
                                    .context = serve};
    qn_err_t err = load_engine_open(&engine, &serve->engine);
    return err ? cli_fail_err(err) : EX_OK;
}

/* ---- the runs ---- */

static int exit_status_of(const load_failure_t *failure)
{
    switch (failure->outcome) {
    case LOAD_REFUSED:
    case LOAD_BROKEN: return EX_UNAVAILABLE;
    case LOAD_TIMEOUT: return EX_TEMPFAIL;
    case LOAD_INCOMPLETE:
    case LOAD_PROTOCOL: return EX_PROTOCOL;
    default: break;
    }
    if (failure->status == 429 || failure->status == 503 || failure->status == 504) return EX_TEMPFAIL;
    return failure->status >= 500 ? EX_SOFTWARE : EX_DATAERR;
}

/* Runs, and forgets the figures. */
static int warm_up(serve_t *serve)
{
    load_run_t run = {.purpose = LOAD_FOR_WARMUP,
                      .requests = serve->options.warmup,
                      .concurrency = serve->options.run.concurrency};
    load_end_t end;
    double cpu_s;
    qn_err_t err = load_engine_run(serve->engine, &run, &end, &cpu_s);
    bench_progress_end();
    int status = EX_OK;
    if (err || serve->err)
        status = cli_fail_err(err ? err : serve->err);
    else if (end == LOAD_ENDED_INTERRUPT)
        status = CLI_EXIT_INTERRUPTED;
    else if (!serve->stats.ok)
        status = cli_fail(exit_status_of(serve->stats.failures), "--warmup: no request was answered: %s",
                          serve->stats.failures[0].message);
    load_stats_fini(&serve->stats);
    return status;
}

static int report(serve_t *serve, load_end_t end, double cpu_s)
{
    const serve_options_t *o = &serve->options;
    load_stats_t *stats = &serve->stats;
    load_result_t result = {.stats = stats,
                            .end = end,
                            .duration_s = stats->end_s,
                            .cpu_s = cpu_s,
                            .url = http_client_url(serve->client),
                            .model = serve->server.model,
                            .load = o->load};
    json_t *all = load_report_json(&result);
    if (serve->before && load_report_compare(all, serve->before, o->compare))
        return cli_fail(EX_DATAERR, "%s", qn_err_text());
    if (o->json)
        cli_print_json(all);
    else
        load_report_print(all, stdout);
    if (o->json && json_is_true(json_object_get(json_object_get(all, "generator"), "bottleneck")))
        fputs("quintet bench serve: WARNING: the load itself was the bottleneck, see \"generator\"\n", stderr);
    json_decref(all);
    int output = cli_finish_output();
    if (end == LOAD_ENDED_INTERRUPT) return CLI_EXIT_INTERRUPTED;
    if (output || stats->ok || !stats->failed) return output;
    fprintf(stderr, "quintet bench serve: no request was answered\n");
    return exit_status_of(stats->failures);
}

static int measure(serve_t *serve)
{
    serve_options_t *o = &serve->options;
    load_end_t end;
    double cpu_s;
    serve->stats.slo = o->slo;
    if (o->save && !(serve->save = fopen(o->save, "we")))
        return cli_fail(EX_CANTCREAT, "--save: cannot write %s: %s", o->save, strerror(errno));
    /* A line as soon as its request has ended: whoever waits for one sees it. */
    if (serve->save) setvbuf(serve->save, NULL, _IOLBF, BUFSIZ);
    if (o->has_arrivals) o->run.arrivals = &o->arrivals;
    qn_err_t err = load_engine_run(serve->engine, &o->run, &end, &cpu_s);
    bench_progress_end();
    if (serve->save && fclose(serve->save) && !serve->err)
        serve->err = qn_fail(QN_ERR_IO, "--save: cannot write %s: %s", o->save, strerror(errno));
    serve->save = NULL;
    if (err || serve->err) return cli_fail_err(err ? err : serve->err);
    return report(serve, end, cpu_s);
}

static void close_all(serve_t *serve)
{
    load_engine_close(&serve->engine);
    http_client_close(&serve->client);
    load_stats_fini(&serve->stats);
    load_lines_fini(&serve->options.prompts.lines);
    json_decref(serve->options.fields);
    json_decref(serve->options.load);
    json_decref(serve->before);
}

int bench_serve(int argc, char **argv)
{
    static serve_t serve;
    int status = serve_options_parse(argc, argv, &serve.options);
    if (status != -1) return status;
    status = open_all(&serve);
    if (!status && serve.options.warmup) status = warm_up(&serve);
    if (!status) status = measure(&serve);
    close_all(&serve);
    return status;
}
