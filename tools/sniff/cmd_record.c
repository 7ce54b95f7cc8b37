/* What is this?      quintet record: everything that the services of a run directory do, into a capture for a while.
 * State owned:       the run.
 * Must never:        slow down a service; it only listens.
 * Read next:         common/capture/recorder.h; cmd_trace.c makes a timeline of it. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "common/capture/recorder.h"
#include "common/config/config.h"
#include "common/daemon/links/links.h"
#include "common/paths.h"
#include "tools/cli.h"

static struct {
    const char *run_dir, *config;
    uint64_t seconds, megabytes;
    bool json;
} options = {.seconds = 60, .megabytes = QN_RECORDER_BYTES_MAX >> 20};

static const cli_option_t option_table[] = {
    {"seconds", 's', CLI_COUNT, &options.seconds, NULL, "S", "end after so many (default 60), or with Ctrl-C", 1,
     86400},
    {"megabytes", 0, CLI_COUNT, &options.megabytes, NULL, "M", "end when the file has so many (default 64)", 1, 65536},
    {"run-dir", 0, CLI_TEXT, &options.run_dir, NULL, "DIR", "run directory of the services", 0, 0},
    {"config", 0, CLI_TEXT, &options.config, NULL, "FILE", "configuration that names the run directory", 0, 0},
    {"json", 'j', CLI_FLAG, &options.json, NULL, NULL, "figures as JSON", 0, 0},
};

static const cli_command_t command = {
    .name = "record",
    .arguments = "[OPTION]... NAME",
    .summary = "Records what the services send and what their loops do.",
    .details =
        "NAME is the name of a recording, kept as RUN_DIR/recordings/NAME.qncap, or the path of a file when it has\n"
        "a '/'. It holds prompts and answers: only you can read it.\n\n"
        "examples:\n"
        "  quintet record slow --seconds 10\n"
        "  quintet trace slow > slow.json          open it in ui.perfetto.dev or chrome://tracing\n"
        "  quintet sniff -r RUN_DIR/recordings/slow.qncap type StepPlan",
    .options = option_table,
    .option_count = sizeof option_table / sizeof *option_table,
};

static const char *end_name(qn_recorder_end_t end)
{
    static const char *const names[] = {
        [QN_RECORDER_STOPPED] = "stopped", [QN_RECORDER_TIME_OVER] = "time over", [QN_RECORDER_FULL] = "file full"};
    return names[end];
}

static void say_listening(void *context, unsigned services)
{
    (void)context;
    if (options.json || !isatty(STDERR_FILENO)) return;
    fprintf(stderr, "quintet record: %d of 5 services are heard; Ctrl-C ends it\n", __builtin_popcount(services));
}

static void report(const char *path, const qn_recorder_figures_t *figures)
{
    double seconds = (double)(figures->end_ns - figures->begin_ns) / 1e9;
    if (!options.json) {
        printf("%s: %" PRIu64 " messages, %.1f MB in %.1f s (%s)", path, figures->messages,
               (double)figures->bytes / 1e6, seconds, end_name(figures->end));
        printf(figures->missed ? "; %" PRIu64 " missed\n" : "\n", figures->missed);
        return;
    }
    json_t *object = json_pack("{s:o,s:I,s:I,s:I,s:f,s:s}", "path", cli_text_json(path), "messages",
                               (json_int_t)figures->messages, "bytes", (json_int_t)figures->bytes, "missed",
                               (json_int_t)figures->missed, "seconds", seconds, "end", end_name(figures->end));
    cli_print_json(object);
    json_decref(object);
}

/* A name in the run directory, or a path. */
static qn_err_t recording_path(const char *run_dir, const char *name, char ret_path[QN_PATH_MAX])
{
    if (!strchr(name, '/')) return qn_recorder_path(run_dir, name, QN_RECORDER_CAPTURE_SUFFIX, ret_path, QN_PATH_MAX);
    if (strlen(name) >= QN_PATH_MAX) return qn_fail(QN_ERR_LIMIT, "the path is longer than %d bytes", QN_PATH_MAX - 1);
    strcpy(ret_path, name);
    return QN_OK;
}

int cmd_record(int argc, char **argv)
{
    char run_dir[QN_PATH_MAX], path[QN_PATH_MAX];
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (argc != 2) return cli_usage("record wants one NAME");
    int interrupt_fd = cli_interrupt_fd(); /* first: threads of ZeroMQ inherit the mask */
    qn_links_setup_zmq();
    qn_err_t err = cli_run_dir(options.config, options.run_dir, run_dir);
    if (!err) err = recording_path(run_dir, argv[1], path);
    if (err) return cli_fail_err(err);
    qn_recorder_spec_t spec = {.run_dir = run_dir,
                               .path = path,
                               .time_ns = options.seconds * 1000000000ull,
                               .bytes_max = options.megabytes << 20,
                               .stop_fd = interrupt_fd,
                               .listening = say_listening};
    qn_recorder_figures_t figures;
    err = qn_recorder_run(&spec, &figures);
    if (err) return cli_fail_err(err);
    report(path, &figures);
    return cli_finish_output();
}
