/* What is this?      quintet trace: a capture as a timeline for Perfetto and chrome://tracing.
 * State owned:       none.
 * Must never:        need a server: a capture is enough.
 * Read next:         common/capture/trace.h; cmd_record.c (who makes captures). */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "common/capture/recorder.h"
#include "common/capture/trace.h"
#include "tools/cli.h"

static struct {
    const char *output, *run_dir, *config;
    bool quiet;
} options;

static const cli_option_t option_table[] = {
    {"output", 'o', CLI_TEXT, &options.output, NULL, "FILE", "write to FILE instead of standard output", 0, 0},
    {"run-dir", 0, CLI_TEXT, &options.run_dir, NULL, "DIR", "run directory that holds the recording", 0, 0},
    {"config", 0, CLI_TEXT, &options.config, NULL, "FILE", "configuration that names the run directory", 0, 0},
    {"quiet", 'q', CLI_FLAG, &options.quiet, NULL, NULL, "nothing on standard error but failures", 0, 0},
};

static const cli_command_t command = {
    .name = "trace",
    .arguments = "[OPTION]... FILE|NAME",
    .summary = "Turns a capture of quintet record (or sniff -w) into JSON of the trace event format.",
    .details = "The argument is a capture file (-: standard input), or the name of a recording in the run directory.\n"
               "Open the result in ui.perfetto.dev or chrome://tracing: a track per service and one for the device,\n"
               "arrows along messages and requests.",
    .options = option_table,
    .option_count = sizeof option_table / sizeof *option_table,
};

static qn_err_t find_capture(const char *name, char path[QN_PATH_MAX])
{
    char run_dir[QN_PATH_MAX];
    bool is_file = strcmp(name, "-") == 0 || strchr(name, '/') || access(name, F_OK) == 0;
    if (!is_file) {
        qn_err_t err = cli_run_dir(options.config, options.run_dir, run_dir);
        return err ? err : qn_recorder_path(run_dir, name, QN_RECORDER_CAPTURE_SUFFIX, path, QN_PATH_MAX);
    }
    if (strlen(name) >= QN_PATH_MAX) return qn_fail(QN_ERR_LIMIT, "the path is longer than %d bytes", QN_PATH_MAX - 1);
    strcpy(path, name);
    return QN_OK;
}

static int write_trace(const char *path, FILE *out)
{
    qn_trace_figures_t figures;
    qn_err_t err = qn_trace_write(path, out, &figures);
    if (err) return cli_fail_err(err);
    if (options.quiet) return EX_OK;
    fprintf(stderr,
            "quintet trace: %" PRIu64 " requests, %" PRIu64 " steps, %" PRIu64 " messages; %" PRIu64 " events%s%s\n",
            figures.requests, figures.steps, figures.hops, figures.events,
            figures.truncated ? "; longer than viewers take: the rest is left out" : "",
            figures.torn ? "; the capture ends in a torn record" : "");
    return EX_OK;
}

int cmd_trace(int argc, char **argv)
{
    char path[QN_PATH_MAX];
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (argc != 2) return cli_usage("trace wants one capture");
    qn_err_t err = find_capture(argv[1], path);
    if (err) return cli_fail_err(err);
    FILE *out = options.output ? fopen(options.output, "we") : stdout;
    if (!out) return cli_fail(EX_CANTCREAT, "cannot write %s: %s", options.output, strerror(errno));
    status = write_trace(path, out);
    if (options.output && fclose(out) && status == EX_OK)
        return cli_fail(EX_IOERR, "cannot write %s: %s", options.output, strerror(errno));
    return status ? status : cli_finish_output();
}
