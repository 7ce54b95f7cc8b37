/* What is this?      `quintet note-crash`: what systemd runs when a service has ended (ExecStopPost=).
 * State owned:       none.
 * Must never:        fail the unit: it is called after clean stops and kills too, and then does nothing.
 * Read next:         common/daemon/crash.h, deploy/systemd/quintet-.service.d. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "common/daemon/crash.h"
#include "common/limits.h"
#include "common/paths.h"
#include "tools/cli.h"

/* $EXIT_CODE and $EXIT_STATUS of systemd.exec(5) as waitpid gives them: "exited" and a number, or "killed", "dumped" and the
 * name of a signal. -1: they say nothing of a crash. */
static int wait_status_of(const char *code, const char *status)
{
    static const int signals[] = {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL};
    const char *result = getenv("SERVICE_RESULT");
    if (code == NULL || status == NULL) return -1;
    if (result != NULL && strcmp(result, "watchdog") == 0) return -1; /* stopped from outside: systemd aborted it */
    if (strcmp(code, "exited") == 0) return (atoi(status) & 0xff) << 8;
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        if (strcmp(status, sigabbrev_np(signals[i])) == 0) return signals[i];
    return -1;
}

int cmd_note_crash(int argc, char **argv)
{
    qn_config_arguments_t arguments;
    const cli_command_t command = {
        .name = "note-crash",
        .arguments = "SERVICE",
        .summary = "Notes how a service ended, for systemd's ExecStopPost=.",
        .details =
            "Reads SERVICE_RESULT, EXIT_CODE and EXIT_STATUS as systemd sets them and writes RUN_DIR/SERVICE.crash when it was a\n"
            "crash, so that a request that makes a service crash again and again is found and ended.\n",
        .configuration = &arguments,
    };
    int done = cli_parse(&command, &argc, argv);
    if (done >= 0) return done;
    if (argc != 2) return cli_usage("expected one SERVICE");
    const char *service = strncmp(argv[1], "quintet-", 8) == 0 ? argv[1] + 8 : argv[1];
    int status = wait_status_of(getenv("EXIT_CODE"), getenv("EXIT_STATUS"));
    if (status < 0 || !qn_crash_counts(status)) return EX_OK;
    char run_dir[QN_PATH_MAX];
    qn_config_t *config = NULL;
    qn_err_t err = qn_config_load(arguments.path, arguments.sets, arguments.set_count, arguments.run_dir, &config);
    if (!err) err = qn_paths_run_dir(qn_config_values(config), run_dir, sizeof run_dir);
    if (!err) err = qn_crash_write(run_dir, service, 0, status);
    qn_config_free(&config);
    return err && err != QN_ERR_NOT_FOUND ? cli_fail_err(err) : EX_OK;
}
