/* What is this?      `quintet up`: its command line.
 * State owned:       none.
 * Must never:        start a thread before up_run or up_compose_run.
 * Read next:         up.c. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "tools/cli.h"
#include "tools/up/up.h"
#include "tools/up/up_compose.h"

static const char details[] =
    "Runs until Ctrl-C or SIGTERM, which lets requests finish for up.stop_seconds; a second Ctrl-C kills at once. A\n"
    "service that dies is started again: at once, then after 50 ms, doubled up to 1 s. Descriptors that a service\n"
    "hands over (sd_notify FDSTORE=1) are kept for its next life. Log lines go to standard error.\n"
    "\n"
    "Exit status: 0 after a clean stop, 78 for a wrong configuration, 69 when the run directory is taken, otherwise\n"
    "that of the service that could not be started.\n"
    "\n"
    "  quintet up --set model.path=/models/Llama-3.2-1B --set frontend.listen=0.0.0.0:8000\n"
    "  quintet up --inproc --run-dir /tmp/q\n";

/* The directory of this program: the services lie beside it. */
static const char *own_directory(void)
{
    static char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length <= 0) return ".";
    path[length] = '\0';
    char *slash = strrchr(path, '/');
    if (slash && slash != path) *slash = '\0';
    return path;
}

int cmd_up(int argc, char **argv)
{
    bool inproc = false;
    const char *binary_dir = NULL, *compose = NULL;
    const cli_option_t options[] = {
        {.name = "inproc",
         .kind = CLI_FLAG,
         .value = &inproc,
         .help = "all five services as threads of one process (up.composed=all)"},
        {.name = "bin-dir",
         .kind = CLI_TEXT,
         .value = &binary_dir,
         .argument = "DIR",
         .help = "directory of the service binaries (default: where quintet is)"},
        {.name = "compose",
         .kind = CLI_TEXT,
         .value = &compose,
         .argument = "LIST",
         .help = "be these services, as threads, without a supervisor: \"all\" or \"tokenizer,scheduler\""},
    };
    qn_config_arguments_t arguments;
    const cli_command_t command = {
        .name = "up",
        .arguments = "[OPTION]...",
        .summary = "Starts the five services and looks after them.",
        .details = details,
        .options = options,
        .option_count = sizeof options / sizeof options[0],
        .configuration = &arguments,
    };
    int done = cli_parse(&command, &argc, argv);
    if (done >= 0) return done;
    if (argc > 1) return cli_usage("unexpected argument \"%s\"", argv[1]);
    if (inproc && compose) return cli_usage("--inproc and --compose exclude each other");

    char composed[128];
    const char *sets[QN_CONFIG_SETS_MAX + 1];
    memcpy(sets, arguments.sets, sizeof arguments.sets);
    size_t set_count = arguments.set_count;
    if (inproc || compose) { /* judged as a value of the key that it stands for */
        snprintf(composed, sizeof composed, "up.composed=%s", compose ? compose : "all");
        sets[set_count++] = composed;
    }
    qn_config_t *config = NULL;
    qn_err_t err = qn_config_load(arguments.path, sets, set_count, arguments.run_dir, &config);
    if (err) return cli_fail_err(err);
    const char *services = qn_config_values(config)->up.composed;
    int status;
    if (compose) {
        status = services[0] ? up_compose_run(config, services) : cli_usage("--compose names no service");
    } else {
        up_spec_t spec = {.config = config,
                          .arguments = &arguments,
                          .binary_dir = binary_dir ? binary_dir : own_directory(),
                          .composed = services};
        status = up_run(&spec);
    }
    qn_config_free(&config);
    return status;
}
