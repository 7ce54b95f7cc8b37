/* What is this?      quintet status: the five services as GET /services tells, and whether they can serve.
 * State owned:       none.
 * Must never:        say "ready" when GET /ready does not.
 * Read next:         http_client.h. */
#include <math.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "common/clock.h"
#include "tools/cli.h"
#include "tools/client/http_client.h"

#define CALL_TIMEOUT_MS 5000
/* Between two looks while waiting. */
#define LOOK_AGAIN_MS 200

static struct {
    const char *url;
    double wait_seconds;
    bool json, quiet;
} options;

static const cli_option_t option_table[] = {
    {"wait", 'w', CLI_NUMBER, &options.wait_seconds, NULL, "SECONDS", "wait until all are ready, this long at most", 0,
     86400},
    {"json", 'j', CLI_FLAG, &options.json, NULL, NULL, "one JSON object", 0, 0},
    {"quiet", 'q', CLI_FLAG, &options.quiet, NULL, NULL, "only the exit status", 0, 0},
    {"url", 0, CLI_TEXT, &options.url, NULL, "URL", "server: http://host:port or unix:PATH", 0, 0},
};

static const cli_command_t command = {
    .name = "status",
    .arguments = "[OPTION]...",
    .summary =
        "Shows the five services: state, process, age, restarts, build, what they say or died of; and faults in force.",
    .details = "RESTARTS counts earlier lives in this run directory, those under an earlier quintet up too.\n\n"
               "Exit status: 0 all are ready, 75 (EX_TEMPFAIL) not yet, 69 (EX_UNAVAILABLE) no server.\n\n"
               "example:\n  quintet status --wait 30 && quintet generate \"Hello\"",
    .options = option_table,
    .option_count = sizeof option_table / sizeof *option_table,
};

/* What one look gave. */
typedef struct {
    qn_err_t err;
    http_reply_t ready, services, faults; /* an older server has no faults */
} look_t;

static void look_fini(look_t *look)
{
    http_reply_fini(&look->ready);
    http_reply_fini(&look->services);
    http_reply_fini(&look->faults);
}

static bool look_is_ready(const look_t *look) { return !look->err && look->ready.status == 200; }

static void look_once(http_client_t *client, look_t *look)
{
    *look = (look_t){0};
    http_call_t call = {.method = "GET", .path = "/ready", .timeout_ms = CALL_TIMEOUT_MS};
    look->err = http_client_call(client, &call, &look->ready);
    call.path = "/services";
    if (!look->err) look->err = http_client_call(client, &call, &look->services);
    call.path = "/faults";
    if (!look->err) look->err = http_client_call(client, &call, &look->faults);
}

static void print_wait(const look_t *look, double waited_s)
{
    static const char *const frames[] = {"|", "/", "-", "\\"};
    if (options.quiet || options.json || !isatty(STDERR_FILENO)) return;
    fprintf(stderr, "\r%s %s, %.0f s \x1b[K", frames[(unsigned)(waited_s * 5) % 4],
            look->err ? "waiting for the server" : "waiting until all are ready", waited_s);
}

/* Looks until ready or the time is over; the last look is in *look. */
static void look_until_ready(http_client_t *client, int interrupt_fd, look_t *look)
{
    uint64_t begin_ns = qn_clock_now_ns();
    double waited_s = 0;
    for (;;) {
        look_once(client, look);
        waited_s = (double)(qn_clock_now_ns() - begin_ns) / 1e9;
        bool hopeless =
            look->err && look->err != QN_ERR_NOT_FOUND && look->err != QN_ERR_PEER && look->err != QN_ERR_TIMEOUT;
        if (look_is_ready(look) || hopeless || waited_s >= options.wait_seconds) break;
        print_wait(look, waited_s);
        struct pollfd interrupt = {.fd = interrupt_fd, .events = POLLIN};
        double left_ms = ceil((options.wait_seconds - waited_s) * 1000);
        bool interrupted = poll(&interrupt, 1, left_ms < LOOK_AGAIN_MS ? (int)left_ms : LOOK_AGAIN_MS) == 1;
        look_fini(look);
        if (interrupted) {
            look->err = QN_ERR_CANCELLED;
            break;
        }
    }
    if (options.wait_seconds > 0 && isatty(STDERR_FILENO) && !options.quiet && !options.json) fputs("\r\x1b[K", stderr);
}

/* ---- output ---- */

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "-";
}

static void format_age(double seconds, char *buffer, size_t capacity)
{
    if (seconds < 60)
        snprintf(buffer, capacity, "%.0f s", seconds);
    else if (seconds < 3600)
        snprintf(buffer, capacity, "%d min", (int)(seconds / 60));
    else if (seconds < 48 * 3600)
        snprintf(buffer, capacity, "%d h %02d min", (int)(seconds / 3600), (int)(seconds / 60) % 60);
    else
        snprintf(buffer, capacity, "%d days", (int)(seconds / 86400));
}

/* A service that is down has no process and no age. */
static void print_row(const json_t *service)
{
    const json_t *pid = json_object_get(service, "pid");
    const char *text = json_string_value(json_object_get(service, "text"));
    char age[32] = "-", process[24] = "-";
    if (json_integer_value(pid) > 0) {
        snprintf(process, sizeof process, "%lld", (long long)json_integer_value(pid));
        format_age(json_number_value(json_object_get(service, "uptime_s")), age, sizeof age);
    }
    printf("%-10s %-9s %8s %12s %8lld %10lld  %-9s %s", text_of(service, "name"), text_of(service, "state"), process,
           age, (long long)json_integer_value(json_object_get(service, "restarts")),
           (long long)json_integer_value(json_object_get(service, "epoch")), text_of(service, "transport"),
           text_of(service, "build"));
    if (text && text[0]) {
        fputs("  ", stdout);
        cli_print_text(text, strlen(text));
    }
    putchar('\n');
}

/* "fault: drop StepPlan from scheduler to compute, fired 3 of 12". */
static void print_fault(const json_t *fault)
{
    const char *type = json_string_value(json_object_get(fault, "type"));
    const char *from = json_string_value(json_object_get(fault, "from"));
    const char *to = json_string_value(json_object_get(fault, "to"));
    printf("fault: %s%s%s%s%s%s%s, fired %lld of %lld\n", text_of(fault, "kind"), type ? " " : "", type ? type : "",
           from ? " from " : "", from ? from : "", to ? " to " : "", to ? to : "",
           (long long)json_integer_value(json_object_get(fault, "fired")),
           (long long)json_integer_value(json_object_get(fault, "hits")));
}

static void print_table(const json_t *services, const json_t *faults, bool ready)
{
    printf("%-10s %-9s %8s %12s %8s %10s  %-9s %s\n", "SERVICE", "STATE", "PID", "UP", "RESTARTS", "EPOCH", "TRANSPORT",
           "BUILD, DETAIL");
    for (size_t i = 0; i < json_array_size(services); i++)
        print_row(json_array_get(services, i));
    for (size_t i = 0; i < json_array_size(faults); i++)
        print_fault(json_array_get(faults, i));
    puts(ready ? "ready" : "not ready");
}

static int report(const http_client_t *client, const look_t *look)
{
    bool ready = look_is_ready(look);
    if (look->err && options.quiet)
        return look->err == QN_ERR_NOT_FOUND   ? EX_UNAVAILABLE
               : look->err == QN_ERR_CANCELLED ? CLI_EXIT_INTERRUPTED
                                               : qn_err_exit_status(look->err);
    int status = look->err ? http_client_explain(client, look->err, &look->ready)
                           : http_client_explain(client, QN_OK, &look->services);
    if (status) return status;
    const json_t *services = json_object_get(look->services.json, "services");
    const json_t *faults = json_object_get(look->faults.json, "faults");
    if (!json_is_array(services))
        return cli_fail(EX_PROTOCOL, "%s/services did not answer with a list of services: is it a Quintet server?",
                        http_client_url(client));
    if (options.json) {
        json_t *answer = json_pack("{s:b, s:O}", "ready", (int)ready, "services", services);
        if (json_array_size(faults) > 0) json_object_set(answer, "faults", (json_t *)(uintptr_t)faults);
        cli_print_json(answer);
        json_decref(answer);
    } else if (!options.quiet) {
        print_table(services, faults, ready);
    }
    int output = cli_finish_output();
    return output ? output : ready ? EX_OK : EX_TEMPFAIL;
}

int cmd_status(int argc, char **argv)
{
    int status = cli_parse(&command, &argc, argv);
    if (status != -1) return status;
    if (argc > 1) return cli_usage("unexpected argument \"%s\"", argv[1]);
    int interrupt_fd = cli_interrupt_fd();
    http_client_t *client = NULL;
    if (http_client_open(options.url, interrupt_fd, &client)) return cli_usage("%s", qn_err_text());
    look_t look;
    look_until_ready(client, interrupt_fd, &look);
    status = report(client, &look);
    look_fini(&look);
    http_client_close(&client);
    return status;
}
